//! The roster: the participants of a ceremony, their roles and public keys, and the quorum of custodians.

use std::collections::HashSet;

use base16ct::lower;
use config::TomlError;
use hsm::{ParticipantError, ParticipantKey, ParticipantPublicKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// The number of custodians on a roster: as many as a key may have components.
const CUSTODIANS: std::ops::RangeInclusive<usize> = 2..=9;

/// The role of a participant. Each participant has exactly one.
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

/// A person on the roster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Participant {
    /// The name in the transcript: 1 to 31 of `a-z`, `0-9` and `-`.
    pub name: String,
    /// The role in every step.
    pub role: Role,
    /// The Ed25519 public key (RFC 8032): 64 lower-case hexadecimal digits, as `pinseal ceremony person` prints it.
    pub key: String,
}

/// All participants of a ceremony, and the quorum.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Roster {
    /// The number of custodians that each step needs, beside the leader: at least 2.
    pub quorum: usize,
    /// The participants: 2 to 9 custodians, at least one leader, any number of auditors.
    pub person: Vec<Participant>,
}

/// The kind of a step, which decides who must be present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The first and the last step. An auditor must be present too, if the roster has one.
    Frame,
    /// Every step between them: the leader and a quorum of custodians.
    Keys,
}

impl Roster {
    /// Reads and checks a roster in TOML.
    ///
    /// # Errors
    /// The text is not a roster in TOML, or [`Roster::check`] rejects it.
    pub fn parse(text: &str) -> Result<Self, RosterError> {
        let roster: Self = config::parse_toml(text)?;
        roster.check()?;
        Ok(roster)
    }

    /// Checks names, keys, roles and quorum.
    ///
    /// # Errors
    /// A name or key is malformed or appears twice, there are too few or too many custodians, the quorum is out of range,
    /// or there is no leader.
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

    /// SHA-256 of the roster in JSON. A vault or token in the custody of the roster stores it.
    pub fn hash(&self) -> [u8; 32] {
        let text = serde_json::to_string(self).unwrap_or_default();
        Sha256::digest(text).into()
    }

    /// The participants with these keys.
    ///
    /// # Errors
    /// A key belongs to nobody on the roster, or is given twice.
    pub fn present(&self, keys: Vec<ParticipantKey>) -> Result<Vec<Present>, RosterError> {
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

    /// Checks that the participants present are enough for a step. Every one of them must be on the roster.
    ///
    /// # Errors
    /// The quorum of custodians, the leader or the auditor is absent, or a participant appears twice.
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
    /// The public key; `None` where the text is not 64 hexadecimal digits.
    pub fn public(&self) -> Option<ParticipantPublicKey> {
        decode_exact(&self.key).map(ParticipantPublicKey::from_bytes)
    }
}

/// A participant who is present, with the private key that signs the transcript.
pub struct Present {
    /// The entry on the roster.
    pub person: Participant,
    key: ParticipantKey,
}

impl Present {
    /// The Ed25519 signature of a message: 128 lower-case hexadecimal digits.
    ///
    /// # Errors
    /// The participant's token does not sign.
    pub fn sign(&self, message: &[u8]) -> Result<String, RosterError> {
        let signed = self.key.sign(message);
        signed
            .map(|signature| lower::encode_string(&signature))
            .map_err(|error| RosterError::NotSigned { name: self.person.name.clone(), error })
    }
}

/// Exactly `N` bytes in lower-case hexadecimal digits; `None` for any other text.
pub(super) fn decode_exact<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let length = lower::decode(text, &mut bytes).ok()?.len();
    (length == N).then_some(bytes)
}

