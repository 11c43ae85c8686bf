//! Leases in memory, with a database clock that may step.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::SumStore;
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::{self, LeaseMark, LeaseRow, LeaseStore, OthersLease, Refenced, Taken, TakenLease, Wanted};

pub(super) struct Row {
    owner: String,
    epoch: i64,
    until_us: i64,
    ttl: Duration,
    renewed_at: Instant,
}

impl Row {
    fn mark(&self) -> LeaseMark {
        LeaseMark { epoch: Epoch(self.epoch), renewal: self.until_us }
    }

    fn others_lease(&self, shard: ShardNo) -> OthersLease {
        OthersLease { shard, owner: self.owner.clone(), mark: self.mark(), ttl: self.ttl }
    }

    fn prolong(&mut self, now_us: i64, ttl: Duration) {
        (self.until_us, self.ttl) = ((now_us + micros(ttl)).max(self.until_us + 1), ttl);
        self.renewed_at = Instant::now();
    }
}

/// Leases in memory. They fence the commits of `SumStore`.
pub(super) struct Leases {
    pub(super) sums: Arc<SumStore>,
    pub(super) rows: Mutex<HashMap<ShardNo, Row>>,
    /// Owners that cannot reach the database.
    pub(super) cut: Mutex<HashSet<String>>,
    /// The next renewal of this owner hangs for this long.
    pub(super) hang: Mutex<Option<(String, Duration)>>,
    /// The next re-fence is carried out, but its answer is lost.
    pub(super) lose_refence: AtomicBool,
    pub(super) takes: AtomicUsize,
    pub(super) refences: AtomicUsize,
    pub(super) renewals: AtomicUsize,
    pub(super) largest_release: AtomicUsize,
    /// The time since the last renewal, for each lease that was taken without a release.
    pub(super) takeovers: Mutex<Vec<Duration>>,
    pub(super) slow: AtomicBool,
    began: Instant,
    /// How far the database's clock has stepped, in microseconds.
    stepped_us: AtomicI64,
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).expect("short")
}

impl Leases {
    pub(super) fn new(sums: Arc<SumStore>) -> Self {
        Leases {
            sums,
            rows: Mutex::default(),
            cut: Mutex::default(),
            hang: Mutex::default(),
            lose_refence: AtomicBool::new(false),
            takes: AtomicUsize::new(0),
            refences: AtomicUsize::new(0),
            renewals: AtomicUsize::new(0),
            largest_release: AtomicUsize::new(0),
            takeovers: Mutex::default(),
            slow: AtomicBool::new(false),
            began: Instant::now(),
            stepped_us: AtomicI64::new(0),
        }
    }

    async fn travel(&self, owner: &str) -> store::Result<()> {
        if self.slow.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..8_000))).await;
        }
        match self.cut.lock().unwrap().contains(owner) {
            true => Err(store::Error::Unavailable("cut off".into())),
            false => Ok(()),
        }
    }

    /// Returns the time of the database's wall clock.
    fn now_us(&self) -> i64 {
        micros(self.began.elapsed()) + self.stepped_us.load(Ordering::SeqCst)
    }

    /// Steps the database's wall clock by `seconds`.
    pub(super) fn step(&self, seconds: i64) {
        self.stepped_us.fetch_add(seconds * 1_000_000, Ordering::SeqCst);
    }

    fn take_now(&self, wanted: &[Wanted], owner: &str, ttl: Duration) -> Taken {
        let (mut rows, mut taken, now) = (self.rows.lock().unwrap(), Taken::default(), self.now_us());
        for Wanted { shard, lapsed } in wanted {
            let renewed_at = Instant::now();
            let free = Row { owner: owner.into(), epoch: 0, until_us: i64::MIN, ttl, renewed_at };
            let row = rows.entry(*shard).or_insert(free);
            if row.owner != owner && row.until_us != i64::MIN && *lapsed != Some(row.mark()) {
                taken.others.push(row.others_lease(*shard));
                continue;
            }
            if row.owner != owner && row.until_us != i64::MIN {
                self.takeovers.lock().unwrap().push(row.renewed_at.elapsed());
            }
            let (epoch, until_us) = (row.epoch + 1, now + micros(ttl));
            *row = Row { owner: owner.into(), epoch, until_us, ttl, renewed_at };
            self.sums.set_epoch(*shard, row.epoch, owner);
            taken.leases.push(TakenLease { shard: *shard, epoch: Epoch(row.epoch) });
        }
        taken
    }

    pub(super) fn owner(&self, shard: ShardNo) -> Option<String> {
        let rows = self.rows.lock().unwrap();
        rows.get(&shard).filter(|row| row.until_us > self.now_us()).map(|row| row.owner.clone())
    }
}

#[async_trait]
impl LeaseStore for Leases {
    async fn shard_count(&self, proposed: u16) -> store::Result<u16> {
        Ok(proposed)
    }

    async fn take(&self, _: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> store::Result<Taken> {
        self.takes.fetch_add(1, Ordering::SeqCst);
        self.travel(owner).await?;
        let taken = self.take_now(wanted, owner, ttl);
        self.travel(owner).await?;
        Ok(taken)
    }

    async fn refence(
        &self,
        _: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> store::Result<Refenced> {
        self.refences.fetch_add(1, Ordering::SeqCst);
        self.travel(owner).await?;
        let mut refenced = Refenced::default();
        for lease in held {
            let (mut rows, next) = (self.rows.lock().unwrap(), lease.epoch.0 + 1);
            let Some(row) = rows.get_mut(&lease.shard) else { continue };
            if row.owner == owner && (lease.epoch.0..=next).contains(&row.epoch) {
                row.epoch = next;
                row.prolong(self.now_us(), ttl);
                self.sums.set_epoch(lease.shard, next, owner);
                refenced.leases.push(TakenLease { shard: lease.shard, epoch: Epoch(next) });
            }
        }
        match self.lose_refence.swap(false, Ordering::SeqCst) {
            true => Err(store::Error::Unknown("as asked".into())),
            false => Ok(refenced),
        }
    }

    async fn renew(
        &self,
        _: Kind,
        held: &[TakenLease],
        owner: &str,
        ttl: Duration,
    ) -> store::Result<Vec<ShardNo>> {
        self.renewals.fetch_add(1, Ordering::SeqCst);
        let hang = self.hang.lock().unwrap().take_if(|(of, _)| of == owner);
        if let Some((_, lasts)) = hang {
            tokio::time::sleep(lasts).await;
        }
        self.travel(owner).await?;
        let mut rows = self.rows.lock().unwrap();
        let mut kept = Vec::new();
        for lease in held {
            let Some(row) = rows.get_mut(&lease.shard) else { continue };
            if row.owner == owner && row.epoch == lease.epoch.0 {
                row.prolong(self.now_us(), ttl);
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
                row.until_us = i64::MIN;
            }
        }
        Ok(())
    }

    async fn others(&self, _: Kind, owner: &str) -> store::Result<Vec<OthersLease>> {
        self.travel(owner).await?;
        let rows = self.rows.lock().unwrap();
        let others = rows.iter().filter(|(_, row)| row.owner != owner && row.until_us != i64::MIN);
        Ok(others.map(|(shard, row)| row.others_lease(*shard)).collect())
    }

    async fn leases(&self, _: Kind) -> store::Result<Vec<LeaseRow>> {
        Ok(Vec::new())
    }
}
