//! Leases. All times are the server's `clock_timestamp()`: the clock goes on inside a transaction that
//! has waited.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::postgres::PgRow;

use super::{Intent, PostgresStore, column};
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::codec::{shard_count_of_column, shard_of_column};
use crate::store::{LeaseRow, LeaseStore, OthersLease, Result, Taken, TakenLease};

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

/// What another owner holds is left out before any row is locked: the taking of a lease that fails must
/// not hold up the commits of its holder. What is locked is looked at again. The new epoch is a change of
/// a key column, so it waits for commits that hold `FOR KEY SHARE`. Rows are locked in the order of shards.
const TAKE: &str = "
WITH wanted AS MATERIALIZED (
    SELECT DISTINCT unnest($2::int4[]) AS shard
), others AS MATERIALIZED (
    SELECT l.shard, l.owner, l.expires_at FROM leases l JOIN wanted USING (shard)
    WHERE l.kind = $1 AND l.owner <> $3 AND l.expires_at > clock_timestamp()
), open AS MATERIALIZED (
    SELECT shard FROM wanted WHERE NOT EXISTS (SELECT FROM others o WHERE o.shard = wanted.shard)
    ORDER BY shard
), taken AS (
    INSERT INTO leases AS l (kind, shard, owner, epoch, expires_at)
    SELECT $1, shard, $3, 1, clock_timestamp() + $4 * interval '1 microsecond' FROM open
    ON CONFLICT (kind, shard) DO UPDATE SET
        owner = excluded.owner, epoch = l.epoch + 1,
        expires_at = clock_timestamp() + $4 * interval '1 microsecond'
    WHERE l.owner = excluded.owner OR l.expires_at <= clock_timestamp()
    RETURNING l.shard, l.epoch
)
SELECT shard, epoch, NULL, NULL FROM taken
UNION ALL
SELECT shard, NULL, owner,
    (1e6 * greatest(0, extract(epoch FROM expires_at - clock_timestamp())))::int8 FROM others";

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

    async fn take(&self, kind: Kind, shards: &[ShardNo], owner: &str, ttl: Duration) -> Result<Taken> {
        let take = || {
            let shards = shards_of(shards.iter().copied());
            sqlx::query(TAKE).bind(kind.as_str()).bind(shards).bind(owner).bind(micros(ttl))
        };
        // Two owners who take a row that was never there may both insert its first epoch; the arbiter of the
        // conflict is the other index. The loser was aborted, and finds the row at its next try.
        let rows = match self.rows_over(&self.leases, take()).await {
            Err(failure) if failure.sql_state().as_deref() == Some("23505") => {
                self.write_lease(take()).await?
            }
            other => other.map_err(|failure| failure.into_error(Intent::Write))?,
        };
        let mut taken = Taken::default();
        for row in &rows {
            let shard = shard_at(row, 0)?;
            match column(row, 1)? {
                Some(epoch) => taken.leases.push(TakenLease { shard, epoch: Epoch(epoch) }),
                None => taken.others.push(OthersLease {
                    shard,
                    owner: column(row, 2)?,
                    left: Duration::from_micros(column::<i64>(row, 3)?.unsigned_abs()),
                }),
            }
        }
        Ok(taken)
    }

    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>> {
        let query = sqlx::query(
            "WITH mine AS MATERIALIZED (
                 SELECT l.shard FROM leases l
                 JOIN unnest($2::int4[], $3::int8[]) AS h(shard, epoch) USING (shard, epoch)
                 WHERE l.kind = $1 AND l.owner = $4
                 ORDER BY l.shard FOR NO KEY UPDATE OF l
             )
             UPDATE leases l SET expires_at = clock_timestamp() + $5 * interval '1 microsecond'
             FROM mine WHERE l.kind = $1 AND l.shard = mine.shard
             RETURNING l.shard",
        )
        .bind(kind.as_str())
        .bind(shards_of(held.iter().map(|lease| lease.shard)))
        .bind(epochs_of(held))
        .bind(owner)
        .bind(micros(ttl));
        self.write_lease(query).await?.iter().map(|row| shard_at(row, 0)).collect()
    }

    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> Result<()> {
        let query = sqlx::query(
            "WITH mine AS MATERIALIZED (
                 SELECT l.shard FROM leases l
                 JOIN unnest($2::int4[], $3::int8[]) AS h(shard, epoch) USING (shard, epoch)
                 WHERE l.kind = $1 AND l.owner = $4
                 ORDER BY l.shard FOR NO KEY UPDATE OF l
             )
             UPDATE leases l SET expires_at = '-infinity'
             FROM mine WHERE l.kind = $1 AND l.shard = mine.shard",
        )
        .bind(kind.as_str())
        .bind(shards_of(held.iter().map(|lease| lease.shard)))
        .bind(epochs_of(held))
        .bind(owner);
        self.write_lease(query).await.map(drop)
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
