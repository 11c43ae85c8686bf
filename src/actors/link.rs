//! The link between nodes: requests, replies and hints over frames that `Peers` carries.
//!
//! ```text
//! Directory ─► Links ─► Link (one per live peer) ─► wire ┄┄► gate (FrameSink) ─► Region, Analytics, status
//!    asker ◄─ ReplyTo ◄─ Link ◄─ gate ◄┄┄ wire ◄─ Link ◄─ ReplyTo ◄──────────────────┘
//! ```
//!
//! Invariants:
//! - Every request that comes in is answered: with its answer, with why there is none, or as dropped.
//! - Every request that goes out ends once: by the answer, or as dropped when the session ends. Whoever
//!   waits watches the deadline; it travels as what is left of it, since clocks differ.
//! - A request is passed on by at most one node.
//! - What a frame asks is begun only while the session that brought it lasts, as far as this side knows. The peer may
//!   have ended it sooner: to whoever asked, what was lost with a session may still be done (`directory::asker`).
//! - What waits is bounded on both sides, in count and bytes. No request costs a task.
//! - What a frame holds is patient data: it is never logged.

mod gate;
mod peer;
mod portable;
mod queries;
mod wire;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::future::BoxFuture;
use tokio::runtime::Handle;

pub use self::gate::{SelfStatus, Served, ToTake};
pub use self::peer::LinkFacts;
use self::peer::{Limits, Link};
use self::portable::{Passage, Portable, Said};
use super::analytics::SummaryView;
use super::directory::DirectoryMessage;
use super::entity::{Entity, Failure, Op};
use super::journal::Nudge;
use super::members::{FrameSink, Member, Members, ReleasedHook, View, Wire};
use super::patients::Patients;
use super::region::QueryAsk;
use super::reply::ReplyTo;
use super::shard::Ask;
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::ids::{Kind, SessionId, ShardNo};
use crate::domain::time::Clock;
use crate::proto::cluster as pb;
use crate::proto::cluster::request::Body;

/// The largest value of `frame_items_max`, and so the most items that a frame from a peer may have.
const FRAME_ITEMS_MAX: usize = 65_536;

/// The bounds of a link to one peer.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Requests that a peer has not answered; beyond it callers get 503. Less than the requests that HTTP works
    /// on at once, so that one node that does not answer leaves room for the others.
    pub unanswered_max: usize,
    /// The same in bytes, with what their answers may come to.
    pub unanswered_bytes_max: usize,
    /// Requests of a peer that are being answered; beyond it they are refused.
    pub owed_max: usize,
    /// Requests, replies and hints in one frame.
    pub frame_items_max: usize,
    /// Bytes gathered in one frame; a larger item goes alone.
    pub frame_bytes_max: usize,
    /// Bytes of one request or reply. Must be less than what peers take as one frame.
    pub item_bytes_max: usize,
    /// The pause between two nudges to the same peer, in milliseconds.
    pub nudge_pause_ms: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            unanswered_max: 192,
            unanswered_bytes_max: 16 * 1024 * 1024,
            owed_max: 4_096,
            frame_items_max: 256,
            frame_bytes_max: 256 * 1024,
            item_bytes_max: 3 * 1024 * 1024,
            nudge_pause_ms: 5,
        }
    }
}

impl Settings {
    /// The keys whose values are not allowed, each with what is.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        const GIB: usize = 1 << 30;
        let checks = [
            ("unanswered_max", (1..=1_000_000).contains(&self.unanswered_max), "1 to 1000000"),
            (
                "unanswered_bytes_max",
                (65_536..=GIB).contains(&self.unanswered_bytes_max),
                "65536 to 1073741824",
            ),
            ("owed_max", (1..=1_000_000).contains(&self.owed_max), "1 to 1000000"),
            ("frame_items_max", (1..=FRAME_ITEMS_MAX).contains(&self.frame_items_max), "1 to 65536"),
            ("frame_bytes_max", (1_024..=GIB).contains(&self.frame_bytes_max), "1024 to 1073741824"),
            ("item_bytes_max", (65_536..=GIB).contains(&self.item_bytes_max), "65536 to 1073741824"),
            ("nudge_pause_ms", (1..=60_000).contains(&self.nudge_pause_ms), "1 to 60000"),
        ];
        let broken = checks.into_iter().filter(|(_, holds, _)| !holds);
        broken.map(|(key, _, allowed)| (key, allowed.to_owned())).collect()
    }

    fn limits(&self) -> Limits {
        Limits {
            unanswered_max: self.unanswered_max,
            unanswered_bytes_max: self.unanswered_bytes_max,
            owed_max: self.owed_max,
            frame_items_max: self.frame_items_max,
            frame_bytes_max: self.frame_bytes_max,
            item_bytes_max: self.item_bytes_max,
            nudge_pause: Duration::from_millis(self.nudge_pause_ms),
        }
    }
}

