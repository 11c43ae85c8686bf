//! The access audit as stored: sealed batches. `crate::audit` encodes and decodes their content.

use std::fmt;

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::domain::audit::Change;
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::Timestamp;

/// A batch of audit entries, stored as one row.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditBatch {
    /// The chain that the batch belongs to.
    pub chain: Uuid,
    /// Position in the chain, from 0 on.
    pub seq: i64,
    /// When the batch was sealed. No entry in it is younger.
    pub at: Timestamp,
    /// The seal.
    pub mac: [u8; 32],
    /// The entries, encoded.
    pub body: Vec<u8>,
    /// The search terms of the entries, sorted and without duplicates.
    pub terms: Vec<i32>,
}

/// Never prints the entries.
impl fmt::Debug for AuditBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditBatch")
            .field("chain", &self.chain)
            .field("seq", &self.seq)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// The head of a chain: its newest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// The chain.
    pub chain: Uuid,
    /// The position of the newest batch.
    pub seq: i64,
    /// The seal of the newest batch.
    pub mac: [u8; 32],
}

/// Where the rows of a chain begin after older rows were archived: marks the last row that was removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAnchor {
    /// The last row that was removed.
    pub head: AuditHead,
    /// The seal of the anchor itself.
    pub seal: [u8; 32],
}

/// A position in the order of lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditPosition {
    /// `AuditBatch::at`
    pub at: Timestamp,
    /// `AuditBatch::chain`
    pub chain: Uuid,
    /// `AuditBatch::seq`
    pub seq: i64,
}

impl From<&AuditBatch> for AuditPosition {
    fn from(batch: &AuditBatch) -> Self {
        AuditPosition { at: batch.at, chain: batch.chain, seq: batch.seq }
    }
}

/// The parameters of a search for batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSearch {
    /// A batch must have all of these terms.
    pub terms: Vec<i32>,
    /// A batch must be sealed at this time or later.
    pub from: Timestamp,
    /// The batch at this position, or an older one.
    pub until: AuditPosition,
    /// Maximum number of batches.
    pub limit_rows: u32,
}

/// The result of one search call. A call scans a bounded number of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFound {
    /// Batches that may hold matching entries, newest first.
    pub batches: Vec<AuditBatch>,
    /// The oldest position that was scanned. `None` if no older batch can match.
    pub looked_to: Option<AuditPosition>,
}

/// Maximum number of batches of one node that a store writes at the same time.
pub const AUDIT_BATCHES_MAX: usize = 3;

/// The access audit. Rows are never changed, and are removed only when they are archived.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Adds a batch; it is durable when the call returns.
    async fn append_audit(&self, batch: &AuditBatch) -> Result<()>;

    /// Returns the heads of the chains that are older than `before`, youngest chain first.
    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditHead>>;

    /// Returns batches of `chain` from position `seq` on, in order.
    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> Result<Vec<AuditBatch>>;

    /// Returns batches that may hold matching entries.
    async fn search_audit(&self, search: &AuditSearch) -> Result<AuditFound>;

    /// Returns for each of `changes` whether the change was made.
    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> Result<Vec<bool>>;

    /// Does maintenance that commits must not wait for: creates partitions for the months to come, and sorts
    /// new rows into the index of terms. Returns for how many whole months after this one there are
    /// partitions. Returns `None` where no partitions are needed, or where another node is creating them.
    async fn tend_audit(&self) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// The state of a patient's history at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventAt {
    /// The event of that version, if it exists.
    pub event: Option<EventId>,
    /// The newest version in the history; 0 if there is none.
    pub newest: Version,
    /// The version of the patient's record, which must equal that of the newest event; 0 if there is no
    /// record.
    pub record: Version,
}

/// The access audit as `hygeia audit` needs it: with its anchors, the removal of rows, and a comparison with
/// the history of patients.
#[async_trait]
pub trait AuditArchiveStore: AuditStore {
    /// Returns the state of the history at each of `places`.
    async fn events_at(&self, places: &[(PatientId, Version)]) -> Result<Vec<EventAt>>;

    /// Returns anchors of chains after `after`, in the order of the chains.
    async fn audit_anchors(&self, after: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditAnchor>>;

    /// Returns whether the index of terms has each row, under its own terms and no others. A search does not
    /// find a row that the index lacks. The duration grows with the size of the audit. A database that
    /// maintains the index itself has nothing to check.
    async fn audit_terms_fit(&self) -> Result<bool> {
        Ok(true)
    }

    /// Returns the latest time, at most `before`, such that all rows sealed before it can be removed; `None`
    /// if there is none.
    async fn audit_can_end_at(&self, before: Timestamp) -> Result<Option<Timestamp>>;

    /// Returns how many rows `remove_audit` removes at most, so that other transactions do not wait for long.
    /// `None` if it removes everything before a time at once.
    fn audit_removal_rows_max(&self) -> Option<u32>;

    /// Stores `anchors`, each in place of an older one of its chain, and removes all rows at and before them,
    /// in one transaction. Where everything is removed at once, these are all rows sealed before `end`.
    ///
    /// # Errors
    /// `Broken`: no anchor covers a row sealed before `end`; nothing was removed.
    async fn remove_audit(&self, end: Timestamp, anchors: &[AuditAnchor]) -> Result<()>;
}
