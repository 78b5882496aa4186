//! Group commit: concurrent inserts and ends of attempts are gathered into multi-row statements.
//! A lane that is free writes at once, so a lone call waits for nobody; while lanes write, the next
//! batch gathers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, warn};

use super::Inner;
use super::held::Hold;
use crate::store::{Fault, Inserted, NewRow, Settlement, new_id, steadily};
use crate::{Error, ErrorKind, Status};

/// Most rows of a statement.
pub(crate) const ROWS: usize = 1000;
/// Most bytes of a statement, unless one row has more.
pub(crate) const BYTES: usize = 4 << 20;
/// Most operations that wait; beyond it callers and workers wait for room.
const ROOM: usize = 16_384;
/// How long a lost answer is asked for before a call is told that its fate is uncertain.
const ASK: Duration = Duration::from_secs(10);

/// What happens when a row is stored or not.
pub(crate) trait Stored: Send {
    /// It is stored: `row` has its final id.
    fn stored(self: Box<Self>, inner: &Arc<Inner>, row: NewRow);
    /// It is not, or nobody knows.
    fn refused(self: Box<Self>, refusal: Refusal);
}

/// Why a row was not stored.
#[derive(Debug)]
pub(crate) enum Refusal {
    Duplicate(crate::TaskId, Status),
    Rejected(Error),
    Uncertain(crate::TaskId, Error),
}

struct Insert {
    row: NewRow,
    then: Box<dyn Stored>,
    /// An earlier try may have stored it: its answer was lost.
    lost: bool,
    _room: OwnedSemaphorePermit,
}

struct End {
    settlement: Settlement,
    hold: Arc<Hold>,
    reply: Option<oneshot::Sender<bool>>,
    _room: OwnedSemaphorePermit,
}

#[derive(Default)]
struct Queues {
    inserts: VecDeque<Insert>,
    successes: VecDeque<End>,
    others: VecDeque<End>,
    /// Batches that lanes are writing.
    busy: usize,
}

pub(crate) struct Writer {
    queues: Mutex<Queues>,
    work: Notify,
    idle: Notify,
    room: Arc<Semaphore>,
    /// Stop trying: what cannot be written now never will be.
    give_up: AtomicBool,
}

enum Batch {
    Inserts(Vec<Insert>),
    Ends(Vec<End>),
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            queues: Mutex::default(),
            work: Notify::new(),
            idle: Notify::new(),
            room: Arc::new(Semaphore::new(ROOM)),
            give_up: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn room(&self) -> Option<OwnedSemaphorePermit> {
        self.room.clone().acquire_owned().await.ok()
    }

    /// Hands a row over to be stored. Once this has returned, the row is on its way, whatever
    /// becomes of the caller.
    pub(crate) async fn insert(&self, row: NewRow, then: Box<dyn Stored>) {
        let Some(room) = self.room().await else {
            return then.refused(Refusal::Rejected(closed()));
        };
        self.lock().inserts.push_back(Insert { row, then, lost: false, _room: room });
        self.work.notify_one();
    }

    /// Hands over the end of an attempt. The receiver hears whether it took effect.
    pub(crate) async fn end(
        &self,
        settlement: Settlement,
        hold: Arc<Hold>,
    ) -> oneshot::Receiver<bool> {
        let (reply, answer) = oneshot::channel();
        hold.ending.store(true, Ordering::Release);
        if let Some(room) = self.room().await {
            let end = End { settlement, hold, reply: Some(reply), _room: room };
            let mut queues = self.lock();
            match end.settlement.to {
                Status::Succeeded => queues.successes.push_back(end),
                _ => queues.others.push_back(end),
            }
            drop(queues);
            self.work.notify_one();
        }
        answer
    }

