//! The keys of a token as a ceremony changes them: generate, import, export where exportable, destroy. The inventory holds
//! the state of each key.
//!
//! A token has no lock. A step destroys only keys that the inventory lists as destroyed, and keys that it created itself and
//! the inventory does not list. So it never destroys a key of another step. Of two steps at once one is rejected, or both.
//! A step that is killed between the key and the inventory leaves the key; the next step finds the key and names it.
//! What must never enter: who may change a key. That is the ceremony's rule.

use std::{mem, sync::Arc};

use aws_lc_rs::key_wrap::{AES_256, AesKek, KeyWrap};
use cryptoki::{mechanism::Mechanism, object::ObjectHandle, session::Session};

use super::{
    failure::call_failed,
    ffi::{Calls, Functions},
    inventory::{Inventory, Revision},
    keys::{
        self, SealWay, algorithms, audit, cmac, configured_versions, default_algorithm, engine_keys_of_all_levels,
        generate, import, objects, versions_of,
    },
    objects::SessionObject,
    probe::seal_way,
    session_pool,
};
use hsm_protocol::{BoundaryLevel, Kcv};

use crate::{
    clear::{Clear, ClearBytes},
    config::Pkcs11,
    keyblock::{CmacInToken, KeyBlockError},
    keyring::{Exportability, KeyAlgorithm, KeyInfo, KeyMode, KeyState, KeyUsage, Keyring, NewKey},
    open_error::Pkcs11Error,
};

/// The bytes that AES key wrap adds to a key (RFC 3394).
const KEY_WRAP_BYTES: usize = 8;

/// A token with a read-write login.
pub(crate) struct TokenKeyManager {
    session: Session,
    functions: Option<Arc<Functions>>,
    level: BoundaryLevel,
    seal: SealWay,
    /// The inventory as this step read or wrote it last.
    read: Revision,
    /// The keys that this step created and the inventory does not list yet.
    created: Vec<ObjectHandle>,
}

impl Drop for TokenKeyManager {
    fn drop(&mut self) {
        self.destroy_created();
    }
}

impl TokenKeyManager {
    /// Logs in and reads the inventory. For a token without one, returns the keys that an engine uses there already.
    pub(crate) fn open(config: &Pkcs11, level: BoundaryLevel, now: u64) -> Result<(Self, Keyring), Pkcs11Error> {
        let (session, functions) = session_pool::log_in_to_write(config)?;
        let seal = seal_way(Calls::new(&session, functions.as_deref()));
        let mut manager = Self { session, functions, level, seal, read: Revision::default(), created: Vec::new() };
        let keyring = match Inventory::read(&manager.session)? {
            Some(Inventory { revision, keyring }) => {
                manager.read = revision;
                keyring
            }
            None => manager.keys_without_inventory(config, now)?,
        };
        manager.destroy_leftovers(&keyring)?;
        Ok((manager, keyring))
    }

