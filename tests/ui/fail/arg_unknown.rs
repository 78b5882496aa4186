//! What is near a known argument is offered; the calls still compile.
use task_retry::retryable;

#[retryable(source = 30, max_retrys = 8, queue = "sms")]
async fn send_sms(order_id: u64) {
    let _ = order_id;
}

fn main() {
    drop(send_sms(42).enqueue());
}
