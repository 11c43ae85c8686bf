//! `/api/analytics`: counts of the published events.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use time::{Date, OffsetDateTime};
use utoipa::ToSchema;

use crate::actors::analytics::SummaryView;

use super::pipeline::Call;
use super::problem::Failure;
use super::{AppState, reply};

/// The counts of the published events, each event counted once.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Summary, example = json!({
    "totalPatients": 15,
    "byEventType": {"PATIENT_CREATED": 16, "PATIENT_DELETED": 1, "PATIENT_UPDATED": 3},
    "registrationsByDay": [{"day": "2026-01-09", "count": 0}, {"day": "2026-01-10", "count": 16}],
    "ageBands": {"0-17": 1, "18-34": 4, "35-49": 6, "50-64": 2, "65-79": 1, "80+": 1},
    "lag": 0,
    "asOf": "2026-01-10T08:30:00.123456Z"
}))]
pub(super) struct SummaryBody {
    /// Patients registered minus patients deleted.
    total_patients: i64,
    /// Number of events by type.
    by_event_type: BTreeMap<&'static str, i64>,
    /// Registrations on each of the last 30 UTC days, including today, oldest first.
    registrations_by_day: Vec<DayBody>,
    /// Number of living patients by age in years.
    age_bands: BTreeMap<&'static str, i64>,
    /// Number of committed events that are not counted yet; null if it cannot be determined now.
    lag: Option<u64>,
    /// When the counts were read.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    as_of: OffsetDateTime,
}

/// The registrations of one day.
#[derive(Serialize, ToSchema)]
#[schema(as = Day)]
pub(super) struct DayBody {
    #[serde(serialize_with = "reply::day")]
    #[schema(value_type = String, format = Date)]
    day: Date,
    count: i64,
}

impl From<SummaryView> for SummaryBody {
    fn from(view: SummaryView) -> Self {
        let summary = view.summary;
        SummaryBody {
            total_patients: summary.total_patients,
            by_event_type: summary.by_event_type.into_iter().map(|(t, n)| (t.as_str(), n)).collect(),
            registrations_by_day: summary
                .registrations_by_day
                .into_iter()
                .map(|(day, count)| DayBody { day, count })
                .collect(),
            age_bands: summary.age_bands.into_iter().collect(),
            lag: view.lag_events,
            as_of: view.as_of.to_offset(),
        }
    }
}

/// Returns the counts.
#[utoipa::path(get, path = "/api/analytics/summary", operation_id = "getSummary", tag = "analytics",
    responses((status = 200, description = "The counts.", body = SummaryBody)))]
pub(super) async fn summary(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let view = app.analytics.summary(&call.ctx).await?;
    reply::json(StatusCode::OK, &SummaryBody::from(view))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use time::macros::date;

    use super::*;
    use crate::domain::analytics::{Counts, band_births, summarize};
    use crate::domain::event::EventType;
    use crate::domain::time::Timestamp;

    #[test]
    fn the_summary_reads_as_documented() {
        let today = date!(2026 - 02 - 02);
        let counts = Counts {
            by_event_type: vec![(EventType::Created, 3), (EventType::Deleted, 1)],
            registrations: vec![(today, 3)],
            living: 2,
            born_by: band_births(today).into_iter().map(|day| (day, 2)).collect(),
        };
        let view = |lag_events| SummaryView {
            summary: summarize(&counts, today),
            lag_events,
            as_of: Timestamp(1_770_000_000_123_456),
        };
        let mut shown = serde_json::to_value(SummaryBody::from(view(Some(4)))).expect("JSON");
        let days = shown["registrationsByDay"].take();
        assert_eq!(days[29], json!({"day": "2026-02-02", "count": 3}));
        assert_eq!(days[0], json!({"day": "2026-01-04", "count": 0}));
        shown.as_object_mut().expect("an object").remove("registrationsByDay");
        assert_eq!(
            shown,
            json!({
                "totalPatients": 2,
                "byEventType": {"PATIENT_CREATED": 3, "PATIENT_UPDATED": 0, "PATIENT_DELETED": 1},
                "ageBands": {"0-17": 0, "18-34": 0, "35-49": 0, "50-64": 0, "65-79": 0, "80+": 2},
                "lag": 4,
                "asOf": "2026-02-02T02:40:00.123456Z"
            })
        );
        let unknown = serde_json::to_value(SummaryBody::from(view(None))).expect("JSON");
        assert_eq!(unknown["lag"], json!(null));
    }
}
