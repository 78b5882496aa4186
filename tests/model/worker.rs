//! The workers: what each can do, and what it makes of the database's answers.

use crate::protocol::{
    Action, At, Check, DELAY, End, LEASE, MAX_CRASH, MAX_RETRY, Protocol, Step, Ticks,
};
use crate::state::{Hold, Job, Row, Settlement, Sql, State, Statement, Status, Worker, Wrong};

impl<const W: usize, const T: usize> Protocol<W, T> {
    /// All that a worker can do now, and that can happen to it.
    pub(crate) fn steps(&self, state: &State<W, T>, worker: usize, actions: &mut Vec<Action>) {
        let Worker { closing, jobs, .. } = state.workers[worker];
        let faults = state.faults > 0;
        for (task, job) in jobs.into_iter().enumerate() {
            let mut can = |step: Step| actions.push(Action::Step(At { worker, task }, step));
            let readings = if state.calm.is_some() { 0..=0 } else { -self.margin..=self.margin };
            for off in readings {
                let due = state.tasks[task].row.is_some_and(|row| self.due(&row, off));
                match job {
                    Job::None if !state.tasks[task].called && !closing && state.calm.is_none() => {
                        can(Step::Insert(off));
                    }
                    Job::Storing { .. } if off == 0 => can(Step::Insert(off)),
                    Job::None if self.optimistic && due && !closing => can(Step::Pick(off)),
                    Job::Picked { .. } if off == 0 => can(Step::Claim(off)),
                    _ => {}
                }
                // A process that was paused does not take its own task for a dead one's.
                let own = job.hold().is_some_and(|hold| hold.until <= off);
                if !self.optimistic && due && !own && !closing {
                    can(Step::Claim(off));
                }
                // While all is calm, only what has an effect, since time waits for it.
                let renewal = |hold: &Hold| state.calm.is_none() || hold.until < off + LEASE;
                if job.hold().is_some_and(renewal) {
                    can(Step::Renew(off));
                }
            }
            match job {
                Job::Storing { .. } if state.calm.is_none() => can(Step::GiveUp),
                Job::Ready(hold) => {
                    if hold.until > -self.margin || !self.has(Check::Lease) {
                        can(Step::Start);
                    }
                    if hold.until <= self.margin {
                        can(Step::PutBack);
                    }
                }
                Job::Running { completed, .. } => {
                    can(Step::End(End::Ok));
                    can(Step::End(End::Failed));
                    if self.asynchronous && !completed {
                        can(Step::End(End::Pending));
                        can(Step::CompleteIn(true));
                        can(Step::CompleteIn(false));
                    }
                    if closing {
                        can(Step::Stop);
                    }
                }
                Job::Ending { .. } => can(Step::Settle),
                _ => {}
            }
        }
        if faults {
            let lost = |action: &Action| match *action {
                Action::Step(at, step) if at.worker == worker && step.is_statement() => {
                    Some(Action::Lost(at, step))
                }
                _ => None,
            };
            let lost: Vec<Action> = actions.iter().filter_map(lost).collect();
            actions.extend(lost);
        }
        let idle = jobs.iter().all(|job| *job == Job::None);
        if closing && idle {
            actions.push(Action::Exit(worker));
        } else if faults {
            actions.push(Action::Crash(worker));
        }
        if faults && !closing {
            actions.push(Action::Shutdown(worker));
        }
    }

    /// Makes a worker's step; `lost`: the connection is, when the statement is sent.
    pub(crate) fn step(&self, state: &mut State<W, T>, at: At, step: Step, lost: bool) {
        let next = Turn { protocol: self, state, at, lost }.after(step);
        state.workers[at.worker].jobs[at.task] = next;
    }
}

/// A worker's step for a task.
struct Turn<'a, const W: usize, const T: usize> {
    protocol: &'a Protocol<W, T>,
    state: &'a mut State<W, T>,
    at: At,
    lost: bool,
}

