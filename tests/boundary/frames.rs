//! Malformed frames between engine and boundary: they end the connection and lose no data.

use std::{
    io::{Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hsm_protocol::{Request, frame};
use proto::Scope;
use tonic::Code;

use support::{
    engine_process::{EngineProcess, device},
    hsm_process::HsmProcess,
    wait::soon,
};

/// Longer than any of these tests: CLOCK_MONOTONIC counts from the machine's start.
const NO_DEADLINE: u64 = u64::MAX;

/// A connection to a boundary, as an engine opens it.
struct Connection {
    stream: UnixStream,
    arrived: Vec<u8>,
}

impl Connection {
    fn greeted(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut connection = Self { stream, arrived: Vec::new() };
        let mut hello = Vec::new();
        frame::push_hello(&mut hello);
        connection.stream.write_all(&hello).unwrap();
        assert_eq!(connection.answer(), Some(0));
        connection
    }

    fn check(&mut self, number: u64) {
        let mut asked = Vec::new();
        frame::push_frame(&mut asked, number, |body| frame::write_request(&Request::Check, NO_DEADLINE, body));
        self.stream.write_all(&asked).unwrap();
        assert_eq!(self.answer(), Some(number));
    }

    /// The number of the next frame; `None` if the other end closed the connection.
    fn answer(&mut self) -> Option<u64> {
        loop {
            let mut rest = self.arrived.as_slice();
            if let Some(frame) = frame::take_frame(&mut rest).unwrap() {
                let number = frame.number;
                self.arrived = rest.to_vec();
                return Some(number);
            }
            let mut piece = [0; 4_096];
            match self.stream.read(&mut piece) {
                Ok(0) => return None,
                Ok(length) => self.arrived.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

#[test]
fn a_malformed_frame_ends_only_its_own_connection() {
    let directory = tempfile::tempdir().unwrap();
    let mut hsm = HsmProcess::start(directory.path(), "");
    let mut other = Connection::greeted(hsm.socket());
    other.check(1);

    let mut check = Vec::new();
    frame::push_frame(&mut check, 1, |body| frame::write_request(&Request::Check, NO_DEADLINE, body));
    let with = |at: usize, byte: u8| {
        let mut changed = check.clone();
        changed[at] = byte;
        changed
    };
    let nonsense: [(&str, Vec<u8>); 6] = [
        ("a length over the limit", vec![0xFF; 64]),
        ("a length too short for a number", vec![0, 0, 0, 3, 1, 2, 3]),
        ("an unknown operation", with(20, 0x7F)),
        ("bytes behind the arguments", {
            let mut longer = with(3, check[3] + 1);
            longer.push(0);
            longer
        }),
        ("a request cut short", {
            let mut shorter = with(3, check[3] - 1);
            shorter.pop();
            shorter
        }),
        ("arguments that are none", {
            let mut accept = Vec::new();
            frame::push_frame(&mut accept, 2, |body| body.extend_from_slice(&[0xFF, 0, 0, 0, 0, 0, 0, 0, 2, 0, 9, 1]));
            accept
        }),
    ];
    for (what, bytes) in nonsense {
        let mut connection = Connection::greeted(hsm.socket());
        connection.check(1);
        connection.stream.write_all(&bytes).unwrap();
        assert_eq!(connection.answer(), None, "{what}");
        other.check(2);
    }
    let mut without_hello = UnixStream::connect(hsm.socket()).unwrap();
    without_hello.write_all(&check).unwrap();
    assert_eq!(Connection { stream: without_hello, arrived: Vec::new() }.answer(), None);
    other.check(3);
    assert!(hsm.is_alive(), "{}", hsm.log());
}

/// A proxy between an engine and its boundary. On command it flips a bit of each reply.
struct Between {
    socket: PathBuf,
    corrupting: Arc<AtomicBool>,
}

impl Between {
    fn listen(directory: &Path, boundary: &Path) -> Self {
        let (socket, boundary) = (directory.join("between.socket"), boundary.to_owned());
        let listener = UnixListener::bind(&socket).unwrap();
        let corrupting = Arc::new(AtomicBool::new(false));
        let corrupts = Arc::clone(&corrupting);
        std::thread::spawn(move || {
            for engine in listener.incoming() {
                let (engine, hsm) = (engine.unwrap(), UnixStream::connect(&boundary).unwrap());
                let (mut from, mut to) = (engine.try_clone().unwrap(), hsm.try_clone().unwrap());
                std::thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
                let corrupts = Arc::clone(&corrupts);
                std::thread::spawn(move || pass_on(hsm, engine, &corrupts));
            }
        });
        Self { socket, corrupting }
    }
}

fn pass_on(mut from: UnixStream, mut to: UnixStream, corrupts: &AtomicBool) {
    let mut piece = [0; 16_384];
    while let Ok(length @ 1..) = from.read(&mut piece) {
        if corrupts.load(Ordering::Relaxed) {
            piece[0] ^= 0x80;
        }
        if to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_boundary_frames_cost_a_restart_and_no_pin() {
    let directory = tempfile::tempdir().unwrap();
    let hsm = HsmProcess::start(directory.path(), "");
    let between = Between::listen(directory.path(), hsm.socket());
    let lines = format!("[boundary]\nsocket = {:?}", between.socket);
    let engine = EngineProcess::start(directory.path(), &lines);
    let (device, mut client) = (device(), engine.client().await);
    client.set(&device, "7300", "271828").await.unwrap();

    let (control, block) = client.ready_to_set(&device, "7301", "161803").await.unwrap();
    between.corrupting.store(true, Ordering::Relaxed);
    let lost = client.set_block(&control, &block).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost:?}");
    soon("health still reports serving", async || (!engine.serves().await).then_some(())).await;

    between.corrupting.store(false, Ordering::Relaxed);
    soon("it is not back", async || engine.serves().await.then_some(())).await;
    soon("the control was lost", async || client.set_block(&control, &block).await.ok()).await;
    assert_eq!(client.view(&device, "7300").await.unwrap(), "271828");
    assert_eq!(client.view(&device, "7301").await.unwrap(), "161803");
    let spent = client.set_block(&control, &[7; 8]).await.unwrap_err();
    assert_eq!(spent.code(), Code::NotFound);
    assert!(client.open("7302", Scope::SetPin).await.is_ok());
}
