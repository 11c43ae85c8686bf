//! The search of the audit: a walk over the batches, newest first, combined with the index of terms, one
//! month at a time.
//!
//! A walk is one index scan that stops at its limit. It is fast for a common term. The index of terms (GIN)
//! is fast for a rare term; it returns rows in no order, so they must be sorted. Which method is faster
//! depends on the term and on its distribution: a term used daily last year is common in its month but absent
//! from the newest rows.
//!
//! So a call walks `GLANCE_ROWS_MAX` rows, and then asks the index for the rest of the month, up to
//! `RARE_ROWS_MAX` rows. If there are more, it continues the walk for `WALK_ROWS_MAX` rows. The index
//! collects all rows of a term before it returns the first, so it is not asked for a term that the statistics
//! show as common (`audit_is_common`). An index with ordered rows for each term would suffice alone, but it
//! would make a commit five times as expensive.

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::super::{PgQuery, PostgresStore, column, limit};
use super::batch;
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::audit::{AuditBatch, AuditFound, AuditPosition, AuditSearch};

/// Number of rows that a call walks first: enough for a page of a term that occurs in every eighth row.
const GLANCE_ROWS_MAX: u32 = 128;
/// Maximum number of rows of a month that are taken from the index of terms and sorted.
const RARE_ROWS_MAX: u32 = 1_000;
/// Maximum number of rows that a call walks for a term that is not rare.
const WALK_ROWS_MAX: u32 = 4_000;

/// The columns of a batch.
macro_rules! batches {
    () => {
        "chain, seq, at, mac, terms, body"
    };
}

/// The rows in the range of a search, whatever their terms. `at <= $2` lets the planner skip months.
macro_rules! span {
    ($columns:expr) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM audit_batches WHERE at >= $1 AND at <= $2 AND (at, chain, seq) <= ($2, $3, $4)"
        )
    };
}

macro_rules! newest_first {
    () => {
        " ORDER BY at DESC, chain DESC, seq DESC"
    };
}

/// Selects the batches at the positions `hits`, newest first, each with the columns of `$about`; one row with
/// `$about` alone if there are no hits. Only returned batches are read in full. The inner `LIMIT 1` forces a
/// look-up one by one.
macro_rules! batches_beside {
    ($about:expr) => {
        concat!(
            "SELECT b.chain, b.seq, b.at, b.mac, b.terms, b.body, about.* FROM (",
            $about,
            ") about LEFT JOIN LATERAL (SELECT h.chain, h.seq, h.at, r.mac, r.terms, r.body FROM hits h CROSS JOIN LATERAL (
                 SELECT mac, terms, body FROM audit_batches r
                 WHERE r.at = h.at AND r.chain = h.chain AND r.seq = h.seq LIMIT 1) r) b ON true
             ORDER BY b.at DESC, b.chain DESC, b.seq DESC"
        )
    };
}

/// The newest `$5` rows of the range.
const NEWEST: &str = concat!(span!(batches!()), newest_first!(), " LIMIT $5");

/// Of the newest `$5` rows, those that have all terms, at most `$7`. Each comes with the number of rows
/// walked and the position of the last one.
pub(in super::super) const WALK: &str = concat!(
    "WITH walked AS MATERIALIZED (",
    span!("at, chain, seq, terms @> $6::int4[] AS fits"),
    newest_first!(),
    " LIMIT $5), hits AS (SELECT at, chain, seq FROM walked WHERE fits",
    newest_first!(),
    " LIMIT $7) ",
    batches_beside!(
        "SELECT (SELECT count(*) FROM walked), at AS end_at, chain AS end_chain, seq AS end_seq FROM walked
         ORDER BY at, chain, seq LIMIT 1"
    )
);

/// The rows that have all terms, by the index of terms: at most `$7`, and none if `$6` or more match. Each
/// comes with the number of matches, counted up to `$6`.
pub(in super::super) const BY_TERMS: &str = concat!(
    "WITH found AS MATERIALIZED (",
    span!("at, chain, seq"),
    " AND terms @> $5::int4[] LIMIT $6), hits AS (SELECT at, chain, seq FROM found WHERE (SELECT count(*) FROM found) < $6",
    newest_first!(),
    " LIMIT $7) ",
    batches_beside!("SELECT count(*) FROM found")
);

/// The start of the month of `$1`, or `$2` if that is later; whether a row exists between `$2` and that
/// start; and whether the terms `$3` are common from that start to `$1`.
const MONTH: &str = "
SELECT m.low, EXISTS (SELECT FROM audit_batches WHERE at >= $2 AND at < m.low), audit_is_common(m.low, $1, $3)
FROM (SELECT greatest(audit_month($1, 0), $2) AS low) m";

