//! Contexts that are encrypted: every way in, every way out, keys that change, rows that do not fit.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::{ConnectionTrait, Statement, TransactionTrait};
use task_retry::{
    Aes256GcmCodec, Builder, CallError, ContextCodec, ContextPlace, ErrorKind, Filter,
    HandleResult, Status, Strategy, Task, TaskContext, TaskId, TaskLog, TaskRetry, enqueue_all,
    enqueue_all_in, retryable,
};
use task_retry_tests::{TestDb, contract, until};

const SECRET: &str = "4111-1111-1111-1111";

/// What functions saw.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn add(&self, what: impl Into<String>) {
        self.0.lock().unwrap().push(what.into());
    }

    fn take(&self) -> Vec<String> {
        let mut seen = std::mem::take(&mut *self.0.lock().unwrap());
        seen.sort();
        seen
    }
}

/// Charges a card, unless its owner is `fails`.
#[retryable(source = 120, max_retry = 0, on_exhausted = give_up)]
async fn charge(
    card: &str,
    owner: &str,
    #[context] ctx: &TaskContext,
    #[state] seen: &Seen,
) -> Result<(), String> {
    let context = ctx.task().context.clone().unwrap_or_default();
    seen.add(format!("{owner} {card} {context}"));
    if owner == "fails" { Err("declined".into()) } else { Ok(()) }
}

/// Of the runtime that the failing call ran on, since the hook has no state.
static GIVEN_UP: Mutex<Vec<(TaskId, String)>> = Mutex::new(Vec::new());

async fn give_up(task: TaskLog, _error: String) {
    GIVEN_UP.lock().unwrap().push((task.id, task.context.unwrap_or_default()));
}

/// Of another source, with the same parameters.
#[retryable(source = 121)]
async fn refund(card: &str, owner: &str, #[state] seen: &Seen) -> Result<(), String> {
    seen.add(format!("refunded {owner} {card}"));
    Ok(())
}

struct Notify(Seen);

impl Strategy for Notify {
    fn source(&self) -> i32 {
        122
    }

    fn name(&self) -> &str {
        "notify"
    }

    async fn handle(&self, task: &TaskLog) -> HandleResult {
        self.0.add(format!("notified {}", task.context.as_deref().unwrap_or_default()));
        HandleResult::Success
    }
}

fn keys(names: &[(&str, u8)]) -> Aes256GcmCodec {
    Aes256GcmCodec::new(names.iter().map(|(name, byte)| (*name, [*byte; 32]))).unwrap()
}

fn builder(db: &TestDb, seen: &Seen) -> Builder {
    db.builder()
        .first_execute_second(0)
        .only::<(charge, refund)>()
        .state(seen.clone())
        .strategy(Notify(seen.clone()))
}

async fn start(db: &TestDb, seen: &Seen, names: &[(&str, u8)]) -> TaskRetry {
    builder(db, seen).codec(keys(names)).start().await.unwrap()
}

async fn get(retry: &TaskRetry, id: TaskId) -> TaskLog {
    retry.tasks().get(id).await.unwrap().unwrap()
}

async fn is(retry: &TaskRetry, id: TaskId, status: Status) {
    let what = format!("task {id} is {status}");
    until(&what, async || get(retry, id).await.status == status).await;
}

/// The contexts as they are in the table.
async fn stored(db: &TestDb) -> Vec<String> {
    let connection = db.connect().await;
    let sql = "select context from t_sys_mq_resend_log order by id";
    let sql = Statement::from_string(connection.get_database_backend(), sql);
    let rows = connection.query_all_raw(sql).await.unwrap();
    rows.iter().map(|row| row.try_get_by_index(0).unwrap()).collect()
}

async fn execute(db: &TestDb, sql: &str) {
    db.connect().await.execute_unprepared(sql).await.unwrap();
}

