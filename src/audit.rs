//! The access log (audit) as stored: entries in batches, batches in chains, and the verification of chains.
//!
//! A batch is one row of the database: the entries that one transaction recorded, encoded, and sealed with
//! HMAC-SHA-256 (RFC 2104) under a secret that is not in the database. Each seal covers the seal of the
//! previous batch. So a chain reveals every change in it, every row missing from its middle, and every row
//! inserted into it.
//!
//! Each writer (the edge of a node, the patient journal of a node) has one chain per concurrent transaction.
//! A chain has one writer and at most one batch in flight, so nodes never wait for each other. A chain alone
//! cannot show that its end, or all of it, is missing. Other chains show it: one of the first batches of each
//! chain, and later one batch per `pins_every_ms`, pins the newest batches of the existing chains. While a
//! writer is idle, a witness does this (`witness`).
//!
//! Old rows can be archived: they move into a file, and each chain keeps a sealed anchor that says where the
//! chain continues (`archive`).
//!
//! This does not protect against:
//! - a holder of the secret;
//! - the removal of the last rows of all chains at once, since the last pins, such as by restoring a backup:
//!   compare the heads with those that `hygeia audit verify` printed earlier, stored elsewhere;
//! - an entry that was never written.
//!
//! See `docs/SECURITY.md`.

mod archive;
mod chain;
mod entry;
#[cfg(test)]
mod tests;
mod verify;
mod witness;

pub use archive::{Archive, ArchiveError, Archiver, read_archive};
pub use chain::{Chain, Chains, Key, Keys, Mac};
pub use entry::{Content, PROMPT_US, Terms, Unreadable, read, term_of_patient};
pub use verify::{Fault, Report, verify};
pub use witness::{Growth, Witness};
