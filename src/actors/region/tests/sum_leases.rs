//! Leases that never expire, in the store of the sums.

use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use super::SumStore;
use crate::domain::ids::{Epoch, Kind, ShardNo};
use crate::store::{self, LeaseMark, LeaseRow, LeaseStore, OthersLease, Refenced, Taken, TakenLease, Wanted};

#[async_trait]
impl LeaseStore for SumStore {
    async fn shard_count(&self, proposed: u16) -> store::Result<u16> {
        Ok(proposed)
    }

    async fn take(&self, _kind: Kind, wanted: &[Wanted], owner: &str, ttl: Duration) -> store::Result<Taken> {
        if self.hang_taking.swap(false, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        if self.refuse_leases.load(Ordering::SeqCst) {
            self.leases_refused.fetch_add(1, Ordering::SeqCst);
            return Err(store::Error::Unavailable("as asked".into()));
        }
        let mut epochs = self.epochs.lock().unwrap();
        let mut taken = Taken::default();
        for Wanted { shard, .. } in wanted {
            let row = epochs.entry(*shard).or_insert((0, owner.to_owned()));
            if row.1 == owner {
                row.0 += 1;
                taken.leases.push(TakenLease { shard: *shard, epoch: Epoch(row.0) });
            } else {
                let mark = LeaseMark { epoch: Epoch(row.0), renewal: 0 };
                taken.others.push(OthersLease { shard: *shard, owner: row.1.clone(), mark, ttl });
            }
        }
        Ok(taken)
    }

    async fn refence(
        &self,
        _kind: Kind,
        held: &[TakenLease],
        owner: &str,
        _ttl: Duration,
    ) -> store::Result<Refenced> {
        let mut epochs = self.epochs.lock().unwrap();
        let mut refenced = Refenced::default();
        for TakenLease { shard, epoch } in held {
            let row = epochs.get_mut(shard).filter(|row| row.1 == owner && row.0 == epoch.0);
            if let Some(row) = row {
                row.0 += 1;
                refenced.leases.push(TakenLease { shard: *shard, epoch: Epoch(row.0) });
            }
        }
        Ok(refenced)
    }

    async fn renew(
        &self,
        _kind: Kind,
        held: &[TakenLease],
        owner: &str,
        _ttl: Duration,
    ) -> store::Result<Vec<ShardNo>> {
        if self.hang_renewal.swap(false, Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
        let epochs = self.epochs.lock().unwrap();
        let is_held = |lease: &&TakenLease| {
            epochs.get(&lease.shard).is_some_and(|(epoch, by)| *epoch == lease.epoch.0 && by == owner)
        };
        Ok(held.iter().filter(is_held).map(|lease| lease.shard).collect())
    }

    async fn release(&self, _kind: Kind, held: &[TakenLease], _owner: &str) -> store::Result<()> {
        let mut epochs = self.epochs.lock().unwrap();
        held.iter().for_each(|lease| drop(epochs.remove(&lease.shard)));
        Ok(())
    }

    async fn others(&self, _kind: Kind, _owner: &str) -> store::Result<Vec<OthersLease>> {
        Ok(Vec::new())
    }

    async fn leases(&self, _kind: Kind) -> store::Result<Vec<LeaseRow>> {
        Ok(Vec::new())
    }
}
