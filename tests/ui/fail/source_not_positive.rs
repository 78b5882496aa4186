use task_retry::retryable;

#[retryable(source = 0)]
async fn send_sms(_order_id: u64) {}

#[retryable(source = -30)]
async fn charge(_order_id: u64) {}

fn main() {}
