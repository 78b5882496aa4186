use std::error::Error;

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_order_id: u64) -> Result<(), Box<dyn Error>> {
    Ok(())
}

fn main() {}
