//! `tx`: publishes and settles that become one commit.

use super::{Effects, Node, Published, THIS_COMMIT};
use crate::error::Error;
use crate::limits;
use crate::request::{ConnectionId, LinkId, Now, Outcome, Publish, Reply};

#[derive(Default)]
pub(super) struct Transaction {
    publishes: Vec<Publish>,
    settles: Vec<Settle>,
    bytes: usize,
}

pub(super) struct Settle {
    pub link: LinkId,
    pub first: u64,
    pub count: u64,
    pub outcome: Outcome,
}

impl Node {
    /// A transaction that grows too large ends its channel there and then: nobody may make us keep more.
    pub(super) fn note_publish(&mut self, id: ConnectionId, ticket: u32, publish: Publish) -> Option<Error> {
        let transaction = self.connection_mut(id).transactions.entry(ticket).or_default();
        transaction.bytes += publish.batch.size();
        if transaction.bytes > limits::TRANSACTION_BYTES_MAX {
            let text = format!("transaction of more than {} bytes", limits::TRANSACTION_BYTES_MAX);
            self.connection_mut(id).transactions.remove(&ticket);
            return Some(Error::precondition(text));
        }
        transaction.publishes.push(publish);
        None
    }

    pub(super) fn note_settle(&mut self, id: ConnectionId, ticket: u32, settle: Settle) {
        self.connection_mut(id).transactions.entry(ticket).or_default().settles.push(settle);
    }

    /// Everything at once: the whole transaction is one commit, and safe with it.
    pub(super) fn commit_transaction(
        &mut self,
        now: Now,
        id: ConnectionId,
        ticket: u32,
        effects: &mut Effects,
    ) -> Result<Reply, Error> {
        self.settle_down(now, effects, &mut []);
        let transaction = self.connection_mut(id).transactions.remove(&ticket).unwrap_or_default();
        let mut published = Published::default();
        let mut unroutable = Vec::new();
        for (number, mut publish) in transaction.publishes.into_iter().enumerate() {
            publish.confirm = true;
            let way = self.way_of(id, &publish.route)?;
            self.send(now, id, &way, &publish, &mut published);
            unroutable.extend(published.unroutable.drain(..).map(|records| (number, records)));
        }
        for settle in transaction.settles {
            self.settle(now, id, settle.link, settle.first, settle.count, settle.outcome);
        }
        if !self.commit.is_empty() {
            self.commit.level = storage::Level::Sync;
        }
        if !published.refused.is_empty() {
            return Err(Error::precondition("partial tx completion"));
        }
        Ok(Reply::Committed { safe_at: Some(THIS_COMMIT), unroutable })
    }
}
