//! Values as bytes: each either reads back or is refused.

use super::FrameError;
use crate::account::{Account, AccountNumber};
use crate::binding::{Binding, BoundaryLevel, CardBinding, Isolation, OwnedBinding, Purpose};
use crate::check_value::Kcv;
use crate::device_key::DeviceKey;
use crate::form::StorageFormat;
use crate::key_id::KeyId;
use crate::outcome::{Accepted, Issued, Revealed};
use crate::sealed::{
    EncryptedBlock, KeyVersion, PinRecord, SealedAccount, SealedKey, form_code, form_of, level_code, level_of,
};
use crate::status::{MemoryLock, Persistence, Status, StorageVersions};

/// A value that crosses between the processes.
pub trait Crosses: Sized {
    /// Appends it.
    #[doc(hidden)]
    fn write(&self, out: &mut Vec<u8>);
    /// Reads it.
    #[doc(hidden)]
    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError>;
}

/// What is left to read of a body.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], FrameError> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(FrameError)?;
        self.0 = rest;
        Ok(taken)
    }

    pub fn byte(&mut self) -> Result<u8, FrameError> {
        self.array().map(|[byte]| byte)
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        self.take(N)?.try_into().map_err(|_| FrameError)
    }

    pub fn blob(&mut self) -> Result<&'a [u8], FrameError> {
        let length = u16::from_be_bytes(self.array()?);
        self.take(length.into())
    }

    fn text(&mut self) -> Result<&'a str, FrameError> {
        std::str::from_utf8(self.blob()?).map_err(|_| FrameError)
    }

    /// Nothing may stand behind what was read.
    pub fn end<T>(&mut self, value: T) -> Result<T, FrameError> {
        if self.0.is_empty() { Ok(value) } else { Err(FrameError) }
    }
}

pub(super) fn push_blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let kept = bytes.get(..usize::from(u16::MAX)).unwrap_or(bytes);
    out.extend_from_slice(&u16::try_from(kept.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(kept);
}

/// A type that has its own bytes, and reads them back strictly.
macro_rules! crosses_as_its_bytes {
    ($($type:ty: $bytes:ident, $read:ident;)+) => {$(
        impl Crosses for $type {
            fn write(&self, out: &mut Vec<u8>) {
                push_blob(out, self.$bytes());
            }

            fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
                <$type>::$read(read.blob()?).map_err(|_| FrameError)
            }
        }
    )+};
}

crosses_as_its_bytes! {
    SealedKey: as_bytes, from_bytes;
    SealedAccount: as_bytes, from_bytes;
    PinRecord: as_bytes, from_bytes;
    EncryptedBlock: as_bytes, from_bytes;
    DeviceKey: der, parse;
}

impl Crosses for () {
    fn write(&self, _: &mut Vec<u8>) {}

    fn read(_: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(())
    }
}

impl Crosses for [u8; 16] {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.array()
    }
}

impl Crosses for String {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.text().map(str::to_owned)
    }
}

impl<T: Crosses> Crosses for Option<T> {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(self.is_some()));
        if let Some(value) = self {
            value.write(out);
        }
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        match read.byte()? {
            0 => Ok(None),
            1 => T::read(read).map(Some),
            _ => Err(FrameError),
        }
    }
}

impl Crosses for Kcv {
    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self.as_bytes());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        read.array::<3>().map(|bytes| Self::first_of(&bytes))
    }
}

impl Crosses for BoundaryLevel {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(level_code(*self));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        level_of(read.byte()?).map_err(|_| FrameError)
    }
}

impl Crosses for StorageFormat {
    fn write(&self, out: &mut Vec<u8>) {
        out.push(form_code(*self));
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        form_of(read.byte()?).map_err(|_| FrameError)
    }
}

impl Crosses for AccountNumber {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, self.digits().as_slice());
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Self::from_digits(read.blob()?).ok_or(FrameError)
    }
}

impl Crosses for Issued {
    fn write(&self, out: &mut Vec<u8>) {
        self.sealed.write(out);
        push_blob(out, &self.wrapped);
        self.check_value.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let (sealed, wrapped) = (Crosses::read(read)?, read.blob()?.to_vec());
        Ok(Self { sealed, wrapped, check_value: Crosses::read(read)? })
    }
}

