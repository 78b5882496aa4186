use task_retry::retryable;

struct Receipt;

#[retryable(source = 30, store_result)]
async fn send_sms(_order_id: u64) -> Result<Receipt, String> {
    Ok(Receipt)
}

fn main() {}
