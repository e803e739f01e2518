//! The link to a token: the module once a process, a login that one session keeps, a pool of sessions for the workers,
//! and the way back when any of it is lost.

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
    keys::{FoundKeys, InUse, KeyHandles, KeyReferences, LevelKeys, SealWay, engine_keys, versions_of},
};
use crate::{
    binding::BoundaryLevel,
    config::{KeyHandling, Pkcs11, SlotName, TokenPlace},
    error::{Error, UnavailableReason},
    keyring::{KeyInfo, KeyUsage},
    open_error::Pkcs11Error,
};

/// How soon a lost token is looked for again, at first.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
/// How late, at most.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(2);

/// A token as configured, connected or lost; with the storage keys of one level.
pub(super) struct SessionPool<L> {
    config: Pkcs11,
    /// As they were when it was opened: one that was lost comes back with the same.
    in_use: InUse,
    state: Mutex<State<L>>,
}

enum State<L> {
    Up(Arc<Connection<L>>),
    Down {
        next: Instant,
        wait: Duration,
        /// Of the connection that was lost, while calls of it have yet to end and sessions to be closed.
        lost: Weak<Open>,
    },
    /// The token refused the PIN: asking again could lock it.
    Refused,
}

/// A login and its sessions.
struct Connection<L> {
    module: Module,
    functions: Option<Arc<Functions>>,
    slot: Slot,
    keys: KeyHandles<L>,
    idle: Mutex<Vec<Session>>,
    /// Keeps the login, which ends with the last session, and copies of keys where there are any.
    _management: Mutex<Session>,
    /// The last field, so that it goes when the sessions are closed. The pool's own handle is not counted before that.
    open: Arc<Open>,
}

/// There while a connection has sessions.
struct Open;

impl<L: LevelKeys> SessionPool<L> {
    /// Logs in and finds the keys.
    pub(super) fn open(config: &Pkcs11) -> Result<(Self, KeyReferences), Pkcs11Error> {
        let (connection, in_use, references) = Connection::open(config, None)?;
        let state = Mutex::new(State::Up(Arc::new(connection)));
        Ok((Self { config: config.clone(), in_use, state }, references))
    }

    /// Which versions of which keys are used.
    pub(super) fn in_use(&self) -> &InUse {
        &self.in_use
    }

    /// Lets `work` use a session of its own. A call that fails loses the connection: the next one looks for the token.
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
        let refused = Error::Unavailable { reason: UnavailableReason::UserPinRefused };
        let mut state = locked(&self.state);
        let wait = match &*state {
            State::Up(connection) => return Ok(Arc::clone(connection)),
            State::Refused => return Err(refused),
            State::Down { next, .. } if Instant::now() < *next => {
                return Err(Error::Unavailable { reason: "it was lost and is looked for again shortly".into() });
            }
            // Its sessions must be closed, and no call under way, before the module may be initialised again.
            State::Down { lost, .. } if lost.strong_count() > 0 => {
                return Err(Error::Unavailable { reason: "it was lost and its last calls are ending".into() });
            }
            State::Down { wait, .. } => *wait,
        };
        // A module that speaks to its token over a socket, or a network, finds it again by this alone.
        finalize(&self.config.place);
        match Connection::open(&self.config, Some(&self.in_use)) {
            Ok((connection, ..)) => {
                let connection = Arc::new(connection);
                *state = State::Up(Arc::clone(&connection));
                Ok(connection)
            }
            Err(error) if error.refuses_user_pin() => {
                *state = State::Refused;
                Err(refused)
            }
            Err(_) => {
                let (next, wait) = (Instant::now() + wait, (wait * 2).min(RETRY_AFTER_MAX));
                *state = State::Down { next, wait, lost: Weak::new() };
                Err(Error::Unavailable { reason: "it was lost and can't be opened again yet".into() })
            }
        }
    }

    fn lost(&self, connection: &Arc<Connection<L>>) {
        let mut state = locked(&self.state);
        if matches!(&*state, State::Up(current) if Arc::ptr_eq(current, connection)) {
            let lost = Arc::downgrade(&connection.open);
            *state = State::Down { next: Instant::now(), wait: RETRY_AFTER_MIN, lost };
        }
    }
}

