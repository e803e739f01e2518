//! A library for tests, preloaded before the C library: syncs fail on command, and each successful sync is recorded.
//! It simulates a disk that refuses a write, for which a test would need a device.
//!
//! - `PINSEAL_DISK_FAIL`: a file. While it is there, `fdatasync` fails with EIO and syncs nothing, as on Linux where a write
//!   to the disk failed: the bytes stay in the page cache, and a later read finds them.
//! - `PINSEAL_DISK_TRACE`: a file. Each `fsync` and `fdatasync` that succeeded adds a line: inode, length in bytes, path.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::Write,
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        raw::c_int,
        unix::fs::MetadataExt,
    },
    path::Path,
};

/// The C library's `fdatasync`, or a failure.
#[unsafe(no_mangle)]
pub extern "C" fn fdatasync(descriptor: c_int) -> c_int {
    if env::var_os("PINSEAL_DISK_FAIL").is_some_and(|file| Path::new(&file).exists()) {
        // SAFETY: the C library gives a valid pointer to this thread's error number.
        unsafe { *libc::__errno_location() = libc::EIO };
        return -1;
    }
    sync(libc::SYS_fdatasync, descriptor)
}

/// The C library's `fsync`.
#[unsafe(no_mangle)]
pub extern "C" fn fsync(descriptor: c_int) -> c_int {
    sync(libc::SYS_fsync, descriptor)
}

fn sync(number: libc::c_long, descriptor: RawFd) -> c_int {
    // SAFETY: both system calls take a descriptor, valid or not, and touch no memory.
    let result = unsafe { libc::syscall(number, descriptor) };
    if result == 0 {
        trace(descriptor);
    }
    if result == 0 { 0 } else { -1 }
}

/// If a line cannot be written, the test that looks for it fails.
fn trace(descriptor: RawFd) {
    let Some(trace) = env::var_os("PINSEAL_DISK_TRACE") else { return };
    // SAFETY: the caller has the descriptor open for the length of this call, and nothing here closes it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    let Ok(metadata) = file.metadata() else { return };
    let path = fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap_or_default();
    let line = format!("{} {} {}\n", metadata.ino(), metadata.len(), path.display());
    if let Ok(mut trace) = OpenOptions::new().create(true).append(true).open(trace) {
        let _ = trace.write_all(line.as_bytes());
    }
}
