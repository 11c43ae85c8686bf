//! What the program `chaos` is made of and has tests of its own: the binary `it` runs them.

pub(crate) mod answers;
pub(crate) mod checker;
pub(crate) mod history;
pub(crate) mod ledger;
pub(crate) mod proxy;
pub(crate) mod schedule;
