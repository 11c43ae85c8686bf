//! Sessions that wait for each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::{PATIENCE, Stage};
use crate::actors::entity::Entity;
use crate::actors::patients::Patients;
use crate::audit::{Chains, Growth, Key};
use crate::clock::SystemClock;
use crate::domain::event::EventType;
use crate::domain::ids::Kind;
use crate::domain::patient::PatientState;
use crate::domain::time::Timestamp;
use crate::store::AppendOutcome::{Committed, Conflict, EmailTaken, Fenced};
use crate::store::contract::world::{LONG, id, list, new_command};
use crate::store::{Error, NextLog, OUTBOX_DEPTH_ROWS_MAX, PartitionOffset, ProjectionSource, Replay};

/// A commit of this shard that has locked the lease and not ended.
const COMMIT_IN_FLIGHT: &str = "BEGIN; SELECT FROM leases WHERE kind = 'patient' AND shard = 0 FOR KEY SHARE";

#[tokio::test]
async fn a_taker_waits_for_a_commit_in_flight() {
    let mut stage = Stage::set(|_| ()).await;
    stage.other(COMMIT_IN_FLIGHT).await;
    stage.store.release(Kind::Patient, &stage.region.held, stage.region.owner).await.expect("an answer");
    let store = Arc::clone(&stage.store);
    let taker = tokio::spawn(async move { store.acquire(Kind::Patient, &[0], "b#1", LONG).await });
    stage.until_someone_waits().await;
    assert!(!taker.is_finished());
    stage.other("COMMIT").await;
    let taken = timeout(PATIENCE, taker).await.expect("in time").expect("no panic").expect("an answer");
    assert!(taken[0].epoch > stage.region.epoch(0));
}

#[tokio::test]
async fn a_taker_does_not_wait_for_ever() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 50).await;
    stage.other(COMMIT_IN_FLIGHT).await;
    stage.store.release(Kind::Patient, &stage.region.held, stage.region.owner).await.expect("an answer");
    let taken = stage.store.acquire(Kind::Patient, &[0, 1], "b#1", LONG).await;
    assert!(matches!(taken, Err(Error::Unavailable(_))), "{taken:?}");
    let rows = stage.store.leases(Kind::Patient).await.expect("rows");
    assert!(rows.iter().all(|row| row.owner == stage.region.owner), "all or nothing");
}

#[tokio::test]
async fn a_lease_of_another_is_left_out_without_a_wait() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 50).await;
    stage.other(COMMIT_IN_FLIGHT).await;
    let taken = stage.store.acquire(Kind::Patient, &[0, 9], "b#1", LONG).await.expect("an answer");
    assert_eq!(taken.iter().map(|lease| lease.shard).collect::<Vec<_>>(), [9]);
}

#[tokio::test]
async fn a_renewal_does_not_wait_for_commits() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 50).await;
    stage.other(COMMIT_IN_FLIGHT).await;
    let held = stage.region.held.clone();
    let renewed = stage.store.renew(Kind::Patient, &held, stage.region.owner, LONG).await;
    assert_eq!(renewed.expect("an answer").len(), held.len());
    // Conversely, commits do not wait for a renewal in flight.
    stage.other("ROLLBACK; BEGIN; UPDATE leases SET expires_at = clock_timestamp()").await;
    stage.region.registered(1, "one@example.com").await;
}

#[tokio::test]
async fn new_epochs_wait_for_no_commit_and_are_had_when_it_has_ended() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 50).await;
    stage.other(COMMIT_IN_FLIGHT).await;
    let (held, owner) = (stage.region.held.clone(), stage.region.owner);
    for _ in 0..2 {
        // Every call raises all leases but this one.
        let refenced = stage.store.refence(Kind::Patient, &held, owner, LONG).await.expect("an answer");
        let mut raised: Vec<_> = refenced.leases.iter().map(|lease| lease.shard).collect();
        raised.sort_unstable();
        assert_eq!((raised, refenced.busy), (vec![1, 2, 3], vec![0]));
        let renewed = stage.store.renew(Kind::Patient, &held[..1], owner, LONG).await.expect("an answer");
        assert_eq!(renewed, [0], "it is renewed meanwhile");
    }
    stage.other("COMMIT").await;
    let refenced = stage.store.refence(Kind::Patient, &held[..1], owner, LONG).await.expect("an answer");
    assert_eq!(refenced.leases[0].epoch.0, held[0].epoch.0 + 1);
    assert!(refenced.busy.is_empty());
}

