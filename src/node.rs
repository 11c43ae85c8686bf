//! The composition root: starts the parts of a node in order and stops them in reverse.
//!
//! | start | stop |
//! |---|---|
//! | 1. database handle, broker | 7. database closed, `runtime.json` removed |
//! | 2. addresses of HTTP and gRPC bound, `runtime.json` written | 6. actors stopped, the cluster left |
//! | 3. HTTP and gRPC serve; readiness reports missing parts | 5. regions release their shards and leases |
//! | 4. database reachable, schema checked | 4. relay and bridge finish their current work |
//! | 5. actors, in the supervisor's order | 3. edges drained |
//! | 6. demo data, where wanted | 2. departure announced to the cluster |
//! | | 1. SIGTERM or SIGINT |
//!
//! The node's roles decide which parts it has: see `children`. Every node answers `/health` and `/metrics`.
//! Only a front has the other routes, only a node with the billing role listens for gRPC, and only bridge and
//! analytics connect to the broker.
//!
//! Because of this order, a port in use is reported before any actor runs, and a node without its database
//! still answers why it is not ready.

mod callers;
mod children;
mod clock_skew;
mod cluster;
mod demo;
mod first_admin;
pub mod runtime_file;
mod status;
mod stop;
mod watch;
mod witness;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use self::children::{Actors, Audits, children};
use self::cluster::Cluster;
use self::runtime_file::RuntimeFile;
use self::status::Reporter;
use crate::actors::analytics::AnalyticsHandle;
use crate::actors::audit::{AuditHandle, AuditReader};
use crate::actors::open_accounts::OfKnownPatients;
use crate::actors::system::{Parts, Tree};
use crate::auth::{Auth, Users};
use crate::clock::SystemClock;
use crate::config::{Config, Role};
use crate::domain::time::Clock;
use crate::health::{Health, Status};
use crate::kafka::Kafka;
use crate::store::{self, Store};
use crate::telemetry::TelemetryHandle;
use crate::{grpc, http};

/// Why a node did not start, or stopped without being asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An external service is not available: the database, the broker.
    #[error("{0}")]
    Unavailable(String),
    /// Any other failure.
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

/// Runs the node until a signal stops it.
///
/// # Errors
/// See `Error`.
pub async fn run(config: Config, telemetry: TelemetryHandle) -> Result<(), Error> {
    let mut signals = stop::Signals::listen().map_err(failed)?;
    let node = tokio::select! {
        node = Node::assemble(config, http::MetricsText::new(move || telemetry.render())) => node?,
        signal = signals.next() => {
            tracing::info!(signal, "told to stop before the start was over");
            return Ok(());
        }
    };
    let health = node.health.clone();
    let _starting = AbortOnDropHandle::new(tokio::spawn(async move {
        tokio::time::sleep(START_LIMIT).await;
        health.starting_is_over();
    }));
    Box::pin(node.run(signals)).await
}

/// How long a part may take to start before the log warns of it.
const START_LIMIT: Duration = Duration::from_secs(30);

/// The name of the actors' part in health. It stands in until each actor reports its own part.
const ACTORS: &str = "actors";

/// A node whose edges listen and whose actors are not started yet.
struct Node {
    config: Config,
    clock: Arc<dyn Clock>,
    health: Health,
    store: Arc<dyn Store>,
    /// Present on a bridge and on an analytics node.
    kafka: Option<Kafka>,
    /// Present on a front and on a billing node.
    auth: Option<Auth>,
    cluster: Cluster,
    reporter: Arc<Reporter>,
    parts: Parts,
    /// Present where accesses are recorded.
    audits: Option<Audits>,
    actors: Actors,
    http: http::Server,
    /// Present on a billing node.
    grpc: Option<grpc::Server>,
}