    /// The next batch for a lane: of the longest queue, so that none waits for ever.
    fn next(&self) -> Option<Batch> {
        let mut queues = self.lock();
        let longest = queues.inserts.len().max(queues.successes.len()).max(queues.others.len());
        if longest == 0 {
            return None;
        }
        queues.busy += 1;
        Some(if queues.inserts.len() == longest {
            Batch::Inserts(take(&mut queues.inserts, |insert| insert.row.bytes()))
        } else if queues.successes.len() == longest {
            Batch::Ends(take(&mut queues.successes, |_| 16))
        } else {
            Batch::Ends(take(&mut queues.others, |end| {
                32 + end.settlement.error.as_ref().map_or(0, String::len)
            }))
        })
    }

    fn done(&self) {
        let mut queues = self.lock();
        queues.busy -= 1;
        if queues.busy == 0 {
            self.idle.notify_waiters();
        }
    }

    fn is_idle(&self) -> bool {
        let queues = self.lock();
        queues.busy == 0
            && queues.inserts.is_empty()
            && queues.successes.is_empty()
            && queues.others.is_empty()
    }

    /// Waits until everything is written, at most this long; then gives up what is not.
    pub(crate) async fn drain(&self, most: Duration) {
        let until = Instant::now() + most;
        while !self.is_idle() && Instant::now() < until {
            // Bounded, since the notification may come just before we wait for it.
            let _ = tokio::time::timeout(Duration::from_millis(20), self.idle.notified()).await;
        }
        self.room.close();
        self.give_up.store(true, Ordering::Release);
        self.work.notify_waiters();
        let mut queues = self.lock();
        for insert in queues.inserts.drain(..) {
            insert.then.refused(Refusal::Rejected(closed()));
        }
        queues.successes.clear();
        queues.others.clear();
    }

    fn gives_up(&self) -> bool {
        self.give_up.load(Ordering::Acquire)
    }
}

fn take<T>(queue: &mut VecDeque<T>, bytes: impl Fn(&T) -> usize) -> Vec<T> {
    let mut sum = 0;
    let fits = |item: &T| {
        sum += bytes(item);
        sum <= BYTES
    };
    let count = queue.iter().take(ROWS).take_while(with(fits)).count().max(1);
    queue.drain(..count).collect()
}

fn with<T>(mut test: impl FnMut(&T) -> bool) -> impl FnMut(&&T) -> bool {
    move |item| test(item)
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the runtime is shutting down or gone: nothing was stored")
}

/// One lane: it writes batch after batch until the writer has given up.
pub(crate) async fn lane(inner: Arc<Inner>) {
    let writer = &inner.writer;
    loop {
        let work = writer.work.notified();
        tokio::pin!(work);
        work.as_mut().enable();
        match writer.next() {
            Some(batch) => {
                let _done = Done(writer);
                match batch {
                    Batch::Inserts(inserts) => insert(&inner, inserts).await,
                    Batch::Ends(ends) => end(&inner, ends).await,
                }
            }
            None if writer.gives_up() => return,
            None => work.await,
        }
    }
}

/// Also when a lane's future is dropped or panics.
struct Done<'a>(&'a Writer);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}

async fn insert(inner: &Arc<Inner>, inserts: Vec<Insert>) {
    let asked_until = Instant::now() + ASK;
    let mut batches = vec![inserts];
    let mut backoff = Backoff::default();
    while let Some(mut batch) = batches.pop() {
        let rows: Vec<NewRow> = batch.iter().map(|insert| insert.row.clone()).collect();
        let now = inner.clock.now();
        let result = steadily(|| inner.store.insert(&inner.store.db, &rows, now)).await;
        let error = match result {
            Ok(answers) => {
                let again = answer(inner, batch, answers);
                if !again.is_empty() {
                    batches.push(again);
                }
                continue;
            }
            Err(error) => error,
        };
        match Fault::of(&error) {
            Fault::Duplicate | Fault::Data if batch.len() > 1 => {
                let half = batch.split_off(batch.len() / 2);
                batches.push(half);
                batches.push(batch);
            }
            // The same ids again: if the lost statement is carried out after all, one of the two
            // meets the other's rows and adds nothing.
            fault @ (Fault::Lost | Fault::Unsent | Fault::Repeat)
                if (fault == Fault::Lost || batch.iter().any(|insert| insert.lost))
                    && Instant::now() < asked_until
                    && !inner.writer.gives_up() =>
            {
                for insert in &mut batch {
                    insert.lost |= fault == Fault::Lost;
                }
                batches.push(batch);
                backoff.pause().await;
            }
            _ => refuse(batch, &error),
        }
    }
}

