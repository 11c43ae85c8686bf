//! The window alone: its order per patient and its bounds, under any interleaving.

use std::collections::BTreeMap;

use super::*;
use crate::actors::fake_store::{event, patient};

const LIMITS: Limits = Limits { window_rows: 8, read_rows: 8, batch_rows: 3, batches: 2, mark_rows: 4 };

fn row(seq: i64, of_patient: usize, version: i64) -> OutboxEvent {
    OutboxEvent { seq, shard: 0, recorded: event(of_patient, version) }
}

fn seqs(rows: &[OutboxEvent]) -> Vec<i64> {
    rows.iter().map(|r| r.seq).collect()
}

fn filled(rows: Vec<OutboxEvent>) -> Window {
    let mut window = Window::new(LIMITS);
    window.begin_read().expect("room");
    window.end_read(rows);
    window
}

#[test]
fn a_patients_second_row_waits_for_the_first() {
    let mut window = filled(vec![row(1, 1, 1), row(2, 1, 2), row(3, 2, 1)]);
    let (first, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [1, 3]);
    assert!(window.take().is_none(), "row 2 is held back");
    assert_eq!(window.settle(first, &[true, true]), None);
    assert_eq!(seqs(&window.take().expect("batch").1), [2]);
}

#[test]
fn a_failed_row_rests_before_the_rows_behind_it() {
    let mut window = filled(vec![row(1, 1, 1), row(2, 1, 2), row(3, 2, 1), row(4, 2, 2)]);
    let (first, _) = window.take().expect("batch");
    let rest = window.settle(first, &[false, true]).expect("row 1 failed");
    assert_eq!(rest.failures, 1);
    let (second, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [4], "patient 2 goes on");
    window.settle(second, &[true]);
    assert!(window.take().is_none(), "patient 1 rests");
    window.wake(rest.id);
    let (third, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [1]);
    assert_eq!(window.settle(third, &[]).expect("failed").failures, 2, "no answer is a failure");
}

#[test]
fn rows_are_in_hand_until_they_are_marked() {
    let mut window = filled(vec![row(1, 1, 1)]);
    let (batch, _) = window.take().expect("batch");
    window.settle(batch, &[true]);
    assert!(!window.is_settled());
    assert_eq!(window.begin_mark(), Some(vec![1]));
    assert_eq!(window.begin_mark(), None, "one at a time");
    window.end_mark(false);
    assert_eq!(window.begin_read().expect("room").known, [1]);
    window.end_read(vec![row(1, 1, 1)]);
    assert!(window.take().is_none(), "a row in hand is not admitted again");
    assert_eq!(window.begin_mark(), Some(vec![1]));
    window.end_mark(true);
    assert!(window.is_settled());
    assert_eq!(window.len(), 0);
}

#[test]
fn bounds_hold() {
    let mut window = Window::new(LIMITS);
    assert_eq!(window.begin_read().expect("room").rows_max, 8);
    assert!(window.begin_read().is_none(), "one read at a time");
    window.end_read((1..=8).map(|n| row(n, n as usize, 1)).collect());
    assert!(window.begin_read().is_none(), "full");
    let (first, rows) = window.take().expect("batch");
    assert_eq!(rows.len(), 3);
    assert!(window.take().is_some());
    assert!(window.take().is_none(), "two batches at most");
    window.settle(first, &[true, true, true]);
    window.begin_mark().expect("rows");
    window.end_mark(true);
    assert!(window.begin_read().is_none(), "room for 3 is not worth a read of 8");
}

#[test]
fn rows_that_keep_failing_do_not_keep_others_from_being_read() {
    let mut window = filled((1..=7).map(|n| row(n, n as usize, 1)).collect());
    while let Some((batch, _)) = window.take() {
        window.settle(batch, &[]);
    }
    assert_eq!(window.begin_read().expect("one row's room").rows_max, 1);
}

#[test]
fn what_is_forgotten_can_be_read_again_and_what_is_at_the_producer_stays() {
    let mut window = filled((1..=8).map(|n| row(n, n as usize, 1)).collect());
    let (at_producer, _) = window.take().expect("batch");
    let (failed, _) = window.take().expect("batch");
    let rest = window.settle(failed, &[]).expect("rest");
    window.forget();
    assert_eq!(window.len(), 3);
    window.wake(rest.id);
    assert!(window.take().is_none());
    window.begin_read().expect("room");
    window.forget();
    window.end_read(vec![row(9, 9, 1)]);
    assert_eq!(window.len(), 3, "a read begun before is in vain");
    window.settle(at_producer, &[true, true, true]);
    assert_eq!(window.begin_mark().map(|m| m.len()), Some(3));
}

