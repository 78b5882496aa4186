use task_retry::retryable;

enum Sources {
    SendSms,
}

#[retryable(source = Sources::SendSms)]
async fn send_sms(_order_id: u64) {}

fn main() {}