#[tokio::test]
async fn a_flood_of_loads_does_not_keep_leases_waiting() {
    let mut stage = Stage::set(|settings| {
        settings.connections_max = 3;
        settings.acquire_timeout_ms = 5_000;
    })
    .await;
    stage.region.registered(1, "one@example.com").await;
    stage.other("BEGIN; UPDATE patients SET version = 2").await;
    let store = Arc::clone(&stage.store);
    let load = tokio::spawn(async move { store.load_patient(id(1), None).await });
    stage.until_someone_waits().await;
    let starved = list(&stage.store, 1).await;
    assert!(matches!(starved, Err(Error::Unavailable(_))), "the only connection is busy: {starved:?}");
    let (held, owner) = (stage.region.held.clone(), stage.region.owner);
    let renewed = stage.store.renew(Kind::Patient, &held, owner, LONG).await.expect("an answer");
    assert_eq!(renewed.len(), held.len());
    stage.store.release(Kind::Patient, &held[..1], owner).await.expect("an answer");
    assert_eq!(stage.store.acquire(Kind::Patient, &[0], "b#1", LONG).await.expect("an answer").len(), 1);
    assert!(!load.is_finished());
    stage.other("COMMIT").await;
    timeout(PATIENCE, load).await.expect("in time").expect("no panic").expect("a state");
}

#[tokio::test]
async fn both_journals_leave_connections_for_loads() {
    for (connections_max, writers) in [(3, 1), (4, 1), (12, 3)] {
        let stage = Stage::set(|settings| settings.connections_max = connections_max).await;
        assert_eq!(stage.store.writers(), writers);
    }
}

#[tokio::test]
async fn a_commit_that_met_a_taker_is_fenced() {
    let mut stage = Stage::set(|_| ()).await;
    let row = stage.region.register(1, "one@example.com");
    stage.other("BEGIN; UPDATE leases SET epoch = epoch + 1").await;
    let (store, batch) = (Arc::clone(&stage.store), [row]);
    let commit = tokio::spawn(async move { store.commit_patients(&batch).await });
    stage.until_someone_waits().await;
    stage.other("COMMIT").await;
    let outcomes = timeout(PATIENCE, commit).await.expect("in time").expect("no panic");
    assert_eq!(outcomes.expect("outcomes"), [Fenced]);
}

#[tokio::test]
async fn a_commit_that_cannot_get_its_lock_did_not_happen() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 30).await;
    let batch = [stage.region.register(1, "one@example.com"), stage.region.register(2, "two@example.com")];
    stage.other("BEGIN; UPDATE leases SET epoch = epoch + 1").await;
    let outcomes = stage.store.commit_patients(&batch).await;
    assert!(matches!(outcomes, Err(Error::Unavailable(_))), "{outcomes:?}");
    stage.other("ROLLBACK").await;
    assert!(stage.store.is_empty().await.expect("an answer"));
    assert_eq!(stage.store.commit_patients(&batch).await.expect("outcomes"), [Committed, Committed]);
}

#[tokio::test]
async fn a_statement_that_the_server_ends_did_not_happen() {
    let mut stage = Stage::set(|settings| settings.statement_timeout_ms = 200).await;
    let batch = [stage.region.register(1, "one@example.com")];
    stage.other("BEGIN; UPDATE leases SET epoch = epoch + 1").await;
    let outcomes = stage.store.commit_patients(&batch).await;
    assert!(matches!(&outcomes, Err(Error::Unavailable(said)) if said.contains("57014")), "{outcomes:?}");
    stage.other("ROLLBACK").await;
    assert_eq!(stage.store.commit_patients(&batch).await.expect("outcomes"), [Committed]);
}

