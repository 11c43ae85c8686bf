//! Tests for SQLite only: one server per file, callers that give up, a full disk, files that are not
//! databases.

mod audit;
mod plans;

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Executor};
use tempfile::TempDir;
use tokio::time::{Instant, sleep, timeout};

use super::{SqliteStore, change};
use crate::domain::ids::Kind;
use crate::domain::patient::PatientState;
use crate::domain::time::Timestamp;
use crate::store::AppendOutcome::Committed;
use crate::store::contract::world::{LONG, Region, id, list};
use crate::store::{
    AuditBatch, Error, LeaseStore, OUTBOX_DEPTH_ROWS_MAX, OutboxStore, PatientStore, Result, Settings, Store,
    Use, migrate, open,
};

const PATIENCE: Duration = Duration::from_secs(30);

fn place() -> (TempDir, Settings) {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite:{}", directory.path().join("new/hygeia.db").display());
    (directory, Settings { url, lock_timeout_ms: 100, ..Settings::default() })
}

fn path_of(settings: &Settings) -> std::path::PathBuf {
    settings.url.strip_prefix("sqlite:").expect("a path").into()
}

async fn serve(settings: &Settings) -> Arc<SqliteStore> {
    Arc::new(SqliteStore::open(path_of(settings), settings, Use::Serve).await.expect("a store"))
}

/// A connection of another process to the file.
async fn other_process(settings: &Settings) -> SqliteConnection {
    SqliteConnectOptions::new().filename(path_of(settings)).connect().await.expect("a connection")
}

#[tokio::test]
async fn one_server_at_a_time_and_tools_beside_it() {
    let (_directory, settings) = place();
    let first = open(&settings, Use::Serve).await.expect("a store");
    let Err(Error::Unavailable(said)) = open(&settings, Use::Serve).await.map(drop) else { panic!("two") };
    assert!(said.contains("another server") && said.contains("hygeia.db"), "{said}");
    let tool = open(&settings, Use::Tool).await.expect("a tool");
    assert!(tool.list_users(None, 1).await.expect("users").is_empty());
    migrate(&settings).await.expect("nothing to do");
    tool.close().await;
    first.close().await;
    drop(first);
    open(&settings, Use::Serve).await.expect("the first has gone").close().await;
}

#[tokio::test]
async fn a_tool_may_come_first() {
    let (_directory, settings) = place();
    open(&settings, Use::Tool).await.expect("a schema").close().await;
}

#[tokio::test]
async fn several_tools_may_come_first_at_once() {
    for _ in 0..20 {
        let (_directory, settings) = place();
        let settings = Settings { lock_timeout_ms: 2_000, ..settings };
        for done in futures::future::join_all((0..4).map(|_| migrate(&settings))).await {
            done.expect("migrated");
        }
    }
}

#[tokio::test]
async fn a_file_that_another_process_is_making_is_waited_for() {
    let (_directory, settings) = place();
    std::fs::create_dir_all(path_of(&settings).parent().expect("a folder")).expect("made");
    let options = SqliteConnectOptions::new().filename(path_of(&settings)).create_if_missing(true);
    let mut other = options.connect().await.expect("a connection");
    other.execute("BEGIN EXCLUSIVE").await.expect("the lock");
    let mut opening = std::pin::pin!(open(&settings, Use::Tool));
    // Three times SQLite's own limit for a lock.
    let early = timeout(Duration::from_millis(3 * settings.lock_timeout_ms), &mut opening).await;
    assert!(early.is_err(), "it waits");
    other.execute("ROLLBACK").await.expect("the lock");
    opening.await.expect("a store").close().await;
}

