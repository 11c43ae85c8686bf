//! Leases. `expires_at` follows the server's clock and is for people; nothing is decided by its value, except
//! that `-infinity` means released. A taker only compares whether the value has changed.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;

use super::{Intent, PgQuery, PostgresStore, column};
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::codec::{shard_count_of_column, shard_of_column};
use crate::store::{
    LeaseMark, LeaseRow, LeaseStore, OthersLease, Refenced, Result, Taken, TakenLease, Wanted,
};

fn shards_of(shards: impl Iterator<Item = ShardNo>) -> Vec<i32> {
    shards.map(i32::from).collect()
}

fn epochs_of(held: &[TakenLease]) -> Vec<i64> {
    held.iter().map(|lease| lease.epoch.0).collect()
}

fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)
}

fn shard_at(row: &PgRow, at: usize) -> Result<ShardNo> {
    shard_of_column(column(row, at)?)
}

/// The new `expires_at`. For people, it is when the lease should expire. For nodes, it is the mark of the
/// renewal, so it grows with each renewal even if the clock stepped back.
macro_rules! renewed {
    ($ttl_us:literal) => {
        concat!(
            "greatest(clock_timestamp() + ",
            $ttl_us,
            " * interval '1 microsecond', l.expires_at + interval '1 microsecond')"
        )
    };
}

/// Converts a finite timestamp column to microseconds since 1970.
macro_rules! mark_of {
    ($column:literal) => {
        concat!("(extract(epoch FROM ", $column, ") * 1000000)::int8")
    };
}

/// Takes leases. Leases of other owners are excluded before any row is locked, because an attempt that fails
/// must not delay the holder's commits. A locked row is checked again, because its holder may have renewed it
/// meanwhile. The new epoch changes a key column, so the update waits for commits that hold `FOR KEY SHARE`.
/// Rows are locked in the order of shards.
const TAKE: &str = concat!(
    "
WITH asked AS MATERIALIZED (
    SELECT DISTINCT ON (shard) shard, epoch,
        'epoch'::timestamptz + renewal * interval '1 microsecond' AS expires_at
    FROM unnest($2::int4[], $5::int8[], $6::int8[]) AS w(shard, epoch, renewal)
), others AS MATERIALIZED (
    SELECT l.shard, l.owner, l.epoch, l.expires_at, l.ttl_us FROM leases l JOIN asked a USING (shard)
    WHERE l.kind = $1 AND l.owner <> $3 AND isfinite(l.expires_at)
      AND (a.epoch IS NULL OR a.epoch <> l.epoch OR a.expires_at <> l.expires_at)
), open AS MATERIALIZED (
    SELECT * FROM asked WHERE NOT EXISTS (SELECT FROM others o WHERE o.shard = asked.shard)
    ORDER BY shard
), taken AS (
    INSERT INTO leases AS l (kind, shard, owner, epoch, expires_at, ttl_us)
    SELECT $1, shard, $3, 1, clock_timestamp() + $4 * interval '1 microsecond', $4 FROM open
    ON CONFLICT (kind, shard) DO UPDATE SET
        owner = excluded.owner, epoch = l.epoch + 1, ttl_us = excluded.ttl_us,
        expires_at = clock_timestamp() + $4 * interval '1 microsecond'
    WHERE l.owner = excluded.owner OR NOT isfinite(l.expires_at)
       OR EXISTS (SELECT FROM open o
                  WHERE o.shard = l.shard AND o.epoch = l.epoch AND o.expires_at = l.expires_at)
    RETURNING l.shard, l.epoch
)
SELECT shard, epoch, NULL, NULL, NULL FROM taken
UNION ALL
SELECT shard, epoch, owner, ",
    mark_of!("expires_at"),
    ", ttl_us FROM others"
);

/// Locks the rows that no commit holds, without waiting, and sets them to the epoch after the held one. A row
/// that has that epoch already, under the same owner, was raised by an earlier attempt whose answer was lost.
const REFENCE: &str = concat!(
    "
WITH held AS MATERIALIZED (
    SELECT h.shard, h.epoch + 1 AS next, l.epoch IS NOT NULL AS mine
    FROM unnest($2::int4[], $3::int8[]) AS h(shard, epoch)
    LEFT JOIN leases l ON l.kind = $1 AND l.shard = h.shard AND l.owner = $4
        AND l.epoch BETWEEN h.epoch AND h.epoch + 1
), free AS MATERIALIZED (
    SELECT l.shard, h.next FROM leases l JOIN held h USING (shard)
    WHERE l.kind = $1 AND l.owner = $4 AND l.epoch BETWEEN h.next - 1 AND h.next
    ORDER BY l.shard FOR UPDATE OF l SKIP LOCKED
), raised AS (
    UPDATE leases l SET epoch = free.next, ttl_us = $5, expires_at = ",
    renewed!("$5"),
    "
    FROM free WHERE l.kind = $1 AND l.shard = free.shard
    RETURNING l.shard, l.epoch
)
SELECT shard, epoch FROM raised
UNION ALL
SELECT shard, NULL FROM held WHERE mine AND NOT EXISTS (SELECT FROM free f WHERE f.shard = held.shard)"
);

/// Renews leases. A renewal changes no key column, so it does not wait for commits.
const RENEW: &str = concat!(
    "
WITH mine AS MATERIALIZED (
    SELECT l.shard FROM leases l
    JOIN unnest($2::int4[], $3::int8[]) AS h(shard, epoch) USING (shard, epoch)
    WHERE l.kind = $1 AND l.owner = $4
    ORDER BY l.shard FOR NO KEY UPDATE OF l
)
UPDATE leases l SET ttl_us = $5, expires_at = ",
    renewed!("$5"),
    "
FROM mine WHERE l.kind = $1 AND l.shard = mine.shard
RETURNING l.shard"
);

