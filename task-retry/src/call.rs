//! Calls of durable functions: what a caller awaits, enqueues and gets back.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;
use tokio::sync::oneshot;

use crate::clock::{Millis, ceil_millis, floor_millis, to_datetime, to_millis};
use crate::context::{Env, TaskContext};
use crate::enqueued::value_of_earlier;
use crate::registry::{BoxFuture, Ending, ErrorOf, Handler, Report, ValueOf, encode};
use crate::runtime::execute::{EndKind, Ended, Inside, Ready, awaited, hand_back, paused};
use crate::runtime::held::Hold;
use crate::runtime::pool::Start;
use crate::runtime::write::{Refusal, Room, Stored, write_beside};
use crate::runtime::{Inner, pauses};
use crate::store::{Inserted, NewRow};
use crate::task::{Due, Options};
use crate::transition::Transition;
use crate::{Enqueued, Error, ErrorKind, Result, Retryable, Status, TaskId, TaskRetry};

/// A call of a `#[retryable]` function.
///
/// It does nothing until it is polled. Awaited, it is stored, then run in this process at once in a
/// task of its own, and gives the function's own value. Dropping it after the first poll does not
/// abandon the attempt; dropping it before leaves nothing.
///
/// ```standalone_crate
/// # use task_retry::{retryable, TaskRetry};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// /// Adds one.
/// #[retryable(source = 30)]
/// async fn next(number: u32) -> Result<u32, String> {
///     number.checked_add(1).ok_or("that was the last number".to_owned())
/// }
///
/// let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
/// assert_eq!(next(41).await?, 42);
/// let later = next(42).key("order-7").enqueue().await?;
/// assert!(later.is_new());
/// retry.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[must_use = "a call does nothing until it is awaited or enqueued"]
pub struct Call<R: Retryable>(State<R>);

enum State<R: Retryable> {
    Described(Box<Description<R>>),
    Running(BoxFuture<'static, Result<ValueOf<R>, CallError<ErrorOf<R>>>>),
    Done,
}

struct Description<R: Retryable> {
    encoded: Result<(String, R::Args)>,
    options: Options,
    on: Option<TaskRetry>,
}

// The only future inside is boxed, and nothing is pinned in place.
impl<R: Retryable> Unpin for Call<R> {}

/// Makes a call from its arguments.
pub fn call<R: Retryable>(args: R::Args) -> Call<R> {
    let encoded = encode::<R>(&args);
    Call(State::Described(Box::new(Description { encoded, options: Options::default(), on: None })))
}

impl<R: Retryable> Call<R> {
    fn describe(mut self, change: impl FnOnce(&mut Description<R>)) -> Self {
        if let State::Described(description) = &mut self.0 {
            change(description);
        }
        self
    }

    /// A key of which this project and source have at most one task while its row exists: a second
    /// call with it is answered with [`CallError::Duplicate`], a second `enqueue` with
    /// [`Enqueued::is_new`] `false`. With `store_result`, a call whose key a succeeded task has is
    /// answered with the value of that task. Cancelling a task frees its key, removing its history too.
    ///
    /// 1 to 191 characters, not ending with white space; case counts.
    pub fn key(self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.describe(|call| call.options.unique_key = Some(key))
    }

    /// The `topic` column; at most 255 characters.
    pub fn topic(self, topic: impl Into<String>) -> Self {
        let topic = topic.into();
        self.describe(|call| call.options.topic = topic)
    }

    /// Retries after the first attempt, instead of the policy's.
    pub fn max_retry(self, retries: u32) -> Self {
        self.describe(|call| call.options.max_retry = Some(retries))
    }

    /// Given up (status 2) instead of run once this time has passed.
    pub fn expires_in(self, time: Duration) -> Self {
        self.describe(|call| call.options.expires_in = Some(time))
    }

    /// The span of the caller as a W3C `traceparent` of version 00, such as
    /// `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`, instead of the one that the
    /// [`Propagator`](crate::Propagator) finds. It is stored, and each attempt's span links to it.
    pub fn trace_context(self, traceparent: impl Into<String>) -> Self {
        let traceparent = traceparent.into();
        self.describe(|call| call.options.trace_context = Some(traceparent))
    }

    /// The runtime to use instead of [`TaskRetry::current`].
    pub fn on(self, retry: &TaskRetry) -> Self {
        let retry = retry.clone();
        self.describe(|call| call.on = Some(retry))
    }

