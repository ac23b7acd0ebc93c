//! RabbitMQ's `definitions.json`: read into typed lists that the node applies in the order of the fields of [`Definitions`], and
//! written again. What means nothing here is kept for the way back and listed by name, once each.

use crate::access::{Permission, TopicPermission, User, VhostLimits};
use crate::error::{Error, Result};
use crate::limits::{DEFINITIONS_BYTES_MAX, NAME_BYTES_MAX};
use crate::policy::{self, Policy};
use crate::request::{Binding, DeclareExchange, DeclareQueue, Destination};
use crate::value::{Table, Value};
use serde::{Deserialize, Serialize};
use serde_json::Map;
use std::collections::BTreeSet;

/// All that a broker is told once and keeps.
#[derive(Clone, PartialEq, Default, Debug)]
pub struct Definitions {
    pub users: Vec<User>,
    pub vhosts: Vec<Vhost>,
    pub vhost_limits: Vec<(Box<str>, VhostLimits)>,
    pub permissions: Vec<Permission>,
    pub exchanges: Vec<ExchangeDefinition>,
    pub topic_permissions: Vec<TopicPermission>,
    pub policies: Vec<Policy>,
    pub operator_policies: Vec<Policy>,
    pub queues: Vec<QueueDefinition>,
    pub bindings: Vec<BindingDefinition>,
    /// Of plugins; kept.
    pub parameters: Vec<Parameter>,
    pub global_parameters: Vec<GlobalParameter>,
    /// Any other key of the file; kept.
    pub other: Map<String, serde_json::Value>,
}

