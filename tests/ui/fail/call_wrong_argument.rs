use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_order_id: u64, _phone: &str) {}

fn main() {
    drop(send_sms("42", 7).enqueue());
}
