//! The pages at `/docs`: their committed files, their headers, the commands of the guide, and both pages in Chromium.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use support::{
    edge_process::{EdgeProcess, PASSWORD},
    engine_process::EngineProcess,
    java::ran_well,
};

use super::clients::Demo;

const GUIDE: &str = include_str!("../../docs/guide.md");
/// The files of the viewer; those that end in a suffix of [`GZIP`] are served as gzip.
const FILES: [&str; 7] = [
    "/docs",
    "/docs/guide",
    "/docs/docs.js",
    "/docs/docs.css",
    "/docs/swagger-ui-bundle.js",
    "/docs/swagger-ui.css",
    "/docs/licences.txt",
];
const GZIP: [&str; 2] = [".js", ".css"];

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// `npm run SCRIPT` in a folder whose packages `npm ci` installed.
fn npm(folder: &str, script: &str, environment: &[(&str, &str)]) -> Output {
    assert!(
        root(folder).join("node_modules").exists(),
        "the packages of {folder} are missing: run `npm --prefix {folder} ci`, or scripts/test"
    );
    let mut command = Command::new("npm");
    command.current_dir(root(folder)).args(["run", "--silent", script]).envs(environment.iter().copied());
    command.output().expect("npm is missing: install Node.js 20 and npm (Debian: nodejs, npm)")
}

#[test]
fn the_committed_viewer_equals_its_rebuild() {
    let printed = ran_well(&npm("docs/viewer", "check", &[]));
    assert!(printed.contains("7 files of docs/viewer/dist equal their rebuild"), "{printed}");
}

/// The value of a header in the head of an answer.
fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}

#[test]
fn the_docs_pages_allow_no_inline_code_and_no_other_host() {
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let edge = EdgeProcess::start_quiet(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()));
    for path in FILES {
        let head = edge.raw_head(format!("HEAD {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n").as_bytes());
        assert!(head.starts_with("HTTP/1.1 200 "), "{path}: {head}");
        let value = |name: &str| header(&head, name).unwrap_or_else(|| panic!("{path} has no {name}: {head}"));
        assert_eq!(value("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(value("referrer-policy"), "no-referrer", "{path}");
        assert_eq!(value("cache-control"), "no-store", "{path}");
        assert_eq!(value("cross-origin-opener-policy"), "same-origin", "{path}");
        assert_eq!(value("cross-origin-resource-policy"), "same-origin", "{path}");
        let gzip = GZIP.iter().any(|suffix| path.ends_with(suffix)).then_some("gzip");
        assert_eq!(header(&head, "content-encoding"), gzip, "{path}");

        let policy = value("content-security-policy");
        let directives: Vec<(&str, Vec<&str>)> = policy
            .split(';')
            .map(|directive| {
                let mut words = directive.split_whitespace();
                (words.next().unwrap_or_default(), words.collect())
            })
            .collect();
        let sources = |name: &str| directives.iter().find(|(key, _)| *key == name).map(|(_, sources)| sources.clone());
        assert_eq!(sources("default-src"), Some(vec!["'none'"]), "{path}");
        assert_eq!(sources("frame-ancestors"), Some(vec!["'none'"]), "{path}");
        for (name, sources) in &directives {
            let allowed = match *name {
                "script-src" | "style-src" | "connect-src" => vec!["'self'"],
                "img-src" => vec!["data:"],
                "require-trusted-types-for" => vec!["'script'"],
                "trusted-types" => vec!["default", "dompurify", "'allow-duplicates'"],
                _ => vec!["'none'"],
            };
            assert_eq!(*sources, allowed, "{path}: {name}");
        }
        assert_eq!(sources("script-src").is_some(), path == "/docs", "{path}");
    }
    let unknown = edge.raw_head(b"HEAD /docs/nothing HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\r\n");
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
}

/// The blocks of code of the guide: language and text.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let parts: Vec<&str> = GUIDE.split("\n```").collect();
    let code = parts.iter().skip(1).step_by(2);
    code.map(|block| block.split_once('\n').unwrap_or_default()).collect()
}

/// The commands run in one shell, in the order of the guide, against a demo; a block `output` is what the block of commands
/// before it prints.
#[test]
fn the_commands_of_the_guide_print_what_it_says() {
    let demo = Demo::start();
    let directory = tempfile::tempdir().unwrap();
    let ready = serde_json::json!({ "edge_url": demo.member("edge_url"), "bearer_token": demo.member("bearer_token") });
    std::fs::write(directory.path().join("ready.json"), ready.to_string()).unwrap();

    let blocks = blocks();
    let shell: Vec<&str> = blocks.iter().filter(|(language, _)| *language == "sh").map(|(_, text)| *text).collect();
    let expected: Vec<&str> = blocks
        .windows(2)
        .filter(|pair| pair[0].0 == "sh")
        .map(|pair| if pair[1].0 == "output" { pair[1].1 } else { "" })
        .collect();
    assert!(shell.len() > 10 && expected.iter().filter(|text| !text.is_empty()).count() > 7, "{} blocks", shell.len());

    const MARK: &str = "--- the next block ---";
    let script = shell.join(&format!("\necho '{MARK}'\n"));
    let output = Command::new("bash").current_dir(directory.path()).args(["-eu", "-c", &script]).output().unwrap();
    let printed = ran_well(&output);
    let printed: Vec<&str> = printed.split(MARK).map(str::trim).collect();
    let expected: Vec<&str> = expected.iter().map(|text| text.trim()).collect();
    assert_eq!(printed, expected);
}

/// `tests/browser/docs/docs.test.mjs` on a demo, and on an edge with a client that has a password. The screenshots are in
/// `target/tmp/docs-viewer`.
#[test]
fn the_docs_pages_work_in_chromium() {
    let demo = Demo::start();
    let directory = tempfile::tempdir().unwrap();
    let engine = EngineProcess::start_quiet(directory.path(), "");
    let edge = EdgeProcess::start_quiet(directory.path(), &format!("addresses = [\"http://{}\"]", engine.address()));
    let environment = [
        ("PINSEAL_DOCS_URL", demo.member("docs_url")),
        ("PINSEAL_DOCS_TOKEN", demo.member("bearer_token")),
        ("PINSEAL_DOCS_BASIC_URL", &edge.url),
        ("PINSEAL_DOCS_BASIC_USER", "backoffice"),
        ("PINSEAL_DOCS_BASIC_PASSWORD", PASSWORD),
        ("PINSEAL_SCREENSHOTS", concat!(env!("CARGO_TARGET_TMPDIR"), "/docs-viewer")),
    ];
    ran_well(&npm("tests/browser/docs", "test", &environment));
}
