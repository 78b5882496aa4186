//! What functions and strategies look like to the runtime, and which of them a program has.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::error;

use crate::context::{Env, Need, States};
use crate::finite::is_finite;
use crate::private::{Probes, StoredResult};
use crate::runtime::execute::failed;
use crate::source::{MESSAGES, RESERVED};
use crate::undecodable::explain;
use crate::{
    Error, ErrorKind, HandleResult, Policy, Result, Returned, Source, Strategy, TaskLog, Verdict,
};

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A context larger than this is refused, and not decoded: 16 MiB.
pub(crate) const MAX_CONTEXT: usize = 16 << 20;

/// A function that `#[retryable]` made durable; the type of the same name implements it.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a `#[retryable]` function",
    note = "put `#[retryable(source = …)]` on the function and name it here by its own name"
)]
pub trait Retryable: Sized + Send + Sync + 'static {
    /// The arguments, as they are stored.
    #[doc(hidden)]
    type Args: Serialize + DeserializeOwned + Send + 'static;
    /// The function's return type.
    #[doc(hidden)]
    type Returned: Returned;

    #[doc(hidden)]
    fn spec() -> Spec<Self>;

    #[doc(hidden)]
    fn run(args: Self::Args, env: Env) -> impl Future<Output = Self::Returned> + Send;
}

pub(crate) type ValueOf<R> = <<R as Retryable>::Returned as Returned>::Value;
pub(crate) type ErrorOf<R> = <<R as Retryable>::Returned as Returned>::Error;
type Exhausted = fn(TaskLog, String) -> BoxFuture<'static, ()>;

/// What the macro tells of a function.
pub struct Spec<R: Retryable> {
    meta: Meta,
    probes: Probes<R::Returned>,
    retry_if: Option<fn(&ErrorOf<R>) -> bool>,
    on_exhausted: Option<Exhausted>,
    /// How its values are stored, if they are.
    pub(crate) keep: Option<Keep<R>>,
}

/// How the values of a function become text and come back.
pub(crate) struct Keep<R: Retryable> {
    pub(crate) encode: fn(&ValueOf<R>) -> Result<String, String>,
    pub(crate) decode: fn(&str) -> Result<ValueOf<R>, String>,
}

/// What is known of a handler without its types.
pub(crate) struct Meta {
    pub(crate) name: String,
    pub(crate) source: i32,
    pub(crate) policy: Policy,
    pub(crate) concurrency: Option<usize>,
    /// What it returns is kept.
    pub(crate) store_result: bool,
    pub(crate) needs: Vec<Need>,
    /// `file:line` of a function.
    pub(crate) place: String,
}

impl<R: Retryable> Spec<R> {
    /// The required part.
    pub fn new(
        name: &'static str,
        source: impl Source,
        file: &'static str,
        line: u32,
        probes: Probes<R::Returned>,
    ) -> Self {
        let meta = Meta {
            name: name.to_owned(),
            source: source.number(),
            policy: source.policy(),
            concurrency: None,
            store_result: false,
            needs: Vec::new(),
            place: format!("{file}:{line}"),
        };
        Self { meta, probes, retry_if: None, on_exhausted: None, keep: None }
    }

