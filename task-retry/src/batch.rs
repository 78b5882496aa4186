//! Many calls at once: all of them are stored or none.

use std::time::{Duration, Instant};

use sea_orm::{ConnectionTrait, DbErr, TransactionTrait};

use crate::call::{Call, Insertion, Scheduled};
use crate::clock::Millis;
use crate::runtime::Inner;
use crate::runtime::write::{BYTES, Backoff, ROWS};
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
    calls: impl IntoIterator<Item = C>,
) -> Result<Vec<Enqueued<C::Function>>> {
    let Some((retry, mut rows)) = prepare(calls)? else { return Ok(Vec::new()) };
    let inner = retry.open()?;
    let stored = store_all(inner, &mut rows).await?;
    if let Some(first) = first_due(&rows) {
        inner.tell_of_stored(first);
    }
    Ok(stored.into_iter().map(Enqueued::typed).collect())
}

/// Stores many calls by a transaction of the caller's, as [`enqueue_all`] and [`Call::enqueue_in`] do.
///
/// # Errors
/// As for [`Call::enqueue_in`]; roll the transaction back then.
pub async fn enqueue_all_in<C: Enqueue, T: ConnectionTrait>(
    transaction: &T,
    calls: impl IntoIterator<Item = C>,
) -> Result<Vec<Enqueued<C::Function>>> {
    let Some((retry, mut rows)) = prepare(calls)? else { return Ok(Vec::new()) };
    let inner = retry.open()?;
    inner.store.same_backend(transaction)?;
    let Some(stored) = insert_all(inner, transaction, &mut rows, false, false).await? else {
        return Err(Error::new(ErrorKind::Conflict, "an id was taken: try again"));
    };
    if let Some(first) = first_due(&rows) {
        inner.wake.due_at(first);
    }
    Ok(stored.into_iter().map(Enqueued::typed).collect())
}

fn prepare<C: Enqueue>(
    calls: impl IntoIterator<Item = C>,
) -> Result<Option<(TaskRetry, Vec<NewRow>)>> {
    let mut runtime: Option<TaskRetry> = None;
    let mut rows: Vec<NewRow> = Vec::new();
    let mut now = None;
    for call in calls {
        let (retry, insertion): (TaskRetry, Insertion) = call.into_call().prepare()?;
        if runtime.as_ref().is_some_and(|first| !first.is(&retry)) {
            return Err(Error::new(
                ErrorKind::Conflict,
                "calls for two runtimes cannot be stored in one transaction",
            ));
        }
        runtime = Some(retry);
        let is_due = insertion.is_due();
        let mut row = insertion.into_row();
        if is_due {
            // All of them are due at one time, which is quicker to write.
            row.next = *now.get_or_insert(row.next);
        }
        rows.push(row);
    }
    Ok(runtime.map(|retry| (retry, rows)))
}

fn first_due(rows: &[NewRow]) -> Option<Millis> {
    rows.iter().map(|row| row.next).min()
}

