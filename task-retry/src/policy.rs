//! When to try again: pure arithmetic, without a clock, without I/O and without randomness.

use std::time::Duration;

/// The longest delay or time-out that a policy may ask for: ten years.
pub(crate) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);

/// The most retries that a policy may ask for: what the table's columns hold.
pub(crate) const MOST_RETRIES: u32 = i32::MAX as u32;

/// What a function or a source changes of the configuration's [`RetryPolicy`].
///
/// Every field is optional. The function's beat its source's, which beat the configuration's. The
/// arguments of `#[retryable(…)]` and `#[source(…)]` of the same names end up here.
///
/// ```
/// use std::time::Duration;
/// use task_retry::{Policy, RetryPolicy};
///
/// const SOURCE: Policy = Policy::new().max_retry(8).timeout(Duration::from_secs(30));
/// let function = Policy::new().max_retry(2);
///
/// let policy = RetryPolicy::default().with(function.or(SOURCE));
/// assert_eq!(policy.max_retry, 2);
/// assert_eq!(policy.timeout, Some(Duration::from_secs(30)));
/// assert_eq!(policy.first_execute, Duration::from_secs(5));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Policy {
    /// Retries after the first attempt, 0 to 2147483647.
    pub max_retry: Option<u32>,
    /// The delay of the 1st retry, at most ten years.
    pub first_execute: Option<Duration>,
    /// What the delays from the 2nd retry on are multiples of, at most ten years.
    pub delay_base: Option<Duration>,
    /// The factor from one of those delays to the next, at least 1.
    pub delay_multiplier: Option<f64>,
    /// No delay is longer, at most ten years.
    pub max_delay: Option<Duration>,
    /// The part of a delay by which it is spread to both sides, 0 to 1.
    pub jitter: Option<f64>,
    /// An attempt that runs longer is dropped and counts as failed; above 0, at most ten years.
    pub timeout: Option<Duration>,
}

impl Policy {
    /// A policy that changes nothing.
    pub const fn new() -> Self {
        Self {
            max_retry: None,
            first_execute: None,
            delay_base: None,
            delay_multiplier: None,
            max_delay: None,
            jitter: None,
            timeout: None,
        }
    }

    /// Sets [`max_retry`](Policy#structfield.max_retry).
    #[must_use]
    pub const fn max_retry(mut self, retries: u32) -> Self {
        self.max_retry = Some(retries);
        self
    }

    /// Sets [`first_execute`](Policy#structfield.first_execute).
    #[must_use]
    pub const fn first_execute(mut self, delay: Duration) -> Self {
        self.first_execute = Some(delay);
        self
    }

    /// Sets [`delay_base`](Policy#structfield.delay_base).
    #[must_use]
    pub const fn delay_base(mut self, delay: Duration) -> Self {
        self.delay_base = Some(delay);
        self
    }

    /// Sets [`delay_multiplier`](Policy#structfield.delay_multiplier).
    #[must_use]
    pub const fn delay_multiplier(mut self, factor: f64) -> Self {
        self.delay_multiplier = Some(factor);
        self
    }

    /// Sets [`max_delay`](Policy#structfield.max_delay).
    #[must_use]
    pub const fn max_delay(mut self, delay: Duration) -> Self {
        self.max_delay = Some(delay);
        self
    }

    /// Sets [`jitter`](Policy#structfield.jitter).
    #[must_use]
    pub const fn jitter(mut self, part: f64) -> Self {
        self.jitter = Some(part);
        self
    }

    /// Sets [`timeout`](Policy#structfield.timeout).
    #[must_use]
    pub const fn timeout(mut self, limit: Duration) -> Self {
        self.timeout = Some(limit);
        self
    }

