//! Records accesses in the audit. An access is recorded before its response is sent.
//!
//! | outcome | recorded |
//! |---|---|
//! | the role is not permitted (403) | always, for any route |
//! | shown or done | if the action is audited: by the edge, or by the transaction of the change |
//! | a repetition, or no effect | if the action is audited, by the edge (there is no transaction) |
//! | not found, taken, unexpected (404, 409, 412, 422) | if the action is audited: it tells of a patient |
//! | unknown outcome (504), internal error (500) | if the action is audited |
//! | invalid, no caller, overload, late (400, 401, 408, 413, 415, 429, 503, 504) | no: nothing seen or done |
//!
//! If an access cannot be recorded, the caller gets 503, or 504 with `OUTCOME_UNKNOWN` if a change was made.

use std::sync::{Mutex, OnceLock, PoisonError};

use axum::response::Response;
use uuid::Uuid;

use crate::actors::audit::AuditHandle;
use crate::context::TraceContext;
use crate::domain::access::{Action, Caller};
use crate::domain::audit::{Access, Detail, Outcome};
use crate::domain::email::email_key;
use crate::domain::ids::PatientId;
use crate::domain::time::Timestamp;
use crate::error::ErrorCode;

use super::pipeline::{Effect, Verb};
use super::problem::Failure;

/// What a handler notes about the access that it serves.
#[derive(Default)]
pub(super) struct Accessed {
    patients: OnceLock<Vec<PatientId>>,
    breaks_glass: OnceLock<()>,
    recorded: OnceLock<()>,
    detail: Mutex<Option<Box<Detail>>>,
}

impl Accessed {
    /// Notes the patients whose records are shown, before they are. Not needed if the path names the patient.
    pub(super) fn shows(&self, patients: Vec<PatientId>) {
        // The first call wins, because a handler has one answer.
        let _ = self.patients.set(patients);
    }

    /// Notes that the transaction of the change has recorded the access. Without this call the edge records
    /// it, so an omission causes a duplicate entry, not a missing one.
    pub(super) fn is_recorded(&self) {
        let _ = self.recorded.set(());
    }

    /// Sets the subject matter of the access. A later call replaces an earlier one: first the request, then
    /// its result.
    pub(super) fn is_about(&self, detail: Detail) {
        *self.detail.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(detail));
    }

    fn detail(&self) -> Option<Box<Detail>> {
        self.detail.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes that a restricted record is shown, so that the caller's reason is recorded.
    pub(super) fn breaks_glass(&self) {
        let _ = self.breaks_glass.set(());
    }
}

/// What is known about a request before it is processed.
pub(super) struct Asked<'a> {
    pub(super) action: Action,
    pub(super) effect: Effect,
    pub(super) caller: &'a Caller,
    pub(super) trace: &'a TraceContext,
    /// The patient that the path or the registration names.
    pub(super) patient: Option<PatientId>,
    pub(super) accessed: &'a Accessed,
}

/// Returns `outcome` after recording the access.
pub(super) async fn recorded(
    journal: &AuditHandle,
    now: Timestamp,
    asked: Asked<'_>,
    outcome: Result<Response, Failure>,
) -> Result<Response, Failure> {
    let with_change = asked.accessed.recorded.get().is_some();
    let Some(came_of_it) = kept(asked.action, with_change, &outcome) else { return outcome };
    if !journal.is_on() {
        return outcome;
    }
    let noted = asked.accessed.patients.get().cloned();
    let reason = asked.caller.break_glass.as_deref().filter(|_| asked.accessed.breaks_glass.get().is_some());
    let access = Access {
        at: now,
        action: asked.action,
        outcome: came_of_it,
        caller: asked.caller.clone(),
        patients: noted.unwrap_or_else(|| asked.patient.into_iter().collect()),
        trace_id: asked.trace.trace_id,
        reason: reason.map(Into::into),
        change: None,
        detail: asked.accessed.detail(),
    };
    match (journal.record(access).await, &outcome, asked.effect) {
        (Ok(()), ..) => outcome,
        (Err(_), Ok(_), Effect::Writes) => Err(Failure::new(
            ErrorCode::OutcomeUnknown,
            "The change was made, but it cannot be recorded who made it",
        )),
        (Err(_), Err(failure), _) if failure.error.code == ErrorCode::OutcomeUnknown => outcome,
        (Err(error), ..) => Err(error.into()),
    }
}

