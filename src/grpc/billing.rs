//! `BillingService`: a call in, an account out.

use std::sync::Arc;

use async_trait::async_trait;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::Call;
use super::status;
use crate::actors::audit::AuditHandle;
use crate::actors::open_accounts::OpenAccounts;
use crate::auth::{self, Auth};
use crate::context::RequestContext;
use crate::domain::access::{Action, Caller};
use crate::domain::audit::{Access, Outcome};
use crate::domain::ids::{CommandId, PatientId};
use crate::domain::time::Clock;
use crate::domain::validate::{AccountInput, account};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::billing_service_server::BillingService;
use crate::proto::{BillingRequest, BillingResponse};
use crate::rate::Limiter;

/// Tells who the caller with a token is.
#[async_trait]
pub trait Authenticate: Send + Sync {
    /// The caller whose token this is.
    ///
    /// # Errors
    /// `Unauthenticated`: the token does not hold; else it cannot be known now.
    async fn authenticate(&self, bearer_token: &str) -> Result<Caller>;
}

#[async_trait]
impl Authenticate for Auth {
    async fn authenticate(&self, bearer_token: &str) -> Result<Caller> {
        Auth::authenticate(self, bearer_token).await
    }
}

pub(super) struct Billing {
    pub(super) accounts: Arc<dyn OpenAccounts>,
    pub(super) auth: Arc<dyn Authenticate>,
    pub(super) require_token: bool,
    pub(super) audit: AuditHandle,
    /// None: a subject may call as often as it likes.
    pub(super) limiter: Option<Limiter>,
    pub(super) clock: Arc<dyn Clock>,
}

#[async_trait]
impl BillingService for Billing {
    async fn create_billing_account(
        &self,
        request: Request<BillingRequest>,
    ) -> std::result::Result<Response<BillingResponse>, Status> {
        match self.open(&request).await {
            Ok(answer) => Ok(Response::new(answer)),
            Err(error) => Err(status::of_error(&error)),
        }
    }
}

impl Billing {
    async fn open(&self, request: &Request<BillingRequest>) -> Result<BillingResponse> {
        let call = request
            .extensions()
            .get::<Call>()
            .ok_or_else(|| Error::new(ErrorCode::Internal, "The call came without its envelope"))?;
        let caller = Caller { from: call.from, ..self.caller(request.metadata()).await? };
        let recorded = |outcome, patient: Option<PatientId>| Access {
            at: self.clock.now(),
            action: Action::AccountOpen,
            outcome,
            caller: caller.clone(),
            patients: patient.into_iter().collect(),
            trace_id: call.trace.trace_id,
            reason: None,
            change: None,
        };
        if let Err(denied) = call.permit(&caller) {
            let patient = Uuid::try_parse(&request.get_ref().patient_id).ok().map(PatientId);
            self.audit.record(recorded(Outcome::Denied, patient)).await?;
            return Err(denied);
        }
        self.count(&caller)?;
        let asked = request.get_ref();
        let holder =
            account(&AccountInput { patient_id: &asked.patient_id, name: &asked.name, email: &asked.email })
                .map_err(Error::invalid_fields)?;
        let ctx = RequestContext {
            trace: call.trace,
            deadline: call.deadline,
            command_id: CommandId(Uuid::now_v7()),
            caller: caller.clone(),
        };
        call.begin();
        let opened = self.accounts.open(&ctx, holder.patient_id, &holder.name, &holder.email).await;
        let outcome = match &opened {
            Ok(_) => Some(Outcome::Done),
            Err(error) => match error.code {
                ErrorCode::OutcomeUnknown => Some(Outcome::Unknown),
                ErrorCode::NotFound | ErrorCode::AlreadyExists => Some(Outcome::Refused),
                _ => None,
            },
        };
        if let Some(outcome) = outcome {
            // Opening is idempotent: who is told that the outcome is not known may ask again.
            let told = self.audit.record(recorded(outcome, Some(holder.patient_id))).await;
            told.map_err(|error| Error { code: ErrorCode::OutcomeUnknown, ..error })?;
        }
        let account = opened?;
        Ok(BillingResponse { account_id: account.id.to_string(), status: account.status.as_str().to_owned() })
    }

    /// Counts the call towards its caller's limit.
    fn count(&self, caller: &Caller) -> Result<()> {
        let taken = self.limiter.as_ref().map(|limiter| limiter.take(&caller.subject, self.clock.mono()));
        match taken {
            Some(Err(_)) => {
                Err(Error::new(ErrorCode::RateLimited, "Too many calls of this caller in a short time"))
            }
            _ => Ok(()),
        }
    }

    async fn caller(&self, metadata: &MetadataMap) -> Result<Caller> {
        match metadata.get(http::header::AUTHORIZATION.as_str()) {
            Some(value) => {
                let token = value.to_str().ok().and_then(auth::bearer).ok_or_else(|| {
                    Error::new(ErrorCode::Unauthenticated, "The authorization is no bearer token")
                })?;
                self.auth.authenticate(token).await
            }
            None if self.require_token => Err(Error::new(
                ErrorCode::Unauthenticated,
                "A bearer token is needed in the metadata \"authorization\"",
            )),
            None => Ok(Caller::system("grpc-without-token")),
        }
    }
}
