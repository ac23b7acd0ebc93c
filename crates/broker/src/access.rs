//! Who may do what: users and their passwords, permissions, topic permissions, limits of vhosts and users.
//!
//! One function, [`Access::authorise`], answers for every protocol and every verb. A user has no rights in a vhost where it has
//! no permission entry; where an exchange has no topic permission for it, every topic is allowed.

use crate::error::{Error, Reason, Result};
use crate::limits::{NAME_BYTES_MAX, PERMISSIONS_MAX, USERS_MAX};
use crate::pattern::{Pattern, escape};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use std::collections::{BTreeMap, BTreeSet};
use subtle::ConstantTimeEq as _;

/// What somebody wants to do with a thing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Configure,
    Write,
    Read,
    /// Look whether it is there (a passive declare): any right will do.
    Any,
}

/// The thing, within a vhost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Resource<'a> {
    Exchange(&'a str),
    Queue(&'a str),
    /// A routing key of a topic exchange, asked beside the right on the exchange itself.
    Topic {
        exchange: &'a str,
        routing_key: &'a str,
        client_id: Option<&'a str>,
    },
}

/// A user at rest, and in definitions files.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct User {
    pub name: Box<str>,
    /// Base 64 of a salt of 4 bytes and the hash of salt and password; empty: no password will do.
    #[serde(default)]
    pub password_hash: Box<str>,
    /// Files of old brokers don't say; those mean [`Hashing::Sha256`] here.
    #[serde(default)]
    pub hashing_algorithm: Hashing,
    #[serde(default, deserialize_with = "tags")]
    pub tags: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "UserLimits::is_empty")]
    pub limits: UserLimits,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub enum Hashing {
    #[default]
    #[serde(rename = "rabbit_password_hashing_sha256")]
    Sha256,
    #[serde(rename = "rabbit_password_hashing_sha512")]
    Sha512,
}

/// `None` and negative numbers: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct UserLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_channels: Option<i64>,
}

/// `None` and negative numbers: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VhostLimits {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queues: Option<i64>,
}

/// What a user may do in a vhost: patterns on names; an empty one matches no name but the empty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Permission {
    pub user: Box<str>,
    pub vhost: Box<str>,
    pub configure: Box<str>,
    pub write: Box<str>,
    pub read: Box<str>,
}

/// Which routing keys of a topic exchange a user may publish and bind with. `{username}`, `{vhost}` and `{client_id}` in a
/// pattern stand for the asker's.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TopicPermission {
    pub user: Box<str>,
    pub vhost: Box<str>,
    pub exchange: Box<str>,
    pub write: Box<str>,
    pub read: Box<str>,
}

#[derive(Default, Debug)]
pub struct Access {
    users: BTreeMap<Box<str>, User>,
    permissions: BTreeMap<(Box<str>, Box<str>), Compiled>,
    /// By user and vhost, then exchange.
    topic_permissions: BTreeMap<(Box<str>, Box<str>), BTreeMap<Box<str>, CompiledTopic>>,
    vhost_limits: BTreeMap<Box<str>, VhostLimits>,
    /// Who may only come from the machine itself.
    loopback_users: BTreeSet<Box<str>>,
    version: u64,
}

#[derive(Debug)]
struct Compiled {
    permission: Permission,
    configure: Pattern,
    write: Pattern,
    read: Pattern,
}

#[derive(Debug)]
struct CompiledTopic {
    permission: TopicPermission,
    /// `None`: has to be compiled for each asker.
    write: Option<Pattern>,
    read: Option<Pattern>,
}

impl Access {
    /// Nobody yet; `guest` will be kept to the loopback.
    pub fn new() -> Access {
        Access { loopback_users: BTreeSet::from(["guest".into()]), ..Access::default() }
    }

    /// Rises with every change: what was allowed under an older one must be asked again.
    pub fn version(&self) -> u64 {
        self.version
    }

    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    pub fn users(&self) -> impl Iterator<Item = &User> {
        self.users.values()
    }

    pub fn permissions(&self) -> impl Iterator<Item = &Permission> {
        self.permissions.values().map(|compiled| &compiled.permission)
    }

