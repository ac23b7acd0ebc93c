//! Settings: flags beat `BRAID_…` variables beat `braid.toml` beat defaults.
//!
//! Each key stands once, in [`Given`]: its flag is `--data-dir`, its variable `BRAID_DATA_DIR`, its line in the file
//! `data_dir = …`. What was given becomes [`Settings`], which has no gaps.

use crate::limits;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Everything that may be given, as it was given.
#[derive(clap::Args, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Given {
    /// Where everything is kept [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// AMQP listener: `host:port`, `port`, or `off`; port 0 takes a free one [default: 5672]
    #[arg(long, value_name = "ADDR")]
    pub amqp: Option<Scalar>,
    /// AMQP over TLS [default: 5671 when a certificate is configured]
    #[arg(long, value_name = "ADDR")]
    pub amqps: Option<Scalar>,
    /// Health and metrics [default: 15672]
    #[arg(long, value_name = "ADDR")]
    pub http: Option<Scalar>,
    /// A RabbitMQ definitions file, loaded at start and again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub definitions: Option<PathBuf>,
    /// `text` or `json` [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// `error`, `warn`, `info`, `debug` or `trace` [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Threads that serve sockets [default: 2]
    #[arg(long, value_name = "COUNT")]
    pub workers: Option<Scalar>,

    /// Certificate chain, PEM; read again on SIGHUP
    #[arg(long, value_name = "FILE")]
    pub tls_certificate: Option<PathBuf>,
    /// Private key, PEM
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// Who signs client certificates, PEM; without it clients show none
    #[arg(long, value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// The first user of an empty data directory; listeners then open beyond loopback. Not a flag: other users of the machine
    /// can read command lines.
    #[arg(skip)]
    pub default_user: Option<String>,
    #[arg(skip)]
    pub default_pass: Option<String>,
    #[arg(skip)]
    pub default_vhost: Option<String>,
    /// The user that clients without credentials become, from anywhere
    #[arg(long, value_name = "USER")]
    pub anonymous_user: Option<String>,

    #[arg(long, value_name = "COUNT", hide_short_help = true, help = "[default: 10000]")]
    pub connections_max: Option<Scalar>,
    #[arg(long, value_name = "COUNT", hide_short_help = true, help = "Loopback excepted [default: 500]")]
    pub connections_per_address_max: Option<Scalar>,
    #[arg(long, value_name = "COUNT", hide_short_help = true, help = "Not authenticated yet [default: 1024]")]
    pub half_open_max: Option<Scalar>,
    #[arg(long, value_name = "SIZE", hide_short_help = true, help = "[default: 16MiB]")]
    pub message_bytes_max: Option<Scalar>,
    #[arg(long, value_name = "SIZE", hide_short_help = true, help = "Publishers stop above it [default: 0.6 of the memory]")]
    pub memory_limit: Option<Scalar>,
    #[arg(
        long,
        value_name = "SIZE",
        hide_short_help = true,
        help = "Publishers stop below it [default: 1GiB, or 5 % of the disk if more]"
    )]
    pub disk_free_limit: Option<Scalar>,

    #[arg(long, value_name = "NAME", hide_short_help = true, help = "What clients are told they talk to")]
    pub product: Option<String>,
    #[arg(long, value_name = "VERSION", hide_short_help = true, help = "The version that goes with it")]
    pub product_version: Option<String>,
    #[arg(long, value_name = "NAME", hide_short_help = true, help = "[default: braid@ and the host's name]")]
    pub cluster_name: Option<String>,
}

/// A number, a size or an address: in the file with or without quotes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Scalar(pub String);

