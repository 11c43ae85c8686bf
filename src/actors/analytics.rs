//! The analytics projection, as the edges see it.

use crate::context::RequestContext;
use crate::domain::analytics::Summary;
use crate::domain::time::Timestamp;
use crate::error::Result;

/// The summary with how fresh it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SummaryView {
    /// The counts.
    pub summary: Summary,
    /// Events that were decided and are not counted yet, in the outbox or in Kafka; `None` if the
    /// broker cannot be asked.
    pub lag_events: Option<u64>,
    /// When the counts were read.
    pub as_of: Timestamp,
}

/// Speaks to analytics. Cloning is cheap.
#[derive(Clone)]
pub struct AnalyticsHandle {}

#[allow(unused_variables, clippy::unused_async, reason = "skeleton")]
impl AnalyticsHandle {
    /// The summary as of now.
    ///
    /// # Errors
    /// `Unavailable`, `DeadlineExceeded`.
    pub async fn summary(&self, ctx: &RequestContext) -> Result<SummaryView> {
        unimplemented!("skeleton")
    }
}