async fn whatever_is_stored_is_encrypted(db: Arc<TestDb>) {
    let seen = Seen::default();
    let retry = start(&db, &seen, &[("k1", 1)]).await;
    let call = |owner: &str| charge(SECRET, owner).on(&retry);
    call("awaited").await.unwrap();
    call("enqueued").enqueue().await.unwrap();
    call("later").delay(Duration::from_millis(1)).enqueue().await.unwrap();
    enqueue_all([call("all 1"), call("all 2")]).await.unwrap();
    let connection = db.connect().await;
    let transaction = connection.begin().await.unwrap();
    call("in a transaction").enqueue_in(&transaction).await.unwrap();
    enqueue_all_in(&transaction, [call("all in one")]).await.unwrap();
    transaction.commit().await.unwrap();
    let json = |owner: &str| format!(r#"{{"card":"{SECRET}","owner":"{owner}"}}"#);
    retry.submit(Task::new(120).context(json("submitted"))).await.unwrap();
    retry.submit(Task::new(122).context(SECRET)).await.unwrap();
    retry.submit(Task::new(122)).await.unwrap();
    until("all have run", async || {
        retry.tasks().count(Filter::all().status(Status::Succeeded)).await.unwrap() == 10
    })
    .await;
    let mut expected: Vec<String> = [
        "awaited",
        "enqueued",
        "later",
        "all 1",
        "all 2",
        "in a transaction",
        "all in one",
        "submitted",
    ]
    .iter()
    .map(|owner| format!("{owner} {SECRET} {}", json(owner)))
    .collect();
    expected.extend([format!("notified {SECRET}"), "notified ".to_owned()]);
    expected.sort();
    assert_eq!(seen.take(), expected);
    let sql = "delete from t_sys_mq_resend_log where context is null";
    execute(&db, sql).await;
    for context in stored(&db).await {
        assert!(context.starts_with("enc:v1:k1:") && !context.contains(SECRET), "{context}");
    }
    // People see what functions see.
    for task in retry.tasks().list(Filter::all().source(120)).await.unwrap() {
        assert!(task.context.unwrap().contains(SECRET));
    }
    retry.shutdown().await.unwrap();
}

async fn rows_from_before_are_read(db: Arc<TestDb>) {
    let seen = Seen::default();
    let plain = builder(&db, &seen).job(false).start().await.unwrap();
    let id = charge(SECRET, "before").on(&plain).enqueue().await.unwrap().id();
    plain.shutdown().await.unwrap();
    assert!(stored(&db).await[0].starts_with('{'));
    let strict = keys(&[("k1", 1)]).encrypted_only();
    let strict = builder(&db, &seen).codec(strict).job(false).start().await.unwrap();
    let report = strict.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.undecodable), (1, 1));
    strict.shutdown().await.unwrap();
    let retry = start(&db, &seen, &[("k1", 1)]).await;
    is(&retry, id, Status::Succeeded).await;
    assert_eq!(seen.take().len(), 1);
    retry.shutdown().await.unwrap();
}

async fn keys_rotate_and_unknown_ones_cost_nothing(db: Arc<TestDb>) {
    let seen = Seen::default();
    let old = builder(&db, &seen).codec(keys(&[("old", 1)])).job(false).start().await.unwrap();
    let id = charge(SECRET, "x").on(&old).enqueue().await.unwrap().id();
    let message = Task::new(122).context(SECRET);
    let message = old.submit(message).await.unwrap().id();
    old.shutdown().await.unwrap();

    let new = builder(&db, &seen).codec(keys(&[("new", 2)])).job(false).start().await.unwrap();
    let report = new.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.undecodable), (2, 2));
    for id in [id, message] {
        let task = get(&new, id).await;
        assert_eq!((task.status, task.send_count), (Status::Executing, 0));
        assert_eq!((task.crash_count, task.locked_by.as_deref()), (0, None));
        assert!(task.next_send_time.unwrap() > new.now() - Duration::from_millis(500));
        assert_eq!(
            task.last_error.as_deref(),
            Some(
                "the context cannot be decoded: it was encrypted with the key `old`; this process has \
                 `new`"
            )
        );
        // As it is stored, since it cannot be shown.
        assert!(task.context.unwrap().starts_with("enc:v1:old:"));
    }
    new.shutdown().await.unwrap();

    let both = start(&db, &seen, &[("new", 2), ("old", 1)]).await;
    is(&both, id, Status::Succeeded).await;
    is(&both, message, Status::Succeeded).await;
    assert_eq!(seen.take().len(), 2);
    charge(SECRET, "after").on(&both).await.unwrap();
    assert!(stored(&db).await[2].starts_with("enc:v1:new:"));
    both.shutdown().await.unwrap();
}

