//! Group commit: concurrent inserts and ends of attempts are gathered into multi-row statements.
//! A lane that is free writes at once, so a lone call waits for nobody; while lanes write, the next
//! batch gathers.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::{DbBackend, DbErr};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tracing::{error, warn};

use super::Inner;
use super::execute::Ready;
use super::held::Hold;
use super::pool::{Start, start};
use crate::clock::Millis;
use crate::store::{
    ANSWER, Fault, Inserted, NewRow, Settlement, Store, error_text, in_time, is_timeout, steadily,
};
use crate::{Error, ErrorKind, Status, TaskId};

/// Most rows of a statement.
pub(crate) const ROWS: usize = 1000;
/// Most operations that wait; beyond it callers and workers wait for room.
const ROOM: usize = 16_384;
/// How often a lane lets others go first while they add to what waits.
const GATHER: usize = 8;
/// While one lane writes successes, others that nobody waits for gather: fewer commits, and more of the
/// database for the claims. But no longer than this, since one of those being written may be locked, ...
const GATHER_BEHIND: Duration = Duration::from_millis(10);
/// ... and not more than these.
const BEHIND: usize = 4 * ROWS;
/// How long a task is left to its caller to start.
const LEFT: Duration = Duration::from_millis(1);
/// How long a lost answer is asked for before a call is told that its fate is uncertain.
const ASK: Duration = Duration::from_secs(10);

/// A place among the operations that wait.
pub(crate) type Room = OwnedSemaphorePermit;

/// What happens when a row is stored or not.
pub(crate) trait Stored: Send {
    /// It is stored, with this time: `row` has its final id. If it is `alone`, its task may be left to its
    /// caller to start.
    fn stored(self: Box<Self>, inner: &Arc<Inner>, row: NewRow, now: Millis, alone: bool) -> Start;
    /// It is not, or nobody knows.
    fn refused(self: Box<Self>, refusal: Refusal);
}

/// Why a row was not stored.
#[derive(Debug)]
pub(crate) enum Refusal {
    Duplicate(TaskId, Status),
    Rejected(Error),
    Uncertain(TaskId, Error),
}

/// What is to follow when a row is stored.
struct Then {
    stored: Box<dyn Stored>,
    /// An earlier try may have stored it: its answer was lost.
    lost: bool,
    _room: Room,
}

/// Rows on their way; apart from what follows, so that a statement takes them as they are.
#[derive(Default)]
struct Inserts {
    rows: Vec<NewRow>,
    then: Vec<Then>,
}

impl Inserts {
    fn push(&mut self, row: NewRow, then: Then) {
        self.rows.push(row);
        self.then.push(then);
    }

    fn len(&self) -> usize {
        self.rows.len()
    }

    /// Gives all held rows the latest of their leases: what rows have in common costs least. Not once a
    /// statement was sent that may have stored them with another.
    fn lease_alike(&mut self) {
        if self.then.iter().any(|then| then.lost) {
            return;
        }
        let held = |row: &&mut NewRow| row.held;
        let latest = self.rows.iter_mut().filter(held).map(|row| row.next).max();
        for row in self.rows.iter_mut().filter(held) {
            row.next = latest.unwrap_or(row.next);
        }
    }

    /// In halves; the first may be empty.
    fn halves(mut self) -> (Self, Self) {
        let half = self.len() / 2;
        let (rows, then) = (self.rows.split_off(half), self.then.split_off(half));
        (self, Self { rows, then })
    }

    fn extend(&mut self, others: Self) {
        self.rows.extend(others.rows);
        self.then.extend(others.then);
    }
}

impl IntoIterator for Inserts {
    type Item = (NewRow, Then);
    type IntoIter = std::iter::Zip<std::vec::IntoIter<NewRow>, std::vec::IntoIter<Then>>;

    fn into_iter(self) -> Self::IntoIter {
        self.rows.into_iter().zip(self.then)
    }
}

struct End {
    settlement: Settlement,
    hold: Arc<Hold>,
    reply: Option<oneshot::Sender<bool>>,
    /// What is written is not what the attempt was told.
    voided: bool,
    _room: Room,
}

/// Ends that could not be written within a limit.
struct Late {
    ends: Vec<End>,
    limit: Duration,
}

