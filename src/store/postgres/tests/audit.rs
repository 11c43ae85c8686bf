//! The months of the audit: how they are created and dropped beside commits, and which index a search uses.

use std::sync::Arc;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::super::MIGRATOR;
use super::super::audit::search::{BY_TERMS, WALK};
use super::super::connect::Connector;
use super::Stage;
use super::plans::plan;
use crate::domain::time::Timestamp;
use crate::store::contract::on_test_server;
use crate::store::contract::server::Postgres;
use crate::store::{
    AuditAnchor, AuditBatch, AuditHead, AuditPosition, AuditSearch, Error, Settings, Store, Use, migrate,
    open,
};

/// The migration that introduces the months.
const MONTHS_MIGRATION: i64 = 8;

fn batch(n: u128, at: Timestamp) -> AuditBatch {
    let (chain, mac) = (Uuid::from_u128(n), [1; 32]);
    AuditBatch { chain, seq: 0, at, mac, body: b"body".to_vec(), terms: vec![7] }
}

/// Drops the months that begin after this one, which have no rows.
const DROP_MONTHS: &str = "
DO $$ DECLARE part regclass; BEGIN
    FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_batches'::regclass
        AND inhrelid::regclass::text LIKE 'audit_batches_20%' LOOP
        EXECUTE format('DROP TABLE %s', part);
    END LOOP;
END $$";

const MONTHS: &str = "
SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit_batches'::regclass
AND inhrelid::regclass::text LIKE 'audit_batches_20%'";

/// Returns the start of the month after next.
async fn month_after_next(stage: &mut Stage) -> Timestamp {
    let sql = "SELECT audit_month((extract(epoch FROM now()) * 1000000)::bigint, 2)";
    Timestamp(stage.number(sql).await)
}

/// Returns the positions of all rows with `term`, read at most `limit_rows` per call.
async fn all_of(store: &Arc<dyn Store>, term: i32, limit_rows: u32) -> Vec<(i64, Uuid, i64)> {
    let mut until = AuditPosition { at: Timestamp(i64::MAX), chain: Uuid::max(), seq: i64::MAX };
    let mut found = Vec::new();
    loop {
        let search = AuditSearch { terms: vec![term], from: Timestamp(i64::MIN), until, limit_rows };
        let part = store.search_audit(&search).await.expect("found");
        assert!(part.batches.len() <= limit_rows as usize, "{term}");
        found.extend(part.batches.iter().map(|batch| (batch.at.0, batch.chain, batch.seq)));
        let Some(end) = part.looked_to else { return found };
        assert!((end.at, end.chain, end.seq) <= (until.at, until.chain, until.seq), "it gets on");
        until = AuditPosition { seq: end.seq - 1, ..end };
    }
}

