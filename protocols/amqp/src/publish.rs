//! The way in of a message: method, header and body frames become records, records that go the same way become one run.
//!
//! ```text
//!           method 60,40            header                 body ...              complete
//! Nothing ---------------> Method ---------> Collecting ----------> Collecting ----------> a record, Nothing
//!    |                                                                                         ^
//!    +--- all frames of the message stand together in the input: nothing is copied on the way -+
//! ```
//!
//! A *shape* is what the records of a run have in common: exchange, routing key, bits, persistence, priority. As long as the
//! next message has the same shape, it costs a comparison of a few bytes and the copy of its properties and body.

use crate::ORIGIN;
use crate::error::{Code, Refusal};
use crate::field_table;
use crate::frame::{self, Frame, Scan};
use crate::limits::{BODY_AHEAD_BYTES, ROUTES_MAX, RUN_BYTES_MAX, RUN_RECORDS_MAX};
use crate::method::PUBLISH;
use crate::properties::{Property, Spans, routing_header};
use crate::reader::{Reader, patch};
use broker::message::{EXPIRES, Facts, HEADERS, PERSISTENT, PRIORITY};
use broker::{BatchBuilder, Now, Route};
use std::sync::Arc;

/// A message of which not all frames have arrived.
#[derive(Debug, Default)]
pub enum Content {
    #[default]
    Nothing,
    /// The fields of its basic.publish behind the ticket.
    Method(Box<[u8]>),
    Collecting(Box<Collecting>),
}

#[derive(Debug)]
pub struct Collecting {
    pub tail: Box<[u8]>,
    pub properties: Box<[u8]>,
    pub size: u64,
    pub body: Vec<u8>,
}

impl Collecting {
    /// Adds a piece that fits. Memory follows what arrives, not what was announced.
    pub fn add(&mut self, piece: &[u8]) {
        let needed = self.body.len() + piece.len();
        if needed > self.body.capacity() {
            let ahead = needed.max(self.body.capacity()).saturating_add(needed.min(BODY_AHEAD_BYTES));
            let wanted = (self.size as usize).min(ahead.max(self.body.capacity() * 3 / 2));
            self.body.reserve_exact(wanted.max(needed) - self.body.len());
        }
        self.body.extend_from_slice(piece);
    }

    pub fn is_complete(&self) -> bool {
        self.body.len() as u64 == self.size
    }
}

/// Class, weight, body size and properties of a content header's payload.
pub fn header(payload: &[u8]) -> Option<(u16, u64, &[u8])> {
    let mut reader = Reader::new(payload);
    let class = reader.u16().ok()?;
    let _weight = reader.u16().ok()?;
    let size = reader.u64().ok()?;
    Some((class, size, reader.rest()))
}

/// A body in more frames than this is collected.
const PIECES_MAX: usize = 8;

/// A message whose header and body frames all stand in the input, one behind the other; almost always the body is one piece.
pub struct Whole<'a> {
    pub properties: &'a [u8],
    pub body: &'a [u8],
    /// Bytes of its frames.
    pub consumed: usize,
}