#[tokio::test]
async fn one_server_at_a_time_by_whatever_name_it_comes() {
    let (directory, settings) = place();
    let first = open(&settings, Use::Serve).await.expect("a store");
    let link = directory.path().join("link.db");
    std::os::unix::fs::symlink(path_of(&settings), &link).expect("a link");
    let by_link = Settings { url: format!("sqlite:{}", link.display()), ..settings.clone() };
    let Err(Error::Unavailable(said)) = open(&by_link, Use::Serve).await.map(drop) else { panic!("two") };
    assert!(said.contains("another server"), "{said}");
    // Opened as a tool, which sees the same data as the server.
    assert!(open(&by_link, Use::Tool).await.expect("a tool").is_empty().await.expect("an answer"));
    std::fs::hard_link(path_of(&settings), directory.path().join("second.db")).expect("a link");
    let second = format!("sqlite:{}", directory.path().join("second.db").display());
    for by in [Use::Serve, Use::Tool] {
        let settings = Settings { url: second.clone(), ..settings.clone() };
        let Err(Error::Broken(said)) = open(&settings, by).await.map(drop) else { panic!("two names") };
        assert!(said.contains("second.db") && said.contains("2 names"), "{said}");
    }
    std::fs::remove_file(directory.path().join("second.db")).expect("removed");
    first.close().await;
    drop(first);
    open(&by_link, Use::Serve).await.expect("the first has gone").close().await;
}

#[tokio::test]
async fn the_file_is_for_its_owner_alone() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    Region::start(&(Arc::clone(&store) as Arc<dyn Store>)).await.registered(1, "one@example.com").await;
    let path = path_of(&settings);
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        let mode = std::fs::metadata(&name).expect("a file").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name:?} has mode {mode:o}");
    }
}

#[tokio::test]
async fn a_restart_finds_all_and_waits_for_no_lease() {
    let (_directory, settings) = place();
    let store: Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    region.registered(1, "one@example.com").await;
    let epoch = region.epoch(0);
    drop((region, store));
    // Dropped, not closed: the connections close by themselves, and the lock is released with the file.
    let deadline = Instant::now() + PATIENCE;
    let store = loop {
        match open(&settings, Use::Serve).await {
            Ok(store) => break store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        sleep(Duration::from_millis(10)).await;
    };
    let taken = store.acquire(Kind::Patient, &[0, 1, 2, 3], "other#2", LONG).await.expect("leases");
    assert_eq!(taken.len(), 4, "no other owner can live");
    assert!(taken.iter().all(|lease| lease.epoch > epoch));
    let loaded = store.load_patient(id(1), None).await.expect("a state");
    assert!(matches!(loaded.state, PatientState::Active(_)));
}

#[tokio::test]
async fn what_is_no_database_is_said_with_its_path() {
    let (directory, settings) = place();
    let file = directory.path().join("text.db");
    std::fs::write(&file, "this is a text, and long enough to be looked at as a database\n".repeat(100))
        .expect("a file");
    let settings = Settings { url: format!("sqlite:{}", file.display()), ..settings };
    for by in [Use::Serve, Use::Tool] {
        let Err(Error::Broken(said)) = open(&settings, by).await.map(drop) else { panic!("must fail") };
        assert!(said.contains("text.db") && said.contains("not a database"), "{said}");
    }
    let settings = Settings { url: format!("sqlite:{}", directory.path().display()), ..settings };
    let Err(Error::Unavailable(said)) = open(&settings, Use::Serve).await.map(drop) else {
        panic!("a folder")
    };
    assert!(said.contains(&directory.path().display().to_string()), "{said}");
}

#[tokio::test]
async fn a_damaged_file_is_said_with_its_path() {
    let (_directory, settings) = place();
    let store: Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    let rows: Vec<_> = (1..=400).map(|n| region.register(n, &format!("p{n}@example.com"))).collect();
    store.commit_patients(&rows).await.expect("outcomes");
    store.close().await;
    drop((region, store));
    let path = path_of(&settings);
    let mut bytes = std::fs::read(&path).expect("a file");
    // Keeps the header and the schema, and destroys all rows.
    bytes[4096 * 40..].fill(0xa5);
    std::fs::write(&path, bytes).expect("a file");
    let outcome = async {
        let store = open(&settings, Use::Serve).await?;
        list(&store, 1000).await?;
        store.unpublished(1000).await.map(drop)
    };
    let Err(Error::Broken(said)) = outcome.await else { panic!("must fail") };
    assert!(said.contains("hygeia.db") && said.contains("damaged"), "{said}");
}

#[tokio::test]
async fn a_caller_who_gives_up_leaves_no_transaction_open() {
    let (_directory, settings) = place();
    let settings = Settings { lock_timeout_ms: 20_000, ..settings };
    let store: Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    let mut other = other_process(&settings).await;
    other.execute("BEGIN IMMEDIATE").await.expect("the lock");
    let batch = [region.register(1, "one@example.com")];
    let given_up = timeout(Duration::from_millis(50), store.commit_patients(&batch)).await;
    assert!(given_up.is_err(), "the file is locked");
    let load = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.load_patient(id(1), None).await }
    });
    other.execute("ROLLBACK").await.expect("the lock");
    // The load waits for the abandoned transaction, and sees its result.
    let loaded = timeout(PATIENCE, load).await.expect("in time").expect("no panic").expect("a state");
    assert!(matches!(loaded.state, PatientState::Active(_)), "{loaded:?}");
    assert_eq!(region.commit(&region.register(2, "two@example.com")).await, Committed);
}