/// Index of the first column of `$about`.
const BESIDE: usize = 6;

fn bounded(sql: &'static str, from: Timestamp, until: AuditPosition) -> PgQuery<'static> {
    sqlx::query(sql).bind(from.0).bind(until.at.0).bind(until.chain).bind(until.seq)
}

fn found(batches: Vec<AuditBatch>, limit_rows: u32) -> AuditFound {
    let full = batches.len() >= limit_rows as usize;
    let looked_to = batches.last().filter(|_| full).map(AuditPosition::from);
    AuditFound { batches, looked_to }
}

/// Decodes the batches of `rows`, leaving out a row that has only the columns of `$about`.
fn batches_of(rows: &[PgRow]) -> Result<Vec<AuditBatch>> {
    let mut batches = Vec::with_capacity(rows.len());
    for row in rows {
        if column::<Option<Uuid>>(row, 0)?.is_some() {
            batches.push(batch(row)?);
        }
    }
    Ok(batches)
}

/// Runs `search`; the module documentation describes the method.
pub(super) async fn search(store: &PostgresStore, search: &AuditSearch) -> Result<AuditFound> {
    if search.terms.is_empty() {
        let query = bounded(NEWEST, search.from, search.until).bind(limit(search.limit_rows));
        return Ok(found(batches_of(&store.read(query).await?)?, search.limit_rows));
    }
    let glance = walk(store, search, GLANCE_ROWS_MAX).await?;
    if is_full(&glance, search) {
        return Ok(glance);
    }
    let Some(end) = glance.looked_to else { return Ok(glance) };
    let rest = rest_of(search, &glance, end);
    let more = match by_terms(store, &rest, end).await? {
        Some(found) => found,
        None => walk(store, &rest, WALK_ROWS_MAX).await?,
    };
    let mut batches = glance.batches;
    batches.extend(more.batches);
    Ok(AuditFound { batches, looked_to: more.looked_to })
}

fn is_full(found: &AuditFound, search: &AuditSearch) -> bool {
    found.batches.len() >= search.limit_rows as usize
}

/// The part of `search` that lies beyond the position `end`.
fn rest_of(search: &AuditSearch, found: &AuditFound, end: AuditPosition) -> AuditSearch {
    let found_rows = u32::try_from(found.batches.len()).unwrap_or(search.limit_rows);
    let until = AuditPosition { seq: end.seq - 1, ..end };
    AuditSearch { until, limit_rows: search.limit_rows - found_rows, ..search.clone() }
}

/// Walks at most `rows_max` rows.
async fn walk(store: &PostgresStore, search: &AuditSearch, rows_max: u32) -> Result<AuditFound> {
    let query = bounded(WALK, search.from, search.until).bind(limit(rows_max));
    let rows = store.read(query.bind(&search.terms).bind(limit(search.limit_rows))).await?;
    let walked = found(batches_of(&rows)?, search.limit_rows);
    let Some(row) = rows.first().filter(|_| walked.looked_to.is_none()) else { return Ok(walked) };
    let end = AuditPosition {
        at: Timestamp(column(row, BESIDE + 1)?),
        chain: column(row, BESIDE + 2)?,
        seq: column(row, BESIDE + 3)?,
    };
    let more = column::<i64>(row, BESIDE)? >= limit(rows_max);
    Ok(AuditFound { looked_to: more.then_some(end), ..walked })
}

/// Searches the month of `end` by the index of terms. Returns `None` if the matches are too many to sort.
async fn by_terms(
    store: &PostgresStore,
    search: &AuditSearch,
    end: AuditPosition,
) -> Result<Option<AuditFound>> {
    let month = sqlx::query(MONTH).bind(end.at.0).bind(search.from.0).bind(&search.terms);
    let month = store.read(month).await?;
    let Some(month) = month.first() else { return Ok(None) };
    if column(month, 2)? {
        return Ok(None);
    }
    let (low, older) = (Timestamp(column(month, 0)?), column::<bool>(month, 1)?);
    let query = bounded(BY_TERMS, low, search.until).bind(&search.terms).bind(limit(RARE_ROWS_MAX));
    // The connections of the followers plan for the actual values: the frequency of a term decides which
    // index is cheaper.
    let rows = store.follow(query.bind(limit(search.limit_rows))).await?;
    let Some(first) = rows.first() else { return Ok(None) };
    if column::<i64>(first, BESIDE)? >= limit(RARE_ROWS_MAX) {
        return Ok(None);
    }
    let found = found(batches_of(&rows)?, search.limit_rows);
    let month_looked_at = older.then_some(AuditPosition { at: low, chain: Uuid::nil(), seq: 0 });
    Ok(Some(AuditFound { looked_to: found.looked_to.or(month_looked_at), ..found }))
}
