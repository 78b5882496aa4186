//! Attempts: what runs them, how many at once, and what is written when one has ended.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use tokio::sync::oneshot;
use tracing::{Instrument, debug, error, info_span, warn};

use super::held::{Hold, Stop};
use super::write::Backoff;
use super::{Inner, TaskRetry};
use crate::call::CauseKind;
use crate::clock::{Millis, Reading, floor_millis};
use crate::context::{Env, TaskContext};
use crate::registry::{Ending, Handler, Report};
use crate::store::{ANSWER, Attempted, Settlement, error_text, in_time};
use crate::transition::{Transition, after, undecodable_pause};
use crate::{RetryPolicy, Status, TaskLog, Verdict};

/// A task that this process holds and may run.
pub(crate) struct Ready {
    pub(crate) task: Arc<TaskLog>,
    pub(crate) hold: Arc<Hold>,
    pub(crate) handler: Arc<dyn Handler>,
    /// The decoded arguments, where they are at hand.
    pub(crate) args: Option<Box<dyn Any + Send>>,
    /// Who wants to hear how it ended.
    pub(crate) tell: Option<oneshot::Sender<Told>>,
    /// It was asked for by its id, and so runs also while its source is paused.
    pub(crate) by_id: bool,
    /// It was failed from outside, for this reason: the body is not run.
    pub(crate) failed: Option<String>,
}

/// How a task stood after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Became(Status),
    Undecodable,
    /// Put back, or no longer ours.
    Nothing,
}

/// How an attempt ended.
pub(crate) struct Ended {
    pub(crate) kind: EndKind,
    /// The function's own `Result<T, E>`, if it was wanted.
    pub(crate) value: Option<Box<dyn Any + Send>>,
    pub(crate) error: Option<String>,
    /// What was written; `None` if nothing was.
    pub(crate) written: Option<Transition>,
    /// Whether it took effect; `None` if it may yet.
    pub(crate) landed: Option<bool>,
    /// The value as it is stored, if it is.
    pub(crate) result: Option<String>,
}

impl Ended {
    pub(crate) fn new(kind: EndKind) -> Self {
        Self { kind, value: None, error: None, written: None, landed: None, result: None }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndKind {
    Success,
    Pending,
    Failed(CauseKind),
    Undecodable,
    /// Another process has the task, or it was ended from outside.
    Lost,
}

/// An attempt of a worker: its end is written behind.
pub(super) async fn work(inner: &Arc<Inner>, mut ready: Ready) {
    let tell = ready.tell.take();
    let wait = tell.is_some() || !inner.write_behind;
    let inside = Inside::default().and(ready.task.source);
    let ended = INSIDE.scope(inside, attempt(inner, ready, false, wait)).await;
    if let Some(tell) = tell {
        let _ = tell.send(match (&ended.written, ended.landed) {
            _ if ended.kind == EndKind::Undecodable => Told::Undecodable,
            (Some(written), Some(true)) => Told::Became(written.to),
            _ => Told::Nothing,
        });
    }
}

tokio::task_local! {
    /// The sources of the attempts that this code runs inside of.
    static INSIDE: Inside;
}

/// The sources of an attempt and of those that it was called from.
#[derive(Clone, Default)]
pub(crate) struct Inside {
    source: Option<i32>,
    outer: Option<Arc<Inside>>,
}

impl Inside {
    /// Of the code that asks.
    pub(crate) fn current() -> Self {
        INSIDE.try_with(Clone::clone).unwrap_or_default()
    }

    fn contains(&self, source: i32) -> bool {
        let outer = || self.outer.as_ref().is_some_and(|outer| outer.contains(source));
        self.source == Some(source) || outer()
    }

    fn and(&self, source: i32) -> Self {
        if self.contains(source) {
            return self.clone();
        }
        let outer = self.source.map(|_| Arc::new(self.clone()));
        Self { source: Some(source), outer }
    }
}

/// The attempt of an awaited call. A function's own limit holds for it, unless the call comes from
/// inside of an attempt of the same function, which would wait for itself.
pub(crate) async fn awaited(inner: &Arc<Inner>, ready: Ready, inside: Inside) -> Ended {
    let source = ready.task.source;
    let limit = ready.handler.meta().concurrency.filter(|_| !inside.contains(source));
    let _entered = match limit {
        Some(limit) => {
            let hold = ready.hold.clone();
            // A task that was ended meanwhile does not wait; `attempt` sees why.
            tokio::select! {
                () = inner.pool.enter(source, limit) => Some(Entered { inner, source }),
                _ = hold.stopped() => None,
            }
        }
        None => None,
    };
    INSIDE.scope(inside.and(source), attempt(inner, ready, true, inner.await_commit)).await
}

struct Entered<'a> {
    inner: &'a Arc<Inner>,
    source: i32,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.inner.pool.leave(self.inner, self.source);
    }
}