    /// Runs it not before this time has passed. It can then only be enqueued.
    pub fn delay(self, delay: Duration) -> Scheduled<R> {
        Scheduled(self.describe(|call| call.options.due = Due::In(delay)))
    }

    /// Runs it not before this time. It can then only be enqueued.
    pub fn at(self, time: DateTime<Utc>) -> Scheduled<R> {
        Scheduled(self.describe(|call| call.options.due = Due::At(time)))
    }

    /// Stores it; a worker runs it, in this process straight away if one is free.
    ///
    /// Dropping the future leaves the call stored or not.
    ///
    /// # Errors
    /// `NotStarted`, `Closed` or `Registry` if no runtime can run it; `Context` if its arguments or
    /// its key cannot be stored; `Store` if the database refuses; `Uncertain` if the connection died
    /// in the commit and the database cannot be asked.
    pub async fn enqueue(self) -> Result<Enqueued<R>> {
        let (retry, prepared) = self.prepare_boxed()?;
        enqueue(retry.open()?, prepared).await.map(Enqueued::typed)
    }

    /// Stores it by a transaction of the caller's in the same database: it exists only if the
    /// transaction is committed. A poll finds it then, or [`TaskRetry::kick`] at once.
    ///
    /// A key that is taken does not abort the transaction.
    ///
    /// # Errors
    /// As for [`enqueue`](Self::enqueue); `Config` if the connection is to another kind of database.
    /// After `Store` on PostgreSQL the transaction is aborted, as after any failed statement.
    pub async fn enqueue_in<C: ConnectionTrait>(self, transaction: &C) -> Result<Enqueued<R>> {
        let retry = self.runtime()?;
        let prepared = self.prepare_to_store()?;
        enqueue_in(retry.open()?, transaction, prepared).await.map(Enqueued::typed)
    }

    /// Awaits it, for callers to whom "will be retried" is fine: that becomes `Ok(None)`.
    ///
    /// # Errors
    /// Every [`CallError`] but `Deferred`.
    pub async fn accepted(self) -> Result<Option<ValueOf<R>>, CallError<ErrorOf<R>>> {
        match self.await {
            Ok(value) => Ok(Some(value)),
            Err(CallError::Deferred { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The arguments as JSON.
    #[cfg(feature = "testing")]
    pub(crate) fn into_context(self) -> Result<String> {
        match self.0 {
            State::Described(description) => description.encoded.map(|(context, _)| context),
            _ => Err(Error::new(ErrorKind::Conflict, "this call was polled already")),
        }
    }

    /// For futures, which are smaller so.
    fn prepare_boxed(self) -> Result<(TaskRetry, Box<Insertion>)> {
        self.prepare().map(|(retry, insertion)| (retry, Box::new(insertion)))
    }

    fn prepare(self) -> Result<(TaskRetry, Insertion)> {
        let Description { encoded, options, on } = self.description()?;
        let retry = of_or_current(on)?;
        let inner = retry.open()?;
        let handler = inner.registry.function::<R>()?;
        let (context, args) = encoded?;
        let insertion =
            Insertion::new(inner, handler, &options, Some(context), Some(Box::new(args)))?;
        Ok((retry, insertion))
    }

    /// The same without its arguments, for what is stored and not handed over.
    pub(crate) fn prepare_to_store(self) -> Result<Insertion> {
        let Description { encoded, options, on } = self.description()?;
        let retry = of_or_current(on)?;
        let inner = retry.open()?;
        let handler = inner.registry.function::<R>()?;
        let (context, _) = encoded?;
        Insertion::new(inner, handler, &options, Some(context), None)
    }

    /// The runtime that it is for.
    pub(crate) fn runtime(&self) -> Result<TaskRetry> {
        match &self.0 {
            State::Described(description) => of_or_current(description.on.clone()),
            _ => Err(polled()),
        }
    }

    fn description(self) -> Result<Description<R>> {
        match self.0 {
            State::Described(description) => Ok(*description),
            _ => Err(polled()),
        }
    }
}

fn of_or_current(on: Option<TaskRetry>) -> Result<TaskRetry> {
    on.map_or_else(TaskRetry::current, Ok)
}

fn polled() -> Error {
    Error::new(
        ErrorKind::Conflict,
        "this call was polled already: it is stored, and cannot be enqueued as well",
    )
}

impl<R: Retryable> Future for Call<R> {
    type Output = Result<ValueOf<R>, CallError<ErrorOf<R>>>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Described(_) = &self.0 {
            let State::Described(description) = std::mem::replace(&mut self.0, State::Done) else {
                unreachable!("it was just seen")
            };
            let call = Call(State::Described(description));
            self.0 = State::Running(Box::pin(run(call)));
        }
        let State::Running(future) = &mut self.0 else {
            panic!("a call was polled after it had ended")
        };
        let result = std::task::ready!(future.as_mut().poll(context));
        self.0 = State::Done;
        Poll::Ready(result)
    }
}

impl<R: Retryable> fmt::Debug for Call<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call")
            .field("function", &std::any::type_name::<R>())
            .finish_non_exhaustive()
    }
}

/// A call for a later time, which can only be enqueued.
#[must_use = "a call does nothing until it is enqueued"]
#[derive(Debug)]
pub struct Scheduled<R: Retryable>(Call<R>);

impl<R: Retryable> Scheduled<R> {
    pub(crate) fn into_inner(self) -> Call<R> {
        self.0
    }

