//! A channel: what each frame and method does to it.
//!
//! ```text
//!          open                  an error of its own: channel.close said
//! (none) ---------> Open ------------------------------------------------> Closed
//!    ^               |  close                                                 |   everything but close and
//!    |               v                                                        |   close-ok is dropped
//!    +<---------- Leaving (the pool is being closed)                          |
//!    |  close-ok said                                                         |
//!    +<-----------------------------------------------------------------------+
//!                                    close-ok
//! ```

use crate::confirm::Confirmed;
use crate::connection::{Connection, Pending, Step};
use crate::deliver::{self, LinkState, TagBook, TagRun};
use crate::error::{Code, Refusal};
use crate::frame::{self, Frame};
use crate::limits::{BODY_BYTES_CEILING, COLLECTED_MESSAGES_MAX, TX_MANDATORY_BYTES_MAX};
use crate::method::{self, Method, PUBLISH};
use crate::publish::{self, Author, Collecting, Content, Pieces, Publisher, Whole};
use crate::reader::Malformed;
use broker::{Batch, LinkId, Outcome, Reply, Request};
use protocol::Now;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Open,
    /// The client closes it.
    Leaving,
    /// We closed it; the client has not said close-ok yet.
    Closed,
}

/// What acks and publishes wait for between tx.select and its end.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// Settled in it: back into the tag book by a rollback.
    settled: Vec<TagRun>,
    /// Its publishes in order; those that are mandatory with what may have to be returned at the commit.
    published: Vec<Option<Arc<Batch>>>,
    mandatory_bytes: usize,
}

impl Transaction {
    /// Notes a publish. A transaction that grows too large is refused whole by the broker, so nothing of it need be kept.
    pub fn note_publish(&mut self, mandatory: Option<Arc<Batch>>) {
        self.mandatory_bytes += mandatory.as_ref().map_or(0, |batch| batch.size());
        self.published.push(mandatory.filter(|_| self.mandatory_bytes <= TX_MANDATORY_BYTES_MAX));
    }
}

#[derive(Debug)]
pub struct Channel {
    number: u16,
    /// This life of the number.
    pub(crate) epoch: u32,
    state: State,
    content: Content,
    publisher: Publisher,
    is_confirming: bool,
    pub(crate) confirmed: Confirmed,
    pub(crate) transaction: Option<Transaction>,
    /// Of the next delivery.
    pub(crate) next_tag: u64,
    pub(crate) book: TagBook,
    consumers: BTreeMap<Box<str>, LinkId>,
    getter: Option<LinkId>,
    /// The consumer of amq.rabbitmq.reply-to, and the address given to it.
    reply: Option<(LinkId, Box<str>)>,
    /// Of consumers to come.
    prefetch: u16,
    /// The queue that an empty name means.
    pub(crate) last_queue: Box<str>,
}

/// What to do when a barrier's answer has come.
#[derive(Debug)]
pub(crate) enum Then {
    Login,
    Enter,
    NewSecret,
    /// `None`: the client wants no answer.
    Say(Option<Method<'static>>),
    Declared {
        nowait: bool,
    },
    Purged {
        nowait: bool,
    },
    Deleted {
        nowait: bool,
    },
    Consume {
        link: LinkId,
        nowait: bool,
    },
    ReplyConsume {
        link: LinkId,
        nowait: bool,
    },
    Cancel {
        link: LinkId,
        nowait: bool,
    },
    Get {
        link: LinkId,
        no_ack: bool,
    },
    Commit,
    Rollback,
    Leave,
    /// The whole connection.
    Bye,
}

impl Channel {
    pub(crate) fn new(number: u16, epoch: u32) -> Channel {
        Channel {
            number,
            epoch,
            state: State::Open,
            content: Content::Nothing,
            publisher: Publisher::default(),
            is_confirming: false,
            confirmed: Confirmed::default(),
            transaction: None,
            next_tag: 1,
            book: TagBook::default(),
            consumers: BTreeMap::new(),
            getter: None,
            reply: None,
            prefetch: 0,
            last_queue: Box::default(),
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open
    }

    pub(crate) fn flush_run(&mut self, requests: &mut Vec<Request>, pending: &mut VecDeque<Pending>) {
        if let Some(run) = self.publisher.end_run() {
            self.sender().1.send(run, requests, pending);
        }
    }

    /// The publisher, and where its runs go.
    fn sender(&mut self) -> (&mut Publisher, Sender<'_>) {
        let sender = Sender {
            number: self.number,
            epoch: self.epoch,
            is_confirming: self.is_confirming,
            is_transactional: self.transaction.is_some(),
            published: &mut self.confirmed.published,
        };
        (&mut self.publisher, sender)
    }
}

/// Sends runs of a channel to the broker.
struct Sender<'a> {
    number: u16,
    epoch: u32,
    is_confirming: bool,
    is_transactional: bool,
    published: &'a mut u64,
}

impl Sender<'_> {
    fn send(&mut self, run: publish::Run, requests: &mut Vec<Request>, pending: &mut VecDeque<Pending>) {
        let publish::Run { mut publish, count, mandatory } = run;
        publish.confirm = self.is_confirming;
        publish.transactional = self.is_transactional;
        let first = *self.published + 1;
        *self.published += u64::from(count);
        pending.push_back(Pending::Publish {
            channel: self.number,
            epoch: self.epoch,
            first,
            count,
            confirm: self.is_confirming,
            returns: mandatory.then(|| publish.batch.clone()),
        });
        requests.push(Request::Publish { ticket: self.number.into(), publish });
    }
}

