//! The months (partitions) of the audit: creates those to come, and drops archived ones.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::super::fault::{Failure, Intent};
use super::super::{PostgresStore, Transaction, column, limit};
use super::mac;
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::Timestamp;
use crate::store::audit::{AuditAnchor, AuditArchiveStore, AuditHead, EventAt};
use crate::store::{Error, Result};

/// Number of months after this one for which partitions are created.
const MONTHS_AHEAD: i32 = 3;

/// Moves the pending lists of the index of terms into the index. One session at a time does so, since a
/// second one would only wait for it. The number is "terms" in ASCII.
const TIDY: &str = "
WITH alone AS MATERIALIZED (SELECT pg_try_advisory_xact_lock(499918204275) AS mine)
SELECT gin_clean_pending_list(i.indexrelid)
FROM alone JOIN pg_inherits p ON alone.mine AND p.inhparent = 'audit_batches'::regclass
JOIN pg_index i ON i.indrelid = p.inhrelid
JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam AND a.amname = 'gin'";

/// The partitions that end at `$1` or earlier, with those ends. The default partition has no end.
const PARTS: &str = "
SELECT format('%I.%I', n.nspname, c.relname), upper FROM pg_inherits p
JOIN pg_class c ON c.oid = p.inhrelid JOIN pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (SELECT substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO \\(''(-?\\d+)''\\)')::bigint) e (upper)
WHERE p.inhparent = 'audit_batches'::regclass AND upper <= $1 ORDER BY upper";

/// Begins the transaction that removes rows. Its first locks are on months that are over, and on tables that
/// only such transactions change.
const BEGIN_REMOVAL: &str = "BEGIN; SET LOCAL lock_timeout = 5000; SET LOCAL statement_timeout = 60000;
    LOCK TABLE audit_anchors IN SHARE ROW EXCLUSIVE MODE";
/// How long a removal may take.
const REMOVAL_LIMIT: Duration = Duration::from_secs(120);
/// Takes the lock that dropping a partition needs. All commits queue behind the request for it, so its
/// timeout is short.
const LOCK_ALL: &str = "SET LOCAL lock_timeout = 250; LOCK TABLE audit_batches IN ACCESS EXCLUSIVE MODE";
/// How often a removal that did not get its locks is attempted.
const REMOVAL_TRIES_MAX: u32 = 5;
/// The pause between two attempts.
const REMOVAL_PAUSE: Duration = Duration::from_secs(1);
/// Number of anchors that one statement writes.
const ANCHORS_AT_ONCE: usize = 5_000;

const LEAVE_ANCHORS: &str = "
INSERT INTO audit_anchors (chain, seq, mac, seal) SELECT * FROM unnest($1::uuid[], $2::int8[], $3::bytea[], $4::bytea[])
ON CONFLICT (chain) DO UPDATE SET seq = excluded.seq, mac = excluded.mac, seal = excluded.seal
WHERE audit_anchors.seq < excluded.seq";

/// Deletes the rows of the default partition that an anchor covers.
const EMPTY_REST: &str = "
DELETE FROM audit_batches_rest b USING audit_anchors a WHERE b.at < $1 AND a.chain = b.chain AND b.seq <= a.seq";

/// Implements `AuditStore::tend_audit`. The index is tidied even if the months could not be created.
pub(super) async fn tend(store: &PostgresStore) -> Result<Option<u32>> {
    let made = store.follow_up(sqlx::query("SELECT audit_make_months($1)").bind(MONTHS_AHEAD)).await;
    store.follow_up(sqlx::query(TIDY)).await?;
    let ahead: Option<i32> = made?.first().map(|row| column(row, 0)).transpose()?.flatten();
    Ok(ahead.map(|months| u32::try_from(months).unwrap_or_default()))
}

/// Creates the partitions for the months to come.
///
/// # Errors
/// `Unavailable`: not done; the call may be repeated.
pub(in super::super) async fn make_months(connection: &mut PgConnection) -> Result<()> {
    let query = sqlx::query("SELECT audit_make_months($1)").bind(MONTHS_AHEAD);
    let made = query.execute(connection).await;
    made.map(drop).map_err(|error| Failure::Failed(error).into_error(Intent::Read))
}

fn anchor(row: &PgRow) -> Result<AuditAnchor> {
    let head = AuditHead { chain: column(row, 0)?, seq: column(row, 1)?, mac: mac(column(row, 2)?) };
    Ok(AuditAnchor { head, seal: mac(column(row, 3)?) })
}

#[async_trait]
impl AuditArchiveStore for PostgresStore {
    async fn audit_anchors(&self, after: Option<Uuid>, limit_rows: u32) -> Result<Vec<AuditAnchor>> {
        let query = sqlx::query(
            "SELECT chain, seq, mac, seal FROM audit_anchors WHERE $1::uuid IS NULL OR chain > $1 ORDER BY chain LIMIT $2",
        );
        self.read(query.bind(after).bind(limit(limit_rows))).await?.iter().map(anchor).collect()
    }

    async fn events_at(&self, places: &[(PatientId, Version)]) -> Result<Vec<EventAt>> {
        let query = sqlx::query(
            "SELECT e.event_id, COALESCE((SELECT max(version) FROM patient_events n WHERE n.patient_id = t.patient_id), 0),
                COALESCE((SELECT version FROM patients p WHERE p.id = t.patient_id), 0)
             FROM unnest($1::uuid[], $2::int8[]) WITH ORDINALITY AS t(patient_id, version, ord)
             LEFT JOIN patient_events e USING (patient_id, version) ORDER BY t.ord",
        )
        .bind(places.iter().map(|(patient, _)| patient.0).collect::<Vec<_>>())
        .bind(places.iter().map(|(_, version)| *version).collect::<Vec<_>>());
        let event = |row: &PgRow| {
            let event = column::<Option<Uuid>>(row, 0)?.map(EventId);
            Ok(EventAt { event, newest: column(row, 1)?, record: column(row, 2)? })
        };
        self.read(query).await?.iter().map(event).collect()
    }

    async fn audit_can_end_at(&self, before: Timestamp) -> Result<Option<Timestamp>> {
        let parts = self.read(sqlx::query(PARTS).bind(before.0)).await?;
        parts.last().map(|part| column(part, 1).map(Timestamp)).transpose()
    }

    fn audit_removal_rows_max(&self) -> Option<u32> {
        None
    }

    async fn remove_audit(&self, end: Timestamp, anchors: &[AuditAnchor]) -> Result<()> {
        let mut tries = 1;
        loop {
            match self.try_to_remove(end, anchors).await {
                Err(Error::Unavailable(_)) if tries < REMOVAL_TRIES_MAX => tries += 1,
                done => return done,
            }
            tokio::time::sleep(REMOVAL_PAUSE).await;
        }
    }
}

impl PostgresStore {
    async fn try_to_remove(&self, end: Timestamp, anchors: &[AuditAnchor]) -> Result<()> {
        let mut transaction = self.begin(BEGIN_REMOVAL, REMOVAL_LIMIT).await?;
        for anchors in anchors.chunks(ANCHORS_AT_ONCE) {
            let query = sqlx::query(LEAVE_ANCHORS)
                .bind(anchors.iter().map(|anchor| anchor.head.chain).collect::<Vec<_>>())
                .bind(anchors.iter().map(|anchor| anchor.head.seq).collect::<Vec<_>>())
                .bind(anchors.iter().map(|anchor| &anchor.head.mac[..]).collect::<Vec<_>>())
                .bind(anchors.iter().map(|anchor| &anchor.seal[..]).collect::<Vec<_>>());
            transaction.rows(query).await?;
        }
        transaction.rows(sqlx::query(EMPTY_REST).bind(end.0)).await?;
        let parts = transaction.rows(sqlx::query(PARTS).bind(end.0)).await?;
        let parts = parts.iter().map(|part| column(part, 0)).collect::<Result<Vec<String>>>()?;
        for part in &parts {
            // Nobody writes into a month that is over; searches continue under this lock.
            transaction.run(format!("LOCK TABLE {part} IN SHARE MODE")).await?;
            transaction.refuse_unanchored(part, "true").await?;
        }
        transaction.refuse_unanchored("audit_batches_rest", &format!("at < {}", end.0)).await?;
        if !parts.is_empty() {
            transaction.batch(LOCK_ALL).await.map_err(|failure| failure.into_error(Intent::Read))?;
            transaction.run(format!("DROP TABLE {}", parts.join(", "))).await?;
        }
        transaction.commit().await
    }
}

impl Transaction {
    /// Runs a statement whose names come from the catalogue.
    async fn run(&mut self, sql: String) -> Result<Vec<PgRow>> {
        self.rows(sqlx::query(AssertSqlSafe(sql)).persistent(false)).await
    }

    /// Fails if no anchor covers the newest row of some chain in `part`, among the rows that satisfy
    /// `condition`.
    async fn refuse_unanchored(&mut self, part: &str, condition: &str) -> Result<()> {
        // The query jumps from chain to chain over the key, so its cost does not depend on the length of the
        // chains.
        let sql = format!(
            "WITH RECURSIVE heads AS (
                 (SELECT chain, seq FROM {part} WHERE {condition} ORDER BY chain DESC, seq DESC LIMIT 1)
                 UNION ALL
                 SELECT older.* FROM heads CROSS JOIN LATERAL
                     (SELECT b.chain, b.seq FROM {part} b WHERE b.chain < heads.chain AND {condition}
                      ORDER BY b.chain DESC, b.seq DESC LIMIT 1) older
             )
             SELECT heads.chain FROM heads LEFT JOIN audit_anchors a USING (chain)
             WHERE a.seq IS NULL OR a.seq < heads.seq LIMIT 1"
        );
        let left = self.run(sql).await?;
        match left.first() {
            None => Ok(()),
            Some(row) => {
                let chain: Uuid = column(row, 0)?;
                Err(Error::Broken(format!(
                    "chain {chain} has rows that were not archived, so nothing was taken away"
                )))
            }
        }
    }
}
