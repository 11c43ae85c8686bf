//! Rules that the types of the settings cannot express.

use super::node::{Node, Role};
use super::problem::{Error, Problem, is_secret, is_secret_url};
use super::tree::{Source, Value};
use super::{Loaded, cluster_rules};
use crate::auth;
use crate::domain::secret;

/// Keys whose rules apply only to a node that serves; `check_serving` checks them.
const ONLY_TO_SERVE: [&str; 3] = ["jwt_secret", "key_secret", "require_token"];

/// Checks the rules of single values, for every command.
pub(super) fn check_values(loaded: &Loaded) -> Result<(), Error> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    if config.data_dir.as_os_str().is_empty() {
        problems.push(loaded.problem("data_dir", "expected the path of a directory"));
    }
    if !Node::is_name(&config.node.name) {
        problems.push(loaded.problem("node.name", Node::name_rule()));
    }
    if config.node.roles.is_empty() {
        problems.push(loaded.problem("node.roles", Role::at_least_one()));
    }
    if !(1..=86_400_000).contains(&config.node.clock_skew_max_ms) {
        problems.push(loaded.problem("node.clock_skew_max_ms", "allowed: 1 to 86400000"));
    }
    problems.extend(cluster_rules::check_values(loaded));
    let sections = [
        ("http", config.http.problems()),
        ("grpc", config.grpc.problems()),
        ("store", config.store.problems()),
        ("kafka", config.kafka.problems()),
        ("auth", config.auth.problems(config.is_embedded_demo())),
        ("audit", config.audit.problems()),
        ("actors", config.actors.problems()),
        ("link", config.link.problems()),
        ("relay", config.relay.problems()),
        ("bridge", config.bridge.problems()),
        ("analytics", config.analytics.problems()),
    ];
    for (section, found) in sections {
        for (key, reason) in found.into_iter().filter(|(key, _)| !ONLY_TO_SERVE.contains(key)) {
            problems.push(loaded.problem(&format!("{section}.{key}"), format!("allowed: {reason}")));
        }
    }
    for (key, reason) in config.telemetry.problems() {
        problems.push(loaded.problem(&format!("telemetry.{key}"), reason));
    }
    problems.extend(check_secrets(loaded));
    refuse(problems)
}

/// Checks the rules that all secrets share. Each section checks the length of its own secrets.
fn check_secrets(loaded: &Loaded) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (key, node) in loaded.tree.leaves() {
        let (Value::Text(text) | Value::Untyped(text)) = &node.value else { continue };
        // A password may begin with a blank that was typed. In a file, a blank may be there by accident.
        let is_seen = key.ends_with("password") && !matches!(node.source, Source::Content { .. });
        if (is_secret(&key) || is_secret_url(&key))
            && !is_seen
            && let Some(reason) = secret::stray_ends(text)
        {
            problems.push(loaded.problem(&key, reason));
        } else if key.ends_with("secret")
            && text.len() >= secret::SECRET_BYTES_MIN
            && let Some(reason) = secret::weakness(text)
        {
            problems.push(loaded.problem(&key, reason));
        }
    }
    problems
}

/// Checks the rules between sections, for a node that serves.
pub(super) fn check_serving(loaded: &Loaded) -> Result<(), Error> {
    let config = &loaded.config;
    let mut problems = Vec::new();
    if config.node.roles.contains(&Role::Front)
        && let Err(reason) = config.auth.check_first_admin()
    {
        problems.push(loaded.problem("auth.first_admin_email", reason));
    }
    let checks_tokens = [Role::Front, Role::Billing].iter().any(|role| config.node.roles.contains(role));
    match config.auth.check_secret() {
        Err(auth::Error::SecretTooShort { key, bytes }) => {
            let reason = format!(
                "at least 32 bytes are needed, and it has {bytes} (base64 is decoded first); \
                 `openssl rand -base64 48` makes some"
            );
            problems.push(loaded.problem(&format!("auth.{key}"), reason));
        }
        Err(auth::Error::SecretMissing) if checks_tokens && !config.is_embedded_demo() => {
            let reason = "not set, and auth.token_algorithm is HS256; set HYGEIA__AUTH__JWT_SECRET, or HYGEIA__AUTH__JWT_SECRET_FILE to a file that \
                          holds it (only a node with the embedded database and broker on loopback makes its own)";
            problems.push(loaded.problem("auth.jwt_secret", reason));
        }
        _ => {}
    }
    let audits =
        [Role::Front, Role::Patient, Role::Billing].iter().any(|role| config.node.roles.contains(role));
    if audits && config.audit.enabled && config.audit.secret.is_none() && !config.is_embedded_demo() {
        let reason = "not set; set HYGEIA__AUDIT__SECRET, or HYGEIA__AUDIT__SECRET_FILE to a file that holds it: at \
                      least 32 bytes, such as `openssl rand -base64 48` makes (only a node with the embedded database \
                      and broker on loopback makes its own)";
        problems.push(loaded.problem("audit.secret", reason));
    }
    if !config.grpc.require_token && !config.grpc.listen.ip().is_loopback() {
        let reason =
            format!("allowed only if grpc.listen is a loopback address, and it is {}", config.grpc.listen);
        problems.push(loaded.problem("grpc.require_token", reason));
    }
    problems.extend(cluster_rules::check_serving(loaded));
    refuse(problems)
}

fn refuse(problems: Vec<Problem>) -> Result<(), Error> {
    if problems.is_empty() { Ok(()) } else { Err(Error { problems }) }
}