impl Connection {
    pub(crate) fn handle_channel_frame(
        &mut self,
        now: Now,
        frame: Frame<'_>,
        input: &[u8],
        requests: &mut Vec<Request>,
    ) -> Step {
        let number = frame.channel;
        let took = Step::Took(frame.size());
        let Some(channel) = self.channels.get_mut(number) else {
            return self.handle_unopened(now, frame, requests);
        };
        match channel.state {
            State::Open => {}
            State::Closed => {
                self.handle_closed(frame);
                return took;
            }
            State::Leaving => return Step::Wait,
        }
        if frame.kind == frame::METHOD
            && let Some(([0, 60, 0, 40], _)) = frame.payload.split_first_chunk::<4>()
            && matches!(channel.content, Content::Nothing)
        {
            let rest = input.get(frame.size()..).unwrap_or_default();
            let tail = frame.payload.get(6..).unwrap_or_default();
            let (frame_max, body_max) = (self.frame_max, self.settings.message_bytes_max);
            if let Some(whole) = Whole::find(rest, number, frame_max, body_max) {
                let consumed = frame.size() + whole.consumed;
                self.publish(now, number, tail, whole.properties, &[whole.body], requests);
                let method_frame = input.get(..frame.size()).unwrap_or_default();
                let rest = input.get(consumed..).unwrap_or_default();
                return Step::Took(consumed + self.publish_alike(now, number, method_frame, whole.properties, rest, requests));
            }
            if let Some(pieces) = Pieces::find(rest, number, frame_max, body_max) {
                let consumed = frame.size() + pieces.consumed;
                self.publish(now, number, tail, pieces.properties, pieces.body(), requests);
                return Step::Took(consumed);
            }
        }
        match self.handle_open(now, frame, requests) {
            Ok(step) => step,
            Err(refusal) => {
                self.refuse(now, number, refusal, requests);
                took
            }
        }
    }

    /// A frame of a channel that doesn't exist: only channel.open may be.
    fn handle_unopened(&mut self, now: Now, frame: Frame<'_>, requests: &mut Vec<Request>) -> Step {
        let number = frame.channel;
        let refusal = match frame.kind {
            frame::METHOD => match method::split(frame.payload) {
                Some((id, fields)) => match Method::decode(id, fields) {
                    Ok(Method::ChannelOpen { .. }) if self.counts_channels && !self.is_quiet(requests) => return Step::Wait,
                    Ok(Method::ChannelOpen { .. }) => match self.open_channel(number) {
                        Ok(()) if self.counts_channels => {
                            let answer = Method::ChannelOpenOk { channel_id: method::Long(&[]) };
                            let request = Request::OpenPool { pool: number.into() };
                            self.ask(number, id, Then::Say(Some(answer)), request, requests);
                            return Step::Barrier(frame.size());
                        }
                        Ok(()) => {
                            self.say(number, &Method::ChannelOpenOk { channel_id: method::Long(&[]) });
                            return Step::Took(frame.size());
                        }
                        Err(refusal) => refusal.at(id),
                    },
                    Ok(_) => Refusal::channel_error("expected 'channel.open'").at(id),
                    Err(malformed) => Refusal::of_method(malformed, id, fields),
                },
                None => Refusal::of_frame(frame.kind, frame.payload, "unknown_frame"),
            },
            frame::HEADER | frame::BODY => Refusal::unexpected("expected method frame, got non method frame instead"),
            frame::HEARTBEAT => Refusal::misplaced(frame.kind, frame.payload),
            _ => Refusal::of_frame(frame.kind, frame.payload, "unknown_frame"),
        };
        self.refuse(now, 0, refusal, requests);
        Step::Took(frame.size())
    }

