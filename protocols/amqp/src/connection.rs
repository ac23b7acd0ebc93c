//! A connection: handshake, channel 0, time, and who gets which reply.
//!
//! ```text
//! "AMQP 0 0 9 1"       start-ok           Authenticated          tune-ok           open            Done
//! Greeting ------> Starting ------> LoggingIn ----------> Tuning ------> Opening -----> Entering ------> Running
//!    |                 |                |                    |              |              |               |
//!    |  other header   +-------- an error that ends the connection: connection.close ------+---------------+
//!    v                                  |  login refused, client can't be told     v                       |
//! Finished <---------- after a pause ---+                                       Closing                    | close
//!    ^                                                                             |                       |
//!    +----------------- close-ok, or CLOSE_OK_MS -----------------------------------+    close-ok said      |
//!    +-----------------------------------------------------------------------------------------------------+
//! ```
//!
//! Every [`Request`] leaves a [`Pending`] behind that says what its reply is for; replies come in the same order. Methods other
//! than publish and the acks are *barriers*: they wait until nothing is pending, and nothing is read until they are answered.
//! So the state that a method meets is always that after everything before it.

use crate::channel::{Channel, Then};
use crate::channels::Channels;
use crate::confirm::Confirms;
use crate::deliver::{self, LinkState, Links, TagRun};
use crate::error::{Code, Reach, Refusal};
use crate::field_table::{self, entries};
use crate::frame::{self, Frame, Scan};
use crate::limits::{CLOSE_OK_MS, HANDSHAKE_MS, REFUSED_LOGIN_MS, UNTUNED_FRAME_BYTES};
use crate::method::{self, Long, Method, PUBLISH, RawTable};
use crate::reader::cut;
use crate::{Settings, sasl};
use broker::{Batch, Delivery, Event, LinkId, Position, Published, Reply, Request, Table, Value};
use protocol::{Now, Outbox, Peer};
use std::collections::VecDeque;
use std::sync::Arc;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    Greeting,
    Starting,
    LoggingIn,
    Tuning,
    Opening,
    Entering,
    Running,
    /// We said connection.close. `deaf`: the place in the stream is lost, nothing that comes is read any more.
    Closing {
        deaf: bool,
    },
    /// A login was refused without a word; the socket is closed a little later.
    Refused,
    Finished,
}

/// What the reply to a request is for.
#[derive(Debug)]
pub(crate) enum Pending {
    /// A run of a channel: confirm numbers `first` .. `first + count`, if it confirms.
    Publish {
        channel: u16,
        epoch: u32,
        first: u64,
        count: u32,
        confirm: bool,
        returns: Option<Arc<Batch>>,
    },
    /// Nothing to tell anybody.
    Quiet,
    /// A channel that we closed: its links are gone now.
    Closed {
        channel: u16,
        epoch: u32,
    },
    Barrier {
        channel: u16,
        method: (u16, u16),
        then: Then,
    },
}

/// What the client can be told.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Capabilities {
    pub cancel_notify: bool,
    pub blocked: bool,
    pub authentication_failure_close: bool,
}

/// How far [`Connection::step`] got.
pub(crate) enum Step {
    Took(usize),
    /// Took that much; what comes next has to wait for an answer.
    Barrier(usize),
    /// Nothing can be taken now.
    Wait,
}

pub struct Connection {
    pub(crate) settings: Arc<Settings>,
    peer: Peer,
    state: State,
    pub(crate) outbox: Outbox,
    pub(crate) pending: VecDeque<Pending>,
    /// How many of them are barriers.
    barriers: u32,
    /// A request that is answered by an event.
    later: Option<Pending>,
    pub(crate) channels: Channels,
    /// Tells the lives of a channel number apart.
    epochs: u32,
    pub(crate) links: Links,
    pub(crate) confirms: Confirms,
    /// Channels with something to ack at the end of these replies.
    to_ack: Vec<u16>,
    /// Channels that may have an open run.
    pub(crate) open_runs: Vec<u16>,
    /// Bytes of half-received messages.
    pub(crate) collected: u64,
    pub(crate) user: Box<str>,
    pub(crate) may_impersonate: bool,
    /// The broker is asked for each channel.
    pub(crate) counts_channels: bool,
    mechanism: Box<str>,
    pub(crate) vhost: Box<str>,
    pub(crate) capabilities: Capabilities,
    pub(crate) frame_max: u32,
    channel_max: u16,
    blocked: bool,
    random: u64,
    pub(crate) scratch: Vec<TagRun>,
    timers: Timers,
}