/// Runs one attempt and hands its end to the writer; with `wait`, until that is written.
pub(crate) fn attempt(
    inner: &Arc<Inner>,
    ready: Ready,
    keep_value: bool,
    wait: bool,
) -> impl Future<Output = Ended> + Send {
    let task = &ready.task;
    let span = info_span!(
        "task_retry.attempt",
        task.id = task.id.0,
        task.name = ready.handler.meta().name,
        source = task.source,
        attempt = task.attempt(),
        project = inner.store.project,
        trace_context = task.trace_context,
    );
    inner.trace.link(&span, task.trace_context.as_deref());
    // Whoever waits for it is moved about with it.
    Box::pin(attempt_in(inner, ready, keep_value, wait)).instrument(span)
}

/// Its future is made for every task, so nothing stays in it that is seldom needed.
async fn attempt_in(inner: &Arc<Inner>, ready: Ready, keep_value: bool, wait: bool) -> Ended {
    let Ready { mut task, hold, handler, args, by_id, failed, .. } = ready;
    let (start, began) = (inner.clock.read(), Instant::now());
    let mut ended = match before(inner, &mut task, &hold, &handler, by_id, failed, start) {
        Before::Ended(ended) => ended,
        Before::Counts(ending, kind) => finish(inner, &handler, &task, ending, kind, None),
        Before::Runs(runtime) => {
            let context = TaskContext::attached(task.clone(), runtime.clone(), hold.clone());
            let env = Env { context, states: inner.states.clone() };
            let limit = inner.policy_of(&handler, &task).timeout;
            let body = runtime.scope(handler.run(env, args, keep_value));
            failpoint!("run.before");
            let body = supervise(body, limit, &hold).await;
            failpoint!("run.after");
            match after_body(inner, &task, &hold, &handler, body) {
                After::Ended(ended) => ended,
                After::Completed(ending, kind, value) => {
                    let ending = (ending, kind);
                    Box::pin(completed(inner, &handler, &task, &hold, ending, value)).await
                }
            }
        }
    };
    let Some(transition) = ended.written.clone() else {
        inner.held.remove(&hold);
        return ended;
    };
    if let (Status::Failed, Some(error)) = (transition.to, &ended.error) {
        Box::pin(exhausted(&handler, &task, error)).await;
    }
    let failed = transition.send_count > task.send_count;
    let settlement = Settlement {
        id: task.id.0,
        fence: task.fence,
        to: transition.to,
        send_count: transition.send_count,
        next: transition.next,
        error: transition.error.as_deref().map(error_text),
        result: ended.result.take().map(Arc::from),
        attempt: failed
            .then(|| Attempted { start: start.now, millis: floor_millis(began.elapsed()) }),
    };
    let answer = inner.writer.end(settlement, hold, wait).await;
    if let Some(answer) = answer {
        // The database may be away for long; what has ended is written when it is back.
        let most = inner.lease.max(Duration::from_secs(30));
        ended.landed = match tokio::time::timeout(most, answer).await {
            Ok(Ok(landed)) => Some(landed),
            Ok(Err(_)) | Err(_) => None,
        };
        debug!(status = %transition.to, landed = ended.landed, "attempt ended");
    }
    ended
}

