//! Controls whether the kernel writes the memory of this process to a file when it crashes.
//!
//! Invariant: core dumps are forbidden before any secret is read. The same switch prevents other processes of
//! the same user from reading the memory (`prctl(2)`, `PR_SET_DUMPABLE`; `ptrace(2)`).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::failure::{Exit, Failure};

/// Forbids core dumps.
pub(super) fn forbid() -> Result<(), Failure> {
    set(DumpableBehavior::NotDumpable)
}

/// Allows core dumps, for `node.core_dumps`.
pub(super) fn allow() -> Result<(), Failure> {
    set(DumpableBehavior::Dumpable)
}

fn set(behavior: DumpableBehavior) -> Result<(), Failure> {
    set_dumpable_behavior(behavior).map_err(|error| {
        let error = std::io::Error::from(error);
        Failure::new(Exit::Failed, format!("the kernel does not switch core dumps on or off: {error}"))
    })
}
