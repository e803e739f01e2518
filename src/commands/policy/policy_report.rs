//! The typed report: text, Markdown and JSON are written from it.

use edge::{ClientGrants, GrantedUse};
use engine::{EngineConfig, Peer, Role};
use hsm::{
    BoundaryLevel, ENGINE_KEYS, KeyAlgorithm, KeyPlace, KeyUsage, ParityPolicy, Place, StorageFormat, TRANSLATIONS,
    Translation, WantedLevel, Weakness, ZoneFormat, ZoneRules, ZoneUse,
};
use hsm_config::BoundaryRules;
use serde::Serialize;
use thiserror::Error;

use super::rule::Rule;

/// What a configuration allows.
#[derive(Serialize)]
pub(super) struct PolicyReport {
    /// The release that wrote the report.
    pub(super) pinseal: &'static str,
    /// Where the keys are: `vault` or `token`.
    pub(super) keys_in: &'static str,
    /// The format of new records at each possible level.
    pub(super) records: Vec<RecordRow>,
    pub(super) pins: PinRow,
    /// The tries of a card, first those of every tenant without an entry.
    pub(super) tries: Vec<TriesRow>,
    pub(super) translations: Vec<TranslationRow>,
    pub(super) keys: Vec<KeyRow>,
    /// What a key may travel under.
    pub(super) wrapping: Vec<WrappingRow>,
    pub(super) zones: Vec<ZoneRow>,
    pub(super) peers: Vec<PeerRow>,
    pub(super) clients: Vec<ClientRow>,
    pub(super) rules: Vec<RuleRow>,
}

