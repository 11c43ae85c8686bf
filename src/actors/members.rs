//! The nodes of the cluster as seen from here: who they are, what they run, how a frame reaches them.
//! `Peers` publishes a new view whenever something changes; everybody else only reads.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::domain::cluster::{NodeRole, placed_on};
use crate::domain::ids::{Kind, ShardNo};

/// The way to one incarnation of a peer, over one session. Cloning is cheap and names the same session.
#[derive(Clone)]
pub struct Wire(Arc<Line>);

struct Line {
    take: Box<dyn Fn(Vec<u8>) -> bool + Send + Sync>,
    ended: CancellationToken,
}

impl Wire {
    /// The wire of a session that lasts until `ended` is cancelled. `take` says whether it took the frame.
    pub fn new(ended: CancellationToken, take: impl Fn(Vec<u8>) -> bool + Send + Sync + 'static) -> Self {
        Wire(Arc::new(Line { take: Box::new(take), ended }))
    }

    /// Hands a frame to the session. False if the session has ended; a frame that was taken may still be lost. What is
    /// on its way is unbounded here: the sender bounds it.
    pub fn send(&self, frame: Vec<u8>) -> bool {
        !self.has_ended() && (self.0.take)(frame)
    }

    /// Whether the session has ended on this side. The peer may not know it yet.
    pub fn has_ended(&self) -> bool {
        self.0.ended.is_cancelled()
    }

    /// Whether both belong to the same session.
    pub fn is(&self, other: &Wire) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The wire of a session that never ends and takes every frame.
    #[cfg(test)]
    pub(crate) fn nowhere() -> Self {
        Wire::new(CancellationToken::new(), |_| true)
    }
}

/// Called with each frame that a peer sent: its owner name (`node-name#boot-id`), the wire back to it, and the frame.
/// Of one session one after another, of several at the same time.
pub type FrameSink = Arc<dyn Fn(&Arc<str>, &Wire, &[u8]) + Send + Sync>;

/// Called when leases were given up, with the shards and the node that should take them: it spares that node
/// the wait for its own next try. Only a hint, which may get lost.
pub type ReleasedHook = Arc<dyn Fn(Kind, &[ShardNo], &Member) + Send + Sync>;

/// Called when a region begins to be unable to hold leases, or to be asked for what it holds (false), and when
/// that is over (true); also when it starts. It is when the database has not answered it for so long that its
/// leases have run out, and when it sees no node that could ask. While false the node should be seen as
/// draining, so that its shards are placed on nodes that can do better.
pub type AbleHook = Arc<dyn Fn(Kind, bool) + Send + Sync>;

/// One node.
#[derive(Clone)]
pub struct Member {
    /// Its name, the same over restarts.
    pub name: Arc<str>,
    /// `node-name#boot-id`: this incarnation, as lease rows know it.
    pub owner: Arc<str>,
    /// What it runs.
    pub roles: BTreeSet<NodeRole>,
    /// Nothing is placed on it: it is about to leave, or cannot do its work now.
    pub draining: bool,
    /// The way to it; `None` for the node itself.
    pub wire: Option<Wire>,
}

/// The live nodes at one moment, this one included. A node is live here from the moment both see each
/// other until its session ends.
#[derive(Clone)]
pub struct View {
    me: Arc<str>,
    /// In the order of names.
    members: Vec<Member>,
}

impl View {
    /// A view of `members`, one of which is called `me`.
    pub fn new(me: Arc<str>, mut members: Vec<Member>) -> Self {
        members.sort_by(|a, b| a.name.cmp(&b.name));
        View { me, members }
    }

    /// A node without a cluster.
    pub fn alone(name: Arc<str>, owner: Arc<str>, roles: BTreeSet<NodeRole>) -> Self {
        let me = Member { name: Arc::clone(&name), owner, roles, draining: false, wire: None };
        View { me: name, members: vec![me] }
    }

    /// The name of this node.
    pub fn me(&self) -> &Arc<str> {
        &self.me
    }

    /// All live nodes, in the order of names.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The live node of that name.
    pub fn get(&self, name: &str) -> Option<&Member> {
        self.members.iter().find(|member| *member.name == *name)
    }

    /// The live nodes of a role, draining ones included.
    pub fn with_role(&self, role: NodeRole) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.roles.contains(&role))
    }

    /// The same without this node: who is there once it has left.
    pub fn without_me(&self) -> View {
        let others = self.members.iter().filter(|member| member.name != self.me);
        View { me: Arc::clone(&self.me), members: others.cloned().collect() }
    }

    /// Which live node should hold a shard: draining ones only if there are no others.
    pub fn placed(&self, kind: Kind, shard: ShardNo) -> Option<&Member> {
        let role = NodeRole::serving(kind);
        let staying = self.with_role(role).filter(|member| !member.draining).map(|member| &*member.name);
        placed_on(kind, shard, staying)
            .or_else(|| placed_on(kind, shard, self.with_role(role).map(|member| &*member.name)))
            .and_then(|name| self.get(name))
    }
}

/// Where the newest view is found. Cloning is cheap.
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