/// Everything that happens by itself, in monotonic milliseconds.
#[derive(Clone, Copy, Debug, Default)]
struct Timers {
    /// Handshake too slow, close-ok overdue, refusal pause over: the end.
    end: Option<u64>,
    /// The negotiated interval; 0 is none.
    heartbeat_ms: u64,
    /// When to send the next one.
    beat: u64,
    /// When something was last heard.
    heard: u64,
}

impl Connection {
    pub fn new(settings: Arc<Settings>, peer: Peer, now: Now, seed: u64) -> Connection {
        Connection {
            channel_max: settings.channel_max,
            settings,
            peer,
            state: State::Greeting,
            outbox: Outbox::default(),
            pending: VecDeque::new(),
            barriers: 0,
            later: None,
            channels: Channels::default(),
            epochs: 0,
            links: Links::default(),
            confirms: Confirms::default(),
            to_ack: Vec::new(),
            open_runs: Vec::new(),
            collected: 0,
            user: Box::default(),
            may_impersonate: false,
            counts_channels: false,
            mechanism: Box::default(),
            vhost: Box::default(),
            capabilities: Capabilities::default(),
            frame_max: UNTUNED_FRAME_BYTES,
            blocked: false,
            random: seed,
            scratch: Vec::new(),
            timers: Timers { end: Some(now.mono_ms + HANDSHAKE_MS), heard: now.mono_ms, ..Timers::default() },
        }
    }

    /// Takes one frame, or one whole message.
    fn step(&mut self, now: Now, input: &[u8], requests: &mut Vec<Request>) -> Step {
        match self.state {
            State::Greeting => return self.greet(input),
            State::Closing { deaf: true } | State::Refused | State::Finished => return discard(input),
            _ => {}
        }
        let frame = match frame::scan(input, self.frame_max) {
            Scan::Frame(frame) => frame,
            Scan::Incomplete => return Step::Wait,
            Scan::TooLarge { kind, size } => {
                let what = format!("{{frame_too_large,{size},{}}}", self.frame_max.saturating_sub(8));
                return self.lose_track(now, Refusal::of_frame(kind, &[], &what), input, requests);
            }
            Scan::BadEnd { kind, payload, end } => {
                let refusal = Refusal::of_frame(kind, payload, &format!("{{invalid_frame_end_marker,{end}}}"));
                return self.lose_track(now, refusal, input, requests);
            }
        };
        if frame.channel != 0 && self.state == State::Running {
            return self.handle_channel_frame(now, frame, input, requests);
        }
        self.handle_frame_0(now, frame, requests)
    }

    fn greet(&mut self, input: &[u8]) -> Step {
        let Some(header) = input.first_chunk::<8>() else {
            // A wrong beginning is wrong at once: a health check that says "HELO" gets its answer.
            let known = input.len().min(4);
            let starts_well = b"AMQP".get(..known) == input.get(..known);
            return if starts_well { Step::Wait } else { self.decline(input) };
        };
        match header {
            b"AMQP\x00\x00\x09\x01" | b"AMQP\x01\x01\x00\x09" => {
                self.state = State::Starting;
                let properties = self.server_properties();
                let mechanisms = sasl::offered(&self.settings, &self.peer);
                let start = Method::ConnectionStart {
                    version_major: 0,
                    version_minor: 9,
                    server_properties: RawTable(&properties),
                    mechanisms: Long(mechanisms.as_bytes()),
                    locales: Long(b"en_US"),
                };
                method::put(self.outbox.buffer(), 0, &start);
                Step::Took(8)
            }
            _ => self.decline(input),
        }
    }

    /// Not a protocol of ours: says which one is, and ends (§4.2.2).
    fn decline(&mut self, input: &[u8]) -> Step {
        self.outbox.buffer().extend_from_slice(b"AMQP\x00\x00\x09\x01");
        self.finish();
        Step::Took(input.len())
    }

