//! Messages: what is to be sent is stored first, by a transaction if you like, and sent until the broker
//! has it. A transactional outbox for any broker.
//!
//! Each broker is a [`Strategy`] of its own source, behind a feature of its name, and is registered as
//! every other strategy. There are two doors to all of them:
//!
//! - the untyped one, as the starter has it: [`TaskRetry::submit`] and
//!   [`submit_in`](TaskRetry::submit_in) with a [`Task`] whose topic, key and context are the message's;
//! - the typed one: a [`Draft`] from `mq::rocketmq("my-topic")` and its like, to which
//!   [`send`](Draft::send) gives the body.
//!
//! | feature | source | the topic is | the key is | a success is |
//! | --- | --- | --- | --- | --- |
//! | `rocketmq` | 10 | the topic, or `topic:tag` | the message's key; it chooses the queue | `SEND_OK` |
//! | `rabbitmq` | 11 | the routing key of the exchange that was configured, or an address, `/exchanges/exchange/key` or `/queues/queue` | the header `key` | a publisher confirm of a message that was routed |
//! | `nats` | 12 | the subject | the header `key` | the acknowledgement of JetStream |
//! | `kafka` | 13 | the topic | the record's key; it chooses the partition | the acknowledgement of all replicas in sync |
//!
//! Where a message is more than its row, a [`MessageAssembler`] makes it, for a source of your own. Any
//! other broker is a [`Broker`] of yours.
//!
//! # What is promised
//!
//! A message is sent **at least once**: after a crash or a lost answer it is sent again. Every copy
//! carries the task's id, as the message id or in the header `task-id`, so that consumers can tell.
//!
//! Messages that are in flight together may overtake each other, and one that failed is sent later than
//! those behind it. Where the order within a key matters, wait for each message before the next:
//! `send(&body).await` returns once the broker has it.
//!
//! A broker that is away costs nothing but time: messages are accepted, stored and wait. Nothing is
//! refused because of what is in a message's row, either: what a broker rejects is retried by the policy,
//! for a topic, a route or a password may be mended, and ends as failed (status 2) when the retries are
//! used up, with the broker's own words in `last_error`.

#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "nats")]
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
#[cfg(feature = "rocketmq")]
mod rocketmq;

use std::fmt::{self, Display};
use std::future::{Future, IntoFuture};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sea_orm::ConnectionTrait;
use serde::Serialize;

use crate::call::submit_and_wait;
use crate::registry::{BoxFuture, encode_message};
use crate::{
    CallError, Enqueued, Error, ErrorKind, HandleResult, Result, Source, Strategy, Task, TaskId,
    TaskLog, TaskRetry,
};

#[cfg(feature = "kafka")]
pub use self::kafka::{Kafka, KafkaConfig, kafka};
#[cfg(feature = "nats")]
pub use self::nats::{Nats, NatsConfig, nats};
#[cfg(feature = "rabbitmq")]
pub use self::rabbitmq::{RabbitMq, RabbitMqConfig, rabbitmq};
#[cfg(feature = "rocketmq")]
pub use self::rocketmq::{RocketMq, RocketMqConfig, rocketmq};

/// How long a message may take by default.
#[allow(dead_code)] // without any broker
pub(crate) const SEND_TIMEOUT: Duration = Duration::from_secs(3);

/// A time-out has to be usable.
#[allow(dead_code)]
pub(crate) fn check_timeout(timeout: Duration) -> Result<()> {
    let range = Duration::from_millis(100)..=Duration::from_secs(3600);
    match range.contains(&timeout) {
        true => Ok(()),
        false => Err(config(format!("the send time-out {timeout:?} is not from 100 ms to 1 h"))),
    }
}

#[allow(dead_code)]
pub(crate) fn config(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, message)
}

/// What a percent-encoded text stands for; `None` if it is not encoded well.
#[allow(dead_code)]
pub(crate) fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|n| u8::try_from(n).ok());
        bytes.push(digit(*after.first()?)? * 16 + digit(*after.get(1)?)?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).ok()
}

