//! Chains over an in-memory database, and the detection of changes to it.

mod archives;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use uuid::Uuid;

use super::entry::tests::some_access;
use super::*;
use crate::domain::audit::{Access, Change};
use crate::domain::ids::{EventId, PatientId, Version};
use crate::domain::time::{Clock, MonoTime, Timestamp};
use crate::store::{
    self, AuditAnchor, AuditArchiveStore, AuditBatch, AuditFound, AuditHead, AuditSearch, AuditStore, EventAt,
};

#[derive(Default)]
struct Rows(
    Mutex<Vec<AuditBatch>>,
    AtomicI64,
    Mutex<Vec<AuditAnchor>>,
    Mutex<BTreeMap<(PatientId, Version), EventId>>,
    /// The versions of records that differ from those of their newest events.
    Mutex<BTreeMap<PatientId, Version>>,
);

#[async_trait]
impl AuditStore for Rows {
    async fn append_audit(&self, batch: &AuditBatch) -> store::Result<()> {
        self.0.lock().unwrap().push(batch.clone());
        Ok(())
    }

    async fn audit_heads(&self, before: Option<Uuid>, limit_rows: u32) -> store::Result<Vec<AuditHead>> {
        self.1.fetch_add(1, Ordering::SeqCst);
        let rows = self.0.lock().unwrap();
        let mut heads: Vec<AuditHead> = Vec::new();
        for row in rows.iter().filter(|row| before.is_none_or(|before| row.chain < before)) {
            let head = AuditHead { chain: row.chain, seq: row.seq, mac: row.mac };
            match heads.iter_mut().find(|known| known.chain == row.chain) {
                Some(known) if known.seq < row.seq => *known = head,
                Some(_) => {}
                None => heads.push(head),
            }
        }
        heads.sort_unstable_by_key(|head| std::cmp::Reverse(head.chain));
        heads.truncate(limit_rows as usize);
        Ok(heads)
    }

    async fn audit_batches(&self, chain: Uuid, seq: i64, limit_rows: u32) -> store::Result<Vec<AuditBatch>> {
        let rows = self.0.lock().unwrap();
        let mut found: Vec<_> =
            rows.iter().filter(|row| row.chain == chain && row.seq >= seq).cloned().collect();
        found.sort_unstable_by_key(|row| row.seq);
        found.truncate(limit_rows as usize);
        Ok(found)
    }

    async fn search_audit(&self, search: &AuditSearch) -> store::Result<AuditFound> {
        let rows = self.0.lock().unwrap();
        let fits = |row: &&AuditBatch| search.terms.iter().all(|term| row.terms.contains(term));
        Ok(AuditFound { batches: rows.iter().filter(fits).cloned().collect(), looked_to: None })
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> store::Result<Vec<bool>> {
        let events = self.3.lock().unwrap();
        let made = |(patient, change): &(PatientId, Change)| {
            events.get(&(*patient, change.version)) == Some(&change.event)
        };
        Ok(changes.iter().map(made).collect())
    }
}

/// Removes rows two at a time.
#[async_trait]
impl AuditArchiveStore for Rows {
    async fn events_at(&self, places: &[(PatientId, Version)]) -> store::Result<Vec<EventAt>> {
        let events = self.3.lock().unwrap();
        let records = self.4.lock().unwrap();
        let at = |(patient, version): &(PatientId, Version)| {
            let versions = events.keys().filter(|(of, _)| of == patient).map(|(_, version)| *version);
            let newest = versions.max().unwrap_or(0);
            let record = records.get(patient).copied().unwrap_or(newest);
            EventAt { event: events.get(&(*patient, *version)).copied(), newest, record }
        };
        Ok(places.iter().map(at).collect())
    }

    async fn audit_anchors(&self, after: Option<Uuid>, limit_rows: u32) -> store::Result<Vec<AuditAnchor>> {
        let mut anchors = self.2.lock().unwrap().clone();
        anchors.retain(|anchor| after.is_none_or(|after| anchor.head.chain > after));
        anchors.sort_unstable_by_key(|anchor| anchor.head.chain);
        anchors.truncate(limit_rows as usize);
        Ok(anchors)
    }

    async fn audit_can_end_at(&self, before: Timestamp) -> store::Result<Option<Timestamp>> {
        Ok(Some(before))
    }

    fn audit_removal_rows_max(&self) -> Option<u32> {
        Some(2)
    }