impl<'a> Whole<'a> {
    /// Looks behind a basic.publish. `None` where anything is missing or odd: the slow way finds out what.
    #[inline]
    pub fn find(input: &'a [u8], channel: u16, frame_max: u32, body_max: u64) -> Option<Whole<'a>> {
        let Scan::Frame(head @ Frame { kind: frame::HEADER, .. }) = frame::scan(input, frame_max) else { return None };
        // Class 60, weight, body size, properties.
        let (&[0, 60, _, _, s0, s1, s2, s3, s4, s5, s6, s7], properties) = head.payload.split_first_chunk::<12>()? else {
            return None;
        };
        let size = u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        if head.channel != channel || size > body_max {
            return None;
        }
        let consumed = head.size();
        if size == 0 {
            return Some(Whole { properties, body: &[], consumed });
        }
        let Scan::Frame(body @ Frame { kind: frame::BODY, .. }) = frame::scan(input.get(consumed..)?, frame_max) else {
            return None;
        };
        let is_whole = body.channel == channel && body.payload.len() as u64 == size;
        is_whole.then(|| Whole { properties, body: body.payload, consumed: consumed + body.size() })
    }
}

/// A message whose body is in a few frames, all of them there.
pub struct Pieces<'a> {
    pub properties: &'a [u8],
    pieces: [&'a [u8]; PIECES_MAX],
    count: usize,
    pub consumed: usize,
}

impl<'a> Pieces<'a> {
    /// What [`Whole::find`] can't.
    #[inline(never)]
    pub fn find(input: &'a [u8], channel: u16, frame_max: u32, body_max: u64) -> Option<Pieces<'a>> {
        let Scan::Frame(head @ Frame { kind: frame::HEADER, .. }) = frame::scan(input, frame_max) else { return None };
        let (class, size, properties) = header(head.payload)?;
        if class != PUBLISH.0 || head.channel != channel || size > body_max {
            return None;
        }
        let mut found = Pieces { properties, pieces: [&[]; PIECES_MAX], count: 0, consumed: head.size() };
        let mut left = size;
        while left > 0 {
            let Scan::Frame(body @ Frame { kind: frame::BODY, .. }) = frame::scan(input.get(found.consumed..)?, frame_max)
            else {
                return None;
            };
            left = left.checked_sub(body.payload.len() as u64)?;
            if body.channel != channel {
                return None;
            }
            *found.pieces.get_mut(found.count)? = body.payload;
            found.count += 1;
            found.consumed += body.size();
        }
        Some(found)
    }

    pub fn body(&self) -> &[&'a [u8]] {
        self.pieces.get(..self.count).unwrap_or_default()
    }
}

/// Who publishes: what some properties are checked against.
#[derive(Clone, Copy, Debug)]
pub struct Author<'a> {
    pub user: &'a str,
    pub may_impersonate: bool,
    /// The direct reply address of the channel.
    pub reply_address: Option<&'a str>,
}

/// The name that stands for a direct reply address.
pub const REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What of a property block decides how its message travels.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Seen {
    persistent: bool,
    priority: Option<u8>,
    expires_ms: Option<u64>,
    headers: bool,
}

/// A property block, looked at; changed where it must be.
struct Inspected {
    seen: Seen,
    changed: Option<Vec<u8>>,
    more_keys: Vec<Box<str>>,
}

fn inspect(properties: &[u8], author: Author<'_>) -> Result<Inspected, Refusal> {
    let malformed = |malformed| Refusal::of_table(malformed).at(PUBLISH);
    let spans = Spans::scan(properties).map_err(|_| Refusal::new(Code::SyntaxError, "malformed content header").at(PUBLISH))?;
    let mut inspected = Inspected {
        seen: Seen {
            persistent: spans.octet(Property::DeliveryMode) == Some(2),
            priority: spans.octet(Property::Priority),
            expires_ms: spans.short(Property::Expiration).map(expiration).transpose()?,
            headers: spans.has(Property::Headers),
        },
        changed: None,
        more_keys: Vec::new(),
    };
    if let Some(user) = spans.short(Property::UserId)
        && user != author.user.as_bytes()
        && !author.may_impersonate
    {
        let user = String::from_utf8_lossy(user);
        let text = format!("user_id property set to '{user}' but authenticated user was '{}'", author.user);
        return Err(Refusal::precondition(text).at(PUBLISH));
    }
    if spans.short(Property::ReplyTo) == Some(REPLY_TO.as_bytes()) {
        let name = author.reply_address;
        let name = name.ok_or_else(|| Refusal::precondition("fast reply consumer does not exist").at(PUBLISH))?;
        inspected.changed = Some(spans.with_reply_to(name));
    }
    if let Some(headers) = spans.headers() {
        field_table::validate(headers).map_err(malformed)?;
        let mut blind = false;
        for name in ["CC", "BCC"] {
            let keys = routing_header(headers, name.as_bytes()).map_err(|tag| {
                let kind = field_table::type_name(tag);
                let text = format!("invalid message: {{unacceptable_type_in_header,\"{name}\",{kind}}}");
                Refusal::precondition(text).at(PUBLISH)
            })?;
            blind |= keys.is_some() && name == "BCC";
            inspected.more_keys.extend(keys.into_iter().flatten().map(Box::from));
        }
        if blind {
            let block = inspected.changed.as_deref().unwrap_or(properties);
            let spans = Spans::scan(block).map_err(malformed)?;
            inspected.changed = Some(spans.without_headers(&[b"BCC"], &[]));
        }
    }
    Ok(inspected)
}

/// Milliseconds, or why not, as RabbitMQ prints it.
fn expiration(text: &[u8]) -> Result<u64, Refusal> {
    let digits_from = usize::from(matches!(text.first(), Some(b'+' | b'-')));
    let digits = text.get(digits_from..).unwrap_or_default();
    let count = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, leftover) = digits.split_at_checked(count).unwrap_or_default();
    let number = std::str::from_utf8(number).unwrap_or_default();
    let negative = text.first() == Some(&b'-') && number.bytes().any(|digit| digit != b'0');
    let why = match number.parse::<u64>() {
        _ if count == 0 => "no_integer".into(),
        _ if !leftover.is_empty() => format!("{{leftover_string,\"{}\"}}", String::from_utf8_lossy(leftover)),
        _ if negative => format!("{{value_negative,-{}}}", number.trim_start_matches('0')),
        Ok(ms) if ms <= crate::limits::EXPIRATION_MS_MAX => return Ok(ms),
        _ => format!("{{value_too_large,{}}}", number.trim_start_matches('0')),
    };
    let text = format!("invalid expiration '{}': {why}", String::from_utf8_lossy(text));
    Err(Refusal::precondition(text).at(PUBLISH))
}

