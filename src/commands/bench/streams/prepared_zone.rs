//! The configuration of the engine under load, two zones with keys that nobody knows, and blocks under the key of the first,
//! which a boundary in this process makes before the engine starts.

use std::{
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use hsm::{
    Account, AccountNumber, CardBinding, Hsm, KeyAlgorithm, KeyFileUse, KeyStore, KeyUsage, Keys, PinRecord, Reply,
    Request, Source, Target, ZoneFormat, ZoneKey, ZoneName,
};

use tokio::runtime::Builder;

use super::{TENANT, source_key, zone_key};
use crate::commands::bench::BenchError;

/// The blocks: each sets another PIN, because the fill of format 1 is random.
const BLOCKS: usize = 200_000;
/// The cards of the load.
const CARDS: usize = 1_000_000;
/// The PINs of the blocks.
const PINS: usize = 256;
/// The cards whose blocks are translated, each with a sealed account number.
const SEALED_CARDS: usize = 4_096;
/// The index of the first zone, of the blocks.
pub(super) const ZONE_INDEX: u32 = 0;
/// The index of the second zone.
const TARGET_INDEX: u32 = 1;
const SOURCE: &str = "bench";
const TARGET: &str = "bench-target";

/// An engine's configuration and vault, and the blocks of its zone.
pub(super) struct PreparedZone {
    /// The configuration of the engine, without its listener.
    pub(super) config: String,
    pub(super) blocks: &'static Blocks,
}

/// Blocks under the key of the first zone.
pub(super) struct Blocks {
    blocks: Vec<[u8; 8]>,
    /// The sealed account numbers of the first cards.
    sealed_accounts: Vec<Vec<u8>>,
    next: AtomicUsize,
}

impl PreparedZone {
    /// Makes the vault in a directory, its zone keys, and the blocks.
    ///
    /// # Errors
    /// [`BenchError`]: the files cannot be written, or the boundary does not open.
    pub(super) fn make(directory: &Path) -> Result<Self, BenchError> {
        let config = format!(
            "data_directory = {:?}\n\
             [limits]\ncalls_per_tenant_per_second = 10000000\ncalls_per_card_per_minute = 10000000\n\
             stream_items_per_tenant_per_second = 10000000\n\
             [store]\nwaiting_changes_max = 16384\n\
             [[zones]]\nname = \"{SOURCE}\"\ntenant = \"{TENANT}\"\nindex = {ZONE_INDEX}\n\
             uses = [\"set-pin\", \"get-pin\", \"translate\"]\n\
             [[zones]]\nname = \"{TARGET}\"\ntenant = \"{TENANT}\"\nindex = {TARGET_INDEX}\nformats = [\"iso-0\"]\n\
             uses = [\"translate\"]\n",
            directory.join("data")
        );
        fs::create_dir_all(directory.join("data"))?;
        let file = directory.join("boundary.toml");
        fs::write(&file, &config)?;
        make_zone_keys(&file)?;
        let hsm = Hsm::open(hsm_config::HsmProcess::load_inline(Some(&file))?).map_err(failed)?;
        let runtime = Builder::new_current_thread().build()?;
        let (blocks, sealed_accounts) =
            runtime.block_on(async { Ok::<_, BenchError>((make_blocks(&hsm).await?, seal_accounts(&hsm).await?)) })?;
        Ok(Self { config, blocks: Box::leak(Box::new(Blocks { blocks, sealed_accounts, next: AtomicUsize::new(0) })) })
    }
}

fn failed(error: impl std::fmt::Display) -> BenchError {
    BenchError::Load(error.to_string())
}

fn zone_name(text: &str) -> Result<ZoneName, BenchError> {
    ZoneName::parse(text).ok_or_else(|| BenchError::Load("not the name of a zone".into()))
}

/// Makes a vault with the keys of both zones.
fn make_zone_keys(config: &Path) -> Result<(), BenchError> {
    let (keys, _) = hsm_config::load_keys(config)?;
    let Keys::Vault(vault) = keys else { return Err(BenchError::Load("the keys are not in a vault".into())) };
    Hsm::create_vault(&vault, KeyFileUse::Refuse).map_err(failed)?;
    let (keys, wanted) = hsm_config::load_keys(config)?;
    let now = clock::now().0;
    let mut store = KeyStore::open(keys, &wanted, now).map_err(failed)?;
    for zone in [SOURCE, TARGET] {
        let name = KeyUsage::Zone(zone_name(zone)?);
        let made = store.make(name.clone(), KeyAlgorithm::TdesDouble, now).map_err(failed)?;
        store.activate(&name, made.version, now).map_err(failed)?;
    }
    store.commit([0; 32]).map_err(failed)?;
    store.finish().map_err(failed)
}

async fn make_blocks(hsm: &Hsm) -> Result<Vec<[u8; 8]>, BenchError> {
    let card = CardBinding::new(TENANT, "1").map_err(failed)?;
    let unexpected = || BenchError::Load("the boundary sent another reply".into());
    let mut records = Vec::with_capacity(PINS);
    for _ in 0..PINS {
        let generate = Request::Generate { digits: 6, card, account: Account::PlasticId };
        let Reply::Record { record, .. } = hsm.execute(generate).await.map_err(failed)? else {
            return Err(unexpected());
        };
        records.push(record);
    }
    let key = ZoneKey { zone: zone_name(SOURCE)?, version: None };
    let mut blocks = Vec::with_capacity(BLOCKS);
    for record in records.iter().cycle().take(BLOCKS) {
        let target = Target::Zone { key: key.clone(), format: ZoneFormat::Iso1 };
        let source = Source::Record(PinRecord::clone(record));
        let translate = Request::Translate { source, target, card, account: Account::PlasticId };
        let Reply::ZoneBlock(block) = hsm.execute(translate).await.map_err(failed)? else { return Err(unexpected()) };
        blocks.push(block.as_bytes().try_into().map_err(failed)?);
    }
    Ok(blocks)
}

async fn seal_accounts(hsm: &Hsm) -> Result<Vec<Vec<u8>>, BenchError> {
    let mut sealed = Vec::with_capacity(SEALED_CARDS);
    for number in 0..SEALED_CARDS {
        let plastic_id = plastic_id(number);
        let (number, card) = (AccountNumber::parse(&plastic_id), CardBinding::new(TENANT, &plastic_id));
        let seal = Request::SealPan { number: number.map_err(failed)?, card: card.map_err(failed)? };
        let Reply::SealedPan(account) = hsm.execute(seal).await.map_err(failed)? else {
            return Err(BenchError::Load("the boundary sent another reply".into()));
        };
        sealed.push(account.as_bytes().to_vec());
    }
    Ok(sealed)
}

/// The plasticId of a card, with as many digits as an account number.
fn plastic_id(number: usize) -> String {
    (4_716_000_000_000_000 + (number % CARDS) as u64).to_string()
}

impl Blocks {
    /// The next number of an item: no two items of a run have the same.
    pub(super) fn next_number(&self) -> usize {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// A translation to the second zone.
    pub(super) fn translation(&self, number: usize) -> proto::TranslationItem {
        let card = number % SEALED_CARDS;
        proto::TranslationItem {
            plastic_id: plastic_id(card),
            source_block: Some(self.block(number)),
            target_key: Some(zone_key(TARGET_INDEX)),
            target_format: proto::ZoneFormat::Iso0.into(),
            sealed_account: self.sealed_accounts.get(card).cloned().unwrap_or_default(),
        }
    }

    /// A card, and a block that sets another PIN than the block before of this card.
    pub(super) fn set(&self, number: usize) -> (String, proto::ZoneBlock) {
        (plastic_id(number), self.block(number))
    }

    fn block(&self, number: usize) -> proto::ZoneBlock {
        let block = self.blocks.get((number + number / CARDS) % BLOCKS).copied().unwrap_or_default();
        proto::ZoneBlock {
            zone_key: Some(source_key()),
            format: proto::ZoneFormat::Iso1.into(),
            pin_block: block.to_vec(),
        }
    }
}
