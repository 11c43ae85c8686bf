//! `hygeia cluster status`: the facts of `GET /cluster` from a front, or only what the database knows.

use std::ffi::OsString;
use std::io::Write;

use clap::Args;

use super::table;
use crate::actors::status::{ClusterStatus, NodeStatus};
use crate::cli::failure::{Exit, Failure};
use crate::cli::settings::SettingArgs;
use crate::cli::{ask, backend, healthcheck, password};
use crate::config::{Config, Loaded, Role};

/// The environment variable with the token for the front.
const TOKEN_VARIABLE: &str = "HYGEIA_TOKEN";

/// The note in the status if no front was asked.
const NOT_ASKED: &str = "nodes: not asked; HYGEIA_TOKEN with an ADMIN's token, or --user, has a front asked";

#[derive(Debug, Args)]
pub(in crate::cli) struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// The front to ask; by default a front of the configuration
    #[arg(long, value_name = "http://HOST:PORT")]
    url: Option<String>,
    /// Log in as this user; the password is read from the terminal or standard input
    #[arg(long, value_name = "EMAIL")]
    user: Option<String>,
    #[command(flatten)]
    settings: SettingArgs,
}

pub(super) fn run(
    args: StatusArgs,
    environment: Vec<(OsString, OsString)>,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let token = token_of(&environment)?;
    let (loaded, nodes) = args.settings.load_each(environment)?;
    let config = &loaded.config;
    let status = crate::cli::with_tool(config, async {
        let token = match (token, args.user) {
            (Some(token), _) => token,
            (None, Some(email)) => {
                let front = front(args.url.as_deref(), &loaded, &nodes)?;
                ask::login(&front, &email, &password::read_known()?).await?
            }
            (None, None) => return of_database(config).await,
        };
        let front = front(args.url.as_deref(), &loaded, &nodes)?;
        let body = ask::get(&front, "/cluster", &token).await?;
        serde_json::from_slice(&body)
            .map_err(|error| Failure::new(Exit::Failed, format!("{front} answers no status: {error}")))
    })?;
    if args.json {
        let text = serde_json::to_string_pretty(&status)
            .map_err(|error| Failure::new(Exit::Failed, error.to_string()))?;
        return Ok(writeln!(out, "{text}")?);
    }
    Ok(out.write_all(table::render(&status).as_bytes())?)
}

fn token_of(environment: &[(OsString, OsString)]) -> Result<Option<String>, Failure> {
    let named = environment.iter().find(|(name, value)| name == TOKEN_VARIABLE && !value.is_empty());
    let Some((_, token)) = named else { return Ok(None) };
    // The error does not quote the value, which is a secret.
    let told =
        || Failure::new(Exit::Usage, format!("{TOKEN_VARIABLE}: no token; one is a single word of ASCII"));
    let token = token.to_str().ok_or_else(told)?;
    let fits = token.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then(|| Some(token.to_owned())).ok_or_else(told)
}

/// Returns the address of a front.
fn front(url: Option<&str>, loaded: &Loaded, nodes: &[Loaded]) -> Result<ask::Origin, Failure> {
    if let Some(url) = url {
        return ask::Origin::parse(url);
    }
    let fronts = nodes.iter().map(|node| &node.config);
    let front = fronts.chain([&loaded.config]).find(|config| config.node.roles.contains(&Role::Front));
    let Some(front) = front else {
        return Err(Failure::new(
            Exit::Usage,
            "no front is configured here: --url http://HOST:PORT names one",
        ));
    };
    healthcheck::address(front).map(ask::Origin::from)
}

/// Builds the status from the file and the database, without asking a node.
async fn of_database(config: &Config) -> Result<ClusterStatus, Failure> {
    let of_file = config.cluster.nodes.iter().map(|node| NodeStatus {
        name: node.name.clone(),
        roles: node.roles.iter().copied().collect(),
        ..NodeStatus::default()
    });
    let mut status = ClusterStatus {
        cluster: config.is_clustered().then(|| config.cluster.name.clone()),
        nodes: of_file.collect(),
        unknown: vec![NOT_ASKED.to_owned()],
        ..ClusterStatus::default()
    };
    backend::ask_status(config, &mut status).await?;
    Ok(status)
}
