//! Archives and anchors: the remaining rows verify, the archived rows can be read, and changes are detected.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::domain::audit::Outcome;

const HOUR_US: i64 = 3_600_000_000;
/// Rows before this time are archived. `Hand` starts before it.
const END: Timestamp = Timestamp(HOUR_US);

/// Two chains with rows before and after `END`, one with rows only before it, and one with rows only after
/// it.
struct Cellar {
    stage: Stage,
    directory: tempfile::TempDir,
    writers: [Chains; 4],
}

impl Cellar {
    async fn filled() -> Self {
        let stage = Stage::new();
        let writers = ["a#1/edge", "b#1/edge", "gone#1/edge", "late#1/edge"].map(|name| stage.writer(name));
        for n in 0..5 {
            for writer in &writers[..3] {
                stage.write(writer, vec![some_access(n), some_access(n + 1)]).await;
            }
        }
        stage.hand.0.store(2 * HOUR_US, Ordering::SeqCst);
        for n in 5..8 {
            for writer in [&writers[0], &writers[1], &writers[3]] {
                stage.write(writer, vec![some_access(n)]).await;
            }
        }
        Cellar { stage, directory: tempfile::tempdir().expect("a directory"), writers }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn archiver(&self) -> Archiver<Rows> {
        Archiver {
            store: Arc::clone(&self.stage.rows),
            keys: self.stage.keys(),
            clock: Arc::clone(&self.stage.hand) as _,
            chains: self.stage.writer("tool#1/archive"),
        }
    }

    async fn archive(&self, name: &str) -> Result<Archive, ArchiveError> {
        self.archiver().archive(END, &self.path(name)).await
    }

    fn read(&self, name: &str) -> Result<Archive, ArchiveError> {
        read_archive(fs::File::open(self.path(name))?, Some(&self.stage.keys()), |_, _| Ok(()))
    }

    async fn report(&self, archives: &[Archive]) -> Report {
        verify(&*self.stage.rows, &self.stage.keys(), archives).await.expect("read")
    }

    fn change_anchors(&self, change: impl FnOnce(&mut Vec<AuditAnchor>)) {
        change(&mut self.stage.rows.2.lock().unwrap());
    }
}

#[tokio::test]
async fn old_rows_go_into_a_file_and_the_rest_verifies_from_the_anchors() {
    let cellar = Cellar::filled().await;
    let before = cellar.report(&[]).await;
    assert_eq!((before.batches, before.faults.len()), (24, 0));
    let archive = cellar.archive("one").await.expect("archived");
    assert_eq!((archive.rows, archive.entries, archive.runs.len()), (15, 30, 3));
    assert_eq!(cellar.read("one").expect("as written"), archive);
    let after = cellar.report(std::slice::from_ref(&archive)).await;
    assert_eq!((after.faults, after.anchors, after.open_runs), (vec![], 3, 0));
    // The rows that were not archived, and the row that records the archiving.
    assert_eq!(after.batches, 24 - 15 + 1);
    let rows = cellar.stage.rows.0.lock().unwrap().clone();
    assert!(rows.iter().all(|row| row.at >= END));
    // The chains continue.
    for writer in &cellar.writers {
        cellar.stage.write(writer, vec![some_access(9)]).await;
    }
    assert_eq!(cellar.report(&[archive]).await.faults, []);
}

#[tokio::test]
async fn who_archived_is_recorded() {
    let cellar = Cellar::filled().await;
    cellar.archive("one").await.expect("archived");
    let rows = cellar.stage.rows.0.lock().unwrap().clone();
    let entries = rows.iter().flat_map(|row| read(&row.body, row.at).expect("ours").entries);
    let said: Vec<Access> = entries.filter(|entry| entry.action.as_str() == "AUDIT_ARCHIVE").collect();
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].outcome, Outcome::Done);
    assert!(said[0].caller.subject.starts_with("system:audit-archive/uid-"), "{}", said[0].caller.subject);
    let reason = said[0].reason.as_deref().unwrap_or_default();
    assert!(
        reason.starts_with("15 rows of 3 chains before 1970-01-01, into the file with the seal "),
        "{reason}"
    );
}

