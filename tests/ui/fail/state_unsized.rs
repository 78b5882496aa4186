use std::fmt::Display;
use std::sync::Arc;

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(#[state] _a: &dyn Display, #[state] _b: Arc<dyn Display>, #[state] _c: &str) {}

fn main() {}
