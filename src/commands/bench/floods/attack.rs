//! The attacks, each on raw sockets in one thread with a bounded rate.

use std::{cell::Cell, io, rc::Rc, time::Duration};

use nix::time::ClockId;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    runtime::Builder,
    sync::{Mutex, watch},
    task::LocalSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::frames::{Flood, FloodFrames, GoawayReader, RequestHead};
use crate::commands::bench::{
    BenchError,
    processor_time::seconds,
    service_processes::{Aim, Target},
};
use net::connect::{Duplex, connect};

/// The writes a second of a connection of a flood.
const WRITES_A_SECOND: u32 = 100;
/// The same, where few frames are sent at a time.
const PACED_WRITES_A_SECOND: u32 = 1_000;
/// The interval of the bytes of a slow client.
const SLOW_BYTE_EVERY: Duration = Duration::from_secs(1);
/// The longest time that an attacker reads the end of a connection on which it can't write any more.
const LAST_READ_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest time beyond the measurement for the server to end a first connection.
const CALM_TIME_MAX: Duration = Duration::from_secs(30);
/// The connections of a flood.
const FLOOD_CONNECTIONS: u32 = 4;
/// The start of a ClientHello: a TLS record of 512 bytes (RFC 8446, 5.1).
const CLIENT_HELLO_CUT: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";
const HTTP1_HEAD_CUT: &[u8] = b"POST /pin/v3/set?auditUser=flood HTTP/1.1\r\nhost: localhost\r\nx-slow: ";

/// An attack.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attack {
    /// A few connections with as many frames as the rate allows.
    Flood(Flood),
    /// Many connections with a byte a second each.
    Slow(Slow),
}

/// What a slow connection does not finish.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Slow {
    /// Sends no byte at all.
    Silent,
    /// The ClientHello of TLS.
    Handshake,
    /// The headers of an HTTP/1.1 request.
    Http1Headers,
    /// A HEADERS frame of HTTP/2.
    Headers,
    /// The body of an HTTP/2 request.
    Body,
}

impl Attack {
    pub(super) const ALL: [Self; 13] = [
        Self::Flood(Flood::RapidReset),
        Self::Flood(Flood::PacedReset),
        Self::Flood(Flood::Continuation),
        Self::Flood(Flood::Ping),
        Self::Flood(Flood::UnreadPing),
        Self::Flood(Flood::PingAck),
        Self::Flood(Flood::Settings),
        Self::Flood(Flood::EmptyData),
        Self::Slow(Slow::Silent),
        Self::Slow(Slow::Handshake),
        Self::Slow(Slow::Http1Headers),
        Self::Slow(Slow::Headers),
        Self::Slow(Slow::Body),
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Flood(Flood::RapidReset) => "rapid-reset",
            Self::Flood(Flood::PacedReset) => "paced-reset",
            Self::Flood(Flood::Continuation) => "continuation",
            Self::Flood(Flood::Ping) => "ping",
            Self::Flood(Flood::UnreadPing) => "unread-ping",
            Self::Flood(Flood::PingAck) => "ping-ack",
            Self::Flood(Flood::Settings) => "settings",
            Self::Flood(Flood::EmptyData) => "empty-data",
            Self::Slow(Slow::Silent) => "silent",
            Self::Slow(Slow::Handshake) => "slow-handshake",
            Self::Slow(Slow::Http1Headers) => "slow-http1-headers",
            Self::Slow(Slow::Headers) => "slow-headers",
            Self::Slow(Slow::Body) => "slow-body",
        }
    }

    /// Reads the name of an attack.
    ///
    /// # Errors
    /// No attack has this name.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let names = || Self::ALL.map(Self::name).join(", ");
        Self::ALL.into_iter().find(|attack| attack.name() == text).ok_or_else(|| format!("the attacks are {}", names()))
    }

    /// Whether the HTTP/2 library ends such a connection with ENHANCE_YOUR_CALM.
    fn is_calmed(self) -> bool {
        matches!(self, Self::Flood(Flood::RapidReset | Flood::Continuation | Flood::EmptyData))
    }

    /// Whether the attack exists: the engine has no HTTP/1.1, and a plain connection has no handshake.
    pub(super) fn applies_to(self, target: Target, has_tls: bool) -> bool {
        match self {
            Self::Slow(Slow::Handshake) => has_tls,
            Self::Slow(Slow::Http1Headers) => target == Target::Edge,
            _ => true,
        }
    }
}

/// The rates of an attacker.
#[derive(Clone, Copy)]
pub(super) struct AttackRates {
    /// The frames a second of all connections of a flood together.
    pub(super) frames: u32,
    /// The connections of a slow attack.
    pub(super) slow_connections: u32,
    /// The most connections that are opened in a second; a closed one is opened again.
    pub(super) opens: u32,
}

/// What an attacker did, and how the server answered.
#[derive(Default)]
pub(super) struct AttackCounts {
    /// The connections that were opened.
    pub(super) connections: Cell<u64>,
    /// The frames that were written, or the single bytes of slow connections.
    pub(super) frames: Cell<u64>,
    /// The connections that the server closed.
    pub(super) closed: Cell<u64>,
    /// The connections that the server closed with ENHANCE_YOUR_CALM.
    pub(super) calmed: Cell<u64>,
    /// Processor time of the attacker's thread.
    pub(super) processor_seconds: Cell<f64>,
}