/// What becomes of an attempt before its body starts.
enum Before {
    Runs(TaskRetry),
    Ended(Ended),
    /// It does not run, and that counts.
    Counts(Ending, CauseKind),
}

/// Decides whether a body runs, and decodes the context for it.
fn before(
    inner: &Arc<Inner>,
    task: &mut Arc<TaskLog>,
    hold: &Hold,
    handler: &Arc<dyn Handler>,
    by_id: bool,
    reason: Option<String>,
    clock: Reading,
) -> Before {
    let now = clock.now;
    match hold.why_stopped() {
        Some(Stop::Lost) => return Before::Ended(Ended::new(EndKind::Lost)),
        Some(Stop::Shutdown) => return Before::Ended(put_back(task, now)),
        None if !hold.is_valid(clock.latest()) => {
            debug!("the lease ran out before the attempt could start; the task is put back");
            return Before::Ended(put_back(task, now));
        }
        None if !by_id && reason.is_none() && inner.pauses.is_paused(task.source) => {
            let error = Some(paused(handler));
            return Before::Ended(Ended { error, ..put_back(task, now) });
        }
        None => {}
    }
    // What cannot be decoded may still expire, or have killed too many processes.
    let sealed = inner.unseal_in(task);
    if let Some(error) = reason {
        let ending = Ending::Failed { error, verdict: Verdict::Retry };
        return Before::Counts(ending, CauseKind::Error);
    }
    if let Some(error) = given_up(inner, handler, task, now) {
        let ending = Ending::Failed { error, verdict: Verdict::Abort };
        return Before::Counts(ending, CauseKind::Interrupted);
    }
    if task.status == Status::Waiting {
        let error = "nobody called `complete` or `fail` before the deadline".to_owned();
        let ending = Ending::Failed { error, verdict: Verdict::Retry };
        return Before::Counts(ending, CauseKind::TimedOut);
    }
    let mut error = task.unreadable.clone();
    if let Some(name) = task.task_name.as_ref().filter(|name| **name != handler.meta().name) {
        error.get_or_insert_with(|| {
            let (source, here) = (task.source, &handler.meta().name);
            format!(
                "the row was stored for the function `{name}`, and source {source} is `{here}` here"
            )
        });
    }
    if let Some(error) = error.or(sealed) {
        return Before::Ended(undecodable(task, now, error));
    }
    match inner.handle_to_self() {
        Some(runtime) => Before::Runs(runtime),
        None => Before::Ended(put_back(task, now)),
    }
}

/// What becomes of an attempt whose body has come to its end.
enum After {
    Ended(Ended),
    /// The success may have been committed by a transaction of the attempt's.
    Completed(Ending, CauseKind, Option<Box<dyn Any + Send>>),
}

fn after_body(
    inner: &Inner,
    task: &TaskLog,
    hold: &Hold,
    handler: &Arc<dyn Handler>,
    body: Body<Report>,
) -> After {
    let (report, kind) = match body {
        Body::Done(report) => (report, CauseKind::Error),
        Body::Panicked(message) => (failed(format!("panicked: {message}")), CauseKind::Panicked),
        Body::TimedOut(limit) => {
            (failed(format!("timed out after {limit:?}")), CauseKind::TimedOut)
        }
        Body::Stopped(Stop::Lost) => {
            warn!(
                "the attempt lost its task: another process has it, or it was ended from outside"
            );
            return After::Ended(Ended::new(EndKind::Lost));
        }
        Body::Stopped(Stop::Shutdown) => {
            failpoint!("hand-back.before");
            return After::Ended(put_back(task, inner.clock.now()));
        }
    };
    let (ending, value, result) = match report {
        Report::Undecodable(error) => {
            return After::Ended(undecodable(task, inner.clock.now(), error));
        }
        Report::Ended { ending, value, result } => (ending, value, result),
    };
    if hold.completed.load(Ordering::SeqCst) {
        return After::Completed(ending, kind, value);
    }
    let (ending, result) = match inner.storable(task.source, result) {
        Ok(result) => (ending, result),
        Err(error) => (Ending::Failed { error, verdict: Verdict::Abort }, None),
    };
    After::Ended(Ended { result, ..finish(inner, handler, task, ending, kind, value) })
}

