//! The bytes of values in a frame. Reading is strict: every other sequence of bytes is rejected.

use super::FrameError;
use crate::account::{Account, AccountNumber};
use crate::binding::{Binding, BoundaryLevel, CardBinding, ControlBinding, Isolation, Purpose};
use crate::device_key::{DeviceKey, Mgf1Hash};
use crate::kcv::Kcv;
use crate::key_id::KeyId;
use crate::key_usage::KeyUsage;
use crate::sealed::{
    EncryptedBlock, KeyVersion, PinRecord, SealedAccount, SealedKey, form_code, form_of, level_code, level_of,
    zone_format_code,
};
use crate::status::{MemoryLock, Persistence, PinDigits, Status, StorageVersions};
use crate::storage_format::StorageFormat;
use crate::zone::{ZoneBlock, ZoneKey, ZoneUse};
use crate::zone_format::ZoneFormat;
use crate::zone_name::ZoneName;

/// A value with bytes in a frame.
pub(crate) trait FrameValue: Sized {
    /// Appends the bytes of the value.
    fn write(&self, out: &mut Vec<u8>);
    /// Reads the bytes that `write` appends.
    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError>;
}

/// The unread bytes of a body.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (bytes, rest) = self.0.split_at_checked(length).ok_or(FrameError)?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(crate) fn byte(&mut self) -> Result<u8, FrameError> {
        self.array().map(|[byte]| byte)
    }

    /// A byte that is 0 or 1.
    pub(crate) fn flag(&mut self) -> Result<bool, FrameError> {
        match self.byte()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FrameError),
        }
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError)
    }

    pub(crate) fn blob(&mut self) -> Result<&'a [u8], FrameError> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.blob()?).map_err(|_| FrameError)
    }

    /// Returns `value` if every byte was read.
    pub(crate) fn end<T>(&mut self, value: T) -> Result<T, FrameError> {
        if self.0.is_empty() { Ok(value) } else { Err(FrameError) }
    }
}

pub(super) fn push_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
    out.extend_from_slice(&u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Implements [`FrameValue`] for a type that converts to and from bytes, as a blob.
macro_rules! frame_value_as_blob {
    ($($type:ty: $bytes:ident, $read:ident;)+) => {$(
        impl FrameValue for $type {
            fn write(&self, out: &mut Vec<u8>) {
                push_blob(out, self.$bytes());
            }

            fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
                <$type>::$read(read.blob()?).map_err(|_| FrameError)
            }
        }
    )+};
}

frame_value_as_blob! {
    SealedKey: as_bytes, from_bytes;
    SealedAccount: as_bytes, from_bytes;
    PinRecord: as_bytes, from_bytes;
    EncryptedBlock: as_bytes, from_bytes;
}

const MGF1_SHA_256: u8 = 0;
const MGF1_SHA_1: u8 = 1;

impl FrameValue for DeviceKey {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self.mgf1() {
            Mgf1Hash::Sha256 => MGF1_SHA_256,
            Mgf1Hash::Sha1 => MGF1_SHA_1,
        });
        push_blob(out, self.der());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let mgf1 = match read.byte()? {
            MGF1_SHA_256 => Mgf1Hash::Sha256,
            MGF1_SHA_1 => Mgf1Hash::Sha1,
            _ => return Err(FrameError),
        };
        Ok(Self::parse(read.blob()?).map_err(|_| FrameError)?.with_mgf1(mgf1))
    }
}

impl FrameValue for ZoneName {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.as_str().as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::parse(read.text()?).ok_or(FrameError)
    }
}

impl FrameValue for ZoneKey {
    fn write(&self, out: &mut Vec<u8>) {
        self.zone.write(out);
        self.version.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self { zone: FrameValue::read(read)?, version: FrameValue::read(read)? })
    }
}

impl FrameValue for KeyVersion {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0.to_be_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.array().map(|bytes| Self(u16::from_be_bytes(bytes)))
    }
}

impl FrameValue for ZoneFormat {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(zone_format_code(*self));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let code = read.byte()?;
        Self::ALL.into_iter().find(|format| zone_format_code(*format) == code).ok_or(FrameError)
    }
}

impl FrameValue for ZoneBlock {
    fn write(&self, out: &mut Vec<u8>) {
        self.format().write(out);
        out.extend_from_slice(self.as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let format = ZoneFormat::read(read)?;
        Self::from_bytes(format, read.take(format.block_bytes())?).map_err(|_| FrameError)
    }
}

impl FrameValue for ZoneUse {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::SetPin => 0,
            Self::GetPin => 1,
            Self::Verify => 2,
            Self::Export => 3,
            Self::Translate => 4,
            Self::Change => 5,
        });
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        match read.byte()? {
            0 => Ok(Self::SetPin),
            1 => Ok(Self::GetPin),
            2 => Ok(Self::Verify),
            3 => Ok(Self::Export),
            4 => Ok(Self::Translate),
            5 => Ok(Self::Change),
            _ => Err(FrameError),
        }
    }
}

impl FrameValue for [u8; 16] {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.array()
    }
}

impl FrameValue for String {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.text().map(str::to_owned)
    }
}

impl<T: FrameValue> FrameValue for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.flag()?.then(|| T::read(read)).transpose()
    }
}

impl FrameValue for Kcv {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.array::<3>().map(|bytes| Self::first_of(&bytes))
    }
}

