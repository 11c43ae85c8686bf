//! The command line: parses arguments, loads the configuration, starts telemetry, runs one command, and sets
//! the exit code.
//!
//! Standard output carries the result of a command (for `serve`: the log); standard error carries errors. A
//! secret is never an argument, because every process can read the arguments of others.

mod ask;
mod audit;
mod backend;
mod certs;
mod cluster;
mod core_dumps;
mod failure;
mod healthcheck;
mod keys;
mod output;
mod password;
mod provision;
mod serve;
mod settings;
mod topics;
mod trace;
mod user;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use self::failure::{Exit, Failure};
use self::settings::SettingArgs;
use crate::config;

const EXIT_CODES: &str = "\
Exit codes:
   0  done
   1  failed; standard error says why
  64  the arguments are wrong
  69  the database, the broker or the node is away
  78  the configuration is wrong";

/// A patient-management back end made of supervised actors.
#[derive(Debug, Parser)]
#[command(name = "hygeia", version, after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: serve::ServeArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the node (the default without a command)
    Serve(serve::ServeArgs),
    /// Run several nodes, or show their status
    #[command(subcommand)]
    Cluster(cluster::Command),
    /// Migrate the database schema, and create the first administrator if the settings name one
    Migrate(SettingArgs),
    /// Manage users
    #[command(subcommand)]
    User(user::Command),
    /// Verify, archive or show the access audit
    #[command(subcommand)]
    Audit(audit::Command),
    /// Manage the keys that sign tokens
    #[command(subcommand)]
    Keys(keys::Command),
    /// Print the OpenAPI document
    Openapi,
    /// Check the configuration and print the effective settings, with secrets hidden
    Check(SettingArgs),
    /// Create an authority and certificates for nodes, to try out a cluster with TLS
    Certs(certs::Args),
    /// Create the secrets and certificates of all nodes of a file, in one directory per node
    Provision(provision::Args),
    /// Wait for the broker and create the topics
    Topics(topics::Args),
    /// Check whether the running node is ready
    Healthcheck(SettingArgs),
    /// Draw the path of one request through the actors of all nodes, from their logs
    Trace(trace::TraceArgs),
}

/// Runs the program with the arguments and the environment of the process. Returns its exit code.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let environment: Vec<(OsString, OsString)> = std::env::vars_os().collect();
    let exit = match Args::try_parse_from(arguments) {
        Ok(args) => match run(args, environment) {
            Ok(()) => Exit::Done,
            Err(failure) => {
                failure.tell(&mut std::io::stderr());
                failure.exit
            }
        },
        Err(usage) => {
            // If even this cannot be printed, nothing is left to do.
            let _ = usage.print();
            if usage.use_stderr() { Exit::Usage } else { Exit::Done }
        }
    };
    ExitCode::from(exit.code())
}

