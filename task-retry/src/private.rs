//! What expansions of the macros use. Not an API: it changes without notice.

use std::fmt::Display;
use std::ops::Deref;
use std::time::Duration;

pub use inventory;
pub use serde;

pub use crate::call::call;
pub use crate::context::Env;
pub use crate::probes;
pub use crate::registry::{Registration, Spec};
use crate::{Returned, Verdict};

/// Only what can be stored may be a parameter of a `#[retryable]` function.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be stored as an argument of a `#[retryable]` function",
    label = "not `Serialize + DeserializeOwned`",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it",
    note = "or store an id and load the value inside the function, or take it from `#[state]`"
)]
pub trait Argument {}

#[diagnostic::do_not_recommend]
impl<T: serde::Serialize + serde::de::DeserializeOwned> Argument for T {}

/// The type itself, spelled so that rustc takes it for faulty where the check of `N` does not compile:
/// then the check is the one error, and what else uses the type adds none.
pub type Checked<T, const N: usize> = <[T; N] as IntoIterator>::Item;

/// What a parameter `&T` is stored as; checked, too.
pub type Owned<T, const N: usize> = <<Checked<&'static T, N> as Deref>::Target as ToOwned>::Owned;

/// Checks that a parameter's type can be stored.
pub const fn argument<T: Argument>() -> usize {
    1
}

/// Checks that a function may return a type.
pub const fn returned<T: Returned>() -> usize {
    1
}

/// Only what can be stored may be returned by a `#[retryable]` function with `store_result`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be stored as the result of a `#[retryable]` function",
    label = "not `Serialize + DeserializeOwned`",
    note = "derive `serde::Serialize` and `serde::Deserialize` for it",
    note = "or return an id of what was made, or leave `store_result` out"
)]
pub trait StoredResult: serde::Serialize + serde::de::DeserializeOwned {}

#[diagnostic::do_not_recommend]
impl<T: serde::Serialize + serde::de::DeserializeOwned> StoredResult for T {}

/// What cannot be told by one trait, since impls would overlap: an expansion, where the types are
/// concrete, asks each question by method resolution and gives plain functions.
pub struct Probes<R: Returned> {
    /// How long to wait, if the value says so.
    pub pending: fn(&R::Value) -> Option<Duration>,
    /// The error and its sources as text.
    pub describe: fn(&R::Error) -> String,
    /// What the error says should be done.
    pub classify: fn(&R::Error) -> Verdict,
}

/// Answers the probes for a return type.
#[doc(hidden)]
#[macro_export]
macro_rules! probes {
    ($returned:ty) => {{
        #[allow(unused_imports)]
        use $crate::__private::probe::*;
        type Returned = $returned;
        $crate::__private::Probes::<Returned> {
            pending: (&&OfValue::<Returned>::NEW).pending(),
            describe: (&&OfError::<Returned>::NEW).describe(),
            classify: (&&OfError::<Returned>::NEW).classify(),
        }
    }};
}

/// The questions: the first trait of a pair is found first where it applies.
#[doc(hidden)]
#[allow(missing_docs)]
pub mod probe {
    use std::error::Error;
    use std::marker::PhantomData;

    use super::{Display, Duration, Verdict};
    use crate::{Classify, Outcome, Returned};

    pub struct Probe<T>(PhantomData<T>);

    impl<T> Probe<T> {
        pub const NEW: Self = Self(PhantomData);
    }

    pub type OfValue<R> = Probe<<R as Returned>::Value>;
    pub type OfError<R> = Probe<<R as Returned>::Error>;

    pub trait PendingOutcome<V> {
        fn pending(&self) -> fn(&V) -> Option<Duration>;
    }

    impl<T> PendingOutcome<Outcome<T>> for &Probe<Outcome<T>> {
        fn pending(&self) -> fn(&Outcome<T>) -> Option<Duration> {
            |outcome| match outcome {
                Outcome::Done(_) => None,
                Outcome::Pending { deadline } => Some(*deadline),
            }
        }
    }

    pub trait PendingNever<V> {
        fn pending(&self) -> fn(&V) -> Option<Duration>;
    }

    impl<V> PendingNever<V> for Probe<V> {
        fn pending(&self) -> fn(&V) -> Option<Duration> {
            |_| None
        }
    }

    pub trait DescribeChain<E> {
        fn describe(&self) -> fn(&E) -> String;
    }

    impl<E: Error + 'static> DescribeChain<E> for &Probe<E> {
        fn describe(&self) -> fn(&E) -> String {
            |error| {
                let mut text = error.to_string();
                let mut next = error.source();
                while let Some(source) = next {
                    let part = source.to_string();
                    // Many errors print their source themselves.
                    if !text.ends_with(&part) {
                        text.push_str(": ");
                        text.push_str(&part);
                    }
                    next = source.source();
                }
                text
            }
        }
    }

    pub trait DescribeDisplay<E> {
        fn describe(&self) -> fn(&E) -> String;
    }

    impl<E: Display> DescribeDisplay<E> for Probe<E> {
        fn describe(&self) -> fn(&E) -> String {
            // `#` asks `anyhow::Error` and its like for the whole chain.
            |error| format!("{error:#}")
        }
    }

    pub trait ClassifyItself<E> {
        fn classify(&self) -> fn(&E) -> Verdict;
    }

    impl<E: Classify> ClassifyItself<E> for &Probe<E> {
        fn classify(&self) -> fn(&E) -> Verdict {
            |error| error.classify()
        }
    }

    pub trait ClassifyRetry<E> {
        fn classify(&self) -> fn(&E) -> Verdict;
    }

    impl<E> ClassifyRetry<E> for Probe<E> {
        fn classify(&self) -> fn(&E) -> Verdict {
            |_| Verdict::Retry
        }
    }
}
