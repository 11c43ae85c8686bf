//! A commit that hangs must not delay unrelated changes.

use super::*;

/// How long a change waits for others to gather.
const BATCH_WAIT: Duration = Duration::from_millis(20);

/// Writes 1 to entity `n` in a task of its own.
fn write(rig: &Rig, n: u128) -> tokio::task::JoinHandle<Result<i64, ErrorCode>> {
    let asker = rig.asker.clone();
    tokio::spawn(async move { asker.write(&ctx(5_000), Uuid::from_u128(n), 1).await.map_err(|e| e.code) })
}

/// Waits until `n` commits hang.
async fn until_hung(rig: &Rig, n: u32) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while rig.store.held.load(Ordering::SeqCst) < n {
        assert!(tokio::time::Instant::now() < deadline, "no commit hangs");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_commit_that_hangs_holds_up_no_other_change() {
    let rig = rig_with(ROOMY, 100, BATCH_WAIT).await;
    rig.store.hold.store(true, Ordering::SeqCst);
    let hung = write(&rig, 1);
    until_hung(&rig, 1).await;
    rig.store.hold.store(false, Ordering::SeqCst);
    // Too few changes to start a further transaction by their number: in the shard of the hung commit, and in
    // others.
    for n in 2..=6 {
        assert_eq!(write(&rig, n).await.expect("no panic"), Ok(1), "change {n}");
    }
    assert!(!hung.is_finished(), "it hangs still");
    rig.store.go.notify_waiters();
    assert_eq!(hung.await.expect("no panic"), Ok(1));
}

#[tokio::test]
async fn no_more_transactions_start_than_may_be_in_flight() {
    let rig = rig_with(ROOMY, 100, BATCH_WAIT).await;
    rig.store.hold.store(true, Ordering::SeqCst);
    let mut writes = vec![write(&rig, 1)];
    until_hung(&rig, 1).await;
    writes.push(write(&rig, 2));
    until_hung(&rig, 2).await;
    writes.extend((3..=9).map(|n| write(&rig, n)));
    // Nothing must happen in this time, so there is no condition to wait for.
    tokio::time::sleep(BATCH_WAIT * 10).await;
    assert_eq!(rig.store.held.load(Ordering::SeqCst), 2, "two may be in flight");
    rig.store.hold.store(false, Ordering::SeqCst);
    rig.store.go.notify_waiters();
    for write in writes {
        assert_eq!(write.await.expect("no panic"), Ok(1));
    }
}