impl FrameValue for BoundaryLevel {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(level_code(*self));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        level_of(read.byte()?).map_err(|_| FrameError)
    }
}

impl FrameValue for StorageFormat {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(form_code(*self));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        form_of(read.byte()?).map_err(|_| FrameError)
    }
}

impl FrameValue for AccountNumber {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.digits().as_slice());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::from_digits(read.blob()?).ok_or(FrameError)
    }
}

impl FrameValue for KeyId {
    fn write(&self, out: &mut Vec<u8>) {
        self.usage.to_string().write(out);
        out.extend_from_slice(&self.version.0.to_be_bytes());
        self.kcv.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let usage = KeyUsage::parse(read.text()?).ok_or(FrameError)?;
        Ok(Self { usage, version: KeyVersion(u16::from_be_bytes(read.array()?)), kcv: FrameValue::read(read)? })
    }
}

/// Appends at most 255 values, after their number in one byte.
pub(super) fn write_list<T: FrameValue>(values: &[T], out: &mut Vec<u8>) {
    out.push(u8::try_from(values.len()).unwrap_or(u8::MAX));
    values.iter().take(u8::MAX.into()).for_each(|value| value.write(out));
}

pub(super) fn read_list<T: FrameValue>(read: &mut Reader<'_>) -> Result<Vec<T>, FrameError> {
    (0..read.byte()?).map(|_| T::read(read)).collect()
}

impl FrameValue for StorageVersions {
    fn write(&self, out: &mut Vec<u8>) {
        let Self { wrapped, iso_4, tdes, one_way } = self;
        [wrapped, iso_4, tdes, one_way].iter().for_each(|KeyVersion(key)| out.extend_from_slice(&key.to_be_bytes()));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let mut version = || Ok::<_, FrameError>(KeyVersion(u16::from_be_bytes(read.array()?)));
        Ok(Self { wrapped: version()?, iso_4: version()?, tdes: version()?, one_way: version()? })
    }
}

impl FrameValue for Status {
    fn write(&self, out: &mut Vec<u8>) {
        self.token.write(out);
        self.level.write(out);
        out.push(match self.isolation {
            Isolation::Process => 0,
            Isolation::Inline => 1,
        });
        self.form.write(out);
        self.until.write(out);
        write_list(&self.keys, out);
        write_list(&self.zone_keys, out);
        write_list(&self.verification_keys, out);
        write_list(&self.even_parity, out);
        write_list(&self.reusable_answers, out);
        self.storage.write(out);
        match &self.memory {
            MemoryLock::Locked => None,
            MemoryLock::NotLocked(reason) => Some(reason.clone()),
        }
        .write(out);
        out.push(match self.persistence {
            Persistence::Memory => 0,
            Persistence::Vault => 1,
            Persistence::Token => 2,
        });
        out.extend_from_slice(&[self.pin_digits.min(), self.pin_digits.max()]);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let (token, level) = (FrameValue::read(read)?, FrameValue::read(read)?);
        let isolation = match read.byte()? {
            0 => Isolation::Process,
            1 => Isolation::Inline,
            _ => return Err(FrameError),
        };
        let (form, until) = (FrameValue::read(read)?, FrameValue::read(read)?);
        let (keys, zone_keys) = (read_list(read)?, read_list(read)?);
        let (verification_keys, even_parity) = (read_list(read)?, read_list(read)?);
        let reusable_answers = read_list(read)?;
        let storage = FrameValue::read(read)?;
        let memory = Option::read(read)?.map_or(MemoryLock::Locked, MemoryLock::NotLocked);
        let persistence = match read.byte()? {
            0 => Persistence::Memory,
            1 => Persistence::Vault,
            2 => Persistence::Token,
            _ => return Err(FrameError),
        };
        let [min, max] = read.array()?;
        let pin_digits = PinDigits::new(min, max).ok_or(FrameError)?;
        Ok(Self {
            token,
            level,
            isolation,
            form,
            until,
            keys,
            zone_keys,
            verification_keys,
            even_parity,
            reusable_answers,
            storage,
            memory,
            persistence,
            pin_digits,
        })
    }
}

impl FrameValue for CardBinding {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.tenant());
        push_blob(out, self.plastic_id());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::new(read.text()?, read.text()?).map_err(|_| FrameError)
    }
}

impl FrameValue for ControlBinding {
    fn write(&self, out: &mut Vec<u8>) {
        self.id.write(out);
        out.push(match self.purpose {
            Purpose::SetPin => 1,
            Purpose::ViewPin => 2,
        });
        out.extend_from_slice(&self.expires_at_unix_milliseconds.to_be_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let id = read.array()?;
        let purpose = match read.byte()? {
            1 => Purpose::SetPin,
            2 => Purpose::ViewPin,
            _ => return Err(FrameError),
        };
        Ok(Self { id, purpose, expires_at_unix_milliseconds: u64::from_be_bytes(read.array()?) })
    }
}

impl FrameValue for Binding {
    fn write(&self, out: &mut Vec<u8>) {
        self.card.write(out);
        self.control.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self { card: FrameValue::read(read)?, control: FrameValue::read(read)? })
    }
}

impl FrameValue for Account {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::PlasticId => out.push(0),
            Self::Registered(sealed) => {
                out.push(1);
                sealed.write(out);
            }
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        match read.byte()? {
            0 => Ok(Self::PlasticId),
            1 => FrameValue::read(read).map(Self::Registered),
            _ => Err(FrameError),
        }
    }
}
