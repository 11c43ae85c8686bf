//! Archiving: moves old rows into a file and leaves one anchor per chain in the database.
//!
//! The order of the steps makes it safe to stop at any time and to start again:
//! 1. Rows sealed before the end are written to the file, after a check of each seal, and the file is synced.
//! 2. The file is read back and checked.
//! 3. The archiving is recorded in the audit. The recording rows pin the last archived row of every chain, so
//!    that an anchor that is later missing or outdated is detected like a missing row.
//! 4. The rows are replaced by the anchors, in one transaction. Where this would block others for too long,
//!    each transaction replaces only a few rows and leaves an anchor.
//!
//! A run that stopped before the end of step 4 leaves rows both in the file and in the database. The next run
//! archives them again into another file; both files hold the same sealed rows.

mod file;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

pub(super) use self::file::Run;
use self::file::Writer;
pub use self::file::{Archive, read_archive};
use super::chain::{Chains, Keys};
use super::verify::{BATCHES_PAGE, CHAINS_PAGE, anchored, anchors_of};
use crate::domain::access::{Action, Caller, Role};
use crate::domain::audit::{Access, Outcome};
use crate::domain::time::{Clock, Timestamp};
use crate::store::{self, AuditAnchor, AuditArchiveStore, AuditHead, AuditStore};

/// The minimum age of archived rows: 1 hour, in microseconds. A transaction may still be in flight until
/// then.
const SETTLED_US: i64 = 3_600_000_000;
/// The most heads pinned by one row.
const PINS_AT_ONCE: usize = 4_096;

/// Why nothing, or not everything, was archived.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The file cannot be read or written.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A row, an anchor or the file differs from what was written.
    #[error("{0}")]
    Fault(String),
    /// The request is not allowed.
    #[error("{0}")]
    Refused(String),
}

/// Archives old rows of the audit.
pub struct Archiver<S: ?Sized> {
    /// The database.
    pub store: Arc<S>,
    /// The secrets. Anchors and the file are sealed with the present secret.
    pub keys: Keys,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The chains for the rows that record the archiving.
    pub chains: Chains,
}

impl<S: AuditArchiveStore + ?Sized> Archiver<S> {
    /// Archives the rows sealed before `before` into a new file at `path`, and removes them from the
    /// database.
    ///
    /// Where the database partitions rows by month, only whole months are archived.
    ///
    /// # Errors
    /// See `ArchiveError`. No row is removed before the last step, and no row is ever removed that is not in
    /// the file.
    pub async fn archive(&self, before: Timestamp, path: &Path) -> Result<Archive, ArchiveError> {
        let now = self.clock.now();
        if before.0 > now.0.saturating_sub(SETTLED_US) {
            let what =
                "--before: must lie an hour or more in the past, since later rows may still be on their way";
            return Err(ArchiveError::Refused(what.into()));
        }
        let Some(end) = self.store.audit_can_end_at(before).await? else {
            let what = "no month of the audit has ended before that day: nothing to archive";
            return Err(ArchiveError::Refused(what.into()));
        };
        let anchors = anchors_of(&*self.store).await?;
        if let Some(anchor) = anchors.values().find(|anchor| !anchored(&self.keys, anchor)) {
            let AuditHead { chain, seq, .. } = anchor.head;
            let what = format!("the anchor of chain {chain} at row {seq} was not sealed with this secret");
            return Err(ArchiveError::Fault(what));
        }
        let archive = self.write_file(end, &anchors, path).await?;
        if archive.rows == 0 {
            std::fs::remove_file(path)?;
            return Err(ArchiveError::Refused(
                "no row was sealed before that day: nothing to archive".into(),
            ));
        }
        let file = File::open(path)?;
        let uid = file.metadata()?.uid();
        let read = read_archive(BufReader::new(file), Some(&self.keys), |_, _| Ok(()))?;
        if read != archive {
            return Err(ArchiveError::Fault("what was written cannot be read again as it was".into()));
        }
        let heads = self.record(&archive, &anchors, uid).await?;
        self.take_away(&archive, &anchors, &heads).await?;
        Ok(archive)
    }

    async fn write_file(
        &self,
        end: Timestamp,
        anchors: &HashMap<Uuid, AuditAnchor>,
        path: &Path,
    ) -> Result<Archive, ArchiveError> {
        let made = File::options().write(true).create_new(true).mode(0o600).open(path);
        let file = made.map_err(|error| match error.kind() {
            ErrorKind::AlreadyExists => ArchiveError::Refused(format!(
                "{} exists, and is not written to: name another file",
                path.display()
            )),
            _ => error.into(),
        })?;
        let written = self.write_rows(end, anchors, BufWriter::new(file)).await;
        let synced = written.and_then(|(archive, out)| {
            out.into_inner().map_err(|error| error.into_error())?.sync_all()?;
            // Sync the directory too, so that the file name is durable.
            let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
            Ok(archive)
        });
        if synced.is_err() {
            // The file is incomplete and no row was removed, so only the first error matters.
            let _ = std::fs::remove_file(path);
        }
        synced
    }

