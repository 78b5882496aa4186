//! For tests of code that calls durable functions: a runtime in memory, with a clock that the test
//! moves, and nothing that runs by itself.
//!
//! ```toml
//! [dev-dependencies]
//! task-retry = { version = "0.1", features = ["testing"] }
//! ```
//!
//! ```standalone_crate
//! use std::sync::Mutex;
//! use std::time::Duration;
//!
//! use task_retry::testing::TestRetry;
//! use task_retry::{CallError, retryable};
//!
//! /// Sends one SMS.
//! #[retryable(source = 30)]
//! async fn send_sms(phone: &str, text: &str, #[state] sent: &Sent) -> Result<(), String> {
//!     sent.0.lock().unwrap().push(format!("{phone}: {text}"));
//!     Ok(())
//! }
//!
//! #[derive(Default)]
//! struct Sent(Mutex<Vec<String>>);
//!
//! /// What is to be tested; it knows nothing of tests.
//! async fn place_order(phone: &str) -> Result<(), Box<dyn std::error::Error>> {
//!     send_sms(phone, "we have your order").await?;
//!     send_sms(phone, "how was it?").delay(Duration::from_secs(3600)).enqueue().await?;
//!     Ok(())
//! }
//!
//! # /*
//! #[tokio::test]
//! # */
//! # #[tokio::main(flavor = "current_thread")] async fn main() { a_customer_is_asked_after_an_hour().await }
//! async fn a_customer_is_asked_after_an_hour() {
//!     let test = TestRetry::start(|builder| builder.state(Sent::default())).await.unwrap();
//!
//!     test.run(place_order("+86")).await.unwrap();
//!
//!     // The first message was sent at once, the second one is in the table.
//!     let [later] = &test.enqueued::<send_sms>().await[..] else { panic!("one is enqueued") };
//!     assert_eq!(later.arg::<String>("text"), "how was it?");
//!     assert!(test.has_enqueued(send_sms("+86", "how was it?")).await);
//!
//!     // It goes out after an hour, at the second attempt.
//!     test.fail_next::<send_sms>(1, "no signal");
//!     let report = test.advance(Duration::from_secs(3600)).await;
//!     assert_eq!((report.retrying, report.succeeded), (1, 0));
//!     let report = test.advance(Duration::from_secs(5)).await;
//!     assert_eq!(report.succeeded, 1);
//! }
//! ```
//!
//! Each [`TestRetry`] has a database of its own and is the current runtime only inside of
//! [`run`](TestRetry::run), so tests run side by side. Attempts run one after the other, in the order in
//! which they are due, so a test gives the same result each time.
//!
//! What a test does not see: several processes, crashes, and the workers' concurrency. A `timeout` goes
//! by the real clock.
//!
//! For a function's body alone, without any runtime, call it as `send_sms::direct(…)`.

use std::any::Any;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::DatabaseConnection;
use serde::de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, Visitor};

use crate::clock::to_datetime;
use crate::context::Env;
use crate::registry::Handler;
use crate::{
    Builder, Call, Filter, ManualClock, Result, Retryable, Returned, RunReport, Status, TaskId,
    TaskLog, TaskRetry,
};

/// More than this at once is taken for tasks that enqueue each other for ever.
const MOST: u32 = 5_000;
/// Ten years: the time that a test advances by does not end a lease.
const LEASE: u64 = 315_360_000;

/// A runtime for one test, see the [module](self).
pub struct TestRetry {
    retry: TaskRetry,
    clock: ManualClock,
}

impl TestRetry {
    /// Starts a runtime on a SQLite database in memory, of the project `test`, with the defaults of
    /// [`Config`](crate::Config). The closure adds states, functions, a codec, other settings, or a
    /// connection to another database.
    ///
    /// `TASK_RETRY__…` variables are not read, so that a test is the same everywhere. The clock starts
    /// at the real time. There are no workers: what is enqueued runs in [`drain`](Self::drain) and
    /// [`advance`](Self::advance), an awaited call at once.
    ///
    /// Functions are all those of the program, as ever; with [`Builder::only`] a test needs no states
    /// but those of the functions that it is about.
    ///
    /// # Errors
    /// As for [`Builder::start`].
    pub async fn start(describe: impl FnOnce(Builder) -> Builder) -> Result<Self> {
        let clock = ManualClock::new(Utc::now());
        let builder = TaskRetry::builder()
            .project("test")
            .database("sqlite::memory:")
            .lease_second(LEASE)
            .without_env();
        let builder = describe(builder).job(false).detached().clock(clock.clone());
        Ok(Self { retry: builder.start().await?, clock })
    }

