//! What an operator changes and asks, at run time and by a definitions file at start.

use super::{Effects, Node, catalog};
use crate::access::{Hashing, Permission, TopicPermission, User, UserLimits};
use crate::arguments::QueueArguments;
use crate::definitions::{BindingDefinition, Definitions, DestinationType, ExchangeDefinition, QueueDefinition};
use crate::error::{Error, Reason};
use crate::policy::Policy;
use crate::queue::VhostKey;
use crate::request::{Binding, Destination, Event, Now};
use crate::topology::Topology;
use crate::{definitions, request::ConnectionId};
use serde::{Deserialize, Serialize};
use serde_json::{Value as Json, json};
use storage::Position;

/// What an operator asks over the control socket, or at start.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// The text of a RabbitMQ definitions file.
    Import {
        definitions: String,
    },
    Export,
    SetUser {
        user: String,
        password: String,
        tags: Option<Vec<String>>,
    },
    DeleteUser {
        user: String,
    },
    ListUsers,
    SetVhost {
        vhost: String,
    },
    DeleteVhost {
        vhost: String,
    },
    ListVhosts,
    SetPermission {
        user: String,
        vhost: String,
        configure: String,
        write: String,
        read: String,
    },
    DeletePermission {
        user: String,
        vhost: String,
    },
    ListPermissions {
        user: Option<String>,
        vhost: Option<String>,
    },
    SetPolicy {
        vhost: String,
        name: String,
        pattern: String,
        apply_to: String,
        priority: i64,
        definition: Json,
    },
    DeletePolicy {
        vhost: String,
        name: String,
    },
    ListPolicies {
        vhost: Option<String>,
    },
}

/// The answer to a [`Change`]; what was changed is safe at `safe_at`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    pub value: Json,
    pub safe_at: Option<Position>,
}

impl Node {
    pub fn administer(&mut self, now: Now, change: Change, effects: &mut Effects) -> Result<Answer, Error> {
        let result = self.change(now, change, effects);
        // Also after a failure: a file that breaks off has been applied up to there.
        self.settle_down(now, effects, &mut []);
        let safe_at = self.last_commit;
        result.map(|value| Answer { value, safe_at })
    }

    fn change(&mut self, now: Now, change: Change, effects: &mut Effects) -> Result<Json, Error> {
        match change {
            Change::Import { definitions } => self.import(now, &definitions, effects),
            Change::Export => Ok(serde_json::from_str(&self.export().to_json()).unwrap_or_default()),
            Change::SetUser { user, password, tags } => self.set_user(&user, &password, tags),
            Change::DeleteUser { user } => self.delete_user(now, &user, effects),
            Change::ListUsers => Ok(self.access.users().map(|user| json!({"user": user.name, "tags": user.tags})).collect()),
            Change::SetVhost { vhost } => {
                definitions::check_vhost_name(&vhost)?;
                self.make_vhost(&vhost);
                Ok(Json::Null)
            }
            Change::DeleteVhost { vhost } => self.delete_vhost(now, &vhost, effects),
            Change::ListVhosts => Ok(self.vhosts.iter().map(|(.., vhost)| json!({"vhost": vhost.name})).collect()),
            Change::SetPermission { user, vhost, configure, write, read } => {
                let permission = Permission {
                    user: user.into(),
                    vhost: vhost.into(),
                    configure: configure.into(),
                    write: write.into(),
                    read: read.into(),
                };
                self.put_permission(permission)?;
                self.recheck_rights(now, effects);
                Ok(Json::Null)
            }
            Change::DeletePermission { user, vhost } => {
                if self.access.delete_permission(&user, &vhost) {
                    self.forget(catalog::key_of(catalog::PERMISSION, &vhost, user.as_bytes()));
                    self.recheck_rights(now, effects);
                }
                Ok(Json::Null)
            }
            Change::ListPermissions { user, vhost } => {
                let wanted = |p: &&Permission| {
                    user.as_ref().is_none_or(|user| **user == *p.user) && vhost.as_ref().is_none_or(|vhost| **vhost == *p.vhost)
                };
                Ok(self.access.permissions().filter(wanted).map(|p| json!(p)).collect())
            }
            Change::SetPolicy { vhost, name, pattern, apply_to, priority, definition } => {
                let policy = json!({"vhost": vhost, "name": name, "pattern": pattern, "apply-to": apply_to,
                    "priority": priority, "definition": definition});
                let policy: Policy =
                    serde_json::from_value(policy).map_err(|error| Error::precondition(format!("policy: {error}")))?;
                let vhost = self.vhost_named(&vhost)?;
                let ignored = self.put_policy(now, vhost, policy, false)?;
                Ok(json!({"without_effect": ignored}))
            }
            Change::DeletePolicy { vhost, name } => {
                let vhost = self.vhost_named(&vhost)?;
                match self.delete_policy(now, vhost, &name, false) {
                    true => Ok(Json::Null),
                    false => Err(Error::not_found(format!("no policy '{name}'"))),
                }
            }
            Change::ListPolicies { vhost } => {
                let wanted = |name: &str| vhost.as_ref().is_none_or(|vhost| vhost == name);
                let vhosts = self.vhosts.iter().filter(|(.., vhost)| wanted(&vhost.name));
                Ok(vhosts.flat_map(|(.., vhost)| vhost.policies.iter().map(|policy| json!(policy))).collect())
            }
        }
    }