impl<const W: usize, const T: usize> Turn<'_, W, T> {
    fn job(&self) -> Job {
        self.state.workers[self.at.worker].jobs[self.at.task]
    }

    fn row(&self) -> Option<Row> {
        self.state.tasks[self.at.task].row
    }

    /// What the worker has to do with the task after the step.
    fn after(&mut self, step: Step) -> Job {
        match (step, self.job()) {
            (Step::Insert(off), _) => self.insert(off),
            (Step::GiveUp, _) => Job::None,
            (Step::Pick(now), job) => self.row().map_or(job, |Row { fence, status, .. }| {
                Job::Picked { now, until: now + LEASE, fence, status }
            }),
            (Step::Claim(off), _) => self.claim(off),
            (Step::Start, Job::Ready(hold)) => self.start(hold),
            (Step::CompleteIn(commits), Job::Running { hold, .. }) => {
                if commits {
                    self.send(Sql::CompleteIn { fence: hold.fence });
                }
                Job::Running { hold, completed: true }
            }
            (Step::End(end), Job::Running { hold, completed: false }) => {
                Job::Ending { hold, settlement: Settlement::after(end, &hold) }
            }
            (Step::End(end), Job::Running { hold, completed: true }) => self.completed(hold, end),
            (Step::Settle, Job::Ending { hold, settlement }) => self.settle(hold, settlement),
            (Step::Renew(off), _) => self.renew(off),
            (Step::PutBack | Step::Stop, Job::Ready(hold) | Job::Running { hold, .. }) => {
                Job::Ending { hold, settlement: Settlement::put_back(&hold) }
            }
            (_, job) => job,
        }
    }

    /// Sends a statement; `None` if the connection is lost meanwhile.
    fn send(&mut self, sql: Sql) -> Option<bool> {
        let statement = Statement { task: self.at.task, me: self.state.me(self.at.worker), sql };
        if !self.lost {
            return Some(self.protocol.execute(self.state, statement));
        }
        self.state.faults -= 1;
        let place = self.state.wire.iter_mut().find(|place| place.is_none());
        *place.expect("there is room for every fault") = Some(statement);
        None
    }

    fn insert(&mut self, off: Ticks) -> Job {
        let until = match self.job() {
            Job::Storing { until } => until,
            _ => off + LEASE,
        };
        self.state.tasks[self.at.task].called = true;
        if self.send(Sql::Insert { until }).is_none() {
            return Job::Storing { until };
        }
        // If the id is taken, then by this very row: its answer was lost before.
        self.state.tasks[self.at.task].accepted = true;
        let status = Status::Executing;
        let hold = Hold { fence: 1, until, status, send_count: 0, crash_count: 0 };
        match self.state.workers[self.at.worker].closing {
            true => Job::Ending { hold, settlement: Settlement::put_back(&hold) },
            false => Job::Ready(hold),
        }
    }

    fn claim(&mut self, off: Ticks) -> Job {
        let job = self.job();
        let (now, until, picked) = match job {
            Job::Picked { now, until, fence, status } => (now, until, Some((fence, status))),
            _ => (off, off + LEASE, None),
        };
        let taken = self.send(Sql::Claim { now, until, picked }) == Some(true);
        match (job, self.row()) {
            // An earlier attempt of the task that cannot be stopped; the new lease runs out.
            (Job::Ending { .. }, _) => job,
            // One that can has lost the task to this claim.
            (_, Some(Row { fence, status, send_count, crash_count, .. })) if taken => {
                Job::Ready(Hold { fence, until, status, send_count, crash_count })
            }
            (Job::Picked { .. }, _) => Job::None,
            _ => job,
        }
    }

    fn start(&mut self, hold: Hold) -> Job {
        if hold.until <= -self.protocol.margin {
            self.state.wrong = Some(Wrong::StartedWithoutLease);
        }
        if hold.crash_count > MAX_CRASH {
            Job::Ending { hold, settlement: Settlement::failed(hold.send_count, 0) }
        } else if hold.status == Status::Waiting {
            Job::Ending { hold, settlement: Settlement::failed(hold.send_count, MAX_RETRY) }
        } else {
            Job::Running { hold, completed: false }
        }
    }

    /// The end of an attempt whose transaction was to carry its success.
    fn completed(&mut self, hold: Hold, end: End) -> Job {
        let Some(row) = self.row().filter(|row| row.fence != hold.fence) else {
            // It was rolled back, or is not committed yet.
            return Job::Ending { hold, settlement: Settlement::after(End::Failed, &hold) };
        };
        let done = (row.fence, row.status) == (hold.fence + 1, Status::Succeeded);
        if done && end == End::Ok && row.success.is_none() {
            self.state.wrong = Some(Wrong::ToldWrongly);
        }
        Job::None
    }

    fn settle(&mut self, hold: Hold, settlement: Settlement) -> Job {
        let fence = hold.fence;
        let Some(landed) = self.send(Sql::Settle { fence, settlement }) else { return self.job() };
        let Some(row) = self.row() else { return Job::None };
        let as_written = (row.fence == fence || !self.protocol.has(Check::LookUp))
            && row.locked_by.is_none()
            && (row.status, row.send_count) == (settlement.to, settlement.send_count);
        let told = (landed || as_written) && settlement.to == Status::Succeeded;
        // When a fail-over has forgotten a claim, another one gets its fence.
        if told && row.success != Some(fence) && !self.protocol.failover {
            self.state.wrong = Some(Wrong::ToldWrongly);
        }
        Job::None
    }

    fn renew(&mut self, off: Ticks) -> Job {
        let mut job = self.job();
        let Some(hold) = job.hold_mut() else { return job };
        let (fence, until) = (hold.fence, off + LEASE);
        match self.send(Sql::Renew { fence, until }) {
            None => {}
            Some(true) => hold.until = hold.until.max(until),
            Some(false) => {
                let me = self.state.me(self.at.worker);
                let ours = self.row().is_none_or(|row| row.is_held(fence, me));
                let ends = matches!(job, Job::Ending { .. } | Job::Running { completed: true, .. });
                if !ours && !ends {
                    return Job::None;
                }
            }
        }
        job
    }
}

impl Step {
    fn is_statement(self) -> bool {
        use Step::{Claim, CompleteIn, Insert, Renew, Settle};
        matches!(self, Insert(_) | Claim(_) | CompleteIn(true) | Settle | Renew(_))
    }
}

impl Settlement {
    /// What is written at the end of a body.
    fn after(end: End, hold: &Hold) -> Self {
        let send_count = hold.send_count;
        match end {
            End::Ok => Self { to: Status::Succeeded, send_count, next: None },
            End::Pending => Self { to: Status::Waiting, send_count, next: Some(DELAY) },
            End::Failed => Self::failed(send_count, MAX_RETRY),
        }
    }

    /// A failure, by a policy of so many retries.
    pub(crate) fn failed(send_count: u8, most: u8) -> Self {
        let send_count = send_count + 1;
        match send_count > most {
            true => Self { to: Status::Failed, send_count, next: None },
            false => Self { to: Status::Retrying, send_count, next: Some(DELAY) },
        }
    }

    /// Due again at once, with nothing counted.
    pub(crate) fn put_back(hold: &Hold) -> Self {
        Self { to: hold.status, send_count: hold.send_count, next: Some(0) }
    }
}
