//! The commit of a batch: one statement for all rows, and the reaction when the server rolls it back.
//!
//! Invariants:
//! - Each attempt is one statement that commits by itself. If the server reports a failure, none of the rows
//!   of that statement is durable.
//! - A commit of unknown outcome is never repeated.

use std::ops::Range;
use std::time::Duration;

use sqlx::postgres::PgRow;
use tokio::time::Instant;

use super::fault::{Failure, Intent};
use super::lanes::Lanes;
use super::{PgQuery, PostgresStore, column};
use crate::store::{AppendOutcome, AuditBatch, AuditStore, Error, Result};

/// How often a statement that collided with another transaction is repeated before it is split.
const COLLISION_RETRIES_MAX: u32 = 2;

/// The part of a commit that locks the lease rows of a kind against a taker, in the order of shards, and
/// returns their epochs. Joining with it by shard and epoch fences a row.
#[cfg(not(feature = "unfenced_commit"))]
macro_rules! fence {
    ($kind:literal) => {
        concat!(
            "SELECT shard, epoch FROM leases WHERE kind = '",
            $kind,
            "' AND shard = ANY ($1) ORDER BY shard FOR KEY SHARE"
        )
    };
}

/// For the test that proves the fence necessary: lets every row pass, whatever its epoch.
#[cfg(feature = "unfenced_commit")]
macro_rules! fence {
    ($kind:literal) => {
        "SELECT DISTINCT shard, epoch FROM input"
    };
}

pub(super) use fence;

/// A row of a batch: a patient's event or an account.
pub(super) trait CommitRow: Sync {
    /// The statement that commits `rows`, and `audit` in the same transaction. It returns one small integer
    /// per row, in the order of `rows`; see `outcome_of`.
    fn commit_query(rows: &[&Self], audit: Option<&AuditBatch>) -> Result<PgQuery<'static>>;

    /// The connections for this kind of row.
    fn lanes(store: &PostgresStore) -> &Lanes;
}

fn outcome_of(code: i16) -> Result<AppendOutcome> {
    match code {
        0 => Ok(AppendOutcome::Committed),
        1 => Ok(AppendOutcome::EmailTaken),
        2 => Ok(AppendOutcome::Fenced),
        3 => Ok(AppendOutcome::Conflict),
        _ => Err(Error::Broken(format!("{code} is no outcome"))),
    }
}

/// A part of the batch that is not committed yet.
struct Part {
    rows: Range<usize>,
    tries: u32,
}

impl PostgresStore {
    /// Commits `batch`. Splits it into parts if other transactions keep colliding with it, or if a row meets
    /// an event that an earlier commit of unknown outcome has left behind.
    ///
    /// `audit` is stored with the first part that succeeds.
    pub(super) async fn commit_rows<R: CommitRow>(
        &self,
        batch: &[&R],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>> {
        let deadline = Instant::now() + self.answer_timeout;
        let mut outcomes = vec![AppendOutcome::Conflict; batch.len()];
        let mut work = vec![Part { rows: 0..batch.len(), tries: 0 }];
        work.retain(|part| !part.rows.is_empty());
        let mut owed = audit;
        while let Some(part) = work.pop() {
            let rows = part.rows.clone();
            let failure = match self.try_commit(&batch[rows.clone()], owed).await? {
                Ok(found) => {
                    owed = None;
                    outcomes[rows].copy_from_slice(&found);
                    continue;
                }
                Err(failure) => failure,
            };
            let in_time = Instant::now() < deadline;
            if failure.is_duplicate() && rows.len() == 1 {
                outcomes[rows.start] = AppendOutcome::Conflict;
            } else if failure.is_duplicate() && in_time {
                work.extend(rows.rev().map(|row| Part { rows: row..row + 1, tries: 0 }));
            } else if failure.is_collision() && part.tries < COLLISION_RETRIES_MAX && in_time {
                let pause_ms = fastrand::u64(1..=10) << part.tries;
                tokio::time::sleep(Duration::from_millis(pause_ms)).await;
                work.push(Part { rows, tries: part.tries + 1 });
            } else if failure.is_collision() && rows.len() > 1 && in_time {
                let middle = rows.start + rows.len() / 2;
                work.push(Part { rows: middle..rows.end, tries: 0 });
                work.push(Part { rows: rows.start..middle, tries: 0 });
            } else {
                return Err(give_up(failure, owed.is_none() && audit.is_some(), &outcomes));
            }
        }
        if let Some(audit) = owed {
            // Every row failed on a duplicate key, which rolled the audit back too. The attempt must be
            // recorded all the same.
            self.append_audit(audit).await?;
        }
        Ok(outcomes)
    }

    /// Runs one statement. The outer error is a malformed answer; the inner one is the failure that the
    /// server reported, or a missing answer.
    async fn try_commit<R: CommitRow>(
        &self,
        rows: &[&R],
        audit: Option<&AuditBatch>,
    ) -> Result<std::result::Result<Vec<AppendOutcome>, Failure>> {
        let answer = match R::lanes(self).rows(self.answer_timeout, R::commit_query(rows, audit)?).await {
            Ok(answer) => answer,
            Err(failure) => return Ok(Err(failure)),
        };
        let found = answer.iter().map(|row: &PgRow| outcome_of(column(row, 0)?));
        let found = found.collect::<Result<Vec<_>>>().map_err(|e| Error::Unknown(e.to_string()))?;
        if found.len() != rows.len() {
            return Err(Error::Unknown("the commit did not answer for every row".to_owned()));
        }
        Ok(Ok(found))
    }
}

/// Returns the error for the whole batch. Once a part of the batch is durable, the error must not say that
/// nothing happened.
fn give_up(failure: Failure, audited: bool, outcomes: &[AppendOutcome]) -> Error {
    let error = failure.into_error(Intent::Write);
    match error {
        Error::Unavailable(text) | Error::Broken(text)
            if audited || outcomes.contains(&AppendOutcome::Committed) =>
        {
            Error::Unknown(format!("a part of the batch: {text}"))
        }
        other => other,
    }
}
