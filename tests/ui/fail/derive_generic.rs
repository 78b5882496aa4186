use std::marker::PhantomData;

use task_retry::Source;

#[derive(Source)]
enum Sources<T> {
    #[source(30)]
    SendSms,
    #[source(31)]
    Charge(PhantomData<T>),
}

fn main() {}
