//! The connection to a token: one module for each process, one session that keeps the login, a pool of sessions for the
//! workers, and the reconnection after a failed call.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use cryptoki::{
    context::Pkcs11 as Module,
    error::{Error as CallError, RvError},
    mechanism::MechanismType,
    session::{Session, UserType},
    slot::Slot,
    types::AuthPin,
};

use super::{
    failure::{call_failed, reason},
    ffi::{Calls, Functions, initialize},
    inventory::Inventory,
    keys::{
        FoundKeys, InUse, KeyHandles, KeyReferences, LevelKeys, SealWay, configured_versions, engine_keys, versions_of,
    },
};
use hsm_protocol::{BoundaryLevel, Error, UnavailableReason, ZoneRules};

use crate::{
    config::{KeyHandling, Pkcs11, SlotName, TokenPlace},
    keyring::{KeyInfo, KeyUsage, Keyring, RingKey, VerificationKeyInfo, ZoneKeyInfo},
    open_error::Pkcs11Error,
};

/// The delay between the first two reconnections. It doubles after each failure.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
/// The longest delay between two reconnections.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

/// The configured token, connected or lost, with the keys of one level.
pub(super) struct SessionPool<L> {
    config: Pkcs11,
    /// The keys in use since the first connection. A reconnection uses the same keys.
    in_use: InUse,
    state: Mutex<ConnectionState<L>>,
}

enum ConnectionState<L> {
    Up(Arc<Connection<L>>),
    Down {
        next: Instant,
        wait: Duration,
        /// Alive while the lost connection has calls in progress or open sessions.
        lost: Weak<OpenSessions>,
    },
    /// The token refused the user PIN: another login could lock the PIN.
    Refused,
}

/// A login and its sessions.
struct Connection<L> {
    module: Module,
    functions: Option<Arc<Functions>>,
    slot: Slot,
    keys: KeyHandles<L>,
    idle: Mutex<Vec<Session>>,
    /// Keeps the login, which ends with the last session, and the session copies of keys.
    _management: Mutex<Session>,
    /// The last field: Rust drops fields in order, so the count falls to zero only after every session is closed.
    open: Arc<OpenSessions>,
}

/// Counted by [`Arc`]: alive while a connection has sessions.
struct OpenSessions;

/// The first connection to a token, and the ids of the keys found there.
pub(super) struct OpenedPool<L> {
    pub(super) pool: SessionPool<L>,
    /// The engine's keys.
    pub(super) references: KeyReferences,
    pub(super) zone_keys: Vec<ZoneKeyInfo>,
    /// The PVKs and IBM 3624 keys.
    pub(super) verification: Vec<VerificationKeyInfo>,
}

impl<L: LevelKeys> SessionPool<L> {
    /// Logs in and finds the keys.
    pub(super) fn open(config: &Pkcs11, zones: &[ZoneRules]) -> Result<OpenedPool<L>, Pkcs11Error> {
        let (connection, UsableKeys { in_use, references, zone_keys, verification, .. }) =
            Connection::open(config, None, zones)?;
        let state = Mutex::new(ConnectionState::Up(Arc::new(connection)));
        Ok(OpenedPool { pool: Self { config: config.clone(), in_use, state }, references, zone_keys, verification })
    }