    fn server_properties(&self) -> Vec<u8> {
        let identity = &self.settings.identity;
        let capabilities: Table = [
            "publisher_confirms",
            "exchange_exchange_bindings",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "consumer_priorities",
            "authentication_failure_close",
            "per_consumer_qos",
            "direct_reply_to",
        ]
        .into_iter()
        .map(|name| (name, Value::Bool(true)))
        .collect();
        let table: Table = [
            ("braid", Value::str(env!("CARGO_PKG_VERSION"))),
            ("capabilities", Value::Table(capabilities)),
            ("cluster_name", Value::str(&identity.cluster_name)),
            ("copyright", Value::str("The Braid authors")),
            ("information", Value::str(&identity.information)),
            ("platform", Value::str(&identity.platform)),
            ("product", Value::str(&identity.product)),
            ("version", Value::str(&identity.version)),
        ]
        .into_iter()
        .collect();
        field_table::encode(&table)
    }

    /// A frame of channel 0, or of any channel while there are none.
    fn handle_frame_0(&mut self, now: Now, frame: Frame<'_>, requests: &mut Vec<Request>) -> Step {
        let took = Step::Took(frame.size());
        if let State::Closing { .. } = self.state {
            self.handle_closing(frame);
            return took;
        }
        let refusal = match (frame.kind, frame.channel) {
            (frame::HEARTBEAT, 0) => return took,
            (frame::METHOD, 0) => match method::split(frame.payload) {
                Some((id, fields)) => {
                    if !self.is_quiet(requests) {
                        return Step::Wait;
                    }
                    match Method::decode(id, fields) {
                        Ok(method) => match self.handle_method_0(now, method, requests) {
                            Ok(()) if self.barriers > 0 => return Step::Barrier(frame.size()),
                            Ok(()) => return took,
                            Err(refusal) if refusal.method == (0, 0) => refusal.at(id),
                            Err(refusal) => refusal,
                        },
                        Err(malformed) => Refusal::of_method(malformed, id, fields),
                    }
                }
                None => Refusal::of_frame(frame.kind, frame.payload, "unknown_frame"),
            },
            (frame::METHOD | frame::HEADER | frame::BODY | frame::HEARTBEAT, _) => {
                Refusal::misplaced(frame.kind, frame.payload)
            }
            _ => Refusal::of_frame(frame.kind, frame.payload, "unknown_frame"),
        };
        self.close(now, refusal, requests);
        took
    }

    /// After our connection.close everything but its answer is dropped.
    fn handle_closing(&mut self, frame: Frame<'_>) {
        if frame.kind != frame::METHOD || frame.channel != 0 {
            return;
        }
        match method::split(frame.payload) {
            Some(((10, 51), _)) => self.finish(),
            Some(((10, 50), _)) => {
                method::put(self.outbox.buffer(), 0, &Method::ConnectionCloseOk {});
                self.finish();
            }
            _ => {}
        }
    }

    fn handle_method_0(&mut self, now: Now, method: Method<'_>, requests: &mut Vec<Request>) -> Result<(), Refusal> {
        let id = method.id();
        match (self.state, method) {
            (State::Starting, Method::ConnectionStartOk { client_properties, mechanism, response, .. }) => {
                self.capabilities = capabilities(client_properties.0);
                let request = sasl::request(&self.settings, &self.peer, mechanism, response.0)?;
                self.mechanism = mechanism.into();
                self.state = State::LoggingIn;
                self.ask(0, id, Then::Login, request, requests);
            }
            (State::Tuning, Method::ConnectionTuneOk { channel_max, frame_max, heartbeat }) => {
                let settings = &self.settings;
                negotiated("frame_max", settings.frame_min, settings.frame_max, frame_max)?;
                negotiated("channel_max", 1, settings.channel_max.into(), channel_max.into())?;
                self.frame_max = frame_max;
                self.channel_max = channel_max;
                self.timers.heartbeat_ms = u64::from(heartbeat) * 1000;
                self.timers.beat = now.mono_ms + self.timers.heartbeat_ms / 2;
                self.state = State::Opening;
            }
            (State::Opening, Method::ConnectionOpen { virtual_host, .. }) => {
                self.vhost = virtual_host.into();
                self.state = State::Entering;
                self.ask(0, id, Then::Enter, Request::OpenVhost { vhost: virtual_host.into() }, requests);
            }
            // Its exclusive queues are gone before it hears close-ok: it may be back at once.
            (State::Running, Method::ConnectionClose { .. }) => self.ask(0, id, Then::Bye, Request::Leave, requests),
            (_, Method::ConnectionClose { .. }) => {
                method::put(self.outbox.buffer(), 0, &Method::ConnectionCloseOk {});
                self.finish();
            }
            (State::Running, Method::ConnectionUpdateSecret { new_secret, .. }) => {
                self.ask(0, id, Then::NewSecret, Request::UpdateSecret { secret: new_secret.0.into() }, requests);
            }
            (state, _) => {
                let name = match state {
                    State::Starting => "starting",
                    State::LoggingIn => "securing",
                    State::Tuning => "tuning",
                    State::Opening | State::Entering => "opening",
                    _ => "running",
                };
                return Err(Refusal::channel_error(format!("unexpected method in connection state {name}")));
            }
        }
        Ok(())
    }

