//! The window alone: its order per patient and its limits, under any interleaving.

use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::actors::fake_store::{event, patient};

const LIMITS: Limits =
    Limits { window_rows: 8, read_rows: 8, batch_rows: 3, batches: 2, mark_rows: 4, park_after: 3 };

fn row(seq: i64, of_patient: usize, version: i64) -> OutboxEvent {
    OutboxEvent { seq, shard: 0, recorded: event(of_patient, version), replay: false, parks: 0 }
}

/// Returns the results of rows, given which of them were delivered.
fn sent(delivered: &[bool]) -> Vec<Sent> {
    delivered.iter().map(|yes| if *yes { Sent::Delivered(None) } else { Sent::Failed }).collect()
}

fn marked(window: &mut Window) -> Option<Vec<i64>> {
    window.begin_mark().map(|mark| mark.seqs)
}

fn seqs(rows: &[OutboxEvent]) -> Vec<i64> {
    rows.iter().map(|r| r.seq).collect()
}

fn filled(rows: Vec<OutboxEvent>) -> Window {
    let mut window = Window::new(LIMITS);
    window.begin_read().expect("room");
    window.end_read(rows, &[]);
    window
}

#[test]
fn a_patients_second_row_waits_for_the_first() {
    let mut window = filled(vec![row(1, 1, 1), row(2, 1, 2), row(3, 2, 1)]);
    let (first, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [1, 3]);
    assert!(window.take().is_none(), "row 2 is held back");
    assert_eq!(window.settle(first, &sent(&[true, true]), false), None);
    assert_eq!(seqs(&window.take().expect("batch").1), [2]);
}

#[test]
fn a_failed_row_rests_before_the_rows_behind_it() {
    let mut window = filled(vec![row(1, 1, 1), row(2, 1, 2), row(3, 2, 1), row(4, 2, 2)]);
    let (first, _) = window.take().expect("batch");
    let rest = window.settle(first, &sent(&[false, true]), false).expect("row 1 failed");
    assert_eq!(rest.failures, 1);
    let (second, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [4], "patient 2 goes on");
    window.settle(second, &sent(&[true]), false);
    assert!(window.take().is_none(), "patient 1 rests");
    window.wake(rest.id);
    let (third, rows) = window.take().expect("batch");
    assert_eq!(seqs(&rows), [1]);
    assert_eq!(window.settle(third, &[], false).expect("failed").failures, 2, "no answer is a failure");
}

#[test]
fn rows_are_in_hand_until_they_are_marked() {
    let mut window = filled(vec![row(1, 1, 1)]);
    let (batch, _) = window.take().expect("batch");
    window.settle(batch, &sent(&[true]), false);
    assert!(!window.is_settled());
    assert_eq!(marked(&mut window), Some(vec![1]));
    assert_eq!(marked(&mut window), None, "one at a time");
    window.end_mark(false);
    assert_eq!(window.begin_read().expect("room").known, [1]);
    window.end_read(vec![row(1, 1, 1)], &[]);
    assert!(window.take().is_none(), "a row in hand is not admitted again");
    assert_eq!(marked(&mut window), Some(vec![1]));
    window.end_mark(true);
    assert!(window.is_settled());
    assert_eq!(window.len(), 0);
}

#[test]
fn bounds_hold() {
    let mut window = Window::new(LIMITS);
    assert_eq!(window.begin_read().expect("room").rows_max, 8);
    assert!(window.begin_read().is_none(), "one read at a time");
    window.end_read((1..=8).map(|n| row(n, n as usize, 1)).collect(), &[]);
    assert!(window.begin_read().is_none(), "full");
    let (first, rows) = window.take().expect("batch");
    assert_eq!(rows.len(), 3);
    assert!(window.take().is_some());
    assert!(window.take().is_none(), "two batches at most");
    window.settle(first, &sent(&[true, true, true]), false);
    window.begin_mark().expect("rows");
    window.end_mark(true);
    assert!(window.begin_read().is_none(), "room for 3 is not worth a read of 8");
}

