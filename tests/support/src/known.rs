//! The PINs that clients know to be set while processes are killed, and the check that the engine still has them.

use std::{collections::HashMap, time::Duration};

use device::Device;
use tonic::{Code, Status};

use crate::engine_process::{Client, reason};

/// The results of the clients' calls.
#[derive(Default)]
pub struct Known {
    /// Card → the PIN that was acknowledged last.
    acknowledged: HashMap<String, String>,
    /// Card → PINs sent since, whose reply was lost: each may or may not have been set.
    unanswered: HashMap<String, Vec<String>>,
    /// Controls that set a PIN, and a block other than theirs.
    spent: Vec<(String, [u8; 8])>,
}

impl Known {
    /// How many PINs were acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.spent.len()
    }

    /// Records the result of a set. Returns the status if the reply was lost: neither success nor a refusal by the policy.
    pub fn note(
        &mut self,
        (card, pin): (String, String),
        spent: (String, [u8; 8]),
        outcome: Result<(), Status>,
    ) -> Result<(), Status> {
        match outcome {
            Ok(()) => {
                self.unanswered.remove(&card);
                self.acknowledged.insert(card, pin);
                self.spent.push(spent);
            }
            Err(status) if status.code() == Code::FailedPrecondition => {
                assert_eq!(reason(&status), "PIN_REFUSED", "only the policy may refuse a PIN of this load");
            }
            Err(status) => {
                self.unanswered.entry(card).or_default().push(pin);
                return Err(status);
            }
        }
        Ok(())
    }

    /// Asserts that every acknowledged PIN can be viewed, and that no spent control sets another PIN.
    pub async fn assert_kept(&self, client: &mut Client, device: &Device) {
        for (card, pin) in &self.acknowledged {
            let kept = once_there(async || client.view(device, card).await).await.unwrap();
            let perhaps = self.unanswered.get(card).is_some_and(|pins| pins.contains(&kept));
            assert!(kept == *pin || perhaps, "card {card}: the acknowledged PIN is lost");
        }
        for (control, other_block) in &self.spent {
            let again = once_there(async || client.set_block(control, other_block).await).await;
            let again = again.expect_err("a spent control was used again");
            assert_eq!((again.code(), &*reason(&again)), (Code::NotFound, "CONTROL_NOT_USABLE"));
        }
    }
}

/// Repeats the call while the boundary does not answer: a busy machine may be slow to restart it.
async fn once_there<T>(mut ask: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    for _ in 0..400 {
        match ask().await {
            Err(status) if status.code() == Code::Unavailable => tokio::time::sleep(Duration::from_millis(50)).await,
            answer => return answer,
        }
    }
    ask().await
}