    /// See [`Call::key`].
    pub fn key(self, key: impl Into<String>) -> Self {
        Self(self.0.key(key))
    }

    /// See [`Call::topic`].
    pub fn topic(self, topic: impl Into<String>) -> Self {
        Self(self.0.topic(topic))
    }

    /// See [`Call::max_retry`].
    pub fn max_retry(self, retries: u32) -> Self {
        Self(self.0.max_retry(retries))
    }

    /// See [`Call::expires_in`]; the time counts from now, not from the time when it is due.
    pub fn expires_in(self, time: Duration) -> Self {
        Self(self.0.expires_in(time))
    }

    /// See [`Call::trace_context`].
    pub fn trace_context(self, traceparent: impl Into<String>) -> Self {
        Self(self.0.trace_context(traceparent))
    }

    /// See [`Call::on`].
    pub fn on(self, retry: &TaskRetry) -> Self {
        Self(self.0.on(retry))
    }

    /// See [`Call::enqueue`].
    ///
    /// # Errors
    /// As there.
    pub async fn enqueue(self) -> Result<Enqueued<R>> {
        self.0.enqueue().await
    }

    /// See [`Call::enqueue_in`].
    ///
    /// # Errors
    /// As there.
    pub async fn enqueue_in<C: ConnectionTrait>(self, transaction: &C) -> Result<Enqueued<R>> {
        self.0.enqueue_in(transaction).await
    }
}

/// A task that is ready to be stored.
pub(crate) struct Insertion {
    row: NewRow,
    handler: Arc<dyn Handler>,
    args: Option<Box<dyn Any + Send>>,
    /// Due at once, so that it may be stored already held.
    is_due: bool,
}

impl Insertion {
    pub(crate) fn new(
        inner: &Inner,
        handler: &Arc<dyn Handler>,
        options: &Options,
        context: Option<String>,
        args: Option<Box<dyn Any + Send>>,
    ) -> Result<Self> {
        let now = inner.clock.now();
        let source = handler.meta().source;
        let context = inner.seal(source, context)?;
        let mut row = inner.store.row(inner.clock.new_id(now), source, options, context)?;
        row.trace = inner.trace.of_caller(options.trace_context.as_deref())?;
        row.task_name = Some(handler.meta().name.clone());
        row.expire = options.expires_in.map(|time| now.saturating_add(floor_millis(time)));
        // What is due in the past is due now: nobody looks for it further back.
        row.next = match options.due {
            Due::Now => now,
            Due::In(delay) => now.saturating_add(floor_millis(delay)),
            Due::At(time) => to_millis(time).max(now),
        };
        let is_due = row.next <= now;
        Ok(Self { row, handler: handler.clone(), args, is_due })
    }

    /// Whether it is due as soon as it is stored.
    pub(crate) fn is_due(&self) -> bool {
        self.is_due
    }

    /// The row, for a transaction.
    pub(crate) fn into_row(self) -> NewRow {
        self.row
    }

