//! The dial schedule: which nodes this node dials, and when. Of two listed nodes, the one with the lower name
//! dials. A node that is not listed dials every node that it learns of. A node that has had no session for
//! `silence_max` dials every node, whatever its name.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::super::background::Backoff;
use super::NodeAddress;
use crate::domain::time::MonoTime;

/// How long an address learned from peers is kept after it was last mentioned.
const HEARD_KEPT: Duration = Duration::from_secs(600);

/// An address to dial.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) address: String,
    /// The node expected at the address; `None` for a seed that has not answered.
    pub(super) name: Option<Arc<str>>,
    kind: Kind,
    failures: u32,
    next_at: MonoTime,
    busy: bool,
    /// The last logged failure. The same failure is not logged again.
    told: Option<&'static str>,
    /// Since when there has been no session with the node.
    missing_since: Option<MonoTime>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// From the configuration.
    Listed,
    /// From `--join`: any node of the cluster may answer.
    Seed,
    /// Learned from a peer.
    Heard { listed: bool, at: MonoTime },
}

/// All targets, by number.
pub(super) struct Targets {
    me: Arc<str>,
    me_listed: bool,
    targets: BTreeMap<u64, Target>,
    last: u64,
    heard_max: usize,
    pause: Backoff,
    /// How long to wait for the other node when it should dial.
    patience: Duration,
}

/// A target to dial now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) target: u64,
    pub(super) address: String,
    /// The only node that may answer; `None` if any node may.
    pub(super) expected: Option<Arc<str>>,
}

impl Targets {
    pub(super) fn new(
        me: Arc<str>,
        nodes: &[NodeAddress],
        join: &[String],
        heard_max: usize,
        pause: Backoff,
        patience: Duration,
    ) -> Self {
        let me_listed = nodes.iter().any(|node| node.name == me);
        let mut targets =
            Targets { me, me_listed, targets: BTreeMap::new(), last: 0, heard_max, pause, patience };
        for node in nodes {
            if node.name != targets.me {
                targets.add(node.address.clone(), Some(Arc::clone(&node.name)), Kind::Listed);
            }
        }
        for address in join {
            targets.add(address.clone(), None, Kind::Seed);
        }
        targets
    }

    fn add(&mut self, address: String, name: Option<Arc<str>>, kind: Kind) {
        self.last += 1;
        let target = Target {
            address,
            name,
            kind,
            failures: 0,
            next_at: MonoTime(0),
            busy: false,
            told: None,
            missing_since: None,
        };
        self.targets.insert(self.last, target);
    }

    /// Returns whether a node is in the configuration.
    pub(super) fn is_listed(&self, name: &str) -> bool {
        let listed = |target: &Target| target.kind == Kind::Listed && target.name.as_deref() == Some(name);
        (self.me_listed && name == &*self.me) || self.targets.values().any(listed)
    }

    /// Records that a peer has mentioned `name` at `address`. `listed`: whether the node is in the peer's
    /// configuration.
    pub(super) fn heard(&mut self, name: &str, address: &str, listed: bool, now: MonoTime) {
        if name == &*self.me || self.is_listed(name) {
            return;
        }
        let heard = |t: &&mut Target| matches!(t.kind, Kind::Heard { .. }) && t.name.as_deref() == Some(name);
        if let Some(target) = self.targets.values_mut().find(heard) {
            if target.address != address {
                address.clone_into(&mut target.address);
                target.failures = 0;
                target.next_at = now;
            }
            target.kind = Kind::Heard { listed, at: now };
            return;
        }
        let heard = self.targets.values().filter(|t| matches!(t.kind, Kind::Heard { .. })).count();
        if heard < self.heard_max {
            self.add(address.to_owned(), Some(name.into()), Kind::Heard { listed, at: now });
        }
    }

    /// Returns the targets to dial at `now`. Each counts as being dialled until `reached`, `failed` or
    /// `is_self` is called. `connected` returns whether there is a session with a node; `lonely` means that
    /// there is none at all.
    pub(super) fn due(&mut self, now: MonoTime, lonely: bool, connected: impl Fn(&str) -> bool) -> Vec<Due> {
        self.targets.retain(|_, target| match target.kind {
            Kind::Heard { at, .. } => target.busy || now.since(at) < HEARD_KEPT,
            _ => true,
        });
        let (me, me_listed) = (Arc::clone(&self.me), self.me_listed);
        for target in self.targets.values_mut() {
            match &target.name {
                Some(name) if !connected(name) => drop(target.missing_since.get_or_insert(now)),
                _ => target.missing_since = None,
            }
        }
        let patience = self.patience;
        let ours_to_dial = |target: &Target| match (&target.name, target.kind) {
            (None, _) => true,
            (Some(name), _) if *name == me || connected(name) => false,
            (Some(_), Kind::Seed) => true,
            (Some(name), kind) => {
                let listed = !matches!(kind, Kind::Heard { listed: false, .. });
                // Each node may expect the other to dial, for example when their lists differ.
                let waited = target.missing_since.is_some_and(|since| now.since(since) >= patience);
                lonely || waited || if me_listed == listed { me < *name } else { listed }
            }
        };
        let mut due = Vec::new();
        for (&id, target) in &mut self.targets {
            if !target.busy && now >= target.next_at && ours_to_dial(target) {
                target.busy = true;
                let expected = target.name.clone().filter(|_| target.kind != Kind::Seed);
                due.push(Due { target: id, address: target.address.clone(), expected });
            }
        }
        due
    }

