//! Conversations in plain text, without sockets: a client's frames, what the broker is asked, what it answers, what the client
//! gets. One line each:
//!
//! ```text
//! ## name of the situation
//! @ open [cancel-notify] [blocked] [user=u] ...   handshake and channel 1, as a block; `@ start` stops before start-ok
//! > 1 QueueDeclare queue=q durable                the client sends a method (unnamed fields are 0, empty, false)
//! > 1 publish x k [mandatory] [mode=2] [..] text  the client sends a whole message
//! > 1 header 60 5 0000                            a content header: class, size, property block in hex
//! > 1 body text      > hex 01ff
//! ? declare-queue q durable                       the broker is asked exactly this next
//! ! queue q 0 0                                   and answers
//! ~ deliver link=0 number=0 a,b                   the broker says unasked
//! < 1 QueueDeclareOk queue=q message_count=0 ..   the client gets exactly this next
//! t 10000     d 5                                 time passes; the journal is durable up to 5
//! = finished                                      also: = waiting (no input wanted), = gated
//! ```
//!
//! At the end of a situation nothing may be left: no request, no frame.

#![allow(dead_code)]

use amqp::frame::{self, Scan};
use amqp::method::{Method, ROWS, Row};
use amqp::{ORIGIN, Settings};
use broker::message::{EXPIRES, Facts, HEADERS, PERSISTENT};
use broker::*;
use protocol::{Now, Peer};
use std::collections::VecDeque;
use std::sync::Arc;

pub struct Talk {
    pub connection: Box<dyn protocol::Connection>,
    pub now: Now,
    input: Vec<u8>,
    pub asked: VecDeque<String>,
    /// How many requests wait for an answer.
    pub unanswered: usize,
    requests: Vec<Request>,
    frame_max: u32,
}

impl Talk {
    pub fn new(settings: Settings, peer: Peer) -> Talk {
        let now = Now { unix_ms: 1_700_000_000_000, mono_ms: 1_000 };
        Talk {
            connection: amqp::connection(Arc::new(settings), peer, now, 7),
            now,
            input: Vec::new(),
            asked: VecDeque::new(),
            unanswered: 0,
            requests: Vec::new(),
            frame_max: 1 << 20,
        }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.input.extend_from_slice(bytes);
        self.pump();
    }

    /// As the server does: input until nothing more is taken.
    fn pump(&mut self) {
        loop {
            let taken = self.connection.handle_input(self.now, &self.input, &mut self.requests);
            assert!(taken <= self.input.len());
            self.input.drain(..taken);
            let asked = self.note_requests();
            if taken == 0 || asked {
                return;
            }
        }
    }

    fn note_requests(&mut self) -> bool {
        let any = !self.requests.is_empty();
        self.unanswered += self.requests.len();
        self.asked.extend(self.requests.drain(..).map(|request| describe(&request)));
        any
    }

    pub fn reply(&mut self, reply: Reply) {
        assert!(self.unanswered > 0, "a reply nobody waits for: {reply:?}");
        if !matches!(reply, Reply::Later) {
            self.unanswered -= 1;
        }
        self.connection.handle_reply(self.now, reply, &mut self.requests);
        self.note_requests();
        if self.unanswered == 0 {
            self.pump();
        }
    }

    pub fn event(&mut self, event: Event) {
        if let Event::Reply(_) = event {
            self.unanswered -= 1;
        }
        self.connection.handle_event(self.now, event, &mut self.requests);
        self.note_requests();
        self.pump();
    }

    pub fn pass(&mut self, ms: u64) {
        self.now.mono_ms += ms;
        self.now.unix_ms += ms;
        if self.connection.poll_timeout().is_some_and(|at| at <= self.now.mono_ms) {
            self.connection.handle_timeout(self.now, &mut self.requests);
        }
        self.note_requests();
    }

