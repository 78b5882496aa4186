//! A process that runs the functions `work` and `bulk`, for tests that kill it; see
//! `task_retry_tests::worker`.

use std::io::BufRead;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use task_retry::{Config, TaskContext, TaskRetry, retryable};
use task_retry_tests::worker::{BULK, Command, How, Ledger, Reply, Settings, WORK, settings};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Does what its plan says for this attempt.
#[retryable(source = WORK, max_retry = 100, first_execute = "0s", delay_base = "0s")]
async fn work(
    number: u64,
    plan: Vec<How>,
    #[context] context: &TaskContext,
    #[state] ledger: Arc<Ledger>,
) -> Result<(), String> {
    ledger.attempt(context, number).run(&plan).await
}

/// Another source that does the same.
#[retryable(source = BULK, max_retry = 100, first_execute = "0s", delay_base = "0s")]
async fn bulk(
    number: u64,
    plan: Vec<How>,
    #[context] context: &TaskContext,
    #[state] ledger: Arc<Ledger>,
) -> Result<(), String> {
    ledger.attempt(context, number).run(&plan).await
}

fn main() {
    let settings: Settings = settings("task_retry=info,warn");
    let mut runtime = match settings.threads {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if settings.threads > 0 {
        runtime.worker_threads(settings.threads);
    }
    let runtime = runtime.enable_all().build().expect("a tokio runtime");
    runtime.block_on(run(settings));
    // Not a bit longer for code that blocks.
    runtime.shutdown_background();
}

async fn run(settings: Settings) {
    let retry = start(&settings).await;
    say(&Reply::Ready);
    let mut commands = commands(Duration::from_secs(settings.grace + 10));
    let mut terminate = signal(SignalKind::terminate()).expect("a handler of signals");
    loop {
        let command = tokio::select! {
            command = commands.recv() => command,
            _ = terminate.recv() => None,
        };
        let Some(command) = command else { break };
        let retry = retry.clone();
        tokio::spawn(async move { say(&obey(&retry, command).await) });
    }
    retry.shutdown().await.expect("the runtime ends");
    say(&Reply::Bye);
}

async fn start(settings: &Settings) -> TaskRetry {
    let mut pool = Config::default().thread_pool_param;
    (pool.core_pool_size, pool.max_pool_size) = (2, settings.places);
    pool.queue_capacity = settings.queue;
    let mut builder = TaskRetry::builder()
        .project("test")
        .database(&settings.url)
        .thread_pool_param(pool)
        .lease_second(settings.lease)
        .poll_interval_ms(settings.poll)
        .shutdown_grace_second(settings.grace)
        .shared_state(Arc::new(Ledger::open(&settings.ledger)));
    if settings.optimistic {
        builder = builder.optimistic_claims();
    }
    builder.start().await.expect("the runtime starts")
}

/// The lines of the standard input, until its end: the test is over, or wants us to shut down.
fn commands(most: Duration) -> mpsc::UnboundedReceiver<Command> {
    let (sender, receiver) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let command = serde_json::from_str(&line).expect("commands are JSON");
            if sender.send(command).is_err() {
                break;
            }
        }
        drop(sender);
        // No orphan stays, whatever blocks.
        std::thread::sleep(most);
        std::process::exit(3);
    });
    receiver
}

async fn obey(retry: &TaskRetry, command: Command) -> Reply {
    match command {
        Command::Enqueue { numbers, plan, key } => {
            let calls = numbers.map(|number| {
                let call = work(number, plan.clone()).on(retry);
                let call = if let Some(key) = &key { call.key(key) } else { call };
                call.enqueue()
            });
            let stored = try_join_all(calls).await.expect("calls can be enqueued");
            Reply::Enqueued(stored.iter().map(|one| (one.id().get(), one.is_new())).collect())
        }
        Command::Await { number, plan } => {
            let result = work(number, plan).on(retry).await;
            Reply::Ended(result.map_err(|error| error.to_string()))
        }
    }
}

fn say(reply: &Reply) {
    println!("{}", serde_json::to_string(reply).expect("a reply is JSON"));
}
