//! The recommended designs, each within the limits of a scenario.

use std::{fmt, hash::Hash};

use stateright::Model;

use crate::batch_model::{self, BatchModel};
use crate::change_pin_model::{self, ChangePinModel};
use crate::database::Faults;
use crate::page_model::{self, PageModel};
use crate::report::Report;
use crate::revocation_model::{self, RevocationModel};
use crate::rotation_model::{self, RotationModel};
use crate::set_pin_model::{self, SetPinModel};
use crate::verify_pin_model::{self, VerifyPinModel};
use crate::zone_set_model::{self, ZoneSetModel};

/// A run of a checker.
pub(crate) type Check = Box<dyn Fn() -> Report>;

/// Who runs a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// The tests, and the command.
    Small,
    /// The command alone.
    Whole,
}

/// A recommended design, within some limits.
pub struct Scenario {
    pub name: &'static str,
    pub size: Size,
    /// Checks the safety properties in each state.
    pub check: Check,
    /// Checks that from each state there is a path to service; `None` where the graph is too large for memory.
    pub check_recovery: Option<Check>,
}

/// One failover, and one restart of the primary before it.
pub(crate) const FAILOVER: Faults = Faults { primary_restarts: 1, failovers: 1 };
pub(crate) const TWO_CONTROLS: set_pin_model::Limits =
    set_pin_model::Limits { second_control: true, calls: 4, ..SET_PIN };
pub(crate) const SET_PIN: set_pin_model::Limits = set_pin_model::Limits {
    calls: 3,
    issues: false,
    other_blocks: false,
    second_control: false,
    ticks: 0,
    skew: 0,
    cuts: 0,
    faults: Faults { primary_restarts: 0, failovers: 0 },
    engine_crashes: 0,
    twins: 0,
};
pub(crate) const VERIFY_PIN: verify_pin_model::Limits = verify_pin_model::Limits {
    tries: 2,
    calls: 4,
    resets: 0,
    cuts: 0,
    crashes: 0,
    faults: Faults { primary_restarts: 0, failovers: 0 },
};
pub(crate) const ROTATION: rotation_model::Limits = rotation_model::Limits {
    sets: 1,
    reencryptions: 1,
    cuts: 0,
    crashes: 0,
    faults: Faults { primary_restarts: 0, failovers: 0 },
    newcomer: false,
    is_patient: false,
};

pub(crate) const BATCH: batch_model::Limits = batch_model::Limits {
    calls: 3,
    cards: 2,
    cuts: 0,
    rollbacks: 0,
    faults: Faults { primary_restarts: 0, failovers: 0 },
};

pub(crate) const CHANGE_PIN: change_pin_model::Limits = change_pin_model::Limits {
    tries: 2,
    calls: 3,
    sets: false,
    cuts: 0,
    crashes: 0,
    faults: Faults { primary_restarts: 0, failovers: 0 },
};

pub(crate) const REVOCATION: revocation_model::Limits =
    revocation_model::Limits { calls: 2, cuts: 1, faults: Faults { primary_restarts: 0, failovers: 0 } };

pub(crate) const ZONE_SET: zone_set_model::Limits =
    zone_set_model::Limits { calls: 3, cuts: 1, faults: Faults { primary_restarts: 0, failovers: 0 } };