#[derive(Clone, PartialEq, Default, Debug, Serialize, Deserialize)]
pub struct Vhost {
    pub name: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<Box<str>>,
    #[serde(default, deserialize_with = "crate::access::tags", skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Box<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_queue_type: Option<Box<str>>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, serde_json::Value>,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct QueueDefinition {
    pub name: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub vhost: Box<str>,
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub queue_type: Option<Box<str>>,
    #[serde(default = "yes")]
    pub durable: bool,
    #[serde(default)]
    pub auto_delete: bool,
    #[serde(default)]
    pub arguments: Table,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct ExchangeDefinition {
    pub name: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub vhost: Box<str>,
    #[serde(rename = "type")]
    pub kind: Box<str>,
    #[serde(default = "yes")]
    pub durable: bool,
    #[serde(default)]
    pub auto_delete: bool,
    #[serde(default)]
    pub internal: bool,
    #[serde(default)]
    pub arguments: Table,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct BindingDefinition {
    pub source: Box<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub vhost: Box<str>,
    pub destination: Box<str>,
    pub destination_type: DestinationType,
    #[serde(default)]
    pub routing_key: Box<str>,
    #[serde(default)]
    pub arguments: Table,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DestinationType {
    Queue,
    Exchange,
}

/// A setting of a part of the broker, which `component` names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Parameter {
    #[serde(default, skip_serializing_if = "str::is_empty")]
    pub vhost: Box<str>,
    pub component: Box<str>,
    pub name: Box<str>,
    pub value: serde_json::Value,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct GlobalParameter {
    pub name: Box<str>,
    pub value: serde_json::Value,
}

/// The file as it is written: vhost limits and operator policies stand among the parameters.
#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    users: Vec<User>,
    #[serde(default)]
    vhosts: Vec<Vhost>,
    #[serde(default)]
    permissions: Vec<Permission>,
    #[serde(default)]
    topic_permissions: Vec<TopicPermission>,
    #[serde(default)]
    parameters: Vec<Parameter>,
    #[serde(default)]
    global_parameters: Vec<GlobalParameter>,
    #[serde(default)]
    policies: Vec<Policy>,
    #[serde(default)]
    queues: Vec<QueueDefinition>,
    #[serde(default)]
    exchanges: Vec<ExchangeDefinition>,
    #[serde(default)]
    bindings: Vec<BindingDefinition>,
    #[serde(flatten)]
    other: Map<String, serde_json::Value>,
}

/// What exports say of themselves: no setting is lost by not following them.
const DESCRIPTIVE: [&str; 11] = [
    "rabbit_version",
    "rabbitmq_version",
    "rabbitmq_definition_format",
    "product_name",
    "product_version",
    "original_cluster_name",
    "original_vhost_name",
    "explanation",
    "description",
    "metadata",
    "tags",
];

/// Global parameters that name the installation, likewise.
const DESCRIPTIVE_PARAMETERS: [&str; 4] =
    ["cluster_name", "internal_cluster_id", "cluster_tags", "imported_definition_hash_value"];

const LIMITS: &str = "vhost-limits";
const OPERATOR_POLICY: &str = "operator_policy";

impl Definitions {
    /// Reads a file. Things without a vhost (a file of one vhost has them) belong to `vhost`, and are an error without it.
    pub fn parse(json: &[u8], vhost: Option<&str>) -> Result<Definitions> {
        if json.len() > DEFINITIONS_BYTES_MAX {
            return Err(Error::precondition(format!("definitions longer than {DEFINITIONS_BYTES_MAX} bytes")));
        }
        let file: File =
            serde_json::from_slice(json).map_err(|e| Error::precondition(format!("definitions are not as expected: {e}")))?;
        let mut definitions = Definitions {
            users: file.users,
            vhosts: file.vhosts,
            permissions: file.permissions,
            exchanges: file.exchanges,
            topic_permissions: file.topic_permissions,
            policies: file.policies,
            queues: file.queues,
            bindings: file.bindings,
            global_parameters: file.global_parameters,
            other: file.other,
            ..Definitions::default()
        };
        definitions.take_parameters(file.parameters, vhost)?;
        definitions.settle_vhosts(vhost)?;
        Ok(definitions)
    }

    /// As a file that RabbitMQ reads too.
    pub fn to_json(&self) -> String {
        let mut parameters = self.parameters.clone();
        let parameter = |vhost: &str, component: &str, name: &str, value| Parameter {
            vhost: vhost.into(),
            component: component.into(),
            name: name.into(),
            value,
        };
        for (vhost, limits) in &self.vhost_limits {
            let value = serde_json::to_value(limits).unwrap_or_default();
            parameters.push(parameter(vhost, LIMITS, "limits", value));
        }
        for policy in &self.operator_policies {
            let mut value = serde_json::to_value(policy).unwrap_or_default();
            if let Some(fields) = value.as_object_mut() {
                fields.remove("vhost");
                fields.remove("name");
            }
            parameters.push(parameter(&policy.vhost, OPERATOR_POLICY, &policy.name, value));
        }
        let file = File {
            users: self.users.clone(),
            vhosts: self.vhosts.clone(),
            permissions: self.permissions.clone(),
            topic_permissions: self.topic_permissions.clone(),
            parameters,
            global_parameters: self.global_parameters.clone(),
            policies: self.policies.clone(),
            queues: self.queues.clone(),
            exchanges: self.exchanges.clone(),
            bindings: self.bindings.clone(),
            other: self.other.clone(),
        };
        serde_json::to_string_pretty(&file).unwrap_or_default()
    }

    /// What was read and has no effect, by name, each once.
    pub fn without_effect(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        let keys = self.other.keys().filter(|key| !DESCRIPTIVE.contains(&key.as_str()));
        names.extend(keys.map(|key| format!("key '{key}'")));
        names.extend(self.parameters.iter().map(|p| format!("parameters of component '{}'", p.component)));
        let global = self.global_parameters.iter().filter(|p| !DESCRIPTIVE_PARAMETERS.contains(&&*p.name));
        names.extend(global.map(|p| format!("global parameter '{}'", p.name)));
        for policy in self.policies.iter().chain(&self.operator_policies) {
            let ignored = policy::validate(&policy.definition).unwrap_or_default();
            names.extend(ignored.iter().map(|key| format!("policy setting '{key}'")));
        }
        names
    }

    /// Moves those parameters that mean something here to where they belong.
    fn take_parameters(&mut self, parameters: Vec<Parameter>, vhost: Option<&str>) -> Result<()> {
        for mut parameter in parameters {
            settle(&mut parameter.vhost, vhost, "parameter", &parameter.name)?;
            let wrong = |e: serde_json::Error| {
                Error::precondition(format!("parameter '{}' of {}: {e}", parameter.name, parameter.component))
            };
            match &*parameter.component {
                LIMITS => {
                    let limits = serde_json::from_value(parameter.value.clone()).map_err(wrong)?;
                    self.vhost_limits.push((parameter.vhost, limits));
                }
                OPERATOR_POLICY => {
                    let mut value = parameter.value.clone();
                    if let Some(fields) = value.as_object_mut() {
                        fields.insert("name".into(), (*parameter.name).into());
                        fields.insert("vhost".into(), (*parameter.vhost).into());
                    }
                    self.operator_policies.push(serde_json::from_value(value).map_err(wrong)?);
                }
                _ => self.parameters.push(parameter),
            }
        }
        Ok(())
    }

    fn settle_vhosts(&mut self, vhost: Option<&str>) -> Result<()> {
        for vhost in &mut self.vhosts {
            check_name("vhost", &vhost.name)?;
            if vhost.default_queue_type.is_none() {
                let stated = vhost.metadata.get("default_queue_type").and_then(|value| value.as_str());
                vhost.default_queue_type = stated.filter(|name| !matches!(*name, "" | "undefined")).map(Into::into);
            }
        }
        for queue in &mut self.queues {
            settle(&mut queue.vhost, vhost, "queue", &queue.name)?;
        }
        for exchange in &mut self.exchanges {
            settle(&mut exchange.vhost, vhost, "exchange", &exchange.name)?;
        }
        for binding in &mut self.bindings {
            settle(&mut binding.vhost, vhost, "binding to", &binding.destination)?;
            check_name("binding from", &binding.source)?;
            check_name("routing key", &binding.routing_key)?;
        }
        for policy in &mut self.policies {
            settle(&mut policy.vhost, vhost, "policy", &policy.name)?;
        }
        Ok(())
    }
}

impl QueueDefinition {
    pub fn into_request(self) -> DeclareQueue {
        let mut arguments = self.arguments;
        if let (Some(queue_type), None) = (self.queue_type, arguments.get("x-queue-type"))
            && &*queue_type != "classic"
        {
            arguments.push("x-queue-type", Value::str(&*queue_type));
        }
        DeclareQueue {
            name: self.name,
            server_named: false,
            passive: false,
            durable: self.durable,
            exclusive: false,
            auto_delete: self.auto_delete,
            arguments,
        }
    }
}

impl ExchangeDefinition {
    pub fn into_request(self) -> DeclareExchange {
        DeclareExchange {
            name: self.name,
            kind: self.kind,
            passive: false,
            durable: self.durable,
            auto_delete: self.auto_delete,
            internal: self.internal,
            arguments: self.arguments,
        }
    }
}

impl BindingDefinition {
    pub fn into_request(self) -> Binding {
        Binding {
            source: self.source,
            destination: self.destination,
            to: match self.destination_type {
                DestinationType::Queue => Destination::Queue,
                DestinationType::Exchange => Destination::Exchange,
            },
            routing_key: self.routing_key,
            arguments: self.arguments,
        }
    }
}

/// Whether a vhost may have this name.
pub fn check_vhost_name(name: &str) -> Result<()> {
    check_name("vhost", name)
}

/// Names that only the broker gives: files that hold things of such names are read without them, as RabbitMQ reads them.
pub fn is_reserved(name: &str) -> bool {
    name.is_empty() || name.starts_with("amq.")
}

fn settle(vhost: &mut Box<str>, default: Option<&str>, what: &str, name: &str) -> Result<()> {
    check_name(what, name)?;
    match (vhost.is_empty(), default) {
        (false, _) => check_name("vhost", vhost),
        (true, Some(default)) => {
            *vhost = default.into();
            Ok(())
        }
        (true, None) => Err(Error::precondition(format!(
            "{what} '{name}' has no vhost: definitions of one vhost can't be read as those of all"
        ))),
    }
}

fn check_name(what: &str, name: &str) -> Result<()> {
    if name.len() > NAME_BYTES_MAX {
        let start: String = name.chars().take(40).collect();
        return Err(Error::precondition(format!("name of {what} '{start}…' is longer than {NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"{
        "rabbit_version": "4.1.0", "rabbitmq_version": "4.1.0", "product_name": "RabbitMQ",
        "rabbitmq_definition_format": "cluster", "original_cluster_name": "rabbit@a",
        "users": [{"name": "app", "password_hash": "kI3GCqW5JLMJa4iX1lo7X4D6XbYqlLgxIs30+P6tENUV2POR",
                   "hashing_algorithm": "rabbit_password_hashing_sha256", "tags": ["administrator"], "limits": {}}],
        "vhosts": [{"name": "/", "description": "Default", "metadata": {"description": "Default", "tags": [],
                    "default_queue_type": "quorum"}, "tags": []}, {"name": "plain"}],
        "permissions": [{"user": "app", "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}],
        "topic_permissions": [{"user": "app", "vhost": "/", "exchange": "amq.topic", "write": "^a", "read": ".*"}],
        "parameters": [
            {"component": "vhost-limits", "name": "limits", "vhost": "/", "value": {"max-connections": 10}},
            {"component": "operator_policy", "name": "cap", "vhost": "/",
             "value": {"apply-to": "queues", "definition": {"max-length": 1000}, "pattern": "^", "priority": 2}},
            {"component": "shovel", "name": "s", "vhost": "/", "value": {"src-uri": "amqp://"}},
            {"component": "shovel", "name": "t", "vhost": "/", "value": []}],
        "global_parameters": [{"name": "cluster_name", "value": "rabbit@a"}],
        "policies": [{"vhost": "/", "name": "ha", "pattern": ".*", "apply-to": "all",
                      "definition": {"ha-mode": "all", "message-ttl": 5}, "priority": 0}],
        "queues": [{"name": "jobs", "vhost": "/", "type": "quorum", "durable": true, "auto_delete": false, "arguments": {}},
                   {"name": "old", "vhost": "/", "arguments": {"x-queue-type": "classic", "x-max-length": 5}}],
        "exchanges": [{"name": "x", "vhost": "/", "type": "topic", "durable": true, "auto_delete": false,
                       "internal": false, "arguments": {"alternate-exchange": "ae"}}],
        "bindings": [{"source": "x", "vhost": "/", "destination": "jobs", "destination_type": "queue",
                      "routing_key": "a.#", "arguments": {}}],
        "federation": {"what": 1}
    }"#;

    #[test]
    fn a_file_of_rabbitmq_is_read_whole() {
        let all = Definitions::parse(FILE.as_bytes(), None).expect("valid");
        assert_eq!((all.users.len(), all.permissions.len(), all.topic_permissions.len()), (1, 1, 1));
        assert_eq!(all.vhosts[0].default_queue_type.as_deref(), Some("quorum"));
        assert_eq!((&*all.vhost_limits[0].0, all.vhost_limits[0].1.max_connections), ("/", Some(10)));
        let cap = &all.operator_policies[0];
        assert_eq!((&*cap.name, &*cap.vhost, cap.priority), ("cap", "/", 2));
        assert_eq!(cap.definition.get("max-length"), Some(&Value::I64(1000)));
        let names: Vec<String> = all.without_effect().into_iter().collect();
        assert_eq!(names, ["key 'federation'", "parameters of component 'shovel'", "policy setting 'ha-mode'"]);

        let jobs = all.queues[0].clone().into_request();
        assert_eq!(jobs.arguments.get("x-queue-type"), Some(&Value::str("quorum")));
        let old = all.queues[1].clone().into_request();
        assert!(old.durable && old.arguments.get("x-max-length") == Some(&Value::I64(5)));
        let binding = all.bindings[0].clone().into_request();
        assert_eq!((&*binding.source, &*binding.routing_key, binding.to), ("x", "a.#", Destination::Queue));
        assert_eq!(&*all.exchanges[0].clone().into_request().kind, "topic");
    }

    #[test]
    fn what_was_read_is_written_and_read_again() {
        let all = Definitions::parse(FILE.as_bytes(), None).expect("valid");
        let again = Definitions::parse(all.to_json().as_bytes(), None).expect("our own file");
        assert_eq!(again, all);
        assert_eq!(again.other.get("rabbit_version").and_then(|v| v.as_str()), Some("4.1.0"));
    }

    #[test]
    fn a_file_of_one_vhost_needs_to_be_told_which() {
        let file = r#"{"queues": [{"name": "q", "durable": true, "auto_delete": false, "arguments": {}}]}"#;
        let text = Definitions::parse(file.as_bytes(), None).expect_err("no vhost").text;
        assert!(text.starts_with("queue 'q' has no vhost"), "{text}");
        let all = Definitions::parse(file.as_bytes(), Some("mine")).expect("told");
        assert_eq!(&*all.queues[0].vhost, "mine");
    }

    #[test]
    fn wrong_files_are_refused_with_the_place() {
        let refused = |file: &str| Definitions::parse(file.as_bytes(), None).expect_err("wrong").text;
        assert!(refused("{").contains("line 1"));
        assert!(refused(r#"{"bindings": [{"source": "x"}]}"#).contains("missing field `destination`"));
        assert!(refused(r#"{"queues": 3}"#).contains("line 1"));
        let long = "n".repeat(300);
        assert!(refused(&format!(r#"{{"queues": [{{"name": "{long}", "vhost": "/"}}]}}"#)).contains("longer than 255"));
        assert!(
            refused(&format!(
                r#"{{"queues": [{{"name": "q", "vhost": "/", "arguments": {{"a": {}}}}}]}}"#,
                "[".repeat(100_000)
            ))
            .contains("definitions are not as expected")
        );
    }
}
