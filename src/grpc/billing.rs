//! `BillingService`: opens accounts.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};
use uuid::Uuid;

use super::call::Call;
use super::status;
use crate::actors::audit::AuditHandle;
use crate::actors::open_accounts::OpenAccounts;
use crate::auth::{self, Auth};
use crate::context::{RequestContext, TraceContext};
use crate::domain::access::{Action, Caller};
use crate::domain::account::Account;
use crate::domain::audit::{Access, Outcome};
use crate::domain::ids::{CommandId, PatientId};
use crate::domain::time::{Clock, Timestamp};
use crate::domain::validate::{AccountHolder, AccountInput, account};
use crate::error::{Error, ErrorCode, Result};
use crate::proto::billing_service_server::BillingService;
use crate::proto::{BillingRequest, BillingResponse};
use crate::rate::Limiter;

/// Authenticates callers by token.
#[async_trait]
pub trait Authenticate: Send + Sync {
    /// Returns the caller to whom the token was issued.
    ///
    /// # Errors
    /// `Unauthenticated`: the token is not valid. Other errors mean that the token cannot be checked now.
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
    /// `None` disables the limit.
    pub(super) limiter: Option<Limiter>,
    pub(super) clock: Arc<dyn Clock>,
    /// Openings in progress.
    pub(super) changes: TaskTracker,
}

/// How long an opening may continue after its deadline. The calls within it have shorter limits of their own.
const CHANGE_GRACE: Duration = Duration::from_secs(20);

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

/// One opening, with the recording of its access.
struct Opening {
    accounts: Arc<dyn OpenAccounts>,
    audit: AuditHandle,
    clock: Arc<dyn Clock>,
    ctx: RequestContext,
    holder: AccountHolder,
    /// Holds the slot of the call.
    _call: Call,
}

impl Opening {
    async fn carry_out(self) -> Result<Arc<Account>> {
        let Opening { accounts, audit, clock, ctx, holder, _call } = self;
        let opened = accounts.open(&ctx, holder.patient_id, &holder.name, &holder.email).await;
        let outcome = match &opened {
            Ok(_) => Some(Outcome::Done),
            Err(error) => match error.code {
                ErrorCode::OutcomeUnknown => Some(Outcome::Unknown),
                ErrorCode::NotFound | ErrorCode::AlreadyExists => Some(Outcome::Refused),
                _ => None,
            },
        };
        if let Some(outcome) = outcome {
            let opening = access(&ctx.caller, ctx.trace, clock.now(), outcome, Some(holder.patient_id));
            // Opening is idempotent, so the caller can repeat it after an unknown outcome.
            let told = audit.record(opening).await;
            told.map_err(|error| Error { code: ErrorCode::OutcomeUnknown, ..error })?;
        }
        opened
    }
}

fn access(
    caller: &Caller,
    trace: TraceContext,
    at: Timestamp,
    outcome: Outcome,
    patient: Option<PatientId>,
) -> Access {
    Access {
        at,
        action: Action::AccountOpen,
        outcome,
        caller: caller.clone(),
        patients: patient.into_iter().collect(),
        trace_id: trace.trace_id,
        reason: None,
        change: None,
        detail: None,
    }
}

impl Billing {
    async fn open(&self, request: &Request<BillingRequest>) -> Result<BillingResponse> {
        let call = request
            .extensions()
            .get::<Call>()
            .ok_or_else(|| Error::new(ErrorCode::Internal, "The call came without its envelope"))?;
        let caller = Caller { from: call.from, ..self.caller(request.metadata()).await? };
        // Count before the permission check: a denial is a row of the audit, and the limit must bound those
        // too.
        self.count(&caller)?;
        if let Err(denied) = call.permit(&caller) {
            if let Some(limiter) = &self.limiter {
                limiter.charge_denial(&caller.subject, self.clock.mono());
            }
            let patient = Uuid::try_parse(&request.get_ref().patient_id).ok().map(PatientId);
            let denial = access(&caller, call.trace, self.clock.now(), Outcome::Denied, patient);
            self.audit.record(denial).await?;
            return Err(denied);
        }
        let asked = request.get_ref();
        let holder =
            account(&AccountInput { patient_id: &asked.patient_id, name: &asked.name, email: &asked.email })
                .map_err(Error::invalid_fields)?;
        let ctx = RequestContext {
            trace: call.trace,
            deadline: call.deadline,
            command_id: CommandId(Uuid::now_v7()),
            caller,
        };
        call.begin();
        let limit = Duration::from_nanos(call.deadline.0.saturating_sub(self.clock.mono().0)) + CHANGE_GRACE;
        let opening = Opening {
            accounts: Arc::clone(&self.accounts),
            audit: self.audit.clone(),
            clock: Arc::clone(&self.clock),
            ctx,
            holder,
            _call: call.clone(),
        };
        // Run in a task of its own, so that a caller who disconnects stops neither the opening nor its entry
        // in the audit.
        let account = match self.changes.spawn(tokio::time::timeout(limit, opening.carry_out())).await {
            Ok(Ok(opened)) => opened?,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Ok(Err(_)) | Err(_) => {
                return Err(Error::new(ErrorCode::OutcomeUnknown, "The time was up before the answer came"));
            }
        };
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