    /// The next frame for the client, in words.
    pub fn said(&mut self) -> Option<String> {
        let outbox = self.connection.outbox();
        let ready = outbox.ready();
        if ready.is_empty() {
            return None;
        }
        if ready.starts_with(b"AMQP") {
            let text = format!("AMQP {:?}", &ready[4..8]);
            outbox.advance(8);
            return Some(text);
        }
        let (text, size) = match frame::scan(ready, self.frame_max) {
            Scan::Frame(frame) => (describe_frame(frame), frame.size()),
            other => panic!("not a frame: {other:?} in {ready:?}"),
        };
        outbox.advance(size);
        Some(text)
    }

    /// Handshake and channel 1.
    pub fn open(&mut self, options: &[&str]) {
        let user = options.iter().find_map(|option| option.strip_prefix("user=")).unwrap_or("guest");
        let heartbeat = options.iter().find_map(|option| option.strip_prefix("heartbeat=")).unwrap_or("0");
        let frame_max = options.iter().find_map(|option| option.strip_prefix("frame-max=")).unwrap_or("131072");
        self.send(b"AMQP\x00\x00\x09\x01");
        assert!(self.said().unwrap().starts_with("0 ConnectionStart "));
        self.send(&start_ok("PLAIN", format!("\0{user}\0{user}").as_bytes(), options));
        assert_eq!(self.asked.pop_front().unwrap(), format!("authenticate {user} {user}"));
        let impersonator = options.contains(&"impersonator");
        let counted = options.contains(&"counted");
        self.reply(Reply::Authenticated { user: user.into(), impersonator, counted });
        assert_eq!(self.said().unwrap(), "0 ConnectionTune channel_max=2047 frame_max=131072 heartbeat=60");
        self.client(&format!("0 ConnectionTuneOk channel_max=2047 frame_max={frame_max} heartbeat={heartbeat}"));
        self.client("0 ConnectionOpen virtual_host=/");
        assert_eq!(self.asked.pop_front().unwrap(), "open-vhost /");
        self.reply(Reply::Done { safe_at: None });
        assert_eq!(self.said().unwrap(), "0 ConnectionOpenOk known_hosts=");
        self.client("1 ChannelOpen");
        if counted {
            assert_eq!(self.asked.pop_front().unwrap(), "open-pool 1");
            self.reply(Reply::Done { safe_at: None });
        }
        assert_eq!(self.said().unwrap(), "1 ChannelOpenOk channel_id=");
    }

    /// A client's line.
    pub fn client(&mut self, line: &str) {
        let bytes = client_bytes(line);
        self.send(&bytes);
    }

    fn line(&mut self, line: &str) {
        let (kind, rest) = line.split_at(1);
        let rest = rest.trim_start();
        match kind {
            "@" => {
                let words: Vec<&str> = rest.split(' ').collect();
                match words[0] {
                    "open" => self.open(&words[1..]),
                    "start" => {
                        self.send(b"AMQP\x00\x00\x09\x01");
                        assert!(self.said().unwrap().starts_with("0 ConnectionStart "));
                    }
                    "start-ok" => self.send(&start_ok(words[1], unescape(words[2]).as_bytes(), &words[3..])),
                    other => panic!("@ {other}"),
                }
            }
            ">" => self.client(rest),
            "?" => assert_eq!(self.asked.pop_front().as_deref(), Some(rest), "asked"),
            "!" => self.reply(parse_reply(rest)),
            "~" => self.event(parse_event(rest)),
            "<" => assert_eq!(self.said().as_deref(), Some(rest), "said"),
            "t" => self.pass(rest.parse().unwrap()),
            "d" => self.connection.handle_durable(Position(rest.parse().unwrap())),
            "=" => match rest {
                "finished" => assert!(self.connection.is_finished()),
                "waiting" => assert!(!self.connection.wants_input()),
                "reading" => assert!(self.connection.wants_input() && !self.connection.is_finished()),
                "gated" => assert!(self.connection.outbox().ready().is_empty() && self.connection.awaits().is_some()),
                other => panic!("= {other}"),
            },
            other => panic!("line kind {other}"),
        }
    }
}

