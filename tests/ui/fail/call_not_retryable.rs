use task_retry::Retryable;

async fn send_sms(_order_id: u64) {}

fn register<R: Retryable>() {}

struct SendSms;

fn main() {
    register::<SendSms>();
    drop(send_sms(42));
}