    /// The usages and versions of the keys in use.
    pub(super) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Runs `work` with a session that no other thread uses. After a failed call the connection is lost and the next call
    /// reconnects.
    ///
    /// # Errors
    /// [`Error::Unavailable`] while the token is lost, or when a PKCS#11 call fails.
    pub(super) fn call<T>(
        &self,
        mut work: impl FnMut(Calls<'_>, &KeyHandles<L>) -> Result<T, CallError>,
    ) -> Result<T, Error> {
        let connection = self.connected()?;
        connection
            .with_session(|session| work(Calls::new(session, connection.functions.as_deref()), &connection.keys))
            .map_err(|error| {
                self.lost(&connection);
                Error::Unavailable { reason: reason(&error).into() }
            })
    }

    fn connected(&self) -> Result<Arc<Connection<L>>, Error> {
        let pin_refused = Error::Unavailable { reason: UnavailableReason::UserPinRefused };
        let mut state = locked(&self.state);
        let wait = match &*state {
            ConnectionState::Up(connection) => return Ok(Arc::clone(connection)),
            ConnectionState::Refused => return Err(pin_refused),
            ConnectionState::Down { next, .. } if Instant::now() < *next => {
                return Err(Error::Unavailable {
                    reason: "the connection was lost; the next attempt is due shortly".into(),
                });
            }
            // The module may be initialised again only after its sessions are closed and its calls have ended.
            ConnectionState::Down { lost, .. } if lost.strong_count() > 0 => {
                return Err(Error::Unavailable {
                    reason: "the connection was lost and its last calls are ending".into(),
                });
            }
            ConnectionState::Down { wait, .. } => *wait,
        };
        // A module that reaches its token over a socket or network reconnects only in C_Initialize.
        finalize(&self.config.place);
        match Connection::open(&self.config, Some(&self.in_use), &[]) {
            Ok((connection, ..)) => {
                let connection = Arc::new(connection);
                *state = ConnectionState::Up(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) if error.refuses_user_pin() => {
                *state = ConnectionState::Refused;
                Err(pin_refused)
            }
            Err(_) => {
                let (next, wait) = (Instant::now() + wait, (wait * 2).min(RETRY_AFTER_MAX));
                *state = ConnectionState::Down { next, wait, lost: Weak::new() };
                Err(Error::Unavailable { reason: "the connection was lost and a new one failed".into() })
            }
        }
    }

    fn lost(&self, connection: &Arc<Connection<L>>) {
        let mut state = locked(&self.state);
        if matches!(&*state, ConnectionState::Up(current) if Arc::ptr_eq(current, connection)) {
            let lost = Arc::downgrade(&connection.open);
            *state = ConnectionState::Down { next: Instant::now(), wait: RETRY_AFTER_MIN, lost };
        }
    }
}

/// The description that a token gives of itself.
pub(super) struct TokenInfo {
    /// Label, manufacturer, model, serial number, firmware and library, as pairs of name and value.
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) mechanisms: Vec<MechanismType>,
}

/// Logs in with a read-only session, and reads the token's description.
pub(super) fn log_in_to_probe(config: &Pkcs11) -> Result<(Session, Option<Arc<Functions>>, TokenInfo), Pkcs11Error> {
    let (LoadedModule { module, functions }, slot) = find_slot(&config.place)?;
    let library = module.get_library_info().map_err(call_failed("C_GetInfo"))?;
    let mut fields = match module.get_token_info(slot) {
        Ok(info) => vec![
            ("label", info.label().to_owned()),
            ("manufacturer", info.manufacturer_id().to_owned()),
            ("model", info.model().to_owned()),
            ("serial", info.serial_number().to_owned()),
            ("firmware", info.firmware_version().to_string()),
        ],
        Err(error) => vec![("slot", slot.id().to_string()), ("label", format!("can't be read: {error}"))],
    };
    fields.push(("library", format!("{} {}", library.library_description(), library.library_version())));
    let mechanisms = module.get_mechanism_list(slot).map_err(call_failed("C_GetMechanismList"))?;
    let session = module.open_ro_session(slot).map_err(call_failed("C_OpenSession"))?;
    log_in(&module, slot, &session, config)?;
    Ok((session, functions, TokenInfo { fields, mechanisms }))
}

/// Logs in with a read-write session.
pub(super) fn log_in_to_write(config: &Pkcs11) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
    let (LoadedModule { module, functions }, slot) = find_slot(&config.place)?;
    let session = module.open_rw_session(slot).map_err(call_failed("C_OpenSession"))?;
    log_in(&module, slot, &session, config)?;
    Ok((session, functions))
}

/// The slot of a participant's token.
pub(crate) struct TokenSlot {
    loaded: LoadedModule,
    slot: Slot,
}

impl TokenSlot {
    /// Finds the slot, without a login.
    pub(crate) fn find(place: &TokenPlace) -> Result<Self, Pkcs11Error> {
        let (loaded, slot) = find_slot(place)?;
        Ok(Self { loaded, slot })
    }

    /// Logs in to sign.
    ///
    /// # Errors
    /// [`Pkcs11Error::LoggedIn`] where this process has a login already: then the token does not check the PIN, so the PIN
    /// does not show who the participant is.
    pub(super) fn log_in(&self, user_pin: &str) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        self.first_login(self.loaded.module.open_ro_session(self.slot), user_pin)
    }

    /// Logs in to generate a key; see [`Self::log_in`].
    pub(super) fn log_in_to_write(&self, user_pin: &str) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        self.first_login(self.loaded.module.open_rw_session(self.slot), user_pin)
    }

    #[cfg(test)]
    pub(super) fn session_without_login(&self) -> Session {
        self.loaded.module.open_rw_session(self.slot).unwrap()
    }

    fn first_login(
        &self,
        session: Result<Session, CallError>,
        user_pin: &str,
    ) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        let session = session.map_err(call_failed("C_OpenSession"))?;
        log_in_first(&self.loaded.module, self.slot, &session, user_pin)?;
        Ok((session, self.loaded.functions.clone()))
    }
}

