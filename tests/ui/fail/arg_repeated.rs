use task_retry::retryable;

#[retryable(source = 30, timeout = "5s", timeout = "6s", source = 31)]
async fn send_sms(_order_id: u64) {}

fn main() {}
