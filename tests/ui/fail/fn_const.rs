use task_retry::retryable;

#[retryable(source = 30)]
const fn send_sms(_order_id: u64) {}

fn main() {}
