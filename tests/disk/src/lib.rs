//! A library for tests, preloaded before the C library: syncs fail on command, are left out, and are recorded.
//! It simulates a disk that refuses a write, and a power cut, for which a test would need a device.
//!
//! - `PINSEAL_DISK_FAIL`: a file. While it is there, `fdatasync` fails with EIO and syncs nothing, as on Linux where a write
//!   to the disk failed: the bytes stay in the page cache, and a later read finds them.
//! - `PINSEAL_DISK_TRACE`: a file. Each `fsync` and `fdatasync` that succeeded adds a line: inode, length in bytes, path.
//! - `PINSEAL_DISK_KEPT`: a directory with what a power cut leaves. Each sync of a file writes its bytes to `INODE`, each sync
//!   of a directory its names to `INODE.names`: a line `INODE NAME` for each.
//! - `PINSEAL_DISK_LEAVE_OUT`: `PART*END`. A sync of a path with this part and this end returns success and syncs nothing. The
//!   path of a directory ends with `/`.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    mem::ManuallyDrop,
    os::{
        fd::{FromRawFd, RawFd},
        raw::c_int,
        unix::fs::{DirEntryExt, MetadataExt},
    },
    path::Path,
    sync::{Mutex, PoisonError},
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
    let path = fs::read_link(format!("/proc/self/fd/{descriptor}")).unwrap_or_default();
    if is_left_out(&path) {
        return 0;
    }
    // SAFETY: both system calls take a descriptor, valid or not, and touch no memory.
    let result = unsafe { libc::syscall(number, descriptor) };
    if result != 0 {
        return -1;
    }
    // SAFETY: the caller has the descriptor open for the length of this call, and nothing here closes it.
    let file = ManuallyDrop::new(unsafe { File::from_raw_fd(descriptor) });
    // If a line or a copy cannot be written, the test that looks for it fails.
    let _ = trace(&file, &path);
    let _ = keep(&file, &path, descriptor);
    0
}

fn is_left_out(path: &Path) -> bool {
    let Some(Ok(pattern)) = env::var_os("PINSEAL_DISK_LEAVE_OUT").map(|pattern| pattern.into_string()) else {
        return false;
    };
    let Some((part, end)) = pattern.split_once('*') else { return false };
    let slash = if path.is_dir() { "/" } else { "" };
    let path = format!("{}{slash}", path.display());
    path.contains(part) && path.ends_with(end)
}

fn trace(file: &File, path: &Path) -> std::io::Result<()> {
    let Some(trace) = env::var_os("PINSEAL_DISK_TRACE") else { return Ok(()) };
    let metadata = file.metadata()?;
    let line = format!("{} {} {}\n", metadata.ino(), metadata.len(), path.display());
    OpenOptions::new().create(true).append(true).open(trace)?.write_all(line.as_bytes())
}

fn keep(file: &File, path: &Path, descriptor: RawFd) -> std::io::Result<()> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let Some(kept) = env::var_os("PINSEAL_DISK_KEPT") else { return Ok(()) };
    let _one = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let metadata = file.metadata()?;
    let kept = Path::new(&kept);
    if metadata.is_dir() {
        let mut names = String::new();
        for entry in fs::read_dir(path)? {
            let entry = entry?;
            names += &format!("{} {}\n", entry.ino(), entry.file_name().display());
        }
        return fs::write(kept.join(format!("{}.names", metadata.ino())), names);
    }
    let mut copied = File::open(format!("/proc/self/fd/{descriptor}"))?;
    // A journal is a hole behind its last batch.
    // SAFETY: the descriptor is open, and the call touches no memory.
    let hole = unsafe { libc::lseek(std::os::fd::AsRawFd::as_raw_fd(&copied), 0, libc::SEEK_HOLE) };
    std::io::Seek::rewind(&mut copied)?;
    let mut bytes = Vec::new();
    copied.take(u64::try_from(hole).unwrap_or(0)).read_to_end(&mut bytes)?;
    let fresh = kept.join("fresh");
    fs::write(&fresh, bytes)?;
    fs::rename(fresh, kept.join(metadata.ino().to_string()))
}
