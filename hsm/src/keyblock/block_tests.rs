//! Key blocks that must not open. The published blocks are in `crate::vectors`.

use proptest::prelude::*;

use super::*;

const AES_KEY: [u8; 32] = [0x41; 32];

fn under() -> ProtectionKey<'static> {
    ProtectionKey::aes(ClearBytes::copied(&AES_KEY)).unwrap()
}

fn header(version: Version) -> Header {
    Header::new(version, ['P', '0'], 'A', 'B', 'E')
}

fn written(version: Version, key: &[u8]) -> String {
    let fill = |bytes: &mut [u8]| aws_lc_rs::rand::fill(bytes).map_err(|_| KeyBlockError::Random);
    KeyBlock::write(&header(version), &under(), &ClearBytes::copied(key), fill).unwrap()
}

#[test]
fn versions_d_and_e_open_to_the_same_key_and_header() {
    for version in [Version::D, Version::E] {
        for key in [&[7; 16][..], &[7; 24], &[7; 32]] {
            let block = KeyBlock::parse(&written(version, key)).unwrap();
            assert_eq!(block.header(), &header(version));
            assert!(block.open(&under()).unwrap().bytes() == key, "{version}");
        }
    }
}

#[test]
fn the_length_of_a_block_hides_the_length_of_its_key() {
    for version in [Version::D, Version::E] {
        assert_eq!(written(version, &[7; 16]).len(), written(version, &[7; 32]).len());
    }
}

#[test]
fn older_versions_are_not_written() {
    for version in [Version::A, Version::B, Version::C] {
        let key = ClearBytes::copied(&[7; 16]);
        let refused = KeyBlock::write(&header(version), &under(), &key, |_| Ok(())).err();
        assert_eq!(refused, Some(KeyBlockError::Version));
    }
}

#[test]
fn a_block_changed_in_any_character_does_not_open() {
    for version in [Version::D, Version::E] {
        let text = written(version, &[7; 16]);
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'1' { b'2' } else { b'1' };
            let changed = String::from_utf8(changed).unwrap();
            let opened = KeyBlock::parse(&changed).and_then(|block| block.open(&under()));
            assert!(opened.is_err(), "character {at}");
        }
    }
}

#[test]
fn a_block_opens_under_its_own_key_only() {
    let block = KeyBlock::parse(&written(Version::D, &[7; 16])).unwrap();
    let other = ProtectionKey::aes(ClearBytes::copied(&[0x42; 32])).unwrap();
    assert_eq!(block.open(&other).err(), Some(KeyBlockError::Mac));
    let tdes = ProtectionKey::tdes(ClearBytes::copied(&[0x41; 24])).unwrap();
    assert!(matches!(block.open(&tdes).err(), Some(KeyBlockError::ProtectionKey { .. })));
}

#[test]
fn a_long_optional_block_has_an_extended_length() {
    let label = "x".repeat(0x130 - 10);
    let text = format!("D0448P0AE00E0100LB00040130{label}{}", "0".repeat(128));
    let read = KeyBlock::parse(&text).unwrap();
    assert_eq!(read.header().optional()[0].data(), label);
    assert_eq!(read.header().write(128).unwrap(), text[..16 + 0x130]);
}

