//! The workers: how many attempts run at once, and whose turn is next.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::FutureExt;
use tokio::sync::{Notify, oneshot};
use tracing::error;

use super::Inner;
use super::execute::{Ready, work};
use crate::store::SUSPECT;

/// The workers' places and what waits for one.
pub(crate) struct Pool {
    state: Mutex<State>,
    /// There is room again.
    pub(crate) room: Notify,
    /// An awaited attempt of a function with a limit of its own may start.
    freed: Notify,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Attempts at once.
    pub(crate) places: usize,
    /// Tasks that wait in memory.
    pub(crate) queue: usize,
    /// Attempts of one source at once: some places are kept for the others.
    pub(crate) per_source: usize,
}

impl Limits {
    pub(crate) fn new(places: usize, queue: usize, sources: usize) -> Self {
        let reserved = if sources > 1 && places > 1 { (places / 10).max(1) } else { 0 };
        Self { places, queue, per_source: places - reserved }
    }
}

/// Workers that rest: one that is woken costs less than one that is made.
type Resting = Vec<oneshot::Sender<Ready>>;

/// As many rest at most.
const RESTING: usize = 1000;

struct State {
    /// `None` once they have been dismissed.
    resting: Option<Resting>,
    running: usize,
    queued: usize,
    /// Places in the queue that were promised to tasks which are being stored.
    promised: usize,
    lines: HashMap<i32, Line>,
    /// The sources that have something waiting, in turn.
    turn: VecDeque<i32>,
    suspects: usize,
    closed: bool,
}

/// What is to be done that a task starts which was taken in.
pub(crate) enum Start {
    /// Nothing: it waits for its turn.
    No,
    Now(Ready),
    /// It waits, and is to be asked to start.
    Left,
}

/// What a worker does next.
enum Next {
    Run(Ready),
    Rest(oneshot::Receiver<Ready>),
    End,
}

#[derive(Default)]
struct Line {
    waiting: VecDeque<Ready>,
    /// So many are claimed and on their way here.
    coming: usize,
    /// The claims want to hear when no more than this many wait.
    few: usize,
    running: usize,
    /// Attempts of awaited calls, which take no place; counted where the function has a limit.
    awaited: usize,
}

impl Line {
    /// What waits, or will in a moment.
    fn stock(&self) -> usize {
        self.waiting.len() + self.coming
    }

    fn attempts(&self) -> usize {
        self.running + self.awaited
    }
}

