//! `pinseal hsm --try-escape FILE`: from inside, once confined, try what was given up, and tell what the kernel said.
//!
//! Nothing here is reachable while the process serves.

use std::{
    fs::{self, File},
    io::{self, Write},
    net::{TcpStream, UdpSocket},
    os::unix::{net::UnixStream, process::CommandExt},
    path::Path,
    process::Command,
    thread,
};

use nix::{
    sys::{ptrace, wait::waitpid},
    unistd::Uid,
};
use rustix::process::{Pid, Signal, kill_process};

/// What may be tried with a vault alone: a PKCS#11 module needs threads and its daemon's socket.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keys {
    Vault,
    Token,
}

/// Tries everything; gives how much was let through.
pub(super) fn try_all(keys: Keys, parent: Pid, file: &Path, out: &mut impl Write) -> io::Result<usize> {
    let program = std::env::current_exe().unwrap_or_else(|_| "/bin/true".into());
    let mut let_through = 0;
    let mut tell = |what: &str, result: io::Result<()>| {
        let said = match &result {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => "refused",
            _ => {
                let_through += 1;
                "LET THROUGH"
            }
        };
        let error = result.err().map(|error| format!(" ({error})")).unwrap_or_default();
        writeln!(out, "{said:<12} {what}{error}")
    };
    tell("open a socket to the network", UdpSocket::bind("127.0.0.1:0").map(drop))?;
    tell("connect by TCP", TcpStream::connect("127.0.0.1:9").map(drop))?;
    if keys == Keys::Vault {
        tell("connect to a Unix socket", UnixStream::connect("/run/pinseal-no-such-socket").map(drop))?;
        tell("start a thread", thread::Builder::new().spawn(|| {}).map(drop))?;
    }
    tell("read a user's file", File::open(file).map(drop))?;
    tell("write a user's file", File::options().append(true).open(file).map(drop))?;
    tell("make a file", make_and_remove(&std::env::temp_dir().join("pinseal-hsm-escaped")))?;
    tell("start a program", Command::new(&program).arg("--version").output().map(drop))?;
    tell("trace its parent", trace(parent))?;
    tell("signal its parent", kill_process(parent, Signal::CONT).map_err(io::Error::from))?;
    tell("become root", nix::unistd::setuid(Uid::from_raw(0)).map_err(io::Error::from))?;
    // Last, for it would not come back; without arguments the other program fails.
    tell("become another program", Err(Command::new(program).arg("hsm").exec()))?;
    Ok(let_through)
}

fn make_and_remove(path: &Path) -> io::Result<()> {
    File::create(path)?;
    fs::remove_file(path)
}

fn trace(process: Pid) -> io::Result<()> {
    let process = nix::unistd::Pid::from_raw(process.as_raw_pid());
    ptrace::attach(process)?;
    waitpid(process, None)?;
    Ok(ptrace::detach(process, None)?)
}