    /// A frame of a channel that we closed: dropped, until the client has heard of it.
    fn handle_closed(&mut self, frame: Frame<'_>) {
        match (frame.kind, method::split(frame.payload)) {
            (frame::METHOD, Some(((20, 41), _))) => self.channels.remove(frame.channel),
            // Both sides close at once.
            (frame::METHOD, Some(((20, 40), _))) => self.say(frame.channel, &Method::ChannelCloseOk {}),
            _ => {}
        }
    }

    /// A frame of an open channel; the refusal ends the channel or the connection.
    fn handle_open(&mut self, now: Now, frame: Frame<'_>, requests: &mut Vec<Request>) -> Result<Step, Refusal> {
        let (number, payload) = (frame.channel, frame.payload);
        let took = Step::Took(frame.size());
        let unknown = || Refusal::of_frame(frame.kind, payload, "unknown_frame");
        match frame.kind {
            frame::METHOD => {
                let (id, fields) = method::split(payload).ok_or_else(unknown)?;
                match self.channels.get_mut(number).map(|channel| &channel.content) {
                    Some(Content::Nothing) | None => {}
                    Some(Content::Method(_)) => return Err(no_header()),
                    Some(Content::Collecting(_)) => return Err(no_body()),
                }
                match id {
                    PUBLISH => {
                        let short = || Refusal::of_method(Malformed::Length, id, fields);
                        let (_ticket, tail) = fields.split_first_chunk::<2>().ok_or_else(short)?;
                        if let Some(channel) = self.channels.get_mut(number) {
                            channel.content = Content::Method(tail.into());
                        }
                    }
                    (60, 80 | 90 | 120) => {
                        let method =
                            Method::decode(id, fields).map_err(|malformed| Refusal::of_method(malformed, id, fields))?;
                        self.settle(number, &method, requests)?;
                    }
                    _ => {
                        if !self.is_quiet(requests) {
                            return Ok(Step::Wait);
                        }
                        let method =
                            Method::decode(id, fields).map_err(|malformed| Refusal::of_method(malformed, id, fields))?;
                        self.handle_method(number, &method, requests).map_err(|refusal| refusal.at(id))?;
                        return Ok(if self.pending.is_empty() { took } else { Step::Barrier(frame.size()) });
                    }
                }
            }
            frame::HEADER => {
                let (class, size, properties) = publish::header(payload).ok_or_else(unknown)?;
                self.handle_header(now, number, class, size, properties, requests)?;
            }
            frame::BODY => self.handle_body(now, number, payload, requests)?,
            frame::HEARTBEAT => return Err(Refusal::misplaced(frame.kind, payload)),
            _ => return Err(unknown()),
        }
        Ok(took)
    }

    fn handle_header(
        &mut self,
        now: Now,
        number: u16,
        class: u16,
        size: u64,
        properties: &[u8],
        requests: &mut Vec<Request>,
    ) -> Result<(), Refusal> {
        let message_max = self.settings.message_bytes_max;
        let Some(channel) = self.channels.get_mut(number) else { return Ok(()) };
        let tail = match std::mem::take(&mut channel.content) {
            Content::Method(tail) => tail,
            Content::Nothing => return Err(no_method()),
            Content::Collecting(_) => return Err(no_body()),
        };
        if class != PUBLISH.0 {
            let text = format!("expected content header for class 60, got one for class {class} instead");
            return Err(Refusal::unexpected(text).at(PUBLISH));
        }
        if size > BODY_BYTES_CEILING {
            let text = format!("content body size {size} exceeds maximum allowed size {BODY_BYTES_CEILING}");
            return Err(Refusal::new(Code::FrameError, text).at(PUBLISH));
        }
        if size > message_max {
            let text = format!("message size {size} is larger than configured max size {message_max}");
            return Err(Refusal::precondition(text).at(PUBLISH));
        }
        if size == 0 {
            self.publish(now, number, &tail, properties, &[], requests);
        } else {
            let collecting = Collecting { tail, properties: properties.into(), size, body: Vec::new() };
            channel.content = Content::Collecting(Box::new(collecting));
        }
        Ok(())
    }