#[derive(Serialize)]
pub(super) struct RecordRow {
    pub(super) level: String,
    pub(super) format: &'static str,
    /// The last day of a 3DES format.
    pub(super) until: Option<String>,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct PinRow {
    pub(super) digits_min: u8,
    pub(super) digits_max: u8,
    /// The refused patterns.
    pub(super) refused: Vec<&'static str>,
    /// Whether a file lists further refused PINs.
    pub(super) refused_list: bool,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct TriesRow {
    /// `None` for every tenant without an entry.
    pub(super) tenant: Option<String>,
    pub(super) tries_per_card: u32,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct TranslationRow {
    pub(super) source: Holder,
    pub(super) source_format: &'static str,
    pub(super) target: Holder,
    pub(super) target_format: &'static str,
    pub(super) level: String,
    /// The zones of the configuration that the pair serves.
    pub(super) zones: Vec<String>,
    pub(super) rule: Rule,
}

/// The holder of a block's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Holder {
    Device,
    Record,
    Zone,
}

#[derive(Serialize)]
pub(super) struct KeyRow {
    /// As in the key inventory; `NAME` for any name.
    pub(super) usage: String,
    pub(super) algorithms: Vec<Strength>,
    pub(super) rule: Rule,
}

#[derive(Clone, Serialize, PartialEq, Eq)]
pub(super) struct Strength {
    pub(super) algorithm: String,
    /// The bits of the key, without the parity bits of 3DES.
    pub(super) key_bits: usize,
    /// NIST SP 800-57 part 1, table 2.
    pub(super) security_bits: u16,
}

#[derive(Serialize)]
pub(super) struct WrappingRow {
    pub(super) key: String,
    pub(super) key_algorithm: String,
    pub(super) under: &'static str,
    /// The algorithms of the outer key.
    pub(super) under_algorithms: Vec<String>,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct ZoneRow {
    pub(super) name: String,
    pub(super) tenant: String,
    pub(super) index: u32,
    pub(super) formats: Vec<&'static str>,
    pub(super) key_algorithms: Vec<String>,
    /// `ignore`, `warn` or `reject`, of a 3DES key with even parity.
    pub(super) parity: &'static str,
    pub(super) uses: Vec<UseRow>,
}

#[derive(Serialize)]
pub(super) struct UseRow {
    #[serde(rename = "use")]
    pub(super) name: &'static str,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct PeerRow {
    /// The name on the certificate; `None` for every process of the machine.
    pub(super) certificate_name: Option<String>,
    /// Empty for all tenants.
    pub(super) tenants: Vec<String>,
    pub(super) roles: Vec<RoleRow>,
    pub(super) rule: Rule,
}

#[derive(Serialize)]
pub(super) struct RoleRow {
    pub(super) role: String,
    pub(super) methods: Vec<&'static str>,
}

#[derive(Serialize)]
pub(super) struct ClientRow {
    pub(super) name: String,
    pub(super) tenant: String,
    pub(super) grants: Vec<GrantRow>,
}

#[derive(Serialize)]
pub(super) struct GrantRow {
    pub(super) grant: Grant,
    /// What the rest of the configuration lacks; without it the grant works.
    pub(super) lacks: Vec<Lack>,
    pub(super) rule: Rule,
}

/// What the edge grants a client.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Grant {
    /// A use of the zone with this index.
    Zone {
        #[serde(rename = "use")]
        zone_use: &'static str,
        index: u32,
        zone: Option<String>,
    },
    /// RSA-OAEP with MGF1-SHA-1 for its devices.
    OaepMgf1Sha1 { until: String },
}

/// What a granted use of a zone needs beside the grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Lack {
    /// `[[zones]]` has no zone of the client's tenant with this index.
    Zone,
    /// The zone does not have the use.
    ZoneUse,
    /// No peer of the tenant has the role for the use.
    Role,
}

#[derive(Serialize)]
pub(super) struct RuleRow {
    pub(super) rule: Rule,
    pub(super) source: &'static str,
    pub(super) statement: &'static str,
}

/// No engine serves with the configuration.
#[derive(Debug, Error)]
pub(crate) enum Unserved {
    /// A vault works at level `host` alone.
    #[error("boundary.level = \"token\" needs a [token]: a vault works at level host")]
    VaultAtTokenLevel,
    /// No level of the configuration makes records of the format.
    #[error("boundary.form = {form:?} works at no level that boundary.level allows: choose another format or level")]
    Form {
        /// The configured format.
        form: &'static str,
    },
}

impl PolicyReport {
    /// What these configurations allow.
    ///
    /// # Errors
    /// [`Unserved`]: the boundary would not open.
    pub(super) fn new(
        boundary: &BoundaryRules,
        engine: &EngineConfig,
        clients: &[ClientGrants],
    ) -> Result<Self, Unserved> {
        let records = records(boundary)?;
        let tries = &engine.rules.tries;
        let of_all = TriesRow { tenant: None, tries_per_card: tries.per_card, rule: Rule::PinTries };
        let mut of_tenants: Vec<_> = tries.of_tenants.iter().map(|(tenant, tries)| (tenant.as_str(), *tries)).collect();
        of_tenants.sort_unstable();
        let of_tenants = of_tenants.into_iter().map(|(tenant, tries_per_card)| TriesRow {
            tenant: Some(tenant.to_owned()),
            tries_per_card,
            rule: Rule::PinTries,
        });
        Ok(Self {
            pinseal: env!("PINSEAL_VERSION"),
            keys_in: match boundary.keys {
                KeyPlace::Vault => "vault",
                KeyPlace::Token => "token",
            },
            pins: PinRow {
                digits_min: *boundary.pin_lengths.start(),
                digits_max: *boundary.pin_lengths.end(),
                refused: boundary.weaknesses.iter().map(|weakness| weakness_name(*weakness)).collect(),
                refused_list: boundary.has_refused_list,
                rule: Rule::PinLength,
            },
            tries: std::iter::once(of_all).chain(of_tenants).collect(),
            translations: translations(boundary, &records),
            keys: keys(boundary.keys, &records),
            wrapping: wrapping(boundary.keys),
            zones: boundary.zones.iter().map(|zone| zone_row(zone.index, &zone.rules)).collect(),
            peers: peers(&engine.peers),
            clients: clients.iter().map(|client| client_row(client, boundary, &engine.peers)).collect(),
            records: records.iter().map(Record::row).collect(),
            rules: Rule::ALL
                .into_iter()
                .map(|rule| RuleRow { rule, source: rule.source(), statement: rule.statement() })
                .collect(),
        })
    }
}

/// The format of new records at a level.
struct Record {
    level: BoundaryLevel,
    format: StorageFormat,
    until: Option<String>,
}

impl Record {
    fn row(&self) -> RecordRow {
        let (format, rule) = (self.format.name(), Rule::of_record(self.format));
        RecordRow { level: self.level.to_string(), format, until: self.until.clone(), rule }
    }
}

/// The levels that the configuration may reach, each with the format of new records. A token shows at its start which levels
/// it reaches: `pinseal token doctor`.
fn records(boundary: &BoundaryRules) -> Result<Vec<Record>, Unserved> {
    let levels: &[BoundaryLevel] = match (boundary.keys, boundary.wanted.level) {
        (KeyPlace::Vault, WantedLevel::Token) => return Err(Unserved::VaultAtTokenLevel),
        (KeyPlace::Vault, WantedLevel::Host | WantedLevel::Best) | (KeyPlace::Token, WantedLevel::Host) => {
            &[BoundaryLevel::Host]
        }
        (KeyPlace::Token, WantedLevel::Token) => &[BoundaryLevel::Token],
        (KeyPlace::Token, WantedLevel::Best) => &[BoundaryLevel::Token, BoundaryLevel::Host],
    };
    let configured = boundary.wanted.form.as_ref();
    let record = |level: &BoundaryLevel| {
        let default = match level {
            BoundaryLevel::Token => StorageFormat::Wrapped,
            BoundaryLevel::Host => StorageFormat::Iso4,
        };
        let format = configured.map_or(default, hsm::NewRecordFormat::form);
        let made = Translation { source: Place::Device, target: Place::Record(format), level: *level };
        let until = configured.and_then(hsm::NewRecordFormat::until).map(str::to_owned);
        TRANSLATIONS.contains(&made).then_some(Record { level: *level, format, until })
    };
    let records: Vec<_> = levels.iter().filter_map(record).collect();
    match configured {
        Some(form) if records.is_empty() => Err(Unserved::Form { form: form.form().name() }),
        _ => Ok(records),
    }
}

fn translations(boundary: &BoundaryRules, records: &[Record]) -> Vec<TranslationRow> {
    let rows = TRANSLATIONS.iter().filter_map(|translation| {
        let Translation { source, target, level } = *translation;
        let record = records.iter().find(|record| record.level == level)?;
        if matches!(target, Place::Record(format) if format != record.format) {
            return None;
        }
        let zones = zones_of(boundary, source, target)?;
        let ((source, source_format), (target, target_format)) = (end(source), end(target));
        let rule = Rule::of_translation(translation)?;
        Some(TranslationRow { source, source_format, target, target_format, level: level.to_string(), zones, rule })
    });
    rows.collect()
}

/// The zones that a pair serves; `None` where the pair needs a zone, and no zone has the formats and the use.
fn zones_of(boundary: &BoundaryRules, source: Place, target: Place) -> Option<Vec<String>> {
    let zones_with = |format: ZoneFormat, zone_use: ZoneUse| {
        let has = move |rules: &&ZoneRules| rules.formats.contains(&format) && rules.uses.contains(&zone_use);
        let zones = boundary.zones.iter().map(|zone| &zone.rules).filter(has).map(|rules| rules.name.to_string());
        Some(zones.collect::<Vec<_>>()).filter(|zones| !zones.is_empty())
    };
    match (source, target) {
        (Place::Zone(from), Place::Zone(to)) => {
            let mut zones = zones_with(from, ZoneUse::Translate)?;
            for target in zones_with(to, ZoneUse::Translate)? {
                if !zones.contains(&target) {
                    zones.push(target);
                }
            }
            Some(zones)
        }
        (Place::Zone(format), _) => zones_with(format, ZoneUse::SetPin),
        (_, Place::Zone(format)) if format.binds_account() => zones_with(format, ZoneUse::Export),
        (_, Place::Zone(format)) => zones_with(format, ZoneUse::GetPin),
        (Place::Device | Place::Record(_), Place::Device | Place::Record(_)) => Some(Vec::new()),
    }
}

fn end(place: Place) -> (Holder, &'static str) {
    match place {
        Place::Device => (Holder::Device, ZoneFormat::Iso1.name()),
        Place::Record(format) => (Holder::Record, format.name()),
        Place::Zone(format) => (Holder::Zone, format.name()),
    }
}

/// The usages with a name, each with the text that stands for any name.
fn named_usages() -> impl Iterator<Item = (KeyUsage, &'static str)> {
    let examples = [
        ("zone:a", "zone:NAME"),
        ("exchange:a", "exchange:NAME"),
        ("pvk:a:0", "pvk:NAME:PVKI"),
        ("ibm-3624:a:0123456789012345:1-16-0", "ibm-3624:NAME:TABLE:DATA"),
    ];
    examples.into_iter().filter_map(|(example, text)| Some((KeyUsage::parse(example)?, text)))
}

fn keys(place: KeyPlace, records: &[Record]) -> Vec<KeyRow> {
    let engines = ENGINE_KEYS.into_iter();
    let rows = engines.chain(named_usages()).filter_map(|(usage, text)| {
        let mut algorithms: Vec<Strength> = Vec::new();
        for algorithm in records.iter().flat_map(|record| place.algorithms(&usage, record.level)) {
            let strength = strength(*algorithm);
            if !algorithms.contains(&strength) {
                algorithms.push(strength);
            }
        }
        let rule = Rule::of_key(&usage);
        (!algorithms.is_empty()).then(|| KeyRow { usage: text.to_owned(), algorithms, rule })
    });
    let tzpk = KeyRow {
        usage: "tzpk".into(),
        algorithms: vec![strength(KeyAlgorithm::TdesDouble)],
        rule: Rule::CipherOfFormat,
    };
    rows.chain([tzpk]).collect()
}

fn strength(algorithm: KeyAlgorithm) -> Strength {
    let bits_per_byte = match algorithm {
        KeyAlgorithm::TdesDouble | KeyAlgorithm::TdesTriple => 7,
        KeyAlgorithm::Aes128 | KeyAlgorithm::Aes192 | KeyAlgorithm::Aes256 | KeyAlgorithm::HmacSha256 => 8,
    };
    let key_bits = algorithm.bytes() * bits_per_byte;
    Strength { algorithm: algorithm.to_string(), key_bits, security_bits: algorithm.strength() }
}

fn wrapping(place: KeyPlace) -> Vec<WrappingRow> {
    let algorithms = |name| {
        let usage = KeyUsage::parse(name);
        usage.map(|usage| place.algorithms(&usage, BoundaryLevel::Host)).unwrap_or_default()
    };
    let exchange = algorithms("exchange:a");
    let zone = algorithms("zone:a").iter().map(|key| {
        let strong = exchange.iter().filter(|under| under.strength() >= key.strength());
        WrappingRow {
            key: "zone:NAME".into(),
            key_algorithm: key.to_string(),
            under: "exchange:NAME",
            under_algorithms: strong.map(KeyAlgorithm::to_string).collect(),
            rule: Rule::KeyStrength,
        }
    });
    let tzpk = |under, algorithm: &str, rule| WrappingRow {
        key: "tzpk".into(),
        key_algorithm: KeyAlgorithm::TdesDouble.to_string(),
        under,
        under_algorithms: vec![algorithm.to_owned()],
        rule,
    };
    let of_tzpk = [
        tzpk("the device's key", "rsa-oaep, 2048 to 4096 bits", Rule::DeviceKey),
        tzpk("seal", &KeyAlgorithm::Aes256.to_string(), Rule::OneUsage),
    ];
    zone.chain(of_tzpk).collect()
}

fn zone_row(index: u32, rules: &ZoneRules) -> ZoneRow {
    let needs_aes = rules.formats.iter().any(|format| format.needs_aes());
    let fits = |algorithm: &&KeyAlgorithm| match algorithm {
        KeyAlgorithm::TdesDouble | KeyAlgorithm::TdesTriple => !needs_aes,
        KeyAlgorithm::Aes128 | KeyAlgorithm::Aes192 | KeyAlgorithm::Aes256 => needs_aes,
        KeyAlgorithm::HmacSha256 => false,
    };
    let uses = rules.uses.iter().map(|zone_use| UseRow { name: zone_use.name(), rule: Rule::of_use(*zone_use) });
    ZoneRow {
        name: rules.name.to_string(),
        tenant: rules.tenant.clone(),
        index,
        formats: rules.formats.iter().map(|format| format.name()).collect(),
        key_algorithms: KeyAlgorithm::ALL.iter().filter(fits).map(KeyAlgorithm::to_string).collect(),
        parity: match rules.parity {
            ParityPolicy::Ignore => "ignore",
            ParityPolicy::Warn => "warn",
            ParityPolicy::Reject => "reject",
        },
        uses: uses.collect(),
    }
}

fn peers(configured: &[Peer]) -> Vec<PeerRow> {
    let roles = |roles: &[Role]| {
        roles.iter().map(|role| RoleRow { role: role.to_string(), methods: role.methods().collect() }).collect()
    };
    if configured.is_empty() {
        let every =
            PeerRow { certificate_name: None, tenants: Vec::new(), roles: roles(&Role::ALL), rule: Rule::Loopback };
        return vec![every];
    }
    let row = |peer: &Peer| PeerRow {
        certificate_name: Some(peer.certificate_name.clone()),
        tenants: peer.tenants.iter().map(|tenant| tenant.as_str().to_owned()).collect(),
        roles: roles(&peer.roles),
        rule: Rule::Roles,
    };
    configured.iter().map(row).collect()
}

fn client_row(client: &ClientGrants, boundary: &BoundaryRules, peers: &[Peer]) -> ClientRow {
    let of_zones = client.zones.iter().flat_map(|grant| grant.uses.iter().map(|granted| (grant.index, *granted)));
    let of_zones = of_zones.map(|(index, granted)| {
        let (zone_use, role) = match granted {
            GrantedUse::SetPin => (ZoneUse::SetPin, Role::ZoneSet),
            GrantedUse::GetPin => (ZoneUse::GetPin, Role::ZoneGet),
        };
        let is_named = |zone: &&_| -> bool { is_zone_of(zone, client.tenant.as_str(), index) };
        let zone = boundary.zones.iter().find(is_named).map(|zone| &zone.rules);
        let has_role = |peer: &Peer| {
            peer.roles.contains(&role) && (peer.tenants.is_empty() || peer.tenants.contains(&client.tenant))
        };
        let mut lacks = Vec::new();
        match zone {
            None => lacks.push(Lack::Zone),
            Some(zone) if !zone.uses.contains(&zone_use) => lacks.push(Lack::ZoneUse),
            Some(_) => {}
        }
        if !peers.is_empty() && !peers.iter().any(has_role) {
            lacks.push(Lack::Role);
        }
        let zone = zone.map(|rules| rules.name.to_string());
        let grant = Grant::Zone { zone_use: zone_use.name(), index, zone };
        GrantRow { grant, lacks, rule: Rule::of_use(zone_use) }
    });
    let of_oaep = client.mgf1_sha1_until.map(|until| GrantRow {
        grant: Grant::OaepMgf1Sha1 { until: until.to_string() },
        lacks: Vec::new(),
        rule: Rule::OaepMgf1Sha1,
    });
    ClientRow {
        name: client.name.clone(),
        tenant: client.tenant.as_str().to_owned(),
        grants: of_zones.chain(of_oaep).collect(),
    }
}

fn is_zone_of(zone: &zone_config::Zone, tenant: &str, index: u32) -> bool {
    zone.rules.tenant == tenant && zone.index == index
}

fn weakness_name(weakness: Weakness) -> &'static str {
    match weakness {
        Weakness::Ascending => "ascending",
        Weakness::Descending => "descending",
        Weakness::Repeated => "repeated",
    }
}
