//! The report as tables, for a terminal and in Markdown.

use std::io::{self, Write};

use super::policy_report::{Grant, Holder, Lack, PolicyReport, Strength};

/// One table of the report.
struct Table {
    title: &'static str,
    /// A sentence under the title; empty for none.
    note: String,
    columns: &'static [&'static str],
    rows: Vec<Vec<String>>,
}

/// Writes the report for a terminal.
///
/// # Errors
/// The output failed.
pub(super) fn write_text(report: &PolicyReport, out: &mut impl Write) -> io::Result<()> {
    for (at, table) in tables(report).into_iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        writeln!(out, "{}", table.title.to_uppercase())?;
        if !table.note.is_empty() {
            writeln!(out, "{}", table.note)?;
        }
        if table.rows.is_empty() {
            writeln!(out, "  none")?;
            continue;
        }
        let head: Vec<String> = table.columns.iter().map(|column| (*column).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&head).chain(&table.rows).collect();
        let widths: Vec<usize> = (0..head.len())
            .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max())
            .map(Option::unwrap_or_default)
            .collect();
        for line in lines {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
    }
    Ok(())
}

/// Writes the report in Markdown.
///
/// # Errors
/// The output failed.
pub(super) fn write_markdown(report: &PolicyReport, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "# What this configuration of Pinseal allows\n")?;
    writeln!(out, "Written by `pinseal policy report`, release {}. It read no secret and no key.", report.pinseal)?;
    for table in tables(report) {
        writeln!(out, "\n## {}\n", table.title)?;
        if !table.note.is_empty() {
            writeln!(out, "{}\n", table.note)?;
        }
        if table.rows.is_empty() {
            writeln!(out, "None.")?;
            continue;
        }
        writeln!(out, "| {} |", table.columns.join(" | "))?;
        writeln!(out, "|{}", "---|".repeat(table.columns.len()))?;
        for row in &table.rows {
            let cells: Vec<_> = row.iter().map(|cell| cell.replace('|', "\\|")).collect();
            writeln!(out, "| {} |", cells.join(" | "))?;
        }
    }
    Ok(())
}

fn tables(report: &PolicyReport) -> Vec<Table> {
    vec![
        records(report),
        pins(report),
        translations(report),
        keys(report),
        wrapping(report),
        zones(report),
        peers(report),
        clients(report),
        rules(report),
    ]
}

fn records(report: &PolicyReport) -> Table {
    let rows = report.records.iter().map(|record| {
        let until = record.until.clone().unwrap_or_else(|| "-".into());
        vec![record.level.clone(), record.format.to_owned(), until, record.rule.name().to_owned()]
    });
    Table {
        title: "Stored PINs",
        note: format!("The keys are in a {}. New records have the format of the level.", report.keys_in),
        columns: &["level", "format", "until", "rule"],
        rows: rows.collect(),
    }
}

fn pins(report: &PolicyReport) -> Table {
    let pins = &report.pins;
    let mut rows = vec![
        vec!["digits".into(), format!("{} to {}", pins.digits_min, pins.digits_max), pins.rule.name().into()],
        vec!["refused".into(), listed(pins.refused.iter().copied()), pins.rule.name().into()],
        vec!["list of refused PINs".into(), yes_or_no(pins.refused_list), pins.rule.name().into()],
    ];
    rows.extend(report.tries.iter().map(|tries| {
        let of = tries.tenant.as_ref().map_or_else(|| "tries of a card".into(), |tenant| format!("tries, {tenant}"));
        vec![of, tries.tries_per_card.to_string(), tries.rule.name().into()]
    }));
    Table { title: "PINs", note: String::new(), columns: &["limit", "value", "rule"], rows }
}

fn translations(report: &PolicyReport) -> Table {
    let rows = report.translations.iter().map(|row| {
        vec![
            holder(row.source).into(),
            row.source_format.into(),
            holder(row.target).into(),
            row.target_format.into(),
            row.level.clone(),
            listed(row.zones.iter().map(String::as_str)),
            row.rule.name().into(),
        ]
    });
    Table {
        title: "Translations of PIN blocks",
        note: "No other pair is translated.".into(),
        columns: &["source", "format", "target", "format", "level", "zones", "rule"],
        rows: rows.collect(),
    }
}

fn keys(report: &PolicyReport) -> Table {
    let rows = report.keys.iter().map(|key| {
        let algorithms = key.algorithms.iter().map(|Strength { algorithm, key_bits, security_bits }| {
            format!("{algorithm} ({key_bits} bits, strength {security_bits})")
        });
        vec![key.usage.clone(), algorithms.collect::<Vec<_>>().join(", "), key.rule.name().into()]
    });
    Table {
        title: "Keys",
        note: "The bits of 3DES are those without parity. The first algorithm is the default.".into(),
        columns: &["usage", "algorithms", "rule"],
        rows: rows.collect(),
    }
}

