use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_order_id: u64) -> u64 {
    1
}

#[retryable(source = 31)]
async fn charge(_order_id: u64) -> Option<u64> {
    None
}

fn main() {
    drop(send_sms(42).enqueue());
}
