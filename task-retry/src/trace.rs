//! The trace of a caller, kept with its task.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tracing::{Span, debug, warn};

use crate::{Error, ErrorKind, Result};

/// Carries the trace of a caller to the attempts of its task. Give it to
/// [`Builder::propagator`](crate::Builder::propagator).
///
/// With the feature `otel`, [`OpenTelemetry`] does that and is used unless another one is given. It
/// works with the versions of `opentelemetry` and `tracing-opentelemetry` that this crate names; for
/// other versions, or another tracer, implement the trait:
///
/// ```
/// use task_retry::Propagator;
/// use tracing::{Span, info};
///
/// tokio::task_local! {
///     /// The header `traceparent` of the request that is being answered.
///     static TRACEPARENT: String;
/// }
///
/// struct Requests;
///
/// impl Propagator for Requests {
///     fn current(&self) -> Option<String> {
///         TRACEPARENT.try_with(Clone::clone).ok()
///     }
///
///     fn link(&self, attempt: &Span, caller: &str) {
///         attempt.in_scope(|| info!(caller, "an attempt for"));
///     }
/// }
/// ```
///
/// [`OpenTelemetry`]: https://docs.rs/task-retry/latest/task_retry/struct.OpenTelemetry.html
pub trait Propagator: Send + Sync + 'static {
    /// The span that the calling code is in, as a W3C `traceparent`; `None` if it is in none, or if
    /// there is no tracer. It is stored with the task.
    fn current(&self) -> Option<String>;

    /// Links the span of an attempt to what [`current`](Self::current) said when the task was stored.
    fn link(&self, attempt: &Span, caller: &str);
}

/// What knows how to carry a trace, if anything does.
#[derive(Clone)]
pub(crate) struct Trace(Option<Arc<dyn Propagator>>);

impl Default for Trace {
    #[cfg(feature = "otel")]
    fn default() -> Self {
        Self(Some(Arc::new(OpenTelemetry)))
    }

    #[cfg(not(feature = "otel"))]
    fn default() -> Self {
        Self(None)
    }
}

impl Trace {
    pub(crate) fn new(propagator: impl Propagator) -> Self {
        Self(Some(Arc::new(propagator)))
    }

    /// What to store for a caller that said this itself.
    pub(crate) fn of_caller(&self, said: Option<&str>) -> Result<Option<String>> {
        if let Some(said) = said {
            return match is_traceparent(said) {
                true => Ok(Some(said.to_owned())),
                false => Err(Error::new(
                    ErrorKind::Context,
                    "the trace context is not a W3C `traceparent` of version 00, such as \
                     `00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01`",
                )),
            };
        }
        let current = self.0.as_ref().and_then(|propagator| propagator.current());
        Ok(current.filter(|text| {
            let fits = is_traceparent(text);
            if !fits {
                debug!("the propagator's trace context is not a traceparent and is not stored");
            }
            fits
        }))
    }

    /// Links an attempt to its caller.
    pub(crate) fn link(&self, attempt: &Span, caller: Option<&str>) {
        if let (Some(propagator), Some(caller)) = (&self.0, caller)
            && is_traceparent(caller)
            && catch_unwind(AssertUnwindSafe(|| propagator.link(attempt, caller))).is_err()
        {
            warn!("the propagator panicked; the attempt runs all the same");
        }
    }
}

/// `00-<32 hex digits>-<16 hex digits>-<2 hex digits>`, in lower case, with ids that are not zero.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|b| b != b'0');
    let parts: Vec<&str> = text.split('-').collect();
    matches!(parts[..], ["00", trace, span, flags]
        if id(trace, 32) && id(span, 16) && hex(flags, 2))
}

#[cfg(feature = "otel")]
mod otel {
    use opentelemetry::trace::{
        SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    };
    use tracing::Span;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;

    use super::Propagator;

    /// The spans of OpenTelemetry, by way of the layer of `tracing-opentelemetry`.
    ///
    /// A `tracestate` is not kept.
    #[derive(Clone, Copy, Debug, Default)]
    pub struct OpenTelemetry;

    impl Propagator for OpenTelemetry {
        fn current(&self) -> Option<String> {
            let context = Span::current().context();
            let span = context.span().span_context().clone();
            let flags = span.trace_flags().to_u8();
            span.is_valid()
                .then(|| format!("00-{}-{}-{flags:02x}", span.trace_id(), span.span_id()))
        }

        fn link(&self, attempt: &Span, caller: &str) {
            if let Some(caller) = parse(caller) {
                attempt.add_link(caller);
            }
        }
    }

    fn parse(text: &str) -> Option<SpanContext> {
        let mut parts = text.split('-').skip(1);
        let trace = TraceId::from_hex(parts.next()?).ok()?;
        let span = SpanId::from_hex(parts.next()?).ok()?;
        let flags = TraceFlags::new(u8::from_str_radix(parts.next()?, 16).ok()?);
        Some(SpanContext::new(trace, span, flags, true, TraceState::NONE))
    }
}

#[cfg(feature = "otel")]
pub use self::otel::OpenTelemetry;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_told_from_what_is_none() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(good.len(), 55);
        assert!(is_traceparent(good));
        assert!(is_traceparent(&good.replace("-01", "-00")));
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-0f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }

    #[test]
    fn what_the_caller_says_beats_the_propagator_and_has_to_be_right() {
        struct Fixed(&'static str);
        impl Propagator for Fixed {
            fn current(&self) -> Option<String> {
                Some(self.0.to_owned())
            }
            fn link(&self, _attempt: &Span, _caller: &str) {}
        }
        let here = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let said = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        let trace = Trace::new(Fixed(here));
        assert_eq!(trace.of_caller(None).unwrap().as_deref(), Some(here));
        assert_eq!(trace.of_caller(Some(said)).unwrap().as_deref(), Some(said));
        assert_eq!(trace.of_caller(Some("x")).unwrap_err().kind(), ErrorKind::Context);
        assert_eq!(Trace::new(Fixed("x")).of_caller(None).unwrap(), None);
    }
}
