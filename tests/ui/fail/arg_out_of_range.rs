use task_retry::retryable;

#[retryable(
    source = 30,
    name = "",
    max_retry = -1,
    delay_multiplier = 0.5,
    jitter = 1.5,
    timeout = "0s",
    concurrency = 0
)]
async fn send_sms(_order_id: u64) {}

#[retryable(source = 31, max_retry = 9999999999, concurrency = 99999999999999999999, jitter = -0.1)]
async fn charge(_order_id: u64) {}

fn main() {}