    fn vhost_named(&self, name: &str) -> Result<VhostKey, Error> {
        self.vhost_names.get(name).copied().ok_or_else(|| Error::not_found(format!("vhost {name} not found")))
    }

    fn set_user(&mut self, name: &str, password: &str, tags: Option<Vec<String>>) -> Result<Json, Error> {
        let salt = (self.next_random() as u32).to_be_bytes();
        let before = self.access.user(name);
        let tags = match tags {
            Some(tags) => tags.into_iter().map(Into::into).collect(),
            None => before.map(|user| user.tags.clone()).unwrap_or_default(),
        };
        let user = User {
            name: name.into(),
            password_hash: Hashing::Sha256.password_hash(salt, password.as_bytes()),
            hashing_algorithm: Hashing::Sha256,
            tags,
            limits: before.map_or(UserLimits::default(), |user| user.limits),
        };
        self.put_user(user)?;
        Ok(Json::Null)
    }

    fn put_user(&mut self, user: User) -> Result<(), Error> {
        let key = catalog::key_of(catalog::USER, "", user.name.as_bytes());
        let value = serde_json::to_vec(&user).unwrap_or_default();
        self.access.put_user(user)?;
        self.save(key, value);
        self.version += 1;
        Ok(())
    }

    fn delete_user(&mut self, now: Now, name: &str, effects: &mut Effects) -> Result<Json, Error> {
        let permissions: Vec<Box<str>> =
            self.access.permissions().filter(|p| *p.user == *name).map(|p| p.vhost.clone()).collect();
        let topic_permissions =
            self.access.topic_permissions().filter(|p| *p.user == *name).map(topic_permission_key).collect();
        if self.access.delete_user(name).is_none() {
            return Err(Error::not_found(format!("no user '{name}'")));
        }
        self.forget_all(topic_permissions);
        self.forget(catalog::key_of(catalog::USER, "", name.as_bytes()));
        for vhost in permissions {
            self.forget(catalog::key_of(catalog::PERMISSION, &vhost, name.as_bytes()));
        }
        self.recheck_rights(now, effects);
        Ok(Json::Null)
    }

    fn forget_all(&mut self, keys: Vec<Box<[u8]>>) {
        keys.into_iter().for_each(|key| self.forget(key));
    }

    /// What a file says of a vhost beside its name.
    fn describe_vhost(&mut self, description: &definitions::Vhost) -> Result<(), Error> {
        let key = self.vhost_named(&description.name)?;
        if self.vhosts[key.0].description != *description {
            let value = serde_json::to_vec(description).unwrap_or_default();
            self.save(catalog::key_of(catalog::VHOST, &description.name, b""), value);
            self.vhosts[key.0].description = description.clone();
        }
        Ok(())
    }

    pub(super) fn put_permission(&mut self, permission: Permission) -> Result<(), Error> {
        let key = catalog::key_of(catalog::PERMISSION, &permission.vhost, permission.user.as_bytes());
        let value = serde_json::to_vec(&permission).unwrap_or_default();
        self.vhost_named(&permission.vhost)?;
        self.access.put_permission(permission)?;
        self.save(key, value);
        self.version += 1;
        Ok(())
    }

    fn put_topic_permission(&mut self, permission: TopicPermission) -> Result<(), Error> {
        let key = topic_permission_key(&permission);
        self.vhost_named(&permission.vhost)?;
        let value = serde_json::to_vec(&permission).unwrap_or_default();
        self.access.put_topic_permission(permission)?;
        self.save(key, value);
        self.version += 1;
        Ok(())
    }

    pub(super) fn make_first_user(&mut self, user: &str, password: &str, vhost: &str) -> Result<(), Error> {
        self.set_user(user, password, Some(vec!["administrator".into()]))?;
        let all: Box<str> = ".*".into();
        let (configure, write, read) = (all.clone(), all.clone(), all);
        self.put_permission(Permission { user: user.into(), vhost: vhost.into(), configure, write, read })
    }