    /// Records that `name` answers at the target.
    pub(super) fn answered(&mut self, id: u64, name: &Arc<str>) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.name = Some(Arc::clone(name));
        }
    }

    /// Records a successful connection.
    pub(super) fn reached(&mut self, id: u64, now: MonoTime) {
        if let Some(target) = self.targets.get_mut(&id) {
            target.busy = false;
            target.failures = 0;
            // If the session ends soon, the next attempt is not immediate.
            target.next_at = now.plus(self.pause.pause(1));
            target.told = None;
        }
    }

    /// Records a failure with the reason `label`. Returns whether to log it, which is once per reason.
    pub(super) fn failed(&mut self, id: u64, label: &'static str, now: MonoTime) -> bool {
        let Some(target) = self.targets.get_mut(&id) else { return false };
        target.busy = false;
        target.failures = target.failures.saturating_add(1);
        target.next_at = now.plus(self.pause.pause(target.failures));
        target.told.replace(label) != Some(label)
    }

    /// Removes a seed that turned out to be this node itself.
    pub(super) fn is_self(&mut self, id: u64) {
        self.targets.remove(&id);
    }

    /// Returns the targets without a session, with their consecutive failures.
    pub(super) fn unconnected(
        &self,
        connected: impl Fn(&str) -> bool,
    ) -> impl Iterator<Item = (Option<Arc<str>>, &str, u32)> {
        self.targets
            .values()
            .filter(move |target| target.name.as_ref().is_none_or(|name| !connected(name)))
            .map(|target| (target.name.clone(), &*target.address, target.failures))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn targets(me: &str, listed: &[&str], join: &[&str]) -> Targets {
        let nodes: Vec<_> = listed
            .iter()
            .map(|name| NodeAddress { name: (*name).into(), address: format!("{name}:1") })
            .collect();
        let join: Vec<_> = join.iter().map(|&address| address.to_owned()).collect();
        let pause = Backoff { min: Duration::from_millis(100), max: Duration::from_secs(1) };
        Targets::new(me.into(), &nodes, &join, 2, pause, Duration::from_secs(3))
    }

    fn dialled(targets: &mut Targets, at: u64, lonely: bool, connected: &[&str]) -> Vec<String> {
        let due = targets.due(MonoTime(at), lonely, |name| connected.contains(&name));
        due.into_iter().map(|due| due.address).collect()
    }

    #[test]
    fn of_a_list_the_lower_name_dials_and_who_sees_nobody_dials_all() {
        let mut of_b = targets("b", &["a", "b", "c"], &[]);
        assert_eq!(dialled(&mut of_b, 0, false, &[]), ["c:1"]);
        assert!(dialled(&mut of_b, 0, false, &[]).is_empty(), "once at a time");
        assert_eq!(dialled(&mut of_b, 0, true, &[]), ["a:1"]);
        assert!(dialled(&mut targets("b", &["a", "b", "c"], &[]), 0, false, &["c"]).is_empty());
    }

    #[test]
    fn who_waits_in_vain_to_be_dialled_dials() {
        let mut of_b = targets("b", &["a", "b"], &[]);
        of_b.heard("0", "0:1", false, MonoTime(0));
        assert!(dialled(&mut of_b, 0, false, &["0"]).is_empty(), "it is the other's turn");
        assert!(dialled(&mut of_b, 2 * SECOND, false, &["0", "a"]).is_empty());
        assert!(dialled(&mut of_b, 4 * SECOND, false, &["0"]).is_empty(), "missing since just now");
        assert_eq!(dialled(&mut of_b, 7 * SECOND, false, &["0"]), ["a:1"]);
    }

    #[test]
    fn who_is_not_listed_dials_seeds_and_all_it_hears_of() {
        let mut of_j = targets("j", &[], &["s:1"]);
        of_j.heard("k", "k:1", false, MonoTime(0));
        of_j.heard("a", "a:1", true, MonoTime(0));
        of_j.heard("b", "b:1", true, MonoTime(0));
        assert_eq!(dialled(&mut of_j, 0, false, &[]), ["s:1", "k:1", "a:1"], "no more than heard_max");
        assert!(of_j.failed(1, "connected", MonoTime(0)));
        of_j.answered(1, &"s".into());
        assert_eq!(dialled(&mut of_j, SECOND, false, &["s"]), [""; 0], "it has dialled us meanwhile");
        assert_eq!(dialled(&mut of_j, SECOND, false, &[]), ["s:1"]);
        let mut of_a = targets("a", &["a", "z"], &[]);
        of_a.heard("j", "j:1", false, MonoTime(0));
        assert_eq!(dialled(&mut of_a, 0, false, &["z"]), [""; 0], "it dials us");
        let later = HEARD_KEPT.as_nanos() as u64;
        assert_eq!(dialled(&mut of_a, later - 1, true, &["z"]), ["j:1"]);
    }

    #[test]
    fn failures_pause_longer_and_are_told_once() {
        let mut of_a = targets("a", &["a", "b"], &[]);
        let id = of_a.due(MonoTime(0), false, |_| false)[0].target;
        assert!(of_a.failed(id, "broken", MonoTime(0)));
        assert!(dialled(&mut of_a, SECOND / 25, false, &[]).is_empty());
        assert_eq!(dialled(&mut of_a, SECOND / 10, false, &[]).len(), 1);
        assert!(!of_a.failed(id, "broken", MonoTime(0)));
        assert!(of_a.failed(id, "wrong_secret", MonoTime(0)));
        assert_eq!(dialled(&mut of_a, SECOND, false, &[]).len(), 1);
        of_a.reached(id, MonoTime(SECOND));
        assert!(of_a.failed(id, "wrong_secret", MonoTime(SECOND)), "told again after a success");
    }
}
