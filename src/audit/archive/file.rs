//! The archive file. `proto/hygeia/audit/v1/audit.proto` specifies its format. Reader and writer process one
//! item at a time, so neither holds more than one row in memory.

use std::io::{Read, Write};

use aws_lc_rs::hmac;
use prost::Message;
use uuid::Uuid;

use super::ArchiveError;
use crate::audit::chain::{Key, Keys, Mac, NOTHING_BEFORE, ended};
use crate::audit::entry::{Content, Terms, read};
use crate::audit::verify::check;
use crate::domain::time::Timestamp;
use crate::proto::audit as pb;
use crate::proto::audit::archive_item::Item;
use crate::store::{AuditAnchor, AuditBatch, AuditHead};

/// The first line of an archive file.
const FIRST_LINE: &[u8] = b"hygeia audit archive 1\n";
/// The size limit of an item in bytes. A row holds one batch, whose number of entries is bounded.
const ITEM_BYTES_MAX: usize = 256 << 20;

/// The rows of one chain in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The sequence number of the first row.
    pub first_seq: i64,
    /// The seal of the previous row; zeros at the start of a chain.
    pub before: Mac,
    /// The head at the last row.
    pub last: AuditHead,
}

/// A summary of an archive file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// All rows were sealed before this time.
    pub before: Timestamp,
    /// One run per chain.
    pub runs: Vec<Run>,
    /// The number of rows.
    pub rows: u64,
    /// The number of entries in the rows.
    pub entries: u64,
    /// The seal of the whole file; zeros if the file was read without the secret.
    pub seal: Mac,
}

/// Starts the seal of a file under `key`.
fn sealing_of(key: &Key) -> hmac::Context {
    let mut sealing = key.sealing();
    sealing.update(b"hygeia audit archive 1\0");
    sealing
}

/// Writes an archive file.
pub(super) struct Writer<'a, W> {
    out: W,
    sealing: hmac::Context,
    keys: &'a Keys,
    archive: Archive,
    /// The current run. It is empty while `last` is the row before its first row.
    run: Option<Run>,
}

impl<'a, W: Write> Writer<'a, W> {
    pub(super) fn begin(out: W, keys: &'a Keys, before: Timestamp) -> Result<Self, ArchiveError> {
        let archive = Archive { before, runs: Vec::new(), rows: 0, entries: 0, seal: NOTHING_BEFORE };
        let mut writer = Writer { out, sealing: sealing_of(keys.present()), keys, archive, run: None };
        writer.put(FIRST_LINE)?;
        writer.item(Item::Header(pb::ArchiveHeader { before_us: before.0 }))?;
        Ok(writer)
    }

    /// Begins the run of a chain, which continues from `anchor`.
    pub(super) fn run(&mut self, chain: Uuid, anchor: Option<&AuditAnchor>) {
        self.finish_run();
        let (last, before) = anchor.map_or((-1, NOTHING_BEFORE), |anchor| (anchor.head.seq, anchor.head.mac));
        let last = AuditHead { chain, seq: last, mac: before };
        self.run = Some(Run { first_seq: last.seq + 1, before, last });
    }

    /// Checks and adds the next row of the chain.
    ///
    /// # Errors
    /// The row does not belong there, or the file cannot be written.
    pub(super) fn row(
        &mut self,
        batch: &AuditBatch,
        anchor: Option<&AuditAnchor>,
    ) -> Result<(), ArchiveError> {
        let Some(mut run) = self.run else { return Err(ArchiveError::Fault("a row without a chain".into())) };
        let (seq, chain) = (run.last.seq + 1, run.last.chain);
        let checked = check(self.keys, batch, seq, &run.last.mac);
        let content =
            checked.map_err(|what| ArchiveError::Fault(format!("chain {chain} row {seq}: {what}")))?;
        if seq == run.first_seq {
            self.item(Item::Run(pb::ArchiveRun {
                chain: chain.as_bytes().to_vec(),
                first_seq: seq.unsigned_abs(),
                before_mac: anchor.map(|anchor| anchor.head.mac.to_vec()).unwrap_or_default(),
                anchor_seal: anchor.map(|anchor| anchor.seal.to_vec()).unwrap_or_default(),
            }))?;
        }
        self.item(Item::Row(pb::ArchiveRow {
            at_us: batch.at.0,
            mac: batch.mac.to_vec(),
            body: batch.body.clone(),
        }))?;
        run.last = AuditHead { chain, seq, mac: batch.mac };
        self.run = Some(run);
        self.archive.rows += 1;
        self.archive.entries += content.entries.len() as u64;
        Ok(())
    }

