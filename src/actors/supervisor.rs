//! The node's supervisor: starts the node's actors in order, and restarts each actor that ends unexpectedly
//! (`one_for_one` in the OTP Design Principles, "Supervisor Behaviour"). Root of the supervision tree.
//!
//! | child, in start order | restart | limit |
//! |---|---|---|
//! | `PeersActor`, in a cluster; parent of the `Gate`, the `Desk` and the sessions | always | `RestartPolicy` |
//! | `AuditJournal`, where there is an edge | always | `RestartPolicy` |
//! | patient `Journal`, `Region`, `Directory` | always | `RestartPolicy` each |
//! | billing `Journal`, `Region`, `Directory` | always | `RestartPolicy` each |
//! | `BillingRelay`, `KafkaBridge`, `Analytics` | always | `RestartPolicy` each |
//! | `Sessions` | always | `RestartPolicy` |
//!
//! The node's roles decide which of these children it starts (`node::children`). The links to other nodes
//! (`link`) are not actors: they follow the view that `PeersActor` publishes.
//!
//! A child that exceeds its limit ends the supervisor, and with it the node. The process then exits with an
//! error, so that its service manager can start it afresh.

use std::sync::Arc;

use futures::future::BoxFuture;
use ractor::{Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, Message, SpawnErr, SupervisionEvent};
use ractor_cluster::RactorMessage;

use super::address::Address;
use super::restart::{RestartBudget, RestartPolicy};
use crate::domain::time::Clock;

/// Starts one incarnation of a child, linked to the given supervisor.
type Start = Arc<dyn Fn(ActorCell) -> BoxFuture<'static, Result<ActorCell, SpawnErr>> + Send + Sync>;

/// How a child is started.
#[derive(Clone)]
pub struct ChildSpec {
    name: &'static str,
    start: Start,
}

impl ChildSpec {
    /// A child that `actor` creates and `args` configure, reachable at `address`.
    pub fn new<A, F>(name: &'static str, actor: F, args: A::Arguments, address: Address<A::Msg>) -> Self
    where
        A: Actor,
        A::Msg: Message,
        A::Arguments: Clone + Send + Sync,
        F: Fn() -> A + Send + Sync + 'static,
    {
        let start: Start = Arc::new(move |supervisor| {
            let (actor, args, address) = (actor(), args.clone(), address.clone());
            Box::pin(async move {
                let (reference, _) = Actor::spawn_linked(None, actor, args, supervisor).await?;
                let cell = reference.get_cell();
                address.set(reference);
                Ok(cell)
            })
        });
        ChildSpec { name, start }
    }
}

/// The messages of the supervisor.
#[derive(RactorMessage)]
pub enum SupervisorMessage {
    /// From a timer: the pause before the restart of this child is over.
    Restart(usize),
    /// From the node when it stops: children now end on purpose, so none is restarted.
    Stopping,
}

/// The arguments of the supervisor.
pub struct SupervisorArgs {
    /// The children in start order.
    pub children: Vec<ChildSpec>,
    /// How often each child may be restarted.
    pub restart: RestartPolicy,
    /// The clocks.
    pub clock: Arc<dyn Clock>,
}

/// The actor.
pub struct Supervisor;

struct Child {
    spec: ChildSpec,
    id: ActorId,
    budget: RestartBudget,
}

/// The state of the supervisor.
pub struct SupervisorState {
    children: Vec<Child>,
    clock: Arc<dyn Clock>,
    stopping: bool,
}

impl Actor for Supervisor {
    type Msg = SupervisorMessage;
    type State = SupervisorState;
    type Arguments = SupervisorArgs;

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        args: SupervisorArgs,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut children = Vec::with_capacity(args.children.len());
        for spec in args.children {
            // Register the counter at the start, so that a rate includes the first restart.
            let _ = metrics::counter!("hygeia_actor_restarts_total", "actor" => spec.name);
            let cell = (spec.start)(myself.get_cell()).await?;
            children.push(Child { spec, id: cell.get_id(), budget: RestartBudget::new(args.restart) });
        }
        Ok(SupervisorState { children, clock: args.clock, stopping: false })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            SupervisorMessage::Restart(index) => state.start_again(&myself, index).await,
            SupervisorMessage::Stopping => {
                state.stopping = true;
                Ok(())
            }
        }
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let ended = match &event {
            SupervisionEvent::ActorFailed(cell, _) | SupervisionEvent::ActorTerminated(cell, _, _) => {
                cell.get_id()
            }
            _ => return Ok(()),
        };
        match state.children.iter().position(|child| child.id == ended) {
            Some(index) => state.restart_later(&myself, index),
            None => Ok(()),
        }
    }
}