#[derive(Default)]
struct Queues {
    inserts: VecDeque<(NewRow, Then)>,
    /// Rows with keys: they may have to wait for somebody's transaction, and others not for them.
    keyed: VecDeque<(NewRow, Then)>,
    successes: VecDeque<End>,
    others: VecDeque<End>,
    late: VecDeque<Late>,
    /// No insert is taken in any more.
    closed: bool,
    /// Batches that lanes are writing.
    busy: usize,
    /// How many of them are successes, and have not taken long yet.
    succeeding: usize,
    /// How many successes somebody waits for.
    awaited: usize,
    /// How many rows batches have of late.
    usual: usize,
}

impl Queues {
    /// Whether successes are left to gather.
    fn gather_successes(&self) -> bool {
        self.succeeding > 0 && self.awaited == 0 && self.successes.len() < BEHIND
    }

    /// How many successes wait to be written now.
    fn ready_successes(&self) -> usize {
        if self.gather_successes() { 0 } else { self.successes.len() }
    }
}

pub(crate) struct Writer {
    queues: Mutex<Queues>,
    work: Notify,
    keyed: Notify,
    late: Notify,
    idle: Notify,
    room: Arc<Semaphore>,
    /// Stop trying: what cannot be written now never will be.
    give_up: AtomicBool,
}

enum Batch {
    Inserts(Inserts),
    Successes(Vec<End>),
    Ends(Vec<End>),
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self {
            queues: Mutex::default(),
            work: Notify::new(),
            keyed: Notify::new(),
            late: Notify::new(),
            idle: Notify::new(),
            room: Arc::new(Semaphore::new(ROOM)),
            give_up: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room for one operation; `None` once the writer has given up.
    pub(crate) async fn room(&self) -> Option<Room> {
        match self.room.clone().try_acquire_owned() {
            Ok(room) => Some(room),
            // It seldom has to wait, and whoever does not is smaller for it.
            Err(_) => Box::pin(self.room.clone().acquire_owned()).await.ok(),
        }
    }

    /// Hands a row over to be stored. From here on it is on its way, whatever becomes of the caller.
    pub(crate) fn insert(&self, room: Option<Room>, row: NewRow, stored: Box<dyn Stored>) {
        let mut queues = self.lock();
        let Some(room) = room.filter(|_| !queues.closed) else {
            drop(queues);
            return refused(stored, Refusal::Rejected(closed()));
        };
        let (queue, work) = match row.unique_key {
            Some(_) => (&mut queues.keyed, &self.keyed),
            None => (&mut queues.inserts, &self.work),
        };
        queue.push_back((row, Then { stored, lost: false, _room: room }));
        drop(queues);
        // The lane that wrote last: its connection's backend has all at hand.
        work.notify_last();
    }

    /// Takes in no insert any more; those that were taken in are still written.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
    }

    /// Hands over the end of an attempt. With `wait`, the receiver hears whether it took effect.
    pub(crate) async fn end(
        &self,
        settlement: Settlement,
        hold: Arc<Hold>,
        wait: bool,
    ) -> Option<oneshot::Receiver<bool>> {
        let (reply, answer) = wait.then(oneshot::channel).unzip();
        hold.ending.store(true, Ordering::Release);
        if let Some(room) = self.room().await {
            let end = End { settlement, hold, reply, voided: false, _room: room };
            let mut queues = self.lock();
            if self.gives_up() {
                return answer;
            }
            let left = match end.settlement.to {
                Status::Succeeded => {
                    queues.awaited += usize::from(wait);
                    queues.successes.push_back(end);
                    queues.gather_successes()
                }
                _ => {
                    queues.others.push_back(end);
                    false
                }
            };
            drop(queues);
            if !left {
                self.work.notify_last();
            }
        }
        answer
    }

    /// Lets those that were just woken hand over what they have: a batch of one, taken in haste, makes
    /// all others wait for its commit. Where one call comes after another, nobody is waited for.
    async fn gather(&self, enough: usize) {
        let mut before = 0;
        for _ in 0..GATHER {
            let (waiting, usual) = self.waiting();
            if waiting == before || waiting >= enough || usual < 2 {
                return;
            }
            before = waiting;
            tokio::task::yield_now().await;
        }
    }

    fn waiting(&self) -> (usize, usize) {
        let queues = self.lock();
        (queues.inserts.len() + queues.ready_successes() + queues.others.len(), queues.usual)
    }

