//! The actions of a ceremony, as the transcript records them: key references, check values, names; never a component.

use std::fmt;

use hsm::{Kcv, KeyInfo};
use serde::{Deserialize, Serialize};

use super::roster::{Roster, Step};

/// One completed step of a ceremony.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum CeremonyAction {
    /// The ceremony began: the keys are in the custody of a roster.
    Begin {
        /// The roster.
        roster: Roster,
        /// Every key of the vault or token when the ceremony began.
        keys: Vec<Key>,
    },
    /// A fresh key was made in components. Each was shown to its custodian; Pinseal kept neither the key nor a component.
    MakeComponents {
        /// The key's algorithm, such as `aes-256`.
        algorithm: String,
        /// The KCV of the key: six hexadecimal digits.
        check_value: String,
        /// The custodian and KCV of each component.
        components: Vec<Component>,
    },
    /// A fresh key was made of random bytes.
    MakeKey {
        /// The key in its state after this action.
        key: Key,
    },
    /// A key was loaded from its components.
    LoadKey {
        /// The key in its state after this action.
        key: Key,
        /// The custodian and KCV of each component, in the order of entry.
        components: Vec<Component>,
    },
    /// A key was imported from a key block.
    ImportKey {
        /// The key in its state after this action.
        key: Key,
        /// The KEK that encrypted the key block, such as `exchange:acquirer`.
        under: String,
        /// The header of the key block.
        header: String,
    },
    /// A key was exported in a key block.
    ExportKey {
        /// The key in its state after this action.
        key: Key,
        /// The KEK that encrypts the key block, such as `exchange:acquirer`.
        under: String,
        /// The header of the key block.
        header: String,
    },
    /// A pending key was activated.
    Activate {
        /// The key in its state after this action.
        key: Key,
    },
    /// A key was retired.
    Retire {
        /// The key in its state after this action.
        key: Key,
        /// How the use of the key was counted; absent for a key that needs no count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<UseCount>,
    },
    /// A retired key was wiped.
    Destroy {
        /// The key in its state after this action.
        key: Key,
        /// How the use of the key was counted; absent for a key that needs no count.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<UseCount>,
    },
    /// The ceremony ended: no line follows.
    End,
}

/// How a storage or seal key was found to be unused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum UseCount {
    /// By a count in every store and running engine that was named, or in the store of the configuration.
    Count {
        /// The counted stores and engines, at least one.
        asked: Vec<EngineCount>,
        /// Engines that started on a store that was counted, or whose store is the configuration's, and that were not
        /// asked: `HOST:STORE DIRECTORY`.
        not_asked: Vec<String>,
    },
    /// By such a count, and one-way records are under the key (`--abandon`): the participants confirmed twice that these PINs
    /// are given up.
    Abandon {
        /// The PINs that are lost.
        records: u64,
        /// The counted stores and engines, at least one.
        asked: Vec<EngineCount>,
        /// As in [`UseCount::Count`].
        not_asked: Vec<String>,
    },
    /// No count (`--no-store`): the participants confirmed twice that no store has anything under the key and no engine uses
    /// the key.
    NoStore,
}

/// A store or engine that was asked, and its counts of records under the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineCount {
    /// The store or engine that was asked.
    pub source: CountSource,
    /// The engine's name: `HOST:STORE DIRECTORY`.
    pub engine: String,
    /// PIN records under the key.
    pub records: u64,
    /// Live controls with a tzpk under the key.
    pub controls: u64,
}

/// The origin of a count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CountSource {
    /// The store of a stopped engine: its directory.
    Store(String),
    /// A database that engines share: its address. The engines may run.
    Database(String),
    /// A running engine: its address.
    Engine(String),
}

/// A key in a transcript: reference, algorithm, KCV and state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Usage and version, such as `storage/1`.
    pub key: String,
    /// The algorithm, such as `aes-256`.
    pub algorithm: String,
    /// The KCV: six hexadecimal digits, or `none` for a key that a token made and that may not encrypt there.
    pub check_value: String,
    /// `pending`, `active`, `retired` or `destroyed`, after the action.
    pub state: String,
}

impl Key {
    /// The transcript's view of a key of the vault or token.
    pub fn of(info: &KeyInfo) -> Self {
        Self {
            key: info.reference(),
            algorithm: info.algorithm.to_string(),
            check_value: info.kcv_text(),
            state: info.state().to_string(),
        }
    }
}

/// A key component: its custodian and its KCV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// The custodian's name on the roster.
    pub custodian: String,
    /// The KCV of the component: six hexadecimal digits.
    pub check_value: String,
}

impl Component {
    /// One component a custodian; both slices are in the same order.
    pub fn of_each(custodians: &[&str], check_values: &[Kcv]) -> Vec<Self> {
        let each = custodians.iter().zip(check_values);
        each.map(|(custodian, value)| Self { custodian: (*custodian).to_owned(), check_value: value.to_string() })
            .collect()
    }
}

impl CeremonyAction {
    /// The kind of step, which decides who must be present.
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
            Self::ImportKey { key, under, header } => write!(f, "imported {key}, under {under}, as {header}"),
            Self::ExportKey { key, under, header } => write!(f, "exported {key}, under {under}, as {header}"),
            Self::Activate { key } => write!(f, "activated {key}"),
            Self::Retire { key, count: None } => write!(f, "retired {key}"),
            Self::Retire { key, count: Some(count) } => write!(f, "retired {key}; {count}"),
            Self::Destroy { key, count: None } => write!(f, "destroyed {key}"),
            Self::Destroy { key, count: Some(count) } => write!(f, "destroyed {key}; {count}"),
            Self::End => write!(f, "ended"),
        }
    }
}

impl fmt::Display for UseCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (asked, not_asked) = match self {
            Self::NoStore => return write!(f, "nothing was counted: no store and no engine, confirmed twice"),
            Self::Count { asked, not_asked } => (asked, not_asked),
            Self::Abandon { records, asked, not_asked } => {
                write!(f, "{records} one-way PINs are given up, confirmed twice; ")?;
                (asked, not_asked)
            }
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
            CountSource::Database(place) => write!(f, "the database {place}")?,
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