async fn rows_that_were_changed_or_moved_do_not_run(db: Arc<TestDb>) {
    let seen = Seen::default();
    let retry = builder(&db, &seen).codec(keys(&[("k1", 1)])).job(false).start().await.unwrap();
    let moved = charge(SECRET, "moved").on(&retry).enqueue().await.unwrap().id();
    let changed = charge(SECRET, "changed").on(&retry).enqueue().await.unwrap().id();
    let sql = format!(
        "update t_sys_mq_resend_log set source = 121, task_name = 'refund' where id = {moved}"
    );
    execute(&db, &sql).await;
    // Ending in another letter changes the tag.
    let last = stored(&db).await[1].clone();
    let end = if last.ends_with('A') { "Q" } else { "A" };
    let last = format!("{}{end}", &last[..last.len() - 1]);
    let sql = format!("update t_sys_mq_resend_log set context = '{last}' where id = {changed}");
    execute(&db, &sql).await;
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.undecodable), (2, 2));
    for id in [moved, changed] {
        let error = get(&retry, id).await.last_error.unwrap();
        assert!(error.contains("does not fit the key `k1`") && !error.contains(SECRET), "{error}");
    }
    assert_eq!(seen.take(), [""; 0]);
    // A person repairs it: what is edited is encrypted for its own source.
    let json = format!(r#"{{"card":"{SECRET}","owner":"edited"}}"#);
    retry.tasks().edit_context(moved, &json).await.unwrap();
    assert!(stored(&db).await[0].starts_with("enc:v1:k1:"));
    let report = retry.run_due(Some(vec![moved])).await.unwrap();
    assert_eq!(report.succeeded, 1);
    assert_eq!(seen.take(), [format!("refunded edited {SECRET}")]);
    retry.shutdown().await.unwrap();
}

async fn without_a_codec_what_is_encrypted_is_left_alone(db: Arc<TestDb>) {
    let seen = Seen::default();
    let retry = builder(&db, &seen).codec(keys(&[("k1", 1)])).job(false).start().await.unwrap();
    charge(SECRET, "x").on(&retry).enqueue().await.unwrap();
    retry.submit(Task::new(122).context(SECRET)).await.unwrap();
    retry.shutdown().await.unwrap();
    let retry = builder(&db, &seen).job(false).start().await.unwrap();
    let report = retry.run_due(None).await.unwrap();
    assert_eq!((report.claimed, report.undecodable), (2, 2));
    for task in retry.tasks().list(Filter::all()).await.unwrap() {
        let error = task.last_error.unwrap();
        assert!(error.contains("this runtime has no codec"), "{error}");
    }
    assert_eq!(seen.take(), [""; 0]);
    retry.shutdown().await.unwrap();
}

