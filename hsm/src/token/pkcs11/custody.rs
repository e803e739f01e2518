//! A token as a ceremony changes it: keys are made inside, brought in, taken out where they may leave, destroyed; and the
//! register tells what has become of each.
//!
//! What must never enter: who may do it.

use std::sync::Arc;

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use cryptoki::{mechanism::Mechanism, object::ObjectHandle, session::Session};

use super::{
    calls::{Calls, Functions},
    examine::seal_way,
    failure::call_failed,
    keys::{self, InUse, SealWay, algorithms, audit, bring_in, cmac, engine_keys, generate, objects, versions_of},
    link,
    objects::SessionObject,
    register::Register,
};
use crate::{
    binding::Level,
    check_value::CheckValue,
    clear::{Clear, ClearBytes},
    config::Pkcs11,
    keyblock::{AesElsewhere, KeyBlockError},
    keyring::{KeyAlgorithm, KeyInfo, KeyName, KeyState, Keyring, NewKey, Travels},
    open_error::Pkcs11Error,
};

/// Bytes that AES key wrap adds (RFC 3394).
const KEY_WRAP_BYTES: usize = 8;

/// A token, logged in to be changed.
pub(crate) struct Custody {
    session: Session,
    functions: Option<Arc<Functions>>,
    level: Level,
    seal: SealWay,
    /// Of the register as it was read or written last.
    number: u64,
}

impl Custody {
    /// Logs in and reads the register. Where there is none yet, it tells of the keys that an engine uses already.
    pub(crate) fn open(config: &Pkcs11, level: Level, now: u64) -> Result<(Self, Keyring), Pkcs11Error> {
        let (session, functions) = link::look_to_write(config)?;
        let seal = seal_way(Calls::new(&session, functions.as_deref()));
        let mut custody = Self { session, functions, level, seal, number: 0 };
        let keyring = match Register::read(&custody.session)? {
            Some(Register { number, keyring }) => {
                custody.number = number;
                keyring
            }
            None => custody.keys_without_register(config, now)?,
        };
        custody.sweep(&keyring)?;
        Ok((custody, keyring))
    }