/// A model whose properties must hold.
fn scenario<M>(size: Size, name: &'static str, model: M, serves: fn(&M::State) -> bool) -> Scenario
where
    M: Model + Copy + Send + Sync + 'static,
    M::State: Clone + fmt::Debug + Hash + PartialEq + Send + Sync,
    M::Action: Clone + fmt::Debug + PartialEq + Send + Sync,
{
    Scenario {
        name,
        size,
        check: Box::new(move || Report::check(model, None)),
        check_recovery: Some(Box::new(move || Report::check_recovery(&model, serves))),
    }
}

fn set_pin(size: Size, name: &'static str, limits: set_pin_model::Limits) -> Scenario {
    scenario(size, name, SetPinModel { design: set_pin_model::Design::RECOMMENDED, limits }, SetPinModel::serves)
}

fn batch(size: Size, name: &'static str, limits: batch_model::Limits) -> Scenario {
    scenario(size, name, BatchModel { design: batch_model::Design::RECOMMENDED, limits }, BatchModel::serves)
}

fn change_pin(size: Size, name: &'static str, limits: change_pin_model::Limits) -> Scenario {
    scenario(
        size,
        name,
        ChangePinModel { design: change_pin_model::Design::RECOMMENDED, limits },
        ChangePinModel::serves,
    )
}

fn revocation(size: Size, name: &'static str, limits: revocation_model::Limits) -> Scenario {
    let design = revocation_model::Design::RECOMMENDED;
    scenario(size, name, RevocationModel { design, limits }, RevocationModel::serves)
}

fn page(size: Size, name: &'static str, limits: page_model::Limits) -> Scenario {
    scenario(size, name, PageModel { design: page_model::Design::RECOMMENDED, limits }, PageModel::serves)
}

fn zone_set(size: Size, name: &'static str, limits: zone_set_model::Limits) -> Scenario {
    scenario(size, name, ZoneSetModel { design: zone_set_model::Design::RECOMMENDED, limits }, ZoneSetModel::serves)
}

fn verify_pin(size: Size, name: &'static str, limits: verify_pin_model::Limits) -> Scenario {
    scenario(
        size,
        name,
        VerifyPinModel { design: verify_pin_model::Design::RECOMMENDED, limits },
        VerifyPinModel::serves,
    )
}

fn rotation(size: Size, name: &'static str, limits: rotation_model::Limits) -> Scenario {
    let design = rotation_model::Design::RECOMMENDED;
    let model = RotationModel { design, limits };
    // An end needs re-encryptions that succeed. Where the limit of the model stops them, the protocol is not to blame.
    let more = RotationModel { design, limits: rotation_model::Limits { reencryptions: 5, sets: 1, ..limits } };
    let serves = move |state: &rotation_model::State| RotationModel::serves(state) || more.is_out_of_bounds(state);
    Scenario {
        name,
        size,
        check: Box::new(move || Report::check(model, None)),
        check_recovery: Some(Box::new(move || Report::check_recovery(&more, serves))),
    }
}

impl Scenario {
    /// Every scenario, those of one model together.
    pub fn all() -> Vec<Self> {
        use set_pin_model::Limits as SetPin;
        let expiry = SetPin { calls: 2, ticks: 1, cuts: 1, ..SET_PIN };
        let one_set = ROTATION;
        let mut all = vec![
            set_pin(Size::Small, "set_pin: failover", SetPin { calls: 2, cuts: 1, faults: FAILOVER, ..SET_PIN }),
            set_pin(Size::Small, "set_pin: two controls", SetPin { cuts: 1, ..TWO_CONTROLS }),
            set_pin(Size::Small, "set_pin: expiry, slow clock", SetPin { skew: -1, ..expiry }),
            set_pin(Size::Small, "set_pin: expiry, fast clock", SetPin { skew: 1, ..expiry }),
            set_pin(Size::Small, "set_pin: twin", SetPin { calls: 2, twins: 1, cuts: 1, ..SET_PIN }),
            set_pin(Size::Small, "set_pin: tzpk", SetPin { issues: true, cuts: 1, ..SET_PIN }),
            set_pin(
                Size::Whole,
                "set_pin: twin and crash",
                SetPin { calls: 2, twins: 1, cuts: 1, engine_crashes: 1, ..SET_PIN },
            ),
            set_pin(
                Size::Whole,
                "set_pin: tzpk and crash",
                SetPin { issues: true, cuts: 1, engine_crashes: 1, ..SET_PIN },
            ),
            set_pin(Size::Whole, "set_pin: two controls, crash", SetPin { engine_crashes: 1, ..TWO_CONTROLS }),
            set_pin(Size::Whole, "set_pin: two controls, failover", SetPin { faults: FAILOVER, ..TWO_CONTROLS }),
            set_pin(
                Size::Whole,
                "set_pin: retries and cuts",
                SetPin { other_blocks: true, cuts: 2, engine_crashes: 1, ..SET_PIN },
            ),
        ];
        all.extend([
            verify_pin(Size::Small, "verify_pin: cut", verify_pin_model::Limits { calls: 3, cuts: 1, ..VERIFY_PIN }),
            verify_pin(
                Size::Small,
                "verify_pin: crash",
                verify_pin_model::Limits { calls: 3, crashes: 1, ..VERIFY_PIN },
            ),
            verify_pin(
                Size::Whole,
                "verify_pin: cut and crash",
                verify_pin_model::Limits { cuts: 1, crashes: 1, ..VERIFY_PIN },
            ),
            verify_pin(
                Size::Whole,
                "verify_pin: failover",
                verify_pin_model::Limits { calls: 3, faults: FAILOVER, ..VERIFY_PIN },
            ),
            verify_pin(
                Size::Whole,
                "verify_pin: reset",
                verify_pin_model::Limits { resets: 1, crashes: 1, ..VERIFY_PIN },
            ),
        ]);
        all.extend([
            rotation(Size::Small, "rotation: failover", rotation_model::Limits { faults: FAILOVER, ..one_set }),
            rotation(Size::Small, "rotation: newcomer", rotation_model::Limits { newcomer: true, ..one_set }),
            rotation(
                Size::Small,
                "rotation: one set after the other",
                rotation_model::Limits { sets: 2, reencryptions: 2, is_patient: true, ..one_set },
            ),
            rotation(
                Size::Whole,
                "rotation: newcomer and failover",
                rotation_model::Limits { newcomer: true, faults: FAILOVER, ..one_set },
            ),
            rotation(
                Size::Whole,
                "rotation: cut and crash",
                rotation_model::Limits { sets: 2, reencryptions: 2, cuts: 1, crashes: 1, ..one_set },
            ),
        ]);
        all.extend([
            batch(Size::Small, "batch: cut", batch_model::Limits { cuts: 1, ..BATCH }),
            batch(Size::Small, "batch: rollback", batch_model::Limits { rollbacks: 1, ..BATCH }),
            batch(Size::Whole, "batch: cut and rollback", batch_model::Limits { cuts: 1, rollbacks: 1, ..BATCH }),
            batch(Size::Whole, "batch: failover", batch_model::Limits { faults: FAILOVER, ..BATCH }),
        ]);
        all.extend([
            change_pin(Size::Small, "change_pin: cut", change_pin_model::Limits { cuts: 1, ..CHANGE_PIN }),
            change_pin(
                Size::Small,
                "change_pin: crash and set",
                change_pin_model::Limits { sets: true, crashes: 1, ..CHANGE_PIN },
            ),
            change_pin(
                Size::Whole,
                "change_pin: cut and set",
                change_pin_model::Limits { sets: true, cuts: 1, ..CHANGE_PIN },
            ),
            change_pin(
                Size::Whole,
                "change_pin: failover and set",
                change_pin_model::Limits { sets: true, faults: FAILOVER, ..CHANGE_PIN },
            ),
            change_pin(
                Size::Whole,
                "change_pin: cut and crash",
                change_pin_model::Limits { cuts: 1, crashes: 1, ..CHANGE_PIN },
            ),
        ]);
        all.extend([
            revocation(Size::Small, "revocation: cut", REVOCATION),
            revocation(
                Size::Small,
                "revocation: failover",
                revocation_model::Limits { cuts: 0, faults: FAILOVER, ..REVOCATION },
            ),
            revocation(
                Size::Whole,
                "revocation: cut and failover",
                revocation_model::Limits { faults: FAILOVER, ..REVOCATION },
            ),
            page(Size::Small, "page: cut and failover", page_model::Limits { cuts: 1, faults: FAILOVER }),
        ]);
        all.extend([
            zone_set(Size::Small, "zone_set: cut", ZONE_SET),
            zone_set(
                Size::Small,
                "zone_set: failover",
                zone_set_model::Limits { cuts: 0, faults: FAILOVER, ..ZONE_SET },
            ),
            zone_set(Size::Whole, "zone_set: four calls", zone_set_model::Limits { calls: 4, ..ZONE_SET }),
        ]);
        all.extend(allowed());
        all
    }
}

/// Designs that differ from the recommended ones and are safe too.
fn allowed() -> Vec<Scenario> {
    let set_pin =
        set_pin_model::Design { resolve: set_pin_model::Resolve::Never, ..set_pin_model::Design::RECOMMENDED };
    let failover = set_pin_model::Limits { calls: 2, cuts: 1, faults: FAILOVER, ..SET_PIN };
    let verify_pin =
        verify_pin_model::Design { unknown: verify_pin_model::Unknown::Leave, ..verify_pin_model::Design::RECOMMENDED };
    let cut = verify_pin_model::Limits { calls: 3, cuts: 1, ..VERIFY_PIN };
    let rotation = rotation_model::Design {
        minimum: rotation_model::Minimum::InTransactionLocked,
        ..rotation_model::Design::RECOMMENDED
    };
    let newcomer = rotation_model::Limits { newcomer: true, faults: FAILOVER, ..ROTATION };
    let batch = batch_model::Design { numbers: batch_model::Numbers::FromRow, ..batch_model::Design::RECOMMENDED };
    let again = batch_model::Design { absent: batch_model::Absent::SentAgain, ..batch_model::Design::RECOMMENDED };
    let locked = zone_set_model::Design {
        guard: zone_set_model::Guard::CallerAfterLock,
        repeat: zone_set_model::Repeat::KeepsGeneration,
    };
    let reloaded = revocation_model::Design {
        right: revocation_model::Right::Memory,
        acknowledge: revocation_model::Acknowledge::AfterEachReload,
        ..revocation_model::Design::RECOMMENDED
    };
    let all = [
        scenario(
            Size::Small,
            "set_pin: allowed, a commit in doubt answered UNAVAILABLE",
            SetPinModel { design: set_pin, limits: failover },
            SetPinModel::serves,
        ),
        scenario(
            Size::Small,
            "verify_pin: allowed, a reservation in doubt left alone",
            VerifyPinModel { design: verify_pin, limits: cut },
            VerifyPinModel::serves,
        ),
        scenario(
            Size::Small,
            "rotation: allowed, the minimum in one row FOR SHARE",
            RotationModel { design: rotation, limits: newcomer },
            RotationModel::serves,
        ),
        scenario(
            Size::Small,
            "batch: allowed, sequence numbers from the row",
            BatchModel { design: batch, limits: batch_model::Limits { cuts: 1, ..BATCH } },
            BatchModel::serves,
        ),
        scenario(
            Size::Small,
            "revocation: allowed, rights in memory, i1 alone",
            RevocationModel { design: reloaded, limits: REVOCATION },
            RevocationModel::serves,
        ),
        scenario(
            Size::Small,
            "batch: allowed, a change without an event sent again",
            BatchModel { design: again, limits: batch_model::Limits { cuts: 1, ..BATCH } },
            BatchModel::serves,
        ),
        scenario(
            Size::Small,
            "zone_set: allowed, the caller checked after the lock",
            ZoneSetModel { design: locked, limits: ZONE_SET },
            ZoneSetModel::serves,
        ),
    ];
    // Service is a promise of the recommended designs.
    all.into_iter().map(|scenario| Scenario { check_recovery: None, ..scenario }).collect()
}