    async fn write_rows<W: std::io::Write>(
        &self,
        end: Timestamp,
        anchors: &HashMap<Uuid, AuditAnchor>,
        out: W,
    ) -> Result<(Archive, W), ArchiveError> {
        let mut writer = Writer::begin(out, &self.keys, end)?;
        let mut before = None;
        loop {
            let heads = self.store.audit_heads(before, CHAINS_PAGE).await?;
            let Some(last) = heads.last() else { return writer.end() };
            before = Some(last.chain);
            for AuditHead { chain, .. } in heads {
                let anchor = anchors.get(&chain);
                writer.run(chain, anchor);
                self.write_chain(chain, end, anchor, &mut writer).await?;
            }
        }
    }

    async fn write_chain<W: std::io::Write>(
        &self,
        chain: Uuid,
        end: Timestamp,
        anchor: Option<&AuditAnchor>,
        writer: &mut Writer<'_, W>,
    ) -> Result<(), ArchiveError> {
        let mut next = 0;
        loop {
            let page = self.store.audit_batches(chain, next, BATCHES_PAGE).await?;
            let Some(last) = page.last() else { return Ok(()) };
            next = last.seq + 1;
            for batch in &page {
                if batch.at >= end {
                    return Ok(());
                }
                writer.row(batch, anchor)?;
            }
        }
    }

    /// Records that `archive` was written. Returns the anchors to leave in the database.
    async fn record(
        &self,
        archive: &Archive,
        anchors: &HashMap<Uuid, AuditAnchor>,
        uid: u32,
    ) -> Result<Vec<AuditAnchor>, ArchiveError> {
        let anchor =
            |run: &Run| AuditAnchor { head: run.last, seal: self.keys.present().seal_anchor(&run.last) };
        let left: Vec<AuditAnchor> = archive.runs.iter().map(anchor).collect();
        let replaced: HashSet<Uuid> = left.iter().map(|anchor| anchor.head.chain).collect();
        let kept = anchors.values().filter(|anchor| !replaced.contains(&anchor.head.chain));
        let heads: Vec<AuditHead> = left.iter().chain(kept).map(|anchor| anchor.head).collect();
        let mut entries = vec![self.entry(archive, uid)];
        for heads in heads.chunks(PINS_AT_ONCE) {
            self.chains.look().await;
            let mut chain = self.chains.take();
            chain.pin(heads);
            let batch = self.chains.seal(&chain, std::mem::take(&mut entries));
            let result = AuditStore::append_audit(&*self.store, &batch).await;
            self.chains.ended(chain, &batch, &result);
            result?;
        }
        Ok(left)
    }

    /// Returns the audit entry of the archiving. Only the operating system knows the person behind the
    /// database access, so the entry names the owner of the file.
    fn entry(&self, archive: &Archive, uid: u32) -> Access {
        let seal: String = archive.seal.iter().map(|byte| format!("{byte:02x}")).collect();
        let (rows, chains, before) = (archive.rows, archive.runs.len(), archive.before.to_offset().date());
        let reason =
            format!("{rows} rows of {chains} chains before {before}, into the file with the seal {seal}");
        let subject = format!("system:audit-archive/uid-{uid}").into();
        Access {
            at: self.clock.now(),
            action: Action::AuditArchive,
            outcome: Outcome::Done,
            caller: Caller { subject, role: Role::Admin, from: None, break_glass: None },
            patients: Vec::new(),
            trace_id: 0,
            reason: Some(reason.into()),
            change: None,
            detail: None,
        }
    }

    async fn take_away(
        &self,
        archive: &Archive,
        anchors: &HashMap<Uuid, AuditAnchor>,
        left: &[AuditAnchor],
    ) -> Result<(), ArchiveError> {
        let Some(rows_max) = self.store.audit_removal_rows_max() else {
            return Ok(self.store.remove_audit(archive.before, left).await?);
        };
        for anchor in left {
            let AuditHead { chain, seq: last, .. } = anchor.head;
            let mut next = anchors.get(&chain).map_or(0, |anchor| anchor.head.seq + 1);
            while next <= last {
                let page = self.store.audit_batches(chain, next, rows_max).await?;
                let Some(batch) = page.iter().rev().find(|batch| batch.seq <= last) else { break };
                let head = AuditHead { chain, seq: batch.seq, mac: batch.mac };
                let step = match head.seq == last {
                    true => *anchor,
                    false => AuditAnchor { head, seal: self.keys.present().seal_anchor(&head) },
                };
                self.store.remove_audit(archive.before, &[step]).await?;
                next = head.seq + 1;
            }
        }
        Ok(())
    }
}
