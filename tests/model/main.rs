//! A model of the protocol (`docs/architecture.md`), small enough to go through all of its states.
//!
//! One SQL statement about one task is one step, and so is what a worker does between two of them; the
//! steps of all come in any order. So a pause (SIGSTOP, a blocked thread, a slow network) needs no
//! step of its own: who is paused takes none while time passes. Times are relative to the database's
//! clock, which makes the states finite without an end of time. Each reading of a worker's clock may be
//! off by a margin, each by another. A statement whose connection is lost is carried out at once, later,
//! or never, and its sender does not know.
//!
//! | here | in `task-retry/src` |
//! | --- | --- |
//! | [`Step::Insert`] | `call.rs`: `enqueue`, `run`; `runtime/write.rs`: `insert`, `answer`; `Store::insert` |
//! | [`Step::GiveUp`] | `runtime/write.rs`: `refuse` after `ASK`: the call is `Uncertain` |
//! | [`Step::Claim`] | `runtime/claim.rs`: `claim`, `submit`; `store/{postgres,sqlite,mysql}.rs`: `claim` |
//! | [`Step::Pick`] | the first half of a claim without locks: `store/mysql.rs`, with `optimistic` |
//! | [`Step::Start`], [`Step::PutBack`] | `runtime/execute.rs`: the first half of `run` |
//! | [`Step::End`] | `runtime/execute.rs`: the second half of `run`, `completed`; `transition.rs`: `after` |
//! | [`Step::CompleteIn`] | `context.rs`: `complete_in`; `Store::complete_in`, with the caller's commit |
//! | [`Step::Settle`] | `runtime/write.rs`: `end`; `Store::settle`, with its look-up |
//! | [`Step::Renew`] | `runtime/lease.rs`: `renew`, `cancel_lost`; `Store::renew` |
//! | [`Action::Shutdown`], [`Step::Stop`] | `runtime.rs`: `shutdown`; `runtime/execute.rs`: `hand_back` |
//! | [`Action::InsertIn`] | `call.rs`: `enqueue_in`, committed by the caller |
//! | [`Action::Outside`] | `runtime.rs`: `complete`, `fail`; `store/admin.rs`: `change`, `complete`, `fail` |
//!
//! Left out: claims always take over what holders let run out (the code waits with that for a while
//! after an outage); a row that nobody can decode (it is put back like another); history and purges.
//!
//! `cargo test -p task-retry-model -- --nocapture` prints the numbers of states and what is found where
//! a check is missing; `--ignored` goes further, for some minutes.

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model, Path};

use crate::protocol::{Action, Check, Protocol};
use crate::state::State;

mod database;
mod protocol;
mod state;
mod worker;

/// One of everything that may happen.
const fn base<const W: usize, const T: usize>() -> Protocol<W, T> {
    Protocol {
        margin: 0,
        faults: 1,
        outside: 1,
        fences: 3,
        asynchronous: true,
        optimistic: false,
        failover: false,
        calm: false,
        without: None,
    }
}

/// Goes through all states, and finds nothing wrong.
fn holds<const W: usize, const T: usize>(protocol: Protocol<W, T>) {
    let began = Instant::now();
    let checker = protocol.checker().spawn_bfs().join();
    let (states, steps) = (checker.unique_state_count(), checker.state_count());
    let time = began.elapsed();
    println!(
        "{W} workers, {T} tasks: {states} states, {steps} steps, {time:.1?}: {:?}",
        checker.model()
    );
    checker.assert_properties();
}

#[test]
fn clocks_may_be_off() {
    holds(Protocol::<2, 1> { margin: 1, ..base() });
}

#[test]
fn two_faults_may_meet() {
    holds(Protocol::<2, 1> { faults: 2, ..base() });
}

#[test]
fn three_workers_may_meet() {
    holds(Protocol::<3, 1> { fences: 4, ..base() });
}

#[test]
fn tasks_share_a_worker() {
    holds(Protocol::<2, 2> { outside: 0, fences: 2, asynchronous: false, ..base() });
}

#[test]
fn claims_may_be_optimistic() {
    holds(Protocol::<2, 1> { outside: 0, margin: 1, optimistic: true, ..base() });
    holds(Protocol::<2, 1> { optimistic: true, ..base() });
}

#[test]
fn a_fail_over_may_forget_a_claim() {
    holds(Protocol::<2, 1> { faults: 2, outside: 0, failover: true, ..base() });
    holds(Protocol::<3, 1> { outside: 0, failover: true, ..base() });
}

#[test]
fn all_ends_when_faults_end() {
    holds(Protocol::<2, 1> { calm: true, ..base() });
    holds(Protocol::<2, 1> { faults: 2, outside: 0, calm: true, ..base() });
    let quiet = Protocol { faults: 0, outside: 0, asynchronous: false, calm: true, ..base() };
    holds::<2, 2>(Protocol { fences: 2, ..quiet });
}

/// Of states that differ in names only one is visited. Here all are, since a check is missing that
/// nothing needs without optimistic claims.
#[test]
fn names_do_not_matter() {
    holds(Protocol::<2, 1> { without: Some(Check::DueAgain), ..base() });
}

#[test]
#[ignore = "takes minutes"]
fn more_of_everything_may_happen() {
    holds(Protocol::<2, 1> { margin: 1, faults: 2, outside: 0, ..base() });
    holds(Protocol::<2, 1> { faults: 2, fences: 4, ..base() });
    holds(Protocol::<3, 1> { margin: 1, ..base() });
    holds(Protocol::<2, 2> { outside: 0, fences: 2, ..base() });
    holds(Protocol::<3, 1> { faults: 2, outside: 0, failover: true, ..base() });
}

/// The shortest way to what goes wrong where a check is missing.
fn found(check: Check, wrong: &'static str) -> Path<State<3, 1>, Action> {
    let protocol = || Protocol::<3, 1> {
        margin: 1,
        optimistic: check == Check::DueAgain,
        failover: check == Check::LockedBy,
        calm: check == Check::TakeOver,
        without: Some(check),
        ..base()
    };
    (2..20)
        .find_map(|depth| {
            let checker = protocol().checker().target_max_depth(depth);
            let found = HasDiscoveries::AnyOf([wrong].into());
            checker.finish_when(found).spawn_bfs().join().discovery(wrong)
        })
        .unwrap_or_else(|| panic!("without {check:?} nothing goes wrong"))
}

#[test]
fn each_check_is_missed_where_it_is_taken_out() {
    for (check, wrong) in [
        (Check::Fence, "no write of a stale fence takes effect"),
        (Check::LockedBy, "no write of a stale fence takes effect"),
        (Check::Open, "what has ended stays ended, but for `retry_now`"),
        (Check::Open, "a task succeeds once"),
        (Check::Open, "what has ended is not claimed"),
        (Check::RenewalFence, "no write of a stale fence takes effect"),
        (Check::Longest, "no lease is taken away before its end"),
        (Check::Lease, "no attempt starts without the lease"),
        (Check::Due, "no lease is taken away before its end"),
        (Check::DueAgain, "no lease is taken away before its end"),
        (Check::TakeOver, "all has ended some time after the last fault"),
        (Check::LookUp, "who is told of a success has made it"),
    ] {
        println!("without {check:?}, not: {wrong}");
        for action in found(check, wrong).into_actions() {
            println!("    {action:?}");
        }
    }
}
