//! The access audit: batches are read back unchanged and in order, and are found by their terms.

use std::sync::Arc;

use uuid::Uuid;

use super::world::Region;
use crate::domain::audit::Change;
use crate::domain::ids::EventId;
use crate::domain::time::Timestamp;
use crate::store::{
    AppendOutcome, AuditAnchor, AuditBatch, AuditHead, AuditPosition, AuditSearch, Error, EventAt, Store,
};

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
    // Chains and positions that no writer creates are refused.
    let real = batch(4, 0, &[1]);
    for odd in [
        AuditBatch { chain: Uuid::max(), ..real.clone() },
        AuditBatch { chain: Uuid::nil(), ..real.clone() },
        AuditBatch { seq: -1, ..real },
    ] {
        let refused = store.append_audit(&odd).await;
        assert!(matches!(refused, Err(Error::Broken(_))), "{refused:?}");
    }
    assert_eq!(store.audit_heads(None, 10).await.expect("an answer").len(), 3);
}

pub(super) async fn a_place_is_taken_once(store: Arc<dyn Store>) {
    store.append_audit(&batch(1, 0, &[1])).await.expect("added");
    let other = AuditBatch { body: b"other".to_vec(), ..batch(1, 0, &[1]) };
    let later = AuditBatch { at: Timestamp(2_000), ..other.clone() };
    for again in [other, later] {
        let again = store.append_audit(&again).await;
        assert!(matches!(again, Err(Error::Broken(_) | Error::Unavailable(_))), "{again:?}");
    }
    assert_eq!(store.audit_batches(Uuid::from_u128(1), 0, 9).await.expect("an answer"), [batch(1, 0, &[1])]);
}

