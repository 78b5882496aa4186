//! What a task becomes after an attempt: pure, without clock, database or chance.

use crate::clock::{LATEST, Millis, floor_millis};
use crate::registry::Ending;
use crate::{RetryPolicy, Status, Verdict};

/// What is written when an attempt has ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Transition {
    pub(crate) to: Status,
    pub(crate) send_count: u32,
    /// When the next attempt is due, or the deadline of waiting.
    pub(crate) next: Option<Millis>,
    pub(crate) error: Option<String>,
}

/// The state of a task after an attempt that ended so. `send_count` counts the failures before it,
/// `random` in 0.0..1.0 spreads the delay.
pub(crate) fn after(
    ending: &Ending,
    send_count: u32,
    policy: &RetryPolicy,
    now: Millis,
    random: f64,
) -> Transition {
    let at = |delay| Some(now.saturating_add(floor_millis(delay)).min(LATEST));
    let (error, verdict) = match ending {
        Ending::Success => {
            return Transition { to: Status::Succeeded, send_count, next: None, error: None };
        }
        Ending::Pending(deadline) => {
            return Transition {
                to: Status::Waiting,
                send_count,
                next: at(*deadline),
                error: None,
            };
        }
        Ending::Failed { error, verdict } => (Some(error.clone()), *verdict),
    };
    let failures = send_count.saturating_add(1);
    let delay = match verdict {
        Verdict::Abort => None,
        // The policy decides whether, the error decides when.
        Verdict::RetryAfter(delay) => policy.next_delay(failures, random).map(|_| delay),
        Verdict::Retry => policy.next_delay(failures, random),
    };
    match delay {
        Some(delay) => {
            Transition { to: Status::Retrying, send_count: failures, next: at(delay), error }
        }
        None => Transition { to: Status::Failed, send_count: failures, next: None, error },
    }
}

/// How long a row that nobody here can decode rests: doubling with each try, from one second to an
/// hour. Each claim adds 1 to the fence, and only attempts that ran add to the other counts.
pub(crate) fn undecodable_pause(fence: i64, send_count: u32, crash_count: u32) -> Millis {
    let tries = fence.saturating_sub(i64::from(send_count)).saturating_sub(i64::from(crash_count));
    1000_i64.saturating_mul(1 << tries.saturating_sub(1).clamp(0, 12)).min(3_600_000)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn failed(verdict: Verdict) -> Ending {
        Ending::Failed { error: "no".into(), verdict }
    }

    #[test]
    fn retries_are_due_at_the_starters_times_and_then_used_up() {
        let policy = RetryPolicy::default();
        for (failures, seconds) in [(0, 5), (1, 100), (2, 1000), (3, 10_000)] {
            let next = after(&failed(Verdict::Retry), failures, &policy, 7, 0.5);
            assert_eq!((next.to, next.send_count), (Status::Retrying, failures + 1));
            assert_eq!(next.next, Some(7 + seconds * 1000));
        }
        let last = after(&failed(Verdict::Retry), 4, &policy, 7, 0.5);
        assert_eq!((last.to, last.send_count, last.next), (Status::Failed, 5, None));
    }

    #[test]
    fn a_verdict_moves_the_time_but_not_the_budget() {
        let policy = RetryPolicy::default();
        let later = failed(Verdict::RetryAfter(Duration::from_secs(60)));
        assert_eq!(after(&later, 0, &policy, 0, 0.5).next, Some(60_000));
        assert_eq!(after(&later, 4, &policy, 0, 0.5).to, Status::Failed);
        assert_eq!(after(&failed(Verdict::Abort), 0, &policy, 0, 0.5).to, Status::Failed);
    }

    #[test]
    fn what_is_open_has_a_time_and_only_failures_count() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..100_000 {
            let delay = Duration::from_millis(random.u64(..) >> random.u32(0..64));
            let ending = match random.u8(0..5) {
                0 => Ending::Success,
                1 => Ending::Pending(delay),
                2 => failed(Verdict::Abort),
                3 => failed(Verdict::RetryAfter(delay)),
                _ => failed(Verdict::Retry),
            };
            let policy = RetryPolicy {
                max_retry: random.u32(..) >> random.u32(0..32),
                first_execute: delay,
                delay_multiplier: random.f64() * 20.0,
                jitter: random.f64(),
                ..RetryPolicy::default()
            };
            let count = random.u32(..) >> random.u32(0..32);
            let now = random.i64(0..LATEST);
            let next = after(&ending, count, &policy, now, random.f64());
            let context = format!("{ending:?} after {count} of {policy:?}: {next:?}");

            assert_eq!(next.next.is_some(), !next.to.is_final(), "{context}");
            assert!(next.next.is_none_or(|at| (now..=LATEST).contains(&at)), "{context}");
            let Ending::Failed { verdict, .. } = &ending else {
                assert_eq!((next.send_count, next.error), (count, None), "{context}");
                let to =
                    if ending == Ending::Success { Status::Succeeded } else { Status::Waiting };
                assert_eq!(next.to, to, "{context}");
                continue;
            };
            let failures = count.saturating_add(1);
            assert_eq!((next.send_count, next.error), (failures, Some("no".into())), "{context}");
            let again = *verdict != Verdict::Abort && failures <= policy.max_retry;
            let to = if again { Status::Retrying } else { Status::Failed };
            assert_eq!(next.to, to, "{context}");
        }
    }

    #[test]
    fn undecodable_rows_rest_longer_and_longer() {
        for (send_count, crash_count) in [(0, 0), (3, 1), (u32::MAX, u32::MAX)] {
            let least = i64::from(send_count) + i64::from(crash_count);
            let pauses =
                (0..40).map(|tries| undecodable_pause(least + tries, send_count, crash_count));
            let pauses: Vec<_> = pauses.collect();
            assert!(
                pauses.is_sorted() && pauses[0] == 1000 && pauses[39] == 3_600_000,
                "{pauses:?}"
            );
        }
    }

    #[test]
    fn no_input_overflows() {
        let policy = RetryPolicy { max_retry: u32::MAX, ..RetryPolicy::default() };
        for ending in [
            failed(Verdict::Retry),
            failed(Verdict::RetryAfter(Duration::MAX)),
            Ending::Pending(Duration::MAX),
        ] {
            for count in [0, 1, u32::MAX - 1, u32::MAX] {
                let next = after(&ending, count, &policy, Millis::MAX - 1, 1.0);
                assert!(next.next.is_none_or(|at| at <= LATEST), "{next:?}");
            }
        }
        assert_eq!(undecodable_pause(1, 0, 0), 1000);
        assert_eq!(undecodable_pause(2, 0, 0), 2000);
        assert_eq!(undecodable_pause(i64::MAX, 0, 0), 3_600_000);
        assert_eq!(undecodable_pause(i64::MIN, u32::MAX, u32::MAX), 1000);
    }
}
