//! The vendor's Java client.

use std::process::{Command, Output};

/// The output of a program that must succeed.
pub fn ran_well(output: &Output) -> String {
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    text
}

/// The vendor's Java example against an edge.
pub fn java_sets_and_views(edge: &str, token: &str, plastic_id: &str, bits: &str) {
    let output = java(&[edge, token, plastic_id, "2580", bits]);
    assert!(ran_well(&output).contains(&format!("set and viewed with RSA-{bits}")));
}

/// The same with the JDK's default parameters of `OAEPWithSHA-256AndMGF1Padding`, which have SHA-1 in MGF1.
pub fn java_with_default_oaep(edge: &str, token: &str, plastic_id: &str) -> Output {
    java(&[edge, token, plastic_id, "2580", "2048", "default-oaep"])
}

/// The same client with this zone key of index 0, in hexadecimal.
pub fn java_sets_and_gets_by_zone(edge: &str, token: &str, plastic_id: &str, key: &str) {
    let output = java(&[edge, token, plastic_id, "2580", "zone-key", key]);
    assert!(ran_well(&output).contains("set and got under a zone key"));
}

fn java(arguments: &[&str]) -> Output {
    Command::new("java")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../clients/java/CardPin.java"))
        .args(arguments)
        .output()
        .expect("java is missing: install a JDK of version 17 or later (Debian: default-jdk-headless)")
}
