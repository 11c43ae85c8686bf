//! What a region knows of each of its shards. Plain bookkeeping; the region acts on it.

use std::time::Duration;

use ractor::{ActorId, ActorRef};

use super::HeldLease;
use crate::actors::entity::{Entity, LeaseView};
use crate::actors::restart::{RestartBudget, RestartPolicy};
use crate::actors::shard::ShardMessage;
use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::store::TakenLease;

/// A shard that runs.
pub(super) struct Slot<E: Entity> {
    actor: ActorRef<ShardMessage<E>>,
    lease: HeldLease,
    /// It was told to stop serving and ends what is in flight.
    stopping: bool,
    /// It waits for a new epoch.
    refencing: bool,
}

impl<E: Entity> Slot<E> {
    /// A shard that has just begun to serve.
    pub(super) fn serving(actor: ActorRef<ShardMessage<E>>, lease: HeldLease) -> Self {
        Slot { actor, lease, stopping: false, refencing: false }
    }
}

/// All shards of the kind, by number.
pub(super) struct Slots<E: Entity> {
    slots: Vec<Option<Slot<E>>>,
    budgets: Vec<RestartBudget>,
    /// Shards whose restart is due later than the next tick.
    pausing: Vec<bool>,
    /// Leases of shards that have ended on drain.
    releasable: Vec<TakenLease>,
}

impl<E: Entity> Slots<E> {
    pub(super) fn new(shards: u16, policy: RestartPolicy) -> Self {
        let shards = usize::from(shards);
        Slots {
            slots: (0..shards).map(|_| None).collect(),
            budgets: vec![RestartBudget::new(policy); shards],
            pausing: vec![false; shards],
            releasable: Vec::new(),
        }
    }

    fn slot(&self, shard: ShardNo) -> Option<&Slot<E>> {
        self.slots.get(usize::from(shard)).and_then(Option::as_ref)
    }

    fn slot_mut(&mut self, shard: ShardNo) -> Option<&mut Slot<E>> {
        self.slots.get_mut(usize::from(shard)).and_then(Option::as_mut)
    }

    fn numbered(&self) -> impl Iterator<Item = (ShardNo, Option<&Slot<E>>)> {
        (0..).zip(self.slots.iter().map(Option::as_ref))
    }

    /// The shard's actor, if it serves.
    pub(super) fn actor(&self, shard: ShardNo) -> Option<&ActorRef<ShardMessage<E>>> {
        self.slot(shard).filter(|slot| !slot.stopping).map(|slot| &slot.actor)
    }

    pub(super) fn fill(&mut self, shard: ShardNo, slot: Slot<E>) {
        if let Some(place) = self.slots.get_mut(usize::from(shard)) {
            *place = Some(slot);
        }
    }

    /// The shards whose lease should be taken: those that do not run, and those that need a new epoch.
    pub(super) fn wanted(&self) -> Vec<ShardNo> {
        self.numbered()
            .filter(|(shard, slot)| match slot {
                None => !self.pausing[usize::from(*shard)],
                Some(slot) => slot.refencing,
            })
            .map(|(shard, _)| shard)
            .collect()
    }

    /// The leases to renew.
    pub(super) fn held(&self) -> Vec<TakenLease> {
        self.numbered()
            .filter_map(|(shard, slot)| Some((shard, slot?)))
            .filter(|(_, slot)| !slot.stopping && !slot.refencing)
            .map(|(shard, slot)| TakenLease { shard, epoch: slot.lease.epoch() })
            .collect()
    }

    /// Whether exactly this lease is what the shard runs under, with no new one on its way.
    pub(super) fn has(&self, lease: &TakenLease) -> bool {
        self.slot(lease.shard)
            .is_some_and(|slot| slot.lease.epoch() == lease.epoch && !slot.refencing && !slot.stopping)
    }

    pub(super) fn prolong(&self, shard: ShardNo, until: MonoTime) {
        if let Some(slot) = self.slot(shard) {
            slot.lease.prolong(until);
        }
    }

    /// The shard needs a new epoch.
    pub(super) fn refence(&mut self, shard: ShardNo) {
        if let Some(slot) = self.slot_mut(shard) {
            slot.refencing = true;
        }
    }

    /// The shard may start again as soon as it has a lease, at whichever try.
    pub(super) fn pause_is_over(&mut self, shard: ShardNo) {
        if let Some(pausing) = self.pausing.get_mut(usize::from(shard)) {
            *pausing = false;
        }
    }

    /// The shard has a new lease: the actor to tell, if it runs.
    pub(super) fn refenced(
        &mut self,
        shard: ShardNo,
        lease: &HeldLease,
    ) -> Option<&ActorRef<ShardMessage<E>>> {
        let slot = self.slot_mut(shard)?;
        slot.refencing = false;
        slot.lease = lease.clone();
        Some(&slot.actor)
    }

    /// The shard is to end: its actor, if it served until now.
    pub(super) fn stop(&mut self, shard: ShardNo) -> Option<&ActorRef<ShardMessage<E>>> {
        let slot = self.slot_mut(shard).filter(|slot| !slot.stopping)?;
        slot.stopping = true;
        Some(&slot.actor)
    }

    /// All shards are to end, and their leases to be released after: the actors to tell.
    pub(super) fn stop_all(&mut self) -> Vec<ActorRef<ShardMessage<E>>> {
        self.releasable.extend(self.held());
        let numbers = 0..ShardNo::try_from(self.slots.len()).unwrap_or(ShardNo::MAX);
        numbers.filter_map(|shard| self.stop(shard).cloned()).collect()
    }

    /// An actor has ended: which shard that was.
    pub(super) fn vacate(&mut self, actor: ActorId) -> Option<ShardNo> {
        let index = self.slots.iter().position(|s| s.as_ref().is_some_and(|s| s.actor.get_id() == actor))?;
        self.slots[index] = None;
        ShardNo::try_from(index).ok()
    }

    /// The pause before the shard's restart, or `None` if it failed too often.
    pub(super) fn spend_restart(&mut self, shard: ShardNo, now: MonoTime) -> Option<Duration> {
        let pause = self.budgets[usize::from(shard)].spend(now)?;
        self.pausing[usize::from(shard)] = true;
        Some(pause)
    }

    pub(super) fn is_vacant(&self) -> bool {
        self.slots.iter().all(Option::is_none)
    }

    /// A lease that was taken when the region already drained.
    pub(super) fn remember_for_release(&mut self, lease: TakenLease) {
        self.releasable.push(lease);
    }

    pub(super) fn take_releasable(&mut self) -> Vec<TakenLease> {
        std::mem::take(&mut self.releasable)
    }

    /// How many shards serve under a lease that holds.
    pub(super) fn serving(&self, now: MonoTime) -> u16 {
        let serving = self.slots.iter().flatten().filter(|slot| !slot.stopping && slot.lease.holds(now));
        u16::try_from(serving.count()).unwrap_or(u16::MAX)
    }
}