fn wrapping(report: &PolicyReport) -> Table {
    let rows = report.wrapping.iter().map(|row| {
        let under = listed(row.under_algorithms.iter().map(String::as_str));
        vec![row.key.clone(), row.key_algorithm.clone(), row.under.into(), under, row.rule.name().into()]
    });
    Table {
        title: "Keys that travel",
        note: "Every other key stays in its vault or token. A key also comes in by components of custodians.".into(),
        columns: &["key", "algorithm", "under", "algorithms", "rule"],
        rows: rows.collect(),
    }
}

fn zones(report: &PolicyReport) -> Table {
    let rows = report.zones.iter().flat_map(|zone| {
        let row = move |zone_use: &str, rule: &str| {
            vec![
                zone.name.clone(),
                zone.tenant.clone(),
                zone.index.to_string(),
                listed(zone.formats.iter().copied()),
                listed(zone.key_algorithms.iter().map(String::as_str)),
                zone.parity.into(),
                zone_use.into(),
                rule.into(),
            ]
        };
        let uses: Vec<_> = zone.uses.iter().map(|of| row(of.name, of.rule.name())).collect();
        if uses.is_empty() { vec![row("-", "-")] } else { uses }
    });
    Table {
        title: "Zones",
        note: "Each use is a capability of everybody who has the zone's key.".into(),
        columns: &["zone", "tenant", "index", "formats", "key", "even parity", "use", "rule"],
        rows: rows.collect(),
    }
}

fn peers(report: &PolicyReport) -> Table {
    let rows = report.peers.iter().flat_map(|peer| {
        peer.roles.iter().map(|role| {
            vec![
                peer.certificate_name.clone().unwrap_or_else(|| "every process of the machine".into()),
                if peer.tenants.is_empty() { "all".into() } else { peer.tenants.join(", ") },
                role.role.clone(),
                role.methods.iter().filter_map(|path| path.rsplit('/').next()).collect::<Vec<_>>().join(", "),
                peer.rule.name().into(),
            ]
        })
    });
    Table {
        title: "Callers of the engine",
        note: String::new(),
        columns: &["certificate", "tenants", "role", "methods", "rule"],
        rows: rows.collect(),
    }
}

fn clients(report: &PolicyReport) -> Table {
    let rows = report.clients.iter().flat_map(|client| {
        let row = move |grant: String, lacks: String, rule: &str| {
            vec![client.name.clone(), client.tenant.clone(), grant, lacks, rule.into()]
        };
        let grants: Vec<_> = client
            .grants
            .iter()
            .map(|granted| {
                let grant = match &granted.grant {
                    Grant::Zone { zone_use, index, zone } => {
                        format!("{zone_use}, zone {index} ({})", zone.as_deref().unwrap_or("unknown"))
                    }
                    Grant::OaepMgf1Sha1 { until } => format!("MGF1-SHA-1 until {until}"),
                };
                row(grant, listed(granted.lacks.iter().map(|lack| lack_text(*lack))), granted.rule.name())
            })
            .collect();
        if grants.is_empty() { vec![row("-".into(), "-".into(), "-")] } else { grants }
    });
    Table {
        title: "Clients of the edge",
        note: "Every client sets and views PINs by controls. The grants beyond, and what a grant still lacks to work:"
            .into(),
        columns: &["client", "tenant", "grant", "lacks", "rule"],
        rows: rows.collect(),
    }
}

fn rules(report: &PolicyReport) -> Table {
    let rows = report.rules.iter().map(|row| vec![row.rule.name().into(), row.source.into(), row.statement.into()]);
    Table {
        title: "Rules",
        note: "\"Judged\" marks a reading of the standard by this project: the assessor decides.".into(),
        columns: &["rule", "source", "statement"],
        rows: rows.collect(),
    }
}

fn holder(holder: Holder) -> &'static str {
    match holder {
        Holder::Device => "device",
        Holder::Record => "record",
        Holder::Zone => "zone",
    }
}

fn lack_text(lack: Lack) -> &'static str {
    match lack {
        Lack::Zone => "the zone in [[zones]]",
        Lack::ZoneUse => "the use in [[zones]]",
        Lack::Role => "the role in [[peers]]",
    }
}

fn yes_or_no(value: bool) -> String {
    if value { "yes".into() } else { "no".into() }
}

fn listed<'a>(items: impl Iterator<Item = &'a str>) -> String {
    let items: Vec<_> = items.collect();
    if items.is_empty() { "-".into() } else { items.join(", ") }
}
