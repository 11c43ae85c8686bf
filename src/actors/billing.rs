//! Billing accounts: the handle that the edges use, and the `Entity` implementation for the sharded core.

use std::sync::Arc;

use uuid::Uuid;

use super::directory::Asker;
use super::entity::{Decision, Entity, Loaded, Refused, Stamp, Write};
use crate::context::RequestContext;
use crate::domain::account::{self, Account, OpenAccount};
use crate::domain::ids::{AccountId, CommandId, Kind, PatientId};
use crate::error::Result;
use crate::store::{self, AccountAppend, AccountStore, AppendOutcome, AuditBatch};

/// Sends requests to the accounts of the whole cluster. Cloning is cheap.
#[derive(Clone)]
pub struct BillingHandle {
    asker: Asker<Accounts>,
}

impl BillingHandle {
    /// Creates a handle that sends its requests through `asker`.
    pub fn new(asker: Asker<Accounts>) -> Self {
        BillingHandle { asker }
    }

    /// Opens the account of `patient`, or returns the existing one.
    ///
    /// # Errors
    /// `Overloaded`, `Unavailable` or `DeadlineExceeded`: nothing was done. `OutcomeUnknown`: repeat the
    /// call.
    pub async fn open(
        &self,
        ctx: &RequestContext,
        patient: PatientId,
        name: &str,
        email: &str,
    ) -> Result<Arc<Account>> {
        let command =
            OpenAccount { account_id: AccountId(Uuid::now_v7()), name: name.into(), email: email.into() };
        self.asker.write(ctx, patient.0, command).await
    }

    /// Returns the account of `patient`.
    ///
    /// # Errors
    /// `NotFound` if there is no account (yet); otherwise as `open`, without `OutcomeUnknown`.
    pub async fn account(&self, ctx: &RequestContext, patient: PatientId) -> Result<Arc<Account>> {
        self.asker.read(ctx, patient.0).await
    }
}

/// The kind of accounts. An account has the id of its patient, because a patient has at most one.
pub struct Accounts;

impl Entity for Accounts {
    const KIND: Kind = Kind::Billing;
    type State = Option<Arc<Account>>;
    type Command = OpenAccount;
    type Answer = Arc<Account>;
    type Append = AccountAppend;
    type Query = std::convert::Infallible;
    type QueryAnswer = std::convert::Infallible;
    type Store = dyn AccountStore;

    fn command_name(_command: &OpenAccount) -> &'static str {
        "Open"
    }

    fn read(state: &Self::State) -> std::result::Result<Arc<Account>, Refused> {
        state.clone().ok_or(Refused::NotFound)
    }

    fn decide(id: Uuid, state: &Self::State, write: &Write<Self>, stamp: &Stamp) -> Decision<Self> {
        match account::decide(PatientId(id), state.as_ref(), &write.command, stamp.now) {
            Ok(account) => {
                Decision::Append(AccountAppend { shard: stamp.shard, epoch: stamp.epoch, account })
            }
            Err(existing) => Decision::Answer(existing),
        }
    }

    fn presumed(_command: &OpenAccount) -> Option<Self::State> {
        Some(None)
    }

    fn committed(append: &AccountAppend) -> (Self::State, Arc<Account>) {
        (Some(Arc::clone(&append.account)), Arc::clone(&append.account))
    }

    fn worth_keeping(state: &Self::State) -> bool {
        state.is_some()
    }

    async fn load(
        store: &(dyn AccountStore + 'static),
        id: Uuid,
        _command: Option<CommandId>,
    ) -> store::Result<Loaded<Self>> {
        // Opening is idempotent by patient id, so no command has to be looked up.
        Ok(Loaded { state: store.load_account(PatientId(id)).await?, applied: None })
    }

    async fn commit(
        store: &(dyn AccountStore + 'static),
        batch: &[AccountAppend],
        _audit: Option<&AuditBatch>,
    ) -> store::Result<Vec<AppendOutcome>> {
        store.commit_accounts(batch).await
    }

    async fn query(
        _store: &(dyn AccountStore + 'static),
        query: &Self::Query,
    ) -> store::Result<Self::QueryAnswer> {
        match *query {}
    }
}