/// A message as it goes to a broker.
///
/// [`Message::of`] makes it of a row; a [`MessageAssembler`] may then change it.
///
/// `Debug` leaves the body out: arguments do not belong in logs.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The task, and so the message: the same for every copy that is sent.
    pub id: TaskId,
    /// Where to, in the broker's terms; see the table [above](self).
    pub topic: String,
    /// The key; empty if there is none.
    pub key: String,
    /// Headers, in RocketMQ's words user properties.
    pub headers: Vec<(String, String)>,
    /// What is sent.
    pub body: Vec<u8>,
}

impl Message {
    /// The row's topic and key, and its context as UTF-8.
    pub fn of(task: &TaskLog) -> Self {
        Self {
            id: task.id,
            topic: task.topic.clone(),
            key: task.msg_key.clone(),
            headers: Vec::new(),
            body: task.context.clone().unwrap_or_default().into_bytes(),
        }
    }

    /// The same to another topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = topic.into();
        self
    }

    /// The same with another key.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// The same with one more header.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with another body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("id", &self.id.get())
            .field("topic", &self.topic)
            .field("key", &self.key)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}

/// Makes the message of a task: the starter's `assembleMessage`. Every `Fn(&TaskLog) -> Result<Message,
/// String>` is one.
///
/// It runs at each attempt, so it must make the same message each time.
pub trait MessageAssembler: Send + Sync + 'static {
    /// The message.
    ///
    /// # Errors
    /// Why there is none: stored as `last_error`, and retried by the policy.
    fn assemble(&self, task: &TaskLog) -> Result<Message, String>;
}

impl<F> MessageAssembler for F
where
    F: Fn(&TaskLog) -> Result<Message, String> + Send + Sync + 'static,
{
    fn assemble(&self, task: &TaskLog) -> Result<Message, String> {
        self(task)
    }
}

/// What sends messages. Cheap to clone; the clones share their connections.
pub trait Broker: Clone + Send + Sync + 'static {
    /// Sends one message and waits until the broker has made it as durable as it does.
    ///
    /// It has to end within a time-out of its own, and may be called by many tasks at once.
    fn publish(&self, message: Message) -> impl Future<Output = Result<(), PublishError>> + Send;

    /// Closes the connections when the runtime has stopped. Calling it again does no harm.
    fn close(&self) -> impl Future<Output = ()> + Send {
        async {}
    }

    /// A strategy for a source of your own, from 30 up, whose messages are made of the rows and sent
    /// through the connections of this broker.
    fn assembled<A: MessageAssembler>(
        &self,
        source: impl Source,
        name: impl Into<String>,
        assembler: A,
    ) -> Messages<Self, A> {
        Messages { source: source.number(), name: name.into(), broker: self.clone(), assembler }
    }
}

/// Why a message was not sent, or is not known to have been.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PublishError {
    /// What happened, to what, and what to do; stored as `last_error`.
    pub reason: String,
    /// Whether another attempt may succeed. `false` is for what is proven to fail each time.
    pub retry: bool,
}

impl PublishError {
    /// One that is worth another attempt.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: true }
    }

    /// One that would only happen again: the message cannot be sent as it is.
    pub fn permanent(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry: false }
    }
}

impl Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for PublishError {}

/// A strategy that assembles messages of the rows of one source, see [`Broker::assembled`].
#[derive(Clone, Debug)]
pub struct Messages<B, A> {
    source: i32,
    name: String,
    broker: B,
    assembler: A,
}

impl<B: Broker, A: MessageAssembler> Strategy for Messages<B, A> {
    fn source(&self) -> i32 {
        self.source
    }

