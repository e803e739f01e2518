//! A token as a ceremony changes it: keys are made inside, brought in, taken out where they may leave, destroyed; and the
//! register holds the state of each.
//!
//! A token has no lock. A step destroys what the register says is destroyed, and what it has made itself and the register
//! does not tell of: never a key that another step has made. Of two steps at once one is refused, or both. What is left: a
//! step that is killed between its key and the register leaves the key, which the next one finds in its way and names.
//! What must never enter: who may do it.

use std::{mem, sync::Arc};

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use cryptoki::{mechanism::Mechanism, object::ObjectHandle, session::Session};

use super::{
    failure::call_failed,
    ffi::{Calls, Functions},
    inventory::{Inventory, Seen},
    keys::{
        self, InUse, SealWay, algorithms, audit, bring_in, cmac, generate, keys_of_any_engine, objects, versions_of,
    },
    objects::SessionObject,
    probe::seal_way,
    session_pool,
};
use crate::{
    binding::BoundaryLevel,
    check_value::Kcv,
    clear::{Clear, ClearBytes},
    config::Pkcs11,
    keyblock::{AesElsewhere, KeyBlockError},
    keyring::{Exportability, KeyAlgorithm, KeyInfo, KeyState, KeyUsage, Keyring, NewKey},
    open_error::Pkcs11Error,
};

/// Bytes that AES key wrap adds (RFC 3394).
const KEY_WRAP_BYTES: usize = 8;

/// A token, logged in to be changed.
pub(crate) struct TokenKeyManager {
    session: Session,
    functions: Option<Arc<Functions>>,
    level: BoundaryLevel,
    seal: SealWay,
    /// The register as it was read or written last.
    seen: Seen,
    /// What this step has made, while the register does not tell of it.
    made: Vec<ObjectHandle>,
}

impl Drop for TokenKeyManager {
    fn drop(&mut self) {
        self.take_back();
    }
}

impl TokenKeyManager {
    /// Logs in and reads the register. A token without a register gets one with the keys that an engine uses already.
    pub(crate) fn open(config: &Pkcs11, level: BoundaryLevel, now: u64) -> Result<(Self, Keyring), Pkcs11Error> {
        let (session, functions) = session_pool::look_to_write(config)?;
        let seal = seal_way(Calls::new(&session, functions.as_deref()));
        let mut custody = Self { session, functions, level, seal, seen: Seen::default(), made: Vec::new() };
        let keyring = match Inventory::read(&custody.session)? {
            Some(Inventory { seen, keyring }) => {
                custody.seen = seen;
                keyring
            }
            None => custody.keys_without_register(config, now)?,
        };
        custody.sweep(&keyring)?;
        Ok((custody, keyring))
    }

