//! `/api/billing`: read access to accounts.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::account::Account;

use super::docs::names::AccountState;
use super::patients::id_of;
use super::pipeline::Call;
use super::problem::Failure;
use super::{AppState, reply};

/// A patient's account.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Account, example = json!({
    "id": "0199b1c4-7e55-7c07-9a0b-0f1f6b2a7f11", "patientId": "123e4567-e89b-12d3-a456-426614174000",
    "status": "ACTIVE", "openedAt": "2026-01-10T08:30:00.123456Z"
}))]
pub(super) struct AccountBody {
    #[schema(value_type = String, format = Uuid)]
    id: Uuid,
    #[schema(value_type = String, format = Uuid)]
    patient_id: Uuid,
    #[schema(value_type = AccountState)]
    status: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    opened_at: time::OffsetDateTime,
}

impl From<&Account> for AccountBody {
    fn from(account: &Account) -> Self {
        AccountBody {
            id: account.id.0,
            patient_id: account.patient_id.0,
            status: account.status.as_str(),
            opened_at: account.opened_at.to_offset(),
        }
    }
}

/// Returns the account of a patient.
///
/// The account is opened shortly after the patient is registered.
#[utoipa::path(get, path = "/api/billing/accounts/{patientId}", operation_id = "getAccount", tag = "billing",
    params(("patientId" = Uuid, Path, description = "The patient's id.")),
    responses((status = 200, description = "The account.", body = AccountBody)))]
pub(super) async fn account(app: Arc<AppState>, call: Call) -> Result<Response, Failure> {
    let patient = id_of(&call, "patientId")?;
    let account = app.billing.account(&call.ctx, patient).await?;
    reply::json(StatusCode::OK, &AccountBody::from(&*account))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::account::AccountStatus;
    use crate::domain::ids::{AccountId, PatientId};
    use crate::domain::time::Timestamp;

    #[test]
    fn an_account_reads_as_documented_and_without_its_holder() {
        let account = Account {
            id: AccountId(Uuid::from_u128(1)),
            patient_id: PatientId(Uuid::from_u128(2)),
            name: "Ada".into(),
            email: "ada@example.com".into(),
            status: AccountStatus::Active,
            opened_at: Timestamp(1_770_000_000_000_000),
        };
        assert_eq!(
            serde_json::to_value(AccountBody::from(&account)).expect("JSON"),
            json!({
                "id": "00000000-0000-0000-0000-000000000001",
                "patientId": "00000000-0000-0000-0000-000000000002",
                "status": "ACTIVE",
                "openedAt": "2026-02-02T02:40:00Z"
            })
        );
    }
}
