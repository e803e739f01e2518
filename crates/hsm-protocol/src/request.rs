//! Requests to the boundary and its replies: ciphertext, sealed blobs and KCVs. The only clear value is the account number that
//! a request asks to seal.

use crate::account::{Account, AccountNumber};
use crate::binding::{Binding, CardBinding, ControlBinding};
use crate::device_key::DeviceKey;
use crate::error::Error;
use crate::kcv::Kcv;
use crate::sealed::{EncryptedBlock, PinRecord, SealedAccount, SealedKey};
use crate::status::StorageVersions;
use crate::verification::{Changed, ExpectedValue, ValueMethod, VerificationValue};
use crate::zone::{ZoneBlock, ZoneKey};
use crate::zone_format::ZoneFormat;

/// One operation of the boundary. `docs/adding-an-operation.md` lists the places that a new one touches.
pub enum Request {
    /// Checks that the token answers; a lost token is reconnected.
    Check,
    /// Makes a fresh tzpk, sealed with its binding and encrypted for the device.
    IssueTzpk {
        /// The device that encrypts the PIN under the tzpk.
        public_key: DeviceKey,
        /// The one use of the tzpk.
        binding: Binding,
    },
    /// Decrypts a PIN block from its source and encrypts it for its target, inside the boundary.
    Translate {
        /// The block, its key and its format.
        source: Source,
        /// The key and format to encrypt it to.
        target: Target,
        /// The card of source and target.
        card: CardBinding,
        /// The digits that a record is bound to. They come from the control, never with the block.
        account: Account,
    },
    /// Computes the tag that [`Request::Translate`] gives this block under this control; a retry has the same tag.
    RetryTag {
        /// The controlId.
        control: [u8; 16],
        /// The block under the tzpk.
        block: EncryptedBlock,
    },
    /// Seals an account number for a card. Equal numbers of a card seal to equal bytes.
    SealPan {
        /// The account number.
        number: AccountNumber,
        /// Its card.
        card: CardBinding,
    },
    /// Compares the PIN of a block with a record, in constant time. Level `host` only.
    Verify {
        /// The block. A record is no source.
        source: Source,
        /// The stored PIN, in any format.
        record: PinRecord,
        /// The card of source and record.
        card: CardBinding,
        /// The digits that source and record are bound to.
        account: Account,
    },
    /// Compares the PIN of a block with a verification value, in constant time. Level `host` only.
    VerifyValue {
        /// The block. A record is no source.
        source: Source,
        /// The value and its key.
        expected: ExpectedValue,
        /// The card of the source.
        card: CardBinding,
        /// The digits that the source is bound to, and that the value is derived from.
        account: Account,
    },
    /// Compares the PIN of one block with a record and re-encrypts the PIN of another as the next record. Level `host` only.
    Change {
        /// The block with the old PIN. A record is no source.
        old: Source,
        /// The block with the new PIN. A record is no source.
        new: Source,
        /// The stored old PIN, in any format.
        record: PinRecord,
        /// The card of sources and record.
        card: CardBinding,
        /// The digits that sources and record are bound to.
        account: Account,
    },
    /// Makes a random PIN that the PIN policy allows. Level `host` only.
    Generate {
        /// The digits of the PIN, 4 to 12.
        digits: u8,
        /// The card of the record.
        card: CardBinding,
        /// The digits that the record is bound to.
        account: Account,
    },
    /// Derives a verification value of a stored PIN. Level `host` only.
    DeriveValue {
        /// The stored PIN, in a reversible format.
        record: PinRecord,
        /// The value and its key.
        method: ValueMethod,
        /// The card of the record.
        card: CardBinding,
        /// The digits that the record is bound to, and that the value is derived from.
        account: Account,
    },
    /// Re-encrypts a stored PIN for another account number of its card, or for another card of its account number. Level
    /// `host` only. A one-way record, which is bound to its card alone, stays as it is for another account number.
    Rebind {
        /// The stored PIN.
        record: PinRecord,
        /// The card of the record, and the digits that the record is bound to.
        from: (CardBinding, Account),
        /// The card of the other record, and the digits to bind it to. One of card and digits stays.
        to: (CardBinding, Account),
    },
    /// Other requests, each of which is executed as it would be alone. They share a frame, a queue entry and a wake-up, which
    /// cost more than a translation by the software token; and that token decrypts their 3DES blocks as one batch.
    Together {
        /// At most [`TOGETHER_MAX`] requests, none of this kind and no [`Request::UpTo`].
        requests: Vec<Request>,
    },
    /// Another request, which encrypts a new record under the newest storage key that is not above these versions. The versions
    /// are those in use by all engines of a store: another engine may lack a newer key.
    UpTo {
        /// The highest versions.
        versions: StorageVersions,
        /// The request: no request of this kind.
        request: Box<Request>,
    },
}