/// Runs every situation of a transcript; answers how many there were.
pub fn check(text: &str, settings: &Settings, peer: &Peer) -> usize {
    let mut count = 0;
    let mut broken = Vec::new();
    for situation in text.split("\n## ").skip(1) {
        let (name, lines) = situation.split_once('\n').unwrap();
        count += 1;
        let mut talk = Talk::new(settings.clone(), peer.clone());
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for line in lines.lines().map(str::trim_end).filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| talk.line(line)));
                assert!(run.is_ok(), "line: {line}");
            }
            assert_eq!(talk.asked, [] as [&str; 0], "asked, but not in the transcript");
            assert_eq!(talk.said(), None, "said, but not in the transcript");
        }));
        if run.is_err() {
            println!("situation: {name}");
            broken.push(name);
        }
    }
    assert_eq!(broken, [] as [&str; 0]);
    count
}

fn start_ok(mechanism: &str, response: &[u8], options: &[&str]) -> Vec<u8> {
    let capabilities: Table = [
        ("consumer_cancel_notify", "cancel-notify"),
        ("connection.blocked", "blocked"),
        ("authentication_failure_close", "failure-close"),
    ]
    .into_iter()
    .map(|(name, option)| (name, Value::Bool(options.contains(&option))))
    .collect();
    let properties: Table = [("capabilities", Value::Table(capabilities))].into_iter().collect();
    let properties = amqp::field_table::encode(&properties);
    let method = Method::ConnectionStartOk {
        client_properties: amqp::method::RawTable(&properties),
        mechanism,
        response: amqp::method::Long(response),
        locale: "en_US",
    };
    let mut out = Vec::new();
    amqp::method::put(&mut out, 0, &method);
    out
}

fn unescape(text: &str) -> String {
    text.replace("\\0", "\0").replace("\\r", "\r").replace("\\n", "\n").replace("\\s", " ")
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// `CHANNEL METHOD field=value ..` and its kin, as bytes.
pub fn client_bytes(line: &str) -> Vec<u8> {
    if let Some(rest) = line.strip_prefix("hex ") {
        return hex(rest);
    }
    let mut words = line.split(' ');
    let channel: u16 = words.next().unwrap().parse().unwrap_or_else(|_| panic!("channel of {line}"));
    let what = words.next().unwrap();
    let rest = words.clone().collect::<Vec<_>>().join(" ");
    let mut out = Vec::new();
    match what {
        "header" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let at = frame::begin(&mut out, frame::HEADER, channel);
            out.extend_from_slice(&words[0].parse::<u16>().unwrap().to_be_bytes());
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&words[1].parse::<u64>().unwrap().to_be_bytes());
            out.extend_from_slice(&hex(words[2]));
            frame::finish(&mut out, at);
        }
        "body" => {
            let at = frame::begin(&mut out, frame::BODY, channel);
            out.extend_from_slice(rest.as_bytes());
            frame::finish(&mut out, at);
        }
        "heartbeat" => {
            let at = frame::begin(&mut out, frame::HEARTBEAT, channel);
            frame::finish(&mut out, at);
        }
        "publish" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let given: Vec<&str> = words[2..].to_vec();
            let (options, body) = given.split_at(given.len() - 1);
            let method = Method::BasicPublish {
                ticket: 0,
                exchange: words[0].trim_matches('"'),
                routing_key: words[1].trim_matches('"'),
                mandatory: options.contains(&"mandatory"),
                immediate: options.contains(&"immediate"),
            };
            amqp::method::put(&mut out, channel, &method);
            frame::put_content(&mut out, channel, &properties(options), body[0].trim_matches('"').as_bytes(), 4096);
        }
        name => {
            let row = ROWS.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no method {name}"));
            let fields: Vec<(&str, &str)> = words.map(|word| word.split_once('=').unwrap_or((word, ""))).collect();
            let at = frame::begin(&mut out, frame::METHOD, channel);
            out.extend_from_slice(&row.id.0.to_be_bytes());
            out.extend_from_slice(&row.id.1.to_be_bytes());
            put_row(&mut out, row, &fields);
            frame::finish(&mut out, at);
        }
    }
    out
}