    /// The algorithms that a key of this usage may have in the token; empty where the token has no such key.
    pub(crate) fn algorithms(&self, name: &KeyUsage) -> &'static [KeyAlgorithm] {
        algorithms(name, self.level, self.seal)
    }

    /// Generates a key in the token. Returns its KCV where its usage allows one.
    pub(crate) fn make(&mut self, new: &NewKey) -> Result<Option<Kcv>, Pkcs11Error> {
        self.is_free(new)?;
        let key = generate(self.calls(), new, self.level).map_err(call_failed("C_GenerateKey"))?;
        self.is_alone(new, key)?;
        self.kcv(&new.name, new.algorithm, key)
    }

    /// Imports a key. The clear key is in this process's memory until the call returns.
    pub(crate) fn import(&mut self, new: &NewKey, key: &ClearBytes) -> Result<(), Pkcs11Error> {
        self.is_free(new)?;
        let key = import(&self.session, new, self.level, key).map_err(call_failed("C_CreateObject"))?;
        self.is_alone(new, key)
    }

    /// Exports an exportable key: wraps the key under a fresh session key, then unwraps it in this process's memory.
    pub(crate) fn export(&self, info: &KeyInfo) -> Result<ClearBytes, Pkcs11Error> {
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

    /// A key-encrypting key (usage `exchange:NAME`), which stays in the token.
    pub(crate) fn kek(&self, info: &KeyInfo) -> Result<Box<dyn CmacInToken + '_>, Pkcs11Error> {
        let handle = self.object(&info.name, info.version)?;
        Ok(Box::new(Kek { calls: self.calls(), handle, bytes: info.algorithm.bytes() }))
    }

    /// Writes the inventory, then destroys the keys that it lists as destroyed.
    pub(crate) fn commit(&mut self, keyring: &Keyring) -> Result<(), Pkcs11Error> {
        // Even if the write fails, the inventory may list these keys from here on.
        let created = mem::take(&mut self.created);
        self.read = Inventory::write(&self.session, &self.read, keyring).inspect_err(|error| {
            if error.left_inventory_unwritten() {
                self.created = created;
                self.destroy_created();
            }
        })?;
        self.destroy_leftovers(keyring)
    }

    fn calls(&self) -> Calls<'_> {
        Calls::new(&self.session, self.functions.as_deref())
    }

    fn kcv(&self, name: &KeyUsage, algorithm: KeyAlgorithm, key: ObjectHandle) -> Result<Option<Kcv>, Pkcs11Error> {
        keys::kcv(self.calls(), name, (self.level, KeyMode::Both), algorithm, key).map_err(call_failed("KCV"))
    }

    fn object(&self, name: &KeyUsage, version: u16) -> Result<ObjectHandle, Pkcs11Error> {
        match objects(&self.session, name, version)?[..] {
            [key] => Ok(key),
            ref found => Err(Pkcs11Error::Key { label: keys::label(name), version, found: found.len() }),
        }
    }

    /// Fails where another step changed the inventory, or a key has this usage and version already. Such a key is not
    /// destroyed: another step may be creating it at this moment.
    fn is_free(&self, new: &NewKey) -> Result<(), Pkcs11Error> {
        Inventory::check_unchanged(&self.session, &self.read)?;
        match objects(&self.session, &new.name, new.version)?.is_empty() {
            true => Ok(()),
            false => Err(not_in_inventory(new)),
        }
    }

    /// Two steps may both have found no key: each searches again after it created its own, so at most one key stays.
    fn is_alone(&mut self, new: &NewKey, key: ObjectHandle) -> Result<(), Pkcs11Error> {
        self.created.push(key);
        match objects(&self.session, &new.name, new.version)?.len() {
            1 => Ok(()),
            _ => {
                self.destroy_created();
                Err(not_in_inventory(new))
            }
        }
    }

    /// Destroys the keys that this step created and the inventory does not list.
    fn destroy_created(&mut self) {
        for key in mem::take(&mut self.created) {
            // Where this fails, the next step reports `NotInInventory`.
            let _ = self.session.destroy_object(key);
        }
    }

    /// Destroys the keys that the inventory lists as destroyed: a killed step may have left them.
    fn destroy_leftovers(&self, keyring: &Keyring) -> Result<(), Pkcs11Error> {
        for info in keyring.keys.iter().map(|key| &key.info).filter(|info| info.state() == KeyState::Destroyed) {
            for left in objects(&self.session, &info.name, info.version)? {
                self.session.destroy_object(left).map_err(call_failed("C_DestroyObject"))?;
            }
        }
        Ok(())
    }

    /// The engine keys of both levels in a token without an inventory: a step needs to know which versions exist. Keys up to
    /// the configured version are active, newer ones pending.
    fn keys_without_inventory(&self, config: &Pkcs11, now: u64) -> Result<Keyring, Pkcs11Error> {
        let mut keyring = Keyring::empty();
        for (name, level, seal) in engine_keys_of_all_levels() {
            let algorithm = default_algorithm(&name, level, seal);
            let newest = configured_versions(config, &name).into_iter().max().unwrap_or_default();
            for (version, key) in versions_of(&self.session, &name)? {
                audit(&self.session, &name, level, key, (Exportability::Never, KeyMode::Both))?;
                let kcv = keys::kcv(self.calls(), &name, (level, KeyMode::Both), algorithm, key)
                    .map_err(call_failed("KCV"))?;
                let new = NewKey {
                    name: name.clone(),
                    version,
                    algorithm,
                    travels: Exportability::Never,
                    mode: KeyMode::Both,
                };
                let info = keyring.put(new, kcv, None, now);
                info.activated_at = (version <= newest).then_some(now);
            }
        }
        Ok(keyring)
    }
}

