use task_retry::retryable;

struct Text<'a>(&'a str);

#[retryable(source = 30)]
async fn send_sms(#[state] _a: &Text<'_>, #[state] _b: &Vec<&str>, #[state] _c: &'static String) {}

fn main() {}
