//! The system clocks.

use rustix::time::{ClockId, clock_gettime};

use crate::domain::time::{Clock, MonoTime, Timestamp};

/// Reads `CLOCK_REALTIME` for records and `CLOCK_BOOTTIME` for leases. `CLOCK_BOOTTIME` also counts time in
/// suspend, so a machine that slept through its lease notices the expiry.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let t = clock_gettime(ClockId::Realtime);
        Timestamp(t.tv_sec * 1_000_000 + t.tv_nsec / 1_000)
    }

    fn mono(&self) -> MonoTime {
        let t = clock_gettime(ClockId::Boottime);
        MonoTime(t.tv_sec.unsigned_abs() * 1_000_000_000 + t.tv_nsec.unsigned_abs())
    }
}
