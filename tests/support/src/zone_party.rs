//! The other party of a zone: a back-end or host that shares a zone PIN key with the engine.

use std::path::Path;

use device::{Fill, Pin, Tzpk};
use proto::{
    ExportPinRequest, FindCardRequest, FindCardResponse, GetPinByZoneRequest, RegisterCardRequest, SetPinByZoneRequest,
    VerificationResult, VerifyPinRequest, ZoneBlock, ZoneFormat, ZoneKey, zone_key,
};
use tonic::Status;

use crate::{
    ceremony::{Ceremony, ENOUGH, said},
    engine_process::{AUDIT_USER, Client, EngineProcess, TENANT},
};

/// An engine's vault with the key of the zone `app`, and the key.
pub struct ZoneParty {
    ceremony: Ceremony,
    /// The double-length 3DES key, as a type that encrypts blocks.
    pub key: Tzpk,
}

/// The zone `app` of the tests' tenant with every use and 3DES format, and its index.
pub const ZONES: &str = "[[zones]]\nname = \"app\"\ntenant = \"bank\"\nindex = 7\nformats = [\"iso-1\", \"iso-0\", \
                         \"iso-3\"]\nuses = [\"set-pin\", \"get-pin\", \"verify\", \"change\", \"export\", \"translate\"]\n";

impl ZoneParty {
    /// Makes a vault by an engine's first start, and loads the zone key by a ceremony.
    pub fn prepared() -> Self {
        let ceremony = Self::in_custody();
        let made = ceremony.well("make-components", ENOUGH, &["--algorithm", "3des-double"]);
        let components: Vec<Vec<&str>> = made.lines().take(2).map(|line| line.split(' ').skip(1).collect()).collect();
        let [first, second] = &components[..] else { panic!("{made}") };
        let number = |text: &str| u128::from_str_radix(text, 16).unwrap();
        Self::loaded(ceremony, number(first[0]) ^ number(second[0]), number(first[0]))
    }

    /// The same with this key: its custodians type one component, and the XOR of this one and the key.
    pub fn with_key(key: u128) -> Self {
        Self::loaded(Self::in_custody(), key, 0xF1E0_D3C2_B5A4_9786_7968_5A4B_3C2D_1E0F)
    }

    fn in_custody() -> Ceremony {
        let ceremony = Ceremony::prepared();
        assert_eq!(EngineProcess::start(ceremony.directory(), "").terminate(), 0);
        ceremony.begin();
        ceremony
    }

    fn loaded(ceremony: Ceremony, key: u128, component: u128) -> Self {
        let tzpk = |key: u128| Tzpk::from_bytes(&key.to_be_bytes()).unwrap();
        let typed = |component: u128| {
            let [a, b, c, ..] = tzpk(component).encrypt_block(&[0; 8]);
            format!("{component:032X}\n{a:02X}{b:02X}{c:02X}\n")
        };
        let typed = typed(component) + &typed(key ^ component);
        let loaded = ceremony.with_input("load", ENOUGH, &["zone:app", "--algorithm", "3des-double"], &typed);
        assert!(loaded.status.success(), "{}", said(&loaded));
        ceremony.well("activate", ENOUGH, &["zone:app/1"]);
        Self { ceremony, key: tzpk(key) }
    }

    /// The ceremony, for further keys.
    pub fn ceremony(&self) -> &Ceremony {
        &self.ceremony
    }

    /// The directory of the engine.
    pub fn directory(&self) -> &Path {
        self.ceremony.directory()
    }

    /// Starts an engine with [`ZONES`] and these lines of configuration.
    pub fn start(&self, lines: &str) -> EngineProcess {
        EngineProcess::start(self.directory(), &format!("{lines}\n{ZONES}"))
    }

    /// The same, without a log.
    pub fn start_quiet(&self, lines: &str) -> EngineProcess {
        EngineProcess::start_quiet(self.directory(), &format!("{lines}\n{ZONES}"))
    }

    /// The format 1 block of a PIN.
    pub fn block(&self, pin: &str) -> ZoneBlock {
        self.encrypted(ZoneFormat::Iso1, &Pin::parse(pin).unwrap().to_block(Fill::Random))
    }

