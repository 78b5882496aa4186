use task_retry::retryable;

#[retryable]
async fn send_sms(_order_id: u64) {}

#[retryable(max_retry = 3)]
async fn charge(_order_id: u64) {}

fn main() {
    drop(send_sms(42).enqueue());
}
