//! The memory of a process, from `/proc/PID/status` (proc(5)).

use std::fs;

use super::BenchError;

/// The memory of a process, in bytes.
#[derive(Clone, Copy)]
pub(super) struct ProcessMemory {
    /// In RAM (`VmRSS`).
    pub(super) resident_bytes: u64,
    /// Address space that is never swapped out (`VmLck`); a part of it may never have been in RAM.
    pub(super) locked_bytes: u64,
}

impl ProcessMemory {
    /// Reads the memory of a process.
    ///
    /// # Errors
    /// The process does not exist, or has ended.
    pub(super) fn read(process: u32) -> Result<Self, BenchError> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let bytes = |name: &str| {
            let text = status.lines().find_map(|line| line.strip_prefix(name));
            let kibibytes = text.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
            let missing = || BenchError::Load(format!("no {name} in /proc/{process}/status: the process has ended"));
            Ok::<_, BenchError>(kibibytes.ok_or_else(missing)?.saturating_mul(1_024))
        };
        Ok(Self { resident_bytes: bytes("VmRSS:")?, locked_bytes: bytes("VmLck:")? })
    }
}