#[test]
fn rows_that_keep_failing_do_not_keep_others_from_being_read() {
    let mut window = filled((1..=7).map(|n| row(n, n as usize, 1)).collect());
    while let Some((batch, _)) = window.take() {
        window.settle(batch, &[], false);
    }
    assert_eq!(window.begin_read().expect("one row's room").rows_max, 1);
}

#[test]
fn what_is_forgotten_can_be_read_again_and_what_is_at_the_producer_stays() {
    let mut window = filled((1..=8).map(|n| row(n, n as usize, 1)).collect());
    let (at_producer, _) = window.take().expect("batch");
    let (failed, _) = window.take().expect("batch");
    let rest = window.settle(failed, &[], false).expect("rest");
    window.forget();
    assert_eq!(window.len(), 3);
    window.wake(rest.id);
    assert!(window.take().is_none());
    window.begin_read().expect("room");
    window.forget();
    window.end_read(vec![row(9, 9, 1)], &[]);
    assert_eq!(window.len(), 3, "a read begun before is in vain");
    window.settle(at_producer, &sent(&[true, true, true]), false);
    assert_eq!(marked(&mut window).map(|m| m.len()), Some(3));
}

/// A bridge, an outbox and a broker in one loop: rows are committed late and out of order, batches return in
/// any order with any failures, marks fail, and sometimes the window forgets everything.
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
    let mut parks: Option<Vec<Parking>> = None;
    let mut parked: HashMap<PatientId, u32> = HashMap::new();
    for step in 0.. {
        assert!(step < 100_000, "it does not come to an end");
        match rng.u8(..12) {
            0 if !uncommitted.is_empty() => commit_one(rng, &mut uncommitted, &mut outbox),
            1 => reads.extend(window.begin_read().map(|read| {
                let fresh = outbox.values().filter(|r| !read.known.contains(&r.seq));
                let fresh = fresh.filter(|r| !parked.contains_key(&r.recorded.patient_id()));
                fresh.take(read.rows_max).cloned().collect::<Vec<_>>()
            })),
            2 => reads
                .pop()
                .map_or((), |rows| window.end_read(if rng.u8(..9) == 0 { Vec::new() } else { rows }, &[])),
            3 => batches.extend(window.take()),
            4 if !batches.is_empty() => {
                let (batch, rows) = batches.swap_remove(rng.usize(..batches.len()));
                let delivered: Vec<bool> = rows.iter().map(|_| rng.u8(..4) > 0).collect();
                for (row, delivered) in rows.iter().zip(&delivered) {
                    // A failed row may still be in the log.
                    if *delivered || rng.bool() {
                        log.push((row.recorded.patient_id(), row.recorded.version()));
                    }
                }
                rests.extend(window.settle(batch, &sent(&delivered), rng.bool()));
            }
            5 if !rests.is_empty() => {
                let rest: Rest = rests.swap_remove(rng.usize(..rests.len()));
                window.wake(rest.id);
            }
            6 => marks.extend(marked(&mut window)),
            7 => marks.pop().map_or((), |seqs: Vec<i64>| {
                let done = rng.u8(..4) > 0;
                if done || rng.bool() {
                    outbox.retain(|seq, _| !seqs.contains(seq));
                }
                window.end_mark(done);
            }),
            8 if rng.u8(..20) == 0 => window.forget(),
            9 if parks.is_none() => parks = window.begin_park(),
            10 => {
                if let Some(rows) = parks.take() {
                    let done = rng.u8(..4) > 0;
                    if done || rng.bool() {
                        parked.extend(rows.iter().map(|row| (row.patient_id, row.parks + 1)));
                    }
                    window.end_park(done);
                }
            }
            // The parking time of all parked rows has passed.
            11 if rng.u8(..8) == 0 => parked.clear(),
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

/// Commits a row whose patient has no earlier uncommitted row, as the one writer per patient does.
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

/// Fails every batch that can be taken, until none is left.
fn fail_all(window: &mut Window, may_park: bool) {
    while let Some((batch, _)) = window.take() {
        if let Some(rest) = window.settle(batch, &[], may_park) {
            window.wake(rest.id);
        }
    }
}

#[test]
fn a_full_window_of_failing_rows_is_parked_and_others_are_read() {
    let mut window = filled((1..=8).map(|n| row(n, n as usize, 1)).collect());
    for _ in 0..9 {
        let (batch, _) = window.take().expect("batch");
        let rest = window.settle(batch, &[], false).expect("an outage parks nothing");
        window.wake(rest.id);
    }
    fail_all(&mut window, true);
    let rows = window.begin_park().expect("rows to park");
    assert_eq!(rows.len(), 8);
    assert!(rows.iter().all(|row| row.parks == 0 && row.reason == "failed"));
    assert!(window.begin_park().is_none() && window.begin_read().is_none(), "one thing at a time");
    window.end_park(false);
    assert_eq!(window.begin_park().map(|rows| rows.len()), Some(8), "tried again");
    window.end_park(true);
    assert_eq!(window.len(), 0);
    assert_eq!(window.begin_read().expect("room").rows_max, 8);
}

#[test]
fn what_follows_a_parked_row_for_its_patient_leaves_the_window_with_it() {
    let mut window = filled(vec![row(1, 1, 1), row(2, 1, 2), row(3, 2, 1)]);
    let (batch, _) = window.take().expect("batch");
    let rest = window.settle(batch, &[Sent::Refused, Sent::Delivered(None)], true).expect("a first failure");
    window.wake(rest.id);
    window.begin_read().expect("room");
    for _ in 0..2 {
        let (batch, rows) = window.take().expect("batch");
        assert_eq!(seqs(&rows), [1]);
        if let Some(rest) = window.settle(batch, &[Sent::Refused], true) {
            window.wake(rest.id);
        }
    }
    let rows = window.begin_park().expect("a row to park");
    assert_eq!(rows, [Parking { seq: 1, patient_id: patient(1), parks: 0, reason: "refused" }]);
    window.end_park(true);
    // The read began before the parking, so the store may have returned later rows of the patient.
    window.end_read(vec![row(4, 1, 3)], &[]);
    assert!(window.take().is_none());
    assert_eq!(window.len(), 1, "the row that was delivered is to be marked");
}

#[test]
fn a_row_that_was_parked_before_is_parked_at_its_next_failure() {
    let again = OutboxEvent { parks: 2, ..row(1, 1, 1) };
    let mut window = filled(vec![again, row(2, 2, 1)]);
    let (batch, _) = window.take().expect("batch");
    let rest = window.settle(batch, &[], true).expect("a first failure");
    assert_eq!(rest.failures, 1);
    let rows = window.begin_park().expect("a row to park");
    assert_eq!(rows.iter().map(|row| (row.seq, row.parks)).collect::<Vec<_>>(), [(1, 2)]);
}

#[test]
fn a_row_that_cannot_be_read_is_parked_at_once_and_those_before_it_go_on() {
    let mut window = Window::new(LIMITS);
    window.begin_read().expect("room");
    let unreadable = UnreadableRow { seq: 2, patient_id: patient(1), version: 2, parks: 0 };
    window.end_read(vec![row(1, 1, 1)], &[unreadable]);
    let (batch, _) = window.take().expect("batch");
    assert_eq!(window.begin_park().expect("a row to park")[0].reason, UNREADABLE);
    window.end_park(true);
    assert_eq!(window.settle(batch, &sent(&[true]), false), None);
    assert_eq!(marked(&mut window), Some(vec![1]));
}

#[test]
fn a_mark_tells_the_last_place_of_each_partition() {
    let mut window = filled((1..=3).map(|n| row(n, n as usize, 1)).collect());
    let (batch, rows) = window.take().expect("batch");
    let at = |partition, offset| Sent::Delivered(Some(Place { partition, offset }));
    window.settle(batch, &[at(1, 7), at(0, 3), at(1, 6)], false);
    let mark = window.begin_mark().expect("rows");
    let anchor = |n: usize, partition, offset| LogAnchor {
        partition,
        offset,
        event_id: Some(rows[n].recorded.event_id),
    };
    assert_eq!(mark.anchors, [anchor(1, 0, 3), anchor(0, 1, 7)]);
}
