//! `hygeia user …`: manages users. Passwords come from the terminal or standard input.

use std::io::Write;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use time::format_description::well_known::Rfc3339;

use super::backend::Users;
use super::failure::{Exit, Failure};
use super::settings::SettingArgs;
use crate::domain::access::Role;

/// Number of users that are read at a time.
const PAGE_ROWS: u32 = 500;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a user; the password is read from the terminal or standard input
    Add {
        /// The e-mail address, which is the login name
        email: String,
        /// The user's role
        #[arg(long,
            value_parser = PossibleValuesParser::new(Role::ALL.iter().map(|role| role.as_str())))]
        role: String,
        #[command(flatten)]
        settings: SettingArgs,
    },
    /// List users
    List(SettingArgs),
    /// Disable a user: logins are refused, and tokens issued before no longer hold
    Disable(Named),
    /// Enable a disabled user
    Enable(Named),
    /// Set a user's password; it is read from the terminal or standard input
    Passwd(Named),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The user's e-mail address
    email: String,
    #[command(flatten)]
    settings: SettingArgs,
}

/// A `user` command without its settings.
#[derive(Debug)]
pub(super) enum Action {
    Add { email: String, role: String },
    List,
    SetDisabled { email: String, disabled: bool },
    Passwd { email: String },
}

impl Command {
    pub(super) fn into_parts(self) -> (SettingArgs, Action) {
        match self {
            Command::Add { email, role, settings } => (settings, Action::Add { email, role }),
            Command::List(settings) => (settings, Action::List),
            Command::Disable(Named { email, settings }) => {
                (settings, Action::SetDisabled { email, disabled: true })
            }
            Command::Enable(Named { email, settings }) => {
                (settings, Action::SetDisabled { email, disabled: false })
            }
            Command::Passwd(Named { email, settings }) => (settings, Action::Passwd { email }),
        }
    }
}

/// Runs the command.
pub(super) async fn run(
    action: &Action,
    users: &dyn Users,
    password: &(dyn Fn() -> Result<String, Failure> + Sync),
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    match action {
        Action::Add { email, role } => {
            let role = Role::parse(role).ok_or_else(|| Failure::new(Exit::Usage, "no such role"))?;
            users.add(email, &password()?, role).await?;
            writeln!(out, "added {email} with the role {}", role.as_str())?;
        }
        Action::Passwd { email } => {
            users.set_password(email, &password()?).await?;
            writeln!(out, "set the password of {email}")?;
        }
        Action::SetDisabled { email, disabled } => {
            users.set_disabled(email, *disabled).await?;
            writeln!(out, "{} {email}", if *disabled { "disabled" } else { "enabled" })?;
        }
        Action::List => list(users, out).await?,
    }
    Ok(())
}

async fn list(users: &dyn Users, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let mut after: Option<String> = None;
    loop {
        let page = users.list(after.as_deref(), PAGE_ROWS).await?;
        for user in &page {
            let state = if user.disabled { "disabled" } else { "enabled" };
            let since = user.created_at.to_offset().format(&Rfc3339).unwrap_or_default();
            writeln!(out, "{}\t{}\t{state}\t{since}", user.email, user.role)?;
        }
        match page.last() {
            Some(last) => after = Some(last.email.clone()),
            None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;

    use super::*;
    use crate::auth::User;
    use crate::domain::time::Timestamp;

    /// Records its calls; has `rows` users.
    #[derive(Default)]
    struct Noted {
        calls: Mutex<Vec<String>>,
        rows: usize,
    }

    impl Noted {
        fn note(&self, call: String) -> Result<(), Failure> {
            self.calls.lock().unwrap().push(call);
            Ok(())
        }
    }

    #[async_trait]
    impl Users for Noted {
        async fn add(&self, email: &str, password: &str, role: Role) -> Result<(), Failure> {
            self.note(format!("add {email} {password} {}", role.as_str()))
        }

        async fn set_password(&self, email: &str, password: &str) -> Result<(), Failure> {
            self.note(format!("passwd {email} {password}"))
        }

        async fn set_disabled(&self, email: &str, disabled: bool) -> Result<(), Failure> {
            self.note(format!("disabled {email} {disabled}"))
        }

        async fn list(&self, after: Option<&str>, limit_rows: u32) -> Result<Vec<User>, Failure> {
            let all = (0..self.rows).map(|n| User {
                email: format!("user-{n:04}@example.com"),
                role: "ADMIN".to_owned(),
                disabled: n % 2 == 1,
                created_at: Timestamp(0),
            });
            let later = all.filter(|user| after.is_none_or(|after| user.email.as_str() > after));
            Ok(later.take(limit_rows as usize).collect())
        }
    }

    async fn done(action: Action, users: &Noted) -> String {
        let mut out = Vec::new();
        run(&action, users, &|| Ok("hunter2".to_owned()), &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn each_command_asks_for_what_it_says_and_prints_no_password() {
        let users = Noted::default();
        let email = || "a@b.c".to_owned();
        let printed = [
            done(Action::Add { email: email(), role: "ADMIN".to_owned() }, &users).await,
            done(Action::SetDisabled { email: email(), disabled: true }, &users).await,
            done(Action::SetDisabled { email: email(), disabled: false }, &users).await,
            done(Action::Passwd { email: email() }, &users).await,
        ];
        assert_eq!(
            printed.concat(),
            "added a@b.c with the role ADMIN\ndisabled a@b.c\nenabled a@b.c\nset the password of a@b.c\n"
        );
        let calls = users.calls.lock().unwrap().clone();
        assert_eq!(
            calls,
            [
                "add a@b.c hunter2 ADMIN",
                "disabled a@b.c true",
                "disabled a@b.c false",
                "passwd a@b.c hunter2"
            ]
        );
    }

    #[tokio::test]
    async fn all_users_are_listed_over_pages_without_their_hashes() {
        let rows = PAGE_ROWS as usize * 2 + 1;
        let printed = done(Action::List, &Noted { rows, ..Noted::default() }).await;
        assert_eq!(printed.lines().count(), rows);
        assert_eq!(
            printed.lines().nth(1),
            Some("user-0001@example.com\tADMIN\tdisabled\t1970-01-01T00:00:00Z")
        );
        assert!(!printed.contains("canary"));
    }
}