#[tokio::test]
async fn rows_from_before_the_months_are_all_there() {
    let database = Postgres::shared_fast().create_database().await;
    let settings = on_test_server(database.url());
    let mut other = PgConnection::connect(database.url()).await.expect("a session");
    let older: Vec<_> = MIGRATOR.iter().filter(|step| step.version < MONTHS_MIGRATION).cloned().collect();
    let older = Migrator { migrations: older.into(), ..Migrator::DEFAULT };
    older.run_direct(None, &mut other, false).await.expect("the older schema");
    let rows = "INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
        SELECT ('00000000-0000-0000-0000-0000000000' || lpad(to_hex(1 + n % 16), 2, '0'))::uuid, n / 16,
            1700000000000000 + n * 3000000000, decode(repeat('01', 32), 'hex'), 'body', ARRAY[n % 100]
        FROM generate_series(0, 1599) n";
    other.execute(rows).await.expect("rows");
    migrate(&settings).await.expect("the newer schema");
    let store = open(&settings, Use::Serve).await.expect("a store");
    for chain in 1..=16 {
        let found = store.audit_batches(Uuid::from_u128(chain), 0, 1000).await.expect("rows");
        assert_eq!(found.iter().map(|row| row.seq).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }
    // Writers that use the old table name still work, and its keys are still enforced.
    store.append_audit(&batch(3, store.ping().await.expect("a clock"))).await.expect_err("it is taken");
    let now = store.ping().await.expect("a clock");
    store.append_audit(&AuditBatch { seq: 100, ..batch(3, now) }).await.expect("added");
    assert_eq!(all_of(&store, 42, 100).await.len(), 16);
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_nodes_make_the_months_at_once() {
    let mut stage = Stage::set(|_| ()).await;
    assert_eq!(stage.number(MONTHS).await, 3);
    for _ in 0..5 {
        stage.other(DROP_MONTHS).await;
        let mut nodes = JoinSet::new();
        for _ in 0..8 {
            let store = Arc::clone(&stage.store);
            nodes.spawn(async move { store.tend_audit().await });
        }
        for ahead in nodes.join_all().await {
            assert!(matches!(ahead, Ok(None | Some(3))), "{ahead:?}");
        }
        assert_eq!(stage.number(MONTHS).await, 3);
    }
    stage.store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_under_way_and_the_making_of_months_do_not_wait_for_each_other() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 1_000).await;
    stage.other(DROP_MONTHS).await;
    let insert = "BEGIN; INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
        VALUES (gen_random_uuid(), 0, (extract(epoch FROM now()) * 1000000)::bigint, decode(repeat('01', 32), 'hex'), '', '{1}')";
    stage.other(insert).await;
    assert_eq!(stage.store.tend_audit().await, Ok(Some(3)));
    let now = stage.store.ping().await.expect("a clock");
    stage.store.append_audit(&batch(1, now)).await.expect("added");
    stage.other("COMMIT").await;
    stage.store.close().await;
}

#[tokio::test]
async fn a_month_without_a_table_keeps_its_rows_all_the_same() {
    let mut stage = Stage::set(|_| ()).await;
    stage.other(DROP_MONTHS).await;
    let later = month_after_next(&mut stage).await;
    stage.store.append_audit(&batch(1, later)).await.expect("added");
    assert_eq!(stage.store.tend_audit().await, Ok(Some(2)), "that month stays where its row is");
    assert_eq!(stage.number(MONTHS).await, 2);
    stage.store.append_audit(&batch(2, later)).await.expect("added");
    let found = stage.store.audit_batches(Uuid::from_u128(1), 0, 9).await.expect("rows");
    assert_eq!(found, [batch(1, later)]);
    stage.store.close().await;
}

/// A session that reads the audit for long, such as a backup, delays the removal but not the commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_cannot_get_its_lock_gives_up() {
    let mut stage = Stage::set(|_| ()).await;
    let end = month_after_next(&mut stage).await;
    let row = batch(1, Timestamp(end.0 - 1));
    stage.store.append_audit(&row).await.expect("added");
    stage.other("BEGIN; SELECT count(*) FROM audit_batches").await;
    let anchor = AuditAnchor { head: AuditHead { chain: row.chain, seq: 0, mac: row.mac }, seal: [1; 32] };
    let store = Arc::clone(&stage.store);
    let removal = tokio::spawn(async move { store.remove_audit(end, &[anchor]).await });
    // The rows are sealed at `end`, because the removal would refuse unarchived rows before it.
    let mut added = 0;
    while !removal.is_finished() {
        added += 1;
        stage.store.append_audit(&batch(1_000 + added, end)).await.expect("added meanwhile");
    }
    let refused = removal.await.expect("no panic");
    assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
    assert!(added > 5, "{added} rows were added meanwhile");
    assert_eq!(stage.store.audit_anchors(None, 9).await, Ok(vec![]));
    assert_eq!(stage.store.audit_batches(row.chain, 0, 9).await, Ok(vec![row.clone()]));
    stage.other("COMMIT").await;
    stage.store.remove_audit(end, &[anchor]).await.expect("now it can");
    assert_eq!(stage.store.audit_batches(row.chain, 0, 9).await, Ok(vec![]));
    stage.store.close().await;
}

const FILL: &str = "
INSERT INTO audit_batches (chain, seq, at, mac, body, terms)
SELECT ('00000000-0000-0000-0000-0000000000' || lpad(to_hex(1 + n % 16), 2, '0'))::uuid, n / 16,
    (extract(epoch FROM now()) * 1000000)::bigint + n * 200000000::bigint, decode(repeat('01', 32), 'hex'), '',
    ARRAY(SELECT hashint4(n * 7 + t) FROM generate_series(1, 8) t) || ARRAY[1, 2]
FROM generate_series(0, 39999) n;
ANALYZE;";

