//! The image's command `trial`, and the examples of the testcontainers modules that use it.

use std::{path::Path, process::Command, time::Duration};

use device::client::{Backend, Scope};
use pinseal_testcontainers::{
    Pinseal, PinsealImage,
    testcontainers::{Image, ImageExt, core::ExecCommand, runners::AsyncRunner},
};
use support::{engine_process::device, pinseal_path, wait::soon};

use super::{IMAGE, build_image};

async fn started() -> Pinseal {
    build_image();
    let image = PinsealImage::new(IMAGE).with_startup_timeout(Duration::from_secs(300));
    Pinseal::over(image.start().await.unwrap()).await.unwrap()
}

/// Runs an example on the image under test.
fn run(example: &mut Command) {
    build_image();
    let ran = example.env("PINSEAL_IMAGE", IMAGE).output().unwrap();
    let printed = [ran.stdout, ran.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(ran.status.success(), "{printed}");
}

#[test]
fn the_rust_example_sets_views_and_resets() {
    let example = Path::new(pinseal_path()).with_file_name("examples/set_and_view_in_container");
    let build = "cargo build --example set_and_view_in_container";
    assert!(example.exists(), "{} is missing: run {build}", example.display());
    run(&mut Command::new(example));
}

#[test]
fn the_python_example_sets_views_and_resets() {
    let python = std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    });
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/testcontainers/python");
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest", "-p", "no:cacheprovider"]).arg(example);
    // Ryuk, which removes containers of a killed test run, is an image of a registry.
    run(pytest.env("TESTCONTAINERS_RYUK_DISABLED", "true").env("PYTHONDONTWRITEBYTECODE", "1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn resets_at_once_leave_a_serving_edge() {
    let pinseal = started().await;
    pinseal.register_card("8430", Some("5413330089020011")).await.unwrap();
    let (first, second) = tokio::join!(pinseal.reset(), pinseal.reset());
    first.unwrap();
    second.unwrap();

    let (backend, device) = (Backend::with_bearer(pinseal.url(), pinseal.bearer_token(), "it"), device());
    let opened = tokio::task::block_in_place(|| {
        let (control, _) = backend.open_control("8430", Scope::SetPin)?;
        backend.set_tzpk(&control, device.public_key_der())
    });
    opened.unwrap();
    pinseal.container().stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trial_container_ends_when_its_engine_ends() {
    let pinseal = started().await;
    let kill = ["sh", "-c", "kill -9 $(cat /trial/pinseal/engine.pid)"];
    pinseal.container().exec(ExecCommand::new(kill)).await.unwrap();
    soon("the container runs without its engine", async || {
        (!pinseal.container().is_running().await.unwrap()).then_some(())
    })
    .await;
    assert_eq!(pinseal.container().exit_code().await.unwrap(), Some(1));
}

#[test]
fn an_image_reference_has_a_name_and_a_tag() {
    for (reference, name, tag) in [
        ("pinseal", "pinseal", "latest"),
        ("pinseal:1", "pinseal", "1"),
        ("ci.example:5000/pinseal", "ci.example:5000/pinseal", "latest"),
        ("ci.example:5000/pinseal:1.4", "ci.example:5000/pinseal", "1.4"),
    ] {
        let image = PinsealImage::new(reference);
        assert_eq!((image.name(), image.tag()), (name, tag));
    }
}