fn not_in_inventory(NewKey { name, version, .. }: &NewKey) -> Pkcs11Error {
    Pkcs11Error::NotInInventory { label: keys::label(name), version: *version }
}

/// A key-encrypting key in the token. It derives the keys of a key block by CMAC there.
struct Kek<'a> {
    calls: Calls<'a>,
    handle: ObjectHandle,
    bytes: usize,
}

impl CmacInToken for Kek<'_> {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn cmac(&self, message: &[u8; 8], tag: &mut Clear<16>) -> Result<(), KeyBlockError> {
        cmac(self.calls, self.handle, message, tag).map_err(|_| KeyBlockError::Token)
    }
}

#[cfg(test)]
mod tests {
    use std::{env, process::Command};

    use super::*;
    use crate::{
        fresh_token::{Make, fresh_token},
        token::pkcs11::{inventory, make_keys},
    };

    const NOW: u64 = 1_700_000_000_000;
    /// NSS stores no inventory.
    const WITH_INVENTORY: [Make; 2] = [Make::SoftHsm, Make::OpenCryptoki];

    fn open(make: Make) -> (TokenKeyManager, Keyring) {
        TokenKeyManager::open(&make.config(), BoundaryLevel::Host, NOW).unwrap()
    }

    fn next_storage(keyring: &Keyring) -> NewKey {
        keyring.next(KeyUsage::Storage, KeyAlgorithm::Aes256, Exportability::Never)
    }

    /// A whole step: generates a storage key and writes it to the inventory.
    fn make_storage(make: Make) -> Kcv {
        let (mut manager, mut keyring) = open(make);
        let new = next_storage(&keyring);
        let made = manager.make(&new).unwrap();
        keyring.put(new, made, None, NOW).activated_at = Some(NOW);
        manager.commit(&keyring).unwrap();
        made.unwrap()
    }

    /// The KCV of the one storage key of a version, computed by the token.
    fn storage_in_token(manager: &TokenKeyManager, version: u16) -> Kcv {
        let key = manager.object(&KeyUsage::Storage, version).unwrap();
        manager.kcv(&KeyUsage::Storage, KeyAlgorithm::Aes256, key).unwrap().unwrap()
    }

    /// Set in the process that runs the other ceremony.
    const OTHER_VARIABLE: &str = "PINSEAL_TEST_OTHER_CEREMONY";

    #[test]
    fn a_step_after_another_ceremonys_change_is_rejected() {
        let make = fresh_token!(WITH_INVENTORY);
        make_storage(make);
        if env::var_os(OTHER_VARIABLE).is_some() {
            return;
        }
        // The other ceremony runs while a custodian types a component here.
        let (mut slow, keyring) = open(make);
        let mut other = Command::new(env::current_exe().unwrap());
        assert!(
            other
                .arg("a_step_after_another_ceremonys_change_is_rejected")
                .env(OTHER_VARIABLE, "1")
                .status()
                .unwrap()
                .success()
        );
        let component = ClearBytes::copied(&[0x42; 32]);
        let new = next_storage(&keyring);
        for result in [slow.import(&new, &component), slow.make(&new).map(drop)] {
            assert!(matches!(result, Err(Pkcs11Error::ChangedByOther)));
        }
        assert!(matches!(slow.commit(&keyring), Err(Pkcs11Error::ChangedByOther)));
        drop(slow);
        let (after, keyring) = open(make);
        assert_eq!(keyring.active_versions(&KeyUsage::Storage), [1, 2]);
        let listed = keyring.active(&KeyUsage::Storage).unwrap().info.check_value.unwrap();
        assert_eq!(storage_in_token(&after, 2), listed);
    }

