//! Designs that look plausible and lose a PIN, a try or a key. Each differs from a recommended one in one choice.

use crate::batch_model::{self as batch, BatchModel};
use crate::change_pin_model::{self as change_pin, ChangePinModel};
use crate::page_model::{self as page, PageModel};
use crate::report::{Report, SERVICE};
use crate::revocation_model::{self as revocation, RevocationModel};
use crate::rotation_model::{self as rotation, RotationModel};
use crate::scenario::{
    BATCH, CHANGE_PIN, Check, FAILOVER, REVOCATION, ROTATION, SET_PIN, TWO_CONTROLS, VERIFY_PIN, ZONE_SET,
};
use crate::set_pin_model::{self as set_pin, SetPinModel};
use crate::verify_pin_model::{self as verify_pin, VerifyPinModel};
use crate::zone_set_model::{self as zone_set, ZoneSetModel};

/// A design that violates a property.
pub struct RejectedDesign {
    /// The name of its test.
    pub name: &'static str,
    /// The rules of the protocol that the design breaks, such as "R3".
    pub rules: &'static str,
    pub property: &'static str,
    /// Ends at the first violation of the property.
    pub check: Check,
}

fn sets(
    name: &'static str,
    rules: &'static str,
    property: &'static str,
    design: set_pin::Design,
    limits: set_pin::Limits,
) -> RejectedDesign {
    let model = SetPinModel { design, limits };
    RejectedDesign { name, rules, property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

fn batches(
    name: &'static str,
    rules: &'static str,
    property: &'static str,
    design: batch::Design,
    limits: batch::Limits,
) -> RejectedDesign {
    let model = BatchModel { design, limits };
    RejectedDesign { name, rules, property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

fn changes(
    name: &'static str,
    rules: &'static str,
    property: &'static str,
    design: change_pin::Design,
    limits: change_pin::Limits,
) -> RejectedDesign {
    let model = ChangePinModel { design, limits };
    RejectedDesign { name, rules, property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

fn revokes(
    name: &'static str,
    rules: &'static str,
    property: &'static str,
    design: revocation::Design,
    limits: revocation::Limits,
) -> RejectedDesign {
    let model = RevocationModel { design, limits };
    RejectedDesign { name, rules, property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

fn verifies(
    name: &'static str,
    property: &'static str,
    design: verify_pin::Design,
    limits: verify_pin::Limits,
) -> RejectedDesign {
    let model = VerifyPinModel { design, limits };
    RejectedDesign { name, rules: "R9", property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

fn rotates(
    name: &'static str,
    rules: &'static str,
    property: &'static str,
    design: rotation::Design,
    limits: rotation::Limits,
) -> RejectedDesign {
    let model = RotationModel { design, limits };
    RejectedDesign { name, rules, property, check: Box::new(move || Report::check_rejected(&model, property)) }
}

impl RejectedDesign {
    /// Every rejected design, those of one model together.
    pub fn all() -> Vec<Self> {
        let mut all = set_pin_designs();
        all.extend(verify_pin_designs());
        all.extend(rotation_designs());
        all.extend(batch_designs());
        all.extend(change_pin_designs());
        all.extend(revocation_designs());
        all.extend(page_designs());
        all.extend(zone_set_designs());
        all
    }
}

fn set_pin_designs() -> Vec<RejectedDesign> {
    use set_pin::{
        A2, B1, B2, B3, B4, Chain, Clock, Deadline, Design, E, F, Fence, Issue, Limits, Order, Resolve, Retry,
    };
    let best = Design::RECOMMENDED;
    let cut = Limits { cuts: 1, ..SET_PIN };
    let failover = Limits { calls: 2, cuts: 1, faults: FAILOVER, ..SET_PIN };
    let two = Limits { cuts: 1, ..TWO_CONTROLS };
    let tzpk = Limits { issues: true, other_blocks: true, ..cut };
    let slow = Limits { calls: 2, ticks: 1, skew: -1, ..cut };
    let twin = Limits { calls: 2, twins: 1, ..cut };
    let plain_lookup = Design { resolve: Resolve::PlainLookup, ..best };
    let engine_clock = Design { clock: Clock::Engine, ..best };
    let by_time = Design { fence: Fence::ByTime, ..best };
    let memory = Design { chain: Chain::Memory, ..best };
    let stuck = Design { resolve: Resolve::Never, chain: Chain::ComparedNeverReloaded, ..best };
    let stuck = SetPinModel { design: stuck, limits: Limits { calls: 2, ..cut } };
    vec![
        sets("plain_lookup_refuses_a_block_that_is_set_later", "R3", B2, plain_lookup, cut),
        sets("plain_lookup_acknowledges_what_a_failover_removes", "R3", B1, plain_lookup, failover),
        sets("retry_answered_from_a_read", "R7, R11", B1, Design { retry: Retry::FromRead, ..best }, failover),
        sets("any_open_control_may_set", "R6", A2, Design { order: Order::Any, ..best }, two),
        sets("newest_control_wins", "R4, R6", A2, Design { order: Order::NewestControl, ..best }, two),
        sets("retry_confirmed_although_replaced", "R7", A2, Design { retry: Retry::AfterCommit, ..best }, two),
        sets(
            "retry_confirmed_without_a_new_generation",
            "R7",
            A2,
            Design { retry: Retry::AfterCommitIfCurrent, ..best },
            two,
        ),
        sets("tzpk_stored_blindly", "R5", B3, Design { issue: Issue::Blind, ..best }, tzpk),
        sets("deadlines_of_callers_ignored", "R5", B3, Design { deadline: Deadline::Ignored, ..best }, tzpk),
        sets("expiry_by_a_slow_engine_clock", "R6", B4, engine_clock, slow),
        sets("expiry_by_a_fast_engine_clock", "R6", B2, engine_clock, Limits { skew: 1, ..slow }),
        sets(
            "expiry_by_the_begin_of_the_transaction",
            "R6",
            B4,
            Design { clock: Clock::TransactionStart, ..best },
            slow,
        ),
        sets("lease_checked_by_time", "R1", E, by_time, twin),
        sets("incarnation_read_without_a_lock", "R1", E, Design { fence: Fence::PlainRead, ..best }, twin),
        sets("chain_head_from_memory_of_a_replaced_process", "R1", F, Design { fence: Fence::ByTime, ..memory }, twin),
        sets("chain_head_from_memory_after_a_doubt", "R1, R3", F, Design { resolve: Resolve::Never, ..memory }, cut),
        RejectedDesign {
            name: "chain_head_never_read_again",
            rules: "R3",
            property: SERVICE,
            check: Box::new(move || Report::check_recovery(&stuck, SetPinModel::serves)),
        },
    ]
}

fn verify_pin_designs() -> Vec<RejectedDesign> {
    use verify_pin::{C1_BOTH, C2, C3, C4, Design, Doubt, Forgive, Limits, Reserve, Unknown};
    let best = Design::RECOMMENDED;
    let cut = Limits { cuts: 1, ..VERIFY_PIN };
    let crash = Limits { crashes: 1, ..VERIFY_PIN };
    let reset = Limits { resets: 1, ..VERIFY_PIN };
    let forgive_all = Design { forgive: Forgive::All, ..best };
    let early = Design { reserve: Reserve::BeforeAcknowledged, ..best };
    vec![
        verifies("compare_then_count", C1_BOTH, Design { reserve: Reserve::CountAfterwards, ..best }, crash),
        verifies("compare_before_the_reservation_is_acknowledged", C1_BOTH, early, crash),
        verifies("right_pin_forgives_every_try", C1_BOTH, forgive_all, cut),
        verifies("reset_forgives_every_try", C1_BOTH, forgive_all, reset),
        verifies("settlement_in_doubt_answered_wrong", C2, Design { doubt: Doubt::Wrong, ..best }, cut),
        verifies("settlement_in_doubt_answered_by_the_comparison", C3, Design { doubt: Doubt::Result, ..best }, cut),
        verifies("reservation_in_doubt_made_again", C4, Design { unknown: Unknown::ReserveAgain, ..best }, cut),
    ]
}

fn rotation_designs() -> Vec<RejectedDesign> {
    use rotation::{Activate, D1, D2, D3, Design, Limits, Maximum, Minimum, Register, Retire, Store};
    let best = Design::RECOMMENDED;
    let cut = Limits { cuts: 1, ..ROTATION };
    let newcomer = Limits { newcomer: true, ..ROTATION };
    let patient = Limits { sets: 2, reencryptions: 2, is_patient: true, ..ROTATION };
    let failover = Limits { faults: FAILOVER, ..ROTATION };
    let without = Design { retire: Retire::PlainCountWithoutMinimum, ..best };
    let plain = Design { minimum: Minimum::InTransactionPlain, ..best };
    let unlocked = Design { register: Register::PlainRead, ..best };
    let read_before = Design { maximum: Maximum::ReadBefore, ..best };
    vec![
        rotates("no_minimum_version", "R6, R10", D1, Design { minimum: Minimum::Never, ..best }, cut),
        rotates("minimum_read_before_sending", "R6, R10", D1, Design { minimum: Minimum::BeforeSending, ..best }, cut),
        rotates("minimum_read_without_a_lock", "R6, R10", D1, plain, cut),
        rotates("retire_without_raising_first", "R10", D1, without, cut),
        rotates("retire_counts_by_a_plain_read", "R10", D1, Design { retire: Retire::PlainCount, ..best }, failover),
        rotates("registration_reads_the_minimum_unlocked", "R2", D1, unlocked, newcomer),
        rotates("registration_without_the_keys_of_the_records", "R2", D3, unlocked, newcomer),
        rotates(
            "engine_writes_under_a_key_as_soon_as_loaded",
            "R10",
            D3,
            Design { activate: Activate::WhenLoaded, ..best },
            ROTATION,
        ),
        rotates("active_version_not_compared", "R6, R10", D3, read_before, Limits { faults: FAILOVER, ..newcomer }),
        rotates("reencryption_without_compare_and_set", "R10", D2, Design { store: Store::Blind, ..best }, patient),
    ]
}

fn batch_designs() -> Vec<RejectedDesign> {
    use batch::{
        A2, AfterRollback, AnswerTime, B1, B2, Design, H, Limits, LockOrder, Lookup, Opening, Resolve, SameCard,
    };
    let best = Design::RECOMMENDED;
    let cut = Limits { cuts: 1, ..BATCH };
    let rollback = Limits { rollbacks: 1, ..BATCH };
    let failover = Limits { faults: FAILOVER, ..BATCH };
    let next = Design { resolve: Resolve::NextBatch, ..best };
    let first = Design { lookup: Lookup::FirstChange, ..best };
    let before = Design { answer_time: AnswerTime::BeforeAcknowledged, ..best };
    vec![
        batches("second_batch_while_the_first_is_in_doubt", "R1, R3", B2, next, cut),
        batches("batch_in_doubt_looked_up_plainly", "R3", B2, Design { resolve: Resolve::PlainLookup, ..best }, cut),
        batches("batch_in_doubt_resolved_by_its_first_change", "R3", B1, first, cut),
        batches(
            "cards_locked_in_the_order_of_arrival",
            "R6",
            H,
            Design { lock_order: LockOrder::Arrival, ..best },
            Limits { calls: 4, ..BATCH },
        ),
        batches("card_twice_in_a_batch", "R6", B1, Design { same_card: SameCard::Together, ..best }, BATCH),
        batches(
            "part_of_a_rolled_back_batch_sent_again",
            "R11",
            B1,
            Design { after_rollback: AfterRollback::SendsTheLast, ..best },
            rollback,
        ),
        batches(
            "control_opened_by_a_plain_read",
            "R4",
            A2,
            Design { opening: Opening::PlainRead, ..best },
            Limits { cards: 1, ..failover },
        ),
        batches("batch_answered_before_its_acknowledgement", "R11", B1, before, failover),
    ]
}

fn change_pin_designs() -> Vec<RejectedDesign> {
    use change_pin::{A2, B1, C5, C6, Deadline, Design, Doubt, Guard, Limits};
    let best = Design::RECOMMENDED;
    let cut = Limits { cuts: 1, ..CHANGE_PIN };
    let set = Limits { sets: true, ..cut };
    let unguarded = Design { guard: Guard::Nothing, ..best };
    let late = Design { deadline: Deadline::Ignored, ..best };
    vec![
        changes("change_settled_without_the_generation", "R6, R9", C6, unguarded, set),
        changes("late_change_replaces_an_acknowledged_pin", "R6, R9", A2, unguarded, set),
        changes("change_settled_after_its_caller_gave_up", "R5, R9", A2, late, set),
        changes("change_in_doubt_compared_twice", "R3, R9", C5, Design { doubt: Doubt::ComparesAgain, ..best }, cut),
        changes(
            "change_in_doubt_answered_by_the_comparison",
            "R3, R11",
            B1,
            Design { doubt: Doubt::AnswersTheResult, ..best },
            cut,
        ),
    ]
}

fn revocation_designs() -> Vec<RejectedDesign> {
    use revocation::{Acknowledge, Design, Fence, I1, I2, Limits, Register, Right};
    let best = Design::RECOMMENDED;
    let failover = Limits { faults: FAILOVER, ..REVOCATION };
    let reloaded = Design { right: Right::Memory, acknowledge: Acknowledge::AfterEachReload, ..best };
    let one = Design { acknowledge: Acknowledge::AfterOneReload, ..reloaded };
    let by_time = Design { fence: Fence::ByTime, ..reloaded };
    let read = Design { acknowledge: Acknowledge::AfterRead, ..best };
    let unlocked = Design { register: Register::PlainRead, ..best };
    vec![
        revokes("revoked_after_one_engine_has_reloaded", "R11", I1, one, REVOCATION),
        revokes("revoked_client_served_by_a_replaced_process", "R1", I1, by_time, REVOCATION),
        revokes(
            "engine_with_an_older_configuration_registers",
            "R2",
            I1,
            Design { register: Register::PlainRead, ..reloaded },
            REVOCATION,
        ),
        revokes("right_read_without_a_lock", "R1", I2, Design { right: Right::PlainRead, ..best }, REVOCATION),
        revokes("registration_reads_the_right_unlocked", "R2", I1, unlocked, REVOCATION),
        revokes("revocation_acknowledged_from_a_read", "R11", I1, read, failover),
    ]
}

fn page_designs() -> Vec<RejectedDesign> {
    use page::{Design, J, Limits, Repeat, StartRule};
    let limits = Limits { cuts: 1, faults: FAILOVER };
    let from_read = PageModel { design: Design { repeat: Repeat::FromRead, ..Design::RECOMMENDED }, limits };
    let refuses = PageModel { design: Design { start_rule: StartRule::Refuses, ..Design::RECOMMENDED }, limits };
    vec![
        RejectedDesign {
            name: "page_answered_from_a_read",
            rules: "R11",
            property: J,
            check: Box::new(move || Report::check_rejected(&from_read, J)),
        },
        RejectedDesign {
            name: "page_that_lost_its_answer_refused",
            rules: "R7",
            property: SERVICE,
            check: Box::new(move || Report::check_recovery(&refuses, PageModel::serves)),
        },
    ]
}

fn zone_set_designs() -> Vec<RejectedDesign> {
    use zone_set::{A2, Design, Guard, Repeat};
    let best = Design::RECOMMENDED;
    let unguarded = ZoneSetModel { design: Design { guard: Guard::Tags, ..best }, limits: ZONE_SET };
    let locked = ZoneSetModel { design: Design { guard: Guard::AnyCallerAfterLock, ..best }, limits: ZONE_SET };
    let repeated = ZoneSetModel { design: Design { repeat: Repeat::KeepsGeneration, ..best }, limits: ZONE_SET };
    let rejected = |name, rules, model: ZoneSetModel| RejectedDesign {
        name,
        rules,
        property: A2,
        check: Box::new(move || Report::check_rejected(&model, A2)),
    };
    vec![
        rejected("zone_block_set_without_the_generation", "R6", unguarded),
        rejected("caller_of_a_zone_block_not_checked_after_the_lock", "R5", locked),
        rejected("repeated_zone_block_keeps_the_generation", "R7", repeated),
    ]
}