#[tokio::test]
async fn a_file_locked_by_another_process_is_a_known_abort() {
    let (_directory, settings) = place();
    let store: Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    let mut other = other_process(&settings).await;
    other.execute("BEGIN IMMEDIATE").await.expect("the lock");
    let batch = [region.register(1, "one@example.com")];
    let outcome = store.commit_patients(&batch).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    let audit = AuditBatch {
        chain: uuid::Uuid::from_u128(1),
        seq: 0,
        at: Timestamp(1),
        mac: [0; 32],
        body: vec![],
        terms: vec![],
    };
    let unsaid = store.append_audit(&audit).await;
    assert!(matches!(unsaid, Err(Error::Unavailable(_))), "{unsaid:?}");
    assert!(matches!(store.ping().await, Err(Error::Unavailable(_))), "not ready to write");
    assert!(store.is_empty().await.expect("reading goes on"));
    other.execute("ROLLBACK").await.expect("the lock");
    assert_eq!(store.commit_patients(&batch).await.expect("outcomes"), [Committed]);
    assert_eq!(store.append_audit(&audit).await, Ok(()));
}

#[tokio::test]
async fn the_queue_for_the_writer_is_bounded_in_time() {
    let (_directory, settings) = place();
    let settings = Settings { lock_timeout_ms: 3_000, acquire_timeout_ms: 100, ..settings };
    let store = serve(&settings).await;
    let mut other = other_process(&settings).await;
    other.execute("BEGIN IMMEDIATE").await.expect("the lock");
    let first = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.shard_count(8).await }
    });
    let deadline = Instant::now() + PATIENCE;
    while store.writer.is_idle() {
        assert!(Instant::now() < deadline, "the first call does not get its turn");
        tokio::task::yield_now().await;
    }
    let second = store.shard_count(8).await;
    assert!(matches!(&second, Err(Error::Unavailable(said)) if said.contains("turn")), "{second:?}");
    other.execute("ROLLBACK").await.expect("the lock");
    assert_eq!(first.await.expect("no panic"), Ok(8));
}

async fn break_off(connection: &mut SqliteConnection, how: &'static str) -> Result<u64> {
    let insert = sqlx::query("INSERT INTO settings (name, value) VALUES ('half', 1)");
    change(connection, insert).await?;
    match how {
        "fail" => Err(Error::Broken("on purpose".to_owned())),
        "panic" => panic!("on purpose"),
        _ => Ok(1),
    }
}

