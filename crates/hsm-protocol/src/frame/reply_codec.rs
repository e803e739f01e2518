//! The bytes of replies: a result, or an error by its code.

use super::{
    FrameError,
    value_codec::{FrameValue, Reader, push_blob, write_list},
};
use crate::error::{Error, Refusal, UnavailableReason};
use crate::request::{DeviceBlock, FreshTzpk, Reply};

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

const NOT_ALLOWED: u8 = 14;
const DEADLINE_PASSED: u8 = 15;
const UNEXPECTED_REPLY: u8 = 16;
const MGF1_NOT_SUPPORTED: u8 = 17;
const ZONE_UNKNOWN: u8 = 18;
const ZONE_FORMAT: u8 = 19;
const ZONE_USE: u8 = 20;
const ONE_WAY: u8 = 32;
const HOST_LEVEL_ONLY: u8 = 33;
const NO_VERIFICATION_KEY: u8 = 34;
const VALIDATION_DATA: u8 = 35;
const OTHER_ACCOUNT: u8 = 40;
const NO_ACCOUNT_NUMBER: u8 = 41;

const AVAILABLE: u8 = 0;
const TZPK: u8 = 1;
const RECORD: u8 = 2;
const BLOCK: u8 = 3;
const TAG: u8 = 4;
const SEALED_PAN: u8 = 5;
const ZONE_BLOCK: u8 = 6;
const VERIFIED: u8 = 16;
const CHANGED: u8 = 17;
const VALUE: u8 = 18;
const TOGETHER: u8 = 33;

/// Appends the body of a reply.
pub fn write_reply(result: &Result<Reply, Error>, out: &mut Vec<u8>) {
    result.write(out);
}

/// Reads the body of a reply.
///
/// # Errors
/// The body is cut, has bytes behind the reply, or is of another release.
pub fn read_reply(body: &[u8]) -> Result<Result<Reply, Error>, FrameError> {
    let mut read = Reader(body);
    let result = FrameValue::read(&mut read)?;
    read.end(result)
}

impl<T: FrameValue> FrameValue for Result<T, Error> {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Ok(value) => {
                out.push(DONE);
                value.write(out);
            }
            Err(error) => write_error(error, out),
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            DONE => Ok(T::read(read)?),
            code => Err(read_error(code, read)?),
        })
    }
}

// Fields are read in the order in which they are written.
impl FrameValue for Reply {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Available => out.push(AVAILABLE),
            Self::Tzpk(FreshTzpk { sealed, wrapped, kcv }) => {
                out.push(TZPK);
                sealed.write(out);
                push_blob(out, wrapped);
                kcv.write(out);
            }
            Self::Record { record, retry_tag } => {
                out.push(RECORD);
                record.write(out);
                retry_tag.write(out);
            }
            Self::Block(DeviceBlock { wrapped, block, kcv }) => {
                out.push(BLOCK);
                push_blob(out, wrapped);
                block.write(out);
                kcv.write(out);
            }
            Self::ZoneBlock(block) => {
                out.push(ZONE_BLOCK);
                block.write(out);
            }
            Self::RetryTag(tag) => {
                out.push(TAG);
                tag.write(out);
            }
            Self::SealedPan(sealed) => {
                out.push(SEALED_PAN);
                sealed.write(out);
            }
            Self::Verified { right, moved } => {
                out.extend_from_slice(&[VERIFIED, u8::from(*right)]);
                moved.write(out);
            }
            Self::Changed(changed) => {
                out.push(CHANGED);
                changed.write(out);
            }
            Self::Value(value) => {
                out.push(VALUE);
                value.write(out);
            }
            Self::Together(results) => {
                out.push(TOGETHER);
                write_list(results, out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            AVAILABLE => Self::Available,
            TZPK => Self::Tzpk(FreshTzpk {
                sealed: FrameValue::read(read)?,
                wrapped: read.blob()?.to_vec(),
                kcv: FrameValue::read(read)?,
            }),
            RECORD => Self::Record { record: FrameValue::read(read)?, retry_tag: FrameValue::read(read)? },
            BLOCK => Self::Block(DeviceBlock {
                wrapped: read.blob()?.to_vec(),
                block: FrameValue::read(read)?,
                kcv: FrameValue::read(read)?,
            }),
            ZONE_BLOCK => Self::ZoneBlock(FrameValue::read(read)?),
            TAG => Self::RetryTag(FrameValue::read(read)?),
            SEALED_PAN => Self::SealedPan(FrameValue::read(read)?),
            VERIFIED => Self::Verified { right: read.flag()?, moved: FrameValue::read(read)? },
            CHANGED => Self::Changed(FrameValue::read(read)?),
            VALUE => Self::Value(FrameValue::read(read)?),
            TOGETHER => {
                let count = read.byte()?;
                let result = |_| match read.0 {
                    // One level alone: a frame must not choose the depth of the stack.
                    [DONE, TOGETHER, ..] => Err(FrameError),
                    _ => FrameValue::read(read),
                };
                Self::Together((0..count).map(result).collect::<Result<_, _>>()?)
            }
            _ => return Err(FrameError),
        })
    }
}

