//! The route to each shard. Plain bookkeeping without I/O; the directory acts on it.

use std::sync::Arc;

use crate::actors::members::{Member, View};
use crate::domain::cluster::NodeRole;
use crate::domain::ids::{Kind, ShardNo};

/// The destination of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// The region of this node.
    Here,
    /// The live node with the owner name `owner`. If `wanted` is given, that node passes the request on to
    /// `wanted`, which this node cannot reach.
    There { owner: Arc<str>, wanted: Option<Arc<str>> },
    /// Nowhere: no live node has the role.
    Nowhere,
}

/// The routes of one kind, as seen from one node.
pub(super) struct Routes {
    kind: Kind,
    /// Whether this node runs a region of the kind.
    region_here: bool,
    view: Arc<View>,
    /// The placement of each shard, by number.
    placed: Vec<Target>,
    /// The hint for each shard, by number: the owner that the last node asked has named.
    hints: Vec<Option<Arc<str>>>,
}

impl Routes {
    pub(super) fn new(kind: Kind, shards: u16, region_here: bool, view: Arc<View>) -> Self {
        let hints = vec![None; usize::from(shards)];
        let mut routes = Routes { kind, region_here, view, placed: Vec::new(), hints };
        routes.place();
        routes
    }

    /// Applies a new view. Hints that name a node that has left are dropped.
    pub(super) fn changed(&mut self, view: Arc<View>) {
        let before = std::mem::replace(&mut self.view, view);
        let has_left =
            |owner: &str| before.members().iter().any(|m| *m.owner == *owner) && self.member(owner).is_none();
        let stale: Vec<usize> = self
            .hints
            .iter()
            .enumerate()
            .filter(|(_, hint)| hint.as_deref().is_some_and(has_left))
            .map(|(shard, _)| shard)
            .collect();
        for shard in stale {
            self.hints[shard] = None;
        }
        self.place();
    }

    fn place(&mut self) {
        let shards = ShardNo::try_from(self.hints.len()).unwrap_or(ShardNo::MAX);
        self.placed = (0..shards)
            .map(|shard| match self.view.placed(self.kind, shard) {
                Some(member) => self.at(member),
                None if self.region_here => Target::Here,
                None => Target::Nowhere,
            })
            .collect();
    }

    fn at(&self, member: &Member) -> Target {
        match &member.wire {
            Some(_) => Target::There { owner: Arc::clone(&member.owner), wanted: None },
            None if self.region_here => Target::Here,
            None => Target::Nowhere,
        }
    }

    fn member(&self, owner: &str) -> Option<&Member> {
        self.view.members().iter().find(|member| *member.owner == *owner)
    }

    /// Records that the node asked for `shard` does not serve it. The hint becomes the named owner. It is
    /// cleared if no owner is named, or if the named owner is the current hint.
    pub(super) fn moved(&mut self, shard: ShardNo, owner: Option<Arc<str>>) {
        if let Some(hint) = self.hints.get_mut(usize::from(shard)) {
            *hint = owner.filter(|owner| hint.as_ref() != Some(owner));
        }
    }

    /// Records that `owner` serves `shard`.
    pub(super) fn found(&mut self, shard: ShardNo, owner: Arc<str>) {
        if let Some(hint) = self.hints.get_mut(usize::from(shard)) {
            *hint = Some(owner);
        }
    }

    /// Returns where to send a request for `shard`.
    pub(super) fn target(&self, shard: ShardNo) -> Target {
        let placed = || self.placed.get(usize::from(shard)).cloned().unwrap_or(Target::Nowhere);
        let Some(hint) = self.hints.get(usize::from(shard)).and_then(Option::as_ref) else { return placed() };
        match self.member(hint).map(|member| self.at(member)) {
            Some(Target::Nowhere) => placed(),
            Some(target) => target,
            // This node cannot reach the owner, but another node may. A node with the role is preferred,
            // because it may have taken the shard in the meantime.
            None => match self.go_between() {
                Some(node) => {
                    Target::There { owner: Arc::clone(&node.owner), wanted: Some(Arc::clone(hint)) }
                }
                None => placed(),
            },
        }
    }

    fn go_between(&self) -> Option<&Member> {
        let role = NodeRole::serving(self.kind);
        let away = |member: &&Member| member.wire.is_some();
        pick(self.view.with_role(role).filter(away)).or_else(|| pick(self.view.members().iter().filter(away)))
    }

