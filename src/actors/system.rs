//! The node's actors as one thing: which are started in which order, how they find each other, and
//! how they are drained in reverse.

use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorRef, Message, RpcReplyPort};
use tokio::task::JoinHandle;

use super::address::Address;
use super::billing::{Accounts, BillingHandle};
use super::directory::{Asker, Directory, DirectoryArgs, DirectoryMessage};
use super::entity::Entity;
use super::journal::{Journal, JournalArgs, JournalMessage, Nudge};
use super::patients::{PatientHandle, Patients};
use super::region::{Region, RegionArgs, RegionMessage};
use super::settings::Settings;
use super::supervisor::{ChildSpec, Supervisor, SupervisorArgs, SupervisorMessage};
use crate::domain::time::Clock;
use crate::health::Health;
use crate::store::{LeaseStore, Store};

/// What all actors of a node share.
#[derive(Clone)]
pub struct Parts {
    /// The database.
    pub store: Arc<dyn Store>,
    /// How many transactions the database takes at the same time.
    pub store_writers: usize,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
    /// Where the node says how it is.
    pub health: Health,
    /// `node-name#boot-id`: who holds this node's leases.
    pub owner: Arc<str>,
    /// The number of shards of the cluster.
    pub shards: u16,
    /// The bounds.
    pub settings: Settings,
}

/// One kind's chain of actors on this node.
pub struct Chain<E: Entity> {
    directory: Address<DirectoryMessage<E>>,
    region: Address<RegionMessage<E>>,
    journal: Address<JournalMessage<E>>,
}

impl<E: Entity> Default for Chain<E> {
    fn default() -> Self {
        Chain { directory: Address::default(), region: Address::default(), journal: Address::default() }
    }
}

impl<E: Entity> Chain<E> {
    /// The chain's actors in start order. `nudges` are called after each commit.
    pub fn children(&self, parts: &Parts, store: Arc<E::Store>, nudges: Vec<Nudge>) -> Vec<ChildSpec> {
        let names: [&'static str; 3] = match E::KIND {
            crate::domain::ids::Kind::Billing => ["billing-journal", "billing-region", "billing-directory"],
            _ => ["patient-journal", "patient-region", "patient-directory"],
        };
        let settings = &parts.settings;
        let journal = JournalArgs::<E> {
            store: Arc::clone(&store),
            clock: Arc::clone(&parts.clock),
            limits: settings.journal_limits(parts.store_writers),
            nudges,
        };
        let region = RegionArgs::<E> {
            store,
            leases: Arc::clone(&parts.store) as Arc<dyn LeaseStore>,
            clock: Arc::clone(&parts.clock),
            health: parts.health.clone(),
            journal: self.journal.clone(),
            owner: Arc::clone(&parts.owner),
            shards: parts.shards,
            limits: settings.shard_limits(parts.shards),
            queries_max: settings.queries_max,
            lease_times: settings.lease_times(),
            restart: settings.restart,
        };
        let directory = DirectoryArgs::<E> { region: self.region.clone(), clock: Arc::clone(&parts.clock) };
        vec![
            ChildSpec::new(names[0], Journal::default, journal, self.journal.clone()),
            ChildSpec::new(names[1], Region::default, region, self.region.clone()),
            ChildSpec::new(names[2], Directory::default, directory, self.directory.clone()),
        ]
    }

    fn asker(&self, parts: &Parts) -> Asker<E> {
        Asker::new(self.directory.clone(), Arc::clone(&parts.clock), parts.settings.ask_settings())
    }

    /// Gives up every shard: what is being committed ends, leases are released. Waits until it is done
    /// or `limit` has passed; false then.
    pub async fn drain(&self, limit: Duration) -> bool {
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

/// Sends a question and waits for its answer, at most `limit`.
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
    /// A child that could not be started, by name of its own error.
    pub async fn start(parts: &Parts, children: Vec<ChildSpec>) -> Result<Self, ractor::SpawnErr> {
        let args =
            SupervisorArgs { children, restart: parts.settings.restart, clock: Arc::clone(&parts.clock) };
        let (supervisor, ended) = Actor::spawn(None, Supervisor, args).await?;
        Ok(Tree { supervisor, ended })
    }

    /// From now on children end because they are told to, and are not started again.
    pub fn stopping(&self) {
        let _ = self.supervisor.send_message(SupervisorMessage::Stopping);
    }

    /// Resolves when the supervisor has given up: an actor failed too often.
    pub async fn failed(&mut self) {
        let _ = (&mut self.ended).await;
    }

    /// Ends what still runs.
    pub async fn stop(self) {
        self.supervisor.stop(None);
        let _ = self.ended.await;
    }
}