    /// The block of these clear bytes.
    pub fn encrypted(&self, format: ZoneFormat, clear: &[u8; 8]) -> ZoneBlock {
        let pin_block = self.key.encrypt_block(clear).to_vec();
        ZoneBlock { zone_key: Some(zone("app")), format: format.into(), pin_block }
    }

    /// The PIN in a format 1 block.
    pub fn decrypted(&self, block: &[u8]) -> String {
        Pin::from_block(&self.clear(block)).unwrap().reveal().to_owned()
    }

    /// The PIN in a format 0 or 3 block that is bound to these digits of an account number.
    pub fn decrypted_bound(&self, block: &[u8], account: &str) -> String {
        let clear = self.clear(block);
        let digits = account.len() - 13..account.len() - 1;
        let field = u64::from_str_radix(&account[digits], 16).unwrap();
        let nibbles = format!("{:016x}", u64::from_be_bytes(clear) ^ field);
        let length = usize::from_str_radix(&nibbles[1..2], 16).unwrap();
        nibbles[2..2 + length].to_owned()
    }

    /// The bytes of a format 1 block of a PIN in hexadecimal, as the Card PIN API has them.
    pub fn hex_block(&self, pin: &str, fill: Fill) -> String {
        let block = self.key.encrypt_block(&Pin::parse(pin).unwrap().to_block(fill));
        block.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    fn clear(&self, block: &[u8]) -> [u8; 8] {
        self.key.decrypt_block(&block.try_into().unwrap())
    }
}

/// The newest key of the zone of this name.
pub fn zone(name: &str) -> ZoneKey {
    ZoneKey { zone: Some(zone_key::Zone::Name(name.into())), key_version: 0 }
}

/// The calls of the party, and of the card system beside it.
impl Client {
    /// Registers a card with this account number.
    pub async fn register(&mut self, plastic_id: &str, account_number: &str) -> Result<Vec<u8>, Status> {
        let request = RegisterCardRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            account_number: account_number.into(),
        };
        Ok(self.cards.register_card(request).await?.into_inner().card_reference)
    }

    pub async fn find(&mut self, plastic_id: &str) -> Result<FindCardResponse, Status> {
        let request =
            FindCardRequest { tenant: TENANT.into(), audit_user: AUDIT_USER.into(), plastic_id: plastic_id.into() };
        Ok(self.cards.find_card(request).await?.into_inner())
    }

    /// Sets a PIN by a block of a zone; returns whether nothing was changed.
    pub async fn set_by_zone(&mut self, plastic_id: &str, block: &ZoneBlock) -> Result<bool, Status> {
        let request = SetPinByZoneRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            zone_block: Some(block.clone()),
        };
        Ok(self.pins.set_pin_by_zone(request).await?.into_inner().unchanged)
    }

    /// The format 1 block of a PIN under the key of the zone `app`.
    pub async fn get_by_zone(&mut self, plastic_id: &str) -> Result<Vec<u8>, Status> {
        let request = GetPinByZoneRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            zone_key: Some(zone("app")),
        };
        Ok(self.pins.get_pin_by_zone(request).await?.into_inner().pin_block)
    }

    /// The block of a PIN under the key of the zone `app`, in a format that is bound to the account number.
    pub async fn export(&mut self, plastic_id: &str, format: ZoneFormat) -> Result<Vec<u8>, Status> {
        let request = ExportPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            zone_key: Some(zone("app")),
            format: format.into(),
        };
        Ok(self.pins.export_pin(request).await?.into_inner().pin_block)
    }

    /// The result of a verification, by its name, and the tries that are left.
    pub async fn verify(&mut self, plastic_id: &str, block: &ZoneBlock) -> Result<(&'static str, u32), Status> {
        let request = VerifyPinRequest {
            tenant: TENANT.into(),
            audit_user: AUDIT_USER.into(),
            plastic_id: plastic_id.into(),
            zone_block: Some(block.clone()),
            reference: None,
        };
        let answer = self.pins.verify_pin(request).await?.into_inner();
        Ok((answer.result().as_str_name(), answer.remaining_try_count))
    }
}

/// A right PIN with these tries left.
pub fn right(tries_left: u32) -> (&'static str, u32) {
    (VerificationResult::Right.as_str_name(), tries_left)
}

/// A wrong PIN with these tries left.
pub fn wrong(tries_left: u32) -> (&'static str, u32) {
    (VerificationResult::Wrong.as_str_name(), tries_left)
}
