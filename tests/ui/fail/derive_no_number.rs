use task_retry::Source;

#[derive(Source)]
enum Sources {
    SendSms,
    #[source]
    Charge,
    #[source(max_retry = 3)]
    Refund,
}

fn main() {
    // No second error here.
    let _ = Sources::SendSms.number();
}
