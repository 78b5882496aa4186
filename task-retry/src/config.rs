//! The configuration: the starter's keys and ours, from files, the environment and the builder.

#[cfg(feature = "config")]
mod document;
mod keys;
#[cfg(test)]
mod tests;
mod utc_offset;
#[cfg(feature = "xxl-job")]
pub(crate) mod xxl_job;

use std::time::Duration;

use crate::RetryPolicy;
use crate::error::Result;
use keys::{Loader, Spelling};
pub use utc_offset::UtcOffset;

const DAY: Duration = Duration::from_secs(86_400);

/// The configuration: the section `task-retry` of a file, `TASK_RETRY__…` variables, and the
/// builder's methods of the same names; what comes later in this row beats what comes before.
///
/// A field is named like its key. In files a key may be written `task-limit`, `taskLimit` or
/// `task_limit`; its variable is `TASK_RETRY__TASK_LIMIT`, a nested one's
/// `TASK_RETRY__THREAD_POOL_PARAM__MAX_POOL_SIZE`. Unknown keys, wrong types and values that are not
/// allowed are errors, all of them reported at once. These are the defaults:
///
/// ```yaml
/// task-retry:
///   enable: true
///   job: true
///   task-limit: 50
///   task-max-retry: 4
///   first-execute-second: 5
///   delay-base-second: 10
///   delay-multiplier: 10
///   data-kept-day: 7
///   thread-pool-param:
///     core-pool-size: 10
///     max-pool-size: 100
///     keep-alive-seconds: 60
///     queue-capacity: 1000
///   failed-kept-day: 0
///   max-delay-second: 86400
///   jitter: 0.0
///   lease-second: 30
///   poll-interval-ms: 1000
///   max-crash: 3
///   shutdown-grace-second: 30
///   time-zone: "+00:00"
/// ```
///
/// ```
/// use task_retry::Config;
///
/// let mut config = Config::default();
/// config.lease_second = 2;
/// assert_eq!(
///     config.validate().unwrap_err().to_string(),
///     "task-retry.lease-second is 2: it must be at least 5 (seconds)"
/// );
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// Whether anything is stored at all. `false`: functions run bare, and `enqueue` refuses.
    /// Default `true`.
    pub enable: bool,
    /// Whether this process has workers. `false`: somebody else runs the retries, with
    /// [`TaskRetry::run_due`](crate::TaskRetry::run_due) or from xxl-job. Default `true`.
    pub job: bool,
    /// Rows per claim and source at the least; more when more places are free. 1 to 10000,
    /// default 50.
    pub task_limit: u32,
    /// Retries after the first attempt. 0 to 2147483647, default 4.
    pub task_max_retry: u32,
    /// The delay of the 1st retry, in seconds. 0 to 315360000 (ten years), default 5.
    pub first_execute_second: u64,
    /// In seconds: the delay of the n-th retry, n ≥ 2, is this × `delay_multiplier`^(n-1).
    /// 0 to 315360000, default 10.
    pub delay_base_second: u64,
    /// See [`delay_base_second`](Self::delay_base_second). 1 to 1000, default 10.
    pub delay_multiplier: f64,
    /// How many days a success stays in the table; 0: for ever. 0 to 36500, default 7.
    pub data_kept_day: u32,
    /// The sizes of what runs and waits in this process.
    pub thread_pool_param: ThreadPoolParam,
    /// How many days a failed task stays in the table; 0: for ever. 0 to 36500, default 0.
    pub failed_kept_day: u32,
    /// No retry is delayed longer, in seconds. 1 to 315360000, default 86400.
    pub max_delay_second: u64,
    /// The part of a delay by which it is spread to both sides. 0 to 1, default 0.
    pub jitter: f64,
    /// How long a claim holds without being renewed, in seconds: so long does the work of a process
    /// that died stay untouched. 5 to 315360000, default 30.
    pub lease_second: u64,
    /// How often to look for due rows at the least, in milliseconds. 10 to 3600000, default 1000.
    pub poll_interval_ms: u64,
    /// A task that took more processes down with it than this has failed. 0 to 1000, default 3.
    pub max_crash: u32,
    /// How long a shutdown waits for running attempts, in seconds. 0 to 315360000, default 30.
    pub shutdown_grace_second: u64,
    /// The zone of `create_time` and `next_send_time` in a table of the starter's. Default
    /// [`UtcOffset::UTC`].
    pub time_zone: UtcOffset,
    /// The section `xxl-job`, if it is there: an xxl-job admin triggers the retries, and with
    /// [`job`](Self::job) they are not looked for by themselves. Default `None`.
    #[cfg(feature = "xxl-job")]
    pub xxl_job: Option<crate::xxl_job::XxlJobConfig>,
}