async fn hooks_and_given_up_tasks_see_what_can_be_decoded(db: Arc<TestDb>) {
    let seen = Seen::default();
    let old = builder(&db, &seen).codec(keys(&[("old", 1)])).job(false).start().await.unwrap();
    let error = charge(SECRET, "fails").on(&old).await.unwrap_err();
    let failed = error.id().unwrap();
    // Expired before anybody could read it.
    let expiring = charge(SECRET, "expires").expires_in(Duration::ZERO);
    let expired = expiring.on(&old).enqueue().await.unwrap().id();
    old.shutdown().await.unwrap();
    let new = start(&db, &seen, &[("new", 2)]).await;
    is(&new, expired, Status::Failed).await;
    new.shutdown().await.unwrap();
    let given_up = GIVEN_UP.lock().unwrap().clone();
    let context = |id| given_up.iter().find(|(other, _)| *other == id).unwrap().1.clone();
    assert_eq!(context(failed), format!(r#"{{"card":"{SECRET}","owner":"fails"}}"#));
    assert!(context(expired).starts_with("enc:v1:old:"));
}

/// Stores 16 Mi characters: what a table holds at the most, if all are of one byte.
struct Wide;

impl ContextCodec for Wide {
    fn encode(
        &self,
        context: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(context.to_owned() + &" ".repeat((16 << 20) - context.chars().count()))
    }

    fn decode(
        &self,
        stored: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        Ok(stored.trim_end().to_owned())
    }
}

async fn limits_hold_for_what_is_stored(db: Arc<TestDb>) {
    let seen = Seen::default();
    let retry = builder(&db, &seen).codec(Wide).job(false).start().await.unwrap();
    // MySQL's packets may be smaller.
    if !db.kind.is_mysql() {
        charge(SECRET, "x").on(&retry).await.unwrap();
        retry.tasks().purge(Filter::all()).await.unwrap();
    }
    let error = charge(&"é".repeat(100), "x").on(&retry).await.unwrap_err();
    let CallError::Rejected(error) = error else { panic!("{error}") };
    assert_eq!(error.kind(), ErrorKind::Context);
    let text = error.to_string();
    assert!(text.contains("bytes") && !text.contains("é"), "{text}");
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    retry.shutdown().await.unwrap();
}

/// Gets contexts wrong in the way that their owner names.
struct Broken;

impl ContextCodec for Broken {
    fn encode(
        &self,
        context: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        match context {
            text if text.contains("panics") => panic!("no"),
            text if text.contains("refuses") => Err("no".into()),
            text if text.contains("loses") => Ok(text.replace('4', "5")),
            text => Ok(text.to_owned()),
        }
    }

    fn decode(
        &self,
        stored: &str,
        _place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        if stored.contains("unreadable") { panic!("no") } else { Ok(stored.to_owned()) }
    }
}

async fn a_broken_codec_stores_nothing(db: Arc<TestDb>) {
    let seen = Seen::default();
    let retry = builder(&db, &seen).codec(Broken).job(false).start().await.unwrap();
    for owner in ["panics", "refuses", "loses", "unreadable"] {
        let error = charge(SECRET, owner).on(&retry).enqueue().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context, "{owner}");
        assert!(!error.to_string().contains(SECRET), "{error}");
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 0);
    // Also when it breaks later: the task is put back.
    let id = charge(SECRET, "fine").on(&retry).enqueue().await.unwrap().id();
    let sql = "update t_sys_mq_resend_log set context = 'unreadable'";
    execute(&db, sql).await;
    let report = retry.run_due(None).await.unwrap();
    assert_eq!(report.undecodable, 1);
    let error = get(&retry, id).await.last_error.unwrap();
    assert_eq!(error, "the context cannot be decoded: the codec panicked");
    retry.shutdown().await.unwrap();
}

contract!(
    whatever_is_stored_is_encrypted,
    rows_from_before_are_read,
    keys_rotate_and_unknown_ones_cost_nothing,
    rows_that_were_changed_or_moved_do_not_run,
    without_a_codec_what_is_encrypted_is_left_alone,
    hooks_and_given_up_tasks_see_what_can_be_decoded,
    limits_hold_for_what_is_stored,
    a_broken_codec_stores_nothing,
);
