//! The caller's span is stored and linked to, and neither logs nor spans show arguments.

use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use opentelemetry::trace::{SpanContext, TraceContextExt as _, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use sea_orm::ConnectionTrait;
use task_retry::{
    Builder, CallError, ErrorKind, Filter, HandleResult, Propagator, Status, Strategy, Task,
    TaskId, TaskLog, TaskRetry, enqueue_all, retryable,
};
use task_retry_tests::{TestDb, contract, until};
use tracing::{Instrument as _, Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt as _;
use tracing_subscriber::fmt::format::FmtSpan;
use tracing_subscriber::layer::SubscriberExt as _;

const SAID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Everything that is logged by anybody at any level, and every span, of this whole program.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Observed {
    log: Log,
    spans: InMemorySpanExporter,
}

static OBSERVED: LazyLock<Observed> = LazyLock::new(|| {
    let (log, spans) = (Log::default(), InMemorySpanExporter::default());
    let provider = SdkTracerProvider::builder().with_simple_exporter(spans.clone()).build();
    let writer = log.clone();
    let all = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_span_events(FmtSpan::FULL)
        .with_writer(move || writer.clone());
    let tracer = tracing_opentelemetry::layer().with_tracer(provider.tracer("tests"));
    let subscriber = tracing_subscriber::registry().with(all).with(tracer);
    tracing::subscriber::set_global_default(subscriber).unwrap();
    // The provider ends with its last handle, and the exporter with it.
    std::mem::forget(provider);
    Observed { log, spans }
});

/// Fails once for tasks that say so.
#[retryable(source = 130)]
async fn pay(card: &str, attempts: u32, #[state] flaky: &Flaky) -> Result<(), String> {
    let mut seen = flaky.0.lock().unwrap();
    *seen += 1;
    assert!(!card.is_empty());
    if *seen < attempts { Err("declined".into()) } else { Ok(()) }
}

#[derive(Clone, Default)]
struct Flaky(Arc<Mutex<u32>>);

struct Notify;

impl Strategy for Notify {
    fn source(&self) -> i32 {
        131
    }

    fn name(&self) -> &str {
        "notify"
    }

    async fn handle(&self, _task: &TaskLog) -> HandleResult {
        HandleResult::Success
    }
}

fn builder(db: &TestDb) -> Builder {
    LazyLock::force(&OBSERVED);
    db.builder().first_execute_second(0).only::<(pay,)>().state(Flaky::default()).strategy(Notify)
}

async fn get(retry: &TaskRetry, id: TaskId) -> TaskLog {
    retry.tasks().get(id).await.unwrap().unwrap()
}

async fn is(retry: &TaskRetry, id: TaskId, status: Status) {
    let what = format!("task {id} is {status}");
    until(&what, async || get(retry, id).await.status == status).await;
}

/// The spans of a task's attempts, in their order, once there are so many.
async fn attempts(id: TaskId, count: usize) -> Vec<SpanData> {
    let of = |span: &SpanData| attribute(span, "task.id") == Some(id.to_string());
    let found = || -> Vec<SpanData> {
        let spans = OBSERVED.spans.get_finished_spans().unwrap();
        spans.into_iter().filter(|span| span.name == "task_retry.attempt" && of(span)).collect()
    };
    until("the attempts' spans are there", async || found().len() >= count).await;
    let mut found = found();
    found.sort_by_key(|span| attribute(span, "attempt"));
    assert_eq!(found.len(), count);
    found
}

fn attribute(span: &SpanData, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|attribute| attribute.key.as_str() == name);
    found.map(|attribute| attribute.value.to_string())
}

fn traceparent(context: &SpanContext) -> String {
    let flags = context.trace_flags().to_u8();
    format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id())
}

fn links(span: &SpanData) -> Vec<String> {
    span.links.iter().map(|link| traceparent(&link.span_context)).collect()
}

