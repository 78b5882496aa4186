//! The guide: one chapter for each thing that one wants to do. Every snippet in it is compiled and run.
//!
//! | chapter | about |
//! | --- | --- |
//! | [`calling`] | functions that are durable, and the ways to call them |
//! | [`failing`] | what is retried, when, and what a caller hears of it |
//! | [`state`] | what functions need beside their arguments |
//! | [`transactions`] | tasks that exist only if an order does, effects that happen once |
//! | [`messages`] | messages to brokers that are sent only if an order is stored |
//! | [`keys`] | one task, however often it is asked for |
//! | [`waiting`] | for a task to end, and for somebody to call back |
//! | [`testing`] | without a server, without waiting |
//! | [`evolving`] | new, renamed and removed parameters, while old rows are in the table |
//! | [`secrets`] | what is encrypted, and what is never logged |
//! | [`observing`] | spans, traces, and the tasks themselves |
//! | [`deploying`] | several processes, several versions |

#[doc = include_str!("guide/calling.md")]
pub mod calling {}

#[doc = include_str!("guide/failing.md")]
pub mod failing {}

#[doc = include_str!("guide/state.md")]
pub mod state {}

#[doc = include_str!("guide/transactions.md")]
pub mod transactions {}

/// Messages, with the feature `mq`.
#[cfg_attr(feature = "mq", doc = "", doc = include_str!("guide/messages.md"))]
pub mod messages {}

#[doc = include_str!("guide/keys.md")]
pub mod keys {}

#[doc = include_str!("guide/waiting.md")]
pub mod waiting {}

/// Testing, with the feature `testing`.
#[cfg_attr(feature = "testing", doc = "", doc = include_str!("guide/testing.md"))]
pub mod testing {}

#[doc = include_str!("guide/evolving.md")]
pub mod evolving {}

/// Secrets, with the feature `encryption`.
#[cfg_attr(feature = "encryption", doc = "", doc = include_str!("guide/secrets.md"))]
pub mod secrets {}

#[doc = include_str!("guide/observing.md")]
pub mod observing {}

#[doc = include_str!("guide/deploying.md")]
pub mod deploying {}
