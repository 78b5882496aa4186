//! dbos: a workflow of one step. Its answer comes when the workflow's success is committed.

use ::dbos::{Config, DBOS, Error};

use crate::tool::*;

/// The connections it was fastest with.
const CONNECTIONS: u32 = 20;

pub async fn child(url: &str, what: &str) {
    let (_, callers) = what.split_once(':').unwrap();
    let connections =
        std::env::var("BENCH_CONNECTIONS").map_or(CONNECTIONS, |n| n.parse().unwrap());
    let dbos = DBOS::new(Config {
        app_version: Some("1.0.0".to_owned()),
        max_connections: connections,
        ..Config::new("bench", url)
    });
    let workflow = dbos
        .register_workflow("durable", |(number, text): (u64, String)| async move {
            ::dbos::step("noop", || async {
                let _ = (number, &text);
                Ok::<_, Error>(())
            })
            .await
        })
        .unwrap();
    dbos.launch().await.unwrap();
    measure_callers(url, callers.parse().unwrap(), move |i| {
        let workflow = workflow.clone();
        async move { workflow.run((i, TEXT.to_owned())).await.unwrap() }
    })
    .await;
    dbos.shutdown().await;
}
