//! Leases. One process holds them all, so its own clock of civil time is the database's clock.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, change, column, rows};
use crate::clock::SystemClock;
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::domain::time::Clock;
use crate::store::codec::{shard_count_of_column, shard_of_column};
use crate::store::{LeaseRow, LeaseStore, OthersLease, Result, Taken, TakenLease};

fn now() -> i64 {
    SystemClock.now().0
}

fn after(ttl: Duration) -> i64 {
    now().saturating_add(i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX))
}

/// Takes one lease, or tells who holds it.
async fn take(
    connection: &mut SqliteConnection,
    kind: Kind,
    shard: ShardNo,
    owner: &str,
    ttl: Duration,
    taken: &mut Taken,
) -> Result<()> {
    let now = now();
    let query = sqlx::query(
        "INSERT INTO leases AS l (kind, shard, owner, epoch, expires_at) VALUES ($1, $2, $3, 1, $4)
         ON CONFLICT (kind, shard) DO UPDATE SET
             owner = excluded.owner, epoch = l.epoch + 1, expires_at = excluded.expires_at
         WHERE l.owner = excluded.owner OR l.expires_at <= $5
         RETURNING epoch",
    )
    .bind(kind.as_str())
    .bind(i32::from(shard))
    .bind(owner)
    .bind(after(ttl))
    .bind(now);
    if let Some(row) = rows(connection, query).await?.first() {
        taken.leases.push(TakenLease { shard, epoch: Epoch(column(row, 0)?) });
        return Ok(());
    }
    let query = sqlx::query("SELECT owner, expires_at FROM leases WHERE kind = $1 AND shard = $2");
    for row in rows(connection, query.bind(kind.as_str()).bind(i32::from(shard))).await? {
        let left_us = column::<i64>(&row, 1)?.saturating_sub(now).max(0).unsigned_abs();
        let (owner, left) = (column(&row, 0)?, Duration::from_micros(left_us));
        taken.others.push(OthersLease { shard, owner, left });
    }
    Ok(())
}

/// Sets the expiry of a lease that is still held; answers whether it was.
async fn set_expiry(
    connection: &mut SqliteConnection,
    kind: Kind,
    lease: TakenLease,
    owner: &str,
    expires_at: i64,
) -> Result<bool> {
    let query = sqlx::query(
        "UPDATE leases SET expires_at = $1 WHERE kind = $2 AND shard = $3 AND epoch = $4 AND owner = $5",
    )
    .bind(expires_at)
    .bind(kind.as_str())
    .bind(i32::from(lease.shard))
    .bind(lease.epoch.0)
    .bind(owner);
    Ok(change(connection, query).await? == 1)
}

#[async_trait]
impl LeaseStore for SqliteStore {
    async fn shard_count(&self, proposed: u16) -> Result<u16> {
        let count = self
            .writer
            .write(move |connection| {
                Box::pin(async move {
                    let insert = sqlx::query(
                        "INSERT INTO settings (name, value) VALUES ('shard_count', $1) ON CONFLICT DO NOTHING",
                    );
                    change(connection, insert.bind(i64::from(proposed))).await?;
                    let query = sqlx::query("SELECT value FROM settings WHERE name = 'shard_count'");
                    let found = rows(connection, query).await?;
                    found.first().map(|row| column::<i64>(row, 0)).transpose().map(Option::unwrap_or_default)
                })
            })
            .await?;
        shard_count_of_column(count)
    }

    async fn take(&self, kind: Kind, shards: &[ShardNo], owner: &str, ttl: Duration) -> Result<Taken> {
        let (mut shards, owner) = (shards.to_vec(), owner.to_owned());
        shards.sort_unstable();
        shards.dedup();
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let mut taken = Taken::default();
                    for shard in shards {
                        take(connection, kind, shard, &owner, ttl, &mut taken).await?;
                    }
                    Ok(taken)
                })
            })
            .await
    }

    async fn renew(
        &self,
        kind: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> Result<Vec<ShardNo>> {
        let (held, owner) = (held.to_vec(), owner.to_owned());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let mut renewed = Vec::with_capacity(held.len());
                    for lease in held {
                        if set_expiry(connection, kind, lease, &owner, after(ttl)).await? {
                            renewed.push(lease.shard);
                        }
                    }
                    Ok(renewed)
                })
            })
            .await
    }

    async fn release(&self, kind: Kind, held: &[TakenLease], owner: &str) -> Result<()> {
        let (held, owner) = (held.to_vec(), owner.to_owned());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    for lease in held {
                        set_expiry(connection, kind, lease, &owner, 0).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn leases(&self, kind: Kind) -> Result<Vec<LeaseRow>> {
        let query = sqlx::query(
            "SELECT shard, owner, epoch, expires_at <= $2 FROM leases WHERE kind = $1 ORDER BY shard",
        );
        let rows = self.read(query.bind(kind.as_str()).bind(now())).await?;
        rows.iter()
            .map(|row| {
                Ok(LeaseRow {
                    shard: shard_of_column(column(row, 0)?)?,
                    owner: column(row, 1)?,
                    epoch: Epoch(column(row, 2)?),
                    expired: column(row, 3)?,
                })
            })
            .collect()
    }
}
