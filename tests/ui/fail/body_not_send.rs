use std::rc::Rc;

use task_retry::retryable;

async fn sleep() {}

#[retryable(source = 30)]
async fn send_sms(order_id: u64) -> Result<(), String> {
    let shared = Rc::new(order_id);
    sleep().await;
    drop(shared);
    Ok(())
}

fn main() {
    drop(send_sms(42).enqueue());
}
