//! One round of the relay: read a window of the outbox, open the accounts, note those that were
//! opened. Runs as a task of its own; every wait in it is bounded, so it always ends.
//!
//! A crash anywhere leaves rows unmarked: they come again, and opening an account twice is opening it
//! once. That is the whole of the delivery guarantee.

use std::collections::HashSet;
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
use crate::error::ErrorCode;
use crate::store::{self, UnreadableRow};

/// How long past its own deadline an open may take to say so.
const OPEN_GRACE: Duration = Duration::from_millis(250);

/// What a round did.
#[derive(Debug, Default)]
pub struct Report {
    /// The rows that were read; `None` if the store did not answer.
    pub(super) window: Option<HashSet<i64>>,
    /// Rows that were found and cannot be read.
    pub(super) unreadable: Vec<UnreadableRow>,
    /// Whether as many rows were found as were asked for: there may be more.
    pub(super) full: bool,
    /// Rows whose account is open and that are marked so.
    pub(super) billed: Vec<i64>,
    /// Rows whose account could not be opened.
    pub(super) failed: Vec<(i64, ErrorCode)>,
    /// What the store said when it failed.
    pub(super) store_failure: Option<store::Error>,
}

impl Report {
    /// Whether the failures tell of a part that is away rather than of single rows: then the relay
    /// pauses, instead of asking once per row.
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

/// Runs one round, without the rows of the patients `held`.
pub(super) async fn run(args: Args, plan: Plan, held: Vec<PatientId>) -> Report {
    let mut report = Report::default();
    let window = match bounded(&args, args.store.unbilled(&held, plan.limit_rows)).await {
        Ok(rows) => {
            (report.full, report.unreadable) = (rows.full, rows.unreadable);
            rows.events
        }
        Err(error) => return Report { store_failure: Some(error), ..report },
    };
    report.window = Some(window.iter().map(|event| event.seq).collect());
    // What failed before comes last and has its own share, so that neither kind starves the other.
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
    report
}

/// Opens the accounts of `rows`, at most `concurrency_max` at a time. When as many as that failed as by
/// an outage and none worked, the rest is left for a later round.
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

/// Opens one account. A panic on the way concerns this row alone: it must not end the round, or one
/// row would block the rest for ever.
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
        // The same on every try, since it is the same intention.
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

/// A store call that may take `store_timeout_ms`.
async fn bounded<T>(args: &Args, call: impl Future<Output = store::Result<T>>) -> store::Result<T> {
    let limit = Duration::from_millis(args.settings.store_timeout_ms);
    timeout(limit, call).await.unwrap_or_else(|_| {
        Err(store::Error::Unknown(format!("no answer within {} ms", args.settings.store_timeout_ms)))
    })
}