    fn hold(&mut self, inner: &Inner) {
        self.row.held = true;
        self.row.next = inner.clock.now() + ceil_millis(inner.lease);
    }
}

/// A stored row that this process holds.
fn ready(
    inner: &Arc<Inner>,
    row: NewRow,
    handler: Arc<dyn Handler>,
    args: Option<Box<dyn Any + Send>>,
    now: Millis,
) -> Ready {
    let hold = Hold::new(row.id, 1, row.next);
    inner.held.add(hold.clone());
    let store = &inner.store;
    let task = Arc::new(row.into_log(&store.project, &store.worker, now));
    Ready { task, hold, handler, args, tell: None, by_id: false, failed: None }
}

pub(crate) async fn enqueue(inner: &Arc<Inner>, insertion: Box<Insertion>) -> Result<Enqueued> {
    let room = inner.writer.room().await;
    let (enqueued, starts) = send_off(inner, room, *insertion).await.unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Closed, "the runtime ended while the task was being stored"))
    })?;
    if starts {
        inner.pool.start_waiting(inner);
    }
    Ok(enqueued)
}

/// What an `enqueue` hears, and whether it starts the task itself.
type Answered = Result<(Enqueued, bool)>;

/// Hands a task over to be stored, already held if there is a place for it here.
fn send_off(
    inner: &Arc<Inner>,
    room: Option<Room>,
    mut insertion: Insertion,
) -> oneshot::Receiver<Answered> {
    let runs = inner.job && insertion.is_due && !inner.pauses.is_paused(insertion.row.source);
    let promised = runs && inner.pool.promise();
    if promised {
        insertion.hold(inner);
    }
    let (reply, answer) = oneshot::channel();
    let Insertion { row, handler, args, is_due } = insertion;
    let then = Enqueue { inner: inner.clone(), handler, args, promised, is_due, reply };
    inner.writer.insert(room, row, Box::new(then));
    answer
}

/// What follows an `enqueue`: the task is handed over in memory, with no claim at all.
struct Enqueue {
    inner: Arc<Inner>,
    handler: Arc<dyn Handler>,
    args: Option<Box<dyn Any + Send>>,
    promised: bool,
    is_due: bool,
    reply: oneshot::Sender<Answered>,
}

impl Stored for Enqueue {
    fn stored(self: Box<Self>, inner: &Arc<Inner>, row: NewRow, now: Millis, alone: bool) -> Start {
        let Self { handler, args, promised, is_due, reply, .. } = *self;
        let (id, source, next) = (TaskId(row.id), row.source, row.next);
        let mut start = Start::No;
        if promised {
            inner.pool.break_promise();
            // In the pool before its caller hears of it, who may shut the runtime down.
            match inner.pool.admit(ready(inner, row, handler, args, now), alone) {
                Ok(how) => start = how,
                // Not here: it may have to wait for room, which lanes make.
                Err(back) => write_beside(inner, |inner| async move {
                    hand_back(&inner, vec![*back]).await;
                }),
            }
        } else if is_due {
            inner.tell_of_stored(source, next);
        } else {
            inner.wake.due_at(next);
        }
        let left = matches!(start, Start::Left);
        let _ = reply.send(Ok((Enqueued::new(inner, id, true), left)));
        start
    }

    fn refused(self: Box<Self>, refusal: Refusal) {
        if self.promised {
            self.inner.pool.break_promise();
        }
        let _ = self.reply.send(match refusal {
            Refusal::Duplicate(id, _) => Ok((Enqueued::new(&self.inner, id, false), false)),
            Refusal::Rejected(error) | Refusal::Uncertain(_, error) => Err(error),
        });
    }
}

pub(crate) async fn enqueue_in<C: ConnectionTrait>(
    inner: &Arc<Inner>,
    transaction: &C,
    insertion: Insertion,
) -> Result<Enqueued> {
    inner.store.same_backend(transaction)?;
    let mut row = insertion.row;
    for _ in 0..5 {
        let now = inner.clock.now();
        // A deadlock has ended the transaction, so it is the caller's to repeat.
        let inserted = inner.store.insert(transaction, std::slice::from_ref(&row), now).await?;
        match inserted[..] {
            [Inserted::Duplicate(id, _)] if id.0 != row.id => {
                return Ok(Enqueued::new(inner, id, false));
            }
            [Inserted::IdTaken] => row.id = inner.clock.new_id(now),
            _ => {
                inner.wake.due_at(row.next);
                return Ok(Enqueued::new(inner, TaskId(row.id), true));
            }
        }
    }
    Err(Error::new(
        ErrorKind::Conflict,
        "a task with this key came and went while this one was being stored: try again",
    ))
}

