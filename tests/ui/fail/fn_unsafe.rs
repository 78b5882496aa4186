use task_retry::retryable;

#[retryable(source = 30)]
async unsafe fn send_sms(_order_id: u64) {}

fn main() {}
