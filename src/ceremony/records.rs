//! How many PIN records are under each storage key: in the store of an engine that is stopped, or as a running one says.

use std::path::Path;

use clap::Args;
use hsm::{KeyName, KeyStore, PinRecord, RecordsKept};

use super::CeremonyError;
use crate::{
    config,
    store::embedded::{Embedded, EmbeddedConfig, StoreOpenError},
};

/// How many cards' records are read at a time.
const PAGE_CARDS: usize = 4_096;

/// Who is asked.
#[derive(Args)]
pub(super) struct RecordsSource {
    /// The running engine that is asked what its records are under, such as 127.0.0.1:50051 or
    /// https://engine.internal:50051; without it the engine must be stopped, and its store is read
    #[cfg(feature = "operator")]
    #[arg(long, value_name = "ADDRESS")]
    engine: Option<String>,
    #[cfg(feature = "operator")]
    #[command(flatten)]
    tls: crate::operator::EngineTls,
}

/// What was counted, and whether it still holds when the key is retired.
pub(super) struct Counted {
    kept: RecordsKept,
    /// By a running engine: the keys it has in use.
    #[cfg(feature = "operator")]
    by_engine: Option<Vec<crate::proto::Key>>,
}

impl RecordsSource {
    /// Counts, where the key is one that records are under.
    pub(super) fn count(&self, name: &KeyName, config: &Path) -> Result<Counted, CeremonyError> {
        // A seal key too must not be retired while the engine makes with it.
        #[cfg(feature = "operator")]
        if let Some(address) = &self.engine
            && (name.keeps_records() || matches!(name, KeyName::Seal | KeyName::SealEncrypting))
        {
            return by_engine(address, &self.tls);
        }
        if !name.keeps_records() {
            return Ok(Counted::in_store(RecordsKept::default()));
        }
        in_store(config).map(Counted::in_store)
    }
}

impl Counted {
    fn in_store(kept: RecordsKept) -> Self {
        Self {
            kept,
            #[cfg(feature = "operator")]
            by_engine: None,
        }
    }

    /// The counts, where nothing more can come under an older key of this name: a stopped engine takes up the newest key when
    /// it starts, and a running one must have it already.
    #[cfg_attr(not(feature = "operator"), allow(unused_variables, reason = "only a running engine has keys in use"))]
    pub(super) fn holding_still(&self, store: &KeyStore, name: &KeyName) -> Result<&RecordsKept, CeremonyError> {
        #[cfg(feature = "operator")]
        if let Some(in_use) = &self.by_engine {
            let active = store.keys().filter(|key| key.name == *name && key.state() == hsm::KeyState::Active);
            if let Some(newest) = active.max_by_key(|key| key.version) {
                let reference = newest.reference();
                let check_value = newest.check_value.map(|value| value.to_string()).unwrap_or_default();
                // Of a key that may not encrypt in its token the engine can tell none.
                let same = |found: &str| found.is_empty() || found == check_value;
                if !in_use.iter().any(|key| key.reference == reference && same(&key.check_value)) {
                    return Err(CeremonyError::OtherEngine { key: reference });
                }
            }
        }
        Ok(&self.kept)
    }
}

/// In the store of the engine, which must not run meanwhile.
fn in_store(config: &Path) -> Result<RecordsKept, CeremonyError> {
    let mut kept = RecordsKept::default();
    let directory = config::Engine::load(Some(config))?.store.directory;
    let store = match Embedded::open(&EmbeddedConfig::existing(directory)) {
        Err(StoreOpenError::Absent { .. }) => return Ok(kept),
        opened => opened?,
    };
    let mut after = None;
    loop {
        let page = store.pins_page(after.as_ref(), PAGE_CARDS)?;
        let Some((last, _)) = page.last() else { return Ok(kept) };
        after = Some(*last);
        for (_, pin) in &page {
            kept.count(&PinRecord::from_bytes(&pin.record).map_err(|_| CeremonyError::Record)?);
        }
    }
}

#[cfg(feature = "operator")]
fn by_engine(address: &str, tls: &crate::operator::EngineTls) -> Result<Counted, CeremonyError> {
    let asked = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut engine = crate::operator::RunningEngine::at(address, tls)?;
        Ok::<_, crate::operator::OperatorError>((engine.keys().await?, engine.records().await?))
    });
    let (in_use, records) = asked?;
    if records.unreadable > 0 {
        return Err(CeremonyError::Record);
    }
    Ok(Counted { kept: kept_of(&records.counts)?, by_engine: Some(in_use) })
}

/// What an engine counted; a kind that this release does not know is not left out.
#[cfg(feature = "operator")]
fn kept_of(counts: &[crate::proto::RecordCount]) -> Result<RecordsKept, CeremonyError> {
    use crate::proto::{BoundaryLevel, StoredForm};

    let mut kept = RecordsKept::default();
    for count in counts {
        let form = match count.form() {
            StoredForm::Wrapped => hsm::Form::Wrapped,
            StoredForm::Iso4 => hsm::Form::Iso4,
            StoredForm::Iso3 => hsm::Form::Iso3,
            StoredForm::Iso0 => hsm::Form::Iso0,
            StoredForm::Unspecified => return Err(CeremonyError::Record),
        };
        let level = match count.level() {
            BoundaryLevel::Token => hsm::Level::Token,
            BoundaryLevel::Host => hsm::Level::Host,
            BoundaryLevel::Unspecified => return Err(CeremonyError::Record),
        };
        let version = u16::try_from(count.storage_key_version).map_err(|_| CeremonyError::Record)?;
        kept.count_many(form, level, version, count.records);
    }
    Ok(kept)
}

#[cfg(all(test, feature = "operator"))]
mod tests {
    use super::*;
    use crate::proto::{BoundaryLevel, RecordCount, StoredForm};

    fn count(form: StoredForm, level: BoundaryLevel, storage_key_version: u32) -> RecordCount {
        RecordCount { form: form.into(), level: level.into(), storage_key_version, records: 1 }
    }

    #[test]
    fn a_count_of_a_kind_that_is_not_known_here_retires_nothing() {
        assert!(kept_of(&[count(StoredForm::Iso4, BoundaryLevel::Host, 1)]).is_ok());
        for unknown in [
            count(StoredForm::Unspecified, BoundaryLevel::Host, 1),
            count(StoredForm::Iso4, BoundaryLevel::Unspecified, 1),
            count(StoredForm::Iso4, BoundaryLevel::Host, 65_536),
        ] {
            assert!(matches!(kept_of(&[unknown]), Err(CeremonyError::Record)));
        }
    }
}
