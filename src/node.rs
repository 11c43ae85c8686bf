//! The composition root: starts the parts of a node in order and stops them in reverse.
//!
//! | start | stop |
//! |---|---|
//! | 1. database handle, broker | 6. database closed, `runtime.json` removed |
//! | 2. addresses of HTTP and gRPC taken, `runtime.json` written | 5. actors ended |
//! | 3. HTTP and gRPC answer; readiness says what is missing | 4. regions give up their shards and leases |
//! | 4. the database is there and fits | 3. relay and bridge end what they have in hand |
//! | 5. actors, in the supervisor's order | 2. edges drained |
//! | 6. demo data, where it belongs | 1. SIGTERM or SIGINT |
//!
//! So a port in use is told before any actor runs, and a database that is away keeps nobody from asking
//! why the node is not ready.

mod demo;
pub mod runtime_file;
mod stop;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use self::runtime_file::RuntimeFile;
use crate::actors::analytics::{Analytics, AnalyticsArgs, AnalyticsHandle, AnalyticsMessage};
use crate::actors::billing::Accounts;
use crate::actors::billing_relay::{self, BillingRelay, BillingRelayMessage};
use crate::actors::kafka_bridge::{BridgeMessage, KafkaBridge, KafkaBridgeArgs};
use crate::actors::patients::Patients;
use crate::actors::supervisor::ChildSpec;
use crate::actors::system::{Chain, Parts, Tree};
use crate::actors::{address::Address, journal::Nudge};
use crate::auth::Auth;
use crate::clock::SystemClock;
use crate::config::Config;
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::kafka::Kafka;
use crate::store::{self, Store};
use crate::telemetry::TelemetryHandle;
use crate::{grpc, http};

/// Why a node did not start, or stopped other than by being told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part outside the process is away: the database, the broker.
    #[error("{0}")]
    Unavailable(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::Unavailable(_) | store::Error::Unknown(_) => Error::Unavailable(error.to_string()),
            store::Error::Broken(_) => Error::Failed(error.to_string()),
        }
    }
}

fn failed(error: impl std::fmt::Display) -> Error {
    Error::Failed(error.to_string())
}

/// Runs the node until it is told to stop.
///
/// # Errors
/// See `Error`.
pub async fn run(config: Config, telemetry: TelemetryHandle) -> Result<(), Error> {
    let mut signals = stop::Signals::listen().map_err(failed)?;
    let node = tokio::select! {
        node = Node::assemble(config, telemetry) => node?,
        signal = signals.next() => {
            tracing::info!(signal, "told to stop before the start was over");
            return Ok(());
        }
    };
    node.run(signals).await
}

/// The addresses at which the node's actors are, empty until they are started.
#[derive(Default)]
struct Actors {
    patients: Chain<Patients>,
    accounts: Chain<Accounts>,
    relay: Address<BillingRelayMessage>,
    bridge: Address<BridgeMessage>,
    analytics: Address<AnalyticsMessage>,
}

/// A node whose edges listen and whose actors are not started yet.
struct Node {
    config: Config,
    clock: Arc<dyn Clock>,
    health: Health,
    store: Arc<dyn Store>,
    kafka: Kafka,
    parts: Parts,
    actors: Actors,
    http: http::Server,
    grpc: grpc::Server,
}

impl Node {
    async fn assemble(config: Config, telemetry: TelemetryHandle) -> Result<Self, Error> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let health = Health::default();
        health.report("store", Status::NotReady("not asked yet".into()));
        let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Serve).await?;
        let kafka = Kafka::connect(&config.kafka).map_err(failed)?;
        let auth =
            Auth::new(config.auth.clone(), Arc::clone(&store) as _, Arc::clone(&clock)).map_err(failed)?;
        let parts = Parts {
            store: Arc::clone(&store),
            store_writers: store.writers(),
            clock: Arc::clone(&clock),
            health: health.clone(),
            owner: format!("{}#{}", config.node.name, Uuid::now_v7()).into(),
            shards: config.actors.shards,
            settings: config.actors.clone(),
        };
        let actors = Actors::default();
        let billing = actors.accounts.handle(&parts);
        let app = http::AppState {
            patients: actors.patients.handle(&parts),
            billing: billing.clone(),
            analytics: AnalyticsHandle::new(actors.analytics.clone(), Arc::clone(&clock)),
            auth: auth.clone(),
            health: health.clone(),
            metrics: Arc::new(move || telemetry.render()),
            clock: Arc::clone(&clock),
        };
        let grpc_state = grpc::GrpcState {
            billing: Arc::new(billing),
            auth: Arc::new(auth),
            clock: Arc::clone(&clock),
            health: health.clone(),
        };
        let http = http::Server::bind(config.http.clone(), app).await.map_err(failed)?;
        let grpc = grpc::Server::bind(config.grpc.clone(), grpc_state).await.map_err(failed)?;
        Ok(Node { config, clock, health, store, kafka, parts, actors, http, grpc })
    }

    async fn run(self, mut signals: stop::Signals) -> Result<(), Error> {
        let Node { config, clock, health, store, kafka, mut parts, actors, http, grpc } = self;
        let begun = clock.mono();
        let addresses = RuntimeFile {
            http: Some(http.local_addr().to_string()),
            grpc: Some(grpc.local_addr().to_string()),
            kafka: Some(kafka.bootstrap_servers().to_owned()),
        };
        addresses.write(&config.data_dir).map_err(failed)?;
        let stopping = CancellationToken::new();
        let edges = stop::Edges {
            http: tokio::spawn(http.serve(stopping.clone().cancelled_owned())),
            grpc: tokio::spawn(grpc.serve(stopping.clone().cancelled_owned())),
        };

        let started = tokio::select! {
            signal = signals.next() => Err(signal),
            shards = watch::database(&*store, &health, config.actors.shards) => Ok(shards),
        };
        let outcome = match started {
            Err(signal) => {
                tracing::info!(signal, "told to stop before the database was there");
                stopping.cancel();
                edges.ended().await;
                Ok(())
            }
            Ok(Err(error)) => {
                stopping.cancel();
                edges.ended().await;
                Err(error.into())
            }
            Ok(Ok(shards)) => {
                parts.shards = shards;
                let children = children(&config, &parts, &kafka, &actors);
                // Before the actors: the node must not be called ready without its demo.
                let demo = start_demo(&config, &parts, &actors, &addresses);
                let tree = Tree::start(&parts, children).await.map_err(failed)?;
                let watching = tokio::spawn(watch::follow(Arc::clone(&store), health.clone()));
                let outcome = serve(tree, &mut signals, &stopping, edges, &actors).await;
                demo.abort();
                watching.abort();
                outcome
            }
        };
        let _ = tokio::time::timeout(stop::CLOSE_LIMIT, store.close()).await;
        RuntimeFile::remove(&config.data_dir);
        tracing::info!(uptime_s = clock.mono().since(begun).as_secs(), "stopped");
        outcome
    }
}

