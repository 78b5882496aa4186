//! One error, though the type stands at several places of the expansion.
use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(_phone: Fone) -> Result<(), String> {
    Ok(())
}

#[retryable(source = 31)]
async fn charge(_order_id: u64) -> Result<Reciept, String> {
    todo!()
}

fn main() {}
