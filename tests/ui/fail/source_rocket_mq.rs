use task_retry::retryable;

#[retryable(source = 10)]
async fn send_sms(_order_id: u64) {}

fn main() {}
