//! The API of the boundary. Its requests and replies hold no clear value.
//!
//! The software token executes a request on the caller's thread; a PKCS#11 token on worker threads behind a bounded queue.

use std::sync::Arc;

use hsm_protocol::{BoundaryLevel, Error, KeyId, MemoryLock, NewRecordFormat, Persistence, Reply, Request, Status};

use crate::{
    boundary::{AtHost, AtToken, Boundary},
    clear::scrub_stack,
    config::{Callers, Config, KeyFileUse, Keys as KeysConfig, LockMemory, Pkcs11, Vault, Wanted},
    harden::harden,
    keyring::{KeyInfo, KeyUsage, Keyring, ZoneKeyInfo},
    level::{self, LevelAndFormat},
    open_error::{OpenError, Pkcs11Error},
    selftest,
    token::{self, Software, TdesBudget, Token as _, TokenReport},
    workers::Workers,
    zones::Zones,
};

/// The open key boundary.
pub struct Hsm {
    boundary: Arc<Boundary>,
    /// None where the token answers faster than another thread could be woken.
    workers: Option<Workers>,
    status: Status,
}

impl Hsm {
    /// Hardens the process, runs the self-tests, and opens the keys.
    ///
    /// # Errors
    /// The errors of [`Hsm::prepare`] and [`Prepared::open`].
    pub fn open(config: Config) -> Result<Self, OpenError> {
        Self::prepare(config)?.open()
    }

    /// The part of [`Hsm::open`] before the keys are opened. A process calls it before it confines itself.
    ///
    /// # Errors
    /// [`OpenError`]: the memory could not be locked, a self-test failed, or the count of 3DES blocks could not be opened.
    pub fn prepare(config: Config) -> Result<Prepared, OpenError> {
        let memory = harden(config.lock_memory)?;
        selftest::run()?;
        let count = config.keys.tdes_count();
        let budget = TdesBudget::open(count.as_deref())
            .map_err(|error| OpenError::Io { path: count.unwrap_or_default(), error })?;
        Ok(Prepared { config, memory, budget })
    }

    /// Generates in a PKCS#11 token every key that the wanted level needs, each for one use and not extractable. Returns the
    /// ids of the keys.
    ///
    /// # Errors
    /// [`Pkcs11Error::Present`](crate::Pkcs11Error::Present), and no key is generated, where the token has a storage key of
    /// this version and level. Otherwise the error of the token.
    pub fn make_token_keys(config: &Pkcs11, wanted: &Wanted) -> Result<Vec<KeyId>, OpenError> {
        Ok(token::make_keys(config, level::choose_for_token(config, wanted)?.level())?)
    }

    /// Creates a vault file with every key that an engine needs, each in version 1. Returns the keys.
    ///
    /// # Errors
    /// [`OpenError::Vault`] where the vault exists, where its key file exists and `key_file` does not allow its use, or where a
    /// file could not be written.
    pub fn create_vault(vault: &Vault, key_file: KeyFileUse) -> Result<Vec<KeyInfo>, OpenError> {
        harden(LockMemory::Try)?;
        Ok(Keyring::create(vault, key_file, unix_milliseconds())?.keys.into_iter().map(|key| key.info).collect())
    }

    /// Describes a PKCS#11 token and its abilities, which are tried on temporary keys.
    ///
    /// # Errors
    /// The error of the token, or [`OpenError::BoundaryLevel`] for a level that it does not support.
    pub fn examine_token(config: &Pkcs11, wanted: &Wanted) -> Result<TokenReport, OpenError> {
        Ok(token::probe_token(config, level::choose_for_token(config, wanted)?.level())?)
    }

    /// The status of the boundary: its token, level, formats and keys.
    pub fn status(&self) -> &Status {
        &self.status
    }

    /// Executes one request. At level `host` a translation from a device checks the block, with the same work for every
    /// block; at level `token` no block is decrypted outside the token, so no block is checked.
    ///
    /// # Errors
    /// [`Error::Refused`] for a malformed block or a PIN against the policy; the other variants say what failed.
    pub async fn execute(&self, request: Request) -> Result<Reply, Error> {
        match &self.workers {
            None => self.boundary.execute(&request),
            Some(workers) => workers.run(move |boundary| boundary.execute(&request)).await?,
        }
    }

    /// Executes requests that arrived together on the caller's thread, and returns their replies in the same order: the software
    /// token decrypts the 3DES blocks that they translate as one batch.
    ///
    /// # Errors
    /// The requests, none of them executed, where the token has worker threads: call [`Hsm::execute`] for each.
    pub fn execute_together(&self, requests: Vec<Request>) -> Result<Vec<Result<Reply, Error>>, Vec<Request>> {
        if self.workers.is_some() { Err(requests) } else { Ok(self.boundary.execute_together(&requests)) }
    }
}

/// A hardened and self-tested process whose keys are not open yet.
pub struct Prepared {
    config: Config,
    memory: MemoryLock,
    budget: TdesBudget,
}

