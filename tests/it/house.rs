//! The house keeps its order: which room may know which, as DESIGN and ARCHITECTURE say.

use std::{fs, path::Path};

/// A room, and the rooms it may name.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("cores", &[]),
    ("deadline", &["clock"]),
    ("card", &["clock"]),
    ("limits", &["card"]),
    ("reason", &[]),
    ("caller", &["card", "limits"]),
    ("control", &["card", "clock", "limits"]),
    ("audit", &["card", "clock", "control", "store"]),
    ("store", &["audit", "card", "clock", "control", "deadline"]),
    ("boundary", &["clock", "deadline"]),
    ("hsm_process", &["boundary", "clock", "config"]),
    ("pin", &["audit", "boundary", "caller", "card", "clock", "control", "store"]),
    ("tls", &[]),
    ("token", &["config"]),
    ("vault", &["config"]),
    ("keyblock", &[]),
    ("ceremony", &["audit", "clock", "config", "operator", "proto", "store"]),
    ("operator", &["proto", "tls"]),
    ("rotation", &["card", "pin", "store"]),
    ("metrics", &["rotation"]),
    (
        "engine",
        &[
            "audit", "boundary", "caller", "card", "clock", "config", "control", "cores", "deadline", "limits",
            "metrics", "pin", "proto", "reason", "rotation", "store", "tls",
        ],
    ),
    ("edge", &["caller", "card", "clock", "config", "limits", "proto", "reason", "tls"]),
    ("config", &["boundary", "card", "control", "edge", "engine", "hsm_process", "limits", "pin", "store", "tls"]),
];

#[test]
fn each_room_knows_only_the_rooms_it_may() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (room, may_know) in MAY_KNOW {
        let mut text = fs::read_to_string(source.join(format!("{room}.rs"))).unwrap();
        let folder = source.join(room);
        if folder.is_dir() {
            read_folder(&folder, &mut text);
        }
        for named in named_rooms(&text) {
            assert!(
                named == *room || may_know.contains(&named.as_str()),
                "src/{room} names crate::{named}: it may know {may_know:?}"
            );
        }
    }
}

#[test]
fn the_boundary_and_the_control_know_nothing_of_the_rest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let hsm = fs::read_to_string(root.join("hsm/Cargo.toml")).unwrap();
    assert!(!hsm.contains("pinseal =") && !hsm.contains("tonic") && !hsm.contains("tokio"), "hsm links the world");
    let control = fs::read_to_string(root.join("src/control.rs")).unwrap();
    assert!(!control.contains("hsm::") && !control.contains("std::time::SystemTime"), "a control is pure");
}

fn read_folder(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_folder(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

/// What stands behind `crate::`, in paths and in braces, test modules left out.
fn named_rooms(text: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let list = match rest.strip_prefix('{') {
            Some(inner) => top_level(inner),
            None => vec![rest],
        };
        for item in list {
            let name: String = item.trim().chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            if !name.is_empty() {
                rooms.push(name);
            }
        }
    }
    rooms
}

/// The items of a brace list, nested lists left whole.
fn top_level(inner: &str) -> Vec<&str> {
    let (mut depth, mut start, mut items) = (0, 0, Vec::new());
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                items.push(&inner[start..at]);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                items.push(&inner[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    items
}
