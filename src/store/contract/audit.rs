//! The access audit: batches come back as they were, in order, and are found by their terms.

use std::sync::Arc;

use uuid::Uuid;

use super::world::Region;
use crate::domain::audit::Change;
use crate::domain::ids::EventId;
use crate::domain::time::Timestamp;
use crate::store::{AppendOutcome, AuditBatch, AuditPosition, AuditSearch, Error, Store};

fn batch(chain: u128, seq: i64, terms: &[i32]) -> AuditBatch {
    AuditBatch {
        chain: Uuid::from_u128(chain),
        seq,
        at: Timestamp(1_000 + seq * 10 + i64::try_from(chain).expect("small")),
        mac: [u8::try_from(seq).expect("small"); 32],
        body: format!("body {chain} {seq}").into_bytes(),
        terms: terms.to_vec(),
    }
}

pub(super) async fn batches_come_back_in_order(store: Arc<dyn Store>) {
    assert_eq!(store.audit_heads(None, 10).await.expect("an answer"), []);
    for seq in 0..5 {
        for chain in [1, 2, 3] {
            store.append_audit(&batch(chain, seq, &[i32::MIN, -1, 7])).await.expect("added");
        }
    }
    let page = store.audit_batches(Uuid::from_u128(2), 1, 3).await.expect("an answer");
    assert_eq!(page, [1, 2, 3].map(|seq| batch(2, seq, &[i32::MIN, -1, 7])));
    let heads = store.audit_heads(None, 2).await.expect("an answer");
    let places = |heads: &[crate::store::AuditHead]| {
        heads.iter().map(|head| (head.chain.as_u128(), head.seq, head.mac)).collect::<Vec<_>>()
    };
    assert_eq!(places(&heads), [(3, 4, [4; 32]), (2, 4, [4; 32])]);
    let rest = store.audit_heads(Some(heads[1].chain), 2).await.expect("an answer");
    assert_eq!(places(&rest), [(1, 4, [4; 32])]);
}

pub(super) async fn a_place_is_taken_once(store: Arc<dyn Store>) {
    store.append_audit(&batch(1, 0, &[1])).await.expect("added");
    let again = store.append_audit(&AuditBatch { body: b"other".to_vec(), ..batch(1, 0, &[1]) }).await;
    assert!(matches!(again, Err(Error::Broken(_) | Error::Unavailable(_))), "{again:?}");
    assert_eq!(store.audit_batches(Uuid::from_u128(1), 0, 9).await.expect("an answer"), [batch(1, 0, &[1])]);
}

pub(super) async fn batches_are_found_by_terms_and_time(store: Arc<dyn Store>) {
    for seq in 0..6 {
        let terms: &[i32] = if seq % 2 == 0 { &[-5, 1, 2] } else { &[1, 3] };
        store.append_audit(&batch(1, seq, terms)).await.expect("added");
    }
    let youngest = AuditPosition { at: Timestamp(i64::MAX), chain: Uuid::max(), seq: i64::MAX };
    let search = async |terms: &[i32], from: i64, until: AuditPosition, limit_rows: u32| {
        let search = AuditSearch { terms: terms.to_vec(), from: Timestamp(from), until, limit_rows };
        let found = store.search_audit(&search).await.expect("an answer");
        found.into_iter().map(|batch| batch.seq).collect::<Vec<_>>()
    };
    assert_eq!(search(&[], 0, youngest, 100).await, [5, 4, 3, 2, 1, 0]);
    assert_eq!(search(&[1], 0, youngest, 4).await, [5, 4, 3, 2]);
    assert_eq!(search(&[1, -5], 0, youngest, 100).await, [4, 2, 0]);
    assert!(search(&[2, 3], 0, youngest, 100).await.is_empty());
    assert!(search(&[4], 0, youngest, 100).await.is_empty());
    assert_eq!(search(&[1], 1_031, youngest, 100).await, [5, 4, 3]);
    let until = AuditPosition { at: Timestamp(1_031), chain: Uuid::from_u128(1), seq: 3 };
    assert_eq!(search(&[1], 0, until, 100).await, [3, 2, 1, 0]);
    assert_eq!(search(&[1], 0, AuditPosition { seq: 2, ..until }, 100).await, [2, 1, 0]);
}

pub(super) async fn what_is_committed_is_audited_with_it(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let there = async |chain: u128| {
        !store.audit_batches(Uuid::from_u128(chain), 0, 1).await.expect("an answer").is_empty()
    };
    // One registration, and several: two statements in PostgreSQL.
    let alone = [region.register(1, "one@example.com")];
    let several = [region.register(2, "two@example.com"), region.register(3, "three@example.com")];
    for (chain, rows) in [(1, &alone[..]), (2, &several[..])] {
        let sealed = batch(chain, 0, &[9]);
        let outcomes = store.commit_patients_audited(rows, Some(&sealed)).await.expect("outcomes");
        assert!(outcomes.iter().all(|outcome| *outcome == AppendOutcome::Committed));
        assert!(there(chain).await);
    }
    // All refused: that it was tried stays.
    let refused = [region.register(4, "one@example.com")];
    let outcomes = store.commit_patients_audited(&refused, Some(&batch(3, 0, &[9]))).await.expect("outcomes");
    assert_eq!(outcomes, [AppendOutcome::EmailTaken]);
    assert!(there(3).await);
    // The place is taken: nothing is committed without its audit.
    let unaudited = [region.register(5, "five@example.com"), region.register(6, "six@example.com")];
    for rows in [&unaudited[..], &unaudited[..1]] {
        let outcomes = store.commit_patients_audited(rows, Some(&batch(3, 0, &[9]))).await;
        let done = outcomes.is_ok_and(|outcomes| outcomes.contains(&AppendOutcome::Committed));
        assert!(!done, "nothing goes without its audit");
    }
    let change = |n: usize, row: &crate::store::PatientAppend, version: i64| {
        let event = if n == 0 { row.recorded.event_id } else { EventId(Uuid::from_u128(n as u128)) };
        (row.recorded.patient_id(), Change { event, version })
    };
    let asked = [
        change(0, &alone[0], 1),
        change(7, &alone[0], 1),
        change(0, &refused[0], 1),
        change(0, &several[1], 1),
        change(0, &several[1], 2),
    ];
    let made = store.changes_made(&asked).await.expect("an answer");
    assert_eq!(made, [true, false, false, true, false]);
}
