use task_retry::retryable;

#[retryable(30)]
async fn send_sms(_order_id: u64) {}

fn main() {}
