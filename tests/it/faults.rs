//! What the node does when something it needs is full, locked, broken, paused or away: a clear word, a
//! bounded wait, nothing acknowledged lost, and recovery by itself.

use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, Instant};

use rdkafka::mocking::MockCluster;
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{Connection, Executor, PgConnection, SqliteConnection};

use crate::harness::{Node, Site, USER, eventually, patient};
use crate::postgres::{Durability, Postgres, Stop};

/// No answer may take longer than the node's own limit of 5 s, with room for a busy machine.
const ANSWERED_WITHIN: Duration = Duration::from_secs(8);

async fn create(node: &Node, token: &str, name: &str) -> StatusCode {
    let begun = Instant::now();
    let response = node.post_patient(token, &patient(name)).await.expect("an answer");
    assert!(begun.elapsed() < ANSWERED_WITHIN, "answered after {:?}", begun.elapsed());
    response.status()
}

async fn becomes(node: &Node, status: StatusCode) {
    eventually(&format!("readiness {status}"), || async {
        (node.readiness().await == Some(status)).then_some(())
    })
    .await;
}

async fn creates_again(node: &Node, token: &str) {
    let mut n = 0;
    loop {
        n += 1;
        assert!(n < 30, "the node does not recover");
        if create(node, token, &format!("recovered-{n}")).await == StatusCode::CREATED {
            return;
        }
    }
}

fn is_away(status: StatusCode) -> bool {
    matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}

#[tokio::test]
async fn sigterm_drains_under_load_and_exits_0() {
    let (site, mut node) = Node::fresh().await;
    let token = node.login().await;
    let clients: Vec<_> = (0..8)
        .map(|c| {
            let (url, client, token) =
                (format!("{}/api/patients", node.http_url()), node.client().clone(), token.clone());
            tokio::spawn(async move {
                let mut acknowledged = Vec::new();
                for n in 0.. {
                    let body = patient(format!("{c}-{n}"));
                    match client.post(&url).bearer_auth(&token).json(&body).send().await {
                        Ok(response) if response.status() == StatusCode::CREATED => {
                            let location = response.headers()["location"].to_str().expect("text").to_owned();
                            acknowledged.push(location);
                        }
                        Ok(response) => assert!(is_away(response.status()), "{}", response.status()),
                        Err(_) => break,
                    }
                }
                acknowledged
            })
        })
        .collect();
    eventually("the load runs", || async { (node.log().matches("POST").count() > 100).then_some(()) }).await;
    let begun = Instant::now();
    node.terminate();
    let status = node.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(10), "stopped after {:?}", begun.elapsed());
    assert_eq!(status.code(), Some(0), "{}", node.log());

    let node = site.start().await;
    let token = node.login().await;
    for client in clients {
        for location in client.await.expect("no panic") {
            assert_eq!(node.get(&token, &location).await.status(), StatusCode::OK, "{location} is lost");
        }
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("bound").to_string();
    for key in ["HYGEIA__HTTP__LISTEN", "HYGEIA__GRPC__LISTEN"] {
        let site = Site::fresh().with(key, &address);
        let mut process = site.spawn();
        let status = process.ended().await;
        assert!(!status.success());
        assert!(process.log().contains(&address), "{}", process.log());
    }
}

#[tokio::test]
async fn a_second_node_on_the_same_data_is_refused() {
    let (site, _node) = Node::fresh().await;
    let output = site.command().output().expect("runs");
    assert!(!output.status.success());
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("use"), "{said}");
}

#[tokio::test]
async fn a_corrupt_database_file_is_named() {
    let site = Site::bare();
    let file = site.path().join("broken.db");
    std::fs::write(&file, "this is no database, and long enough to look at".repeat(100)).expect("written");
    let site = site.with("HYGEIA__STORE__URL", &format!("sqlite:{}", file.display())).set_up();
    let mut process = site.spawn();
    assert!(!process.ended().await.success());
    assert!(process.log().contains("broken.db"), "{}", process.log());
}

#[tokio::test]
async fn a_locked_database_is_waited_for_within_bounds() {
    let site = Site::bare();
    let file = site.path().join("locked.db");
    let site = site.with("HYGEIA__STORE__URL", &format!("sqlite:{}", file.display())).set_up().with_user();
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "before").await, StatusCode::CREATED);

    let mut other = SqliteConnection::connect(&format!("sqlite:{}", file.display())).await.expect("opens");
    other.execute("BEGIN IMMEDIATE").await.expect("locked");
    let status = create(&node, &token, "while").await;
    assert!(is_away(status), "{status}");
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    other.execute("ROLLBACK").await.expect("unlocked");
    becomes(&node, StatusCode::OK).await;
    creates_again(&node, &token).await;
}

