//! Distributes calls over the engines, and sends a call again that no engine has processed.

use std::{
    error::Error,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tonic::{ConnectError, body::Body, transport::Channel};
use tower::{Service, ServiceExt};

use crate::engines::{Engines, NoEngineAnswers, NotCarriedOut};

/// A channel for calls with one request message, over one engine or several that share a store. Each call goes to the usable
/// engine with the fewest calls in flight; the clones of a channel count together.
///
/// A call is sent again, to another engine if there is one, only if HTTP/2 guarantees that the first engine did not process it
/// (RFC 9113, 6.8 and 8.7), or if no connection to that engine could be opened. An engine closes each connection at its maximum
/// age, and all connections when it stops, with GOAWAY: the caller of a call that crossed it sees no error. Any other call may
/// have had an effect, and its error goes to the caller, also where the error is UNAVAILABLE.
#[derive(Clone)]
pub struct EngineChannel {
    engines: Engines,
    /// The channel to each engine, in the order of [`Engines::endpoints`].
    channels: Arc<[Channel]>,
}

impl From<Channel> for EngineChannel {
    fn from(channel: Channel) -> Self {
        Self::over([channel])
    }
}

impl EngineChannel {
    /// A channel over the engines at the other ends of these channels.
    pub fn over(channels: impl IntoIterator<Item = Channel>) -> Self {
        let channels: Arc<[_]> = channels.into_iter().collect();
        Self { engines: Engines::new(channels.len()), channels }
    }

    /// A channel over engines that other clients call too: each has a channel of its own, in the order of
    /// [`Engines::endpoints`].
    pub fn to(engines: Engines, channels: impl IntoIterator<Item = Channel>) -> Self {
        Self { engines, channels: channels.into_iter().collect() }
    }

    /// The engines, in the order of [`EngineChannel::over`].
    pub fn engines(&self) -> &Engines {
        &self.engines
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Body>, Box<dyn Error + Send + Sync>> {
        let (parts, body) = request.into_parts();
        let message = body.collect().await?.to_bytes();
        let mut attempts = self.engines.attempts();
        let mut failed: Option<tonic::transport::Error> = None;
        loop {
            let next = attempts.next().and_then(|engine| Some((self.channels.get(engine.number)?.clone(), engine)));
            let Some((mut channel, engine)) = next else {
                return Err(failed.map_or_else(|| ConnectError(NoEngineAnswers.into()).into(), Into::into));
            };
            let request = Request::from_parts(parts.clone(), Body::new(Full::new(message.clone())));
            let error = match channel.ready().await?.call(request).await {
                Err(error) => error,
                Ok(answer) => return Ok(answer),
            };
            if !NotCarriedOut::of(&error).is_some_and(|reason| attempts.may_repeat(&engine, reason)) {
                return Err(error.into());
            }
            tracing::debug!(%error, "a call is sent again: the engine did not process it");
            failed = Some(error);
        }
    }
}

impl Service<Request<Body>> for EngineChannel {
    type Response = Response<Body>;
    type Error = Box<dyn Error + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::{EngineState, connect::channel};

    const PREFACE_BYTES: usize = 24;
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    /// `:status: 200` on stream 1, the whole answer.
    const ANSWER: [u8; 10] = [0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 0x88];
    /// `:status: 200` and `grpc-status: 14` (UNAVAILABLE) on stream 1, the whole answer.
    const UNAVAILABLE: [u8; 26] = *b"\0\0\x11\x01\x05\0\0\0\x01\x88\0\x0bgrpc-status\x0214";
    /// [`ANSWER`] and GOAWAY, so that the next call needs another connection.
    const LAST_ANSWER: [u8; 27] = *b"\0\0\x01\x01\x05\0\0\0\x01\x88\0\0\x08\x07\0\0\0\0\0\0\0\0\x01\0\0\0\0";
    /// Stream 1 is refused (REFUSED_STREAM), and the connection ends.
    const REFUSED: [u8; 30] =
        [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0];
    /// RST_STREAM of stream 1 with an error code.
    const fn reset(code: u8) -> [u8; 13] {
        [0, 0, 4, 3, 0, 0, 0, 0, 1, 0, 0, 0, code]
    }
    /// GOAWAY with a last stream and an error code.
    const fn goaway(last: u8, code: u8) -> [u8; 17] {
        [0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, last, 0, 0, 0, code]
    }

    /// Reads frames up to the headers of the first request, and writes these bytes. Reads until the client ends.
    async fn serve(mut stream: TcpStream, words: &[u8]) -> std::io::Result<()> {
        stream.read_exact(&mut [0; PREFACE_BYTES]).await?;
        stream.write_all(&[SETTINGS, SETTINGS_ACK].concat()).await?;
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await?;
            let [_, high, low, kind, ..] = head;
            stream.read_exact(&mut vec![0; usize::from(u16::from_be_bytes([high, low]))]).await?;
            if kind == HEADERS {
                break;
            }
        }
        stream.write_all(words).await?;
        tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
    }

    #[tokio::test]
    async fn an_idle_connection_without_an_answer_to_ping_ends() {
        let (listener, channel) = listener().await;
        let peer = tokio::spawn(async move { serve(listener.accept().await.unwrap().0, &ANSWER).await });
        let channel = EngineChannel::from(channel);
        assert!(call(&channel).await);
        // The peer sends no frame any more, and reads until the connection ends.
        tokio::time::timeout(std::time::Duration::from_secs(60), peer).await.unwrap().unwrap().unwrap();
        drop(channel);
    }

    /// A listener, and a channel to it.
    async fn listener() -> (TcpListener, Channel) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        (listener, channel(&address.parse().unwrap(), None).unwrap())
    }

    /// A channel to an address on which no process listens.
    async fn unreachable() -> Channel {
        listener().await.1
    }

    /// An engine that answers the first request of each connection with these bytes: its channel, and the number of its
    /// connections.
    async fn engine(words: &'static [u8]) -> (Channel, Arc<AtomicUsize>) {
        let (listener, channel) = listener().await;
        let connections = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&connections);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(serve(stream, words));
            }
        });
        (channel, connections)
    }

    /// Whether a call over this channel succeeds.
    async fn call(channel: &EngineChannel) -> bool {
        channel.clone().call(Request::new(Body::new(Full::from("message")))).await.is_ok()
    }

    /// Whether a call succeeds if the first connection answers it with these bytes, and how many connections it needs.
    async fn call_answered_by(words: &'static [u8]) -> (bool, usize) {
        let (listener, channel) = listener().await;
        let accepted = tokio::spawn(async move {
            let mut connections = 0;
            for words in [words, &ANSWER] {
                let (stream, _) = listener.accept().await.unwrap();
                connections += 1;
                tokio::spawn(async move { serve(stream, words).await });
            }
            connections
        });
        let succeeds = call(&channel.into()).await;
        let connections = if accepted.is_finished() { accepted.await.unwrap() } else { 1 };
        (succeeds, connections)
    }

    #[tokio::test]
    async fn an_unprocessed_call_is_sent_again_on_a_new_connection() {
        // The last stream of the GOAWAY is below that of the call.
        assert_eq!(call_answered_by(const { &goaway(0, 0) }).await, (true, 2));
        assert_eq!(call_answered_by(&REFUSED).await, (true, 2));
    }

    #[tokio::test]
    async fn a_call_that_may_have_had_an_effect_is_not_sent_again() {
        assert_eq!(call_answered_by(&ANSWER).await, (true, 1));
        // INTERNAL_ERROR, CANCEL; GOAWAY with PROTOCOL_ERROR.
        assert_eq!(call_answered_by(const { &reset(2) }).await, (false, 1));
        assert_eq!(call_answered_by(const { &reset(8) }).await, (false, 1));
        assert_eq!(call_answered_by(const { &goaway(0, 1) }).await, (false, 1));
    }

    /// Whether a call succeeds if the first of two engines answers it with these bytes, and how many connections each gets.
    async fn call_of_two(words: &'static [u8]) -> (bool, [usize; 2]) {
        let ((first, first_connections), (other, other_connections)) =
            (engine(words).await, engine(&LAST_ANSWER).await);
        let succeeds = call(&EngineChannel::over([first, other])).await;
        (succeeds, [first_connections, other_connections].map(|connections| connections.load(Ordering::SeqCst)))
    }

    #[tokio::test]
    async fn an_unprocessed_call_is_sent_to_another_engine() {
        assert_eq!(call_of_two(const { &goaway(0, 0) }).await, (true, [1, 1]));
        assert_eq!(call_of_two(&REFUSED).await, (true, [1, 1]));
    }

    #[tokio::test]
    async fn a_call_that_may_have_had_an_effect_reaches_one_engine() {
        // An answer with grpc-status UNAVAILABLE is an answer too.
        assert_eq!(call_of_two(&ANSWER).await, (true, [1, 0]));
        assert_eq!(call_of_two(&UNAVAILABLE).await, (true, [1, 0]));
        assert_eq!(call_of_two(const { &reset(2) }).await, (false, [1, 0]));
        assert_eq!(call_of_two(const { &reset(8) }).await, (false, [1, 0]));
        assert_eq!(call_of_two(const { &goaway(0, 1) }).await, (false, [1, 0]));
    }

    #[tokio::test]
    async fn a_call_goes_past_engines_that_cannot_be_reached() {
        let (serving, connections) = engine(&LAST_ANSWER).await;
        let channel = EngineChannel::over([unreachable().await, unreachable().await, unreachable().await, serving]);
        for _ in 0..4 {
            assert!(call(&channel).await);
        }
        assert!(connections.load(Ordering::SeqCst) > 0);
        assert!(!call(&EngineChannel::over([unreachable().await, unreachable().await])).await);
    }

    #[tokio::test]
    async fn calls_go_past_an_engine_that_accepts_and_sends_nothing() {
        let (listener, silent) = listener().await;
        let held = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&held);
        tokio::spawn(async move {
            let mut streams = Vec::new();
            loop {
                streams.push(listener.accept().await.unwrap());
                counted.fetch_add(1, Ordering::SeqCst);
            }
        });
        let (serving, _) = engine(&LAST_ANSWER).await;
        assert!(call(&EngineChannel::over([silent.clone(), serving])).await);
        // Calls that wait for the same connection fail together: they do not wait for one timeout after the other.
        let (before, silent) = (held.load(Ordering::SeqCst), EngineChannel::from(silent));
        let answered = futures::future::join_all((0..8).map(|_| call(&silent))).await;
        assert_eq!(answered, [false; 8]);
        assert!(held.load(Ordering::SeqCst) - before < 4, "{held:?}");
    }

    #[tokio::test]
    async fn a_connection_that_ends_before_http2_carries_no_call() {
        // As for an engine that stops between the accept of the operating system and its own.
        let (listener, stopping) = listener().await;
        let accepted = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.read_exact(&mut [0; PREFACE_BYTES]).await.unwrap();
            assert_eq!(stream.try_read(&mut [0; 1]).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
        });
        let (serving, connections) = engine(&LAST_ANSWER).await;
        assert!(call(&EngineChannel::over([stopping, serving])).await);
        accepted.await.unwrap();
        assert_eq!(connections.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_engine_gets_calls_by_its_state() {
        let ((first, first_connections), (other, other_connections)) =
            (engine(&LAST_ANSWER).await, engine(&LAST_ANSWER).await);
        let channel = EngineChannel::over([first, other]);
        let [of_first, of_other] = channel.engines().endpoints() else { panic!("two engines") };
        for engine in [of_first, of_other] {
            // An engine that was not checked yet gets no call beside a usable one.
            assert_eq!(engine.set_state(EngineState::Usable), EngineState::LastResort);
        }
        let counts = || [&first_connections, &other_connections].map(|connections| connections.load(Ordering::SeqCst));
        for state in [EngineState::LastResort, EngineState::Silent] {
            assert_eq!(of_first.set_state(state), EngineState::Usable);
            for _ in 0..4 {
                assert!(call(&channel).await);
            }
            assert_eq!(counts()[0], 0);
            of_first.set_state(EngineState::Usable);
        }
        of_first.set_state(EngineState::LastResort);
        of_other.set_state(EngineState::Silent);
        assert!(call(&channel).await);
        assert_eq!(counts()[0], 1);

        of_first.set_state(EngineState::Silent);
        let refused = channel.clone().call(Request::new(Body::empty())).await.unwrap_err();
        let status = tonic::Status::from_error(refused);
        assert_eq!(status.code(), tonic::Code::Unavailable);
    }
}