impl Prepared {
    /// Opens the keys.
    ///
    /// # Errors
    /// [`OpenError`]: the vault or token did not open, or does not support the wanted level and format.
    pub fn open(self) -> Result<Hsm, OpenError> {
        let Self { config, memory, budget } = self;
        let isolation = config.isolation;
        let (boundary, persistence, workers) = match config.keys {
            KeysConfig::Vault(vault) => {
                let form = level::choose_for_software(&config.wanted)?;
                let keyring = Keyring::open(&vault, config.absent_vault, unix_milliseconds())?;
                let (keys, zone_keys) = (keyring.serving(&vault, form)?, keyring.zone_keys(&config.zones));
                drop(keyring);
                let persistence = match &vault {
                    Vault::Memory => Persistence::Memory,
                    Vault::File { .. } => Persistence::Vault,
                };
                let token = Software::new(&keys, zone_keys, budget)
                    .map_err(|_| OpenError::SelfTest { step: "preparing the keys" })?;
                drop(keys);
                scrub_stack();
                let zones = Zones::check(config.zones, token.zone_keys(), BoundaryLevel::Host, form.into())?;
                let at_host = AtHost { token, policy: config.policy, form, isolation, zones };
                (Boundary::Host(at_host), persistence, None)
            }
            KeysConfig::Pkcs11(pkcs11) => {
                let workers = match pkcs11.callers {
                    Callers::Workers => Some((pkcs11.sessions, pkcs11.waiting_operations_max)),
                    Callers::Inline => None,
                };
                let boundary = match level::choose_for_token(&pkcs11, &config.wanted)? {
                    LevelAndFormat::Host(form) => {
                        let token = token::open_at_host_level(&pkcs11, budget, &config.zones)?;
                        let form_key = token.current().storage.of(form.into());
                        if !token.has_storage_key(form.into(), form_key) {
                            return Err(Pkcs11Error::Lacks { key: KeyUsage::StorageOneWay.to_string() }.into());
                        }
                        let zones = Zones::check(config.zones, token.zone_keys(), BoundaryLevel::Host, form.into())?;
                        Boundary::Host(AtHost { token, policy: config.policy, form, isolation, zones })
                    }
                    LevelAndFormat::Token(form) => {
                        let token = token::open_at_token_level(&pkcs11, budget, &config.zones)?;
                        let zones = Zones::check(config.zones, token.zone_keys(), BoundaryLevel::Token, form.into())?;
                        Boundary::Token(AtToken { token, form, isolation, zones })
                    }
                };
                (boundary, Persistence::Token, workers)
            }
        };
        let status = Status {
            token: boundary.token().name().into(),
            level: boundary.level(),
            isolation,
            form: boundary.form(),
            until: config.wanted.form.as_ref().and_then(NewRecordFormat::until).map(str::to_owned),
            keys: boundary.token().keys(),
            zone_keys: boundary.token().zone_keys().iter().map(ZoneKeyInfo::key_id).collect(),
            verification_keys: boundary.token().verification_keys(),
            even_parity: boundary.zones().even_parity(boundary.token().zone_keys()),
            reusable_answers: boundary.zones().reusable_answers(),
            storage: boundary.token().current().storage,
            memory,
            persistence,
            pin_digits: boundary.pin_digits(),
        };
        let boundary = Arc::new(boundary);
        let workers = match workers {
            Some((threads, waiting)) => {
                let failed = |error| OpenError::Io { path: "a worker thread of the key boundary".into(), error };
                Some(Workers::start(&boundary, threads, waiting).map_err(failed)?)
            }
            None => None,
        };
        Ok(Hsm { boundary, workers, status })
    }
}

