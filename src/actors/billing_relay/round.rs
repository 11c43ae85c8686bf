//! One round of the relay: reads a window of the outbox, opens the accounts, and marks the rows. Runs in a
//! task of its own; every wait in it is bounded, so it always ends.
//!
//! A crash at any point leaves rows unmarked, so they are read again, and opening an account twice has no
//! second effect. The delivery guarantee depends on nothing else.

use std::collections::{HashMap, HashSet};
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use futures::{FutureExt, TryFutureExt};
use tokio::time::timeout;

use super::backlog::Plan;
use super::{Args, NAME};
use crate::context::{Hop, RequestContext, TraceContext};
use crate::domain::access::Caller;
use crate::domain::event::OutboxEvent;
use crate::domain::ids::{CommandId, PatientId};
use crate::domain::time::Timestamp;
use crate::error::ErrorCode;
use crate::store::{self, ParkRow, Queue, UnreadableRow};

/// How long after its own deadline a call to open an account may take to return.
const OPEN_GRACE: Duration = Duration::from_millis(250);

/// The result of a round.
#[derive(Debug, Default)]
pub struct Report {
    /// The rows that were read; `None` if the store did not answer.
    pub(super) window: Option<HashSet<i64>>,
    /// Rows that are now parked, because they cannot be read or failed repeatedly.
    pub(super) parked: HashSet<i64>,
    /// The number of those that were parked for the first time.
    pub(super) parked_first: usize,
    /// The number of billed rows that had been parked before.
    pub(super) unparked: usize,
    /// Whether as many rows were found as were requested, so there may be more.
    pub(super) full: bool,
    /// Rows whose account is open and that are marked as billed.
    pub(super) billed: Vec<i64>,
    /// Rows whose account could not be opened.
    pub(super) failed: Vec<(i64, ErrorCode)>,
    /// The error of the store, if it failed.
    pub(super) store_failure: Option<store::Error>,
}

impl Report {
    /// Returns whether the failures indicate an outage rather than a problem of single rows. The relay then
    /// pauses, instead of making one attempt per row.
    pub(super) fn nothing_works(&self) -> bool {
        self.store_failure.is_some()
            || (self.billed.is_empty() && self.failed.iter().any(|(_, code)| is_outage(*code)))
    }
}

fn is_outage(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Overloaded
            | ErrorCode::Unavailable
            | ErrorCode::DeadlineExceeded
            | ErrorCode::OutcomeUnknown
    )
}

/// Runs one round.
pub(super) async fn run(args: Args, plan: Plan) -> Report {
    let mut report = Report::default();
    let found = match bounded(&args, args.store.unbilled(args.clock.now(), plan.limit_rows)).await {
        Ok(rows) => rows,
        Err(error) => return Report { store_failure: Some(error), ..report },
    };
    let window = found.events;
    report.full = found.full;
    report.window = Some(window.iter().map(|event| event.seq).collect());
    if let Err(error) = park(&args, &mut report, unreadable(&found.unreadable)).await {
        return Report { store_failure: Some(error), ..report };
    }
    // Rows that failed before come last and have a share of their own, so that neither group starves the
    // other.
    let batch = args.settings.batch_rows_max.max(1) as usize;
    let (known, fresh): (Vec<_>, Vec<_>) = window
        .iter()
        .filter(|event| !plan.not_due.contains(&event.seq))
        .partition(|event| plan.due.contains(&event.seq));
    for (rows, share) in [(fresh, batch), (known, batch.div_ceil(4))] {
        let opened = open_all(&args, rows.into_iter().take(share), &mut report).await;
        if opened.is_empty() {
            continue;
        }
        match bounded(&args, args.store.mark_billed(&opened)).await {
            Ok(()) => report.billed.extend(opened),
            Err(error) => return Report { store_failure: Some(error), ..report },
        }
    }
    let billed: HashSet<i64> = report.billed.iter().copied().collect();
    report.unparked = window.iter().filter(|event| event.parks > 0 && billed.contains(&event.seq)).count();
    let hopeless = hopeless(&plan, &report, &window);
    match park(&args, &mut report, hopeless).await {
        Ok(()) => report,
        Err(error) => Report { store_failure: Some(error), ..report },
    }
}

