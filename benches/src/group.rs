//! Group commit by hand: whatever waits is written by the next free lane.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::sync::{Notify, oneshot};

type Waiting<T> = VecDeque<(T, oneshot::Sender<()>)>;
type Queues = (Waiting<(i64, String)>, Waiting<i64>);
/// Rows to insert, rows that have succeeded, and whom to tell.
type Batch = (Vec<(i64, String)>, Vec<i64>, Vec<oneshot::Sender<()>>);

/// What waits to be written: new rows, and rows that have succeeded.
#[derive(Default)]
pub struct Group {
    queues: Mutex<Queues>,
    work: Notify,
}

impl Group {
    pub async fn insert(&self, id: i64, context: String) {
        let (tell, told) = oneshot::channel();
        self.queues.lock().unwrap().0.push_back(((id, context), tell));
        self.work.notify_one();
        told.await.unwrap();
    }

    pub async fn done(&self, id: i64) {
        let (tell, told) = oneshot::channel();
        self.queues.lock().unwrap().1.push_back((id, tell));
        self.work.notify_one();
        told.await.unwrap();
    }

    /// Whatever waits now: both, for one transaction, or only what more wait for, for one statement.
    pub async fn next(&self, both: bool) -> Batch {
        loop {
            let (inserts, done): (Vec<_>, Vec<_>) = {
                let (inserts, done) = &mut *self.queues.lock().unwrap();
                let insert = both || inserts.len() >= done.len();
                let update = both || !insert;
                let count = if insert { inserts.len().min(1000) } else { 0 };
                let rows = inserts.drain(..count).collect();
                let count = if update { done.len().min(1000) } else { 0 };
                (rows, done.drain(..count).collect())
            };
            if inserts.is_empty() && done.is_empty() {
                self.work.notified().await;
                continue;
            }
            let (rows, mut tell): (Vec<_>, Vec<_>) = inserts.into_iter().unzip();
            let (ids, more): (Vec<_>, Vec<_>) = done.into_iter().unzip();
            tell.extend(more);
            return (rows, ids, tell);
        }
    }
}
