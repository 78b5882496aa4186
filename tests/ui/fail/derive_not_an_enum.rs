use task_retry::Source;

#[derive(Source)]
struct SendSms;

#[derive(Source)]
union Either {
    a: u8,
    b: i8,
}

fn main() {}
