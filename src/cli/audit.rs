//! `hygeia audit`: whether the access audit is as it was written.

use std::io::Write;

use clap::{Args, Subcommand};

use super::failure::{Exit, Failure};
use super::settings::SettingArgs;
use crate::audit::Report;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Check every row of the access audit; says which one is changed or missing
    Verify(VerifyArgs),
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Print where each chain ends (chain, row, seal): kept elsewhere, it shows later what was cut off
    #[arg(long)]
    pub(super) heads: bool,
    #[command(flatten)]
    pub(super) settings: SettingArgs,
}

/// Tells what was found.
///
/// # Errors
/// Something is wrong with the audit.
pub(super) fn tell(report: &Report, heads: bool, out: &mut dyn Write) -> Result<(), Failure> {
    if heads {
        for head in &report.heads {
            write!(out, "{} {} ", head.chain, head.seq)?;
            for byte in head.mac {
                write!(out, "{byte:02x}")?;
            }
            writeln!(out)?;
        }
    }
    for fault in &report.faults {
        writeln!(out, "{fault}")?;
    }
    let (chains, batches, entries) = (report.heads.len(), report.batches, report.entries);
    match report.faults.first() {
        None => Ok(writeln!(out, "intact: {entries} entries in {batches} rows, {chains} chains")?),
        Some(first) => {
            let more = report.faults.len() - 1;
            let said = format!("the audit is not as it was written: {first}; {more} more faults");
            Err(Failure::new(Exit::Failed, said))
        }
    }
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
        let mut report = Report { batches: 4, entries: 9, heads: vec![head], faults: Vec::new() };
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
        assert_eq!(said, "chain 00000000-0000-0000-0000-000000000007 row 2: the row is missing\n");
    }
}