    pub fn topic_permissions(&self) -> impl Iterator<Item = &TopicPermission> {
        self.topic_permissions.values().flat_map(|of_vhost| of_vhost.values()).map(|compiled| &compiled.permission)
    }

    pub fn vhost_limits(&self) -> impl Iterator<Item = (&str, &VhostLimits)> {
        self.vhost_limits.iter().map(|(vhost, limits)| (&**vhost, limits))
    }

    pub fn set_loopback_users(&mut self, users: impl IntoIterator<Item = Box<str>>) {
        self.loopback_users = users.into_iter().collect();
        self.version += 1;
    }

    /// Whether somebody can log in from elsewhere: then listeners may be open.
    pub fn has_remote_user(&self) -> bool {
        self.users.values().any(|user| !user.password_hash.is_empty() && !self.loopback_users.contains(&user.name))
    }

    pub fn put_user(&mut self, user: User) -> Result<()> {
        check_name(&user.name)?;
        if user.hash().is_none() {
            let text = format!("password hash of user '{}' is not base 64 of a salt and a hash", user.name);
            return Err(Error::precondition(text));
        }
        if self.users.len() >= USERS_MAX && !self.users.contains_key(&user.name) {
            return Err(Error::precondition(format!("user limit ({USERS_MAX}) is reached")));
        }
        self.users.insert(user.name.clone(), user);
        self.version += 1;
        Ok(())
    }

    /// Takes the user's permissions along.
    pub fn delete_user(&mut self, name: &str) -> Option<User> {
        let user = self.users.remove(name)?;
        self.permissions.retain(|(user, _), _| &**user != name);
        self.topic_permissions.retain(|(user, _), _| &**user != name);
        self.version += 1;
        Some(user)
    }

    /// Takes the permissions in a vhost and its limits along with it.
    pub fn delete_vhost(&mut self, name: &str) {
        self.permissions.retain(|(_, vhost), _| &**vhost != name);
        self.topic_permissions.retain(|(_, vhost), _| &**vhost != name);
        self.vhost_limits.remove(name);
        self.version += 1;
    }

    pub fn put_permission(&mut self, permission: Permission) -> Result<()> {
        check_name(&permission.user)?;
        check_name(&permission.vhost)?;
        let key = (permission.user.clone(), permission.vhost.clone());
        if self.permissions.len() >= PERMISSIONS_MAX && !self.permissions.contains_key(&key) {
            return Err(Error::precondition(format!("permission limit ({PERMISSIONS_MAX}) is reached")));
        }
        let compiled = Compiled {
            configure: right(&permission.configure)?,
            write: right(&permission.write)?,
            read: right(&permission.read)?,
            permission,
        };
        self.permissions.insert(key, compiled);
        self.version += 1;
        Ok(())
    }

    pub fn delete_permission(&mut self, user: &str, vhost: &str) -> bool {
        self.version += 1;
        self.permissions.remove(&(user.into(), vhost.into())).is_some()
    }

    pub fn put_topic_permission(&mut self, permission: TopicPermission) -> Result<()> {
        for name in [&permission.user, &permission.vhost] {
            check_name(name)?;
        }
        let key = (permission.user.clone(), permission.vhost.clone());
        let of_vhost = self.topic_permissions.entry(key).or_default();
        if of_vhost.len() >= PERMISSIONS_MAX && !of_vhost.contains_key(&permission.exchange) {
            return Err(Error::precondition(format!("topic permission limit ({PERMISSIONS_MAX}) is reached")));
        }
        let compiled =
            CompiledTopic { write: fixed_topic(&permission.write)?, read: fixed_topic(&permission.read)?, permission };
        of_vhost.insert(compiled.permission.exchange.clone(), compiled);
        self.version += 1;
        Ok(())
    }

