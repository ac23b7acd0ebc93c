//! The command line: `braid` serves; the other commands talk to the broker that runs over the same data directory.

use crate::control::{self, Ask};
use crate::owner::Change;
use crate::settings::{self, Given, Listen, Settings};
use crate::{http, run};
use clap::{Parser, Subcommand};
use serde_json::Value;
use std::net::ToSocketAddrs;
use std::path::PathBuf;

#[derive(Parser, Debug)]
#[command(name = "braid", version, about = "A message broker: one log, several protocols")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub flags: Flags,
}

#[derive(clap::Args, Clone, Debug, Default)]
pub struct Flags {
    /// The settings file [default: braid.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub given: Given,
}

// Where the broker to talk to lives. Not a doc comment: clap would show it as the subcommand's own.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct Place {
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The broker's data directory [default: ./data]
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the broker (the default)
    Serve(Box<Flags>),
    /// Show what the running broker does
    Status(#[command(flatten)] Place),
    /// Ask the broker whether it is ready: ends with 0 if it is, for health checks
    Ready(Box<Flags>),
    /// Users and their passwords
    User {
        #[command(subcommand)]
        verb: UserVerb,
        #[command(flatten)]
        place: Place,
    },
    /// Virtual hosts
    Vhost {
        #[command(subcommand)]
        verb: VhostVerb,
        #[command(flatten)]
        place: Place,
    },
    /// What a user may configure, write and read in a vhost (regular expressions)
    Permission {
        #[command(subcommand)]
        verb: PermissionVerb,
        #[command(flatten)]
        place: Place,
    },
    /// Arguments for all queues and exchanges whose name matches
    Policy {
        #[command(subcommand)]
        verb: PolicyVerb,
        #[command(flatten)]
        place: Place,
    },
    /// RabbitMQ's definitions file
    Definitions {
        #[command(subcommand)]
        verb: DefinitionsVerb,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Subcommand, Debug)]
pub enum UserVerb {
    /// Add a user, or change one; without PASSWORD it is read from standard input
    #[command(visible_alias = "add")]
    Set {
        user: String,
        password: Option<String>,
        /// `administrator`, `monitoring`, …; may be repeated
        #[arg(long = "tag")]
        tags: Option<Vec<String>>,
    },
    Delete {
        user: String,
    },
    List,
}

#[derive(Subcommand, Debug)]
pub enum VhostVerb {
    #[command(visible_alias = "set")]
    Add {
        vhost: String,
    },
    Delete {
        vhost: String,
    },
    List,
}