    fn finish_run(&mut self) {
        let run = self.run.take();
        self.archive.runs.extend(run.filter(|run| run.last.seq >= run.first_seq));
    }

    /// Writes the end of the file. Returns the summary and the output.
    pub(super) fn end(mut self) -> Result<(Archive, W), ArchiveError> {
        self.finish_run();
        self.archive.seal = ended(&self.sealing);
        self.item(Item::End(pb::ArchiveEnd {
            runs: self.archive.runs.len() as u64,
            rows: self.archive.rows,
            seal: self.archive.seal.to_vec(),
        }))?;
        self.out.flush()?;
        Ok((self.archive, self.out))
    }

    fn item(&mut self, item: Item) -> Result<(), ArchiveError> {
        let bytes = pb::ArchiveItem { item: Some(item) }.encode_to_vec();
        let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= ITEM_BYTES_MAX);
        let length = length.ok_or_else(|| ArchiveError::Fault("a row is larger than 256 MiB".into()))?;
        self.put(&length.to_be_bytes())?;
        self.put(&bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.sealing.update(bytes);
        Ok(self.out.write_all(bytes)?)
    }
}

/// Reads an archive file.
struct Reader<R> {
    input: R,
    /// One seal per secret; empty if no seal is checked.
    sealings: Vec<hmac::Context>,
}

impl<R: Read> Reader<R> {
    /// Reads the next item. The bytes of the end item itself are not sealed.
    fn item(&mut self) -> Result<Item, ArchiveError> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let bytes = u32::from_be_bytes(length) as usize;
        if bytes > ITEM_BYTES_MAX {
            return Err(ArchiveError::Fault("it is damaged: an item is larger than 256 MiB".into()));
        }
        // Grow the buffer with the data, because a damaged length must not cause a large allocation.
        let mut content = Vec::new();
        if self.input.by_ref().take(bytes as u64).read_to_end(&mut content)? < bytes {
            return Err(cut_short());
        }
        let item = pb::ArchiveItem::decode(&content[..]).ok().and_then(|item| item.item);
        let item = item.ok_or_else(|| ArchiveError::Fault("it is damaged: an item cannot be read".into()))?;
        if !matches!(item, Item::End(_)) {
            self.seal(&length);
            self.seal(&content);
        }
        Ok(item)
    }

    fn seal(&mut self, bytes: &[u8]) {
        self.sealings.iter_mut().for_each(|sealing| sealing.update(bytes));
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), ArchiveError> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => cut_short(),
            _ => error.into(),
        })
    }
}

fn cut_short() -> ArchiveError {
    ArchiveError::Fault(
        "it ends early: the command that wrote it was cut short, or its end was cut off".into(),
    )
}

