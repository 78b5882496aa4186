//! Messages, by a broker that is only a list.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sea_orm::TransactionTrait;
use task_retry::mq::{Broker, Draft, Message, PublishError};
use task_retry::{
    Builder, CallError, CauseKind, ErrorKind, Filter, Policy, Status, Task, TaskLog, TaskRetry,
};
use task_retry_tests::{TestDb, becomes, contract, manual_clock, task, until};

const LETTERS: i32 = 100;

/// Keeps what it is sent, or does not, as it is told.
#[derive(Clone, Default)]
struct Letters(Arc<Post>);

#[derive(Default)]
struct Post {
    sent: Mutex<Vec<Message>>,
    trouble: Mutex<Option<PublishError>>,
    closed: AtomicU32,
}

impl Letters {
    fn sent(&self) -> Vec<Message> {
        self.0.sent.lock().unwrap().clone()
    }

    fn bodies(&self) -> Vec<String> {
        let body = |message: Message| String::from_utf8(message.body).unwrap();
        self.sent().into_iter().map(body).collect()
    }

    fn trouble(&self, trouble: Option<PublishError>) {
        *self.0.trouble.lock().unwrap() = trouble;
    }
}

impl Broker for Letters {
    async fn publish(&self, message: Message) -> Result<(), PublishError> {
        if let Some(trouble) = self.0.trouble.lock().unwrap().clone() {
            return Err(trouble);
        }
        self.0.sent.lock().unwrap().push(message);
        Ok(())
    }

    async fn close(&self) {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
    }
}

fn with(builder: Builder, letters: &Letters) -> Builder {
    let plain = letters.assembled(LETTERS, "letters", |task: &TaskLog| Ok(Message::of(task)));
    let policy = Policy::new().first_execute(Duration::ZERO).max_retry(3);
    builder.strategy_with(plain, policy)
}

async fn start(db: &TestDb) -> (TaskRetry, Letters) {
    let letters = Letters::default();
    (with(db.builder(), &letters).start().await.unwrap(), letters)
}

fn letter() -> Draft {
    Draft::new(LETTERS, "my-topic")
}

async fn count(retry: &TaskRetry) -> u64 {
    retry.tasks().count(Filter::all()).await.unwrap()
}

async fn both_doors_lead_to_the_broker(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    let untyped = Task::new(LETTERS).topic("my-topic").key("20221213660896").context("objMsg");
    let untyped = retry.submit(untyped).await.unwrap().id();
    becomes(&retry, untyped, Status::Succeeded).await;
    let bare = retry.submit(Task::new(LETTERS)).await.unwrap().id();
    becomes(&retry, bare, Status::Succeeded).await;
    letter().key("k").send("objMsg").on(&retry).await.unwrap();
    letter().send(&String::from("a \"string\"")).on(&retry).await.unwrap();
    letter().send("").on(&retry).await.unwrap();
    letter().send(&(1, Some("x"), u128::MAX)).on(&retry).await.unwrap();
    letter().send(&serde_json::json!({"order": 42})).on(&retry).await.unwrap();
    let json = format!("[1,\"x\",{}]", u128::MAX);
    let bodies = ["objMsg", "", "objMsg", "a \"string\"", "", json.as_str(), "{\"order\":42}"];
    assert_eq!(letters.bodies(), bodies);
    let sent = letters.sent();
    let of = |n: usize| (sent[n].topic.as_str(), sent[n].key.as_str());
    assert_eq!((of(0), of(1)), (("my-topic", "20221213660896"), ("", "")));
    assert_eq!((of(2), of(3)), (("my-topic", "k"), ("my-topic", "")));
    assert_eq!((sent[0].id, sent[1].id), (untyped, bare));
    let row = task(&retry, sent[2].id).await;
    assert_eq!((row.source, row.task_name.as_deref()), (LETTERS, Some("letters")));
    assert_eq!((row.topic.as_str(), row.msg_key.as_str()), ("my-topic", "k"));
    assert_eq!((row.context.as_deref(), row.status), (Some("objMsg"), Status::Succeeded));
    assert!(!format!("{:?}", sent[2]).contains("objMsg"), "{:?}", sent[2]);
    retry.shutdown().await.unwrap();
}

