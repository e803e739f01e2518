//! The frames between an engine and the process of a boundary.
//!
//! ```text
//! frame     length(4) of number and body   number(8)   body
//! hello     number 0                    "PINSEAL" version(4)                        from the engine, once
//! welcome   number 0                    "PINSEAL" version(4)  00 status | 01 text | 02 text   from the boundary, once
//! request   number of the caller's      deadline(8) operation(1) arguments
//! reply     the same number             00 result | error code(1) and its fields
//! ```
//! All numbers are big-endian. A deadline is in milliseconds of CLOCK_MONOTONIC, which both ends share. The only
//! clear value in a frame is an account number that is to be sealed. A peer that receives a malformed frame closes the connection.

mod key_list;
mod reply_codec;
mod request_codec;
mod value_codec;
mod verification_codec;

use thiserror::Error;

pub(crate) use self::value_codec::{FrameValue, Reader};
pub use self::{
    key_list::{read_key_list, write_key_list},
    reply_codec::{read_reply, write_reply},
    request_codec::{read_request, write_request},
};
use crate::status::Status;

/// The longest frame, in bytes, its length not counted: a welcome with 255 zone keys and 255 verification keys is under 48 KiB,
/// 64 translations together under 24 KiB, every other request under 1 KiB.
pub const FRAME_BYTES_MAX: usize = 64 * 1024;
/// The most descriptors of one message (SCM_RIGHTS). The kernel's limit is 253.
pub const DESCRIPTORS_PER_MESSAGE: usize = 64;
/// The version of this protocol.
const VERSION: u16 = 13;
const MAGIC: &[u8; 7] = b"PINSEAL";
const LENGTH_BYTES: usize = 4;
const NUMBER_BYTES: usize = 8;
/// The number of hello and welcome.
const FIRST: u64 = 0;

/// Appends a frame with the body that `write` appends.
pub fn push_frame(out: &mut Vec<u8>, number: u64, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; LENGTH_BYTES]);
    out.extend_from_slice(&number.to_be_bytes());
    write(out);
    let length = u32::try_from(out.len().saturating_sub(at + LENGTH_BYTES)).unwrap_or(u32::MAX);
    out.iter_mut().skip(at).zip(length.to_be_bytes()).for_each(|(place, byte)| *place = byte);
}

/// A received frame.
pub struct Frame<'a> {
    /// The number of the request; the reply has the same.
    pub number: u64,
    /// The bytes after the number.
    pub body: &'a [u8],
}

/// Removes the first frame from `bytes`; `None` while the frame is incomplete.
///
/// # Errors
/// The length is out of range.
pub fn take_frame<'a>(bytes: &mut &'a [u8]) -> Result<Option<Frame<'a>>, FrameError> {
    let Some((length, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| FrameError)?;
    if !(NUMBER_BYTES..=FRAME_BYTES_MAX).contains(&length) {
        return Err(FrameError);
    }
    let Some((frame, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let (number, body) = frame.split_first_chunk().ok_or(FrameError)?;
    *bytes = rest;
    Ok(Some(Frame { number: u64::from_be_bytes(*number), body }))
}

/// Appends the hello of an engine.
pub fn push_hello(out: &mut Vec<u8>) {
    push_frame(out, FIRST, |body| {
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&VERSION.to_be_bytes());
    });
}

/// Reads the hello of an engine.
///
/// # Errors
/// The frame is no hello of this release.
pub fn read_hello(frame: &Frame<'_>) -> Result<(), FrameError> {
    let mut read = greeting(frame)?;
    read.end(())
}

/// The first frame of a boundary.
pub enum Welcome {
    /// The boundary serves, with this status.
    Serving(Box<Status>),
    /// The boundary does not serve. The text says why.
    Closed(String),
    /// The token refused the user PIN: another login could lock the PIN. The text is for people.
    PinRefused(String),
}

/// Appends the welcome of a boundary.
pub fn push_welcome(out: &mut Vec<u8>, welcome: &Welcome) {
    push_frame(out, FIRST, |body| {
        body.extend_from_slice(MAGIC);
        body.extend_from_slice(&VERSION.to_be_bytes());
        match welcome {
            Welcome::Serving(status) => {
                body.push(0);
                status.write(body);
            }
            Welcome::Closed(reason) => {
                body.push(1);
                reason.write(body);
            }
            Welcome::PinRefused(reason) => {
                body.push(2);
                reason.write(body);
            }
        }
    });
}

/// Reads the welcome of a boundary.
///
/// # Errors
/// The frame is no welcome of this release.
pub fn read_welcome(frame: &Frame<'_>) -> Result<Welcome, FrameError> {
    let mut read = greeting(frame)?;
    let welcome = match read.byte()? {
        0 => Welcome::Serving(Box::new(Status::read(&mut read)?)),
        1 => Welcome::Closed(String::read(&mut read)?),
        2 => Welcome::PinRefused(String::read(&mut read)?),
        _ => return Err(FrameError),
    };
    read.end(welcome)
}

fn greeting<'a>(frame: &Frame<'a>) -> Result<Reader<'a>, FrameError> {
    let mut read = Reader(frame.body);
    let (magic, version) = (read.array()?, u16::from_be_bytes(read.array()?));
    if (frame.number, magic, version) == (FIRST, *MAGIC, VERSION) { Ok(read) } else { Err(FrameError) }
}