/// What an awaited call hears.
enum Answer {
    Refused(Refusal),
    Ended(TaskId, Ended),
}

async fn run<R: Retryable>(call: Call<R>) -> Result<ValueOf<R>, CallError<ErrorOf<R>>> {
    let call = match bare(call).await {
        Ok(result) => return result,
        Err(call) => call,
    };
    let (retry, insertion) = call.prepare_boxed().map_err(CallError::Rejected)?;
    let inner = retry.open().map_err(CallError::Rejected)?;
    match store_and_run(inner, insertion).await {
        Err(CallError::Duplicate { id, status: status @ Status::Succeeded }) => {
            let value = Box::pin(value_of_earlier::<R>(inner, id)).await;
            value.ok_or(CallError::Duplicate { id, status })
        }
        result => result,
    }
}

/// Awaits a task whose handler is a strategy: it is stored, and its first attempt runs here and now.
#[cfg(feature = "mq")]
pub(crate) async fn submit_and_wait(
    retry: &TaskRetry,
    task: crate::Task,
) -> Result<(), CallError<String>> {
    let inner = retry.inner();
    if !inner.enabled && !inner.closing.is_cancelled() {
        let prepared = retry.prepare(inner, task).map_err(CallError::Rejected)?;
        return run_bare(retry, inner, prepared).await;
    }
    let inner = retry.open().map_err(CallError::Rejected)?;
    let prepared = retry.prepare(inner, task).map_err(CallError::Rejected)?;
    store_and_run(inner, Box::new(prepared)).await
}

/// Stores a task already held, runs its first attempt in a task of its own, and waits for its end.
async fn store_and_run<T: 'static, E: 'static>(
    inner: &Arc<Inner>,
    insertion: Box<Insertion>,
) -> Result<T, CallError<E>> {
    let id = TaskId(insertion.row.id);
    pauses::look(inner).await;
    let room = inner.writer.room().await;
    match send_and_wait(inner, room, *insertion).await {
        Ok(Answer::Ended(id, ended)) => result(id, ended, inner),
        Ok(Answer::Refused(refusal)) => Err(match refusal {
            Refusal::Duplicate(id, status) => CallError::Duplicate { id, status },
            Refusal::Rejected(error) => CallError::Rejected(error),
            Refusal::Uncertain(id, error) => CallError::Uncertain { id, error },
        }),
        // The runtime was dropped under us.
        Err(_) => {
            let error = Error::new(ErrorKind::Closed, "the runtime ended during the call");
            Err(CallError::Uncertain { id, error })
        }
    }
}

fn send_and_wait(
    inner: &Inner,
    room: Option<Room>,
    mut insertion: Insertion,
) -> oneshot::Receiver<Answer> {
    if !inner.pauses.is_paused(insertion.row.source) {
        insertion.hold(inner);
    }
    let (reply, answer) = oneshot::channel();
    let Insertion { row, handler, args, .. } = insertion;
    let then = Await { handler, args, inside: Inside::current(), reply };
    inner.writer.insert(room, row, Box::new(then));
    answer
}

/// What follows the insert of an awaited call: its attempt, in a task of its own.
struct Await {
    handler: Arc<dyn Handler>,
    args: Option<Box<dyn Any + Send>>,
    inside: Inside,
    reply: oneshot::Sender<Answer>,
}

impl Stored for Await {
    fn stored(self: Box<Self>, inner: &Arc<Inner>, row: NewRow, now: Millis, _: bool) -> Start {
        let Self { handler, args, inside, reply } = *self;
        let id = TaskId(row.id);
        if !row.held {
            let _ = reply.send(Answer::Ended(id, left_alone(&handler, &row)));
            return Start::No;
        }
        let ready = ready(inner, row, handler, args, now);
        let inner = inner.clone();
        inner.handle.clone().spawn(async move {
            let ended = awaited(&inner, ready, inside).await;
            let _ = reply.send(Answer::Ended(id, ended));
        });
        Start::No
    }

    fn refused(self: Box<Self>, refusal: Refusal) {
        let _ = self.reply.send(Answer::Refused(refusal));
    }
}

/// What an awaited call hears whose source is paused: it is stored, and waits to be claimed.
fn left_alone(handler: &Arc<dyn Handler>, row: &NewRow) -> Ended {
    let written =
        Transition { to: Status::Executing, send_count: 0, next: Some(row.next), error: None };
    Ended {
        error: Some(paused(handler)),
        written: Some(written),
        landed: Some(true),
        ..Ended::new(EndKind::Failed(CauseKind::Interrupted))
    }
}