fn put_row(out: &mut Vec<u8>, row: &Row, given: &[(&str, &str)]) {
    for (name, _) in given {
        let known = row.before.iter().chain(row.after).any(|(field, _)| field == name) || row.bits.contains(name);
        assert!(known, "{} has no {name}", row.name);
    }
    let value = |name: &str| given.iter().find(|(given, _)| *given == name).map_or("", |(_, value)| value);
    let number = |name: &str| value(name).parse::<u64>().unwrap_or(0);
    let field = |out: &mut Vec<u8>, (name, kind): (&str, &str)| match kind {
        "u8" => out.push(number(name) as u8),
        "u16" => out.extend_from_slice(&(number(name) as u16).to_be_bytes()),
        "u32" => out.extend_from_slice(&(number(name) as u32).to_be_bytes()),
        "u64" => out.extend_from_slice(&number(name).to_be_bytes()),
        kind if kind.starts_with("RawTable") => amqp::reader::put_long(out, &table_bytes(value(name))),
        kind if kind.starts_with("Long") => amqp::reader::put_long(out, unescape(value(name)).as_bytes()),
        _ => amqp::reader::put_short(out, &unescape(value(name))),
    };
    row.before.iter().for_each(|entry| field(out, *entry));
    if !row.bits.is_empty() {
        let bits = row.bits.iter().enumerate().map(|(i, bit)| u8::from(given.iter().any(|(name, _)| name == bit)) << i);
        out.push(bits.sum());
    }
    row.after.iter().for_each(|entry| field(out, *entry));
}

/// `name:value;name:value`; numbers are signedint, true and false bools, the rest longstr.
fn table_bytes(text: &str) -> Vec<u8> {
    let entries = text.split(';').filter(|entry| !entry.is_empty()).map(|entry| entry.split_once(':').unwrap());
    amqp::field_table::encode(&entries.map(|(name, value)| (name, parse_value(value))).collect())
}

fn parse_value(text: &str) -> Value {
    match text {
        "true" => Value::Bool(true),
        "false" => Value::Bool(false),
        text if text.starts_with('[') => {
            let inside = text.trim_matches(['[', ']']);
            Value::Array(inside.split('+').filter(|v| !v.is_empty()).map(parse_value).collect())
        }
        text => text.parse().map(Value::I32).unwrap_or_else(|_| Value::str(text)),
    }
}

/// A property block from words like `mode=2 expiration=60 headers=a:1;b:c`.
pub fn properties(options: &[&str]) -> Vec<u8> {
    const NAMES: [&str; 14] = [
        "content-type",
        "content-encoding",
        "headers",
        "mode",
        "priority",
        "correlation-id",
        "reply-to",
        "expiration",
        "message-id",
        "timestamp",
        "type",
        "user-id",
        "app-id",
        "cluster-id",
    ];
    let (mut flags, mut fields) = (0u16, Vec::new());
    for (i, name) in NAMES.iter().enumerate() {
        let Some(value) = options.iter().find_map(|option| option.strip_prefix(name)?.strip_prefix('=')) else { continue };
        flags |= 0x8000 >> i;
        match i {
            2 => amqp::reader::put_long(&mut fields, &table_bytes(value)),
            3 | 4 => fields.push(value.parse().unwrap()),
            9 => fields.extend_from_slice(&value.parse::<u64>().unwrap().to_be_bytes()),
            _ => amqp::reader::put_short(&mut fields, value),
        }
    }
    [&flags.to_be_bytes()[..], &fields].concat()
}

fn describe_properties(block: &[u8]) -> String {
    use amqp::properties::{Property, Spans};
    let spans = Spans::scan(block).expect("a property block of ours");
    let mut words = Vec::new();
    let mut short = |name: &str, property| {
        if let Some(value) = spans.short(property) {
            words.push(format!(" {name}={}", String::from_utf8_lossy(value)));
        }
    };
    short("content-type", Property::ContentType);
    short("reply-to", Property::ReplyTo);
    short("expiration", Property::Expiration);
    short("user-id", Property::UserId);
    if let Some(headers) = spans.headers() {
        words.push(format!(" headers={}", describe_table(&amqp::field_table::decode(headers).unwrap())));
    }
    if let Some(mode) = spans.octet(Property::DeliveryMode) {
        words.push(format!(" mode={mode}"));
    }
    if let Some(priority) = spans.octet(Property::Priority) {
        words.push(format!(" priority={priority}"));
    }
    words.concat()
}

