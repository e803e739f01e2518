//! Many requests to the boundary at a time: the records of a rotation, the items of a stream.

use futures::{StreamExt, stream};

use super::Pins;
use hsm_protocol::{Error, Persistence, Reply, Request, TOGETHER_MAX};

/// How many requests are sent to the boundary.
struct Sending {
    /// The most requests of one frame.
    together: usize,
    /// The most frames that wait for the boundary.
    at_once: usize,
}

impl Sending {
    fn to(persistence: Persistence) -> Self {
        match persistence {
            // Each frame waits for a session of the token: a call of a cardholder waits for single requests, not for many. Fewer
            // frames than may wait for a token, so that calls still fit in its queue.
            Persistence::Token => Self { together: 1, at_once: 32 },
            // The boundary's thread executes all requests of one read before the next call.
            Persistence::Vault | Persistence::Memory => Self { together: TOGETHER_MAX, at_once: 4 },
        }
    }
}

impl Pins {
    /// Executes each request. The results are in the order of the requests.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Busy`] or [`Error::DeadlinePassed`], where no reply came to a frame of several requests.
    pub(super) async fn execute_all(&self, requests: Vec<Request>) -> Result<Vec<Result<Reply, Error>>, Error> {
        let Sending { together, at_once } = Sending::to(self.boundary.status().persistence);
        let mut results = Vec::with_capacity(requests.len());
        if together == 1 {
            let mut replies = stream::iter(requests).map(|request| self.execute(request)).buffered(at_once);
            while let Some(result) = replies.next().await {
                results.push(result);
            }
            return Ok(results);
        }
        let mut left = requests.into_iter().peekable();
        let frames = std::iter::from_fn(|| {
            left.peek()?;
            Some(self.execute(Request::Together { requests: left.by_ref().take(together).collect() }))
        });
        let mut replies = stream::iter(frames).buffered(at_once);
        while let Some(reply) = replies.next().await {
            match reply? {
                Reply::Together(several) => results.extend(several),
                _ => return Err(Error::UnexpectedReply),
            }
        }
        Ok(results)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_gets_each_request_alone() {
        assert_eq!(Sending::to(Persistence::Token).together, 1);
        assert_eq!(Sending::to(Persistence::Vault).together, TOGETHER_MAX);
    }
}
