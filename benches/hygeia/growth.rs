//! `make bench-growth`: the same requests at a node with few patients and at nodes with many, side by side. No request may
//! cost more than `GROWTH_MAX` times as much for the number of patients alone.
//!
//! `GROWTH_PATIENTS` (10000,1000000,5000000) says how many patients there are, `GROWTH_STORES` (postgres,sqlite) in which
//! databases. Of each request the sizes are measured by turns, so that what the machine gives from minute to minute is
//! in all of them. The result goes to `docs/GROWTH.md`.

mod fill;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use time::OffsetDateTime;

use self::fill::{COMMON_SUBJECT, Filled, RARE_SUBJECT};
use crate::load::{self, Outcome, Task, Work};
use crate::node::{JWT_SECRET, Node, Site};
use crate::patients::{post_task, rate};
use crate::report::machine;
use crate::stats::median;
use crate::{Effort, Result, broker, pg, say};

const CONNECTIONS: usize = 8;
/// Fewer entities than the smallest size has are kept in memory: at every size a read by id loads from the database.
const HOT: &str = "HYGEIA__ACTORS__HOT_ENTITIES_MAX";
const HOT_ENTITIES_MAX: &str = "1000";
/// How many times as long a request may take at the largest size as at the smallest.
const GROWTH_MAX: f64 = 1.5;

/// A node with so many patients, and what is asked there.
struct Size {
    patients: u64,
    node: Node,
    token: String,
    auditor: String,
    filled: Filled,
    /// The second page of the list by name.
    second_page: String,
}

/// One kind of request.
struct Request {
    what: &'static str,
    paths: fn(&Size) -> Vec<String>,
    by: By,
}

/// Who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum By {
    Admin,
    Auditor,
}

const fn get(what: &'static str, paths: fn(&Size) -> Vec<String>) -> Request {
    Request { what, paths, by: By::Admin }
}

const fn audit(what: &'static str, paths: fn(&Size) -> Vec<String>) -> Request {
    Request { what, paths, by: By::Auditor }
}

/// The audit comes first: what follows adds to it.
const REQUESTS: [Request; 17] = [
    audit("audit, newest", |_| vec!["/api/audit?limit=20".into()]),
    audit("audit of a patient", |size| {
        size.filled.some.iter().map(|id| format!("/api/audit?limit=20&patient={id}")).collect()
    }),
    // From the middle of the rows on: the newest rows record the requests of this benchmark.
    audit("audit, a subject with many entries", |size| {
        vec![format!("/api/audit?limit=20&subject={COMMON_SUBJECT}&until={}", size.filled.half_audited)]
    }),
    audit("audit, a subject with one entry", |_| vec![format!("/api/audit?limit=20&subject={RARE_SUBJECT}")]),
    audit("audit, a subject with none", |_| vec!["/api/audit?limit=20&subject=nobody@example.com".into()]),
    get("list, oldest first", |_| vec!["/api/patients?limit=20".into()]),
    get("list, newest first", |_| vec!["/api/patients?limit=20&sort=-created".into()]),
    get("list by name, second page", |size| vec![size.second_page.clone()]),
    get("`q`, a name in twenty", |_| vec!["/api/patients?limit=20&q=anna".into()]),
    get("`q`, ten names in all", |_| vec!["/api/patients?limit=20&q=zeph".into()]),
    get("`q`, nobody", |_| vec!["/api/patients?limit=20&q=xyzzy".into()]),
    get("`email`", |_| vec!["/api/patients?email=anna.21@example.com".into()]),
    get("`bornAfter`, `bornBefore`", |_| {
        vec!["/api/patients?limit=20&bornAfter=1980-01-01&bornBefore=1981-01-01".into()]
    }),
    get("`registeredAfter`", |_| {
        let day = OffsetDateTime::now_utc().date() - time::Duration::days(30);
        vec![format!("/api/patients?limit=20&registeredAfter={day}")]
    }),
    get("GET by id, not in memory", |size| {
        size.filled.some.iter().map(|id| format!("/api/patients/{id}")).collect()
    }),
    get("history", |size| {
        size.filled.changed.iter().map(|id| format!("/api/patients/{id}/history")).collect()
    }),
    get("summary", |_| vec!["/api/analytics/summary".into()]),
];
const POST: &str = "POST patient";