/// The date of keys that are made here, in milliseconds of Unix time.
fn unix_milliseconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        ffi::CString,
        path::Path,
        process::Command,
        sync::OnceLock,
        task::{Context, Poll, Wake, Waker},
        thread::{self, Thread},
    };

    use aws_lc_rs::{
        encoding::{AsDer, PublicKeyX509Der},
        rsa::{KeySize, OAEP_SHA256_MGF1SHA256, OaepPrivateDecryptingKey, PrivateDecryptingKey},
    };

    use super::*;
    use crate::{
        clear::{Block, Tzpk},
        config::{AbsentVault, KeyHandling, SlotName, TokenPlace, WantedLevel},
        oaep::tests::OpensslDevice,
        token::{tzpk_decrypt, tzpk_encrypt, tzpk_kcv},
        translation::{Place, TRANSLATIONS, Translation},
    };
    use hsm_protocol::{
        Account, AccountNumber, Binding, CardBinding, ControlBinding, DeviceBlock, DeviceKey, EncryptedBlock,
        FreshTzpk, Isolation, KeyVersion, MadeAt, Mgf1Hash, PinRecord, Purpose, Refusal, SealedAccount, SealedKey,
        Source, StorageFormat, StorageVersions, Target,
    };

    const CONTROL: ControlBinding =
        ControlBinding { id: [7; 16], purpose: Purpose::SetPin, expires_at_unix_milliseconds: 1_000 };

    fn card() -> CardBinding {
        card_of("bank", "1000200030")
    }

    fn card_of(tenant: &str, plastic_id: &str) -> CardBinding {
        CardBinding::new(tenant, plastic_id).unwrap()
    }

    fn binding() -> Binding {
        Binding { card: card(), control: CONTROL }
    }

    /// A record, and the retry tag of its block.
    struct NewRecord {
        record: PinRecord,
        retry_tag: [u8; 16],
    }

    fn copy(account: &Account) -> Account {
        match account {
            Account::PlasticId => Account::PlasticId,
            Account::Registered(sealed) => Account::Registered(SealedAccount::from_bytes(sealed.as_bytes()).unwrap()),
        }
    }

    /// Each request as a function that returns its reply.
    impl Hsm {
        async fn issue(&self, device: &DeviceKey, binding: &Binding) -> Result<FreshTzpk, Error> {
            match self.execute(Request::IssueTzpk { public_key: device.clone(), binding: *binding }).await? {
                Reply::Tzpk(tzpk) => Ok(tzpk),
                _ => panic!("the reply of another request"),
            }
        }

        async fn device_to_record(
            &self,
            tzpk: &SealedKey,
            binding: &Binding,
            block: &EncryptedBlock,
            account: &Account,
        ) -> Result<NewRecord, Error> {
            let sealed_tzpk = SealedKey::from_bytes(tzpk.as_bytes()).unwrap();
            let source = Source::Device { sealed_tzpk, control: binding.control, block: *block };
            match self.translate(source, Target::Record, binding.card, account).await? {
                Reply::Record { record, retry_tag: Some(retry_tag) } => Ok(NewRecord { record, retry_tag }),
                _ => panic!("the reply of another request"),
            }
        }

        async fn record_to_device(
            &self,
            record: &PinRecord,
            card: CardBinding,
            account: &Account,
            device: &DeviceKey,
        ) -> Result<DeviceBlock, Error> {
            let target = Target::Device { public_key: device.clone() };
            match self.translate(Source::Record(record.clone()), target, card, account).await? {
                Reply::Block(block) => Ok(block),
                _ => panic!("the reply of another request"),
            }
        }

        async fn reencrypt(
            &self,
            record: &PinRecord,
            card: CardBinding,
            account: &Account,
        ) -> Result<PinRecord, Error> {
            match self.translate(Source::Record(record.clone()), Target::Record, card, account).await? {
                Reply::Record { record, retry_tag: None } => Ok(record),
                _ => panic!("the reply of another request"),
            }
        }

        async fn translate(
            &self,
            source: Source,
            target: Target,
            card: CardBinding,
            account: &Account,
        ) -> Result<Reply, Error> {
            self.execute(Request::Translate { source, target, card, account: copy(account) }).await
        }

        async fn retry_tag(&self, block: &EncryptedBlock) -> Result<[u8; 16], Error> {
            match self.execute(Request::RetryTag { control: CONTROL.id, block: *block }).await? {
                Reply::RetryTag(tag) => Ok(tag),
                _ => panic!("the reply of another request"),
            }
        }

        async fn seal_pan(&self, number: &str, card: CardBinding) -> Result<SealedAccount, Error> {
            let number = AccountNumber::parse(number).unwrap();
            match self.execute(Request::SealPan { number, card }).await? {
                Reply::SealedPan(sealed) => Ok(sealed),
                _ => panic!("the reply of another request"),
            }
        }
    }

    struct Unpark(Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Waits for a future. The software token answers at the first poll; a worker wakes this thread.
    fn wait<T>(work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        loop {
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(result) => return result,
                Poll::Pending => thread::park(),
            }
        }
    }

    struct Phone {
        public: DeviceKey,
        private: OaepPrivateDecryptingKey,
    }

    impl Phone {
        fn new() -> Self {
            let private = PrivateDecryptingKey::generate(KeySize::Rsa2048).unwrap();
            let der: PublicKeyX509Der<'_> = private.public_key().as_der().unwrap();
            let public = DeviceKey::parse(der.as_ref()).unwrap();
            Self { public, private: OaepPrivateDecryptingKey::new(private).unwrap() }
        }

        fn tzpk(&self, wrapped: &[u8]) -> Tzpk {
            let mut buffer = vec![0; 256];
            let mut tzpk = Tzpk::zeroed();
            let opened = self.private.decrypt(&OAEP_SHA256_MGF1SHA256, wrapped, &mut buffer, None).unwrap();
            tzpk.bytes_mut().copy_from_slice(opened);
            tzpk
        }

        /// An ISO-1 block under an issued tzpk.
        fn block(&self, issued: &FreshTzpk, clear: u64) -> EncryptedBlock {
            let mut block = Block::zeroed();
            block.set_nibbles(clear);
            tzpk_encrypt(&self.tzpk(&issued.wrapped), &mut block);
            EncryptedBlock::from_bytes(block.bytes()).unwrap()
        }
    }

    /// The token that this process runs the suite on; unset for the software token.
    const TOKEN_VARIABLE: &str = "PINSEAL_TEST_TOKEN";
    /// The directory of this token.
    const DIRECTORY_VARIABLE: &str = "PINSEAL_TEST_DIRECTORY";
    /// A module in front of NSS: the shim, which records every output.
    const MODULE_VARIABLE: &str = "PINSEAL_TEST_MODULE";

    /// Opens the boundary on the token of [`TOKEN_VARIABLE`], with the default level and format.
    fn open() -> Hsm {
        open_as(Wanted::default()).unwrap()
    }

    fn open_as(wanted: Wanted) -> Result<Hsm, OpenError> {
        Hsm::open(config_as(wanted))
    }

    fn config_as(wanted: Wanted) -> Config {
        let keys = match env::var(TOKEN_VARIABLE) {
            Err(_) => KeysConfig::default(),
            Ok(token) => KeysConfig::Pkcs11(token_with_keys(&token)),
        };
        Config { keys, wanted, ..Config::default() }
    }

    fn token_with_keys(name: &str) -> Pkcs11 {
        static MADE: OnceLock<Pkcs11> = OnceLock::new();
        let made = MADE.get_or_init(|| {
            let directory = env::var(DIRECTORY_VARIABLE).unwrap();
            let suite = SlotName::Label("suite".into());
            let (module, slot, parameters, key_handling) = match name {
                "softhsm" => (SOFTHSM, suite, None, KeyHandling::InToken),
                "opencryptoki" => (OPENCRYPTOKI, SlotName::Number(0), None, KeyHandling::InToken),
                "nss" => {
                    let parameters = format!("configdir='sql:{directory}' dbTokenDescription='suite'");
                    (NSS, suite, Some(CString::new(parameters).unwrap()), KeyHandling::CopiedToSession)
                }
                other => panic!("no token {other}"),
            };
            let module = env::var(MODULE_VARIABLE).unwrap_or_else(|_| module.to_owned());
            let token = Pkcs11 {
                place: TokenPlace { module: module.into(), module_parameters: parameters, slot },
                user_pin: "2468".to_owned().into(),
                key_version: 1,
                storage_key_versions: Vec::new(),
                key_handling,
                callers: if name == "nss" { Callers::Inline } else { Callers::Workers },
                sessions: 4,
                waiting_operations_max: 64,
                tdes_count: None,
            };
            let wanted = Wanted::default();
            assert!(Hsm::make_token_keys(&token, &wanted).unwrap().len() >= 5);
            let again = Hsm::make_token_keys(&token, &wanted);
            assert!(matches!(again, Err(OpenError::Pkcs11(Pkcs11Error::Present { .. }))));
            let level = if name == "nss" { BoundaryLevel::Token } else { BoundaryLevel::Host };
            zone_tests::import_zone_keys(&token, level);
            token
        });
        made.clone()
    }

    /// The path of Debian's package, as of all tokens here.
    const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
    const NSS: &str = "/usr/lib/x86_64-linux-gnu/libsoftokn3.so";
    const OPENCRYPTOKI: &str = "/usr/lib/x86_64-linux-gnu/opencryptoki/libopencryptoki.so.0";

    /// The lowest address of the stack that `work` has changed.
    #[inline(never)]
    fn lowest_touched(work: impl FnOnce()) -> usize {
        const PAINTED: usize = 128 * 1024;
        #[inline(never)]
        fn paint() {
            std::hint::black_box(&mut [0xA5u8; PAINTED]);
        }
        paint();
        work();
        let here = 0u8;
        // The painted area starts above this address by the frames in between.
        let from = std::ptr::from_ref(&here).addr() - PAINTED + 8 * 1024;
        let mut below = vec![0; PAINTED - 10 * 1024];
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut below, from as u64).unwrap();
        from + below.iter().take_while(|byte| **byte == 0xA5).count()
    }

    /// Fails where an operation leaves a part of the stack that it used unscrubbed.
    fn check_scrubbed(operations: &[(&str, &dyn Fn() -> bool)]) {
        /// The frames of the scrub itself, which hold no clear value.
        const SCRUB_BYTES: usize = 1024;
        for (name, operation) in operations {
            let lowest = lowest_touched(|| assert!(operation(), "{name}"));
            let scrubbed_to = crate::clear::SCRUBBED_TO.get();
            let deeper = scrubbed_to.saturating_sub(lowest);
            assert!(deeper <= SCRUB_BYTES, "{name} used {deeper} bytes below the scrubbed stack");
        }
    }

    /// On the software token, which works on the caller's stack.
    #[test]
    fn the_stack_of_every_operation_is_scrubbed_to_its_end() {
        let (hsm, phone) = (Hsm::open(Config::default()).unwrap(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80A7_3C90_5EF1);
        let record =
            wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
        let (account, sealed) = (&Account::PlasticId, &issued.sealed);
        let old_phone = phone.public.clone().with_mgf1(Mgf1Hash::Sha1);
        let many = || Request::Together { requests: (0..8).map(|_| reencrypt(&record, card())).collect() };
        let together = || {
            let requests = (0..8).map(|_| set_pin(sealed, block, card())).collect();
            hsm.execute_together(requests).is_ok_and(|replies| replies.iter().all(Result::is_ok))
        };
        // The first batch of a thread makes the memory of its batches on the stack, all zeros.
        assert!(together());
        check_scrubbed(&[
            ("issue", &|| wait(hsm.issue(&phone.public, &binding())).is_ok()),
            ("issue with MGF1-SHA-1", &|| wait(hsm.issue(&old_phone, &binding())).is_ok()),
            ("device to record", &|| wait(hsm.device_to_record(sealed, &binding(), &block, account)).is_ok()),
            ("record to device", &|| wait(hsm.record_to_device(&record, card(), account, &phone.public)).is_ok()),
            ("re-encrypt", &|| wait(hsm.reencrypt(&record, card(), account)).is_ok()),
            ("re-encrypt many", &|| wait(hsm.execute(many())).is_ok()),
            ("a batch", &together),
        ]);
    }

    /// The request to re-encrypt a device's block as a record.
    fn set_pin(sealed: &SealedKey, block: EncryptedBlock, card: CardBinding) -> Request {
        let sealed_tzpk = SealedKey::from_bytes(sealed.as_bytes()).unwrap();
        let source = Source::Device { sealed_tzpk, control: CONTROL, block };
        Request::Translate { source, target: Target::Record, card, account: Account::PlasticId }
    }

    /// The request to re-encrypt a record.
    fn reencrypt(record: &PinRecord, card: CardBinding) -> Request {
        let source = Source::Record(record.clone());
        Request::Translate { source, target: Target::Record, card, account: Account::PlasticId }
    }

    /// Good blocks, malformed blocks, and blocks whose tzpk belongs to another card.
    #[test]
    fn requests_that_arrive_together_have_the_replies_of_single_ones() {
        let (hsm, phone) = (Hsm::open(Config::default()).unwrap(), Phone::new());
        let issued: Vec<_> = (0..5).map(|_| wait(hsm.issue(&phone.public, &binding())).unwrap()).collect();
        for count in [1, 5, 40, 300] {
            let clear = |number: u64| {
                let digits = (number % 10) << 44 | (number / 10 % 10) << 40 | (number / 100) << 36;
                if number % 7 == 3 { 0x2691_0005_AAAA_AAAA } else { 0x1691_0005_A3C9_0FE1 | digits }
            };
            let requests: Vec<Request> = (0..count)
                .zip(issued.iter().cycle())
                .map(|(number, issued)| {
                    let card = if number % 11 == 5 { card_of("bank", "1000200031") } else { card() };
                    set_pin(&issued.sealed, phone.block(issued, clear(number)), card)
                })
                .collect();
            let Ok(replies) = hsm.execute_together(requests) else { panic!("the software token has no workers") };
            assert_eq!(replies.len() as u64, count);
            for (number, reply) in (0..count).zip(replies) {
                match reply {
                    Err(Error::SealBroken { .. }) => assert_eq!(number % 11, 5, "{number}"),
                    Err(Error::Refused(_)) => assert_eq!(number % 7, 3, "{number}"),
                    Ok(Reply::Record { record, retry_tag: Some(_) }) => {
                        assert!(number % 11 != 5 && number % 7 != 3, "{number}");
                        let shown = hsm.record_to_device(&record, card(), &Account::PlasticId, &phone.public);
                        let shown = wait(shown).unwrap();
                        let mut block = Block::zeroed();
                        block.bytes_mut().copy_from_slice(shown.block.as_bytes());
                        tzpk_decrypt(&phone.tzpk(&shown.wrapped), &mut block);
                        assert_eq!(block.nibbles() >> 32, clear(number) >> 32, "{number}");
                    }
                    _ => panic!("the reply of another request"),
                }
            }
        }
    }

    #[test]
    fn a_device_with_mgf1_sha1_decrypts_its_tzpk_and_views_the_pin() {
        let (hsm, device) = (open(), OpensslDevice::new());
        let public = device.public.clone().with_mgf1(Mgf1Hash::Sha1);
        let open_tzpk = |wrapped: &[u8]| {
            assert_eq!(device.decrypt(wrapped, Mgf1Hash::Sha256), None);
            let mut tzpk = Tzpk::zeroed();
            tzpk.bytes_mut().copy_from_slice(&device.decrypt(wrapped, Mgf1Hash::Sha1).unwrap());
            tzpk
        };
        let issued = wait(hsm.issue(&public, &binding())).unwrap();
        let tzpk = open_tzpk(&issued.wrapped);
        assert_eq!(tzpk_kcv(&tzpk), issued.kcv);
        let mut block = Block::zeroed();
        block.set_nibbles(0x1425_80A7_3C90_5EF1);
        tzpk_encrypt(&tzpk, &mut block);
        let block = EncryptedBlock::from_bytes(block.bytes()).unwrap();
        let record =
            wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
        let shown = wait(hsm.record_to_device(&record, card(), &Account::PlasticId, &public)).unwrap();
        let mut block = Block::zeroed();
        block.bytes_mut().copy_from_slice(shown.block.as_bytes());
        tzpk_decrypt(&open_tzpk(&shown.wrapped), &mut block);
        assert_eq!(block.nibbles() >> 40, 0x14_2580);
    }

    #[test]
    fn the_same_suite_passes_on_softhsm_at_level_host() {
        if env::var_os(TOKEN_VARIABLE).is_some() {
            return;
        }
        assert!(Path::new(SOFTHSM).exists(), "SoftHSM is missing: apt-get install softhsm2");
        let directory = tempfile::tempdir().unwrap();
        let configuration = directory.path().join("softhsm2.conf");
        let tokens = directory.path().join("tokens");
        std::fs::create_dir(&tokens).unwrap();
        std::fs::write(&configuration, format!("directories.tokendir = {}\n", tokens.display())).unwrap();
        let initialise = ["--init-token", "--free", "--label", "suite", "--pin", "2468", "--so-pin", "13579"];
        run(Command::new("softhsm2-util").args(initialise).env("SOFTHSM2_CONF", &configuration));
        run(suite_on("softhsm", directory.path()).env("SOFTHSM2_CONF", &configuration));
    }

    #[test]
    fn the_same_suite_passes_on_nss_at_level_token() {
        if env::var_os(TOKEN_VARIABLE).is_some() {
            return;
        }
        let directory = nss_database();
        run(&mut suite_on("nss", directory.path()));
    }

    /// A directory with an empty database of NSS.
    fn nss_database() -> tempfile::TempDir {
        assert!(Path::new(NSS).exists(), "NSS softokn is missing: apt-get install libnss3");
        let directory = tempfile::tempdir().unwrap();
        let pin = directory.path().join("pin");
        std::fs::write(&pin, "2468").unwrap();
        let database = format!("sql:{}", directory.path().display());
        run(Command::new("certutil").args(["-N", "-d", &database, "-f"]).arg(pin));
        directory
    }

    /// The zone operations of level `token`, on NSS behind the shim.
    #[test]
    fn no_zone_operation_has_a_clear_value_leave_nss() {
        if env::var_os(TOKEN_VARIABLE).is_some() {
            return;
        }
        let directory = nss_database();
        run(Command::new(env!("CARGO")).args(["build", "--quiet", "-p", "pinseal-pkcs11-shim"]));
        let shim = env::current_exe().unwrap().parent().unwrap().with_file_name("libpkcs11_shim.so");
        let mut suite = Command::new(env::current_exe().unwrap());
        suite.args(["api::tests::zone_tests::the_shim_records_no_clear_value", "--exact"]);
        suite.env(TOKEN_VARIABLE, "nss").env(DIRECTORY_VARIABLE, directory.path()).env(MODULE_VARIABLE, shim);
        let trace = directory.path().join("trace");
        run(suite.env("PINSEAL_SHIM_MODULE", NSS).env(zone_tests::TRACE_VARIABLE, trace));
    }

    #[test]
    fn the_same_suite_passes_on_opencryptoki_at_level_host() {
        if env::var_os(TOKEN_VARIABLE).is_some() {
            return;
        }
        assert!(Path::new(OPENCRYPTOKI).exists(), "openCryptoki is missing: apt-get install opencryptoki");
        let directory = tempfile::tempdir().unwrap();
        let inner = suite_on("opencryptoki", directory.path());
        let mut suite = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tokens/opencryptoki"));
        suite.arg(directory.path()).arg(inner.get_program()).args(inner.get_args());
        suite.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
        run(&mut suite);
    }

    /// The tests of this module on another token, in another process. The tests that start such a process are skipped.
    fn suite_on(token: &str, directory: &Path) -> Command {
        let mut suite = Command::new(env::current_exe().unwrap());
        suite.args(["api::tests", "--skip", "the_same_suite_passes", "--skip", "zone_vectors", "--test-threads", "2"]);
        suite.env(TOKEN_VARIABLE, token).env(DIRECTORY_VARIABLE, directory);
        suite
    }

    fn run(command: &mut Command) {
        let output = command.output().unwrap_or_else(|error| {
            panic!("{:?}: {error}: apt-get install softhsm2 libnss3-tools", command.get_program())
        });
        let printed = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(output.status.success(), "{}: {printed}", output.status);
        let is_suite = printed.contains("test result");
        assert!(!is_suite || printed.contains(" 0 failed") && !printed.contains(" 0 passed"), "{printed}");
    }

    #[test]
    fn a_pin_is_set_and_shown_in_every_storage_format() {
        let phone = Phone::new();
        let until = || "2999-12-31".to_owned();
        let formats = match open().status().level() {
            BoundaryLevel::Host => [
                NewRecordFormat::Iso4,
                NewRecordFormat::Iso3 { until: until() },
                NewRecordFormat::Iso0 { until: until() },
            ],
            BoundaryLevel::Token => {
                [NewRecordFormat::Wrapped, NewRecordFormat::Iso3 { until: until() }, NewRecordFormat::Wrapped]
            }
        };
        for form in formats {
            let hsm = open_as(Wanted { form: Some(form), ..Wanted::default() }).unwrap();
            let account = wait(hsm.seal_pan("5413330089020011", card())).unwrap();
            for account in [&Account::PlasticId, &Account::Registered(account)] {
                let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
                let block = phone.block(&issued, 0x1625_8091_ACDE_FFEB);
                let accepted = wait(hsm.device_to_record(&issued.sealed, &binding(), &block, account)).unwrap();
                let revealed = wait(hsm.record_to_device(&accepted.record, card(), account, &phone.public)).unwrap();
                let mut shown = Block::zeroed();
                shown.bytes_mut().copy_from_slice(revealed.block.as_bytes());
                tzpk_decrypt(&phone.tzpk(&revealed.wrapped), &mut shown);
                assert_eq!(shown.nibbles() >> 32, 0x1625_8091);
            }
        }
    }

    #[test]
    fn a_tzpk_has_odd_parity_different_halves_and_the_returned_kcv() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let tzpk = phone.tzpk(&issued.wrapped);
        assert!(tzpk.bytes().iter().all(|byte| byte.count_ones() % 2 == 1));
        assert!(tzpk.bytes()[..8] != tzpk.bytes()[8..]);
        assert_eq!(tzpk_kcv(&tzpk), issued.kcv);
    }

    #[test]
    fn a_sealed_tzpk_opens_only_under_its_own_binding() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let others = [
            Binding { control: ControlBinding { id: [8; 16], ..CONTROL }, ..binding() },
            Binding { control: ControlBinding { purpose: Purpose::ViewPin, ..CONTROL }, ..binding() },
            Binding { control: ControlBinding { expires_at_unix_milliseconds: 1_001, ..CONTROL }, ..binding() },
            Binding { card: card_of("other", "1000200030"), ..binding() },
            Binding { card: card_of("bank", "1000200031"), ..binding() },
        ];
        for other in others {
            let answer = wait(hsm.device_to_record(&issued.sealed, &other, &block, &Account::PlasticId));
            assert!(matches!(answer, Err(Error::SealBroken { .. })));
        }
        assert!(wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).is_ok());
    }

    #[test]
    fn a_record_of_another_card_or_with_a_changed_byte_is_rejected() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let record =
            wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
        let other = card_of("bank", "1000200031");
        assert!(wait(hsm.record_to_device(&record, other, &Account::PlasticId, &phone.public)).is_err());
        for at in 0..record.as_bytes().len() {
            let mut changed = record.as_bytes().to_vec();
            changed[at] ^= 1;
            let Ok(changed) = PinRecord::from_bytes(&changed) else { continue };
            assert!(
                wait(hsm.record_to_device(&changed, card(), &Account::PlasticId, &phone.public)).is_err(),
                "byte {at}"
            );
        }
    }

    #[test]
    fn requests_together_have_a_result_each() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, GOOD);
        let record =
            wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
        let mut spoilt = record.as_bytes().to_vec();
        *spoilt.last_mut().unwrap() ^= 1;
        let spoilt = PinRecord::from_bytes(&spoilt).unwrap();
        let other = card_of("bank", "1000200031");
        let requests = [(&record, card()), (&spoilt, card()), (&record, other), (&record, card())]
            .map(|(record, card)| reencrypt(record, card));
        let alone = wait(hsm.reencrypt(&record, card(), &Account::PlasticId));
        let request = Request::Together { requests: requests.into() };
        let Ok(Reply::Together(results)) = wait(hsm.execute(request)) else { panic!("not the reply") };
        let [first, Err(Error::SealBroken { .. }), Err(Error::SealBroken { .. }), last] = &results[..] else {
            panic!("other results: {:?}", results.into_iter().map(Result::err).collect::<Vec<_>>())
        };
        for result in [first, last] {
            match (result, &alone) {
                (Ok(Reply::Record { record, .. }), Ok(_)) => {
                    wait(hsm.record_to_device(record, card(), &Account::PlasticId, &phone.public)).unwrap();
                }
                // A format 4 record of level `token` is of no re-encryption.
                (again, alone) => {
                    assert_eq!(format!("{:?}", again.as_ref().err()), format!("{:?}", alone.as_ref().err()))
                }
            }
        }
        assert_eq!(results.len(), 4);
    }

    #[test]
    fn a_record_under_an_older_storage_key_opens_and_is_reencrypted() {
        if env::var(TOKEN_VARIABLE).is_ok() {
            // The keys of a PKCS#11 token have one version in this suite.
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let vault = || Vault::File {
            path: directory.path().join("vault"),
            unlock: crate::config::Unlock::KeyFile(directory.path().join("vault.key")),
        };
        let open = || {
            Hsm::open(Config {
                keys: KeysConfig::Vault(vault()),
                absent_vault: AbsentVault::Create,
                ..Config::default()
            })
            .unwrap()
        };
        let phone = Phone::new();
        let (hsm, account) = (open(), &Account::PlasticId);
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1627_1809_AAAA_AAAA);
        let old = wait(hsm.device_to_record(&issued.sealed, &binding(), &block, account)).unwrap().record;
        assert!(hsm.status().is_current(&old) && !hsm.status().rotates());

        let mut store = crate::key_store::KeyStore::open(KeysConfig::Vault(vault()), &Wanted::default(), 2).unwrap();
        for name in [crate::keyring::KeyUsage::Storage, crate::keyring::KeyUsage::Seal] {
            store.make(name.clone(), crate::keyring::KeyAlgorithm::Aes256, 2).unwrap();
            store.activate(&name, 2, 2).unwrap();
        }
        store.commit([0; 32]).unwrap();
        let hsm = open();
        assert!(!hsm.status().is_current(&old) && hsm.status().rotates());
        // A control with a tzpk under the older seal key is still usable.
        let again = wait(hsm.device_to_record(&issued.sealed, &binding(), &block, account)).unwrap().record;
        assert_eq!(again.storage_key().0, 2);
        let reencrypted = wait(hsm.reencrypt(&old, card(), account)).unwrap();
        assert!(hsm.status().is_current(&reencrypted));
        // Another engine on the store may lack the newer key. A limit below every key leaves the newest.
        for (limit, expected) in [(1, 1), (2, 2), (9, 2), (0, 2)] {
            let [wrapped, iso_4, tdes, one_way] = [limit; 4].map(KeyVersion);
            let versions = StorageVersions { wrapped, iso_4, tdes, one_way };
            let (source, card, account) = (Source::Record(reencrypted.clone()), card(), copy(account));
            let request = Request::Translate { source, target: Target::Record, card, account }.into();
            let Ok(Reply::Record { record, .. }) = wait(hsm.execute(Request::UpTo { versions, request })) else {
                panic!("no record up to version {limit}")
            };
            assert_eq!(record.storage_key().0, expected, "up to version {limit}");
            let usable = hsm.status().up_to(versions);
            assert_eq!((usable.is_current(&old), usable.rotates()), (limit == 1, limit > 1), "up to version {limit}");
        }
        for record in [&old, &reencrypted] {
            let shown = wait(hsm.record_to_device(record, card(), account, &phone.public)).unwrap();
            let mut clear = Block::zeroed();
            clear.bytes_mut().copy_from_slice(shown.block.as_bytes());
            tzpk_decrypt(&phone.tzpk(&shown.wrapped), &mut clear);
            assert_eq!(clear.nibbles() >> 32, 0x1627_1809);
        }
        let other = card_of("bank", "1000200031");
        assert!(matches!(wait(hsm.reencrypt(&old, other, account)), Err(Error::SealBroken { .. })));
    }

    #[test]
    fn a_record_names_the_level_and_isolation_that_made_it() {
        let phone = Phone::new();
        for isolation in [Isolation::Process, Isolation::Inline] {
            let mut config = config_as(Wanted::default());
            config.isolation = isolation;
            let hsm = Hsm::open(config).unwrap();
            let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
            let block = phone.block(&issued, GOOD);
            let record =
                wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
            let read = PinRecord::from_bytes(record.as_bytes()).unwrap();
            assert_eq!(read.made_at(), MadeAt { level: hsm.status().level(), isolation });
            assert!(wait(hsm.record_to_device(&read, card(), &Account::PlasticId, &phone.public)).is_ok());
        }
    }

    #[test]
    fn a_blob_of_one_use_is_rejected_as_another() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        assert!(SealedAccount::from_bytes(issued.sealed.as_bytes()).is_err());
        assert!(PinRecord::from_bytes(issued.sealed.as_bytes()).is_err());
    }

    #[test]
    fn equal_pins_differ_in_records_and_equal_accounts_seal_equal() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, 0x1425_80AA_AAAA_AAAA);
        let record =
            || wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap().record;
        assert_ne!(record().as_bytes(), record().as_bytes());
        let sealed = |card| wait(hsm.seal_pan("5413330089020011", card)).unwrap().as_bytes().to_vec();
        assert_eq!(sealed(card()), sealed(card()));
        assert_ne!(sealed(card()), sealed(card_of("bank", "2")));
    }

    const GOOD: u64 = 0x1425_80AA_AAAA_AAAA;
    const WEAK: u64 = 0x1412_34AA_AAAA_AAAA;
    const MALFORMED: [u64; 4] =
        [0x0425_80FF_FFFF_FFFF, 0x1325_8AAA_AAAA_AAAA, 0x1D25_8000_0000_0000, 0x14A5_80AA_AAAA_AAAA];

    #[test]
    fn level_host_refuses_malformed_and_weak_blocks_and_level_token_neither() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let answer = |clear| {
            wait(hsm.device_to_record(&issued.sealed, &binding(), &phone.block(&issued, clear), &Account::PlasticId))
        };
        assert!(answer(GOOD).is_ok());
        match hsm.status().level() {
            BoundaryLevel::Host => {
                assert!(matches!(answer(WEAK), Err(Error::Refused(Refusal::PinPolicy))));
                for malformed in MALFORMED {
                    let answer = answer(malformed);
                    assert!(matches!(answer, Err(Error::Refused(Refusal::MalformedBlock))), "{malformed:x}");
                }
            }
            BoundaryLevel::Token => {
                assert!(answer(WEAK).is_ok() && MALFORMED.into_iter().all(|malformed| answer(malformed).is_ok()));
                assert!(
                    hsm.status().lines().iter().any(|line| line.contains("no PIN is refused as weak or malformed"))
                );
            }
        }
    }

    #[test]
    fn only_the_same_block_has_the_same_retry_tag() {
        let (hsm, phone) = (open(), Phone::new());
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let block = phone.block(&issued, GOOD);
        let accepted = wait(hsm.device_to_record(&issued.sealed, &binding(), &block, &Account::PlasticId)).unwrap();
        assert_eq!(accepted.retry_tag, wait(hsm.retry_tag(&block)).unwrap());
        assert_ne!(accepted.retry_tag, wait(hsm.retry_tag(&phone.block(&issued, WEAK))).unwrap());
    }

    /// At level `token` the device's fill must be A, and the PIN cannot be shown. Level `host` has neither limit.
    #[test]
    fn a_format_4_record_of_level_token_needs_fill_a_and_is_write_only() {
        let phone = Phone::new();
        let at_token = open().status().level() == BoundaryLevel::Token;
        let level = if at_token { WantedLevel::Token } else { WantedLevel::Host };
        let hsm = open_as(Wanted { level, form: Some(NewRecordFormat::Iso4) }).unwrap();
        let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
        let accept = |clear| {
            wait(hsm.device_to_record(&issued.sealed, &binding(), &phone.block(&issued, clear), &Account::PlasticId))
        };
        let other_fill = accept(0x1425_80A7_3C90_5EF1);
        assert_eq!(matches!(other_fill, Err(Error::Refused(Refusal::MalformedBlock))), at_token);
        let record = accept(GOOD).unwrap().record;
        assert_eq!(record.form(), StorageFormat::Iso4);
        let shown = wait(hsm.record_to_device(&record, card(), &Account::PlasticId, &phone.public));
        assert_eq!(matches!(shown, Err(Error::WriteOnly)), at_token);
    }

    #[test]
    fn a_format_that_the_level_does_not_make_is_rejected_by_name() {
        let (form, level) = match open().status().level() {
            BoundaryLevel::Host => (NewRecordFormat::Wrapped, BoundaryLevel::Host),
            BoundaryLevel::Token => (NewRecordFormat::Iso0 { until: "2999-12-31".to_owned() }, BoundaryLevel::Token),
        };
        let wanted = match level {
            BoundaryLevel::Host => WantedLevel::Host,
            BoundaryLevel::Token => WantedLevel::Token,
        };
        let error = open_as(Wanted { level: wanted, form: Some(form) }).err().unwrap().to_string();
        assert!(error.contains(&format!("is not made at level {level}")), "{error}");
    }

    /// One boundary for each format that this level makes, on the same keys.
    fn boundaries() -> Vec<(StorageFormat, Hsm)> {
        let until = || "2999-12-31".to_owned();
        let (level, other) = match open().status().level() {
            BoundaryLevel::Host => (WantedLevel::Host, NewRecordFormat::Iso0 { until: until() }),
            BoundaryLevel::Token => (WantedLevel::Token, NewRecordFormat::Wrapped),
        };
        let directory = tempfile::tempdir().unwrap();
        let open = |form: NewRecordFormat| {
            let mut config = config_as(Wanted { level, form: Some(form.clone()) });
            if let KeysConfig::Vault(vault) = &mut config.keys {
                *vault = Vault::File {
                    path: directory.path().join("vault"),
                    unlock: crate::config::Unlock::KeyFile(directory.path().join("vault.key")),
                };
                config.absent_vault = AbsentVault::Create;
            }
            (form.form(), Hsm::open(config).unwrap())
        };
        let one_way = (level == WantedLevel::Host).then_some(NewRecordFormat::OneWay);
        let formats = [NewRecordFormat::Iso4, NewRecordFormat::Iso3 { until: until() }, other];
        formats.into_iter().chain(one_way).map(open).collect()
    }

    #[test]
    fn every_translation_of_the_table_works_and_no_other() {
        let (phone, boundaries) = (Phone::new(), boundaries());
        let level = boundaries[0].1.status().level();
        let allowed = |source, target| TRANSLATIONS.contains(&Translation { source, target, level });
        let mut seen = 0;
        let mut check = |source, target, result: Result<Reply, Error>| {
            assert_eq!(result.is_ok(), allowed(source, target), "{source:?} to {target:?}: {:?}", result.err());
            if let Err(error) = result {
                assert!(matches!(error, Error::TranslationNotAllowed | Error::WriteOnly | Error::OneWay), "{error}");
            } else {
                seen += 1;
            }
        };
        for (form, hsm) in &boundaries {
            let issued = wait(hsm.issue(&phone.public, &binding())).unwrap();
            let block = phone.block(&issued, GOOD);
            let device = || Source::Device {
                sealed_tzpk: SealedKey::from_bytes(issued.sealed.as_bytes()).unwrap(),
                control: CONTROL,
                block,
            };
            let to_device = || Target::Device { public_key: phone.public.clone() };
            let translate = |source, target| wait(hsm.translate(source, target, card(), &Account::PlasticId));
            let from_device = translate(device(), Target::Record);
            let Ok(Reply::Record { record, .. }) = &from_device else { panic!("no record of {form:?}") };
            let record = record.clone();
            check(Place::Device, Place::Record(*form), from_device);
            assert!(matches!(translate(device(), to_device()), Err(Error::TranslationNotAllowed)));
            check(Place::Record(*form), Place::Device, translate(Source::Record(record.clone()), to_device()));
            for (target, other) in &boundaries {
                // At level token a record keeps its format.
                let target = if level == BoundaryLevel::Token { form } else { target };
                if level == BoundaryLevel::Token && !std::ptr::eq(hsm, other) {
                    continue;
                }
                let again =
                    wait(other.translate(Source::Record(record.clone()), Target::Record, card(), &Account::PlasticId));
                check(Place::Record(*form), Place::Record(*target), again);
            }
        }
        let has_zone =
            |row: &&Translation| matches!((row.source, row.target), (Place::Zone(_), _) | (_, Place::Zone(_)));
        assert_eq!(seen, TRANSLATIONS.iter().filter(|row| row.level == level && !has_zone(row)).count());
    }

    mod verify_tests;
    mod zone_tests;
    mod zone_vectors;
}
