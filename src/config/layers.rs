//! The layers of settings: a file, the environment, arguments. Each layer is read into a tree; a later layer
//! overrides an earlier one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use super::chosen;
use super::host;
use super::problem::{Problem, holds_password, is_secret, is_secret_url};
use super::tree::{Node, Source, Value};

/// Maximum size of a configuration file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Maximum size of a file with a secret.
pub(super) const SECRET_FILE_BYTES_MAX: u64 = 64 * 1024;

/// The prefix of variables that set a key.
const PREFIX: &str = "HYGEIA__";

/// The common prefix of all our variables.
const START: &str = "HYGEIA";

/// The variable that names the configuration file, if no argument does.
pub const FILE_VARIABLE: &str = "HYGEIA_CONFIG";

/// The variable for `telemetry.filter`, which has a short name because it is set often.
const LOG_VARIABLE: (&str, &str) = ("HYGEIA_LOG", "telemetry.filter");

/// All inputs of the configuration. Nothing else of the process affects it.
#[derive(Clone, Debug, Default)]
pub struct Inputs {
    /// The configuration file, if one is named.
    pub file: Option<PathBuf>,
    /// The whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// The arguments that set a key.
    pub arguments: Vec<Argument>,
    /// The node of the file to run, if an argument chooses one.
    pub node: Option<String>,
    /// The name of this host, which replaces `{host}`.
    pub host: Option<String>,
}

/// An argument that sets a key.
#[derive(Clone, Debug)]
pub struct Argument {
    /// The argument as given, such as `--http-listen`.
    pub name: String,
    /// The key, as `section.key`.
    pub key: String,
    /// The value as text.
    pub value: String,
}

/// The layers as trees, with secrets read from their files.
pub(super) struct Layers {
    /// The tree of the file, without the overrides of its nodes.
    pub(super) file: Node,
    environment: Node,
    arguments: Node,
    /// The chosen node of the file, with the source of the choice.
    pub(super) chosen: Option<(String, Source)>,
    /// Variables with our prefix that are no settings.
    pub(super) ignored: Vec<String>,
}

/// How to treat files that hold secrets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Secrets {
    /// Read their contents.
    Read,
    /// Leave them out: they belong to another node, and may be on another machine.
    Leave,
}

impl Layers {
    pub(super) fn read(inputs: &Inputs) -> Result<Self, Problem> {
        let mut file = match &inputs.file {
            Some(path) => contents(file(path)?, Secrets::Read)?,
            None => nothing(),
        };
        let mut environment = contents(environment(&inputs.environment)?, Secrets::Read)?;
        let mut arguments = contents(arguments(&inputs.arguments)?, Secrets::Read)?;
        for tree in [&mut file, &mut environment, &mut arguments] {
            host::put(tree, inputs.host.as_deref())?;
        }
        let ignored = ignored(&inputs.environment);
        Ok(Layers { file, environment, arguments, chosen: chosen::name(inputs)?, ignored })
    }

    /// Merges all layers for the chosen node.
    pub(super) fn merged(&self) -> Result<Node, Problem> {
        let patch = self.chosen.as_ref().map(|(name, by)| chosen::patch(&self.file, name, by, Secrets::Read));
        self.over(patch.transpose()?)
    }

    /// Merges all layers for the node `name` of the file, without the secret files of its own entry.
    pub(super) fn of_node(&self, name: &str) -> Result<Node, Problem> {
        chosen::patch(&self.file, name, &self.file.source, Secrets::Leave)
            .and_then(|patch| self.over(Some(patch)))
    }

    fn over(&self, patch: Option<Node>) -> Result<Node, Problem> {
        let mut tree = nothing();
        let layers = [Some(&self.file), patch.as_ref(), Some(&self.environment), Some(&self.arguments)];
        layers.into_iter().flatten().try_for_each(|layer| tree.overlay(layer.clone()))?;
        Ok(tree)
    }
}

fn nothing() -> Node {
    Node::empty(Source::Argument("(none)".to_owned()))
}