impl Pool {
    pub(crate) fn new(limits: Limits) -> Self {
        let state = State {
            resting: Some(Vec::new()),
            running: 0,
            queued: 0,
            promised: 0,
            lines: HashMap::new(),
            turn: VecDeque::new(),
            suspects: 0,
            closed: false,
        };
        Self { state: Mutex::new(state), room: Notify::new(), freed: Notify::new(), limits }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises a place to a task that is about to be stored; `false` if there is none.
    pub(crate) fn promise(&self) -> bool {
        let mut state = self.lock();
        let free = self.limits.places.saturating_sub(state.running) + self.limits.queue;
        let fits = !state.closed && state.queued + state.promised < free;
        if fits {
            state.promised += 1;
        }
        fits
    }

    pub(crate) fn break_promise(&self) {
        let mut state = self.lock();
        state.promised = state.promised.saturating_sub(1);
    }

    /// How many tasks of a source could start now, and how many of it wait. When those get to be as few
    /// as this, `room` tells.
    pub(crate) fn room_for(&self, source: i32, concurrency: Option<usize>, few: usize) -> Room {
        let mut state = self.lock();
        let line = state.lines.entry(source).or_default();
        line.few = few;
        let (waiting, running) = (line.stock(), line.attempts());
        let most = concurrency.unwrap_or(usize::MAX).min(self.limits.per_source);
        let places = self.limits.places.saturating_sub(state.running);
        let free = most.saturating_sub(running).min(places);
        let queue = (self.limits.queue + free).saturating_sub(state.queued + state.promised);
        Room { free, waiting, queue, closed: state.closed }
    }

    /// How many tasks of a source wait, or will in a moment.
    pub(crate) fn waiting(&self, source: i32) -> usize {
        self.lock().lines.get(&source).map_or(0, Line::stock)
    }

    /// So many tasks of a source are claimed and will come: there are places for them.
    pub(crate) fn expect(&self, source: i32, count: usize) {
        let mut state = self.lock();
        state.promised += count;
        state.lines.entry(source).or_default().coming += count;
    }

    /// They have come.
    pub(crate) fn arrived(&self, source: i32, count: usize) {
        let mut state = self.lock();
        state.promised = state.promised.saturating_sub(count);
        let line = state.lines.entry(source).or_default();
        line.coming = line.coming.saturating_sub(count);
        let tell = line.stock() <= line.few;
        drop(state);
        if tell {
            self.room.notify_one();
        }
    }

    /// Whether a task that is suspected of killing its process is here.
    pub(crate) fn has_suspect(&self) -> bool {
        self.lock().suspects > 0
    }

    /// Takes a task in; it starts when it is its turn. Gives it back if the pool is closed.
    pub(crate) fn submit(&self, inner: &Arc<Inner>, ready: Ready) -> Result<(), Box<Ready>> {
        if let Start::Now(ready) = self.admit(ready, false)? {
            start(inner, ready);
        }
        Ok(())
    }

    /// The same, but that the caller has to start what can start now: either what is returned, or, with
    /// `leave`, by [`start_waiting`](Self::start_waiting).
    pub(crate) fn admit(&self, ready: Ready, leave: bool) -> Result<Start, Box<Ready>> {
        let source = ready.task.source;
        let mut state = self.lock();
        if state.closed {
            return Err(Box::new(ready));
        }
        if ready.task.crash_count >= SUSPECT {
            state.suspects += 1;
        }
        let line = state.lines.entry(source).or_default();
        line.waiting.push_back(ready);
        let first = line.waiting.len() == 1;
        if first {
            state.turn.push_back(source);
        }
        state.queued += 1;
        Ok(match state.running < self.limits.places {
            false => Start::No,
            true if leave => Start::Left,
            true => self.take(&mut state).map_or(Start::No, Start::Now),
        })
    }

    /// Starts what waits and has a place.
    pub(crate) fn start_waiting(&self, inner: &Arc<Inner>) {
        let next = |mut state: MutexGuard<'_, State>| {
            (state.running < self.limits.places).then(|| self.take(&mut state)).flatten()
        };
        while let Some(ready) = next(self.lock()) {
            start(inner, ready);
        }
    }

    /// The next task whose source may run one more, source by source in turn.
    fn take(&self, state: &mut State) -> Option<Ready> {
        for _ in 0..state.turn.len() {
            let source = state.turn.pop_front()?;
            let Some(line) = state.lines.get_mut(&source) else { continue };
            let Some(next) = line.waiting.front() else { continue };
            let most = next.handler.meta().concurrency.unwrap_or(usize::MAX);
            if line.running >= self.limits.per_source || line.attempts() >= most {
                state.turn.push_back(source);
                continue;
            }
            let ready = line.waiting.pop_front()?;
            line.running += 1;
            if !line.waiting.is_empty() {
                state.turn.push_back(source);
            }
            state.queued -= 1;
            state.running += 1;
            return Some(ready);
        }
        None
    }

    /// Gives a place back and takes the next task for it.
    fn next(&self, source: i32, was_suspect: bool) -> Next {
        let mut state = self.lock();
        // Where the queue was full, any source may have waited for room.
        let mut tell = was_suspect || state.queued + state.promised >= self.limits.queue;
        state.running -= 1;
        if was_suspect {
            state.suspects -= 1;
        }
        if let Some(line) = state.lines.get_mut(&source) {
            line.running -= 1;
        }
        let next = self.take(&mut state);
        let of = next.as_ref().map_or(source, |next| next.task.source);
        tell |= state.lines.get(&of).is_some_and(|line| line.stock() <= line.few);
        let next = match (next, &mut state.resting) {
            (Some(ready), _) => Next::Run(ready),
            (None, Some(resting)) if resting.len() < RESTING => {
                let (give, given) = oneshot::channel();
                resting.push(give);
                Next::Rest(given)
            }
            _ => Next::End,
        };
        drop(state);
        if tell {
            self.room.notify_one();
        }
        self.freed.notify_waiters();
        next
    }

