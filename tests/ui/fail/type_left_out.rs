use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phones: Vec<_>) -> Result<_, String> {
    Ok(1)
}

fn main() {}