/// A bridge, an outbox and a broker in one loop: rows are committed late and out of order, batches come
/// back in any order with any failures, marks fail, and now and then everything is forgotten.
#[test]
fn any_interleaving_keeps_the_order_and_loses_nothing() {
    for _ in 0..200 {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        interleave(&mut fastrand::Rng::with_seed(seed));
    }
}

fn interleave(rng: &mut fastrand::Rng) {
    let mut uncommitted: Vec<OutboxEvent> = Vec::new();
    let mut versions = [0_i64; 6];
    for seq in 1..=60 {
        let n = rng.usize(..versions.len());
        versions[n] += 1;
        uncommitted.push(row(seq, n, versions[n]));
    }
    let mut outbox: BTreeMap<i64, OutboxEvent> = BTreeMap::new();
    let mut log: Vec<(PatientId, i64)> = Vec::new();
    let mut window = Window::new(LIMITS);
    let mut batches: Vec<(u64, Arc<Vec<OutboxEvent>>)> = Vec::new();
    let mut rests = Vec::new();
    let mut reads = Vec::new();
    let mut marks = Vec::new();
    for step in 0.. {
        assert!(step < 100_000, "it does not come to an end");
        match rng.u8(..9) {
            0 if !uncommitted.is_empty() => commit_one(rng, &mut uncommitted, &mut outbox),
            1 => reads.extend(window.begin_read().map(|read| {
                let fresh = outbox.values().filter(|r| !read.known.contains(&r.seq));
                fresh.take(read.rows_max).cloned().collect::<Vec<_>>()
            })),
            2 => reads
                .pop()
                .map_or((), |rows| window.end_read(if rng.u8(..9) == 0 { Vec::new() } else { rows })),
            3 => batches.extend(window.take()),
            4 if !batches.is_empty() => {
                let (batch, rows) = batches.swap_remove(rng.usize(..batches.len()));
                let delivered: Vec<bool> = rows.iter().map(|_| rng.u8(..4) > 0).collect();
                for (row, delivered) in rows.iter().zip(&delivered) {
                    // What failed may be in the log all the same.
                    if *delivered || rng.bool() {
                        log.push((row.recorded.patient_id(), row.recorded.version()));
                    }
                }
                rests.extend(window.settle(batch, &delivered));
            }
            5 if !rests.is_empty() => {
                let rest: Rest = rests.swap_remove(rng.usize(..rests.len()));
                window.wake(rest.id);
            }
            6 => marks.extend(window.begin_mark()),
            7 => marks.pop().map_or((), |seqs: Vec<i64>| {
                let done = rng.u8(..4) > 0;
                if done || rng.bool() {
                    outbox.retain(|seq, _| !seqs.contains(seq));
                }
                window.end_mark(done);
            }),
            8 if rng.u8(..20) == 0 => window.forget(),
            _ => {}
        }
        assert!(window.len() <= LIMITS.window_rows);
        if uncommitted.is_empty() && outbox.is_empty() && window.is_settled() {
            break;
        }
    }
    for (n, last) in versions.into_iter().enumerate() {
        let mut first_appearances = Vec::new();
        for (_, version) in log.iter().filter(|(id, _)| *id == patient(n)) {
            if !first_appearances.contains(version) {
                first_appearances.push(*version);
            }
        }
        assert_eq!(first_appearances, (1..=last).collect::<Vec<_>>(), "patient {n}");
    }
}

/// Commits a row whose patient has none uncommitted before it, as the one writer per patient does.
fn commit_one(
    rng: &mut fastrand::Rng,
    uncommitted: &mut Vec<OutboxEvent>,
    outbox: &mut BTreeMap<i64, OutboxEvent>,
) {
    let chosen = rng.usize(..uncommitted.len());
    let id = uncommitted[chosen].recorded.patient_id();
    let first = uncommitted.iter().position(|r| r.recorded.patient_id() == id).unwrap_or(chosen);
    let row = uncommitted.remove(first);
    outbox.insert(row.seq, row);
}