/// Returns the outcome to record, if any, by the table above. `with_change` means that the commit has
/// recorded it.
fn kept(action: Action, with_change: bool, outcome: &Result<Response, Failure>) -> Option<Outcome> {
    match outcome {
        Err(failure) if failure.error.code == ErrorCode::Forbidden => Some(Outcome::Denied),
        _ if !action.is_audited() => None,
        Ok(_) if with_change => None,
        Ok(_) => Some(Outcome::Done),
        Err(failure) => match failure.error.code {
            ErrorCode::NotFound
            | ErrorCode::AlreadyExists
            | ErrorCode::PreconditionFailed
            | ErrorCode::KeyReused
            | ErrorCode::KeyExpired => Some(Outcome::Refused),
            ErrorCode::OutcomeUnknown => Some(Outcome::Unknown),
            ErrorCode::Internal => Some(Outcome::Failed),
            _ => None,
        },
    }
}

/// Returns the patient id in `path` at the position of the patient placeholder of `template`.
pub(super) fn patient_of(template: &str, path: &str) -> Option<PatientId> {
    let names = |part: &str| matches!(part, "{id}" | "{patientId}");
    let place = template.split('/').position(names)?;
    let text = path.split('/').nth(place).filter(|text| text.len() == 36)?;
    Uuid::try_parse(text).ok().map(PatientId)
}

/// Returns the audit detail that follows from the path alone, so that a denial has it too.
pub(super) fn detail_of(template: &str, verb: Verb, path: &str) -> Option<Detail> {
    match template {
        "/api/patients/{id}/restriction" => Some(Detail::of_mark(verb == Verb::Put)),
        "/api/users/{email}" => {
            let escaped = path.rsplit('/').next().unwrap_or_default().replace('+', "%2B");
            let (email, _) = form_urlencoded::parse(escaped.as_bytes()).next()?;
            Some(Detail::of_account(&email_key(&email)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_as_the_table_says() {
        let said = |action, code: Option<ErrorCode>| {
            let outcome = match code {
                None => Ok(Response::default()),
                Some(code) => Err(Failure::new(code, "no")),
            };
            kept(action, false, &outcome)
        };
        for action in Action::ALL {
            assert_eq!(said(action, Some(ErrorCode::Forbidden)), Some(Outcome::Denied), "{action:?}");
            let done = action.is_audited().then_some(Outcome::Done);
            assert_eq!(said(action, None), done, "{action:?}");
            let with_change = kept(action, true, &Ok(Response::default()));
            assert_eq!(with_change, None, "{action:?}: its transaction has kept it");
            let unknown = action.is_audited().then_some(Outcome::Unknown);
            assert_eq!(said(action, Some(ErrorCode::OutcomeUnknown)), unknown, "{action:?}");
            for nothing in [
                ErrorCode::Invalid,
                ErrorCode::Unauthenticated,
                ErrorCode::Overloaded,
                ErrorCode::Unavailable,
                ErrorCode::DeadlineExceeded,
                ErrorCode::PayloadTooLarge,
            ] {
                assert_eq!(said(action, Some(nothing)), None, "{action:?} {nothing:?}");
            }
        }
        assert_eq!(said(Action::PatientRead, Some(ErrorCode::NotFound)), Some(Outcome::Refused));
        for refused in [
            ErrorCode::AlreadyExists,
            ErrorCode::PreconditionFailed,
            ErrorCode::KeyReused,
            ErrorCode::KeyExpired,
        ] {
            assert_eq!(said(Action::PatientRegister, Some(refused)), Some(Outcome::Refused));
        }
    }

    #[test]
    fn a_path_says_what_it_is_about() {
        let of = |template, verb, path| detail_of(template, verb, path);
        let mark = |verb| of("/api/patients/{id}/restriction", verb, "/api/patients/7/restriction");
        assert_eq!(mark(Verb::Put), Some(Detail::of_mark(true)));
        assert_eq!(mark(Verb::Delete), Some(Detail::of_mark(false)));
        let user = |path| of("/api/users/{email}", Verb::Patch, path);
        assert_eq!(user("/api/users/Ada+1%40example.com"), Some(Detail::of_account("ada+1@example.com")));
        assert_eq!(user("/api/users/"), None);
        assert_eq!(of("/api/users", Verb::Post, "/api/users"), None);
    }

    #[test]
    fn a_path_names_its_patient() {
        let id = "123e4567-e89b-12d3-a456-426614174000";
        let of = |template, path: &str| patient_of(template, path).map(|patient| patient.0.to_string());
        let named = Some(id.to_owned());
        assert_eq!(of("/api/patients/{id}", &format!("/api/patients/{id}")), named);
        assert_eq!(of("/api/patients/{id}/restriction", &format!("/api/patients/{id}/restriction")), named);
        assert_eq!(of("/api/billing/accounts/{patientId}", &format!("/api/billing/accounts/{id}")), named);
        assert_eq!(of("/api/patients/{id}", "/api/patients/7"), None);
        assert_eq!(of("/api/patients", "/api/patients"), None);
        assert_eq!(of("/api/users/{email}", &format!("/api/users/{id}")), None);
    }
}