impl Crosses for Accepted {
    fn write(&self, out: &mut Vec<u8>) {
        self.record.write(out);
        self.retry_tag.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(Self { record: Crosses::read(read)?, retry_tag: Crosses::read(read)? })
    }
}

impl Crosses for Revealed {
    fn write(&self, out: &mut Vec<u8>) {
        push_blob(out, &self.wrapped);
        self.block.write(out);
        self.check_value.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let wrapped = read.blob()?.to_vec();
        Ok(Self { wrapped, block: Crosses::read(read)?, check_value: Crosses::read(read)? })
    }
}

impl Crosses for KeyId {
    fn write(&self, out: &mut Vec<u8>) {
        self.usage.write(out);
        out.extend_from_slice(&self.version.to_be_bytes());
        out.push(u8::from(self.rotates));
        self.kcv.write(out);
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let (usage, version) = (Crosses::read(read)?, u16::from_be_bytes(read.array()?));
        let rotates = match read.byte()? {
            0 => false,
            1 => true,
            _ => return Err(FrameError),
        };
        Ok(Self { usage, version, rotates, kcv: Crosses::read(read)? })
    }
}

impl Crosses for Status {
    fn write(&self, out: &mut Vec<u8>) {
        self.token.write(out);
        self.level.write(out);
        out.push(match self.isolation {
            Isolation::Process => 0,
            Isolation::Inline => 1,
        });
        self.form.write(out);
        self.until.write(out);
        out.push(u8::try_from(self.keys.len()).unwrap_or(u8::MAX));
        self.keys.iter().take(u8::MAX.into()).for_each(|key| key.write(out));
        let StorageVersions { wrapped, iso_4, tdes } = self.storage;
        [wrapped, iso_4, tdes].iter().for_each(|KeyVersion(key)| out.extend_from_slice(&key.to_be_bytes()));
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
    }

    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        let (token, level) = (Crosses::read(read)?, Crosses::read(read)?);
        let isolation = match read.byte()? {
            0 => Isolation::Process,
            1 => Isolation::Inline,
            _ => return Err(FrameError),
        };
        let (form, until) = (Crosses::read(read)?, Crosses::read(read)?);
        let keys = (0..read.byte()?).map(|_| Crosses::read(read)).collect::<Result<_, _>>()?;
        let mut version = || Ok::<_, FrameError>(KeyVersion(u16::from_be_bytes(read.array()?)));
        let storage = StorageVersions { wrapped: version()?, iso_4: version()?, tdes: version()? };
        let memory = Option::read(read)?.map_or(MemoryLock::Locked, MemoryLock::NotLocked);
        let persistence = match read.byte()? {
            0 => Persistence::Memory,
            1 => Persistence::Vault,
            2 => Persistence::Token,
            _ => return Err(FrameError),
        };
        Ok(Self { token, level, isolation, form, until, keys, storage, memory, persistence })
    }
}

pub(super) fn push_card(out: &mut Vec<u8>, card: &CardBinding<'_>) {
    push_blob(out, card.tenant.as_bytes());
    push_blob(out, card.plastic_id.as_bytes());
}

/// Tenant and plasticId.
pub(super) fn read_card(read: &mut Reader<'_>) -> Result<(String, String), FrameError> {
    Ok((Crosses::read(read)?, Crosses::read(read)?))
}

pub(super) fn push_binding(out: &mut Vec<u8>, binding: &Binding<'_>) {
    push_card(out, &binding.card);
    binding.control.write(out);
    out.push(match binding.purpose {
        Purpose::SetPin => 1,
        Purpose::ViewPin => 2,
    });
    out.extend_from_slice(&binding.expires_at_unix_milliseconds.to_be_bytes());
}

pub(super) fn read_binding(read: &mut Reader<'_>) -> Result<OwnedBinding, FrameError> {
    let (tenant, plastic_id) = read_card(read)?;
    let control = read.array()?;
    let purpose = match read.byte()? {
        1 => Purpose::SetPin,
        2 => Purpose::ViewPin,
        _ => return Err(FrameError),
    };
    let expires_at_unix_milliseconds = u64::from_be_bytes(read.array()?);
    Ok(OwnedBinding { tenant, plastic_id, control, purpose, expires_at_unix_milliseconds })
}

pub(super) fn push_account(out: &mut Vec<u8>, account: Account<'_>) {
    match account {
        Account::PlasticId => out.push(0),
        Account::Registered(sealed) => {
            out.push(1);
            sealed.write(out);
        }
    }
}