    fn name(&self) -> &str {
        &self.name
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        match self.assembler.assemble(task) {
            Ok(message) => published(self.broker.publish(message).await),
            Err(error) => {
                let reason = format!("its message cannot be assembled: {error}");
                HandleResult::Fail { reason, retry: true }
            }
        }
    }

    async fn shutdown(&self) {
        self.broker.close().await;
    }
}

fn published(result: Result<(), PublishError>) -> HandleResult {
    match result {
        Ok(()) => HandleResult::Success,
        Err(PublishError { reason, retry }) => HandleResult::Fail { reason, retry },
    }
}

/// Makes a broker the strategy of its own source.
#[allow(unused_macros)] // without any broker
macro_rules! strategy {
    ($broker:ty, $source:expr, $name:literal) => {
        impl $crate::Strategy for $broker {
            fn source(&self) -> i32 {
                $source
            }

            fn name(&self) -> &str {
                $name
            }

            async fn handle(&self, task: &$crate::TaskLog) -> $crate::HandleResult {
                let message = $crate::mq::Message::of(task);
                $crate::mq::published($crate::mq::Broker::publish(self, message).await)
            }

            async fn shutdown(&self) {
                $crate::mq::Broker::close(self).await;
            }
        }
    };
}
#[allow(unused_imports)] // without any broker
pub(crate) use strategy;

/// A message to a topic, before it has a body.
#[derive(Clone, Debug)]
#[must_use = "nothing is sent until `.send(&body)` is awaited or enqueued"]
pub struct Draft(Task);

impl Draft {
    /// A message of this source: of a broker, of a strategy by [`Broker::assembled`], or of a
    /// [`Strategy`] by hand.
    pub fn new(source: impl Source, topic: impl Into<String>) -> Self {
        Self(Task::new(source).topic(topic))
    }

    /// The message's key, see [`Task::key`].
    pub fn key(self, key: impl Into<String>) -> Self {
        Self(self.0.key(key))
    }

    /// What to send: a string as it is, anything else as JSON.
    pub fn send<T: Serialize + ?Sized>(self, body: &T) -> Publication {
        Publication { task: encode_message(body).map(|body| self.0.context(body)), on: None }
    }
}

/// A message that is ready to be sent.
///
/// Awaited, it is stored and sent at once: `Ok` says that the broker has it; with
/// [`CallError::Deferred`] it is stored, and will be sent. [`enqueue`](Self::enqueue) only stores it,
/// [`enqueue_in`](Self::enqueue_in) by a transaction of yours. Nothing happens before either.
///
/// ```standalone_crate
/// # use std::sync::{Arc, Mutex};
/// # use task_retry::mq::{Broker, Draft, Message, PublishError};
/// # use task_retry::{Strategy, TaskRetry, Status};
/// /// A broker of ours.
/// #[derive(Clone, Default)]
/// struct Letters(Arc<Mutex<Vec<String>>>);
///
/// impl Broker for Letters {
///     async fn publish(&self, message: Message) -> Result<(), PublishError> {
///         let body = String::from_utf8_lossy(&message.body);
///         self.0.lock().unwrap().push(format!("{}: {body}", message.topic));
///         Ok(())
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let letters = Letters::default();
/// let retry = TaskRetry::builder()
///     .project("docs")
///     .database("sqlite::memory:")
///     .strategy(letters.assembled(40, "letters", |task: &_| Ok(Message::of(task))))
///     .start()
///     .await?;
///
/// Draft::new(40, "my-topic").key("20221213660896").send("objMsg").await?;
/// let later = Draft::new(40, "my-topic").send(&[1, 2]).unique_key("once").enqueue().await?;
/// # while retry.tasks().get(later.id()).await?.unwrap().status != Status::Succeeded {
/// #     tokio::task::yield_now().await;
/// # }
/// assert_eq!(*letters.0.lock().unwrap(), ["my-topic: objMsg", "my-topic: [1,2]"]);
/// retry.shutdown().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[must_use = "nothing is sent until it is awaited or enqueued"]
pub struct Publication {
    task: Result<Task>,
    on: Option<TaskRetry>,
}