async fn each_attempt_links_to_the_span_of_its_caller(db: Arc<TestDb>) {
    let retry = builder(&db).start().await.unwrap();
    let caller = info_span!("caller");
    let here = traceparent(caller.context().span().span_context());
    let error = pay("4111", 2).on(&retry).instrument(caller.clone()).await.unwrap_err();
    let CallError::Deferred { id, .. } = error else { panic!("{error}") };
    is(&retry, id, Status::Succeeded).await;
    assert_eq!(get(&retry, id).await.trace_context.as_deref(), Some(&*here));
    for (number, span) in (1..).zip(attempts(id, 2).await) {
        assert_eq!(links(&span), [here.as_str()], "attempt {number}");
        let number = number.to_string();
        for (name, value) in [
            ("task.name", "pay"),
            ("source", "130"),
            ("attempt", &number),
            ("project", "test"),
            ("trace_context", &here),
        ] {
            assert_eq!(attribute(&span, name).as_deref(), Some(value), "{name}");
        }
    }
    let stored = async {
        let one = pay("4111", 0).on(&retry).enqueue().await.unwrap();
        let all = enqueue_all([pay("4111", 0).on(&retry), pay("4111", 0).on(&retry)]);
        let task = retry.submit(Task::new(131)).await.unwrap();
        let later = pay("4111", 0).delay(Duration::from_millis(1)).on(&retry).enqueue();
        let mut ids = vec![one.id(), task.id(), later.await.unwrap().id()];
        ids.extend(all.await.unwrap().iter().map(|stored| stored.id()));
        ids
    };
    for id in stored.instrument(caller.clone()).await {
        assert_eq!(links(&attempts(id, 1).await[0]), [here.as_str()]);
    }
    // Of a caller without a span nothing is stored.
    let id = pay("4111", 0).on(&retry).enqueue().await.unwrap().id();
    assert_eq!(links(&attempts(id, 1).await[0]), [""; 0]);
    assert_eq!(get(&retry, id).await.trace_context, None);
    retry.shutdown().await.unwrap();
}

async fn a_caller_may_name_its_span_itself(db: Arc<TestDb>) {
    let retry = builder(&db).start().await.unwrap();
    let named = pay("4111", 0).trace_context(SAID).on(&retry).enqueue();
    let ids = [
        named.instrument(info_span!("another")).await.unwrap().id(),
        pay("4111", 0)
            .delay(Duration::from_millis(1))
            .trace_context(SAID)
            .on(&retry)
            .enqueue()
            .await
            .unwrap()
            .id(),
        retry.submit(Task::new(131).trace_context(SAID)).await.unwrap().id(),
    ];
    for id in ids {
        assert_eq!(links(&attempts(id, 1).await[0]), [SAID]);
        assert_eq!(get(&retry, id).await.trace_context.as_deref(), Some(SAID));
    }
    for bad in ["", "x", &SAID[..54], &SAID.to_uppercase(), &SAID.replacen("00", "01", 1)] {
        let error = pay("4111", 0).trace_context(bad).on(&retry).enqueue().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context);
        let error = retry.submit(Task::new(131).trace_context(bad)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context);
    }
    assert_eq!(retry.tasks().count(Filter::all()).await.unwrap(), 3);
    retry.shutdown().await.unwrap();
}

/// Says always the same, and keeps what it is told.
#[derive(Clone, Default)]
struct Fixed(Arc<Mutex<Vec<String>>>);

impl Propagator for Fixed {
    fn current(&self) -> Option<String> {
        Some(SAID.to_owned())
    }

    fn link(&self, attempt: &Span, caller: &str) {
        let name = attempt.metadata().unwrap().name();
        self.0.lock().unwrap().push(format!("{name} {caller}"));
        panic!("this is not the attempt's fault");
    }
}

async fn another_tracer_may_carry_it(db: Arc<TestDb>) {
    let fixed = Fixed::default();
    let retry = builder(&db).propagator(fixed.clone()).start().await.unwrap();
    pay("4111", 0).on(&retry).await.unwrap();
    assert_eq!(*fixed.0.lock().unwrap(), [format!("task_retry.attempt {SAID}")]);
    retry.shutdown().await.unwrap();
}