impl Node {
    async fn assemble(config: Config, metrics: http::MetricsText) -> Result<Self, Error> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let health = Health::default();
        health.report("store", Status::NotReady("not asked yet".into()));
        // Not ready until every actor has reported: the database alone does not make a node ready.
        health.report(ACTORS, Status::NotReady("waiting for the database".into()));
        let store = store::open(&config.store.clone().within(&config.data_dir), store::Use::Serve).await?;
        let runs = |role: Role| config.node.roles.contains(&role);
        let speaks_kafka = runs(Role::Bridge) || runs(Role::Analytics);
        let kafka = speaks_kafka.then(|| Kafka::connect(&config.kafka)).transpose().map_err(failed)?;
        let knows_callers = runs(Role::Front) || runs(Role::Billing);
        let auth = || Auth::new(&config.auth, Arc::clone(&store) as _, Arc::clone(&clock));
        let auth = knows_callers.then(auth).transpose().map_err(failed)?;
        let owner: Arc<str> = format!("{}#{}", config.node.name, Uuid::now_v7()).into();
        let actors = Actors::default();
        let audits = Audits::of(&config, &store, &clock, &owner).map_err(failed)?;
        let recorder = match &audits {
            Some(audits) => audits.recorder(&actors),
            None => AuditHandle::off(),
        };
        let cluster = Cluster::start(&config, &owner, &actors, &clock).await?;
        let reporter = Arc::new(Reporter {
            cluster_name: config.is_clustered().then(|| config.cluster.name.clone()),
            named: config.cluster.nodes.iter().map(|node| node.name.clone()).collect(),
            cluster: cluster.clone(),
            store: Arc::clone(&store),
            clock: Arc::clone(&clock),
            begun: clock.mono(),
            in_flight: OnceLock::new(),
            draining: false.into(),
            auth: auth.clone(),
            patients: actors.patients.clone(),
            accounts: actors.accounts.clone(),
        });
        cluster.tell_of(Arc::clone(&reporter) as _);
        if let (Some(auth), Some(ways)) = (&auth, &cluster.ways) {
            let links = ways.links.clone();
            auth.announce_with(Arc::new(move |sessions| links.revoked(sessions)));
        }
        let parts = Parts {
            store: Arc::clone(&store),
            store_writers: store.writers(),
            clock: Arc::clone(&clock),
            health: health.clone(),
            owner,
            members: cluster.members.clone(),
            released: cluster.released(),
            able: cluster.able(),
            links: cluster.ways.as_ref().map(|ways| ways.links.clone()),
            shards: config.actors.shards,
            settings: config.actors.clone(),
            audit: audits.as_ref().map(|audits| audits.chains("patients")),
        };
        let http = match &auth {
            Some(auth) if runs(Role::Front) => {
                let analytics = AnalyticsHandle::new(actors.analytics.clone(), Arc::clone(&clock));
                let users =
                    Users::new(&config.auth, Arc::clone(&store) as _, Arc::clone(&clock)).seen_by(auth);
                let app = http::AppState {
                    patients: actors.patients.handle(&parts),
                    billing: actors.accounts.handle(&parts),
                    analytics: match &parts.links {
                        Some(links) => analytics.over(links.clone()),
                        None => analytics,
                    },
                    auth: auth.clone(),
                    users: Arc::new(users),
                    audit: recorder.clone(),
                    audit_reader: AuditReader::new(
                        Arc::clone(&store) as _,
                        audits.as_ref().map(Audits::keys),
                    ),
                    health: health.clone(),
                    metrics,
                    cluster: Arc::clone(&reporter) as _,
                    clock: Arc::clone(&clock),
                };
                http::Server::bind(config.http.clone(), app).await
            }
            _ => {
                let ops = http::OpsState { health: health.clone(), metrics, clock: Arc::clone(&clock) };
                http::Server::bind_ops(config.http.clone(), ops).await
            }
        };
        let http = http.map_err(failed)?;
        // Set only here, so this cannot fail.
        let _ = reporter.in_flight.set(http.in_flight());
        let grpc = match &auth {
            Some(auth) if runs(Role::Billing) => {
                let state = grpc::GrpcState {
                    billing: match config.grpc.unknown_patients_allowed {
                        true => Arc::new(actors.accounts.handle(&parts)),
                        false => Arc::new(OfKnownPatients {
                            accounts: actors.accounts.handle(&parts),
                            patients: Arc::clone(&store) as _,
                        }),
                    },
                    auth: Arc::new(auth.clone()),
                    audit: recorder,
                    clock: Arc::clone(&clock),
                    health: health.clone(),
                };
                Some(grpc::Server::bind(config.grpc.clone(), state).await.map_err(failed)?)
            }
            _ => None,
        };
        Ok(Node {
            config,
            clock,
            health,
            store,
            kafka,
            auth,
            cluster,
            reporter,
            parts,
            audits,
            actors,
            http,
            grpc,
        })
    }

    async fn run(self, mut signals: stop::Signals) -> Result<(), Error> {
        let Node {
            config,
            clock,
            health,
            store,
            kafka,
            auth,
            cluster,
            reporter,
            mut parts,
            audits,
            actors,
            http,
            grpc,
        } = self;
        let begun = clock.mono();
        let addresses = RuntimeFile {
            http: Some(http.local_addr().to_string()),
            grpc: grpc.as_ref().map(|grpc| grpc.local_addr().to_string()),
            kafka: kafka.as_ref().map(|kafka| kafka.bootstrap_servers().to_owned()),
            cluster: cluster.ways.as_ref().map(|ways| ways.peers.local_addr().to_string()),
        };
        addresses.write(&config.data_dir).map_err(failed)?;
        let stopping = CancellationToken::new();
        let edges = stop::Edges {
            http: tokio::spawn(http.serve(stopping.clone().cancelled_owned())),
            grpc: grpc.map(|grpc| tokio::spawn(grpc.serve(stopping.clone().cancelled_owned()))),
        };
        let sees_roles = config.is_clustered() && config.node.roles.contains(&Role::Front);
        let seeing =
            sees_roles.then(|| tokio::spawn(cluster::follow_roles(cluster.members.clone(), health.clone())));

        let begin = async {
            let shards = watch::database(&*store, &health, config.actors.shards).await?;
            if config.node.roles.contains(&Role::Front) {
                first_admin::make(&config.auth, &store, &clock, &health).await.map_err(failed)?;
            }
            Ok::<u16, Error>(shards)
        };
        let started = tokio::select! {
            signal = signals.next() => Err(signal),
            shards = begin => Ok(shards),
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
                Err(error)
            }
            Ok(Ok(shards)) => {
                parts.shards = shards;
                let peers = cluster.ways.as_ref().map(|ways| &ways.peers);
                let children =
                    children(&config, &parts, kafka.as_ref(), auth.as_ref(), peers, audits.as_ref(), &actors);
                // Before the actors start: the node must not be reported as ready without its demo.
                let demo = start_demo(&config, &parts, &actors, &addresses);
                let tree = Tree::start(&parts, children).await.map_err(failed)?;
                health.report(ACTORS, Status::Ready);
                let skew = clock_skew::Watch::new(health.clone(), config.node.clock_skew_max());
                let watch = watch::follow(Arc::clone(&store), health.clone(), Arc::clone(&clock), skew);
                let watching = tokio::spawn(watch);
                let every = config.audit.pins_every();
                let witness =
                    audits.as_ref().map(|audits| witness::Following::start(audits.witness(), every));
                let leaving = || {
                    reporter.draining.store(true, Ordering::Relaxed);
                    cluster.set_draining();
                };
                let outcome = serve(tree, &mut signals, &cluster, leaving, &stopping, edges, &actors).await;
                cluster.leave().await;
                demo.abort();
                watching.abort();
                if let Some(witness) = witness {
                    witness.end().await;
                }
                outcome
            }
        };
        if let Some(seeing) = seeing {
            seeing.abort();
        }
        let left = async {
            if let Some(kafka) = &kafka
                && tokio::time::timeout(stop::LEAVE_LIMIT, kafka.left()).await.is_err()
            {
                tracing::warn!("the broker was not told in time that analytics leaves its group");
            }
        };
        let _ = tokio::join!(tokio::time::timeout(stop::CLOSE_LIMIT, store.close()), left);
        RuntimeFile::remove(&config.data_dir);
        tracing::info!(uptime_s = clock.mono().since(begun).as_secs(), "stopped");
        outcome
    }
}