/// Reads a file to its end, and checks all of it under `keys`. Without keys, only the format is checked.
/// Calls `each` for every row.
///
/// # Errors
/// The file cannot be read, or differs from what was written: the first such place.
pub fn read_archive<R: Read>(
    mut input: R,
    keys: Option<&Keys>,
    mut each: impl FnMut(&AuditBatch, &Content) -> Result<(), ArchiveError>,
) -> Result<Archive, ArchiveError> {
    let mut first_line = Vec::new();
    input.by_ref().take(FIRST_LINE.len() as u64).read_to_end(&mut first_line)?;
    if first_line != FIRST_LINE {
        return Err(ArchiveError::Fault("it is no archive of the audit".into()));
    }
    let mut reader =
        Reader { input, sealings: keys.into_iter().flat_map(Keys::iter).map(sealing_of).collect() };
    reader.seal(FIRST_LINE);
    let Item::Header(pb::ArchiveHeader { before_us }) = reader.item()? else { return Err(out_of_order()) };
    let before = Timestamp(before_us);
    let mut archive = Archive { before, runs: Vec::new(), rows: 0, entries: 0, seal: NOTHING_BEFORE };
    loop {
        match reader.item()? {
            Item::Header(_) => return Err(out_of_order()),
            Item::Run(run) => archive.runs.push(begun(&run, keys)?),
            Item::Row(row) => {
                let run = archive.runs.last_mut().ok_or_else(out_of_order)?;
                let (batch, content) = row_of(row, run, keys)?;
                run.last = AuditHead { seq: batch.seq, mac: batch.mac, ..run.last };
                archive.rows += 1;
                archive.entries += content.entries.len() as u64;
                each(&batch, &content)?;
            }
            Item::End(end) => {
                finish(&mut reader, &mut archive, &end)?;
                return Ok(archive);
            }
        }
    }
}

fn finish<R: Read>(
    reader: &mut Reader<R>,
    archive: &mut Archive,
    end: &pb::ArchiveEnd,
) -> Result<(), ArchiveError> {
    if end.runs != archive.runs.len() as u64 || end.rows != archive.rows {
        return Err(ArchiveError::Fault("rows are missing, or were put in: their number is another".into()));
    }
    if !reader.sealings.is_empty() {
        let what = "its seal does not fit: it was changed, or sealed with another secret";
        let seal = reader.sealings.iter().map(ended).find(|seal| end.seal == seal[..]);
        archive.seal = seal.ok_or_else(|| ArchiveError::Fault(what.into()))?;
    }
    match reader.input.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(ArchiveError::Fault("something follows its end".into())),
    }
}

fn out_of_order() -> ArchiveError {
    ArchiveError::Fault("it is damaged: its items are out of order".into())
}

fn begun(run: &pb::ArchiveRun, keys: Option<&Keys>) -> Result<Run, ArchiveError> {
    let damaged = || ArchiveError::Fault("it is damaged: the beginning of a chain cannot be read".into());
    let chain = Uuid::from_slice(&run.chain).map_err(|_| damaged())?;
    let first_seq = i64::try_from(run.first_seq).map_err(|_| damaged())?;
    let before = match first_seq {
        0 => NOTHING_BEFORE,
        _ => Mac::try_from(&run.before_mac[..]).map_err(|_| damaged())?,
    };
    let last = AuditHead { chain, seq: first_seq - 1, mac: before };
    let forged = |keys: &Keys| keys.iter().all(|key| key.seal_anchor(&last)[..] != run.anchor_seal);
    if first_seq > 0 && keys.is_some_and(forged) {
        let what = "the anchor that the chain begins with was not sealed with this secret";
        return Err(ArchiveError::Fault(format!("chain {chain} row {first_seq}: {what}")));
    }
    Ok(Run { first_seq, before, last })
}

fn row_of(
    row: pb::ArchiveRow,
    run: &Run,
    keys: Option<&Keys>,
) -> Result<(AuditBatch, Content), ArchiveError> {
    let AuditHead { chain, seq, mac: before } = run.last;
    let seq = seq + 1;
    let fault = |what: &str| ArchiveError::Fault(format!("chain {chain} row {seq}: {what}"));
    let at = Timestamp(row.at_us);
    let mac = Mac::try_from(row.mac).map_err(|_| fault("its seal has another length"))?;
    let content = read(&row.body, at).map_err(|_| fault("its content cannot be read by this version"))?;
    let terms = Terms::of(&content.entries, at).0;
    let batch = AuditBatch { chain, seq, at, mac, body: row.body, terms };
    if let Some(keys) = keys {
        check(keys, &batch, seq, &before).map_err(fault)?;
    }
    Ok((batch, content))
}
