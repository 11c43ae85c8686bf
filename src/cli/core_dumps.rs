//! Whether the kernel writes the memory of this process to a file when it crashes.
//!
//! Invariant: no secret is read before dumps are forbidden. The same switch keeps other processes of the same user from
//! looking into the memory (`prctl(2)`, `PR_SET_DUMPABLE`; `ptrace(2)`).

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::failure::{Exit, Failure};

/// From now on there are none.
pub(super) fn forbid() -> Result<(), Failure> {
    set(DumpableBehavior::NotDumpable)
}

/// From now on there are: `node.core_dumps`.
pub(super) fn allow() -> Result<(), Failure> {
    set(DumpableBehavior::Dumpable)
}

fn set(behavior: DumpableBehavior) -> Result<(), Failure> {
    set_dumpable_behavior(behavior).map_err(|error| {
        let error = std::io::Error::from(error);
        Failure::new(Exit::Failed, format!("the kernel does not switch core dumps on or off: {error}"))
    })
}
