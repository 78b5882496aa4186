//! Points between two steps that last, for tests that kill a process there. Not for releases.
//!
//! A hook is told each point as it is reached, on the thread that reaches it.

use std::sync::OnceLock;

/// Every point, in the order of a task's life.
pub const ALL: [&str; 12] = [
    "insert.before",
    "insert.after",
    "claim.before",
    "claim.after",
    "run.before",
    "run.after",
    "end.before",
    "end.after",
    "renew.before",
    "renew.after",
    "hand-back.before",
    "hand-back.after",
];

type Hook = Box<dyn Fn(&'static str) + Send + Sync>;

static HOOK: OnceLock<Hook> = OnceLock::new();

/// Sets the hook of this process; a second one is not taken.
pub fn set_hook(hook: impl Fn(&'static str) + Send + Sync + 'static) {
    let _ = HOOK.set(Box::new(hook));
}

pub(crate) fn reached(name: &'static str) {
    debug_assert!(ALL.contains(&name), "{name} is not in the list");
    if let Some(hook) = HOOK.get() {
        hook(name);
    }
}
