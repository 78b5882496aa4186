use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phones: &mut Vec<String>) {}

fn main() {}
