use task_retry::retryable;

#[retryable(source = 30)]
extern "C" fn send_sms(_order_id: u64) {}

fn main() {}
