//! The region's bookkeeping for each of its shards, without I/O. The region acts on it.
//!
//! The normal life of a shard here: wanted, serving, stopping, then its lease is releasing, then absent. A
//! shard is given up when it belongs elsewhere, and may come back at any of these points.

use std::sync::Arc;
use std::time::Duration;

use ractor::{ActorId, ActorRef};

use super::HeldLease;
use super::status::{ShardState, ShardStatus};
use crate::actors::entity::{Entity, LeaseView};
use crate::actors::restart::{RestartBudget, RestartPolicy};
use crate::actors::shard::ShardMessage;
use crate::domain::ids::ShardNo;
use crate::domain::time::MonoTime;
use crate::store::{OthersLease, TakenLease};

/// Where a shard should be served, as seen from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Belongs {
    /// Here: the lease is taken and kept.
    Here,
    /// Here, because no other node can take it, although this node is draining. A held lease is kept, but no
    /// lease is taken.
    HereStill,
    /// On the node of that name, or on none. The shard is given up.
    Away(Option<Arc<str>>),
}

/// A running shard.
struct Slot<E: Entity> {
    actor: ActorRef<ShardMessage<E>>,
    held: HeldLease,
    /// The shard was told to stop serving, and finishes what is in flight.
    stopping: bool,
    /// The shard waits for a new epoch.
    refencing: bool,
}

impl<E: Entity> Slot<E> {
    /// Returns the lease that the shard runs under.
    fn lease(&self, shard: ShardNo) -> TakenLease {
        TakenLease { shard, epoch: self.held.epoch() }
    }
}

struct Place<E: Entity> {
    belongs: Belongs,
    slot: Option<Slot<E>>,
    /// The lease that this node owns, as far as is known, whether or not the shard runs.
    lease: Option<TakenLease>,
    /// The store is being asked for the lease, or for its next epoch.
    asking: bool,
    /// The lease is being released.
    releasing: bool,
    /// The shard failed and restarts later.
    pausing: bool,
    /// The owner found when the lease was last asked for in vain.
    other: Option<Arc<str>>,
    budget: RestartBudget,
}

impl<E: Entity> Place<E> {
    fn is_wanted(&self) -> bool {
        let free = self.slot.is_none() && !self.asking && !self.releasing && !self.pausing;
        free && self.belongs == Belongs::Here
    }

    fn is_away(&self) -> bool {
        matches!(self.belongs, Belongs::Away(_))
    }

    /// Returns whether another node waits for this shard and cannot serve it yet.
    fn is_in_transit(&self) -> bool {
        let ending = self.slot.as_ref().is_none_or(|slot| slot.stopping);
        matches!(self.belongs, Belongs::Away(Some(_))) && ending && self.lease.is_some()
    }

    fn serves(&self, now: MonoTime) -> bool {
        self.slot.as_ref().is_some_and(|slot| !slot.stopping && slot.held.holds(now))
    }
}

/// The number of shards in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    /// Served under a lease that holds, wherever the shard belongs.
    pub(super) serving: u16,
    /// Shards that belong here.
    pub(super) placed: u16,
    /// Shards that belong here and are served.
    pub(super) placed_serving: u16,
    /// Shards that belong here, are not served, and were found to be held by others.
    pub(super) awaited: u16,
}

/// All shards of the kind, indexed by number.
pub(super) struct Slots<E: Entity> {
    places: Vec<Place<E>>,
}

impl<E: Entity> Slots<E> {
    /// Creates the bookkeeping of `shards` shards, none of which belongs here yet.
    pub(super) fn new(shards: u16, policy: RestartPolicy) -> Self {
        let place = || Place {
            belongs: Belongs::Away(None),
            slot: None,
            lease: None,
            asking: false,
            releasing: false,
            pausing: false,
            other: None,
            budget: RestartBudget::new(policy),
        };
        Slots { places: (0..shards).map(|_| place()).collect() }
    }

