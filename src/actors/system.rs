//! The composition of the node's actors: which actors are started in which order, how they find each other,
//! and how they are drained in reverse order.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorRef, Message, RpcReplyPort};
use tokio::task::JoinHandle;

use super::address::Address;
use super::billing::{Accounts, BillingHandle};
use super::directory::{Asker, Directory, DirectoryArgs, DirectoryMessage};
use super::entity::Entity;
use super::journal::{Journal, JournalArgs, JournalMessage, Nudge};
use super::link::{Courier, Links};
use super::members::{AbleHook, Members, ReleasedHook};
use super::patients::{PatientHandle, Patients};
use super::region::{Region, RegionArgs, RegionMessage, RegionStatus};
use super::settings::Settings;
use super::supervisor::{ChildSpec, Supervisor, SupervisorArgs, SupervisorMessage};
use crate::audit::Chains;
use crate::domain::ids::ShardNo;
use crate::domain::time::Clock;
use crate::health::Health;
use crate::store::{LeaseStore, Store};

/// The context that all actors of a node share.
#[derive(Clone)]
pub struct Parts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// How many concurrent transactions the database takes.
    pub store_writers: usize,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Where the node reports its status.
    pub health: Health,
    /// `node-name#boot-id`: the owner of this node's leases.
    pub owner: Arc<str>,
    /// The reachable nodes.
    pub members: Members,
    /// Called after leases were given up for another node.
    pub released: ReleasedHook,
    /// Called when a region becomes unable to serve its shards, and when it is able again.
    pub able: AbleHook,
    /// The number of shards per kind.
    pub shards: u16,
    /// The links to other nodes; `None` outside a cluster.
    pub links: Option<Links>,
    /// The limits.
    pub settings: Settings,
    /// The audit chains for changes; `None` if nothing is audited.
    pub audit: Option<Chains>,
}

/// Which actors of a chain a node runs.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// Whether the node serves shards: journal and region.
    pub serving: bool,
    /// Whether the node sends requests for entities, wherever they are served: directory.
    pub asking: bool,
}

/// The actors of one kind on this node.
pub struct Chain<E: Entity> {
    directory: Address<DirectoryMessage<E>>,
    region: Address<RegionMessage<E>>,
    journal: Address<JournalMessage<E>>,
}

impl<E: Entity> Clone for Chain<E> {
    fn clone(&self) -> Self {
        Chain {
            directory: self.directory.clone(),
            region: self.region.clone(),
            journal: self.journal.clone(),
        }
    }
}

impl<E: Entity> Default for Chain<E> {
    fn default() -> Self {
        Chain { directory: Address::default(), region: Address::default(), journal: Address::default() }
    }
}