    /// Runs a future in which this runtime is the current one, so that plain calls go to it. Tasks
    /// that it spawns are outside: give calls in there [`.on(test.retry())`](Call::on).
    pub async fn run<F: Future>(&self, future: F) -> F::Output {
        self.retry.scope(future).await
    }

    /// Runs what is due now, and what that makes due now, until nothing is.
    ///
    /// # Panics
    /// If the database refuses, or 5,000 tasks ran and more are due.
    pub async fn drain(&self) -> RunReport {
        let mut report = RunReport::default();
        self.drain_into(&mut report).await;
        report
    }

    /// Moves the clock on and runs what becomes due on the way, each task at its time.
    ///
    /// # Panics
    /// As [`drain`](Self::drain) does.
    pub async fn advance(&self, by: Duration) -> RunReport {
        let target = self.clock.now() + by;
        let mut report = RunReport::default();
        loop {
            self.drain_into(&mut report).await;
            match expect(self.retry.next_due().await).map(to_datetime) {
                Some(next) if next <= target => self.clock.set(next),
                _ => break,
            }
        }
        // A task may have moved it further.
        self.clock.set(target.max(self.clock.now()));
        report
    }

    async fn drain_into(&self, report: &mut RunReport) {
        for _ in 0..MOST {
            if !expect(self.retry.step(report).await) {
                return;
            }
        }
        panic!("{MOST} tasks ran and more are due now: do they enqueue each other for ever?");
    }

    /// The tasks of a function that wait for an attempt, first or later, in the order in which they
    /// are due.
    ///
    /// # Panics
    /// If the function is not registered here, or the database refuses.
    pub async fn enqueued<R: Retryable>(&self) -> Vec<PendingTask> {
        let source = self.handler::<R>().meta().source;
        let filter = Filter::all().source(source).limit(100_000);
        let filter = filter.status(Status::Executing).status(Status::Retrying);
        let mut tasks = expect(self.retry.tasks().list(filter).await);
        tasks.retain(|task| task.locked_by.is_none());
        tasks.sort_by_key(|task| (task.next_send_time, task.id));
        tasks.into_iter().map(PendingTask).collect()
    }

    /// Whether a task with the arguments of this call waits for an attempt. The call itself does
    /// nothing.
    ///
    /// # Panics
    /// As [`enqueued`](Self::enqueued) does, and if the arguments cannot be stored.
    pub async fn has_enqueued<R: Retryable>(&self, call: Call<R>) -> bool {
        let wanted = call.into_context().unwrap_or_else(|error| panic!("{error}"));
        self.enqueued::<R>().await.iter().any(|task| task.json() == wanted)
    }

    /// Lets the next attempts of a function, so many of them, fail with this reason instead of running
    /// its body. An awaited call sees a [`Cause`](crate::Cause) without an error of the function's own;
    /// for one with it there is [`fail_next_with`](Self::fail_next_with).
    ///
    /// Called again, it adds to what is still to fail.
    ///
    /// # Panics
    /// If the function is not registered here.
    pub fn fail_next<R: Retryable>(&self, attempts: u32, reason: impl Into<String>) {
        let reason = reason.into();
        self.plan::<R>(attempts, Box::new(move || Failure::Reason(reason.clone())));
    }

    /// As [`fail_next`](Self::fail_next), with an error of the function's own type: `retry_if` and
    /// [`Classify`](crate::Classify) are asked, and an awaited call gets it.
    ///
    /// ```standalone_crate
    /// # use task_retry::testing::TestRetry;
    /// # use task_retry::{CallError, retryable};
    /// #[derive(Debug, PartialEq)]
    /// enum Declined {
    ///     Busy,
    ///     Expired,
    /// }
    ///
    /// impl std::fmt::Display for Declined {
    ///     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
    ///         write!(f, "{self:?}")
    ///     }
    /// }
    ///
    /// fn may_pass(error: &Declined) -> bool {
    ///     *error == Declined::Busy
    /// }
    ///
    /// /// Charges a card.
    /// #[retryable(source = 31, retry_if = may_pass)]
    /// async fn charge(cents: u64) -> Result<(), Declined> {
    ///     Ok(())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), task_retry::Error> {
    /// let test = TestRetry::start(|builder| builder).await?;
    /// test.fail_next_with::<charge>(1, || Declined::Expired);
    /// let error = test.run(charge(500)).await.unwrap_err();
    /// let CallError::Failed { cause, .. } = error else { panic!("it is not retried") };
    /// assert_eq!(cause.error(), Some(&Declined::Expired));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    /// If the function is not registered here.
    pub fn fail_next_with<R: Retryable>(
        &self,
        attempts: u32,
        error: impl Fn() -> <R::Returned as Returned>::Error + Send + Sync + 'static,
    ) {
        self.plan::<R>(attempts, Box::new(move || Failure::Error(Box::new(error()))));
    }

