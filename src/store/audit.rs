//! The access audit as the database keeps it: sealed batches. What is in them, `crate::audit` knows.

use std::fmt;

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::domain::audit::Change;
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::Timestamp;

/// A batch of entries: one row.
#[derive(Clone, PartialEq, Eq)]
pub struct AuditBatch {
    /// The chain it belongs to.
    pub chain: Uuid,
    /// Its place there, from 0 on.
    pub seq: i64,
    /// When it was sealed. No entry in it is younger.
    pub at: Timestamp,
    /// The seal.
    pub mac: [u8; 32],
    /// The entries, encoded.
    pub body: Vec<u8>,
    /// What it is found by, each once, in order.
    pub terms: Vec<i32>,
}

/// Never prints what it holds.
impl fmt::Debug for AuditBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditBatch")
            .field("chain", &self.chain)
            .field("seq", &self.seq)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

/// Where a chain is: its newest batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// The chain.
    pub chain: Uuid,
    /// The place of the newest batch.
    pub seq: i64,
    /// Its seal.
    pub mac: [u8; 32],
}

/// Where the rows of a chain begin in the database, after those before were archived: the last row that was taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuditAnchor {
    /// The last row taken away.
    pub head: AuditHead,
    /// The seal of the anchor itself.
    pub seal: [u8; 32],
}

/// A place in the order of lists.
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

/// Which batches are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSearch {
    /// All of these terms.
    pub terms: Vec<i32>,
    /// Sealed at this moment or later.
    pub from: Timestamp,
    /// This one or an older one.
    pub until: AuditPosition,
    /// The most rows.
    pub limit_rows: u32,
}

/// What a search found in one call. A call looks at a bounded number of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AuditFound {
    /// Batches that may hold what is looked for, the newest first.
    pub batches: Vec<AuditBatch>,
    /// The oldest place looked at. None if there is nothing older that could match.
    pub looked_to: Option<AuditPosition>,
}

/// Batches of one node that a store writes at the same time, at most.
pub const AUDIT_BATCHES_MAX: usize = 3;

/// The access audit. Rows are only ever added, but for those that are archived.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Adds a batch, durably.
    async fn append_audit(&self, batch: &AuditBatch) -> Result<()>;

    /// The heads of the chains, the youngest chain first, of those older than `before`.
    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditHead>>;

    /// Batches of `chain` from the place `seq` on, in order.
    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> Result<Vec<AuditBatch>>;

    /// Batches that may hold what is looked for.
    async fn search_audit(&self, search: &AuditSearch) -> Result<AuditFound>;

    /// Of each change, whether it was made.
    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> Result<Vec<bool>>;

    /// Does what commits must not wait for: makes room for the months to come and sorts new rows into the index of
    /// terms. Answers for how many whole months after this one there is room: None where none is needed, or where
    /// another node is doing it.
    async fn tend_audit(&self) -> Result<Option<u32>> {
        Ok(None)
    }
}

/// What the history of a patient has at a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventAt {
    /// The event of that version, if there is one.
    pub event: Option<EventId>,
    /// The newest version that there is; 0 if there is none.
    pub newest: Version,
    /// The version of the record itself, which is that of the newest event; 0 if there is none.
    pub record: Version,
}

/// The access audit as `hygeia audit` sees it: with its anchors, with what can be taken away, and beside the history
/// of patients.
#[async_trait]
pub trait AuditArchiveStore: AuditStore {
    /// What the history has at each of `places`.
    async fn events_at(&self, places: &[(PatientId, Version)]) -> Result<Vec<EventAt>>;

    /// Anchors in the order of their chains, of those after `after`.
    async fn audit_anchors(&self, after: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditAnchor>>;

    /// Whether the index of terms has each row, under its terms alone: what it lacks no search finds. It takes as long as
    /// the audit is large. A database that keeps its indexes out of everyone's reach has nothing to look at.
    async fn audit_terms_fit(&self) -> Result<bool> {
        Ok(true)
    }

    /// The latest moment, at most `before`, such that all rows sealed before it can be taken away.
    /// None if there is none.
    async fn audit_can_end_at(&self, before: Timestamp) -> Result<Option<Timestamp>>;

    /// How many rows `remove_audit` takes away at most, so that other transactions do not wait for long. None if
    /// it takes away everything before a moment at once.
    fn audit_removal_rows_max(&self) -> Option<u32>;

    /// Leaves `anchors`, each in the place of an older one of its chain, and takes away all rows at and before them,
    /// in one transaction. Where everything is taken away at once, these are all rows sealed before `end`.
    ///
    /// # Errors
    /// `Broken`: a row sealed before `end` is behind no anchor; nothing was taken away.
    async fn remove_audit(&self, end: Timestamp, anchors: &[AuditAnchor]) -> Result<()>;
}