/// Carries questions about entities of one kind to other nodes.
pub trait Courier<E: Entity>: Send + Sync {
    /// Sends `ask` to the live node `owner`; if `wanted` is given, for it to pass on to that one. It is
    /// always answered, or its loss is told.
    fn ask(&self, owner: &str, wanted: Option<Arc<str>>, ask: Box<Ask<E>>);

    /// Sends `query` to the live node `owner`.
    fn query(&self, owner: &str, query: Box<QueryAsk<E>>);
}

/// Asks a node for its status, on behalf of a hop and for at most so long: what it wrote (JSON), if it answered.
pub type AskStatus =
    Arc<dyn Fn(Member, TraceContext, Duration) -> BoxFuture<'static, Option<Vec<u8>>> + Send + Sync>;

/// Where frames go before there are links: `Peers` is made first, since the links need its view, and needs
/// to know at once where frames go. What comes before `open` is lost; no session begins so early.
#[derive(Clone, Default)]
pub struct Inbox(Arc<OnceLock<FrameSink>>);

impl Inbox {
    /// What `Peers` gives every frame to.
    pub fn sink(&self) -> FrameSink {
        let opened = Arc::clone(&self.0);
        Arc::new(move |owner: &Arc<str>, wire: &Wire, frame: &[u8]| {
            if let Some(sink) = opened.get() {
                sink(owner, wire, frame);
            }
        })
    }

    /// From now on frames go to `links`, for good.
    pub fn open(&self, links: &Links) {
        let _ = self.0.set(links.sink());
    }
}

/// The links to all live peers. Cloning is cheap and names the same links.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    members: Members,
    /// By the peer's owner name; changed under `changing`.
    links: ArcSwap<HashMap<Arc<str>, Arc<Link>>>,
    changing: Mutex<()>,
    limits: Limits,
    ids: Arc<AtomicU64>,
    clock: Arc<dyn Clock>,
    runtime: Handle,
    served: Served,
}

impl Links {
    /// Links to the peers of `members`, kept in step with it, that answer from what is `served` here. To be
    /// called inside a runtime, which runs what the links do by themselves.
    pub fn start(members: Members, clock: Arc<dyn Clock>, settings: &Settings, served: Served) -> Self {
        let inner = Arc::new(Inner {
            members: members.clone(),
            links: ArcSwap::default(),
            changing: Mutex::new(()),
            limits: settings.limits(),
            ids: Arc::new(AtomicU64::new(1)),
            clock,
            runtime: Handle::current(),
            served,
        });
        inner.keep_in_step();
        tokio::spawn(follow(Arc::downgrade(&inner), members));
        Links(inner)
    }

    /// What `Peers` gives every frame to.
    pub fn sink(&self) -> FrameSink {
        let inner = Arc::clone(&self.0);
        Arc::new(move |owner: &Arc<str>, wire: &Wire, frame: &[u8]| inner.receive(owner, wire, frame))
    }

    /// To be called after each commit: tells the nodes that publish or bill that the outbox has new rows.
    pub fn nudge(&self) -> Nudge {
        let inner = Arc::clone(&self.0);
        Arc::new(move || {
            let links = inner.links.load();
            let view: Arc<View> = Arc::clone(&inner.members.borrow());
            for member in view.members() {
                let relay = member.roles.contains(&NodeRole::Billing);
                let bridge = member.roles.contains(&NodeRole::Bridge);
                if let Some(link) = links.get(&member.owner).filter(|_| relay || bridge) {
                    link.nudge(relay, bridge);
                }
            }
        })
    }