    fn handle_body(&mut self, now: Now, number: u16, piece: &[u8], requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let Some(channel) = self.channels.get_mut(number) else { return Ok(()) };
        let collecting = match &mut channel.content {
            Content::Collecting(collecting) => collecting,
            Content::Method(_) => return Err(no_header()),
            Content::Nothing => return Err(no_method()),
        };
        if (collecting.body.len() + piece.len()) as u64 > collecting.size {
            return Err(Refusal::new(Code::FrameError, "content body frame exceeds remaining content size").at(PUBLISH));
        }
        collecting.add(piece);
        let is_complete = collecting.is_complete();
        self.collected += piece.len() as u64;
        if is_complete {
            if let Some(channel) = self.channels.get_mut(number)
                && let Content::Collecting(whole) = std::mem::take(&mut channel.content)
            {
                self.collected = self.collected.saturating_sub(whole.size);
                self.publish(now, number, &whole.tail, &whole.properties, &[&whole.body], requests);
            }
        } else if self.collected > COLLECTED_MESSAGES_MAX * self.settings.message_bytes_max {
            return Err(Refusal::new(Code::ResourceError, "too many unfinished messages on one connection").at(PUBLISH));
        }
        Ok(())
    }

    /// A message is complete.
    #[inline]
    fn publish(&mut self, now: Now, number: u16, tail: &[u8], properties: &[u8], body: &[&[u8]], requests: &mut Vec<Request>) {
        let Some(channel) = self.channels.get_mut(number) else { return };
        let Channel { publisher, reply, confirmed, is_confirming, transaction, epoch, .. } = channel;
        let author = Author {
            user: &self.user,
            may_impersonate: self.may_impersonate,
            reply_address: reply.as_ref().map(|(_, name)| &**name),
        };
        if !publisher.has_run() {
            self.open_runs.push(number);
        }
        let mut sender = Sender {
            number,
            epoch: *epoch,
            is_confirming: *is_confirming,
            is_transactional: transaction.is_some(),
            published: &mut confirmed.published,
        };
        let pending = &mut self.pending;
        if let Err(refusal) = publisher.add(now, tail, properties, body, author, |run| sender.send(run, requests, pending)) {
            self.refuse(now, number, refusal, requests);
        }
    }

    /// A message has been published: takes those behind it that are like it.
    #[inline]
    fn publish_alike(
        &mut self,
        now: Now,
        number: u16,
        method_frame: &[u8],
        properties: &[u8],
        rest: &[u8],
        requests: &mut Vec<Request>,
    ) -> usize {
        let bytes_max = self.settings.message_bytes_max.min(u64::from(self.frame_max) - 8);
        let Some(channel) = self.channels.get_mut(number).filter(|channel| channel.is_open()) else { return 0 };
        channel.publisher.remember(method_frame, properties);
        let (publisher, mut sender) = channel.sender();
        let pending = &mut self.pending;
        let taken = publisher.add_alike(now, rest, bytes_max, |run| sender.send(run, requests, pending));
        if taken > 0 && publisher.has_run() && self.open_runs.last() != Some(&number) {
            self.open_runs.push(number);
        }
        taken
    }