#[test]
fn a_malformed_optional_block_is_named() {
    let block = |optional: &str| {
        let text = format!("P0AE00E0100{optional}{}", "0".repeat(96));
        KeyBlock::parse(&format!("D{:04}{text}", text.len() + 5)).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(block("LB10abcdefghijkl"), Ok(()));
    for (optional, said) in [
        ("LB03abcdefghijkl", "optional block 1 (LB) has a length shorter than itself"),
        ("LBFFabcdefghijkl", "optional block 1 (LB) is cut short"),
        ("LBxxabcdefghijkl", "optional block 1 (LB) has a length that is no hexadecimal number"),
        ("LB000500001abcde", "optional block 1 (LB) has an impossible extended length"),
        ("??10abcdefghijkl", "optional block 1 (??) has no name of two letters"),
        ("KS10abcdefghijkl", "optional block 1 (KS) holds something other than pairs of hexadecimal digits"),
        ("KC10abcdefghijkl", "optional block 1 (KC) holds something other than pairs of hexadecimal digits"),
        ("LB0Fabcdefghijkl", "the header's optional blocks, which do not fill whole cipher blocks, can't be read"),
    ] {
        assert_eq!(block(optional), Err(said.to_owned()), "{optional}");
    }
}

#[test]
fn a_header_allows_its_own_purpose_only() {
    let block = |head: &str| KeyBlock::parse(&format!("D0144{head}00E0000{}", "0".repeat(128))).unwrap();
    for (head, purpose) in [("P0AB", Purpose::ZoneKey), ("P0TE", Purpose::ZoneKey), ("K1AB", Purpose::ExchangeKey)] {
        assert_eq!(block(head).check_purpose(purpose), Ok(()), "{head}");
    }
    for (head, purpose, field) in [
        ("K1AB", Purpose::ZoneKey, "usage"),
        ("P0AB", Purpose::ExchangeKey, "usage"),
        ("P0RB", Purpose::ZoneKey, "algorithm"),
        ("K0TB", Purpose::ExchangeKey, "algorithm"),
        ("P0AN", Purpose::ZoneKey, "mode of use"),
        ("P0AX", Purpose::ZoneKey, "mode of use"),
    ] {
        let refused = block(head).check_purpose(purpose).unwrap_err().to_string();
        assert!(refused.starts_with(field), "{head}: {refused}");
    }
}

#[test]
fn a_component_or_a_restricted_context_is_rejected() {
    let block = |version: &str, context: &str| {
        KeyBlock::parse(&format!("D0144P0AB{version}E00{context}{}", "0".repeat(128))).unwrap()
    };
    for version in ["00", "12", "A1"] {
        assert_eq!(block(version, "00").check_purpose(Purpose::ZoneKey), Ok(()), "{version}");
    }
    for (version, context, field) in [
        ("c1", "00", "key version c1 does not suit a zone key: a whole key"),
        ("cZ", "00", "key version cZ"),
        ("00", "10", "context 10"),
        ("00", "20", "context 20"),
        ("00", "01", "context 01"),
    ] {
        let refused = block(version, context).check_purpose(Purpose::ZoneKey).unwrap_err().to_string();
        assert!(refused.starts_with(field), "{refused}");
    }
    let component = KeyBlock::parse(&format!("D0144K1ABc2E0000{}", "0".repeat(128))).unwrap();
    assert!(component.check_purpose(Purpose::ExchangeKey).is_err());
}

#[test]
fn each_field_is_explained() {
    let block = KeyBlock::parse(&written(Version::D, &[7; 16])).unwrap();
    let lines: Vec<_> =
        block.fields().iter().map(|field| format!("{}={}: {}", field.name, field.value, field.meaning)).collect();
    for expected in ["version=D: AES in CBC, derived keys", "usage=P0: PIN encryption", "algorithm=A: AES"] {
        assert!(lines.iter().any(|line| line == expected), "{lines:?}");
    }
}

/// The warnings of a block with these optional blocks, in their order.
fn warnings(optional: &str, count: usize) -> Vec<Option<String>> {
    let text = format!("P0AE00E{count:02}00{optional}{}", "0".repeat(96));
    let block = KeyBlock::parse_to_explain(&format!("D{:04}{text}", text.len() + 5)).unwrap();
    let fields = block.fields().into_iter().filter(|field| field.name == "optional block");
    fields.map(|field| field.warning).collect()
}

#[test]
fn contradicting_kcv_blocks_name_each_other() {
    let contradicts =
        |others: &str, id: &str| Some(format!("contradicts optional block {others} ({id}): one key has one KCV"));
    // Another method may give another KCV, and a shorter KCV is the start of a longer one.
    assert_eq!(warnings("KC0C01A1B2C3KC0A01A1B2KC0A00FFFF", 3), [None, None, None]);
    let two = warnings("KC1001A1B2C3D4E5KC0C01A1B2C4PB04", 3);
    assert_eq!(two, [contradicts("2", "KC"), contradicts("1", "KC"), None]);
    let three = warnings("KC0A01A1B2KC0A01A1B3KC0A01A1B4PB12##############", 4);
    assert_eq!(three, [contradicts("2, 3", "KC"), contradicts("1, 3", "KC"), contradicts("1, 2", "KC"), None]);
    assert_eq!(warnings("KP0A01A1B2KP0A01A1B3PB0C########", 3)[1], contradicts("1", "KP"));
    assert_eq!(warnings("KP0A01A1B2KC0A01A1B3PB0C########", 3), [None, None, None]);
}

#[test]
fn an_identifier_that_is_not_hexadecimal_is_text_with_a_warning() {
    let warning = Some("not pairs of upper-case hexadecimal digits (X9.143): shown as text".to_owned());
    for (optional, expected) in [
        ("KS10key set 0001", &warning),
        ("KS10604b120f9292", &warning),
        ("KS0F604B120F929PB11#############", &warning),
        ("IK10initial key!", &warning),
        ("BI10derivation 1", &warning),
        ("KS10604B120F9292", &None),
    ] {
        assert_eq!(&warnings(optional, optional.len() / 16)[0], expected, "{optional}");
    }
    let text = format!("D0128P0AE00E0100KS10key set 0001{}", "0".repeat(96));
    let fields = KeyBlock::parse_to_explain(&text).unwrap().fields();
    assert!(fields.iter().any(|field| field.value == "KS key set 0001"), "{fields:?}");
}

proptest! {
    #[test]
    fn any_text_parses_or_fails_without_panic(text in "[A-E][0-9]{4}[ -~]{0,200}") {
        if let Ok(block) = KeyBlock::parse(&text) {
            let _ = (block.open(&under()).is_ok(), block.fields());
        }
    }

    #[test]
    fn a_block_with_any_changed_byte_does_not_open(at in 0..144usize, byte in 32..127u8) {
        let mut text = written(Version::D, &[7; 16]).into_bytes();
        let same = text[at] == byte;
        text[at] = byte;
        let opened = KeyBlock::parse(std::str::from_utf8(&text).unwrap()).and_then(|block| block.open(&under()));
        prop_assert_eq!(opened.is_ok(), same);
    }
}

/// Calls psec of PyPI, an independent implementation of version D. It does not support version E.
fn psec(command: &str, arguments: &[&str]) -> String {
    let python = std::env::var("PINSEAL_TEST_PYTHON").unwrap_or_else(|_| {
        panic!("PINSEAL_TEST_PYTHON is not set: run scripts/test, or point it to a Python with tests/clients/python/requirements.lock")
    });
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/clients/python/psec_key_block.py");
    let output = std::process::Command::new(python).args([script, command]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn psec_opens_our_key_blocks() {
    for key in [&[0x5D; 16][..], &[0x6E; 24], &[0x7F; 32]] {
        assert_eq!(
            psec("open", &[&upper::encode_string(&AES_KEY), &written(Version::D, key)]),
            format!("P0 A B E {}", upper::encode_string(key))
        );
    }
}

#[test]
fn we_open_key_blocks_of_psec() {
    for (key, head) in [(&[0x5D; 16][..], "D0000P0TB00E0000"), (&[0x7F; 32], "D0000K1AB00N0000")] {
        let text = psec("write", &[&upper::encode_string(&AES_KEY), head, &upper::encode_string(key)]);
        let block = KeyBlock::parse(&text).unwrap();
        assert!(block.open(&under()).unwrap().bytes() == key, "{text}");
        assert_eq!(format!("{}{}", block.header().usage(), block.header().algorithm()), head[5..8]);
    }
}