    /// To be called when leases were given up, with the node that should take them.
    pub fn released(&self) -> ReleasedHook {
        let inner = Arc::clone(&self.0);
        Arc::new(move |kind: Kind, shards: &[ShardNo], member: &Member| {
            if let Some(link) = inner.link(&member.owner) {
                let shards = shards.iter().map(|shard| u32::from(*shard)).collect();
                let released = pb::ShardsReleased { kind: kind.as_str().to_owned(), shards };
                link.hint(pb::hint::Hint::ShardsReleased(released));
            }
        })
    }

    /// To be called when sessions were revoked: tells the nodes that check tokens.
    pub fn revoked(&self, sessions: &[SessionId]) {
        let links = self.0.links.load();
        let view: Arc<View> = Arc::clone(&self.0.members.borrow());
        let ids: Vec<_> = sessions.iter().filter_map(|session| wire::id(session.0)).collect();
        for member in view.members() {
            let checks = [NodeRole::Front, NodeRole::Billing].iter().any(|role| member.roles.contains(role));
            if let Some(link) = links.get(&member.owner).filter(|_| checks) {
                let revoked = pb::SessionsRevoked { sessions: ids.clone() };
                link.hint(pb::hint::Hint::SessionsRevoked(revoked));
            }
        }
    }

    /// What the node `owner` says of itself, as JSON.
    ///
    /// # Errors
    /// `None`: no answer by the deadline of `ctx`; else why there is none.
    pub async fn status(&self, ctx: &RequestContext, owner: &str) -> Result<Vec<u8>, Option<Failure>> {
        self.plain(ctx, owner, Body::Status(pb::Status {}), 65_536).await
    }

    /// The summary from the analytics node `owner`.
    ///
    /// # Errors
    /// `None`: no answer by the deadline of `ctx`; else why there is none.
    pub async fn summary(&self, ctx: &RequestContext, owner: &str) -> Result<SummaryView, Option<Failure>> {
        self.plain(ctx, owner, Body::AnalyticsSummary(pb::AnalyticsSummary {}), 4_096).await
    }

    async fn plain<T: wire::Answer>(
        &self,
        ctx: &RequestContext,
        owner: &str,
        body: Body,
        answer_bytes: usize,
    ) -> Result<T, Option<Failure>> {
        let budget = ctx.deadline.since(self.0.clock.mono());
        let link = self.0.link(owner).ok_or(Some(Failure::NotServing(None)))?;
        let (reply, answer) = ReplyTo::here();
        let said = Said { trace: ctx.trace, budget, caller: ctx.caller.clone() };
        link.ask(portable::plain_request(&said, body), answer_bytes, reply, |_| {});
        match tokio::time::timeout(budget, answer).await {
            Ok(Ok(result)) => result.map_err(Some),
            Ok(Err(_)) => Err(Some(Failure::Unknown)),
            Err(_) => Err(None),
        }
    }

    /// The same for whoever does not speak in contexts: what `member` answers within that time.
    pub fn ask_status(&self) -> AskStatus {
        let links = self.clone();
        Arc::new(move |member: Member, trace: TraceContext, limit: Duration| {
            let links = links.clone();
            let caller = Caller::system("status");
            let ctx = RequestContext::new(caller, trace, &*links.0.clock, limit);
            Box::pin(async move { links.status(&ctx, &member.owner).await.ok() })
        })
    }

    /// How each link is doing.
    pub fn facts(&self) -> Vec<LinkFacts> {
        self.0.links.load().values().map(|link| link.facts()).collect()
    }

    /// The nodes that these links lead to.
    pub fn members(&self) -> &Members {
        &self.0.members
    }
}

impl<E: Portable> Courier<E> for Links {
    fn ask(&self, owner: &str, wanted: Option<Arc<str>>, ask: Box<Ask<E>>) {
        match self.0.link(owner) {
            Some(link) => self.0.send(&link, Passage { hops: 0, wanted_owner: wanted }, *ask),
            None => ask.reply.send(Err(Failure::NotServing(None))),
        }
    }

