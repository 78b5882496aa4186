use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(#[state] _a: String, #[state] _b: &mut String, #[state] _c: Box<String>) {}

fn main() {}
