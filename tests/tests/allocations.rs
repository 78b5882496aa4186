//! What tasks cost in allocations, on SQLite in memory: guarded on every machine, other than their time.

use futures_util::future::join_all;
use task_retry::{Filter, Status, TaskRetry, enqueue_all, retryable};
use task_retry_tests::until;

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

#[retryable(source = 100)]
async fn nothing(number: u64) -> Result<(), String> {
    let _ = number;
    Ok(())
}

const TASKS: u64 = 640;

/// Allocations of some work for each of its tasks: how many, and of how many bytes.
async fn per_task(retry: &TaskRetry, work: impl Future<Output = ()>) -> (u64, u64) {
    let before = dhat::HeapStats::get();
    work.await;
    let count = async || retry.tasks().count(Filter::all().status(Status::Executing)).await;
    until("all succeed", async || count().await.unwrap() == 0).await;
    let after = dhat::HeapStats::get();
    let count = (after.total_blocks - before.total_blocks) / TASKS;
    (count, (after.total_bytes - before.total_bytes) / TASKS)
}

#[tokio::test]
async fn tasks_cost_few_allocations() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let retry = TaskRetry::builder().project("test").database("sqlite::memory:");
    let retry = retry.poll_interval_ms(60_000).detached().start().await.unwrap();
    let call = |number| nothing(number).on(&retry);
    join_all((0..TASKS).map(|number| call(number).into_future())).await;

    let alone = per_task(&retry, async {
        for number in 0..TASKS {
            call(number).await.unwrap();
        }
    })
    .await;
    let grouped = per_task(&retry, async {
        let callers = (0..64).map(async |_| {
            for number in 0..TASKS / 64 {
                call(number).await.unwrap();
            }
        });
        join_all(callers).await;
    })
    .await;
    let handed_over = per_task(&retry, async {
        let stored = join_all((0..TASKS).map(|number| call(number).enqueue())).await;
        assert!(stored.into_iter().all(|stored| stored.is_ok()));
    })
    .await;
    let claimed = per_task(&retry, async {
        enqueue_all((0..TASKS).map(call)).await.unwrap();
    })
    .await;
    let costs = [
        ("alone", alone, 115, 25_000),
        ("grouped", grouped, 26, 10_000),
        ("handed over", handed_over, 22, 10_000),
        ("stored together and claimed", claimed, 24, 12_000),
    ];
    for (what, (count, bytes), most, most_bytes) in costs {
        println!("{what}: {count} allocations a task, {bytes} bytes");
        assert!(count < most && bytes < most_bytes, "{what}: {count}, {bytes} bytes");
    }
    retry.shutdown().await.unwrap();
}
