//! `hygeia keys …`: the keys that sign tokens.

use std::io::Write;

use clap::{Args, Subcommand};
use time::format_description::well_known::Rfc3339;

use super::backend::Keys;
use super::failure::Failure;
use super::settings::SettingArgs;
use crate::domain::time::Timestamp;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Create the next key. Nodes sign with it once all of them know it; tokens of older keys stay valid
    Rotate(RotateArgs),
    /// List the keys, youngest first
    List(SettingArgs),
}

#[derive(Debug, Args)]
pub(super) struct RotateArgs {
    /// Refuse all tokens of older keys as soon as nodes have read the new key. Use this for a compromised
    /// key. Sessions continue after a refresh
    #[arg(long)]
    revoke: bool,
    #[command(flatten)]
    settings: SettingArgs,
}

/// A `keys` command without its settings.
#[derive(Debug)]
pub(super) enum Action {
    Rotate { revoke: bool },
    List,
}

impl Command {
    pub(super) fn into_parts(self) -> (SettingArgs, Action) {
        match self {
            Command::Rotate(RotateArgs { revoke, settings }) => (settings, Action::Rotate { revoke }),
            Command::List(settings) => (settings, Action::List),
        }
    }
}

/// Runs the command.
pub(super) async fn run(
    action: &Action,
    keys: &dyn Keys,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    match action {
        Action::Rotate { revoke } => {
            let made = keys.rotate(*revoke).await?;
            writeln!(out, "{}\tsigns from {}", made.kid, written(made.signs_from))?;
        }
        Action::List => {
            for key in keys.list().await? {
                let end = key.verifies_until.map_or_else(|| "-".to_owned(), written);
                let sealed = if key.sealed { "encrypted" } else { "plain" };
                let (made, signs) = (written(key.created_at), written(key.signs_from));
                writeln!(out, "{}\tmade {made}\tsigns from {signs}\tholds until {end}\t{sealed}", key.kid)?;
            }
        }
    }
    Ok(())
}

fn written(time: Timestamp) -> String {
    time.to_offset().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;

    use super::*;
    use crate::auth::{KeyFacts, MadeKey};

    struct Two;

    #[async_trait]
    impl Keys for Two {
        async fn rotate(&self, revoke: bool) -> Result<MadeKey, Failure> {
            Ok(MadeKey { kid: format!("third-{revoke}"), signs_from: Timestamp(60_000_000) })
        }

        async fn list(&self) -> Result<Vec<KeyFacts>, Failure> {
            let key = |kid: &str, verifies_until, sealed| KeyFacts {
                kid: kid.to_owned(),
                created_at: Timestamp(0),
                signs_from: Timestamp(1_000_000),
                verifies_until,
                sealed,
            };
            Ok(vec![key("two", None, true), key("one", Some(Timestamp(2_000_000)), false)])
        }
    }

    async fn said(action: Action) -> String {
        let mut out = Vec::new();
        run(&action, &Two, &mut out).await.unwrap();
        String::from_utf8(out).unwrap()
    }

    #[tokio::test]
    async fn each_says_what_there_is() {
        assert_eq!(
            said(Action::Rotate { revoke: true }).await,
            "third-true\tsigns from 1970-01-01T00:01:00Z\n"
        );
        let listed = said(Action::List).await;
        let lines: Vec<&str> = listed.lines().collect();
        assert!(lines[0].starts_with("two\t") && lines[0].ends_with("holds until -\tencrypted"), "{listed}");
        assert!(lines[1].ends_with("holds until 1970-01-01T00:00:02Z\tplain"), "{listed}");
    }
}
