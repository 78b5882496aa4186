//! Return types, errors, panics and time-outs: how an attempt can end.

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use task_retry::{
    Call, CallError, CauseKind, Outcome, Retryable, Status, TaskLog, TaskRetry, retryable,
};
use task_retry_tests::{Gate, TestDb, becomes, contract, only_task, task};

type Answer<T> = Result<T, String>;
type Later<T> = Answer<Outcome<T>>;

#[retryable(source = 100)]
async fn nothing(#[state] runs: &AtomicU32) {
    runs.fetch_add(1, Ordering::SeqCst);
}

#[retryable(source = 101)]
async fn unit() -> Result<(), &'static str> {
    Ok(())
}

#[retryable(source = 102)]
async fn aliased(number: u32) -> Answer<Vec<u32>> {
    Ok(vec![number; 2])
}

#[retryable(source = 103)]
async fn later(number: u32) -> Later<u32> {
    match number {
        0 => Err("zero".into()),
        1 => Ok(Outcome::Pending { deadline: Duration::from_secs(60) }),
        number => Ok(Outcome::Done(number)),
    }
}

/// Not `Serialize`, not `Clone`, not `Sync`: a value is handed over, and not stored.
struct Parcel(Box<dyn Fn() -> u32 + Send>);

#[retryable(source = 104)]
async fn parcel(number: u32) -> Answer<Parcel> {
    Ok(Parcel(Box::new(move || number + 1)))
}

/// An error with sources.
#[derive(Debug)]
struct Layer(&'static str, Option<Box<Layer>>);

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Error for Layer {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.1.as_ref().map(|inner| inner as _)
    }
}

fn layers() -> Layer {
    let last = Layer("connection reset", None);
    Layer("the order was not sent", Some(Box::new(Layer("the bank is away", Some(Box::new(last))))))
}

#[retryable(source = 105, max_retry = 0)]
async fn layered() -> Result<(), Layer> {
    Err(layers())
}

#[retryable(source = 106, max_retry = 0)]
async fn boxed() -> Result<(), Box<dyn Error + Send + Sync>> {
    Err(layers())?
}

/// Of the shape of `anyhow::Error`: no `Error` itself, and its `{:#}` is the whole chain.
struct Report(Box<dyn Error + Send + Sync>);

impl<E: Error + Send + Sync + 'static> From<E> for Report {
    fn from(error: E) -> Self {
        Self(Box::new(error))
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut next = self.0.source().filter(|_| f.alternate());
        while let Some(error) = next {
            write!(f, " <- {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

#[retryable(source = 107, max_retry = 0)]
async fn reported() -> Result<u8, Report> {
    let number: u8 = "1000".parse()?;
    Err(layers())?;
    Ok(number)
}

#[retryable(source = 108, max_retry = 0)]
async fn report_of_layers() -> Result<u8, Report> {
    Err(layers())?
}

#[retryable(source = 109, max_retry = 0)]
async fn says(error: String) -> Answer<()> {
    Err(error)
}

#[retryable(source = 110, first_execute = "0s", max_retry = 1)]
async fn explodes(how: &str) -> Answer<()> {
    match how {
        "text" => panic!("a text"),
        "format" => panic!("number {}", how.len()),
        "number" => std::panic::panic_any(42),
        "drop" => {
            let _bomb = Bomb("on the way out");
            Ok(())
        }
        _ => Err("no bomb".into()),
    }
}

struct Bomb(&'static str);

impl Drop for Bomb {
    fn drop(&mut self) {
        panic!("{}", self.0);
    }
}

/// An error that cannot even be printed.
#[derive(Debug)]
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("unspeakable")
    }
}

#[retryable(source = 111, max_retry = 0)]
async fn unspeakable() -> Result<(), Unspeakable> {
    Err(Unspeakable)
}

fn of_no_opinion(_: &String) -> bool {
    panic!("no opinion")
}

#[retryable(source = 112, max_retry = 0, retry_if = of_no_opinion)]
async fn undecided() -> Answer<()> {
    Err("perhaps".into())
}

#[retryable(source = 113, timeout = "100ms", first_execute = "0s", max_retry = 1)]
async fn slow(bomb: bool, #[state] gate: &Gate, #[state] dropped: &Dropped) -> Answer<()> {
    let _tell = Tell(dropped);
    let _bomb = bomb.then(|| Bomb("too late"));
    gate.pass().await;
    std::mem::forget(_bomb);
    Ok(())
}

#[derive(Default)]
struct Dropped(AtomicU32);

struct Tell<'a>(&'a Dropped);

impl Drop for Tell<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::SeqCst);
    }
}

