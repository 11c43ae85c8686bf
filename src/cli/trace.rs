//! `hygeia trace`: draws the path of one request through the actors of all nodes, from their logs.
//!
//! The command reads the nodes' logs (`docs/LOGGING.md`), one JSON object per line. It skips any text before
//! the object, because `docker compose logs` and `hygeia cluster up` put the node's name there.

mod line;
mod tree;

use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use self::line::{Hop, TraceId};
use super::{Exit, Failure};

/// Maximum length of a line in bytes. Nodes write shorter lines; the rest of a longer line is skipped.
const LINE_BYTES_MAX: u64 = 1 << 20;
/// Maximum number of hops that are drawn. Further ones are only counted.
const HOPS_MAX: usize = 10_000;

/// The arguments of `hygeia trace`.
#[derive(Debug, clap::Args)]
pub(super) struct TraceArgs {
    /// The trace: 32 hexadecimal digits, as in `traceId` of a problem, or a whole `traceparent`
    trace_id: TraceId,
    /// Log files of the nodes, in any order; `-` or no file means standard input
    files: Vec<PathBuf>,
}

/// Reads the logs and draws the tree.
///
/// # Errors
/// A file cannot be read, or no line belongs to the trace.
pub(super) fn run(args: &TraceArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let mut found = Found::default();
    let stdin = [PathBuf::from("-")];
    let files = if args.files.is_empty() { &stdin[..] } else { &args.files[..] };
    for file in files {
        let read = if file == Path::new("-") {
            let input = std::io::stdin();
            if input.is_terminal() {
                let _ = writeln!(std::io::stderr(), "hygeia: reading the logs from standard input");
            }
            found.read(args.trace_id, input.lock())
        } else {
            File::open(file).and_then(|file| found.read(args.trace_id, BufReader::new(file)))
        };
        read.map_err(|error| Failure::new(Exit::Failed, format!("{}: {error}", file.display())))?;
    }
    if found.hops.is_empty() {
        let lines = found.lines;
        let why =
            format!("no hop of trace {} in {lines} lines (are the nodes logging as JSON?)", args.trace_id);
        return Err(Failure::new(Exit::Failed, why));
    }
    Ok(tree::draw(args.trace_id, &found.hops, found.left_out, out)?)
}

/// The hops found in the logs.
#[derive(Default)]
struct Found {
    hops: Vec<Hop>,
    left_out: usize,
    lines: u64,
}

impl Found {
    fn read(&mut self, trace: TraceId, mut log: impl BufRead) -> std::io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = (&mut log).take(LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(());
            }
            self.lines += 1;
            if line.last() != Some(&b'\n') && read as u64 == LINE_BYTES_MAX {
                log.skip_until(b'\n')?;
            }
            let Some(hop) = Hop::parse(trace, &line) else { continue };
            if self.hops.len() < HOPS_MAX {
                self.hops.push(hop);
            } else {
                self.left_out += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