/// A token's own words.
pub(super) struct Words {
    pub(super) words: Vec<(&'static str, String)>,
    pub(super) mechanisms: Vec<MechanismType>,
}

/// Logs in to look at a token.
pub(super) fn look(config: &Pkcs11) -> Result<(Session, Option<Arc<Functions>>, Words), Pkcs11Error> {
    let (Loaded { module, functions }, slot) = find_slot(&config.place)?;
    let library = module.get_library_info().map_err(call_failed("C_GetInfo"))?;
    let mut words = match module.get_token_info(slot) {
        Ok(info) => vec![
            ("label", info.label().to_owned()),
            ("manufacturer", info.manufacturer_id().to_owned()),
            ("model", info.model().to_owned()),
            ("serial", info.serial_number().to_owned()),
            ("firmware", info.firmware_version().to_string()),
        ],
        Err(error) => vec![("slot", slot.id().to_string()), ("label", format!("can't be read: {error}"))],
    };
    words.push(("library", format!("{} {}", library.library_description(), library.library_version())));
    let mechanisms = module.get_mechanism_list(slot).map_err(call_failed("C_GetMechanismList"))?;
    let session = module.open_ro_session(slot).map_err(call_failed("C_OpenSession"))?;
    log_in(&module, slot, &session, config)?;
    Ok((session, functions, Words { words, mechanisms }))
}

/// Logs in to make keys.
pub(super) fn look_to_write(config: &Pkcs11) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
    let (Loaded { module, functions }, slot) = find_slot(&config.place)?;
    let session = module.open_rw_session(slot).map_err(call_failed("C_OpenSession"))?;
    log_in(&module, slot, &session, config)?;
    Ok((session, functions))
}

/// A token that is one person's, found.
pub(crate) struct TokenSlot {
    loaded: Loaded,
    slot: Slot,
}

impl TokenSlot {
    /// Finds it; nobody is logged in to it yet.
    pub(crate) fn find(place: &TokenPlace) -> Result<Self, Pkcs11Error> {
        let (loaded, slot) = find_slot(place)?;
        Ok(Self { loaded, slot })
    }

    /// Logs in to sign. Refused where this process is logged in: of a PIN that was not tried nobody knows whose it is.
    pub(super) fn log_in(&self, user_pin: &str) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        self.logged_in(self.loaded.module.open_ro_session(self.slot), user_pin)
    }

    /// The same, to make a key.
    pub(super) fn log_in_to_write(&self, user_pin: &str) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        self.logged_in(self.loaded.module.open_rw_session(self.slot), user_pin)
    }

    /// A session of somebody without a PIN.
    #[cfg(test)]
    pub(super) fn of_a_stranger(&self) -> Session {
        self.loaded.module.open_rw_session(self.slot).unwrap()
    }

    fn logged_in(
        &self,
        session: Result<Session, CallError>,
        user_pin: &str,
    ) -> Result<(Session, Option<Arc<Functions>>), Pkcs11Error> {
        let session = session.map_err(call_failed("C_OpenSession"))?;
        log_in_first(&self.loaded.module, self.slot, &session, user_pin)?;
        Ok((session, self.loaded.functions.clone()))
    }
}

/// The keys of a level as they are to be used, none of them unsafe.
pub(super) struct UsableKeys {
    pub(super) found: FoundKeys,
    pub(super) in_use: InUse,
    pub(super) references: KeyReferences,
}

/// Finds them: of the versions that are given, else of those that the register says are in use, else of the configured
/// one.
pub(super) fn find_keys(
    session: Calls<'_>,
    config: &Pkcs11,
    level: BoundaryLevel,
    in_use: Option<&InUse>,
) -> Result<UsableKeys, Pkcs11Error> {
    let register = Inventory::read(&session)?;
    let in_use = match (in_use, &register) {
        (Some(in_use), _) => in_use.clone(),
        (None, Some(register)) => in_use_by_register(register, level)?,
        (None, None) => {
            let way = seal_way_where(level, |name| Ok(!versions_of(&session, name)?.is_empty()))?;
            InUse::of_config(config, level, way)
        }
    };
    let found = FoundKeys::find(&session, &in_use, level)?;
    found.audit(&session)?;
    let references = found.references(session).map_err(call_failed("check values"))?;
    if let Some(exchanged) = register.and_then(|register| exchanged(&register, &references)) {
        return Err(Pkcs11Error::Exchanged { key: exchanged });
    }
    let found = match config.key_handling {
        KeyHandling::InToken => found,
        KeyHandling::CopiedToSession => {
            let copies = found.copied_to_session(&session).map_err(call_failed("C_CopyObject"))?;
            copies.audit(&session)?;
            copies
        }
    };
    Ok(UsableKeys { found, in_use, references })
}

/// A tzpk is sealed by wrapping, unless there is only the other key.
fn seal_way_where(
    level: BoundaryLevel,
    is_there: impl Fn(&KeyUsage) -> Result<bool, Pkcs11Error>,
) -> Result<SealWay, Pkcs11Error> {
    Ok(match level {
        BoundaryLevel::Host if !is_there(&KeyUsage::Seal)? && is_there(&KeyUsage::SealEncrypting)? => SealWay::Encrypt,
        _ => SealWay::Wrap,
    })
}

