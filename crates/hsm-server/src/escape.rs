//! `pinseal hsm --try-escape FILE`: from inside, once confined, try what was given up, and tell what the kernel said.
//!
//! Nothing here is reachable while the process serves.

use std::{
    fs::{self, File, Permissions},
    io::{self, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixDatagram, UnixStream},
        process::CommandExt,
    },
    path::Path,
    process::Command,
    thread,
};

use nix::{
    sys::{ptrace, wait::waitpid},
    unistd::Uid,
};
use rustix::{
    net::{self, AddressFamily, SendFlags, SocketType},
    process::{Pid, Resource, Rlimit, Signal, kill_process},
};

/// What the configuration lets the process do: that is not tried.
#[derive(Clone, Copy, Default)]
pub(super) struct May {
    /// A PKCS#11 module needs threads.
    pub(super) start_threads: bool,
    /// `token.ipc` lists `unix-socket`.
    pub(super) connect_to_unix_sockets: bool,
}

/// A port that nobody listens on, as a rule.
const DISCARD: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);

/// Tries everything; gives how much was let through.
pub(super) fn try_all(may: May, parent: Pid, file: &Path, out: &mut impl Write) -> io::Result<usize> {
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
    tell("send by UDP", send_by_udp())?;
    tell("connect by TCP", TcpStream::connect(DISCARD).map(drop))?;
    tell("connect by MPTCP", connect_by_mptcp())?;
    tell("send by TCP Fast Open", send_by_fast_open())?;
    tell("open a Unix datagram socket", UnixDatagram::unbound().map(drop))?;
    if !may.connect_to_unix_sockets {
        tell("connect to a Unix socket", UnixStream::connect("/run/pinseal-no-such-socket").map(drop))?;
    }
    if !may.start_threads {
        tell("start a thread", thread::Builder::new().spawn(|| {}).map(drop))?;
    }
    tell("read a user's file", File::open(file).map(drop))?;
    tell("write a user's file", File::options().append(true).open(file).map(drop))?;
    tell("change a user's file's mode", fs::set_permissions(file, Permissions::from_mode(0o600)))?;
    tell("make a file", make_and_remove(&std::env::temp_dir().join("pinseal-hsm-escaped")))?;
    tell("start a program", Command::new(&program).arg("--version").output().map(drop))?;
    tell("trace its parent", trace(parent))?;
    tell("signal its parent", kill_process(parent, Signal::CONT).map_err(io::Error::from))?;
    tell("limit its parent", limit(Some(parent)))?;
    tell("change its own limits", limit(None))?;
    tell("become root", nix::unistd::setuid(Uid::from_raw(0)).map_err(io::Error::from))?;
    // Last, for it would not come back; without arguments the other program fails.
    tell("become another program", Err(Command::new(program).arg("hsm").exec()))?;
    Ok(let_through)
}

fn make_and_remove(path: &Path) -> io::Result<()> {
    File::create(path)?;
    fs::remove_file(path)
}

fn send_by_udp() -> io::Result<()> {
    let socket = net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    net::sendto(&socket, b"out", SendFlags::empty(), &DISCARD)?;
    Ok(())
}

fn connect_by_mptcp() -> io::Result<()> {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, Some(net::ipproto::MPTCP))?;
    Ok(net::connect(&socket, &DISCARD)?)
}

fn send_by_fast_open() -> io::Result<()> {
    let socket = net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    let fast_open = SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    net::sendto(&socket, b"out", fast_open, &DISCARD)?;
    Ok(())
}

/// To no core file, which this process has given up already.
fn limit(process: Option<Pid>) -> io::Result<()> {
    rustix::process::prlimit(process, Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    Ok(())
}

fn trace(process: Pid) -> io::Result<()> {
    let process = nix::unistd::Pid::from_raw(process.as_raw_pid());
    ptrace::attach(process)?;
    waitpid(process, None)?;
    Ok(ptrace::detach(process, None)?)
}