    async fn remove_audit(&self, _end: Timestamp, anchors: &[AuditAnchor]) -> store::Result<()> {
        let (mut rows, mut kept) = (self.0.lock().unwrap(), self.2.lock().unwrap());
        for AuditAnchor { head, .. } in anchors {
            kept.retain(|anchor| anchor.head.chain != head.chain);
            rows.retain(|row| row.chain != head.chain || row.seq > head.seq);
        }
        kept.extend(anchors);
        Ok(())
    }
}

#[derive(Default)]
struct Hand(AtomicI64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000 + self.0.load(Ordering::SeqCst))
    }

    fn mono(&self) -> MonoTime {
        MonoTime(self.0.load(Ordering::SeqCst).unsigned_abs() * 1_000)
    }
}

struct Stage {
    rows: Arc<Rows>,
    hand: Arc<Hand>,
    key: Key,
    growth: Growth,
}

impl Stage {
    fn new() -> Self {
        Stage {
            rows: Arc::default(),
            hand: Arc::default(),
            key: Key::of(&[7; 32]),
            growth: Growth::default(),
        }
    }

    fn keys(&self) -> Keys {
        Keys::new(self.key.clone(), Vec::new())
    }

    fn writer(&self, name: &str) -> Chains {
        let (rows, hand) = (Arc::clone(&self.rows), Arc::clone(&self.hand));
        Chains::new(
            self.key.clone(),
            name.to_owned(),
            rows,
            hand,
            Duration::from_secs(60),
            self.growth.clone(),
        )
    }

    async fn write(&self, chains: &Chains, entries: Vec<Access>) -> AuditBatch {
        let chain = chains.take();
        let batch = chains.seal(&chain, entries);
        let result = self.rows.append_audit(&batch).await;
        chains.ended(chain, &batch, &result);
        chains.look().await;
        batch
    }

    async fn report(&self) -> Report {
        verify(&*self.rows, &self.keys(), &[]).await.expect("read")
    }

    fn change(&self, change: impl FnOnce(&mut Vec<AuditBatch>)) {
        change(&mut self.rows.0.lock().unwrap());
    }
}

#[tokio::test]
async fn what_was_written_verifies_over_several_writers() {
    let stage = Stage::new();
    let (one, two) = (stage.writer("a#1/edge"), stage.writer("b#1/edge"));
    for n in 0..10 {
        stage.write(&one, vec![some_access(n), some_access(n + 1)]).await;
        stage.write(&two, vec![some_access(n)]).await;
    }
    let report = stage.report().await;
    assert_eq!(report.faults, []);
    assert_eq!((report.batches, report.entries, report.heads.len()), (20, 30, 2));
}

/// Every kind of change at every row is detected, and the first bad row is reported.
#[tokio::test]
async fn any_changed_missing_or_added_row_is_found() {
    const ROWS: usize = 6;
    type Tamper = fn(&mut Vec<AuditBatch>, usize);
    let kinds: [(&str, Tamper); 8] = [
        ("a byte of the body", |rows, at| {
            let middle = rows[at].body.len() / 2;
            rows[at].body[middle] ^= 1;
        }),
        ("its end cut", |rows, at| {
            rows[at].body.pop();
        }),
        ("the time", |rows, at| rows[at].at.0 += 1),
        ("the seal", |rows, at| rows[at].mac[0] ^= 1),
        ("the terms", |rows, at| {
            rows[at].terms.pop();
        }),
        ("the chain", |rows, at| rows[at].chain = Uuid::from_u128(5)),
        ("swapped bodies", |rows, at| {
            let other = (at + 1) % ROWS;
            let body = rows[at].body.clone();
            rows[at].body = std::mem::replace(&mut rows[other].body, body);
        }),
        ("another row in its place", |rows, at| {
            let mut row = rows[(at + 1) % ROWS].clone();
            row.seq = rows[at].seq;
            rows[at] = row;
        }),
    ];
    for (what, tamper) in kinds {
        for at in 0..ROWS {
            let stage = Stage::new();
            let chains = stage.writer("a#1/edge");
            for n in 0..ROWS as u128 {
                stage.write(&chains, vec![some_access(n), some_access(n + 7)]).await;
            }
            stage.change(|rows| tamper(rows, at));
            let report = stage.report().await;
            let first = report.faults.first().unwrap_or_else(|| panic!("{what} at {at} is not found"));
            assert!(first.seq <= at as i64, "{what} at {at}: {first}");
        }
    }
}

/// Rows that no writer creates, at any place: a reader could otherwise show them.
#[tokio::test]
async fn rows_in_impossible_places_are_found() {
    for (chain, seq) in
        [(Some(Uuid::max()), 0), (Some(Uuid::nil()), 0), (None, -1), (None, i64::MIN), (None, i64::MAX)]
    {
        let stage = Stage::new();
        let chains = stage.writer("a#1/edge");
        let real = stage.write(&chains, vec![some_access(1)]).await;
        stage
            .change(|rows| rows.push(AuditBatch { chain: chain.unwrap_or(real.chain), seq, ..real.clone() }));
        assert_eq!(stage.report().await.faults.len(), 1, "{chain:?} {seq}");
    }
}