fn describe_table(table: &Table) -> String {
    table.0.iter().map(|(name, value)| format!("{name}:{}", describe_value(value))).collect::<Vec<_>>().join(";")
}

fn describe_value(value: &Value) -> String {
    match value {
        Value::Str(bytes) => String::from_utf8_lossy(bytes).into(),
        Value::Array(values) => format!("[{}]", values.iter().map(describe_value).collect::<Vec<_>>().join("+")),
        Value::Bool(v) => v.to_string(),
        Value::Table(table) => format!("{{{}}}", describe_table(table)),
        value => value.as_integer().map_or_else(|| format!("{value:?}"), |v| v.to_string()),
    }
}

fn describe_frame(frame: frame::Frame<'_>) -> String {
    let channel = frame.channel;
    match frame.kind {
        frame::METHOD => {
            let (id, fields) = amqp::method::split(frame.payload).unwrap();
            let row = ROWS.iter().find(|row| row.id == id).unwrap();
            Method::decode(id, fields).expect("a method of ours");
            format!("{channel} {}{}", row.name, describe_row(row, fields))
        }
        frame::HEADER => {
            let size = u64::from_be_bytes(frame.payload[4..12].try_into().unwrap());
            format!("{channel} header {size}{}", describe_properties(&frame.payload[12..]))
        }
        frame::BODY => format!("{channel} body {}", String::from_utf8_lossy(frame.payload)),
        frame::HEARTBEAT => format!("{channel} heartbeat"),
        kind => panic!("frame of type {kind}"),
    }
}

fn describe_row(row: &Row, fields: &[u8]) -> String {
    let mut reader = amqp::reader::Reader::new(fields);
    let mut out = String::new();
    let field = |out: &mut String, reader: &mut amqp::reader::Reader<'_>, (name, kind): (&str, &str)| {
        let value = match kind {
            "u8" => reader.u8().unwrap().to_string(),
            "u16" => reader.u16().unwrap().to_string(),
            "u32" => reader.u32().unwrap().to_string(),
            "u64" => reader.u64().unwrap().to_string(),
            kind if kind.starts_with("RawTable") => describe_table(&amqp::field_table::decode(reader.long().unwrap()).unwrap()),
            kind if kind.starts_with("Long") => String::from_utf8_lossy(reader.long().unwrap()).into(),
            _ => reader.short().unwrap().into(),
        };
        out.push_str(&format!(" {name}={value}"));
    };
    row.before.iter().for_each(|entry| field(&mut out, &mut reader, *entry));
    if !row.bits.is_empty() {
        let bits = reader.u8().unwrap();
        row.bits.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0).for_each(|(_, bit)| out.push_str(&format!(" {bit}")));
    }
    row.after.iter().for_each(|entry| field(&mut out, &mut reader, *entry));
    out
}