#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let site = Site::bare();
    let disk = site.path().join("disk");
    std::fs::create_dir(&disk).expect("made");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(&disk).status();
    assert!(
        mounted.is_ok_and(|status| status.success()),
        "a small file system cannot be mounted (mount -t tmpfs): this test needs root, or a namespace of its own \
         (unshare --user --map-root-user --mount cargo test --test it a_full_disk)"
    );
    let _unmount = Unmount(disk.clone());
    let url = format!("sqlite:{}", disk.join("h.db").display());
    let site = site.with("HYGEIA__STORE__URL", &url).set_up().with_user();
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "before").await, StatusCode::CREATED);

    // What the database may still have in spare pages is used up before it fails.
    let filler = disk.join("filler");
    let filled =
        Command::new("dd").args(["if=/dev/zero", "bs=64k"]).arg(format!("of={}", filler.display())).output();
    assert!(!filled.expect("runs").status.success(), "the disk is not full");
    let mut acknowledged = Vec::new();
    let mut n = 0;
    let refused = loop {
        n += 1;
        let response = node.post_patient(&token, &patient(format!("full-{n}"))).await.expect("an answer");
        if response.status() != StatusCode::CREATED {
            break response.status();
        }
        acknowledged.push(response.headers()["location"].to_str().expect("text").to_owned());
        assert!(n < 20_000, "the full disk is not noticed");
    };
    assert!(is_away(refused), "{refused}");
    // The database still answers a look at it. But leases are rows too: once they cannot be renewed the node
    // serves no shard, and says so.
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    std::fs::remove_file(&filler).expect("removed");
    creates_again(&node, &token).await;
    becomes(&node, StatusCode::OK).await;
    for location in acknowledged {
        assert_eq!(node.get(&token, &location).await.status(), StatusCode::OK, "{location} is lost");
    }
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn postgres_away_at_the_start_is_waited_for() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let site = Site::on_postgres(database.url());
    server.stop(Stop::Fast);
    let node = Node::listening(site.spawn()).await;
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    server.start();
    becomes(&node, StatusCode::OK).await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "after").await, StatusCode::CREATED);
}

#[tokio::test]
async fn a_paused_postgres_delays_nobody_beyond_the_deadline() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let site = Site::on_postgres(database.url());
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "before").await, StatusCode::CREATED);
    server.pause();
    let status = create(&node, &token, "while").await;
    assert!(is_away(status), "{status}");
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    server.resume();
    becomes(&node, StatusCode::OK).await;
    creates_again(&node, &token).await;
}

#[tokio::test]
async fn a_role_that_may_no_longer_log_in_is_told_as_such_and_never_as_a_fault_of_ours() {
    let server = Postgres::start_private(Durability::None);
    let database = server.create_database().await;
    let mut admin = PgConnection::connect(database.url()).await.expect("a session");
    admin.execute("CREATE ROLE clinic LOGIN; GRANT ALL ON SCHEMA public TO clinic").await.expect("a role");
    let site = Site::on_postgres(&database.url().replacen("postgres@", "clinic@", 1));
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "before").await, StatusCode::CREATED);

    admin.execute("ALTER ROLE clinic NOLOGIN").await.expect("changed");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'clinic'";
    admin.execute(end).await.expect("ended");
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    let login = serde_json::json!({"email": "nobody@example.org", "password": "correct horse battery"});
    let login = node.client().post(format!("{}/auth/login", node.http_url())).json(&login);
    for (what, status) in [
        ("a login", login.send().await.expect("an answer").status()),
        ("a registration", create(&node, &token, "while").await),
        ("a list", node.get(&token, "/api/patients").await.status()),
        ("the users", node.get(&token, "/api/users").await.status()),
        ("the audit", node.get(&token, "/api/audit").await.status()),
    ] {
        assert!(is_away(status), "{what}: {status}");
    }
    let ready = node.client().get(format!("{}/health/ready", node.http_url())).send().await;
    let told = ready.expect("an answer").text().await.expect("a text");
    assert!(told.contains("SQLSTATE 28000, the role may not log in"), "{told}");
    assert!(!told.contains("clinic"), "whoever asks is not told the role: {told}");
    assert!(node.log().contains("is not permitted to log in"), "{}", node.log());

    admin.execute("ALTER ROLE clinic LOGIN").await.expect("changed");
    becomes(&node, StatusCode::OK).await;
    creates_again(&node, &token).await;
}

