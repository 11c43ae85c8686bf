//! Points in time, as data. Who reads the clock is `crate::clock`.

use time::{Date, OffsetDateTime};

/// A moment of civil time: microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The UTC day this moment falls on.
    pub fn date(self) -> Date {
        self.to_offset().date()
    }

    /// The same moment for formatting (RFC 3339).
    pub fn to_offset(self) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000)
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

/// A moment of the machine's own boot-time clock, in nanoseconds: it never steps, and goes on while
/// the machine sleeps. Only differences within one boot mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// This moment moved on by `by`; it stays at the end of time rather than wrap.
    pub fn plus(self, by: std::time::Duration) -> Self {
        MonoTime(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: MonoTime) -> std::time::Duration {
        std::time::Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where time comes from. Real in production, stepped by hand in tests.
pub trait Clock: Send + Sync + 'static {
    /// Civil time now, for records.
    fn now(&self) -> Timestamp;
    /// Boot time now, for leases and deadlines.
    fn mono(&self) -> MonoTime;
}