const RELEASE: &str = "
WITH mine AS MATERIALIZED (
    SELECT l.shard FROM leases l
    JOIN unnest($2::int4[], $3::int8[]) AS h(shard, epoch) USING (shard, epoch)
    WHERE l.kind = $1 AND l.owner = $4
    ORDER BY l.shard FOR NO KEY UPDATE OF l
)
UPDATE leases l SET expires_at = '-infinity'
FROM mine WHERE l.kind = $1 AND l.shard = mine.shard";

const OTHERS: &str = concat!(
    "SELECT shard, epoch, owner, ",
    mark_of!("expires_at"),
    ", ttl_us FROM leases WHERE kind = $1 AND owner <> $2 AND isfinite(expires_at)"
);

/// Builds a query from one of the statements above about held leases.
fn of_held<'q>(sql: &'static str, kind: Kind, held: &[TakenLease], owner: &'q str) -> PgQuery<'q> {
    sqlx::query(sql)
        .bind(kind.as_str())
        .bind(shards_of(held.iter().map(|lease| lease.shard)))
        .bind(epochs_of(held))
        .bind(owner)
}

/// Decodes a row of shard, epoch, owner, mark and time to live.
fn others_lease(row: &PgRow) -> Result<OthersLease> {
    Ok(OthersLease {
        shard: shard_at(row, 0)?,
        owner: column(row, 2)?,
        mark: LeaseMark { epoch: Epoch(column(row, 1)?), renewal: column(row, 3)? },
        ttl: Duration::from_micros(column::<i64>(row, 4)?.unsigned_abs()),
    })
}

#[async_trait]
impl LeaseStore for PostgresStore {
    async fn shard_count(&self, proposed: u16) -> Result<u16> {
        let insert = sqlx::query(
            "INSERT INTO settings (name, value) VALUES ('shard_count', $1) ON CONFLICT (name) DO NOTHING",
        );
        self.change(insert.bind(i64::from(proposed))).await?;
        let rows = self.read(sqlx::query("SELECT value FROM settings WHERE name = 'shard_count'")).await?;
        let count: i64 = rows.first().map(|row| column(row, 0)).transpose()?.unwrap_or_default();
        shard_count_of_column(count)
    }

    async fn take(&self, kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> Result<Taken> {
        let lapsed = || wanted.iter().map(|wanted| wanted.lapsed);
        let take = || {
            let epochs: Vec<_> = lapsed().map(|mark| mark.map(|mark| mark.epoch.0)).collect();
            let renewals: Vec<_> = lapsed().map(|mark| mark.map(|mark| mark.renewal)).collect();
            sqlx::query(TAKE)
                .bind(kind.as_str())
                .bind(shards_of(wanted.iter().map(|wanted| wanted.shard)))
                .bind(owner)
                .bind(micros(ttl))
                .bind(epochs)
                .bind(renewals)
        };
        // Two owners that take a row that never existed may both insert its first epoch, and the conflict may
        // be found by the other index, which is not the arbiter. The loser was aborted and finds the row when
        // it tries again.
        let rows = match self.leases.rows(self.answer_timeout, take()).await {
            Err(failure) if failure.sql_state().as_deref() == Some("23505") => {
                self.write_lease(take()).await?
            }
            other => other.map_err(|failure| failure.into_error(Intent::Write))?,
        };
        let mut taken = Taken::default();
        for row in &rows {
            match column::<Option<&str>>(row, 2)? {
                Some(_) => taken.others.push(others_lease(row)?),
                None => {
                    let (shard, epoch) = (shard_at(row, 0)?, Epoch(column(row, 1)?));
                    taken.leases.push(TakenLease { shard, epoch });
                }
            }
        }
        Ok(taken)
    }

    async fn refence(&self, kind: Kind, held: &[TakenLease], owner: &str, ttl: Duration) -> Result<Refenced> {
        let mut refenced = Refenced::default();
        for row in self.write_lease(of_held(REFENCE, kind, held, owner).bind(micros(ttl))).await? {
            let shard = shard_at(&row, 0)?;
            match column(&row, 1)? {
                Some(epoch) => refenced.leases.push(TakenLease { shard, epoch: Epoch(epoch) }),
                None => refenced.busy.push(shard),
            }
        }
        Ok(refenced)
    }

    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>> {
        let rows = self.write_lease(of_held(RENEW, kind, held, owner).bind(micros(ttl))).await?;
        rows.iter().map(|row| shard_at(row, 0)).collect()
    }

    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> Result<()> {
        self.write_lease(of_held(RELEASE, kind, held, owner)).await.map(drop)
    }

    async fn others(&self, kind: Kind, owner: &str) -> Result<Vec<OthersLease>> {
        let query = sqlx::query(OTHERS).bind(kind.as_str()).bind(owner);
        let rows = self.leases.rows(self.answer_timeout, query).await;
        rows.map_err(|failure| failure.into_error(Intent::Read))?.iter().map(others_lease).collect()
    }

    async fn leases(&self, kind: Kind) -> Result<Vec<LeaseRow>> {
        let query = sqlx::query(
            "SELECT shard, owner, epoch, expires_at <= clock_timestamp() FROM leases
             WHERE kind = $1 ORDER BY shard",
        );
        let rows = self.read(query.bind(kind.as_str())).await?;
        rows.iter()
            .map(|row| {
                Ok(LeaseRow {
                    shard: shard_at(row, 0)?,
                    owner: column(row, 1)?,
                    epoch: Epoch(column(row, 2)?),
                    expired: column(row, 3)?,
                })
            })
            .collect()
    }
}
