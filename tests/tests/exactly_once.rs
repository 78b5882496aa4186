//! An effect in the caller's own database happens exactly once, wherever its process is killed.

use std::collections::HashMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::Arc;

use futures_util::{StreamExt, stream};
use sea_orm::{ConnectionTrait, Statement};
use task_retry::{Filter, Status};
use task_retry_tests::{Kind, TestDb, at_once};
use tokio::process::Command;

/// Processes killed between the commit and everything after it.
const AFTER: usize = 200;
/// Processes killed right before the commit.
const BEFORE: usize = 10;

async fn run(db: &TestDb, place: &str) -> std::process::ExitStatus {
    let program = env!("CARGO_BIN_EXE_exactly_once");
    let mut command = Command::new(program);
    command.args([&db.url, place]).stdin(Stdio::null()).kill_on_drop(true);
    command.status().await.expect("the program runs")
}

async fn an_effect_and_its_success_are_one(db: Arc<TestDb>) {
    let retry = db.builder().job(false).start().await.unwrap();
    db.execute("create table effects (task_id bigint not null)").await;
    // The kills before a commit come first, so that what they leave is due at the end.
    let places = (0..BEFORE).map(|_| "before").chain((0..AFTER).map(|_| "after"));
    let killed = stream::iter(places).map(|place| run(&db, place)).buffer_unordered(4);
    let killed: Vec<_> = killed.collect().await;
    assert_eq!(killed.iter().filter(|status| status.signal() == Some(9)).count(), AFTER + BEFORE);
    let succeeded = Filter::all().status(Status::Succeeded);
    assert_eq!(retry.tasks().count(succeeded.clone()).await.unwrap(), AFTER as u64);
    assert!(run(&db, "drain").await.success());

    let tasks = retry.tasks().list(Filter::all()).await.unwrap();
    assert_eq!(tasks.len(), AFTER + BEFORE);
    let again = tasks.iter().filter(|task| task.fence > 2).count();
    assert_eq!(again, BEFORE, "only what was rolled back has run again");
    let mut effects: HashMap<i64, usize> = HashMap::new();
    let connection = db.connect().await;
    let select = "select task_id from effects".to_owned();
    let select = Statement::from_string(connection.get_database_backend(), select);
    for row in connection.query_all_raw(select).await.unwrap() {
        *effects.entry(row.try_get_by_index(0).unwrap()).or_default() += 1;
    }
    for task in &tasks {
        assert_eq!(task.status, Status::Succeeded, "{task:?}");
        assert_eq!(effects.get(&task.id.get()), Some(&1), "{task:?}");
    }
    retry.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_effect_and_its_success_are_one_on_every_database() {
    let kinds = [Kind::Sqlite, Kind::Postgres, Kind::MariaDb, Kind::MySql];
    at_once(&kinds, an_effect_and_its_success_are_one).await;
}
