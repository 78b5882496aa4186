use task_retry::Source;

#[derive(Source)]
enum Sources {
    #[source(10)]
    SendSms,
    #[source(29)]
    Charge,
    #[source(0)]
    Refund,
    #[source(-31)]
    Ship,
    #[source(3000000000)]
    Pack,
    #[source(31u8)]
    Call,
}

fn main() {}
