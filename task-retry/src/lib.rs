//! Durable retry for async functions.
//!
//! `#[retryable]` turns an async function into a durable one. A call is written to a SQL table before
//! it runs; it then runs at once, and if it fails, or the process dies, any process of the project
//! picks it up from the table and runs it again, with growing delays, until it succeeds or its retries
//! are used up.
//!
//! ```standalone_crate
//! use task_retry::{TaskRetry, retryable};
//!
//! /// Sends one SMS.
//! #[retryable(source = 30, max_retry = 8, timeout = "30s")]
//! async fn send_sms(order_id: u64, phone: &str, #[state] gateway: &Gateway) -> Result<u64, String> {
//!     gateway.send(phone, order_id)
//! }
//!
//! # struct Gateway;
//! # impl Gateway {
//! #     fn send(&self, _phone: &str, order: u64) -> Result<u64, String> { Ok(order) }
//! # }
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let retry = TaskRetry::builder()
//!     .project("shop")
//!     .database("sqlite::memory:")
//!     .state(Gateway)
//!     .start()
//!     .await?;
//!
//! let receipt = send_sms(42, "+8613800000000").await?; // stored, then run here and now
//! send_sms(43, "+8613800000000").enqueue().await?; // stored; a worker runs it
//! retry.shutdown().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where things are
//!
//! - [`guide`]: how to do what, chapter by chapter.
//! - [`TaskRetry`] and [`Builder`]: start a runtime, stop it, complete and fail tasks from outside.
//! - [`retryable`], [`Call`], [`CallError`]: functions and calls.
//! - [`Source`], [`source`]: the numbers by which the table names functions.
//! - [`Policy`], [`Classify`], [`Verdict`], [`Outcome`]: when to retry, and when to wait.
//! - [`Strategy`], [`Task`]: the untyped door, for hand-written strategies.
//! - `mq`, with the feature of that name: messages to brokers, a transactional outbox.
//! - [`Tasks`], [`Filter`], [`TaskLog`]: the tasks of a project, for people.
//! - [`Config`]: the keys, in YAML, TOML, the environment or the builder.
//! - [`ContextCodec`], [`Propagator`]: what encrypts arguments, and what carries traces.
//! - `xxl_job`, with the feature `xxl-job`: an xxl-job admin triggers the retries.
//! - `testing`, with the feature of that name: a runtime in memory with a clock that tests move.
//!
//! # What is promised
//!
//! An accepted task is as durable as the commits that the database acknowledged. It is run at least
//! once. Of two attempts of one task only one can count. No attempt starts that does not, by its
//! monotonic clock, hold the lease.
#![cfg_attr(docsrs, feature(doc_cfg))]
// The futures of RocketMQ's client are deep.
#![cfg_attr(feature = "rocketmq", recursion_limit = "256")]

/// A place where tests may stop the process; nothing without the feature.
macro_rules! failpoint {
    ($name:literal) => {
        #[cfg(feature = "failpoints")]
        $crate::failpoints::reached($name);
    };
}

mod batch;
mod call;
mod clock;
mod codec;
mod config;
mod context;
#[cfg(feature = "encryption")]
mod encryption;
mod enqueued;
mod error;
#[cfg(feature = "failpoints")]
pub mod failpoints;
mod finite;
pub mod guide;
#[cfg(feature = "mq")]
pub mod mq;
mod outcome;
mod policy;
#[doc(hidden)]
pub mod private;
mod registry;
mod runtime;
pub mod source;
mod store;
mod strategy;
mod task;
#[cfg(feature = "testing")]
pub mod testing;
mod trace;
mod transition;
mod undecodable;
#[cfg(feature = "xxl-job")]
pub mod xxl_job;

pub use crate::batch::{Enqueue, enqueue_all, enqueue_all_in};
pub use crate::call::{Call, CallError, Cause, CauseKind, Scheduled};
pub use crate::clock::ManualClock;
pub use crate::codec::{ContextCodec, ContextPlace};
pub use crate::config::{Config, ThreadPoolParam, UtcOffset};
pub use crate::context::TaskContext;
#[cfg(feature = "encryption")]
pub use crate::encryption::Aes256GcmCodec;
pub use crate::enqueued::Enqueued;
pub use crate::error::{Error, ErrorKind, Result};
pub use crate::outcome::{Classify, Outcome, Returned, Verdict};
pub use crate::policy::{Policy, RetryPolicy};
pub use crate::registry::Retryable;
pub use crate::runtime::{
    Attempt, Builder, Changed, Functions, RunReport, Sources, TaskRetry, Tasks,
};
pub use crate::source::Source;
pub use crate::store::Filter;
pub use crate::strategy::{HandleResult, Strategy};
pub use crate::task::{Status, Task, TaskId, TaskLog};
#[cfg(feature = "otel")]
pub use crate::trace::OpenTelemetry;
pub use crate::trace::Propagator;
#[cfg(feature = "macros")]
pub use task_retry_macros::{Source, retryable};

/// The ORM that this crate speaks to databases with, for transactions of the same version.
pub use sea_orm;

#[doc(hidden)]
pub use crate::private as __private;

/// The examples outside of this crate's documentation, compiled; one of them uses the test kit.
#[cfg(all(doctest, feature = "testing"))]
mod elsewhere {
    #[doc = include_str!("../../README.md")]
    struct Readme;

    #[doc = include_str!("../../docs/from-the-starter.md")]
    struct FromTheStarter;
}
