//! A database as it is after years of use: patients, what follows from each of them, and the audit.
//!
//! The rows are those that a node would have written, and they fit together: one in ten patients has been changed four
//! times, one in a hundred is restricted, every event has been published and counted, and the audit's rows are sealed.
//! Names are skewed: one patient in twenty is an Anna, and `RARE_NAMES` are called Zephyrine whatever the size.

mod postgres;
mod sqlite;

use std::sync::Arc;

use async_trait::async_trait;
use hygeia::audit::{Chains, Growth, Key};
use hygeia::domain::access::{Action, Caller, Role};
use hygeia::domain::audit::{Access, Change, Outcome};
use hygeia::domain::ids::PatientId;
use hygeia::domain::time::{Clock, MonoTime, Timestamp};
use hygeia::store::{self, AuditBatch, AuditFound, AuditHead, AuditSearch, AuditStore};
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::Result;

pub(crate) use self::postgres::fill as postgres;
pub(crate) use self::sqlite::fill as sqlite;

/// Patients with a name that hardly anybody has.
pub(crate) const RARE_NAMES: u64 = 10;
/// Of whose accesses there is one batch.
pub(crate) const RARE_SUBJECT: &str = "rare@example.com";
/// Of whose accesses there are many.
pub(crate) const COMMON_SUBJECT: &str = "user-1@example.com";
/// How many users have looked at records.
const SUBJECTS: u64 = 50;
/// Patients of one audit batch; each patient is in one.
const BATCH_ENTRIES: usize = 16;

/// The patients that the requests ask about.
pub(crate) struct Filled {
    /// Patients anywhere in the table.
    pub(crate) some: Vec<Uuid>,
    /// Of those, patients who have been changed.
    pub(crate) changed: Vec<Uuid>,
    /// When half of the rows of the audit were sealed, in the form that the API takes.
    pub(crate) half_audited: String,
}

impl Filled {
    /// Of `ids`, in the order of their registration: as many as `SOME_MAX`, spread over all of them.
    fn among(ids: &[Uuid], half_audited: Timestamp) -> Result<Filled> {
        const SOME_MAX: usize = 20_000;
        // The patients are numbered from 1: of a hundred the 99th is restricted, and every tenth has been changed.
        let shown = ids.iter().enumerate().filter(|(place, _)| place % 100 != 98).map(|(_, id)| *id);
        let some: Vec<Uuid> = shown.step_by((ids.len() / SOME_MAX).max(1)).collect();
        // Far apart, one after the other.
        let some: Vec<Uuid> = (0..some.len()).map(|n| some[n * 7_919 % some.len()]).collect();
        let changed = ids.iter().copied().skip(9).step_by(10);
        let changed = changed.step_by((ids.len() / 10 / 1_000).max(1)).collect();
        let half_audited = half_audited.to_offset().format(&Rfc3339)?;
        Ok(Filled { some, changed, half_audited })
    }
}

/// The audit of one look at each of `ids`, sealed with `secret`, between `first` and `last`.
fn audit(ids: &[Uuid], secret: &str, first: Timestamp, last: Timestamp) -> impl Iterator<Item = AuditBatch> {
    let (store, clock): (Arc<dyn AuditStore>, Arc<dyn Clock>) = (Arc::new(Nothing), Arc::new(Nothing));
    let chains = Chains::new(
        Key::of(secret.as_bytes()),
        "bench#1/edge".into(),
        store,
        clock,
        std::time::Duration::from_secs(60),
        Growth::default(),
    );
    let batches = ids.len().div_ceil(BATCH_ENTRIES);
    let step = (last.0 - first.0) / i64::try_from(batches).unwrap_or(i64::MAX).max(1);
    ids.chunks(BATCH_ENTRIES).enumerate().map(move |(number, patients)| {
        let at = Timestamp(first.0 + step * i64::try_from(number).unwrap_or_default());
        let entries = patients.iter().enumerate().map(|(n, id)| {
            let rare = number == batches / 2 && n == 0;
            let user = (number as u64 * 31 + n as u64) % SUBJECTS;
            let subject = if rare { RARE_SUBJECT.to_owned() } else { format!("user-{user}@example.com") };
            Access {
                at,
                action: Action::PatientRead,
                outcome: Outcome::Done,
                caller: Caller {
                    subject: subject.into(),
                    role: Role::Clinician,
                    from: None,
                    break_glass: None,
                },
                patients: vec![PatientId(*id)],
                trace_id: id.as_u128(),
                reason: None,
                change: None,
                detail: None,
            }
        });
        let chain = chains.take();
        let batch = chains.seal(&chain, entries.collect());
        chains.ended(chain, &batch, &Ok(()));
        batch
    })
}

/// The moments between which the audit's rows are: this month, so that they are where new rows are, too.
fn this_month() -> Result<(Timestamp, Timestamp)> {
    let now = time::OffsetDateTime::now_utc();
    let begins = now.replace_day(1)?.replace_time(time::Time::MIDNIGHT);
    let microseconds =
        |at: time::OffsetDateTime| Ok::<_, crate::Error>(i64::try_from(at.unix_timestamp_nanos() / 1_000)?);
    Ok((Timestamp(microseconds(begins)?), Timestamp(microseconds(now)?)))
}

/// No database, and no clock: nothing is read of either while rows are sealed for another place.
struct Nothing;

impl Clock for Nothing {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    fn mono(&self) -> MonoTime {
        MonoTime(0)
    }
}

#[async_trait]
impl AuditStore for Nothing {
    async fn append_audit(&self, _batch: &AuditBatch) -> store::Result<()> {
        Ok(())
    }

    async fn audit_heads(&self, _before: Option<Uuid>, _limit_rows: u32) -> store::Result<Vec<AuditHead>> {
        Ok(Vec::new())
    }

    async fn audit_batches(
        &self,
        _chain: Uuid,
        _seq: i64,
        _limit_rows: u32,
    ) -> store::Result<Vec<AuditBatch>> {
        Ok(Vec::new())
    }

    async fn search_audit(&self, _search: &AuditSearch) -> store::Result<AuditFound> {
        Ok(AuditFound::default())
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> store::Result<Vec<bool>> {
        Ok(vec![true; changes.len()])
    }
}