    /// Of one exchange, or of all.
    pub fn delete_topic_permissions(&mut self, user: &str, vhost: &str, exchange: Option<&str>) {
        self.version += 1;
        let key = (user.into(), vhost.into());
        match (exchange, self.topic_permissions.get_mut(&key)) {
            (Some(exchange), Some(of_vhost)) => drop(of_vhost.remove(exchange)),
            (None, Some(_)) => drop(self.topic_permissions.remove(&key)),
            (_, None) => {}
        }
    }

    pub fn set_vhost_limits(&mut self, vhost: &str, limits: VhostLimits) {
        self.vhost_limits.insert(vhost.into(), limits);
    }

    /// Checks a password. The refusal's text is for the log alone: the client learns only that it was refused.
    pub fn login(&self, user: &str, password: &[u8], is_loopback: bool) -> Result<&User> {
        if password.is_empty() {
            return Err(Error::access_refused(format!("user '{user}' - blank passwords are not accepted")));
        }
        let known = self.users.get(user);
        // An unknown user takes the same work, so that the time tells nothing about who exists.
        let (hashing, hash) = known.map_or((Hashing::Sha256, None), |user| (user.hashing_algorithm, user.hash()));
        let hash = hash.unwrap_or_default();
        let (salt, expected) = hash.split_first_chunk::<4>().unwrap_or((&[0; 4], &[]));
        let is_right = bool::from(hashing.hash(*salt, password).ct_eq(expected));
        match known {
            Some(known) if is_right => self.check_loopback(known, is_loopback),
            _ => Err(Error::access_refused(format!("user '{user}' - invalid credentials"))),
        }
    }

    /// For whom the transport vouches.
    pub fn login_as(&self, user: &str, is_loopback: bool) -> Result<&User> {
        match self.users.get(user) {
            Some(known) => self.check_loopback(known, is_loopback),
            None => Err(Error::access_refused(format!("user '{user}' - invalid credentials"))),
        }
    }

