//! Many calls at once: all of them are stored or none.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};

use crate::call::{Call, Scheduled};
use crate::clock::{LATEST, Millis};
use crate::runtime::Inner;
use crate::runtime::write::{Backoff, ROWS};
use crate::store::{ANSWER, Conflict, Fault, Inserted, NewRow, Sql, in_time, steadily};
use crate::{Enqueued, Error, ErrorKind, Result, Retryable, TaskId, TaskRetry};

/// How long a lost commit is asked for.
const ASK: Duration = Duration::from_secs(10);

/// What can be enqueued: a [`Call`] or a [`Scheduled`] one.
pub trait Enqueue: sealed::Sealed {
    /// The function.
    type Function: Retryable;

    #[doc(hidden)]
    fn into_call(self) -> Call<Self::Function>;
}

mod sealed {
    pub trait Sealed {}
    impl<R: super::Retryable> Sealed for super::Call<R> {}
    impl<R: super::Retryable> Sealed for super::Scheduled<R> {}
}

impl<R: Retryable> Enqueue for Call<R> {
    type Function = R;

    fn into_call(self) -> Self {
        self
    }
}

impl<R: Retryable> Enqueue for Scheduled<R> {
    type Function = R;

    fn into_call(self) -> Call<R> {
        self.into_inner()
    }
}

/// Stores many calls of one function, all or none, in multi-row statements of one transaction.
/// Workers run them; those of this process start at once.
///
/// There is one answer for each call, in their order. A call whose key is taken, also by an earlier
/// one of these, is answered with the id of the task that has it and [`Enqueued::is_new`] `false`.
/// All calls have to be for one runtime: the one that the first is for.
///
/// Dropping the future stores nothing, unless the commit was sent already.
///
/// `calls` is asked for a thousand at a time, while the database stores those before: they need not be
/// collected. So it must not block, nor wait for other tasks: the transaction is open meanwhile. If that
/// has to be repeated, `calls` is not asked again.
///
/// ```standalone_crate
/// # use task_retry::{TaskRetry, enqueue_all, retryable};
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// /// Greets somebody.
/// #[retryable(source = 30)]
/// async fn greet(name: String) -> Result<(), String> {
///     Ok(())
/// }
///
/// # let retry = TaskRetry::builder().project("docs").database("sqlite::memory:").start().await?;
/// let names = ["Ada", "Grace", "Ada"];
/// let stored = enqueue_all(names.map(|name| greet(name.to_owned()).key(name))).await?;
/// assert_eq!(stored.iter().filter(|stored| stored.is_new()).count(), 2);
/// # retry.shutdown().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// As for [`Call::enqueue`]; nothing is stored then, except with `Uncertain`.
pub async fn enqueue_all<C: Enqueue>(
    calls: impl IntoIterator<Item = C, IntoIter: Send>,
) -> Result<Vec<Enqueued<C::Function>>> {
    let Some((retry, mut rows)) = rows_of(calls)? else { return Ok(Vec::new()) };
    let inner = retry.open()?;
    let stored = store_all(inner, &mut rows).await?;
    inner.tell_of_stored(C::Function::spec().source(), rows.first_due());
    Ok(stored.into_iter().map(Enqueued::typed).collect())
}

/// Stores many calls by a transaction of the caller's, as [`enqueue_all`] and [`Call::enqueue_in`] do.
///
/// # Errors
/// As for [`Call::enqueue_in`]; roll the transaction back then.
pub async fn enqueue_all_in<C: Enqueue, T: ConnectionTrait>(
    transaction: &T,
    calls: impl IntoIterator<Item = C, IntoIter: Send>,
) -> Result<Vec<Enqueued<C::Function>>> {
    let Some((retry, mut rows)) = rows_of(calls)? else { return Ok(Vec::new()) };
    let inner = retry.open()?;
    inner.store.same_backend(transaction)?;
    // A call that cannot be stored leaves nothing in the caller's transaction.
    rows.ahead.make(usize::MAX)?;
    let Some(stored) =
        insert_all(inner, transaction, &mut rows, false, false, Duration::MAX).await?
    else {
        return Err(Error::new(ErrorKind::Conflict, "an id was taken: try again"));
    };
    inner.wake.due_at(rows.first_due());
    Ok(stored.into_iter().map(Enqueued::typed).collect())
}

/// Calls on their way to being stored. Each is made into a row while the database still carries out the
/// statement before its own.
struct Rows<'a> {
    /// Those that this transaction has stored,
    done: Vec<NewRow>,
    /// that it is storing,
    part: Vec<NewRow>,
    /// and that are still to come.
    ahead: Ahead<'a>,
}

