//! Who may take part: people, their roles and public keys, and how many custodians a step needs.

use std::collections::HashSet;

use hsm::{PersonError, PersonKey, PersonPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use super::hexadecimal::{hex, unhex};

/// How many custodians there may be: as many as a key may have components.
const CUSTODIANS: std::ops::RangeInclusive<usize> = 2..=9;

/// What somebody is there for; nobody is there for two things.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Knows one component of a key, and no other.
    Custodian,
    /// Leads the ceremony, and knows no component.
    Leader,
    /// Watches the ceremony's beginning and end.
    Auditor,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Custodian => "custodian",
            Self::Leader => "leader",
            Self::Auditor => "auditor",
        })
    }
}

/// Somebody.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// As the transcript names them: 1 to 31 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// What they are there for.
    pub role: Role,
    /// Their Ed25519 public key: 64 hexadecimal digits, as `pinseal ceremony person` prints it.
    pub key: String,
}

/// All who may take part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// How many custodians a step needs, beside the leader.
    pub quorum: usize,
    /// Everybody.
    pub person: Vec<Participant>,
}

/// What is done, as far as it decides who must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first and the last: an auditor too, where there is one.
    Frame,
    /// Every other.
    Keys,
}

impl Roster {
    /// Reads and checks a roster in TOML.
    pub fn parse(text: &str) -> Result<Self, RosterError> {
        let roster: Self = toml::from_str(text).map_err(|error| RosterError::Malformed(error.to_string()))?;
        roster.check()?;
        Ok(roster)
    }

    /// Whether it can hold anything in custody.
    pub fn check(&self) -> Result<(), RosterError> {
        let (mut names, mut keys) = (HashSet::new(), HashSet::new());
        for person in &self.person {
            let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !(1..=31).contains(&person.name.len()) || !person.name.bytes().all(good) {
                return Err(RosterError::Name { name: person.name.clone() });
            }
            if person.public().is_none() || person.key != person.key.to_ascii_lowercase() {
                return Err(RosterError::Key { name: person.name.clone() });
            }
            if !names.insert(&person.name) || !keys.insert(&person.key) {
                return Err(RosterError::Twice { name: person.name.clone() });
            }
        }
        let custodians = self.count(&self.person, Role::Custodian);
        if !CUSTODIANS.contains(&custodians) {
            return Err(RosterError::Custodians { found: custodians });
        }
        if !(2..=custodians).contains(&self.quorum) {
            return Err(RosterError::Quorum { custodians, quorum: self.quorum });
        }
        if self.count(&self.person, Role::Leader) == 0 {
            return Err(RosterError::NoLeader);
        }
        Ok(())
    }

    /// SHA-256 of it: what a vault or token in its custody remembers.
    pub fn hash(&self) -> [u8; 32] {
        let text = serde_json::to_string(self).unwrap_or_default();
        Sha256::digest(text).into()
    }

    /// Who of them is there.
    pub fn present(&self, keys: Vec<PersonKey>) -> Result<Vec<Present>, RosterError> {
        let mut present: Vec<Present> = Vec::new();
        for key in keys {
            let public = key.public().to_string();
            let person =
                self.person.iter().find(|person| person.key == public).ok_or(RosterError::Stranger { public })?;
            if present.iter().any(|other| other.person == *person) {
                return Err(RosterError::Twice { name: person.name.clone() });
            }
            present.push(Present { person: person.clone(), key });
        }
        Ok(present)
    }

    /// Whether those who are there are enough. They are all of the roster.
    pub fn allows(&self, step: Step, present: &[Participant]) -> Result<(), RosterError> {
        let distinct: HashSet<_> = present.iter().map(|person| &person.name).collect();
        if distinct.len() != present.len() {
            return Err(RosterError::Twice {
                name: present.first().map(|person| person.name.clone()).unwrap_or_default(),
            });
        }
        let custodians = self.count(present, Role::Custodian);
        if custodians < self.quorum {
            return Err(RosterError::TooFew { wanted: self.quorum, found: custodians });
        }
        if self.count(present, Role::Leader) == 0 {
            return Err(RosterError::Missing { role: Role::Leader });
        }
        let auditors = self.count(&self.person, Role::Auditor);
        if step == Step::Frame && auditors > 0 && self.count(present, Role::Auditor) == 0 {
            return Err(RosterError::Missing { role: Role::Auditor });
        }
        Ok(())
    }

    fn count(&self, people: &[Participant], role: Role) -> usize {
        people.iter().filter(|person| person.role == role).count()
    }
}

impl Participant {
    /// Who they are; none where it is no key.
    pub fn public(&self) -> Option<PersonPublicKey> {
        unhex::<32>(&self.key).map(PersonPublicKey::from_bytes)
    }
}

/// Somebody who is there, with the key they sign with.
pub struct Present {
    /// Who.
    pub person: Participant,
    key: PersonKey,
}

