use task_retry::retryable;

#[retryable(source = 1)]
async fn send_sms(_order_id: u64) {}

#[retryable(source = 29)]
async fn charge(_order_id: u64) {}

fn main() {}
