//! The steps, and what must be true of all of them.

use std::fmt;

use stateright::{Model, Property};

use crate::state::{Job, Row, State, Task, Worker, Wrong};

/// Ticks from now on, by the database's clock.
pub(crate) type Ticks = i8;

/// How long a lease lasts.
pub(crate) const LEASE: Ticks = 2;
/// How long a retry is delayed, and how long `Waiting` waits.
pub(crate) const DELAY: Ticks = 1;
/// `task-max-retry`.
pub(crate) const MAX_RETRY: u8 = 1;
/// `max-crash`.
pub(crate) const MAX_CRASH: u8 = 1;
/// So long after the last fault everything has ended: a lease runs out, and each attempt that is left
/// fails, or waits in vain.
pub(crate) const END: u8 = 8;

/// The protocol, for so many processes and tasks, and how far it is explored.
#[derive(Clone, Debug)]
pub(crate) struct Protocol<const WORKERS: usize, const TASKS: usize> {
    /// How far each reading of a clock may be off.
    pub(crate) margin: Ticks,
    /// Lost connections, crashes, shutdowns and fail-overs in all, at most 2.
    pub(crate) faults: u8,
    /// Changes from outside in all.
    pub(crate) outside: u8,
    /// No task changes its owner more often than this.
    pub(crate) fences: u8,
    /// Attempts may say `Pending` and `complete_in`.
    pub(crate) asynchronous: bool,
    /// Claims read first and write then, without a lock in between.
    pub(crate) optimistic: bool,
    /// The database may fail over and forget a claim that it had acknowledged.
    pub(crate) failover: bool,
    /// Faults may end for good; then no time passes while anybody has something to do.
    pub(crate) calm: bool,
    /// What is taken out of the protocol, to see whether it is missed.
    pub(crate) without: Option<Check>,
}

/// What the protocol rests on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Check {
    /// `fence = …` in the guard of everything that the holder of a task writes.
    Fence,
    /// `locked_by = …` there.
    LockedBy,
    /// `status in (0, 1, 5)` there, in claims and in changes from outside.
    Open,
    /// `fence = …` in the guard of renewals alone.
    RenewalFence,
    /// A renewal does not move the end of a lease back.
    Longest,
    /// An attempt asks whether its lease holds before it starts.
    Lease,
    /// A claim asks whether a lease has run out.
    Due,
    /// The second half of an optimistic claim asks that once more.
    DueAgain,
    /// Claims take over what a holder let run out.
    TakeOver,
    /// Who asks whether a write took effect whose answer was lost compares fences.
    LookUp,
}

/// A step of the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// A worker's step for a task.
    Step(At, Step),
    /// The same, but the worker loses its connection when it has sent the statement.
    Lost(At, Step),
    /// What was sent on a lost connection reaches the database.
    Arrive(usize),
    Crash(usize),
    /// No new claims; what has not started is put back.
    Shutdown(usize),
    /// The end of a shutdown.
    Exit(usize),
    Failover(usize),
    InsertIn(usize),
    Outside(usize, Outside),
    Tick,
    Calm,
}

/// Which worker does something for which task.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct At {
    pub(crate) worker: usize,
    pub(crate) task: usize,
}

impl fmt::Debug for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worker {}, task {}", self.worker, self.task)
    }
}

/// What a worker does; numbers are errors of its clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Insert(Ticks),
    GiveUp,
    Pick(Ticks),
    Claim(Ticks),
    Start,
    PutBack,
    /// A transaction of the attempt's own, committed or rolled back.
    CompleteIn(bool),
    End(End),
    Settle,
    Renew(Ticks),
    /// The grace of a shutdown is over.
    Stop,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum End {
    Ok,
    Failed,
    Pending,
}

/// What people and other programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Outside {
    Cancel,
    Complete,
    Fail,
    RetryNow,
    /// `update … set status = 3` and nothing else, as the starter has it.
    ByHand,
}

impl<const W: usize, const T: usize> Model for Protocol<W, T> {
    type State = State<W, T>;
    type Action = Action;

    fn init_states(&self) -> Vec<State<W, T>> {
        vec![State::new(self.faults, self.outside)]
    }

    fn actions(&self, state: &State<W, T>, actions: &mut Vec<Action>) {
        if state.wrong.is_some() {
            return;
        }
        for worker in 0..W {
            self.steps(state, worker, actions);
        }
        if let Some(calm) = state.calm {
            if actions.is_empty() && calm < END {
                actions.push(Action::Tick);
            }
            return;
        }
        actions.push(Action::Tick);
        if self.calm {
            actions.push(Action::Calm);
        }
        actions.extend((0..state.wire.iter().flatten().count()).map(Action::Arrive));
        for (task, slot) in state.tasks.iter().enumerate() {
            if !slot.called {
                actions.push(Action::InsertIn(task));
            }
            if slot.row.is_some() && state.outside > 0 {
                use Outside::{ByHand, Cancel, Complete, Fail, RetryNow};
                let changes = [Cancel, Complete, Fail, RetryNow, ByHand];
                actions.extend(changes.map(|change| Action::Outside(task, change)));
            }
            if slot.before.is_some() && state.faults > 0 {
                actions.push(Action::Failover(task));
            }
        }
    }

