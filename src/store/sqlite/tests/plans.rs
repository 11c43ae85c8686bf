//! That every list is read by an index, in its order.

use sqlx::{AssertSqlSafe, Executor, Row};

use super::{other_process, place, serve};
use crate::store::Store;
use crate::store::contract::world::{Region, list};
use crate::store::searching::{Dialect, tests::every_scan};

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
        // Of a table without row ids the primary key is the table.
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