    /// The next batch for a lane: of the longest queue, so that none waits for ever.
    fn next(&self, store: &Store) -> Option<Batch> {
        let mut queues = self.lock();
        let successes = queues.ready_successes();
        let longest = queues.inserts.len().max(successes).max(queues.others.len());
        if longest == 0 {
            return None;
        }
        queues.busy += 1;
        queues.usual = longest.max(queues.usual / 2);
        let inserts = queues.inserts.len() == longest;
        if (inserts || successes < longest) && successes > 0 {
            // They may have been left to a lane that writes something else now.
            self.work.notify_one();
        }
        if inserts {
            return Some(Batch::Inserts(take_inserts(&mut queues.inserts, store)));
        }
        // The answer to a batch goes by ids, so it holds no two ends of one task: an attempt that has
        // lost its task may end beside the one that has it now.
        let mut ids = HashSet::new();
        let first = |end: &End| ids.insert(end.settlement.id);
        let Queues { successes: waiting, others, .. } = &mut *queues;
        if successes < longest {
            let count = fitting(others, store.bytes, |end| end.settlement.bytes(), first);
            return Some(Batch::Ends(others.drain(..count).collect()));
        }
        let count = fitting(waiting, store.bytes, |end| end.settlement.bytes(), first);
        let batch: Vec<End> = waiting.drain(..count).collect();
        queues.awaited -= batch.iter().filter(|end| end.reply.is_some()).count();
        if batch.len() == 1 {
            // It is written as soon as any, and needs no clock.
            return Some(Batch::Ends(batch));
        }
        queues.succeeding += 1;
        Some(Batch::Successes(batch))
    }

    /// Leaves ends to the lane of the late ones. If there was no answer, one of them may be locked and
    /// keep the others: in halves then, and with more time, since what was given up goes on waiting.
    fn put_off(&self, mut ends: Vec<End>, limit: Duration, timeout: bool) {
        let half = if timeout { ends.split_off(ends.len() / 2) } else { Vec::new() };
        let limit = if timeout { (limit * 2).min(64 * ANSWER) } else { limit };
        let halves = [ends, half].into_iter().filter(|ends| !ends.is_empty());
        self.lock().late.extend(halves.map(|ends| Late { ends, limit }));
        self.late.notify_one();
    }

    fn next_keyed(&self, store: &Store) -> Option<Inserts> {
        let mut queues = self.lock();
        if queues.keyed.is_empty() {
            return None;
        }
        queues.busy += 1;
        Some(take_inserts(&mut queues.keyed, store))
    }

    fn next_late(&self) -> Option<Late> {
        let mut queues = self.lock();
        let late = queues.late.pop_front()?;
        queues.busy += 1;
        Some(late)
    }

