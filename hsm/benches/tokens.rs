//! The speed of the boundary on a PKCS#11 token, as a ratio: blocks translated by the API, against a loop of the same C calls
//! on as many threads in the same run. The ratio shows the cost of the API: queue, threads and layouts.
//!
//! `cargo bench -p pinseal-hsm --bench tokens`

#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    missing_docs,
    reason = "a benchmark stops at an unexpected result, and calls the C functions directly"
)]

use std::{
    ffi::CString,
    path::Path,
    process::Command,
    ptr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    rsa::{KeySize, PrivateDecryptingKey},
};
use cryptoki_sys::*;
use futures_util::{StreamExt, stream::FuturesUnordered};
use hsm::{
    Account, Binding, BoundaryLevel, Callers, CardBinding, Config, ControlBinding, DeviceKey, EncryptedBlock, Hsm,
    KeyHandling, Keys, Pkcs11, Purpose, Reply, Request, SealedKey, SlotName, Source, Target, TokenPlace, Wanted,
};
use libloading::Library;

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
const NSS: &str = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so";
const CONTROL: ControlBinding =
    ControlBinding { id: [7; 16], purpose: Purpose::SetPin, expires_at_unix_milliseconds: 1_790_000_000_000 };
/// The time of one measurement of one side.
const MEASURED_FOR: Duration = Duration::from_secs(2);
const ROUNDS: usize = 5;
const THREADS: usize = 2;
/// Operations in work at any time, for each calling thread.
const IN_FLIGHT: usize = 128;

fn main() {
    let directory = tempfile::tempdir().unwrap();
    // SAFETY: no other thread runs yet.
    unsafe { std::env::set_var("SOFTHSM2_CONF", directory.path().join("softhsm2.conf")) };
    for token in [softhsm(directory.path()), nss(directory.path())] {
        measure(token);
    }
}

fn softhsm(directory: &Path) -> Pkcs11 {
    let tokens = directory.join("tokens");
    std::fs::create_dir(&tokens).unwrap();
    let configuration = format!("directories.tokendir = {}\n", tokens.display());
    std::fs::write(directory.join("softhsm2.conf"), configuration).unwrap();
    let initialise = ["--init-token", "--free", "--label", "bench", "--pin", "2468", "--so-pin", "13579"];
    run(Command::new("softhsm2-util").args(initialise));
    token(SOFTHSM, None, KeyHandling::InToken, Callers::Workers)
}

fn nss(directory: &Path) -> Pkcs11 {
    let database = directory.join("nss");
    std::fs::create_dir(&database).unwrap();
    std::fs::write(directory.join("pin"), "2468").unwrap();
    let place = format!("sql:{}", database.display());
    run(Command::new("certutil").args(["-N", "-d", &place, "-f"]).arg(directory.join("pin")));
    let parameters = format!("configdir='{place}' dbTokenDescription='bench'");
    token(NSS, Some(CString::new(parameters).unwrap()), KeyHandling::CopiedToSession, Callers::Inline)
}

fn run(command: &mut Command) {
    let output = command.output().expect("apt-get install softhsm2 libnss3-tools");
    assert!(output.status.success(), "{output:?}");
}

fn token(module: &str, module_parameters: Option<CString>, key_handling: KeyHandling, callers: Callers) -> Pkcs11 {
    Pkcs11 {
        place: TokenPlace { module: module.into(), module_parameters, slot: SlotName::Label("bench".into()) },
        user_pin: "2468".to_owned().into(),
        key_version: 1,
        storage_key_versions: Vec::new(),
        key_handling,
        callers,
        sessions: THREADS,
        waiting_operations_max: 4_096,
        tdes_count: None,
    }
}

fn measure(token: Pkcs11) {
    let module = token.place.module.clone();
    Hsm::make_token_keys(&token, &Wanted::default()).unwrap();
    let copied = token.key_handling == KeyHandling::CopiedToSession;
    let hsm = Hsm::open(Config { keys: Keys::Pkcs11(token), ..Config::default() }).unwrap();
    let level = hsm.status().level();
    let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
    let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
    let device = DeviceKey::parse(der.as_ref()).unwrap();
    let bare = Bare::open(&module, copied, level);

    let (mut api, mut calls) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        calls.push(on_threads(|stop, done| bare.work(stop, done)));
        api.push(on_threads(|stop, done| futures_executor::block_on(translate(&hsm, &device, stop, done))));
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    };
    let (api, calls) = (median(&mut api), median(&mut calls));
    println!(
        "{}, level {level}: api {api:.0} translations/s, bare C calls {calls:.0}/s, {THREADS} threads: ratio {:.2}",
        module.display(),
        api / calls
    );
}