fn run(args: Args, environment: Vec<(OsString, OsString)>) -> Result<(), Failure> {
    core_dumps::forbid()?;
    let mut out = output::Output::new(std::io::stdout());
    let load = |settings: SettingArgs| settings.load(environment.clone());
    match args.command.unwrap_or(Command::Serve(args.serve)) {
        Command::Serve(args) => {
            args.bind_to_parent()?;
            serve::run(load(args.settings)?)
        }
        Command::Cluster(command) => cluster::run(command, environment, &mut out),
        Command::Migrate(settings) => {
            let config = load(settings)?.config;
            let made = with_tool(&config, backend::migrate(&config))?;
            writeln!(out, "the database is up to date")?;
            if made {
                writeln!(out, "the first administrator was made")?;
            }
            Ok(())
        }
        Command::User(command) => {
            let (settings, action) = command.into_parts();
            let config = load(settings)?.config;
            with_tool(&config, async {
                let users = backend::open_users(&config).await?;
                user::run(&action, users.as_ref(), &password::read, &mut out).await
            })
        }
        Command::Audit(audit::Command::Verify(args)) => {
            let config = load(args.settings)?.config;
            let (report, archives) =
                with_tool(&config, backend::verify_audit(&config, &args.older.files, &args.archive))?;
            for (path, archive) in args.archive.iter().zip(&archives) {
                audit::tell_archive(archive, path, &mut out)?;
            }
            audit::tell(&report, args.heads, &mut out)
        }
        Command::Audit(audit::Command::Archive(args)) => {
            let config = load(args.settings)?.config;
            let archiving = backend::archive_audit(&config, &args.older.files, args.before, &args.out);
            let archive = with_tool(&config, archiving)?;
            audit::tell_archive(&archive, &args.out, &mut out)
        }
        Command::Audit(audit::Command::Show { file }) => audit::show(&file, &mut out),
        Command::Keys(command) => {
            let (settings, action) = command.into_parts();
            let config = load(settings)?.config;
            with_tool(&config, async {
                let keys = backend::open_keys(&config).await?;
                keys::run(&action, keys.as_ref(), &mut out).await
            })
        }
        Command::Openapi => Ok(writeln!(out, "{}", backend::openapi())?),
        Command::Check(settings) => check(settings, environment, &mut out),
        Command::Certs(args) => certs::run(&args, &mut out),
        Command::Provision(args) => provision::run(args, environment, &mut out),
        Command::Topics(args) => {
            let (settings, patience) = args.into_parts();
            let config = load(settings)?.config;
            let made = with_tool(&config, backend::make_topics(&config, patience))?;
            Ok(writeln!(out, "{made}")?)
        }
        Command::Healthcheck(settings) => {
            let config = load(settings)?.config;
            let answer = with_runtime(healthcheck::ask(&config))?;
            Ok(writeln!(out, "{answer}")?)
        }
        Command::Trace(args) => trace::run(&args, &mut out),
    }
}

fn check(
    settings: SettingArgs,
    environment: Vec<(OsString, OsString)>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let (loaded, nodes) = settings.load_each(environment)?;
    if nodes.is_empty() || !loaded.config.cluster.join.is_empty() {
        loaded.check()?;
    } else {
        config::check_all(&nodes)?;
    }
    Ok(out.write_all(loaded.effective().as_bytes())?)
}

/// Runs a short command, with its log on standard error.
fn with_tool<T>(
    config: &crate::config::Config,
    command: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    use crate::telemetry::{self, Output, Settings};
    let quiet = config.telemetry.filter == Settings::default().filter;
    let filter = if quiet { "warn".to_owned() } else { config.telemetry.filter.clone() };
    let settings = Settings { filter, ..config.telemetry.clone() };
    let (_telemetry, _guard) = telemetry::init(&settings, &config.node.name, Output::Stderr)?;
    with_runtime(command)
}

fn with_runtime<T>(command: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(command)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_arguments_are_well_defined_and_the_codes_are_told() {
        Args::command().debug_assert();
        for exit in Exit::ALL {
            assert!(EXIT_CODES.contains(&format!("{:>4}  ", exit.code())), "{exit:?}");
        }
    }

    #[test]
    fn no_command_is_serve_and_settings_stand_behind_the_command() {
        let parse = |line: &str| Args::try_parse_from(line.split(' '));
        assert!(parse("hygeia --http-listen 127.0.0.1:0").unwrap().command.is_none());
        assert!(parse("hygeia serve --http-listen 127.0.0.1:0 --set a.b=c --set d=e").is_ok());
        assert!(parse("hygeia --set a.b=c serve").is_err(), "it would be lost in silence");
        assert!(parse("hygeia user add a@b.c --role ADMIN").is_ok());
        assert!(parse("hygeia user add a@b.c").is_err(), "nobody becomes ADMIN unasked");
        assert!(parse("hygeia user add a@b.c --role ADMIN hunter2").is_err(), "a password is no argument");
        assert!(parse("hygeia user add a@b.c --role NURSE").is_err());
    }
}