/// From the untyped end of an attempt to the caller's types.
fn result<T: 'static, E: 'static>(
    id: TaskId,
    ended: Ended,
    inner: &Inner,
) -> Result<T, CallError<E>> {
    let value = ended.value.and_then(|value| value.downcast::<Result<T, E>>().ok());
    let value = value.map(|value| *value);
    let kind = match ended.kind {
        EndKind::Lost => return Err(CallError::Superseded { id }),
        EndKind::Success | EndKind::Pending => None,
        EndKind::Failed(kind) => Some(kind),
        EndKind::Undecodable => Some(CauseKind::Interrupted),
    };
    match ended.landed {
        Some(true) => {}
        Some(false) => return Err(CallError::Superseded { id }),
        None if !inner.await_commit => {}
        None => {
            let what = "the attempt has ended, and its end could not be written so far";
            let error = Error::new(ErrorKind::Uncertain, what);
            return Err(CallError::Uncertain { id, error });
        }
    }
    let (kind, value) = match (kind, value) {
        (None, Some(Ok(value))) => return Ok(value),
        (kind, value) => (kind.unwrap_or(CauseKind::Interrupted), value),
    };
    let error = value.and_then(Result::err);
    let cause = Cause { kind, error, text: ended.error.unwrap_or_default() };
    let written = ended.written;
    Err(match written.and_then(|written| (written.to != Status::Failed).then_some(written.next)) {
        Some(next) => {
            let retry_at = to_datetime(next.unwrap_or_else(|| inner.clock.now()));
            CallError::Deferred { id, cause, retry_at }
        }
        None => CallError::Failed { id, cause },
    })
}

/// With `enable: false` the body runs, and nothing else. Gives the call back otherwise.
async fn bare<R: Retryable>(call: Call<R>) -> Result<CallResult<R>, Call<R>> {
    let State::Described(description) = &call.0 else { return Err(call) };
    let retry = match &description.on {
        Some(retry) => retry.clone(),
        None => match TaskRetry::current() {
            Ok(retry) => retry,
            Err(_) => return Err(call),
        },
    };
    let inner = retry.inner().clone();
    if inner.enabled || inner.closing.is_cancelled() {
        return Err(call);
    }
    let State::Described(description) = call.0 else {
        return Ok(Err(CallError::Rejected(crate::runtime::write::closed())));
    };
    let prepared = || {
        let Description { encoded, options, .. } = *description;
        let (context, args) = encoded?;
        let handler = inner.registry.function::<R>()?;
        Insertion::new(&inner, handler, &options, Some(context), Some(Box::new(args)))
    };
    Ok(match prepared() {
        Ok(insertion) => run_bare(&retry, &inner, insertion).await,
        Err(error) => Err(CallError::Rejected(error)),
    })
}

type CallResult<R> = Result<ValueOf<R>, CallError<ErrorOf<R>>>;

async fn run_bare<T: 'static, E: 'static>(
    retry: &TaskRetry,
    inner: &Arc<Inner>,
    insertion: Insertion,
) -> Result<T, CallError<E>> {
    let Insertion { row, handler, args, .. } = insertion;
    let id = TaskId(row.id);
    let now = inner.clock.now();
    let mut task = Arc::new(row.into_log(&inner.store.project, "", now));
    inner.unseal_in(&mut task);
    // Nobody else can have it.
    let hold = Hold::new(id.0, 0, Millis::MAX);
    let context = TaskContext::attached(task, retry.clone(), hold);
    let env = Env { context, states: inner.states.clone() };
    let report = retry.scope(handler.run(env, args, true)).await;
    let Report::Ended { ending, value, .. } = report else {
        return Err(CallError::Rejected(Error::new(ErrorKind::Context, "the arguments were lost")));
    };
    let text = match ending {
        Ending::Failed { error, .. } => error,
        _ => String::new(),
    };
    let value = value.and_then(|value| value.downcast::<Result<T, E>>().ok());
    match value.map(|value| *value) {
        Some(Ok(value)) => Ok(value),
        value => {
            let error = value.and_then(Result::err);
            Err(CallError::Failed { id, cause: Cause { kind: CauseKind::Error, error, text } })
        }
    }
}