impl std::str::FromStr for Scalar {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Scalar, Self::Err> {
        Ok(Scalar(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Scalar {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Scalar, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Scalar;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a number, a size or an address")
            }
            fn visit_str<E>(self, text: &str) -> Result<Scalar, E> {
                Ok(Scalar(text.to_owned()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Scalar, E> {
                Ok(Scalar(number.to_string()))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(clap::ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// Where to listen. A missing host is decided at start: loopback, until a user other than guest exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Off,
    At { host: Option<String>, port: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub client_ca: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultUser {
    pub user: String,
    pub password: String,
    pub vhost: String,
}

/// Where settings were read, besides the environment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Source {
    flags: Given,
    file: Option<PathBuf>,
}

/// What is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub source: Source,
    pub data_dir: PathBuf,
    pub amqp: Listen,
    pub amqps: Listen,
    pub http: Listen,
    pub definitions: Option<PathBuf>,
    pub log_format: LogFormat,
    pub log_level: tracing::level_filters::LevelFilter,
    pub workers: usize,
    pub tls: Option<TlsFiles>,
    pub default_user: Option<DefaultUser>,
    pub anonymous_user: Option<String>,
    pub connections_max: usize,
    pub connections_per_address_max: usize,
    pub half_open_max: usize,
    pub message_bytes_max: usize,
    pub memory_limit: Option<u64>,
    pub disk_free_limit: Option<u64>,
    /// `None`: what the protocol says by default.
    pub product: Option<String>,
    pub product_version: Option<String>,
    pub cluster_name: String,
}

/// Everything wrong with the settings is a sentence for the person who wrote them.
pub type Wrong = String;

/// Puts the layers on top of each other. `file` is the path given by `--config` or `BRAID_CONFIG`; without one,
/// `braid.toml` is read if it is there.
pub fn load(
    flags: &Given,
    file: Option<&Path>,
    environment: impl Iterator<Item = (String, String)>,
) -> Result<Settings, Wrong> {
    let environment: Vec<(String, String)> = environment.collect();
    let from_environment = environment.iter().find(|(name, _)| name == "BRAID_CONFIG").map(|(_, value)| PathBuf::from(value));
    let text = match file.map(Path::to_owned).or(from_environment) {
        Some(path) => Some((read(&path)?, path)),
        None => {
            let path = PathBuf::from("braid.toml");
            if path.exists() { Some((read(&path)?, path)) } else { None }
        }
    };
    let mut layers = config::Config::builder();
    if let Some((text, path)) = &text {
        // `config` forgets lines; so the file is checked by itself first, and the error names the line.
        toml::from_str::<Given>(text).map_err(|error| format!("{}: {}", path.display(), error.to_string().trim_end()))?;
        layers = layers.add_source(config::File::from_str(text, config::FileFormat::Toml));
    }
    for (key, value) in known_variables(&environment).into_iter().chain(given_flags(flags)) {
        layers = layers.set_override(&key, value).map_err(|error| error.to_string())?;
    }
    let merged = layers.build().map_err(|error| error.to_string())?;
    let source = Source { flags: flags.clone(), file: file.map(Path::to_owned) };
    resolve(source, merged.try_deserialize().map_err(|error| error.to_string())?)
}

impl Settings {
    /// What the same places say now.
    pub fn read_again(&self) -> Result<Settings, Wrong> {
        load(&self.source.flags, self.source.file.as_deref(), std::env::vars())
    }
}

/// All of them are strings at this point.
fn given_flags(flags: &Given) -> Vec<(String, String)> {
    let Ok(serde_json::Value::Object(fields)) = serde_json::to_value(flags) else { return Vec::new() };
    fields.into_iter().filter_map(|(key, value)| Some((key, value.as_str()?.to_owned()))).collect()
}

fn read(path: &Path) -> Result<String, Wrong> {
    std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// `BRAID_DATA_DIR` → `data_dir`. RabbitMQ's names for the first user are known too. Variables that we don't know are not an
/// error: unlike a file, the environment is shared with others (test runs have `BRAID_SEEDS`).
fn known_variables(environment: &[(String, String)]) -> Vec<(String, String)> {
    let keys = keys();
    let mut found: Vec<(String, String)> = Vec::new();
    for prefix in ["RABBITMQ_DEFAULT_", "BRAID_"] {
        for (name, value) in environment {
            let Some(key) = name.strip_prefix(prefix) else { continue };
            let key = key.to_ascii_lowercase();
            let key = if prefix == "RABBITMQ_DEFAULT_" { format!("default_{key}") } else { key };
            if keys.contains(&key) {
                found.retain(|(old, _)| *old != key);
                found.push((key, value.clone()));
            }
        }
    }
    found
}

/// Names of `BRAID_…` variables that mean nothing, to be mentioned in the log.
pub fn unknown_variables(environment: impl Iterator<Item = String>) -> Vec<String> {
    const OTHERS: [&str; 6] = ["config", "seed", "seeds", "tier", "bin", "binary"];
    let keys = keys();
    environment
        .filter(|name| {
            let key = name.strip_prefix("BRAID_").map(str::to_ascii_lowercase);
            key.is_some_and(|key| !keys.contains(&key) && !OTHERS.contains(&key.as_str()))
        })
        .collect()
}

fn keys() -> Vec<String> {
    match serde_json::to_value(Given::default()) {
        Ok(serde_json::Value::Object(fields)) => fields.keys().cloned().collect(),
        _ => Vec::new(),
    }
}

fn resolve(source: Source, given: Given) -> Result<Settings, Wrong> {
    let tls = match (given.tls_certificate, given.tls_key, given.tls_client_ca) {
        (Some(certificate), Some(key), client_ca) => Some(TlsFiles { certificate, key, client_ca }),
        (None, None, None) => None,
        _ => return Err("tls_certificate and tls_key belong together; tls_client_ca needs both".into()),
    };
    let amqps_default = if tls.is_some() { Listen::At { host: None, port: 5671 } } else { Listen::Off };
    let amqps = listen("amqps", given.amqps, amqps_default)?;
    if tls.is_none() && amqps != Listen::Off {
        return Err("amqps needs tls_certificate and tls_key".into());
    }
    let log_level = match given.log_level {
        Some(level) => level.parse().map_err(|_| format!("log_level: '{level}' is not a level"))?,
        None => tracing::level_filters::LevelFilter::INFO,
    };
    Ok(Settings {
        source,
        data_dir: given.data_dir.unwrap_or_else(|| "data".into()),
        amqp: listen("amqp", given.amqp, Listen::At { host: None, port: 5672 })?,
        amqps,
        http: listen("http", given.http, Listen::At { host: None, port: 15672 })?,
        definitions: given.definitions,
        log_format: given.log_format.unwrap_or_default(),
        log_level,
        workers: count("workers", given.workers, 2)?.max(1),
        tls,
        default_user: default_user(given.default_user, given.default_pass, given.default_vhost)?,
        anonymous_user: given.anonymous_user,
        connections_max: count("connections_max", given.connections_max, limits::CONNECTIONS_MAX)?,
        connections_per_address_max: count(
            "connections_per_address_max",
            given.connections_per_address_max,
            limits::CONNECTIONS_PER_ADDRESS_MAX,
        )?,
        half_open_max: count("half_open_max", given.half_open_max, limits::HALF_OPEN_MAX)?,
        message_bytes_max: size("message_bytes_max", given.message_bytes_max)?.unwrap_or(16 << 20) as usize,
        memory_limit: size("memory_limit", given.memory_limit)?,
        disk_free_limit: size("disk_free_limit", given.disk_free_limit)?,
        product: given.product,
        product_version: given.product_version,
        cluster_name: given.cluster_name.unwrap_or_else(|| format!("braid@{}", host_name())),
    })
}

fn default_user(user: Option<String>, password: Option<String>, vhost: Option<String>) -> Result<Option<DefaultUser>, Wrong> {
    match (user, password) {
        (Some(user), Some(password)) => Ok(Some(DefaultUser { user, password, vhost: vhost.unwrap_or_else(|| "/".into()) })),
        (None, None) if vhost.is_none() => Ok(None),
        _ => Err("default_user and default_pass belong together; default_vhost needs both".into()),
    }
}

fn listen(key: &str, given: Option<Scalar>, default: Listen) -> Result<Listen, Wrong> {
    let Some(Scalar(text)) = given else { return Ok(default) };
    if text == "off" {
        return Ok(Listen::Off);
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() => (Some(host.trim_matches(['[', ']']).to_owned()), port),
        Some((_, port)) => (None, port),
        None => (None, text.as_str()),
    };
    let port = port.parse().map_err(|_| format!("{key}: '{text}' is not host:port, a port, or off"))?;
    Ok(Listen::At { host, port })
}

fn count(key: &str, given: Option<Scalar>, default: usize) -> Result<usize, Wrong> {
    given.map_or(Ok(default), |Scalar(text)| text.parse().map_err(|_| format!("{key}: '{text}' is not a count")))
}

/// Bytes, with or without a unit: `1073741824`, `1GiB`, `500MB`.
fn size(key: &str, given: Option<Scalar>) -> Result<Option<u64>, Wrong> {
    let Some(Scalar(text)) = given else { return Ok(None) };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kib" | "k" => Some(1 << 10),
        "mib" | "m" => Some(1 << 20),
        "gib" | "g" => Some(1 << 30),
        "kb" => Some(1_000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        _ => None,
    };
    let bytes = number.parse::<u64>().ok().zip(factor).and_then(|(number, factor)| number.checked_mul(factor));
    bytes.map(Some).ok_or_else(|| format!("{key}: '{text}' is not a size like 512MiB"))
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "localhost".into() } else { name.trim().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> (PathBuf, impl Drop) {
        struct Remove(PathBuf);
        impl Drop for Remove {
            fn drop(&mut self) {
                let _ = std::fs::remove_file(&self.0);
            }
        }
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("braid-settings-{}-{number}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        (path.clone(), Remove(path))
    }

    fn with(flags: Given, text: &str, environment: &[(&str, &str)]) -> Result<Settings, Wrong> {
        let (path, _remove) = file(text);
        load(&flags, Some(&path), environment.iter().map(|(n, v)| (n.to_string(), v.to_string())))
    }

    #[test]
    fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
        let text = "amqp = 1000\nhttp = 1001\nlog_level = \"debug\"\nconnections_max = 7\n";
        let flags = Given { amqp: Some(Scalar("3000".into())), ..Given::default() };
        let settings = with(flags, text, &[("BRAID_AMQP", "2000"), ("BRAID_HTTP", "off")]).unwrap();
        assert_eq!(settings.amqp, Listen::At { host: None, port: 3000 });
        assert_eq!(settings.http, Listen::Off);
        assert_eq!(settings.log_level, tracing::level_filters::LevelFilter::DEBUG);
        assert_eq!((settings.connections_max, settings.half_open_max), (7, limits::HALF_OPEN_MAX));
        assert_eq!((settings.data_dir, settings.amqps), (PathBuf::from("data"), Listen::Off));
    }

    #[test]
    fn an_unknown_key_in_the_file_is_an_error_with_its_line() {
        let wrong = with(Given::default(), "amqp = 1\n\nampq = 2\n", &[]).unwrap_err();
        assert!(wrong.contains("line 3") && wrong.contains("ampq"), "{wrong}");
        let wrong = with(Given::default(), "log_format = \"xml\"\n", &[]).unwrap_err();
        assert!(wrong.contains("line 1"), "{wrong}");
    }

    #[test]
    fn the_first_user_comes_by_either_name() {
        let rabbit = [("RABBITMQ_DEFAULT_USER", "ann"), ("RABBITMQ_DEFAULT_PASS", "secret")];
        let user = with(Given::default(), "", &rabbit).unwrap().default_user.unwrap();
        assert_eq!((user.user.as_str(), user.vhost.as_str()), ("ann", "/"));
        let both = [("BRAID_DEFAULT_USER", "bob"), ("RABBITMQ_DEFAULT_USER", "ann"), ("BRAID_DEFAULT_PASS", "x")];
        assert_eq!(with(Given::default(), "", &both).unwrap().default_user.unwrap().user, "bob");
        assert!(with(Given::default(), "", &[("BRAID_DEFAULT_USER", "bob")]).is_err());
    }

    #[test]
    fn sizes_and_addresses_are_understood_or_named() {
        let settings = with(Given::default(), "memory_limit = \"512MiB\"\namqp = \"[::1]:5\"\n", &[]).unwrap();
        assert_eq!(settings.memory_limit, Some(512 << 20));
        assert_eq!(settings.amqp, Listen::At { host: Some("::1".into()), port: 5 });
        for (text, key) in
            [("memory_limit = \"much\"", "memory_limit"), ("amqp = \"here\"", "amqp"), ("workers = -1", "workers")]
        {
            assert!(with(Given::default(), text, &[]).unwrap_err().contains(key));
        }
        assert!(with(Given::default(), "amqps = 5671", &[]).unwrap_err().contains("tls_certificate"));
    }

    #[test]
    fn variables_that_mean_nothing_are_found() {
        let names = ["BRAID_AMPQ", "BRAID_AMQP", "BRAID_TIER", "PATH"].map(String::from);
        assert_eq!(unknown_variables(names.into_iter()), ["BRAID_AMPQ"]);
    }
}