struct Ahead<'a> {
    /// The next of them, with their statement,
    part: Option<Part>,
    /// and others that are rows already.
    made: VecDeque<NewRow>,
    /// In a box, so that whoever awaits the storing need not know how its calls are made.
    calls: Box<dyn Iterator<Item = Result<NewRow>> + Send + 'a>,
}

/// The runtime of some calls, and the rows that are made of them; `None` if there is no call.
fn rows_of<'a, C: Enqueue + 'a>(
    calls: impl IntoIterator<Item = C, IntoIter: Send + 'a>,
) -> Result<Option<(TaskRetry, Rows<'a>)>> {
    let mut calls = calls.into_iter().fuse().map(C::into_call).peekable();
    let Some(first) = calls.peek() else { return Ok(None) };
    let retry = first.runtime()?;
    let (runtime, mut now) = (retry.clone(), None);
    let calls = calls.map(move |call| {
        if !call.runtime()?.is(&runtime) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "calls for two runtimes cannot be stored in one transaction",
            ));
        }
        let insertion = call.prepare_to_store()?;
        let is_due = insertion.is_due();
        let mut row = insertion.into_row();
        if is_due {
            // All of them are due at one time, which is quicker to write.
            row.next = *now.get_or_insert(row.next);
        }
        Ok(row)
    });
    let mut ahead = Ahead { part: None, made: VecDeque::new(), calls: Box::new(calls) };
    // What is wrong with a few is found before anything is sent.
    ahead.make(ROWS)?;
    Ok(Some((retry, Rows { done: Vec::new(), part: Vec::new(), ahead })))
}

impl Rows<'_> {
    /// Everything from the beginning: the transaction is repeated.
    fn rewind(&mut self) {
        let Self { done, part, ahead } = self;
        ahead.put_back_part();
        let stored = std::mem::take(done).into_iter().chain(part.drain(..));
        ahead.made = stored.chain(ahead.made.drain(..)).collect();
    }

    fn first_due(&self) -> Millis {
        self.done.iter().map(|row| row.next).min().unwrap_or(LATEST)
    }
}

impl Ahead<'_> {
    fn make(&mut self, count: usize) -> Result<()> {
        while self.made.len() < count {
            match self.calls.next() {
                Some(row) => self.made.push_back(row?),
                None => break,
            }
        }
        Ok(())
    }

    fn put_back(&mut self, rows: Vec<NewRow>) {
        rows.into_iter().rev().for_each(|row| self.made.push_front(row));
    }

    fn put_back_part(&mut self) {
        if let Some(part) = self.part.take() {
            self.put_back(part.rows);
        }
    }

    /// Prepares the next part, if there is more: as many rows as fit, but no more than that.
    fn prepare(&mut self, inner: &Inner, most: usize, plain: bool) -> Result<()> {
        self.make(most)?;
        let mut bytes = 0;
        let fits = self.made.iter().take(most).take_while(|row| {
            bytes += inner.store.row_bytes(row);
            bytes <= inner.store.bytes
        });
        let size = inner.store.batch(fits.count().max(1)).min(self.made.len());
        if size == 0 {
            return Ok(());
        }
        let rows: Vec<NewRow> = self.made.drain(..size).collect();
        // A row that stands alone is told of its obstacle.
        let plain = plain && size > 1 && rows.iter().all(|row| row.unique_key.is_none());
        let conflict = if plain { Conflict::Fail } else { Conflict::Skip };
        let sql = inner.store.insertion(&rows, inner.clock.now(), conflict);
        self.part = Some(Part { rows, sql, conflict });
        Ok(())
    }
}

struct Part {
    rows: Vec<NewRow>,
    sql: Sql,
    conflict: Conflict,
}

/// Why a transaction was not carried out.
enum Failure {
    Store(DbErr),
    /// One of the calls cannot be stored.
    Call(Error),
}

impl From<DbErr> for Failure {
    fn from(error: DbErr) -> Self {
        Self::Store(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Call(error)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Store(error) => error.into(),
            Failure::Call(error) => error,
        }
    }
}

/// One transaction, repeated as a whole. Its ids stay the same: if a commit whose answer was lost has
/// taken effect after all, its rows are found.
async fn store_all(inner: &Inner, rows: &mut Rows<'_>) -> Result<Vec<Enqueued>> {
    let until = Instant::now() + ASK;
    let mut backoff = Backoff::default();
    let (mut lost, mut plain) = (false, true);
    let mut repeats = 0;
    loop {
        let error = match try_all(inner, rows, lost, plain).await {
            Ok(stored) => return Ok(stored),
            Err(Failure::Call(error)) => return Err(error),
            Err(Failure::Store(error)) => error,
        };
        let fault = Fault::of(&error);
        lost |= fault == Fault::Lost;
        match fault {
            Fault::Repeat if repeats < 20 => repeats += 1,
            Fault::Duplicate if plain => {}
            Fault::Lost | Fault::Unsent if lost && Instant::now() < until => {}
            _ if lost => {
                let what =
                    "the connection was lost in the commit, and the database cannot be asked";
                return Err(Error::new(ErrorKind::Uncertain, what).with_source(error));
            }
            _ => return Err(error.into()),
        }
        plain = false;
        backoff.pause().await;
    }
}

