use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(#[stat] _a: &String, #[contxt] _b: &str, #[inject] _c: u8) {}

fn main() {}