/// A changed history would hide an entry, or make one look completed.
#[tokio::test]
async fn the_event_of_every_change_that_was_made_is_accounted_for() {
    let submitted = |n: u128, version: i64| Access {
        outcome: crate::domain::audit::Outcome::Submitted,
        change: Some(Change { event: EventId(Uuid::from_u128(n)), version }),
        ..some_access(7)
    };
    let patient = some_access(7).patients[0];
    let stage = Stage::new();
    let chains = stage.writer("a#1/patients");
    // The second change to version 2 was refused, and so was version 4, which no later change follows.
    for (n, version) in [(1, 1), (2, 2), (20, 2), (3, 3), (4, 4)] {
        stage.write(&chains, vec![submitted(n, version)]).await;
        if n < 4 {
            stage.rows.3.lock().unwrap().insert((patient, version), EventId(Uuid::from_u128(n)));
        }
    }
    assert_eq!(stage.report().await.faults, []);
    let with = async |version: i64, event: Option<u128>| {
        let event = event.map(|n| EventId(Uuid::from_u128(n)));
        let before = stage.rows.3.lock().unwrap().clone();
        match event {
            Some(event) => drop(stage.rows.3.lock().unwrap().insert((patient, version), event)),
            None => drop(stage.rows.3.lock().unwrap().remove(&(patient, version))),
        }
        let faults = stage.report().await.faults;
        *stage.rows.3.lock().unwrap() = before;
        faults.iter().map(|fault| fault.seq).collect::<Vec<_>>()
    };
    stage.rows.4.lock().unwrap().insert(patient, 3);
    assert_eq!(
        with(4, Some(4)).await,
        [3, 4],
        "a change that was refused, and stands at the end of the history"
    );
    assert_eq!(with(3, None).await, [1, 2, 3, 4], "the last event is gone");
    assert_eq!(with(3, Some(99)).await, [3], "an event that no entry tells of");
    assert_eq!(with(1, None).await, [0], "an event that is gone from the middle");
    assert_eq!(with(2, Some(98)).await, [1, 2]);
    assert_eq!(stage.report().await.faults, []);
}

#[tokio::test]
async fn a_row_missing_from_the_middle_is_named() {
    let stage = Stage::new();
    let chains = stage.writer("a#1/edge");
    for n in 0..5 {
        stage.write(&chains, vec![some_access(n)]).await;
    }
    stage.change(|rows| drop(rows.remove(2)));
    let faults = stage.report().await.faults;
    assert_eq!(
        faults.iter().map(|fault| (fault.seq, fault.what)).collect::<Vec<_>>(),
        [(2, "the row is missing")]
    );
}

#[tokio::test]
async fn a_cut_end_and_a_missing_chain_are_found_by_what_others_saw() {
    for cut in [1, 4] {
        let stage = Stage::new();
        let gone = stage.writer("a#1/edge");
        for n in 0..4 {
            stage.write(&gone, vec![some_access(n)]).await;
        }
        // The next start of the node opens a new chain, which pins the heads of the others.
        let next = stage.writer("a#2/edge");
        for n in 0..2 {
            stage.write(&next, vec![some_access(n)]).await;
        }
        assert_eq!(stage.report().await.faults, []);
        stage.change(|rows| {
            rows.drain(4 - cut..4);
        });
        let faults = stage.report().await.faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!((faults[0].seq, faults[0].what), (3, "the row is missing: another chain saw it"));
    }
}

#[tokio::test]
async fn a_long_chain_goes_on_looking_at_the_others() {
    let stage = Stage::new();
    let (one, two) = (stage.writer("a#1/edge"), stage.writer("b#1/edge"));
    stage.write(&one, vec![some_access(1)]).await;
    stage.write(&two, vec![some_access(2)]).await;
    let cut = stage.write(&one, vec![some_access(3)]).await;
    stage.hand.0.fetch_add(59_000_000, Ordering::SeqCst);
    stage.write(&two, vec![some_access(4)]).await;
    stage.hand.0.fetch_add(1_000_000, Ordering::SeqCst);
    stage.write(&two, vec![some_access(5)]).await;
    stage.write(&two, vec![some_access(6)]).await;
    stage.change(|rows| rows.retain(|row| *row != cut));
    assert_eq!(stage.report().await.faults.len(), 1);
}

