//! The bytes of requests.

use super::{
    FrameError,
    value_codec::{FrameValue, Reader, write_list},
};
use crate::request::{Request, Source, TOGETHER_MAX, Target};

const CHECK: u8 = 0;
const ISSUE_TZPK: u8 = 1;
const TRANSLATE: u8 = 2;
const RETRY_TAG: u8 = 3;
const SEAL_PAN: u8 = 4;
const VERIFY: u8 = 16;
const VERIFY_VALUE: u8 = 17;
const CHANGE: u8 = 18;
const GENERATE: u8 = 19;
const DERIVE_VALUE: u8 = 20;
const REBIND: u8 = 24;
const UP_TO: u8 = 32;
const TOGETHER: u8 = 33;

const DEVICE: u8 = 0;
const RECORD: u8 = 1;
const ZONE: u8 = 2;

/// Appends the body of a request. `deadline` is in milliseconds of CLOCK_MONOTONIC.
pub fn write_request(request: &Request, deadline: u64, out: &mut Vec<u8>) {
    out.extend_from_slice(&deadline.to_be_bytes());
    request.write(out);
}

/// Reads the deadline and the request of a body.
///
/// # Errors
/// The body is cut, has bytes behind the request, or is of another release.
pub fn read_request(body: &[u8]) -> Result<(u64, Request), FrameError> {
    let mut read = Reader(body);
    let deadline = u64::from_be_bytes(read.array()?);
    let request = FrameValue::read(&mut read)?;
    read.end((deadline, request))
}

// Fields are read in the order in which they are written.
impl FrameValue for Request {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Check => out.push(CHECK),
            Self::IssueTzpk { public_key, binding } => {
                out.push(ISSUE_TZPK);
                public_key.write(out);
                binding.write(out);
            }
            Self::Translate { source, target, card, account } => {
                out.push(TRANSLATE);
                source.write(out);
                target.write(out);
                card.write(out);
                account.write(out);
            }
            Self::RetryTag { control, block } => {
                out.push(RETRY_TAG);
                control.write(out);
                block.write(out);
            }
            Self::SealPan { number, card } => {
                out.push(SEAL_PAN);
                number.write(out);
                card.write(out);
            }
            Self::Verify { source, record, card, account } => {
                out.push(VERIFY);
                source.write(out);
                record.write(out);
                card.write(out);
                account.write(out);
            }
            Self::VerifyValue { source, expected, card, account } => {
                out.push(VERIFY_VALUE);
                source.write(out);
                expected.write(out);
                card.write(out);
                account.write(out);
            }
            Self::Change { old, new, record, card, account } => {
                out.push(CHANGE);
                old.write(out);
                new.write(out);
                record.write(out);
                card.write(out);
                account.write(out);
            }
            Self::Generate { digits, card, account } => {
                out.extend_from_slice(&[GENERATE, *digits]);
                card.write(out);
                account.write(out);
            }
            Self::DeriveValue { record, method, card, account } => {
                out.push(DERIVE_VALUE);
                record.write(out);
                method.write(out);
                card.write(out);
                account.write(out);
            }
            Self::Rebind { record, from, to } => {
                out.push(REBIND);
                record.write(out);
                for (card, account) in [from, to] {
                    card.write(out);
                    account.write(out);
                }
            }
            Self::Together { requests } => {
                out.push(TOGETHER);
                write_list(requests, out);
            }
            Self::UpTo { versions, request } => {
                out.push(UP_TO);
                versions.write(out);
                request.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            CHECK => Self::Check,
            ISSUE_TZPK => Self::IssueTzpk { public_key: FrameValue::read(read)?, binding: FrameValue::read(read)? },
            TRANSLATE => Self::Translate {
                source: FrameValue::read(read)?,
                target: FrameValue::read(read)?,
                card: FrameValue::read(read)?,
                account: FrameValue::read(read)?,
            },
            RETRY_TAG => Self::RetryTag { control: FrameValue::read(read)?, block: FrameValue::read(read)? },
            SEAL_PAN => Self::SealPan { number: FrameValue::read(read)?, card: FrameValue::read(read)? },
            VERIFY => Self::Verify {
                source: FrameValue::read(read)?,
                record: FrameValue::read(read)?,
                card: FrameValue::read(read)?,
                account: FrameValue::read(read)?,
            },
            VERIFY_VALUE => Self::VerifyValue {
                source: FrameValue::read(read)?,
                expected: FrameValue::read(read)?,
                card: FrameValue::read(read)?,
                account: FrameValue::read(read)?,
            },
            CHANGE => Self::Change {
                old: FrameValue::read(read)?,
                new: FrameValue::read(read)?,
                record: FrameValue::read(read)?,
                card: FrameValue::read(read)?,
                account: FrameValue::read(read)?,
            },
            GENERATE => {
                Self::Generate { digits: read.byte()?, card: FrameValue::read(read)?, account: FrameValue::read(read)? }
            }
            DERIVE_VALUE => Self::DeriveValue {
                record: FrameValue::read(read)?,
                method: FrameValue::read(read)?,
                card: FrameValue::read(read)?,
                account: FrameValue::read(read)?,
            },
            REBIND => Self::Rebind {
                record: FrameValue::read(read)?,
                from: (FrameValue::read(read)?, FrameValue::read(read)?),
                to: (FrameValue::read(read)?, FrameValue::read(read)?),
            },
            TOGETHER => {
                let count = usize::from(read.byte()?);
                if count > TOGETHER_MAX {
                    return Err(FrameError);
                }
                let request = |_| match read.0.first() {
                    Some(&(TOGETHER | UP_TO)) => Err(FrameError),
                    _ => Self::read(read),
                };
                Self::Together { requests: (0..count).map(request).collect::<Result<_, _>>()? }
            }
            UP_TO => {
                let versions = FrameValue::read(read)?;
                // One level alone, and none in `TOGETHER`: a frame must not choose the depth of the stack.
                if read.0.first() == Some(&UP_TO) {
                    return Err(FrameError);
                }
                Self::UpTo { versions, request: Box::new(Self::read(read)?) }
            }
            _ => return Err(FrameError),
        })
    }
}

impl FrameValue for Source {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Device { sealed_tzpk, control, block } => {
                out.push(DEVICE);
                sealed_tzpk.write(out);
                control.write(out);
                block.write(out);
            }
            Self::Record(record) => {
                out.push(RECORD);
                record.write(out);
            }
            Self::Zone { key, block } => {
                out.push(ZONE);
                key.write(out);
                block.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            DEVICE => Self::Device {
                sealed_tzpk: FrameValue::read(read)?,
                control: FrameValue::read(read)?,
                block: FrameValue::read(read)?,
            },
            RECORD => Self::Record(FrameValue::read(read)?),
            ZONE => Self::Zone { key: FrameValue::read(read)?, block: FrameValue::read(read)? },
            _ => return Err(FrameError),
        })
    }
}

impl FrameValue for Target {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Device { public_key } => {
                out.push(DEVICE);
                public_key.write(out);
            }
            Self::Record => out.push(RECORD),
            Self::Zone { key, format } => {
                out.push(ZONE);
                key.write(out);
                format.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            DEVICE => Self::Device { public_key: FrameValue::read(read)? },
            RECORD => Self::Record,
            ZONE => Self::Zone { key: FrameValue::read(read)?, format: FrameValue::read(read)? },
            _ => return Err(FrameError),
        })
    }
}