fn file(path: &Path) -> Result<Node, Problem> {
    let text = read_text(path, FILE_BYTES_MAX).map_err(|reason| {
        Problem::general(None, format!("the configuration file {} cannot be read: {reason}", path.display()))
    })?;
    parse(path, &text)
}

/// Parses `text`, the content of the file `path`.
pub(super) fn parse(path: &Path, text: &str) -> Result<Node, Problem> {
    let source_at = |offset: usize| Source::File { path: path.to_owned(), line: line_of(text, offset) };
    let table = DeTable::parse(text).map_err(|error| {
        // Only the message: the full error would quote the line, which may hold a secret.
        let source = source_at(error.span().map_or(0, |span| span.start));
        Problem::general(Some(source), format!("not TOML: {}", error.message()))
    })?;
    let mut root = Node::empty(source_at(0));
    root.value = of_table(table.get_ref(), &source_at)?;
    Ok(root)
}

fn of_table(table: &DeTable<'_>, source_at: &dyn Fn(usize) -> Source) -> Result<Value, Problem> {
    let mut nodes = BTreeMap::new();
    for (key, value) in table {
        let source = source_at(key.span().start);
        let name = key.get_ref();
        let value = of_value(value.get_ref(), source_at).map_err(|problem| Problem {
            key: if problem.key.is_empty() { name.to_string() } else { format!("{name}.{}", problem.key) },
            source: problem.source.or_else(|| Some(source.clone())),
            ..problem
        })?;
        nodes.insert(key.get_ref().to_string(), Node { value, source });
    }
    Ok(Value::Table(nodes))
}

fn of_value(value: &DeValue<'_>, source_at: &dyn Fn(usize) -> Source) -> Result<Value, Problem> {
    let unfit = |what: &str| Problem::general(None, format!("{what} does not fit any setting"));
    Ok(match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(b) => Value::Bool(*b),
        DeValue::Integer(n) => {
            let parsed = i64::from_str_radix(n.as_str(), n.radix());
            Value::Integer(parsed.map_err(|_| unfit("so large a number"))?)
        }
        DeValue::Float(n) => Value::Float(n.as_str().parse().map_err(|_| unfit("this number"))?),
        DeValue::Datetime(at) => Value::Text(at.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| {
                    let source = source_at(item.span().start);
                    of_value(item.get_ref(), source_at).map(|value| Node { value, source })
                })
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => of_table(table, source_at)?,
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|b| **b == b'\n').count()
}

fn environment(variables: &[(OsString, OsString)]) -> Result<Node, Problem> {
    let mut tree = Node::empty(Source::Environment(PREFIX.to_owned()));
    let mut variables: Vec<_> =
        variables.iter().filter_map(|(name, value)| Some((name.to_str()?, value))).collect();
    variables.sort_unstable();
    for (name, value) in variables {
        let source = Source::Environment(name.to_owned());
        let key = match name.strip_prefix(PREFIX) {
            Some(key) => key.split("__").map(str::to_ascii_lowercase).collect::<Vec<_>>().join("."),
            None if name == LOG_VARIABLE.0 => LOG_VARIABLE.1.to_owned(),
            // HYGEIA_SECTION__KEY lacks an underscore after HYGEIA and would otherwise be ignored silently.
            // Other variables with that prefix are allowed: orchestrators set variables named after a service
            // (HYGEIA_PORT).
            None if name.starts_with("HYGEIA_") && name.contains("__") => {
                let meant = name.replacen("HYGEIA_", PREFIX, 1);
                return Err(Problem::general(Some(source), format!("no such setting; is {meant} meant?")));
            }
            None => continue,
        };
        let Some(value) = value.to_str() else {
            return Err(Problem { key, ..Problem::general(Some(source), "the value is not UTF-8") });
        };
        if key.split('.').any(str::is_empty) {
            let reason = "no such setting; the form is HYGEIA__SECTION__KEY";
            return Err(Problem::general(Some(source), reason));
        }
        if let Some(other) = tree.get(&key) {
            let reason = format!("set twice, also by {}", other.source);
            return Err(Problem { key, ..Problem::general(Some(source), reason) });
        }
        tree.set(&key, Node { value: Value::Untyped(value.to_owned()), source })?;
    }
    Ok(tree)
}