    fn refuse_login(&mut self, now: Now, requests: &mut Vec<Request>) {
        if self.capabilities.authentication_failure_close {
            let text = format!(
                "Login was refused using authentication mechanism {}. For details see the broker logfile.",
                self.mechanism
            );
            self.close(now, Refusal::new(Code::AccessRefused, text), requests);
        } else {
            self.state = State::Refused;
            self.timers.end = Some(now.mono_ms + REFUSED_LOGIN_MS);
        }
    }

    /// Sends a request whose answer everything that follows waits for.
    pub(crate) fn ask(&mut self, channel: u16, method: (u16, u16), then: Then, request: Request, requests: &mut Vec<Request>) {
        requests.push(request);
        self.expect(channel, method, then);
    }

    /// The last request is a barrier.
    pub(crate) fn expect(&mut self, channel: u16, method: (u16, u16), then: Then) {
        self.pending.push_back(Pending::Barrier { channel, method, then });
        self.barriers += 1;
    }

    /// True: every request is answered, a barrier may be met. Else open runs are sent on their way, and it has to wait.
    pub(crate) fn is_quiet(&mut self, requests: &mut Vec<Request>) -> bool {
        self.flush_runs(requests);
        self.pending.is_empty() && self.later.is_none()
    }

    pub(crate) fn flush_runs(&mut self, requests: &mut Vec<Request>) {
        for number in std::mem::take(&mut self.open_runs) {
            self.flush_run(number, requests);
        }
    }

    pub(crate) fn flush_run(&mut self, number: u16, requests: &mut Vec<Request>) {
        if let Some(channel) = self.channels.get_mut(number) {
            channel.flush_run(requests, &mut self.pending);
        }
    }

    pub(crate) fn say(&mut self, channel: u16, method: &Method<'_>) {
        method::put(self.outbox.buffer(), channel, method);
    }

    /// Says what goes wrong, as far as it reaches.
    pub(crate) fn refuse(&mut self, now: Now, channel: u16, refusal: Refusal, requests: &mut Vec<Request>) {
        match refusal.code.reach() {
            Reach::Channel if channel != 0 => self.close_channel(channel, &refusal, requests),
            _ => self.close(now, refusal, requests),
        }
    }

    fn close(&mut self, now: Now, refusal: Refusal, requests: &mut Vec<Request>) {
        if matches!(self.state, State::Closing { .. } | State::Refused | State::Finished) {
            return;
        }
        self.flush_runs(requests);
        if let Some(Pending::Barrier { .. }) = self.later.take() {
            self.barriers -= 1;
        }
        let text = refusal.reply_text();
        let (class_id, method_id) = refusal.method;
        self.say(0, &Method::ConnectionClose { reply_code: refusal.code as u16, reply_text: &text, class_id, method_id });
        // What the channels hold goes back at once, not only when the socket is closed.
        for (number, channel) in self.channels.drain() {
            if channel.is_open() {
                requests.push(Request::ClosePool { pool: number.into() });
                self.pending.push_back(Pending::Quiet);
            }
        }
        self.forget_channels();
        self.state = State::Closing { deaf: false };
        self.timers.end = Some(now.mono_ms + CLOSE_OK_MS);
    }

