//! Formats events as lines: JSON for machines, text for people.
//!
//! A line is written directly into a buffer that each thread keeps, without an intermediate tree. `tracing`
//! spans are ignored: an event carries its trace in its own fields (`trace`, `span`).

use std::cell::RefCell;
use std::fmt::{self, Write};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::text::{Escaping, Stamp};
use super::writer::{Notice, Queue};
use crate::clock::SystemClock;
use crate::domain::time::{Clock, Timestamp};

/// The keys of every line. A field with such a name gets a trailing underscore.
const RESERVED: [&str; 6] = ["ts", "level", "target", "node", "msg", "cut"];

/// The room that a field needs besides its name and text: the quotes of the key and the longest number.
const FIELD_ROOM_BYTES: usize = 48;

/// The target of notices from this module.
const OWN_TARGET: &str = "hygeia::telemetry";

/// The format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Json,
    Text {
        colour: bool,
        /// For a terminal: the time without the date, and only the last part of the target, in a column.
        compact: bool,
    },
}

/// The buffers that each thread reuses.
#[derive(Default)]
struct Scratch {
    line: Vec<u8>,
    stamp: Stamp,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Formats every event and passes the line to the writer.
pub(super) struct LineLayer {
    format: LineFormat,
    queue: Arc<Queue>,
}

impl LineLayer {
    pub(super) fn new(style: Style, node: &str, line_max_bytes: usize, queue: Arc<Queue>) -> Self {
        let mut escaped = Vec::new();
        Escaping::of_json(&mut escaped, usize::MAX).push(node);
        LineLayer { format: LineFormat { style, node: escaped, max_bytes: line_max_bytes }, queue }
    }

    /// Returns the function that formats the notice of missing lines. The notice bypasses the queue.
    pub(super) fn dropped_notice(&self) -> Notice {
        let format = self.format.clone();
        Box::new(move |missing| {
            let mut scratch = Scratch::default();
            let head = Head { at: SystemClock.now(), level: Level::WARN, target: OWN_TARGET };
            format.write(&mut scratch, &head, |fields| {
                match &missing.error {
                    None => fields
                        .message(&format_args!("log lines dropped: they came faster than they were read")),
                    Some(error) => {
                        fields.message(&format_args!("log lines lost: they could not be written: {error}"))
                    }
                }
                fields.plain("lines", &missing.lines);
            });
            scratch.line
        })
    }
}

impl<S: Subscriber> Layer<S> for LineLayer {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
            Ok(mut scratch) => self.format.event(&mut scratch, event, &self.queue),
            // The buffer is in use if formatting a value itself logs or panics.
            Err(_) => self.format.event(&mut Scratch::default(), event, &self.queue),
        });
    }
}

#[derive(Clone)]
struct LineFormat {
    style: Style,
    /// The JSON-escaped node name.
    node: Vec<u8>,
    max_bytes: usize,
}

struct Head<'a> {
    at: Timestamp,
    level: Level,
    target: &'a str,
}

impl LineFormat {
    fn event(&self, scratch: &mut Scratch, event: &Event<'_>, queue: &Queue) {
        let metadata = event.metadata();
        // Events from the `log` crate carry their target in a field.
        let mut logged = LogTarget(None);
        if metadata.target() == "log" {
            event.record(&mut logged);
        }
        let target = logged.0.as_deref().unwrap_or(metadata.target());
        let head = Head { at: SystemClock.now(), level: *metadata.level(), target };
        self.write(scratch, &head, |fields| {
            if metadata.fields().field("message").is_some() {
                event.record(&mut MessageOnly(fields));
            }
            event.record(fields);
        });
        queue.push(&scratch.line);
        scratch.line.shrink_to(self.max_bytes.saturating_mul(2));
    }

    fn write(&self, scratch: &mut Scratch, head: &Head<'_>, record: impl FnOnce(&mut Fields<'_>)) {
        let Scratch { line, stamp } = scratch;
        line.clear();
        match self.style {
            Style::Json => self.json_head(line, stamp, head),
            Style::Text { colour, compact } => text_head(line, stamp, head, colour, compact),
        }
        let text = Escaping::of_json(line, self.max_bytes);
        let mut fields = Fields { text, style: self.style };
        record(&mut fields);
        let cut = fields.text.cut;
        match (self.style, cut) {
            (Style::Json, false) => line.extend_from_slice(b"}\n"),
            (Style::Json, true) => line.extend_from_slice(b",\"cut\":true}\n"),
            (Style::Text { .. }, false) => line.push(b'\n'),
            (Style::Text { .. }, true) => line.extend_from_slice(" …\n".as_bytes()),
        }
    }

    fn json_head(&self, line: &mut Vec<u8>, stamp: &mut Stamp, head: &Head<'_>) {
        line.extend_from_slice(b"{\"ts\":\"");
        stamp.push(line, head.at);
        line.extend_from_slice(b"\",\"level\":\"");
        line.extend_from_slice(head.level.as_str().as_bytes());
        line.extend_from_slice(b"\",\"target\":\"");
        Escaping::of_json(line, self.max_bytes / 2).push(head.target);
        line.extend_from_slice(b"\",\"node\":\"");
        line.extend_from_slice(&self.node);
        line.push(b'"');
    }
}

