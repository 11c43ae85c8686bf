//! What the pool does when connections are slow to open, have gone, or have grown old.

use std::sync::atomic::{AtomicUsize, Ordering};

use sqlx::Row;
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::store::Settings;
use crate::store::contract::server::{Database, Postgres};
use crate::store::postgres::fault::Intent;

const LIMIT: Duration = Duration::from_secs(20);

async fn backend(lanes: &Lanes) -> Result<i32, Failure> {
    lanes.rows(LIMIT, sqlx::query("SELECT pg_backend_pid()")).await.map(|rows| rows[0].get(0))
}

fn pid(rows: Result<Vec<PgRow>, Failure>) -> i32 {
    rows.ok().expect("an answer")[0].get(1)
}

fn lanes(url: &str, lanes_max: usize, wait_ms: u64) -> Lanes {
    let connector = Connector::new(&url.parse().expect("a URL"), &Settings::default());
    Lanes::new(connector, lanes_max, Duration::from_millis(wait_ms))
}

/// A way to the server on which connections wait until a permit lets each of them through.
struct Door {
    url: String,
    permits: Arc<Semaphore>,
    came: Arc<AtomicUsize>,
}

impl Door {
    async fn to(database: &Database) -> Door {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("an address").to_string();
        let (before, after) = database.url().split_once('@').expect("a user");
        let (server, name) = after.split_once('/').expect("a database");
        let door = Door {
            url: format!("{before}@{own}/{name}"),
            permits: Arc::new(Semaphore::new(0)),
            came: Arc::default(),
        };
        let (permits, came, server) = (Arc::clone(&door.permits), Arc::clone(&door.came), server.to_owned());
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                came.fetch_add(1, Ordering::SeqCst);
                let (permits, server) = (Arc::clone(&permits), server.clone());
                tokio::spawn(async move {
                    permits.acquire().await.expect("open").forget();
                    let mut server = TcpStream::connect(server).await.expect("the server");
                    tokio::io::copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        door
    }

    async fn until_came(&self, connections: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.came.load(Ordering::SeqCst) < connections {
            assert!(Instant::now() < deadline, "{connections} connections are wanted");
            sleep(Duration::from_millis(1)).await;
        }
    }
}

/// Makes all free lanes look as if they had been used and opened this much earlier.
fn age(lanes: &Lanes, by: Duration) {
    for lane in lanes.0.free.lock().expect("sane").iter_mut() {
        lane.used_at -= by;
        lane.opened_at -= by;
    }
}

#[tokio::test]
async fn the_last_used_comes_first_and_there_are_no_more_than_allowed() {
    let database = Postgres::shared_fast().create_database().await;
    let lanes = lanes(database.url(), 2, 500);
    let alone = backend(&lanes).await.ok().expect("an answer");
    let slow = || lanes.rows(LIMIT, sqlx::query("SELECT pg_sleep(2), pg_backend_pid()"));
    let (one, two, third) = tokio::join!(slow(), slow(), backend(&lanes));
    let third = third.expect_err("no lane was free in time").into_error(Intent::Write);
    assert!(matches!(third, crate::store::Error::Unavailable(_)), "nothing was sent: {third}");
    let (one, two) = (pid(one), pid(two));
    assert!(one == alone && two != alone, "a second lane only when the first is in use");
    let mut last = backend(&lanes).await.ok().expect("an answer");
    for _ in 0..3 {
        let next = backend(&lanes).await.ok().expect("an answer");
        assert_eq!(next, last, "the warm one");
        last = next;
    }
    let cut = lanes.rows(Duration::from_millis(20), sqlx::query("SELECT pg_sleep(1)")).await;
    assert!(matches!(cut, Err(Failure::Late)));
    assert_ne!(backend(&lanes).await.ok(), Some(last), "one without a clean end is never used again");
    lanes.close().await;
    assert!(backend(&lanes).await.is_err());
}

#[tokio::test]
async fn a_caller_takes_what_another_returns_while_its_own_connection_is_being_opened() {
    let door = Door::to(&Postgres::shared_fast().create_database().await).await;
    let lanes = lanes(&door.url, 2, 20_000);
    door.permits.add_permits(1);
    let first = backend(&lanes).await.ok().expect("an answer");
    let held = lanes.checkout().await.ok().expect("the first");
    let second = async {
        door.until_came(2).await;
        held.settle(&Ok(()));
    };
    let (answered, ()) = tokio::join!(backend(&lanes), second);
    assert_eq!(answered.ok(), Some(first), "the other one waits at the door still");
}

#[tokio::test]
async fn a_connection_that_opens_too_late_for_its_caller_serves_the_next() {
    let door = Door::to(&Postgres::shared_fast().create_database().await).await;
    let lanes = lanes(&door.url, 2, 3_000);
    let late = backend(&lanes).await.expect_err("the door is shut").into_error(Intent::Write);
    assert!(matches!(late, crate::store::Error::Unavailable(_)), "nothing was sent: {late}");
    door.permits.add_permits(1);
    assert!(backend(&lanes).await.is_ok());
    let opened = lanes.0.room.available_permits();
    assert!(opened <= 1, "the connection of the first caller is kept: {opened} may be opened");
}

#[tokio::test]
async fn a_connection_that_has_gone_takes_those_with_it_that_were_idle_for_longer() {
    let database = Postgres::shared_fast().create_database().await;
    let lanes = lanes(database.url(), 3, 20_000);
    let slow = || lanes.rows(LIMIT, sqlx::query("SELECT pg_sleep(0.2), pg_backend_pid()"));
    let (one, two) = tokio::join!(slow(), slow());
    let gone = [pid(one), pid(two)];
    let mut other = PgConnection::connect(database.url()).await.expect("a session");
    let end = "SELECT pg_terminate_backend(pid, 20000) FROM unnest($1::int[]) pid";
    sqlx::query(end).bind(gone).execute(&mut other).await.expect("both have ended");
    age(&lanes, TRUSTED_IDLE * 2);
    let next = backend(&lanes).await.ok().expect("a new connection");
    assert!(!gone.contains(&next));
    assert_eq!(lanes.0.room.available_permits(), 2, "only the new one is open");
}

#[tokio::test]
async fn an_old_connection_is_closed_after_its_call() {
    let database = Postgres::shared_fast().create_database().await;
    let lanes = lanes(database.url(), 1, 20_000);
    let first = backend(&lanes).await.ok().expect("an answer");
    age(&lanes, LANE_AGE_MAX * 2);
    assert_eq!(backend(&lanes).await.ok(), Some(first), "it is good for one more call");
    assert_ne!(backend(&lanes).await.ok(), Some(first));
}
