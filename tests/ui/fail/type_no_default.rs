use task_retry::retryable;

#[derive(serde::Serialize, serde::Deserialize)]
struct Phone(String);

#[retryable(source = 30)]
async fn send_sms(#[arg(default)] phone: Phone) -> Result<(), String> {
    drop(phone.0);
    Ok(())
}

fn main() {}
