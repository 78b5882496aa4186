use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(#[context] _ctx: &String) {}

fn main() {}
