//! Reports a panic as a log line and a count, instead of the message that the standard library prints.
//!
//! A panic message may contain any value, such as patient data. So only messages that are fixed at compile
//! time are logged.

use std::panic::PanicHookInfo;

/// Replaces the panic hook of the process.
pub(super) fn install_hook() {
    std::panic::set_hook(Box::new(report));
}

/// Logs and counts one panic.
pub(super) fn report(info: &PanicHookInfo<'_>) {
    metrics::counter!("hygeia_panics_total").increment(1);
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("(unnamed)");
    let (file, line, column) = info.location().map_or(("?", 0, 0), |at| (at.file(), at.line(), at.column()));
    // A formatted message is a `String`; a literal is a `&str`.
    let reason = info.payload().downcast_ref::<&'static str>().copied().unwrap_or("(not shown)");
    tracing::error!(target: "hygeia::panic", location = %format_args!("{file}:{line}:{column}"), thread, reason, "panicked");
}