fn on_threads(work: impl Fn(&AtomicBool, &AtomicU64) + Sync) -> f64 {
    let (stop, done) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| work(&stop, &done));
        }
        thread::sleep(MEASURED_FOR);
        stop.store(true, Ordering::Relaxed);
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

async fn translate(hsm: &Hsm, device: &DeviceKey, stop: &AtomicBool, done: &AtomicU64) {
    let card = CardBinding::new("bank", "1000200030").unwrap();
    let binding = Binding { card, control: CONTROL };
    let Ok(Reply::Tzpk(issued)) = hsm.execute(Request::IssueTzpk { public_key: device.clone(), binding }).await else {
        panic!("no tzpk");
    };
    // A malformed block costs the same work at level host as an accepted one.
    let block = EncryptedBlock::from_bytes(&[7; 8]).unwrap();
    let one = || async {
        let sealed_tzpk = SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap();
        let source = Source::Device { sealed_tzpk, control: CONTROL, block };
        let request = Request::Translate { source, target: Target::Record, card, account: Account::PlasticId };
        drop(hsm.execute(request).await);
    };
    let mut in_flight: FuturesUnordered<_> = (0..IN_FLIGHT).map(|_| one()).collect();
    while in_flight.next().await.is_some() {
        done.fetch_add(1, Ordering::Relaxed);
        if !stop.load(Ordering::Relaxed) {
            in_flight.push(one());
        }
    }
}

/// The same module, called through its C functions.
struct Bare {
    functions: CK_FUNCTION_LIST,
    _library: Library,
    slot: CK_SLOT_ID,
    level: BoundaryLevel,
    seal: CK_OBJECT_HANDLE,
    mac: CK_OBJECT_HANDLE,
    storage: CK_OBJECT_HANDLE,
    /// Open as long as the objects are used: a session owns its objects.
    _session: CK_SESSION_HANDLE,
    wrapped_tzpk: [u8; 24],
}

// SAFETY: handles are numbers; each thread opens another session.
unsafe impl Sync for Bare {}

macro_rules! call {
    ($bare:expr, $name:ident($($argument:expr),*)) => {{
        // SAFETY: every pointer is to a local that outlives the call, every length is that of its buffer.
        let answer = unsafe { $bare.functions.$name.unwrap()($($argument),*) };
        assert_eq!(answer, CKR_OK, stringify!($name));
    }};
}

fn mechanism(kind: CK_MECHANISM_TYPE) -> CK_MECHANISM {
    CK_MECHANISM { mechanism: kind, pParameter: ptr::null_mut(), ulParameterLen: 0 }
}

/// An attribute with the bytes of a value.
fn attribute<T>(kind: CK_ATTRIBUTE_TYPE, value: &T) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_: kind, pValue: ptr::from_ref(value) as *mut _, ulValueLen: size_of::<T>() as CK_ULONG }
}

fn text(kind: CK_ATTRIBUTE_TYPE, value: &str) -> CK_ATTRIBUTE {
    CK_ATTRIBUTE { type_: kind, pValue: value.as_ptr() as *mut _, ulValueLen: value.len() as CK_ULONG }
}

impl Bare {
    fn open(module: &Path, copied: bool, level: BoundaryLevel) -> Self {
        // SAFETY: the module is loaded already, and its initialiser has run.
        let library = unsafe { Library::new(module) }.unwrap();
        let mut list = ptr::null_mut();
        // SAFETY: every PKCS#11 module exports this symbol with this type (PKCS#11 3.0, C_GetFunctionList).
        let functions = unsafe {
            let get = library
                .get::<unsafe extern "C" fn(*mut *mut CK_FUNCTION_LIST) -> CK_RV>(b"C_GetFunctionList\0")
                .unwrap();
            assert_eq!(get(&mut list), CKR_OK);
            *list
        };
        let mut bare = Self {
            functions,
            _library: library,
            slot: 0,
            level,
            seal: 0,
            mac: 0,
            storage: 0,
            _session: 0,
            wrapped_tzpk: [0; 24],
        };
        let (mut slots, mut count) = ([0; 16], 16);
        call!(bare, C_GetSlotList(CK_TRUE, slots.as_mut_ptr(), &mut count));
        let labelled = |slot: &&CK_SLOT_ID| {
            let mut info = CK_TOKEN_INFO::default();
            call!(bare, C_GetTokenInfo(**slot, &mut info));
            info.label.starts_with(b"bench ")
        };
        bare.slot = *slots[..count as usize].iter().find(labelled).unwrap();
        let session = bare.session();
        bare._session = session;
        let storage = if level == BoundaryLevel::Host { "pinseal storage" } else { "pinseal storage-wrapped" };
        bare.seal = bare.key(session, "pinseal seal", copied);
        bare.mac = bare.key(session, "pinseal mac", copied);
        bare.storage = bare.key(session, storage, copied);
        bare.wrapped_tzpk = bare.make_tzpk(session);
        bare
    }