#[derive(Subcommand, Debug)]
pub enum PermissionVerb {
    #[command(visible_alias = "add")]
    Set {
        user: String,
        #[arg(default_value = ".*")]
        configure: String,
        #[arg(default_value = ".*")]
        write: String,
        #[arg(default_value = ".*")]
        read: String,
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    Delete {
        user: String,
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    List {
        #[arg(long)]
        user: Option<String>,
        #[arg(long)]
        vhost: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub enum PolicyVerb {
    /// DEFINITION is a JSON object, like '{"max-length": 1000}'
    #[command(visible_alias = "add")]
    Set {
        name: String,
        pattern: String,
        definition: String,
        #[arg(long, default_value = "/")]
        vhost: String,
        #[arg(long, default_value_t = 0)]
        priority: i64,
        /// `queues`, `classic_queues`, `quorum_queues`, `streams`, `exchanges` or `all`
        #[arg(long, default_value = "all")]
        apply_to: String,
    },
    Delete {
        name: String,
        #[arg(long, default_value = "/")]
        vhost: String,
    },
    List {
        #[arg(long)]
        vhost: Option<String>,
    },
}

#[derive(Subcommand, Debug)]
pub enum DefinitionsVerb {
    Import { file: PathBuf },
    Export,
}

/// What is to be done.
pub enum Job {
    Serve(Box<Settings>),
    Ready(Box<Settings>),
    Ask { ask: Ask, data_dir: PathBuf, json: bool },
}

pub fn parse(cli: Cli) -> Result<Job, String> {
    let (ask, place) = match cli.command {
        None => return serve(cli.flags),
        Some(Command::Serve(flags)) => return serve(*flags),
        Some(Command::Ready(flags)) => return Ok(Job::Ready(Box::new(load(&flags)?))),
        Some(Command::Status(place)) => (Ask::Status { status: true }, place),
        Some(Command::User { verb, place }) => (Ask::Change(user(verb)?), place),
        Some(Command::Vhost { verb, place }) => (Ask::Change(vhost(verb)), place),
        Some(Command::Permission { verb, place }) => (Ask::Change(permission(verb)), place),
        Some(Command::Policy { verb, place }) => (Ask::Change(policy(verb)?), place),
        Some(Command::Definitions { verb, place }) => (Ask::Change(definitions(verb)?), place),
    };
    // The data directory may stand before the command as well: `braid --data-dir D status`.
    let data_dir = place.data_dir.or(cli.flags.given.data_dir);
    let flags = Flags { config: place.config.or(cli.flags.config), given: Given { data_dir, ..Given::default() } };
    let settings = load(&flags)?;
    Ok(Job::Ask { ask, data_dir: settings.data_dir, json: place.json })
}

fn serve(flags: Flags) -> Result<Job, String> {
    Ok(Job::Serve(Box::new(load(&flags)?)))
}

fn load(flags: &Flags) -> Result<Settings, String> {
    settings::load(&flags.given, flags.config.as_deref(), std::env::vars())
}

fn user(verb: UserVerb) -> Result<Change, String> {
    Ok(match verb {
        UserVerb::Set { user, password, tags } => {
            let password = password.map_or_else(password_from_input, Ok)?;
            Change::SetUser { user, password, tags }
        }
        UserVerb::Delete { user } => Change::DeleteUser { user },
        UserVerb::List => Change::ListUsers,
    })
}

fn password_from_input() -> Result<String, String> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).map_err(|error| error.to_string())?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        Err("a password is needed, as an argument or a line of standard input".into())
    } else {
        Ok(password.into())
    }
}

fn vhost(verb: VhostVerb) -> Change {
    match verb {
        VhostVerb::Add { vhost } => Change::SetVhost { vhost },
        VhostVerb::Delete { vhost } => Change::DeleteVhost { vhost },
        VhostVerb::List => Change::ListVhosts,
    }
}

fn permission(verb: PermissionVerb) -> Change {
    match verb {
        PermissionVerb::Set { user, configure, write, read, vhost } => {
            Change::SetPermission { user, vhost, configure, write, read }
        }
        PermissionVerb::Delete { user, vhost } => Change::DeletePermission { user, vhost },
        PermissionVerb::List { user, vhost } => Change::ListPermissions { user, vhost },
    }
}

fn policy(verb: PolicyVerb) -> Result<Change, String> {
    Ok(match verb {
        PolicyVerb::Set { name, pattern, definition, vhost, priority, apply_to } => {
            let definition =
                serde_json::from_str(&definition).map_err(|error| format!("the definition is not JSON: {error}"))?;
            Change::SetPolicy { vhost, name, pattern, apply_to, priority, definition }
        }
        PolicyVerb::Delete { name, vhost } => Change::DeletePolicy { vhost, name },
        PolicyVerb::List { vhost } => Change::ListPolicies { vhost },
    })
}

fn definitions(verb: DefinitionsVerb) -> Result<Change, String> {
    Ok(match verb {
        DefinitionsVerb::Import { file } => {
            let definitions = std::fs::read_to_string(&file).map_err(|error| format!("{}: {error}", file.display()))?;
            Change::Import { definitions }
        }
        DefinitionsVerb::Export => Change::Export,
    })
}

/// Asks `/readyz` of the broker that runs over the data directory, or of the configured address if none is announced there.
pub fn ready(settings: &Settings) -> Result<(), String> {
    let configured = || match &settings.http {
        Listen::Off => Err("http is off: nobody can be asked".into()),
        Listen::At { host, port } => {
            let host = host.as_deref().unwrap_or("127.0.0.1");
            let found = (host, *port).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?.next();
            found.ok_or_else(|| format!("{host} has no address"))
        }
    };
    let address = run::announced(&settings.data_dir, "http").map_or_else(configured, Ok)?;
    http::ask_ready(run::from_here(address)).map_err(|error| format!("{address}: {error}"))
}

/// Asks the running broker and answers what is to be printed.
pub fn ask(ask: &Ask, data_dir: &std::path::Path, json: bool) -> Result<String, String> {
    let value = control::ask(data_dir, ask)?;
    Ok(if json || matches!(ask, Ask::Change(Change::Export)) {
        format!("{value:#}")
    } else if let Ask::Status { .. } = ask {
        status(&value)
    } else {
        table(&value)
    })
}

/// A list of objects, one a line, columns side by side; anything else as it is.
fn table(value: &Value) -> String {
    let Value::Array(rows) = value else {
        let says_nothing = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
        let is_silent = says_nothing(value) || value.as_object().is_some_and(|facts| facts.values().all(says_nothing));
        return if is_silent { String::new() } else { format!("{value:#}") };
    };
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    // What a row is about stands first.
    columns.sort_by_key(|column| !matches!(*column, "user" | "name" | "vhost"));
    let head = columns.iter().map(|column| column.to_string()).collect();
    let cells = rows.iter().map(|row| columns.iter().map(|column| cell(row.get(column))).collect());
    aligned(&std::iter::once(head).chain(cells).collect::<Vec<Vec<String>>>())
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(items)) => items.iter().map(|item| cell(Some(item))).collect::<Vec<_>>().join(","),
        Some(other) => other.to_string(),
    }
}

fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn status(value: &Value) -> String {
    let mut rows = Vec::new();
    for (key, fact) in value.as_object().into_iter().flatten().filter(|(key, _)| *key != "figures") {
        match fact {
            Value::Object(parts) => {
                rows.extend(parts.iter().map(|(part, fact)| vec![format!("{key} {part}"), cell(Some(fact))]))
            }
            fact => rows.push(vec![key.clone(), cell(Some(fact))]),
        }
    }
    for figure in value["figures"].as_array().into_iter().flatten() {
        let labels = figure["labels"].as_str().unwrap_or("");
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        rows.push(vec![
            format!("{}{labels}", figure["name"].as_str().unwrap_or("")),
            figure["value"].as_f64().unwrap_or(0.0).to_string(),
        ]);
    }
    aligned(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_work_with_and_without_the_word_serve() {
        for words in
            [&["braid", "--data-dir", "/d", "--amqp", "off"][..], &["braid", "serve", "--data-dir", "/d", "--amqp", "off"]]
        {
            let Job::Serve(settings) = parse(Cli::parse_from(words)).unwrap() else { panic!() };
            assert_eq!((settings.data_dir, settings.amqp), ("/d".into(), settings::Listen::Off));
        }
        assert!(Cli::try_parse_from(["braid", "--mqtt", "1883"]).is_err(), "what is not built is not accepted");
    }

    #[test]
    fn a_policy_becomes_a_change() {
        let words = ["braid", "policy", "set", "p", "^q", "{\"max-length\": 5}", "--data-dir", "/d"];
        let Job::Ask { ask: Ask::Change(Change::SetPolicy { definition, vhost, .. }), data_dir, .. } =
            parse(Cli::parse_from(words)).unwrap()
        else {
            panic!()
        };
        assert_eq!((definition["max-length"].as_i64(), vhost.as_str(), data_dir), (Some(5), "/", "/d".into()));
    }

    #[test]
    fn lists_are_printed_side_by_side() {
        let users = serde_json::json!([{"name": "ann", "tags": ["administrator", "x"]}, {"name": "guest"}]);
        assert_eq!(table(&users), "name   tags\nann    administrator,x\nguest");
    }
}
