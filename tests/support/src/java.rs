//! The Java device of `clients/java`, and the Java client of the tests that is compiled with it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

pub const NO_JDK: &str = "java is missing: install a JDK of version 17 or later (Debian: default-jdk-headless)";

/// The output of a program that must succeed.
pub fn ran_well(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// The device against an edge, with an RSA key of this many bits.
pub fn java_sets_and_views(edge: &str, token: &str, plastic_id: &str, bits: &str) {
    let mut java = Command::new("java");
    java.arg(source("clients/java/CardPin.java")).args(["--edge", edge, "--token", token, "--plastic-id", plastic_id]);
    let output = java.args(["--key-bits", bits]).output().expect(NO_JDK);
    ran_well(&output);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok");
}

/// A device with the JDK's default parameters of `OAEPWithSHA-256AndMGF1Padding`, which have SHA-1 in MGF1.
pub fn java_with_default_oaep(edge: &str, token: &str, plastic_id: &str) -> Output {
    test_client(&[edge, token, plastic_id, "2580", "default-oaep"])
}

/// A client with this zone key of index 0, in hexadecimal.
pub fn java_sets_and_gets_by_zone(edge: &str, token: &str, plastic_id: &str, key: &str) {
    let output = test_client(&[edge, token, plastic_id, "2580", "zone-key", key]);
    assert!(ran_well(&output).contains("set and got under a zone key"));
}

fn test_client(arguments: &[&str]) -> Output {
    let classes = tempfile::tempdir().unwrap();
    let sources = [source("clients/java/CardPin.java"), source("tests/clients/java/TestClient.java")];
    ran_well(&Command::new("javac").arg("-d").arg(classes.path()).args(sources).output().expect(NO_JDK));
    Command::new("java").arg("-cp").arg(classes.path()).arg("TestClient").args(arguments).output().expect(NO_JDK)
}

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}