impl SupervisorState {
    fn restart_later(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        index: usize,
    ) -> Result<(), ActorProcessingErr> {
        let now = self.clock.mono();
        let Some(child) = self.children.get_mut(index).filter(|_| !self.stopping) else { return Ok(()) };
        let name = child.spec.name;
        metrics::counter!("hygeia_actor_restarts_total", "actor" => name).increment(1);
        let Some(pause) = child.budget.spend(now) else {
            tracing::error!(actor = name, "an actor failed too often; the node gives up");
            return Err(format!("{name} failed too often").into());
        };
        tracing::error!(actor = name, pause_ms = pause.as_millis(), "an actor ended unasked; it restarts");
        myself.send_after(pause, move || SupervisorMessage::Restart(index));
        Ok(())
    }

    async fn start_again(
        &mut self,
        myself: &ActorRef<SupervisorMessage>,
        index: usize,
    ) -> Result<(), ActorProcessingErr> {
        let Some(child) = self.children.get_mut(index).filter(|_| !self.stopping) else { return Ok(()) };
        // A child's `pre_start` only sets up its memory; slow work runs in tasks.
        match (child.spec.start)(myself.get_cell()).await {
            Ok(cell) => {
                child.id = cell.get_id();
                Ok(())
            }
            Err(error) => {
                tracing::error!(actor = child.spec.name, %error, "an actor did not start");
                self.restart_later(myself, index)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::SystemClock;

    #[derive(RactorMessage)]
    enum Poked {
        Fail,
        Ask(ractor::RpcReplyPort<&'static str>),
    }

    struct Fragile;

    impl Actor for Fragile {
        type Msg = Poked;
        type State = ();
        type Arguments = ();

        async fn pre_start(&self, _: ActorRef<Poked>, (): ()) -> Result<(), ActorProcessingErr> {
            Ok(())
        }

        async fn handle(
            &self,
            _: ActorRef<Poked>,
            message: Poked,
            (): &mut (),
        ) -> Result<(), ActorProcessingErr> {
            match message {
                Poked::Fail => panic!("as asked"),
                Poked::Ask(reply) => Ok(reply.send("here")?),
            }
        }
    }

    async fn start(
        restarts_max: usize,
    ) -> (Address<Poked>, ActorRef<SupervisorMessage>, tokio::task::JoinHandle<()>) {
        let address = Address::default();
        let args = SupervisorArgs {
            children: vec![ChildSpec::new("fragile", || Fragile, (), address.clone())],
            restart: RestartPolicy { restarts_max, period_ms: 60_000, pause_ms: 1, pause_max_ms: 1 },
            clock: Arc::new(SystemClock),
        };
        let (supervisor, ended) = Actor::spawn(None, Supervisor, args).await.expect("starts");
        (address, supervisor, ended)
    }

    /// Asks until an answer arrives, because the restart takes a moment.
    async fn answer(address: &Address<Poked>) -> &'static str {
        let asking = async {
            loop {
                let (reply, answer) = tokio::sync::oneshot::channel();
                address.cast(Poked::Ask(reply.into()));
                match answer.await {
                    Ok(answer) => return answer,
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(10), asking).await.expect("no answer within 10 s")
    }

    #[tokio::test]
    async fn a_child_that_panics_is_back_at_the_same_address() {
        let (address, supervisor, ended) = start(5).await;
        for _ in 0..5 {
            assert_eq!(answer(&address).await, "here");
            let before = address.actor().expect("started").get_id();
            assert!(address.cast(Poked::Fail));
            let replaced = async {
                while address.actor().expect("started").get_id() == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), replaced).await.expect("not restarted within 10 s");
        }
        assert_eq!(answer(&address).await, "here");
        supervisor.stop(None);
        ended.await.expect("stops");
    }

    #[tokio::test]
    async fn a_child_that_fails_too_often_ends_the_supervisor() {
        let (address, _supervisor, ended) = start(0).await;
        assert_eq!(answer(&address).await, "here");
        assert!(address.cast(Poked::Fail));
        tokio::time::timeout(Duration::from_secs(10), ended)
            .await
            .expect("gives up")
            .expect("no panic of its own");
    }
}
