//! `pinseal hsm --try-escape FILE`: tries each forbidden action inside the confined process, and reports the kernel's
//! answer to each. A process that serves cannot reach this code.

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

/// Actions that the configuration allows, so that they are not tried.
#[derive(Clone, Copy, Default)]
pub(super) struct Allowed {
    /// A PKCS#11 module needs threads.
    pub(super) threads: bool,
    /// `token.ipc` lists `unix-socket`.
    pub(super) unix_sockets: bool,
}

/// Port 9 (discard) of the loopback address: usually without a listener, so that an allowed connection is rejected by TCP.
const DISCARD: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9);

/// Tries every action that is not allowed, writes a line for each, and returns how many the kernel let through.
pub(super) fn try_all(allowed: Allowed, parent: Pid, file: &Path, out: &mut impl Write) -> io::Result<usize> {
    let program = std::env::current_exe().unwrap_or_else(|_| "/bin/true".into());
    let mut let_through = 0;
    let mut report = |action: &str, result: io::Result<()>| {
        let outcome = match &result {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => "refused",
            _ => {
                let_through += 1;
                "LET THROUGH"
            }
        };
        let error = result.err().map(|error| format!(" ({error})")).unwrap_or_default();
        writeln!(out, "{outcome:<12} {action}{error}")
    };
    report("send by UDP", send_by_udp())?;
    report("connect by TCP", TcpStream::connect(DISCARD).map(drop))?;
    report("connect by MPTCP", connect_by_mptcp())?;
    report("send by TCP Fast Open", send_by_fast_open())?;
    report("open a Unix datagram socket", UnixDatagram::unbound().map(drop))?;
    if !allowed.unix_sockets {
        report("connect to a Unix socket", UnixStream::connect("/run/pinseal-no-such-socket").map(drop))?;
    }
    if !allowed.threads {
        report("start a thread", thread::Builder::new().spawn(|| {}).map(drop))?;
    }
    report("read a user's file", File::open(file).map(drop))?;
    report("write a user's file", File::options().append(true).open(file).map(drop))?;
    report("change a user's file's mode", fs::set_permissions(file, Permissions::from_mode(0o600)))?;
    report("make a file", make_and_remove(&std::env::temp_dir().join("pinseal-hsm-escaped")))?;
    report("start a program", Command::new(&program).arg("--version").output().map(drop))?;
    report("trace its parent", trace(parent))?;
    report("signal its parent", kill_process(parent, Signal::CONT).map_err(io::Error::from))?;
    report("limit its parent", limit(Some(parent)))?;
    report("change its own limits", limit(None))?;
    report("become root", nix::unistd::setuid(Uid::from_raw(0)).map_err(io::Error::from))?;
    // Last, because exec does not return when it succeeds. The new program has too few arguments and fails.
    report("become another program", Err(Command::new(program).arg("hsm").exec()))?;
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

/// Sets the limit of core files to zero, which changes nothing for this process: it is zero already.
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