/// In the plain form an id that is taken fails it, as does a lost commit that had taken effect.
async fn try_all(
    inner: &Inner,
    rows: &mut Rows<'_>,
    lost: bool,
    plain: bool,
) -> Result<Vec<Enqueued>, Failure> {
    rows.rewind();
    let transaction = in_time(ANSWER, inner.store.db.pool().begin()).await?;
    match insert_all(inner, &transaction, rows, lost, plain, ANSWER).await {
        Ok(Some(stored)) => {
            in_time(ANSWER, transaction.commit()).await?;
            Ok(stored)
        }
        // The lost commit had taken effect, and what it stored is all of it.
        Ok(None) => {
            transaction.rollback().await?;
            rows.rewind();
            Ok(found(inner, rows.ahead.made.make_contiguous()).await?)
        }
        Err(error) => {
            // Best effort: a transaction that is dropped is rolled back too.
            let _ = in_time(ANSWER, transaction.rollback()).await;
            Err(error)
        }
    }
}

/// The answers of a commit whose own answer was lost.
async fn found(inner: &Inner, rows: &[NewRow]) -> Result<Vec<Enqueued>, DbErr> {
    let mut stored = Vec::with_capacity(rows.len());
    for rows in rows.chunks(ROWS) {
        let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
        let holders = steadily(|| inner.store.holders(&ids)).await?;
        let refused: Vec<&NewRow> =
            rows.iter().filter(|row| !holders.contains_key(&row.id)).collect();
        let taken = inner.store.obstacles(&inner.store.db, &refused).await?;
        for row in rows {
            stored.push(match taken.get(&row.id) {
                Some(Inserted::Duplicate(id, _)) => Enqueued::new(inner, *id, false),
                _ => Enqueued::new(inner, TaskId(row.id), true),
            });
        }
    }
    Ok(stored)
}

/// Inserts all rows, each statement within the limit; `None` if one of them is there already since an
/// earlier commit was lost.
async fn insert_all<C: ConnectionTrait>(
    inner: &Inner,
    db: &C,
    rows: &mut Rows<'_>,
    lost: bool,
    plain: bool,
    limit: Duration,
) -> Result<Option<Vec<Enqueued>>, Failure> {
    let Rows { done, part, ahead } = rows;
    let mut stored = Vec::new();
    ahead.prepare(inner, ROWS, plain)?;
    while let Some(Part { rows, sql, conflict }) = ahead.part.take() {
        *part = rows;
        let (inserted, prepared) =
            tokio::join!(in_time(limit, inner.store.carry_out(db, sql, part, conflict)), async {
                ahead.prepare(inner, ROWS, plain)
            });
        prepared?;
        // On MySQL a duplicate fails its whole statement: halve it until the row stands alone.
        let halve = |error: &DbErr| {
            conflict == Conflict::Skip && part.len() > 1 && Fault::of(error) == Fault::Duplicate
        };
        let inserted = match inserted {
            Err(error) if halve(&error) => {
                let half = part.len() / 2;
                ahead.put_back_part();
                ahead.put_back(std::mem::take(part));
                ahead.prepare(inner, half, plain)?;
                continue;
            }
            inserted => inserted?,
        };
        for (row, inserted) in part.iter_mut().zip(inserted) {
            stored.push(match inserted {
                Inserted::Stored => Enqueued::new(inner, TaskId(row.id), true),
                Inserted::Duplicate(id, _) if id.0 != row.id => Enqueued::new(inner, id, false),
                _ if lost => return Ok(None),
                _ => in_time(limit, insert_anew(inner, db, row)).await?,
            });
        }
        done.append(part);
    }
    Ok(Some(stored))
}

/// A row whose id was taken, or whose key was taken and is free again.
async fn insert_anew<C: ConnectionTrait>(
    inner: &Inner,
    db: &C,
    row: &mut NewRow,
) -> Result<Enqueued, DbErr> {
    for _ in 0..5 {
        let now = inner.clock.now();
        row.id = inner.clock.new_id(now);
        match inner.store.insert(db, std::slice::from_ref(row), now).await?[..] {
            [Inserted::Stored] => return Ok(Enqueued::new(inner, TaskId(row.id), true)),
            [Inserted::Duplicate(id, _)] => return Ok(Enqueued::new(inner, id, false)),
            _ => {}
        }
    }
    Err(DbErr::Custom("a key came and went while its task was being stored: try again".into()))
}