    /// The function's own policy; it beats its source's.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.meta.policy = policy.or(self.meta.policy);
        self
    }

    /// Which errors are worth a retry.
    pub fn retry_if(mut self, retry_if: fn(&ErrorOf<R>) -> bool) -> Self {
        self.retry_if = Some(retry_if);
        self
    }

    /// What to run before the task is given up.
    pub fn on_exhausted(mut self, on_exhausted: Exhausted) -> Self {
        self.on_exhausted = Some(on_exhausted);
        self
    }

    /// At most so many attempts at once in a process.
    pub fn concurrency(mut self, limit: usize) -> Self {
        self.meta.concurrency = Some(limit);
        self
    }

    pub(crate) fn name(&self) -> &str {
        &self.meta.name
    }

    pub(crate) fn source(&self) -> i32 {
        self.meta.source
    }

    /// What it returns is kept with the task.
    pub fn store_result(mut self) -> Self
    where
        ValueOf<R>: StoredResult,
    {
        self.meta.store_result = true;
        self.keep = Some(Keep { encode: encode_value, decode: decode_value });
        self
    }

    /// A type of state that the function takes.
    pub fn needs<T: Send + Sync + 'static>(mut self) -> Self {
        self.meta.needs.push(Need::of::<T>());
        self
    }

    /// A parameter whose value is shown nowhere. Arguments are not shown at all so far.
    pub fn secret(self, _parameter: &'static str) -> Self {
        self
    }
}

/// How an attempt ended, as far as its function can tell.
pub(crate) enum Report {
    /// The context is not this function's. Costs no attempt.
    Undecodable(String),
    /// It ran; `value` is the `Result<T, E>` if the caller wants it, `result` the value of a success
    /// as it is stored, if it is.
    Ended { ending: Ending, value: Option<Box<dyn Any + Send>>, result: Option<String> },
}

/// The part of an attempt's end that decides what is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    Success,
    Pending(Duration),
    Failed { error: String, verdict: Verdict },
}

/// What runs the tasks of a source: the one path of functions and strategies.
pub(crate) trait Handler: Send + Sync {
    fn meta(&self) -> &Meta;

    /// Runs one attempt. `args` are the decoded arguments where they are at hand.
    fn run<'a>(
        &'a self,
        env: Env,
        args: Option<Box<dyn Any + Send>>,
        keep_value: bool,
    ) -> BoxFuture<'a, Report>;

    /// Whether a context could be run.
    fn check(&self, context: Option<&str>) -> Result<(), String>;

    /// Whether something is to be run before a task is given up.
    fn has_hook(&self) -> bool {
        false
    }

    fn on_exhausted(&self, _task: &TaskLog, _error: &str) -> Option<BoxFuture<'static, ()>> {
        None
    }

    /// Closes what it holds.
    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

struct Function<R: Retryable>(Spec<R>);

impl<R: Retryable> Handler for Function<R> {
    fn meta(&self) -> &Meta {
        &self.0.meta
    }

    fn run<'a>(
        &'a self,
        env: Env,
        args: Option<Box<dyn Any + Send>>,
        keep_value: bool,
    ) -> BoxFuture<'a, Report> {
        Box::pin(async move {
            let args = args.and_then(|args| args.downcast::<R::Args>().ok()).map(|args| *args);
            let args = match args {
                Some(args) => args,
                None => match decode::<R>(env.context.task().context.as_deref()) {
                    Ok(args) => args,
                    Err(error) => return Report::Undecodable(error),
                },
            };
            let result = match env.planned_failure() {
                None => R::run(args, env).await.into_result(),
                Some(Ok(error)) => Err(error),
                Some(Err(reason)) => return failed(reason),
            };
            let mut kept = None;
            let ending = match &result {
                Ok(value) => match (self.0.probes.pending)(value) {
                    Some(deadline) => Ending::Pending(deadline),
                    None => match self.0.keep.as_ref().map(|keep| (keep.encode)(value)).transpose()
                    {
                        Ok(text) => {
                            kept = text;
                            Ending::Success
                        }
                        // It would be as bad a value the next time.
                        Err(error) => Ending::Failed { error, verdict: Verdict::Abort },
                    },
                },
                Err(error) => Ending::Failed {
                    error: (self.0.probes.describe)(error),
                    verdict: match self.0.retry_if {
                        Some(retry_if) if !retry_if(error) => Verdict::Abort,
                        _ => (self.0.probes.classify)(error),
                    },
                },
            };
            let value = keep_value.then(|| Box::new(result) as Box<dyn Any + Send>);
            Report::Ended { ending, value, result: kept }
        })
    }

    fn check(&self, context: Option<&str>) -> Result<(), String> {
        decode::<R>(context).map(drop)
    }

    fn has_hook(&self) -> bool {
        self.0.on_exhausted.is_some()
    }

    fn on_exhausted(&self, task: &TaskLog, error: &str) -> Option<BoxFuture<'static, ()>> {
        self.0.on_exhausted.map(|hook| hook(task.clone(), error.to_owned()))
    }
}

