//! A text as a key block: it is parsed or rejected, without a panic. A parsed block agrees with the text.

#![no_main]

use hsm::{KeyBlock, KeyBlockPurpose};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(block) = KeyBlock::parse(text) {
        let header = block.header();
        assert!(text.starts_with(&header.version().to_string()));
        assert!(text.get(5..7) == Some(&header.usage()[..]));
        let optional: usize = header.optional().iter().map(|block| 4 + block.data().len()).sum();
        assert!(16 + optional + 2 * (block.encrypted_bytes() + header.version().mac_bytes()) <= text.len());
        assert!(block.fields().len() == 9 + header.optional().len());
        let _ = block.check_purpose(KeyBlockPurpose::ZoneKey);
        let _ = block.check_purpose(KeyBlockPurpose::ExchangeKey);
    }
});