/// The audited keys of a level.
pub(super) struct UsableKeys {
    pub(super) found: FoundKeys,
    pub(super) in_use: InUse,
    /// The engine's keys.
    pub(super) references: KeyReferences,
    pub(super) zone_keys: Vec<ZoneKeyInfo>,
    /// The PVKs and IBM 3624 keys.
    pub(super) verification: Vec<VerificationKeyInfo>,
}

/// The active keys that level `host` alone uses, and does not need: the one-way key, PVKs and IBM 3624 keys.
fn host_only_keys(keyring: &Keyring, level: BoundaryLevel) -> Vec<KeyUsage> {
    let mut names = Vec::new();
    for RingKey { info, .. } in keyring.keys.iter().filter(|_| level == BoundaryLevel::Host) {
        let is_used = info.name.verifies() || info.name == KeyUsage::StorageOneWay;
        if is_used && !names.contains(&info.name) {
            names.push(info.name.clone());
        }
    }
    names
}

/// Finds and audits the keys of a level and of zones: of the versions in `in_use`, else of the active versions of the
/// inventory, else of the configured versions and of every version of a zone key in the token.
///
/// # Errors
/// [`Pkcs11Error::Key`], [`Pkcs11Error::Unsafe`], [`Pkcs11Error::Lacks`] or [`Pkcs11Error::Exchanged`] for the first key that
/// can't be used.
pub(super) fn find_keys(
    session: Calls<'_>,
    config: &Pkcs11,
    level: BoundaryLevel,
    in_use: Option<&InUse>,
    zones: &[ZoneRules],
) -> Result<UsableKeys, Pkcs11Error> {
    let inventory = Inventory::read(&session)?;
    let in_use = match (in_use, &inventory) {
        (Some(in_use), _) => in_use.clone(),
        (None, Some(inventory)) => {
            let mut in_use = active_keys(inventory, level)?;
            let zones = zones.iter().map(|zone| KeyUsage::Zone(zone.name.clone()));
            for usage in zones.chain(host_only_keys(&inventory.keyring, level)) {
                in_use.add(&usage, inventory.keyring.active_versions(&usage));
            }
            in_use
        }
        (None, None) => {
            let way = seal_way_by(level, |name| Ok(!versions_of(&session, name)?.is_empty()))?;
            let mut in_use = InUse::configured(config, level, way);
            let zones = zones.iter().map(|zone| KeyUsage::Zone(zone.name.clone()));
            for usage in zones {
                in_use.add(&usage, versions_of(&session, &usage)?.into_iter().map(|(version, _)| version));
            }
            if level == BoundaryLevel::Host {
                // The configured versions, as of the other storage keys; a token may have no such key.
                let (one_way, configured) =
                    (KeyUsage::StorageOneWay, configured_versions(config, &KeyUsage::StorageOneWay));
                let found = versions_of(&session, &one_way)?.into_iter().map(|(version, _)| version);
                in_use.add(&one_way, found.filter(|version| configured.contains(version)));
            }
            in_use
        }
    };
    let keyring = inventory.as_ref().map(|inventory| &inventory.keyring);
    let found = FoundKeys::find(&session, &in_use, level, keyring)?;
    found.audit(&session, keyring)?;
    let mut references = found.references(session).map_err(call_failed("KCV"))?;
    if let Some(exchanged) = inventory.as_ref().and_then(|inventory| exchanged(inventory, &references)) {
        return Err(Pkcs11Error::Exchanged { key: exchanged });
    }
    let zone_keys = found.zone_keys(&references, keyring);
    let verification = found.verification_keys(keyring);
    references.retain(|key| key.usage.is_an_engines());
    let found = match config.key_handling {
        KeyHandling::InToken => found,
        KeyHandling::CopiedToSession => {
            let copies = found.copied_to_session(&session).map_err(call_failed("C_CopyObject"))?;
            copies.audit(&session, keyring)?;
            copies
        }
    };
    Ok(UsableKeys { found, in_use, references, zone_keys, verification })
}

