use std::error::Error as StdError;
use std::fmt;

/// What went wrong between a program and its task log.
///
/// It says what happened, to what, and what to do; [`kind`](Error::kind) is for code that decides,
/// [`source`](StdError::source) keeps what the database or a parser said.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No runtime was started in this process, or none that this code can see.
    NotStarted,
    /// A configuration value, a builder setting or the database's layout is not usable.
    Config,
    /// The functions, sources and states of this program do not fit together.
    Registry,
    /// The database refused, or could not be reached.
    Store,
    /// A statement was sent, its answer was lost, and the database cannot be asked.
    Uncertain,
    /// Arguments, a key or a stored context cannot be encoded, decoded or stored.
    Context,
    /// The runtime is shutting down or gone.
    Closed,
    /// There is no such task in this project.
    NotFound,
    /// The state that was found does not allow what was asked.
    Conflict,
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    pub(crate) fn with_source(
        mut self,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of this error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
