//! Pages of a search with an end, over rows in memory.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;

use super::*;
use crate::audit::{Chains, Growth, Key};
use crate::domain::access::{Caller, Role};
use crate::domain::audit::Change;
use crate::domain::time::{Clock, MonoTime};
use crate::store::{AuditFound, AuditHead};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

/// The rows, and how many of them the searches have returned.
#[derive(Default)]
struct Rows {
    rows: Mutex<Vec<AuditBatch>>,
    returned: AtomicUsize,
}

#[async_trait]
impl AuditStore for Rows {
    async fn append_audit(&self, batch: &AuditBatch) -> store::Result<()> {
        self.rows.lock().unwrap().push(batch.clone());
        Ok(())
    }

    async fn audit_heads(&self, _: Option<Uuid>, _: u32) -> store::Result<Vec<AuditHead>> {
        Ok(Vec::new())
    }

    async fn audit_batches(&self, _: Uuid, _: i64, _: u32) -> store::Result<Vec<AuditBatch>> {
        Ok(Vec::new())
    }

    async fn search_audit(&self, search: &AuditSearch) -> store::Result<AuditFound> {
        let key = |position: AuditPosition| (position.at, position.chain, position.seq);
        let mut batches = self.rows.lock().unwrap().clone();
        batches.retain(|row| {
            row.at >= search.from
                && key(AuditPosition::from(row)) <= key(search.until)
                && search.terms.iter().all(|term| row.terms.contains(term))
        });
        batches.sort_by_key(|row| std::cmp::Reverse(key(AuditPosition::from(row))));
        batches.truncate(search.limit_rows as usize);
        self.returned.fetch_add(batches.len(), Ordering::SeqCst);
        let full = batches.len() == search.limit_rows as usize;
        Ok(AuditFound { looked_to: batches.last().filter(|_| full).map(AuditPosition::from), batches })
    }

    async fn changes_made(&self, changes: &[(PatientId, Change)]) -> store::Result<Vec<bool>> {
        Ok(vec![true; changes.len()])
    }
}

/// The time at which batches are sealed.
#[derive(Default)]
struct Now(AtomicI64);

impl Clock for Now {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn mono(&self) -> MonoTime {
        MonoTime(0)
    }
}

fn access(at: i64) -> Access {
    Access {
        at: Timestamp(at),
        action: Action::PatientRead,
        outcome: Outcome::Done,
        caller: Caller { subject: "s".into(), role: Role::Clinician, from: None, break_glass: None },
        patients: Vec::new(),
        trace_id: 1,
        reason: None,
        change: None,
        detail: None,
    }
}

/// Creates a reader of batches with one entry each, given by the times of the entry and of its batch in
/// seconds.
async fn reader(batches: impl IntoIterator<Item = (i64, i64)>) -> (Arc<Rows>, AuditReader) {
    let (rows, now) = (Arc::new(Rows::default()), Arc::new(Now::default()));
    let every = Duration::from_secs(3_600);
    let (key, writer) = (Key::of(SECRET), "node#1/edge".to_owned());
    let chains = Chains::new(key, writer, rows.clone(), now.clone(), every, Growth::default());
    for (made, sealed) in batches {
        now.0.store(sealed * 1_000_000, Ordering::SeqCst);
        let chain = chains.take();
        let batch = chains.seal(&chain, vec![access(made * 1_000_000)]);
        rows.append_audit(&batch).await.unwrap();
        chains.ended(chain, &batch, &Ok(()));
    }
    let reader = AuditReader::new(rows.clone(), Some(Keys::new(Key::of(SECRET), Vec::new())));
    (rows, reader)
}

async fn found(reader: &AuditReader, query: &AuditQuery, limit: usize) -> Vec<i64> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = reader.page(query, after, limit).await.unwrap();
        found.extend(page.entries.iter().map(|(_, access)| access.at.0 / 1_000_000));
        after = page.next;
        if after.is_none() {
            return found;
        }
    }
}

#[tokio::test]
async fn an_entry_that_was_sealed_late_is_found_before_an_end_and_once() {
    // The entries of 3 s and 10 s were sealed late: the first within the second, which makes no difference,
    // the other long after.
    let batches = [(1, 1), (2, 2), (3, 4), (5, 5), (6, 6), (10, 300), (301, 301)];
    let (_, reader) = reader(batches).await;
    for limit in 1..=7 {
        for (until, wanted) in [(4, vec![3, 2, 1]), (6, vec![5, 3, 2, 1]), (11, vec![10, 6, 5, 3, 2, 1])] {
            let until = Some(Timestamp(until * 1_000_000));
            let query = AuditQuery { until, ..AuditQuery::default() };
            assert_eq!(found(&reader, &query, limit).await, wanted, "limit {limit}, {until:?}");
        }
    }
    let query = AuditQuery {
        from: Some(Timestamp(9_000_000)),
        until: Some(Timestamp(11_000_000)),
        ..AuditQuery::default()
    };
    assert_eq!(found(&reader, &query, 5).await, [10]);
}

#[tokio::test]
async fn a_search_with_an_end_does_not_read_what_was_sealed_later() {
    let later = (100..=600).map(|at| (at, at));
    let (rows, reader) = reader([(1, 1)].into_iter().chain(later)).await;
    let until = Some(Timestamp(2_000_000));
    let page = reader.page(&AuditQuery { until, ..AuditQuery::default() }, None, 20).await.unwrap();
    assert_eq!((page.entries.len(), page.next), (1, None));
    assert_eq!(rows.returned.load(Ordering::SeqCst), 1);
}