/// The seal way of the keys that exist: wrapping, unless level `host` has only the encrypting key.
fn seal_way_by(
    level: BoundaryLevel,
    is_there: impl Fn(&KeyUsage) -> Result<bool, Pkcs11Error>,
) -> Result<SealWay, Pkcs11Error> {
    Ok(match level {
        BoundaryLevel::Host if !is_there(&KeyUsage::Seal)? && is_there(&KeyUsage::SealEncrypting)? => SealWay::Encrypt,
        _ => SealWay::Wrap,
    })
}

fn active_keys(inventory: &Inventory, level: BoundaryLevel) -> Result<InUse, Pkcs11Error> {
    let active = |name: &KeyUsage| inventory.keyring.active_versions(name);
    let way = seal_way_by(level, |name| Ok(!active(name).is_empty()))?;
    let mut in_use = Vec::new();
    for name in engine_keys(level, way) {
        let mut versions = active(&name);
        if !name.rotates() {
            // Values under an older version would not open, so such a usage has one active version.
            versions = versions.split_off(versions.len().saturating_sub(1));
        }
        if versions.is_empty() {
            return Err(Pkcs11Error::Lacks { key: name.to_string() });
        }
        in_use.extend(versions.into_iter().map(|version| (name.clone(), version)));
    }
    Ok(InUse(in_use))
}

/// The first key whose KCV differs from the inventory.
fn exchanged(inventory: &Inventory, references: &KeyReferences) -> Option<String> {
    let other = |info: &KeyInfo| {
        let found = references.iter().find(|found| found.reference() == info.reference())?;
        (found.kcv? != info.check_value?).then(|| info.reference())
    };
    inventory.keyring.keys.iter().find_map(|key| other(&key.info))
}

impl<L: LevelKeys> Connection<L> {
    fn open(config: &Pkcs11, in_use: Option<&InUse>, zones: &[ZoneRules]) -> Result<(Self, UsableKeys), Pkcs11Error> {
        let (LoadedModule { module, functions }, slot) = find_slot(&config.place)?;
        let management = module.open_ro_session(slot).map_err(call_failed("C_OpenSession"))?;
        log_in(&module, slot, &management, config)?;
        let calls = Calls::new(&management, functions.as_deref());
        let usable = find_keys(calls, config, L::LEVEL, in_use, zones)?;
        let keys = usable.found.handles()?;
        let (idle, _management, open) = (Mutex::default(), Mutex::new(management), Arc::new(OpenSessions));
        let connection = Self { module, functions, slot, keys, idle, _management, open };
        Ok((connection, usable))
    }

    /// Runs `work` with an idle or a new session. The session returns to the pool only where `work` succeeds.
    fn with_session<T>(&self, work: impl FnOnce(&Session) -> Result<T, CallError>) -> Result<T, CallError> {
        let idle = locked(&self.idle).pop();
        let session = match idle {
            Some(session) => session,
            None => self.module.open_ro_session(self.slot)?,
        };
        let done = work(&session)?;
        locked(&self.idle).push(session);
        Ok(done)
    }
}

/// A PKCS#11 module: as cryptoki's type, and its C functions.
#[derive(Clone)]
struct LoadedModule {
    module: Module,
    functions: Option<Arc<Functions>>,
}

/// The modules of this process, by path. Some libraries fail when they are loaded twice.
static MODULES: OnceLock<Mutex<HashMap<PathBuf, LoadedModule>>> = OnceLock::new();

/// Calls C_Finalize, so that the module can be initialised again. The caller has no session and no call in progress.
fn finalize(place: &TokenPlace) {
    let modules = locked(MODULES.get_or_init(Mutex::default));
    if let Some(loaded) = modules.get(&place.module) {
        // Where this fails, C_Initialize answers CKR_CRYPTOKI_ALREADY_INITIALIZED, which `load` accepts.
        let _ = loaded.module.clone().finalize();
    }
}