    fn query(&self, owner: &str, query: Box<QueryAsk<E>>) {
        E::send_query(&self.0, owner, *query);
    }
}

impl Inner {
    /// Sends `ask` over `link`, unless its time is up.
    fn send<E: Portable>(&self, link: &Arc<Link>, passage: Passage, mut ask: Ask<E>) {
        let budget = ask.deadline.since(self.clock.mono());
        if budget.is_zero() {
            return ask.reply.send(Err(Failure::Expired));
        }
        let op = std::mem::replace(&mut ask.op, Op::Read);
        let (request, answer_bytes) = portable::ask_request(&ask, op, budget, passage);
        let (id, directory) = (ask.id, E::directory(self).clone());
        link.ask(request, answer_bytes, ask.reply, move |owner| {
            directory.cast(DirectoryMessage::Found { id, owner });
        });
    }

    fn send_list(&self, owner: &str, query: QueryAsk<Patients>) {
        let budget = query.deadline.since(self.clock.mono());
        if budget.is_zero() {
            return query.reply.send(Err(Failure::Expired));
        }
        match self.link(owner) {
            Some(link) => {
                let (request, answer_bytes) = portable::query_request(&query, budget, Passage::default());
                link.ask(request, answer_bytes, query.reply, |_| {});
            }
            None => query.reply.send(Err(Failure::NotServing(None))),
        }
    }

    /// The link to a live peer. The newest view may be newer than the links.
    fn link(&self, owner: &str) -> Option<Arc<Link>> {
        if let Some(link) = self.links.load().get(owner) {
            return Some(Arc::clone(link));
        }
        self.keep_in_step();
        self.links.load().get(owner).cloned()
    }

    /// The link of the session that `wire` belongs to. A peer that is not in the view yet is answered all the same.
    fn link_of(&self, owner: &Arc<str>, wire: &Wire) -> Arc<Link> {
        let known = || self.links.load().get(owner).filter(|link| link.wire.is(wire)).cloned();
        known()
            .or_else(|| {
                self.keep_in_step();
                known()
            })
            .unwrap_or_else(|| self.new_link(owner, wire))
    }

    fn new_link(&self, owner: &Arc<str>, wire: &Wire) -> Arc<Link> {
        let (ids, clock) = (Arc::clone(&self.ids), Arc::clone(&self.clock));
        Link::new(Arc::clone(owner), wire.clone(), self.limits, ids, clock, self.runtime.clone())
    }

    /// A frame could not be read, so what it answered will not be answered, and what it asked cannot be: both
    /// sides' books are wrong. The link begins anew, and who waits learns that the outcome is not known.
    fn begin_anew(&self, link: &Arc<Link>) {
        let fresh = self.new_link(&link.owner, &link.wire);
        fresh.garbled();
        {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let mut links = HashMap::clone(&self.links.load());
            match links.get_mut(&link.owner) {
                Some(current) if Arc::ptr_eq(current, link) => *current = fresh,
                _ => return,
            }
            self.links.store(Arc::new(links));
        }
        link.close();
    }

    /// One link per live peer and session; what was asked of others is told to be lost.
    fn keep_in_step(&self) {
        let gone: Vec<Arc<Link>> = {
            let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
            let view: Arc<View> = Arc::clone(&self.members.borrow());
            let before = self.links.load_full();
            let mut links = HashMap::new();
            for member in view.members() {
                let Some(wire) = &member.wire else { continue };
                let known = before.get(&member.owner).filter(|link| link.wire.is(wire));
                let link = known.map_or_else(|| self.new_link(&member.owner, wire), Arc::clone);
                links.insert(Arc::clone(&member.owner), link);
            }
            let stays = |link: &Arc<Link>| links.get(&link.owner).is_some_and(|kept| Arc::ptr_eq(kept, link));
            let gone = before.values().filter(|link| !stays(link)).cloned().collect();
            self.links.store(Arc::new(links));
            gone
        };
        for link in gone {
            link.close();
        }
    }
}

async fn follow(inner: std::sync::Weak<Inner>, mut members: Members) {
    while members.changed().await.is_ok() {
        let Some(inner) = inner.upgrade() else { return };
        inner.keep_in_step();
    }
}
