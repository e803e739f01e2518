//! What anybody may call a transcript: read to its end or refused; never a panic. What is read is as it would be written.

#![no_main]

use ceremony::transcript::Transcript;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(read) = Transcript::read(text) {
        assert!(text.ends_with('\n') && text.lines().count() == read.entries.len());
        assert!(read.entries.iter().all(|entry| !entry.action.to_string().is_empty()));
    }
});