    /// Fills what this policy leaves open from a weaker one.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            max_retry: self.max_retry.or(weaker.max_retry),
            first_execute: self.first_execute.or(weaker.first_execute),
            delay_base: self.delay_base.or(weaker.delay_base),
            delay_multiplier: self.delay_multiplier.or(weaker.delay_multiplier),
            max_delay: self.max_delay.or(weaker.max_delay),
            jitter: self.jitter.or(weaker.jitter),
            timeout: self.timeout.or(weaker.timeout),
        }
    }

    /// Says all that is wrong with these values, in one sentence each.
    pub(crate) fn check(&self) -> Result<(), String> {
        let mut mistakes = Vec::new();
        if let Some(retries) = self.max_retry.filter(|&retries| retries > MOST_RETRIES) {
            mistakes.push(format!("max_retry is {retries}: it must be at most {MOST_RETRIES}"));
        }
        let durations = [
            ("first_execute", self.first_execute),
            ("delay_base", self.delay_base),
            ("max_delay", self.max_delay),
            ("timeout", self.timeout),
        ];
        for (name, duration) in durations {
            match duration {
                Some(long) if long > LONGEST => {
                    let most = LONGEST.as_secs();
                    mistakes.push(format!("{name} is {long:?}: it must be at most {most}s"));
                }
                Some(Duration::ZERO) if name == "timeout" => {
                    mistakes.push("timeout is 0s: it must be longer".to_owned());
                }
                _ => {}
            }
        }
        if let Some(factor) = self.delay_multiplier
            && !(1.0..f64::INFINITY).contains(&factor)
        {
            mistakes.push(format!("delay_multiplier is {factor}: it must be at least 1"));
        }
        if let Some(part) = self.jitter
            && !(0.0..=1.0).contains(&part)
        {
            mistakes.push(format!("jitter is {part}: it must be from 0 to 1"));
        }
        if mistakes.is_empty() { Ok(()) } else { Err(mistakes.join("; ")) }
    }
}

/// How often a task is retried, and when: a complete policy.
///
/// The default is that of the configuration, and of the starter: 4 retries, after 5 s, 100 s,
/// 1000 s and 10000 s.
///
/// ```
/// use std::time::Duration;
/// use task_retry::RetryPolicy;
///
/// let policy = RetryPolicy::default();
/// let delays: Vec<_> = (1..).map_while(|failures| policy.next_delay(failures, 0.5)).collect();
/// assert_eq!(delays, [5, 100, 1000, 10_000].map(Duration::from_secs));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// Retries after the first attempt; default 4.
    pub max_retry: u32,
    /// The delay of the 1st retry; default 5 s.
    pub first_execute: Duration,
    /// The delay of the n-th retry, n ≥ 2, is `delay_base × delay_multiplier^(n-1)`; default 10 s.
    pub delay_base: Duration,
    /// See [`delay_base`](Self::delay_base); at least 1 (what is not counts as 1), default 10.
    pub delay_multiplier: f64,
    /// No delay is longer, jitter included; default 86400 s.
    pub max_delay: Duration,
    /// The part of a delay by which it is spread to both sides, 0 to 1; default 0.
    pub jitter: f64,
    /// An attempt that runs longer is dropped and counts as failed; default none.
    pub timeout: Option<Duration>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retry: 4,
            first_execute: Duration::from_secs(5),
            delay_base: Duration::from_secs(10),
            delay_multiplier: 10.0,
            max_delay: Duration::from_secs(86_400),
            jitter: 0.0,
            timeout: None,
        }
    }
}

impl RetryPolicy {
    /// This policy with what `overrides` sets.
    #[must_use]
    pub fn with(self, overrides: Policy) -> Self {
        Self {
            max_retry: overrides.max_retry.unwrap_or(self.max_retry),
            first_execute: overrides.first_execute.unwrap_or(self.first_execute),
            delay_base: overrides.delay_base.unwrap_or(self.delay_base),
            delay_multiplier: overrides.delay_multiplier.unwrap_or(self.delay_multiplier),
            max_delay: overrides.max_delay.unwrap_or(self.max_delay),
            jitter: overrides.jitter.unwrap_or(self.jitter),
            timeout: overrides.timeout.or(self.timeout),
        }
    }

    /// The delay of the n-th retry; 0 counts as 1.
    ///
    /// `random`, from 0 to 1, chooses within the spread that [`jitter`](Self::jitter) allows: evenly
    /// from `delay × (1 - jitter)` to `delay × (1 + jitter)` or `max_delay`, whichever is less, so
    /// that tasks are spread at the maximum too. Every input has an answer, none of them is above
    /// `max_delay`.
    pub fn delay(&self, retry: u32, random: f64) -> Duration {
        let delay = self.unspread(retry);
        let jitter = within_one(self.jitter, 0.0);
        if jitter == 0.0 {
            return delay;
        }
        let seconds = delay.as_secs_f64();
        let low = seconds * (1.0 - jitter);
        let high = (seconds * (1.0 + jitter)).min(self.max_delay.as_secs_f64());
        self.capped(low + (high - low) * within_one(random, 0.5))
    }