#[tokio::test]
async fn archives_follow_each_other() {
    let cellar = Cellar::filled().await;
    let first = cellar.archive("one").await.expect("archived");
    cellar.stage.hand.0.store(5 * HOUR_US, Ordering::SeqCst);
    let path = cellar.path("two");
    let second = cellar.archiver().archive(Timestamp(3 * HOUR_US), &path).await.expect("archived");
    // Two chains continued. Another chain, and the chain that recorded the first archive, started later.
    assert_eq!((second.rows, second.runs.len()), (10, 4));
    assert_eq!(cellar.read("two").expect("as written"), second);
    let both = cellar.report(&[first.clone(), second.clone()]).await;
    assert_eq!((both.faults, both.open_runs), (vec![], 0));
    let alone = cellar.report(std::slice::from_ref(&first)).await;
    assert_eq!((alone.faults, alone.open_runs), (vec![], 2), "two chains go on in the second file");
    // A second file that continues from another row.
    let mut other = second.clone();
    for run in &mut other.runs {
        run.before[0] ^= 1;
    }
    let faults = cellar.report(&[first, other]).await.faults;
    assert!(
        faults.iter().any(|fault| fault.what == "the archive made next goes on from another row"),
        "{faults:?}"
    );
    let nothing = cellar.archiver().archive(Timestamp(3 * HOUR_US), &cellar.path("three")).await;
    assert!(matches!(nothing, Err(ArchiveError::Refused(_))), "{nothing:?}");
    assert!(!cellar.path("three").exists());
}

#[tokio::test]
async fn a_file_that_is_there_is_not_written_to_and_what_may_be_on_its_way_stays() {
    let cellar = Cellar::filled().await;
    fs::write(cellar.path("one"), "mine").expect("written");
    let refused = cellar.archive("one").await;
    assert!(matches!(refused, Err(ArchiveError::Refused(_))), "{refused:?}");
    assert_eq!(fs::read(cellar.path("one")).expect("there"), b"mine");
    let soon = Timestamp(1_000_000 + HOUR_US + 1);
    let refused = cellar.archiver().archive(soon, &cellar.path("two")).await;
    assert!(matches!(refused, Err(ArchiveError::Refused(_))), "{refused:?}");
    assert_eq!(cellar.report(&[]).await.batches, 24);
}

#[tokio::test]
async fn what_does_not_verify_is_not_archived() {
    for at in [0, 7, 14] {
        let cellar = Cellar::filled().await;
        cellar.stage.change(|rows| rows[at].body[0] ^= 1);
        let refused = cellar.archive("one").await;
        assert!(matches!(refused, Err(ArchiveError::Fault(_))), "{refused:?}");
        assert!(!cellar.path("one").exists());
        assert_eq!(cellar.stage.rows.0.lock().unwrap().len(), 24, "nothing was taken away");
    }
}

/// Stops after each number of removed rows, and runs again.
#[tokio::test]
async fn an_archiving_that_was_cut_short_is_run_again() {
    for taken in 0..8 {
        let cellar = Cellar::filled().await;
        let whole: (Vec<AuditBatch>, Vec<AuditAnchor>) =
            (cellar.stage.rows.0.lock().unwrap().clone(), vec![]);
        let first = cellar.archive("one").await.expect("archived");
        // Simulates a tool that stopped after `taken` of its small transactions.
        let recorded = cellar.stage.rows.0.lock().unwrap().clone();
        let recorded = recorded.into_iter().filter(|row| !whole.0.contains(row));
        let mut rows = whole.0.clone();
        rows.extend(recorded);
        let mut anchors = HashMap::new();
        let steps = first.runs.iter().flat_map(|run| [1, 3, 4].map(|seq| (run.last.chain, seq)));
        for (chain, seq) in steps.take(taken) {
            let last = whole.0.iter().find(|row| row.chain == chain && row.seq == seq).expect("a row");
            rows.retain(|row| row.chain != chain || row.seq > seq);
            let head = AuditHead { chain, seq, mac: last.mac };
            anchors.insert(chain, AuditAnchor { head, seal: cellar.stage.key.seal_anchor(&head) });
        }
        cellar.stage.change(|there| *there = rows);
        cellar.change_anchors(|there| *there = anchors.into_values().collect());
        let between = cellar.report(std::slice::from_ref(&first)).await;
        assert_eq!(between.faults, [], "after {taken}");
        let second = cellar.archive("two").await.expect("archived again");
        assert_eq!(cellar.read("two").expect("as written"), second);
        assert!(second.rows <= 15);
        let after = cellar.report(&[first]).await;
        assert_eq!((after.faults, after.anchors), (vec![], 3), "after {taken}");
    }
}

