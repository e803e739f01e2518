//! The example configurations and the types that read them know the same keys.

use std::{collections::BTreeSet, fs, path::Path};

use config::KnownKey;
use edge::EdgeConfig;
use engine::EngineConfig;
use engine_server::StoreConfig;

type Keys = BTreeSet<String>;

fn all(keys: &[KnownKey]) -> Keys {
    keys.iter().map(|key| key.path.clone()).collect()
}

fn read(keys: &[KnownKey]) -> Keys {
    keys.iter().filter(|key| !key.is_ignored).map(|key| key.path.clone()).collect()
}

/// The keys of an example. `#key = value` is a key that is commented out; `# text` is a comment.
fn in_example(name: &str) -> Keys {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)).unwrap();
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(key) if !key.starts_with(' ') => key.to_owned(),
        _ => line.to_owned(),
    };
    let text: Vec<_> = text.lines().map(uncommented).collect();
    let mut keys = Keys::new();
    collect("", &text.join("\n").parse().unwrap(), &mut keys);
    keys
}

fn collect(section: &str, table: &toml::Table, keys: &mut Keys) {
    for (key, value) in table {
        let path = format!("{section}{key}");
        let elements = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
        for table in elements.iter().filter_map(toml::Value::as_table) {
            collect(&format!("{path}."), table, keys);
        }
        keys.insert(path);
    }
}

/// The keys without those of a secret's source, such as `token.user_pin.file`: they are a value of the key.
fn without_sources(keys: Keys) -> Keys {
    let source = |key: &String| [".file", ".env", ".descriptor"].iter().any(|end| key.ends_with(end));
    keys.into_iter().filter(|key| key == "vault.file" || !source(key)).collect()
}

#[test]
fn the_engine_example_names_every_key() {
    let services = &read(&EngineConfig::known_keys()) | &read(&hsm_config::known_keys());
    let known = &services | &read(&StoreConfig::known_keys());
    assert_eq!(without_sources(in_example("engine.toml")), known);
}

#[test]
fn the_hsm_example_names_every_key_of_the_boundary() {
    assert_eq!(without_sources(in_example("hsm.toml")), read(&hsm_config::known_keys()));
}

#[test]
fn the_edge_example_names_every_key() {
    assert_eq!(without_sources(in_example("edge.toml")), all(&EdgeConfig::known_keys()));
}

#[test]
fn the_engine_and_its_boundary_accept_the_same_keys() {
    let (engine, boundary) = (EngineConfig::known_keys(), hsm_config::known_keys());
    // Each ignores whole sections of the other.
    let shared = |keys: &[KnownKey]| -> Keys {
        all(keys).into_iter().filter(|key| !key.contains('.') || key.starts_with("boundary.")).collect()
    };
    assert_eq!(shared(&engine), shared(&boundary));
    // The program that opens the store reads the keys that both ignore.
    let ignored = |keys: &[KnownKey]| &all(keys) - &read(keys);
    let unread = &ignored(&engine) & &ignored(&boundary);
    assert_eq!(&unread - &read(&StoreConfig::known_keys()), Keys::new());
}
