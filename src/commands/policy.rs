//! `pinseal policy`: what a configuration allows, for an operator and an assessor.

mod policy_report;
mod rule;
mod table;

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Args, Subcommand};
use config::ConfigError;
use thiserror::Error;

use self::{
    policy_report::{PolicyReport, Unserved},
    table::{write_markdown, write_text},
};

#[derive(Args)]
pub(crate) struct PolicyArguments {
    #[command(subcommand)]
    action: PolicyAction,
}

#[derive(Subcommand)]
enum PolicyAction {
    /// Explain which formats, translations, keys and capabilities a configuration allows, each with its rule
    Explain {
        #[command(flatten)]
        files: Files,
    },
    /// Write the same for an assessor, as Markdown or JSON
    Report {
        #[command(flatten)]
        files: Files,
        /// JSON instead of Markdown
        #[arg(long)]
        json: bool,
    },
}

/// The configurations. The commands read no secret that these files name.
#[derive(Args)]
struct Files {
    /// The configuration of the engine; without it, the embedded defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The configuration of an edge in front of the engine
    #[arg(long, value_name = "FILE")]
    edge: Option<PathBuf>,
}

/// The report was not written.
#[derive(Debug, Error)]
pub(crate) enum PolicyError {
    /// A configuration cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No engine serves with this configuration.
    #[error(transparent)]
    Unserved(#[from] Unserved),
    /// The output failed.
    #[error("the report could not be written: {0}")]
    Io(#[from] io::Error),
}

pub(crate) fn run(arguments: &PolicyArguments) -> Result<(), PolicyError> {
    let mut out = io::stdout().lock();
    match &arguments.action {
        PolicyAction::Explain { files } => write_text(&files.read()?, &mut out)?,
        PolicyAction::Report { files, json: false } => write_markdown(&files.read()?, &mut out)?,
        PolicyAction::Report { files, json: true } => {
            serde_json::to_writer_pretty(&mut out, &files.read()?).map_err(io::Error::from)?;
            writeln!(out)?;
        }
    }
    Ok(())
}

impl Files {
    fn read(&self) -> Result<PolicyReport, PolicyError> {
        let boundary = hsm_config::BoundaryRules::load(self.config.as_deref())?;
        let engine = engine::EngineConfig::load(self.config.as_deref())?;
        let clients = self.edge.as_deref().map(edge::EdgeConfig::load_grants).transpose()?;
        Ok(PolicyReport::new(&boundary, &engine, &clients.unwrap_or_default())?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::{Value, json};

    use super::*;

    const ENGINE: &str = "[[zones]]
name = \"app\"
tenant = \"bank\"
index = 0
uses = [\"set-pin\", \"get-pin\"]
[[zones]]
name = \"bureau\"
tenant = \"bank\"
index = 1
formats = [\"iso-0\", \"iso-3\"]
uses = [\"export\"]
parity = \"reject\"
[tls]
certificates = \"c\"
private_key = \"k\"
client_roots = \"r\"
[[peers]]
certificate_name = \"edge.test\"
roles = [\"edge-set\", \"zone-set\"]
tenants = [\"bank\"]
";
    const EDGE: &str = "[[clients]]
name = \"app-back-end\"
tenant = \"bank\"
bearer = { file = \"/nowhere/token\" }
zones = [{ index = 0, uses = [\"set-pin\", \"get-pin\"] }, { index = 1, uses = [\"set-pin\"] }]
[[clients]]
name = \"other\"
tenant = \"other\"
bearer = { file = \"/nowhere/token\" }
zones = [{ index = 0, uses = [\"set-pin\"] }]
";

    /// The report of these configurations.
    fn report(engine: &str, edge: &str) -> Result<PolicyReport, PolicyError> {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            Some(path)
        };
        Files { config: at("engine.toml", engine), edge: at("edge.toml", edge) }.read()
    }

    fn json_of(engine: &str, edge: &str) -> Value {
        serde_json::to_value(report(engine, edge).unwrap()).unwrap()
    }

    /// Source and target of each allowed translation.
    fn pairs(report: &Value) -> Vec<String> {
        let end = |row: &Value, of: &str| {
            format!("{} {}", row[of].as_str().unwrap(), row[format!("{of}_format")].as_str().unwrap())
        };
        let rows = report["translations"].as_array().unwrap().iter();
        rows.map(|row| format!("{} > {}", end(row, "source"), end(row, "target"))).collect()
    }

    #[test]
    fn the_defaults_allow_no_zone() {
        let defaults = serde_json::to_value(Files { config: None, edge: None }.read().unwrap()).unwrap();
        assert_eq!(
            defaults["records"],
            json!([{ "level": "host", "format": "iso-4", "until": null, "rule": "storage-under-aes" }])
        );
        let pairs = pairs(&defaults);
        assert!(pairs.contains(&"device iso-1 > record iso-4".into()) && pairs.len() == 7, "{pairs:?}");
        assert_eq!((&defaults["zones"], &defaults["clients"]), (&json!([]), &json!([])));
        assert_eq!(defaults["peers"][0]["certificate_name"], Value::Null);
    }

    #[test]
    fn a_zone_allows_the_pairs_of_its_uses_and_formats_alone() {
        let report = json_of(ENGINE, EDGE);
        let of_zones: Vec<_> = pairs(&report).into_iter().filter(|pair| pair.contains("zone")).collect();
        let expected = [
            "zone iso-1 > record iso-4",
            "record iso-4 > zone iso-0",
            "record iso-4 > zone iso-1",
            "record iso-4 > zone iso-3",
            "record iso-3 > zone iso-0",
            "record iso-3 > zone iso-1",
            "record iso-3 > zone iso-3",
            "record iso-0 > zone iso-0",
            "record iso-0 > zone iso-1",
            "record iso-0 > zone iso-3",
        ];
        assert_eq!(of_zones, expected);
        let zone = &report["zones"][1];
        assert_eq!(zone["uses"], json!([{ "use": "export", "rule": "same-account" }]));
        assert_eq!(
            (&zone["key_algorithms"], &zone["parity"]),
            (&json!(["3des-double", "3des-triple"]), &json!("reject"))
        );
        let both = ENGINE.replace("\"get-pin\"]", "\"translate\"]").replace("\"export\"]", "\"translate\"]");
        assert!(pairs(&json_of(&both, EDGE)).contains(&"zone iso-1 > zone iso-3".into()));
    }

    #[test]
    fn a_grant_of_an_edge_names_what_it_lacks() {
        let report = json_of(ENGINE, EDGE);
        let grants = |at: usize| {
            let grants = report["clients"][at]["grants"].as_array().unwrap().iter();
            grants.map(|row| (row["grant"]["zone"]["zone"].clone(), row["lacks"].clone())).collect::<Vec<_>>()
        };
        let named = |zone: &str, lacks: Value| (json!(zone), lacks);
        assert_eq!(
            grants(0),
            [named("app", json!([])), named("app", json!(["role"])), named("bureau", json!(["zone-use"]))]
        );
        assert_eq!(grants(1), [(Value::Null, json!(["zone", "role"]))]);
        // Without [[peers]] each process of the machine has every role.
        let open = ENGINE.split_once("[tls]").unwrap().0;
        assert_eq!(json_of(open, EDGE)["clients"][0]["grants"][1]["lacks"], json!([]));
    }

    #[test]
    fn a_boundary_that_would_not_open_has_no_report() {
        let refused = |engine: &str| report(engine, EDGE).err().unwrap().to_string();
        assert!(refused("[boundary]\nlevel = \"token\"").contains("needs a [token]"));
        assert!(refused("[boundary]\nform = \"wrapped\"").contains("works at no level"));
        let token = "[token]\nmodule = \"m.so\"\nlabel = \"a\"\nuser_pin = { file = \"/nowhere\" }\n";
        let levels = json_of(token, EDGE)["records"].clone();
        let row = |level, format, rule| json!({ "level": level, "format": format, "until": null, "rule": rule });
        assert_eq!(
            levels,
            json!([row("token", "wrapped", "wrapped-record"), row("host", "iso-4", "storage-under-aes")])
        );
    }

    #[test]
    fn text_and_markdown_have_every_row_of_the_report() {
        let report = report(ENGINE, EDGE).unwrap();
        let (mut text, mut markdown) = (Vec::new(), Vec::new());
        write_text(&report, &mut text).unwrap();
        write_markdown(&report, &mut markdown).unwrap();
        let (text, markdown) = (String::from_utf8(text).unwrap(), String::from_utf8(markdown).unwrap());
        let words = ["record", "iso-4", "zone", "iso-3", "host", "bureau", "same-account"];
        assert!(text.lines().any(|line| line.split_whitespace().eq(words)), "{text}");
        assert!(markdown.contains("| record | iso-4 | zone | iso-3 | host | bureau | same-account |"), "{markdown}");
        assert!(
            markdown.contains(
                "| app-back-end | bank | get-pin, zone 0 (app) | the role in [[peers]] | pin-given-to-zone |"
            )
        );
        for rule in &report.rules {
            assert!(markdown.contains(rule.statement) && text.contains(rule.source));
        }
        // A table has as many cells in each row as columns.
        let cells = |line: &str| line.matches(" | ").count();
        for table in markdown.split("\n## ").skip(1) {
            let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).map(cells).collect();
            assert!(rows.windows(2).all(|two| two[0] == two[1]), "{table}");
        }
    }
}