struct ByHand<S: Strategy> {
    strategy: S,
    meta: Meta,
}

impl<S: Strategy> Handler for ByHand<S> {
    fn meta(&self) -> &Meta {
        &self.meta
    }

    fn run<'a>(
        &'a self,
        env: Env,
        _args: Option<Box<dyn Any + Send>>,
        keep_value: bool,
    ) -> BoxFuture<'a, Report> {
        Box::pin(async move {
            let mut result: Result<(), String> = Ok(());
            let ending = match self.strategy.handle(env.context.task()).await {
                HandleResult::Success => Ending::Success,
                HandleResult::Pending { deadline } => Ending::Pending(deadline),
                HandleResult::Fail { reason, retry } => {
                    let verdict = if retry { Verdict::Retry } else { Verdict::Abort };
                    result = Err(reason.clone());
                    Ending::Failed { error: reason, verdict }
                }
            };
            let value = keep_value.then(|| Box::new(result) as Box<dyn Any + Send>);
            Report::Ended { ending, value, result: None }
        })
    }

    fn check(&self, _context: Option<&str>) -> Result<(), String> {
        Ok(())
    }

    fn shutdown(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.strategy.shutdown())
    }
}

/// The body of a message: a string as it is, anything else as JSON.
#[cfg(feature = "mq")]
pub(crate) fn encode_message<T: Serialize + ?Sized>(body: &T) -> Result<String> {
    let refuse = |what: &str| Error::new(ErrorKind::Context, format!("the message {what}"));
    let text = catch_unwind(AssertUnwindSafe(|| to_json(&body)))
        .map_err(|_| refuse("panicked while it was encoded"))?
        .map_err(|error| refuse("cannot be stored as JSON").with_source(error))?;
    if !text.starts_with('"') {
        return Ok(text);
    }
    serde_json::from_str(&text)
        .map_err(|error| refuse("is no string that JSON can hold").with_source(error))
}

/// Encodes arguments and decodes them again, so that what does not come back is found out now.
pub(crate) fn encode<R: Retryable>(args: &R::Args) -> Result<(String, R::Args)> {
    let refuse = |what: String| {
        Error::new(ErrorKind::Context, format!("the arguments of `{}` {what}", R::spec().meta.name))
    };
    let text = catch_unwind(AssertUnwindSafe(|| to_json(args)))
        .map_err(|_| refuse("panicked while they were encoded".into()))?
        .map_err(|error| refuse("cannot be stored as JSON".into()).with_source(error))?;
    if text.len() > MAX_CONTEXT {
        return Err(refuse(format!(
            "take {} bytes as JSON, more than the {MAX_CONTEXT} that are allowed: store the data \
             elsewhere and pass its id",
            text.len()
        )));
    }
    let decoded = decode::<R>(Some(&text))
        .map_err(|error| refuse(format!("do not come back from JSON as they went in: {error}")))?;
    Ok((text, decoded))
}

/// JSON, of a value that JSON can hold.
fn to_json(value: &impl Serialize) -> serde_json::Result<String> {
    let text = serde_json::to_string(value)?;
    if text.contains("null") && !is_finite(value) {
        return Err(serde::ser::Error::custom("it holds a NaN or an infinity"));
    }
    Ok(text)
}