    fn plan<R: Retryable>(&self, attempts: u32, make: Box<dyn Fn() -> Failure + Send + Sync>) {
        let source = self.handler::<R>().meta().source;
        self.retry.inner().plan.add(source, Planned { left: attempts, make });
    }

    fn handler<R: Retryable>(&self) -> &Arc<dyn Handler> {
        expect(self.retry.inner().registry.function::<R>())
    }

    /// The runtime, to complete, cancel and look at tasks.
    pub fn retry(&self) -> &TaskRetry {
        &self.retry
    }

    /// The clock by which tasks are due. [`advance`](Self::advance) moves it and runs what becomes due;
    /// moved directly, it runs nothing.
    pub fn clock(&self) -> &ManualClock {
        &self.clock
    }

    /// The database, for tables of the test's own and for transactions. In memory it has one
    /// connection: while a transaction is open, call nothing but `enqueue_in` and what is given it.
    pub fn connection(&self) -> &DatabaseConnection {
        self.retry.inner().store.db.pool()
    }
}

impl fmt::Debug for TestRetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestRetry").field("now", &self.clock.now()).finish_non_exhaustive()
    }
}

fn expect<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

/// A task that waits for an attempt, see [`TestRetry::enqueued`].
#[derive(Clone, Debug, PartialEq)]
pub struct PendingTask(TaskLog);

impl PendingTask {
    /// Its id.
    pub fn id(&self) -> TaskId {
        self.0.id
    }

    /// When it is due.
    pub fn due(&self) -> DateTime<Utc> {
        self.0.next_send_time.unwrap_or_default()
    }

    /// One of its arguments, by the parameter's name.
    ///
    /// # Panics
    /// If there is none of that name, or it is not a `T`.
    pub fn arg<T: DeserializeOwned>(&self, name: &str) -> T {
        let mut json = serde_json::Deserializer::from_str(self.json());
        let pick = Pick { name, value: PhantomData };
        let (value, names) = pick.deserialize(&mut json).unwrap_or_else(|error| {
            panic!("the argument `{name}` of {} is not of that type: {error}", self.json())
        });
        value.unwrap_or_else(|| {
            panic!("there is no argument `{name}` among {names:?}");
        })
    }

    /// Its arguments as one JSON object, decoded if there is a codec.
    pub fn json(&self) -> &str {
        self.0.context.as_deref().unwrap_or("{}")
    }

    /// Its row.
    pub fn task(&self) -> &TaskLog {
        &self.0
    }
}

/// Takes one value out of an object without reading the others, so that every number stays exact.
struct Pick<'a, T> {
    name: &'a str,
    value: PhantomData<T>,
}

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Pick<'_, T> {
    type Value = (Option<T>, Vec<String>);

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<Self::Value, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Pick<'_, T> {
    type Value = (Option<T>, Vec<String>);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of arguments")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut value, mut names) = (None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            match name == self.name {
                true => value = Some(map.next_value()?),
                false => drop(map.next_value::<IgnoredAny>()?),
            }
            names.push(name);
        }
        Ok((value, names))
    }
}

/// The attempts that are to fail, by source.
#[derive(Default)]
pub(crate) struct Plan(Mutex<HashMap<i32, VecDeque<Planned>>>);

struct Planned {
    left: u32,
    make: Box<dyn Fn() -> Failure + Send + Sync>,
}

enum Failure {
    Reason(String),
    /// Of the function's own type.
    Error(Box<dyn Any + Send>),
}

impl Plan {
    fn add(&self, source: i32, planned: Planned) {
        let mut plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        plan.entry(source).or_default().push_back(planned);
    }

    fn next(&self, source: i32) -> Option<Failure> {
        let mut plan = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let planned = plan.get_mut(&source)?;
        while planned.front().is_some_and(|first| first.left == 0) {
            planned.pop_front();
        }
        let first = planned.front_mut()?;
        first.left -= 1;
        Some((first.make)())
    }
}

impl Env {
    /// How the attempt is to fail, if a test wants that: with an error or for a reason.
    pub(crate) fn planned_failure<E: 'static>(&self) -> Option<Result<E, String>> {
        let failure = self.context.runtime()?.inner().plan.next(self.context.task().source)?;
        Some(match failure {
            Failure::Reason(reason) => Err(reason),
            Failure::Error(error) => match error.downcast() {
                Ok(error) => Ok(*error),
                Err(_) => Err("a planned failure of another type".into()),
            },
        })
    }
}
