//! The figures, as a table for people and as JSON for programs.

use std::{
    io::{self, Write},
    path::Path,
};

use serde_json::{Value, json};

use super::{load::Measurement, stages::Stage};

/// The figures of one level of concurrency.
pub(super) struct ConcurrencyResult {
    concurrency: usize,
    peer: Figures,
    ours: Figures,
}

/// The round in the middle, by its rate.
struct Figures {
    rate: f64,
    processor: f64,
    stages: [f64; Stage::ALL.len()],
    p50: u64,
    p99: u64,
    p999: u64,
}

impl ConcurrencyResult {
    /// From the rounds of one level.
    pub(super) fn from_runs(concurrency: usize, peer: Vec<Measurement>, ours: Vec<Measurement>) -> Option<Self> {
        Some(Self { concurrency, peer: Figures::median(peer)?, ours: Figures::median(ours)? })
    }

    fn ratio(&self) -> f64 {
        self.ours.rate / self.peer.rate.max(f64::MIN_POSITIVE)
    }
}

impl Figures {
    fn median(mut rounds: Vec<Measurement>) -> Option<Self> {
        rounds.sort_by(|one, other| one.rate().total_cmp(&other.rate()));
        let middle = rounds.get(rounds.len() / 2)?;
        Some(Self {
            rate: middle.rate(),
            processor: middle.processor_microseconds(),
            stages: Stage::ALL.map(|stage| middle.microseconds_of(&[stage])),
            p50: middle.quantile(0.5),
            p99: middle.quantile(0.99),
            p999: middle.quantile(0.999),
        })
    }

    fn json(&self) -> Value {
        let stages: serde_json::Map<_, _> =
            Stage::ALL.iter().zip(self.stages).map(|(stage, time)| (stage.name().to_owned(), json!(time))).collect();
        json!({ "per_second": self.rate, "processor_microseconds": self.processor, "stage_microseconds": stages, "p50_microseconds": self.p50, "p99_microseconds": self.p99, "p999_microseconds": self.p999 })
    }
}

/// Prints the tables, and writes the JSON where one is wanted. The names are of the peer and of what is measured.
pub(super) fn print(names: [&str; 2], levels: &[ConcurrencyResult], file: Option<&Path>) -> io::Result<()> {
    print_tables(names, levels)?;
    write(&json_of(names, levels), file)
}

/// Prints the rates and the latency, and the processor time of each stage.
pub(super) fn print_tables([peer, name]: [&str; 2], levels: &[ConcurrencyResult]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "in flight  what       per second   ratio    cpu µs    p50 µs    p99 µs  p99.9 µs")?;
    for level in levels {
        for (what, figures, ratio) in [(peer, &level.peer, 1.0), (name, &level.ours, level.ratio())] {
            let Figures { rate, processor, p50, p99, p999, .. } = figures;
            writeln!(
                out,
                "{:>9}  {what:<9} {rate:>11.0} {ratio:>7.2} {processor:>9.1} {p50:>9} {p99:>9} {p999:>9}",
                level.concurrency
            )?;
        }
    }
    writeln!(
        out,
        "\nin flight  what      cpu µs by stage: {}",
        Stage::ALL.map(|stage| format!("{:>9}", stage.name())).concat()
    )?;
    for level in levels {
        for (what, figures) in [(peer, &level.peer), (name, &level.ours)] {
            let times = figures.stages.map(|time| format!("{time:>9.1}")).concat();
            writeln!(out, "{:>9}  {what:<26}{times}", level.concurrency)?;
        }
    }
    Ok(())
}

/// The figures for programs.
pub(super) fn json_of([peer, name]: [&str; 2], levels: &[ConcurrencyResult]) -> Value {
    let levels: Vec<Value> = levels
        .iter()
        .map(|level| {
            json!({
                "in_flight": level.concurrency, peer: level.peer.json(), name: level.ours.json(), "ratio": level.ratio(),
            })
        })
        .collect();
    json!({ "levels": levels })
}

/// Writes the JSON where one is wanted.
pub(super) fn write(figures: &Value, file: Option<&Path>) -> io::Result<()> {
    file.map_or(Ok(()), |file| std::fs::write(file, format!("{figures:#}\n")))
}
