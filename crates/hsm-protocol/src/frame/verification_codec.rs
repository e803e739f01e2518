//! The bytes of verification values, their methods, and outcomes.

use super::{
    FrameError,
    value_codec::{FrameValue, Reader, push_blob},
};
use crate::error::HostOperation;
use crate::verification::{Changed, ExpectedValue, PvkName, ValueMethod, VerificationValue};

const PVV: u8 = 0;
const IBM_3624_OFFSET: u8 = 1;
const IBM_3624_NATURAL: u8 = 2;

const WRONG: u8 = 0;
const REFUSED_PIN: u8 = 1;
const RIGHT: u8 = 2;

impl FrameValue for PvkName {
    fn write(&self, out: &mut Vec<u8>) {
        self.to_string().write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::parse(read.text()?).ok_or(FrameError)
    }
}

impl FrameValue for VerificationValue {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.digits());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::from_digits(read.blob()?).ok_or(FrameError)
    }
}

impl FrameValue for ValueMethod {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pvv(key) => {
                out.push(PVV);
                key.write(out);
            }
            Self::Ibm3624Offset(key) => {
                out.push(IBM_3624_OFFSET);
                key.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            PVV => Self::Pvv(FrameValue::read(read)?),
            IBM_3624_OFFSET => Self::Ibm3624Offset(FrameValue::read(read)?),
            _ => return Err(FrameError),
        })
    }
}

impl FrameValue for ExpectedValue {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Pvv { key, value } => {
                out.push(PVV);
                key.write(out);
                value.write(out);
            }
            Self::Ibm3624Offset { key, value } => {
                out.push(IBM_3624_OFFSET);
                key.write(out);
                value.write(out);
            }
            Self::Ibm3624Natural { key, digits } => {
                out.push(IBM_3624_NATURAL);
                key.write(out);
                out.push(*digits);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            PVV => Self::Pvv { key: FrameValue::read(read)?, value: FrameValue::read(read)? },
            IBM_3624_OFFSET => Self::Ibm3624Offset { key: FrameValue::read(read)?, value: FrameValue::read(read)? },
            IBM_3624_NATURAL => Self::Ibm3624Natural { key: FrameValue::read(read)?, digits: read.byte()? },
            _ => return Err(FrameError),
        })
    }
}

impl FrameValue for Changed {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Wrong => out.push(WRONG),
            Self::RefusedPin => out.push(REFUSED_PIN),
            Self::Right { record } => {
                out.push(RIGHT);
                record.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            WRONG => Self::Wrong,
            REFUSED_PIN => Self::RefusedPin,
            RIGHT => Self::Right { record: FrameValue::read(read)? },
            _ => return Err(FrameError),
        })
    }
}

impl FrameValue for HostOperation {
    fn write(&self, out: &mut Vec<u8>) {
        let code = Self::ALL.iter().position(|operation| operation == self);
        out.push(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::ALL.get(usize::from(read.byte()?)).copied().ok_or(FrameError)
    }
}
