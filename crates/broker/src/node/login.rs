//! Who a connection is, and where it works.

use super::Effects;
use super::Node;
use crate::access::{Action, Resource, User};
use crate::error::{Error, Reason};
use crate::request::{ConnectionId, Event, Now, Outcome, PoolId, Reply};

impl Node {
    pub(super) fn authenticate(&mut self, id: ConnectionId, user: &str, password: &[u8]) -> Result<Reply, Error> {
        let is_loopback = self.connection(id).client.is_loopback;
        let result = self.access.login(user, password, is_loopback).cloned();
        self.logged_in(id, result)
    }

    pub(super) fn authenticate_as(&mut self, id: ConnectionId, user: &str) -> Result<Reply, Error> {
        let is_loopback = self.connection(id).client.is_loopback;
        let result = self.access.login_as(user, is_loopback).cloned();
        self.logged_in(id, result)
    }

    fn logged_in(&mut self, id: ConnectionId, result: Result<User, Error>) -> Result<Reply, Error> {
        match result {
            Ok(user) => {
                self.connection_mut(id).user = Some(user.name.clone());
                let (impersonator, counted) = (user.has_tag("impersonator"), user.limits.max_channels.is_some());
                Ok(Reply::Authenticated { user: user.name, impersonator, counted })
            }
            Err(error) => {
                self.counters.logins_refused += 1;
                let address = &self.connection(id).client.address;
                tracing::warn!(%address, reason = ?error.text, "login refused");
                Err(error)
            }
        }
    }

    pub(super) fn open_vhost(&mut self, id: ConnectionId, vhost: &str) -> Result<Reply, Error> {
        let Some(user) = self.connection(id).user.clone() else {
            return Err(Error::new(Reason::NotAllowed, "not logged in"));
        };
        let Some(&key) = self.vhost_names.get(vhost) else {
            return Err(Error::new(Reason::NotAllowed, format!("vhost {vhost} not found")));
        };
        self.access.open_vhost(&user, vhost)?;
        let has_limits = self.access.vhost_limits().next().is_some()
            || self.access.user(&user).is_some_and(|user| user.limits.max_connections.is_some());
        if has_limits {
            let opened = || self.connections.iter().filter(|(.., other)| other.vhost.is_some());
            let of_user = opened().filter(|(.., other)| other.user.as_deref() == Some(&*user)).count();
            let of_vhost = opened().filter(|(.., other)| other.vhost == Some(key)).count();
            self.access.check_connection_limits(&user, vhost, of_user, of_vhost)?;
        }
        self.connection_mut(id).vhost = Some(key);
        Ok(Reply::Done { safe_at: None })
    }

    pub(super) fn open_pool(&mut self, id: ConnectionId, pool: PoolId) -> Result<Reply, Error> {
        let user = self.connection(id).user.clone().unwrap_or_default();
        let of_user = self.connections.iter().filter(|(.., other)| other.user.as_deref() == Some(&*user));
        let count = of_user.map(|(.., other)| other.counted_pools.len()).sum();
        self.access.check_channel_limit(&user, count)?;
        self.connection_mut(id).counted_pools.insert(pool);
        Ok(Reply::Done { safe_at: None })
    }

    /// The same user shows its secret again: routes are looked up, and rights asked, anew.
    pub(super) fn update_secret(&mut self, id: ConnectionId, secret: &[u8]) -> Result<Reply, Error> {
        let connection = self.connection(id);
        let user = connection.user.clone().unwrap_or_default();
        self.access.login(&user, secret, connection.client.is_loopback)?;
        self.connection_mut(id).routes.clear();
        Ok(Reply::Done { safe_at: None })
    }

    /// Rights were taken away: consumers that may no longer read their queue end, routes are looked up anew.
    pub(super) fn recheck_rights(&mut self, now: Now, effects: &mut Effects) {
        self.version += 1;
        let mut ended = Vec::new();
        for (slot, generation, connection) in self.connections.iter() {
            let id = ConnectionId { slot, generation };
            let (Some(user), Some(vhost)) = (&connection.user, connection.vhost) else { continue };
            let vhost = &self.vhosts[vhost.0].name;
            if self.access.open_vhost(user, vhost).is_err() {
                effects.events.push((id, Event::Close { reason: "access to the vhost was withdrawn".into() }));
                continue;
            }
            for (link, consumer) in &connection.links {
                let Some(queue) = consumer.queue.and_then(|key| self.queues.at(key.0)) else { continue };
                if self.access.authorise(user, vhost, Action::Read, Resource::Queue(&queue.name)).is_err() {
                    ended.push((id, *link, queue.key));
                }
            }
        }
        for (id, link, key) in ended {
            self.settle(now, id, link, 0, u64::MAX, Outcome::Release);
            self.connection_mut(id).links.remove(&link);
            self.consumer_gone(now, key, id, link);
            effects.events.push((id, Event::Cancelled { link }));
        }
        self.delete_unused(now, effects);
    }
}