impl Present {
    /// Their signature, as hexadecimal digits.
    pub fn sign(&self, message: &[u8]) -> Result<String, RosterError> {
        let signed = self.key.sign(message);
        signed
            .map(|signature| hex(&signature))
            .map_err(|error| RosterError::NotSigned { name: self.person.name.clone(), error })
    }
}

/// Why a roster, or who is there, won't do.
#[derive(Debug, Error)]
pub enum RosterError {
    /// Not TOML, or not a roster.
    #[error("the roster can't be read: {0}")]
    Malformed(String),
    /// A name that does not print well.
    #[error("{name:?} is no name for a roster: 1 to 31 of a-z, 0-9 and -")]
    Name {
        /// Which.
        name: String,
    },
    /// Not a public key.
    #[error("the key of {name} is not 64 lower-case hexadecimal digits, as pinseal ceremony person prints it")]
    Key {
        /// Whose.
        name: String,
    },
    /// One person in two places.
    #[error("{name} is there twice: nobody has two roles, and no two share a key")]
    Twice {
        /// Who.
        name: String,
    },
    /// Too few or too many.
    #[error("there are {found} custodians: a roster has {} to {}", CUSTODIANS.start(), CUSTODIANS.end())]
    Custodians {
        /// How many.
        found: usize,
    },
    /// Out of range.
    #[error("a quorum of {quorum} of {custodians} custodians: it is at least 2, and no more than there are")]
    Quorum {
        /// How many there are.
        custodians: usize,
        /// How many were to be needed.
        quorum: usize,
    },
    /// Nobody leads.
    #[error("the roster names no leader")]
    NoLeader,
    /// A key that nobody of the roster has.
    #[error("nobody on the roster has the key {public}")]
    Stranger {
        /// The public key.
        public: String,
    },
    /// Not enough.
    #[error("{found} custodians are present, and it takes {wanted}")]
    TooFew {
        /// How many it takes.
        wanted: usize,
        /// How many there are.
        found: usize,
    },
    /// Somebody is there and can't sign.
    #[error("{name} did not sign, so nothing was done: {error}")]
    NotSigned {
        /// Who.
        name: String,
        /// Why.
        error: PersonError,
    },
    /// Somebody is not there.
    #[error("no {role} is present")]
    Missing {
        /// Who.
        role: Role,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str, role: Role) -> Participant {
        Participant { name: name.to_owned(), role, key: hex(&Sha256::digest(name)) }
    }

    fn roster() -> Roster {
        let person = vec![
            person("alice", Role::Custodian),
            person("bob", Role::Custodian),
            person("carol", Role::Custodian),
            person("lea", Role::Leader),
            person("otto", Role::Auditor),
        ];
        Roster { quorum: 2, person }
    }

    fn of(names: &[&str]) -> Vec<Participant> {
        let all = roster();
        names.iter().map(|name| all.person.iter().find(|person| person.name == *name).unwrap().clone()).collect()
    }

    #[test]
    fn a_step_takes_a_leader_and_the_quorum_and_none_of_them_alone() {
        let allows = |names: &[&str]| roster().allows(Step::Keys, &of(names)).is_ok();
        assert!(allows(&["lea", "alice", "bob"]) && allows(&["lea", "bob", "carol", "alice"]));
        for too_few in
            [&[][..], &["lea"], &["alice"], &["lea", "alice"], &["alice", "bob", "carol"], &["lea", "otto", "bob"]]
        {
            assert!(!allows(too_few), "{too_few:?}");
        }
    }

    #[test]
    fn nobody_counts_twice() {
        assert!(roster().allows(Step::Keys, &of(&["lea", "alice", "alice"])).is_err());
    }

    #[test]
    fn the_auditor_is_there_at_the_beginning_and_the_end() {
        assert!(roster().allows(Step::Frame, &of(&["lea", "alice", "bob"])).is_err());
        assert!(roster().allows(Step::Frame, &of(&["lea", "alice", "bob", "otto"])).is_ok());
    }

    #[test]
    fn a_roster_with_one_person_in_two_roles_or_a_quorum_of_one_holds_nothing_in_custody() {
        assert!(roster().check().is_ok());
        let mut twice = roster();
        twice.person[3].key = twice.person[0].key.clone();
        assert!(matches!(twice.check(), Err(RosterError::Twice { .. })));
        for quorum in [0, 1, 4] {
            assert!(matches!(Roster { quorum, ..roster() }.check(), Err(RosterError::Quorum { .. })));
        }
        let mut unled = roster();
        unled.person.remove(3);
        assert!(matches!(unled.check(), Err(RosterError::NoLeader)));
    }

    #[test]
    fn another_roster_has_another_hash() {
        assert_ne!(roster().hash(), Roster { quorum: 3, ..roster() }.hash());
    }
}
