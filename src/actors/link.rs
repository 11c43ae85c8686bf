//! The link between nodes: requests, replies and hints in frames that `Peers` carries.
//!
//! ```text
//! Directory ─► Links ─► Link (one per live peer) ─► wire ┄┄► gate (FrameSink) ─► Region, Analytics, status
//!    asker ◄─ ReplyTo ◄─ Link ◄─ gate ◄┄┄ wire ◄─ Link ◄─ ReplyTo ◄──────────────────┘
//! ```
//!
//! Invariants:
//! - Every incoming request is answered: with its answer, with a failure, or as dropped.
//! - Every outgoing request ends once: by its answer, or as dropped when the session ends. The caller watches
//!   the deadline. A request carries the remaining time, because clocks differ.
//! - At most one node passes a request on.
//! - A request is started only while the session that carried it lasts, as far as this side knows. The peer
//!   may have ended the session earlier. For the caller, a request that was lost with a session may still be
//!   carried out (`directory::asker`).
//! - Unanswered requests are bounded on both sides, in count; the sender also bounds their bytes. No request
//!   costs a task.
//! - Frames contain patient data and are never logged.

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

/// The largest allowed value of `frame_items_max`, and therefore the most items that a peer's frame may have.
const FRAME_ITEMS_MAX: usize = 65_536;

/// The limits of a link to one peer.
#[derive(Clone, Debug, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Requests that a peer has not answered; further requests get 503. Set it lower than the number of
    /// concurrent HTTP requests, so that one node that does not answer leaves room for the others.
    pub unanswered_max: usize,
    /// The bytes of these requests and of their expected answers.
    pub unanswered_bytes_max: usize,
    /// Requests of a peer that are being answered; further ones are refused.
    pub owed_max: usize,
    /// Requests, replies and hints in one frame.
    pub frame_items_max: usize,
    /// Bytes gathered in one frame; a larger item is sent in a frame of its own.
    pub frame_bytes_max: usize,
    /// Bytes of one request or reply. Must be less than the size of a frame that peers accept.
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
    /// Returns the keys whose values are not allowed, each with the allowed values.
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

/// Carries requests for entities of one kind to other nodes.
pub trait Courier<E: Entity>: Send + Sync {
    /// Sends `ask` to the live node `owner`. If `wanted` is given, that node passes the request on to
    /// `wanted`. The reply handle of `ask` is always answered or dropped.
    fn ask(&self, owner: &str, wanted: Option<Arc<str>>, ask: Box<Ask<E>>);

    /// Sends `query` to the live node `owner`.
    fn query(&self, owner: &str, query: Box<QueryAsk<E>>);
}

/// Asks a node for its status, within a trace and a time limit. Returns the JSON text, or `None` if the node
/// did not answer.
pub type AskStatus =
    Arc<dyn Fn(Member, TraceContext, Duration) -> BoxFuture<'static, Option<Vec<u8>>> + Send + Sync>;

/// Receives frames before the links exist. `Peers` is created before the links, which need its view, but
/// needs the destination of its frames at once. A frame that arrives before `open` is lost; no session starts
/// so early.
#[derive(Clone, Default)]
pub struct Inbox(Arc<OnceLock<FrameSink>>);

impl Inbox {
    /// Returns the sink for the frames of `Peers`.
    pub fn sink(&self) -> FrameSink {
        let opened = Arc::clone(&self.0);
        Arc::new(move |owner: &Arc<str>, wire: &Wire, frame: &[u8]| {
            if let Some(sink) = opened.get() {
                sink(owner, wire, frame);
            }
        })
    }

    /// Directs all further frames to `links`. Only the first call has an effect.
    pub fn open(&self, links: &Links) {
        let _ = self.0.set(links.sink());
    }
}

/// The links to all live peers. Cloning is cheap; all clones share the same links.
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
    /// Creates the links to the peers of `members` and keeps them up to date. Requests of other nodes are
    /// answered from `served`. Must be called within a tokio runtime, which runs the tasks of the links.
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

    /// Returns the sink for the frames of `Peers`.
    pub fn sink(&self) -> FrameSink {
        let inner = Arc::clone(&self.0);
        Arc::new(move |owner: &Arc<str>, wire: &Wire, frame: &[u8]| inner.receive(owner, wire, frame))
    }

    /// Returns a function to call after each commit. It tells the nodes that publish or bill that the outbox
    /// has new rows.
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

    /// Returns a function to call after leases were given up, with the node that should take them.
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

    /// Tells the nodes that check tokens that these sessions were revoked.
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

    /// Returns the status of the node `owner`, as JSON.
    ///
    /// # Errors
    /// `None` if there was no answer by the deadline of `ctx`; otherwise the failure.
    pub async fn status(&self, ctx: &RequestContext, owner: &str) -> Result<Vec<u8>, Option<Failure>> {
        self.plain(ctx, owner, Body::Status(pb::Status {}), 65_536).await
    }

    /// Returns the summary from the analytics node `owner`.
    ///
    /// # Errors
    /// `None` if there was no answer by the deadline of `ctx`; otherwise the failure.
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

    /// Returns `status` as a function for callers without a `RequestContext`, which asks a member within a
    /// time limit.
    pub fn ask_status(&self) -> AskStatus {
        let links = self.clone();
        Arc::new(move |member: Member, trace: TraceContext, limit: Duration| {
            let links = links.clone();
            let caller = Caller::system("status");
            let ctx = RequestContext::new(caller, trace, &*links.0.clock, limit);
            Box::pin(async move { links.status(&ctx, &member.owner).await.ok() })
        })
    }

    /// Returns the load of each link.
    pub fn facts(&self) -> Vec<LinkFacts> {
        self.0.links.load().values().map(|link| link.facts()).collect()
    }

    /// Returns the nodes of the cluster.
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
    /// Sends `ask` over `link`, unless its deadline has passed.
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

    /// Returns the link to a live peer. The view may be newer than the links, so a missing link is looked up
    /// twice.
    fn link(&self, owner: &str) -> Option<Arc<Link>> {
        if let Some(link) = self.links.load().get(owner) {
            return Some(Arc::clone(link));
        }
        self.keep_in_step();
        self.links.load().get(owner).cloned()
    }

    /// Returns the link of the session of `wire`. A peer that is not yet in the view gets a temporary link,
    /// so that it is answered.
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

    /// Replaces a link after an unreadable frame. The replies in that frame are lost, and its requests cannot
    /// be answered, so the counts of both sides are wrong. Callers that wait for a reply get an unknown
    /// outcome.
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

    /// Keeps one link per live peer and session. Requests over other links end as dropped.
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
