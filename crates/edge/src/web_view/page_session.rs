//! The session of a page: sealed into a cookie, so that each edge with the same key serves the page and no edge keeps a state.

use std::time::Duration;

use aws_lc_rs::{
    aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand,
};
use axum::http::{HeaderMap, HeaderValue, header::COOKIE};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Serialize;
use zeroize::Zeroizing;

use domain::{
    control::{ControlId, PageId, RETRY_GRACE},
    time::UnixMillis,
};

/// The bytes of the key that seals sessions.
pub(crate) const SESSION_KEY_BYTES: usize = 32;
/// The name of the cookie. A browser accepts its prefix with Secure, Path=/ and no Domain alone, so no other host of the domain
/// can set it. Chromium 156 accepts it over HTTP from this machine too.
const COOKIE_NAME: &str = "__Host-pinseal-page";
/// Binds a sealed session to its layout.
const CONTEXT: &[u8] = b"pinseal page session 1";
/// The operation in a sealed session.
const SET_PIN: u8 = 1;
const VIEW_PIN: u8 = 2;
/// The longest sealed session that is opened, in characters.
const SEALED_CHARACTERS_MAX: usize = 256;

/// The session of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageSession {
    /// The key of the page.
    pub(crate) page: Box<str>,
    /// Distinguishes this page from another page in the same browser.
    pub(crate) id: PageId,
    /// The control of the page.
    pub(crate) control: PageControl,
    /// The end of the control, by the wall clock of the edge.
    pub(crate) expires_at: UnixMillis,
}

/// The control of a page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PageControl {
    /// The name of the control.
    pub(crate) id: ControlId,
    /// The operation of the control.
    pub(crate) operation: PageOperation,
    /// The fewest and the most digits of a PIN.
    pub(crate) digits: [u8; 2],
}

/// The operation of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PageOperation {
    /// The cardholder sets a PIN.
    SetPin,
    /// The cardholder views the PIN.
    ViewPin,
}

impl PageSession {
    /// A session of the page with this key, for a control that ends after `remaining`.
    pub(crate) fn begin(page: &str, id: PageId, control: PageControl, remaining: Duration) -> Self {
        Self { page: page.into(), id, control, expires_at: clock::now().after(remaining) }
    }

    /// The time to the end of the control.
    pub(crate) fn remaining(&self) -> Duration {
        self.expires_at.since(clock::now())
    }
}

/// Where a browser shows a page. It decides which cookie the browser sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// As the document of a window or an app's web view.
    Phone,
    /// In a frame of another site, whose cookies browsers partition by the site of the parent.
    Frame,
}

/// Seals and opens sessions.
pub(crate) struct PageSessions(LessSafeKey);

/// The cryptographic library of the edge returned an error: no session can be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SealError;

impl PageSessions {
    /// Sessions under this key.
    ///
    /// # Errors
    /// [`SealError`].
    pub(crate) fn new(key: &[u8; SESSION_KEY_BYTES]) -> Result<Self, SealError> {
        // SIV: edges that share the key for years may repeat a random nonce of 96 bits, which must reveal nothing more than
        // that two sessions are the same (RFC 8452).
        UnboundKey::new(&AES_256_GCM_SIV, key).map(|key| Self(LessSafeKey::new(key))).map_err(|_| SealError)
    }

    /// A random key, for an edge that serves its pages alone.
    ///
    /// # Errors
    /// [`SealError`].
    pub(crate) fn random_key() -> Result<Zeroizing<[u8; SESSION_KEY_BYTES]>, SealError> {
        let mut key = Zeroizing::new([0; SESSION_KEY_BYTES]);
        rand::fill(&mut *key).map_err(|_| SealError)?;
        Ok(key)
    }

    /// The Set-Cookie header of a session. Without Max-Age and Expires: the cookie ends with the browser.
    ///
    /// # Errors
    /// [`SealError`].
    pub(crate) fn set_cookie(&self, session: &PageSession, placement: Placement) -> Result<HeaderValue, SealError> {
        let same_site = match placement {
            Placement::Phone => "SameSite=Strict",
            Placement::Frame => "SameSite=None; Partitioned",
        };
        let sealed = self.seal(session)?;
        format!("{COOKIE_NAME}={sealed}; Path=/; HttpOnly; Secure; {same_site}").parse().map_err(|_| SealError)
    }

    /// The session with this id of this page among the cookies of a request; `None` for none. A browser may send the cookie
    /// of a frame beside that of a window.
    pub(crate) fn find(&self, headers: &HeaderMap, page: &str, id: PageId) -> Option<PageSession> {
        self.all(headers, page).find(|session| session.id == id)
    }