async fn what_cannot_be_stored_is_refused(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    let error = letter().send(&f64::NAN).on(&retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Context, "{error}");
    match letter().send(&[f64::NAN]).on(&retry).await {
        Err(CallError::Rejected(error)) => assert_eq!(error.kind(), ErrorKind::Context),
        other => panic!("{other:?}"),
    }
    for bad in [letter().key("k".repeat(192)).send("x"), letter().send("a\0b")] {
        let error = bad.on(&retry).enqueue().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Context, "{error}");
    }
    let error = Draft::new(999, "t").send("x").on(&retry).enqueue().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Registry, "{error}");
    assert_eq!((count(&retry).await, letters.sent().len()), (0, 0));
    retry.shutdown().await.unwrap();
}

async fn an_awaited_message_tells_what_became_of_it(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    letter().send("1").unique_key("u").on(&retry).await.unwrap();
    match letter().send("2").unique_key("u").on(&retry).await {
        Err(CallError::Duplicate { status, .. }) => assert_eq!(status, Status::Succeeded),
        other => panic!("{other:?}"),
    }
    letters.trouble(Some(PublishError::new("the post is on strike")));
    let id = match letter().send("3").on(&retry).await {
        Err(CallError::Deferred { id, cause, .. }) => {
            assert_eq!(cause.kind(), CauseKind::Error);
            assert_eq!(cause.error().map(String::as_str), Some("the post is on strike"));
            id
        }
        other => panic!("{other:?}"),
    };
    letters.trouble(None);
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!(row.last_error.as_deref(), Some("the post is on strike"));
    letters.trouble(Some(PublishError::permanent("there is no such thing")));
    match letter().send("4").on(&retry).await {
        Err(CallError::Failed { id, .. }) => {
            let row = task(&retry, id).await;
            assert_eq!((row.status, row.send_count), (Status::Failed, 1));
        }
        other => panic!("{other:?}"),
    }
    letters.trouble(Some(PublishError::new("closed for good")));
    let spent = letter().send("5").max_retry(1).on(&retry).enqueue().await.unwrap();
    let row = becomes(&retry, spent.id(), Status::Failed).await;
    assert_eq!((row.send_count, row.last_error.as_deref()), (2, Some("closed for good")));
    assert_eq!(letters.bodies(), ["1", "3"]);
    retry.shutdown().await.unwrap();
}

async fn a_message_is_there_if_its_transaction_is(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    let connection = db.connect().await;
    for commit in [false, true] {
        let transaction = connection.begin().await.unwrap();
        let typed = letter().key("a").send(&1).on(&retry);
        let typed = typed.enqueue_in(&transaction).await.unwrap();
        let later = letter().send(&3).delay(Duration::from_secs(3600)).on(&retry);
        later.enqueue_in(&transaction).await.unwrap();
        let untyped = Task::new(LETTERS).topic("t").context("2").unique_key("once");
        let untyped = retry.submit_in(&transaction, untyped).await.unwrap();
        assert!(typed.is_new() && untyped.is_new());
        let again = Task::new(LETTERS).unique_key("once");
        let again = retry.submit_in(&transaction, again).await.unwrap();
        assert_eq!((again.id(), again.is_new()), (untyped.id(), false));
        if !commit {
            transaction.rollback().await.unwrap();
            assert_eq!(count(&retry).await, 0);
            continue;
        }
        transaction.commit().await.unwrap();
        retry.kick();
        becomes(&retry, typed.id(), Status::Succeeded).await;
        becomes(&retry, untyped.id(), Status::Succeeded).await;
    }
    assert_eq!(count(&retry).await, 3);
    let mut bodies = letters.bodies();
    bodies.sort();
    assert_eq!(bodies, ["1", "2"]);
    connection.close().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn a_message_goes_out_at_its_time(db: Arc<TestDb>) {
    let (clock, letters) = (manual_clock(), Letters::default());
    let builder = with(db.builder().clock(clock.clone()).job(false), &letters);
    let retry = builder.start().await.unwrap();
    let minute = Duration::from_secs(60);
    letter().send("in a minute").delay(minute).on(&retry).enqueue().await.unwrap();
    let at = clock.now() + minute * 2;
    letter().send("at two").at(at).unique_key("at").on(&retry).enqueue().await.unwrap();
    letter().send("too late").expires_in(minute / 2).on(&retry).enqueue().await.unwrap();
    letters.trouble(Some(PublishError::new("closed on Sundays")));
    assert_eq!(retry.run_due(None).await.unwrap().retrying, 1);
    letters.trouble(None);
    for (expected, failed) in [("in a minute", 1), ("at two", 0)] {
        clock.advance(minute);
        let report = retry.run_due(None).await.unwrap();
        assert_eq!((report.succeeded, report.failed), (1, failed), "{expected}");
        assert_eq!(letters.bodies().last().map(String::as_str), Some(expected));
    }
    retry.shutdown().await.unwrap();
}

async fn a_message_goes_to_the_runtime_around_it(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    let outside = letter().send("x").enqueue().await.unwrap_err();
    assert_eq!(outside.kind(), ErrorKind::NotStarted, "{outside}");
    let other = Letters::default();
    let elsewhere = with(db.builder().project("other"), &other).start().await.unwrap();
    retry.scope(async { letter().send("here").await }).await.unwrap();
    retry.scope(async { letter().send("there").on(&elsewhere).await }).await.unwrap();
    let scoped = retry.scope(async { letter().send("here too").enqueue().await }).await.unwrap();
    becomes(&retry, scoped.id(), Status::Succeeded).await;
    assert_eq!(
        (letters.bodies(), other.bodies()),
        (vec!["here".to_owned(), "here too".to_owned()], vec!["there".to_owned()])
    );
    elsewhere.shutdown().await.unwrap();
    let gone = letter().send("x").on(&elsewhere).enqueue().await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::Closed, "{gone}");
    retry.shutdown().await.unwrap();
}

