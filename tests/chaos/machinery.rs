//! The parts of the program `chaos` that have tests of their own: the binary `it` runs them.

pub(crate) mod answers;
pub(crate) mod checker;
pub(crate) mod findings;
pub(crate) mod histories;
pub(crate) mod history;
pub(crate) mod ledger;
pub(crate) mod prompt;
pub(crate) mod proxy;
pub(crate) mod schedule;
