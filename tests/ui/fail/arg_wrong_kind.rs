use task_retry::retryable;

#[retryable(
    source = 30,
    name = send_sms,
    type = "SendSms",
    max_retry = "8",
    first_execute = 5,
    delay_base = 10s,
    delay_multiplier = "10",
    max_delay = std::time::Duration::from_secs(1),
    jitter = 1f32,
    timeout = 30,
    retry_if = |_: &String| true,
    on_exhausted = "tell",
    concurrency = 4.0,
    store_result = true,
    crate = "task_retry"
)]
async fn send_sms(_order_id: u64) {}

fn main() {}