    fn done(&self) {
        let mut queues = self.lock();
        queues.busy -= 1;
        if queues.busy == 0 {
            self.idle.notify_waiters();
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        let queues = self.lock();
        queues.busy == 0
            && queues.inserts.is_empty()
            && queues.keyed.is_empty()
            && queues.successes.is_empty()
            && queues.others.is_empty()
            && queues.late.is_empty()
    }

    /// Waits until everything is written, at most this long; then gives up what is not.
    pub(crate) async fn drain(&self, most: Duration) {
        let until = Instant::now() + most;
        while !self.is_idle() && Instant::now() < until {
            // Bounded, since the notification may come just before we wait for it.
            let _ = tokio::time::timeout(Duration::from_millis(20), self.idle.notified()).await;
        }
        self.give_up();
        let mut queues = self.lock();
        let Queues { inserts, keyed, .. } = &mut *queues;
        for (_, then) in inserts.drain(..).chain(keyed.drain(..)) {
            refused(then.stored, Refusal::Rejected(closed()));
        }
        queues.successes.clear();
        queues.awaited = 0;
        queues.others.clear();
        queues.late.clear();
    }

    /// The lanes try once more to write what waits, and end.
    pub(crate) fn give_up(&self) {
        self.room.close();
        self.give_up.store(true, Ordering::Release);
        self.work.notify_waiters();
        self.keyed.notify_one();
        self.late.notify_one();
    }

    fn gives_up(&self) -> bool {
        self.give_up.load(Ordering::Acquire)
    }
}

fn take_inserts(queue: &mut VecDeque<(NewRow, Then)>, store: &Store) -> Inserts {
    let count = fitting(queue, store.bytes, |(row, _)| store.row_bytes(row), |_| true);
    let (rows, then) = queue.drain(..store.batch(count)).unzip();
    Inserts { rows, then }
}

/// How many items fit into one statement: one at least.
fn fitting<T>(
    queue: &VecDeque<T>,
    room: usize,
    bytes: impl Fn(&T) -> usize,
    mut goes: impl FnMut(&T) -> bool,
) -> usize {
    let mut sum = 0;
    let fits = |item: &T| {
        sum += bytes(item);
        sum <= room && goes(item)
    };
    queue.iter().take(ROWS).take_while(with(fits)).count().max(1)
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
    let store = inner.store.kept();
    // PostgreSQL's lanes are at work side by side; elsewhere fewer commits are worth more.
    let enough = if store.times.backend == DbBackend::Postgres { 32 } else { ROWS };
    let mut left = Left(false);
    loop {
        let batch = {
            let work = writer.work.notified();
            tokio::pin!(work);
            work.as_mut().enable();
            writer.gather(enough).await;
            match writer.next(&store) {
                Some(batch) => batch,
                None if writer.gives_up() => return left.start(&inner),
                None => {
                    left.rest(&inner, work).await;
                    continue;
                }
            }
            // A lane that writes is not told of more work, since the other one may be free for it.
        };
        let _done = Done(writer);
        match batch {
            Batch::Inserts(inserts) => insert(&inner, &store, inserts, &mut left).await,
            Batch::Successes(ends) => {
                left.start(&inner);
                succeed(&inner, &store, ends).await;
            }
            Batch::Ends(ends) => {
                left.start(&inner);
                end(&inner, &store, ends, ANSWER).await;
            }
        }
    }
}

/// Whether a task was left to its caller to start. The caller was just woken, and goes on at once where no
/// other thread is woken as well; but it may as well never ask for its answer.
struct Left(bool);

impl Left {
    fn start(&mut self, inner: &Arc<Inner>) {
        if std::mem::take(&mut self.0) {
            inner.pool.start_waiting(inner);
        }
    }

    /// Waits for work.
    async fn rest(&mut self, inner: &Arc<Inner>, work: impl Future<Output = ()>) {
        if self.0 {
            let _ = tokio::time::timeout(LEFT, work).await;
            self.start(inner);
        } else {
            work.await;
        }
    }
}

/// Writes successes. Those that gather meanwhile do not wait for long: one of these may be locked.
async fn succeed(inner: &Arc<Inner>, store: &Store, ends: Vec<End>) {
    let writer = &inner.writer;
    let mut succeeding = Some(Succeeding(writer));
    let write = end(inner, store, ends, ANSWER);
    tokio::pin!(write);
    if tokio::time::timeout(GATHER_BEHIND, write.as_mut()).await.is_err() {
        succeeding.take();
        writer.work.notify_one();
        write.await;
    }
}

/// Also when a lane's future is dropped or panics.
struct Succeeding<'a>(&'a Writer);

impl Drop for Succeeding<'_> {
    fn drop(&mut self) {
        self.0.lock().succeeding -= 1;
    }
}

/// Also when a lane's future is dropped or panics.
struct Done<'a>(&'a Writer);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}

/// Writes something in a task of its own, before whose end the writer is not idle.
pub(crate) fn write_beside<F: Future<Output = ()> + Send + 'static>(
    inner: &Arc<Inner>,
    work: impl FnOnce(Arc<Inner>) -> F,
) {
    inner.writer.lock().busy += 1;
    let work = work(inner.clone());
    let inner = inner.clone();
    inner.handle.clone().spawn(async move {
        let _done = Done(&inner.writer);
        work.await;
    });
}

/// The lane of rows with keys. Those that somebody's transaction stands in the way of go on in a task
/// of their own, so that this lane waits for nobody.
pub(crate) async fn keyed(inner: Arc<Inner>) {
    let writer = &inner.writer;
    let store = inner.store.kept();
    let mut left = Left(false);
    loop {
        match writer.next_keyed(&store) {
            Some(batch) => {
                let _done = Done(writer);
                let contended = insert_keyed(&inner, &store, batch, false, &mut left).await;
                if contended.len() > 0 {
                    write_beside(&inner, |inner| async move {
                        let mut left = Left(false);
                        insert_keyed(&inner, &inner.store, contended, true, &mut left).await;
                        left.start(&inner);
                    });
                }
            }
            None if writer.gives_up() => return left.start(&inner),
            None => left.rest(&inner, writer.keyed.notified()).await,
        }
    }
}

