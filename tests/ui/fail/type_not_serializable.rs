use task_retry::retryable;

struct Phone(String);

#[retryable(source = 30)]
async fn send_sms(_order_id: u64, phone: Phone) -> Result<(), String> {
    drop(phone.0);
    Ok(())
}

fn main() {
    drop(send_sms(42, Phone(String::new())).enqueue());
}