/// Serves until a signal arrives, the supervisor gives up or the node can no longer belong to its cluster.
/// Calls `leaving`, which announces the departure; after a signal, stops everything in order.
async fn serve(
    mut tree: Tree,
    signals: &mut stop::Signals,
    cluster: &Cluster,
    leaving: impl FnOnce(),
    stopping: &CancellationToken,
    edges: stop::Edges,
    actors: &Actors,
) -> Result<(), Error> {
    let outcome = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "stopping");
            Ok(())
        }
        reason = cluster.failed() => Err(Error::Failed(reason.to_string())),
        () = tree.failed() => Err(Error::Failed("an actor failed too often".into())),
    };
    // First, so that new work is placed on other nodes while everything here still works.
    leaving();
    stopping.cancel();
    if outcome.is_ok() {
        let stop = async {
            edges.ended().await;
            tree.stopping();
            stop::drain(actors).await;
        };
        if tokio::time::timeout(stop::STOP_LIMIT, stop).await.is_err() {
            tracing::warn!("not everything had ended in time; what is left is in the database");
        }
        // Even after a timeout: regions that continued would keep leases that nobody uses.
        tree.stopping();
        let _ = tokio::time::timeout(stop::END_LIMIT, tree.stop()).await;
    }
    outcome
}

/// Makes the demo data if it is wanted, concurrently with the start. Prints the addresses once each part
/// works.
fn start_demo(config: &Config, parts: &Parts, actors: &Actors, addresses: &RuntimeFile) -> JoinHandle<()> {
    let demo = demo::Demo {
        auth: config.auth.clone(),
        store: Arc::clone(&parts.store),
        clock: Arc::clone(&parts.clock),
        patients: actors.patients.handle(parts),
        health: parts.health.clone(),
        request_budget: Duration::from_millis(config.http.request_deadline_ms),
    };
    let (wanted, addresses, health) = (config.is_embedded_demo(), addresses.clone(), parts.health.clone());
    let name = config.is_clustered().then(|| config.node.name.clone());
    if wanted {
        demo.announce();
    }
    tokio::spawn(async move {
        let made = wanted && demo.make().await;
        demo::quiet(&health).await;
        demo::tell(name.as_deref(), &addresses, made);
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_database_alone_makes_no_node_ready() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut config = Config { data_dir: directory.path().to_owned(), ..Config::default() };
        config.http.listen = "127.0.0.1:0".parse().expect("an address");
        config.grpc.listen = "127.0.0.1:0".parse().expect("an address");
        config.ensure_secrets().expect("a demo makes its own");
        let node = Node::assemble(config, http::MetricsText::new(String::new)).await.expect("assembled");
        // The report of the database's watch, before any actor has started.
        watch::database(&*node.store, &node.health, 4).await.expect("the database is there");
        let (ready, parts) = node.health.snapshot();
        assert_eq!(parts["store"], Status::Ready);
        assert!(!ready, "{parts:?}");
    }
}
