//! A commit is on the server's disk before it is acknowledged, whoever configures what.

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};

use super::super::lanes::Lanes;
use super::super::{ANSWER_GRACE, PostgresStore};
use crate::store::contract::on_test_server;
use crate::store::contract::server::{Database, Durability, Postgres};
use crate::store::{Error, Settings, Store, Use, migrate, open};

const SETTING: &str = "SELECT current_setting('synchronous_commit')";

async fn of_lanes(lanes: &Lanes) -> String {
    let rows = lanes.rows(ANSWER_GRACE * 20, sqlx::query(SETTING)).await;
    rows.ok().expect("a session")[0].get(0)
}

/// Returns the value of `synchronous_commit` in a session of each part of the store.
async fn in_every_session(settings: &Settings) -> Vec<String> {
    let options = settings.url.parse().expect("a URL");
    let store = PostgresStore::open(&options, settings, Use::Serve).await.expect("a store");
    let mut found = Vec::new();
    let serving = [&store.shared, &store.leases, &store.followers];
    let writing = [&store.patient_commits, &store.account_commits, &store.audits];
    for lanes in serving.into_iter().chain(writing) {
        found.push(of_lanes(lanes).await);
    }
    store.close().await;
    found
}

/// Makes `value` the default of every new session of the database.
async fn set_default(database: &Database, value: &str) {
    let mut session = PgConnection::connect(database.url()).await.expect("a session");
    let name: String =
        sqlx::query("SELECT current_database()").fetch_one(&mut session).await.expect("a name").get(0);
    let alter = format!("ALTER DATABASE {name} SET synchronous_commit = {value}");
    session.execute(AssertSqlSafe(alter)).await.expect("altered");
}

#[tokio::test]
async fn a_weaker_default_of_the_database_is_overridden_in_every_session() {
    let database = Postgres::shared_fast().create_database().await;
    for weaker in ["off", "local", "remote_write"] {
        set_default(&database, weaker).await;
        let found = in_every_session(&on_test_server(database.url())).await;
        assert_eq!(found, ["on"; 6], "the default of the database is {weaker}");
    }
    set_default(&database, "remote_apply").await;
    let found = in_every_session(&on_test_server(database.url())).await;
    assert_eq!(found, ["remote_apply"; 6], "it waits for more than `on` does");
}

#[tokio::test]
async fn a_weaker_default_of_the_role_or_the_url_is_overridden() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let mut session = PgConnection::connect(database.url()).await.expect("a session");
    session.execute("ALTER ROLE postgres SET synchronous_commit = off").await.expect("altered");
    assert_eq!(in_every_session(&on_test_server(database.url())).await, ["on"; 6]);
    let url = format!("{}?options=-c%20synchronous_commit%3Doff", database.url());
    assert_eq!(in_every_session(&on_test_server(&url)).await, ["on"; 6]);
}

#[tokio::test]
async fn a_server_without_fsync_is_refused_unless_it_is_allowed() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let allowed = on_test_server(database.url());
    let strict = Settings { fsync_off_allowed: false, ..allowed.clone() };
    let refused = |outcome: Result<(), Error>| {
        let Err(Error::Broken(said)) = outcome else { panic!("must be refused: {outcome:?}") };
        assert!(said.contains("fsync = off") && said.contains("store.fsync_off_allowed"), "{said}");
    };
    refused(migrate(&strict).await);
    migrate(&allowed).await.expect("a schema");
    refused(open(&strict, Use::Tool).await.map(drop));
    let store = open(&strict, Use::Serve).await.expect("the server may be away when it is opened");
    refused(store.prepare().await);
    store.close().await;
    let store = open(&allowed, Use::Serve).await.expect("a store");
    store.prepare().await.expect("it is allowed");
    store.close().await;
}

#[tokio::test]
async fn a_durable_server_needs_no_permission() {
    let database = Postgres::shared().create_database().await;
    let settings = Settings { url: database.url().to_owned(), ..Settings::default() };
    migrate(&settings).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    store.prepare().await.expect("it keeps what it commits");
    store.close().await;
}

#[tokio::test]
async fn a_prepared_store_has_a_connection_for_each_purpose_that_a_request_may_need() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    migrate(&settings).await.expect("a schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    store.prepare().await.expect("a database in order");
    let mut other = PgConnection::connect(database.url()).await.expect("a session");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'hygeia'";
    let open: i64 = sqlx::query(count).fetch_one(&mut other).await.expect("a count").get(0);
    assert_eq!(open, 5, "loads and lists, two journals, leases, audit");
    store.close().await;
}
