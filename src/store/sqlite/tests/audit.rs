//! The index of terms, by which the audit is searched.

use sqlx::Executor;
use sqlx::migrate::Migrator;
use uuid::Uuid;

use super::super::{MIGRATOR, SqliteStore};
use super::{other_process, path_of, place, serve};
use crate::domain::time::Timestamp;
use crate::store::{AuditArchiveStore, AuditBatch, AuditPosition, AuditSearch, AuditStore, Settings, Store};

pub(super) const YOUNGEST: AuditPosition =
    AuditPosition { at: Timestamp(i64::MAX), chain: Uuid::max(), seq: i64::MAX };

async fn places(store: &SqliteStore, terms: &[i32]) -> Vec<(i64, u128, i64)> {
    let search = AuditSearch { terms: terms.to_vec(), from: Timestamp(0), until: YOUNGEST, limit_rows: 1000 };
    let found = store.search_audit(&search).await.expect("an answer");
    assert_eq!(found.looked_to, None);
    found.batches.iter().map(|batch| (batch.at.0, batch.chain.as_u128(), batch.seq)).collect()
}

/// A row with a term of its own is found among many in one call, and so is the absence of a term.
#[tokio::test]
async fn a_rare_term_of_the_audit_is_found_in_one_call() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let mut session = other_process(&settings).await;
    let fill = "INSERT INTO audit_batches (id, chain, seq, at, mac, terms, body)
        WITH RECURSIVE n (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM n WHERE n < 49999)
        SELECT n * 1024, x'00000000000000000000000000000001', n, n, zeroblob(32),
            CASE WHEN n = 7 THEN x'0100000002000000' ELSE x'01000000' END, x'' FROM n";
    session.execute(fill).await.expect("filled");
    for (terms, expected) in [(vec![2], &[7][..]), (vec![1, 2], &[7]), (vec![9], &[]), (vec![1, 9], &[])] {
        let search = AuditSearch { terms, from: Timestamp(0), until: YOUNGEST, limit_rows: 16 };
        let found = store.search_audit(&search).await.expect("an answer");
        let rows: Vec<i64> = found.batches.iter().map(|batch| batch.seq).collect();
        assert_eq!((&rows[..], found.looked_to), (expected, None), "{:?}", search.terms);
    }
    store.close().await;
}

/// Creates the schema before the index, with two rows of one moment, one late row, and one without terms.
async fn older(settings: &Settings) {
    std::fs::create_dir_all(path_of(settings).parent().expect("a directory")).expect("made");
    std::fs::write(path_of(settings), "").expect("made");
    let mut session = other_process(settings).await;
    let steps: Vec<_> = MIGRATOR.iter().filter(|step| step.version < 14).cloned().collect();
    let older = Migrator { migrations: steps.into(), ..Migrator::DEFAULT };
    older.run_direct(None, &mut session, false).await.expect("the older schema");
    let rows = "INSERT INTO audit_batches (chain, seq, at, mac, terms, body) VALUES
        (x'00000000000000000000000000000002', 0, 5, zeroblob(32), x'ffffffff07000000', x''),
        (x'00000000000000000000000000000001', 0, 5, zeroblob(32), x'0700000000000080', x''),
        (x'00000000000000000000000000000001', 1, 4, zeroblob(32), x'07000000', x''),
        (x'00000000000000000000000000000001', 2, 9, zeroblob(32), x'', x'')";
    session.execute(rows).await.expect("rows");
}

#[tokio::test]
async fn rows_from_before_the_index_are_found_by_it() {
    let (_directory, settings) = place();
    older(&settings).await;
    let store = serve(&settings).await;
    assert_eq!(places(&store, &[7]).await, [(5, 2, 0), (5, 1, 0), (4, 1, 1)]);
    assert_eq!(places(&store, &[-1]).await, [(5, 2, 0)]);
    assert_eq!(places(&store, &[i32::MIN, 7]).await, [(5, 1, 0)]);
    assert_eq!(places(&store, &[]).await, [(9, 1, 2), (5, 2, 0), (5, 1, 0), (4, 1, 1)]);
    assert!(store.audit_terms_fit().await.expect("an answer"));
    // New rows for a moment that has rows already.
    for chain in [4, 3] {
        let row = AuditBatch {
            chain: Uuid::from_u128(chain),
            seq: 0,
            at: Timestamp(5),
            mac: [0; 32],
            terms: vec![7],
            body: Vec::new(),
        };
        store.append_audit(&row).await.expect("added");
    }
    assert_eq!(places(&store, &[7]).await[..3], [(5, 4, 0), (5, 3, 0), (5, 2, 0)]);
    assert!(store.audit_terms_fit().await.expect("an answer"));
    store.close().await;
}

/// Detects any difference between the index and the rows, in either direction.
#[tokio::test]
async fn an_index_that_does_not_fit_the_rows_is_told() {
    let take = "INSERT INTO audit_terms (audit_terms, rowid, terms) SELECT 'delete', id, '07000000' FROM audit_batches
        WHERE at = 4";
    for change in [
        "INSERT INTO audit_terms (audit_terms) VALUES ('delete-all')",
        take,
        "INSERT INTO audit_terms (rowid, terms) VALUES (99, '07000000')",
        "INSERT INTO audit_terms (rowid, terms) SELECT id, 'no term' FROM audit_batches WHERE at = 9",
        "UPDATE audit_batches SET terms = x'' WHERE at = 4",
        "UPDATE audit_batches SET terms = x'0700000001' WHERE at = 4",
        "UPDATE audit_batches SET id = id - 1024 WHERE at = 4",
    ] {
        let (_directory, settings) = place();
        older(&settings).await;
        let store = serve(&settings).await;
        assert!(store.audit_terms_fit().await.expect("an answer"));
        let mut session = other_process(&settings).await;
        session.execute("PRAGMA ignore_check_constraints = ON").await.expect("set");
        session.execute(change).await.expect("changed");
        assert!(!store.audit_terms_fit().await.expect("an answer"), "{change}");
        store.close().await;
    }
}

/// A removed row leaves nothing in the index.
#[tokio::test]
async fn what_is_removed_leaves_the_index_too() {
    let (_directory, settings) = place();
    older(&settings).await;
    let store = serve(&settings).await;
    let mut session = other_process(&settings).await;
    session.execute("DELETE FROM audit_batches WHERE at = 5").await.expect("removed");
    assert_eq!(places(&store, &[7]).await, [(4, 1, 1)]);
    assert!(store.audit_terms_fit().await.expect("an answer"));
    store.close().await;
}