fn add(count: &Cell<u64>, more: u64) {
    count.set(count.get() + more);
}

/// Attacks until `stopped` is true. Uses the calling thread alone.
pub(super) fn run(
    attack: Attack,
    aim: Aim,
    rates: AttackRates,
    mut stopped: watch::Receiver<bool>,
) -> Result<AttackCounts, BenchError> {
    let connections = match attack {
        Attack::Flood(_) => FLOOD_CONNECTIONS,
        Attack::Slow(_) => rates.slow_connections,
    };
    let counts = Rc::new(AttackCounts::default());
    let attacker = Rc::new(Attacker { attack, aim, rates, opening: Mutex::new(()), counts: Rc::clone(&counts) });
    let runtime = Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        for _ in 0..connections {
            tokio::task::spawn_local(Rc::clone(&attacker).reopen());
        }
        // An error means that the bench has ended.
        let _ = stopped.wait_for(|stopped| *stopped).await;
        let calmed = async {
            while counts.calmed.get() == 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        if attack.is_calmed() {
            let _ = timeout(CALM_TIME_MAX, calmed).await;
        }
    });
    drop((runtime, attacker));
    counts.processor_seconds.set(seconds(ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_err(io::Error::from)?));
    Rc::try_unwrap(counts).map_err(|_| BenchError::Load("a connection of the attacker is still in use".into()))
}

struct Attacker {
    attack: Attack,
    aim: Aim,
    rates: AttackRates,
    /// Held by each connection that opens, for its part of a second.
    opening: Mutex<()>,
    counts: Rc<AttackCounts>,
}

impl Attacker {
    /// Opens a connection, attacks, and opens another when the server closes it.
    async fn reopen(self: Rc<Self>) {
        loop {
            {
                let _opening = self.opening.lock().await;
                sleep(Duration::from_secs(1) / self.rates.opens.max(1)).await;
            }
            add(&self.counts.connections, 1);
            if let Ok(stream) = self.open().await {
                let goaways = self.use_connection(stream).await;
                add(&self.counts.calmed, u64::from(goaways.is_calmed));
            }
            add(&self.counts.closed, 1);
        }
    }

    async fn open(&self) -> io::Result<Box<dyn Duplex>> {
        let has_handshake = !matches!(self.attack, Attack::Slow(Slow::Silent | Slow::Handshake));
        connect(&self.aim.address, self.aim.tls.as_ref().filter(|_| has_handshake)).await
    }

    /// Attacks until the server closes the connection.
    async fn use_connection(&self, stream: Box<dyn Duplex>) -> GoawayReader {
        let (reader, writer) = tokio::io::split(stream);
        let mut goaways = GoawayReader::default();
        let write = async {
            match self.attack {
                Attack::Flood(flood) => self.flood(flood, writer).await,
                Attack::Slow(slow) => self.drip(slow, writer).await,
            }
        };
        let reads = self.attack != Attack::Flood(Flood::UnreadPing);
        {
            let mut read = std::pin::pin!(read_to_end(reader, &mut goaways));
            tokio::select! {
                () = &mut read, if reads => {}
                // The server has closed, and its last frame may wait.
                _ = write => {
                    let _ = timeout(LAST_READ_TIME_MAX, read).await;
                }
            }
        }
        goaways
    }

    /// Writes frames at the rate until a write fails.
    async fn flood(&self, flood: Flood, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        let mut made = FloodFrames::new(flood, head_for(self.aim.target));
        writer.write_all(&made.begin()).await?;
        let writes = if flood == Flood::PacedReset { PACED_WRITES_A_SECOND } else { WRITES_A_SECOND };
        let count = (self.rates.frames / FLOOD_CONNECTIONS / writes).max(1);
        let mut ticks = interval(Duration::from_secs(1) / writes);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut bytes = Vec::new();
        loop {
            ticks.tick().await;
            bytes.clear();
            let count = made.append(&mut bytes, count);
            writer.write_all(&bytes).await?;
            writer.flush().await?;
            add(&self.counts.frames, count);
        }
    }

    /// Writes the beginning of a request, then a byte a second, until a write fails.
    async fn drip(&self, slow: Slow, mut writer: impl AsyncWrite + Unpin) -> io::Result<()> {
        let begin = match slow {
            Slow::Silent => return std::future::pending().await,
            Slow::Handshake => CLIENT_HELLO_CUT.to_vec(),
            Slow::Http1Headers => HTTP1_HEAD_CUT.to_vec(),
            Slow::Headers => head_for(self.aim.target).cut_in_headers(),
            Slow::Body => head_for(self.aim.target).with_open_body(),
        };
        writer.write_all(&begin).await?;
        loop {
            writer.flush().await?;
            sleep(SLOW_BYTE_EVERY).await;
            writer.write_all(b"a").await?;
            add(&self.counts.frames, 1);
        }
    }
}

fn head_for(target: Target) -> RequestHead {
    match target {
        Target::Edge => RequestHead { path: "/pin/v3/set?auditUser=flood", content_type: "application/json" },
        Target::Engine => RequestHead { path: "/pinseal.v1.PinService/SetPin", content_type: "application/grpc" },
    }
}

async fn read_to_end(mut reader: impl AsyncRead + Unpin, goaways: &mut GoawayReader) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = reader.read(&mut bytes).await {
        goaways.push(bytes.get(..length).unwrap_or_default());
    }
}
