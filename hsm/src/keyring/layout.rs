//! The stored form of a keyring, before it is sealed.

use std::borrow::Cow;

use super::{ENGINE_KEYS, KeyAlgorithm, KeyInfo, KeyMode, KeyUsage, Keyring, RingKey, ZoneName};
use hsm_protocol::{Ibm3624Name, Kcv, PvkName};

use crate::clear::ClearBytes;

const ZONE: u8 = b'z';
const EXCHANGE: u8 = b'x';
const PVK: u8 = b'v';
const IBM_3624: u8 = b'i';
/// The stored value of a missing date.
const NEVER: u64 = 0;
/// State: the keys are in the custody of a roster.
const IN_CUSTODY: u8 = 1;
/// State: the transcript may lack the entry of the last change.
const UNFINISHED: u8 = 2;
/// Flag: the key may be exported in a key block.
const EXPORTABLE: u8 = 1;
/// Flag: the key has no KCV.
const WITHOUT_KCV: u8 = 2;
/// Flag: a 3DES key that was imported with a byte of even parity.
const EVEN_PARITY: u8 = 4;
/// The bits of the mode of use, in the byte of the algorithm.
const MODE: u8 = 0xE0;

impl Keyring {
    /// Encodes the keyring.
    pub(crate) fn bytes(&self) -> ClearBytes {
        // Counted first: a vector that grows would leave keys in freed memory.
        let mut length = LengthCounter(0);
        self.write(&mut length);
        let mut bytes = ClearBytes::zeroed(length.0);
        self.write(&mut SliceWriter { bytes: bytes.bytes_mut(), at: 0 });
        bytes
    }

    fn write(&self, out: &mut impl Sink) {
        let unfinished = if self.unfinished { UNFINISHED } else { 0 };
        match &self.custody {
            None => out.put(&[unfinished]),
            Some(custody) => {
                out.put(&[IN_CUSTODY | unfinished]);
                out.put(custody);
            }
        }
        out.put(&self.last_entry);
        out.put(&u16::try_from(self.keys.len()).unwrap_or(u16::MAX).to_be_bytes());
        for RingKey { info, key } in self.keys.iter().take(usize::from(u16::MAX)) {
            let (code, zone): (u8, Cow<'_, str>) = match &info.name {
                KeyUsage::Zone(name) => (ZONE, name.as_str().into()),
                KeyUsage::Exchange(name) => (EXCHANGE, name.as_str().into()),
                KeyUsage::Pvk(name) => (PVK, name.to_string().into()),
                KeyUsage::Ibm3624(name) => (IBM_3624, name.to_string().into()),
                engine => (index_in(ENGINE_KEYS.iter().map(|(name, _)| name), engine), "".into()),
            };
            out.put(&[code, u8::try_from(zone.len()).unwrap_or_default()]);
            out.put(zone.as_bytes());
            out.put(&info.version.to_be_bytes());
            let flags = (if info.exportable { EXPORTABLE } else { 0 })
                | (if info.check_value.is_none() { WITHOUT_KCV } else { 0 })
                | (if info.odd_parity { 0 } else { EVEN_PARITY });
            out.put(&[index_in(KeyAlgorithm::ALL.iter(), &info.algorithm) | mode_bits(info.mode), flags]);
            for date in [Some(info.made_at), info.activated_at, info.retired_at, info.destroyed_at] {
                out.put(&date.unwrap_or(NEVER).to_be_bytes());
            }
            out.put(&info.uses.to_be_bytes());
            out.put(info.check_value.as_ref().map_or(&[0; 3][..], |value| value.as_bytes()));
            let bytes = key.as_ref().map(ClearBytes::bytes).unwrap_or_default();
            out.put(&[u8::try_from(bytes.len()).unwrap_or_default()]);
            out.put(bytes);
        }
    }

    /// Decodes the bytes of [`Keyring::bytes`]. `None` for any other bytes.
    pub(crate) fn read(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let [state] = take(from)?;
        if state & !(IN_CUSTODY | UNFINISHED) != 0 {
            return None;
        }
        let custody = if state & IN_CUSTODY == 0 { None } else { Some(take(from)?) };
        let last_entry = take(from)?;
        let count = u16::from_be_bytes(take(from)?);
        let keys = (0..count).map(|_| read_key(from)).collect::<Option<Vec<_>>>()?;
        from.is_empty().then_some(Self { custody, last_entry, unfinished: state & UNFINISHED != 0, keys })
    }
}