#[tokio::test]
async fn what_fails_half_way_is_undone() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let failed = store.writer.write(|c| Box::pin(break_off(c, "fail"))).await;
    assert!(matches!(failed, Err(Error::Broken(_))), "{failed:?}");
    let panicked = store.writer.write(|c| Box::pin(break_off(c, "panic"))).await;
    assert!(matches!(panicked, Err(Error::Unknown(_))), "{panicked:?}");
    // If one of them had been committed, the row would exist twice.
    assert_eq!(store.writer.write(|c| Box::pin(break_off(c, "succeed"))).await, Ok(1));
}

#[tokio::test]
async fn a_full_disk_is_a_known_abort() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let region = Region::start(&(Arc::clone(&store) as Arc<dyn Store>)).await;
    let limit = |pages: &'static str| {
        store.writer.write(move |c| Box::pin(async move { change(c, sqlx::query(pages)).await }))
    };
    limit("PRAGMA max_page_count = 1").await.expect("a limit");
    let batch: Vec<_> = (1..=400).map(|n| region.register(n, &format!("p{n}@example.com"))).collect();
    let outcome = store.commit_patients(&batch).await;
    assert!(matches!(outcome, Err(Error::Unavailable(_))), "{outcome:?}");
    assert!(store.is_empty().await.expect("an answer"), "all or nothing");
    limit("PRAGMA max_page_count = 1000000").await.expect("a limit");
    let outcomes = store.commit_patients(&batch).await.expect("outcomes");
    assert!(outcomes.iter().all(|outcome| *outcome == Committed));
    assert_eq!(store.outbox_depth().await.expect("a depth").unpublished_rows, 400);
}

#[tokio::test]
async fn a_deep_outbox_is_not_counted_to_its_end() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let mut other = other_process(&settings).await;
    let fill = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 100010)
                INSERT INTO outbox (seq, patient_id, version) SELECT n, x'00', 1 FROM n;
                INSERT INTO unbilled SELECT seq, patient_id, version FROM outbox";
    other.execute(fill).await.expect("rows");
    let beyond = u64::from(OUTBOX_DEPTH_ROWS_MAX) + 1;
    let depth = store.outbox_depth().await.expect("a depth");
    assert_eq!((depth.unpublished_rows, depth.unbilled_rows), (beyond, beyond));
    other.execute("DELETE FROM outbox WHERE seq > 99999").await.expect("rows");
    assert_eq!(store.outbox_depth().await.expect("a depth").unpublished_rows, 99_999);
    store.close().await;
}

/// Reads the connection's level of `synchronous` and its journal mode, which decide what it does at a commit.
async fn durability(store: &SqliteStore) -> (i64, String) {
    let asked = store.writer.write(|connection| {
        Box::pin(async move {
            let rows = super::rows(connection, sqlx::query("PRAGMA synchronous")).await?;
            let level: i64 = super::column(&rows[0], 0)?;
            let rows = super::rows(connection, sqlx::query("PRAGMA journal_mode")).await?;
            let journal: String = super::column(&rows[0], 0)?;
            Ok((level, journal))
        })
    });
    asked.await.expect("an answer")
}

async fn panicking(_: &mut SqliteConnection) -> Result<()> {
    panic!("as ordered")
}

#[tokio::test]
async fn every_connection_that_writes_waits_for_the_disk() {
    /// <https://www.sqlite.org/pragma.html#pragma_synchronous>
    const FULL: i64 = 2;
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    assert_eq!(durability(&store).await, (FULL, "wal".to_owned()));
    // A transaction that panics loses its connection; the next one opens a new one.
    let panics = store.writer.write(|connection| Box::pin(panicking(connection))).await;
    assert!(matches!(panics, Err(Error::Unknown(_))), "{panics:?}");
    assert_eq!(durability(&store).await, (FULL, "wal".to_owned()), "the connection made anew");
    store.close().await;
}
