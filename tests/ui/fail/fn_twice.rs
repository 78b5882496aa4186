use task_retry::retryable;

#[retryable(source = 30)]
#[task_retry::retryable(source = 31)]
async fn send_sms(_order_id: u64) {}

fn main() {}
