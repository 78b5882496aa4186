use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms<'a>(_phone: &'a str) {}

fn main() {}