    fn place(&self, shard: ShardNo) -> Option<&Place<E>> {
        self.places.get(usize::from(shard))
    }

    fn place_mut(&mut self, shard: ShardNo) -> Option<&mut Place<E>> {
        self.places.get_mut(usize::from(shard))
    }

    fn numbered(&self) -> impl Iterator<Item = (ShardNo, &Place<E>)> {
        (0..).zip(&self.places)
    }

    fn numbered_mut(&mut self) -> impl Iterator<Item = (ShardNo, &mut Place<E>)> {
        (0..).zip(&mut self.places)
    }

    /// Sets where each shard belongs.
    pub(super) fn place_all(&mut self, belongs: impl Fn(ShardNo) -> Belongs) {
        for (shard, place) in self.numbered_mut() {
            place.belongs = belongs(shard);
        }
    }

    /// Returns the shard's actor, if it serves.
    pub(super) fn actor(&self, shard: ShardNo) -> Option<&ActorRef<ShardMessage<E>>> {
        let slot = self.place(shard)?.slot.as_ref()?;
        (!slot.stopping).then_some(&slot.actor)
    }

    /// Returns where the shard should be asked for instead: the name of a node if the shard belongs
    /// elsewhere, otherwise the owner that was found to hold its lease.
    pub(super) fn elsewhere(&self, shard: ShardNo) -> Option<Elsewhere<'_>> {
        let place = self.place(shard)?;
        match &place.belongs {
            Belongs::Away(next) => next.as_ref().map(Elsewhere::Node),
            Belongs::Here | Belongs::HereStill => place.other.as_ref().map(Elsewhere::Owner),
        }
    }

    /// Returns the shards whose lease should be taken: those that belong here and do not run.
    pub(super) fn wanted(&self) -> Vec<ShardNo> {
        self.numbered().filter(|(_, place)| place.is_wanted()).map(|(shard, _)| shard).collect()
    }

    /// Returns whether the shard's lease should be taken.
    pub(super) fn is_wanted(&self, shard: ShardNo) -> bool {
        self.place(shard).is_some_and(Place::is_wanted)
    }

    /// Records that the store is being asked for these shards.
    pub(super) fn asking(&mut self, shards: impl IntoIterator<Item = ShardNo>) {
        self.set_asking(shards, true);
    }

    /// Records that the store has answered for these shards, or will not answer.
    pub(super) fn asked(&mut self, shards: impl IntoIterator<Item = ShardNo>) {
        self.set_asking(shards, false);
    }

    fn set_asking(&mut self, shards: impl IntoIterator<Item = ShardNo>, asking: bool) {
        for shard in shards {
            if let Some(place) = self.place_mut(shard) {
                place.asking = asking;
            }
        }
    }

    /// Records that this node owns the lease. Returns whether its shard should be started. If the shard no
    /// longer belongs here, the lease is released. If the shard still runs, the lease is taken again after it
    /// has ended.
    pub(super) fn took(&mut self, lease: TakenLease) -> bool {
        let Some(place) = self.place_mut(lease.shard) else { return false };
        place.lease = Some(lease);
        place.other = None;
        place.is_wanted()
    }

    /// Returns the leases whose shards need a new epoch and for which the store is not being asked yet.
    pub(super) fn to_refence(&self) -> Vec<TakenLease> {
        let asking = |shard: ShardNo| self.place(shard).is_some_and(|place| place.asking);
        let due = self.running().filter(|(shard, slot)| slot.refencing && !asking(*shard));
        due.map(|(shard, slot)| slot.lease(shard)).collect()
    }

    /// Records that the lease is held under its next epoch. Returns the actor to notify, if it serves.
    pub(super) fn refenced(
        &mut self,
        lease: TakenLease,
        held: &HeldLease,
    ) -> Option<&ActorRef<ShardMessage<E>>> {
        let place = self.place_mut(lease.shard)?;
        place.lease = Some(lease);
        let slot = place.slot.as_mut().filter(|slot| !slot.stopping)?;
        slot.refencing = false;
        slot.held = held.clone();
        Some(&slot.actor)
    }

    /// Records the owners of leases that others hold.
    pub(super) fn note_others(&mut self, others: &[OthersLease]) {
        for other in others {
            if let Some(place) = self.place_mut(other.shard) {
                place.other = Some(other.owner.as_str().into());
            }
        }
    }

    /// Records that the shard serves under `held`.
    pub(super) fn fill(&mut self, shard: ShardNo, actor: ActorRef<ShardMessage<E>>, held: HeldLease) {
        if let Some(place) = self.place_mut(shard) {
            place.slot = Some(Slot { actor, held, stopping: false, refencing: false });
        }
    }

    /// Returns the shards that serve.
    fn running(&self) -> impl Iterator<Item = (ShardNo, &Slot<E>)> {
        let slots = self.numbered().filter_map(|(shard, place)| Some((shard, place.slot.as_ref()?)));
        slots.filter(|(_, slot)| !slot.stopping)
    }

    /// Returns the leases to renew.
    pub(super) fn held(&self) -> Vec<TakenLease> {
        self.running().map(|(shard, slot)| slot.lease(shard)).collect()
    }

    /// Records a renewal, which proves that no other owner has had the lease. The shard may rely on it until
    /// `until`, if it still runs under this lease.
    pub(super) fn prolong(&self, lease: &TakenLease, until: MonoTime) {
        if let Some(slot) = self.serving_under(lease) {
            slot.held.prolong(until);
        }
    }

    /// Returns whether a lease that could not be renewed is lost. If a new epoch is being asked for, the row
    /// may already carry it; then the answer to that statement decides.
    pub(super) fn is_lost(&self, lease: &TakenLease) -> bool {
        self.serving_under(lease).is_some_and(|slot| !slot.refencing)
    }

    fn serving_under(&self, lease: &TakenLease) -> Option<&Slot<E>> {
        let slot = self.place(lease.shard)?.slot.as_ref()?;
        (!slot.stopping && slot.held.epoch() == lease.epoch).then_some(slot)
    }

    /// Records that the shard needs a new epoch.
    pub(super) fn refence(&mut self, shard: ShardNo) {
        if let Some(slot) = self.place_mut(shard).and_then(|place| place.slot.as_mut()) {
            slot.refencing = true;
        }
    }

    /// Allows the shard to start again with the next lease that is taken.
    pub(super) fn pause_is_over(&mut self, shard: ShardNo) {
        if let Some(place) = self.place_mut(shard) {
            place.pausing = false;
        }
    }

    /// Records that another owner has the lease, or may have it. Returns the actor to notify, if it served
    /// until now.
    pub(super) fn lose(&mut self, shard: ShardNo) -> Option<&ActorRef<ShardMessage<E>>> {
        let place = self.place_mut(shard)?;
        place.lease = None;
        let slot = place.slot.as_mut().filter(|slot| !slot.stopping)?;
        slot.stopping = true;
        Some(&slot.actor)
    }

    /// Marks shards that serve but belong elsewhere as stopping, and returns them. At most `transit_max`
    /// shards for which another node waits are in transit at a time. Shards for which no node waits stop at
    /// once.
    pub(super) fn begin_moves(&mut self, transit_max: usize) -> Vec<(ShardNo, ActorRef<ShardMessage<E>>)> {
        let mut free = transit_max.saturating_sub(self.places.iter().filter(|p| p.is_in_transit()).count());
        let mut moves = Vec::new();
        for (shard, place) in self.numbered_mut() {
            let awaited = match &place.belongs {
                Belongs::Away(next) => next.is_some(),
                Belongs::Here | Belongs::HereStill => continue,
            };
            let Some(slot) = place.slot.as_mut().filter(|slot| !slot.stopping) else { continue };
            if awaited && free == 0 {
                continue;
            }
            free -= usize::from(awaited);
            slot.stopping = true;
            moves.push((shard, slot.actor.clone()));
        }
        moves
    }

    /// Marks the leases of ended shards that belong elsewhere as being released, and returns them.
    pub(super) fn begin_releases(&mut self) -> Vec<TakenLease> {
        let mut leases = Vec::new();
        for place in &mut self.places {
            let ended = place.is_away() && place.slot.is_none() && !place.asking && !place.releasing;
            if let Some(lease) = place.lease.filter(|_| ended) {
                place.releasing = true;
                leases.push(lease);
            }
        }
        leases
    }

    /// Records that these leases were released, or that nothing more can be done to release them.
    pub(super) fn released(&mut self, leases: &[TakenLease]) {
        for lease in leases {
            if let Some(place) = self.place_mut(lease.shard) {
                place.releasing = false;
                place.lease = None;
            }
        }
    }

    /// Removes an actor that has ended, and returns its shard.
    pub(super) fn vacate(&mut self, actor: ActorId) -> Option<ShardNo> {
        let (shard, place) = self
            .numbered_mut()
            .find(|(_, place)| place.slot.as_ref().is_some_and(|slot| slot.actor.get_id() == actor))?;
        place.slot = None;
        Some(shard)
    }

    /// Records a failure of the shard. Returns the pause before its restart, or `None` if it failed too
    /// often.
    pub(super) fn spend_restart(&mut self, shard: ShardNo, now: MonoTime) -> Option<Duration> {
        let place = self.place_mut(shard)?;
        let pause = place.budget.spend(now)?;
        place.pausing = true;
        Some(pause)
    }

    /// Returns whether all shards of the kind run here, so that no other node holds a lease.
    pub(super) fn has_all(&self) -> bool {
        self.places.iter().all(|place| place.slot.is_some())
    }

    /// Returns whether nothing runs, nothing is held, and nothing is being taken or released.
    pub(super) fn is_clear(&self) -> bool {
        let clear = |p: &Place<E>| p.slot.is_none() && p.lease.is_none() && !p.asking && !p.releasing;
        self.places.iter().all(clear)
    }

    /// Counts the shards in each state.
    pub(super) fn tally(&self, now: MonoTime) -> Tally {
        let mut tally = Tally::default();
        for place in &self.places {
            let serves = place.serves(now);
            tally.serving += u16::from(serves);
            if !place.is_away() {
                tally.placed += 1;
                tally.placed_serving += u16::from(serves);
                tally.awaited += u16::from(!serves && place.slot.is_none() && place.other.is_some());
            }
        }
        tally
    }

    /// Returns the status of each shard that is held, wanted, or being given up.
    pub(super) fn status(&self, now: MonoTime) -> Vec<ShardStatus> {
        let status = |(shard, place): (ShardNo, &Place<E>)| {
            let state = match &place.slot {
                Some(slot) if slot.stopping => ShardState::GivingUp,
                Some(_) if place.serves(now) => ShardState::Serving,
                Some(_) => ShardState::Lapsed,
                None if place.lease.is_some() && place.is_away() => ShardState::GivingUp,
                None if place.belongs == Belongs::Here => ShardState::Waiting,
                None => return None,
            };
            let epoch = place.slot.as_ref().map(|slot| slot.held.epoch()).or(place.lease.map(|l| l.epoch));
            let other = match &place.belongs {
                Belongs::Away(next) => next.clone(),
                Belongs::Here | Belongs::HereStill => place.other.clone().filter(|_| place.slot.is_none()),
            };
            Some(ShardStatus { shard, state, epoch, other })
        };
        self.numbered().filter_map(status).collect()
    }
}

/// Where a shard should be asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Elsewhere<'a> {
    /// A node, by name.
    Node(&'a Arc<str>),
    /// An owner: `node-name#boot-id`.
    Owner(&'a Arc<str>),
}
