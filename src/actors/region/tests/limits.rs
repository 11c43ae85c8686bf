//! The limits of a region: concurrent lists, and the duration of one statement about leases.

use super::*;

#[tokio::test]
async fn more_lists_at_once_than_allowed_are_turned_away() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.query(&ctx(5_000), || ()).await, Ok(0));
    rig.store.hold.store(true, Ordering::SeqCst);
    let asker = rig.asker.clone();
    let first = tokio::spawn(async move { asker.query(&ctx(20_000), || ()).await });
    let asked = async {
        while rig.store.held.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), asked).await.expect("the first list is read");
    let second = rig.asker.query(&ctx(1_000), || ()).await;
    assert_eq!(second.map_err(|e| e.code), Err(ErrorCode::Overloaded));
    assert_eq!(rig.store.held.load(Ordering::SeqCst), 1, "the database was not asked a second time");
    rig.store.hold.store(false, Ordering::SeqCst);
    rig.store.go.notify_waiters();
    assert_eq!(first.await.expect("no panic"), Ok(0));
    assert_eq!(rig.asker.query(&ctx(5_000), || ()).await, Ok(0), "its place is free again");
}

/// A statement that is never answered must not delay the next one for ever.
#[tokio::test]
async fn a_statement_about_leases_that_hangs_is_given_up_and_repeated() {
    let rig = rig(ROOMY, 100).await;
    assert_eq!(rig.asker.write(&ctx(5_000), ID, 5).await, Ok(5));
    let hangs = [&rig.store.hang_taking, &rig.store.hang_renewal];
    for (n, hang) in hangs.into_iter().enumerate() {
        hang.store(true, Ordering::SeqCst);
        if n == 0 {
            // Only a shard without a lease takes one: the shard dies, and takes its lease again.
            let killed = rig.asker.write(&ctx(30), ID, 666).await;
            assert_eq!(killed.map_err(|e| e.code), Err(ErrorCode::OutcomeUnknown));
        }
        let hung = async {
            while hang.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), hung).await.expect("a statement hangs");
        // Longer than the lease lasts. The lease has expired, unless another statement followed the hung one.
        tokio::time::sleep(Duration::from_millis(600)).await;
        assert_eq!(rig.asker.read(&ctx(10_000), ID).await, Ok(5), "statement {n}");
    }
}