/// The outcomes of one kind of request: of each size, the smallest first, each round's outcome.
struct Line {
    what: &'static str,
    outcomes: Vec<Vec<Outcome>>,
}

impl Line {
    /// How many times as long a request takes at the largest size as at the smallest.
    fn growth(&self) -> f64 {
        let rates: Vec<f64> = self.outcomes.iter().map(|outcomes| rate(outcomes)).collect();
        rates.first().copied().unwrap_or(f64::NAN) / rates.last().copied().unwrap_or(f64::NAN)
    }
}

/// Runs it, and writes the page.
///
/// # Errors
/// Also if a request takes too much longer for the number of patients.
pub(crate) async fn run(effort: Effort) -> Result<()> {
    let chosen = |name: &str, default: &str| std::env::var(name).unwrap_or_else(|_| default.to_owned());
    let sizes = chosen("GROWTH_PATIENTS", "10000,1000000,5000000");
    let sizes = sizes.split(',').map(|size| Ok(size.trim().parse()?)).collect::<Result<Vec<u64>>>()?;
    let mut page = head(effort);
    let mut grown = Vec::new();
    for store in chosen("GROWTH_STORES", "postgres,sqlite").split(',') {
        let (name, lines) = match store.trim() {
            "postgres" => ("PostgreSQL", postgres(effort, &sizes).await?),
            "sqlite" => ("SQLite", sqlite(effort, &sizes).await?),
            other => return Err(format!("no database {other}; there are postgres and sqlite").into()),
        };
        let too_much = lines.iter().filter(|line| line.growth() > GROWTH_MAX);
        grown.extend(too_much.map(|line| format!("{name}: {} {:.2}", line.what, line.growth())));
        let table = table(&sizes, &lines)?;
        say(&format!("{name}\n{table}"));
        write!(page, "\n## {name}\n\n{table}")?;
    }
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/GROWTH.md"));
    std::fs::write(path, page)?;
    say(&format!("written: {}", path.display()));
    match grown.as_slice() {
        [] => Ok(()),
        grown => Err(format!("more than {GROWTH_MAX} times as long: {}", grown.join("; ")).into()),
    }
}

async fn postgres(effort: Effort, patients: &[u64]) -> Result<Vec<Line>> {
    let broker = broker::start().await?;
    let mut sizes = Vec::new();
    for &count in patients {
        let database = pg::Postgres::shared().create_database().await;
        let name = format!("growth-{count}");
        let site = Site::on(database.url(), &broker.address)?
            .with("HYGEIA__KAFKA__TOPIC", &name)
            .with("HYGEIA__KAFKA__GROUP", &name)
            .with(HOT, HOT_ENTITIES_MAX);
        say(&format!("PostgreSQL: {count} patients"));
        let filled = fill::postgres(database.url(), count, JWT_SECRET).await?;
        // The size keeps its database and its directory: dropping them would remove both.
        sizes.push((Size::start(&site, count, filled).await?, database, site));
    }
    let lines = measure(effort, &sizes.iter().map(|(size, ..)| size).collect::<Vec<_>>()).await?;
    for (size, ..) in sizes {
        size.node.stop().await?;
    }
    Ok(lines)
}

async fn sqlite(effort: Effort, patients: &[u64]) -> Result<Vec<Line>> {
    let mut sizes = Vec::new();
    for &count in patients {
        let site = Site::embedded()?.with(HOT, HOT_ENTITIES_MAX).with_user()?;
        say(&format!("SQLite: {count} patients"));
        let filled = fill::sqlite(&site.data_dir().join("hygeia.db"), count, JWT_SECRET).await?;
        sizes.push((Size::start(&site, count, filled).await?, site));
    }
    let lines = measure(effort, &sizes.iter().map(|(size, _)| size).collect::<Vec<_>>()).await?;
    for (size, _) in sizes {
        size.node.stop().await?;
    }
    Ok(lines)
}