    fn session(&self) -> CK_SESSION_HANDLE {
        let mut session = 0;
        call!(self, C_OpenSession(self.slot, CKF_SERIAL_SESSION, ptr::null_mut(), None, &mut session));
        session
    }

    fn key(&self, session: CK_SESSION_HANDLE, label: &str, copied: bool) -> CK_OBJECT_HANDLE {
        let on_token = if copied { CK_FALSE } else { CK_TRUE };
        let mut template = [text(CKA_LABEL, label), attribute(CKA_TOKEN, &on_token)];
        let (mut key, mut count) = (0, 0);
        call!(self, C_FindObjectsInit(session, template.as_mut_ptr(), 2));
        call!(self, C_FindObjects(session, &mut key, 1, &mut count));
        call!(self, C_FindObjectsFinal(session));
        assert_eq!(count, 1, "{label}");
        key
    }

    fn make_tzpk(&self, session: CK_SESSION_HANDLE) -> [u8; 24] {
        let mut template =
            [attribute(CKA_TOKEN, &CK_FALSE), attribute(CKA_SENSITIVE, &CK_TRUE), attribute(CKA_EXTRACTABLE, &CK_TRUE)];
        let (mut key, mut wrapped, mut length) = (0, [0; 64], 64);
        call!(self, C_GenerateKey(session, &mut mechanism(CKM_DES2_KEY_GEN), template.as_mut_ptr(), 3, &mut key));
        let mut key_wrap = mechanism(CKM_AES_KEY_WRAP);
        call!(self, C_WrapKey(session, &mut key_wrap, self.seal, key, wrapped.as_mut_ptr(), &mut length));
        wrapped[..24].try_into().unwrap()
    }

    fn work(&self, stop: &AtomicBool, done: &AtomicU64) {
        let session = self.session();
        while !stop.load(Ordering::Relaxed) {
            match self.level {
                BoundaryLevel::Host => self.translate_at_host(session),
                BoundaryLevel::Token => self.translate_at_token(session),
            }
            done.fetch_add(1, Ordering::Relaxed);
        }
        call!(self, C_CloseSession(session));
    }

    fn translate_at_host(&self, session: CK_SESSION_HANDLE) {
        self.sign(session, 130);
        let tzpk = self.unwrap_tzpk(session, CKA_DECRYPT);
        let (mut block, mut length) = ([7; 8], 8);
        call!(self, C_DecryptInit(session, &mut mechanism(CKM_DES3_ECB), tzpk));
        call!(self, C_Decrypt(session, [7; 8].as_mut_ptr(), 8, block.as_mut_ptr(), &mut length));
        call!(self, C_DestroyObject(session, tzpk));
        self.random(session, 8);
        for _ in 0..2 {
            let (mut wide, mut length) = ([7; 16], 16);
            call!(self, C_EncryptInit(session, &mut mechanism(CKM_AES_ECB), self.storage));
            call!(self, C_Encrypt(session, [7; 16].as_mut_ptr(), 16, wide.as_mut_ptr(), &mut length));
        }
        self.sign(session, 50);
        self.sign(session, 28);
    }