/// A run on its way to the broker.
pub struct Run {
    pub publish: broker::Publish,
    pub count: u32,
    pub mandatory: bool,
}

/// A channel's publishing side.
#[derive(Debug, Default)]
pub struct Publisher {
    /// Of the current shape: the fields behind the ticket, as they came.
    tail: Vec<u8>,
    /// The head of every record's block; its flags are patched for each record.
    head: Vec<u8>,
    route: Option<Arc<Route>>,
    shape: Shape,
    /// Routes of earlier shapes: the broker remembers them by address.
    routes: Vec<Arc<Route>>,
    /// The last property block that was inspected and needed no change.
    memo: Vec<u8>,
    memo_seen: Seen,
    /// How a message of this shape with these properties begins on the wire: its method frame, and its header frame up to the
    /// body size. Empty: not known.
    prefix: Vec<u8>,
    run: Option<OpenRun>,
    /// How big the last run became: memory for the next one.
    run_bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Shape {
    persistent: bool,
    priority: Option<u8>,
    mandatory: bool,
    /// Its route may not be shared (CC and BCC are of one message): the run has one record.
    alone: bool,
}

#[derive(Debug)]
struct OpenRun {
    builder: BatchBuilder,
    any_expires: bool,
    any_headers: bool,
}

impl Publisher {
    pub fn has_run(&self) -> bool {
        self.run.is_some()
    }

    /// Adds a message. `flush` is called with each run that ended thereby, before or behind it.
    #[inline]
    pub fn add(
        &mut self,
        now: Now,
        tail: &[u8],
        properties: &[u8],
        body: &[&[u8]],
        author: Author<'_>,
        mut flush: impl FnMut(Run),
    ) -> Result<(), Refusal> {
        if properties == self.memo && !self.memo.is_empty() {
            let seen = self.memo_seen;
            if tail != self.tail || !self.shape.fits(seen) {
                self.end_run().map(&mut flush);
                self.reshape(tail, seen, Vec::new())?;
            }
            self.push(now, seen, properties, body);
        } else {
            let inspected = match inspect(properties, author) {
                Ok(inspected) => inspected,
                Err(refusal) => {
                    self.end_run().map(&mut flush);
                    return Err(refusal);
                }
            };
            let Inspected { seen, changed, more_keys } = inspected;
            let plain = changed.is_none() && more_keys.is_empty();
            self.prefix.clear();
            if plain {
                self.memo.clear();
                self.memo.extend_from_slice(properties);
                self.memo_seen = seen;
            }
            if tail != self.tail || !self.shape.fits(seen) || !more_keys.is_empty() {
                self.end_run().map(&mut flush);
                self.reshape(tail, seen, more_keys)?;
            }
            self.push(now, seen, changed.as_deref().unwrap_or(properties), body);
        }
        if self.is_full() {
            self.end_run().map(&mut flush);
        }
        Ok(())
    }

