//! The processor time of a request by stage, from the clocks of the threads that do the work.

use std::{fs, io, process};

use super::processor_time::{own_processor_seconds, processor_seconds_of};

/// A stage of a request, and the processes and threads that work on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The client of the bench, and what no other stage has.
    Client,
    /// HTTP, JSON and credentials, and the gRPC client of the engine; or the server of the HTTP echo.
    Edge,
    /// The gRPC server of the engine, and its rules; or that of the gRPC echo.
    Engine,
    /// The writer and the upkeep of the store.
    Store,
    /// The process of the key boundary.
    Boundary,
}

impl Stage {
    /// All stages, in the order of a request.
    pub(super) const ALL: [Self; 5] = [Self::Client, Self::Edge, Self::Engine, Self::Store, Self::Boundary];

    /// The name in the table.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Edge => "edge",
            Self::Engine => "engine",
            Self::Store => "store",
            Self::Boundary => "boundary",
        }
    }

    /// The stage of a thread of this process, by the start of its name.
    fn of_thread(name: &str) -> Option<Self> {
        const THREADS: [(&str, Stage); 6] = [
            ("edge", Stage::Edge),
            ("serve", Stage::Engine),
            ("accept", Stage::Engine),
            ("store", Stage::Store),
            ("fjall", Stage::Store),
            ("hsm", Stage::Boundary),
        ];
        THREADS.into_iter().find(|(start, _)| name.starts_with(start)).map(|(_, stage)| stage)
    }
}

/// Seconds of processor time, in the order of [`Stage::ALL`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct StageTimes([f64; Stage::ALL.len()]);

impl StageTimes {
    /// The times since the start of this process and of the boundary.
    ///
    /// # Errors
    /// `/proc` can't be read.
    pub(super) fn now() -> io::Result<Self> {
        let (mut times, mut known) = (Self::default(), 0.0);
        let all = processor_seconds_of(process::id())?;
        for thread in fs::read_dir("/proc/self/task")? {
            let path = thread?.path();
            let read = fs::read_to_string(path.join("comm"))
                .and_then(|name| Ok((name, fs::read_to_string(path.join("schedstat"))?)));
            // A thread that has ended did its work for the client.
            let Ok((name, times_of_thread)) = read else { continue };
            // The first number is the time on a processor, in nanoseconds (proc(5)).
            let seconds = times_of_thread.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or(0.0) / 1e9;
            if let Some(stage) = Stage::of_thread(&name) {
                *times.of_mut(stage) += seconds;
                known += seconds;
            }
        }
        let boundary = all - own_processor_seconds()?;
        *times.of_mut(Stage::Boundary) += boundary;
        *times.of_mut(Stage::Client) = all - boundary - known;
        Ok(times)
    }

    /// The times from `before` to these.
    pub(super) fn since(self, before: Self) -> Self {
        let mut times = self;
        for (time, before) in times.0.iter_mut().zip(before.0) {
            *time -= before;
        }
        times
    }

    /// The time of a stage, in seconds.
    pub(super) fn of(&self, stage: Stage) -> f64 {
        Stage::ALL.iter().position(|known| *known == stage).and_then(|at| self.0.get(at)).copied().unwrap_or_default()
    }

    /// The time of several stages, in seconds.
    pub(super) fn of_all(&self, stages: &[Stage]) -> f64 {
        stages.iter().map(|stage| self.of(*stage)).sum()
    }

    fn of_mut(&mut self, stage: Stage) -> &mut f64 {
        let [client, edge, engine, store, boundary] = &mut self.0;
        match stage {
            Stage::Client => client,
            Stage::Edge => edge,
            Stage::Engine => engine,
            Stage::Store => store,
            Stage::Boundary => boundary,
        }
    }
}
