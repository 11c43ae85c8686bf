//! The search of the audit: first a walk in the order of time, then the index of terms, a month at a time.
//!
//! A common term is found by the walk, which is one index scan in order and stops at the limit. What the walk finds too
//! seldom is rare, and the index of terms (GIN) has few rows of it; it has them in no order, so they are sorted, and
//! are taken from one month, so that they stay few. Which of the two is cheaper depends on the term; an index that has
//! the rows of each term in order would serve both, but costs a commit five times as much.

use sqlx::postgres::PgRow;
use uuid::Uuid;

use super::super::{PgQuery, PostgresStore, column, limit};
use super::batch;
use crate::domain::time::Timestamp;
use crate::store::Result;
use crate::store::audit::{AuditFound, AuditPosition, AuditSearch};

/// The most batches that the walk of one call looks at.
const WALK_ROWS_MAX: u32 = 2_000;

/// The rows of a search, whatever their terms. `at <= $2` is what months are left out by.
macro_rules! span {
    ($columns:literal) => {
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

/// The newest of all rows: $5 of them.
const NEWEST: &str = concat!(span!("chain, seq, at, mac, terms, body"), newest_first!(), " LIMIT $5");

/// Of the newest $5 rows, those that have all terms: $7 of them.
pub(in super::super) const WALK: &str = concat!(
    "SELECT chain, seq, at, mac, terms, body FROM (",
    span!("chain, seq, at, mac, terms, body"),
    newest_first!(),
    " LIMIT $5) walked WHERE terms @> $6::int4[]",
    newest_first!(),
    " LIMIT $7"
);

/// The last of the newest rows, after $5 others. The walk goes no further.
const WALK_END: &str = concat!(span!("at, chain, seq"), newest_first!(), " OFFSET $5 LIMIT 1");

/// The rows that have all terms, by the index of terms: $6 of them.
pub(in super::super) const BY_TERMS: &str = concat!(
    "WITH found AS MATERIALIZED (",
    span!("chain, seq, at, mac, terms, body"),
    " AND terms @> $5::int4[]) SELECT chain, seq, at, mac, terms, body FROM found",
    newest_first!(),
    " LIMIT $6"
);

/// The first moment of the month of $1, or $2 if that is later, and whether there is a row between $2 and it.
const MONTH: &str = "
SELECT m.low, EXISTS (SELECT FROM audit_batches WHERE at >= $2 AND at < m.low)
FROM (SELECT greatest(audit_month($1, 0), $2) AS low) m";

fn bounded(sql: &'static str, from: Timestamp, until: AuditPosition) -> PgQuery<'static> {
    sqlx::query(sql).bind(from.0).bind(until.at.0).bind(until.chain).bind(until.seq)
}

fn found(rows: &[PgRow], search: &AuditSearch) -> Result<AuditFound> {
    let batches = rows.iter().map(batch).collect::<Result<Vec<_>>>()?;
    let full = batches.len() >= search.limit_rows as usize;
    let looked_to = batches.last().filter(|_| full).map(AuditPosition::from);
    Ok(AuditFound { batches, looked_to })
}

/// Looks for what `search` says: see above.
pub(super) async fn search(store: &PostgresStore, search: &AuditSearch) -> Result<AuditFound> {
    let from = search.from;
    if search.terms.is_empty() {
        let query = bounded(NEWEST, from, search.until).bind(limit(search.limit_rows));
        return found(&store.read(query).await?, search);
    }
    let walk = bounded(WALK, from, search.until)
        .bind(limit(WALK_ROWS_MAX))
        .bind(&search.terms)
        .bind(limit(search.limit_rows));
    let walked = found(&store.read(walk).await?, search)?;
    if walked.looked_to.is_some() {
        return Ok(walked);
    }
    let end = bounded(WALK_END, from, search.until).bind(limit(WALK_ROWS_MAX - 1));
    let end = store.read(end).await?;
    let Some(end) = end.first() else { return Ok(walked) };
    let end = AuditPosition { at: Timestamp(column(end, 0)?), chain: column(end, 1)?, seq: column(end, 2)? };
    by_terms(store, search, walked, end).await
}

/// Adds to what was `walked` what the rest of the month of `end` has, as far as the limit allows.
async fn by_terms(
    store: &PostgresStore,
    search: &AuditSearch,
    walked: AuditFound,
    end: AuditPosition,
) -> Result<AuditFound> {
    let month = store.read(sqlx::query(MONTH).bind(end.at.0).bind(search.from.0)).await?;
    let Some(month) = month.first() else { return Ok(walked) };
    let (low, older) = (Timestamp(column(month, 0)?), column::<bool>(month, 1)?);
    let left = search.limit_rows - u32::try_from(walked.batches.len()).unwrap_or(search.limit_rows);
    let until = AuditPosition { seq: end.seq - 1, ..end };
    let query = bounded(BY_TERMS, low, until).bind(&search.terms).bind(limit(left));
    // These connections plan for the values at hand: how many rows a term has decides which index is cheaper.
    let rows = store.follow(query).await?;
    let more = found(&rows, &AuditSearch { limit_rows: left, ..search.clone() })?;
    let month_looked_at = older.then_some(AuditPosition { at: low, chain: Uuid::nil(), seq: 0 });
    let mut batches = walked.batches;
    batches.extend(more.batches);
    Ok(AuditFound { batches, looked_to: more.looked_to.or(month_looked_at) })
}
