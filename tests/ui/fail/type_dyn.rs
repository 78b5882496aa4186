use std::fmt::Display;

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_text: &dyn Display, _more: &(dyn Display + Sync)) {}

fn main() {}
