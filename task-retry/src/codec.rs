//! Contexts on their way into the table and back.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::registry::MAX_CONTEXT;
use crate::runtime::Inner;
use crate::{Error, ErrorKind, Result, TaskLog};

const CONTEXT: &str = "context";
const RESULT: &str = "result";

/// Turns a context, the arguments of a task, into the text that is stored, and back: to encrypt or to
/// compress it. The values of functions with `store_result` go the same way. Give it to [`Builder::codec`](crate::Builder::codec); for encryption there is
/// `Aes256GcmCodec`, with the feature `encryption`.
///
/// Whatever stores or reads a context goes through it. A context that does not come back from
/// `encode` and `decode` as it was is [`Rejected`](crate::CallError::Rejected). A row that cannot be
/// decoded costs no attempt: it is put back, and runs as soon as a process that can decode it claims it.
/// The limits of size hold for the stored text.
///
/// Both methods are called for every task on the threads that run tasks, so they should not block.
///
/// ```
/// use task_retry::{ContextCodec, ContextPlace};
///
/// /// Keeps what a glance at the table would tell.
/// struct Rot13;
///
/// impl Rot13 {
///     fn turn(text: &str) -> String {
///         let turn = |letter: char| match letter {
///             'a'..='m' | 'A'..='M' => (letter as u8 + 13) as char,
///             'n'..='z' | 'N'..='Z' => (letter as u8 - 13) as char,
///             other => other,
///         };
///         text.chars().map(turn).collect()
///     }
/// }
///
/// impl ContextCodec for Rot13 {
///     fn encode(
///         &self,
///         context: &str,
///         _place: ContextPlace<'_>,
///     ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
///         Ok(format!("rot13:{}", Self::turn(context)))
///     }
///
///     fn decode(
///         &self,
///         stored: &str,
///         _place: ContextPlace<'_>,
///     ) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
///         match stored.strip_prefix("rot13:") {
///             Some(turned) => Ok(Self::turn(turned)),
///             None => Ok(stored.to_owned()), // a row from before
///         }
///     }
/// }
///
/// let place = ContextPlace::new("shop", 30);
/// let stored = Rot13.encode(r#"{"phone":"+86"}"#, place)?;
/// assert_eq!(stored, r#"rot13:{"cubar":"+86"}"#);
/// assert_eq!(Rot13.decode(&stored, place)?, r#"{"phone":"+86"}"#);
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
pub trait ContextCodec: Send + Sync + 'static {
    /// The text to store for a context.
    ///
    /// # Errors
    /// Whatever keeps it from being stored; the call is then `Rejected`.
    fn encode(
        &self,
        context: &str,
        place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn StdError + Send + Sync>>;

    /// The context of a stored text. Texts that were stored before there was a codec come by here too.
    ///
    /// # Errors
    /// Whatever keeps it from being read. It is logged and stored as the row's `last_error`, so it
    /// should not quote the text.
    fn decode(
        &self,
        stored: &str,
        place: ContextPlace<'_>,
    ) -> Result<String, Box<dyn StdError + Send + Sync>>;
}

/// Where a context belongs; a codec may bind it to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ContextPlace<'a> {
    /// The project.
    pub project: &'a str,
    /// The source of the task.
    pub source: i32,
    /// The column: `context` for arguments, `result` for the value of a function with `store_result`.
    pub column: &'static str,
}

impl<'a> ContextPlace<'a> {
    /// The place of a context, for tests of a codec.
    pub fn new(project: &'a str, source: i32) -> Self {
        Self { project, source, column: CONTEXT }
    }

    /// The place of a result, for tests of a codec.
    pub fn of_result(project: &'a str, source: i32) -> Self {
        Self { project, source, column: RESULT }
    }
}

impl Inner {
    /// A context as it is stored.
    pub(crate) fn seal(&self, source: i32, context: Option<String>) -> Result<Option<String>> {
        self.encode(self.place(source, CONTEXT), context)
    }

