use task_retry::retryable;

#[derive(Debug)]
struct SmsError;

#[retryable(source = 30)]
async fn send_sms(_order_id: u64) -> Result<(), SmsError> {
    Err(SmsError)
}

fn main() {
    drop(send_sms(42).enqueue());
}
