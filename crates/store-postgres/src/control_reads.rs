//! Reads of controls, one before each set and view. Those that arrive while a read is in flight share the next one, so that a
//! busy engine asks the database once for many.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex},
};

use tokio::sync::oneshot;
use tokio_postgres::Row;
use uuid::Uuid;

use super::{
    batch::with_account,
    connection::{QueryError, column},
    locked,
    reader::Reader,
    sql, unavailable,
};
use domain::control::{Control, ControlId};
use store::StoreError;
use store::codec::{decode_card, decode_control};

/// The controls that are read at a time.
const CONTROLS_MAX: usize = 256;

pub(crate) struct ControlReads {
    reader: Arc<Reader>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<Caller>,
    is_reading: bool,
}

struct Caller {
    id: ControlId,
    answer: oneshot::Sender<Result<Option<Control>, StoreError>>,
}

/// Answers the callers until none waits. Where its task is dropped before, the callers' channels close.
struct Reading {
    reads: Arc<ControlReads>,
    has_ended: bool,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        let mut waiting = locked(&self.reads.waiting);
        waiting.is_reading = false;
        waiting.callers.clear();
    }
}

impl ControlReads {
    pub(crate) fn new(reader: Arc<Reader>) -> Self {
        Self { reader, waiting: Mutex::default() }
    }

    /// A control; `None` where it is unknown.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`]: the database does not answer, or the store has ended.
    pub(crate) async fn read(self: &Arc<Self>, id: ControlId) -> Result<Option<Control>, StoreError> {
        let (answer, answered) = oneshot::channel();
        let is_reading = {
            let mut waiting = locked(&self.waiting);
            waiting.callers.push(Caller { id, answer });
            mem::replace(&mut waiting.is_reading, true)
        };
        if !is_reading {
            let reading = Reading { reads: Arc::clone(self), has_ended: false };
            self.reader.runtime.spawn(reading.run());
        }
        answered.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the store has ended".to_owned())))
    }

    /// The next callers; `None` where none waits, and then the reading has ended.
    fn take(&self) -> Option<Vec<Caller>> {
        let mut waiting = locked(&self.waiting);
        let count = waiting.callers.len().min(CONTROLS_MAX);
        waiting.is_reading = count > 0;
        (count > 0).then(|| waiting.callers.drain(..count).collect())
    }

    async fn find(&self, callers: &[Caller]) -> Result<HashMap<Uuid, Control>, QueryError> {
        let ids: Vec<_> = callers.iter().map(|caller| uuid_of(caller.id)).collect();
        let rows = self.reader.read(sql::CONTROLS, &[&ids]).await?;
        let controls = rows.iter().filter_map(|row| control_of(row).transpose());
        controls.collect()
    }
}

impl Reading {
    async fn run(mut self) {
        while let Some(callers) = self.reads.take() {
            let found = self.reads.find(&callers).await.map_err(unavailable);
            for Caller { id, answer } in callers {
                let control = found.as_ref().map(|found| found.get(&uuid_of(id)).cloned());
                // A caller may have gone.
                let _ = answer.send(control.map_err(Clone::clone));
            }
        }
        // `take` has noted the end, so another reading may have begun.
        self.has_ended = true;
    }
}

fn uuid_of(id: ControlId) -> Uuid {
    Uuid::from_bytes(*id.as_bytes())
}

/// A row of [`sql::CONTROLS`]; `None` where its bytes can't be read.
fn control_of(row: &Row) -> Result<Option<(Uuid, Control)>, QueryError> {
    let (id, control, card): (Uuid, &[u8], Option<&[u8]>) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
    let control = decode_control(control);
    Ok(control.map(|control| (id, with_account(control, card.and_then(decode_card).as_ref()))))
}