    /// The place in the stream is lost: says why and reads no more.
    fn lose_track(&mut self, now: Now, refusal: Refusal, input: &[u8], requests: &mut Vec<Request>) -> Step {
        self.close(now, refusal, requests);
        if let State::Closing { .. } = self.state {
            self.state = State::Closing { deaf: true };
        }
        Step::Took(input.len())
    }

    fn finish(&mut self) {
        self.state = State::Finished;
        self.timers = Timers::default();
        self.forget_channels();
    }

    fn forget_channels(&mut self) {
        self.channels = Channels::default();
        self.links.clear();
        self.confirms.clear();
        self.to_ack.clear();
        self.open_runs.clear();
        self.collected = 0;
        self.blocked = false;
    }

    /// A new life of a channel number; the refusal ends the connection.
    pub(crate) fn open_channel(&mut self, number: u16) -> Result<(), Refusal> {
        if self.channels.len() >= u32::from(self.channel_max) {
            let text = format!(
                "number of channels opened ({}) has reached the negotiated channel_max ({})",
                self.channels.len(),
                self.channel_max
            );
            return Err(Refusal::not_allowed(text));
        }
        self.epochs += 1;
        self.channels.insert(number, Channel::new(number, self.epochs));
        Ok(())
    }

    /// The channel in this life, if it still lives and is open.
    pub(crate) fn living(&mut self, number: u16, epoch: u32) -> Option<&mut Channel> {
        let channel = self.channels.get_mut(number)?;
        (channel.epoch == epoch && channel.is_open()).then_some(channel)
    }

    fn handle_published(&mut self, now: Now, pending: Pending, published: Published, requests: &mut Vec<Request>) {
        let Pending::Publish { channel: number, epoch, first, count, confirm, returns } = pending else { return };
        let frame_max = self.frame_max;
        let Some(channel) = self.channels.get_mut(number) else { return };
        if channel.epoch != epoch || !channel.is_open() {
            return;
        }
        if let Some(error) = published.error {
            return self.refuse(now, number, Refusal::of(&error).at(PUBLISH), requests);
        }
        if let Some(transaction) = &mut channel.transaction {
            return transaction.note_publish(returns);
        }
        if let Some(batch) = returns {
            // The return goes before the confirm.
            for records in published.unroutable {
                deliver::put_returns(self.outbox.buffer(), number, &batch, records, frame_max);
            }
        }
        if !confirm {
            return;
        }
        if !published.refused.is_empty() {
            channel.confirmed.nack(self.outbox.buffer(), number, first, &published.refused);
        }
        // The last one that was not refused.
        let refused_at_end = published.refused.iter().rev().zip((0..count).rev()).take_while(|(a, b)| **a == *b).count() as u32;
        if refused_at_end < count {
            let last = first + u64::from(count - refused_at_end) - 1;
            if self.confirms.add(&mut channel.confirmed, number, epoch, last, published.safe_at)
                && self.to_ack.last() != Some(&number)
            {
                self.to_ack.push(number);
            }
        }
    }

    fn flush_acks(&mut self) {
        for number in std::mem::take(&mut self.to_ack) {
            if let Some(channel) = self.channels.get_mut(number)
                && channel.is_open()
            {
                channel.confirmed.flush(self.outbox.buffer(), number);
            }
        }
    }

    fn handle_answer(&mut self, now: Now, pending: Pending, reply: Reply, requests: &mut Vec<Request>) {
        match (pending, reply) {
            (pending, Reply::Later) => self.later = Some(pending),
            (pending @ Pending::Publish { .. }, Reply::Published(published)) => {
                self.handle_published(now, pending, published, requests);
            }
            (Pending::Publish { .. } | Pending::Quiet, _) => {}
            (Pending::Closed { channel, epoch }, _) => self.links.forget(channel, epoch),
            (Pending::Barrier { channel, method, then }, reply) => {
                self.barriers -= 1;
                match (self.state, reply) {
                    (State::Closing { .. } | State::Refused | State::Finished, _) | (_, Reply::Skipped) => {}
                    (State::LoggingIn, Reply::Failed(_)) => self.refuse_login(now, requests),
                    (_, Reply::Failed(error)) => {
                        self.handle_failed(now, channel, then, Refusal::of(&error).at(method), requests)
                    }
                    (State::Running, reply) if channel != 0 => self.handle_done(now, channel, then, reply, requests),
                    (_, reply) => self.handle_done_0(then, reply),
                }
            }
        }
    }