async fn arguments_are_in_no_log_and_no_span(db: Arc<TestDb>) {
    // Different for each database, as the tests run side by side.
    let secret = format!("SECRET-{}-{}", std::process::id(), fastrand::u64(..));
    let retry = builder(&db).job(false).start().await.unwrap();
    let call = || pay(&secret, 0).on(&retry);
    let connection = db.connect().await;
    async {
        call().await.unwrap();
        call().enqueue().await.unwrap();
        enqueue_all([call(), call()]).await.unwrap();
        let failing = pay(&secret, 1000).on(&retry).await.unwrap_err();
        assert!(failing.is_deferred());
        retry.submit(Task::new(131).context(&secret)).await.unwrap();
        retry.run_due(None).await.unwrap();
        // What does not fit: serde's own words would quote it.
        for context in [
            format!(r#"{{"card":7,"attempts":"{secret}"}}"#),
            format!(r#"{{"card":"a","attempts":"{secret}"}}"#),
            format!(r#"{{"card":{{"{secret}":1}},"attempts":0}}"#),
            format!(r#"{{"card":"a","attempts":{secret}}}"#),
            format!(r#"{{"card":"{secret}"}}"#),
            secret.clone(),
        ] {
            let submitted = Task::new(130).context(&context);
            let error = retry.submit(submitted).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Context);
            assert!(!format!("{error} {error:?}").contains(&secret), "{error}");
            let stored = call().delay(Duration::ZERO).enqueue().await.unwrap().id();
            let edited = retry.tasks().edit_context(stored, &context).await.unwrap_err();
            assert!(!format!("{edited} {edited:?}").contains(&secret), "{edited}");
            let sql =
                format!("update t_sys_mq_resend_log set context = '{context}' where id = {stored}");
            connection.execute_unprepared(&sql).await.unwrap();
            let report = retry.run_due(None).await.unwrap();
            assert_eq!(report.undecodable, 1, "{context}");
            let task = get(&retry, stored).await;
            let error = task.last_error.clone().unwrap();
            assert!(!error.contains(&secret), "{error}");
            assert!(!format!("{task:?}").contains(&secret));
        }
    }
    .instrument(info_span!("caller"))
    .await;
    retry.shutdown().await.unwrap();
    let log = OBSERVED.log.text();
    let tells =
        |line: &&str| line.contains(&secret) && !line.contains("update t_sys_mq_resend_log");
    let told: Vec<&str> = log.lines().filter(tells).collect();
    assert_eq!(told, [""; 0]);
    assert!(log.contains("cannot be decoded here"), "undecodable rows are logged");
    for span in OBSERVED.spans.get_finished_spans().unwrap() {
        assert!(!format!("{span:?}").contains(&secret), "{span:?}");
    }
}

async fn tasks_of_a_source_that_nobody_knows_are_told(db: Arc<TestDb>) {
    let source = 9000 + db.kind as i32;
    // It makes the table, and looks for nothing.
    let first = builder(&db).job(false).start().await.unwrap();
    for (id, source) in [(1, source), (2, source), (3, 130)] {
        db.execute(&format!(
            "insert into t_sys_mq_resend_log (id, project_name, source, task_name, next_send_time) \
             values ({id}, 'test', {source}, 'stranger', '2999-01-01 00:00:00')"
        ))
        .await;
    }
    first.shutdown().await.unwrap();
    let retry = builder(&db).start().await.unwrap();
    let told = format!("source={source} name=\"stranger\"");
    until("it is told", async || OBSERVED.log.text().contains(&told)).await;
    let text = OBSERVED.log.text();
    let unknown = |line: &&str| line.contains("nothing here knows");
    assert_eq!(text.lines().filter(unknown).filter(|line| line.contains(&told)).count(), 1);
    assert!(!text.lines().filter(unknown).any(|line| line.contains("source=130")));
    retry.shutdown().await.unwrap();
}

contract!(
    tasks_of_a_source_that_nobody_knows_are_told,
    each_attempt_links_to_the_span_of_its_caller,
    a_caller_may_name_its_span_itself,
    another_tracer_may_carry_it,
    arguments_are_in_no_log_and_no_span,
);
