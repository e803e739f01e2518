//! Requests: one for each operation of the door, and no other.

use super::{
    FrameError,
    value::{Crosses, Reader, push_account, push_binding, push_card, read_binding, read_card},
};
use crate::account::{Account, AccountNumber};
use crate::binding::{Binding, CardBinding, OwnedBinding};
use crate::device_key::DeviceKey;
use crate::sealed::{EncryptedBlock, PinRecord, SealedAccount, SealedKey};

const CHECK: u8 = 0;
const ISSUE: u8 = 1;
const ACCEPT: u8 = 2;
const RETRY_TAG: u8 = 3;
const REVEAL: u8 = 4;
const SEAL_ACCOUNT: u8 = 5;
const REMAKE: u8 = 6;

/// What an engine asks.
pub enum Ask<'a> {
    /// `Hsm::check`.
    Check,
    /// `Hsm::issue`.
    Issue {
        /// The device.
        device: &'a DeviceKey,
        /// The control.
        binding: &'a Binding<'a>,
    },
    /// `Hsm::accept`.
    Accept {
        /// The tzpk, sealed.
        tzpk: &'a SealedKey,
        /// The control.
        binding: &'a Binding<'a>,
        /// The block under the tzpk.
        block: &'a EncryptedBlock,
        /// Whose it becomes.
        account: Account<'a>,
    },
    /// `Hsm::retry_tag`.
    RetryTag {
        /// The control.
        binding: &'a Binding<'a>,
        /// The block under the tzpk.
        block: &'a EncryptedBlock,
    },
    /// `Hsm::reveal`.
    Reveal {
        /// The PIN at rest.
        record: &'a PinRecord,
        /// The control.
        binding: &'a Binding<'a>,
        /// Whose it is.
        account: Account<'a>,
        /// The device.
        device: &'a DeviceKey,
    },
    /// `Hsm::remake`.
    Remake {
        /// The PIN at rest.
        record: &'a PinRecord,
        /// The card.
        card: CardBinding<'a>,
        /// Whose it is.
        account: Account<'a>,
    },
    /// `Hsm::seal_account`.
    SealAccount {
        /// The account number.
        number: &'a AccountNumber,
        /// The card.
        card: CardBinding<'a>,
    },
}

impl Ask<'_> {
    /// Appends the body of its frame.
    pub fn push(&self, deadline: u64, out: &mut Vec<u8>) {
        out.extend_from_slice(&deadline.to_be_bytes());
        match self {
            Self::Check => out.push(CHECK),
            Self::Issue { device, binding } => {
                out.push(ISSUE);
                device.write(out);
                push_binding(out, binding);
            }
            Self::Accept { tzpk, binding, block, account } => {
                out.push(ACCEPT);
                tzpk.write(out);
                push_binding(out, binding);
                block.write(out);
                push_account(out, *account);
            }
            Self::RetryTag { binding, block } => {
                out.push(RETRY_TAG);
                push_binding(out, binding);
                block.write(out);
            }
            Self::Reveal { record, binding, account, device } => {
                out.push(REVEAL);
                record.write(out);
                push_binding(out, binding);
                push_account(out, *account);
                device.write(out);
            }
            Self::Remake { record, card, account } => {
                out.push(REMAKE);
                record.write(out);
                push_card(out, card);
                push_account(out, *account);
            }
            Self::SealAccount { number, card } => {
                out.push(SEAL_ACCOUNT);
                number.write(out);
                push_card(out, card);
            }
        }
    }
}

/// What a boundary was asked.
pub struct Request {
    /// After this nobody waits for the answer: milliseconds of CLOCK_MONOTONIC.
    pub deadline: u64,
    pub operation: Operation,
}

pub enum Operation {
    Check,
    Issue(DeviceKey, OwnedBinding),
    Accept(SealedKey, OwnedBinding, EncryptedBlock, Option<SealedAccount>),
    RetryTag(OwnedBinding, EncryptedBlock),
    Reveal(Box<PinRecord>, OwnedBinding, Option<SealedAccount>, DeviceKey),
    Remake { record: Box<PinRecord>, tenant: String, plastic_id: String, account: Option<SealedAccount> },
    SealAccount { number: AccountNumber, tenant: String, plastic_id: String },
}

impl Request {
    /// Reads the body of a frame.
    pub fn read(body: &[u8]) -> Result<Self, FrameError> {
        let mut read = Reader(body);
        let deadline = u64::from_be_bytes(read.array()?);
        let operation = Operation::read(&mut read)?;
        read.end(Self { deadline, operation })
    }
}

impl Operation {
    // Fields are read in the order they stand in.
    fn read(read: &mut Reader<'_>) -> Result<Self, FrameError> {
        Ok(match read.byte()? {
            CHECK => Self::Check,
            ISSUE => Self::Issue(Crosses::read(read)?, read_binding(read)?),
            ACCEPT => {
                Self::Accept(Crosses::read(read)?, read_binding(read)?, Crosses::read(read)?, Crosses::read(read)?)
            }
            RETRY_TAG => Self::RetryTag(read_binding(read)?, Crosses::read(read)?),
            REVEAL => Self::Reveal(
                Box::new(Crosses::read(read)?),
                read_binding(read)?,
                Crosses::read(read)?,
                Crosses::read(read)?,
            ),
            REMAKE => {
                let (record, (tenant, plastic_id)) = (Box::new(Crosses::read(read)?), read_card(read)?);
                Self::Remake { record, tenant, plastic_id, account: Crosses::read(read)? }
            }
            SEAL_ACCOUNT => {
                let (number, (tenant, plastic_id)) = (Crosses::read(read)?, read_card(read)?);
                Self::SealAccount { number, tenant, plastic_id }
            }
            _ => return Err(FrameError),
        })
    }
}
