//! A new epoch under load: directory, region, shard and journal over the database, with overlapping commits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::actors::members;
use crate::actors::patients::{PatientHandle, Patients};
use crate::actors::system::{Chain, Parts, Runs, Tree};
use crate::clock::SystemClock;
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::Caller;
use crate::domain::cluster::NodeRole;
use crate::domain::conditions::Conditions;
use crate::domain::event::RecordedEvent;
use crate::domain::ids::{CommandId, Epoch, Kind, PatientId, Version};
use crate::domain::search::{PatientPage, PatientSearch};
use crate::health::Health;
use crate::store::contract::on_test_server;
use crate::store::contract::server::Postgres;
use crate::store::contract::world::patient;
use crate::store::{
    AppendOutcome, AuditBatch, Error, LoadedPatient, PatientAppend, PatientStore, Result, Settings, Store,
    Use, migrate, open,
};

/// Number of concurrent writers.
const WRITERS: usize = 24;
/// How long a commit holds its lease row.
const COMMIT_SECONDS: &str = "0.1";
/// The limit for a new epoch under load: the commits in flight, the journal's queue, and a busy machine.
const BOUND: Duration = Duration::from_secs(10);

/// A store that loses the answer to a commit while `lose` is set.
struct Losing {
    inner: Arc<dyn Store>,
    lose: AtomicBool,
}

#[async_trait]
impl PatientStore for Losing {
    async fn commit_patients_audited(
        &self,
        batch: &[PatientAppend],
        audit: Option<&AuditBatch>,
    ) -> Result<Vec<AppendOutcome>> {
        let outcomes = self.inner.commit_patients_audited(batch, audit).await?;
        match self.lose.swap(false, Ordering::SeqCst) {
            true => Err(Error::Unknown("as asked".into())),
            false => Ok(outcomes),
        }
    }

    async fn load_patient(&self, id: PatientId, command: Option<CommandId>) -> Result<LoadedPatient> {
        self.inner.load_patient(id, command).await
    }

    async fn search(&self, search: &PatientSearch) -> Result<PatientPage> {
        self.inner.search(search).await
    }

    async fn history(&self, id: PatientId, after: Version, limit_rows: u32) -> Result<Vec<RecordedEvent>> {
        self.inner.history(id, after, limit_rows).await
    }

    async fn is_empty(&self) -> Result<bool> {
        self.inner.is_empty().await
    }
}

/// Starts a node with one shard of patients.
async fn node(store: &Arc<dyn Store>, patients: Arc<Losing>) -> (Tree, PatientHandle) {
    let parts = Parts {
        store_writers: store.writers(),
        store: Arc::clone(store),
        clock: Arc::new(SystemClock),
        health: Health::default(),
        owner: "me#1".into(),
        members: members::alone("me".into(), "me#1".into(), NodeRole::ALL.into()),
        released: Arc::new(|_, _, _| {}),
        able: Arc::new(|_, _| {}),
        shards: 1,
        links: None,
        settings: crate::actors::settings::Settings { journal_batch_rows_min: 1, ..Default::default() },
        audit: None,
    };
    let chain = Chain::<Patients>::default();
    let runs = Runs { serving: true, asking: true };
    let children = chain.children(&parts, runs, patients, Vec::new());
    (Tree::start(&parts, children).await.expect("starts"), chain.handle(&parts))
}

/// Registers patients until `stop` is set, and counts the registrations in `done`.
async fn register(patients: PatientHandle, writer: usize, stop: Arc<AtomicBool>, done: Arc<AtomicUsize>) {
    let mut n = 0;
    while !stop.load(Ordering::SeqCst) {
        n += 1;
        let ctx = RequestContext::new(
            Caller::system("test"),
            TraceContext::root(),
            &SystemClock,
            Duration::from_secs(60),
        );
        let details = patient(n, &format!("w{writer}-{n}@example.com")).details;
        let id = PatientId(Uuid::new_v4());
        patients.register(&ctx, id, details, Conditions::default()).await.expect("registered once");
        done.fetch_add(1, Ordering::SeqCst);
    }
}

async fn epoch(store: &Arc<dyn Store>) -> Epoch {
    store.leases(Kind::Patient).await.expect("rows")[0].epoch
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_commits_without_end_does_not_keep_a_new_epoch_away() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = Settings { connections_max: 32, ..on_test_server(database.url()) };
    migrate(&settings).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    let slow = format!(
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS
             $$BEGIN PERFORM pg_sleep({COMMIT_SECONDS}); RETURN NULL; END$$;
         CREATE TRIGGER dawdle AFTER INSERT ON patient_events
             FOR EACH STATEMENT EXECUTE FUNCTION dawdle()"
    );
    let mut session = PgConnection::connect(database.url()).await.expect("a session");
    session.execute(sqlx::AssertSqlSafe(slow)).await.expect("a trigger");

    let losing = Arc::new(Losing { inner: Arc::clone(&store), lose: AtomicBool::new(false) });
    let (tree, patients) = node(&store, Arc::clone(&losing)).await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(register(patients.clone(), writer, Arc::clone(&stop), Arc::clone(&done))))
        .collect();
    for _ in 0..3 {
        let begun = done.load(Ordering::SeqCst);
        wait_until("all write", || done.load(Ordering::SeqCst) > begun + 4 * WRITERS).await;
        let before = epoch(&store).await;
        losing.lose.store(true, Ordering::SeqCst);
        wait_until("an answer is lost", || !losing.lose.load(Ordering::SeqCst)).await;
        let lost = Instant::now();
        while epoch(&store).await == before {
            assert!(lost.elapsed() < BOUND, "no new epoch within {BOUND:?}");
            sleep(Duration::from_millis(5)).await;
        }
        println!("a new epoch after {:?}", lost.elapsed());
        assert_eq!(epoch(&store).await.0, before.0 + 1, "the next one, and the shard went on");
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.expect("no write fails");
    }
    tree.stop().await;
    store.close().await;
}

async fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + super::PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}