#[tokio::test]
async fn a_locked_row_does_not_keep_its_neighbours() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 30).await;
    let one = stage.region.registered(1, "one@example.com").await;
    let batch: Vec<_> = (2..=5).map(|n| stage.region.register(n, &format!("p{n}@example.com"))).collect();
    let batch = [batch, vec![stage.region.update(&one, "one@example.com")]].concat();
    stage.other("BEGIN; UPDATE patients SET version = version").await;
    // Four rows are committed, so the error for the batch must not say that nothing happened.
    let outcomes = stage.store.commit_patients(&batch).await;
    assert!(matches!(outcomes, Err(Error::Unknown(_))), "{outcomes:?}");
    assert!(matches!(stage.region.state(id(2)).await, PatientState::Active(_)));
}

/// A registration in flight that the shard does not know of.
fn zombie(n: u32, email: &str) -> String {
    format!(
        "BEGIN;
         INSERT INTO patient_emails VALUES ('{email}', '00000000-0000-0000-0000-00000000000{n}');
         INSERT INTO patients (id, version, deleted, created_at, name, email, address, date_of_birth, registered_date)
         VALUES ('00000000-0000-0000-0000-00000000000{n}', 1, false, 1, 'n', '{email}', 'a', '2000-01-01', '2026-01-01')"
    )
}

#[tokio::test]
async fn a_zombies_row_is_a_conflict_and_its_neighbours_are_committed() {
    let mut stage = Stage::set(|_| ()).await;
    stage.other(&zombie(2, "zombie@example.com")).await;
    let batch: Vec<_> = (1..=3).map(|n| stage.region.register(n, &format!("p{n}@example.com"))).collect();
    let store = Arc::clone(&stage.store);
    let commit = tokio::spawn(async move { store.commit_patients(&batch).await });
    stage.until_someone_waits().await;
    stage.other("COMMIT").await;
    let outcomes = timeout(PATIENCE, commit).await.expect("in time").expect("no panic");
    assert_eq!(outcomes.expect("outcomes"), [Committed, Conflict, Committed]);
    assert_eq!(stage.number("SELECT count(*) FROM patient_events").await, 2);
    assert_eq!(stage.number("SELECT count(*) FROM patient_emails").await, 3, "no address is left behind");
}

#[tokio::test]
async fn a_zombies_address_is_a_conflict_for_its_patient() {
    let mut stage = Stage::set(|_| ()).await;
    stage.other(&zombie(2, "p2@example.com")).await;
    let batch = [stage.region.register(2, "P2@example.com")];
    let store = Arc::clone(&stage.store);
    let commit = tokio::spawn(async move { store.commit_patients(&batch).await });
    stage.until_someone_waits().await;
    stage.other("COMMIT").await;
    let outcomes = timeout(PATIENCE, commit).await.expect("in time").expect("no panic");
    assert_eq!(outcomes.expect("outcomes"), [Conflict]);
}

#[tokio::test]
async fn a_load_waits_for_a_change_in_flight() {
    let mut stage = Stage::set(|_| ()).await;
    stage.region.registered(1, "one@example.com").await;
    stage.other("BEGIN; UPDATE patients SET version = 2").await;
    let store = Arc::clone(&stage.store);
    let load = tokio::spawn(async move { store.load_patient(id(1), Some(new_command())).await });
    stage.until_someone_waits().await;
    stage.other("COMMIT").await;
    let loaded = timeout(PATIENCE, load).await.expect("in time").expect("no panic").expect("a state");
    let PatientState::Active(patient) = loaded.state else { panic!("the patient lives") };
    assert_eq!(patient.version, 2);
    // A rolled-back change leaves its trace in the row, which only costs another read.
    stage.other("BEGIN; UPDATE patients SET version = 3; ROLLBACK").await;
    let PatientState::Active(patient) = stage.region.state(id(1)).await else { panic!("the patient lives") };
    assert_eq!(patient.version, 2);
}

