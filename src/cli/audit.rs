//! `hygeia audit`: verifies that the access audit is unchanged, and moves old rows into files.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Date, Month, UtcOffset};

use super::failure::{Exit, Failure};
use super::settings::SettingArgs;
use crate::audit::{Archive, Report, read_archive};
use crate::domain::audit::{Access, Detail};
use crate::domain::time::Timestamp;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Verify every row of the access audit, and report changed or missing rows
    Verify(VerifyArgs),
    /// Move the rows before a day into a file. Anchors stay in the database, and `verify` continues from them
    Archive(ArchiveArgs),
    /// Print the entries of an archive as lines of JSON. Needs no secret and verifies nothing: see `verify
    /// --archive`
    Show {
        /// The archive file
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Print the head of each chain (chain, row, seal). Keep the heads elsewhere, to detect later that rows
    /// were cut off
    #[arg(long)]
    pub(super) heads: bool,
    /// Verify this archive file too, and that the database continues where it ends; may be given several
    /// times
    #[arg(long, value_name = "FILE")]
    pub(super) archive: Vec<PathBuf>,
    #[command(flatten)]
    pub(super) older: OlderSecrets,
    #[command(flatten)]
    pub(super) settings: SettingArgs,
}

#[derive(Debug, Args)]
pub(super) struct OlderSecrets {
    /// A file with a former secret of the audit; may be given several times
    #[arg(long = "old-secret-file", value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ArchiveArgs {
    /// The day (UTC, such as 2027-01-01) of the first row to keep. PostgreSQL stores rows by month, so there
    /// only months that ended before that day are moved
    #[arg(long, value_name = "DATE", value_parser = start_of_day)]
    pub(super) before: Timestamp,
    /// The file to create; an existing file is never overwritten
    #[arg(long, value_name = "FILE")]
    pub(super) out: PathBuf,
    #[command(flatten)]
    pub(super) older: OlderSecrets,
    #[command(flatten)]
    pub(super) settings: SettingArgs,
}

fn start_of_day(text: &str) -> Result<Timestamp, String> {
    const ALLOWED: &str = "allowed is a day of the calendar, such as 2027-01-01";
    let [year, month, day] = text.split('-').collect::<Vec<_>>()[..] else { return Err(ALLOWED.to_owned()) };
    let day = || {
        let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
        let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
        let moment = date.midnight().assume_offset(UtcOffset::UTC);
        i64::try_from(moment.unix_timestamp_nanos() / 1000).ok().map(Timestamp)
    };
    day().ok_or_else(|| ALLOWED.to_owned())
}

const TERMS_LOST: &str =
    "the index of the audit has other terms than its rows: a search may not find what is there";

/// Prints the report.
///
/// # Errors
/// The audit has a fault.
pub(super) fn tell(report: &Report, heads: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if heads {
        for head in &report.heads {
            writeln!(out, "{} {} {}", head.chain, head.seq, hex(&head.mac))?;
        }
    }
    let mut faults: Vec<String> = report.faults.iter().map(ToString::to_string).collect();
    if report.terms_lost {
        faults.push(TERMS_LOST.to_owned());
    }
    for fault in &faults {
        writeln!(out, "{fault}")?;
    }
    if report.open_runs > 0 {
        let chains = report.open_runs;
        writeln!(out, "{chains} chains of the archives go on in later archives, which were not given")?;
    }
    let (chains, batches, entries) = (report.heads.len(), report.batches, report.entries);
    match faults.first() {
        None => {
            write!(out, "intact: {entries} entries in {batches} rows, {chains} chains")?;
            match report.anchors {
                0 => Ok(writeln!(out)?),
                anchors => Ok(writeln!(out, ", {anchors} anchors")?),
            }
        }
        Some(first) => {
            let more = faults.len() - 1;
            let said = format!("the audit is not as it was written: {first}; {more} more faults");
            Err(Failure::new(Exit::Failed, said))
        }
    }
}

