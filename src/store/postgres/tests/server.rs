//! A server that is unreachable, hangs or stops, and databases with a wrong schema.

use std::time::Duration;

use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::PATIENCE;
use crate::domain::ids::Kind;
use crate::store::contract::on_test_server;
use crate::store::contract::server::{Durability, Postgres, Stop};
use crate::store::contract::world::{LONG, Region, list};
use crate::store::{Error, Settings, Use, migrate, open};

fn hasty(url: &str) -> Settings {
    Settings {
        connect_timeout_ms: 300,
        acquire_timeout_ms: 300,
        statement_timeout_ms: 300,
        lock_timeout_ms: 200,
        ..on_test_server(url)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_hangs_or_ends_is_noticed_and_found_again() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let settings = hasty(database.url());
    migrate(&Settings { connect_timeout_ms: 10_000, ..settings.clone() }).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    let region = Region::start(&store).await;
    // Two connections, so that one is idle when the server stops answering.
    let pings = tokio::join!(store.ping(), store.ping());
    assert!(matches!(pings, (Ok(_), Ok(_))), "{pings:?}");
    region.registered(1, "one@example.com").await;

    server.pause();
    let began = Instant::now();
    let commit = store.commit_patients(&[region.register(2, "two@example.com")]).await;
    assert!(matches!(commit, Err(Error::Unknown(_))), "sent, no answer: {commit:?}");
    let listed = list(&store, 1).await;
    assert!(matches!(listed, Err(Error::Unavailable(_))), "{listed:?}");
    assert!(began.elapsed() < Duration::from_secs(10), "nothing waits for ever");
    server.resume();
    recover(&store).await;
    // Taking the lease settles the outcome of the commit: its rows are there, or never will be.
    let taken = store.acquire(Kind::Patient, &[0, 1, 2, 3], region.owner, LONG).await.expect("leases");
    assert_eq!(taken.len(), 4);
    let before = list(&store, 9).await.expect("a page").len();
    assert_eq!(
        region.commit(&region.register(3, "three@example.com")).await,
        crate::store::AppendOutcome::Fenced
    );
    assert_eq!(list(&store, 9).await.expect("a page").len(), before);

    for how in [Stop::Fast, Stop::Kill] {
        server.stop(how);
        let ping = store.ping().await;
        assert!(matches!(ping, Err(Error::Unavailable(_))), "{ping:?}");
        let renewed = store.renew(Kind::Patient, &taken, region.owner, LONG).await;
        assert!(renewed.is_err());
        server.start();
        recover(&store).await;
        assert_eq!(list(&store, 9).await.expect("a page").len(), before);
    }
    store.close().await;
}

async fn recover(store: &std::sync::Arc<dyn crate::store::Store>) {
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = store.ping().await {
        assert!(Instant::now() < deadline, "{error}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Opens and prepares the store as a server does at start.
async fn serve(settings: &Settings) -> Result<(), Error> {
    let store = open(settings, Use::Serve).await?;
    let outcome = store.prepare().await;
    store.close().await;
    outcome
}

#[tokio::test]
async fn a_server_that_is_away_is_said_in_time_and_without_the_password() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    // First a port that accepts connections and never answers, then one that accepts none.
    let mut listener = Some(listener);
    for _ in 0..2 {
        let settings = hasty(&format!("postgres://ada:hunter2@127.0.0.1:{port}/clinic"));
        let outcomes =
            [serve(&settings).await, open(&settings, Use::Tool).await.map(drop), migrate(&settings).await];
        for outcome in outcomes {
            let Err(Error::Unavailable(said)) = outcome else { panic!("{outcome:?}") };
            assert!(said.contains(&port.to_string()) && !said.contains("hunter2"), "{said}");
        }
        listener.take();
    }
}

#[tokio::test]
async fn a_database_that_is_not_there_is_said_at_once() {
    let url = Postgres::shared_fast().url("no_such_database");
    let settings = on_test_server(&url);
    let began = Instant::now();
    let Err(Error::Broken(said)) = serve(&settings).await else { panic!("must fail") };
    assert!(said.contains("no_such_database"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(5), "no use in trying again");
}

#[tokio::test]
async fn a_schema_must_fit() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    for outcome in [serve(&settings).await, open(&settings, Use::Tool).await.map(drop)] {
        let Err(Error::Broken(said)) = outcome else { panic!("must fail") };
        assert!(said.contains("hygeia migrate"), "{said}");
    }
    let willing = Settings { migrate_on_start: true, ..settings.clone() };
    serve(&willing).await.expect("it migrates when told");
    let store = open(&settings, Use::Tool).await.expect("it fits now");
    store.close().await;

    let mut session = PgConnection::connect(database.url()).await.expect("a session");
    // A newer version has migrated the database. Its schema still serves this one.
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'newer', true, '\\x00', 0)";
    session.execute(newer).await.expect("a row");
    serve(&settings).await.expect("it fits still");
    migrate(&settings).await.expect("nothing to do");
    // Migrations of another program.
    session.execute("UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 1").await.expect("a row");
    let Err(Error::Broken(_)) = serve(&settings).await else { panic!("must fail") };
    assert!(matches!(migrate(&settings).await, Err(Error::Broken(_))));
}

#[tokio::test]
async fn a_database_that_is_emptied_or_another_ones_under_a_node_is_said() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    migrate(&settings).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    store.ping().await.expect("it fits");
    let mut session = PgConnection::connect(database.url()).await.expect("a session");
    for emptied in [
        "DELETE FROM _sqlx_migrations WHERE version > 1",
        "ALTER TABLE settings RENAME COLUMN name TO key",
        "DROP TABLE settings",
        "DROP SCHEMA public CASCADE",
    ] {
        session.execute(emptied).await.expect(emptied);
        let Err(Error::Broken(said)) = store.ping().await else { panic!("{emptied}: must fail") };
        assert!(said.contains("hygeia migrate"), "{emptied}: {said}");
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_may_migrate_at_once() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    let tasks: Vec<_> = (0..5)
        .map(|_| {
            let settings = settings.clone();
            tokio::spawn(async move { migrate(&settings).await })
        })
        .collect();
    for task in tasks {
        let outcome = timeout(PATIENCE, task).await.expect("in time").expect("no panic");
        outcome.expect("migrated, by this one or by another");
    }
    open(&settings, Use::Serve).await.expect("it fits").close().await;
}
