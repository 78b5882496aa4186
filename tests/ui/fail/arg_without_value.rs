use task_retry::retryable;

#[retryable(source =, timeout, name =)]
async fn send_sms(_order_id: u64) {}

fn main() {}
