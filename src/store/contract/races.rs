//! Concurrent commits.

use std::sync::Arc;

use futures::future::join_all;

use super::world::{Region, id, list};
use crate::domain::patient::PatientState;
use crate::store::AppendOutcome::{Committed, EmailTaken};
use crate::store::{PatientAppend, Store};

async fn commit_all(
    store: &Arc<dyn Store>,
    batches: Vec<Vec<PatientAppend>>,
) -> Vec<Vec<crate::store::AppendOutcome>> {
    let tasks = batches.into_iter().map(|batch| {
        let store = Arc::clone(store);
        tokio::spawn(async move { store.commit_patients(&batch).await.expect("outcomes") })
    });
    join_all(tasks).await.into_iter().map(|task| task.expect("no panic")).collect()
}

pub(super) async fn one_address_under_parallel_commits(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    for round in 0..5u128 {
        let email = format!("round{round}@example.com");
        let batches = (0..12).map(|n| vec![region.register(round * 100 + n + 1, &email)]).collect();
        let outcomes = commit_all(&store, batches).await.concat();
        assert_eq!(outcomes.iter().filter(|o| **o == Committed).count(), 1, "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|o| **o == EmailTaken).count(), 11, "{outcomes:?}");
    }
    assert_eq!(list(&store, 100).await.expect("a page").len(), 5);
}

pub(super) async fn crossing_addresses_do_not_deadlock(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    // Each batch claims the same addresses in another order, and each pair wants the other's address.
    for round in 0..5u128 {
        let base = round * 1000;
        let one = region.registered(base + 901, &format!("{round}-one@example.com")).await;
        let two = region.registered(base + 902, &format!("{round}-two@example.com")).await;
        let address = |n: u128| format!("{round}-{n}@example.com");
        let mut batches = Vec::new();
        for task in 0..4u128 {
            let numbers: Vec<u128> = if task % 2 == 0 { (0..10).collect() } else { (0..10).rev().collect() };
            let rows = numbers.iter().map(|n| region.register(base + task * 100 + n + 1, &address(*n)));
            batches.push(rows.collect::<Vec<_>>());
        }
        batches.push(vec![region.update(&one, &two.details.email)]);
        batches.push(vec![region.update(&two, &one.details.email)]);
        let outcomes = commit_all(&store, batches).await;
        let claims = outcomes[..4].concat();
        assert_eq!(claims.iter().filter(|o| **o == Committed).count(), 10, "{claims:?}");
        assert_eq!(claims.iter().filter(|o| **o == EmailTaken).count(), 30, "{claims:?}");
        for swapped in outcomes[4..].concat() {
            assert!(matches!(swapped, Committed | EmailTaken), "{swapped:?}");
        }
    }
}

pub(super) async fn large_batches_in_parallel(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let batch = |first: u128| -> Vec<PatientAppend> {
        (first..first + 200).map(|n| region.register(n, &format!("p{n}@example.com"))).collect()
    };
    let outcomes = commit_all(&store, (0..4).map(|n| batch(n * 200 + 1)).collect()).await.concat();
    assert_eq!(outcomes.len(), 800);
    assert!(outcomes.iter().all(|o| *o == Committed));
    assert!(matches!(region.state(id(800)).await, PatientState::Active(_)));
    assert_eq!(list(&store, 1000).await.expect("a page").len(), 800);
}