    #[test]
    fn of_two_concurrent_steps_the_later_destroys_its_own_key() {
        let make = fresh_token!(WITH_INVENTORY);
        let (mut later, keyring) = open(make);
        let new = next_storage(&keyring);
        later.is_free(&new).unwrap();
        let made = make_storage(make);
        let key = generate(later.calls(), &new, BoundaryLevel::Host).unwrap();
        assert!(matches!(later.is_alone(&new, key), Err(Pkcs11Error::NotInInventory { version: 1, .. })));
        assert_eq!(storage_in_token(&later, 1), made);

        // The same where the two steps create keys of different usages.
        let (mut first, mut firsts) = open(make);
        let (mut second, seconds) = open(make);
        let new = |name| NewKey { name, ..next_storage(&keyring) };
        let seal = first.make(&new(KeyUsage::Seal)).unwrap();
        second.make(&new(KeyUsage::Account)).unwrap();
        firsts.put(new(KeyUsage::Seal), seal, None, NOW);
        first.commit(&firsts).unwrap();
        assert!(matches!(second.commit(&seconds), Err(Pkcs11Error::ChangedByOther)));
        drop((first, second, later));
        let (after, _) = open(make);
        let objects = |name| objects(&after.session, &name, 1).unwrap().len();
        assert_eq!([objects(KeyUsage::Seal), objects(KeyUsage::Account)], [1, 0]);
    }

    #[test]
    fn the_key_of_a_killed_step_is_named_not_destroyed() {
        let make = fresh_token!(WITH_INVENTORY);
        let (mut abandoned, keyring) = open(make);
        abandoned.make(&next_storage(&keyring)).unwrap();
        drop(abandoned);
        let (mut killed, keyring) = open(make);
        let made = killed.make(&next_storage(&keyring)).unwrap().unwrap();
        killed.created.clear();
        drop(killed);
        let (mut next, keyring) = open(make);
        // Without an inventory `open` lists every key it finds, so this writes an inventory that does not list the key.
        assert_eq!(next_storage(&keyring).version, 2);
        let empty = Keyring::empty();
        next.commit(&empty).unwrap();
        let refused = next.make(&next_storage(&empty)).unwrap_err().to_string();
        assert!(refused.contains("\"pinseal storage\" and the id 0001 that its inventory does not list"), "{refused}");
        assert_eq!(storage_in_token(&next, 1), made);
    }

    #[test]
    fn the_first_inventory_lists_the_keys_of_both_levels() {
        let make = fresh_token!(WITH_INVENTORY);
        for level in [BoundaryLevel::Host, BoundaryLevel::Token] {
            make_keys(&make.config(), level).unwrap();
        }
        for level in [BoundaryLevel::Host, BoundaryLevel::Token] {
            let (_manager, keyring) = TokenKeyManager::open(&make.config(), level, NOW).unwrap();
            for name in [KeyUsage::Storage, KeyUsage::StorageWrapped, KeyUsage::StorageIso4, KeyUsage::Mac] {
                assert_eq!(keyring.active_versions(&name), [1], "{name}");
            }
        }
    }

    #[test]
    fn a_withdrawn_inventory_differs_from_a_later_one_of_its_number() {
        let make = fresh_token!(WITH_INVENTORY);
        let (writer, mut keyring) = open(make);
        let withdrawn = writer.session.create_object(&inventory::data_object(&Revision::new(1, &keyring))).unwrap();
        let (mut reader, read) = open(make);
        writer.session.destroy_object(withdrawn).unwrap();
        keyring.last_entry = [7; 32];
        writer.session.create_object(&inventory::data_object(&Revision::new(1, &keyring))).unwrap();
        assert!(matches!(reader.make(&next_storage(&read)), Err(Pkcs11Error::ChangedByOther)));
        assert!(matches!(reader.commit(&read), Err(Pkcs11Error::ChangedByOther)));
    }

    #[test]
    fn two_inventories_of_one_number_are_rejected() {
        let make = fresh_token!(WITH_INVENTORY);
        make_storage(make);
        let (manager, keyring) = open(make);
        manager.session.create_object(&inventory::data_object(&Revision::new(1, &keyring))).unwrap();
        let read = Inventory::read(&manager.session);
        assert!(matches!(read, Err(Pkcs11Error::TwoInventories { number: 1 })));
    }
}
