//! A macro cannot see this lifetime; rustc does.
use std::borrow::Cow;

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phone: Cow<str>) {}

fn main() {}
