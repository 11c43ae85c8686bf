//! Parses a line of a log as a hop of a trace.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::context::TraceContext;

/// The id of a trace (W3C Trace Context: 16 bytes, not all zero).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TraceId(u128);

impl FromStr for TraceId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(context) = TraceContext::parse(text) {
            return Ok(TraceId(context.trace_id));
        }
        let is_hex = text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u128::from_str_radix(text, 16) {
            Ok(id) if is_hex && id != 0 => Ok(TraceId(id)),
            _ => Err("a trace is named by 32 hexadecimal digits, not all zero, or by a traceparent".into()),
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The log target of actors' messages.
const MESSAGE: &str = "hygeia::message";

/// One hop: an actor that handled a message, or an edge that answered.
#[derive(Clone, Debug)]
pub(super) struct Hop {
    /// The node that logged the hop.
    pub(super) node: String,
    /// The actor and its message, or the method and route of an edge.
    pub(super) what: String,
    /// The outcome, or the status of the answer.
    pub(super) outcome: String,
    /// Whether the hop is an edge. The parent of an edge is a span of the client.
    pub(super) is_edge: bool,
    /// The span id of the hop, and that of the hop that caused it; 0 for none.
    pub(super) span: u64,
    pub(super) parent: u64,
    /// When the hop ended, in microseconds of Unix time, by its node's clock.
    pub(super) ended_us: i64,
    /// Time in the mailbox in microseconds; unknown at an edge.
    pub(super) queue_us: Option<i64>,
    /// Time to handle the message or request, in microseconds.
    pub(super) handle_us: i64,
}

/// The keys of a line that the command reads: see `docs/LOGGING.md`.
#[derive(Deserialize)]
struct Line {
    ts: String,
    target: String,
    #[serde(default)]
    node: String,
    trace: Option<String>,
    span: Option<String>,
    #[serde(default)]
    parent: String,
    msg: Option<String>,
    actor: Option<String>,
    queue_us: Option<i64>,
    handle_us: Option<i64>,
    outcome: Option<String>,
    method: Option<String>,
    route: Option<String>,
    status: Option<u16>,
    code: Option<String>,
    duration_us: Option<i64>,
}

impl Hop {
    /// Parses a line. Returns `None` if the line is not a hop, or belongs to another trace.
    pub(super) fn parse(trace: TraceId, line: &[u8]) -> Option<Hop> {
        let (from, to) = (line.iter().position(|b| *b == b'{')?, line.iter().rposition(|b| *b == b'}')?);
        let line: Line = serde_json::from_slice(line.get(from..=to)?).ok()?;
        if line.trace.as_deref()?.parse() != Ok(trace) {
            return None;
        }
        let (what, outcome) = match line.target.as_str() {
            MESSAGE => (format!("{} {}", line.actor?, line.msg?), line.outcome?),
            "hygeia::http" => (format!("{} {}", line.method?, line.route?), line.status?.to_string()),
            "hygeia::grpc" => (format!("gRPC {}", line.method?), line.code?),
            _ => return None,
        };
        let ended = OffsetDateTime::parse(&line.ts, &Rfc3339).ok()?;
        Some(Hop {
            node: line.node,
            what,
            outcome,
            is_edge: line.target != MESSAGE,
            span: u64::from_str_radix(line.span.as_deref()?, 16).ok()?,
            parent: u64::from_str_radix(&line.parent, 16).unwrap_or(0),
            ended_us: i64::try_from(ended.unix_timestamp_nanos() / 1_000).ok()?,
            queue_us: line.queue_us,
            handle_us: line.handle_us.or(line.duration_us)?,
        })
    }

    /// When the hop began, in microseconds of Unix time, by its node's clock.
    pub(super) fn begun_us(&self) -> i64 {
        self.ended_us.saturating_sub(self.handle_us)
    }
}
