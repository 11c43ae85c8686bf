//! Leases in memory that run out.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::SumStore;
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::{self, LeaseRow, LeaseStore, OthersLease, Taken, TakenLease};

pub(super) struct Row {
    owner: String,
    epoch: i64,
    until: Instant,
}

/// Leases in memory that run out; the commits of `SumStore` are fenced by them.
pub(super) struct Leases {
    pub(super) sums: Arc<SumStore>,
    pub(super) rows: Mutex<HashMap<ShardNo, Row>>,
    /// Owners who do not reach the database.
    pub(super) cut: Mutex<HashSet<String>>,
    pub(super) takes: AtomicUsize,
    pub(super) renewals: AtomicUsize,
    pub(super) largest_release: AtomicUsize,
    pub(super) slow: AtomicBool,
}

impl Leases {
    async fn travel(&self, owner: &str) -> store::Result<()> {
        if self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..8_000))).await;
        }
        match self.cut.lock().unwrap().contains(owner) {
            true => Err(store::Error::Unavailable("cut off".into())),
            false => Ok(()),
        }
    }

    fn take_now(&self, shards: &[ShardNo], owner: &str, ttl: Duration) -> Taken {
        let (mut rows, mut taken, now) = (self.rows.lock().unwrap(), Taken::default(), Instant::now());
        for shard in shards {
            let row = rows.entry(*shard).or_insert(Row { owner: owner.into(), epoch: 0, until: now });
            if row.owner != owner && row.until > now {
                let (owner, left) = (row.owner.clone(), row.until - now);
                taken.others.push(OthersLease { shard: *shard, owner, left });
                continue;
            }
            *row = Row { owner: owner.into(), epoch: row.epoch + 1, until: now + ttl };
            self.sums.set_epoch(*shard, row.epoch, owner);
            taken.leases.push(TakenLease { shard: *shard, epoch: Epoch(row.epoch) });
        }
        taken
    }

    pub(super) fn owner(&self, shard: ShardNo) -> Option<String> {
        let rows = self.rows.lock().unwrap();
        rows.get(&shard).filter(|row| row.until > Instant::now()).map(|row| row.owner.clone())
    }
}

#[async_trait]
impl LeaseStore for Leases {
    async fn shard_count(&self, proposed: u16) -> store::Result<u16> {
        Ok(proposed)
    }

    async fn take(&self, _: Kind, shards: &[ShardNo], owner: &str, ttl: Duration) -> store::Result<Taken> {
        self.takes.fetch_add(1, Ordering::SeqCst);
        self.travel(owner).await?;
        let taken = self.take_now(shards, owner, ttl);
        self.travel(owner).await?;
        Ok(taken)
    }

    async fn renew(
        &self,
        _: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> store::Result<Vec<ShardNo>> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        self.travel(owner).await?;
        let mut rows = self.rows.lock().unwrap();
        let mut kept = Vec::new();
        for lease in held {
            let Some(row) = rows.get_mut(&lease.shard) else { continue };
            if row.owner == owner && row.epoch == lease.epoch.0 {
                row.until = Instant::now() + ttl;
                kept.push(lease.shard);
            }
        }
        Ok(kept)
    }

    async fn release(&self, _: Kind, held: &[TakenLease], owner: &str) -> store::Result<()> {
        self.travel(owner).await?;
        self.largest_release.fetch_max(held.len(), Ordering::SeqCst);
        let mut rows = self.rows.lock().unwrap();
        for lease in held {
            if let Some(row) = rows.get_mut(&lease.shard)
                && row.owner == owner
                && row.epoch == lease.epoch.0
            {
                row.until = Instant::now();
            }
        }
        Ok(())
    }

    async fn leases(&self, _: Kind) -> store::Result<Vec<LeaseRow>> {
        Ok(Vec::new())
    }
}