fn text_head(line: &mut Vec<u8>, stamp: &mut Stamp, head: &Head<'_>, colour: bool, compact: bool) {
    let (dim, level_colour, off) = match (colour, head.level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\u{1b}[2m", "\u{1b}[31m", "\u{1b}[0m"),
        (true, Level::WARN) => ("\u{1b}[2m", "\u{1b}[33m", "\u{1b}[0m"),
        (true, Level::INFO) => ("\u{1b}[2m", "\u{1b}[32m", "\u{1b}[0m"),
        (true, _) => ("\u{1b}[2m", "\u{1b}[34m", "\u{1b}[0m"),
    };
    line.extend_from_slice(dim.as_bytes());
    let begins = line.len();
    stamp.push(line, head.at);
    if compact {
        // Cuts 2026-01-10T08:30:00.123456Z to the time of day in milliseconds.
        line.truncate(line.len() - "456Z".len());
        line.drain(begins..begins + "2026-01-10T".len());
    }
    for part in [off, " ", level_colour] {
        line.extend_from_slice(part.as_bytes());
    }
    let level = head.level.as_str();
    line.extend_from_slice(&b"     "[level.len().min(5)..]);
    let target = if compact { last_part(head.target) } else { head.target };
    for part in [level, off, " ", dim, target, if compact { "" } else { ":" }] {
        line.extend_from_slice(part.as_bytes());
    }
    if compact {
        line.extend(std::iter::repeat_n(b' ', NAME_CHARS.saturating_sub(target.len())));
    }
    line.extend_from_slice(off.as_bytes());
}

/// The width of the name column on a terminal. The longest name that logs often, `billing_relay`, fits.
const NAME_CHARS: usize = 13;

/// Returns the last part of a target: `kafka_bridge` for `hygeia::actors::kafka_bridge`.
fn last_part(target: &str) -> &str {
    target.rsplit("::").next().unwrap_or(target)
}

/// Writes the fields of one line.
struct Fields<'a> {
    text: Escaping<'a>,
    style: Style,
}

impl Fields<'_> {
    fn raw(&mut self, bytes: &[u8]) {
        self.text.out.extend_from_slice(bytes);
    }

    /// Begins a field. Returns false if the field does not belong in the line or does not fit.
    fn open(&mut self, name: &str) -> bool {
        if name == "message" || name.starts_with("log.") {
            return false;
        }
        if self.text.cut || self.text.out.len() + name.len() + FIELD_ROOM_BYTES > self.text.max_bytes {
            self.text.cut = true;
            return false;
        }
        let behind: &[u8] = if RESERVED.contains(&name) { b"_" } else { b"" };
        match self.style {
            Style::Json => {
                self.raw(b",\"");
                self.text.push(name);
                self.raw(behind);
                self.raw(b"\":");
            }
            Style::Text { colour, .. } => {
                self.raw(if colour { b" \x1b[2m" } else { b" " });
                self.text.push(name);
                self.raw(behind);
                self.raw(if colour { b"=\x1b[0m" } else { b"=" });
            }
        }
        true
    }

    /// Writes a number or a boolean, which needs no quotes and always fits after `open`.
    fn plain(&mut self, name: &str, value: &dyn fmt::Debug) {
        if self.open(name) {
            // Cannot fail, because `open` has checked the room.
            let _ = write!(self.text, "{value:?}");
        }
    }

    fn quoted(&mut self, name: &str, write: impl FnOnce(&mut Escaping<'_>)) {
        if !self.open(name) {
            return;
        }
        match self.style {
            Style::Json => {
                self.raw(b"\"");
                write(&mut self.text);
                self.raw(b"\"");
            }
            Style::Text { .. } => {
                let start = self.text.out.len();
                write(&mut self.text);
                let written = &self.text.out[start..];
                if written.is_empty() || written.iter().any(|b| matches!(b, b' ' | b'=' | b'\\')) {
                    self.text.out.insert(start, b'"');
                    self.raw(b"\"");
                }
            }
        }
    }

    fn message(&mut self, message: &dyn fmt::Debug) {
        match self.style {
            Style::Json => {
                self.raw(b",\"msg\":\"");
                let _ = write!(self.text, "{message:?}");
                self.raw(b"\"");
            }
            Style::Text { .. } => {
                self.raw(b" ");
                // Text is for people, so quotes are not escaped.
                let mut text = Escaping::of_text(self.text.out, self.text.max_bytes);
                let _ = write!(text, "{message:?}");
                self.text.cut |= text.cut;
            }
        }
    }
}

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Fails if the line is full or if the value's own formatting fails.
        self.quoted(field.name(), |text| {
            let _ = write!(text, "{value:?}");
        });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.quoted(field.name(), |text| text.push(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field.name(), &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field.name(), &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field.name(), &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.plain(field.name(), &value);
        } else {
            // JSON cannot represent this number.
            self.quoted(field.name(), |text| {
                let _ = write!(text, "{value}");
            });
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.quoted(field.name(), |text| {
            let _ = write!(text, "{value}");
            let mut source = value.source();
            while let Some(cause) = source {
                let _ = write!(text, ": {cause}");
                source = cause.source();
            }
        });
    }
}

/// Writes only the message of an event, so that it precedes the fields.
struct MessageOnly<'a, 'b>(&'a mut Fields<'b>);

impl Visit for MessageOnly<'_, '_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.0.message(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.0.message(&format_args!("{value}"));
        }
    }
}

struct LogTarget(Option<String>);

impl Visit for LogTarget {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "log.target" {
            self.0 = Some(value.to_owned());
        }
    }
}