    fn check_loopback<'a>(&self, user: &'a User, is_loopback: bool) -> Result<&'a User> {
        if is_loopback || !self.loopback_users.contains(&user.name) {
            return Ok(user);
        }
        Err(Error::access_refused(format!("user '{}' can only connect via localhost", user.name)))
    }

    /// Whether the user may work in the vhost at all. That the vhost exists is the asker's to check first.
    pub fn open_vhost(&self, user: &str, vhost: &str) -> Result<()> {
        match self.permission(user, vhost) {
            Some(_) => Ok(()),
            None => {
                let text = format!("access to vhost '{vhost}' refused for user '{user}'");
                Err(Error::new(Reason::NotAllowed, text))
            }
        }
    }

    /// The one place where rights are decided.
    pub fn authorise(&self, user: &str, vhost: &str, action: Action, resource: Resource) -> Result<()> {
        let allowed = match (resource, action) {
            (Resource::Topic { exchange, routing_key, client_id }, action) => {
                self.may_use_topic(user, vhost, action, exchange, routing_key, client_id)
            }
            (resource, Action::Any) => {
                [Action::Read, Action::Write, Action::Configure].iter().any(|a| self.may(user, vhost, *a, resource))
            }
            (resource, action) => self.may(user, vhost, action, resource),
        };
        if allowed {
            return Ok(());
        }
        let action = action.name();
        let what = match resource {
            Resource::Exchange(name) => format!("exchange '{}'", exchange_name(name)),
            Resource::Queue(name) => format!("queue '{name}'"),
            Resource::Topic { exchange, routing_key, .. } => format!("topic '{routing_key}' in exchange '{exchange}'"),
        };
        Err(Error::access_refused(format!("{action} access to {what} in vhost '{vhost}' refused for user '{user}'")))
    }

    fn may(&self, user: &str, vhost: &str, action: Action, resource: Resource) -> bool {
        let Some(compiled) = self.permission(user, vhost) else { return false };
        let pattern = match action {
            Action::Configure | Action::Any => &compiled.configure,
            Action::Write => &compiled.write,
            Action::Read => &compiled.read,
        };
        match resource {
            Resource::Exchange(name) => pattern.matches(exchange_name(name)),
            Resource::Queue(name) => pattern.matches(name),
            Resource::Topic { .. } => false,
        }
    }

    fn may_use_topic(
        &self,
        user: &str,
        vhost: &str,
        action: Action,
        exchange: &str,
        routing_key: &str,
        client_id: Option<&str>,
    ) -> bool {
        let Some(of_vhost) = self.topic_permissions.get(&(user.into(), vhost.into())) else { return true };
        let Some(compiled) = of_vhost.get(exchange) else { return true };
        let (text, fixed) = match action {
            Action::Write => (&compiled.permission.write, &compiled.write),
            Action::Read => (&compiled.permission.read, &compiled.read),
            Action::Configure | Action::Any => return false,
        };
        match fixed {
            Some(pattern) => pattern.matches(routing_key),
            None => Pattern::new(&expand(text, user, vhost, client_id)).is_ok_and(|pattern| pattern.matches(routing_key)),
        }
    }

    fn permission(&self, user: &str, vhost: &str) -> Option<&Compiled> {
        self.permissions.get(&(user.into(), vhost.into()))
    }

    /// Whether a message may say that it is from `claimed`.
    pub fn check_user_id(&self, user: &str, claimed: &str) -> Result<()> {
        if claimed == user || self.users.get(user).is_some_and(|user| user.has_tag("impersonator")) {
            return Ok(());
        }
        let text = format!("user_id property set to '{claimed}' but authenticated user was '{user}'");
        Err(Error::precondition(text))
    }

    /// Whether a vhost that has `count` queues may get another one.
    pub fn check_queue_limit(&self, vhost: &str, queue: &str, count: usize) -> Result<()> {
        match reached(self.vhost_limits.get(vhost).and_then(|limits| limits.max_queues), count) {
            None => Ok(()),
            Some(limit) => {
                let text = format!("cannot declare queue '{queue}': queue limit in vhost '{vhost}' ({limit}) is reached");
                Err(Error::precondition(text))
            }
        }
    }

    /// Whether one more connection may be opened where there are `of_vhost` and `of_user` already.
    pub fn check_connection_limits(&self, user: &str, vhost: &str, of_user: usize, of_vhost: usize) -> Result<()> {
        let refused = |text| Err(Error::new(Reason::NotAllowed, text));
        if let Some(limit) = reached(self.vhost_limits.get(vhost).and_then(|limits| limits.max_connections), of_vhost) {
            let text = format!("access to vhost '{vhost}' refused for user '{user}': connection limit ({limit}) is reached");
            return refused(text);
        }
        if let Some(limit) = reached(self.users.get(user).and_then(|user| user.limits.max_connections), of_user) {
            return refused(format!("connection refused for user '{user}': user connection limit ({limit}) is reached"));
        }
        Ok(())
    }

    /// Whether a user with `count` channels, over all its connections, may open another one.
    pub fn check_channel_limit(&self, user: &str, count: usize) -> Result<()> {
        match reached(self.users.get(user).and_then(|user| user.limits.max_channels), count) {
            None => Ok(()),
            Some(limit) => {
                let text = format!(
                    "number of channels opened for user '{user}' has reached the maximum allowed user limit of {limit}"
                );
                Err(Error::new(Reason::NotAllowed, text))
            }
        }
    }
}

impl User {
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| &**t == tag)
    }

    /// Salt and hash; empty where no password will do, `None` where it is neither.
    fn hash(&self) -> Option<Vec<u8>> {
        let bytes = BASE64.decode(self.password_hash.as_bytes()).ok()?;
        (bytes.is_empty() || bytes.len() == 4 + self.hashing_algorithm.hash_bytes()).then_some(bytes)
    }
}

impl Hashing {
    /// What [`User::password_hash`] holds for a password. The salt is the caller's to draw.
    pub fn password_hash(self, salt: [u8; 4], password: &[u8]) -> Box<str> {
        let mut bytes = salt.to_vec();
        bytes.extend_from_slice(&self.hash(salt, password));
        BASE64.encode(bytes).into()
    }

    fn hash(self, salt: [u8; 4], password: &[u8]) -> Vec<u8> {
        match self {
            Hashing::Sha256 => Sha256::new().chain_update(salt).chain_update(password).finalize().to_vec(),
            Hashing::Sha512 => Sha512::new().chain_update(salt).chain_update(password).finalize().to_vec(),
        }
    }

