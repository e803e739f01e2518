//! The recommended designs for several engines hold in small scenarios, and each rejected design has a history that violates its
//! property.

#![allow(clippy::panic, clippy::print_stdout, reason = "a test that meets a surprise must fail")]

use std::collections::BTreeSet;

use model::rejected_design::RejectedDesign;
use model::scenario::{Scenario, Size};

/// Checks the small scenarios of a model.
fn holds(model: &str) {
    let is_of_model = |scenario: &Scenario| scenario.name.split(':').next() == Some(model);
    let small = Scenario::all().into_iter().filter(|scenario| scenario.size == Size::Small && is_of_model(scenario));
    let mut checked = 0;
    for Scenario { name, check, check_recovery, .. } in small {
        for check in [Some(check), check_recovery].into_iter().flatten() {
            let report = check();
            println!("{name}: {report}");
            assert!(report.violated.is_empty(), "{name}: {report}");
            checked += 1;
        }
    }
    assert!(checked > 0, "{model} has no small scenario");
}

/// Checks that a rejected design has a history that violates its property.
fn violates(name: &str) {
    let Some(design) = RejectedDesign::all().into_iter().find(|design| design.name == name) else {
        panic!("no design is named {name}");
    };
    let report = (design.check)();
    let path = report.path_to(design.property);
    assert!(path.is_some_and(|steps| !steps.is_empty()), "{name} does not violate: {}", design.property);
}

macro_rules! recommended {
    ($($model:ident)*) => {
        mod recommended {
            $(#[test] fn $model() { super::holds(stringify!($model)); })*
        }
        const MODELS: &[&str] = &[$(stringify!($model)),*];
    };
}

macro_rules! rejected {
    ($($name:ident)*) => {
        mod rejected {
            $(#[test] fn $name() { super::violates(stringify!($name)); })*
        }
        const REJECTED: &[&str] = &[$(stringify!($name)),*];
    };
}

recommended! {
    set_pin
    verify_pin
    rotation
    batch
    change_pin
    revocation
    page
    zone_set
}

rejected! {
    plain_lookup_refuses_a_block_that_is_set_later
    plain_lookup_acknowledges_what_a_failover_removes
    retry_answered_from_a_read
    any_open_control_may_set
    newest_control_wins
    retry_confirmed_although_replaced
    retry_confirmed_without_a_new_generation
    tzpk_stored_blindly
    deadlines_of_callers_ignored
    expiry_by_a_slow_engine_clock
    expiry_by_a_fast_engine_clock
    expiry_by_the_begin_of_the_transaction
    lease_checked_by_time
    incarnation_read_without_a_lock
    chain_head_from_memory_of_a_replaced_process
    chain_head_from_memory_after_a_doubt
    chain_head_never_read_again
    compare_then_count
    compare_before_the_reservation_is_acknowledged
    right_pin_forgives_every_try
    reset_forgives_every_try
    settlement_in_doubt_answered_wrong
    settlement_in_doubt_answered_by_the_comparison
    reservation_in_doubt_made_again
    no_minimum_version
    minimum_read_before_sending
    minimum_read_without_a_lock
    retire_without_raising_first
    retire_counts_by_a_plain_read
    registration_reads_the_minimum_unlocked
    registration_without_the_keys_of_the_records
    engine_writes_under_a_key_as_soon_as_loaded
    active_version_not_compared
    reencryption_without_compare_and_set
    second_batch_while_the_first_is_in_doubt
    batch_in_doubt_looked_up_plainly
    batch_in_doubt_resolved_by_its_first_change
    cards_locked_in_the_order_of_arrival
    card_twice_in_a_batch
    part_of_a_rolled_back_batch_sent_again
    control_opened_by_a_plain_read
    batch_answered_before_its_acknowledgement
    change_settled_without_the_generation
    late_change_replaces_an_acknowledged_pin
    change_settled_after_its_caller_gave_up
    change_in_doubt_compared_twice
    change_in_doubt_answered_by_the_comparison
    revoked_after_one_engine_has_reloaded
    revoked_client_served_by_a_replaced_process
    engine_with_an_older_configuration_registers
    right_read_without_a_lock
    registration_reads_the_right_unlocked
    revocation_acknowledged_from_a_read
    page_answered_from_a_read
    page_that_lost_its_answer_refused
    zone_block_set_without_the_generation
    caller_of_a_zone_block_not_checked_after_the_lock
    repeated_zone_block_keeps_the_generation
}

#[test]
fn each_model_and_each_rejected_design_has_a_test() {
    let models: BTreeSet<_> = Scenario::all().iter().filter_map(|scenario| scenario.name.split(':').next()).collect();
    assert_eq!(models, MODELS.iter().copied().collect());
    let rejected: BTreeSet<_> = RejectedDesign::all().iter().map(|design| design.name).collect();
    assert_eq!(rejected, REJECTED.iter().copied().collect());
}
