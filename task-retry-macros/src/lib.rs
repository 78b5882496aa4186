//! The macros of `task-retry`. Use them from there: `task_retry::retryable`, `task_retry::Source`.
//!
//! | file | from | to |
//! | --- | --- | --- |
//! | `args` | the tokens of an attribute | arguments |
//! | `model` | the tokens of a function | what the expansion has to know of it |
//! | `expand` | both | the expansion of `#[retryable]` |
//! | `source` | the tokens of an enum | the expansion of `#[derive(Source)]` |
//!
//! Every mistake goes to `errors` and is told with all the others; the item stays, so that what
//! uses it does not fail, too.

mod args;
mod errors;
mod expand;
mod model;
mod source;
#[cfg(test)]
mod tests;

use proc_macro::TokenStream;

/// Makes an async function durable: a call is stored before it runs, and is run again until it
/// succeeds or its retries are used up.
///
/// ```ignore
/// /// Sends one SMS.
/// #[retryable(source = Sources::SendSms, timeout = "30s")]
/// pub async fn send_sms(order_id: u64, phone: &str, #[state] gateway: &SmsGateway) -> Result<Receipt, SmsError> {
///     gateway.send(phone, order_id).await
/// }
///
/// let receipt = send_sms(42, "+8613800000000").await?;
/// ```
///
/// The function becomes two things of one name: a function that returns a `Call`, and a type that
/// implements `Retryable`, by which the rest of the API names it. `send_sms::direct(…)` is the body
/// alone, for unit tests.
///
/// # Arguments
/// | argument | meaning | default |
/// | --- | --- | --- |
/// | `source = EXPR` | required: an `i32` from 30 up, or a variant of an enum that derives `Source`; evaluated once, at start | |
/// | `name = "…"` | the name in table, logs, metrics and console | the function's name |
/// | `type = SendSms` | a name for the type, where the function's own would clash | the function's name |
/// | `max_retry = 8` | retries after the first attempt | the source's, else the configuration's; so for all of the policy |
/// | `first_execute = "5s"` | the delay of the first retry | |
/// | `delay_base = "10s"`, `delay_multiplier = 10.0` | the n-th retry, n ≥ 2, waits base × multiplier^(n-1) | |
/// | `max_delay = "1h"` | the longest delay | |
/// | `jitter = 0.1` | spreads delays by this part of them, 0.0 to 1.0 | |
/// | `timeout = "30s"` | an attempt that runs longer is dropped and counts as failed | none |
/// | `retry_if = path` | a `fn(&E) -> bool`; `false`: this error is not retried | all are |
/// | `on_exhausted = path` | an `async fn(task: TaskLog, error: String)` that runs before the task is given up | |
/// | `concurrency = 4` | at most so many attempts of this function at once in a process | no limit of its own |
/// | `store_result` | keeps what the function returned | |
/// | `crate = path` | where `task_retry` is re-exported | `::task_retry` |
///
/// A duration is numbers with the units `ms`, `s`, `m`, `h`, `d`: `"250ms"`, `"1h30m"`.
///
/// # Parameters
/// Owned types, `&str`, `&[T]` and `&T` (stored as their owned form), each serializable.
/// - `#[state] x: &T` or `Arc<T>`: what the builder's `.state(T)` was given; not a parameter of the
///   call.
/// - `#[context] ctx: &TaskContext`: what the attempt knows of its task; neither.
/// - `#[arg(default)]`: rows that were stored before the parameter existed decode, too.
/// - `#[arg(secret)]`: the value is kept out of every console and log.
///
/// # Return types
/// `Result<T, E>`, `Result<Outcome<T>, E>`, or none.
#[proc_macro_attribute]
pub fn retryable(arguments: TokenStream, item: TokenStream) -> TokenStream {
    expand::retryable(arguments.into(), item.into()).into()
}

/// Makes an enum the sources of a project. A number never changes its meaning, for it is stored.
///
/// ```ignore
/// #[derive(Source, Clone, Copy, Debug)]
/// #[source(retired(32))]
/// pub enum Sources {
///     #[source(30)]
///     SendSms,
///     #[source(31, max_retry = 8, timeout = "30s")]
///     ChargeCard,
/// }
/// ```
///
/// A variant takes its number, from 30 up, and the policy's arguments of [`macro@retryable`]. The
/// enum takes `retired(…)`, numbers that are not to be used again, and `crate = path`.
#[proc_macro_derive(Source, attributes(source))]
pub fn source(input: TokenStream) -> TokenStream {
    source::derive(input.into()).into()
}