#[tokio::test]
async fn a_call_that_is_dropped_leaves_its_connection_to_nobody() {
    let mut stage = Stage::set(|settings| {
        settings.connections_max = 3;
        settings.acquire_timeout_ms = 20_000;
    })
    .await;
    stage.other("BEGIN; UPDATE leases SET epoch = epoch + 1").await;
    for n in 1..=3 {
        let (store, batch) =
            (Arc::clone(&stage.store), [stage.region.register(n, &format!("p{n}@example.com"))]);
        let commit = tokio::spawn(async move { store.commit_patients(&batch).await });
        stage.until_someone_waits().await;
        commit.abort();
        assert!(commit.await.expect_err("aborted").is_cancelled());
    }
    stage.other("ROLLBACK").await;
    // Answers match their queries: the outcomes of the dropped calls are not taken for this answer.
    assert_eq!(stage.store.leases(Kind::Patient).await.expect("rows").len(), 4);
    assert_eq!(stage.region.commit(&stage.region.register(9, "p9@example.com")).await, Committed);
}

#[tokio::test]
async fn what_analytics_has_applied_is_forgotten_by_the_outbox() {
    let mut stage = Stage::set(|_| ()).await;
    let batch: Vec<_> = (1..=5000).map(|n| stage.region.register(n, &format!("p{n}@example.com"))).collect();
    for rows in batch.chunks(500) {
        stage.store.commit_patients(rows).await.expect("outcomes");
    }
    let events = stage.store.unpublished(9000).await.expect("events");
    let seqs: Vec<i64> = events.iter().map(|e| e.seq).collect();
    let next = NextLog {
        after: 0,
        cluster: "b1".into(),
        topic: "t".into(),
        at: Timestamp(0),
        reason: "the first".into(),
        replay: Replay::Uncounted,
    };
    let log = stage.store.begin_log(&next).await.expect("a log");
    stage.store.mark_published(&seqs, log.no, &[]).await.expect("marked");
    assert_eq!(stage.number("SELECT count(*) FROM outbox_sent").await, 5000);
    let source = ProjectionSource { group: "g".into(), broker: "b1".into(), topic: "t".into() };
    // Applied newest first, so that trimming has to start over.
    let mut events: Vec<_> = events.iter().map(|e| &e.recorded).collect();
    events.reverse();
    for chunk in events.chunks(500) {
        let observations: Vec<_> = chunk
            .iter()
            .map(|e| crate::domain::analytics::Observation {
                patient_id: e.patient_id(),
                version: e.version(),
                event_type: EventType::Created,
                at: e.at,
                date_of_birth: None,
            })
            .collect();
        let offsets = [PartitionOffset { partition: 0, next_offset: 1 }];
        stage.store.apply(&source, &offsets, &observations).await.expect("applied");
    }
    let left = stage.number("SELECT count(*) FROM outbox_sent").await;
    // After 2000 events, trimming scanned the 4000 oldest rows, of which 1000 were applied. After 4000, it
    // scanned the other 1000. The rest is left for a later round, or for the next start.
    assert_eq!(left, 3000);
    let put_back = stage.store.republish_forgotten("b2", None, 5_000).await.expect("an answer");
    assert_eq!(put_back.rows, 0);
    assert_eq!(stage.number("SELECT count(*) FROM outbox_sent").await, 0);
}

#[tokio::test]
async fn consumers_wait_for_each_other_but_not_for_ever() {
    let mut stage = Stage::set(|settings| settings.lock_timeout_ms = 50).await;
    stage.other("BEGIN; SELECT pg_advisory_xact_lock(114849211771233)").await;
    let source = ProjectionSource { group: "g".into(), broker: "b1".into(), topic: "t".into() };
    let applied = stage.store.apply(&source, &[], &[]).await;
    assert!(matches!(applied, Err(Error::Unavailable(_))), "{applied:?}");
    stage.other("ROLLBACK").await;
    let applied = timeout(Duration::from_secs(20), stage.store.apply(&source, &[], &[])).await;
    applied.expect("in time").expect("applied");
}

