//! The page of the web view in Chromium, in front of an edge and an engine as processes. The browser is driven by
//! `tests/browser`.

use std::{
    fs::File,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use super::clients::{Demo, root};
use support::{
    edge_process::{EdgeProcess, TOKEN},
    engine_process::EngineProcess,
};

/// `[web_view]` of the edge, with `LOGO` in place of the path of the logo.
const PAGES: &str = include_str!("../browser/web_view.toml");
/// The machine may stall: a control must outlive the longest test, and a form POST works once, so its call must not time out.
const PATIENT: &str = "call_timeout_milliseconds = 60000\n[control]\nlifetime_seconds = 600\n";

/// A command that runs one file of tests/browser.
fn browser_tests(file: &str) -> Command {
    let browser = root("tests/browser");
    assert!(
        browser.join("node_modules").exists() && Path::new("/usr/bin/chromium").exists(),
        "install Node 20 and chromium, and run `npm ci --ignore-scripts` in tests/browser and web"
    );
    let mut node = Command::new("node");
    node.current_dir(&browser)
        .args(["--test", "--test-concurrency=1", "--test-reporter=tap", file])
        .env("PINSEAL_BROWSER_ARTIFACTS", Path::new(env!("CARGO_TARGET_TMPDIR")).join("web-page"));
    node
}

/// Runs one file of tests/browser, and stops and starts the engine when the file asks for that.
fn run(file: &str) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let control = path("control");
    std::fs::create_dir(&control).unwrap();
    let engine = EngineProcess::start(directory.path(), PATIENT);
    let address = engine.address().to_owned();
    let pages = PAGES.replace("LOGO", root("tests/browser/logo.svg").to_str().unwrap());
    let edge = EdgeProcess::start(directory.path(), &format!("addresses = [\"http://{address}\"]"), &pages);
    let mut engine = Some(engine);

    let logs = format!("{}:{}", path("edge.log").display(), path("engine.log").display());
    let printed = path("browser.log");
    let output = File::create(&printed).unwrap();
    let mut node = browser_tests(file)
        .env("PINSEAL_BROWSER_EDGE", &edge.url)
        .env("PINSEAL_BROWSER_PUBLIC_URL", "https://pin.bank.example/pin")
        .env("PINSEAL_BROWSER_TOKEN", TOKEN)
        .env("PINSEAL_BROWSER_PAGE", "bank")
        .env("PINSEAL_BROWSER_STYLED_PAGE", "styled")
        .env("PINSEAL_BROWSER_PLASTIC_ID", "8000")
        .env("PINSEAL_BROWSER_CONTROL", &control)
        .env("PINSEAL_BROWSER_LOGS", logs)
        .stdout(Stdio::from(output.try_clone().unwrap()))
        .stderr(Stdio::from(output))
        .spawn()
        .unwrap();
    let status = loop {
        if let Some(status) = node.try_wait().unwrap() {
            break status;
        }
        let (away, back) = (control.join("engine-away"), control.join("engine-back"));
        if away.exists() {
            engine.take().unwrap().kill();
            std::fs::remove_file(away).unwrap();
        }
        if back.exists() {
            engine = Some(EngineProcess::start_at(directory.path(), &address, PATIENT));
            std::fs::remove_file(back).unwrap();
        }
        thread::sleep(Duration::from_millis(20));
    };
    let printed = std::fs::read_to_string(printed).unwrap();
    assert!(status.success() && printed.contains("# skipped 0"), "{printed}");
    assert!(engine.is_some(), "the engine was left away");
}

#[test]
fn the_page_sets_and_views_pins_in_a_browser() {
    run("page.test.mjs");
}

#[test]
fn the_page_obeys_its_parent_window_alone() {
    run("frame.test.mjs");
}

#[test]
fn the_page_repeats_calls_without_an_answer() {
    run("retry.test.mjs");
}

#[test]
fn the_page_has_the_style_of_its_operator() {
    run("style.test.mjs");
}

/// The sample site of `pinseal demo`.
#[test]
fn the_sample_bank_sets_and_views_a_pin_in_a_browser() {
    let demo = Demo::start();
    let output =
        browser_tests("demo.test.mjs").env("PINSEAL_BROWSER_DEMO", demo.member("bank_app_url")).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && printed.contains("# skipped 0"), "{printed}");
}

#[test]
fn each_state_of_the_page_is_accessible() {
    run("states.test.mjs");
}

#[test]
fn the_page_leaves_nothing_in_the_profile_and_the_logs() {
    run("profile.test.mjs");
}

/// The committed page is what its sources make, its languages are complete, and it weighs less than 25 kB.
#[test]
fn the_committed_page_is_what_its_sources_make() {
    let web = Path::new(env!("CARGO_MANIFEST_DIR")).join("web");
    assert!(web.join("node_modules").exists(), "install Node 20, and run `npm ci --ignore-scripts` in web");
    let output = Command::new("npm").args(["test", "--silent"]).current_dir(web).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
