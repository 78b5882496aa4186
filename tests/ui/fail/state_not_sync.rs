use std::cell::Cell;

use task_retry::retryable;

#[retryable(source = 30)]
async fn send_sms(#[state] counter: &Cell<u8>) {
    counter.set(1);
}

fn main() {}