    /// A result as it is stored.
    pub(crate) fn seal_result(
        &self,
        source: i32,
        result: Option<String>,
    ) -> Result<Option<String>> {
        self.encode(self.place(source, RESULT), result)
    }

    /// A stored context as functions and people see it.
    pub(crate) fn unseal<'a>(&self, source: i32, stored: &'a str) -> Result<Cow<'a, str>, String> {
        self.decode(self.place(source, CONTEXT), stored)
    }

    /// A stored result as its function gave it.
    pub(crate) fn unseal_result<'a>(
        &self,
        source: i32,
        stored: &'a str,
    ) -> Result<Cow<'a, str>, String> {
        self.decode(self.place(source, RESULT), stored)
    }

    fn place(&self, source: i32, column: &'static str) -> ContextPlace<'_> {
        ContextPlace { project: &self.store.project, source, column }
    }

    fn encode(&self, place: ContextPlace<'_>, text: Option<String>) -> Result<Option<String>> {
        let (Some(codec), Some(text)) = (&self.codec, &text) else { return Ok(text) };
        let refused =
            |what: &str| Error::new(ErrorKind::Context, format!("the {} {what}", place.column));
        let stored = catch_unwind(AssertUnwindSafe(|| codec.encode(text, place)))
            .map_err(|_| refused("cannot be encoded: the codec panicked"))?
            .map_err(|error| refused("cannot be encoded").with_source(error))?;
        let differs = "does not come back from its codec as it went in";
        match self.decode(place, &stored) {
            Ok(back) if back == text.as_str() => Ok(Some(stored)),
            Ok(_) => Err(refused(differs)),
            Err(error) => Err(refused(&format!("{differs}: {error}"))),
        }
    }

    fn decode<'a>(&self, place: ContextPlace<'_>, stored: &'a str) -> Result<Cow<'a, str>, String> {
        let column = place.column;
        let Some(codec) = &self.codec else {
            // A strategy takes any text, and would take this one for a message.
            return match is_envelope(stored) {
                true => Err(format!(
                    "the {column} is encrypted, and this runtime has no codec: give its builder \
                     `.codec(…)`"
                )),
                false => Ok(Cow::Borrowed(stored)),
            };
        };
        if stored.len() > MAX_CONTEXT {
            return Err(format!("the stored {column} is larger than {MAX_CONTEXT} bytes"));
        }
        catch_unwind(AssertUnwindSafe(|| codec.decode(stored, place)))
            .map_err(|_| format!("the {column} cannot be decoded: the codec panicked"))?
            .map(Cow::Owned)
            .map_err(|error| format!("the {column} cannot be decoded: {error}"))
    }

    /// Decodes a row's context in it; where that cannot be done, the row stays as it is, and why is told.
    pub(crate) fn unseal_in(&self, task: &mut Arc<TaskLog>) -> Option<String> {
        let stored = task.context.as_ref()?;
        match self.unseal(task.source, stored) {
            Ok(Cow::Borrowed(_)) => None,
            Ok(Cow::Owned(context)) => {
                Arc::make_mut(task).context = Some(context);
                None
            }
            Err(error) => Some(error),
        }
    }

    /// A row for people, see [`unseal_in`](Self::unseal_in).
    pub(crate) fn shown(&self, mut task: TaskLog) -> TaskLog {
        let context = task.context.as_deref().map(|stored| self.unseal(task.source, stored));
        if let Some(Ok(Cow::Owned(context))) = context {
            task.context = Some(context);
        }
        task
    }
}

/// Whether it is an envelope of `Aes256GcmCodec`, of whatever version; no JSON is.
pub(crate) fn is_envelope(stored: &str) -> bool {
    let version = stored.strip_prefix("enc:v").and_then(|rest| rest.split_once(':'));
    version.is_some_and(|(version, _)| version.parse::<u32>().is_ok())
}
