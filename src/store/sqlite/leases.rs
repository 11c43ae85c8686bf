//! Leases. One process holds all of them. `expires_at` follows its wall clock and is for people; nothing is
//! decided by its value, except that 0 means released. A taker only compares whether the value has changed.

use std::time::Duration;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::{SqliteStore, change, column, rows};
use crate::clock::SystemClock;
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::domain::time::Clock;
use crate::store::codec::{shard_count_of_column, shard_of_column};
use crate::store::{
    LeaseMark, LeaseRow, LeaseStore, OthersLease, Refenced, Result, Taken, TakenLease, Wanted,
};

fn now() -> i64 {
    SystemClock.now().0
}

fn micros(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_micros()).unwrap_or(i64::MAX)
}

fn after(ttl: Duration) -> i64 {
    now().saturating_add(micros(ttl))
}

/// Takes one lease, or reports its owner.
async fn take(
    connection: &mut SqliteConnection,
    kind: Kind,
    wanted: Wanted,
    owner: &str,
    ttl: Duration,
    taken: &mut Taken,
) -> Result<()> {
    let shard = wanted.shard;
    let query = sqlx::query(
        "INSERT INTO leases AS l (kind, shard, owner, epoch, expires_at, ttl_us) VALUES ($1, $2, $3, 1, $4, $5)
         ON CONFLICT (kind, shard) DO UPDATE SET owner = excluded.owner, epoch = l.epoch + 1,
             expires_at = excluded.expires_at, ttl_us = excluded.ttl_us
         WHERE l.owner = excluded.owner OR l.expires_at = 0 OR (l.epoch = $6 AND l.expires_at = $7)
         RETURNING epoch",
    )
    .bind(kind.as_str())
    .bind(i32::from(shard))
    .bind(owner)
    .bind(after(ttl))
    .bind(micros(ttl))
    .bind(wanted.lapsed.map(|mark| mark.epoch.0))
    .bind(wanted.lapsed.map(|mark| mark.renewal));
    if let Some(row) = rows(connection, query).await?.first() {
        taken.leases.push(TakenLease { shard, epoch: Epoch(column(row, 0)?) });
        return Ok(());
    }
    let query = sqlx::query(
        "SELECT shard, owner, epoch, expires_at, ttl_us FROM leases WHERE kind = $1 AND shard = $2",
    );
    for row in rows(connection, query.bind(kind.as_str()).bind(i32::from(shard))).await? {
        taken.others.push(others_lease(&row)?);
    }
    Ok(())
}

/// Decodes a row of shard, owner, epoch, expiry and time to live.
fn others_lease(row: &SqliteRow) -> Result<OthersLease> {
    Ok(OthersLease {
        shard: shard_of_column(column(row, 0)?)?,
        owner: column(row, 1)?,
        mark: LeaseMark { epoch: Epoch(column(row, 2)?), renewal: column(row, 3)? },
        ttl: Duration::from_micros(column::<i64>(row, 4)?.unsigned_abs()),
    })
}

/// Renews a lease held under its own epoch or under `next`, and sets its epoch to `next`. Returns whether
/// such a lease was found.
async fn prolong(
    connection: &mut SqliteConnection,
    kind: Kind,
    lease: TakenLease,
    next: Epoch,
    owner: &str,
    ttl: Duration,
) -> Result<bool> {
    let query = sqlx::query(
        "UPDATE leases SET epoch = $1, expires_at = max($2, expires_at + 1), ttl_us = $3
         WHERE kind = $4 AND shard = $5 AND epoch BETWEEN $6 AND $1 AND owner = $7",
    )
    .bind(next.0)
    .bind(after(ttl))
    .bind(micros(ttl))
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

    async fn take(&self, kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> Result<Taken> {
        let (mut wanted, owner) = (wanted.to_vec(), owner.to_owned());
        wanted.sort_unstable_by_key(|wanted| wanted.shard);
        wanted.dedup_by_key(|wanted| wanted.shard);
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let mut taken = Taken::default();
                    for wanted in wanted {
                        take(connection, kind, wanted, &owner, ttl, &mut taken).await?;
                    }
                    Ok(taken)
                })
            })
            .await
    }

    async fn refence(&self, kind: Kind, held: &[TakenLease], owner: &str, ttl: Duration) -> Result<Refenced> {
        let (held, owner) = (held.to_vec(), owner.to_owned());
        self.writer
            .write(move |connection| {
                Box::pin(async move {
                    let mut refenced = Refenced::default();
                    for lease in held {
                        let raised = TakenLease { epoch: Epoch(lease.epoch.0 + 1), ..lease };
                        if prolong(connection, kind, lease, raised.epoch, &owner, ttl).await? {
                            refenced.leases.push(raised);
                        }
                    }
                    Ok(refenced)
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
                        if prolong(connection, kind, lease, lease.epoch, &owner, ttl).await? {
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
                        let query = sqlx::query(
                            "UPDATE leases SET expires_at = 0
                             WHERE kind = $1 AND shard = $2 AND epoch = $3 AND owner = $4",
                        )
                        .bind(kind.as_str())
                        .bind(i32::from(lease.shard))
                        .bind(lease.epoch.0)
                        .bind(&*owner);
                        change(connection, query).await?;
                    }
                    Ok(())
                })
            })
            .await
    }

    async fn others(&self, kind: Kind, owner: &str) -> Result<Vec<OthersLease>> {
        let query = sqlx::query(
            "SELECT shard, owner, epoch, expires_at, ttl_us FROM leases
             WHERE kind = $1 AND owner <> $2 AND expires_at <> 0",
        );
        self.read(query.bind(kind.as_str()).bind(owner)).await?.iter().map(others_lease).collect()
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