/// Why an attempt failed.
pub struct Cause<E> {
    kind: CauseKind,
    error: Option<E>,
    text: String,
}

/// The kinds of [`Cause`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CauseKind {
    /// The function returned an error.
    Error,
    /// It panicked.
    Panicked,
    /// It ran longer than its `timeout`.
    TimedOut,
    /// It was stopped, by a shutdown for instance, its source is paused, or a transaction was rolled
    /// back.
    Interrupted,
}

impl<E> Cause<E> {
    /// A cause of which only a text is left.
    pub(crate) fn told(kind: CauseKind, text: String) -> Self {
        Self { kind, error: None, text }
    }

    /// What happened.
    pub fn kind(&self) -> CauseKind {
        self.kind
    }

    /// The function's own error, if it returned one.
    pub fn error(&self) -> Option<&E> {
        self.error.as_ref()
    }

    /// The function's own error, if it returned one.
    pub fn into_error(self) -> Option<E> {
        self.error
    }
}

impl<E> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<E> fmt::Debug for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

impl<E> std::error::Error for Cause<E> {}

/// Why an awaited call gave no value.
#[non_exhaustive]
pub enum CallError<E> {
    /// It failed now, is safe in the table, and will be retried.
    Deferred {
        /// The task.
        id: TaskId,
        /// Why it failed.
        cause: Cause<E>,
        /// When it is due again.
        retry_at: DateTime<Utc>,
    },
    /// It failed for good.
    Failed {
        /// The task.
        id: TaskId,
        /// Why it failed.
        cause: Cause<E>,
    },
    /// A task with this key exists; nothing ran.
    Duplicate {
        /// The task that has the key.
        id: TaskId,
        /// How it stands.
        status: Status,
    },
    /// It ran, but it was cancelled, ended elsewhere, or its lease was lost: somebody else's end counts.
    Superseded {
        /// The task.
        id: TaskId,
    },
    /// The connection died in a commit and the database cannot be asked: it may be stored or not,
    /// ended or not.
    Uncertain {
        /// The task, if it is stored.
        id: TaskId,
        /// What the database said.
        error: Error,
    },
    /// The task was waited for, and there is no value to give; see
    /// [`Enqueued::wait`](Enqueued::wait).
    NoValue {
        /// The task.
        id: TaskId,
        /// Why there is none.
        error: Error,
    },
    /// Nothing was stored and nothing ran.
    Rejected(Error),
}

impl<E> CallError<E> {
    /// The task, if there is one.
    pub fn id(&self) -> Option<TaskId> {
        match self {
            Self::Deferred { id, .. }
            | Self::Failed { id, .. }
            | Self::Duplicate { id, .. }
            | Self::Superseded { id }
            | Self::Uncertain { id, .. }
            | Self::NoValue { id, .. } => Some(*id),
            Self::Rejected(_) => None,
        }
    }

    /// Whether it will be retried: nothing is lost.
    pub fn is_deferred(&self) -> bool {
        matches!(self, Self::Deferred { .. })
    }
}

impl<E> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deferred { id, cause, retry_at } => {
                let at = retry_at.format("%Y-%m-%d %H:%M:%S UTC");
                write!(f, "task {id} failed and will be retried at {at}: {cause}")
            }
            Self::Failed { id, cause } => write!(f, "task {id} failed for good: {cause}"),
            Self::Duplicate { id, status } => {
                write!(f, "nothing ran: task {id} ({status}) has this key already")
            }
            Self::Superseded { id } => write!(
                f,
                "task {id} ran, but it was cancelled, ended elsewhere or taken over meanwhile"
            ),
            Self::Uncertain { id, error } => {
                write!(f, "it is uncertain what became of task {id}: {error}")
            }
            Self::NoValue { id, error } => write!(f, "there is no value of task {id}: {error}"),
            Self::Rejected(error) => write!(f, "nothing was stored and nothing ran: {error}"),
        }
    }
}

impl<E> fmt::Debug for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Deferred { .. } => "Deferred",
            Self::Failed { .. } => "Failed",
            Self::Duplicate { .. } => "Duplicate",
            Self::Superseded { .. } => "Superseded",
            Self::Uncertain { .. } => "Uncertain",
            Self::NoValue { .. } => "NoValue",
            Self::Rejected(_) => "Rejected",
        };
        write!(f, "{name}({self})")
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for CallError<E> {}
