//! What stands behind the mistake is read all the same.
use task_retry::retryable;

#[retryable(source = 30 max_retry = 8, jitter = 2)]
async fn send_sms(_order_id: u64) {}

fn main() {}
