//! What callers heard of their calls, and whether it is so.

use std::collections::HashMap;
use std::fmt::Debug;
use std::time::Duration;

use task_retry::{CallError, CauseKind, Enqueued, ErrorKind, Filter, Status};

use crate::within;
use crate::worker::{Entry, Event, Scene};

/// What a caller heard of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It was accepted.
    Stored,
    /// It was not.
    Rejected,
    /// Nobody can tell.
    Uncertain,
}

impl Heard {
    /// Of an awaited call.
    pub fn of_call<E: Debug>(number: u64, result: Result<(), CallError<E>>) -> Self {
        match result {
            Ok(()) => Self::Stored,
            Err(CallError::Rejected(_)) => Self::Rejected,
            Err(CallError::Uncertain { .. }) => Self::Uncertain,
            // Its lease had run out before its attempt could start.
            Err(CallError::Deferred { cause, .. }) if cause.kind() == CauseKind::Interrupted => {
                Self::Stored
            }
            Err(CallError::Superseded { .. }) => Self::Stored,
            Err(error) => panic!("call {number}: {error:?}"),
        }
    }

    /// Of one that was enqueued.
    pub fn of_enqueue<R>(number: u64, result: task_retry::Result<Enqueued<R>>) -> Self {
        match result {
            Ok(_) => Self::Stored,
            Err(error) if error.kind() == ErrorKind::Uncertain => Self::Uncertain,
            Err(error) if error.kind() == ErrorKind::Store => Self::Rejected,
            Err(error) => panic!("call {number}: {error:?}"),
        }
    }
}

/// What was stored runs to its success, and just once; what was rejected is not there.
pub async fn check(scene: &Scene, heard: &[(u64, Heard)]) {
    within(Duration::from_secs(30), "all that was stored succeeds", async || {
        scene.count(Filter::all().status(Status::Succeeded)).await
            == scene.count(Filter::all()).await
    })
    .await;
    let rows = scene.retry.tasks().list(Filter::all().limit(100_000)).await;
    let mut stored: HashMap<u64, u32> = HashMap::new();
    for row in &rows.expect("the database answers") {
        let context = row.context.as_deref().expect("a context");
        let context: serde_json::Value = serde_json::from_str(context).expect("it is JSON");
        *stored.entry(context["number"].as_u64().expect("a number")).or_default() += 1;
    }
    let mut starts: HashMap<u64, Vec<Entry>> = HashMap::new();
    for entry in scene.ledger.read().into_iter().filter(|entry| entry.event == Event::Start) {
        starts.entry(entry.number).or_default().push(entry);
    }
    for (number, heard) in heard {
        let rows = stored.get(number).copied().unwrap_or(0);
        let starts = starts.get(number).map_or(&[][..], Vec::as_slice);
        let as_heard = match heard {
            Heard::Stored => rows == 1,
            Heard::Rejected => rows == 0,
            Heard::Uncertain => rows <= 1,
        };
        assert!(as_heard, "call {number} was {heard:?}, and there are {rows} rows of it");
        assert_eq!(starts.len() as u32, rows, "call {number}, {heard:?}: {starts:?}");
    }
}