fn read_key(from: &mut &[u8]) -> Option<RingKey> {
    let [code, zone] = take(from)?;
    let zone = std::str::from_utf8(take_some(from, zone.into())?).ok()?;
    let name = match code {
        ZONE => KeyUsage::Zone(ZoneName::parse(zone)?),
        EXCHANGE => KeyUsage::Exchange(ZoneName::parse(zone)?),
        PVK => KeyUsage::Pvk(PvkName::parse(zone)?),
        IBM_3624 => KeyUsage::Ibm3624(Ibm3624Name::parse(zone)?),
        engine => ENGINE_KEYS.get(usize::from(engine)).map(|(name, _)| name.clone())?,
    };
    let version = u16::from_be_bytes(take(from)?);
    let [algorithm, flags] = take(from)?;
    // An unknown flag could restrict the key, so the keyring is rejected.
    if flags & !(EXPORTABLE | WITHOUT_KCV | EVEN_PARITY) != 0 {
        return None;
    }
    let mode = KeyMode::ALL.into_iter().find(|mode| mode_bits(*mode) == algorithm & MODE)?;
    let mut date = || take(from).map(u64::from_be_bytes);
    let (made_at, activated, retired, destroyed, uses) = (date()?, date()?, date()?, date()?, date()?);
    let check_value = Kcv::first_of(&take::<3>(from)?);
    let check_value = (flags & WITHOUT_KCV == 0).then_some(check_value);
    let [length] = take(from)?;
    let key = take_some(from, length.into())?;
    let some = |date: u64| (date != NEVER).then_some(date);
    let info = KeyInfo {
        name,
        version,
        algorithm: *KeyAlgorithm::ALL.get(usize::from(algorithm & !MODE))?,
        mode,
        exportable: flags & EXPORTABLE != 0,
        odd_parity: flags & EVEN_PARITY == 0,
        check_value,
        made_at,
        activated_at: some(activated),
        retired_at: some(retired),
        destroyed_at: some(destroyed),
        uses,
    };
    Some(RingKey { info, key: (!key.is_empty()).then(|| ClearBytes::copied(key)) })
}

/// The bits of a mode: zero for both.
fn mode_bits(mode: KeyMode) -> u8 {
    match mode {
        KeyMode::Both => 0,
        KeyMode::Generates => 0x20,
        KeyMode::Encrypts => 0x40,
        KeyMode::Verifies => 0x60,
        KeyMode::Decrypts => 0x80,
    }
}

/// The index of an item in a list, as a byte.
fn index_in<'a, T: PartialEq + 'a>(mut all: impl Iterator<Item = &'a T>, one: &T) -> u8 {
    all.position(|other| other == one).and_then(|place| u8::try_from(place).ok()).unwrap_or(u8::MAX)
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (chunk, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(*chunk)
}

fn take_some<'a>(from: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (chunk, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(chunk)
}

trait Sink {
    fn put(&mut self, bytes: &[u8]);
}

/// Counts the bytes.
struct LengthCounter(usize);

impl Sink for LengthCounter {
    fn put(&mut self, bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// Writes the bytes in a slice of the counted length.
struct SliceWriter<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Sink for SliceWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.at..self.at + bytes.len()) {
            place.copy_from_slice(bytes);
            self.at += bytes.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyring::Exportability;

    /// The offset of the first key's algorithm: after state, last entry, count, usage, zone's length and name, version.
    const ALGORITHM_AT: usize = 1 + 32 + 2 + 2 + 1 + 2;

    fn keyring(mode: KeyMode) -> Keyring {
        let mut keyring = Keyring::empty();
        let new = keyring.next(KeyUsage::parse("zone:a").unwrap(), KeyAlgorithm::Aes192, Exportability::On);
        keyring.put(new, None, Some(ClearBytes::copied(&[7; 24])), 1).mode = mode;
        keyring
    }

    #[test]
    fn mode_algorithm_exportability_and_parity_are_read_back() {
        for mode in KeyMode::ALL {
            for odd_parity in [false, true] {
                let mut written = keyring(mode);
                written.keys.first_mut().unwrap().info.odd_parity = odd_parity;
                let read = Keyring::read(written.bytes().bytes()).unwrap();
                let info = &read.keys.first().unwrap().info;
                assert_eq!((info.mode, info.algorithm, info.exportable), (mode, KeyAlgorithm::Aes192, true));
                assert_eq!(info.odd_parity, odd_parity);
            }
        }
    }

    #[test]
    fn names_of_verification_keys_are_read_back() {
        for name in ["pvk:bank:1", "ibm-3624:bank:0123456789012345:5-15-f"] {
            let mut keyring = Keyring::empty();
            let name = KeyUsage::parse(name).unwrap();
            let new = keyring.next(name.clone(), KeyAlgorithm::TdesDouble, Exportability::Never);
            keyring.put(new, None, Some(ClearBytes::copied(&[7; 16])), 1);
            assert_eq!(Keyring::read(keyring.bytes().bytes()).unwrap().keys[0].info.name, name);
        }
    }

    #[test]
    fn the_mode_both_is_stored_as_zero_bits() {
        assert_eq!(keyring(KeyMode::Both).bytes().bytes()[ALGORITHM_AT], 1);
    }

    #[test]
    fn an_unfinished_change_is_read_back_with_and_without_custody() {
        for custody in [None, Some([9; 32])] {
            for unfinished in [false, true] {
                let written = Keyring { custody, unfinished, ..keyring(KeyMode::Both) };
                let read = Keyring::read(written.bytes().bytes()).unwrap();
                assert_eq!((read.custody, read.unfinished), (custody, unfinished));
            }
        }
        let mut bytes = ClearBytes::copied(keyring(KeyMode::Both).bytes().bytes());
        bytes.bytes_mut()[0] = 4;
        assert!(Keyring::read(bytes.bytes()).is_none());
    }

    #[test]
    fn an_unknown_mode_or_flag_is_rejected() {
        for (at, changed) in [(ALGORITHM_AT, 0xC1), (ALGORITHM_AT + 1, EXPORTABLE | 8)] {
            let mut bytes = ClearBytes::copied(keyring(KeyMode::Both).bytes().bytes());
            bytes.bytes_mut()[at] = changed;
            assert!(Keyring::read(bytes.bytes()).is_none(), "byte {at}");
        }
    }
}