    pub(super) fn recover_access(&mut self, keys: &catalog::Keys) -> Result<(), Error> {
        for (_, _, value) in catalog::of_kind(keys, catalog::USER) {
            self.access.put_user(read(value, "user")?)?;
        }
        for (_, _, value) in catalog::of_kind(keys, catalog::PERMISSION) {
            self.access.put_permission(read(value, "permission")?)?;
        }
        for (_, _, value) in catalog::of_kind(keys, catalog::TOPIC_PERMISSION) {
            self.access.put_topic_permission(read(value, "topic permission")?)?;
        }
        for (_, vhost, value) in catalog::of_kind(keys, catalog::LIMITS) {
            self.access.set_vhost_limits(vhost, read(value, "vhost limits")?);
        }
        for (_, _, value) in catalog::of_kind(keys, catalog::EXTRAS) {
            self.extras = Definitions::parse(value, Some("/"))?;
        }
        Ok(())
    }

    /// Somebody may come from elsewhere than the machine itself.
    pub fn has_remote_user(&self) -> bool {
        self.access.has_remote_user()
    }

    /// The vhost with everything in it.
    fn delete_vhost(&mut self, now: Now, name: &str, effects: &mut Effects) -> Result<Json, Error> {
        let key = self.vhost_named(name)?;
        let queues: Vec<_> = self.queues.iter().filter(|(.., queue)| queue.vhost == key).map(|(.., queue)| queue.key).collect();
        for queue in queues {
            self.remove_queue(now, queue, effects);
        }
        for (slot, generation, connection) in self.connections.iter_mut() {
            if connection.vhost == Some(key) {
                let id = ConnectionId { slot, generation };
                effects.events.push((id, Event::Close { reason: format!("vhost '{name}' is deleted").into() }));
            }
        }
        let topology = std::mem::replace(&mut self.vhosts[key.0].topology, Topology::new(name));
        for (_, exchange) in topology.exchanges().filter(|(_, exchange)| exchange.record.durable) {
            self.forget(catalog::key_of(catalog::EXCHANGE, name, exchange.record.key()));
        }
        for binding in topology.bindings() {
            self.forget(catalog::key_of(catalog::BINDING, name, &binding.key()));
        }
        let state = &self.vhosts[key.0];
        let mut keys = vec![catalog::key_of(catalog::VHOST, name, b""), catalog::key_of(catalog::LIMITS, name, b"")];
        keys.extend(state.policies.iter().map(|p| catalog::key_of(catalog::POLICY, name, p.name.as_bytes())));
        keys.extend(state.operator_policies.iter().map(|p| catalog::key_of(catalog::OPERATOR_POLICY, name, p.name.as_bytes())));
        let permissions = self.access.permissions().filter(|p| *p.vhost == *name);
        keys.extend(permissions.map(|p| catalog::key_of(catalog::PERMISSION, name, p.user.as_bytes())));
        keys.extend(self.access.topic_permissions().filter(|p| *p.vhost == *name).map(topic_permission_key));
        self.forget_all(keys);
        self.forget_delays(key);
        self.access.delete_vhost(name);
        self.vhost_names.remove(name);
        // Its slot stays taken until the last of its connections is gone: they still name it.
        self.version += 1;
        Ok(Json::Null)
    }

    /// Applies a definitions file, in the order of what needs what. What exists stays as it is.
    fn import(&mut self, now: Now, text: &str, effects: &mut Effects) -> Result<Json, Error> {
        let file = Definitions::parse(text.as_bytes(), None)?;
        let without_effect = file.without_effect();
        for vhost in &file.vhosts {
            self.make_vhost(&vhost.name);
            self.describe_vhost(vhost)?;
        }
        for user in file.users.clone() {
            self.put_user(user)?;
        }
        for permission in file.permissions.clone() {
            self.put_permission(permission)?;
        }
        for permission in file.topic_permissions.clone() {
            self.put_topic_permission(permission)?;
        }
        for (vhost, limits) in &file.vhost_limits {
            self.vhost_named(vhost)?;
            self.access.set_vhost_limits(vhost, *limits);
            self.save(catalog::key_of(catalog::LIMITS, vhost, b""), serde_json::to_vec(limits).unwrap_or_default());
        }
        for (policies, is_operators) in [(&file.policies, false), (&file.operator_policies, true)] {
            for policy in policies.clone() {
                let vhost = self.vhost_named(&policy.vhost)?;
                self.put_policy(now, vhost, policy, is_operators)?;
            }
        }
        self.import_topology(now, &file)?;
        self.keep_extras(&file);
        self.recheck_rights(now, effects);
        Ok(json!({"without_effect": without_effect}))
    }