async fn start(db: &TestDb) -> TaskRetry {
    let builder = db.builder().state(AtomicU32::new(0)).state(Gate::default());
    builder.state(Dropped::default()).start().await.unwrap()
}

/// A failure for good, its kind and its row.
async fn failure<R: Retryable, T, E>(
    retry: &TaskRetry,
    call: Call<R>,
) -> (CauseKind, String, TaskLog)
where
    Call<R>: Future<Output = Result<T, CallError<E>>>,
{
    match call.on(retry).await {
        Err(CallError::Failed { id, cause }) => {
            (cause.kind(), cause.to_string(), task(retry, id).await)
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("it did not fail"),
    }
}

async fn every_return_type_comes_back(db: Arc<TestDb>) {
    let retry = start(&db).await;
    let () = nothing().on(&retry).await.unwrap();
    let () = unit().on(&retry).await.unwrap();
    assert_eq!(aliased(7).on(&retry).await.unwrap(), [7, 7]);
    assert_eq!(later(7).on(&retry).await.unwrap(), Outcome::Done(7));
    assert_eq!((parcel(7).on(&retry).await.unwrap().0)(), 8);
    let deadline = Duration::from_secs(60);
    assert_eq!(later(1).on(&retry).await.unwrap(), Outcome::Pending { deadline });
    let error = later(0).on(&retry).await.unwrap_err();
    assert!(error.is_deferred(), "{error}");
    for task in retry.tasks().list(task_retry::Filter::all()).await.unwrap() {
        let status = match (task.source, task.context.as_deref()) {
            (103, Some(r#"{"number":0}"#)) => Status::Retrying,
            (103, Some(r#"{"number":1}"#)) => Status::Waiting,
            _ => Status::Succeeded,
        };
        assert_eq!(task.status, status, "{task:?}");
    }
    retry.shutdown().await.unwrap();
}

async fn errors_are_kept_with_their_sources(db: Arc<TestDb>) {
    let retry = start(&db).await;
    let chain = "the order was not sent: the bank is away: connection reset";
    let (kind, text, row) = failure(&retry, layered()).await;
    assert_eq!((kind, text.as_str()), (CauseKind::Error, chain));
    assert_eq!(row.last_error.as_deref(), Some(chain));
    let (_, _, row) = failure(&retry, report_of_layers()).await;
    let printed = "the order was not sent <- the bank is away <- connection reset";
    assert_eq!(row.last_error.as_deref(), Some(printed));
    let (_, _, row) = failure(&retry, reported()).await;
    let text = "number too large to fit in target type";
    assert_eq!(row.last_error.as_deref(), Some(text));
    let (_, _, row) = failure(&retry, boxed()).await;
    assert!(row.last_error.unwrap().starts_with("the order was not sent"));
    // The caller has the error itself.
    let Err(CallError::Failed { cause, .. }) = reported().on(&retry).await else {
        panic!("failed")
    };
    assert!(cause.into_error().unwrap().0.is::<std::num::ParseIntError>());
    retry.shutdown().await.unwrap();
}

async fn errors_of_any_text_fit(db: Arc<TestDb>) {
    let retry = start(&db).await;
    for text in ["", "'quoted' \"twice\" \\ {1,2} $1 ?", "😀 中文 \u{2028}", "null", "\u{1}\t\r\n"]
    {
        let (_, _, row) = failure(&retry, says(text.to_owned())).await;
        assert_eq!(row.last_error.as_deref(), Some(text));
    }
    let (_, _, row) = failure(&retry, says("a\0b".to_owned())).await;
    assert_eq!(row.last_error.as_deref(), Some("a\u{fffd}b"));
    for letter in ["x", "é", "中", "😀"] {
        let (_, text, row) = failure(&retry, says(letter.repeat(100_000))).await;
        let kept = row.last_error.unwrap();
        assert!((4090..=4096).contains(&kept.len()), "{}", kept.len());
        assert!(kept.ends_with('…') && text.starts_with(kept.trim_end_matches('…')));
    }
    retry.shutdown().await.unwrap();
}

async fn panics_are_failures(db: Arc<TestDb>) {
    let retry = start(&db).await;
    for (how, text) in [
        ("text", "panicked: a text"),
        ("format", "panicked: number 6"),
        ("number", "panicked: a value that is not text"),
        ("drop", "panicked: on the way out"),
    ] {
        let error = explodes(how).on(&retry).await.unwrap_err();
        let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
        assert_eq!((cause.kind(), cause.to_string().as_str()), (CauseKind::Panicked, text));
        assert!(cause.error().is_none());
        // A worker survives it as well, and the retries are used up.
        let row = becomes(&retry, id, Status::Failed).await;
        assert_eq!((row.send_count, row.crash_count), (2, 0));
        assert_eq!(row.last_error.as_deref(), Some(text));
    }
    let (kind, text, _) = failure(&retry, unspeakable()).await;
    assert_eq!((kind, text.as_str()), (CauseKind::Panicked, "panicked: unspeakable"));
    let (kind, text, _) = failure(&retry, undecided()).await;
    assert_eq!((kind, text.as_str()), (CauseKind::Panicked, "panicked: no opinion"));
    assert_eq!(aliased(1).on(&retry).await.unwrap(), [1, 1], "nothing is broken");
    retry.shutdown().await.unwrap();
}

async fn an_attempt_that_takes_too_long_is_dropped(db: Arc<TestDb>) {
    let (gate, dropped) = (Arc::new(Gate::default()), Arc::new(Dropped::default()));
    let builder = db.builder().shared_state(gate.clone()).shared_state(dropped.clone());
    let retry = builder.state(AtomicU32::new(0)).start().await.unwrap();
    for (round, bomb) in [(1, false), (2, true)] {
        let error = slow(bomb).on(&retry).await.unwrap_err();
        let CallError::Deferred { id, cause, .. } = error else { panic!("{error}") };
        assert_eq!((cause.kind(), cause.error()), (CauseKind::TimedOut, None));
        assert_eq!(cause.to_string(), "timed out after 100ms");
        let row = becomes(&retry, id, Status::Failed).await;
        assert_eq!((row.send_count, row.crash_count), (2, 0));
        assert_eq!(row.last_error.as_deref(), Some("timed out after 100ms"));
        // What it held is gone, although it never came to its end.
        assert_eq!(dropped.0.load(Ordering::SeqCst), 2 * round);
    }
    gate.open(1);
    slow(true).on(&retry).await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn a_function_without_result_runs_once(db: Arc<TestDb>) {
    let runs = Arc::new(AtomicU32::new(0));
    let builder = db.builder().shared_state(runs.clone()).state(Gate::default());
    let retry = builder.state(Dropped::default()).start().await.unwrap();
    nothing().on(&retry).enqueue().await.unwrap();
    becomes(&retry, only_task(&retry).await.id, Status::Succeeded).await;
    retry.shutdown().await.unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

contract!(
    every_return_type_comes_back,
    errors_are_kept_with_their_sources,
    errors_of_any_text_fit,
    panics_are_failures,
    an_attempt_that_takes_too_long_is_dropped,
    a_function_without_result_runs_once,
);