/// Stores rows with keys. What a transaction stands in the way of is given back, or, with patience,
/// tried again, in halves and then one by one, for a while.
async fn insert_keyed(
    inner: &Arc<Inner>,
    store: &Store,
    inserts: Inserts,
    patient: bool,
    left: &mut Left,
) -> Inserts {
    let until = Instant::now() + ASK;
    let mut batches = VecDeque::from([inserts]);
    let mut contended = Inserts::default();
    let mut backoff = Backoff::default();
    while let Some(mut batch) = batches.pop_front() {
        left.start(inner);
        let now = inner.clock.now();
        failpoint!("insert.before");
        match in_time(ANSWER, store.insert_keyed(&batch.rows, now)).await {
            Ok(answers) => {
                failpoint!("insert.after");
                let again = answer(inner, batch, answers, now, left);
                if again.len() > 0 {
                    batches.push_back(again);
                }
            }
            Err(error) => match Fault::of(&error) {
                Fault::Repeat if !patient => contended.extend(batch),
                Fault::Repeat | Fault::Duplicate | Fault::Data if batch.len() > 1 => {
                    let (first, second) = batch.halves();
                    batches.push_front(second);
                    batches.push_front(first);
                }
                Fault::Repeat if Instant::now() < until && !inner.writer.gives_up() => {
                    batches.push_back(batch);
                    backoff.pause().await;
                }
                Fault::Repeat => refuse(batch, &error),
                // Asks again, or refuses, as for all others. What was sent may have been carried out.
                fault => {
                    batch.then.iter_mut().for_each(|then| then.lost |= fault == Fault::Lost);
                    insert(inner, store, batch, left).await;
                }
            },
        }
    }
    contended
}

async fn insert(inner: &Arc<Inner>, store: &Store, inserts: Inserts, left: &mut Left) {
    let asked_until = Instant::now() + ASK;
    let mut batches = vec![inserts];
    let mut backoff = Backoff::default();
    while let Some(mut batch) = batches.pop() {
        left.start(inner);
        batch.lease_alike();
        let rows = &batch.rows;
        let now = inner.clock.now();
        let lost = batch.then.iter().any(|then| then.lost);
        let plain = !lost && rows.iter().all(|row| row.unique_key.is_none());
        failpoint!("insert.before");
        let result = steadily(|| async {
            match plain {
                true => in_time(ANSWER, store.insert_plain(rows, now)).await,
                false => in_time(ANSWER, store.insert(&store.db, rows, now)).await,
            }
        })
        .await;
        let error = match result {
            Ok(answers) => {
                failpoint!("insert.after");
                let again = answer(inner, batch, answers, now, left);
                if again.len() > 0 {
                    batches.push(again);
                }
                continue;
            }
            Err(error) => error,
        };
        let fault = Fault::of(&error);
        for then in &mut batch.then {
            then.lost |= fault == Fault::Lost;
        }
        match fault {
            Fault::Duplicate | Fault::Data if batch.len() > 1 => {
                let (first, second) = batch.halves();
                batches.push(second);
                batches.push(first);
            }
            // The same ids again: if the lost statement is carried out after all, one of the two
            // meets the other's rows and adds nothing.
            Fault::Lost | Fault::Unsent | Fault::Repeat
                if batch.then.iter().any(|then| then.lost)
                    && Instant::now() < asked_until
                    && !inner.writer.gives_up() =>
            {
                batches.push(batch);
                backoff.pause().await;
            }
            _ => refuse(batch, &error),
        }
    }
}

/// Tasks that have their places. They start whatever ends the answers, else they would keep their places
/// and leases for ever.
struct Starts<'a> {
    inner: &'a Arc<Inner>,
    ready: Vec<Ready>,
}

impl Drop for Starts<'_> {
    fn drop(&mut self) {
        self.ready.drain(..).for_each(|ready| start(self.inner, ready));
    }
}