#[tokio::test]
async fn keys_that_the_node_has_no_secret_for_are_told_and_nobody_is_to_blame() {
    let url = "sqlite:keys.db";
    let site = Site::bare().with("HYGEIA__STORE__URL", url).set_up().with_user();
    let secret = ("HYGEIA__AUTH__KEY_SECRET", "a secret of the keys, at least 32 bytes long");
    let with_secret = |site: &Site| {
        let mut command = site.command();
        command.env(secret.0, secret.1);
        command
    };
    let made = with_secret(&site).args(["keys", "rotate"]).output().expect("it ran");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let node = site.start().await;
    eventually("the reason", || async {
        let ready = node.client().get(format!("{}/health/ready", node.http_url())).send().await.ok()?;
        // Tokens of other nodes are still checked, so it serves.
        assert_eq!(ready.status(), StatusCode::OK);
        ready.text().await.ok()?.contains("auth.key_secret is not set").then_some(())
    })
    .await;
    let body = json!({"email": USER, "password": site.password()});
    let login = node.client().post(format!("{}/auth/login", node.http_url())).json(&body).send().await;
    assert_eq!(login.expect("an answer").status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(node.log().contains("auth.key_secret is not set"), "{}", node.log());
}

#[tokio::test]
async fn a_broker_that_is_away_holds_up_nobody_and_misses_nothing() {
    let broker = MockCluster::new(1).expect("a broker");
    broker.broker_down(1).expect("down");
    let site = Site::demo().with("HYGEIA__KAFKA__BROKERS", &broker.bootstrap_servers()).set_up().with_user();
    let node = site.start().await;
    let token = node.login().await;
    for n in 0..10 {
        assert_eq!(create(&node, &token, &format!("away-{n}")).await, StatusCode::CREATED);
    }
    broker.broker_up(1).expect("up");
    assert_eq!(node.counted(&token).await["totalPatients"], json!(10));
    broker.broker_down(1).expect("down");
    for n in 0..10 {
        assert_eq!(create(&node, &token, &format!("again-{n}")).await, StatusCode::CREATED);
    }
    broker.broker_up(1).expect("up");
    eventually("the rest is counted", || async {
        (node.counted(&token).await["totalPatients"] == json!(20)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_missing_secret_is_a_configuration_error_that_says_how_to_set_it() {
    let site = Site::bare()
        .with("HYGEIA__AUTH__TOKEN_ALGORITHM", "HS256")
        .with("HYGEIA__STORE__URL", "postgres://127.0.0.1:1/none");
    let mut process = site.spawn();
    assert_eq!(process.ended().await.code(), Some(78));
    assert!(process.log().contains("HYGEIA__AUTH__JWT_SECRET"), "{}", process.log());
}

/// Somebody empties the database under a node, or points its name at another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_in_front_of_an_empty_database_is_not_ready_and_answers_503() {
    let database = Postgres::shared_fast().create_database().await;
    let url = database.url().to_owned();
    let site = tokio::task::spawn_blocking(move || Site::on_postgres(&url)).await.expect("a site");
    let node = site.start().await;
    let token = node.login().await;
    assert_eq!(create(&node, &token, "before").await, StatusCode::CREATED);
    let mut session = sqlx::PgConnection::connect(database.url()).await.expect("a session");
    session.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public").await.expect("emptied");
    becomes(&node, StatusCode::SERVICE_UNAVAILABLE).await;
    let unknown = format!("/api/patients/{}", uuid::Uuid::now_v7());
    for path in ["/api/patients", unknown.as_str(), "/api/users", "/api/audit", "/api/analytics/summary"] {
        let status = node.get(&token, path).await.status();
        assert!(is_away(status), "GET {path}: {status}");
    }
    let status = create(&node, &token, "after").await;
    assert!(is_away(status), "{status}");
    let login = json!({"email": "nobody@example.org", "password": "a long password"});
    let login = node.client().post(format!("{}/auth/login", node.http_url())).json(&login).send().await;
    let status = login.expect("an answer").status();
    assert!(is_away(status), "{status}");
}
