//! Replies: a result, or an error by its code.

use super::{
    FrameError,
    value::{Crosses, Reader},
};
use crate::error::{AcceptError, Error, Refusal, UnavailableReason};

const DONE: u8 = 0;
const MALFORMED_BLOCK: u8 = 1;
const PIN_POLICY: u8 = 2;
const SEAL_BROKEN: u8 = 3;
const UNKNOWN_KEY: u8 = 4;
const OTHER_LEVEL: u8 = 5;
const WRITE_ONLY: u8 = 6;
const PLASTIC_ID: u8 = 7;
const TDES_EXHAUSTED: u8 = 8;
const BUSY: u8 = 9;
const UNAVAILABLE: u8 = 10;
const DEVICE_KEY: u8 = 11;
const LAYOUT: u8 = 12;
const USER_PIN_REFUSED: u8 = 13;

/// Appends the body of a reply.
pub fn write_reply<T: Crosses>(result: &Result<T, Error>, out: &mut Vec<u8>) {
    match result {
        Ok(value) => {
            out.push(DONE);
            value.write(out);
        }
        Err(error) => write_error(error, out),
    }
}

/// Appends the body of a reply to an accept, which may be a refusal.
pub fn write_accept_reply<T: Crosses>(result: &Result<T, AcceptError>, out: &mut Vec<u8>) {
    match result {
        Ok(value) => {
            out.push(DONE);
            value.write(out);
        }
        Err(AcceptError::Refused(Refusal::MalformedBlock)) => out.push(MALFORMED_BLOCK),
        Err(AcceptError::Refused(Refusal::PinPolicy)) => out.push(PIN_POLICY),
        Err(AcceptError::Failed(error)) => write_error(error, out),
    }
}

/// Appends the body of a reply to what can't be begun, because so many wait.
pub fn refuse(limit: usize, out: &mut Vec<u8>) {
    write_error(&Error::Busy { limit }, out);
}

fn write_error(error: &Error, out: &mut Vec<u8>) {
    match error {
        Error::SealBroken { what } => {
            out.push(SEAL_BROKEN);
            what.clone().into_owned().write(out);
        }
        Error::Layout(_) => out.push(LAYOUT),
        Error::UnknownKey => out.push(UNKNOWN_KEY),
        Error::OtherLevel { made_at } => {
            out.push(OTHER_LEVEL);
            made_at.write(out);
        }
        Error::WriteOnly => out.push(WRITE_ONLY),
        Error::DeviceKey(_) => out.push(DEVICE_KEY),
        Error::PlasticId => out.push(PLASTIC_ID),
        Error::TdesExhausted { limit } => {
            out.push(TDES_EXHAUSTED);
            out.extend_from_slice(&limit.to_be_bytes());
        }
        Error::Busy { limit } => {
            out.push(BUSY);
            out.extend_from_slice(&u64::try_from(*limit).unwrap_or(u64::MAX).to_be_bytes());
        }
        Error::Unavailable { reason: UnavailableReason::UserPinRefused } => out.push(USER_PIN_REFUSED),
        Error::Unavailable { reason: UnavailableReason::Other(reason) } => {
            out.push(UNAVAILABLE);
            reason.clone().into_owned().write(out);
        }
    }
}

/// Reads the body of a reply.
pub fn read_reply<T: Crosses>(body: &[u8]) -> Result<Result<T, Error>, FrameError> {
    let mut read = Reader(body);
    let result = match read.byte()? {
        DONE => Ok(T::read(&mut read)?),
        code => Err(read_error(code, &mut read)?),
    };
    read.end(result)
}

/// Reads the body of a reply to an accept.
pub fn read_accept_reply<T: Crosses>(body: &[u8]) -> Result<Result<T, AcceptError>, FrameError> {
    match body {
        [MALFORMED_BLOCK] => Ok(Err(Refusal::MalformedBlock.into())),
        [PIN_POLICY] => Ok(Err(Refusal::PinPolicy.into())),
        body => Ok(read_reply(body)?.map_err(AcceptError::Failed)),
    }
}

fn read_error(code: u8, read: &mut Reader<'_>) -> Result<Error, FrameError> {
    Ok(match code {
        SEAL_BROKEN => Error::SealBroken { what: String::read(read)?.into() },
        LAYOUT => Error::Layout(crate::sealed::LayoutError::Kind { what: "blob" }),
        UNKNOWN_KEY => Error::UnknownKey,
        OTHER_LEVEL => Error::OtherLevel { made_at: Crosses::read(read)? },
        WRITE_ONLY => Error::WriteOnly,
        DEVICE_KEY => Error::DeviceKey(crate::device_key::DeviceKeyError::Malformed),
        PLASTIC_ID => Error::PlasticId,
        TDES_EXHAUSTED => Error::TdesExhausted { limit: u64::from_be_bytes(read.array()?) },
        BUSY => Error::Busy { limit: usize::try_from(u64::from_be_bytes(read.array()?)).unwrap_or(usize::MAX) },
        UNAVAILABLE => Error::Unavailable { reason: UnavailableReason::Other(String::read(read)?.into()) },
        USER_PIN_REFUSED => Error::Unavailable { reason: UnavailableReason::UserPinRefused },
        _ => return Err(FrameError),
    })
}
