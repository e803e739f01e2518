//! Signed notes (C2SP, signed-note): a text and signatures of it, as text. The signatures are Ed25519 (RFC 8032).
//!
//! ```text
//! text, one or more lines
//! (an empty line)
//! — NAME base64(key id(4) signature(64))
//! ```

use std::{fmt, str::FromStr};

use aws_lc_rs::{
    hmac,
    signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey},
};
use base16ct::lower;
use base64::{Engine, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use super::tree::Hash;

/// The signature type of Ed25519 in a key id and in a verifier key.
const ED25519_TYPE: u8 = 1;
/// The bytes of an Ed25519 seed and of a public key.
const KEY_BYTES: usize = 32;
/// The bytes of a key id.
const ID_BYTES: usize = 4;
/// The start of a signature line: an em dash and a space.
const SIGNATURE_LINE: &str = "\u{2014} ";
/// The longest note that is read.
const NOTE_BYTES_MAX: usize = 64 * 1024;
/// The longest name of a key (C2SP, tlog-cosignature).
const NAME_BYTES_MAX: usize = 255;

/// The key that signs the checkpoints of a chain and makes the salts of its tree.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    salts: hmac::Key,
}

impl SigningKey {
    /// The key of an Ed25519 seed: 64 hexadecimal digits, lower case.
    ///
    /// # Errors
    /// [`NoteError::SigningKey`] for another text.
    pub fn from_text(text: &str) -> Result<Self, NoteError> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        let written = lower::decode(text, &mut *seed).map_err(|_| NoteError::SigningKey)?.len();
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).map_err(|_| NoteError::SigningKey)?;
        if written != KEY_BYTES {
            return Err(NoteError::SigningKey);
        }
        Ok(Self { pair, salts: hmac::Key::new(hmac::HMAC_SHA256, &*seed) })
    }

    /// The text of a random key.
    ///
    /// # Errors
    /// [`NoteError::Random`] where the random generator fails.
    pub fn random_text() -> Result<Zeroizing<String>, NoteError> {
        let mut seed = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(&mut *seed).map_err(|_| NoteError::Random)?;
        Ok(Zeroizing::new(lower::encode_string(&*seed)))
    }

    /// The salt of the entry with this sequence number.
    pub fn salt(&self, sequence: u64) -> Hash {
        let mut context = hmac::Context::with_key(&self.salts);
        context.update(b"pinseal audit salt");
        context.update(&sequence.to_be_bytes());
        let mut salt = [0; 32];
        salt.iter_mut().zip(context.sign().as_ref()).for_each(|(place, byte)| *place = *byte);
        salt
    }

    /// The id of the salts of this key: the salt of no entry, since entries are numbered from 1.
    pub fn salts_id(&self) -> Hash {
        self.salt(0)
    }

    /// The public key under a name.
    ///
    /// # Errors
    /// [`NoteError::Name`] for a name that a note cannot carry.
    pub fn verifier(&self, name: &str) -> Result<VerifierKey, NoteError> {
        let public = self.pair.public_key().as_ref().try_into().map_err(|_| NoteError::SigningKey)?;
        VerifierKey::new(name, public)
    }

    /// The note of a text of whole lines, signed under a name.
    ///
    /// # Errors
    /// [`NoteError::Name`], or [`NoteError::Text`] for a text that a note cannot carry.
    pub fn sign(&self, name: &str, text: &str) -> Result<String, NoteError> {
        let verifier = self.verifier(name)?;
        let sound = text.ends_with('\n') && !text.contains("\n\n") && !text.starts_with('\n');
        if !sound || text.chars().any(|letter| letter < ' ' && letter != '\n') {
            return Err(NoteError::Text);
        }
        let signature = [&verifier.id()[..], self.pair.sign(text.as_bytes()).as_ref()].concat();
        Ok(format!("{text}\n{SIGNATURE_LINE}{name} {}\n", BASE64_STANDARD.encode(signature)))
    }
}

/// The public key of a signer of notes. Its text is `NAME+ID+KEY`: the key id in 8 hexadecimal digits, type and key in base64.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    public: [u8; KEY_BYTES],
}

