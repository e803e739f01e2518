//! A text as a transcript: it is read or rejected, without a panic. A transcript that is read agrees with the text.

#![no_main]

use ceremony::transcript::Transcript;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(read) = Transcript::read(text) {
        assert!(text.ends_with('\n') && text.lines().count() == read.entries.len());
        assert!(read.entries.iter().all(|entry| !entry.action.to_string().is_empty()));
    }
});
