//! Tests for PostgreSQL only: sessions that wait for each other, and a server that is unreachable, hangs, or
//! has another schema.

mod audit;
mod durable;
mod plans;
mod refence;
mod server;
mod sessions;

use std::sync::Arc;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::time::{Instant, sleep};

use crate::store::contract::on_test_server;
use crate::store::contract::server::{Database, Postgres};
use crate::store::contract::world::Region;
use crate::store::{Settings, Store, Use, migrate, open};

/// A limit for everything that is expected to happen, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A store, and a session beside it that acts as another node.
struct Stage {
    _database: Database,
    store: Arc<dyn Store>,
    region: Region,
    other: PgConnection,
    watch: PgConnection,
}

impl Stage {
    async fn set(change: impl FnOnce(&mut Settings)) -> Stage {
        let database = Postgres::shared_fast().create_database().await;
        let mut settings = on_test_server(database.url());
        settings.lock_timeout_ms = 20_000;
        settings.statement_timeout_ms = 25_000;
        change(&mut settings);
        migrate(&settings).await.expect("a schema");
        let store = open(&settings, Use::Serve).await.expect("a store");
        let region = Region::start(&store).await;
        let other = PgConnection::connect(database.url()).await.expect("a session");
        let watch = PgConnection::connect(database.url()).await.expect("a session");
        Stage { _database: database, store, region, other, watch }
    }

    /// Runs statements in the session of the other node.
    async fn other(&mut self, sql: &str) {
        self.other.execute(AssertSqlSafe(sql.to_owned())).await.expect("a statement");
    }

    /// Waits until a session of this database waits for a lock.
    async fn until_someone_waits(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.waiting().await == 0 {
            assert!(Instant::now() < deadline, "nobody waits for a lock");
            sleep(Duration::from_millis(5)).await;
        }
    }

    async fn waiting(&mut self) -> i64 {
        let query = sqlx::query(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock'",
        );
        query.fetch_one(&mut self.watch).await.expect("a count").get(0)
    }

    /// Reads one number from the database.
    async fn number(&mut self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(&mut self.watch).await.expect("a number").get(0)
    }
}