    fn import_topology(&mut self, now: Now, file: &Definitions) -> Result<(), Error> {
        for exchange in file.exchanges.iter().filter(|exchange| !definitions::is_reserved(&exchange.name)) {
            let vhost = self.vhost_named(&exchange.vhost)?;
            if self.vhosts[vhost.0].topology.exchange_key(&exchange.name).is_none() {
                self.make_exchange(vhost, &exchange.clone().into_request())?;
            }
        }
        for queue in file.queues.iter().filter(|queue| !definitions::is_reserved(&queue.name)) {
            let vhost = self.vhost_named(&queue.vhost)?;
            if self.vhosts[vhost.0].topology.queue(&queue.name).is_none() {
                let declare = queue.clone().into_request();
                let arguments = QueueArguments::parse(&queue.vhost, &queue.name, &declare.arguments)?;
                self.make_queue(now, None, vhost, queue.name.clone(), declare, arguments);
            }
            if self.commit_bytes > crate::limits::COMMIT_BYTES_SOFT {
                self.flush();
            }
        }
        for binding in &file.bindings {
            let vhost = self.vhost_named(&binding.vhost)?;
            let binding: Binding = binding.clone().into_request();
            if !binding.source.is_empty() {
                self.make_binding(now, vhost, &binding)?;
            }
        }
        Ok(())
    }

    /// What a file says that means nothing here is kept for the way back.
    fn keep_extras(&mut self, file: &Definitions) {
        let extras = Definitions {
            parameters: file.parameters.clone(),
            global_parameters: file.global_parameters.clone(),
            other: file.other.clone(),
            ..Definitions::default()
        };
        if extras != Definitions::default() {
            self.save(catalog::key_of(catalog::EXTRAS, "", b""), extras.to_json().into_bytes());
            self.extras = extras;
        }
    }

    /// Everything that is told once and kept, as a file that RabbitMQ reads too.
    fn export(&self) -> Definitions {
        let mut all = self.extras.clone();
        all.users = self.access.users().cloned().collect();
        all.permissions = self.access.permissions().cloned().collect();
        all.topic_permissions = self.access.topic_permissions().cloned().collect();
        all.vhost_limits = self.access.vhost_limits().map(|(vhost, limits)| (vhost.into(), *limits)).collect();
        for (.., vhost) in self.vhosts.iter() {
            all.vhosts.push(vhost.description.clone());
            all.policies.extend(vhost.policies.iter().cloned());
            all.operator_policies.extend(vhost.operator_policies.iter().cloned());
            let exchanges = vhost.topology.exchanges().map(|(_, exchange)| &exchange.record);
            let exchanges = exchanges.filter(|record| record.durable && !definitions::is_reserved(&record.name));
            all.exchanges.extend(exchanges.map(|record| ExchangeDefinition {
                name: record.name.clone(),
                vhost: vhost.name.clone(),
                kind: record.kind.clone(),
                durable: true,
                auto_delete: record.auto_delete,
                internal: record.internal,
                arguments: record.arguments.clone(),
            }));
            all.bindings.extend(vhost.topology.bindings().map(|binding| BindingDefinition {
                source: binding.source,
                vhost: vhost.name.clone(),
                destination: binding.destination,
                destination_type: match binding.to {
                    Destination::Queue => DestinationType::Queue,
                    Destination::Exchange => DestinationType::Exchange,
                },
                routing_key: binding.routing_key,
                arguments: binding.arguments,
            }));
        }
        all.queues = self.queues.iter().filter(|(.., queue)| queue.durable).map(|(.., queue)| self.definition(queue)).collect();
        all
    }

    fn definition(&self, queue: &crate::queue::Queue) -> QueueDefinition {
        QueueDefinition {
            name: queue.name.clone(),
            vhost: self.vhosts[queue.vhost.0].name.clone(),
            queue_type: Some(queue.arguments.queue_type.name().into()),
            durable: true,
            auto_delete: queue.auto_delete,
            arguments: queue.declared.clone(),
        }
    }
}

fn topic_permission_key(permission: &TopicPermission) -> Box<[u8]> {
    let rest = [permission.user.as_bytes(), b"\0", permission.exchange.as_bytes()].concat();
    catalog::key_of(catalog::TOPIC_PERMISSION, &permission.vhost, &rest)
}

pub(super) fn read<T: for<'a> Deserialize<'a>>(value: &[u8], what: &str) -> Result<T, Error> {
    serde_json::from_slice(value).map_err(|error| {
        Error::new(Reason::ResourceError, format!("the record of a {what} in the store can't be read: {error}"))
    })
}
