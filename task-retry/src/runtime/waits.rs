//! Waiting for the ends of tasks, wherever they run.
//!
//! An end in this process wakes its waiters in memory. On PostgreSQL a process tells the others what
//! it waits for, and they tell it of the end; where nobody waits, nothing is sent. What none of this
//! reaches is found by looking, with growing pauses, one statement for all that wait.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::DbErr;
use tokio::sync::{Notify, oneshot};
use tracing::debug;

use super::{Inner, supervised};
use crate::store::{Stand, steadily};
use crate::{Error, ErrorKind, Result, TaskId};

/// The first pause between two looks; each is twice as long as the one before, up to the poll interval.
const PAUSE: Duration = Duration::from_millis(5);
/// Tasks of one look.
const ROWS: usize = 500;

pub(crate) struct Waits {
    state: Mutex<State>,
    /// Something waits here: spares the ends of tasks a lock.
    any: AtomicBool,
    work: Notify,
    running: AtomicBool,
    #[cfg(feature = "postgres")]
    pub(super) elsewhere: super::listen::Elsewhere,
}

#[derive(Default)]
struct State {
    waiting: HashMap<i64, Waiting>,
    /// When to look for which task next; without those that are being looked for.
    queue: BTreeSet<(Instant, i64)>,
    tickets: u64,
    closed: bool,
}

/// Those who wait for a task.
struct Waiting {
    replies: Vec<Reply>,
    /// `None` while it is being looked for.
    next: Option<Instant>,
    pause: Duration,
    /// It may have ended since the look began.
    hurried: bool,
    /// When the other processes were told that something waits for it here.
    #[cfg_attr(not(feature = "postgres"), allow(dead_code))]
    told: Option<Instant>,
}

struct Reply {
    ticket: u64,
    how: How,
    to: oneshot::Sender<Result<Option<Stand>, DbErr>>,
}

/// What somebody wants to know.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum How {
    /// The task's end.
    End,
    /// Its end and its value.
    Value,
    /// Its value, if it has ended already.
    Now,
}

impl Waits {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            any: AtomicBool::new(false),
            work: Notify::new(),
            running: AtomicBool::new(false),
            #[cfg(feature = "postgres")]
            elsewhere: Default::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A task has ended here.
    pub(crate) fn ended(&self, id: TaskId) {
        #[cfg(feature = "postgres")]
        if self.elsewhere.ended(id.0) {
            self.work.notify_one();
        }
        self.heard_of(id);
    }

    /// A task has ended.
    pub(super) fn heard_of(&self, id: TaskId) {
        if self.any.load(Ordering::Acquire) && self.lock().hurry(id.0) {
            self.work.notify_one();
        }
    }

    /// Tasks have ended, and it is not known which.
    pub(crate) fn some_ended(&self) {
        if self.any.load(Ordering::Acquire) {
            let mut state = self.lock();
            let ids: Vec<i64> = state.waiting.keys().copied().collect();
            for id in ids {
                state.hurry(id);
            }
            drop(state);
            self.work.notify_one();
        }
    }
}

impl State {
    /// Looks for a task at once, if anybody waits for it.
    fn hurry(&mut self, id: i64) -> bool {
        let Some(waiting) = self.waiting.get_mut(&id) else { return false };
        match &mut waiting.next {
            None => waiting.hurried = true,
            Some(next) => {
                self.queue.remove(&(*next, id));
                *next = Instant::now();
                self.queue.insert((*next, id));
            }
        }
        true
    }

    fn add(&mut self, id: i64, how: How, to: oneshot::Sender<Result<Option<Stand>, DbErr>>) -> u64 {
        self.tickets += 1;
        let reply = Reply { ticket: self.tickets, how, to };
        let waiting = self.waiting.entry(id).or_insert_with(|| {
            let now = Instant::now();
            self.queue.insert((now, id));
            Waiting {
                replies: Vec::new(),
                next: Some(now),
                pause: PAUSE,
                hurried: false,
                told: None,
            }
        });
        waiting.replies.push(reply);
        self.hurry(id);
        self.tickets
    }

    /// Somebody no longer waits.
    fn remove(&mut self, id: i64, ticket: u64) {
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        waiting.replies.retain(|reply| reply.ticket != ticket);
        if waiting.replies.is_empty() {
            if let Some(next) = waiting.next {
                self.queue.remove(&(next, id));
            }
            self.waiting.remove(&id);
        }
    }

    /// What to look for now, or when to look next.
    fn next(&mut self) -> Next {
        let now = Instant::now();
        let due: Vec<i64> = self
            .queue
            .iter()
            .take_while(|(at, _)| *at <= now)
            .take(ROWS)
            .map(|due| due.1)
            .collect();
        if due.is_empty() {
            return Next::Wait(self.queue.first().map(|first| first.0));
        }
        let mut values = false;
        for id in &due {
            let Some(waiting) = self.waiting.get_mut(id) else { continue };
            if let Some(next) = waiting.next.take() {
                self.queue.remove(&(next, *id));
            }
            waiting.hurried = false;
            values |= waiting.replies.iter().any(|reply| reply.how != How::End);
        }
        Next::Look { ids: due, values, ticket: self.tickets }
    }