impl<E: Entity> Chain<E>
where
    Links: Courier<E>,
{
    /// Returns the actors that the node runs, in start order. `nudges` are called after each commit.
    pub fn children(
        &self,
        parts: &Parts,
        runs: Runs,
        store: Arc<E::Store>,
        nudges: Vec<Nudge>,
    ) -> Vec<ChildSpec> {
        let names: [&'static str; 3] = match E::KIND {
            crate::domain::ids::Kind::Billing => ["billing-journal", "billing-region", "billing-directory"],
            _ => ["patient-journal", "patient-region", "patient-directory"],
        };
        let mut children = Vec::new();
        if runs.serving {
            let journal = self.journal_args(parts, Arc::clone(&store), nudges);
            children.push(ChildSpec::new(names[0], Journal::default, journal, self.journal.clone()));
            let region = self.region_args(parts, store);
            children.push(ChildSpec::new(names[1], Region::default, region, self.region.clone()));
        }
        if runs.asking {
            let directory = self.directory_args(parts, runs.serving);
            children.push(ChildSpec::new(names[2], Directory::default, directory, self.directory.clone()));
        }
        children
    }

    fn journal_args(&self, parts: &Parts, store: Arc<E::Store>, nudges: Vec<Nudge>) -> JournalArgs<E> {
        let limits = parts.settings.journal_limits(parts.store_writers);
        let audit = parts.audit.clone();
        JournalArgs { store, clock: Arc::clone(&parts.clock), limits, nudges, audit }
    }

    fn region_args(&self, parts: &Parts, store: Arc<E::Store>) -> RegionArgs<E> {
        let settings = &parts.settings;
        RegionArgs {
            store,
            leases: Arc::clone(&parts.store) as Arc<dyn LeaseStore>,
            clock: Arc::clone(&parts.clock),
            health: parts.health.clone(),
            journal: self.journal.clone(),
            owner: Arc::clone(&parts.owner),
            members: parts.members.clone(),
            released: Arc::clone(&parts.released),
            able: Arc::clone(&parts.able),
            shards: parts.shards,
            limits: settings.shard_limits(parts.shards),
            queries_max: settings.queries_max,
            handovers_max: settings.handovers_max,
            lease_times: settings.lease_times(),
            restart: settings.restart,
        }
    }

    /// `region_here`: whether this node runs the region.
    fn directory_args(&self, parts: &Parts, region_here: bool) -> DirectoryArgs<E> {
        DirectoryArgs {
            region: region_here.then(|| self.region.clone()),
            courier: parts.links.clone().map(|links| Arc::new(links) as Arc<dyn Courier<E>>),
            members: parts.members.clone(),
            shards: parts.shards,
            clock: Arc::clone(&parts.clock),
        }
    }

    /// Returns the address of this node's directory, for the links.
    pub fn directory_address(&self) -> &Address<DirectoryMessage<E>> {
        &self.directory
    }

    /// Returns the address of this node's region, for the parts that answer other nodes.
    pub fn region(&self) -> &Address<RegionMessage<E>> {
        &self.region
    }

    fn asker(&self, parts: &Parts) -> Asker<E> {
        Asker::new(self.directory.clone(), Arc::clone(&parts.clock), parts.settings.ask_settings())
    }

    /// Returns the region's status, or `None` if the region does not answer within `limit`.
    pub async fn status(&self, limit: Duration) -> Option<RegionStatus> {
        ask(&self.region, RegionMessage::Status, limit).await
    }

    /// Tells the region that another node has released these shards for this one.
    pub fn released_elsewhere(&self, shards: Vec<ShardNo>) {
        // A node without a region has no use for the shards.
        let _ = self.region.cast(RegionMessage::ReleasedElsewhere { shards });
    }

    /// Gives up every shard: ends the commits in flight and releases the leases. Returns true when all of it
    /// is done, and false after `limit`. A node that serves no shards returns true at once.
    pub async fn drain(&self, limit: Duration) -> bool {
        if self.region.actor().is_none() {
            return true;
        }
        ask(&self.region, RegionMessage::Drain, limit).await.is_some()
            && ask(&self.journal, JournalMessage::Flush, limit).await.is_some()
    }
}

impl Chain<Patients> {
    /// The handle for the edges.
    pub fn handle(&self, parts: &Parts) -> PatientHandle {
        PatientHandle::new(self.asker(parts))
    }
}

impl Chain<Accounts> {
    /// The handle for the edges.
    pub fn handle(&self, parts: &Parts) -> BillingHandle {
        BillingHandle::new(self.asker(parts))
    }
}

/// Sends a request and waits for its answer for at most `limit`. Returns `None` if there is no answer.
pub async fn ask<M: Message, T>(
    address: &Address<M>,
    question: impl FnOnce(RpcReplyPort<T>) -> M,
    limit: Duration,
) -> Option<T> {
    let (reply, answer) = tokio::sync::oneshot::channel();
    if !address.cast(question(reply.into())) {
        return None;
    }
    tokio::time::timeout(limit, answer).await.ok()?.ok()
}

/// The running supervision tree.
pub struct Tree {
    supervisor: ActorRef<SupervisorMessage>,
    ended: JoinHandle<()>,
}

impl Tree {
    /// Starts `children` in order.
    ///
    /// # Errors
    /// Returns the error of the first child that could not be started.
    pub async fn start(parts: &Parts, children: Vec<ChildSpec>) -> Result<Self, ractor::SpawnErr> {
        let args =
            SupervisorArgs { children, restart: parts.settings.restart, clock: Arc::clone(&parts.clock) };
        let (supervisor, ended) = Actor::spawn(None, Supervisor, args).await?;
        Ok(Tree { supervisor, ended })
    }

    /// Announces the stop: from now on children end on purpose and are not restarted.
    pub fn stopping(&self) {
        let _ = self.supervisor.send_message(SupervisorMessage::Stopping);
    }

    /// Resolves when the supervisor has given up because an actor failed too often.
    pub async fn failed(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Stops all actors that still run.
    pub async fn stop(self) {
        self.supervisor.stop(None);
        let _ = self.ended.await;
    }
}
