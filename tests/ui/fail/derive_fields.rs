use task_retry::Source;

#[derive(Source)]
enum Sources {
    #[source(30)]
    SendSms(u64),
    #[source(31)]
    Charge { order_id: u64 },
}

fn main() {}