#[tokio::test]
async fn a_quiet_chain_pins_what_was_seen_at_its_last_batch() {
    let stage = Stage::new();
    let (one, two) = (stage.writer("a#1/edge"), stage.writer("b#1/edge"));
    let pins = |batch: &AuditBatch| read(&batch.body, batch.at).expect("ours").pins;
    let mut seen = Vec::new();
    for n in 0..3 {
        // Longer than `pins_every`, so all earlier reads are outdated.
        stage.hand.0.fetch_add(120_000_000, Ordering::SeqCst);
        let other = stage.write(&one, vec![some_access(n)]).await;
        seen.push(AuditHead { chain: other.chain, seq: other.seq, mac: other.mac });
        let batch = stage.write(&two, vec![some_access(n)]).await;
        let before = seen.len().checked_sub(2).map(|at| seen[at]);
        assert_eq!(pins(&batch), before.into_iter().collect::<Vec<_>>(), "batch {n}");
    }
}

#[tokio::test]
async fn the_database_is_asked_once_in_a_while_where_the_chains_are() {
    let stage = Stage::new();
    let chains = stage.writer("a#1/edge");
    let asked = || stage.rows.1.load(Ordering::SeqCst);
    for _ in 0..3 {
        chains.look().await;
    }
    assert_eq!(asked(), 1);
    stage.hand.0.fetch_add(60_000_000, Ordering::SeqCst);
    for _ in 0..3 {
        chains.look().await;
    }
    assert_eq!(asked(), 2);
}

#[tokio::test]
async fn the_chain_ends_with_an_outcome_that_is_not_known() {
    let stage = Stage::new();
    let chains = stage.writer("a#1/edge");
    let first = stage.write(&chains, vec![some_access(1)]).await;
    let chain = chains.take();
    let lost = chains.seal(&chain, vec![some_access(2)]);
    chains.ended::<()>(chain, &lost, &Err(store::Error::Unknown(String::new())));
    // The transaction may or may not have succeeded; both must be accepted.
    for came_through in [false, true] {
        if came_through {
            stage.rows.append_audit(&lost).await.expect("added");
        }
        let next = stage.write(&chains, vec![some_access(3)]).await;
        assert!(next.chain != first.chain || came_through);
        assert_eq!(stage.report().await.faults, [], "{came_through}");
    }
    // A batch that certainly was not stored is written again at the same place.
    let chain = chains.take();
    let refused = chains.seal(&chain, vec![some_access(4)]);
    chains.ended::<()>(chain, &refused, &Err(store::Error::Unavailable(String::new())));
    let again = stage.write(&chains, vec![some_access(4)]).await;
    assert_eq!((again.chain, again.seq), (refused.chain, refused.seq));
    assert_eq!(stage.report().await.faults, []);
}

#[tokio::test]
async fn another_secret_is_told_as_such() {
    let stage = Stage::new();
    stage.write(&stage.writer("a#1/edge"), vec![some_access(1)]).await;
    let report = verify(&*stage.rows, &Keys::new(Key::of(&[8; 32]), vec![]), &[]).await.expect("read");
    assert_eq!(report.faults[0].what, "it is sealed by another secret");
    assert!(format!("{:?}", stage.key) == "Key(..)");
}

/// An idle chain is recorded once, by a row without entries. Two witnesses do not record each other forever.
#[tokio::test]
async fn what_has_grown_is_noted_once() {
    let stage = Stage::new();
    let chains = stage.writer("a#1/edge");
    let witness = |name: &str, growth: &Growth| {
        let (rows, hand) = (Arc::clone(&stage.rows), Arc::clone(&stage.hand));
        let every = Duration::from_secs(60);
        let own =
            Chains::new(stage.key.clone(), name.to_owned(), rows.clone(), hand, every, Growth::default());
        Witness::new(rows, growth.clone(), own)
    };
    let (one, two) = (witness("a#1/witness", &stage.growth), witness("b#1/witness", &Growth::default()));
    assert_eq!(one.note().await, Ok(false), "there is nothing yet");
    let last = stage.write(&chains, vec![some_access(1)]).await;
    assert_eq!(one.note().await, Ok(true));
    assert_eq!(two.note().await, Ok(true), "what was there at its start");
    for _ in 0..3 {
        assert_eq!((one.note().await, two.note().await), (Ok(false), Ok(false)));
    }
    let report = stage.report().await;
    assert_eq!((report.faults, report.batches, report.entries), (vec![], 3, 1));
    stage.change(|rows| rows.retain(|row| *row != last));
    assert_eq!(stage.report().await.faults[0].what, "the row is missing: another chain saw it");
}
