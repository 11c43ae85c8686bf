//! Every list is read by an index, in the order of the index. The planner has no statistics, because nobody
//! runs `ANALYZE`. So a plan is the same for ten rows and for ten million.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::super::audit::search_query;
use super::super::projection::COUNTS;
use super::audit::YOUNGEST;
use super::{other_process, place, serve};
use crate::domain::time::Timestamp;
use crate::store::contract::world::{Region, list};
use crate::store::searching::{Dialect, tests::every_scan};
use crate::store::{AuditSearch, Store};

#[tokio::test]
async fn every_list_goes_by_an_index_in_its_order() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let mut session = other_process(&settings).await;
    for (scan, index, _) in every_scan() {
        let sql = scan.sql(Dialect::Sqlite);
        let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
        let rows = explained.fetch_all(&mut session).await.expect("a plan");
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let plan = plan.join("\n");
        // In a table without row ids, the primary key is the table.
        let index = match index {
            "patient_emails_pkey" => "SEARCH e USING PRIMARY KEY (".to_owned(),
            index => format!("SEARCH patients USING INDEX {index} ("),
        };
        let between = plan.contains(")>(?,?)") && plan.contains(")<(?,?)");
        let searched = between && !plan.contains("SCAN") && !plan.contains("TEMP B-TREE");
        assert!(plan.contains(&index) && searched, "not {index}:\n{sql}\n{plan}");
    }
    store.close().await;
}

#[tokio::test]
async fn a_search_of_the_audit_goes_by_time_and_sorts_nothing() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let mut session = other_process(&settings).await;
    let by_id = "USING INTEGER PRIMARY KEY";
    for terms in [vec![], vec![1], vec![1, 2]] {
        let search = AuditSearch { terms, from: Timestamp(0), until: YOUNGEST, limit_rows: 16 };
        let sql = search_query(&search, 0, 9).sql();
        let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {}", sql.as_str())));
        let rows = explained.fetch_all(&mut session).await.expect("a plan");
        let plan: Vec<String> = rows.iter().map(|row| row.get("detail")).collect();
        let row = match plan.as_slice() {
            [walk] if search.terms.is_empty() => walk == &format!("SEARCH b {by_id} (rowid>? AND rowid<?)"),
            // `M1`: the match; `><`: between two ids.
            [index, row] if !search.terms.is_empty() => {
                index.starts_with("SCAN audit_terms VIRTUAL TABLE INDEX ")
                    && index.ends_with("M1><")
                    && row == &format!("SEARCH b {by_id} (rowid=?)")
            }
            _ => false,
        };
        assert!(row, "{plan:?}");
    }
    store.close().await;
}

#[tokio::test]
async fn who_was_born_by_a_day_is_counted_from_one_year_and_the_sums_of_those_before() {
    let (_directory, settings) = place();
    let store = serve(&settings).await;
    let mut session = other_process(&settings).await;
    let explained = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {COUNTS}")));
    let rows = explained.fetch_all(&mut session).await.expect("a plan");
    let plan = rows.iter().map(|row| row.get("detail")).collect::<Vec<String>>().join("\n");
    let one_year = "SEARCH projection_births USING PRIMARY KEY (date_of_birth>? AND date_of_birth<?)";
    assert!(plan.contains(one_year) && !plan.contains("SCAN projection_births"), "{plan}");
    let statistics = sqlx::query("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'");
    assert!(
        statistics.fetch_optional(&mut session).await.expect("an answer").is_none(),
        "no plan depends on rows"
    );
    store.close().await;
}

#[tokio::test]
async fn rows_from_before_get_their_keys() {
    let (_directory, settings) = place();
    let store: std::sync::Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    for n in 1..=3 {
        region.registered(n, &format!("p{n}@example.com")).await;
    }
    store.close().await;
    drop((region, store));
    let mut session = other_process(&settings).await;
    session.execute("UPDATE patients SET name_key = NULL").await.expect("as before");
    drop(session);
    let store: std::sync::Arc<dyn Store> = serve(&settings).await;
    let by_name = crate::domain::search::PatientSearch {
        sort: crate::domain::search::Sort::Name,
        ..crate::domain::search::PatientSearch::all(None, 10)
    };
    let found = store.search(&by_name).await.expect("a page").patients;
    assert_eq!(found, list(&store, 10).await.expect("a page"));
    assert_eq!(found.len(), 3);
    store.close().await;
}

#[tokio::test]
async fn addresses_from_before_get_their_form() {
    let (_directory, settings) = place();
    let store: std::sync::Arc<dyn Store> = serve(&settings).await;
    let region = Region::start(&store).await;
    region.registered(1, "ada@xn--bcher-kva.example").await;
    region.registered(2, "noa@xn--bcher-kva.example").await;
    store.close().await;
    drop((region, store));
    let mut session = other_process(&settings).await;
    // Rows as older versions wrote them: three rows with two addresses, and one address that no rule accepts.
    for before in [
        "UPDATE patient_emails SET email_key = 'noa@b\u{fc}cher.example' WHERE email_key LIKE 'noa@%'",
        "INSERT INTO patient_emails VALUES ('ada@b\u{fc}cher.example', x'00000000000000000000000000000009'),
            ('no\u{eb}@example.org', x'0000000000000000000000000000000a')",
        "UPDATE patients SET name = 'STRA\u{df}E', name_key = 'stra\u{df}e'",
        "INSERT INTO users (email, password_hash, role, disabled, created_at) VALUES
            ('eve@b\u{fc}cher.example', 'x', 'ADMIN', 0, 1), ('bob@b\u{fc}cher.example', 'x', 'ADMIN', 0, 1),
            ('bob@xn--bcher-kva.example', 'x', 'ADMIN', 0, 1)",
        "DELETE FROM _sqlx_migrations WHERE version = 12",
        "DROP INDEX patient_emails_unkeyed",
    ] {
        session.execute(before).await.expect(before);
    }
    drop(session);
    serve(&settings).await.close().await;
    let mut session = other_process(&settings).await;
    for (sql, count) in [
        ("SELECT count(*) FROM patient_emails", 3),
        ("SELECT count(*) FROM patient_emails WHERE email_key = 'noa@xn--bcher-kva.example'", 1),
        ("SELECT count(*) FROM patient_emails WHERE email_key = 'no\u{eb}@example.org'", 1),
        ("SELECT count(*) FROM patients WHERE name_key = 'strasse'", 2),
        ("SELECT count(*) FROM users WHERE email = 'eve@xn--bcher-kva.example'", 1),
        ("SELECT count(*) FROM users WHERE email LIKE 'bob@%'", 2),
    ] {
        let counted: i64 = sqlx::query_scalar(sql).fetch_one(&mut session).await.expect(sql);
        assert_eq!(counted, count, "{sql}");
    }
}
