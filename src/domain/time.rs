//! Points in time, as data. `crate::clock` reads the clocks.

use time::{Date, OffsetDateTime};

/// A moment of civil time: microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Returns the UTC day of this moment.
    pub fn date(self) -> Date {
        self.to_offset().date()
    }

    /// Returns the same moment for formatting (RFC 3339).
    pub fn to_offset(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// A moment of the machine's boot-time clock, in nanoseconds. The clock never steps, and it continues while
/// the machine sleeps. Only differences within one boot have a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// Returns the moment `by` later. Saturates at the maximum instead of wrapping.
    pub fn plus(self, by: std::time::Duration) -> Self {
        MonoTime(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// Returns the duration from `earlier` to this moment, or zero if `earlier` is later.
    pub fn since(self, earlier: MonoTime) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The source of time: the real clock in production, a manual one in tests.
pub trait Clock: Send + Sync + 'static {
    /// Returns civil time, for records.
    fn now(&self) -> Timestamp;
    /// Returns boot time, for leases and deadlines.
    fn mono(&self) -> MonoTime;
}