/// Returns variables with our prefix that set nothing. Leaves out variables that an orchestrator derives from
/// the name of a service.
fn ignored(variables: &[(OsString, OsString)]) -> Vec<String> {
    let known = [FILE_VARIABLE, chosen::NODE_VARIABLE, LOG_VARIABLE.0];
    let named = variables.iter().map(|(name, value)| (name.to_string_lossy(), value.to_string_lossy()));
    let ours = named.filter(|(name, _)| name.to_ascii_uppercase().starts_with(START));
    let unknown = ours.filter(|(name, value)| {
        let of_service = name.contains("_SERVICE_HOST")
            || name.contains("_SERVICE_PORT")
            || name.contains("_PORT_")
            || ["tcp://", "udp://"].iter().any(|scheme| value.starts_with(scheme));
        !name.starts_with(PREFIX) && !known.contains(&name.as_ref()) && !of_service
    });
    let mut unknown: Vec<String> = unknown.map(|(name, _)| name.into_owned()).collect();
    unknown.sort_unstable();
    unknown
}

fn arguments(arguments: &[Argument]) -> Result<Node, Problem> {
    let mut tree = nothing();
    for argument in arguments {
        let source = Source::Argument(argument.name.clone());
        if argument.key.split('.').any(str::is_empty) {
            return Err(Problem::general(Some(source), "the form is --set section.key=value"));
        }
        let node = Node { value: Value::Untyped(argument.value.clone()), source };
        if is_secret(&argument.key) || holds_password(&argument.key, &node.value) {
            let variable = argument.key.to_ascii_uppercase().replace('.', "__");
            let reason = format!(
                "every process can read a command line; use the variable {PREFIX}{variable} or {PREFIX}{variable}_FILE"
            );
            return Err(Problem { key: argument.key.clone(), ..Problem::general(Some(node.source), reason) });
        }
        tree.set(&argument.key, node)?;
    }
    Ok(tree)
}

/// Replaces each `<key>_file` of a secret key by the content of the named file.
pub(super) fn contents(mut tree: Node, secrets: Secrets) -> Result<Node, Problem> {
    let named: Vec<String> = tree
        .leaves()
        .into_iter()
        .filter_map(|(key, _)| key.strip_suffix("_file").map(str::to_owned))
        .filter(|key| is_secret(key) || is_secret_url(key))
        .collect();
    for key in named {
        let file_key = format!("{key}_file");
        let Some(named) = tree.remove(&file_key) else { continue };
        if secrets == Secrets::Leave {
            continue;
        }
        if let Some(other) = tree.get(&key) {
            let reason = format!("{key} is set as well, by {}: set one of them", other.source);
            return Err(Problem::of(&file_key, &named, reason));
        }
        let (Value::Text(path) | Value::Untyped(path)) = &named.value else {
            return Err(Problem::of(&file_key, &named, "expected the path of a file"));
        };
        let path = PathBuf::from(path);
        let content = read_text(&path, SECRET_FILE_BYTES_MAX)
            .map_err(|reason| Problem::of(&file_key, &named, format!("the file cannot be read: {reason}")))?;
        let content = line_of_secret(&content)
            .map_err(|reason| Problem::of(&file_key, &named, format!("the file cannot be used: {reason}")))?;
        let source = Source::Content { path, named_by: Box::new(named.source) };
        tree.set(&key, Node { value: Value::Untyped(content.to_owned()), source })?;
    }
    Ok(tree)
}

/// Returns the only line of a file or an input that holds a secret. Strips a leading byte order mark and the
/// final line end, which editors add. Blanks are kept.
///
/// # Errors
/// The content has no line, or more than one.
pub fn line_of_secret(content: &str) -> Result<&str, &'static str> {
    let line = content.strip_prefix('\u{feff}').unwrap_or(content);
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    match line {
        "" => Err("it is empty"),
        line if line.contains(['\n', '\r']) => Err("it has more than one line"),
        line => Ok(line),
    }
}

/// Reads a text file of at most `bytes_max` bytes.
pub(super) fn read_text(path: &Path, bytes_max: u64) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() as u64 > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())
}
