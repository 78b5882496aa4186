use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phone: impl Into<String> + Send, _text: &impl AsRef<str>) -> impl Sized {}

fn main() {}
