//! A hostile module: it tries, by raw system calls, what the boundary's process may not do, and records the kernel's
//! answer, a line each: `refused` or `LET THROUGH`, then the attempt.

use std::{
    env, ffi, fs, io, mem,
    path::{Path, PathBuf},
    process, ptr,
    sync::Once,
};

/// A descriptor that a test lets the engine inherit.
const INHERITED: i32 = 77;
/// `fcntl(2)`: not in `libc`.
const F_SETSIG: i32 = 10;
const PAGE_BYTES: usize = 4096;
/// `struct sockaddr_in` of 127.0.0.1, port 9 (discard).
const DISCARD: [u8; 16] = [libc::AF_INET as u8, 0, 0, 9, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];

static LOADING: Once = Once::new();
static SERVING: Once = Once::new();

fn place() -> Option<PathBuf> {
    env::var_os("PINSEAL_SHIM_ESCAPE").map(PathBuf::from).filter(|place| place.is_dir())
}

pub(crate) fn try_while_loading() {
    if let Some(place) = place() {
        LOADING.call_once(|| write(&place.join("tried-loading"), &try_all(&place, false)));
    }
}

pub(crate) fn try_while_serving() {
    if let Some(place) = place().filter(|place| place.join("serving").exists()) {
        SERVING.call_once(|| write(&place.join("tried-serving"), &try_all(&place, true)));
    }
}

/// Atomic: a reader finds the whole file, or no file.
fn write(file: &Path, text: &str) {
    let aside = file.with_extension("new");
    let _ = fs::write(&aside, text).and_then(|()| fs::rename(aside, file));
}