    /// A worker that rests.
    fn resting(&self) -> Option<oneshot::Sender<Ready>> {
        self.lock().resting.as_mut()?.pop()
    }

    /// No worker rests any more: whoever has nothing to do ends.
    pub(crate) fn dismiss(&self) {
        self.lock().resting = None;
    }

    /// Waits until a function with a limit of its own may run one more awaited attempt.
    pub(super) async fn enter(&self, source: i32, limit: usize) {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            {
                let mut state = self.lock();
                let line = state.lines.entry(source).or_default();
                if line.attempts() < limit {
                    line.awaited += 1;
                    return;
                }
            }
            freed.await;
        }
    }

    /// The end of what [`enter`](Self::enter) let in.
    pub(super) fn leave(&self, inner: &Arc<Inner>, source: i32) {
        let mut state = self.lock();
        if let Some(line) = state.lines.get_mut(&source) {
            line.awaited -= 1;
        }
        drop(state);
        self.freed.notify_waiters();
        self.start_waiting(inner);
    }

    /// Takes back what waits of some sources, but for what was asked for by its id.
    pub(crate) fn withdraw(&self, sources: impl Fn(i32) -> bool) -> Vec<Ready> {
        let mut withdrawn = Vec::new();
        let mut state = self.lock();
        for (_, line) in state.lines.iter_mut().filter(|(source, _)| sources(**source)) {
            let (kept, taken): (Vec<_>, Vec<_>) =
                line.waiting.drain(..).partition(|ready| ready.by_id);
            line.waiting = kept.into();
            withdrawn.extend(taken);
        }
        state.queued -= withdrawn.len();
        state.suspects -=
            withdrawn.iter().filter(|ready| ready.task.crash_count >= SUSPECT).count();
        let State { turn, lines, .. } = &mut *state;
        turn.retain(|source| lines.get(source).is_some_and(|line| !line.waiting.is_empty()));
        drop(state);
        self.room.notify_one();
        withdrawn
    }

    /// Takes nothing in any more; returns what has not started.
    pub(crate) fn close(&self) -> Vec<Ready> {
        let mut state = self.lock();
        state.closed = true;
        state.resting = None;
        state.turn.clear();
        state.queued = 0;
        let waiting = state.lines.values_mut().flat_map(|line| line.waiting.drain(..));
        waiting.collect()
    }

    /// Attempts that run in workers.
    pub(crate) fn running(&self) -> usize {
        self.lock().running
    }
}

/// See [`Pool::room_for`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room {
    pub(crate) free: usize,
    pub(crate) waiting: usize,
    pub(crate) queue: usize,
    pub(crate) closed: bool,
}

/// Starts what [`Pool::admit`] has let in.
pub(crate) fn start(inner: &Arc<Inner>, ready: Ready) {
    let ready = match inner.pool.resting() {
        Some(worker) => match worker.send(ready) {
            Ok(()) => return,
            // It was dropped, with the tokio runtime that it was in.
            Err(ready) => ready,
        },
        None => ready,
    };
    inner.handle.spawn(worker(inner.clone(), ready));
}

/// One place: runs tasks until none waits, and rests then.
async fn worker(inner: Arc<Inner>, mut ready: Ready) {
    loop {
        let (source, suspect) = (ready.task.source, ready.task.crash_count >= SUSPECT);
        // An attempt catches its own panics; this keeps the place even if that fails.
        let run = AssertUnwindSafe(work(&inner, ready)).catch_unwind();
        if run.await.is_err() {
            error!(source, "a worker panicked outside of an attempt; it goes on");
        }
        ready = match inner.pool.next(source, suspect) {
            Next::Run(ready) => {
                // Functions that never wait do not keep others from the thread for long.
                tokio::task::coop::consume_budget().await;
                ready
            }
            Next::Rest(given) => match given.await {
                Ok(ready) => ready,
                Err(_) => return,
            },
            Next::End => return,
        };
    }
}