/// A request in words.
pub fn describe(request: &Request) -> String {
    let flags =
        |flags: &[(&str, bool)]| flags.iter().filter(|(_, on)| *on).map(|(name, _)| format!(" {name}")).collect::<String>();
    let arguments = |table: &Table| if table.is_empty() { String::new() } else { format!(" {}", describe_table(table)) };
    match request {
        Request::Publish { ticket, publish } => {
            let route = &publish.route;
            let more: String = route.more_keys.iter().map(|key| format!("+{key}")).collect();
            let bodies: Vec<String> = (0..publish.batch.len())
                .map(|i| {
                    let record = publish.batch.record(i);
                    let block = record.block().unwrap();
                    let facts = Facts::parse(block).expect("a block of ours");
                    assert_eq!((facts.exchange, facts.routing_key), (&*route.exchange, &*route.routing_key));
                    assert_eq!(facts.flags & PERSISTENT != 0, publish.persistent);
                    assert!(facts.flags & HEADERS == 0 || publish.any_headers);
                    assert!(facts.flags & EXPIRES == 0 || publish.any_expires);
                    let body = String::from_utf8_lossy(record.value.unwrap());
                    let expires = facts.expires_ms.map_or(String::new(), |ms| format!("(expires {ms})"));
                    let properties = describe_properties(facts.properties).replace(' ', ",");
                    format!("{body}{expires}{}", properties)
                })
                .collect();
            let flags = flags(&[
                ("persistent", publish.persistent),
                ("confirm", publish.confirm),
                ("transactional", publish.transactional),
            ]);
            let priority = publish.priority.map_or(String::new(), |priority| format!(" priority={priority}"));
            let line = format!(
                "publish {ticket} '{}' '{}{more}'{flags}{priority}: {}",
                route.exchange,
                route.routing_key,
                bodies.join(" ")
            );
            line.trim_end().into()
        }
        Request::Leave => "leave".into(),
        Request::Settle { ticket, link, first, count, outcome, transactional } => {
            let outcome = match outcome {
                Outcome::Accept => "accept",
                Outcome::Requeue { failed: false } => "requeue",
                Outcome::Requeue { failed: true } => "requeue-failed",
                Outcome::Release => "release",
                Outcome::Reject => "reject",
            };
            format!("settle {ticket} link={link} {first}+{count} {outcome}{}", flags(&[("transactional", *transactional)]))
        }
        Request::Authenticate { user, password } => format!("authenticate {user} {}", String::from_utf8_lossy(password)),
        Request::AuthenticateAs { user } => format!("authenticate-as {user}"),
        Request::OpenVhost { vhost } => format!("open-vhost {vhost}"),
        Request::UpdateSecret { secret } => format!("update-secret {}", String::from_utf8_lossy(secret)),
        Request::DeclareExchange(d) => {
            let flags = flags(&[
                ("passive", d.passive),
                ("durable", d.durable),
                ("auto-delete", d.auto_delete),
                ("internal", d.internal),
            ]);
            format!("declare-exchange '{}' {}{flags}{}", d.name, d.kind, arguments(&d.arguments))
        }
        Request::DeleteExchange { name, if_unused } => format!("delete-exchange {name}{}", flags(&[("if-unused", *if_unused)])),
        Request::DeclareQueue(d) => {
            let flags = flags(&[
                ("server-named", d.server_named),
                ("passive", d.passive),
                ("durable", d.durable),
                ("exclusive", d.exclusive),
                ("auto-delete", d.auto_delete),
            ]);
            format!("declare-queue {}{flags}{}", d.name, arguments(&d.arguments))
        }
        Request::DeleteQueue { name, if_unused, if_empty } => {
            format!("delete-queue {name}{}", flags(&[("if-unused", *if_unused), ("if-empty", *if_empty)]))
        }
        Request::Purge { queue } => format!("purge {queue}"),
        Request::Bind(b) | Request::Unbind(b) => {
            let verb = if matches!(request, Request::Bind(_)) { "bind" } else { "unbind" };
            let to = if b.to == Destination::Queue { "queue" } else { "exchange" };
            format!("{verb} '{}' -> {to} '{}' '{}'{}", b.source, b.destination, b.routing_key, arguments(&b.arguments))
        }
        Request::Consume(c) => {
            let flags = flags(&[("auto", c.auto_settle), ("exclusive", c.exclusive)]);
            format!(
                "consume link={} pool={} {} tag={} window={}{flags}{}",
                c.link,
                c.pool,
                c.queue,
                c.tag,
                c.window,
                arguments(&c.arguments)
            )
        }
        Request::Cancel { link } => format!("cancel link={link}"),
        Request::OpenReplyAddress { link } => format!("open-reply-address link={link}"),
        Request::Get { link, pool, queue, auto_settle } => {
            format!("get link={link} pool={pool} {queue}{}", flags(&[("auto", *auto_settle)]))
        }
        Request::SetWindow { pool, window } => format!("set-window {pool} {window}"),
        Request::Commit { ticket } => format!("commit {ticket}"),
        Request::Rollback { ticket } => format!("rollback {ticket}"),
        Request::OpenPool { pool } => format!("open-pool {pool}"),
        Request::ClosePool { pool } => format!("close-pool {pool}"),
    }
}