fn in_use_by_register(register: &Inventory, level: BoundaryLevel) -> Result<InUse, Pkcs11Error> {
    let active = |name: &KeyUsage| register.keyring.active_versions(name);
    let way = seal_way_where(level, |name| Ok(!active(name).is_empty()))?;
    let mut in_use = Vec::new();
    for name in engine_keys(level, way) {
        let mut versions = active(&name);
        if !name.rotates() {
            // A newer one is not used for what the older made: there is one.
            versions = versions.split_off(versions.len().saturating_sub(1));
        }
        if versions.is_empty() {
            return Err(Pkcs11Error::Lacks { key: name.to_string() });
        }
        in_use.extend(versions.into_iter().map(|version| (name.clone(), version)));
    }
    Ok(InUse(in_use))
}

/// The first key whose check value is another than the register says.
fn exchanged(register: &Inventory, references: &KeyReferences) -> Option<String> {
    let other = |info: &KeyInfo| {
        let found = references.iter().find(|found| found.reference() == info.reference())?;
        (found.kcv? != info.check_value?).then(|| info.reference())
    };
    register.keyring.keys.iter().find_map(|key| other(&key.info))
}

impl<L: LevelKeys> Connection<L> {
    fn open(config: &Pkcs11, in_use: Option<&InUse>) -> Result<(Self, InUse, KeyReferences), Pkcs11Error> {
        let (Loaded { module, functions }, slot) = find_slot(&config.place)?;
        let management = module.open_ro_session(slot).map_err(call_failed("C_OpenSession"))?;
        log_in(&module, slot, &management, config)?;
        let calls = Calls::new(&management, functions.as_deref());
        let UsableKeys { found, in_use, references } = find_keys(calls, config, L::LEVEL, in_use)?;
        let keys = found.handles()?;
        let (idle, _management, open) = (Mutex::default(), Mutex::new(management), Arc::new(Open));
        let connection = Self { module, functions, slot, keys, idle, _management, open };
        Ok((connection, in_use, references))
    }

    /// A session is kept for the next one only where the work succeeded.
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

/// A module, as cryptoki calls it and as C.
#[derive(Clone)]
struct Loaded {
    module: Module,
    functions: Option<Arc<Functions>>,
}

/// The modules, each loaded once a process: a second copy of the same library is undefined in some.
static MODULES: OnceLock<Mutex<HashMap<PathBuf, Loaded>>> = OnceLock::new();

/// Ends a module, to be initialised again. The caller has no session with it, and no call under way.
fn finalize(place: &TokenPlace) {
    let modules = locked(MODULES.get_or_init(Mutex::default));
    if let Some(loaded) = modules.get(&place.module) {
        // One that refuses is initialised still, and will say so.
        let _ = loaded.module.clone().finalize();
    }
}

/// The module of a token, loaded and initialised.
fn load(place: &TokenPlace) -> Result<Loaded, Pkcs11Error> {
    let path = &place.module;
    let failed = |error: CallError| Pkcs11Error::Module { path: path.to_owned(), reason: error.to_string() };
    let mut modules = locked(MODULES.get_or_init(Mutex::default));
    let mut loaded = match modules.get(path) {
        Some(loaded) => loaded.clone(),
        None => {
            let module = Module::new(path.as_path()).map_err(failed)?;
            Loaded { module, functions: Functions::of(path).map_err(failed)?.map(Arc::new) }
        }
    };
    // Again for one that was finalised behind our back; the others say that they are initialised already.
    match initialize(&loaded.module, place.module_parameters.as_deref()) {
        Ok(()) | Err(CallError::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => {}
        Err(error) => return Err(failed(error)),
    }
    loaded.functions = loaded.functions.filter(|functions| functions.are_initialised());
    modules.insert(path.to_owned(), loaded.clone());
    Ok(loaded)
}

fn find_slot(place: &TokenPlace) -> Result<(Loaded, Slot), Pkcs11Error> {
    let loaded = load(place)?;
    let module = &loaded.module;
    let slots = module.get_slots_with_token().map_err(call_failed("C_GetSlotList"))?;
    let (mut matching, mut present) = (Vec::new(), Vec::new());
    for slot in slots {
        // Of openCryptoki 3.8 the words can't be read: its clock does not keep to PKCS#11.
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

/// Logs in, where this process may be logged in already.
fn log_in(module: &Module, slot: Slot, session: &Session, config: &Pkcs11) -> Result<(), Pkcs11Error> {
    match log_in_first(module, slot, session, &config.user_pin) {
        Err(Pkcs11Error::LoggedIn) => Ok(()),
        done => done,
    }
}

/// One try, and none where it could be the last: a wrong PIN must not lock a token by being tried again and again.
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
        fresh_token::Make,
        token::pkcs11::{keys::HostKeys, make_keys},
    };

    #[test]
    fn a_lost_connection_counts_until_its_last_session_is_closed() {
        if Make::here().is_none() {
            return Make::SoftHsm.runs("a_lost_connection_counts_until_its_last_session_is_closed");
        }
        let config = Make::SoftHsm.config();
        make_keys(&config, BoundaryLevel::Host).unwrap();
        for _ in 0..20 {
            let (connection, ..) = Connection::<HostKeys>::open(&config, None).unwrap();
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