impl Size {
    async fn start(site: &Site, patients: u64, filled: Filled) -> Result<Size> {
        let node = site.start().await?;
        let token = node.token().await?;
        let auditor = node.token_for(&node.another_user(&token, "AUDITOR").await?).await?;
        let first = node.next_page_of("/api/patients?limit=20&sort=name", &token).await?;
        let second_page = first.ok_or("the list by name has one page")?;
        node.quiet().await?;
        Ok(Size { patients, node, token, auditor, filled, second_page })
    }

    async fn asked(&self, request: &Request, measured: Duration) -> Result<Outcome> {
        let token = if request.by == By::Auditor { &self.auditor } else { &self.token };
        let outcome = load::run(Task {
            address: self.node.http,
            token: token.clone(),
            connections: CONNECTIONS,
            measured_ms: u64::try_from(measured.as_millis()).ok(),
            work: Work::Get { paths: (request.paths)(self) },
        });
        outcome.await.map_err(|error| format!("{}, {} patients: {error}", request.what, self.patients).into())
    }
}

/// Every request at every size, the sizes by turns.
async fn measure(effort: Effort, sizes: &[&Size]) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for request in &REQUESTS {
        let mut outcomes = vec![Vec::new(); sizes.len()];
        for size in sizes {
            size.asked(request, Duration::from_secs(1)).await?;
        }
        for _ in 0..effort.rounds {
            for (size, outcomes) in sizes.iter().zip(&mut outcomes) {
                outcomes.push(size.asked(request, effort.measured).await?);
            }
        }
        lines.push(told(Line { what: request.what, outcomes }));
    }
    let mut outcomes = vec![Vec::new(); sizes.len()];
    for round in 0..effort.rounds {
        for (size, outcomes) in sizes.iter().zip(&mut outcomes) {
            let (tag, measured) = (format!("growth{round}"), Some(effort.measured));
            let task = post_task(&size.node, &size.token, CONNECTIONS, &tag, usize::MAX, measured);
            outcomes.push(load::run(task).await?);
            size.node.quiet().await?;
        }
    }
    lines.push(told(Line { what: POST, outcomes }));
    Ok(lines)
}

/// Says how far it is.
fn told(line: Line) -> Line {
    let rates: Vec<String> =
        line.outcomes.iter().map(|outcomes| format!("{:.0}/s", rate(outcomes))).collect();
    say(&format!("{}: {}, growth {:.2}", line.what, rates.join(", "), line.growth()));
    line
}

fn table(sizes: &[u64], lines: &[Line]) -> Result<String> {
    let mut table = String::from("| request |");
    for size in sizes {
        write!(table, " {} |", thousands(*size))?;
    }
    writeln!(table, " growth |\n|---|{}---|", "---|".repeat(sizes.len()))?;
    for line in lines {
        write!(table, "| {} |", line.what)?;
        for outcomes in &line.outcomes {
            let of =
                |pick: fn(&Outcome) -> f64| median(&outcomes.iter().map(pick).collect::<Vec<_>>()) / 1_000.0;
            let (p50, p99) = (of(|o| o.p50_us), of(|o| o.p99_us));
            write!(table, " {:.0}/s, {p50:.1} ms, {p99:.1} ms |", rate(outcomes))?;
        }
        let growth = line.growth();
        let mark = if growth > GROWTH_MAX { "**" } else { "" };
        writeln!(table, " {mark}{growth:.2}{mark} |")?;
    }
    Ok(table)
}

/// A number with a space between its thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(" ")
}

fn head(effort: Effort) -> String {
    let mut head = format!(
        "# Growth\n\nWritten by `make bench-growth`; do not edit. The same requests at nodes with few and with many patients, side by\n\
         side: requests per second, median and 99th percentile of {CONNECTIONS} connections, each with one request at a time. Growth is how\n\
         many times as long a request takes at the largest size as at the smallest; it may be {GROWTH_MAX} at most.\n\n\
         Medians of {} rounds of {} s, the sizes by turns, on {}. Load, broker, database and nodes share the machine:\n\n",
        effort.rounds,
        effort.measured.as_secs(),
        OffsetDateTime::now_utc().date()
    );
    for line in machine() {
        head.push_str(&format!("- {line}\n"));
    }
    head.push_str(
        "\nOne patient in ten has five versions, one in a hundred is restricted, one in twenty is called Anna; each has an\n\
         account and an entry in the audit, whose rows hold sixteen entries each.\n",
    );
    head
}
