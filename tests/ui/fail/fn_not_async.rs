use task_retry::retryable;

#[retryable(source = 30)]
fn send_sms(_order_id: u64) {}

fn main() {
    // The function is still there.
    send_sms(42);
}