/// The bytes are no frame of this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a frame this release can read: run engine and boundary of one release")]
pub struct FrameError;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, UnavailableReason};

    #[test]
    fn frames_are_read_whole_and_in_order_from_any_pieces() {
        let mut sent = Vec::new();
        push_frame(&mut sent, 7, |body| body.extend_from_slice(b"seven"));
        push_frame(&mut sent, 8, |_| {});
        for cut in 0..=sent.len() {
            let mut arrived = &sent[..cut];
            let mut numbers = Vec::new();
            while let Some(frame) = take_frame(&mut arrived).unwrap() {
                numbers.push((frame.number, frame.body.len()));
            }
            let expected: &[(u64, usize)] = match cut {
                0..17 => &[],
                17..29 => &[(7, 5)],
                _ => &[(7, 5), (8, 0)],
            };
            assert_eq!(numbers, expected, "cut at {cut}");
        }
    }

    #[test]
    fn a_frame_of_a_length_out_of_range_is_rejected() {
        for length in [0u32, 7, 65_537, u32::MAX] {
            let bytes = [&length.to_be_bytes()[..], &[0; 64]].concat();
            assert!(take_frame(&mut &bytes[..]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_hello_of_another_release_is_refused() {
        let mut bytes = Vec::new();
        push_hello(&mut bytes);
        assert_eq!(read_hello(&take_frame(&mut &bytes[..]).unwrap().unwrap()), Ok(()));
        for at in 4..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_eq!(read_hello(&take_frame(&mut &changed[..]).unwrap().unwrap()), Err(FrameError), "byte {at}");
        }
    }

    #[test]
    fn a_welcome_of_a_closed_boundary_keeps_its_reason() {
        let mut bytes = Vec::new();
        push_welcome(&mut bytes, &Welcome::Closed("no such token".to_owned()));
        let welcome = read_welcome(&take_frame(&mut &bytes[..]).unwrap().unwrap());
        assert!(matches!(welcome, Ok(Welcome::Closed(reason)) if reason == "no such token"));
    }

    #[test]
    fn a_welcome_with_the_most_keys_fits_a_frame() {
        let mut bytes = Vec::new();
        let status = full_status(u8::MAX.into());
        push_welcome(&mut bytes, &Welcome::Serving(Box::new(status.clone())));
        let read = read_welcome(&take_frame(&mut &bytes[..]).unwrap().unwrap());
        let Ok(Welcome::Serving(read)) = read else { panic!("not the status") };
        assert!(read.has_same_keys(&status));
        assert_eq!(read.even_parity, status.even_parity);
    }

    #[test]
    fn a_truncated_welcome_is_rejected_at_each_cut() {
        let mut bytes = Vec::new();
        push_welcome(&mut bytes, &Welcome::Serving(Box::new(full_status(2))));
        let frame = take_frame(&mut &bytes[..]).unwrap().unwrap();
        assert!(read_welcome(&frame).is_ok());
        for cut in 0..frame.body.len() {
            assert!(read_welcome(&Frame { number: 0, body: &frame.body[..cut] }).is_err(), "cut at {cut}");
        }
        assert!(read_welcome(&Frame { number: 0, body: &[frame.body, &[0]].concat() }).is_err());
    }

    #[test]
    fn a_changed_key_of_each_kind_differs() {
        let status = full_status(2);
        let lists: [fn(&mut Status) -> &mut Vec<KeyId>; 3] =
            [|status| &mut status.keys, |status| &mut status.zone_keys, |status| &mut status.verification_keys];
        for list in lists {
            let mut other = status.clone();
            assert!(other.has_same_keys(&status));
            list(&mut other)[0].kcv = Some(Kcv::from_bytes([9, 9, 9]));
            assert!(!other.has_same_keys(&status));
        }
        let one_way = Status { form: StorageFormat::OneWay, ..status.clone() };
        assert!(!one_way.has_same_keys(&status) && one_way.rotates() && !status.rotates());
        assert!(status.is_current(&record()) && !one_way.is_current(&record()));
    }

    /// A status with lists of this many keys, each with the longest name.
    fn full_status(keys: u16) -> Status {
        let kcv = Some(Kcv::from_bytes([1, 2, 3]));
        let key = |version| KeyId {
            usage: KeyUsage::Zone(crate::ZoneName::parse(&"z".repeat(31)).unwrap()),
            version: KeyVersion(version),
            kcv,
        };
        let version = KeyVersion(1);
        let zone_keys: Vec<_> = (1..=keys).map(key).collect();
        let longest = format!("ibm-3624:{}:0123456789012345:14-19-f", "k".repeat(31));
        let usage = KeyUsage::parse(&longest).unwrap();
        let verification_keys =
            (1..=keys).map(|version| KeyId { usage: usage.clone(), version: KeyVersion(version), kcv }).collect();
        Status {
            token: "software".into(),
            level: BoundaryLevel::Host,
            isolation: Isolation::Process,
            form: StorageFormat::Iso4,
            until: None,
            keys: vec![KeyId { usage: KeyUsage::Storage, version, kcv }],
            zone_keys: zone_keys.clone(),
            verification_keys,
            even_parity: zone_keys,
            reusable_answers: vec![crate::ZoneName::parse(&"z".repeat(31)).unwrap(); keys.into()],
            storage: StorageVersions { wrapped: version, iso_4: version, tdes: version, one_way: version },
            memory: MemoryLock::Locked,
            persistence: Persistence::Vault,
            pin_digits: crate::PinDigits::new(5, 6).unwrap(),
        }
    }

    #[test]
    fn a_refused_user_pin_has_its_own_welcome() {
        let mut bytes = Vec::new();
        push_welcome(&mut bytes, &Welcome::PinRefused("wrong".to_owned()));
        let welcome = read_welcome(&take_frame(&mut &bytes[..]).unwrap().unwrap());
        assert!(matches!(welcome, Ok(Welcome::PinRefused(reason)) if reason == "wrong"));
    }

    #[test]
    fn a_user_pin_refused_at_reconnection_keeps_its_reason() {
        let mut body = Vec::new();
        let refused = Error::Unavailable { reason: UnavailableReason::UserPinRefused };
        write_reply(&Err(refused), &mut body);
        let read = read_reply(&body).unwrap();
        assert!(matches!(read, Err(Error::Unavailable { reason: UnavailableReason::UserPinRefused })));
    }

    use proptest::{collection::vec, prelude::*, sample::Index};

    use crate::account::{Account, AccountNumber};
    use crate::binding::{Binding, BoundaryLevel, CardBinding, ControlBinding, Isolation, MadeAt, Purpose};
    use crate::device_key::{DeviceKey, DeviceKeyError, Mgf1Hash};
    use crate::error::{HostOperation, Refusal};
    use crate::kcv::Kcv;
    use crate::key_id::KeyId;
    use crate::key_usage::KeyUsage;
    use crate::layout_error::LayoutError;
    use crate::request::{DeviceBlock, FreshTzpk, Reply, Request, Source, TOGETHER_MAX, Target};
    use crate::sealed::{EncryptedBlock, KeyVersion, PinRecord, SealedAccount, SealedKey};
    use crate::status::{MemoryLock, Persistence, StorageVersions};
    use crate::storage_format::StorageFormat;
    use crate::verification::{Changed, ExpectedValue, PvkName, ValueMethod, VerificationValue};
    use crate::zone::{ZoneBlock, ZoneKey, ZoneUse};
    use crate::zone_format::ZoneFormat;
    use crate::zone_name::{ZONE_CHARACTERS_MAX, ZoneName};

    fn head(r#use: u8, length: usize) -> Vec<u8> {
        [vec![1, r#use, 0, 1], vec![7; length - 4]].concat()
    }

    fn sealed_key() -> SealedKey {
        SealedKey::from_bytes(&head(b'T', 48)).unwrap()
    }

    fn block() -> EncryptedBlock {
        EncryptedBlock::from_bytes(&[5; 8]).unwrap()
    }

    fn record() -> PinRecord {
        let made_at = MadeAt { level: BoundaryLevel::Host, isolation: Isolation::Process };
        PinRecord::untagged(KeyVersion(1), StorageFormat::Iso4, made_at, &[9; 16])
    }

    fn zone() -> crate::ZoneName {
        crate::ZoneName::parse("app-bank").unwrap()
    }

    fn zone_block(format: ZoneFormat) -> ZoneBlock {
        ZoneBlock::from_bytes(format, &vec![6; format.block_bytes()]).unwrap()
    }

    fn one_way_record() -> PinRecord {
        let made_at = MadeAt { level: BoundaryLevel::Host, isolation: Isolation::Process };
        PinRecord::untagged(KeyVersion(2), StorageFormat::OneWay, made_at, &[9; 32])
    }

    fn key_name() -> ZoneName {
        ZoneName::parse("bank").unwrap()
    }

    fn pvk() -> PvkName {
        PvkName::parse("bank:1").unwrap()
    }

    fn value(digits: &str) -> VerificationValue {
        VerificationValue::parse(digits).unwrap()
    }

    fn public_key() -> DeviceKey {
        use aws_lc_rs::{
            encoding::{AsDer, PublicKeyX509Der},
            rsa::{KeySize, PrivateDecryptingKey},
        };
        let key = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap().public_key();
        let der: PublicKeyX509Der<'_> = key.as_der().unwrap();
        DeviceKey::parse(der.as_ref()).unwrap()
    }

    fn up_to(request: Request) -> Request {
        let [wrapped, iso_4, tdes, one_way] = [1, 2, 3, u16::MAX].map(KeyVersion);
        Request::UpTo { versions: StorageVersions { wrapped, iso_4, tdes, one_way }, request: Box::new(request) }
    }

    #[test]
    fn a_request_inside_two_limits_is_rejected() {
        let mut body = Vec::new();
        write_request(&up_to(up_to(Request::Check)), 9, &mut body);
        assert!(read_request(&body).is_err());
        body.clear();
        write_request(&up_to(Request::Check), 9, &mut body);
        let Ok((_, Request::UpTo { versions, request })) = read_request(&body) else { panic!("not the request") };
        assert_eq!((versions.iso_4, versions.one_way), (KeyVersion(2), KeyVersion(u16::MAX)));
        assert!(matches!(*request, Request::Check) && request.is_answered_by(&Reply::Available));
    }

    /// This many translations of the longest blocks between the longest zones.
    fn translations(count: usize) -> Request {
        let card = CardBinding::new(&"t".repeat(64), &"9".repeat(19)).unwrap();
        let zone = || ZoneName::parse(&"z".repeat(ZONE_CHARACTERS_MAX)).unwrap();
        let key = || ZoneKey { zone: zone(), version: Some(KeyVersion(1)) };
        let translation = |_| Request::Translate {
            source: Source::Zone { key: key(), block: zone_block(ZoneFormat::Iso4) },
            target: Target::Zone { key: key(), format: ZoneFormat::Iso4 },
            card,
            account: Account::Registered(SealedAccount::from_bytes(&head(b'A', 30)).unwrap()),
        };
        Request::Together { requests: (0..count).map(translation).collect() }
    }

    #[test]
    fn the_most_translations_together_fit_in_a_frame() {
        let mut frame = Vec::new();
        push_frame(&mut frame, 1, |body| write_request(&up_to(translations(TOGETHER_MAX)), 9, body));
        assert!(frame.len() < 24 * 1_024, "{}", frame.len());
        let taken = take_frame(&mut &frame[..]).unwrap().unwrap();
        let Ok((_, Request::UpTo { request, .. })) = read_request(taken.body) else { panic!("not the request") };
        assert!(matches!(*request, Request::Together { requests } if requests.len() == TOGETHER_MAX));
    }

    #[test]
    fn the_most_records_and_blocks_together_fit_in_a_frame() {
        let made_at = MadeAt { level: BoundaryLevel::Token, isolation: Isolation::Process };
        let longest = || PinRecord::untagged(KeyVersion(1), StorageFormat::Wrapped, made_at, &[9; 40]);
        let replies: [&dyn Fn() -> Reply; 2] =
            [&|| Reply::Record { record: longest(), retry_tag: Some([4; 16]) }, &|| {
                Reply::ZoneBlock(zone_block(ZoneFormat::Iso4))
            }];
        for reply in replies {
            let mut frame = Vec::new();
            let together = Reply::Together((0..TOGETHER_MAX).map(|_| Ok(reply())).collect());
            push_frame(&mut frame, 1, |body| write_reply(&Ok(together), body));
            let taken = take_frame(&mut &frame[..]).unwrap().unwrap();
            assert!(
                matches!(read_reply(taken.body), Ok(Ok(Reply::Together(results))) if results.len() == TOGETHER_MAX)
            );
        }
        let translate = |_| Request::Translate {
            source: Source::Record(longest()),
            target: Target::Record,
            card: CardBinding::new(&"t".repeat(64), &"9".repeat(19)).unwrap(),
            account: Account::Registered(SealedAccount::from_bytes(&head(b'A', 30)).unwrap()),
        };
        let mut frame = Vec::new();
        let together = Request::Together { requests: (0..TOGETHER_MAX).map(translate).collect() };
        push_frame(&mut frame, 1, |body| write_request(&up_to(together), 9, body));
        assert!(take_frame(&mut &frame[..]).unwrap().is_some());
    }

    #[test]
    fn too_many_requests_together_are_rejected() {
        for (count, is_read) in [(TOGETHER_MAX, true), (TOGETHER_MAX + 1, false)] {
            let mut body = Vec::new();
            write_request(&translations(count), 9, &mut body);
            assert_eq!(read_request(&body).is_ok(), is_read, "{count}");
        }
    }

    #[test]
    fn requests_together_are_of_no_kind_that_holds_requests() {
        let together = |request| Request::Together { requests: vec![request] };
        for request in [together(together(Request::Check)), together(up_to(Request::Check))] {
            let mut body = Vec::new();
            write_request(&request, 9, &mut body);
            assert!(read_request(&body).is_err());
        }
        let mut body = Vec::new();
        write_reply(&Ok(Reply::Together(vec![Ok(Reply::Together(Vec::new()))])), &mut body);
        assert!(read_reply(&body).is_err());
    }

    #[test]
    fn requests_together_are_answered_each_in_its_place() {
        let request = up_to(Request::Together { requests: vec![Request::Check, translations(0)] });
        let replies = |replies: Vec<Result<Reply, Error>>| Reply::Together(replies);
        let nothing = || Ok(Reply::Together(Vec::new()));
        assert!(request.is_answered_by(&replies(vec![Ok(Reply::Available), nothing()])));
        assert!(request.is_answered_by(&replies(vec![Err(Error::UnknownKey), nothing()])));
        assert!(!request.is_answered_by(&replies(vec![nothing(), Ok(Reply::Available)])));
        assert!(!request.is_answered_by(&replies(vec![Ok(Reply::Available)])));
        assert!(!request.is_answered_by(&Reply::Available));
    }

    /// The bodies of requests: each operation, each source, each target.
    fn bodies() -> Vec<Vec<u8>> {
        static BODIES: std::sync::OnceLock<Vec<Vec<u8>>> = std::sync::OnceLock::new();
        BODIES.get_or_init(encode_bodies).clone()
    }

    fn encode_bodies() -> Vec<Vec<u8>> {
        let card = CardBinding::new("bank", "1000200030").unwrap();
        let control = ControlBinding { id: [7; 16], purpose: Purpose::SetPin, expires_at_unix_milliseconds: 1_000 };
        let public_key = public_key();
        let device = || Source::Device { sealed_tzpk: sealed_key(), control, block: block() };
        let registered = || Account::Registered(SealedAccount::from_bytes(&head(b'A', 30)).unwrap());
        let translate = |source, target, account| Request::Translate { source, target, card, account };
        let verify_value =
            |expected| Request::VerifyValue { source: device(), expected, card, account: Account::PlasticId };
        let derive_value = |method| Request::DeriveValue { record: record(), method, card, account: registered() };
        let to_device = || Target::Device { public_key: public_key.clone() };
        let from_zone = |format| Source::Zone {
            key: ZoneKey { zone: zone(), version: Some(KeyVersion(2)) },
            block: zone_block(format),
        };
        let to_zone = |format| Target::Zone { key: ZoneKey { zone: zone(), version: None }, format };
        let requests = [
            Request::Check,
            Request::IssueTzpk { public_key: public_key.clone(), binding: Binding { card, control } },
            Request::IssueTzpk {
                public_key: public_key.clone().with_mgf1(Mgf1Hash::Sha1),
                binding: Binding { card, control },
            },
            translate(device(), Target::Record, Account::PlasticId),
            translate(device(), to_device(), registered()),
            translate(Source::Record(record()), Target::Record, registered()),
            translate(Source::Record(record()), to_device(), Account::PlasticId),
            translate(from_zone(ZoneFormat::Iso1), Target::Record, registered()),
            translate(from_zone(ZoneFormat::Iso4), to_zone(ZoneFormat::Iso0), registered()),
            translate(Source::Record(record()), to_zone(ZoneFormat::Iso3), Account::PlasticId),
            Request::Together { requests: Vec::new() },
            Request::Together {
                requests: vec![
                    translate(Source::Record(record()), Target::Record, registered()),
                    Request::RetryTag { control: [7; 16], block: block() },
                ],
            },
            Request::RetryTag { control: [7; 16], block: block() },
            Request::SealPan { number: AccountNumber::parse("5413330089020011").unwrap(), card },
            Request::Verify { source: device(), record: record(), card, account: registered() },
            verify_value(ExpectedValue::Pvv { key: pvk(), value: value("0511") }),
            verify_value(ExpectedValue::Ibm3624Offset { key: key_name(), value: value("066210541912") }),
            verify_value(ExpectedValue::Ibm3624Natural { key: key_name(), digits: 7 }),
            Request::Verify {
                source: from_zone(ZoneFormat::Iso0),
                record: one_way_record(),
                card,
                account: Account::PlasticId,
            },
            Request::VerifyValue {
                source: from_zone(ZoneFormat::Iso3),
                expected: ExpectedValue::Pvv { key: pvk(), value: value("0511") },
                card,
                account: registered(),
            },
            Request::Change { old: device(), new: device(), record: record(), card, account: Account::PlasticId },
            Request::Change {
                old: from_zone(ZoneFormat::Iso4),
                new: from_zone(ZoneFormat::Iso1),
                record: record(),
                card,
                account: registered(),
            },
            Request::Generate { digits: 4, card, account: Account::PlasticId },
            derive_value(ValueMethod::Pvv(pvk())),
            derive_value(ValueMethod::Ibm3624Offset(key_name())),
            Request::Rebind { record: record(), from: (card, Account::PlasticId), to: (card, registered()) },
            up_to(Request::Generate { digits: 4, card, account: Account::PlasticId }),
        ];
        let body = |request: &Request| {
            let mut body = Vec::new();
            write_request(request, 9, &mut body);
            body
        };
        requests.iter().map(body).collect()
    }

    #[test]
    fn every_request_is_read_back_and_a_truncated_one_is_rejected() {
        for body in bodies() {
            let (deadline, request) = read_request(&body).unwrap();
            let mut again = Vec::new();
            write_request(&request, deadline, &mut again);
            assert_eq!((deadline, &again), (9, &body));
            for cut in 0..body.len() {
                assert!(read_request(&body[..cut]).is_err(), "cut at {cut}");
            }
            assert!(read_request(&[&body[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn every_reply_is_read_back_and_a_truncated_one_is_rejected() {
        let kcv = Kcv::from_bytes([1, 2, 3]);
        let results = [
            Ok(Reply::Available),
            Ok(Reply::Tzpk(FreshTzpk { sealed: sealed_key(), wrapped: vec![8; 256], kcv })),
            Ok(Reply::Record { record: record(), retry_tag: Some([4; 16]) }),
            Ok(Reply::Record { record: record(), retry_tag: None }),
            Ok(Reply::Block(DeviceBlock { wrapped: vec![8; 256], block: block(), kcv })),
            Ok(Reply::ZoneBlock(zone_block(ZoneFormat::Iso1))),
            Ok(Reply::ZoneBlock(zone_block(ZoneFormat::Iso4))),
            Ok(Reply::Together(Vec::new())),
            Ok(Reply::Together(vec![
                Ok(Reply::RetryTag([4; 16])),
                Err(Error::UnknownKey),
                Ok(Reply::Record { record: one_way_record(), retry_tag: None }),
            ])),
            Ok(Reply::RetryTag([4; 16])),
            Ok(Reply::SealedPan(SealedAccount::from_bytes(&head(b'A', 30)).unwrap())),
            Ok(Reply::Verified { right: true, moved: Some(one_way_record()) }),
            Ok(Reply::Verified { right: false, moved: None }),
            Ok(Reply::Changed(Changed::Wrong)),
            Ok(Reply::Changed(Changed::RefusedPin)),
            Ok(Reply::Changed(Changed::Right { record: record() })),
            Ok(Reply::Value(value("0511"))),
            Err(Error::OneWay),
            Err(Error::NoVerificationKey),
            Err(Error::ValidationData),
            Err(Error::OtherAccount),
            Err(Error::NoAccountNumber),
            Err(Error::DeviceKey(DeviceKeyError::Malformed)),
            Err(LayoutError::Kind { what: "blob" }.into()),
            Err(Error::Unavailable { reason: UnavailableReason::UserPinRefused }),
            Err(Refusal::MalformedBlock.into()),
            Err(Refusal::PinPolicy.into()),
            Err(Error::TranslationNotAllowed),
            Err(Error::ZoneUnknown { zone: zone() }),
            Err(Error::ZoneFormat { format: ZoneFormat::Iso3 }),
            Err(Error::ZoneUse { needed: ZoneUse::Export }),
            Err(Error::DeadlinePassed),
            Err(Error::UnexpectedReply),
            Err(Error::SealBroken { what: "PIN record".into() }),
            Err(Error::UnknownKey),
            Err(Error::OtherLevel { made_at: BoundaryLevel::Token }),
            Err(Error::WriteOnly),
            Err(Error::PlasticId),
            Err(Error::Mgf1NotSupported),
            Err(Error::TdesExhausted { limit: 5 }),
            Err(Error::Busy { limit: 6 }),
            Err(Error::Unavailable { reason: "no card".into() }),
        ];
        let host_only = HostOperation::ALL.map(|operation| Err(Error::HostLevelOnly { operation }));
        for result in results.into_iter().chain(host_only) {
            let mut body = Vec::new();
            write_reply(&result, &mut body);
            let mut again = Vec::new();
            write_reply(&read_reply(&body).unwrap(), &mut again);
            assert_eq!(again, body);
            for cut in 0..body.len() {
                assert!(read_reply(&body[..cut]).is_err(), "cut at {cut} of {body:?}");
            }
            assert!(read_reply(&[&body[..], &[0]].concat()).is_err());
        }
    }

    /// Reads the bytes as every kind of frame. No read may panic.
    fn read_as_anything(bytes: &[u8]) {
        let mut rest = bytes;
        while let Ok(Some(frame)) = take_frame(&mut rest) {
            let _ = (read_hello(&frame), read_welcome(&frame).is_ok(), read_request(frame.body).is_ok());
            let _ = read_reply(frame.body).is_ok();
        }
        let _ = PinRecord::from_bytes(bytes);
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_read_panic(bytes in vec(any::<u8>(), 0..512)) {
            read_as_anything(&bytes);
        }

        #[test]
        fn no_changed_byte_of_a_request_makes_a_read_panic(which in any::<Index>(), at in any::<usize>(), byte in any::<u8>()) {
            let mut body = which.get(&bodies()).clone();
            let at = at % body.len();
            body[at] = byte;
            let mut frame = Vec::new();
            push_frame(&mut frame, 3, |out| out.extend_from_slice(&body));
            read_as_anything(&frame);
        }
    }
}