#[tokio::test]
async fn a_changed_missing_or_foreign_anchor_is_found() {
    type Tamper = fn(&mut Vec<AuditAnchor>, usize);
    let kinds: [(&str, Tamper); 6] = [
        ("its place", |anchors, at| anchors[at].head.seq -= 1),
        ("its mac", |anchors, at| anchors[at].head.mac[3] ^= 1),
        ("its seal", |anchors, at| anchors[at].seal[3] ^= 1),
        ("its chain", |anchors, at| anchors[at].head.chain = Uuid::from_u128(5)),
        ("removed", |anchors, at| {
            anchors.remove(at);
        }),
        ("another's", |anchors, at| {
            let chain = anchors[at].head.chain;
            anchors[at] = anchors[(at + 1) % 3];
            anchors[at].head.chain = chain;
        }),
    ];
    for (what, tamper) in kinds {
        for at in 0..3 {
            let cellar = Cellar::filled().await;
            let archive = cellar.archive("one").await.expect("archived");
            cellar.change_anchors(|anchors| tamper(anchors, at));
            assert!(!cellar.report(&[]).await.faults.is_empty(), "{what} at {at}");
            assert!(!cellar.report(&[archive]).await.faults.is_empty(), "{what} at {at}");
        }
    }
}

/// An older anchor of the same chain also has a valid seal.
#[tokio::test]
async fn an_older_anchor_put_back_is_found() {
    let cellar = Cellar::filled().await;
    cellar.archive("one").await.expect("archived");
    let old = cellar.stage.rows.2.lock().unwrap().clone();
    cellar.stage.hand.0.store(5 * HOUR_US, Ordering::SeqCst);
    cellar.archiver().archive(Timestamp(3 * HOUR_US), &cellar.path("two")).await.expect("archived");
    assert_eq!(cellar.report(&[]).await.faults, []);
    for anchor in old {
        let newer = cellar.stage.rows.2.lock().unwrap().clone();
        if newer.contains(&anchor) {
            continue;
        }
        cellar.change_anchors(|anchors| {
            anchors.retain(|there| there.head.chain != anchor.head.chain);
            anchors.push(anchor);
        });
        let faults = cellar.report(&[]).await.faults;
        assert_eq!(faults.len(), 1, "{faults:?}");
        assert_eq!(faults[0].what, "the row is missing: another chain saw it");
        cellar.change_anchors(|anchors| *anchors = newer);
    }
}

#[tokio::test]
async fn rows_around_an_anchor_are_looked_at() {
    let cellar = Cellar::filled().await;
    let whole = cellar.stage.rows.0.lock().unwrap().clone();
    let archive = cellar.archive("one").await.expect("archived");
    let straddles = archive.runs.iter().map(|run| run.last.chain);
    let rows = cellar.stage.rows.0.lock().unwrap().clone();
    let straddles: Vec<Uuid> = straddles.filter(|chain| rows.iter().any(|row| row.chain == *chain)).collect();
    assert_eq!(straddles.len(), 2);
    for chain in straddles {
        // The first row after the anchor.
        cellar.stage.change(|rows| rows.retain(|row| row.chain != chain || row.seq != 5));
        let faults = cellar.report(&[]).await.faults;
        assert_eq!((faults[0].chain, faults[0].seq, faults[0].what), (chain, 5, "the row is missing"));
        cellar.stage.change(|there| *there = rows.clone());
        // An archived row that was put back.
        let old = whole.iter().find(|row| row.chain == chain && row.seq == 2).expect("a row").clone();
        cellar.stage.change(|rows| rows.push(old));
        let faults = cellar.report(&[]).await.faults;
        assert_eq!(faults[0].what, "another row stands at a place that is taken, or before the anchor");
        cellar.stage.change(|there| *there = rows.clone());
    }
    assert_eq!(cellar.report(&[archive]).await.faults, []);
}