    /// basic.ack, basic.nack, basic.reject.
    fn settle(&mut self, number: u16, method: &Method<'_>, requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let (tag, multiple, outcome) = match *method {
            Method::BasicAck { delivery_tag, multiple } => (delivery_tag, multiple, Outcome::Accept),
            Method::BasicNack { delivery_tag, multiple, requeue: true } => {
                (delivery_tag, multiple, Outcome::Requeue { failed: false })
            }
            Method::BasicReject { delivery_tag, requeue: true } => (delivery_tag, false, Outcome::Requeue { failed: true }),
            Method::BasicNack { delivery_tag, multiple, .. } => (delivery_tag, multiple, Outcome::Reject),
            Method::BasicReject { delivery_tag, .. } => (delivery_tag, false, Outcome::Reject),
            _ => return Ok(()),
        };
        // What was published before must not be behind it.
        self.flush_run(number, requests);
        let Some(channel) = self.channels.get_mut(number) else { return Ok(()) };
        let runs = &mut self.scratch;
        runs.clear();
        let is_known = match (tag, multiple) {
            (0, true) => {
                channel.book.take_all(runs);
                true
            }
            (tag, true) => channel.book.take_to(tag, runs),
            (tag, false) => {
                runs.extend(channel.book.take(tag));
                !runs.is_empty()
            }
        };
        if !is_known {
            return Err(Refusal::precondition(format!("unknown delivery tag {tag}")).at(method.id()));
        }
        if outcome == Outcome::Accept && runs.len() > 2 {
            // Consumers that take turns leave short runs: together they are one per link again. Order is nothing to an accept.
            runs.sort_unstable_by_key(|run| (run.link, run.number));
        }
        let transactional = channel.transaction.is_some();
        for run in runs.iter() {
            match &mut channel.transaction {
                Some(transaction) => transaction.settled.push(*run),
                None => self.links.settled(run.link, run.count),
            }
            put_settle(requests, &mut self.pending, number, *run, outcome, transactional);
        }
        Ok(())
    }

    /// Ends a channel by an error.
    pub(crate) fn close_channel(&mut self, number: u16, refusal: &Refusal, requests: &mut Vec<Request>) {
        self.flush_run(number, requests);
        let Some(channel) = self.channels.get_mut(number).filter(|channel| channel.is_open()) else { return };
        let epoch = channel.epoch;
        // All that is left of it is its number.
        let mut closed = Channel::new(number, epoch);
        closed.state = State::Closed;
        let was = std::mem::replace(channel, closed);
        if let Content::Collecting(collecting) = &was.content {
            self.collected = self.collected.saturating_sub(collecting.body.len() as u64);
        }
        requests.push(Request::ClosePool { pool: number.into() });
        self.pending.push_back(Pending::Closed { channel: number, epoch });
        let text = refusal.reply_text();
        let (class_id, method_id) = refusal.method;
        self.say(number, &Method::ChannelClose { reply_code: refusal.code as u16, reply_text: &text, class_id, method_id });
    }

    fn handle_method(&mut self, number: u16, method: &Method<'_>, requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let id = method.id();
        let pool = u32::from(number);
        let Some(channel) = self.channels.get_mut(number) else { return Ok(()) };
        match *method {
            Method::ChannelOpen { .. } => return Err(Refusal::channel_error("second 'channel.open' seen")),
            Method::ChannelClose { .. } => {
                channel.state = State::Leaving;
                self.ask(number, id, Then::Leave, Request::ClosePool { pool }, requests);
            }
            Method::ChannelCloseOk {} | Method::ChannelFlowOk { .. } => {}
            Method::ChannelFlow { active: true } => self.say(number, &Method::ChannelFlowOk { active: true }),
            Method::ChannelFlow { active: false } => return Err(Refusal::not_implemented("active=false")),
            Method::AccessRequest { .. } => self.say(number, &Method::AccessRequestOk { ticket: 1 }),

            Method::ExchangeDeclare { .. }
            | Method::ExchangeDelete { .. }
            | Method::ExchangeBind { .. }
            | Method::ExchangeUnbind { .. }
            | Method::QueueDeclare { .. }
            | Method::QueueBind { .. }
            | Method::QueuePurge { .. }
            | Method::QueueDelete { .. }
            | Method::QueueUnbind { .. } => return self.declare(number, method, requests),

            Method::BasicQos { prefetch_size, .. } if prefetch_size != 0 => {
                return Err(Refusal::not_implemented(format!("prefetch_size!=0 ({prefetch_size})")));
            }
            Method::BasicQos { prefetch_count, global: false, .. } => {
                channel.prefetch = prefetch_count;
                self.say(number, &Method::BasicQosOk {});
            }
            Method::BasicQos { prefetch_count, .. } => {
                let request = Request::SetWindow { pool, window: prefetch_count.into() };
                self.ask(number, id, Then::Say(Some(Method::BasicQosOk {})), request, requests);
            }
            Method::BasicConsume { .. } => return self.consume(number, method, requests),
            Method::BasicCancel { consumer_tag, nowait } => match channel.consumers.get(consumer_tag) {
                Some(&link) => self.ask(number, id, Then::Cancel { link, nowait }, Request::Cancel { link }, requests),
                None if nowait => {}
                None => self.say(number, &Method::BasicCancelOk { consumer_tag }),
            },
            // The answer to our own basic.cancel, which asks for none.
            Method::BasicCancelOk { .. } => {}
            Method::BasicGet { queue, no_ack, .. } => {
                let queue: Box<str> = channel.named(queue)?.into();
                let epoch = channel.epoch;
                let links = &mut self.links;
                let link =
                    *channel.getter.get_or_insert_with(|| links.open(number, epoch, Box::default(), false, LinkState::Live));
                let request = Request::Get { link, pool, queue, auto_settle: no_ack };
                self.ask(number, id, Then::Get { link, no_ack }, request, requests);
            }
            Method::BasicRecover { requeue: false } | Method::BasicRecoverAsync { requeue: false } => {
                return Err(Refusal::not_implemented("requeue=false"));
            }
            Method::BasicRecover { .. } => self.recover(number, Some(Method::BasicRecoverOk {}), requests),
            Method::BasicRecoverAsync { .. } => self.recover(number, None, requests),

            Method::ConfirmSelect { .. } if channel.transaction.is_some() => {
                return Err(Refusal::precondition("cannot switch from tx to confirm mode"));
            }
            Method::ConfirmSelect { nowait } => {
                if !channel.is_confirming {
                    // Numbers count from here.
                    channel.is_confirming = true;
                    channel.confirmed = Confirmed::default();
                }
                if !nowait {
                    self.say(number, &Method::ConfirmSelectOk {});
                }
            }
            Method::TxSelect {} if channel.is_confirming => {
                return Err(Refusal::precondition("cannot switch from confirm to tx mode"));
            }
            Method::TxSelect {} => {
                channel.transaction.get_or_insert_default();
                self.say(number, &Method::TxSelectOk {});
            }
            Method::TxCommit {} | Method::TxRollback {} if channel.transaction.is_none() => {
                return Err(Refusal::precondition("channel is not transactional"));
            }
            Method::TxCommit {} => self.ask(number, id, Then::Commit, Request::Commit { ticket: pool }, requests),
            Method::TxRollback {} => self.ask(number, id, Then::Rollback, Request::Rollback { ticket: pool }, requests),
            _ => return Err(Refusal::new(Code::CommandInvalid, "unimplemented method")),
        }
        Ok(())
    }

    fn consume(&mut self, number: u16, method: &Method<'_>, requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let Method::BasicConsume { queue, consumer_tag, no_ack, exclusive, nowait, arguments, .. } = *method else {
            return Ok(());
        };
        let id = method.id();
        let Some(channel) = self.channels.get_mut(number) else { return Ok(()) };
        if channel.consumers.contains_key(consumer_tag) {
            return Err(Refusal::not_allowed(format!("attempt to reuse consumer tag '{consumer_tag}'")));
        }
        let epoch = channel.epoch;
        let is_reply = queue == publish::REPLY_TO;
        if is_reply && !no_ack {
            return Err(Refusal::precondition("reply consumer cannot acknowledge"));
        }
        if is_reply && channel.reply.is_some() {
            return Err(Refusal::precondition("reply consumer already set"));
        }
        let queue: Box<str> = channel.named(queue)?.into();
        let window = if no_ack { 0 } else { channel.prefetch.into() };
        let tag = if consumer_tag.is_empty() { self.made_up_name("amq.ctag") } else { consumer_tag.into() };
        let link = self.links.open(number, epoch, tag.clone(), no_ack, LinkState::Opening(Vec::new()));
        if is_reply {
            self.ask(number, id, Then::ReplyConsume { link, nowait }, Request::OpenReplyAddress { link }, requests);
            return Ok(());
        }
        let arguments = crate::field_table::decode(arguments.0).map_err(Refusal::of_table)?;
        let pool = number.into();
        let consume = broker::Consume { link, pool, queue, tag, auto_settle: no_ack, exclusive, window, arguments };
        self.ask(number, id, Then::Consume { link, nowait }, Request::Consume(Box::new(consume)), requests);
        Ok(())
    }

    fn recover(&mut self, number: u16, answer: Option<Method<'static>>, requests: &mut Vec<Request>) {
        let Some(channel) = self.channels.get_mut(number) else { return };
        let mut runs = std::mem::take(&mut self.scratch);
        runs.clear();
        channel.book.take_all(&mut runs);
        for run in runs.iter() {
            self.links.settled(run.link, run.count);
            put_settle(requests, &mut self.pending, number, *run, Outcome::Requeue { failed: false }, false);
        }
        self.scratch = runs;
        match (answer, self.pending.pop_back()) {
            // The last of them carries the answer.
            (Some(answer), Some(_)) => self.expect(number, (60, 110), Then::Say(Some(answer))),
            (Some(answer), None) => self.say(number, &answer),
            (None, last) => self.pending.extend(last),
        }
    }

    /// A barrier was refused.
    pub(crate) fn handle_failed(&mut self, now: Now, number: u16, then: Then, refusal: Refusal, requests: &mut Vec<Request>) {
        match then {
            Then::Consume { link, .. } | Then::ReplyConsume { link, .. } => self.links.gone(link),
            // Leaving can't be refused.
            Then::Leave => return self.handle_done(now, number, then, Reply::Done { safe_at: None }, requests),
            _ => {}
        }
        self.refuse(now, number, refusal, requests);
    }

    /// A barrier of a channel is answered.
    pub(crate) fn handle_done(&mut self, now: Now, number: u16, then: Then, reply: Reply, requests: &mut Vec<Request>) {
        if let Reply::Done { safe_at: Some(position) }
        | Reply::Committed { safe_at: Some(position), .. }
        | Reply::Queue { safe_at: Some(position), .. }
        | Reply::Removed { safe_at: Some(position), .. } = reply
        {
            self.outbox.gate(position);
        }
        let out = self.outbox.buffer();
        let Some(channel) = self.channels.get_mut(number) else { return };
        if channel.state == State::Closed {
            return;
        }
        match (then, reply) {
            (Then::Say(answer), _) => {
                if let Some(answer) = answer {
                    method::put(out, number, &answer);
                }
            }
            (Then::Declared { nowait }, Reply::Queue { facts, .. }) => {
                if !nowait {
                    let answer = Method::QueueDeclareOk {
                        queue: &facts.name,
                        message_count: facts.messages.try_into().unwrap_or(u32::MAX),
                        consumer_count: facts.consumers,
                    };
                    method::put(out, number, &answer);
                }
                channel.last_queue = facts.name;
            }
            (Then::Purged { nowait }, Reply::Removed { messages, .. }) if !nowait => {
                let message_count = messages.try_into().unwrap_or(u32::MAX);
                method::put(out, number, &Method::QueuePurgeOk { message_count });
            }
            (Then::Deleted { nowait }, Reply::Removed { messages, .. }) if !nowait => {
                let message_count = messages.try_into().unwrap_or(u32::MAX);
                method::put(out, number, &Method::QueueDeleteOk { message_count });
            }
            (Then::Consume { link, nowait }, _) => {
                let Some(tag) = self.links.get_mut(link).map(|link| link.tag.clone()) else { return };
                if !nowait {
                    method::put(out, number, &Method::BasicConsumeOk { consumer_tag: &tag });
                }
                channel.consumers.insert(tag, link);
                self.deliver_early(link);
            }
            (Then::ReplyConsume { link, nowait }, Reply::ReplyAddress { name }) => {
                let Some(tag) = self.links.get_mut(link).map(|link| link.tag.clone()) else { return };
                if !nowait {
                    method::put(out, number, &Method::BasicConsumeOk { consumer_tag: &tag });
                }
                channel.consumers.insert(tag, link);
                channel.reply = Some((link, name));
                self.deliver_early(link);
            }
            (Then::Cancel { link, nowait }, _) => {
                let Some(consumer_tag) = self.links.get_mut(link).map(|link| link.tag.clone()) else { return };
                channel.forget_consumer(link, &consumer_tag);
                if !nowait {
                    method::put(out, number, &Method::BasicCancelOk { consumer_tag: &consumer_tag });
                }
                self.links.gone(link);
            }
            (Then::Get { link, no_ack }, Reply::Got { delivery, left }) => {
                let Some(delivery) = delivery else {
                    return method::put(out, number, &Method::BasicGetEmpty { cluster_id: "" });
                };
                let tag = channel.next_tag;
                channel.next_tag += 1;
                if !no_ack {
                    channel.book.push(TagRun { tag, count: 1, link, number: delivery.number });
                    if let Some(link) = self.links.get_mut(link) {
                        link.held += 1;
                    }
                }
                deliver::put_got(out, number, &delivery, tag, left, self.frame_max);
            }
            (Then::Commit, Reply::Committed { unroutable, .. }) => {
                let published = channel.transaction.as_ref().map_or(&[][..], |transaction| &transaction.published);
                for (publish, records) in unroutable {
                    if let Some(Some(batch)) = published.get(publish) {
                        deliver::put_returns(out, number, batch, records, self.frame_max);
                    }
                }
                method::put(out, number, &Method::TxCommitOk {});
                for run in channel.transaction.replace(Transaction::default()).unwrap_or_default().settled {
                    self.links.settled(run.link, run.count);
                }
            }
            (Then::Rollback, _) => {
                let mut settled = channel.transaction.replace(Transaction::default()).unwrap_or_default().settled;
                channel.book.restore(&mut settled);
                method::put(out, number, &Method::TxRollbackOk {});
            }
            (Then::Leave, _) => {
                let epoch = channel.epoch;
                // Free before the client can know it: it may open the number again at once.
                self.channels.remove(number);
                self.links.forget(number, epoch);
                self.say(number, &Method::ChannelCloseOk {});
            }
            (Then::Purged { .. } | Then::Deleted { .. }, _) => {}
            (then, reply) => {
                let text = format!("no answer for {then:?} in {reply:?}");
                self.refuse(now, number, Refusal::new(Code::InternalError, text), requests);
            }
        }
    }

    /// The queue is gone, or the right to read it.
    pub(crate) fn handle_cancelled(&mut self, link: LinkId) {
        let Some((number, epoch, tag)) = self.links.get_mut(link).map(|link| (link.channel, link.epoch, link.tag.clone()))
        else {
            return;
        };
        let is_told = self.capabilities.cancel_notify;
        if let Some(channel) = self.living(number, epoch) {
            if channel.getter == Some(link) {
                channel.getter = None;
            } else {
                channel.forget_consumer(link, &tag);
                if is_told {
                    self.say(number, &Method::BasicCancel { consumer_tag: &tag, nowait: true });
                }
            }
        }
        self.links.gone(link);
    }

    /// A delivery was held too long.
    pub(crate) fn handle_timed_out(&mut self, now: Now, link: LinkId, timeout_ms: u64, requests: &mut Vec<Request>) {
        let Some((number, epoch)) = self.links.get_mut(link).map(|link| (link.channel, link.epoch)) else { return };
        if self.capabilities.cancel_notify {
            return self.handle_cancelled(link);
        }
        if self.living(number, epoch).is_some() {
            let text = format!(
                "delivery acknowledgement on channel {number} timed out. Timeout value used: {timeout_ms} ms. \
                 This timeout value can be configured, see consumers doc guide to learn more"
            );
            self.refuse(now, number, Refusal::precondition(text), requests);
        }
    }
}