fn parse_reply(line: &str) -> Reply {
    let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
    let (kind, safe_at) = match head.split_once('@') {
        Some((kind, position)) => (kind, Some(Position(position.parse().unwrap()))),
        None => (head, None),
    };
    let words: Vec<&str> = rest.split(' ').filter(|word| !word.is_empty()).collect();
    match kind {
        "done" => Reply::Done { safe_at },
        "settled" => Reply::Settled,
        "skipped" => Reply::Skipped,
        "later" => Reply::Later,
        "authenticated" => Reply::Authenticated { user: words[0].into(), impersonator: false, counted: false },
        "queue" => Reply::Queue {
            facts: QueueFacts {
                name: words[0].into(),
                messages: words[1].parse().unwrap(),
                consumers: words[2].parse().unwrap(),
            },
            safe_at,
        },
        "removed" => Reply::Removed { messages: words[0].parse().unwrap(), safe_at },
        // `committed@5 unroutable=0`: the only record of that publish.
        "committed" => {
            let unroutable =
                words.iter().filter_map(|word| word.strip_prefix("unroutable=")).map(|i| (i.parse().unwrap(), 0..1));
            Reply::Committed { safe_at, unroutable: unroutable.collect() }
        }
        "address" => Reply::ReplyAddress { name: words[0].into() },
        "empty" => Reply::Got { delivery: None, left: 0 },
        "got" => {
            let left = words.iter().find_map(|word| word.strip_prefix("left=")).map_or(0, |left| left.parse().unwrap());
            Reply::Got { delivery: Some(parse_delivery(&words)), left }
        }
        "published" => Reply::Published(Published {
            safe_at,
            unroutable: if words.contains(&"unroutable") { std::iter::once(0..1).collect() } else { Vec::new() },
            refused: words
                .iter()
                .find_map(|word| word.strip_prefix("refused="))
                .map_or(Vec::new(), |list| list.split(',').map(|i| i.parse().unwrap()).collect()),
            error: None,
            slow_down: false,
        }),
        "unpublished" => Reply::Published(Published { error: Some(parse_error(rest)), ..Published::default() }),
        "failed" => Reply::Failed(parse_error(rest)),
        other => panic!("reply {other}"),
    }
}

fn parse_error(text: &str) -> Error {
    let (reason, text) = text.split_once(' ').unwrap();
    let reason = match reason {
        "not-found" => Reason::NotFound,
        "access-refused" => Reason::AccessRefused,
        "locked" => Reason::Locked,
        "precondition-failed" => Reason::PreconditionFailed,
        "not-allowed" => Reason::NotAllowed,
        "not-implemented" => Reason::NotImplemented,
        "resource-error" => Reason::ResourceError,
        other => panic!("reason {other}"),
    };
    Error::new(reason, text)
}

fn parse_event(line: &str) -> Event {
    let (kind, rest) = line.split_once(' ').unwrap_or((line, ""));
    let words: Vec<&str> = rest.split(' ').collect();
    let number =
        |name: &str| words.iter().find_map(|word| word.strip_prefix(name)).map_or(0, |value| value.parse::<u64>().unwrap());
    match kind {
        "deliver" => Event::Delivery(parse_delivery(&words)),
        "reply" => Event::Reply(parse_reply(rest)),
        "cancelled" => Event::Cancelled { link: number("link=") as LinkId },
        "timed-out" => Event::TimedOut { link: number("link=") as LinkId, timeout_ms: number("after=") },
        "blocked" => Event::Blocked { reason: rest.into() },
        "unblocked" => Event::Unblocked,
        "close" => Event::Close { reason: rest.into() },
        other => panic!("event {other}"),
    }
}