    fn handle_done_0(&mut self, then: Then, reply: Reply) {
        match (then, reply) {
            (Then::Login, Reply::Authenticated { user, impersonator, counted }) => {
                self.user = user;
                self.counts_channels = counted;
                self.may_impersonate = impersonator;
                self.state = State::Tuning;
                let tune = Method::ConnectionTune {
                    channel_max: self.settings.channel_max,
                    frame_max: self.settings.frame_max,
                    heartbeat: self.settings.heartbeat_s,
                };
                self.say(0, &tune);
            }
            (Then::Enter, _) => {
                self.state = State::Running;
                self.timers.end = None;
                self.say(0, &Method::ConnectionOpenOk { known_hosts: "" });
            }
            (Then::NewSecret, _) => self.say(0, &Method::ConnectionUpdateSecretOk {}),
            (Then::Bye, _) => {
                self.say(0, &Method::ConnectionCloseOk {});
                self.finish();
            }
            _ => {}
        }
    }

    fn handle_delivery(&mut self, delivery: Delivery) {
        let Some(link) = self.links.get_mut(delivery.link) else { return };
        match &mut link.state {
            LinkState::Live => {}
            LinkState::Opening(early) => return early.push(delivery),
            LinkState::Gone => return,
        }
        let Some(channel) = self.channels.get_mut(link.channel) else { return };
        if channel.epoch != link.epoch || !channel.is_open() {
            return;
        }
        let (tag, count) = (channel.next_tag, u64::from(delivery.count));
        channel.next_tag += count;
        if !link.auto_settle {
            link.held += count;
            channel.book.push(TagRun { tag, count, link: delivery.link, number: delivery.number });
        }
        deliver::put_deliveries(self.outbox.buffer(), link, &delivery, tag, self.frame_max);
    }

    pub(crate) fn deliver_early(&mut self, link: LinkId) {
        let Some(link) = self.links.get_mut(link) else { return };
        if let LinkState::Opening(early) = std::mem::replace(&mut link.state, LinkState::Live) {
            early.into_iter().for_each(|delivery| self.handle_delivery(delivery));
        }
    }

    /// A made-up name: the prefix, and 128 random bits in 22 characters of URL-safe base 64.
    pub(crate) fn made_up_name(&mut self, prefix: &str) -> Box<str> {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut bits = u128::from(self.next_random()) << 64 | u128::from(self.next_random());
        let mut name = format!("{prefix}-");
        for _ in 0..22 {
            name.push(DIGITS.get((bits & 63) as usize).copied().unwrap_or(b'A') as char);
            bits >>= 6;
        }
        name.into()
    }

    /// SplitMix64.
    fn next_random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Two intervals without a byte, and a little: the peer is gone.
    fn silence_ends(&self) -> Option<u64> {
        let interval = self.timers.heartbeat_ms;
        (interval > 0 && !self.blocked).then_some(self.timers.heard + 2 * interval + interval / 2)
    }
}

fn discard(input: &[u8]) -> Step {
    if input.is_empty() { Step::Wait } else { Step::Took(input.len()) }
}

fn capabilities(properties: &[u8]) -> Capabilities {
    let mut found = Capabilities::default();
    let table = entries(properties).flatten().find(|entry| entry.name == b"capabilities" && entry.tag == b'F');
    for entry in entries(table.map_or(&[], |entry| entry.value)).flatten() {
        let yes = entry.tag == b't' && entry.value != [0];
        match entry.name {
            b"consumer_cancel_notify" => found.cancel_notify = yes,
            b"connection.blocked" => found.blocked = yes,
            b"authentication_failure_close" => found.authentication_failure_close = yes,
            _ => {}
        }
    }
    found
}