/// One transaction, repeated as a whole. Its ids stay the same: if a commit whose answer was lost has
/// taken effect after all, its rows are found.
async fn store_all(inner: &Inner, rows: &mut [NewRow]) -> Result<Vec<Enqueued>> {
    let until = Instant::now() + ASK;
    let mut backoff = Backoff::default();
    let (mut lost, mut plain) = (false, true);
    let mut repeats = 0;
    loop {
        let error = match try_all(inner, rows, lost, plain).await {
            Ok(stored) => return Ok(stored),
            Err(error) => error,
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
    rows: &mut [NewRow],
    lost: bool,
    plain: bool,
) -> Result<Vec<Enqueued>, DbErr> {
    let transaction = in_time(ANSWER, inner.store.db.pool().begin()).await?;
    let limit = ANSWER * (rows.len() / ROWS + 1) as u32;
    match in_time(limit, insert_all(inner, &transaction, rows, lost, plain)).await {
        Ok(Some(stored)) => {
            in_time(ANSWER, transaction.commit()).await?;
            Ok(stored)
        }
        // The lost commit had taken effect, and what it stored is all of it.
        Ok(None) => {
            transaction.rollback().await?;
            let ids: Vec<i64> = rows.iter().map(|row| row.id).collect();
            found(inner, &ids, rows).await
        }
        Err(error) => {
            // Best effort: a transaction that is dropped is rolled back too.
            let _ = in_time(ANSWER, transaction.rollback()).await;
            Err(error)
        }
    }
}

/// The answers of a commit whose own answer was lost.
async fn found(inner: &Inner, ids: &[i64], rows: &[NewRow]) -> Result<Vec<Enqueued>, DbErr> {
    let mut stored = Vec::with_capacity(rows.len());
    for (ids, rows) in ids.chunks(ROWS).zip(rows.chunks(ROWS)) {
        let holders = steadily(|| inner.store.holders(ids)).await?;
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

/// The next rows to store, and their statement.
struct Part {
    size: usize,
    sql: Sql,
    conflict: Conflict,
}

impl Part {
    /// Of these rows, if there are any, as many as fit, but no more than that.
    fn of(inner: &Inner, rows: &[NewRow], most: usize, plain: bool) -> Option<Self> {
        let mut bytes = 0;
        let fits = rows.iter().take(most).take_while(|row| {
            bytes += row.bytes();
            bytes <= BYTES
        });
        let size = inner.store.batch(fits.count().max(1).min(rows.len()));
        let rows = &rows[..size];
        if rows.is_empty() {
            return None;
        }
        // A row that stands alone is told of its obstacle.
        let plain = plain && size > 1 && rows.iter().all(|row| row.unique_key.is_none());
        let conflict = if plain { Conflict::Fail } else { Conflict::Skip };
        let sql = inner.store.insertion(rows, inner.clock.now(), conflict);
        Some(Self { size, sql, conflict })
    }
}

/// Inserts all rows; `None` if one of them is there already since an earlier commit was lost.
async fn insert_all<C: ConnectionTrait>(
    inner: &Inner,
    db: &C,
    rows: &mut [NewRow],
    lost: bool,
    plain: bool,
) -> Result<Option<Vec<Enqueued>>, DbErr> {
    let mut stored = Vec::with_capacity(rows.len());
    let mut start = 0;
    let mut part = Part::of(inner, rows, ROWS, plain);
    while let Some(Part { size, sql, conflict }) = part {
        let batch = &rows[start..start + size];
        // The next statement is written while the database carries this one out.
        let (inserted, next) =
            tokio::join!(inner.store.carry_out(db, sql, batch, conflict), async {
                Part::of(inner, &rows[start + size..], ROWS, plain)
            });
        // On MySQL a duplicate fails its whole statement: halve it until the row stands alone.
        let halve = |error: &DbErr| {
            conflict == Conflict::Skip && size > 1 && Fault::of(error) == Fault::Duplicate
        };
        let inserted = match inserted {
            Err(error) if halve(&error) => {
                part = Part::of(inner, &rows[start..], size / 2, plain);
                continue;
            }
            inserted => inserted?,
        };
        part = next;
        for (offset, inserted) in inserted.into_iter().enumerate() {
            let row = &mut rows[start + offset];
            stored.push(match inserted {
                Inserted::Stored => Enqueued::new(inner, TaskId(row.id), true),
                Inserted::Duplicate(id, _) if id.0 != row.id => Enqueued::new(inner, id, false),
                _ if lost => return Ok(None),
                _ => insert_anew(inner, db, row).await?,
            });
        }
        start += size;
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
        row.id = inner.clock.new_id();
        match inner.store.insert(db, std::slice::from_ref(row), now).await?[..] {
            [Inserted::Stored] => return Ok(Enqueued::new(inner, TaskId(row.id), true)),
            [Inserted::Duplicate(id, _)] => return Ok(Enqueued::new(inner, id, false)),
            _ => {}
        }
    }
    Err(DbErr::Custom("a key came and went while its task was being stored: try again".into()))
}