#[tokio::test]
async fn a_common_term_goes_by_time_and_a_rare_one_by_the_index_of_terms() {
    let database = Postgres::shared_fast().create_database().await;
    // Filling the tables may take long on a busy machine.
    let settings = Settings { statement_timeout_ms: 120_000, ..on_test_server(database.url()) };
    migrate(&settings).await.expect("a schema");
    let connector = Connector::new(&settings.url.parse().expect("a URL"), &settings);
    let mut connection = connector.connect().await.expect("a session");
    connection.execute(FILL).await.expect("filled");
    // Rows in the pending list of the index of terms would be read one by one.
    let store = open(&settings, Use::Serve).await.expect("a store");
    store.tend_audit().await.expect("sorted in");
    store.close().await;
    let any = "0, 9000000000000000, gen_random_uuid(), 0";
    let walk = plan(
        &mut connection,
        "int8, int8, uuid, int8, int8, int4[], int8",
        WALK,
        &format!("{any}, 2000, ARRAY[1], 16"),
    )
    .await;
    assert!(!walk.contains("Seq Scan on audit") && !walk.contains("Bitmap"), "{walk}");
    let (_, walked) = walk.split_once("CTE walked").expect("the walk");
    let (walked, _) = walked.split_once("InitPlan").expect("what follows it");
    assert!(walked.contains("_at on ") && !walked.contains("Sort  ("), "{walk}");
    // For common terms the index would collect too many rows.
    for (terms, common) in [
        ("1", true),
        ("1, 2", true),
        ("hashint4(100000)", false),
        ("1, hashint4(100000)", false),
        ("77", false),
    ] {
        let asked = format!("SELECT audit_is_common(0, 9000000000000000, ARRAY[{terms}])");
        let told: bool = connection.fetch_one(AssertSqlSafe(asked)).await.expect("an answer").get(0);
        assert_eq!(told, common, "{terms}");
    }
    // A rare term in one month, planned for the actual values, as on the connections of the followers.
    let connector = connector.with([("plan_cache_mode", "force_custom_plan")]);
    let mut connection = connector.connect().await.expect("a session");
    let month = "audit_month((extract(epoch FROM now()) * 1000000)::bigint, 1)";
    let low: i64 =
        connection.fetch_one(AssertSqlSafe(format!("SELECT {month}"))).await.expect("a number").get(0);
    let span = format!("{low}, {}, gen_random_uuid(), 0", low + 27 * 86_400_000_000);
    let types = "int8, int8, uuid, int8, int4[], int8, int8";
    let rare = format!("{span}, ARRAY[hashint4(100000)], 1000, 16");
    let rare = plan(&mut connection, types, BY_TERMS, &rare).await;
    let (_, found) = rare.split_once("CTE found").expect("what is found");
    let (found, _) = found.split_once("Nested Loop").expect("what follows it");
    assert!(found.contains("Bitmap Index Scan on audit_batches_20") && found.contains("_terms"), "{rare}");
    assert!(!found.contains("audit_batches_before"), "one month alone:\n{rare}");
}

/// Terms that occur everywhere, not among the newest rows, seldom, once, and never. Every row of each is
/// found, newest first, whichever method a call uses.
#[tokio::test]
async fn a_search_finds_every_row_of_a_term_however_common_it_is() {
    const ABSENT_AMONG_THE_NEWEST: &str = "
        UPDATE audit_batches SET terms = terms || 3 WHERE seq % 20 = 0;
        UPDATE audit_batches SET terms = terms || 4 WHERE seq % 100 = 7;
        UPDATE audit_batches SET terms = array_remove(terms, 2)
            WHERE at > (SELECT at FROM audit_batches ORDER BY at DESC OFFSET 3000 LIMIT 1);
        ANALYZE audit_batches;";
    let database = Postgres::shared_fast().create_database().await;
    let settings = Settings { statement_timeout_ms: 120_000, ..on_test_server(database.url()) };
    migrate(&settings).await.expect("a schema");
    let connector = Connector::new(&settings.url.parse().expect("a URL"), &settings);
    let mut connection = connector.connect().await.expect("a session");
    connection.execute(FILL).await.expect("filled");
    connection.execute(ABSENT_AMONG_THE_NEWEST).await.expect("changed");
    let store = open(&settings, Use::Serve).await.expect("a store");
    store.tend_audit().await.expect("sorted in");
    for (term, limit_rows) in [(1, 4_096), (2, 4_096), (3, 64), (4, 16), (5, 16)] {
        let rows: Vec<(i64, Uuid, i64)> = sqlx::query_as(
            "SELECT at, chain, seq FROM audit_batches WHERE terms @> ARRAY[$1::int4] 
             ORDER BY at DESC, chain DESC, seq DESC",
        )
        .bind(term)
        .fetch_all(&mut connection)
        .await
        .expect("rows");
        let found = all_of(&store, term, limit_rows).await;
        assert!(found == rows, "term {term}: {} of {} rows", found.len(), rows.len());
        assert_eq!(rows.is_empty(), term == 5, "{term}");
    }
    store.close().await;
}