    /// Returns where to send a request that any region of the kind can answer.
    pub(super) fn any(&self) -> Target {
        if self.region_here {
            return Target::Here;
        }
        let serving = || self.view.with_role(NodeRole::serving(self.kind)).filter(|m| m.wire.is_some());
        pick(serving().filter(|member| !member.draining))
            .or_else(|| pick(serving()))
            .map_or(Target::Nowhere, |member| self.at(member))
    }
}

/// Picks one node at random, so that a retry usually reaches another node.
fn pick<'a>(members: impl Iterator<Item = &'a Member>) -> Option<&'a Member> {
    let members: Vec<_> = members.collect();
    (!members.is_empty()).then(|| members[fastrand::usize(..members.len())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, roles: &[NodeRole]) -> Member {
        let wire = (name != "me").then(crate::actors::members::Wire::nowhere);
        let owner = format!("{name}#1").into();
        Member { name: name.into(), owner, roles: roles.iter().copied().collect(), draining: false, wire }
    }

    fn view(others: &[&str]) -> Arc<View> {
        let mut members: Vec<_> = others.iter().map(|name| member(name, &[NodeRole::Patient])).collect();
        members.push(member("me", &[NodeRole::Front]));
        Arc::new(View::new("me".into(), members))
    }

    fn there(owner: &str) -> Target {
        Target::There { owner: owner.into(), wanted: None }
    }

    #[test]
    fn a_hint_is_followed_until_it_proves_wrong_or_the_node_leaves() {
        let mut routes = Routes::new(Kind::Patient, 4, false, view(&["p1", "p2"]));
        let Target::There { owner: placed, .. } = routes.target(0) else { panic!("placed somewhere") };
        let other: Arc<str> = if *placed == *"p1#1" { "p2#1".into() } else { "p1#1".into() };
        routes.moved(0, Some(Arc::clone(&other)));
        assert_eq!(routes.target(0), there(&other));
        routes.moved(0, None);
        assert_eq!(routes.target(0), there(&placed));
        // A node that names an owner a second time, although the owner did not serve the shard, is not
        // believed again.
        routes.moved(0, Some(Arc::clone(&other)));
        routes.moved(0, Some(Arc::clone(&other)));
        assert_eq!(routes.target(0), there(&placed));

        routes.moved(0, Some(Arc::clone(&other)));
        let stays = if *placed == *"p1#1" { "p1" } else { "p2" };
        routes.changed(view(&[stays]));
        assert_eq!(routes.target(0), there(&placed));
        assert!(routes.hints.iter().all(Option::is_none));
    }

    #[test]
    fn an_owner_out_of_sight_is_asked_for_through_another_node() {
        let mut routes = Routes::new(Kind::Patient, 4, false, view(&["p1"]));
        routes.moved(0, Some("p9#1".into()));
        let wanted = Some("p9#1".into());
        assert_eq!(routes.target(0), Target::There { owner: "p1#1".into(), wanted });
        routes.changed(view(&[]));
        assert_eq!(routes.target(0), Target::Nowhere);
        routes.changed(view(&["p9"]));
        assert_eq!(routes.target(0), there("p9#1"));
    }

    #[test]
    fn a_node_that_is_about_to_leave_is_asked_only_if_there_is_no_other() {
        let draining = |name| Member { draining: true, ..member(name, &[NodeRole::Patient]) };
        let with = |others: Vec<Member>| {
            let all = others.into_iter().chain([member("me", &[NodeRole::Front])]).collect();
            Routes::new(Kind::Patient, 4, false, Arc::new(View::new("me".into(), all)))
        };
        let both = with(vec![draining("p1"), member("p2", &[NodeRole::Patient])]);
        for _ in 0..20 {
            assert_eq!((both.any(), both.target(1)), (there("p2#1"), there("p2#1")));
        }
        let last = with(vec![draining("p1")]);
        assert_eq!((last.any(), last.target(1)), (there("p1#1"), there("p1#1")));
    }

    #[test]
    fn without_a_node_of_the_role_there_is_nowhere_to_go() {
        let routes = Routes::new(Kind::Billing, 4, false, view(&["p1"]));
        assert_eq!((routes.target(0), routes.any()), (Target::Nowhere, Target::Nowhere));
        let mut routes = Routes::new(Kind::Patient, 4, true, view(&[]));
        assert_eq!((routes.target(3), routes.any()), (Target::Here, Target::Here));
        routes.moved(3, Some("me#1".into()));
        assert_eq!(routes.target(3), Target::Here);
    }
}