    /// What a key may be used with here; none where there is no such key.
    pub(crate) fn algorithms(&self, name: &KeyName) -> &'static [KeyAlgorithm] {
        algorithms(name, self.level, self.seal)
    }

    /// Makes a key inside; tells its check value where its use allows to make one.
    pub(crate) fn make(&self, new: &NewKey) -> Result<Option<CheckValue>, Pkcs11Error> {
        self.clear_the_place(new)?;
        let key = generate(self.calls(), new, self.level).map_err(call_failed("C_GenerateKey"))?;
        self.check_value(&new.name, new.algorithm, key)
    }

    /// Brings a key in, which is in this process's memory for that long.
    pub(crate) fn bring_in(&self, new: &NewKey, key: &ClearBytes) -> Result<(), Pkcs11Error> {
        self.clear_the_place(new)?;
        bring_in(&self.session, new, self.level, key).map(drop).map_err(call_failed("C_CreateObject"))
    }

    /// Takes out a key that may leave: wrapped under a key that lives for this alone, then in this process's memory.
    pub(crate) fn take_out(&self, info: &KeyInfo) -> Result<ClearBytes, Pkcs11Error> {
        let key = self.object(&info.name, info.version)?;
        let mut wrapping = Clear::<32>::zeroed();
        self.session.generate_random_slice(wrapping.bytes_mut()).map_err(call_failed("C_GenerateRandom"))?;
        let object =
            SessionObject::import_wrapping_key(self.calls(), &wrapping).map_err(call_failed("C_CreateObject"))?;
        let wrapped = self.session.wrap_key(&Mechanism::AesKeyWrap, object.handle, key);
        let wrapped = wrapped.map_err(call_failed("C_WrapKey"))?;
        if wrapped.len() != info.algorithm.bytes() + KEY_WRAP_BYTES {
            return Err(Pkcs11Error::TakeOut);
        }
        let mut room = ClearBytes::zeroed(wrapped.len());
        let kek = AesKek::new(&AES_256, wrapping.bytes()).map_err(|_| Pkcs11Error::TakeOut)?;
        let opened = kek.unwrap(&wrapped, room.bytes_mut()).map_err(|_| Pkcs11Error::TakeOut)?;
        Ok(ClearBytes::copied(opened))
    }

    /// A key-exchange key, which stays inside.
    pub(crate) fn exchange_key(&self, info: &KeyInfo) -> Result<Box<dyn AesElsewhere + '_>, Pkcs11Error> {
        let handle = self.object(&info.name, info.version)?;
        Ok(Box::new(ExchangeKey { calls: self.calls(), handle, bytes: info.algorithm.bytes() }))
    }

    /// Writes the register; then what it says is destroyed goes.
    pub(crate) fn commit(&mut self, keyring: &Keyring) -> Result<(), Pkcs11Error> {
        self.number = Register::write(&self.session, self.number, keyring)?;
        self.sweep(keyring)
    }

    fn calls(&self) -> Calls<'_> {
        Calls::new(&self.session, self.functions.as_deref())
    }

    fn check_value(
        &self,
        name: &KeyName,
        algorithm: KeyAlgorithm,
        key: ObjectHandle,
    ) -> Result<Option<CheckValue>, Pkcs11Error> {
        keys::check_value(self.calls(), name, self.level, algorithm, key).map_err(call_failed("check values"))
    }

    fn object(&self, name: &KeyName, version: u16) -> Result<ObjectHandle, Pkcs11Error> {
        match objects(&self.session, name, version)?[..] {
            [key] => Ok(key),
            ref found => Err(Pkcs11Error::Key { label: keys::label(name), version, found: found.len() }),
        }
    }

    /// What a step left that died before the register told of it: nothing was made with it.
    fn clear_the_place(&self, new: &NewKey) -> Result<(), Pkcs11Error> {
        for left in objects(&self.session, &new.name, new.version)? {
            self.session.destroy_object(left).map_err(call_failed("C_DestroyObject"))?;
        }
        Ok(())
    }

    /// Destroys what the register says is destroyed: a step that died may have left it.
    fn sweep(&self, keyring: &Keyring) -> Result<(), Pkcs11Error> {
        for info in keyring.keys.iter().map(|key| &key.info).filter(|info| info.state() == KeyState::Destroyed) {
            for left in objects(&self.session, &info.name, info.version)? {
                self.session.destroy_object(left).map_err(call_failed("C_DestroyObject"))?;
            }
        }
        Ok(())
    }

    /// Those that an engine uses, up to the version it is configured with, are in use; newer ones are not yet.
    fn keys_without_register(&self, config: &Pkcs11, now: u64) -> Result<Keyring, Pkcs11Error> {
        let in_use = InUse::of_config(config, self.level, self.seal);
        let mut keyring = Keyring::empty();
        for name in engine_keys(self.level, self.seal) {
            let algorithm = self.algorithms(&name).first().copied().unwrap_or(KeyAlgorithm::Aes256);
            for (version, key) in versions_of(&self.session, &name)? {
                audit(&self.session, &name, self.level, key)?;
                let check_value = self.check_value(&name, algorithm, key)?;
                let new = NewKey { name: name.clone(), version, algorithm, travels: Travels::Never };
                let info = keyring.put(new, check_value, None, now);
                info.activated_at = (version <= in_use.newest(&name).0).then_some(now);
            }
        }
        Ok(keyring)
    }
}

/// It derives the keys of a key block by CMAC inside, and never comes out.
struct ExchangeKey<'a> {
    calls: Calls<'a>,
    handle: ObjectHandle,
    bytes: usize,
}

impl AesElsewhere for ExchangeKey<'_> {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn cmac(&self, message: &[u8; 8], tag: &mut Clear<16>) -> Result<(), KeyBlockError> {
        cmac(self.calls, self.handle, message, tag).map_err(|_| KeyBlockError::Elsewhere)
    }
}
