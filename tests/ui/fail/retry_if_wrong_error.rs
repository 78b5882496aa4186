use task_retry::retryable;

fn is_temporary(_error: &std::io::Error) -> bool {
    true
}

#[retryable(source = 30, retry_if = is_temporary)]
async fn send_sms(_order_id: u64) -> Result<(), String> {
    Ok(())
}

fn main() {}