    fn hash_bytes(self) -> usize {
        match self {
            Hashing::Sha256 => 32,
            Hashing::Sha512 => 64,
        }
    }
}

impl UserLimits {
    fn is_empty(&self) -> bool {
        *self == UserLimits::default()
    }
}

impl Action {
    /// As texts name it; of any right, the last one tried.
    fn name(self) -> &'static str {
        match self {
            Action::Configure | Action::Any => "configure",
            Action::Write => "write",
            Action::Read => "read",
        }
    }
}

/// The limit, if `count` has reached it.
fn reached(limit: Option<i64>, count: usize) -> Option<i64> {
    limit.filter(|limit| u64::try_from(*limit).is_ok_and(|limit| count as u64 >= limit))
}

/// The default exchange has no name that a pattern could be about.
fn exchange_name(name: &str) -> &str {
    if name.is_empty() { "amq.default" } else { name }
}

fn check_name(name: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        return Err(Error::precondition(format!("name longer than {NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}

/// An empty pattern is a right to nothing, not to everything.
fn right(text: &str) -> Result<Pattern> {
    Pattern::new(if text.is_empty() { "^$" } else { text })
}

const VARIABLES: [&str; 3] = ["{username}", "{vhost}", "{client_id}"];

/// The pattern, if it is the same for everybody; fails if it can be none for anybody.
fn fixed_topic(text: &str) -> Result<Option<Pattern>> {
    if VARIABLES.iter().any(|variable| text.contains(variable)) {
        Pattern::new(&expand(text, "u", "v", Some("c")))?;
        return Ok(None);
    }
    right(text).map(Some)
}

/// Values stand for themselves, whatever signs they have: a user named `.*` gains nothing. All variables are found before any is
/// replaced, so that no value can bring one along.
fn expand(text: &str, user: &str, vhost: &str, client_id: Option<&str>) -> String {
    let values = [Some(user), Some(vhost), client_id];
    let mut out = String::with_capacity(text.len() + 32);
    let mut rest = text;
    loop {
        let found = VARIABLES.iter().zip(values).filter_map(|(name, value)| Some((rest.find(name)?, *name, value)));
        let Some((at, name, value)) = found.min_by_key(|(at, ..)| *at) else { break };
        out.push_str(&rest[..at]);
        // Of a client without an id the variable stays what it is, and matches only itself.
        out.push_str(&escape(value.unwrap_or(name)));
        rest = &rest[at + name.len()..];
    }
    out.push_str(rest);
    out
}

/// A list, or as in older files one text with commas.
pub(crate) fn tags<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<Box<str>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Tags {
        List(Vec<Box<str>>),
        Text(String),
    }
    Ok(match Tags::deserialize(deserializer)? {
        Tags::List(list) => list,
        Tags::Text(text) => text.split(',').map(str::trim).filter(|tag| !tag.is_empty()).map(Into::into).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, password: &str) -> User {
        User {
            name: name.into(),
            password_hash: Hashing::Sha256.password_hash([1, 2, 3, 4], password.as_bytes()),
            hashing_algorithm: Hashing::Sha256,
            tags: vec![],
            limits: UserLimits::default(),
        }
    }

    fn world(configure: &str, write: &str, read: &str) -> Access {
        let mut access = Access::new();
        access.put_user(user("u", "secret")).expect("valid");
        let (configure, write, read) = (configure.into(), write.into(), read.into());
        let permission = Permission { user: "u".into(), vhost: "/".into(), configure, write, read };
        access.put_permission(permission).expect("valid");
        access
    }

    fn refusal<T: std::fmt::Debug>(result: Result<T>) -> String {
        result.expect_err("refused").text
    }

    #[test]
    fn hashes_are_rabbitmqs() {
        // The example of RabbitMQ's documentation on passwords: salt 908DC60A, password «test12».
        let hash = Hashing::Sha256.password_hash([0x90, 0x8d, 0xc6, 0x0a], b"test12");
        assert_eq!(&*hash, "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR");
        let mut access = Access::new();
        access.put_user(User { password_hash: hash, ..user("a", "") }).expect("valid");
        let long = Hashing::Sha512.password_hash([1; 4], b"pw");
        access.put_user(User { password_hash: long, hashing_algorithm: Hashing::Sha512, ..user("b", "") }).expect("valid");
        assert!(access.login("a", b"test12", false).is_ok() && access.login("b", b"pw", false).is_ok());
        for (user, password) in [("a", "test13"), ("a", "pw"), ("b", "test12"), ("c", "pw"), ("", "x")] {
            assert_eq!(refusal(access.login(user, password.as_bytes(), true)), format!("user '{user}' - invalid credentials"));
        }
        assert!(access.login("a", b"", true).is_err());
    }

    #[test]
    fn a_user_without_a_password_only_comes_in_by_certificate() {
        let mut access = Access::new();
        access.put_user(User { password_hash: "".into(), ..user("cert", "") }).expect("valid");
        assert!(access.login("cert", b"x", true).is_err());
        assert!(access.login_as("cert", false).is_ok() && access.login_as("nobody", true).is_err());
        for damaged in ["AAAA", "not base 64!", "kI3GCqW5"] {
            assert!(access.put_user(User { password_hash: damaged.into(), ..user("x", "") }).is_err());
        }
    }

    #[test]
    fn guest_comes_from_the_loopback_only() {
        let mut access = Access::new();
        access.put_user(user("guest", "guest")).expect("valid");
        assert!(access.login("guest", b"guest", true).is_ok());
        assert_eq!(refusal(access.login("guest", b"guest", false)), "user 'guest' can only connect via localhost");
        assert!(access.login_as("guest", false).is_err());
        assert!(!access.has_remote_user());
        access.put_user(user("u", "secret")).expect("valid");
        assert!(access.has_remote_user());
        access.set_loopback_users([]);
        assert!(access.login("guest", b"guest", false).is_ok());
    }

    #[test]
    fn rights_follow_the_patterns_and_refusals_have_rabbitmqs_words() {
        let access = world("^mine", "^(mine|amq\\.default$)", "");
        let may = |action, resource| access.authorise("u", "/", action, resource);
        assert_eq!(may(Action::Configure, Resource::Queue("mine.q")), Ok(()));
        assert_eq!(may(Action::Write, Resource::Exchange("")), Ok(()));
        assert_eq!(may(Action::Any, Resource::Queue("mine")), Ok(()));
        assert_eq!(
            refusal(may(Action::Read, Resource::Queue("mine.q"))),
            "read access to queue 'mine.q' in vhost '/' refused for user 'u'"
        );
        assert_eq!(
            refusal(may(Action::Configure, Resource::Exchange(""))),
            "configure access to exchange 'amq.default' in vhost '/' refused for user 'u'"
        );
        assert_eq!(
            refusal(may(Action::Any, Resource::Queue("yours"))),
            "configure access to queue 'yours' in vhost '/' refused for user 'u'"
        );
        assert!(access.authorise("u", "other", Action::Read, Resource::Queue("mine")).is_err());
        assert!(access.authorise("v", "/", Action::Read, Resource::Queue("mine")).is_err());
        assert_eq!(access.open_vhost("u", "/"), Ok(()));
        assert_eq!(refusal(access.open_vhost("u", "other")), "access to vhost 'other' refused for user 'u'");
    }

    #[test]
    fn topics_are_free_until_somebody_restricts_them() {
        let mut access = world(".*", ".*", ".*");
        fn ask(access: &Access, action: Action, routing_key: &str, client_id: Option<&str>) -> Result<()> {
            access.authorise("u", "/", action, Resource::Topic { exchange: "x", routing_key, client_id })
        }
        assert_eq!(ask(&access, Action::Write, "any.key", None), Ok(()));
        let permission = TopicPermission {
            user: "u".into(),
            vhost: "/".into(),
            exchange: "x".into(),
            write: "^{username}\\.{client_id}\\.".into(),
            read: "^open".into(),
        };
        access.put_topic_permission(permission).expect("valid");
        assert_eq!(ask(&access, Action::Write, "u.c1.temperature", Some("c1")), Ok(()));
        assert_eq!(ask(&access, Action::Read, "open.all", None), Ok(()));
        assert_eq!(
            refusal(ask(&access, Action::Write, "u.c2.temperature", Some("c1"))),
            "write access to topic 'u.c2.temperature' in exchange 'x' in vhost '/' refused for user 'u'"
        );
        // Neither a client id with signs of patterns nor one that names a variable gains anything.
        for id in [".*", "{username}", "c1|.*"] {
            assert!(ask(&access, Action::Write, "u.c1.temperature", Some(id)).is_err());
            assert_eq!(ask(&access, Action::Write, &format!("u.{id}.t"), Some(id)), Ok(()));
        }
        assert!(ask(&access, Action::Write, "u.c1.t", None).is_err());
        access.delete_topic_permissions("u", "/", Some("x"));
        assert_eq!(ask(&access, Action::Write, "any.key", None), Ok(()));
    }

    #[test]
    fn only_an_impersonator_says_it_is_somebody_else() {
        let mut access = world(".*", ".*", ".*");
        assert_eq!(access.check_user_id("u", "u"), Ok(()));
        assert_eq!(refusal(access.check_user_id("u", "boss")), "user_id property set to 'boss' but authenticated user was 'u'");
        access.put_user(User { tags: vec!["impersonator".into()], ..user("u", "secret") }).expect("valid");
        assert_eq!(access.check_user_id("u", "boss"), Ok(()));
    }

    #[test]
    fn limits_count_and_negative_ones_do_not() {
        let mut access = world(".*", ".*", ".*");
        access.set_vhost_limits("/", VhostLimits { max_connections: Some(2), max_queues: Some(10) });
        assert_eq!(access.check_queue_limit("/", "q", 9), Ok(()));
        assert_eq!(
            refusal(access.check_queue_limit("/", "q", 10)),
            "cannot declare queue 'q': queue limit in vhost '/' (10) is reached"
        );
        assert_eq!(access.check_connection_limits("u", "/", 1, 1), Ok(()));
        assert_eq!(
            refusal(access.check_connection_limits("u", "/", 1, 2)),
            "access to vhost '/' refused for user 'u': connection limit (2) is reached"
        );
        let limits = UserLimits { max_connections: Some(1), max_channels: Some(0) };
        access.put_user(User { limits, ..user("u", "secret") }).expect("valid");
        assert_eq!(
            refusal(access.check_connection_limits("u", "/", 1, 1)),
            "connection refused for user 'u': user connection limit (1) is reached"
        );
        assert!(access.check_channel_limit("u", 0).is_err());
        access.set_vhost_limits("/", VhostLimits { max_connections: Some(-1), max_queues: None });
        assert_eq!(access.check_queue_limit("/", "q", 1_000_000), Ok(()));
    }

    #[test]
    fn a_deleted_user_leaves_no_rights_behind() {
        let mut access = world(".*", ".*", ".*");
        let before = access.version();
        assert!(access.delete_user("u").is_some() && access.version() > before);
        access.put_user(user("u", "again")).expect("valid");
        assert!(access.open_vhost("u", "/").is_err());
    }

    #[test]
    fn users_read_from_old_and_new_files() {
        let new = r#"{"name":"u","password_hash":"","hashing_algorithm":"rabbit_password_hashing_sha512","tags":["administrator"],"limits":{"max-connections":3}}"#;
        let user: User = serde_json::from_str(new).expect("new");
        assert_eq!((user.hashing_algorithm, user.limits.max_connections), (Hashing::Sha512, Some(3)));
        assert_eq!(serde_json::to_string(&user).expect("written"), new);
        let old: User =
            serde_json::from_str(r#"{"name":"u","password_hash":"","tags":"administrator, monitoring"}"#).expect("old");
        assert!(old.has_tag("monitoring") && old.hashing_algorithm == Hashing::Sha256);
    }
}
