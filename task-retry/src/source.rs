//! Sources: the numbers by which the table names functions.

use crate::Policy;

/// The source of RocketMQ messages, as in the starter.
pub const ROCKET_MQ: i32 = 10;

/// The source of RabbitMQ messages.
pub const RABBIT_MQ: i32 = 11;

/// The source of messages to NATS JetStream.
pub const NATS: i32 = 12;

/// The source of Kafka messages.
pub const KAFKA: i32 = 13;

/// The sources of messages, whose strategies are in `task_retry::mq` or a user's own.
pub(crate) const MESSAGES: std::ops::RangeInclusive<i32> = ROCKET_MQ..=KAFKA;

/// Numbers 1 to 29 are reserved for sources that this crate defines.
pub(crate) const RESERVED: std::ops::RangeInclusive<i32> = 1..=29;

/// What names a function in the table: an `i32`, or an enum that derives `Source`.
///
/// A number never changes its meaning, for rows of it may be in the table.
///
/// ```
/// use task_retry::Source;
///
/// #[derive(Source, Clone, Copy, Debug)]
/// pub enum Sources {
///     #[source(30)]
///     SendSms,
///     #[source(31, max_retry = 8, timeout = "30s")]
///     ChargeCard,
/// }
/// assert_eq!(Sources::ChargeCard.number(), 31);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a source",
    note = "a source is an `i32` from 30 up, or a variant of an enum with `#[derive(Source)]`"
)]
pub trait Source {
    /// The number that is stored; from 30 up, since 1 to 29 are reserved.
    fn number(&self) -> i32;

    /// A name for people; empty where there is none.
    fn name(&self) -> &str {
        ""
    }

    /// What this source changes of the configuration's retry policy.
    fn policy(&self) -> Policy {
        Policy::new()
    }
}

impl Source for i32 {
    fn number(&self) -> i32 {
        *self
    }
}

impl<S: Source> Source for &S {
    fn number(&self) -> i32 {
        (**self).number()
    }

    fn name(&self) -> &str {
        (**self).name()
    }

    fn policy(&self) -> Policy {
        (**self).policy()
    }
}