    /// Takes in what was found of a task; `true` if somebody still waits for it.
    fn found(&mut self, id: i64, ticket: u64, stand: Option<&Stand>, longest: Duration) -> bool {
        let Some(waiting) = self.waiting.get_mut(&id) else { return false };
        let ended = stand.is_none_or(|stand| stand.status.is_final());
        for reply in std::mem::take(&mut waiting.replies) {
            if reply.ticket <= ticket && (ended || reply.how == How::Now) {
                let _ = reply.to.send(Ok(stand.cloned()));
            } else {
                waiting.replies.push(reply);
            }
        }
        self.look_later(id, ticket, longest)
    }

    /// The database could not be asked.
    fn failed(&mut self, id: i64, ticket: u64, error: &DbErr, longest: Duration) {
        let Some(waiting) = self.waiting.get_mut(&id) else { return };
        for reply in std::mem::take(&mut waiting.replies) {
            if reply.ticket <= ticket && reply.how == How::Now {
                let _ = reply.to.send(Err(error.clone()));
            } else {
                waiting.replies.push(reply);
            }
        }
        self.look_later(id, ticket, longest);
    }

    fn look_later(&mut self, id: i64, ticket: u64, longest: Duration) -> bool {
        let Some(waiting) = self.waiting.get_mut(&id) else { return false };
        waiting.replies.retain(|reply| !reply.to.is_closed());
        if waiting.replies.is_empty() {
            self.waiting.remove(&id);
            return false;
        }
        let now = Instant::now();
        let at_once = waiting.hurried || waiting.replies.iter().any(|reply| reply.ticket > ticket);
        let next = if at_once { now } else { now + waiting.pause };
        waiting.pause = (waiting.pause * 2).min(longest).max(PAUSE);
        waiting.next = Some(next);
        self.queue.insert((next, id));
        true
    }
}

enum Next {
    Look {
        ids: Vec<i64>,
        /// Values are wanted.
        values: bool,
        /// Who came later than this has not been looked for.
        ticket: u64,
    },
    Wait(Option<Instant>),
}

/// Waits for what is asked; `None` if this project has no such task (any more).
///
/// Dropping the future ends the waiting, and changes nothing else.
pub(crate) async fn wait(inner: &Arc<Inner>, id: TaskId, how: How) -> Result<Option<Stand>> {
    let (to, answer) = oneshot::channel();
    let ticket = {
        let mut state = inner.waits.lock();
        if state.closed {
            return Err(closed());
        }
        inner.waits.any.store(true, Ordering::Release);
        state.add(id.0, how, to)
    };
    let _place = Place { inner, id: id.0, ticket };
    start(inner);
    inner.waits.work.notify_one();
    if how != How::Now {
        listen(inner);
    }
    match answer.await {
        Ok(found) => Ok(found?),
        Err(_) => Err(closed()),
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "the runtime ended while the end of a task was waited for")
}

/// A place among those who wait; given back when it is dropped.
struct Place<'a> {
    inner: &'a Inner,
    id: i64,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.inner.waits.lock();
        state.remove(self.id, self.ticket);
        self.inner.waits.any.store(!state.waiting.is_empty(), Ordering::Release);
    }
}

/// Starts the loop, the first time that there is something for it to do.
pub(super) fn start(inner: &Arc<Inner>) {
    if !inner.waits.running.swap(true, Ordering::AcqRel) {
        supervised(inner, "waits", run);
    }
}

/// Hears what other processes say, also where no claims are made.
pub(super) fn listen(_inner: &Arc<Inner>) {
    #[cfg(feature = "postgres")]
    super::listen::start(_inner);
}

async fn run(inner: Arc<Inner>) {
    while !inner.ended.is_cancelled() {
        #[cfg(feature = "postgres")]
        super::listen::tell_of_ends(&inner).await;
        let next = inner.waits.lock().next();
        match next {
            Next::Look { ids, values, ticket } => look(&inner, &ids, values, ticket).await,
            Next::Wait(until) => tokio::select! {
                () = inner.waits.work.notified() => {}
                () = sleep_until(until) => {}
                () = inner.ended.cancelled() => {}
            },
        }
    }
    let mut state = inner.waits.lock();
    state.closed = true;
    // Who still waits hears that nobody will answer.
    state.waiting.clear();
    state.queue.clear();
}

async fn sleep_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time.into()).await,
        None => std::future::pending().await,
    }
}

async fn look(inner: &Arc<Inner>, ids: &[i64], values: bool, ticket: u64) {
    let longest = inner.poll_interval;
    let found = match steadily(|| inner.store.stands(ids, values)).await {
        Ok(found) => found,
        Err(error) => {
            debug!(%error, "ends of tasks cannot be looked for now; trying again");
            let mut state = inner.waits.lock();
            return ids.iter().for_each(|id| state.failed(*id, ticket, &error, longest));
        }
    };
    let mut open = Vec::new();
    {
        let mut state = inner.waits.lock();
        for id in ids {
            if state.found(*id, ticket, found.get(id), longest) {
                open.push(*id);
            }
        }
    }
    // What is held here ends here.
    open.retain(|id| !inner.held.contains(*id));
    #[cfg(feature = "postgres")]
    tell_of_waiting(inner, open).await;
}