fn decode<R: Retryable>(context: Option<&str>) -> Result<R::Args, String> {
    let text = context.unwrap_or("{}");
    if text.len() > MAX_CONTEXT {
        return Err(format!("the context is larger than {MAX_CONTEXT} bytes"));
    }
    catch_unwind(AssertUnwindSafe(|| serde_json::from_str(text)))
        .map_err(|_| "decoding the context panicked".to_owned())?
        .map_err(|error| {
            let error = explain(&error, text);
            format!("the context does not fit the function's parameters: {error}")
        })
}

/// Encodes a value and decodes it again, so that what does not come back is found out now.
fn encode_value<T: StoredResult>(value: &T) -> Result<String, String> {
    let text = catch_unwind(AssertUnwindSafe(|| to_json(value)))
        .map_err(|_| "the result panicked while it was encoded".to_owned())?
        .map_err(|error| format!("the result cannot be stored as JSON: {error}"))?;
    if text.len() > MAX_CONTEXT {
        return Err(too_large(text.len(), MAX_CONTEXT));
    }
    decode_value::<T>(&text).map_err(|error| {
        format!("the result does not come back from JSON as it went in: {error}")
    })?;
    Ok(text)
}

fn decode_value<T: StoredResult>(text: &str) -> Result<T, String> {
    if text.len() > MAX_CONTEXT {
        return Err(format!("it is larger than {MAX_CONTEXT} bytes"));
    }
    catch_unwind(AssertUnwindSafe(|| serde_json::from_str(text)))
        .map_err(|_| "decoding it panicked".to_owned())?
        .map_err(|error| explain(&error, text))
}

/// What is said of a result that the table cannot hold.
pub(crate) fn too_large(bytes: usize, most: usize) -> String {
    format!(
        "the result takes {bytes} bytes as JSON, more than the {most} that can be stored: store the data \
         elsewhere and return its id"
    )
}

/// A function that `inventory` found.
pub struct Registration(Make);

/// Makes a handler and tells which type names it.
type Make = fn() -> (TypeId, Arc<dyn Handler>);

impl Registration {
    /// The registration of a function.
    pub const fn of<R: Retryable>() -> Self {
        Self(make::<R>)
    }
}

fn make<R: Retryable>() -> (TypeId, Arc<dyn Handler>) {
    (TypeId::of::<R>(), Arc::new(Function(R::spec())))
}

inventory::collect!(Registration);

/// The functions and strategies of one runtime.
#[derive(Default)]
pub(crate) struct Registry {
    by_source: HashMap<i32, Arc<dyn Handler>>,
    by_type: HashMap<TypeId, i32>,
}

/// Gathers what a runtime will run, and every mistake in it.
#[derive(Default)]
pub(crate) struct Gather {
    makes: Vec<Make>,
    only: Option<Vec<TypeId>>,
    strategies: Vec<Arc<dyn Handler>>,
}

impl Gather {
    pub(crate) fn register<R: Retryable>(&mut self) {
        self.makes.push(make::<R>);
    }

    pub(crate) fn only(&mut self, functions: Vec<TypeId>) {
        self.only.get_or_insert_default().extend(functions);
    }

    pub(crate) fn strategy<S: Strategy>(&mut self, strategy: S, policy: Policy) {
        let meta = Meta {
            name: strategy.name().to_owned(),
            source: strategy.source(),
            policy,
            concurrency: None,
            store_result: false,
            needs: Vec::new(),
            place: format!("strategy {}", std::any::type_name::<S>()),
        };
        self.strategies.push(Arc::new(ByHand { strategy, meta }));
    }

