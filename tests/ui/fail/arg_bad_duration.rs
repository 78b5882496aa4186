use task_retry::retryable;

#[retryable(source = 30, first_execute = "5", delay_base = "10 s", max_delay = "1w", timeout = "")]
async fn send_sms(_order_id: u64) {}

#[retryable(
    source = 31,
    first_execute = "-5s",
    delay_base = "0.5ms",
    max_delay = "36526d",
    timeout = "1.2.3s"
)]
async fn charge(_order_id: u64) {}

fn main() {}