fn write_error(error: &Error, out: &mut Vec<u8>) {
    match error {
        Error::Refused(Refusal::MalformedBlock) => out.push(MALFORMED_BLOCK),
        Error::Refused(Refusal::PinPolicy) => out.push(PIN_POLICY),
        Error::TranslationNotAllowed => out.push(NOT_ALLOWED),
        Error::ZoneUnknown { zone } => {
            out.push(ZONE_UNKNOWN);
            zone.write(out);
        }
        Error::ZoneFormat { format } => {
            out.push(ZONE_FORMAT);
            format.write(out);
        }
        Error::ZoneUse { needed } => {
            out.push(ZONE_USE);
            needed.write(out);
        }
        Error::DeadlinePassed => out.push(DEADLINE_PASSED),
        Error::UnexpectedReply => out.push(UNEXPECTED_REPLY),
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
        Error::OneWay => out.push(ONE_WAY),
        Error::HostLevelOnly { operation } => {
            out.push(HOST_LEVEL_ONLY);
            operation.write(out);
        }
        Error::NoVerificationKey => out.push(NO_VERIFICATION_KEY),
        Error::ValidationData => out.push(VALIDATION_DATA),
        Error::OtherAccount => out.push(OTHER_ACCOUNT),
        Error::NoAccountNumber => out.push(NO_ACCOUNT_NUMBER),
        Error::DeviceKey(_) => out.push(DEVICE_KEY),
        Error::Mgf1NotSupported => out.push(MGF1_NOT_SUPPORTED),
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
        Error::Unavailable { reason } => {
            out.push(UNAVAILABLE);
            reason.to_string().write(out);
        }
    }
}

fn read_error(code: u8, read: &mut Reader<'_>) -> Result<Error, FrameError> {
    Ok(match code {
        MALFORMED_BLOCK => Refusal::MalformedBlock.into(),
        PIN_POLICY => Refusal::PinPolicy.into(),
        NOT_ALLOWED => Error::TranslationNotAllowed,
        ZONE_UNKNOWN => Error::ZoneUnknown { zone: FrameValue::read(read)? },
        ZONE_FORMAT => Error::ZoneFormat { format: FrameValue::read(read)? },
        ZONE_USE => Error::ZoneUse { needed: FrameValue::read(read)? },
        DEADLINE_PASSED => Error::DeadlinePassed,
        UNEXPECTED_REPLY => Error::UnexpectedReply,
        SEAL_BROKEN => Error::SealBroken { what: String::read(read)?.into() },
        LAYOUT => Error::Layout(crate::layout_error::LayoutError::Kind { what: "blob" }),
        UNKNOWN_KEY => Error::UnknownKey,
        OTHER_LEVEL => Error::OtherLevel { made_at: FrameValue::read(read)? },
        WRITE_ONLY => Error::WriteOnly,
        ONE_WAY => Error::OneWay,
        HOST_LEVEL_ONLY => Error::HostLevelOnly { operation: FrameValue::read(read)? },
        NO_VERIFICATION_KEY => Error::NoVerificationKey,
        VALIDATION_DATA => Error::ValidationData,
        OTHER_ACCOUNT => Error::OtherAccount,
        NO_ACCOUNT_NUMBER => Error::NoAccountNumber,
        DEVICE_KEY => Error::DeviceKey(crate::device_key::DeviceKeyError::Malformed),
        MGF1_NOT_SUPPORTED => Error::Mgf1NotSupported,
        PLASTIC_ID => Error::PlasticId,
        TDES_EXHAUSTED => Error::TdesExhausted { limit: u64::from_be_bytes(read.array()?) },
        BUSY => Error::Busy { limit: usize::try_from(u64::from_be_bytes(read.array()?)).unwrap_or(usize::MAX) },
        UNAVAILABLE => Error::Unavailable { reason: UnavailableReason::Other(String::read(read)?.into()) },
        USER_PIN_REFUSED => Error::Unavailable { reason: UnavailableReason::UserPinRefused },
        _ => return Err(FrameError),
    })
}