/// Prints a summary of an archive.
pub(super) fn tell_archive(archive: &Archive, path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let Archive { before, runs, rows, entries, seal } = archive;
    let (before, chains) = (before.to_offset().date(), runs.len());
    let (path, seal) = (path.display(), hex(seal));
    Ok(writeln!(
        out,
        "{path}: {entries} entries in {rows} rows, {chains} chains, before {before}, seal {seal}"
    )?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Prints the entries of an archive, one per line, in the order of chains and rows.
///
/// # Errors
/// The file cannot be read, or is not an archive.
pub(super) fn show(path: &Path, out: &mut dyn Write) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("{}: {error}", path.display()));
    let file = File::open(path).map_err(|error| failed(&error))?;
    let read = read_archive(BufReader::new(file), None, |batch, content| {
        for (index, access) in content.entries.iter().enumerate() {
            writeln!(out, "{}", line_of(&format!("{}/{}/{index}", batch.chain, batch.seq), access))?;
        }
        Ok(())
    });
    read.map(drop).map_err(|error| failed(&error))
}

/// Renders an entry with the field names of `GET /api/audit`. The line has no field for whether a submitted
/// change was made, because the archive does not contain that; its event id identifies the change.
fn line_of(id: &str, access: &Access) -> serde_json::Value {
    let mut line = json!({
        "id": id,
        "at": access.at.to_offset().format(&Rfc3339).unwrap_or_default(),
        "action": access.action.as_str(),
        "outcome": access.outcome.as_str(),
        "subject": access.caller.subject.as_ref(),
        "role": access.caller.role.as_str(),
        "patientIds": access.patients.iter().map(|patient| patient.0).collect::<Vec<_>>(),
        "traceId": format!("{:032x}", access.trace_id),
    });
    if let Some(from) = access.caller.from {
        line["from"] = json!(from.to_string());
    }
    if let Some(reason) = &access.reason {
        line["reason"] = json!(reason);
    }
    if let Some(change) = access.change {
        line["eventId"] = json!(change.event.0);
        line["version"] = json!(change.version);
    }
    let Some(Detail { account, role, disabled, restricted, search }) = access.detail.as_deref() else {
        return line;
    };
    for (name, said) in [
        ("account", account.as_deref().map(Value::from)),
        ("accountRole", role.map(|role| Value::from(role.as_str()))),
        ("accountDisabled", disabled.map(Value::from)),
        ("restricted", restricted.map(Value::from)),
        ("search", search.as_deref().map(Value::from)),
    ] {
        if let Some(said) = said {
            line[name] = said;
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::audit::Fault;
    use crate::store::AuditHead;

    #[test]
    fn what_is_intact_is_counted_and_what_is_not_is_named() {
        let head = AuditHead { chain: Uuid::from_u128(7), seq: 3, mac: [0xab; 32] };
        let mut report = Report { batches: 4, entries: 9, heads: vec![head], ..Report::default() };
        let mut out = Vec::new();
        tell(&report, true, &mut out).unwrap();
        let said = String::from_utf8(out).unwrap();
        assert_eq!(
            said,
            format!(
                "00000000-0000-0000-0000-000000000007 3 {}\nintact: 9 entries in 4 rows, 1 chains\n",
                "ab".repeat(32)
            )
        );
        report.faults = vec![Fault { chain: Uuid::from_u128(7), seq: 2, what: "the row is missing" }];
        let mut out = Vec::new();
        let failure = tell(&report, false, &mut out).unwrap_err();
        assert_eq!(failure.exit, Exit::Failed);
        let said = String::from_utf8(out).unwrap();
        let missing = "chain 00000000-0000-0000-0000-000000000007 row 2: the row is missing\n";
        assert_eq!(said, missing);
        for faults in [report.faults, Vec::new()] {
            let report = Report { terms_lost: true, faults, ..Report::default() };
            let mut out = Vec::new();
            assert_eq!(tell(&report, false, &mut out).unwrap_err().exit, Exit::Failed);
            let rows = if report.faults.is_empty() { "" } else { missing };
            assert_eq!(String::from_utf8(out).unwrap(), format!("{rows}{TERMS_LOST}\n"));
        }
    }

    #[test]
    fn a_day_begins_at_midnight_and_is_one_of_the_calendar() {
        assert_eq!(start_of_day("1970-01-02"), Ok(Timestamp(86_400_000_000)));
        assert_eq!(start_of_day("2027-01-01"), Ok(Timestamp(1_798_761_600_000_000)));
        for wrong in ["2027-02-29", "2027-13-01", "2027-01", "tomorrow", "", "2027-01-01T00:00:00Z"] {
            assert!(start_of_day(wrong).is_err_and(|said| said.contains("2027-01-01")), "{wrong}");
        }
    }
}
