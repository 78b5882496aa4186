//! The times and plans of statements as they are really run: PostgreSQL's from `auto_explain`, MariaDB's
//! from its slow log, as MySQL's times, SQLite's times as the driver tells them.

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::{ConnectionTrait, DatabaseConnection, Statement};
use tracing::field::{Field, Visit};
use tracing::span;

struct Listener(Arc<Mutex<Vec<String>>>);

/// Gathers what the server tells from now on, in this process.
pub fn listen() -> Arc<Mutex<Vec<String>>> {
    let told = Arc::new(Mutex::new(Vec::new()));
    tracing::subscriber::set_global_default(Listener(told.clone())).unwrap();
    told
}

impl tracing::Subscriber for Listener {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        ["sqlx::postgres::notice", "sqlx::query"].contains(&metadata.target())
    }
    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        #[derive(Default)]
        struct Told {
            text: String,
            seconds: f64,
        }
        impl Visit for Told {
            fn record_f64(&mut self, field: &Field, value: f64) {
                if field.name() == "elapsed_secs" {
                    self.seconds = value;
                }
            }
            fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
                if ["message", "db.statement"].contains(&field.name()) {
                    // It comes quoted.
                    let text = format!("{value:?}").replace("\\n", "\n").replace("\\t", "\t");
                    self.text += text.trim_matches('"');
                }
            }
        }
        let mut told = Told::default();
        event.record(&mut told);
        if told.seconds > 0.0 {
            told.text = format!("duration: {} ms {}", told.seconds * 1000.0, told.text.trim());
        }
        self.0.lock().unwrap().push(told.text);
    }
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// How long a statement took that was told of.
pub fn duration(told: &str) -> Duration {
    let text = told.split("duration: ").nth(1).unwrap().split(' ').next().unwrap();
    Duration::from_secs_f64(text.parse::<f64>().unwrap() / 1000.0)
}

async fn text(db: &DatabaseConnection, sql: String) -> String {
    let sql = Statement::from_string(db.get_database_backend(), sql);
    db.query_one_raw(sql).await.unwrap().unwrap().try_get_by_index(0).unwrap()
}

/// The slow log of MariaDB, with plans, or of MySQL, without, of all statements of connections that are
/// made from now on.
pub struct SlowLog(DatabaseConnection, std::path::PathBuf);

/// A statement of the slow log.
pub struct Logged {
    pub time: Duration,
    /// How many rows it returned.
    pub rows: u64,
    pub statement: String,
    /// Empty on MySQL.
    pub plan: String,
}

impl SlowLog {
    pub async fn start(db: DatabaseConnection) -> Self {
        let path = format!("{}/{}", text(&db, "select @@datadir".into()).await, "bench-slow.log");
        let _ = std::fs::remove_file(&path);
        // Fails on MySQL.
        let plans = "set global log_slow_verbosity = 'query_plan,explain'";
        let _ = db.execute_unprepared(plans).await;
        for setting in [
            format!("slow_query_log_file = '{path}'"),
            "log_output = 'FILE'".to_owned(),
            "long_query_time = 0".to_owned(),
            "slow_query_log = 1".to_owned(),
        ] {
            db.execute_unprepared(&format!("set global {setting}")).await.unwrap();
        }
        Self(db, path.into())
    }

    /// Ends it. What it has.
    pub async fn end(self) -> Vec<Logged> {
        let _ = self.0.execute_unprepared("set global log_slow_verbosity = ''").await;
        for setting in ["slow_query_log = 0", "long_query_time = 10"] {
            self.0.execute_unprepared(&format!("set global {setting}")).await.unwrap();
        }
        let log = std::fs::read(&self.1).unwrap();
        let log = String::from_utf8_lossy(&log).into_owned();
        log.split("# User@Host").skip(1).filter_map(logged).collect()
    }
}

fn logged(text: &str) -> Option<Logged> {
    let number = |name: &str| text.split(name).nth(1)?.split_whitespace().next();
    let plan = text.lines().filter_map(|line| line.strip_prefix("# explain: "));
    let beside = |line: &&str| ["#", "SET ", "use "].iter().any(|start| line.starts_with(start));
    let statement = text.lines().skip(1).filter(|line| !beside(line));
    let logged = Logged {
        time: Duration::from_secs_f64(number("Query_time: ")?.parse().ok()?),
        rows: number("Rows_sent: ")?.parse().ok()?,
        statement: statement.collect::<Vec<_>>().join("\n"),
        plan: plan.collect::<Vec<_>>().join("\n"),
    };
    // MySQL tells when a statement is prepared.
    (!logged.statement.is_empty()).then_some(logged)
}