#[tokio::test]
async fn a_deep_outbox_is_not_counted_to_its_end() {
    let mut stage = Stage::set(|_| ()).await;
    stage
        .other(
            "INSERT INTO outbox (seq, version, patient_id) SELECT n, 1, gen_random_uuid() FROM generate_series(1, 100010) n;
             INSERT INTO unbilled SELECT seq, version, patient_id FROM outbox",
        )
        .await;
    let beyond = u64::from(OUTBOX_DEPTH_ROWS_MAX) + 1;
    let depth = stage.store.outbox_depth().await.expect("a depth");
    assert_eq!((depth.unpublished_rows, depth.unbilled_rows), (beyond, beyond));
    stage.other("DELETE FROM outbox WHERE seq > 99999").await;
    assert_eq!(stage.store.outbox_depth().await.expect("a depth").unpublished_rows, 99_999);
}

#[tokio::test]
async fn a_commit_that_hangs_holds_up_no_other_of_its_shard() {
    let mut stage = Stage::set(|_| ()).await;
    // Another session is about to claim the address, so the commit that wants it waits for that session to
    // end.
    stage.other("BEGIN; INSERT INTO patient_emails VALUES ('one@example.com', gen_random_uuid())").await;
    let (store, row) = (Arc::clone(&stage.store), stage.region.register(1, "one@example.com"));
    let hung = tokio::spawn(async move { store.commit_patients(&[row]).await });
    stage.until_someone_waits().await;
    for n in 2..=9 {
        let row = stage.region.register(n, &format!("p{n}@example.com"));
        let done = timeout(PATIENCE / 10, stage.region.commit(&row)).await;
        assert_eq!(done, Ok(Committed), "patient {n}");
    }
    assert!(!hung.is_finished(), "it hangs still");
    stage.other("ROLLBACK").await;
    let done = timeout(PATIENCE, hung).await.expect("in time").expect("no panic");
    assert_eq!(done, Ok(vec![Committed]));
}

/// Slow queries occupy every connection for loads and lists. A change is committed and audited all the same,
/// by a chain that has not pinned the others yet.
#[tokio::test]
async fn a_commit_needs_no_connection_of_those_for_loads_and_lists() {
    let mut stage = Stage::set(|settings| {
        settings.connections_max = 4;
        settings.acquire_timeout_ms = 5_000;
    })
    .await;
    stage.region.registered(1, "one@example.com").await;
    stage.other("BEGIN; LOCK TABLE users IN ACCESS EXCLUSIVE MODE").await;
    let selects: Vec<_> = (0..4)
        .map(|_| {
            let store = Arc::clone(&stage.store);
            tokio::spawn(async move { store.list_users(None, 1).await })
        })
        .collect();
    stage.until_someone_waits().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while let Ok(at) = stage.store.ping().await {
        assert!(tokio::time::Instant::now() < deadline, "a connection is free still: {at:?}");
    }
    let key = Key::of(b"a secret of the tests, of 32 bytes");
    let store = Arc::clone(&stage.store);
    let chains = Chains::new(key, "a#1".into(), store as _, Arc::new(SystemClock), LONG, Growth::default());
    // The second row's address is taken; the query for its owner runs within the commit.
    let rows = [stage.region.register(2, "two@example.com"), stage.region.register(3, "one@example.com")];
    let chain = chains.take();
    let batch = chains.seal(&chain, rows.iter().filter_map(Patients::access).collect());
    let began = tokio::time::Instant::now();
    let done = stage.store.commit_patients_audited(&rows, Some(&batch)).await;
    assert_eq!(done, Ok(vec![Committed, EmailTaken]));
    assert!(
        began.elapsed() < Duration::from_millis(5_000),
        "it waited for a connection: {:?}",
        began.elapsed()
    );
    stage.other("ROLLBACK").await;
    for select in selects {
        // Those that found no connection have failed.
        drop(select.await.expect("no panic"));
    }
}
