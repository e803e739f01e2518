//! Many requests to the boundary at a time: the records of a rotation, the items of a stream.

use std::iter;

use futures::{StreamExt, stream};

use super::Pins;
use hsm_protocol::{Error, Persistence, Reply, Request, TOGETHER_MAX};

/// The most frames of several requests that wait for the boundary: while it executes one, it has the next.
const FRAMES_AT_ONCE: usize = 4;

impl Pins {
    /// Executes each request. The results are in the order of the requests. Behind a request that was not answered, the rest is not
    /// sent any more, and has the same error.
    ///
    /// A PKCS#11 token gets each request in a frame of its own, `alone_at_once` of them at a time: each waits for a session of the
    /// token, and a call of a cardholder waits for single requests, not for many.
    pub(super) async fn execute_all(&self, requests: Vec<Request>, alone_at_once: usize) -> Vec<Result<Reply, Error>> {
        let count = requests.len();
        match self.boundary.status().persistence {
            Persistence::Token => {
                let replies = stream::iter(requests).map(async |request| vec![self.execute(request).await]);
                in_order(replies.buffered(alone_at_once.max(1)), count).await
            }
            Persistence::Vault | Persistence::Memory => {
                let mut left = requests.into_iter().peekable();
                let frames = iter::from_fn(|| {
                    left.peek()?;
                    Some(left.by_ref().take(TOGETHER_MAX).collect::<Vec<_>>())
                });
                let replies = stream::iter(frames).map(|requests| self.execute_together(requests));
                in_order(replies.buffered(FRAMES_AT_ONCE), count).await
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

/// The results of all frames, at most up to the first request that was not answered; the others have its error.
async fn in_order(
    frames: impl stream::Stream<Item = Vec<Result<Reply, Error>>>,
    count: usize,
) -> Vec<Result<Reply, Error>> {
    let mut frames = std::pin::pin!(frames);
    let mut results = Vec::with_capacity(count);
    while let Some(frame) = frames.next().await {
        results.extend(frame);
        if let Some(Err(error)) = results.last()
            && is_unanswered(error)
        {
            let error = again(error);
            results.extend(iter::repeat_with(|| Err(again(&error))).take(count.saturating_sub(results.len())));
            break;
        }
    }
    results
}

/// Whether the boundary executed nothing.
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
        let sent = Cell::new(0);
        let frames =
            [Ok(Reply::Available), Err(Error::UnknownKey), Err(Error::Busy { limit: 9 }), Ok(Reply::Available)];
        let frames = stream::iter(frames).map(|result| {
            sent.set(sent.get() + 1);
            vec![result]
        });
        let results = in_order(frames, 6).await;
        let [Ok(Reply::Available), Err(Error::UnknownKey), rest @ ..] = &results[..] else { panic!("other results") };
        assert_eq!((sent.get(), rest.len()), (3, 4));
        assert!(rest.iter().all(|result| matches!(result, Err(Error::Busy { limit: 9 }))));
    }
}