/// A roster is rejected, or the participants present are not enough.
#[derive(Debug, Error)]
pub enum RosterError {
    /// The text is not TOML, or not a roster. The error repeats no value: a private key may stand in the wrong place.
    #[error("the roster is malformed: {0}")]
    Malformed(#[from] TomlError),
    /// The name is not 1 to 31 of `a-z`, `0-9` and `-`.
    #[error("the roster rejects the name {name:?}: use 1 to 31 of a-z, 0-9 and -")]
    Name {
        /// The rejected name.
        name: String,
    },
    /// The key is not 64 lower-case hexadecimal digits.
    #[error("the key of {name} is not 64 lower-case hexadecimal digits, as pinseal ceremony person prints it")]
    Key {
        /// The name of the participant.
        name: String,
    },
    /// A participant or a key appears twice.
    #[error("{name} appears twice: each participant has one role and one key")]
    Twice {
        /// The name of the participant.
        name: String,
    },
    /// The number of custodians is not 2 to 9.
    #[error("there are {found} custodians: a roster has {} to {}", CUSTODIANS.start(), CUSTODIANS.end())]
    Custodians {
        /// The number of custodians on the roster.
        found: usize,
    },
    /// The quorum is less than 2 or more than the custodians.
    #[error("the quorum is {quorum} of {custodians} custodians: set it to 2 or more, and at most {custodians}")]
    Quorum {
        /// The number of custodians on the roster.
        custodians: usize,
        /// The rejected quorum.
        quorum: usize,
    },
    /// No participant has the role leader.
    #[error("the roster names no leader: give one person the role leader")]
    NoLeader,
    /// A key belongs to nobody on the roster.
    #[error("nobody on the roster has the key {public}")]
    Stranger {
        /// The public key, 64 hexadecimal digits.
        public: String,
    },
    /// Fewer custodians than the quorum are present.
    #[error("{found} custodians are present, and it takes {wanted}: name the key of each by --present")]
    TooFew {
        /// The quorum of the roster.
        wanted: usize,
        /// The number of custodians present.
        found: usize,
    },
    /// A participant is present, and their key or token does not sign.
    #[error("{name} did not sign, so nothing was done: {error}")]
    NotSigned {
        /// The name of the participant.
        name: String,
        /// The reason that the key or token gives.
        error: ParticipantError,
    },
    /// A required role is absent.
    #[error("no {role} is present: name the key of one by --present")]
    Missing {
        /// The absent role.
        role: Role,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str, role: Role) -> Participant {
        Participant { name: name.to_owned(), role, key: lower::encode_string(&Sha256::digest(name)) }
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
    fn a_step_needs_the_leader_and_the_quorum() {
        let allows = |names: &[&str]| roster().allows(Step::Keys, &of(names)).is_ok();
        assert!(allows(&["lea", "alice", "bob"]) && allows(&["lea", "bob", "carol", "alice"]));
        for too_few in
            [&[][..], &["lea"], &["alice"], &["lea", "alice"], &["alice", "bob", "carol"], &["lea", "otto", "bob"]]
        {
            assert!(!allows(too_few), "{too_few:?}");
        }
    }

    #[test]
    fn a_malformed_roster_is_rejected_without_its_values() {
        let secret = "9d61b19deffd5a60ba844af492ec2cc4";
        for text in [
            format!("quorum = \"{secret}\"\nperson = []"),
            format!("quorum = 2\n[[person]]\nname = \"alice\"\nrole = \"{secret}\"\nkey = \"\""),
            format!("quorum = 2\nperson = \"{secret}"),
        ] {
            let error = Roster::parse(&text).unwrap_err();
            assert!(matches!(error, RosterError::Malformed(_)) && !error.to_string().contains(secret), "{error}");
        }
    }

    #[test]
    fn a_key_is_exactly_its_lower_case_digits() {
        assert_eq!(decode_exact("00ff"), Some([0, 255]));
        for rejected in ["", "00", "00ff0", "00ff00", "00FF", "00fg", " 0ff"] {
            assert_eq!(decode_exact::<2>(rejected), None, "{rejected:?}");
        }
    }

    #[test]
    fn a_participant_named_twice_is_rejected() {
        assert!(roster().allows(Step::Keys, &of(&["lea", "alice", "alice"])).is_err());
    }

    #[test]
    fn the_first_and_last_step_need_the_auditor() {
        assert!(roster().allows(Step::Frame, &of(&["lea", "alice", "bob"])).is_err());
        assert!(roster().allows(Step::Frame, &of(&["lea", "alice", "bob", "otto"])).is_ok());
    }

    #[test]
    fn check_rejects_shared_keys_bad_quorums_and_missing_leader() {
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
    fn the_hash_covers_the_quorum() {
        assert_ne!(roster().hash(), Roster { quorum: 3, ..roster() }.hash());
    }
}
