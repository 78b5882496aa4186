use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms((_order_id, _shop): (u64, u64), _: String, ref _text: String, [_a, ..]: [u8; 4]) {
}

fn main() {}
