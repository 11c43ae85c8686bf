//! The data that accompanies every request and every actor message: trace, deadline, command id and caller.

pub mod fields;

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::domain::access::Caller;
use crate::domain::ids::CommandId;
use crate::domain::time::{Clock, MonoTime};

/// A position in one trace (W3C Trace Context, level 1).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The id of the whole request, across all nodes. Never zero.
    pub trace_id: u128,
    /// The id of this hop. Never zero.
    pub span_id: u64,
    /// The id of the hop that caused this one; zero at the root.
    pub parent_id: u64,
    /// Whether the caller records the trace. The flag is forwarded but has no effect here.
    pub sampled: bool,
}

impl TraceContext {
    /// Returns the root of a new trace.
    pub fn root() -> Self {
        TraceContext {
            trace_id: fastrand::u128(1..),
            span_id: fastrand::u64(1..),
            parent_id: 0,
            sampled: true,
        }
    }

    /// Returns a hop caused by this one.
    pub fn child(&self) -> Self {
        TraceContext { span_id: fastrand::u64(1..), parent_id: self.span_id, ..*self }
    }

    /// Parses a `traceparent` header into the hop that it names. The caller continues with `child` of that
    /// hop. Returns `None` if the header is not valid; a new trace then begins, as the standard requires.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let lower_hex =
            |s: &str, len| s.len() == len && s.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let well_formed = lower_hex(version, 2)
            && version != "ff"
            && (version != "00" || parts.next().is_none())
            && lower_hex(trace, 32)
            && lower_hex(span, 16)
            && lower_hex(flags, 2);
        if !well_formed {
            return None;
        }
        let trace_id = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
        let span_id = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
        let flags = u8::from_str_radix(flags, 16).ok()?;
        Some(TraceContext { trace_id, span_id, parent_id: 0, sampled: flags & 1 == 1 })
    }
}

/// Formats the `traceparent` header of this hop.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, u8::from(self.sampled))
    }
}

impl fmt::Debug for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The data that accompanies a request from the edge to the commit.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// The position of the request in its trace.
    pub trace: TraceContext,
    /// When the caller stops waiting. No work is started after this time.
    pub deadline: MonoTime,
    /// The identity of the change, kept over all tries of the same request.
    pub command_id: CommandId,
    /// The caller.
    pub caller: Caller,
}

impl RequestContext {
    /// Returns a request by `caller` with the time limit `budget` and a new command id.
    pub fn new(caller: Caller, trace: TraceContext, clock: &dyn Clock, budget: Duration) -> Self {
        RequestContext {
            trace,
            deadline: clock.mono().plus(budget),
            command_id: CommandId(Uuid::from_u64_pair(fastrand::u64(..), fastrand::u64(..))),
            caller,
        }
    }

    /// Returns the same request one hop further.
    pub fn child(&self) -> Self {
        RequestContext { trace: self.trace.child(), ..self.clone() }
    }
}

/// One log line per handled actor message: target `hygeia::message`, level INFO. Tools read the field names;
/// `docs/LOGGING.md` lists them. An entity is logged as its id, never as a name or an address.
pub struct Hop<'a> {
    /// The actor that handled the message.
    pub actor: &'a str,
    /// The name of the message.
    pub message: &'static str,
    /// The id of the entity; `None` if the message concerns no entity.
    pub entity: Option<Uuid>,
    /// The hop.
    pub trace: &'a TraceContext,
    /// The time spent in the mailbox.
    pub queued: Duration,
    /// The time spent in the handler.
    pub handled: Duration,
    /// `ok`, or the name of the outcome.
    pub outcome: &'static str,
}

impl Hop<'_> {
    /// Writes the line.
    pub fn log(&self) {
        if !tracing::enabled!(target: "hygeia::message", tracing::Level::INFO) {
            return;
        }
        let trace = format_args!("{:032x}", self.trace.trace_id);
        let span = format_args!("{:016x}", self.trace.span_id);
        let parent = format_args!("{:016x}", self.trace.parent_id);
        let (queue_us, handle_us) = (micros(self.queued), micros(self.handled));
        match self.entity {
            Some(entity) => {
                tracing::info!(target: "hygeia::message", actor = self.actor, message = self.message,
                %entity, %trace, %span, %parent, queue_us, handle_us, outcome = self.outcome)
            }
            None => tracing::info!(target: "hygeia::message", actor = self.actor, message = self.message,
                %trace, %span, %parent, queue_us, handle_us, outcome = self.outcome),
        }
    }
}

fn micros(d: Duration) -> u64 {
    u64::try_from(d.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn traceparent_round_trips() {
        let parsed = TraceContext::parse(EXAMPLE).expect("the standard's own example");
        assert_eq!(parsed.to_string(), EXAMPLE);
        let child = parsed.child();
        assert_eq!((child.trace_id, child.parent_id), (parsed.trace_id, parsed.span_id));
    }

    #[test]
    fn what_is_no_traceparent_is_refused() {
        for bad in [
            "",
            "00",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00-0af7651916cd43dd8448eb211c80319c-+7ad6b7169203331-01",
        ] {
            assert_eq!(TraceContext::parse(bad), None, "{bad}");
        }
        assert!(
            TraceContext::parse("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-future").is_some()
        );
    }
}
