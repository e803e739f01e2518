//! A reserved and a settled try outlive a kill of the process and a power cut.

use std::{
    env,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use audit::entry::Action;
use domain::tries::Tries;
use engine_server::{StoreConfig, open_store_copy};
use store::conformance::{
    card, card_event,
    pin_use::{LIMIT, reserve, set_by_zone, settle, tries_of_chain},
};

use crate::power_cut::{Disk, NONE};

/// The data directory, for the process that is killed: this test binary, started once more.
const LOAD: &str = "PINSEAL_TEST_TRIES_OF";
const KILLS: usize = 8;
const CALLERS: u64 = 64;

/// Verifies without an end, as a host does: each caller reserves a try, then settles it as wrong; every seventh is right. Writes
/// what was acknowledged to standard output.
#[allow(clippy::print_stdout, reason = "the test reads it")]
async fn load(directory: &Path) {
    let store = StoreConfig::embedded(directory).open().await.unwrap();
    set_by_zone(&*store, card(1), 1).await.unwrap();
    // Tries of the process before stay used.
    let seen = store.tries(&card(1)).await.unwrap().unwrap().reserved;
    store.reset_tries(card(1), seen, LIMIT, card_event(Action::ResetTries)).await.unwrap();
    let callers: Vec<_> = (0..CALLERS)
        .map(|caller| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                for call in caller.. {
                    let Ok(reserved) = reserve(&*store, card(1)).await else {
                        tokio::task::yield_now().await;
                        continue;
                    };
                    println!("\nreserved {}", reserved.number);
                    let is_right = call % 7 == 0;
                    settle(&*store, card(1), reserved.number, is_right).await.unwrap();
                    if is_right {
                        println!("\nforgiven {}", reserved.number);
                    }
                    if !is_right && reserved.tries_left == 0 {
                        let event = card_event(Action::ResetTries);
                        let tries = store.reset_tries(card(1), reserved.number, LIMIT, event).await.unwrap();
                        println!("\nforgiven {}", tries.forgiven);
                    }
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}

/// The test with this name, as the process that verifies without an end.
fn process(test: &str, directory: &Path) -> Command {
    let mut process = Command::new(env::current_exe().unwrap());
    process.args(["--exact", test, "--nocapture"]).env(LOAD, directory).stdout(Stdio::piped());
    process
}

/// Kills the process after so many acknowledged tries. Returns the highest numbers that it acknowledged.
fn kill_after(mut process: Child, lines: usize) -> Tries {
    let (mut acknowledged, mut seen) = (Tries::default(), 0);
    for line in BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap) {
        let Some((what, number)) = line.split_once(' ') else { continue };
        let Ok(number) = number.parse() else { continue };
        match what {
            "reserved" => acknowledged.reserved = acknowledged.reserved.max(number),
            "forgiven" => acknowledged.forgiven = acknowledged.forgiven.max(number),
            _ => continue,
        }
        seen += 1;
        if seen == lines {
            // What the process has written before, the loop still reads.
            process.kill().unwrap();
        }
    }
    process.wait().unwrap();
    assert!(seen >= lines, "the process ended by itself after {seen} lines");
    acknowledged
}

/// An error says what was lost.
async fn is_kept(directory: &Path, acknowledged: Tries) -> Result<(), String> {
    let store = open_store_copy(directory).map_err(|error| error.to_string())?;
    let tries = store.tries(&card(1)).await.map_err(|error| error.to_string())?;
    let Some(tries) = tries else { return Err("the card is lost".into()) };
    if tries.reserved < acknowledged.reserved || tries.forgiven < acknowledged.forgiven {
        return Err(format!("{acknowledged:?} was acknowledged, and {tries:?} is kept"));
    }
    let entries = store.audit(1, usize::MAX).await.map_err(|error| error.to_string())?;
    assert_eq!(tries_of_chain(&entries, LIMIT), tries, "the rows and the chain are of one commit");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_kill_loses_a_try_or_allows_one_more() {
    if let Some(directory) = env::var_os(LOAD) {
        return load(Path::new(&directory)).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    for kill in 1..=KILLS {
        let process = process("tries::no_kill_loses_a_try_or_allows_one_more", directory.path()).spawn().unwrap();
        let acknowledged = kill_after(process, kill * 37);
        is_kept(&store, acknowledged).await.unwrap();
    }
}

/// A power cut after some tries on a new store.
async fn after_tries(test: &str, leave_out: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let disk = Disk::synced(&store, &directory.path().join("kept"));
    let mut process = process(test, directory.path());
    let acknowledged = kill_after(disk.record(&mut process, leave_out).spawn().unwrap(), 20);
    disk.cut_power();
    is_kept(&store, acknowledged).await
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_tries_outlive_a_power_cut() {
    if let Some(directory) = env::var_os(LOAD) {
        return load(Path::new(&directory)).await;
    }
    let test = "tries::acknowledged_tries_outlive_a_power_cut";
    after_tries(test, NONE).await.unwrap();
    let lost = after_tries(test, "*.jnl").await;
    assert!(lost.is_err(), "the sync of the journal can be left out, and no test sees it");
}