/// An attempt that failed without an error of the function's own.
pub(crate) fn failed(error: String) -> Report {
    let ending = Ending::Failed { error, verdict: Verdict::Retry };
    Report::Ended { ending, value: None, result: None }
}

/// Why nothing of a function is started.
pub(crate) fn paused(handler: &Arc<dyn Handler>) -> String {
    let meta = handler.meta();
    format!("source {} (`{}`) is paused", meta.source, meta.name)
}

/// Why a task is not run at all, if so.
fn given_up(
    inner: &Inner,
    handler: &Arc<dyn Handler>,
    task: &TaskLog,
    now: Millis,
) -> Option<String> {
    let name = &handler.meta().name;
    if task.crash_count > inner.max_crash {
        return Some(format!(
            "given up: {} processes died while they held this task of `{name}`, more than max-crash \
             ({}) allows",
            task.crash_count, inner.max_crash
        ));
    }
    let expired = task.expire_time.is_some_and(|time| time.timestamp_millis() <= now);
    expired.then(|| format!("given up: this task of `{name}` expired before it could run"))
}

/// The attempt's transaction was to carry the success, see [`TaskContext::complete_in`].
async fn completed(
    inner: &Inner,
    handler: &Arc<dyn Handler>,
    task: &TaskLog,
    hold: &Hold,
    (ending, kind): (Ending, CauseKind),
    value: Option<Box<dyn Any + Send>>,
) -> Ended {
    let failed = matches!(ending, Ending::Failed { .. });
    let mut backoff = Backoff::default();
    let found = loop {
        match in_time(ANSWER, inner.store.holders(&[task.id.0])).await {
            Ok(holders) => break holders.get(&task.id.0).map(|it| (it.fence, it.status)),
            Err(_) if hold.why_stopped().is_none() => backoff.pause().await,
            Err(_) => break None,
        }
    };
    if found.is_some_and(|(fence, _)| fence == task.fence) {
        if failed {
            return finish(inner, handler, task, ending, kind, value);
        }
        let error = "the transaction that was given to `complete_in` was rolled back".to_owned();
        let ending = Ending::Failed { error, verdict: Verdict::Retry };
        return finish(inner, handler, task, ending, CauseKind::Interrupted, None);
    }
    if failed {
        return Ended::new(EndKind::Lost);
    }
    // Whoever took the task away, to cancel it for instance, has added 1 to its fence too.
    let landed = found == Some((task.fence + 1, Status::Succeeded.number()));
    if landed {
        inner.waits.ended(task.id);
    }
    Ended { value, landed: Some(landed), ..Ended::new(EndKind::Success) }
}

/// The end of an attempt that counts.
fn finish(
    inner: &Inner,
    handler: &Arc<dyn Handler>,
    task: &TaskLog,
    ending: Ending,
    cause: CauseKind,
    value: Option<Box<dyn Any + Send>>,
) -> Ended {
    let policy = inner.policy_of(handler, task);
    // A retry waits for its delay however late it may be by now.
    let now = if matches!(ending, Ending::Success) { 0 } else { inner.clock.latest() };
    let transition = after(&ending, task.send_count, &policy, now, fastrand::f64());
    let (kind, error) = match ending {
        Ending::Success => (EndKind::Success, None),
        Ending::Pending(_) => (EndKind::Pending, None),
        Ending::Failed { error, .. } => (EndKind::Failed(cause), Some(error)),
    };
    if let Some(error) = &error {
        let retry_at = transition.next.map(crate::clock::to_datetime);
        warn!(status = %transition.to, ?retry_at, error = %error_text(error), "attempt failed");
    }
    Ended { value, error, written: Some(transition), ..Ended::new(kind) }
}