/// A row to park: its sequence number, its patient, how often it was parked before, and the reason.
type Parking = (i64, PatientId, u32, &'static str);

fn unreadable(rows: &[UnreadableRow]) -> Vec<Parking> {
    for row in rows.iter().filter(|row| row.parks == 0) {
        metrics::counter!("hygeia_outbox_unreadable_total", "reader" => NAME).increment(1);
        tracing::error!(
            actor = NAME, seq = row.seq, patient = %row.patient_id,
            "a registration in the outbox cannot be read and is parked"
        );
    }
    rows.iter().map(|row| (row.seq, row.patient_id, row.parks, "unreadable")).collect()
}

/// Returns the rows to park: rows that failed too often, unless nothing works, and rows that cannot be
/// remembered.
fn hopeless(plan: &Plan, report: &Report, window: &[OutboxEvent]) -> Vec<Parking> {
    let outage = report.nothing_works();
    let failed: HashMap<i64, ErrorCode> = report.failed.iter().copied().collect();
    let mut memory_rows = plan.memory_rows;
    let mut rows = Vec::new();
    for event in window {
        let Some(code) = failed.get(&event.seq) else { continue };
        let last_try = plan.last_try.contains(&event.seq) || event.parks > 0;
        let remembered = plan.due.contains(&event.seq) || memory_rows > 0;
        if (last_try && !outage) || !remembered {
            rows.push((event.seq, event.recorded.patient_id(), event.parks, code.as_str()));
        } else if !plan.due.contains(&event.seq) {
            memory_rows -= 1;
        }
    }
    rows
}

async fn park(args: &Args, report: &mut Report, rows: Vec<Parking>) -> store::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let now = args.clock.now();
    let parked: Vec<_> = rows
        .iter()
        .map(|(seq, patient_id, parks, reason)| {
            let parks = parks.saturating_add(1);
            let pause_us = args.settings.parking().pause(parks).as_micros();
            let retry_at = Timestamp(now.0.saturating_add(i64::try_from(pause_us).unwrap_or(i64::MAX)));
            ParkRow { seq: *seq, patient_id: *patient_id, parks, retry_at, reason }
        })
        .collect();
    bounded(args, args.store.park(Queue::Billing, &parked)).await?;
    for row in parked {
        report.parked.insert(row.seq);
        report.parked_first += usize::from(row.parks == 1);
    }
    Ok(())
}

/// Opens the accounts of `rows`, at most `concurrency_max` at a time, and returns the rows that succeeded.
/// After `concurrency_max` outage failures without a success, the remaining rows are left for a later round.
async fn open_all(
    args: &Args,
    mut rows: impl Iterator<Item = &OutboxEvent>,
    report: &mut Report,
) -> Vec<i64> {
    let concurrency = args.settings.concurrency_max.max(1);
    let mut opened = Vec::new();
    let mut outages = 0;
    let mut in_flight = FuturesUnordered::new();
    loop {
        while in_flight.len() < concurrency && (outages < concurrency || !opened.is_empty()) {
            match rows.next() {
                Some(event) => in_flight.push(open(args, event)),
                None => break,
            }
        }
        match in_flight.next().await {
            Some((seq, Ok(()))) => opened.push(seq),
            Some((seq, Err(code))) => {
                outages += usize::from(is_outage(code));
                report.failed.push((seq, code));
            }
            None => return opened,
        }
    }
}

/// Opens one account. A panic is caught and counts as a failure of this row, because otherwise one row could
/// end every round and block the others for ever.
async fn open(args: &Args, event: &OutboxEvent) -> (i64, Result<(), ErrorCode>) {
    let budget = Duration::from_millis(args.settings.open_timeout_ms);
    let recorded = &event.recorded;
    let patient = recorded.event.patient();
    let (began, now) = (args.clock.mono(), args.clock.now());
    let waited_us = u64::try_from(now.0 - recorded.at.0).unwrap_or(0);
    let ctx = RequestContext {
        trace: TraceContext::parse(&recorded.traceparent)
            .map_or_else(TraceContext::root, |cause| cause.child()),
        deadline: began.plus(budget),
        // Every attempt has the same command id, because it is the same command.
        command_id: CommandId(recorded.event_id.0),
        caller: Caller::system(NAME),
    };
    let call = args
        .accounts
        .open(&ctx, patient.id, &patient.details.name, &patient.details.email)
        .map_err(|error| error.code);
    let outcome = match timeout(budget + OPEN_GRACE, AssertUnwindSafe(call).catch_unwind()).await {
        Ok(Ok(answer)) => answer.map(|_account| ()),
        Ok(Err(_panic)) => Err(ErrorCode::Internal),
        Err(_elapsed) => Err(ErrorCode::OutcomeUnknown),
    };
    Hop {
        actor: NAME,
        message: "OpenAccount",
        entity: Some(patient.id.0),
        trace: &ctx.trace,
        queued: Duration::from_micros(waited_us),
        handled: args.clock.mono().since(began),
        outcome: outcome.map_or_else(ErrorCode::as_str, |()| "ok"),
    }
    .log();
    (event.seq, outcome)
}

/// Runs a store call with the timeout `store_timeout_ms`.
async fn bounded<T>(args: &Args, call: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    let limit = Duration::from_millis(args.settings.store_timeout_ms);
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(store::Error::Unknown(format!("no answer within {} ms", args.settings.store_timeout_ms)))
    })
}
