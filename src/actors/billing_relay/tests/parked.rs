//! Rows that cannot be read, or fail again and again.

use super::*;

#[tokio::test]
async fn registrations_that_cannot_be_read_keep_nobody_from_an_account() {
    let (store, accounts) = (FakeStore::with(1..=20), Arc::new(FakeAccounts::default()));
    store.spoiled.lock().unwrap().extend(1..=12);
    // The poll interval exceeds the test, so the rows behind the unreadable ones are found without a further
    // tick.
    let args = args(
        &store,
        &accounts,
        Settings { batch_rows_max: 5, poll_ms: 60_000, park_min_ms: 60_000, park_max_ms: 60_000, ..quick() },
    );
    let relay = start(&args).await;
    until("the others have accounts", || store.marked() == (13..=20).collect::<Vec<_>>()).await;
    until("told", || {
        matches!(health_of(&args), Status::Explained(reason) if reason.starts_with("12 patients are parked"))
    })
    .await;
    let reads = store.reads.load(Ordering::SeqCst);
    assert!(reads < 10, "{reads} reads: what cannot be read is no reason to read again and again");
    relay.stop(None);
}

#[tokio::test]
async fn more_failing_rows_than_are_remembered_keep_nobody_from_an_account() {
    for fate in [Fate::Refuse(ErrorCode::Internal), Fate::Refuse(ErrorCode::OutcomeUnknown)] {
        // More failing rows than fit in memory and a batch together, all of them older than the good rows.
        let (store, accounts) = (FakeStore::with(1..=60), Arc::new(FakeAccounts::default()));
        accounts.doom(1..=60, fate);
        store.add(61..=80);
        let settings = Settings {
            batch_rows_max: 8,
            failing_rows_max: 16,
            concurrency_max: 4,
            park_min_ms: 60_000,
            park_max_ms: 60_000,
            ..quick()
        };
        let args = args(&store, &accounts, settings);
        let relay = start(&args).await;
        until("the good rows get through", || store.marked() == (61..=80).collect::<Vec<_>>()).await;
        until("all that cannot be remembered are parked", || store.parked.lock().unwrap().len() >= 44).await;
        until("told", || matches!(health_of(&args), Status::Explained(_))).await;
        relay.stop_and_wait(None, None).await.unwrap();
    }
}
