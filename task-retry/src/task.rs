use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};

use crate::{Error, ErrorKind, Source};

/// The id of a task: the primary key of its row, ordered by the time of its making.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct TaskId(pub(crate) i64);

impl TaskId {
    /// The number in the table's `id` column.
    pub const fn get(self) -> i64 {
        self.0
    }
}

impl From<i64> for TaskId {
    fn from(id: i64) -> Self {
        Self(id)
    }
}

impl From<TaskId> for i64 {
    fn from(id: TaskId) -> Self {
        id.0
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.trim().parse().map(Self).map_err(|error| {
            Error::new(ErrorKind::Context, format!("`{text}` is not a task id")).with_source(error)
        })
    }
}

/// The state of a task, as the `status` column has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Status {
    /// 0: accepted; its first attempt is waiting or running.
    Executing = 0,
    /// 1: failed at least once; waiting for or running a retry.
    Retrying = 1,
    /// 2: given up: retries used up, not retryable, expired, or crashed too often.
    Failed = 2,
    /// 3: succeeded.
    Succeeded = 3,
    /// 4: cancelled by a person.
    Cancelled = 4,
    /// 5: the attempt said [`Pending`](crate::Outcome::Pending) and waits for `complete` or `fail`.
    Waiting = 5,
}

impl Status {
    /// Every status, in the order of its number.
    pub const ALL: [Status; 6] = [
        Self::Executing,
        Self::Retrying,
        Self::Failed,
        Self::Succeeded,
        Self::Cancelled,
        Self::Waiting,
    ];

    /// The number in the table.
    pub const fn number(self) -> i16 {
        self as i16
    }

    /// The status of a number in the table.
    pub fn from_number(number: i16) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.number() == number)
    }

    /// Whether the task has ended: it does not run again by itself.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Failed | Self::Succeeded | Self::Cancelled)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A row of `t_sys_mq_resend_log`.
///
/// `Debug` leaves the context out: arguments do not belong in logs.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
pub struct TaskLog {
    /// The primary key.
    pub id: TaskId,
    /// The project that the task belongs to.
    pub project_name: String,
    /// The number of its function or strategy.
    pub source: i32,
    /// The starter's key of the task: for a message, the message's key. Not unique.
    pub msg_key: String,
    /// The state.
    pub status: Status,
    /// How many attempts have failed.
    pub send_count: u32,
    /// The topic of a message; free for other tasks.
    pub topic: String,
    /// The arguments, for a `#[retryable]` function as one JSON object.
    pub context: Option<String>,
    /// When it is due; while it is held, the end of its lease; while it waits, its deadline.
    pub next_send_time: Option<DateTime<Utc>>,
    /// When it was accepted.
    pub create_time: DateTime<Utc>,
    /// When the row was last changed. In a starter's table, in the server's zone.
    pub update_time: DateTime<Utc>,
    /// Grows with every claim and every change from outside; what an older holder writes is void.
    pub fence: i64,
    /// The process that holds the task.
    pub locked_by: Option<String>,
    /// How many holders have died with it.
    pub crash_count: u32,
    /// The unique key, if the caller gave one.
    pub unique_key: Option<String>,
    /// The function's name; null in rows of the starter.
    pub task_name: Option<String>,
    /// The retries of this task, where the caller set them.
    pub max_retry: Option<u32>,
    /// After this time the task is given up instead of run.
    pub expire_time: Option<DateTime<Utc>>,
    /// What the last failed attempt said, at most 4 KiB.
    pub last_error: Option<String>,
    /// The caller's trace (W3C `traceparent`).
    pub trace_context: Option<String>,
    /// What of the row could not be read.
    pub(crate) unreadable: Option<String>,
}

impl TaskLog {
    /// The number of the attempt that runs now or would run next; 1 is the first.
    pub fn attempt(&self) -> u32 {
        self.send_count.saturating_add(1)
    }
}

impl fmt::Debug for TaskLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskLog")
            .field("id", &self.id.0)
            .field("project_name", &self.project_name)
            .field("source", &self.source)
            .field("task_name", &self.task_name)
            .field("status", &self.status)
            .field("send_count", &self.send_count)
            .field("crash_count", &self.crash_count)
            .field("fence", &self.fence)
            .field("locked_by", &self.locked_by)
            .field("next_send_time", &self.next_send_time)
            .field("last_error", &self.last_error)
            .finish_non_exhaustive()
    }
}

/// A task for [`TaskRetry::submit`](crate::TaskRetry::submit): the untyped door, for hand-written
/// strategies and for messages.
///
/// ```
/// use task_retry::{Task, source};
///
/// let task = Task::new(source::ROCKET_MQ).topic("my-topic").key("20221213660896").context("objMsg");
/// # let _ = task;
/// ```
#[derive(Clone, PartialEq)]
#[must_use = "a task is stored when it is given to `submit`"]
pub struct Task {
    pub(crate) source: i32,
    pub(crate) options: Options,
    pub(crate) context: Option<String>,
}

/// What a caller may say of a task beside its arguments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Options {
    pub(crate) msg_key: String,
    pub(crate) topic: String,
    pub(crate) unique_key: Option<String>,
    pub(crate) max_retry: Option<u32>,
    pub(crate) due: Due,
    pub(crate) expires_in: Option<std::time::Duration>,
    pub(crate) trace_context: Option<String>,
}

/// When a task is due.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum Due {
    #[default]
    Now,
    In(std::time::Duration),
    At(DateTime<Utc>),
}

impl Task {
    /// A task of this source, without key, topic or context.
    pub fn new(source: impl Source) -> Self {
        Self { source: source.number(), options: Options::default(), context: None }
    }

    /// The `topic` column; at most 255 characters.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.options.topic = topic.into();
        self
    }

    /// The `msg_key` column: at most 191 characters, 50 in a starter's table. It need not be unique.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.options.msg_key = key.into();
        self
    }

    /// A key of which this project and source have at most one task, see
    /// [`Call::key`](crate::Call::key).
    pub fn unique_key(mut self, key: impl Into<String>) -> Self {
        self.options.unique_key = Some(key.into());
        self
    }

    /// The `context` column, as it is.
    pub fn context(mut self, context: impl Into<String>) -> Self {
        self.context = Some(context.into());
        self
    }

    /// Retries after the first attempt, instead of the policy's.
    pub fn max_retry(mut self, retries: u32) -> Self {
        self.options.max_retry = Some(retries);
        self
    }

    /// Not before this time has passed.
    pub fn delay(mut self, delay: std::time::Duration) -> Self {
        self.options.due = Due::In(delay);
        self
    }

    /// Not before this time.
    pub fn at(mut self, time: DateTime<Utc>) -> Self {
        self.options.due = Due::At(time);
        self
    }

    /// Given up (status 2) instead of run once this time has passed.
    pub fn expires_in(mut self, time: std::time::Duration) -> Self {
        self.options.expires_in = Some(time);
        self
    }

    /// The span of the caller, see [`Call::trace_context`](crate::Call::trace_context).
    pub fn trace_context(mut self, traceparent: impl Into<String>) -> Self {
        self.options.trace_context = Some(traceparent.into());
        self
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task")
            .field("source", &self.source)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}
