//! The access audit as the database keeps it: sealed batches. What is in them, `crate::audit` knows.

use std::fmt;

use async_trait::async_trait;
use uuid::Uuid;

use super::Result;
use crate::domain::audit::Change;
use crate::domain::ids::PatientId;
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

/// The access audit. Rows are only ever added.
#[async_trait]
pub trait AuditStore: Send + Sync {
    /// Adds a batch, durably.
    async fn append_audit(&self, batch: &AuditBatch) -> Result<()>;

    /// The heads of the chains, the youngest chain first, of those older than `before`.
    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditHead>>;

    /// Batches of `chain` from the place `seq` on, in order.
    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> Result<Vec<AuditBatch>>;

    /// Batches that may hold what is looked for, the newest first.
    async fn search_audit(&self, search: &AuditSearch) -> Result<Vec<AuditBatch>>;

    /// Of each change, whether it was made.
    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> Result<Vec<bool>>;
}