    /// What a key may be used with here; none where there is no such key.
    pub(crate) fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        algorithms(name, self.level, self.seal)
    }

    /// Generates a key inside the token. Returns its check value where its usage allows one.
    pub(crate) fn make(&mut self, new: &NewKey) -> Result<Option<Kcv>, Pkcs11Error> {
        self.is_free(new)?;
        let key = generate(self.calls(), new, self.level).map_err(call_failed("C_GenerateKey"))?;
        self.is_alone(new, key)?;
        self.check_value(&new.name, new.algorithm, key)
    }

    /// Brings a key in, which is in this process's memory for that long.
    pub(crate) fn bring_in(&mut self, new: &NewKey, key: &ClearBytes) -> Result<(), Pkcs11Error> {
        self.is_free(new)?;
        let key = bring_in(&self.session, new, self.level, key).map_err(call_failed("C_CreateObject"))?;
        self.is_alone(new, key)
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
            return Err(Pkcs11Error::Export);
        }
        let mut buffer = ClearBytes::zeroed(wrapped.len());
        let kek = AesKek::new(&AES_256, wrapping.bytes()).map_err(|_| Pkcs11Error::Export)?;
        let opened = kek.unwrap(&wrapped, buffer.bytes_mut()).map_err(|_| Pkcs11Error::Export)?;
        Ok(ClearBytes::copied(opened))
    }

    /// A key-exchange key, which stays inside.
    pub(crate) fn exchange_key(&self, info: &KeyInfo) -> Result<Box<dyn AesElsewhere + '_>, Pkcs11Error> {
        let handle = self.object(&info.name, info.version)?;
        Ok(Box::new(ExchangeKey { calls: self.calls(), handle, bytes: info.algorithm.bytes() }))
    }

    /// Writes the register; then what it says is destroyed goes.
    pub(crate) fn commit(&mut self, keyring: &Keyring) -> Result<(), Pkcs11Error> {
        // Whatever the token answers, the register may tell of them from here on.
        let made = mem::take(&mut self.made);
        self.seen = Inventory::write(&self.session, &self.seen, keyring).inspect_err(|error| {
            if error.left_inventory_unwritten() {
                // But for these: then nothing was written.
                self.made = made;
                self.take_back();
            }
        })?;
        self.sweep(keyring)
    }

    fn calls(&self) -> Calls<'_> {
        Calls::new(&self.session, self.functions.as_deref())
    }

    fn check_value(
        &self,
        name: &KeyUsage,
        algorithm: KeyAlgorithm,
        key: ObjectHandle,
    ) -> Result<Option<Kcv>, Pkcs11Error> {
        keys::check_value(self.calls(), name, self.level, algorithm, key).map_err(call_failed("check values"))
    }

    fn object(&self, name: &KeyUsage, version: u16) -> Result<ObjectHandle, Pkcs11Error> {
        match objects(&self.session, name, version)?[..] {
            [key] => Ok(key),
            ref found => Err(Pkcs11Error::Key { label: keys::label(name), version, found: found.len() }),
        }
    }

    /// Whether a key can have this place: nobody has changed the register since it was read, and nothing is there. What is
    /// there may be a key that another step makes now, so it is not touched.
    fn is_free(&self, new: &NewKey) -> Result<(), Pkcs11Error> {
        Inventory::has_not_moved(&self.session, &self.seen)?;
        match objects(&self.session, &new.name, new.version)?.is_empty() {
            true => Ok(()),
            false => Err(unregistered(new)),
        }
    }

    /// Two steps may both have found the place free: each looks again once its key is there, so at most one key stays.
    fn is_alone(&mut self, new: &NewKey, key: ObjectHandle) -> Result<(), Pkcs11Error> {
        self.made.push(key);
        match objects(&self.session, &new.name, new.version)?.len() {
            1 => Ok(()),
            _ => {
                self.take_back();
                Err(unregistered(new))
            }
        }
    }

    /// Destroys what this step has made and the register does not tell of.
    fn take_back(&mut self) {
        for key in mem::take(&mut self.made) {
            // One that stays is in the way of the next step, which says so.
            let _ = self.session.destroy_object(key);
        }
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

    /// The keys of either level: of a place that the register knows nothing of, a step would say that it is free. Those that
    /// an engine uses, up to the version it is configured with, are in use; newer ones are not yet.
    fn keys_without_register(&self, config: &Pkcs11, now: u64) -> Result<Keyring, Pkcs11Error> {
        let mut keyring = Keyring::empty();
        for (name, level, seal) in keys_of_any_engine() {
            let algorithm = algorithms(&name, level, seal).first().copied().unwrap_or(KeyAlgorithm::Aes256);
            let in_use = InUse::of_config(config, level, seal).newest(&name);
            for (version, key) in versions_of(&self.session, &name)? {
                audit(&self.session, &name, level, key)?;
                let check_value = keys::check_value(self.calls(), &name, level, algorithm, key);
                let check_value = check_value.map_err(call_failed("check values"))?;
                let new = NewKey { name: name.clone(), version, algorithm, travels: Exportability::Never };
                let info = keyring.put(new, check_value, None, now);
                info.activated_at = (version <= in_use.0).then_some(now);
            }
        }
        Ok(keyring)
    }
}

