//! The nodes of the cluster as this node sees them: their names, their roles, and the wire to each. `Peers`
//! publishes a new view whenever something changes; all other parts only read it.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::cluster::{NodeRole, placed_on};
use crate::domain::ids::{Kind, ShardNo};

/// The way to one incarnation of a peer, over one session. Cloning is cheap; all clones belong to the same
/// session.
#[derive(Clone)]
pub struct Wire(Arc<Line>);

struct Line {
    take: Box<dyn Fn(Vec<u8>) -> bool + Send + Sync>,
    ended: CancellationToken,
}

impl Wire {
    /// Creates the wire of a session that lasts until `ended` is cancelled. `take` returns whether it
    /// accepted the frame.
    pub fn new(ended: CancellationToken, take: impl Fn(Vec<u8>) -> bool + Send + Sync + 'static) -> Self {
        Wire(Arc::new(Line { take: Box::new(take), ended }))
    }

    /// Hands a frame to the session. Returns false if the session has ended. A frame that was accepted may
    /// still be lost. The wire does not bound the frames in transit; the sender must.
    pub fn send(&self, frame: Vec<u8>) -> bool {
        !self.has_ended() && (self.0.take)(frame)
    }

    /// Returns whether the session has ended on this side. The peer may not know yet.
    pub fn has_ended(&self) -> bool {
        self.0.ended.is_cancelled()
    }

    /// Returns whether both wires belong to the same session.
    pub fn is(&self, other: &Wire) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A wire of a session that never ends and accepts every frame.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Wire::new(CancellationToken::new(), |_| true)
    }
}

/// Called with each frame from a peer: the peer's owner name (`node-name#boot-id`), the wire back to it, and
/// the frame. Frames of one session are delivered one after another, frames of different sessions
/// concurrently.
pub type FrameSink = Arc<dyn Fn(&Arc<str>, &Wire, &[u8]) + Send + Sync>;

/// Called after leases were given up, with the shards and the node that should take them next. The hint saves
/// that node the wait for its next attempt. It may be lost.
pub type ReleasedHook = Arc<dyn Fn(Kind, &[ShardNo], &Member) + Send + Sync>;

/// Called with false when a region cannot hold leases or cannot be reached, and with true when that is over
/// and at the start. A region cannot hold leases when the database has not answered it until its leases
/// expired. A region cannot be reached when it sees no node that could send it requests. While the value is
/// false, the node should appear as draining, so that its shards are placed on nodes that can serve them.
pub type AbleHook = Arc<dyn Fn(Kind, bool) + Send + Sync>;

/// One node.
#[derive(Clone)]
pub struct Member {
    /// The node's name, stable across restarts.
    pub name: Arc<str>,
    /// `node-name#boot-id`: names this incarnation in lease rows.
    pub owner: Arc<str>,
    /// The node's roles.
    pub roles: BTreeSet<NodeRole>,
    /// Whether no shard is placed on the node, because it is about to leave or cannot do its work now.
    pub draining: bool,
    /// The wire to the node; `None` for this node itself.
    pub wire: Option<Wire>,
}

/// The live nodes at one moment, including this one. A node is live from the moment both nodes see each other
/// until their session ends.
#[derive(Clone)]
pub struct View {
    me: Arc<str>,
    /// Sorted by name.
    members: Vec<Member>,
}

impl View {
    /// Creates a view of `members`. `me` is the name of this node.
    pub fn new(me: Arc<str>, mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.name.cmp(&b.name));
        View { me, members }
    }

    /// The view of a node without a cluster.
    pub fn alone(name: Arc<str>, owner: Arc<str>, roles: BTreeSet<NodeRole>) -> Self {
        let me = Member { name: Arc::clone(&name), owner, roles, draining: false, wire: None };
        View { me: name, members: vec![me] }
    }

    /// Returns the name of this node.
    pub fn me(&self) -> &Arc<str> {
        &self.me
    }

    /// Returns all live nodes, sorted by name.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Returns the live node with that name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| *member.name == *name)
    }

    /// Returns the live nodes with a role, including draining ones.
    pub fn with_role(&self, role: NodeRole) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.roles.contains(&role))
    }

    /// Returns the view without this node: the nodes that remain after it has left.
    pub fn without_me(&self) -> View {
        let others = self.members.iter().filter(|member| member.name != self.me);
        View { me: Arc::clone(&self.me), members: others.cloned().collect() }
    }

    /// Returns the live node that should hold a shard. A draining node is chosen only if no other node has
    /// the role.
    pub fn placed(&self, kind: Kind, shard: ShardNo) -> Option<&Member> {
        let role = NodeRole::serving(kind);
        let staying = self.with_role(role).filter(|member| !member.draining).map(|member| &*member.name);
        placed_on(kind, shard, staying)
            .or_else(|| placed_on(kind, shard, self.with_role(role).map(|member| &*member.name)))
            .and_then(|name| self.get(name))
    }
}

/// A receiver of the newest view. Cloning is cheap.
pub type Members = watch::Receiver<Arc<View>>;

/// The view of a node without a cluster, which never changes.
pub fn alone(name: Arc<str>, owner: Arc<str>, roles: BTreeSet<NodeRole>) -> Members {
    watch::channel(Arc::new(View::alone(name, owner, roles))).1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, role: NodeRole, draining: bool) -> Member {
        Member {
            name: name.into(),
            owner: format!("{name}#1").into(),
            roles: [role].into(),
            draining,
            wire: Some(Wire::nowhere()),
        }
    }

    #[test]
    fn without_this_node_its_shards_belong_to_those_who_stay() {
        let members =
            ["patient-1", "patient-2", "patient-3"].map(|name| member(name, NodeRole::Patient, false));
        let view = View::new("patient-2".into(), members.into());
        for shard in 0..64 {
            let before = view.placed(Kind::Patient, shard).map(|m| Arc::clone(&m.name));
            let after = view.without_me().placed(Kind::Patient, shard).map(|m| Arc::clone(&m.name));
            assert!(after.as_deref() != Some("patient-2"));
            assert!(before.as_deref() == Some("patient-2") || before == after);
        }
    }

    #[test]
    fn shards_are_placed_on_nodes_that_stay_as_long_as_there_are_any() {
        let both = |draining| {
            let members = vec![
                member("patient-2", NodeRole::Patient, draining),
                member("patient-1", NodeRole::Patient, true),
                member("front", NodeRole::Front, false),
            ];
            View::new("front".into(), members)
        };
        for shard in 0..64 {
            assert_eq!(both(false).placed(Kind::Patient, shard).map(|m| &*m.name), Some("patient-2"));
            assert!(both(true).placed(Kind::Patient, shard).is_some_and(|m| m.name.starts_with("patient")));
            assert!(both(false).placed(Kind::Billing, shard).is_none());
        }
    }
}
