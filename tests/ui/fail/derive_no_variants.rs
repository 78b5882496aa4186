use task_retry::Source;

#[derive(Source)]
enum Sources {}

fn main() {}