/// The sizes of what runs and waits in a process, by the names of the starter's thread pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadPoolParam {
    /// The fewest connections that the database pool keeps. 0 to 1000, default 10.
    pub core_pool_size: u32,
    /// How many attempts the workers run at once. 1 to 100000, default 100.
    pub max_pool_size: u32,
    /// How long a connection may be idle, in seconds. 0 to 315360000, default 60.
    pub keep_alive_seconds: u64,
    /// How many accepted tasks may wait in memory; what comes on top is only stored, and found by a
    /// later claim. 0 to 1000000, default 1000.
    pub queue_capacity: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enable: true,
            job: true,
            task_limit: 50,
            task_max_retry: 4,
            first_execute_second: 5,
            delay_base_second: 10,
            delay_multiplier: 10.0,
            data_kept_day: 7,
            thread_pool_param: ThreadPoolParam::default(),
            failed_kept_day: 0,
            max_delay_second: 86_400,
            jitter: 0.0,
            lease_second: 30,
            poll_interval_ms: 1000,
            max_crash: 3,
            shutdown_grace_second: 30,
            time_zone: UtcOffset::UTC,
            #[cfg(feature = "xxl-job")]
            xxl_job: None,
        }
    }
}

impl Default for ThreadPoolParam {
    fn default() -> Self {
        Self {
            core_pool_size: 10,
            max_pool_size: 100,
            keep_alive_seconds: 60,
            queue_capacity: 1000,
        }
    }
}

impl Config {
    /// The defaults, with what this process's `TASK_RETRY__…` variables say.
    pub fn from_env() -> Result<Self> {
        Self::default().with_env()
    }

    /// This configuration, with what this process's `TASK_RETRY__…` variables say.
    ///
    /// ```
    /// # fn main() -> Result<(), task_retry::Error> {
    /// # #[cfg(feature = "config")] {
    /// use task_retry::Config;
    ///
    /// let config = Config::from_yaml("task-retry: { task-limit: 20 }")?.with_env()?;
    /// assert_eq!(config.task_limit, 20);
    /// # }
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_env(self) -> Result<Self> {
        // What is not UTF-8 becomes a replacement character, which no key and no value allows.
        let lossy = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
        self.apply_env(std::env::vars_os().map(|(name, value)| (lossy(name), lossy(value))))
    }

    /// This configuration, with what the `TASK_RETRY__…` ones of these variables say.
    pub(crate) fn apply_env(self, vars: impl Iterator<Item = (String, String)>) -> Result<Self> {
        let mut loader = Loader::new(self, Spelling::Variables);
        for (name, value) in vars {
            loader.variable(&name, value);
        }
        loader.finish()
    }

    /// Checks every value, and says of each bad one its key, the value and what is allowed.
    pub fn validate(&self) -> Result<()> {
        Loader::check(self).finish().map(drop)
    }

    /// The retry policy, which sources and functions may change for themselves.
    pub fn policy(&self) -> RetryPolicy {
        RetryPolicy {
            max_retry: self.task_max_retry,
            first_execute: Duration::from_secs(self.first_execute_second),
            delay_base: Duration::from_secs(self.delay_base_second),
            delay_multiplier: self.delay_multiplier,
            max_delay: Duration::from_secs(self.max_delay_second),
            jitter: self.jitter,
            timeout: None,
        }
    }

    /// [`lease_second`](Self::lease_second) as a duration.
    pub fn lease(&self) -> Duration {
        Duration::from_secs(self.lease_second)
    }

    /// [`poll_interval_ms`](Self::poll_interval_ms) as a duration.
    pub fn poll_interval(&self) -> Duration {
        Duration::from_millis(self.poll_interval_ms)
    }

    /// [`shutdown_grace_second`](Self::shutdown_grace_second) as a duration.
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_second)
    }

    /// [`keep_alive_seconds`](ThreadPoolParam::keep_alive_seconds) as a duration.
    pub fn keep_alive(&self) -> Duration {
        Duration::from_secs(self.thread_pool_param.keep_alive_seconds)
    }

    /// How long a success stays in the table; `None`: for ever.
    pub fn data_kept(&self) -> Option<Duration> {
        (self.data_kept_day > 0).then(|| DAY * self.data_kept_day)
    }

    /// How long a failed task stays in the table; `None`: for ever.
    pub fn failed_kept(&self) -> Option<Duration> {
        (self.failed_kept_day > 0).then(|| DAY * self.failed_kept_day)
    }
}

macro_rules! overlay {
    ($($field:ident $(in $section:ident)?: $type:ty,)*) => {
        /// What a builder's methods set: the last layer. Its fields are those of [`Config`], with
        /// those of [`ThreadPoolParam`] beside them.
        #[derive(Clone, Debug, Default)]
        pub(crate) struct Overlay {
            $(pub(crate) $field: Option<$type>,)*
        }

        impl Overlay {
            /// Lays what is set over `config`; [`Config::validate`] checks the sum.
            pub(crate) fn apply(&self, config: &mut Config) {
                $(if let Some(value) = self.$field {
                    config.$($section.)?$field = value;
                })*
            }
        }
    };
}

overlay! {
    enable: bool,
    job: bool,
    task_limit: u32,
    task_max_retry: u32,
    first_execute_second: u64,
    delay_base_second: u64,
    delay_multiplier: f64,
    data_kept_day: u32,
    core_pool_size in thread_pool_param: u32,
    max_pool_size in thread_pool_param: u32,
    keep_alive_seconds in thread_pool_param: u64,
    queue_capacity in thread_pool_param: u32,
    failed_kept_day: u32,
    max_delay_second: u64,
    jitter: f64,
    lease_second: u64,
    poll_interval_ms: u64,
    max_crash: u32,
    shutdown_grace_second: u64,
    time_zone: UtcOffset,
}
