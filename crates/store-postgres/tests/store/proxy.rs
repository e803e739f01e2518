//! A TCP proxy between a store and its server, which cuts connections at a chosen moment.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

/// The text of a simple query, as the protocol sends it: a message of type `Q`.
const COMMIT: &[u8] = b"Q\x00\x00\x00\x0bCOMMIT\x00";

/// When the connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// No connection is cut.
    Never,
    /// Instead of the next COMMIT: the server does not receive it.
    BeforeCommit,
    /// After the next COMMIT, once the server has answered: the store does not receive the answer.
    AfterCommit,
    /// The same, and new connections are refused.
    AfterCommitForGood,
    /// At the next COMMIT, which the server receives after [`Proxy::release`].
    HoldCommit,
    /// The same, and new connections are refused.
    HoldCommitForGood,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    shared: Arc<Shared>,
}

struct Shared {
    server: u16,
    cut: Mutex<Cut>,
    /// Whether new connections are refused.
    is_down: AtomicBool,
    /// Whether nothing reaches the server, as on a host that is frozen.
    is_silent: AtomicBool,
    connections: Mutex<Vec<TcpStream>>,
    held: Mutex<Option<TcpStream>>,
}

impl Proxy {
    pub(crate) fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server,
            cut: Mutex::new(Cut::Never),
            is_down: AtomicBool::new(false),
            is_silent: AtomicBool::new(false),
            connections: Mutex::default(),
            held: Mutex::default(),
        });
        let accepting = Arc::clone(&shared);
        thread::spawn(move || listener.incoming().flatten().for_each(|client| accepting.serve(client)));
        Self { port, shared }
    }

    /// Cuts at the next COMMIT of any connection.
    pub(crate) fn cut(&self, cut: Cut) {
        *self.shared.cut.lock().unwrap() = cut;
    }

    /// Whether the cut has happened.
    pub(crate) fn has_cut(&self) -> bool {
        *self.shared.cut.lock().unwrap() == Cut::Never
    }

    /// Refuses new connections, and keeps the others.
    pub(crate) fn refuse(&self) {
        self.shared.is_down.store(true, Ordering::SeqCst);
    }

    /// The same, and the others get no answer any more.
    pub(crate) fn silence(&self) {
        self.refuse();
        self.shared.is_silent.store(true, Ordering::SeqCst);
    }

    /// Closes every connection, and refuses new ones until [`Proxy::up`].
    pub(crate) fn down(&self) {
        self.shared.is_down.store(true, Ordering::SeqCst);
        self.shared.close_all();
    }

    /// Sends the COMMIT that is held to the server, on its own connection, which stays open.
    pub(crate) fn release(&self) {
        self.shared.held.lock().unwrap().as_mut().unwrap().write_all(COMMIT).unwrap();
    }

    pub(crate) fn up(&self) {
        self.shared.is_down.store(false, Ordering::SeqCst);
    }
}

impl Shared {
    fn close_all(&self) {
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn serve(self: &Arc<Self>, client: TcpStream) {
        if self.is_down.load(Ordering::SeqCst) {
            return;
        }
        let Ok(server) = TcpStream::connect(("127.0.0.1", self.server)) else { return };
        self.connections.lock().unwrap().extend([client.try_clone().unwrap(), server.try_clone().unwrap()]);
        let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let (mut from_server, mut to_client) = (server, client);
        // Whether the answer to COMMIT is on its way, and must not arrive.
        let swallows = Arc::new(AtomicBool::new(false));
        let (requests, answers) = (Arc::clone(self), Arc::clone(self));
        let swallows_answer = Arc::clone(&swallows);
        thread::spawn(move || {
            let mut bytes = [0; 65_536];
            while let Ok(count) = from_client.read(&mut bytes)
                && count > 0
            {
                // The store sends COMMIT in a write of its own.
                if bytes[..count] == *COMMIT {
                    let mut cut = requests.cut.lock().unwrap();
                    match *cut {
                        Cut::Never => {}
                        Cut::BeforeCommit => {
                            *cut = Cut::Never;
                            break;
                        }
                        Cut::AfterCommit | Cut::AfterCommitForGood => swallows.store(true, Ordering::SeqCst),
                        hold @ (Cut::HoldCommit | Cut::HoldCommitForGood) => {
                            if hold == Cut::HoldCommitForGood {
                                requests.is_down.store(true, Ordering::SeqCst);
                            }
                            *requests.held.lock().unwrap() = Some(to_server.try_clone().unwrap());
                            *cut = Cut::Never;
                            let _ = from_client.shutdown(Shutdown::Both);
                            return;
                        }
                    }
                }
                if requests.is_silent.load(Ordering::SeqCst) {
                    continue;
                }
                if to_server.write_all(&bytes[..count]).is_err() {
                    break;
                }
            }
            let _ = to_server.shutdown(Shutdown::Both);
            let _ = from_client.shutdown(Shutdown::Both);
        });
        thread::spawn(move || {
            let mut bytes = [0; 65_536];
            while let Ok(count) = from_server.read(&mut bytes)
                && count > 0
            {
                if swallows_answer.load(Ordering::SeqCst) {
                    let mut cut = answers.cut.lock().unwrap();
                    if *cut == Cut::AfterCommitForGood {
                        answers.is_down.store(true, Ordering::SeqCst);
                    }
                    *cut = Cut::Never;
                    break;
                }
                // A client that was cut off while its COMMIT is held reads nothing any more.
                let _ = to_client.write_all(&bytes[..count]);
            }
            let _ = to_client.shutdown(Shutdown::Both);
            let _ = from_server.shutdown(Shutdown::Both);
        });
    }
}