/// Loads and initialises the module of a token.
fn load(place: &TokenPlace) -> Result<LoadedModule, Pkcs11Error> {
    let path = &place.module;
    let failed = |error: CallError| Pkcs11Error::Module { path: path.to_owned(), reason: error.to_string() };
    let mut modules = locked(MODULES.get_or_init(Mutex::default));
    let mut loaded = match modules.get(path) {
        Some(loaded) => loaded.clone(),
        None => {
            let module = Module::new(path.as_path()).map_err(failed)?;
            LoadedModule { module, functions: Functions::load(path).map_err(failed)?.map(Arc::new) }
        }
    };
    // Also for a module that other code in the process has finalised.
    match initialize(&loaded.module, place.module_parameters.as_deref()) {
        Ok(()) | Err(CallError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(failed(error)),
    }
    loaded.functions = loaded.functions.filter(|functions| functions.are_initialised());
    modules.insert(path.to_owned(), loaded.clone());
    Ok(loaded)
}

fn find_slot(place: &TokenPlace) -> Result<(LoadedModule, Slot), Pkcs11Error> {
    let loaded = load(place)?;
    let module = &loaded.module;
    let slots = module.get_slots_with_token().map_err(call_failed("C_GetSlotList"))?;
    let (mut matching, mut present) = (Vec::new(), Vec::new());
    for slot in slots {
        // cryptoki rejects the token information of openCryptoki 3.8: its time field does not follow PKCS#11.
        let info = module.get_token_info(slot).ok();
        let found = match &place.slot {
            SlotName::Label(label) => info.as_ref().is_some_and(|info| info.label() == label),
            SlotName::Serial(serial) => info.as_ref().is_some_and(|info| info.serial_number() == serial),
            SlotName::Number(number) => slot.id() == *number,
        };
        if found {
            matching.push(slot);
        }
        match info {
            Some(info) if info.token_initialized() => {
                present.push(format!("{:?} (serial {:?})", info.label(), info.serial_number()));
            }
            Some(_) => {}
            None => present.push(format!("slot {} (its label can't be read)", slot.id())),
        }
    }
    match matching[..] {
        [slot] => Ok((loaded, slot)),
        _ => Err(Pkcs11Error::Slot {
            slot: place.slot.to_string(),
            found: matching.len(),
            present: if present.is_empty() { "none: no token is initialised".into() } else { present.join(", ") },
        }),
    }
}

/// Logs in. Accepts an earlier login of this process.
fn log_in(module: &Module, slot: Slot, session: &Session, config: &Pkcs11) -> Result<(), Pkcs11Error> {
    match log_in_first(module, slot, session, &config.user_pin) {
        Err(Pkcs11Error::LoggedIn) => Ok(()),
        done => done,
    }
}

/// Tries the user PIN once, and not where the try could be the last: repeated logins with a wrong PIN would lock the token.
fn log_in_first(module: &Module, slot: Slot, session: &Session, user_pin: &str) -> Result<(), Pkcs11Error> {
    if let Ok(info) = module.get_token_info(slot) {
        if info.user_pin_locked() {
            return Err(Pkcs11Error::Locked);
        }
        if info.user_pin_final_try() {
            return Err(Pkcs11Error::LastTry);
        }
    }
    let pin = AuthPin::from(user_pin);
    match session.login(UserType::User, Some(&pin)) {
        Ok(()) => Ok(()),
        Err(CallError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Err(Pkcs11Error::LoggedIn),
        Err(CallError::Pkcs11(
            RvError::PinIncorrect | RvError::PinLenRange | RvError::PinInvalid | RvError::PinTooWeak,
            _,
        )) => Err(Pkcs11Error::WrongPin),
        Err(CallError::Pkcs11(RvError::PinLocked, _)) => Err(Pkcs11Error::Locked),
        Err(CallError::Pkcs11(RvError::PinExpired, _)) => Err(Pkcs11Error::Expired),
        Err(CallError::Pkcs11(RvError::UserPinNotInitialized, _)) => Err(Pkcs11Error::NoUserPin),
        Err(error) => Err(call_failed("C_Login")(error)),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use cryptoki::session::SessionState;

    use super::*;
    use crate::{
        fresh_token::{Make, fresh_token},
        token::pkcs11::{keys::HostKeys, make_keys},
    };

    #[test]
    fn a_lost_connection_counts_until_its_last_session_is_closed() {
        fresh_token!([Make::SoftHsm]);
        let config = Make::SoftHsm.config();
        make_keys(&config, BoundaryLevel::Host).unwrap();
        for _ in 0..20 {
            let (connection, ..) = Connection::<HostKeys>::open(&config, None, &[]).unwrap();
            let (module, slot) = (connection.module.clone(), connection.slot);
            let many = (0..200).map(|_| module.open_ro_session(slot).unwrap());
            locked(&connection.idle).extend(many);
            let lost = Arc::downgrade(&connection.open);
            let closing = thread::spawn(move || drop(connection));
            while lost.strong_count() > 0 {
                thread::yield_now();
            }
            // The login ends with the last session.
            let state = module.open_ro_session(slot).unwrap().get_session_info().unwrap().session_state();
            assert!(matches!(state, SessionState::RoPublic));
            closing.join().unwrap();
        }
    }
}
