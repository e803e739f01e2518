//! Sends a call again that an engine has not processed, because its connection ended at its maximum age.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use h2::Reason;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tonic::{body::Body, transport::Channel};
use tower::{Service, ServiceExt};

/// How often a call is sent at most. The second connection is new, so a third is needed only if an engine refuses streams.
const SENDS_MAX: u32 = 3;

/// A channel for calls with one request message. An engine closes each connection at its maximum age with GOAWAY; a call that
/// this channel was sending at that moment goes over the next connection, and its caller sees no error.
///
/// A call is sent again only if HTTP/2 guarantees that the engine did not process it (RFC 9113, 6.8 and 8.7). Any other call
/// may have had an effect, and its error goes to the caller.
#[derive(Clone)]
pub struct EngineChannel(Channel);

impl From<Channel> for EngineChannel {
    fn from(channel: Channel) -> Self {
        Self(channel)
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
        let mut channel = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let message = body.collect().await?.to_bytes();
            let mut sent = 1;
            loop {
                let request = Request::from_parts(parts.clone(), Body::new(Full::new(message.clone())));
                match channel.ready().await?.call(request).await {
                    Err(error) if sent < SENDS_MAX && is_unprocessed(&error) => {
                        tracing::debug!(%error, "a call is sent again: the engine did not process it");
                        sent += 1;
                    }
                    answer => return answer.map_err(Into::into),
                }
            }
        })
    }
}

/// Whether the engine did not process the call that failed with this error.
fn is_unprocessed(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<hyper::Error>()
            && error.is_canceled()
        {
            // hyper did not send the request: the connection ended while the request waited for its stream.
            return true;
        }
        error.downcast_ref::<h2::Error>().is_some_and(|error| {
            // A stream above the last one that the peer names in GOAWAY, or a stream that it refuses.
            let goes_away = error.is_go_away() && error.reason() == Some(Reason::NO_ERROR);
            error.is_remote() && (goes_away || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
        })
    })
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::connect::channel;

    const PREFACE_BYTES: usize = 24;
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const HEADERS: u8 = 1;
    /// `:status: 200` on stream 1, the whole answer.
    const ANSWER: [u8; 10] = [0, 0, 1, HEADERS, 5, 0, 0, 0, 1, 0x88];
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

    /// Whether a call succeeds if the first connection answers it with these bytes, and how many connections it needs.
    async fn call_answered_by(words: &'static [u8]) -> (bool, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let accepted = tokio::spawn(async move {
            let mut connections = 0;
            for words in [words, &ANSWER] {
                let (stream, _) = listener.accept().await.unwrap();
                connections += 1;
                tokio::spawn(async move { serve(stream, words).await });
            }
            connections
        });
        let mut channel = EngineChannel::from(channel(&address.parse().unwrap(), None).unwrap());
        let answer = channel.call(Request::new(Body::new(Full::from("message")))).await;
        let connections = if accepted.is_finished() { accepted.await.unwrap() } else { 1 };
        (answer.is_ok(), connections)
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
}
