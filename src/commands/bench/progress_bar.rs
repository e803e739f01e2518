//! The progress bar of a preparation.

use indicatif::{ProgressBar, ProgressStyle};

/// A progress bar of this length.
pub(super) fn progress(length: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:<28} {wide_bar} {pos}/{len}");
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