/// `link=0 number=0 [redelivered] [count=n] [death] [kafka] [exchange=x] [key=k] [prop=..] bodies,separated`.
fn parse_delivery(words: &[&str]) -> Delivery {
    let word = |name: &str| words.iter().find_map(|word| word.strip_prefix(name));
    let number = |name: &str| word(name).map_or(0, |value| value.parse::<u64>().unwrap());
    let bodies: Vec<&str> = words.last().unwrap().trim_matches('"').split(',').collect();
    let mut annotations = Vec::new();
    if words.contains(&"death") {
        broker::table::encode_table(&[("x-death", Value::str("once"))].into_iter().collect(), &mut annotations);
    }
    let block = properties(words);
    let batch = batch(
        &bodies,
        word("exchange=").unwrap_or("x"),
        word("key=").unwrap_or("k"),
        &annotations,
        &block,
        words.contains(&"foreign"),
    );
    let stride = number("stride=").max(1) as u32;
    Delivery {
        link: number("link=") as LinkId,
        number: number("number="),
        first: 0,
        stride,
        count: (bodies.len() as u32).div_ceil(stride),
        redelivered: words.contains(&"redelivered"),
        delivery_count: word("count=").map(|count| count.parse().unwrap()),
        cost: batch.size() as u32,
        batch: Arc::new(batch),
    }
}

pub fn batch(bodies: &[&str], exchange: &str, key: &str, annotations: &[u8], properties: &[u8], foreign: bool) -> Batch {
    let mut builder = BatchBuilder::marked(1);
    for body in bodies {
        let mut head = Vec::new();
        let origin = if foreign { broker::message::Origin(9) } else { ORIGIN };
        Facts { origin, flags: 0, priority: 0, exchange, routing_key: key, expires_ms: None, annotations, properties: &[] }
            .encode_head(&mut head);
        builder.push_marked(1, &[body.as_bytes()], &[&head, properties]);
    }
    builder.finish()
}

/// Small, seeded, repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 ^ (self.0 >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd) >> 16
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    pub fn text(&mut self, length_max: usize) -> String {
        (0..self.below(length_max + 1)).map(|_| char::from(b'a' + self.below(26) as u8)).collect()
    }

    pub fn bytes(&mut self, length_max: usize) -> Vec<u8> {
        (0..self.below(length_max + 1)).map(|_| self.next() as u8).collect()
    }

    pub fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 15 } else { 17 }) {
            0 => Value::Void,
            1 => Value::Bool(self.below(2) == 1),
            2 => Value::I8(self.next() as i8),
            3 => Value::U8(self.next() as u8),
            4 => Value::I16(self.next() as i16),
            5 => Value::U16(self.next() as u16),
            6 => Value::I32(self.next() as i32),
            7 => Value::U32(self.next() as u32),
            8 => Value::I64((self.next() as i64) << 16),
            9 => Value::F32(self.below(1000) as f32 / 8.0),
            10 => Value::F64(self.below(1000) as f64 / 3.0),
            11 => Value::Decimal { scale: self.next() as u8, value: self.next() as u32 },
            12 => Value::str(self.text(40)),
            13 => Value::Bytes(self.bytes(40).into()),
            14 => Value::Timestamp(self.next()),
            15 => Value::Array((0..self.below(4)).map(|_| self.value(depth - 1)).collect()),
            _ => Value::Table(self.table(depth - 1)),
        }
    }

    /// Names rise and are distinct: the order that a sorted map keeps.
    pub fn table(&mut self, depth: usize) -> Table {
        (0..self.below(5)).map(|i| (format!("{i}{}", self.text(8)), self.value(depth))).collect()
    }
}

/// What a patient broker would answer.
pub fn answer(request: &Request) -> Reply {
    match request {
        Request::Publish { .. } => Reply::Published(Published::default()),
        Request::Settle { .. } => Reply::Settled,
        Request::Authenticate { user, .. } | Request::AuthenticateAs { user } => {
            Reply::Authenticated { user: user.clone(), impersonator: false, counted: false }
        }
        Request::DeclareQueue(declare) => {
            Reply::Queue { facts: QueueFacts { name: declare.name.clone(), messages: 0, consumers: 0 }, safe_at: None }
        }
        Request::DeleteQueue { .. } | Request::Purge { .. } => Reply::Removed { messages: 0, safe_at: None },
        Request::OpenReplyAddress { .. } => Reply::ReplyAddress { name: "amq.rabbitmq.reply-to.1".into() },
        Request::Get { .. } => Reply::Got { delivery: None, left: 0 },
        Request::Commit { .. } => Reply::Committed { safe_at: None, unroutable: Vec::new() },
        _ => Reply::Done { safe_at: None },
    }
}
