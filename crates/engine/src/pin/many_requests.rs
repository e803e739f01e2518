//! Many requests to the boundary at a time: the records of a rotation, the items of a stream.

use std::{iter, sync::OnceLock};

use futures::{StreamExt, stream};

use super::Pins;
use hsm_protocol::{Error, Persistence, Reply, Request, TOGETHER_MAX};

/// The most frames of several requests that wait for the boundary: while it executes one, it has the next.
const FRAMES_AT_ONCE: usize = 4;

impl Pins {
    /// Executes each request. The results are in the order of the requests. After a request that was not answered, no further one
    /// is sent: these have the same error.
    ///
    /// A PKCS#11 token gets each request in a frame of its own, `alone_at_once` of them at a time: each waits for a session of the
    /// token, and a call of a cardholder waits for single requests, not for many.
    pub(super) async fn execute_all(&self, requests: Vec<Request>, alone_at_once: usize) -> Vec<Result<Reply, Error>> {
        let stop = StopAtUnanswered::default();
        match self.boundary.status().persistence {
            Persistence::Token => {
                let replies =
                    stream::iter(requests).map(|request| stop.pass(1, async { vec![self.execute(request).await] }));
                replies.buffered(alone_at_once.max(1)).flat_map(stream::iter).collect().await
            }
            Persistence::Vault | Persistence::Memory => {
                let mut left = requests.into_iter().peekable();
                let frames = iter::from_fn(|| {
                    left.peek()?;
                    Some(left.by_ref().take(TOGETHER_MAX).collect::<Vec<_>>())
                });
                let replies =
                    stream::iter(frames).map(|requests| stop.pass(requests.len(), self.execute_together(requests)));
                replies.buffered(FRAMES_AT_ONCE).flat_map(stream::iter).collect().await
            }
        }
    }

    /// Executes the requests in one frame.
    async fn execute_together(&self, requests: Vec<Request>) -> Vec<Result<Reply, Error>> {
        let count = requests.len();
        match self.execute(Request::Together { requests }).await {
            Ok(Reply::Together(results)) => results,
            Ok(_) => iter::repeat_with(|| Err(Error::UnexpectedReply)).take(count).collect(),
            Err(error) => iter::repeat_with(|| Err(again(&error))).take(count).collect(),
        }
    }
}

/// Keeps the frames behind an unanswered one from being sent.
#[derive(Default)]
struct StopAtUnanswered(OnceLock<Error>);

impl StopAtUnanswered {
    /// The results of a frame of `count` requests, which is sent at the first poll unless an earlier one was not answered.
    async fn pass(
        &self,
        count: usize,
        frame: impl Future<Output = Vec<Result<Reply, Error>>>,
    ) -> Vec<Result<Reply, Error>> {
        if let Some(error) = self.0.get() {
            return iter::repeat_with(|| Err(again(error))).take(count).collect();
        }
        let results = frame.await;
        if let Some(Err(error)) = results.last()
            && is_unanswered(error)
        {
            // An error: another frame of those in flight was not answered before.
            let _ = self.0.set(again(error));
        }
        results
    }
}

/// Whether the boundary did not answer, so that it does not answer a further frame either.
fn is_unanswered(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::Busy { .. } | Error::DeadlinePassed)
}

/// The error of a frame, for another request of it.
fn again(error: &Error) -> Error {
    match error {
        Error::Unavailable { reason } => Error::Unavailable { reason: reason.clone() },
        Error::Busy { limit } => Error::Busy { limit: *limit },
        Error::DeadlinePassed => Error::DeadlinePassed,
        _ => Error::UnexpectedReply,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn nothing_is_sent_behind_a_request_that_was_not_answered() {
        let (sent, stop) = (Cell::new(0), StopAtUnanswered::default());
        let frames =
            [Ok(Reply::Available), Err(Error::UnknownKey), Err(Error::Busy { limit: 9 }), Ok(Reply::Available)];
        let frames = stream::iter(frames).map(|result| {
            stop.pass(1, async {
                sent.set(sent.get() + 1);
                vec![result]
            })
        });
        let results: Vec<_> = frames.buffered(1).flat_map(stream::iter).collect().await;
        let [Ok(Reply::Available), Err(Error::UnknownKey), rest @ ..] = &results[..] else { panic!("other results") };
        assert_eq!((sent.get(), rest.len()), (3, 2));
        assert!(rest.iter().all(|result| matches!(result, Err(Error::Busy { limit: 9 }))));
    }

    #[tokio::test]
    async fn a_reply_behind_a_request_that_was_not_answered_is_kept() {
        let stop = StopAtUnanswered::default();
        let frames = [Err(Error::Busy { limit: 9 }), Ok(Reply::Available), Ok(Reply::Available)];
        let frames = stream::iter(frames).map(|result| {
            stop.pass(1, async {
                // The frames behind are sent now.
                tokio::task::yield_now().await;
                vec![result]
            })
        });
        let results: Vec<_> = frames.buffered(3).flat_map(stream::iter).collect().await;
        assert!(matches!(&results[..], [Err(Error::Busy { limit: 9 }), Ok(_), Ok(_)]), "a reply is lost");
    }
}