    /// The sessions of this page among the cookies of a request, until no call of a session is answered any more.
    pub(crate) fn all<'a>(&'a self, headers: &'a HeaderMap, page: &'a str) -> impl Iterator<Item = PageSession> + 'a {
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
        let sealed = pairs.filter(|(name, _)| *name == COOKIE_NAME).map(|(_, value)| value);
        let now = clock::now();
        let is_kept =
            move |session: &PageSession| now < session.expires_at.after(RETRY_GRACE) && &*session.page == page;
        sealed.filter_map(|sealed| self.open(sealed)).filter(is_kept)
    }

    /// `nonce(12) encrypted: expiry(8) id(16) control(16) operation(1) digits(2) page…, tag(16)`, in base64 of the URL alphabet.
    fn seal(&self, session: &PageSession) -> Result<String, SealError> {
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).map_err(|_| SealError)?;
        let PageSession { page, id, control, expires_at } = session;
        let operation = match control.operation {
            PageOperation::SetPin => SET_PIN,
            PageOperation::ViewPin => VIEW_PIN,
        };
        let [min, max] = control.digits;
        let expiry = expires_at.0.to_be_bytes();
        let of_control = [control.id.as_bytes(), &[operation, min, max][..]].concat();
        let mut bytes = Zeroizing::new([&expiry[..], id.as_bytes(), &of_control, page.as_bytes()].concat());
        let sealed = Nonce::assume_unique_for_key(nonce);
        self.0.seal_in_place_append_tag(sealed, Aad::from(CONTEXT), &mut *bytes).map_err(|_| SealError)?;
        Ok(URL_SAFE_NO_PAD.encode([&nonce[..], &bytes].concat()))
    }

    fn open(&self, sealed: &str) -> Option<PageSession> {
        if sealed.len() > SEALED_CHARACTERS_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, sealed) = bytes.split_first_chunk()?;
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let opened = self.0.open_in_place(nonce, Aad::from(CONTEXT), &mut sealed).ok()?;
        let (expiry, rest) = opened.split_first_chunk()?;
        let (id, rest) = rest.split_first_chunk()?;
        let (control, rest) = rest.split_first_chunk()?;
        let ([operation, min, max], page) = rest.split_first_chunk()?;
        let operation = match *operation {
            SET_PIN => PageOperation::SetPin,
            VIEW_PIN => PageOperation::ViewPin,
            _ => return None,
        };
        Some(PageSession {
            page: std::str::from_utf8(page).ok()?.into(),
            id: PageId::from_bytes(*id),
            control: PageControl { id: ControlId::from_bytes(*control), operation, digits: [*min, *max] },
            expires_at: UnixMillis(u64::from_be_bytes(*expiry)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: [u8; SESSION_KEY_BYTES] = [7; SESSION_KEY_BYTES];

    fn sessions() -> PageSessions {
        PageSessions::new(&KEY).unwrap()
    }

    fn begun(page: &str) -> PageSession {
        let control = PageControl { id: ControlId::random(), operation: PageOperation::ViewPin, digits: [4, 12] };
        PageSession::begin(page, PageId::random(), control, Duration::from_secs(30))
    }

    fn with_cookies(values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(COOKIE, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_session_is_found_by_page_and_id_under_its_key_alone() {
        let (session, key) = (begun("bank"), sessions());
        let sealed = key.seal(&session).unwrap();
        let headers = with_cookies(&["a=b; other", &format!("x=y;{COOKIE_NAME}={sealed}")]);
        let id = session.id;
        assert_eq!(key.find(&headers, "bank", id), Some(session.clone()));
        assert_eq!(key.find(&headers, "other", id), None);
        assert_eq!(key.find(&headers, "bank", begun("bank").id), None);
        assert_eq!(PageSessions::new(&[8; SESSION_KEY_BYTES]).unwrap().find(&headers, "bank", id), None);
        assert_eq!(PageSessions::new(&KEY).unwrap().find(&headers, "bank", id), Some(session));
    }

    #[test]
    fn a_session_ends_when_no_retry_is_confirmed_any_more() {
        let found = |expires_at: UnixMillis| {
            let session = PageSession { expires_at, ..begun("bank") };
            let cookie = format!("{COOKIE_NAME}={}", sessions().seal(&session).unwrap());
            sessions().find(&with_cookies(&[&cookie]), "bank", session.id).is_some()
        };
        let grace = u64::try_from(RETRY_GRACE.as_millis()).unwrap();
        assert!(found(UnixMillis(clock::now().0 - grace / 2)));
        assert!(!found(UnixMillis(clock::now().0 - grace)));
    }

    #[test]
    fn a_changed_or_cut_cookie_is_no_session() {
        let (session, key) = (begun("bank"), sessions());
        let sealed = key.seal(&session).unwrap();
        assert_ne!(sealed, key.seal(&session).unwrap(), "each seal has its own nonce");
        assert!(!sealed.contains(&session.control.id.to_string()[..8]));
        let bytes = URL_SAFE_NO_PAD.decode(&sealed).unwrap();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(key.open(&URL_SAFE_NO_PAD.encode(changed)), None, "{at}");
            assert_eq!(key.open(&URL_SAFE_NO_PAD.encode(&bytes[..at])), None, "{at}");
        }
        assert_eq!(key.open(&format!("{sealed}=")), None);
        assert_eq!(key.open(&"A".repeat(10_000)), None);
    }

    #[test]
    fn of_two_cookies_the_one_with_the_id_is_found() {
        let (first, second, key) = (begun("bank"), begun("bank"), sessions());
        let value = |session| format!("{COOKIE_NAME}={}", key.seal(session).unwrap());
        let headers = with_cookies(&[&format!("{}; {}", value(&first), value(&second))]);
        for session in [first, second] {
            assert_eq!(key.find(&headers, "bank", session.id), Some(session));
        }
    }

    #[test]
    fn a_cookie_ends_with_the_browser_and_is_sent_to_its_host_alone() {
        let cookie = |placement| {
            let value = sessions().set_cookie(&begun("bank"), placement).unwrap();
            let (pair, attributes) = value.to_str().unwrap().split_once("; ").unwrap();
            (pair.split_once('=').unwrap().0.to_owned(), attributes.to_owned())
        };
        let strict = "Path=/; HttpOnly; Secure; SameSite=Strict";
        let partitioned = "Path=/; HttpOnly; Secure; SameSite=None; Partitioned";
        assert_eq!(cookie(Placement::Phone), (COOKIE_NAME.into(), strict.into()));
        assert_eq!(cookie(Placement::Frame), (COOKIE_NAME.into(), partitioned.into()));
    }
}