impl Publication {
    fn change(self, change: impl FnOnce(Task) -> Task) -> Self {
        Self { task: self.task.map(change), on: self.on }
    }

    /// A key of which this project and source have at most one task, see [`Task::unique_key`].
    pub fn unique_key(self, key: impl Into<String>) -> Self {
        self.change(|task| task.unique_key(key))
    }

    /// Retries after the first attempt, instead of the policy's.
    pub fn max_retry(self, retries: u32) -> Self {
        self.change(|task| task.max_retry(retries))
    }

    /// Given up (status 2) instead of sent once this time has passed.
    pub fn expires_in(self, time: Duration) -> Self {
        self.change(|task| task.expires_in(time))
    }

    /// Sends it not before this time has passed. It can then only be enqueued.
    pub fn delay(self, delay: Duration) -> ScheduledPublication {
        ScheduledPublication(self.change(|task| task.delay(delay)))
    }

    /// Sends it not before this time. It can then only be enqueued.
    pub fn at(self, time: DateTime<Utc>) -> ScheduledPublication {
        ScheduledPublication(self.change(|task| task.at(time)))
    }

    /// The runtime to use instead of [`TaskRetry::current`].
    pub fn on(self, retry: &TaskRetry) -> Self {
        Self { on: Some(retry.clone()), ..self }
    }

    /// Stores it; a worker sends it, in this process straight away if one is free.
    ///
    /// # Errors
    /// As for [`TaskRetry::submit`], and `Context` if the body cannot be stored.
    pub async fn enqueue(self) -> Result<Enqueued> {
        let (retry, task) = self.parts()?;
        retry.submit(task).await
    }

    /// Stores it by a transaction of the caller's in the same database: it is sent only if the
    /// transaction is committed.
    ///
    /// # Errors
    /// As for [`TaskRetry::submit_in`], and `Context` if the body cannot be stored.
    pub async fn enqueue_in<C: ConnectionTrait>(self, transaction: &C) -> Result<Enqueued> {
        let (retry, task) = self.parts()?;
        retry.submit_in(transaction, task).await
    }

    fn parts(self) -> Result<(TaskRetry, Task)> {
        let retry = self.on.map_or_else(TaskRetry::current, Ok)?;
        Ok((retry, self.task?))
    }
}

impl IntoFuture for Publication {
    type Output = Result<(), CallError<String>>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (retry, task) = self.parts().map_err(CallError::Rejected)?;
            submit_and_wait(&retry, task).await
        })
    }
}

/// A message for a later time, which can only be enqueued.
#[derive(Debug)]
#[must_use = "nothing is sent until it is enqueued"]
pub struct ScheduledPublication(Publication);

impl ScheduledPublication {
    /// See [`Publication::unique_key`].
    pub fn unique_key(self, key: impl Into<String>) -> Self {
        Self(self.0.unique_key(key))
    }

    /// See [`Publication::max_retry`].
    pub fn max_retry(self, retries: u32) -> Self {
        Self(self.0.max_retry(retries))
    }

    /// See [`Publication::expires_in`]; the time counts from now, not from the time when it is due.
    pub fn expires_in(self, time: Duration) -> Self {
        Self(self.0.expires_in(time))
    }

    /// See [`Publication::on`].
    pub fn on(self, retry: &TaskRetry) -> Self {
        Self(self.0.on(retry))
    }

    /// See [`Publication::enqueue`].
    ///
    /// # Errors
    /// As there.
    pub async fn enqueue(self) -> Result<Enqueued> {
        self.0.enqueue().await
    }

    /// See [`Publication::enqueue_in`].
    ///
    /// # Errors
    /// As there.
    pub async fn enqueue_in<C: ConnectionTrait>(self, transaction: &C) -> Result<Enqueued> {
        self.0.enqueue_in(transaction).await
    }
}