    /// After the attempt that makes `failures` failures in all: the delay of the next retry, or
    /// `None` when the retries are used up. `random` is that of [`delay`](Self::delay).
    pub fn next_delay(&self, failures: u32, random: f64) -> Option<Duration> {
        let retry = failures.max(1);
        (retry <= self.max_retry).then(|| self.delay(retry, random))
    }

    fn unspread(&self, retry: u32) -> Duration {
        if retry <= 1 {
            return self.first_execute.min(self.max_delay);
        }
        if self.delay_base.is_zero() {
            return Duration::ZERO;
        }
        // `max` answers 1 for NaN. `powi` is exact where the starter's numbers are whole.
        let factor = self.delay_multiplier.max(1.0);
        let exponent = i32::try_from(retry - 1).unwrap_or(i32::MAX);
        self.capped(self.delay_base.as_secs_f64() * factor.powi(exponent))
    }

    fn capped(&self, seconds: f64) -> Duration {
        Duration::try_from_secs_f64(seconds).map_or(self.max_delay, |d| d.min(self.max_delay))
    }
}

/// `value`, moved into 0 to 1; `otherwise` where it is no number.
fn within_one(value: f64, otherwise: f64) -> f64 {
    if value.is_nan() { otherwise } else { value.clamp(0.0, 1.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Any finite, infinite or meaningless number, and often a sensible one.
    fn any_f64() -> f64 {
        match fastrand::u8(0..8) {
            0 => f64::from_bits(fastrand::u64(..)),
            1 => [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0, 0.0, f64::MAX]
                [fastrand::usize(0..6)],
            2 => fastrand::f64() * 1000.0,
            3 => 1.0,
            _ => fastrand::f64() * 3.0,
        }
    }

    fn any_duration() -> Duration {
        match fastrand::u8(0..6) {
            0 => Duration::ZERO,
            1 => Duration::MAX,
            2 => Duration::new(fastrand::u64(..), fastrand::u32(0..1_000_000_000)),
            3 => Duration::from_nanos(fastrand::u64(0..1000)),
            _ => Duration::from_millis(fastrand::u64(0..100_000_000)),
        }
    }

    fn any_u32() -> u32 {
        match fastrand::u8(0..4) {
            0 => fastrand::u32(..),
            1 => u32::MAX - fastrand::u32(0..2),
            _ => fastrand::u32(0..20),
        }
    }

    fn any_policy() -> RetryPolicy {
        RetryPolicy {
            max_retry: any_u32(),
            first_execute: any_duration(),
            delay_base: any_duration(),
            delay_multiplier: any_f64(),
            max_delay: any_duration(),
            jitter: any_f64(),
            timeout: None,
        }
    }

    #[test]
    fn the_default_keeps_the_starters_times() {
        let policy = RetryPolicy::default();
        assert_eq!(
            (1..=5).map(|n| policy.next_delay(n, 0.9)).collect::<Vec<_>>(),
            [Some(secs(5)), Some(secs(100)), Some(secs(1000)), Some(secs(10_000)), None]
        );
        assert_eq!(policy.delay(5, 0.0), secs(86_400), "100000 s is more than a day");
        assert_eq!(policy.delay(0, 0.0), policy.delay(1, 0.0));
        assert_eq!(policy.next_delay(0, 0.0), Some(secs(5)));
    }

    #[test]
    fn without_retries_there_is_no_next_delay() {
        let policy = RetryPolicy { max_retry: 0, ..RetryPolicy::default() };
        for failures in [0, 1, 2, u32::MAX] {
            assert_eq!(policy.next_delay(failures, 0.5), None);
        }
        let endless = RetryPolicy { max_retry: u32::MAX, ..RetryPolicy::default() };
        assert_eq!(endless.next_delay(u32::MAX, 0.5), Some(secs(86_400)));
    }

    #[test]
    fn no_input_overflows_or_passes_the_maximum() {
        fastrand::seed(1);
        for _ in 0..200_000 {
            let (policy, retry, random) = (any_policy(), any_u32(), any_f64());
            let delay = policy.delay(retry, random);
            assert!(delay <= policy.max_delay, "{policy:?} {retry} {random}: {delay:?}");
            let next = policy.next_delay(retry, random);
            assert_eq!(next.is_some(), policy.max_retry > 0 && retry <= policy.max_retry);
        }
    }

    #[test]
    fn delays_grow_before_jitter() {
        fastrand::seed(2);
        for _ in 0..100_000 {
            let policy = RetryPolicy { jitter: 0.0, ..any_policy() };
            let retry = any_u32().clamp(2, u32::MAX - 1);
            let (this, next) = (policy.delay(retry, any_f64()), policy.delay(retry + 1, any_f64()));
            assert!(this <= next, "{policy:?} {retry}: {this:?}, then {next:?}");
        }
    }

    #[test]
    fn jitter_spreads_to_both_sides_and_at_the_maximum_too() {
        let policy = RetryPolicy { jitter: 0.1, ..RetryPolicy::default() };
        assert_eq!(policy.delay(2, 0.0), secs(90));
        assert_eq!(policy.delay(2, 0.5), secs(100));
        assert_eq!(policy.delay(2, 1.0), secs(110));
        assert_eq!(policy.delay(9, 0.0), secs(77_760));
        assert_eq!(policy.delay(9, 0.5), secs(82_080));
        assert_eq!(policy.delay(9, 1.0), secs(86_400));

        fastrand::seed(3);
        for _ in 0..50_000 {
            let jitter = fastrand::f64();
            let policy = RetryPolicy { jitter, ..RetryPolicy::default() };
            let (retry, random) = (fastrand::u32(1..8), fastrand::f64());
            let centre = RetryPolicy { jitter: 0.0, ..policy }.delay(retry, 0.0).as_secs_f64();
            let delay = policy.delay(retry, random).as_secs_f64();
            assert!(delay >= centre * (1.0 - jitter) - 1e-6);
            assert!(delay <= centre * (1.0 + jitter) + 1e-6);
        }
    }

    #[test]
    fn stronger_policies_win_field_by_field() {
        let function = Policy::new().max_retry(1).jitter(0.5);
        let source = Policy::new()
            .max_retry(2)
            .first_execute(secs(1))
            .delay_base(secs(2))
            .delay_multiplier(3.0)
            .max_delay(secs(4))
            .timeout(secs(6));
        let merged = RetryPolicy::default().with(function.or(source));
        assert_eq!(
            merged,
            RetryPolicy {
                max_retry: 1,
                first_execute: secs(1),
                delay_base: secs(2),
                delay_multiplier: 3.0,
                max_delay: secs(4),
                jitter: 0.5,
                timeout: Some(secs(6)),
            }
        );
        assert_eq!(merged.with(Policy::new()), merged);
        assert_eq!(Policy::new().or(source), source);
    }

    #[test]
    fn check_names_every_bad_value() {
        assert_eq!(Policy::new().check(), Ok(()));
        let edge = Policy::new()
            .max_retry(0)
            .first_execute(Duration::ZERO)
            .delay_multiplier(1.0)
            .max_delay(LONGEST)
            .jitter(1.0)
            .timeout(Duration::from_nanos(1));
        assert_eq!(edge.check(), Ok(()));

        let bad = Policy::new()
            .max_retry(u32::MAX)
            .first_execute(Duration::MAX)
            .delay_multiplier(0.5)
            .jitter(-0.1)
            .timeout(Duration::ZERO);
        assert_eq!(
            bad.check().unwrap_err(),
            "max_retry is 4294967295: it must be at most 2147483647; \
             first_execute is 18446744073709551615.999999999s: it must be at most 315360000s; \
             timeout is 0s: it must be longer; \
             delay_multiplier is 0.5: it must be at least 1; \
             jitter is -0.1: it must be from 0 to 1"
        );
        for number in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -1.0] {
            assert!(Policy::new().delay_multiplier(number).check().is_err());
            assert!(Policy::new().jitter(number).check().is_err());
        }
    }
}