impl VerifierKey {
    fn new(name: &str, public: [u8; KEY_BYTES]) -> Result<Self, NoteError> {
        let sound =
            (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c == '+');
        if sound { Ok(Self { name: name.to_owned(), public }) } else { Err(NoteError::Name) }
    }

    /// The name of the key, which each of its signatures carries.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The first four bytes of `SHA-256(name || 0A || 01 || public key)`.
    fn id(&self) -> [u8; ID_BYTES] {
        let hash = Sha256::new().chain_update(&self.name).chain_update([b'\n', ED25519_TYPE]).chain_update(self.public);
        let [a, b, c, d, ..]: Hash = hash.finalize().into();
        [a, b, c, d]
    }

    /// The text of a note, once the signature of this key is verified. Signatures of other keys are ignored.
    ///
    /// # Errors
    /// [`NoteError::Malformed`], [`NoteError::Unsigned`] without a signature of this key, or [`NoteError::Signature`].
    pub fn open<'a>(&self, note: &'a str) -> Result<&'a str, NoteError> {
        let at = note.rfind("\n\n").filter(|_| note.len() <= NOTE_BYTES_MAX).ok_or(NoteError::Malformed)?;
        let (text, signatures) = note.split_at_checked(at + 1).ok_or(NoteError::Malformed)?;
        let signatures = signatures.strip_prefix('\n').and_then(|lines| lines.strip_suffix('\n'));
        let mut found = Err(NoteError::Unsigned { name: self.name.clone() });
        for line in signatures.ok_or(NoteError::Malformed)?.split('\n') {
            let (name, signature) =
                line.strip_prefix(SIGNATURE_LINE).and_then(|line| line.split_once(' ')).ok_or(NoteError::Malformed)?;
            let signature = BASE64_STANDARD.decode(signature).map_err(|_| NoteError::Malformed)?;
            let (id, signature) = signature.split_first_chunk().ok_or(NoteError::Malformed)?;
            if (name, *id) == (&self.name, self.id()) {
                let key = UnparsedPublicKey::new(&ED25519, self.public);
                key.verify(text.as_bytes(), signature).map_err(|_| NoteError::Signature { name: self.name.clone() })?;
                found = Ok(text);
            }
        }
        found
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = BASE64_STANDARD.encode([&[ED25519_TYPE][..], &self.public].concat());
        write!(f, "{}+{}+{key}", self.name, lower::encode_string(&self.id()))
    }
}

impl FromStr for VerifierKey {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        let mut parts = text.splitn(3, '+');
        let (Some(name), Some(_id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(NoteError::VerifierKey);
        };
        let key = BASE64_STANDARD.decode(key).map_err(|_| NoteError::VerifierKey)?;
        let Some((&ED25519_TYPE, public)) = key.split_first() else { return Err(NoteError::VerifierKey) };
        let verifier = Self::new(name, public.try_into().map_err(|_| NoteError::VerifierKey)?)?;
        // The id in the text is that of name and key.
        if verifier.to_string() == text { Ok(verifier) } else { Err(NoteError::VerifierKey) }
    }
}

/// A note or a key of notes can't be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum NoteError {
    /// The text is not a signing key.
    #[error("an audit signing key is 64 lower-case hexadecimal digits")]
    SigningKey,
    /// The text is not a verifier key.
    #[error("a verifier key is NAME+ID+KEY, as the engine writes it beside its checkpoint")]
    VerifierKey,
    /// The name of a key is empty, too long, or has a blank or a plus sign.
    #[error("the name of a key is 1 to {NAME_BYTES_MAX} bytes without blanks and plus signs")]
    Name,
    /// The text of a note is not whole lines, or has an empty line or a control character.
    #[error("the text of a note is whole lines, none of them empty, without control characters")]
    Text,
    /// The text is not a signed note.
    #[error("the text is not a signed note (C2SP): copy the whole checkpoint again")]
    Malformed,
    /// The note has no signature of the key.
    #[error("the note is not signed by {name}: give the verifier key of the engine that wrote this chain")]
    Unsigned {
        /// The name of the key.
        name: String,
    },
    /// The signature of the key does not verify.
    #[error("the signature of {name} is wrong: the note was changed")]
    Signature {
        /// The name of the key.
        name: String,
    },
    /// The random generator failed.
    #[error("the random generator failed")]
    Random,
}

