//! The access audit as it is kept: entries in batches, batches in chains, and how a chain is checked.
//!
//! A batch is one row of the database: the entries that one transaction recorded, encoded, and sealed by
//! HMAC-SHA-256 (RFC 2104) under a secret that is not in the database. The seal covers the seal of the batch
//! before it, so that a chain shows every change in it, every row missing from its middle, and every row put in.
//!
//! Each writer (a node's edge, a node's patient journal) has as many chains as it has transactions in flight: a
//! chain has one writer and one batch under way, so no two nodes ever wait for each other. What a chain cannot
//! show by itself, that its end or the whole of it is missing, others show: one of the first batches of each chain, and
//! from then on one batch in every `pins_every_ms`, pins the newest batch of the chains there are; and when a writer
//! rests, a witness does (`witness`).
//!
//! Old rows can be archived: they go into a file, and an anchor stays for each chain, which is sealed too and says
//! where the chain goes on (`archive`).
//!
//! What this does not protect against: whoever has the secret; rows cut from the end of all chains since the last
//! pins, all at once, which is a restored backup (compare with the heads that `hygeia audit verify` printed
//! earlier, kept elsewhere); and an entry that was never written. See `docs/SECURITY.md`.

mod archive;
mod chain;
mod entry;
#[cfg(test)]
mod tests;
mod verify;
mod witness;

pub use archive::{Archive, ArchiveError, Archiver, read_archive};
pub use chain::{Chain, Chains, Key, Keys, Mac};
pub use entry::{Content, Terms, Unreadable, read, term_of_patient};
pub use verify::{Fault, Report, verify};
pub use witness::{Growth, Witness};
