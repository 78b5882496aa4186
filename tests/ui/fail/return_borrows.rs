use task_retry::retryable;

struct Text<'a>(&'a str);

#[retryable(source = 30)]
async fn send_sms(phone: &str) -> Result<&str, Text<'_>> {
    Ok(phone)
}

fn main() {}