impl Request {
    /// Whether a reply is of the kind that this request gets. A boundary that sends another kind is faulty.
    pub fn is_answered_by(&self, reply: &Reply) -> bool {
        if let Self::UpTo { request, .. } = self {
            return request.is_answered_by(reply);
        }
        if let (Self::Together { requests }, Reply::Together(results)) = (self, reply) {
            let is_answer = |(request, result): (&Self, &Result<Reply, Error>)| {
                result.as_ref().map_or(true, |reply| request.is_answered_by(reply))
            };
            return requests.len() == results.len() && requests.iter().zip(results).all(is_answer);
        }
        matches!(
            (self, reply),
            (Self::Check, Reply::Available)
                | (Self::IssueTzpk { .. }, Reply::Tzpk(_))
                | (Self::Translate { target: Target::Record, .. }, Reply::Record { .. })
                | (Self::Translate { target: Target::Device { .. }, .. }, Reply::Block(_))
                | (Self::Translate { target: Target::Zone { .. }, .. }, Reply::ZoneBlock(_))
                | (Self::RetryTag { .. }, Reply::RetryTag(_))
                | (Self::SealPan { .. }, Reply::SealedPan(_))
                | (Self::Verify { .. } | Self::VerifyValue { .. }, Reply::Verified { .. })
                | (Self::Change { .. }, Reply::Changed(_))
                | (Self::Generate { .. } | Self::Rebind { .. }, Reply::Record { retry_tag: None, .. })
                | (Self::DeriveValue { .. }, Reply::Value(_))
        )
    }
}

/// The most requests of a [`Request::Together`]: 64 translations and their replies fit in a frame.
pub const TOGETHER_MAX: usize = 64;

/// A PIN block to translate.
#[derive(Clone)]
pub enum Source {
    /// An ISO 9564 format 1 block from a device.
    Device {
        /// The tzpk it is encrypted under.
        sealed_tzpk: SealedKey,
        /// The control that the tzpk is bound to.
        control: ControlBinding,
        /// The encrypted block.
        block: EncryptedBlock,
    },
    /// A stored PIN.
    Record(PinRecord),
    /// A block of another party.
    Zone {
        /// The zone key that the block is encrypted under.
        key: ZoneKey,
        /// The encrypted block, in the format that it names.
        block: ZoneBlock,
    },
}

/// The key and format that a PIN block is translated to.
pub enum Target {
    /// A record under the newest storage key, or that of a [`Request::UpTo`], in the configured format. At level `token` a
    /// record keeps its format.
    Record,
    /// An ISO 9564 format 1 block under a fresh tzpk.
    Device {
        /// The device that decrypts the tzpk.
        public_key: DeviceKey,
    },
    /// A block for another party. A block of format 1 is made of a record alone.
    Zone {
        /// The zone key to encrypt under.
        key: ZoneKey,
        /// The format to make.
        format: ZoneFormat,
    },
}

/// The result of a [`Request`].
pub enum Reply {
    /// Of [`Request::Check`]: the token answered.
    Available,
    /// Of [`Request::IssueTzpk`]: a fresh tzpk.
    Tzpk(FreshTzpk),
    /// Of a translation to [`Target::Record`].
    Record {
        /// The record to store.
        record: PinRecord,
        /// Of a block from a device: equal for a retry of the same block under the same control. Of a block from a zone:
        /// equal for a repeat of the same block, zone, key version and card.
        retry_tag: Option<[u8; 16]>,
    },
    /// Of [`Request::Together`]: the result of each request, in their order.
    Together(Vec<Result<Reply, Error>>),
    /// Of a translation to [`Target::Device`].
    Block(DeviceBlock),
    /// Of a translation to [`Target::Zone`].
    ZoneBlock(ZoneBlock),
    /// Of [`Request::RetryTag`]: the tag of the block.
    RetryTag([u8; 16]),
    /// Of [`Request::SealPan`]: the sealed account number.
    SealedPan(SealedAccount),
    /// Of [`Request::Verify`] and [`Request::VerifyValue`], for a well-formed block.
    Verified {
        /// Whether the PIN is right.
        right: bool,
        /// Of a right PIN whose record is one-way under an older key, or is to be one-way: the record to store in its place.
        moved: Option<PinRecord>,
    },
    /// Of [`Request::Change`], for two well-formed blocks.
    Changed(Changed),
    /// Of [`Request::DeriveValue`]: the derived value.
    Value(VerificationValue),
}

/// A fresh tzpk (temporary zone PIN key).
pub struct FreshTzpk {
    /// The tzpk sealed with its binding, for the boundary.
    pub sealed: SealedKey,
    /// The tzpk for the device: RSA-OAEP with SHA-256 and the MGF1 hash of the device key, of the 16 bytes.
    pub wrapped: Vec<u8>,
    /// Its KCV, which the device compares.
    pub kcv: Kcv,
}

/// A PIN for the device that may show it.
pub struct DeviceBlock {
    /// The fresh tzpk: RSA-OAEP with SHA-256 and the MGF1 hash of the device key, of the 16 bytes.
    pub wrapped: Vec<u8>,
    /// The PIN as an ISO 9564 format 1 block under that tzpk.
    pub block: EncryptedBlock,
    /// The KCV of that tzpk.
    pub kcv: Kcv,
}
