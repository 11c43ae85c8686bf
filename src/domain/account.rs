//! A patient's billing account. The ledger will be its events; so far an account is only opened.

use std::sync::Arc;

use super::ids::{AccountId, PatientId};
use super::time::Timestamp;

/// The current state of an account.
#[derive(Clone, PartialEq, Eq)]
pub struct Account {
    /// The account's own id.
    pub id: AccountId,
    /// The patient. Unique, because a patient has at most one account.
    pub patient_id: PatientId,
    /// The holder's name when the account was opened.
    pub name: Box<str>,
    /// The holder's e-mail address when the account was opened.
    pub email: Box<str>,
    /// Whether the account may be charged.
    pub status: AccountStatus,
    /// When the account was opened.
    pub opened_at: Timestamp,
}

/// Never prints the holder's name and e-mail address.
impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("id", &self.id)
            .field("patient_id", &self.patient_id)
            .finish_non_exhaustive()
    }
}

/// Whether an account may be charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccountStatus {
    /// Open.
    Active,
}

impl AccountStatus {
    /// Every status.
    pub const ALL: [AccountStatus; 1] = [AccountStatus::Active];

    /// Returns the published name.
    pub const fn as_str(self) -> &'static str {
        match self {
            AccountStatus::Active => "ACTIVE",
        }
    }

    /// Returns the status of that name, if there is one.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == name)
    }
}

/// The command to open an account.
#[derive(Clone, PartialEq, Eq)]
pub struct OpenAccount {
    /// The id that a new account gets.
    pub account_id: AccountId,
    /// The holder's name.
    pub name: Box<str>,
    /// The holder's e-mail address.
    pub email: Box<str>,
}

impl std::fmt::Debug for OpenAccount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenAccount").field("account_id", &self.account_id).finish_non_exhaustive()
    }
}

/// Returns the account to open. Opening an account that exists changes nothing.
///
/// # Errors
/// Returns the existing account, if there is one. This is not a failure.
pub fn decide(
    patient_id: PatientId,
    state: Option<&Arc<Account>>,
    command: &OpenAccount,
    now: Timestamp,
) -> Result<Arc<Account>, Arc<Account>> {
    if let Some(account) = state {
        return Err(Arc::clone(account));
    }
    Ok(Arc::new(Account {
        id: command.account_id,
        patient_id,
        name: command.name.clone(),
        email: command.email.clone(),
        status: AccountStatus::Active,
        opened_at: now,
    }))
}