#[cfg(test)]
mod tests {
    use signed_note::{Note, StandardSigner, StandardVerifier, VerifierList};

    use super::*;

    const NAME: &str = "pinseal.audit/0123";
    const TEXT: &str = "origin\n7\nroot\n";

    fn key(byte: u8) -> SigningKey {
        SigningKey::from_text(&lower::encode_string(&[byte; 32])).unwrap()
    }

    #[test]
    fn the_published_note_of_go_verifies() {
        // The example of golang.org/x/mod/sumdb/note.
        let verifier: VerifierKey =
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let signature = "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
        assert_eq!(verifier.open(&format!("{text}\n\u{2014} PeterNeumann {signature}\n")), Ok(text));
    }

    #[test]
    fn signed_note_verifies_our_notes() {
        let note = key(7).sign(NAME, TEXT).unwrap();
        let verifier = StandardVerifier::new(&key(7).verifier(NAME).unwrap().to_string()).unwrap();
        let read = Note::from_bytes(note.as_bytes()).unwrap();
        let (verified, unverified) = read.verify(&VerifierList::new(vec![Box::new(verifier)])).unwrap();
        assert_eq!((verified.len(), unverified.len(), read.text()), (1, 0, TEXT.as_bytes()));
    }

    #[test]
    fn we_verify_the_notes_of_signed_note() {
        let skey = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
        let mut note = Note::new(TEXT.as_bytes(), &[]).unwrap();
        note.add_sigs(&[&StandardSigner::new(skey).unwrap()]).unwrap();
        let verifier: VerifierKey =
            "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".parse().unwrap();
        assert_eq!(verifier.open(std::str::from_utf8(&note.to_bytes()).unwrap()), Ok(TEXT));
    }

    #[test]
    fn a_note_changed_in_any_byte_does_not_open() {
        let (note, verifier) = (key(7).sign(NAME, TEXT).unwrap(), key(7).verifier(NAME).unwrap());
        assert_eq!(verifier.open(&note), Ok(TEXT));
        for at in 0..note.len() {
            let mut changed = note.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            if let Ok(changed) = std::str::from_utf8(&changed) {
                assert!(verifier.open(changed).is_err(), "byte {at}");
            }
        }
        let other = key(8).verifier(NAME).unwrap();
        assert_eq!(other.open(&note), Err(NoteError::Unsigned { name: NAME.into() }));
        let both = note.clone() + key(8).sign(NAME, TEXT).unwrap().rsplit_once("\n\n").unwrap().1;
        assert_eq!((verifier.open(&both), other.open(&both)), (Ok(TEXT), Ok(TEXT)));
    }

    #[test]
    fn a_verifier_key_has_one_text() {
        let text = key(7).verifier(NAME).unwrap().to_string();
        assert_eq!(text.parse::<VerifierKey>().unwrap().to_string(), text);
        for refused in
            [&text[..text.len() - 1], &text.replace("0123", "0124"), &text.to_uppercase(), "", "a+b", "a+b+c"]
        {
            assert!(refused.parse::<VerifierKey>().is_err(), "{refused}");
        }
    }

    #[test]
    fn a_text_or_name_that_a_note_cannot_carry_is_not_signed() {
        for text in ["", "no end", "an empty\n\nline\n", "\nfirst\n", "tab\t\n"] {
            assert_eq!(key(7).sign(NAME, text), Err(NoteError::Text), "{text:?}");
        }
        for name in ["", "a b", "a+b", &"a".repeat(256)] {
            assert_eq!(key(7).sign(name, TEXT), Err(NoteError::Name), "{name:?}");
        }
        for seed in ["", "00", &"0".repeat(66), &"A".repeat(64)] {
            assert!(SigningKey::from_text(seed).is_err(), "{seed}");
        }
        assert_ne!(key(7).salt(1), key(7).salt(2));
    }
}
