//! `pinseal bench controls`: the memory of one live control: controls in a fresh store, half of them with a tzpk.

use std::{fmt, ops::Range, process, sync::Arc, time::Duration};

use futures::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use tokio::runtime::Builder;

use super::{BenchError, ControlsArguments, process_memory::ProcessMemory, progress_bar::progress};
use crate::commands::demo::TemporaryDirectory;
use audit::card_reference::CardReference;
use audit::entry::{Action, Body, CardEvent, Event, Isolation, Level, Outcome, Stamp};
use domain::card::{CardKey, PlasticId, RegisteredAccount, Tenant};
use domain::control::{ControlId, NewControl, Scope, SealedTzpk, Transition};
use domain::rules::{Admission, UnknownCards};
use engine_server::StoreConfig;
use store::Store;

/// The store changes in flight at a time.
const IN_FLIGHT: usize = 512;

/// The resident memory before the first control was opened, with half of them, and with all of them, in bytes.
pub(super) struct Cost {
    controls: usize,
    before: u64,
    half: u64,
    after: u64,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |from: u64, to: u64, controls: usize| to.saturating_sub(from) as f64 / controls.max(1) as f64;
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let first_half = self.controls / 2;
        write!(
            f,
            "{} live controls: resident memory {:.0} MiB before, {:.0} MiB with half of them, {:.0} MiB after: {:.0} bytes each, buffers and caches of the store included; {:.0} bytes for each of the second half, which finds the buffers full",
            self.controls,
            mebibytes(self.before),
            mebibytes(self.half),
            mebibytes(self.after),
            each(self.before, self.after, self.controls),
            each(self.half, self.after, self.controls - first_half),
        )
    }
}

/// Opens the controls and reads the resident memory of the process.
pub(super) fn live_controls(arguments: &ControlsArguments) -> Result<Cost, BenchError> {
    let directory = TemporaryDirectory::unless(arguments.directory.as_deref())?;
    Builder::new_current_thread().enable_all().build()?.block_on(async {
        let store = StoreConfig::embedded(directory.path()).open().await?;
        let before = ProcessMemory::read(process::id())?.resident_bytes;
        let bar = progress(arguments.count as u64);
        let first_half = arguments.count / 2;
        open_all(&*store, 0..first_half, &bar).await?;
        let half = ProcessMemory::read(process::id())?.resident_bytes;
        open_all(&*store, first_half..arguments.count, &bar).await?;
        let after = ProcessMemory::read(process::id())?.resident_bytes;
        bar.finish_and_clear();
        store.close().await;
        Ok(Cost { controls: arguments.count, before, half, after })
    })
}

async fn open_all(store: &dyn Store, numbers: Range<usize>, bar: &ProgressBar) -> Result<(), BenchError> {
    let opened = stream::iter(numbers).map(|number| open(store, number, bar));
    opened.buffer_unordered(IN_FLIGHT).try_collect::<Vec<()>>().await.map(drop)
}

async fn open(store: &dyn Store, number: usize, bar: &ProgressBar) -> Result<(), BenchError> {
    let refused = |error: &dyn fmt::Display| BenchError::Load(error.to_string());
    let named = |text: &str| PlasticId::parse(text).map_err(|error| refused(&error));
    let tenant = Tenant::parse("bank").map_err(|error| refused(&error))?;
    let card = CardKey { tenant, plastic: named(&format!("{:010}", number / 8))? };
    let stamp = Stamp { level: Level::Host, token: "software".into(), isolation: Isolation::Process, keys: [].into() };
    let stamp = Arc::new(stamp);
    let event = |action| Event {
        at: clock::now(),
        caller: "bench".into(),
        tenant: Some(tenant),
        audit_user: "bench".into(),
        request: None,
        outcome: Outcome::Done,
        stamp: Arc::clone(&stamp),
        body: Body::Card(CardEvent::new(action, "411111******1111".into(), CardReference::from_bytes([7; 16]))),
    };
    if number.is_multiple_of(8) {
        let account = RegisteredAccount { sealed: [7; 30].into(), masked: "411111******1111".into() };
        store.register_card(card, Some(account), event(Action::RegisterCard)).await.map_err(|error| refused(&error))?;
    }
    let control = NewControl {
        id: ControlId::random(),
        card,
        scope: Scope::SetPin,
        lifetime: Duration::from_secs(3_600),
        device_key: None,
        page_client: None,
    };
    let admission = Admission {
        controls_per_card_per_hour: 1_000,
        unknown_cards: UnknownCards::Accept,
        unregistered_cards_per_tenant: u32::MAX,
    };
    let opened =
        store.open_control(control, admission, event(Action::OpenControl)).await.map_err(|error| refused(&error))?;
    if number.is_multiple_of(2) {
        let key = Transition::Key { tzpk: SealedTzpk([7; 48].into()), replaces: None };
        let keyed = store.advance(opened.id, key, event(Action::IssueTzpk)).await;
        keyed.map_err(|error| refused(&error))?;
    }
    bar.inc(1);
    Ok(())
}