/// Tells the other processes what is waited for here, now and then.
#[cfg(feature = "postgres")]
async fn tell_of_waiting(inner: &Arc<Inner>, mut open: Vec<i64>) {
    if !super::listen::applies(inner) {
        return;
    }
    {
        let now = Instant::now();
        let mut state = inner.waits.lock();
        open.retain(|id| match state.waiting.get_mut(id) {
            Some(waiting)
                if waiting.told.is_none_or(|told| now - told > super::listen::TELL_EVERY) =>
            {
                waiting.told = Some(now);
                true
            }
            _ => false,
        });
    }
    super::listen::tell_of_waiting(inner, &open).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Status;

    fn stand(status: Status) -> Stand {
        Stand { status, error: None, result: None }
    }

    type Answer = oneshot::Receiver<Result<Option<Stand>, DbErr>>;

    fn add(state: &mut State, id: i64, how: How) -> (u64, Answer) {
        let (to, answer) = oneshot::channel();
        (state.add(id, how, to), answer)
    }

    fn look(state: &mut State) -> (Vec<i64>, bool, u64) {
        match state.next() {
            Next::Look { ids, values, ticket } => (ids, values, ticket),
            Next::Wait(at) => panic!("nothing to look for before {at:?}"),
        }
    }

    const LONGEST: Duration = Duration::from_secs(1);

    #[test]
    fn one_look_serves_all_and_pauses_grow() {
        let mut state = State::default();
        let (_, mut first) = add(&mut state, 1, How::Value);
        let (_, mut second) = add(&mut state, 1, How::End);
        let (_, _other) = add(&mut state, 2, How::End);
        let (ids, values, ticket) = look(&mut state);
        assert_eq!((ids, values), (vec![1, 2], true));
        for round in 0..12 {
            assert!(state.found(1, ticket, Some(&stand(Status::Executing)), LONGEST));
            let pause = state.waiting[&1].pause;
            assert_eq!(pause, (PAUSE * (2 << round)).min(LONGEST));
            state.hurry(1);
            look(&mut state);
        }
        assert!(first.try_recv().is_err());
        assert!(!state.found(1, ticket, Some(&stand(Status::Succeeded)), LONGEST));
        for answer in [&mut first, &mut second] {
            assert_eq!(answer.try_recv().unwrap().unwrap().unwrap().status, Status::Succeeded);
        }
        assert_eq!(state.waiting.len(), 1);
    }

    #[test]
    fn who_comes_during_a_look_is_looked_for_again() {
        let mut state = State::default();
        let (_, mut first) = add(&mut state, 1, How::End);
        let (.., ticket) = look(&mut state);
        let (_, mut second) = add(&mut state, 1, How::Value);
        assert!(state.found(1, ticket, Some(&stand(Status::Succeeded)), LONGEST));
        assert!(first.try_recv().is_ok() && second.try_recv().is_err());
        let (ids, values, ticket) = look(&mut state);
        assert_eq!((ids, values), (vec![1], true));
        state.found(1, ticket, None, LONGEST);
        assert_eq!(second.try_recv().unwrap().unwrap(), None);
    }

    #[test]
    fn an_end_during_a_look_is_not_missed() {
        let mut state = State::default();
        let (_, _answer) = add(&mut state, 1, How::End);
        let (.., ticket) = look(&mut state);
        assert!(state.hurry(1));
        assert!(state.found(1, ticket, Some(&stand(Status::Retrying)), LONGEST));
        assert_eq!(look(&mut state).0, [1]);
        assert!(!state.hurry(2));
    }

    #[test]
    fn nothing_is_left_of_those_who_went() {
        let mut state = State::default();
        let (ticket, answer) = add(&mut state, 1, How::End);
        let (_, dropped) = add(&mut state, 2, How::End);
        drop((answer, dropped));
        state.remove(1, ticket);
        let (ids, _, ticket) = look(&mut state);
        assert_eq!(ids, [2]);
        assert!(!state.found(2, ticket, Some(&stand(Status::Executing)), LONGEST));
        assert!(state.waiting.is_empty() && state.queue.is_empty());
    }

    #[test]
    fn who_wants_to_know_now_does_not_wait() {
        let mut state = State::default();
        let (_, mut now) = add(&mut state, 1, How::Now);
        let (_, mut end) = add(&mut state, 1, How::End);
        let (.., ticket) = look(&mut state);
        state.failed(1, ticket, &DbErr::Custom("gone".into()), LONGEST);
        assert!(now.try_recv().unwrap().is_err() && end.try_recv().is_err());
        let (_, mut now) = add(&mut state, 1, How::Now);
        let (.., ticket) = look(&mut state);
        assert!(state.found(1, ticket, Some(&stand(Status::Waiting)), LONGEST));
        assert_eq!(now.try_recv().unwrap().unwrap().unwrap().status, Status::Waiting);
    }
}