    /// The message just added began so; the next one may well begin the same.
    #[inline]
    pub fn remember(&mut self, method_frame: &[u8], properties: &[u8]) {
        if self.prefix.is_empty() && !self.tail.is_empty() && properties == self.memo {
            self.prefix.extend_from_slice(method_frame);
            self.prefix.push(frame::HEADER);
            self.prefix.extend_from_slice(method_frame.get(1..3).unwrap_or_default());
            self.prefix.extend_from_slice(&(properties.len() as u32 + 12).to_be_bytes());
            self.prefix.extend_from_slice(&[0, 60, 0, 0]);
        }
    }

    /// Takes messages off the input that begin like the last one: the frames around them are compared, not read. Answers how many
    /// bytes; 0 at the first that is different in any way.
    pub fn add_alike(&mut self, now: Now, mut input: &[u8], bytes_max: u64, mut flush: impl FnMut(Run)) -> usize {
        let before = input.len();
        while let Some((body, rest)) = self.alike(input, bytes_max) {
            // Equal to what stands in the input.
            let properties = std::mem::take(&mut self.memo);
            self.push(now, self.memo_seen, &properties, &[body]);
            self.memo = properties;
            input = rest;
            if self.is_full() {
                self.end_run().map(&mut flush);
            }
        }
        before - input.len()
    }

    /// The body of such a message, and what follows it.
    #[inline]
    fn alike<'a>(&self, input: &'a [u8], bytes_max: u64) -> Option<(&'a [u8], &'a [u8])> {
        if self.prefix.is_empty() {
            return None;
        }
        let (size, rest) = input.strip_prefix(&self.prefix[..])?.split_first_chunk::<8>()?;
        let size = u64::from_be_bytes(*size);
        let (&[frame::END, frame::BODY, c0, c1, s0, s1, s2, s3], rest) =
            rest.strip_prefix(&self.memo[..])?.split_first_chunk::<8>()?
        else {
            return None;
        };
        let is_one_piece = u64::from(u32::from_be_bytes([s0, s1, s2, s3])) == size && size <= bytes_max;
        if !is_one_piece || self.prefix.get(1..3) != Some(&[c0, c1]) {
            return None;
        }
        let (body, rest) = rest.split_at_checked(size as usize)?;
        Some((body, rest.strip_prefix(&[frame::END])?))
    }

    fn is_full(&self) -> bool {
        self.shape.alone
            || self.run.as_ref().is_some_and(|run| run.builder.len() >= RUN_RECORDS_MAX || run.builder.size() >= RUN_BYTES_MAX)
    }

    fn reshape(&mut self, tail: &[u8], seen: Seen, more_keys: Vec<Box<str>>) -> Result<(), Refusal> {
        // Nothing may look like the old shape if this one is refused.
        self.tail.clear();
        self.prefix.clear();
        let mut reader = Reader::new(tail);
        let mut fields = || {
            let exchange = reader.short()?;
            let key = reader.short()?;
            let bits = reader.u8()?;
            reader.end().map(|()| (exchange, key, bits))
        };
        let (exchange, key, bits) = fields().map_err(|malformed| Refusal::of_method(malformed, PUBLISH, tail))?;
        if bits & 2 != 0 {
            return Err(Refusal::not_implemented("immediate=true").at(PUBLISH));
        }
        let mandatory = bits & 1 != 0;
        let alone = !more_keys.is_empty();
        self.shape = Shape { persistent: seen.persistent, priority: seen.priority, mandatory, alone };
        self.route = Some(if more_keys.is_empty() {
            self.route_to(exchange, key)
        } else {
            Arc::new(Route { exchange: exchange.into(), routing_key: key.into(), more_keys })
        });
        self.head.clear();
        Facts {
            origin: ORIGIN,
            flags: 0,
            priority: seen.priority.unwrap_or(0),
            exchange,
            routing_key: key,
            expires_ms: None,
            annotations: &[],
            properties: &[],
        }
        .encode_head(&mut self.head);
        if !self.shape.alone {
            self.tail.extend_from_slice(tail);
        }
        Ok(())
    }

