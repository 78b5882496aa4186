use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phone: &'static str) {}

fn main() {}
