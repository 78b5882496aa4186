use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(order_id: u64) -> Result<u64, String> {
    let text: &str = order_id;
    Ok(text)
}

fn main() {
    drop(send_sms(42).enqueue());
}