    fn route_to(&mut self, exchange: &str, key: &str) -> Arc<Route> {
        if let Some(i) = self.routes.iter().position(|route| &*route.exchange == exchange && &*route.routing_key == key) {
            let route = self.routes.swap_remove(i);
            self.routes.push(route.clone());
            return route;
        }
        if self.routes.len() >= ROUTES_MAX {
            self.routes.remove(0);
        }
        let route = Arc::new(Route { exchange: exchange.into(), routing_key: key.into(), more_keys: Vec::new() });
        self.routes.push(route.clone());
        route
    }

    #[inline]
    fn push(&mut self, now: Now, seen: Seen, properties: &[u8], body: &[&[u8]]) {
        let timestamp = now.unix_ms as i64;
        let run = self.run.get_or_insert_with(|| {
            let mut builder = BatchBuilder::marked(timestamp);
            builder.reserve(self.run_bytes);
            OpenRun { builder, any_expires: false, any_headers: false }
        });
        run.any_headers |= seen.headers;
        let flags = if seen.persistent { PERSISTENT } else { 0 }
            | if seen.headers { HEADERS } else { 0 }
            | if seen.priority.is_some() { PRIORITY } else { 0 };
        match seen.expires_ms {
            None => {
                patch(&mut self.head, 1, &[flags]);
                run.builder.push_marked(timestamp, body, &[&self.head, properties]);
            }
            Some(ms) => {
                run.any_expires = true;
                patch(&mut self.head, 1, &[flags | EXPIRES]);
                run.builder.push_marked(timestamp, body, &[&self.head, &ms.to_be_bytes(), properties]);
            }
        }
    }

    /// The open run, if any.
    pub fn end_run(&mut self) -> Option<Run> {
        let run = self.run.take()?;
        let route = self.route.clone()?;
        // Memory for the next run, were it like this one; a run that was the odd one out shrinks the guess by half.
        self.run_bytes = run.builder.size().max(self.run_bytes / 2).min(RUN_BYTES_MAX);
        let batch = Arc::new(run.builder.finish());
        if self.shape.persistent {
            // Outside the owner's lock.
            batch.seal();
        }
        let count = batch.len();
        let publish = broker::Publish {
            route,
            batch,
            persistent: self.shape.persistent,
            priority: self.shape.priority,
            any_expires: run.any_expires,
            any_headers: run.any_headers,
            confirm: false,
            transactional: false,
        };
        Some(Run { publish, count, mandatory: self.shape.mandatory })
    }
}

impl Shape {
    #[inline]
    fn fits(&self, seen: Seen) -> bool {
        self.persistent == seen.persistent && self.priority == seen.priority && !self.alone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expiration_is_a_number_of_milliseconds() {
        assert_eq!(expiration(b"0"), Ok(0));
        assert_eq!(expiration(b"+60000"), Ok(60_000));
        let text = |bytes| expiration(bytes).unwrap_err().text;
        assert_eq!(text(b"foo"), "invalid expiration 'foo': no_integer");
        assert_eq!(text(b""), "invalid expiration '': no_integer");
        assert_eq!(text(b"12foobar"), "invalid expiration '12foobar': {leftover_string,\"foobar\"}");
        assert_eq!(text(b"-10"), "invalid expiration '-10': {value_negative,-10}");
        assert_eq!(text(b"315360000001"), "invalid expiration '315360000001': {value_too_large,315360000001}");
        assert_eq!(
            text(b"99999999999999999999"),
            "invalid expiration '99999999999999999999': {value_too_large,99999999999999999999}"
        );
    }
}
