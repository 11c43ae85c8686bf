//! Process metrics from the kernel. Values that cannot be read, such as on systems other than Linux, are
//! omitted.

use std::sync::OnceLock;
use std::time::Instant;

use metrics::{counter, gauge};
use rustix::time::{ClockId, clock_gettime};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Starts the uptime count.
pub(super) fn started() {
    STARTED.get_or_init(Instant::now);
}

/// Updates the process metrics.
pub(super) fn observe() {
    gauge!("hygeia_uptime_seconds").set(STARTED.get_or_init(Instant::now).elapsed().as_secs_f64());
    let cpu_s = clock_gettime(ClockId::ProcessCPUTime).tv_sec.unsigned_abs();
    counter!("process_cpu_seconds_total").absolute(cpu_s);
    if let Some(kib) = resident_kib() {
        gauge!("process_resident_memory_bytes").set(kib * 1024.0);
    }
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        // One of the entries is the directory handle used here.
        let open = entries.count().saturating_sub(1);
        gauge!("process_open_fds").set(open as f64);
    }
}

fn resident_kib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.parse().ok())
}