async fn switched_off_messages_go_out_bare(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await; // makes the table
    let off = with(db.builder().enable(false), &letters).start().await.unwrap();
    letter().key("k").send("bare").on(&off).await.unwrap();
    let sent = letters.sent();
    assert_eq!((sent[0].topic.as_str(), sent[0].key.as_str()), ("my-topic", "k"));
    letters.trouble(Some(PublishError::new("on strike")));
    match letter().send("x").on(&off).await {
        Err(CallError::Failed { cause, .. }) => {
            assert_eq!(cause.error().map(String::as_str), Some("on strike"));
        }
        other => panic!("{other:?}"),
    }
    assert!(letter().send("x").on(&off).enqueue().await.is_err());
    assert!(off.submit(Task::new(LETTERS)).await.is_err());
    assert_eq!((count(&retry).await, letters.sent().len()), (0, 1));
    off.shutdown().await.unwrap();
    retry.shutdown().await.unwrap();
}

async fn an_assembler_makes_the_message(db: Arc<TestDb>) {
    let letters = Letters::default();
    let assembler = |task: &TaskLog| {
        if task.attempt() == 1 {
            return Err("there is no paper".to_owned());
        }
        let body = format!("dear {}", task.context.as_deref().unwrap_or("all"));
        let message = Message::of(task).topic("post").key("K").body(body);
        Ok(message.header("attempt", task.attempt().to_string()))
    };
    let builder = with(db.builder().first_execute_second(0), &letters);
    let builder = builder.strategy(letters.assembled(101, "polite", assembler));
    let retry = builder.start().await.unwrap();
    let id = match Draft::new(101, "my-topic").send("Ada").on(&retry).await {
        Err(CallError::Deferred { id, cause, .. }) => {
            let error = cause.error().unwrap();
            assert_eq!(error, "its message cannot be assembled: there is no paper");
            id
        }
        other => panic!("{other:?}"),
    };
    let row = becomes(&retry, id, Status::Succeeded).await;
    assert_eq!((row.topic.as_str(), row.task_name.as_deref()), ("my-topic", Some("polite")));
    let sent = letters.sent();
    assert_eq!((sent.len(), sent[0].id), (1, id));
    assert_eq!((sent[0].topic.as_str(), sent[0].key.as_str()), ("post", "K"));
    assert_eq!(sent[0].headers, [("attempt".to_owned(), "2".to_owned())]);
    assert_eq!(letters.bodies(), ["dear Ada"]);
    retry.shutdown().await.unwrap();
}

async fn a_broker_is_closed_when_the_runtime_has_stopped(db: Arc<TestDb>) {
    let (retry, letters) = start(&db).await;
    letter().send("x").on(&retry).await.unwrap();
    assert_eq!(letters.0.closed.load(Ordering::SeqCst), 0);
    retry.shutdown().await.unwrap();
    until("the broker is closed", async || letters.0.closed.load(Ordering::SeqCst) > 0).await;
}

contract!(
    both_doors_lead_to_the_broker,
    what_cannot_be_stored_is_refused,
    an_awaited_message_tells_what_became_of_it,
    a_message_is_there_if_its_transaction_is,
    a_message_goes_out_at_its_time,
    a_message_goes_to_the_runtime_around_it,
    switched_off_messages_go_out_bare,
    an_assembler_makes_the_message,
    a_broker_is_closed_when_the_runtime_has_stopped,
);
