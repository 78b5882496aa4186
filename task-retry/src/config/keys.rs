//! Every key once: where it goes, what it allows, and what is said when it is given something else.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;

#[cfg(feature = "xxl-job")]
use super::xxl_job::Slot::{Folder, Ip, Port, Secret, Shape, Text, Texts};
#[cfg(feature = "xxl-job")]
use super::xxl_job::{Slot as XxlJobSlot, xxl_job};
use super::{Config, UtcOffset};
use crate::error::{Error, ErrorKind, Result};
use crate::policy::{LONGEST, MOST_RETRIES};

const PREFIX: &str = "TASK_RETRY__";
const TEN_YEARS: u64 = LONGEST.as_secs();

struct Key {
    /// Below `task-retry`, in kebab-case, a dot before what is nested.
    path: &'static str,
    /// What errors put in brackets behind a number.
    unit: &'static str,
    slot: fn(&mut Config) -> Slot<'_>,
}

/// Where a value goes, and which are allowed there.
enum Slot<'a> {
    Bool(&'a mut bool),
    U32(&'a mut u32, RangeInclusive<u32>),
    U64(&'a mut u64, RangeInclusive<u64>),
    F64(&'a mut f64, RangeInclusive<f64>),
    Offset(&'a mut UtcOffset),
    #[cfg(feature = "xxl-job")]
    XxlJob(XxlJobSlot<'a>),
}
use Slot::{Bool, F64, Offset, U32, U64};

const fn key(path: &'static str, unit: &'static str, slot: fn(&mut Config) -> Slot<'_>) -> Key {
    Key { path, unit, slot }
}

const KEYS: &[Key] = &[
    key("enable", "", |c| Bool(&mut c.enable)),
    key("job", "", |c| Bool(&mut c.job)),
    key("task-limit", "rows", |c| U32(&mut c.task_limit, 1..=10_000)),
    key("task-max-retry", "retries", |c| U32(&mut c.task_max_retry, 0..=MOST_RETRIES)),
    key("first-execute-second", "seconds", |c| U64(&mut c.first_execute_second, 0..=TEN_YEARS)),
    key("delay-base-second", "seconds", |c| U64(&mut c.delay_base_second, 0..=TEN_YEARS)),
    key("delay-multiplier", "", |c| F64(&mut c.delay_multiplier, 1.0..=1000.0)),
    key("data-kept-day", "days, 0: for ever", |c| U32(&mut c.data_kept_day, 0..=36_500)),
    key("thread-pool-param.core-pool-size", "connections", |c| {
        U32(&mut c.thread_pool_param.core_pool_size, 0..=1000)
    }),
    key("thread-pool-param.max-pool-size", "attempts", |c| {
        U32(&mut c.thread_pool_param.max_pool_size, 1..=100_000)
    }),
    key("thread-pool-param.keep-alive-seconds", "seconds", |c| {
        U64(&mut c.thread_pool_param.keep_alive_seconds, 0..=TEN_YEARS)
    }),
    key("thread-pool-param.queue-capacity", "tasks", |c| {
        U32(&mut c.thread_pool_param.queue_capacity, 0..=1_000_000)
    }),
    key("failed-kept-day", "days, 0: for ever", |c| U32(&mut c.failed_kept_day, 0..=36_500)),
    key("max-delay-second", "seconds", |c| U64(&mut c.max_delay_second, 1..=TEN_YEARS)),
    key("jitter", "", |c| F64(&mut c.jitter, 0.0..=1.0)),
    key("lease-second", "seconds", |c| U64(&mut c.lease_second, 5..=TEN_YEARS)),
    key("poll-interval-ms", "milliseconds", |c| U64(&mut c.poll_interval_ms, 10..=3_600_000)),
    key("max-crash", "crashes", |c| U32(&mut c.max_crash, 0..=1000)),
    key("shutdown-grace-second", "seconds", |c| U64(&mut c.shutdown_grace_second, 0..=TEN_YEARS)),
    key("time-zone", "", |c| Offset(&mut c.time_zone)),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.admin-addresses", "", |c| Slot::XxlJob(Texts(&mut xxl_job(c).admin_addresses))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.access-token", "", |c| Slot::XxlJob(Secret(&mut xxl_job(c).access_token))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.app-name", "", |c| Slot::XxlJob(Text(&mut xxl_job(c).app_name))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.address", "", |c| Slot::XxlJob(Text(&mut xxl_job(c).address))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.ip", "", |c| Slot::XxlJob(Ip(&mut xxl_job(c).ip))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.port", "0: any that is free", |c| Slot::XxlJob(Port(&mut xxl_job(c).port))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.log-path", "", |c| Slot::XxlJob(Folder(&mut xxl_job(c).log_path))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.log-retention-days", "days", |c| {
        U32(&mut xxl_job(c).log_retention_days, 1..=3650)
    }),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.callback-shape", "", |c| Slot::XxlJob(Shape(&mut xxl_job(c).callback_shape))),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.timeout-second", "seconds", |c| U64(&mut xxl_job(c).timeout_second, 1..=60)),
    #[cfg(feature = "xxl-job")]
    key("xxl-job.with-workers", "", |c| Bool(&mut xxl_job(c).with_workers)),
];

/// What a file or a variable says.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "config"), allow(dead_code, reason = "only files have all of them"))]
pub(super) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(String),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

/// What the keys of a layer are called, in its errors.
#[derive(Clone, Copy)]
pub(super) enum Spelling {
    Keys,
    Variables,
}

/// Puts one layer's values into a configuration, and collects all that is wrong with them.
pub(super) struct Loader {
    config: Config,
    spelling: Spelling,
    given: [bool; KEYS.len()],
    mistakes: Vec<String>,
}

impl Loader {
    pub(super) fn new(config: Config, spelling: Spelling) -> Self {
        Self { config, spelling, given: [false; KEYS.len()], mistakes: Vec::new() }
    }

    /// Puts every value of a configuration into itself, to find the bad ones.
    pub(super) fn check(config: &Config) -> Self {
        let mut loader = Self::new(config.clone(), Spelling::Keys);
        for key in KEYS {
            if !loader.has_section_of(key) {
                continue;
            }
            let value = (key.slot)(&mut loader.config).value();
            loader.put(key.path, &value);
        }
        #[cfg(feature = "xxl-job")]
        if let Some(xxl_job) = &config.xxl_job {
            let lacks = xxl_job.lacks().into_iter();
            loader.mistakes.extend(lacks.map(|lack| format!("task-retry.xxl-job.{lack}")));
        }
        loader
    }

    /// Whether the section of a key is there: all but `xxl-job` are.
    fn has_section_of(&self, _key: &Key) -> bool {
        #[cfg(feature = "xxl-job")]
        if _key.path.starts_with("xxl-job.") {
            return self.config.xxl_job.is_some();
        }
        true
    }

    pub(super) fn variable(&mut self, name: &str, value: String) {
        if let Some((prefix, rest)) = name.split_at_checked(PREFIX.len())
            && prefix.eq_ignore_ascii_case(PREFIX)
        {
            let path = rest.replace("__", ".").replace('_', "-").to_lowercase();
            self.put(&path, &Value::Str(value));
        }
    }

    #[cfg(feature = "config")]
    pub(super) fn stray(&mut self, name: &str) {
        self.mistakes.push(format!("`{}` stands outside the section `task-retry`", short(name)));
    }

    /// Puts a value, or those of a whole section, at a path below `task-retry`.
    pub(super) fn put(&mut self, path: &str, value: &Value) {
        if let Some(index) = KEYS.iter().position(|key| uniform(key.path) == uniform(path)) {
            self.put_key(index, value);
        } else if cfg!(not(feature = "xxl-job")) && is_xxl_job(path) {
            self.mistakes.push(format!(
                "{} is for the cargo feature `xxl-job` of task-retry, which this program was built \
                 without: add it in Cargo.toml, or leave the section out",
                self.name(path)
            ));
        } else if !path.is_empty() && is_section(path) {
            self.put_section(path, value);
        } else {
            self.mistakes.push(self.unknown(path));
        }
    }

    /// Puts the values of a section; the empty path is `task-retry` itself.
    pub(super) fn put_section(&mut self, path: &str, value: &Value) {
        match value {
            Value::Null => {}
            Value::Map(entries) => {
                #[cfg(feature = "xxl-job")]
                if is_xxl_job(path) {
                    xxl_job(&mut self.config);
                }
                let parent = if path.is_empty() { String::new() } else { format!("{path}.") };
                entries
                    .iter()
                    .for_each(|(name, value)| self.put(&format!("{parent}{name}"), value));
            }
            _ => {
                let (name, known) = (self.name(path), list(&known_in(path)));
                self.mistakes.push(format!("{name} is {value}: it must be a section with {known}"));
            }
        }
    }

    fn put_key(&mut self, index: usize, value: &Value) {
        let Key { path, unit, slot } = &KEYS[index];
        let name = self.name(path);
        if std::mem::replace(&mut self.given[index], true) {
            self.mistakes.push(format!("{name} is given twice"));
        } else if let Err(refusal) = slot(&mut self.config).set(value) {
            let unit = if unit.is_empty() { String::new() } else { format!(" ({unit})") };
            self.mistakes.push(format!("{name} is {refusal}{unit}"));
        }
    }

    pub(super) fn finish(self) -> Result<Config> {
        let message = match self.mistakes.as_slice() {
            [] => return Ok(self.config),
            [one] => one.clone(),
            many => format!("{} mistakes:\n- {}", many.len(), many.join("\n- ")),
        };
        Err(Error::new(ErrorKind::Config, message))
    }

    fn name(&self, path: &str) -> String {
        let dot = if path.is_empty() { "" } else { "." };
        match self.spelling {
            Spelling::Keys => format!("task-retry{dot}{}", short(path)),
            Spelling::Variables => format!("task-retry{dot}{} ({})", short(path), variable(path)),
        }
    }

    fn unknown(&self, path: &str) -> String {
        let nearest = nearest(path).map(str::to_owned);
        let (name, nearest, known) = match self.spelling {
            Spelling::Keys => {
                let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
                (self.name(path), nearest, known_in(if is_section(parent) { parent } else { "" }))
            }
            Spelling::Variables => (
                variable(path),
                nearest.map(|path| variable(&path)),
                KEYS.iter().map(|key| variable(key.path)).collect(),
            ),
        };
        let hint = nearest.map_or(String::new(), |path| format!("did you mean `{path}`? "));
        format!("{name} is unknown: {hint}known here: {}", list(&known))
    }
}

impl Slot<'_> {
    fn value(self) -> Value {
        match self {
            Bool(place) => Value::Bool(*place),
            U32(place, _) => Value::Int((*place).into()),
            U64(place, _) => Value::Int((*place).into()),
            F64(place, _) => Value::Float(*place),
            Offset(place) => Value::Str(place.to_string()),
            #[cfg(feature = "xxl-job")]
            Slot::XxlJob(slot) => slot.value(),
        }
    }

    /// Sets the place, or says what was found and what is allowed.
    fn set(self, value: &Value) -> Result<(), String> {
        match self {
            Bool(place) => *place = truth(value)?,
            U32(place, range) => *place = whole(value, range)?,
            U64(place, range) => *place = whole(value, range)?,
            F64(place, range) => *place = number(value, range)?,
            Offset(place) => *place = offset(value)?,
            #[cfg(feature = "xxl-job")]
            Slot::XxlJob(slot) => slot.set(value)?,
        }
        Ok(())
    }
}

// Text that spells a value is that value: variables are nothing but text, and templates quote.

fn truth(value: &Value) -> Result<bool, String> {
    let word = match value {
        Value::Bool(truth) => return Ok(*truth),
        Value::Str(text) => text.trim().to_ascii_lowercase(),
        _ => String::new(),
    };
    match word.as_str() {
        "true" | "yes" | "on" => Ok(true),
        "false" | "no" | "off" => Ok(false),
        _ => Err(format!("{value}: it must be true or false")),
    }
}

pub(super) fn whole<T>(value: &Value, range: RangeInclusive<T>) -> Result<T, String>
where
    T: Copy + Display + Into<i128> + TryFrom<i128>,
{
    let (min, max) = (*range.start(), *range.end());
    let found = match value {
        Value::Int(found) => Some(*found),
        Value::Str(text) => text.trim().parse().ok(),
        _ => None,
    };
    let found = found.ok_or(format!("{value}: it must be a whole number from {min} to {max}"))?;
    within(found, min.into(), max.into())?;
    T::try_from(found).map_err(|_| format!("{found}: it must be at most {max}"))
}

fn number(value: &Value, range: RangeInclusive<f64>) -> Result<f64, String> {
    let (min, max) = (*range.start(), *range.end());
    let found = match value {
        Value::Int(found) => Some(*found as f64),
        Value::Float(found) => Some(*found),
        Value::Str(text) => text.trim().parse().ok(),
        _ => None,
    };
    let found = found.filter(|found| !found.is_nan());
    let found = found.ok_or(format!("{value}: it must be a number from {min} to {max}"))?;
    within(found, min, max)
}

fn within<T: PartialOrd + Display>(found: T, min: T, max: T) -> Result<T, String> {
    if found < min {
        Err(format!("{found}: it must be at least {min}"))
    } else if found > max {
        Err(format!("{found}: it must be at most {max}"))
    } else {
        Ok(found)
    }
}

fn offset(value: &Value) -> Result<UtcOffset, String> {
    let text = if let Value::Str(text) = value { text } else { "" };
    text.parse().map_err(|_| format!("{value}: it must be {}", UtcOffset::ALLOWED))
}

impl Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("empty"),
            Value::Bool(truth) => truth.fmt(f),
            Value::Int(number) => number.fmt(f),
            // Debug, for it keeps the ".0" that makes it no whole number.
            Value::Float(number) => write!(f, "{number:?}"),
            Value::Str(text) => write!(f, "\"{}\"", short(text)),
            Value::List(_) => f.write_str("a list"),
            Value::Map(_) => f.write_str("a section"),
        }
    }
}