    fn translate_at_token(&self, session: CK_SESSION_HANDLE) {
        self.sign(session, 130);
        self.random(session, 16);
        let tzpk = self.unwrap_tzpk(session, CKA_UNWRAP);
        let (class, kind) = (CKO_SECRET_KEY, CKK_GENERIC_SECRET);
        let mut template = [
            attribute(CKA_CLASS, &class),
            attribute(CKA_KEY_TYPE, &kind),
            attribute(CKA_TOKEN, &CK_FALSE),
            attribute(CKA_PRIVATE, &CK_TRUE),
            attribute(CKA_SENSITIVE, &CK_TRUE),
            attribute(CKA_EXTRACTABLE, &CK_TRUE),
            attribute(CKA_DERIVE, &CK_FALSE),
            attribute(CKA_SIGN, &CK_FALSE),
            attribute(CKA_ENCRYPT, &CK_FALSE),
            attribute(CKA_DECRYPT, &CK_FALSE),
        ];
        let (mut block, mut ecb) = (0, mechanism(CKM_DES3_ECB));
        let encrypted = [7; 8].as_mut_ptr();
        call!(self, C_UnwrapKey(session, &mut ecb, tzpk, encrypted, 8, template.as_mut_ptr(), 10, &mut block));

        let (kind, length) = (CKK_AES, 32 as CK_ULONG);
        let mut template = [
            attribute(CKA_CLASS, &class),
            attribute(CKA_KEY_TYPE, &kind),
            attribute(CKA_VALUE_LEN, &length),
            attribute(CKA_TOKEN, &CK_FALSE),
            attribute(CKA_PRIVATE, &CK_TRUE),
            attribute(CKA_SENSITIVE, &CK_TRUE),
            attribute(CKA_EXTRACTABLE, &CK_FALSE),
            attribute(CKA_ENCRYPT, &CK_FALSE),
            attribute(CKA_DECRYPT, &CK_FALSE),
            attribute(CKA_WRAP, &CK_TRUE),
            attribute(CKA_UNWRAP, &CK_FALSE),
        ];
        let mut data = [7; 32];
        let mut parameters = CK_AES_CBC_ENCRYPT_DATA_PARAMS { iv: [0; 16], pData: data.as_mut_ptr(), length: 32 };
        let mut derive = CK_MECHANISM {
            mechanism: CKM_AES_CBC_ENCRYPT_DATA,
            pParameter: ptr::from_mut(&mut parameters).cast(),
            ulParameterLen: size_of::<CK_AES_CBC_ENCRYPT_DATA_PARAMS>() as CK_ULONG,
        };
        let mut key = 0;
        call!(self, C_DeriveKey(session, &mut derive, self.storage, template.as_mut_ptr(), 11, &mut key));
        let (mut stored, mut length, mut pad) = ([0; 64], 64, mechanism(CKM_AES_KEY_WRAP_PAD));
        call!(self, C_WrapKey(session, &mut pad, key, block, stored.as_mut_ptr(), &mut length));
        for object in [key, block, tzpk] {
            call!(self, C_DestroyObject(session, object));
        }
        self.sign(session, 74);
        self.sign(session, 28);
    }

    fn unwrap_tzpk(&self, session: CK_SESSION_HANDLE, right: CK_ATTRIBUTE_TYPE) -> CK_OBJECT_HANDLE {
        let (class, kind) = (CKO_SECRET_KEY, CKK_DES2);
        let (decrypt, unwrap) = if right == CKA_DECRYPT { (CK_TRUE, CK_FALSE) } else { (CK_FALSE, CK_TRUE) };
        let mut template = [
            attribute(CKA_CLASS, &class),
            attribute(CKA_KEY_TYPE, &kind),
            attribute(CKA_TOKEN, &CK_FALSE),
            attribute(CKA_PRIVATE, &CK_TRUE),
            attribute(CKA_SENSITIVE, &CK_TRUE),
            attribute(CKA_EXTRACTABLE, &CK_FALSE),
            attribute(CKA_ENCRYPT, &CK_FALSE),
            attribute(CKA_DECRYPT, &decrypt),
            attribute(CKA_WRAP, &CK_FALSE),
            attribute(CKA_UNWRAP, &unwrap),
        ];
        let (mut wrapped, mut tzpk, mut key_wrap) = (self.wrapped_tzpk, 0, mechanism(CKM_AES_KEY_WRAP));
        let (wrapped, template) = (wrapped.as_mut_ptr(), template.as_mut_ptr());
        call!(self, C_UnwrapKey(session, &mut key_wrap, self.seal, wrapped, 24, template, 10, &mut tzpk));
        tzpk
    }

    fn random(&self, session: CK_SESSION_HANDLE, length: usize) {
        call!(self, C_GenerateRandom(session, [0; 16].as_mut_ptr(), length as CK_ULONG));
    }

    fn sign(&self, session: CK_SESSION_HANDLE, length: usize) {
        let (mut message, mut tag, mut tag_length) = ([7; 160], [0; 32], 32);
        call!(self, C_SignInit(session, &mut mechanism(CKM_SHA256_HMAC), self.mac));
        call!(self, C_Sign(session, message.as_mut_ptr(), length as CK_ULONG, tag.as_mut_ptr(), &mut tag_length));
    }
}