    fn next_state(&self, before: &State<W, T>, action: Action) -> Option<State<W, T>> {
        let mut state = *before;
        match action {
            Action::Step(at, step) => self.step(&mut state, at, step, false),
            Action::Lost(at, step) => self.step(&mut state, at, step, true),
            Action::Arrive(index) => {
                let statement = state.wire[index].take()?;
                state.wire.sort_unstable_by_key(Option::is_none);
                self.execute(&mut state, statement);
            }
            Action::Crash(worker) => {
                state.faults -= 1;
                state.workers[worker].restart();
            }
            Action::Exit(worker) => state.workers[worker].restart(),
            Action::Shutdown(worker) => {
                state.faults -= 1;
                state.workers[worker].shut_down();
            }
            Action::Failover(task) => {
                state.faults -= 1;
                state.tasks[task].fail_over();
            }
            Action::InsertIn(task) => {
                let row = Some(Row { next: Some(0), ..Row::default() });
                state.tasks[task] = Task { called: true, accepted: true, row, before: None };
            }
            Action::Outside(task, change) => {
                state.outside -= 1;
                self.change(&mut state, task, change)?;
            }
            Action::Tick => state.tick(self.margin),
            Action::Calm => state.calm(),
        }
        state.wrong = state.wrong.or_else(|| self.wrong(before, &state, action));
        // Counterexamples are to be read, so their names stay.
        if self.without.is_none() {
            state.rename();
        }
        Some(state)
    }

    fn within_boundary(&self, state: &State<W, T>) -> bool {
        let fences = |task: &Task| task.row.is_none_or(|row| row.fence <= self.fences);
        state.calm.is_some() || state.tasks.iter().all(fences)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! never {
            ($name:literal, $wrong:ident) => {
                Property::always($name, |_, state: &State<W, T>| state.wrong != Some(Wrong::$wrong))
            };
        }
        vec![
            never!("no write of a stale fence takes effect", StaleWrite),
            never!("what has ended stays ended, but for `retry_now`", Reopened),
            never!("a task succeeds once", SecondSuccess),
            never!("no attempt starts without the lease", StartedWithoutLease),
            never!("what has ended is not claimed", ClaimedAfterItsEnd),
            never!("who is told of a success has made it", ToldWrongly),
            never!("an accepted task is there, and due some time while it is open", Forgotten),
            never!("counts and fences grow by one", Miscounted),
            Property::always("no lease is taken away before its end", Self::leases_hold),
            Property::always(
                "all has ended some time after the last fault",
                |_, state: &State<W, T>| {
                    let open = |task: &Task| task.row.is_some_and(|row| row.status.is_open());
                    state.calm != Some(END) || !state.tasks.iter().any(open)
                },
            ),
            // So that the others are not true of nothing.
            Property::sometimes(
                "who has lost a task is about to write its end",
                |_, state: &State<W, T>| {
                    let lost = |(job, task): (&Job, &Task)| match (job, task.row) {
                        (Job::Ending { hold, .. }, Some(row)) => row.fence > hold.fence,
                        _ => false,
                    };
                    let any = |worker: &Worker<T>| worker.jobs.iter().zip(&state.tasks).any(lost);
                    state.workers.iter().any(any)
                },
            ),
            Property::sometimes("a task succeeds at its second claim", |_, state: &State<W, T>| {
                let second = |row: Row| row.fence > 1 && row.success == Some(row.fence);
                state.tasks.iter().any(|task| task.row.is_some_and(second))
            }),
        ]
    }
}

impl<const W: usize, const T: usize> Protocol<W, T> {
    pub(crate) fn has(&self, check: Check) -> bool {
        self.without != Some(check)
    }

    /// Whoever has or will start an attempt holds the row until the slowest clock says that the lease
    /// is over, but for changes from outside. So no two hold a task at once.
    fn leases_hold(&self, state: &State<W, T>) -> bool {
        (0..W).all(|worker| {
            let jobs = state.workers[worker].jobs.iter().zip(&state.tasks);
            jobs.into_iter().all(|(job, task)| match (job, task.row) {
                (Job::Ready(hold) | Job::Running { hold, .. }, Some(row)) => {
                    hold.until <= self.margin
                        || hold.fence < row.moved
                        || row.is_held(hold.fence, state.me(worker))
                }
                _ => true,
            })
        })
    }

    /// What is wrong with a step, whoever has made it.
    fn wrong(&self, before: &State<W, T>, after: &State<W, T>, action: Action) -> Option<Wrong> {
        let reset = matches!(action, Action::Outside(_, Outside::RetryNow));
        for (before, after) in before.tasks.iter().zip(&after.tasks) {
            let Some(new) = after.row else {
                if after.accepted {
                    return Some(Wrong::Forgotten);
                }
                continue;
            };
            if new.status.is_open() && new.next.is_none() {
                return Some(Wrong::Forgotten);
            }
            let Some(old) = before.row else { continue };
            if new.status.is_open() && !old.status.is_open() && !reset {
                return Some(Wrong::Reopened);
            }
            let grows =
                |old: u8, new: u8, cleared| (new == 0 && cleared) || new == old || new == old + 1;
            let counted = grows(old.fence, new.fence, false)
                && grows(old.send_count, new.send_count, reset)
                && grows(old.crash_count, new.crash_count, reset || new.success.is_some());
            // After a fail-over the holder of a forgotten claim may hold a later one of that fence.
            if !counted && !self.failover {
                return Some(Wrong::Miscounted);
            }
        }
        None
    }
}