/// Serves until a signal or until the supervisor gives up; then stops everything in order.
async fn serve(
    mut tree: Tree,
    signals: &mut stop::Signals,
    stopping: &CancellationToken,
    edges: stop::Edges,
    actors: &Actors,
) -> Result<(), Error> {
    let outcome = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping");
            Ok(())
        }
        () = tree.failed() => Err(Error::Failed("an actor failed too often".into())),
    };
    stopping.cancel();
    if outcome.is_ok() {
        let stop = async {
            edges.ended().await;
            tree.stopping();
            stop::drain(actors).await;
            tree.stop().await;
        };
        if tokio::time::timeout(stop::STOP_LIMIT, stop).await.is_err() {
            tracing::warn!("not everything had ended in time; what is left is in the database");
        }
    }
    outcome
}

/// The node's actors in start order; see the table of `actors::supervisor`.
fn children(config: &Config, parts: &Parts, kafka: &Kafka, actors: &Actors) -> Vec<ChildSpec> {
    let store = &parts.store;
    let (relay, bridge) = (actors.relay.clone(), actors.bridge.clone());
    let nudges: Vec<Nudge> = vec![
        Arc::new(move || {
            relay.cast(BillingRelayMessage::Nudge);
        }),
        Arc::new(move || {
            bridge.cast(BridgeMessage::Nudge);
        }),
    ];
    let mut children = actors.patients.children(parts, Arc::clone(store) as _, nudges);
    children.extend(actors.accounts.children(parts, Arc::clone(store) as _, Vec::new()));
    let relay = billing_relay::Args {
        store: Arc::clone(store) as _,
        accounts: Arc::new(actors.accounts.handle(parts)),
        clock: Arc::clone(&parts.clock),
        health: parts.health.clone(),
        settings: config.relay.clone(),
    };
    children.push(ChildSpec::new("billing-relay", BillingRelay::default, relay, actors.relay.clone()));
    let bridge = KafkaBridgeArgs {
        outbox: Arc::clone(store) as _,
        leases: Arc::clone(store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        owner: Arc::clone(&parts.owner),
        settings: config.bridge.clone(),
    };
    children.push(ChildSpec::new("kafka-bridge", || KafkaBridge, bridge, actors.bridge.clone()));
    let analytics = AnalyticsArgs {
        projections: Arc::clone(store) as _,
        outbox: Arc::clone(store) as _,
        broker: Arc::new(kafka.clone()),
        health: parts.health.clone(),
        clock: Arc::clone(&parts.clock),
        settings: config.analytics.clone(),
    };
    children.push(ChildSpec::new("analytics", || Analytics, analytics, actors.analytics.clone()));
    children
}

/// Makes the demo data, where it belongs, beside everything else; then says where the node is.
fn start_demo(config: &Config, parts: &Parts, actors: &Actors, addresses: &RuntimeFile) -> JoinHandle<()> {
    let demo = demo::Demo {
        auth: config.auth.clone(),
        store: Arc::clone(&parts.store),
        clock: Arc::clone(&parts.clock),
        patients: actors.patients.handle(parts),
        health: parts.health.clone(),
        request_budget: Duration::from_millis(config.http.request_deadline_ms),
    };
    let (wanted, addresses) = (config.is_embedded_demo(), addresses.clone());
    if wanted {
        demo.announce();
    }
    tokio::spawn(async move {
        let made = wanted && demo.make().await;
        demo::tell(&addresses, made);
    })
}