/// Tells what became of each row; returns those that need another id.
fn answer(inner: &Arc<Inner>, batch: Vec<Insert>, answers: Vec<Inserted>) -> Vec<Insert> {
    let mut again = Vec::new();
    for (mut insert, answer) in batch.into_iter().zip(answers) {
        match answer {
            Inserted::Stored => insert.then.stored(inner, insert.row),
            Inserted::Duplicate(id, _) if id.0 == insert.row.id => {
                insert.then.stored(inner, insert.row);
            }
            Inserted::IdTaken if insert.lost => insert.then.stored(inner, insert.row),
            Inserted::Duplicate(id, status) => {
                insert.then.refused(Refusal::Duplicate(id, status));
            }
            Inserted::IdTaken => {
                insert.row.id = new_id(inner.clock.now());
                again.push(insert);
            }
        }
    }
    again
}

fn refuse(batch: Vec<Insert>, error: &DbErr) {
    for insert in batch {
        let id = crate::TaskId(insert.row.id);
        let refusal = if insert.lost {
            let what = "the connection was lost in the commit, and the database cannot be asked";
            Refusal::Uncertain(
                id,
                Error::new(ErrorKind::Uncertain, what).with_source(error.clone()),
            )
        } else {
            Refusal::Rejected(error.clone().into())
        };
        insert.then.refused(refusal);
    }
}

async fn end(inner: &Arc<Inner>, ends: Vec<End>) {
    let mut batches = vec![ends];
    let mut backoff = Backoff::default();
    while let Some(mut batch) = batches.pop() {
        let rows: Vec<Settlement> = batch.iter().map(|end| end.settlement.clone()).collect();
        let now = inner.clock.now();
        let error = match steadily(|| inner.store.settle(&rows, now)).await {
            Ok(landed) => {
                for (end, landed) in batch.into_iter().zip(landed) {
                    settled(inner, end, landed);
                }
                continue;
            }
            Err(error) => error,
        };
        let fault = Fault::of(&error);
        if fault == Fault::Data && batch.len() > 1 {
            let half = batch.split_off(batch.len() / 2);
            batches.push(half);
            batches.push(batch);
        } else if inner.writer.gives_up() {
            error!(%error, tasks = batch.len(), "ends of attempts could not be written: they run again");
            batch.into_iter().for_each(|end| inner.held.remove(&end.hold));
        } else {
            if fault == Fault::Data {
                // Only the text can be at fault.
                batch[0].settlement.error = Some("an error that the database cannot hold".into());
            }
            warn!(%error, tasks = batch.len(), "ends of attempts cannot be written now; trying again");
            batches.push(batch);
            backoff.pause().await;
        }
    }
}

fn settled(inner: &Arc<Inner>, end: End, landed: bool) {
    inner.held.remove(&end.hold);
    if landed && let Some(next) = end.settlement.next {
        inner.wake.due_at(next);
    }
    if let Some(reply) = end.reply {
        let _ = reply.send(landed);
    }
}

/// Growing pauses while the database is away: 50 ms to 2 s.
#[derive(Default)]
pub(crate) struct Backoff(u32);

impl Backoff {
    pub(crate) async fn pause(&mut self) {
        let most = (50_u64 << self.0.min(6)).min(2000);
        self.0 += 1;
        tokio::time::sleep(Duration::from_millis(fastrand::u64(most / 2..=most))).await;
    }

    pub(crate) fn reset(&mut self) {
        self.0 = 0;
    }
}