fn try_all(place: &Path, serving: bool) -> String {
    let mut printed = String::new();
    let mut report = |what: &str, answer: i64| {
        let error = io::Error::last_os_error();
        let refused = answer < 0 && matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES | libc::ENOSYS));
        let said = if refused { "refused" } else { "LET THROUGH" };
        let error = if answer < 0 { error.to_string() } else { String::new() };
        printed.push_str(&format!("{said} {what} ({answer} {error})\n"));
    };
    let written = place.join("code");
    let _ = fs::write(&written, [0xC3; PAGE_BYTES]);
    let path = |path: &Path| ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    let (code, users_file) = (path(&written), path(Path::new("/etc/hostname")));
    let limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: system calls on buffers and descriptors of this function's own; a mapping that succeeds is left alone, a
    // child that comes to be ends at once.
    unsafe {
        let parent = libc::getppid();
        let socket = |family, kind, protocol| libc::socket(family, kind, protocol);
        report("open a UDP socket", socket(libc::AF_INET, libc::SOCK_DGRAM, 0).into());
        report("open a UDP socket of IPv6", socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0).into());
        report("open an MPTCP socket", socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).into());
        report("open a raw socket", socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP).into());
        report("open a netlink socket", socket(libc::AF_NETLINK, libc::SOCK_RAW, 0).into());
        report("open a vsock socket", socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0).into());
        report("open a Unix datagram socket", socket(libc::AF_UNIX, libc::SOCK_DGRAM, 0).into());
        report("open a Unix stream socket", socket(libc::AF_UNIX, libc::SOCK_STREAM, 0).into());
        let mut pair = [-1; 2];
        let paired = libc::socketpair(libc::AF_UNIX, libc::SOCK_DGRAM, 0, pair.as_mut_ptr());
        report("open a pair of Unix datagram sockets", paired.into());
        let paired = libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET, 0, pair.as_mut_ptr());
        report("open a pair of Unix packet sockets", paired.into());
        // Where ports are listed the socket is there, and these are what must fail.
        let tcp = socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, libc::IPPROTO_TCP);
        let tcp_or_stderr = if tcp < 0 { libc::STDERR_FILENO } else { tcp };
        let mut bytes = *b"out";
        let mut buffer = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut message: libc::msghdr = mem::zeroed();
        (message.msg_name, message.msg_namelen) = (DISCARD.as_ptr().cast_mut().cast(), 16);
        (message.msg_iov, message.msg_iovlen) = (&raw mut buffer, 1);
        let (out, address) = (bytes.as_ptr().cast(), DISCARD.as_ptr().cast());
        let fast_open = libc::MSG_FASTOPEN;
        report("sendto by Fast Open", libc::sendto(tcp_or_stderr, out, 3, fast_open, address, 16) as i64);
        report("sendto with an address", libc::sendto(tcp_or_stderr, out, 3, 0, address, 16) as i64);
        report("sendmsg by Fast Open", libc::sendmsg(tcp_or_stderr, &raw const message, fast_open) as i64);
        let one: i32 = 1;
        for option in [libc::TCP_FASTOPEN_CONNECT, libc::TCP_ULP] {
            let set = libc::setsockopt(tcp_or_stderr, libc::IPPROTO_TCP, option, (&raw const one).cast(), 4);
            report("set a TCP option that is not listed", set.into());
        }
        report("connect to a port that is not listed", libc::connect(tcp_or_stderr, address.cast(), 16).into());
        report("limit its parent", libc::prlimit(parent, libc::RLIMIT_CORE, &raw const limit, ptr::null_mut()).into());
        let mut read: libc::rlimit = limit;
        report("read its parent's limits", libc::prlimit(parent, libc::RLIMIT_CORE, ptr::null(), &raw mut read).into());
        report("set its own limits", libc::setrlimit(libc::RLIMIT_CORE, &raw const limit).into());
        report("signal its parent", libc::kill(parent, 0).into());
        report("signal its parent's thread", libc::syscall(libc::SYS_tgkill, parent, parent, 0));
        report("open its parent by pidfd", libc::syscall(libc::SYS_pidfd_open, parent, 0));
        report("schedule its parent", libc::setpriority(libc::PRIO_PROCESS, parent.cast_unsigned(), 19).into());
        report("trace its parent", libc::ptrace(libc::PTRACE_ATTACH, parent, 0, 0));
        report(
            "read its parent's memory",
            libc::process_vm_readv(parent, &raw const buffer, 1, &raw const buffer, 1, 0) as i64,
        );
        report("have a signal sent for a descriptor", libc::fcntl(0, libc::F_SETOWN, parent).into());
        report("choose a descriptor's signal", libc::fcntl(0, F_SETSIG, libc::SIGKILL).into());
        report("lease a file", libc::fcntl(0, libc::F_SETLEASE, libc::F_RDLCK).into());
        let shared = libc::shmget(libc::IPC_PRIVATE, PAGE_BYTES, libc::IPC_CREAT | 0o600);
        report("make shared memory", shared.into());
        report("attach shared memory as code", libc::shmat(shared, ptr::null(), libc::SHM_EXEC) as i64);
        libc::shmctl(shared, libc::IPC_RMID, ptr::null_mut());
        report("make a memory file", libc::memfd_create(c"code".as_ptr(), 0).into());
        let (exec, anonymous) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        report("map code without a file", libc::mmap(ptr::null_mut(), PAGE_BYTES, exec, anonymous, -1, 0) as i64);
        let page = libc::mmap(ptr::null_mut(), PAGE_BYTES, libc::PROT_READ, anonymous, -1, 0);
        report("make memory code", libc::mprotect(page, PAGE_BYTES, exec).into());
        let writable = exec | libc::PROT_WRITE;
        for (path, what) in
            [(c"/bin/true", "map a program's code writable"), (c"/dev/zero", "map writable code of the zero device")]
        {
            let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            // Without a file the mapping fails for that reason, which does not count as refused.
            report(what, libc::mmap(ptr::null_mut(), PAGE_BYTES, writable, libc::MAP_PRIVATE, file, 0) as i64);
            let code = libc::mmap(ptr::null_mut(), PAGE_BYTES, exec, libc::MAP_PRIVATE, file, 0);
            report("make mapped code writable", libc::mprotect(code, PAGE_BYTES, writable).into());
            libc::close(file);
        }
        if serving {
            // Not refused: a module loads its libraries again after its token failed.
            let file = libc::open(code.as_ptr(), libc::O_RDONLY);
            let mapped = libc::mmap(ptr::null_mut(), PAGE_BYTES, exec, libc::MAP_PRIVATE, file, 0);
            report("map code that it wrote", mapped as i64);
            libc::close(file);
        }
        report("change a user's file's mode", libc::chmod(users_file.as_ptr(), 0o644).into());
        report("write a system file", libc::open(users_file.as_ptr(), libc::O_WRONLY).into());
        let child = libc::fork();
        if child == 0 {
            libc::_exit(0);
        }
        report("start a process", child.into());
        report("start a program", libc::execve(c"/bin/true".as_ptr(), ptr::null(), ptr::null()).into());
        report("set up io_uring", libc::syscall(libc::SYS_io_uring_setup, 1, ptr::null::<u8>()));
        report("become root", libc::setuid(0).into());
        let mut inherited: libc::stat = mem::zeroed();
        let kept = libc::fstat(INHERITED, &raw mut inherited);
        report_inherited(&mut printed, kept);
        libc::munmap(page, PAGE_BYTES);
        libc::close(tcp);
    }
    printed.push_str(&format!("process {}\n", process::id()));
    printed
}

/// A closed descriptor answers EBADF, which no filter does.
fn report_inherited(printed: &mut String, kept: i32) {
    let closed = kept < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EBADF);
    printed.push_str(if closed { "refused use what was inherited\n" } else { "LET THROUGH use what was inherited\n" });
}