impl Channel {
    /// An empty queue name means the last one declared here.
    pub(crate) fn named<'a>(&'a self, queue: &'a str) -> Result<&'a str, Refusal> {
        match (queue, &*self.last_queue) {
            ("", "") => Err(Refusal::new(Code::NotFound, "no previously declared queue")),
            ("", last) => Ok(last),
            (queue, _) => Ok(queue),
        }
    }

    fn forget_consumer(&mut self, link: LinkId, tag: &str) {
        if self.consumers.get(tag) == Some(&link) {
            self.consumers.remove(tag);
        }
        if self.reply.as_ref().is_some_and(|(reply, _)| *reply == link) {
            self.reply = None;
        }
    }
}

/// Asks for a run to be settled; runs that follow each other become one request.
fn put_settle(
    requests: &mut Vec<Request>,
    pending: &mut VecDeque<Pending>,
    number: u16,
    run: TagRun,
    outcome: Outcome,
    transactional: bool,
) {
    if let Some(Request::Settle { ticket, link, first, count, outcome: before, transactional: in_transaction }) =
        requests.last_mut()
        && *ticket == u32::from(number)
        && *link == run.link
        && *first + *count == run.number
        && *before == outcome
        && *in_transaction == transactional
    {
        *count += run.count;
        return;
    }
    requests.push(Request::Settle {
        ticket: number.into(),
        link: run.link,
        first: run.number,
        count: run.count,
        outcome,
        transactional,
    });
    pending.push_back(Pending::Quiet);
}

fn no_method() -> Refusal {
    Refusal::unexpected("expected method frame, got non method frame instead")
}

fn no_header() -> Refusal {
    Refusal::unexpected("expected content header for class 60, got non content header frame instead").at(PUBLISH)
}

fn no_body() -> Refusal {
    Refusal::unexpected("expected content body, got non content body frame instead").at(PUBLISH)
}