pub(super) async fn batches_are_found_by_terms_and_time(store: Arc<dyn Store>) {
    for seq in 0..6 {
        let terms: &[i32] = if seq % 2 == 0 { &[-5, 1, 2] } else { &[1, 3] };
        store.append_audit(&batch(1, seq, terms)).await.expect("added");
    }
    let youngest = YOUNGEST;
    let search = async |terms: &[i32], from: i64, until: AuditPosition, limit_rows: u32| {
        let search = AuditSearch { terms: terms.to_vec(), from: Timestamp(from), until, limit_rows };
        let found = store.search_audit(&search).await.expect("an answer");
        found.batches.into_iter().map(|batch| batch.seq).collect::<Vec<_>>()
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

/// Batches of one moment are listed in order, whatever the order of insertion and the page size.
pub(super) async fn batches_of_one_moment_come_in_their_order(store: Arc<dyn Store>) {
    for (chain, at) in [(3, 5), (1, 5), (9, 4), (4, 5), (2, 5), (1, 6), (5, 5)] {
        let seq = if at == 6 { 1 } else { 0 };
        let row = AuditBatch { at: Timestamp(at), ..batch(chain, seq, &[1, 2]) };
        store.append_audit(&row).await.expect("added");
    }
    for terms in [&[][..], &[1], &[1, 2]] {
        for limit_rows in 1..=8 {
            let (mut until, mut found) = (YOUNGEST, Vec::new());
            loop {
                let search = AuditSearch { terms: terms.to_vec(), from: Timestamp(0), until, limit_rows };
                let page = store.search_audit(&search).await.expect("an answer");
                assert!(page.batches.len() <= limit_rows as usize);
                found.extend(page.batches.iter().map(|batch| (batch.at.0, batch.chain.as_u128())));
                let Some(looked_to) = page.looked_to else { break };
                until = AuditPosition { seq: looked_to.seq - 1, ..looked_to };
            }
            let expected = [(6, 1), (5, 5), (5, 4), (5, 3), (5, 2), (5, 1), (4, 9)];
            assert_eq!(found, expected, "{terms:?}, {limit_rows} rows a call");
        }
    }
}

const YOUNGEST: AuditPosition = AuditPosition { at: Timestamp(i64::MAX), chain: Uuid::max(), seq: i64::MAX };

/// One row among many is found by calls that each scan a bounded number of rows. All rows of a common term
/// are found in order.
pub(super) async fn a_rare_term_is_found_by_bounded_steps(store: Arc<dyn Store>) {
    const ROWS: i64 = 2_600;
    // Three months, so that a search crosses from one to the next.
    let at = |seq: i64| Timestamp(1_700_000_000_000_000 + seq * 3_000_000_000);
    for seq in 0..ROWS {
        let terms: &[i32] = if seq == 7 { &[1, 99] } else { &[1] };
        let row = AuditBatch { chain: Uuid::from_u128(1), at: at(seq), mac: [0; 32], ..batch(1, 0, terms) };
        store.append_audit(&AuditBatch { seq, ..row }).await.expect("added");
    }
    let all = async |terms: &[i32]| {
        let (mut until, mut found, mut calls) = (YOUNGEST, Vec::new(), 0);
        loop {
            let search = AuditSearch { terms: terms.to_vec(), from: Timestamp(0), until, limit_rows: 64 };
            let page = store.search_audit(&search).await.expect("an answer");
            assert!(page.batches.len() <= 64);
            found.extend(page.batches.into_iter().map(|batch| batch.seq));
            calls += 1;
            let Some(looked_to) = page.looked_to else { return (found, calls) };
            assert!((looked_to.at, looked_to.seq) < (until.at, until.seq), "{looked_to:?} is no progress");
            until = AuditPosition { seq: looked_to.seq - 1, ..looked_to };
        }
    };
    let (rare, calls) = all(&[99]).await;
    assert_eq!(rare, [7]);
    assert!(calls <= 8, "{calls} calls");
    let (none, calls) = all(&[98]).await;
    assert!(none.is_empty() && calls <= 8, "{calls} calls");
    assert_eq!(all(&[1, 99]).await.0, [7]);
    let expected: Vec<i64> = (0..ROWS).rev().collect();
    assert_eq!(all(&[1]).await.0, expected);
    assert_eq!(all(&[]).await.0, expected);
}

fn anchor(chain: u128, seq: i64) -> AuditAnchor {
    let chain = Uuid::from_u128(chain);
    AuditAnchor {
        head: AuditHead { chain, seq, mac: [u8::try_from(seq).expect("small"); 32] },
        seal: [7; 32],
    }
}

/// Adds three chains and returns a time: two chains have rows before and after it, one only before it.
async fn two_months(store: &Arc<dyn Store>) -> Timestamp {
    let now = store.ping().await.expect("a clock");
    let month_ahead = Timestamp(now.0 + 32 * 86_400_000_000);
    let end = store.audit_can_end_at(month_ahead).await.expect("an answer").expect("a moment");
    assert!(end <= month_ahead);
    for chain in [1, 2, 3] {
        for seq in 0..5 {
            let at = Timestamp(end.0 - 3 + if chain == 3 { 0 } else { seq });
            store.append_audit(&AuditBatch { at, ..batch(chain, seq, &[1]) }).await.expect("added");
        }
    }
    end
}

async fn rows_left(store: &Arc<dyn Store>) -> Vec<(u128, i64)> {
    let mut left = Vec::new();
    for chain in [1, 2, 3] {
        let rows = store.audit_batches(Uuid::from_u128(chain), 0, 100).await.expect("an answer");
        left.extend(rows.iter().map(|row| (row.chain.as_u128(), row.seq)));
    }
    left
}

pub(super) async fn what_was_archived_is_taken_away_behind_its_anchors(store: Arc<dyn Store>) {
    let end = two_months(&store).await;
    assert_eq!(store.audit_anchors(None, 10).await.expect("an answer"), []);
    let anchors = [anchor(1, 2), anchor(2, 2), anchor(3, 4)];
    for _ in 0..2 {
        store.remove_audit(end, &anchors).await.expect("taken away; the second time there is nothing");
        assert_eq!(rows_left(&store).await, [(1, 3), (1, 4), (2, 3), (2, 4)]);
    }
    assert_eq!(store.audit_anchors(None, 2).await.expect("an answer"), anchors[..2]);
    let after = Some(anchors[1].head.chain);
    assert_eq!(store.audit_anchors(after, 2).await.expect("an answer"), anchors[2..]);
    let search = AuditSearch { terms: vec![1], from: Timestamp(0), until: YOUNGEST, limit_rows: 100 };
    assert_eq!(store.search_audit(&search).await.expect("an answer").batches.len(), 4);
    // An older anchor does not replace a newer one.
    store.remove_audit(end, &[anchor(1, 1)]).await.expect("nothing to do");
    assert_eq!(store.audit_anchors(None, 1).await.expect("an answer"), anchors[..1]);
    // Rows can still be added, also for a month that was removed.
    for at in [end.0 - 1, end.0 + 9] {
        let row = AuditBatch { at: Timestamp(at), ..batch(3, at - end.0 + 6, &[1]) };
        store.append_audit(&row).await.expect("added");
    }
    assert_eq!(store.search_audit(&search).await.expect("an answer").batches.len(), 6);
    // These rows can be archived in turn.
    let all = [anchor(1, 2), anchor(2, 2), anchor(3, 5)];
    store.remove_audit(end, &all).await.expect("taken away");
    assert_eq!(rows_left(&store).await, [(1, 3), (1, 4), (2, 3), (2, 4), (3, 15)]);
}

/// Where everything before a time is removed at once, nothing is removed if an unarchived row would be lost.
pub(super) async fn a_row_behind_no_anchor_is_not_taken_away(store: Arc<dyn Store>) {
    let end = two_months(&store).await;
    let before = rows_left(&store).await;
    let whole = store.audit_removal_rows_max().is_none();
    for short in [vec![anchor(1, 2), anchor(2, 1), anchor(3, 4)], vec![anchor(1, 2), anchor(3, 4)]] {
        if whole {
            let refused = store.remove_audit(end, &short).await;
            assert!(
                matches!(&refused, Err(Error::Broken(said)) if said.contains("not archived")),
                "{refused:?}"
            );
            assert_eq!(rows_left(&store).await, before);
            assert_eq!(store.audit_anchors(None, 10).await.expect("an answer"), []);
        } else {
            store.remove_audit(end, &short).await.expect("only what is behind an anchor");
            assert_eq!(store.audit_batches(Uuid::from_u128(2), 0, 1).await.expect("an answer")[0].seq, 2);
        }
    }
}

pub(super) async fn the_audit_is_tended(store: Arc<dyn Store>) {
    let whole = store.audit_removal_rows_max().is_none();
    for _ in 0..2 {
        let ahead = store.tend_audit().await.expect("tended");
        assert_eq!(ahead, whole.then_some(3));
    }
}

pub(super) async fn what_is_committed_is_audited_with_it(store: Arc<dyn Store>) {
    let region = Region::start(&store).await;
    let there = async |chain: u128| {
        !store.audit_batches(Uuid::from_u128(chain), 0, 1).await.expect("an answer").is_empty()
    };
    // A single registration and several: PostgreSQL has a statement for each.
    let alone = [region.register(1, "one@example.com")];
    let several = [region.register(2, "two@example.com"), region.register(3, "three@example.com")];
    for (chain, rows) in [(1, &alone[..]), (2, &several[..])] {
        let sealed = batch(chain, 0, &[9]);
        let outcomes = store.commit_patients_audited(rows, Some(&sealed)).await.expect("outcomes");
        assert!(outcomes.iter().all(|outcome| *outcome == AppendOutcome::Committed));
        assert!(there(chain).await);
    }
    // All rows are refused; the audit batch stays.
    let refused = [region.register(4, "one@example.com")];
    let outcomes = store.commit_patients_audited(&refused, Some(&batch(3, 0, &[9]))).await.expect("outcomes");
    assert_eq!(outcomes, [AppendOutcome::EmailTaken]);
    assert!(there(3).await);
    // The audit's position is taken: no row is committed without its audit.
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
    let at = |n: usize, version| (asked[n].0, version);
    let there = store.events_at(&[at(0, 1), at(0, 2), at(2, 1)]).await.expect("an answer");
    let expected = [(Some(asked[0].1.event), 1), (None, 1), (None, 0)];
    assert_eq!(there, expected.map(|(event, newest)| EventAt { event, newest, record: newest }));
}