    /// Checks everything against everything and reports all mistakes in one error.
    pub(crate) fn finish(self, states: &States) -> Result<Registry> {
        let found = inventory::iter::<Registration>().map(|registration| registration.0);
        let mut registry = Registry::default();
        let mut mistakes = Vec::new();
        for make in found.chain(self.makes) {
            let (id, handler) = make();
            let left_out = self.only.as_ref().is_some_and(|only| !only.contains(&id));
            if left_out || registry.by_type.contains_key(&id) {
                continue;
            }
            let meta = handler.meta();
            if meta.source <= 0 || RESERVED.contains(&meta.source) {
                mistakes.push(format!(
                    "`{}` ({}) has source {}: functions use numbers from 30 up, since 1 to 29 are \
                     reserved",
                    meta.name, meta.place, meta.source
                ));
                continue;
            }
            registry.by_type.insert(id, meta.source);
            registry.add(handler, states, &mut mistakes);
        }
        for handler in self.strategies {
            let meta = handler.meta();
            let reserved = RESERVED.contains(&meta.source) && !MESSAGES.contains(&meta.source);
            if meta.source <= 0 || reserved {
                mistakes.push(format!(
                    "`{}` ({}) has source {}: strategies use numbers from 30 up, and {} to {} \
                     for messages",
                    meta.name,
                    meta.place,
                    meta.source,
                    MESSAGES.start(),
                    MESSAGES.end()
                ));
                continue;
            }
            registry.add(handler, states, &mut mistakes);
        }
        if mistakes.is_empty() {
            return Ok(registry);
        }
        mistakes.sort();
        let text =
            format!("the registry has {} mistake(s):\n- {}", mistakes.len(), mistakes.join("\n- "));
        Err(Error::new(ErrorKind::Registry, text))
    }
}

impl Registry {
    fn add(&mut self, handler: Arc<dyn Handler>, states: &States, mistakes: &mut Vec<String>) {
        let meta = handler.meta();
        for need in meta.needs.iter().filter(|need| !states.has(need.id)) {
            mistakes.push(format!(
                "`{}` ({}) takes `#[state] &{}`, which was not provided: add `.state(…)` to the builder",
                meta.name, meta.place, need.name
            ));
        }
        if let Err(error) = meta.policy.check() {
            mistakes.push(format!("`{}` ({}): {error}", meta.name, meta.place));
        }
        if meta.name.is_empty() || meta.name.chars().count() > 191 {
            mistakes
                .push(format!("`{}` ({}): a name has 1 to 191 characters", meta.name, meta.place));
        }
        if let Some(other) = self.by_source.get(&meta.source) {
            mistakes.push(format!(
                "source {} is used twice: by `{}` ({}) and by `{}` ({}); give one of them another number",
                meta.source,
                other.meta().name,
                other.meta().place,
                meta.name,
                meta.place
            ));
            return;
        }
        self.by_source.insert(meta.source, handler);
    }

    pub(crate) fn by_source(&self, source: i32) -> Option<&Arc<dyn Handler>> {
        self.by_source.get(&source)
    }

    pub(crate) fn function<R: Retryable>(&self) -> Result<&Arc<dyn Handler>> {
        let source = self.by_type.get(&TypeId::of::<R>());
        source.and_then(|source| self.by_source.get(source)).ok_or_else(|| {
            let meta = R::spec().meta;
            Error::new(
                ErrorKind::Registry,
                format!(
                    "`{}` ({}) is not registered with this runtime: it was left out by `.only(…)`, or \
                     its crate needs `.register::<…>()`",
                    meta.name, meta.place
                ),
            )
        })
    }

    /// Lets every strategy close what it holds, all at once.
    pub(crate) async fn shutdown(&self) {
        let mut closing: Vec<BoxFuture<'_, ()>> = Vec::new();
        for handler in self.by_source.values() {
            closing.push(Box::pin(async {
                if AssertUnwindSafe(handler.shutdown()).catch_unwind().await.is_err() {
                    error!("the shutdown of {} panicked", handler.meta().place);
                }
            }));
        }
        join_all(closing).await;
    }

    /// The sources, in the order of their numbers.
    pub(crate) fn sources(&self) -> Vec<i32> {
        let mut sources: Vec<i32> = self.by_source.keys().copied().collect();
        sources.sort_unstable();
        sources
    }
}
