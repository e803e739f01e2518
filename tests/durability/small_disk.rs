//! A small file system in memory.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use rustix::fs::statvfs;

/// A small file system in memory, in a separate mount namespace. It ends with the process that holds the namespace.
pub(crate) struct SmallDisk {
    holder: Child,
    mount: PathBuf,
}

impl SmallDisk {
    /// Creates a directory and mounts a file system of this size on it.
    pub(crate) fn mount(directory: &Path, mebibytes: u32) -> Self {
        fs::create_dir(directory).unwrap();
        let script = "mount -t tmpfs -o \"size=$2m\" tmpfs \"$1\" && echo mounted && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"])
            .arg(directory)
            .arg(mebibytes.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("install util-linux");
        let said = BufReader::new(holder.stdout.as_mut().unwrap()).lines().next();
        assert!(matches!(said, Some(Ok(_))), "a file system can't be mounted: run the tests as root");
        Self { holder, mount: directory.to_owned() }
    }

    /// A command inside the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--mount=/proc/{}/ns/mnt", self.holder.id())).arg(program);
        command
    }

    /// The mounted directory, as the test sees it.
    fn directory(&self) -> PathBuf {
        let inside = self.mount.strip_prefix("/").unwrap();
        Path::new(&format!("/proc/{}/root", self.holder.id())).join(inside)
    }

    fn filler(&self) -> PathBuf {
        self.directory().join("filler")
    }

    /// Fills the disk to its last byte.
    pub(crate) fn fill(&self) {
        let disk = statvfs(self.directory()).unwrap();
        let more = usize::try_from(disk.f_blocks * disk.f_frsize).unwrap() + 1;
        let zeros = fs::write(self.filler(), vec![0; more]);
        assert_eq!(zeros.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    }

    /// Fills the disk, and leaves so much space.
    pub(crate) fn fill_but(&self, mebibytes: u64) {
        let disk = statvfs(self.directory()).unwrap();
        let zeros = (disk.f_bavail * disk.f_frsize).checked_sub(mebibytes << 20).unwrap();
        fs::write(self.filler(), vec![0; usize::try_from(zeros).unwrap()]).unwrap();
    }

    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
