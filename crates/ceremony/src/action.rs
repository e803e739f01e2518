//! What is done in a ceremony, as the transcript tells it: key references, check values, names; never a component.

use std::fmt;

use hsm::{Kcv, KeyInfo};
use serde::{Deserialize, Serialize};

use super::roster::{Roster, Step};

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum CeremonyAction {
    /// The keys came into, or are in, the custody of a roster.
    Begin {
        /// Whose.
        roster: Roster,
        /// What was there.
        keys: Vec<Key>,
    },
    /// A fresh key in components, each shown to its custodian; nothing of it was kept.
    MakeComponents {
        /// Of what it is a key.
        algorithm: String,
        /// Of the key.
        check_value: String,
        /// Of each component.
        components: Vec<Component>,
    },
    /// A fresh key of random bytes.
    MakeKey {
        /// Which.
        key: Key,
    },
    /// A key from its components.
    LoadKey {
        /// Which.
        key: Key,
        /// Who entered what.
        components: Vec<Component>,
    },
    /// A key from a key block.
    ImportKey {
        /// Which.
        key: Key,
        /// The key it was under.
        under: String,
        /// What the block said of it.
        header: String,
    },
    /// A key in a key block.
    ExportKey {
        /// Which.
        key: Key,
        /// The key it is under.
        under: String,
        /// What the block says of it.
        header: String,
    },
    /// A key was put into use.
    Activate {
        /// Which.
        key: Key,
    },
    /// A key was taken out of use.
    Retire {
        /// Which.
        key: Key,
        /// How its use was counted; none of a key that needs no count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<UseCount>,
    },
    /// A key was wiped.
    Destroy {
        /// Which.
        key: Key,
        /// How its use was counted; none of a key that needs no count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<UseCount>,
    },
    /// No more is told.
    End,
}

/// How it was found out that nothing needs a storage or seal key any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum UseCount {
    /// By a count in every store and running engine that was named, or in the store of the configuration.
    Count {
        /// Each that was asked, at least one.
        asked: Vec<EngineCount>,
        /// Engines that started on a store that was counted, or whose store is the configuration's, and that were not
        /// asked: `HOST:STORE DIRECTORY`.
        not_asked: Vec<String>,
    },
    /// By nobody (`--no-store`): those present confirmed twice that no store has anything under the key and no engine uses
    /// the key.
    NoStore,
}

/// A store or an engine that was asked, and what it has under the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineCount {
    /// How it was asked.
    pub source: CountSource,
    /// The engine's name: `HOST:STORE DIRECTORY`.
    pub engine: String,
    /// PIN records under the key.
    pub records: u64,
    /// Live controls with a tzpk under the key.
    pub controls: u64,
}

/// Where a count is from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountSource {
    /// The store of a stopped engine: its directory.
    Store(String),
    /// A running engine: its address.
    Engine(String),
}

/// A key, as a transcript names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Such as `storage/1`.
    pub key: String,
    /// Such as `aes-256`.
    pub algorithm: String,
    /// Six hexadecimal digits; `none` of a key that a token made and that may not encrypt there.
    pub check_value: String,
    /// What has become of it, after the action.
    pub state: String,
}

impl Key {
    /// What is told of it.
    pub fn of(info: &KeyInfo) -> Self {
        Self {
            key: info.reference(),
            algorithm: info.algorithm.to_string(),
            check_value: info.told_check_value(),
            state: info.state().to_string(),
        }
    }
}

/// A component: whose it is, and its check value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Whose.
    pub custodian: String,
    /// Six hexadecimal digits.
    pub check_value: String,
}

impl Component {
    /// Each custodian's.
    pub fn of_each(custodians: &[&str], check_values: &[Kcv]) -> Vec<Self> {
        let each = custodians.iter().zip(check_values);
        each.map(|(custodian, value)| Self { custodian: (*custodian).to_owned(), check_value: value.to_string() })
            .collect()
    }
}

impl CeremonyAction {
    /// What decides who must be there.
    pub fn step(&self) -> Step {
        match self {
            Self::Begin { .. } | Self::End => Step::Frame,
            _ => Step::Keys,
        }
    }
}

impl fmt::Display for CeremonyAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entered = |components: &[Component]| {
            let each = components.iter().map(|one| format!("{} {}", one.custodian, one.check_value));
            each.collect::<Vec<_>>().join(", ")
        };
        match self {
            Self::Begin { roster, keys } => {
                let (people, quorum) = (roster.person.len(), roster.quorum);
                let held = keys.iter().map(|key| format!("{} {} {}", key.key, key.check_value, key.state));
                let held = held.collect::<Vec<_>>().join(", ");
                let held = if held.is_empty() { "no key".to_owned() } else { held };
                write!(f, "began: {people} people on the roster, a quorum of {quorum}; there is {held}")
            }
            Self::MakeComponents { algorithm, check_value, components } => {
                write!(f, "made an {algorithm} key, check value {check_value}, in components: {}", entered(components))
            }
            Self::MakeKey { key } => write!(f, "made {key}"),
            Self::LoadKey { key, components } => write!(f, "loaded {key}, from components: {}", entered(components)),
            Self::ImportKey { key, under, header } => write!(f, "took in {key}, under {under}, as {header}"),
            Self::ExportKey { key, under, header } => write!(f, "gave out {key}, under {under}, as {header}"),
            Self::Activate { key } => write!(f, "put into use {key}"),
            Self::Retire { key, count: None } => write!(f, "took out of use {key}"),
            Self::Retire { key, count: Some(count) } => write!(f, "took out of use {key}; {count}"),
            Self::Destroy { key, count: None } => write!(f, "destroyed {key}"),
            Self::Destroy { key, count: Some(count) } => write!(f, "destroyed {key}; {count}"),
            Self::End => write!(f, "ended"),
        }
    }
}

impl fmt::Display for UseCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self::Count { asked, not_asked } = self else {
            return write!(f, "nothing was counted: no store and no engine, confirmed twice");
        };
        let each = asked.iter().map(ToString::to_string).collect::<Vec<_>>();
        write!(f, "counted: {}", each.join(", "))?;
        if not_asked.is_empty() { Ok(()) } else { write!(f, "; not asked: {}", not_asked.join(", ")) }
    }
}

impl fmt::Display for EngineCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            CountSource::Store(directory) => write!(f, "the store {directory}")?,
            CountSource::Engine(address) => write!(f, "the engine {address} ({})", self.engine)?,
        }
        write!(f, " has {} records and {} live controls under it", self.records, self.controls)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, check value {}): {}", self.key, self.algorithm, self.check_value, self.state)
    }
}