/// 0 asks for no limit, which is higher than any.
fn negotiated(name: &str, min: u32, max: u32, asked: u32) -> Result<(), Refusal> {
    let (how, which, bound) = match asked {
        0 => ("higher", "maximum", max),
        asked if asked < min => ("lower", "minimum", min),
        asked if asked > max => ("higher", "maximum", max),
        _ => return Ok(()),
    };
    let detail = if asked == 0 && name == "channel_max" { " (no limit)" } else { "" };
    let text = format!("negotiated {name} = {asked}{detail} is {how} than the {which} allowed value ({bound})");
    Err(Refusal::not_allowed(text).at((10, 30)))
}

impl protocol::Connection for Connection {
    fn handle_input(&mut self, now: Now, input: &[u8], requests: &mut Vec<Request>) -> usize {
        if !input.is_empty() {
            self.timers.heard = now.mono_ms;
        }
        let mut taken = 0;
        while self.barriers == 0 && !self.blocked && self.later.is_none() {
            match self.step(now, input.get(taken..).unwrap_or_default(), requests) {
                Step::Took(count) => taken += count,
                Step::Barrier(count) => {
                    taken += count;
                    break;
                }
                Step::Wait => break,
            }
        }
        self.flush_runs(requests);
        taken
    }

    fn handle_reply(&mut self, now: Now, reply: Reply, requests: &mut Vec<Request>) {
        if let Some(pending) = self.pending.pop_front() {
            self.handle_answer(now, pending, reply, requests);
        }
        if self.pending.is_empty() {
            self.flush_acks();
        }
    }

    fn handle_event(&mut self, now: Now, event: Event, requests: &mut Vec<Request>) {
        match event {
            Event::Delivery(delivery) => self.handle_delivery(delivery),
            Event::Reply(reply) => {
                if let Some(pending) = self.later.take() {
                    self.handle_answer(now, pending, reply, requests);
                }
            }
            Event::Cancelled { link } => self.handle_cancelled(link),
            Event::TimedOut { link, timeout_ms } => self.handle_timed_out(now, link, timeout_ms, requests),
            Event::Blocked { reason } => {
                if self.state == State::Running && !self.blocked {
                    self.blocked = true;
                    if self.capabilities.blocked {
                        self.say(0, &Method::ConnectionBlocked { reason: cut(&reason, 255) });
                    }
                }
            }
            Event::Unblocked => {
                if std::mem::take(&mut self.blocked) {
                    self.timers.heard = now.mono_ms;
                    if self.capabilities.blocked {
                        self.say(0, &Method::ConnectionUnblocked {});
                    }
                }
            }
            Event::Close { reason } => match self.state {
                State::Running => self.close(now, Refusal::new(Code::ConnectionForced, reason), requests),
                State::Closing { .. } => {}
                _ => self.finish(),
            },
        }
    }

    fn handle_durable(&mut self, durable: Position) {
        while let Some((number, epoch, last)) = self.confirms.next(durable) {
            if let Some(channel) = self.living(number, epoch) {
                channel.confirmed.durable(last);
                if self.to_ack.last() != Some(&number) {
                    self.to_ack.push(number);
                }
            }
        }
        self.flush_acks();
        self.outbox.open(durable);
    }

    fn handle_timeout(&mut self, now: Now, _requests: &mut Vec<Request>) {
        if self.timers.end.is_some_and(|end| end <= now.mono_ms) || self.silence_ends().is_some_and(|end| end <= now.mono_ms) {
            return self.finish();
        }
        if self.timers.heartbeat_ms > 0 && self.timers.beat <= now.mono_ms {
            self.timers.beat = now.mono_ms + self.timers.heartbeat_ms / 2;
            // Bytes that wait to be written say as much.
            if self.outbox.is_empty() {
                self.outbox.buffer().extend_from_slice(&frame::HEARTBEAT_FRAME);
            }
        }
    }

    fn poll_timeout(&self) -> Option<u64> {
        let beat = (self.timers.heartbeat_ms > 0).then_some(self.timers.beat);
        [self.timers.end, beat, self.silence_ends()].into_iter().flatten().min()
    }

    fn awaits(&self) -> Option<Position> {
        [self.outbox.awaits(), self.confirms.awaits()].into_iter().flatten().min()
    }

    fn wants_input(&self) -> bool {
        self.barriers == 0 && self.later.is_none() && !self.blocked
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    fn is_finished(&self) -> bool {
        self.state == State::Finished
    }
}