/// Runs the user's `on_exhausted`; its panic changes nothing.
async fn exhausted(handler: &Arc<dyn Handler>, task: &TaskLog, error: &str) {
    let hook = catch_unwind(AssertUnwindSafe(|| handler.on_exhausted(task, error)));
    let Ok(Some(hook)) = hook else { return };
    if AssertUnwindSafe(hook).catch_unwind().await.is_err() {
        error!("`on_exhausted` panicked; the task is given up all the same");
    }
}

/// Due again at once, with nothing counted.
fn put_back(task: &TaskLog, now: Millis) -> Ended {
    let written =
        Transition { to: task.status, send_count: task.send_count, next: Some(now), error: None };
    let error = Some("interrupted before its end".to_owned());
    let kind = EndKind::Failed(CauseKind::Interrupted);
    Ended { error, written: Some(written), ..Ended::new(kind) }
}

/// Due later, with nothing counted but its error kept.
fn undecodable(task: &TaskLog, now: Millis, error: String) -> Ended {
    warn!(%error, "the row cannot be decoded here; it is put back");
    let pause = undecodable_pause(task.fence, task.send_count, task.crash_count);
    let written = Transition {
        to: task.status,
        send_count: task.send_count,
        next: Some(now.saturating_add(pause)),
        error: Some(error.clone()),
    };
    Ended { error: Some(error), written: Some(written), ..Ended::new(EndKind::Undecodable) }
}

/// How a body came to its end.
enum Body<T> {
    Done(T),
    Panicked(String),
    TimedOut(Duration),
    Stopped(Stop),
}

/// Runs a body until it ends, panics, takes too long or has to stop.
async fn supervise<T>(
    body: impl Future<Output = T> + Send,
    limit: Option<Duration>,
    hold: &Hold,
) -> Body<T> {
    let mut body = Box::pin(AssertUnwindSafe(body).catch_unwind());
    let time = async {
        match limit {
            Some(limit) => {
                tokio::time::sleep(limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    };
    let end = tokio::select! {
        biased;
        result = &mut body => match result {
            Ok(value) => Body::Done(value),
            Err(panic) => Body::Panicked(message(panic)),
        },
        why = hold.stopped() => Body::Stopped(why),
        limit = time => Body::TimedOut(limit),
    };
    // What the body holds is dropped here, and may panic too.
    if catch_unwind(AssertUnwindSafe(|| drop(body))).is_err() {
        warn!("dropping an attempt's future panicked");
    }
    end
}

fn message(panic: Box<dyn Any + Send>) -> String {
    match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => match panic.downcast::<&'static str>() {
            Ok(text) => (*text).to_owned(),
            Err(_) => "a value that is not text".to_owned(),
        },
    }
}

/// Puts tasks back that were held and have not started.
pub(crate) async fn hand_back(inner: &Arc<Inner>, waiting: Vec<Ready>) {
    let now = inner.clock.now();
    for ready in waiting {
        let Some(back) = put_back(&ready.task, now).written else { continue };
        let settlement = Settlement {
            id: ready.task.id.0,
            fence: ready.task.fence,
            to: back.to,
            send_count: back.send_count,
            next: back.next,
            error: None,
            result: None,
            attempt: None,
        };
        inner.writer.end(settlement, ready.hold, false).await;
        if let Some(tell) = ready.tell {
            let _ = tell.send(Told::Nothing);
        }
    }
}

impl Inner {
    /// The policy of a task: its own retries, its function's, its source's, the configuration's.
    pub(crate) fn policy_of(&self, handler: &Arc<dyn Handler>, task: &TaskLog) -> RetryPolicy {
        let mut policy = self.policy.with(handler.meta().policy);
        if let Some(retries) = task.max_retry {
            policy.max_retry = retries;
        }
        policy
    }

    fn handle_to_self(&self) -> Option<TaskRetry> {
        TaskRetry::from_weak(&self.owner)
    }
}
