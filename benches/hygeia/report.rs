//! The table, on the terminal and in `docs/BENCHMARKS.md`.

use std::fmt::Write;
use std::path::Path;

use time::OffsetDateTime;

use crate::stats::Spread;
use crate::{Effort, Result, pg, say};

/// One line of the table.
pub(crate) struct Row {
    /// What is measured.
    pub(crate) what: String,
    /// What it is measured beside.
    pub(crate) beside: String,
    /// Our numbers.
    pub(crate) ours: String,
    /// The yardstick's numbers; empty if there is none.
    pub(crate) yardstick: String,
    /// Ours by the yardstick's, pair by pair; without a yardstick, our number.
    pub(crate) ratio: Spread,
    /// What is to be reached, if anything.
    pub(crate) reach: Option<Reach>,
}

/// A goal.
#[derive(Clone, Copy)]
pub(crate) enum Reach {
    AtLeast(f64),
    AtMost(f64),
}

impl Reach {
    fn told(self, ratio: f64) -> String {
        let (sign, goal, met) = match self {
            Reach::AtLeast(goal) => ("≥", goal, ratio >= goal),
            Reach::AtMost(goal) => ("≤", goal, ratio <= goal),
        };
        format!("{sign} {goal}: {}", if met { "reached" } else { "**missed**" })
    }
}

/// All lines.
pub(crate) struct Report {
    effort: Effort,
    rows: Vec<Row>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(effort: Effort) -> Report {
        Report { effort, rows: Vec::new() }
    }

    /// One more line.
    pub(crate) fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Shows the table.
    pub(crate) fn print(&self) -> Result<()> {
        if !self.rows.is_empty() {
            say(&self.table()?);
        }
        Ok(())
    }

    /// Writes the page.
    pub(crate) fn write(&self) -> Result<()> {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/BENCHMARKS.md"));
        std::fs::write(path, self.page()?)?;
        say(&format!("written: {}", path.display()));
        Ok(())
    }

    fn table(&self) -> Result<String> {
        let mut table = String::from(
            "| what | beside | ours | yardstick | ratio or figure (half of the pairs) | goal |\n|---|---|---|---|---|---|\n",
        );
        for row in &self.rows {
            let Row { what, beside, ours, yardstick, ratio, reach } = row;
            let goal = reach.map_or(String::from("reported"), |reach| reach.told(ratio.median));
            let ratio = told(ratio, if yardstick.is_empty() { "" } else { "×" });
            writeln!(table, "| {what} | {beside} | {ours} | {yardstick} | {ratio} | {goal} |")?;
        }
        Ok(table)
    }

    fn page(&self) -> Result<String> {
        let Effort { rounds, measured } = self.effort;
        let mut page = String::from("# Benchmarks\n\n");
        writeln!(
            page,
            "Written by `make bench` (`cargo bench --bench hygeia`); do not edit. Every number is of one run on"
        )?;
        writeln!(
            page,
            "one machine, beside a yardstick measured in the same run: the ratios are what to compare.\n"
        )?;
        page.push_str(&self.table()?);
        let date = OffsetDateTime::now_utc().date();
        writeln!(
            page,
            "\nMedians of {rounds} pairs of {} s a side where a row says nothing else, on {date}. Which side of a pair is measured
first changes from pair to pair. The ratio is the median of the ratios of the pairs.",
            measured.as_secs()
        )?;
        writeln!(
            page,
            "Load, yardsticks, broker and node are processes of their own and share the machine:\n"
        )?;
        for line in machine() {
            writeln!(page, "- {line}")?;
        }
        page.push_str(HOW);
        Ok(page)
    }
}

/// The median, and between which values half of the measurements lie.
fn told(Spread { low, median, high, times }: &Spread, unit: &str) -> String {
    match times {
        1 => format!("{median:.2}{unit} (once)"),
        _ => format!("{median:.2}{unit} ({low:.2} to {high:.2}, {times} times)"),
    }
}

const HOW: &str = "
## How it is measured

Node, load and yardsticks use the same allocator.

- **GET**: closed loop over keep-alive connections; every status is checked. Ours shows EdDSA tokens, as by default. The yardstick is
  an axum handler that verifies an HS256 token with the same library for each request and serializes the same patient, without looking one
  up. It writes no log; the row with the log at `warn`, where ours writes none either, compares the same work.
- **GET of another node**: the same through a node with the role `front` alone; the patients are on a second process with the
  role `patient`, in PostgreSQL. Every request crosses the link between the two, and is logged on both.
- **slow connections**: a closed loop of reads at one node, with 2,000 other connections that send their heads a byte a second
  and without them, by turns. One that the node ends comes again at once. They are held by the process of the bench itself. Reads are
  measured from when each reader's connection has had a first answer; how long the last of them waited for that is told beside.
- **POST**: each request registers another patient. pgbench inserts the same rows (patient with its keys, e-mail address, event,
  outbox, unbilled, audit) in one prepared statement that checks the lease under the same lock, one patient per transaction. The
  bench counts its rows and refuses a server that does not wait for its disk. The disk's own sync is measured before, between and after.
- **ask**: a question to an actor and its answer, in one process, over the public API of each library.
- **cross-node ask**: the same for a patient in the memory of another process: over our handle, directory and link, through the
  other's gate, region and shard, and back. The yardstick is a `call` to an actor of another process over `ractor_cluster`, as its documentation
  shows it, with payloads as large as the frames of ours and as many in flight. Both over plain TCP on loopback.
- **relay**: an outbox full of events is published by a whole node, analytics reading along; the yardstick is a bare
  librdkafka producer with the same settings and messages of the same form, at the same broker (librdkafka's mock cluster,
  a process of its own). Both are timed by the same observer, from the first message that the broker has to the last one.
- **memory**: a node is started on the data of patients, and each of them is read once.
- **tokens**: the same reads at two nodes, one with EdDSA tokens and one with HS256.
- **logins**: whole logins over HTTP, with as many clients as keep the hashing threads busy; the yardstick is the same BCrypt in a loop,
  times the threads that the node has for it.
- **access audit**: the same load at two nodes, one of which records no accesses; for the reads both take 512 requests at once (256 by default,
  which 224 readers come close to). With few readers each waits for the commit of its entry while the processors have time left, which is told.
  A side of a pair of reads takes a second.
- **login flood**: logins of another user with the right password, each on a connection of its own, four times as fast as they can be answered;
  what is too much is refused. Reads go on beside them.
- **start**: from starting the process to the first 200 of `/health/ready`.

How long a cluster needs after a fault or for a move is measured by the program that causes them: `docs/RELIABILITY.md`.
";

/// The machine that was measured.
pub(crate) fn machine() -> Vec<String> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?.split_once(':')?.1;
        Some(line.split_whitespace().collect::<Vec<_>>().join(" "))
    };
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = field(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".into());
    let memory = field(&read("/proc/meminfo"), "MemTotal").unwrap_or_else(|| "unknown".into());
    let mut lines = vec![
        format!("{processors} processors: {model}"),
        format!("memory: {memory}"),
        format!("Linux {}", read("/proc/sys/kernel/osrelease").trim()),
    ];
    lines.extend(pg::version());
    lines
}