fn unregistered(NewKey { name, version, .. }: &NewKey) -> Pkcs11Error {
    Pkcs11Error::NotInInventory { label: keys::label(name), version: *version }
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

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;
    use crate::{
        fresh_token::Make,
        token::pkcs11::{inventory, make_keys},
    };

    const NOW: u64 = 1_700_000_000_000;
    /// NSS keeps no register.
    const WITH_REGISTER: [Make; 2] = [Make::SoftHsm, Make::OpenCryptoki];

    fn opened(make: Make) -> (TokenKeyManager, Keyring) {
        TokenKeyManager::open(&make.config(), BoundaryLevel::Host, NOW).unwrap()
    }

    fn storage(keyring: &Keyring) -> NewKey {
        keyring.next(KeyUsage::Storage, KeyAlgorithm::Aes256, Exportability::Never)
    }

    /// A whole step: a storage key is generated and registered.
    fn makes_storage(make: Make) -> Kcv {
        let (mut custody, mut keyring) = opened(make);
        let new = storage(&keyring);
        let made = custody.make(&new).unwrap();
        keyring.put(new, made, None, NOW).activated_at = Some(NOW);
        custody.commit(&keyring).unwrap();
        made.unwrap()
    }

    /// The check value of the one storage key of a version, as the token answers for it.
    fn storage_in_token(custody: &TokenKeyManager, version: u16) -> Kcv {
        let key = custody.object(&KeyUsage::Storage, version).unwrap();
        custody.check_value(&KeyUsage::Storage, KeyAlgorithm::Aes256, key).unwrap().unwrap()
    }

    /// Set in the process of the other ceremony.
    const OTHER_VARIABLE: &str = "PINSEAL_TEST_OTHER_CEREMONY";

    #[test]
    fn a_step_that_another_was_before_is_refused_and_leaves_the_others_key() {
        let test = "a_step_that_another_was_before_is_refused_and_leaves_the_others_key";
        let Some(make) = Make::here() else {
            return WITH_REGISTER.into_iter().for_each(|make| make.runs(test));
        };
        makes_storage(make);
        if env::var_os(OTHER_VARIABLE).is_some() {
            return;
        }
        // Opened, and then somebody types a component for minutes.
        let (mut slow, keyring) = opened(make);
        let mut other = Command::new(env::current_exe().unwrap());
        assert!(other.arg(test).env(OTHER_VARIABLE, "1").status().unwrap().success());
        let component = ClearBytes::copied(&[0x42; 32]);
        for refused in [slow.bring_in(&storage(&keyring), &component), slow.make(&storage(&keyring)).map(drop)] {
            assert!(matches!(refused, Err(Pkcs11Error::ChangedByOther)));
        }
        assert!(matches!(slow.commit(&keyring), Err(Pkcs11Error::ChangedByOther)));
        drop(slow);
        let (after, keyring) = opened(make);
        assert_eq!(keyring.active_versions(&KeyUsage::Storage), [1, 2]);
        let registered = keyring.active(&KeyUsage::Storage).unwrap().info.check_value.unwrap();
        assert_eq!(storage_in_token(&after, 2), registered);
    }

    #[test]
    fn of_two_steps_that_both_found_a_place_free_the_later_takes_its_own_key_back() {
        let Some(make) = Make::here() else {
            let test = "of_two_steps_that_both_found_a_place_free_the_later_takes_its_own_key_back";
            return WITH_REGISTER.into_iter().for_each(|make| make.runs(test));
        };
        let (mut later, keyring) = opened(make);
        let new = storage(&keyring);
        later.is_free(&new).unwrap();
        let made = makes_storage(make);
        let key = generate(later.calls(), &new, BoundaryLevel::Host).unwrap();
        assert!(matches!(later.is_alone(&new, key), Err(Pkcs11Error::NotInInventory { version: 1, .. })));
        assert_eq!(storage_in_token(&later, 1), made);

        // The same where both had made keys at places of their own.
        let (mut first, mut firsts) = opened(make);
        let (mut second, seconds) = opened(make);
        let new = |name| NewKey { name, ..storage(&keyring) };
        let seal = first.make(&new(KeyUsage::Seal)).unwrap();
        second.make(&new(KeyUsage::Account)).unwrap();
        firsts.put(new(KeyUsage::Seal), seal, None, NOW);
        first.commit(&firsts).unwrap();
        assert!(matches!(second.commit(&seconds), Err(Pkcs11Error::ChangedByOther)));
        drop((first, second, later));
        let (after, _) = opened(make);
        let objects = |name| objects(&after.session, &name, 1).unwrap().len();
        assert_eq!([objects(KeyUsage::Seal), objects(KeyUsage::Account)], [1, 0]);
    }

    #[test]
    fn a_step_that_does_not_come_to_the_register_leaves_nothing_and_what_was_left_is_named_and_stays() {
        let Some(make) = Make::here() else {
            let test = "a_step_that_does_not_come_to_the_register_leaves_nothing_and_what_was_left_is_named_and_stays";
            return WITH_REGISTER.into_iter().for_each(|make| make.runs(test));
        };
        let (mut given_up, keyring) = opened(make);
        given_up.make(&storage(&keyring)).unwrap();
        drop(given_up);
        let (mut killed, keyring) = opened(make);
        let made = killed.make(&storage(&keyring)).unwrap().unwrap();
        killed.made.clear();
        drop(killed);
        let (mut next, keyring) = opened(make);
        // Without a register an existing key is registered, so this is as if one had been written before.
        assert_eq!(storage(&keyring).version, 2);
        let empty = Keyring::empty();
        next.commit(&empty).unwrap();
        let refused = next.make(&storage(&empty)).unwrap_err().to_string();
        assert!(refused.contains("\"pinseal storage\" and the id 0001 that its inventory does not list"), "{refused}");
        assert_eq!(storage_in_token(&next, 1), made);
    }

    #[test]
    fn the_first_register_tells_of_the_keys_of_both_levels() {
        let Some(make) = Make::here() else {
            let test = "the_first_register_tells_of_the_keys_of_both_levels";
            return WITH_REGISTER.into_iter().for_each(|make| make.runs(test));
        };
        for level in [BoundaryLevel::Host, BoundaryLevel::Token] {
            make_keys(&make.config(), level).unwrap();
        }
        for level in [BoundaryLevel::Host, BoundaryLevel::Token] {
            let (_custody, keyring) = TokenKeyManager::open(&make.config(), level, NOW).unwrap();
            for name in [KeyUsage::Storage, KeyUsage::StorageWrapped, KeyUsage::StorageIso4, KeyUsage::Mac] {
                assert_eq!(keyring.active_versions(&name), [1], "{name}");
            }
        }
    }

    #[test]
    fn a_register_that_was_taken_back_is_not_taken_for_the_one_that_has_its_number() {
        let Some(make) = Make::here() else {
            let test = "a_register_that_was_taken_back_is_not_taken_for_the_one_that_has_its_number";
            return WITH_REGISTER.into_iter().for_each(|make| make.runs(test));
        };
        let (writer, mut keyring) = opened(make);
        let taken_back = writer.session.create_object(&inventory::as_data(&Seen::with(1, &keyring))).unwrap();
        let (mut reader, read) = opened(make);
        writer.session.destroy_object(taken_back).unwrap();
        keyring.last_entry = [7; 32];
        writer.session.create_object(&inventory::as_data(&Seen::with(1, &keyring))).unwrap();
        assert!(matches!(reader.make(&storage(&read)), Err(Pkcs11Error::ChangedByOther)));
        assert!(matches!(reader.commit(&read), Err(Pkcs11Error::ChangedByOther)));
    }

    #[test]
    fn two_registers_of_one_number_are_refused() {
        let Some(make) = Make::here() else {
            return WITH_REGISTER.into_iter().for_each(|make| make.runs("two_registers_of_one_number_are_refused"));
        };
        makes_storage(make);
        let (custody, keyring) = opened(make);
        custody.session.create_object(&inventory::as_data(&Seen::with(1, &keyring))).unwrap();
        let read = Inventory::read(&custody.session);
        assert!(matches!(read, Err(Pkcs11Error::TwoInventories { number: 1 })));
    }
}