/// A change of any byte and a cut at any length are detected.
#[tokio::test]
async fn a_changed_archive_is_found() {
    let cellar = Cellar::filled().await;
    cellar.archive("one").await.expect("archived");
    let bytes = fs::read(cellar.path("one")).expect("there");
    let read = |bytes: &[u8]| read_archive(bytes, Some(&cellar.stage.keys()), |_, _| Ok(()));
    read(&bytes).expect("as written");
    for at in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(read(&changed).is_err(), "byte {at} of {}", bytes.len());
    }
    for length in 0..bytes.len() {
        assert!(read(&bytes[..length]).is_err(), "{length} bytes of {}", bytes.len());
    }
    assert!(read(&[&bytes[..], b"x"].concat()).is_err(), "a byte more");
    let other = read_archive(&bytes[..], Some(&Keys::new(Key::of(&[8; 32]), vec![])), |_, _| Ok(()));
    assert!(matches!(other, Err(ArchiveError::Fault(_))), "{other:?}");
    // Without the secret the file can still be read.
    let mut entries = 0;
    let shown = read_archive(&bytes[..], None, |_, content| {
        entries += content.entries.len();
        Ok(())
    });
    assert_eq!((shown.expect("read").rows, entries), (15, 30));
}

/// The secret was changed between two archives.
#[tokio::test]
async fn rows_of_an_older_secret_are_archived_with_both() {
    let mut cellar = Cellar::filled().await;
    let first = cellar.archive("one").await.expect("archived");
    let old = std::mem::replace(&mut cellar.stage.key, Key::of(&[8; 32]));
    cellar.stage.write(&cellar.stage.writer("new#1/edge"), vec![some_access(1)]).await;
    cellar.stage.hand.0.store(5 * HOUR_US, Ordering::SeqCst);
    let (end, path) = (Timestamp(3 * HOUR_US), cellar.path("two"));
    let alone = cellar.archiver().archive(end, &path).await;
    assert!(matches!(alone, Err(ArchiveError::Fault(_))), "{alone:?}");
    let both = Keys::new(cellar.stage.key.clone(), vec![old]);
    let second =
        Archiver { keys: both.clone(), ..cellar.archiver() }.archive(end, &path).await.expect("archived");
    assert_eq!((second.rows, second.runs.len()), (11, 5));
    let report = verify(&*cellar.stage.rows, &both, &[first, second]).await.expect("read");
    assert_eq!((report.faults, report.open_runs), (vec![], 0));
    let read = |keys: &Keys| read_archive(fs::File::open(cellar.path("two"))?, Some(keys), |_, _| Ok(()));
    read(&both).expect("as written");
    assert!(read(&cellar.stage.keys()).is_err());
}

#[tokio::test]
async fn an_archive_of_another_database_joins_nothing() {
    let (one, two) = (Cellar::filled().await, Cellar::filled().await);
    let archive = one.archive("one").await.expect("archived");
    let faults = two.report(&[archive]).await.faults;
    assert_eq!(faults.len(), 3);
    assert!(faults.iter().all(|fault| fault.what.starts_with("the archive joins nothing")), "{faults:?}");
}

#[tokio::test]
async fn a_clock_that_steps_back_leaves_a_chain_in_order() {
    let stage = Stage::new();
    let chains = stage.writer("a#1/edge");
    stage.hand.0.store(HOUR_US, Ordering::SeqCst);
    let first = stage.write(&chains, vec![some_access(1)]).await;
    stage.hand.0.store(0, Ordering::SeqCst);
    let second = stage.write(&chains, vec![some_access(2)]).await;
    assert!(second.at >= first.at, "{second:?} after {first:?}");
    assert_eq!(stage.report().await.faults, []);
}