/// A name as it is compared: `max-pool-size`, `maxPoolSize` and `MAX_POOL_SIZE` are one.
pub(super) fn uniform(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '-' | '_')).flat_map(char::to_lowercase).collect()
}

/// Whether a path is that section, or leads into it.
fn is_xxl_job(path: &str) -> bool {
    uniform(path.split('.').next().unwrap_or(path)) == "xxljob"
}

fn is_section(path: &str) -> bool {
    let prefix = format!("{}.", uniform(path));
    path.is_empty() || KEYS.iter().any(|key| uniform(key.path).starts_with(&prefix))
}

/// Whether a key means this configuration even where nothing says so: `time-zone`, `xxl-job` and
/// single words may be anybody's.
#[cfg(feature = "config")]
pub(super) fn is_ours_alone(name: &str) -> bool {
    let ours = |key: &Key| {
        let top = key.path.split('.').next().unwrap_or(key.path);
        top.contains('-')
            && !matches!(top, "time-zone" | "xxl-job")
            && uniform(top) == uniform(name)
    };
    KEYS.iter().any(ours)
}

/// The names right below a section.
fn known_in(section: &str) -> Vec<String> {
    let depth = if section.is_empty() { 0 } else { section.split('.').count() };
    let mut known: Vec<_> = KEYS
        .iter()
        .filter(|key| uniform(key.path).starts_with(&uniform(section)))
        .filter_map(|key| key.path.split('.').nth(depth).map(str::to_owned))
        .collect();
    known.dedup();
    known
}

fn variable(path: &str) -> String {
    PREFIX.to_owned() + &short(path).replace('-', "_").replace('.', "__").to_uppercase()
}

fn list(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Somebody else's text in a message: on one line, and not too long.
fn short(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

/// The key or section that an unknown path may mean: spelled nearly so, cut short, or elsewhere.
fn nearest(path: &str) -> Option<&'static str> {
    let (path, name) = (uniform(path), uniform(last(path)));
    if path.len() > 64 {
        return None;
    }
    let apart = |known: &str| {
        let (known, its_name) = (uniform(known), uniform(last(known)));
        let cut_short = name.len() >= 4 && its_name.contains(&name);
        if cut_short { 1 } else { distance(&path, &known).min(distance(&name, &its_name)) }
    };
    let sections = KEYS.iter().filter_map(|key| key.path.rsplit_once('.')).map(|(path, _)| path);
    KEYS.iter()
        .map(|key| key.path)
        .chain(sections)
        .map(|known| (apart(known), known))
        .min_by_key(|(apart, _)| *apart)
        .filter(|(apart, _)| *apart <= (name.len() / 3).max(1))
        .map(|(_, known)| known)
}

fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// How many letters to add, drop or change to get from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.iter().enumerate() {
            let changed = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