/// Tells what became of each row, and starts what is to run; returns the rows that need another id.
fn answer(
    inner: &Arc<Inner>,
    batch: Inserts,
    answers: Vec<Inserted>,
    now: Millis,
    left: &mut Left,
) -> Inserts {
    let mut again = Inserts::default();
    let mut starts = Starts { inner, ready: Vec::new() };
    let alone = batch.len() == 1;
    for ((mut row, then), answer) in batch.into_iter().zip(answers) {
        let stored = match answer {
            Inserted::Stored => true,
            Inserted::Duplicate(id, _) => id.0 == row.id,
            Inserted::IdTaken => then.lost,
        };
        match answer {
            _ if stored => match then.stored.stored(inner, row, now, alone) {
                Start::No => {}
                Start::Now(ready) => starts.ready.push(ready),
                Start::Left => left.0 = true,
            },
            Inserted::Duplicate(id, status) => {
                refused(then.stored, Refusal::Duplicate(id, status));
            }
            _ => {
                row.id = inner.clock.new_id(now);
                again.push(row, then);
            }
        }
    }
    again
}

/// Dropping the arguments may panic, and the others of a batch do not suffer for it.
fn refused(stored: Box<dyn Stored>, refusal: Refusal) {
    if catch_unwind(AssertUnwindSafe(|| stored.refused(refusal))).is_err() {
        warn!("dropping the arguments of a call panicked; it was refused");
    }
}

fn refuse(batch: Inserts, error: &DbErr) {
    for (row, then) in batch {
        let id = TaskId(row.id);
        let refusal = if then.lost {
            let what = "the connection was lost in the commit, and the database cannot be asked";
            Refusal::Uncertain(
                id,
                Error::new(ErrorKind::Uncertain, what).with_source(error.clone()),
            )
        } else {
            Refusal::Rejected(error.clone().into())
        };
        refused(then.stored, refusal);
    }
}

/// Writes ends of attempts, each statement within the limit, and tells whether all are written. What
/// is not is left to the lane of the [`late`] ones, so that callers and other ends do not wait for it.
async fn end(inner: &Arc<Inner>, store: &Store, ends: Vec<End>, limit: Duration) -> bool {
    let mut batches = vec![ends];
    let mut all = true;
    while let Some(mut batch) = batches.pop() {
        let rows: Vec<Settlement> = batch.iter().map(|end| end.settlement.clone()).collect();
        let now = inner.clock.now();
        failpoint!("end.before");
        let error = match steadily(|| in_time(limit, store.settle(&rows, now))).await {
            Ok(landed) => {
                failpoint!("end.after");
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
            match fault {
                Fault::Data => make_fit(&mut batch[0], &error),
                // What is told of an attempt may get lost, its end may not.
                Fault::Refused => {
                    batch.iter_mut().for_each(|end| end.settlement.attempt = None);
                }
                _ => {}
            }
            warn!(%error, tasks = batch.len(), "ends of attempts cannot be written now; trying again");
            inner.writer.put_off(batch, limit, is_timeout(&error));
            all = false;
        }
    }
    all
}

/// The lane of ends that could not be written at the first try: the database is away, or somebody
/// has locked one of the rows.
pub(crate) async fn late(inner: Arc<Inner>) {
    let writer = &inner.writer;
    let store = inner.store.kept();
    let mut backoff = Backoff::default();
    loop {
        match writer.next_late() {
            Some(late) => {
                let _done = Done(writer);
                match end(&inner, &store, late.ends, late.limit).await {
                    true => backoff.reset(),
                    false => backoff.pause().await,
                }
            }
            None if writer.gives_up() => return,
            None => writer.late.notified().await,
        }
    }
}

/// Only a text can be at fault: an error, or a value. A success without its value is none.
fn make_fit(end: &mut End, error: &DbErr) {
    let settlement = &mut end.settlement;
    if settlement.result.take().is_some() {
        settlement.to = Status::Failed;
        settlement.send_count = settlement.send_count.saturating_add(1);
        settlement.error =
            Some(error_text(&format!("the database cannot hold the result: {error}")));
        // The attempt was told that it had succeeded.
        end.voided = true;
    } else {
        settlement.error = Some("an error that the database cannot hold".into());
    }
}

fn settled(inner: &Arc<Inner>, end: End, landed: bool) {
    inner.held.remove(&end.hold);
    if landed {
        match end.settlement.next {
            Some(next) => inner.wake.due_at(next),
            None => inner.waits.ended(TaskId(end.settlement.id)),
        }
    }
    let landed = landed && !end.voided;
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
