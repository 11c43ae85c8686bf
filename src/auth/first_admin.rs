//! Creates the first administrator of a database without users. The user is named in the settings, so that a
//! cluster can be set up without a person at a terminal and without a publicly known password.
//!
//! Invariant: no user is created if any user exists, and no existing user is changed. If several processes
//! try at once, one creates the user and the others find it.

use super::password::PASSWORD_RULE;
use super::{By, Settings, Users, validate_password};
use crate::domain::access::Role;
use crate::domain::email::EmailAddress;
use crate::error::{Error, ErrorCode, Result};

const PASSWORD_MISSING: &str = "auth.first_admin_email is set without a password: set \
     HYGEIA__AUTH__FIRST_ADMIN_PASSWORD_FILE to a file that holds it";

/// The result of `make_first_admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirstAdmin {
    /// The settings name no administrator.
    NotWanted,
    /// The database already has users.
    NotNeeded,
    /// The user was created.
    Made,
}

/// Returns the faults of the two settings: the key, and what is allowed.
pub(super) fn problems(settings: &Settings) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    match (&settings.first_admin_email, &settings.first_admin_password) {
        (None, None) => {}
        // The password file of another node is not read. `check_first_admin` requires the password where it
        // is needed.
        (Some(_), None) => {}
        (None, Some(_)) => problems.push((
            "first_admin_password",
            "together with an address: set HYGEIA__AUTH__FIRST_ADMIN_EMAIL".into(),
        )),
        (Some(email), Some(password)) => {
            if EmailAddress::parse(email).is_err() {
                problems.push(("first_admin_email", "an e-mail address".into()));
            }
            if validate_password(password.reveal()).is_err() {
                problems.push(("first_admin_password", PASSWORD_RULE.into()));
            }
        }
    }
    problems
}

/// Checks that a password is set if an address is set.
///
/// # Errors
/// Which setting is missing.
pub(super) fn check(settings: &Settings) -> std::result::Result<(), &'static str> {
    match (&settings.first_admin_email, &settings.first_admin_password) {
        (Some(_), None) => Err(PASSWORD_MISSING),
        _ => Ok(()),
    }
}

/// Creates the user that `settings` name, if the database has no user.
///
/// # Errors
/// The errors of `Users::create`, except that an existing user is not an error. `Invalid`: an address is set
/// without a password.
pub async fn make_first_admin(settings: &Settings, users: &Users) -> Result<FirstAdmin> {
    check(settings).map_err(|reason| Error::new(ErrorCode::Invalid, reason))?;
    let (Some(email), Some(password)) = (&settings.first_admin_email, &settings.first_admin_password) else {
        return Ok(FirstAdmin::NotWanted);
    };
    if !users.list(None, 1).await?.is_empty() {
        return Ok(FirstAdmin::NotNeeded);
    }
    match users.create(email, password.reveal(), Role::Admin, By::SetUp).await {
        Ok(_) => Ok(FirstAdmin::Made),
        Err(error) if error.code == ErrorCode::AlreadyExists => Ok(FirstAdmin::NotNeeded),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::SecretText;
    use super::super::fake::{FakeClock, FakeUsers, auth, settings};
    use super::*;
    use crate::store;

    const EMAIL: &str = "First@example.com";
    const PASSWORD: &str = "a password of the first one";

    fn named(email: Option<&str>, password: Option<&str>) -> Settings {
        let first_admin_password = password.map(|text| SecretText::from(text.to_owned()));
        Settings { first_admin_email: email.map(str::to_owned), first_admin_password, ..settings() }
    }

    fn users(store: &Arc<FakeUsers>, settings: &Settings) -> Users {
        Users::new(settings, Arc::clone(store) as _, FakeClock::new())
    }

    #[tokio::test]
    async fn it_is_made_once_and_can_log_in() {
        let (store, settings) = (FakeUsers::new(), named(Some(EMAIL), Some(PASSWORD)));
        let users = users(&store, &settings);
        assert_eq!(make_first_admin(&settings, &users).await, Ok(FirstAdmin::Made));
        assert_eq!(make_first_admin(&settings, &users).await, Ok(FirstAdmin::NotNeeded));
        let auth = auth(&store, &FakeClock::new());
        let token = auth.login("first@example.com", PASSWORD, None).await.expect("logged in");
        assert_eq!(auth.authenticate(&token.token.text).await.expect("holds").role, Role::Admin);
    }

    #[tokio::test]
    async fn where_there_are_users_nobody_is_made_or_changed() {
        let (store, settings) = (FakeUsers::with("ada@example.com"), named(Some(EMAIL), Some(PASSWORD)));
        assert_eq!(make_first_admin(&settings, &users(&store, &settings)).await, Ok(FirstAdmin::NotNeeded));
        let all = store::UserStore::list_users(&*store, None, 10).await.expect("users");
        assert_eq!(all.iter().map(|user| user.email.as_str()).collect::<Vec<_>>(), ["ada@example.com"]);
        let none = named(None, None);
        assert_eq!(
            make_first_admin(&none, &users(&FakeUsers::new(), &none)).await,
            Ok(FirstAdmin::NotWanted)
        );
    }

    #[tokio::test]
    async fn of_many_who_try_at_once_one_makes_it() {
        let (store, settings) = (FakeUsers::new(), named(Some(EMAIL), Some(PASSWORD)));
        let users: Vec<Users> = (0..4).map(|_| users(&store, &settings)).collect();
        let tries = users.iter().map(|users| make_first_admin(&settings, users));
        let came: Vec<_> = futures::future::join_all(tries).await;
        let made = came.iter().filter(|came| **came == Ok(FirstAdmin::Made)).count();
        assert_eq!((made, came.iter().all(Result::is_ok)), (1, true), "{came:?}");
    }

    #[tokio::test]
    async fn a_database_that_is_away_is_told() {
        let (store, settings) = (FakeUsers::new(), named(Some(EMAIL), Some(PASSWORD)));
        store.fail(Some(store::Error::Unavailable("away".into())));
        let error = make_first_admin(&settings, &users(&store, &settings)).await.expect_err("away");
        assert_eq!(error.code, ErrorCode::Unavailable);
    }

    #[test]
    fn what_is_named_by_half_or_breaks_the_rules_is_refused() {
        let keys =
            |settings: Settings| problems(&settings).into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        assert!(check(&named(Some(EMAIL), None)).is_err() && check(&named(None, None)).is_ok());
        assert!(check(&named(Some(EMAIL), Some(PASSWORD))).is_ok());
        assert_eq!(keys(named(None, Some(PASSWORD))), ["first_admin_password"]);
        assert_eq!(keys(named(Some("nobody"), Some(PASSWORD))), ["first_admin_email"]);
        assert_eq!(keys(named(Some(EMAIL), Some("short"))), ["first_admin_password"]);
        assert!(keys(named(Some(EMAIL), Some(PASSWORD))).is_empty() && keys(named(None, None)).is_empty());
    }
}
