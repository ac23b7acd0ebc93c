//! stub
use super::*;
pub struct Answer; pub struct Change;
impl Node {
    pub(super) fn authenticate(&mut self, id: ConnectionId, user: &str, _p: &[u8]) -> Result<Reply, Error> { self.authenticate_as(id, user) }
    pub(super) fn authenticate_as(&mut self, id: ConnectionId, user: &str) -> Result<Reply, Error> { self.connection_mut(id).user = Some(user.into()); Ok(Reply::Authenticated { user: user.into(), impersonator: false }) }
    pub(super) fn open_vhost(&mut self, id: ConnectionId, v: &str) -> Result<Reply, Error> { let k = self.known_vhost(v)?; self.connection_mut(id).vhost = Some(k); Ok(Reply::Done { safe_at: None }) }
    pub(super) fn update_secret(&mut self, _id: ConnectionId, _s: &[u8]) -> Result<Reply, Error> { Ok(Reply::Done { safe_at: None }) }
    pub(super) fn make_first_user(&mut self, _u: &str, _p: &[u8], _v: &str) -> Result<(), Error> { Ok(()) }
    pub(super) fn recover_access(&mut self, _k: &catalog::Keys) -> Result<(), Error> { Ok(()) }
    pub(super) fn recover_policies(&mut self, _k: &catalog::Keys) -> Result<(), Error> { Ok(()) }
    pub(super) fn apply_exchange_policy(&mut self, _v: VhostKey, _n: &str) {}
    pub(super) fn effective_queue_arguments(&self, _v: VhostKey, _n: &str, a: &crate::arguments::QueueArguments) -> crate::arguments::QueueArguments { a.clone() }
}
