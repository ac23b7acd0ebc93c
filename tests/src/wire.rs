//! AMQP 0-9-1 by hand, over any stream: a client that may also say what no client would.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

pub const HEADER: &[u8; 8] = b"AMQP\x00\x00\x09\x01";
pub const METHOD: u8 = 1;
pub const CONTENT_HEADER: u8 = 2;
pub const BODY: u8 = 3;
pub const HEARTBEAT: u8 = 8;

/// How long anything may take before a test says that it never comes.
const PATIENCE: Duration = Duration::from_secs(30);

pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// Arguments of a method, field after field.
#[derive(Clone, Default)]
pub struct Fields(pub Vec<u8>);

impl Fields {
    pub fn new() -> Fields {
        Fields::default()
    }

    pub fn raw(mut self, bytes: &[u8]) -> Fields {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn u8(self, value: u8) -> Fields {
        self.raw(&[value])
    }

    pub fn u16(self, value: u16) -> Fields {
        self.raw(&value.to_be_bytes())
    }

    pub fn u32(self, value: u32) -> Fields {
        self.raw(&value.to_be_bytes())
    }

    pub fn u64(self, value: u64) -> Fields {
        self.raw(&value.to_be_bytes())
    }

    pub fn short(self, text: &str) -> Fields {
        self.u8(text.len() as u8).raw(text.as_bytes())
    }

    pub fn long(self, bytes: &[u8]) -> Fields {
        self.u32(bytes.len() as u32).raw(bytes)
    }

    /// A table of strings.
    pub fn table(self, entries: &[(&str, &str)]) -> Fields {
        let inside = entries.iter().fold(Fields::new(), |all, (name, value)| {
            let value = Fields::new().long(value.as_bytes());
            all.short(name).u8(b'S').raw(&value.0)
        });
        self.long(&inside.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub channel: u16,
    pub payload: Vec<u8>,
}

impl Frame {
    pub fn method(&self) -> (u16, u16) {
        match &self.payload[..] {
            [a, b, c, d, ..] if self.kind == METHOD => (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d])),
            _ => (0, 0),
        }
    }

    /// Code and text, if it is a close of the connection or of a channel.
    pub fn close(&self) -> Option<(u16, String)> {
        matches!(self.method(), (10, 50) | (20, 40)).then(|| {
            let code = u16::from_be_bytes([self.payload[4], self.payload[5]]);
            let length = usize::from(self.payload[6]);
            (code, String::from_utf8_lossy(&self.payload[7..7 + length]).into_owned())
        })
    }

    /// The short string at a place of the arguments.
    pub fn short_at(&self, at: usize) -> String {
        let from = 4 + at;
        let length = usize::from(self.payload[from]);
        String::from_utf8_lossy(&self.payload[from + 1..from + 1 + length]).into_owned()
    }

    pub fn u32_at(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[4 + at..8 + at].try_into().expect("four bytes"))
    }
}

pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let head = Fields::new().u8(kind).u16(channel).long(payload);
    head.u8(0xCE).0
}

pub fn method(channel: u16, class: u16, method: u16, fields: &Fields) -> Vec<u8> {
    frame(METHOD, channel, &Fields::new().u16(class).u16(method).raw(&fields.0).0)
}

/// Why a conversation went no further.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Channel (0: the connection), code and text.
    Close(u16, u16, String),
    /// Without a word.
    Gone,
}

impl Refused {
    pub fn code(&self) -> u16 {
        match self {
            Refused::Close(_, code, _) => *code,
            Refused::Gone => 0,
        }
    }

    pub fn text(&self) -> &str {
        match self {
            Refused::Close(.., text) => text,
            Refused::Gone => "",
        }
    }
}

/// Who logs in, and how.
#[derive(Clone)]
pub struct Login<'a> {
    pub mechanism: &'a str,
    pub user: &'a str,
    pub password: &'a str,
    pub vhost: &'a str,
    pub capabilities: &'a [&'a str],
}

impl Default for Login<'_> {
    fn default() -> Self {
        let capabilities = &["authentication_failure_close", "consumer_cancel_notify", "connection.blocked"];
        Login { mechanism: "PLAIN", user: "guest", password: "guest", vhost: "/", capabilities }
    }
}

impl Login<'_> {
    pub fn start_ok(&self) -> Vec<u8> {
        let capabilities = self.capabilities.iter().fold(Fields::new(), |all, name| all.short(name).raw(b"t\x01"));
        let properties = Fields::new().short("capabilities").u8(b'F').long(&capabilities.0);
        let response = match self.mechanism {
            "PLAIN" => format!("\0{}\0{}", self.user, self.password),
            _ => String::new(),
        };
        let fields = Fields::new().long(&properties.0).short(self.mechanism).long(response.as_bytes()).short("en_US");
        method(0, 10, 11, &fields)
    }

    /// Everything up to the open connection, in one breath.
    pub fn all(&self) -> Vec<u8> {
        let tune_ok = method(0, 10, 31, &Fields::new().u16(2047).u32(131_072).u16(0));
        let open = method(0, 10, 40, &Fields::new().short(self.vhost).short("").u8(0));
        [HEADER.to_vec(), self.start_ok(), tune_ok, open].concat()
    }
}

pub struct Wire {
    stream: Box<dyn Stream>,
    /// Came while something else was waited for.
    pub aside: Vec<Frame>,
}

impl Wire {
    pub fn over(stream: impl Stream + 'static) -> Wire {
        Wire { stream: Box::new(stream), aside: Vec::new() }
    }

    pub fn connect(address: &str) -> Wire {
        Wire::over(tcp(address))
    }

    /// As guest, with channel 1 open.
    pub fn open(address: &str) -> Wire {
        Wire::open_as(address, &Login::default()).expect("guest may")
    }

    pub fn open_as(address: &str, login: &Login) -> Result<Wire, Refused> {
        Wire::connect(address).log_in(login)
    }

    pub fn log_in(mut self, login: &Login) -> Result<Wire, Refused> {
        self.say(HEADER);
        self.wait_for(10, 10)?;
        self.say(&login.start_ok());
        self.wait_for(10, 30)?;
        self.say(&login.all()[HEADER.len() + login.start_ok().len()..]);
        self.wait_for(10, 41)?;
        self.open_channel(1)?;
        Ok(self)
    }

    pub fn open_channel(&mut self, channel: u16) -> Result<Frame, Refused> {
        self.ask(channel, 20, 10, &Fields::new().short(""))
    }

    /// What can't be said is noticed when nothing comes back.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).is_ok()
    }

    /// One frame, or `None` when the other side has closed.
    pub fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 7];
        match self.stream.read_exact(&mut head) {
            Err(error) if is_patience(&error) => panic!("nothing comes, and nobody closes"),
            Err(_) => return None,
            Ok(()) => {}
        }
        if head.starts_with(b"AMQP") {
            self.stream.read_exact(&mut [0; 1]).ok()?;
            return Some(Frame { kind: b'A', channel: 0, payload: head.to_vec() });
        }
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
        let mut payload = vec![0; size + 1];
        self.stream.read_exact(&mut payload).ok()?;
        assert_eq!(payload.pop(), Some(0xCE), "a frame ends with its mark");
        Some(Frame { kind: head[0], channel: u16::from_be_bytes([head[1], head[2]]), payload })
    }

    /// Waits for a method; other frames are kept aside, a close in between is what it fails with.
    pub fn wait_for(&mut self, class: u16, method: u16) -> Result<Frame, Refused> {
        if let Some(at) = self.aside.iter().position(|frame| frame.method() == (class, method)) {
            return Ok(self.aside.remove(at));
        }
        loop {
            let frame = self.read().ok_or(Refused::Gone)?;
            if frame.method() == (class, method) {
                return Ok(frame);
            }
            if let Some((code, text)) = frame.close() {
                let class = frame.method().0;
                self.say(&self::method(frame.channel, class, if class == 10 { 51 } else { 41 }, &Fields::new()));
                return Err(Refused::Close(frame.channel, code, text));
            }
            if frame.kind != HEARTBEAT {
                self.aside.push(frame);
            }
        }
    }

    /// Says a method and waits for its answer, which has the next number.
    pub fn ask(&mut self, channel: u16, class: u16, method: u16, fields: &Fields) -> Result<Frame, Refused> {
        self.say(&self::method(channel, class, method, fields));
        self.wait_for(class, method + 1)
    }

    pub fn declare_queue(&mut self, name: &str, durable: bool) -> Result<Frame, Refused> {
        let bits = if durable { 2 } else { 0 };
        self.ask(1, 50, 10, &Fields::new().u16(0).short(name).u8(bits).table(&[]))
    }

    /// Opens another channel and asks something there: whether the connection goes on beside its channel 1.
    pub fn declare_queue_on(&mut self, channel: u16) -> Result<Frame, Refused> {
        self.open_channel(channel)?;
        self.ask(channel, 50, 10, &Fields::new().u16(0).short("").u8(12).table(&[]))
    }

    /// (ready messages, consumers)
    pub fn look_at_queue(&mut self, name: &str) -> Result<(u32, u32), Refused> {
        let frame = self.ask(1, 50, 10, &Fields::new().u16(0).short(name).u8(1).table(&[]))?;
        let at = 1 + frame.short_at(0).len();
        Ok((frame.u32_at(at), frame.u32_at(at + 4)))
    }

    pub fn delete_queue(&mut self, name: &str) -> Result<Frame, Refused> {
        self.ask(1, 50, 40, &Fields::new().u16(0).short(name).u8(0))
    }

    pub fn declare_exchange(&mut self, name: &str, kind: &str) -> Result<Frame, Refused> {
        self.ask(1, 40, 10, &Fields::new().u16(0).short(name).short(kind).u8(2).table(&[]))
    }

    pub fn bind(&mut self, queue: &str, exchange: &str, key: &str) -> Result<Frame, Refused> {
        self.ask(1, 50, 20, &Fields::new().u16(0).short(queue).short(exchange).short(key).u8(0).table(&[]))
    }

    pub fn confirm_select(&mut self) {
        self.ask(1, 85, 10, &Fields::new().u8(0)).expect("confirms are to be had");
    }

    /// Without waiting for anything.
    pub fn publish(&mut self, exchange: &str, key: &str, body: &[u8]) -> bool {
        self.say(&publish(1, exchange, key, body))
    }

    /// A confirming channel's publish: acked (`true`) or nacked.
    pub fn publish_confirmed(&mut self, exchange: &str, key: &str, body: &[u8]) -> Result<bool, Refused> {
        self.publish(exchange, key, body);
        loop {
            let frame = self.read().ok_or(Refused::Gone)?;
            match (frame.method(), frame.close()) {
                ((60, 80), _) => return Ok(true),
                ((60, 120), _) => return Ok(false),
                (_, Some((code, text))) => return Err(Refused::Close(frame.channel, code, text)),
                _ => self.aside.push(frame),
            }
        }
    }

    /// `tag` is the consumer's; no acks.
    pub fn consume(&mut self, queue: &str, tag: &str) -> Result<Frame, Refused> {
        self.ask(1, 60, 20, &Fields::new().u16(0).short(queue).short(tag).u8(2).table(&[]))
    }

    /// The body of one message, taken for good; `None` when there is none.
    pub fn get(&mut self, queue: &str) -> Result<Option<Vec<u8>>, Refused> {
        self.say(&method(1, 60, 70, &Fields::new().u16(0).short(queue).u8(1)));
        loop {
            let frame = self.read().ok_or(Refused::Gone)?;
            match (frame.method(), frame.close()) {
                ((60, 71), _) => return Ok(Some(self.body())),
                ((60, 72), _) => return Ok(None),
                (_, Some((code, text))) => return Err(Refused::Close(frame.channel, code, text)),
                _ => self.aside.push(frame),
            }
        }
    }

    /// Gets until there is a message.
    pub fn get_soon(&mut self, queue: &str) -> Vec<u8> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(body) = self.get(queue).expect("the queue is there") {
                return body;
            }
            assert!(Instant::now() < deadline, "no message comes to {queue}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The content that follows a deliver or get-ok.
    pub fn body(&mut self) -> Vec<u8> {
        let mut next = || if self.aside.is_empty() { self.read() } else { Some(self.aside.remove(0)) };
        let header = next().expect("a content header");
        assert_eq!(header.kind, CONTENT_HEADER);
        let size = u64::from_be_bytes(header.payload[4..12].try_into().expect("eight bytes")) as usize;
        let mut body = Vec::new();
        while body.len() < size {
            body.extend(next().expect("a body").payload);
        }
        body
    }

    /// Everything that is still said, until the other side closes.
    pub fn rest(&mut self) -> Vec<Frame> {
        std::iter::from_fn(|| self.read()).collect()
    }

    /// Whether the connection still does what it is for.
    pub fn is_well(&mut self) -> bool {
        self.say(&publish(1, "", "no-such-queue", b"x"));
        matches!(self.ask(1, 60, 10, &Fields::new().u32(0).u16(0).u8(0)), Ok(frame) if frame.channel == 1)
    }

    pub fn close(mut self) {
        let fields = Fields::new().u16(200).short("bye").u16(0).u16(0);
        self.ask(0, 10, 50, &fields).expect("a goodbye is answered");
    }
}

/// A persistent message, in frames of the default size.
pub fn publish(channel: u16, exchange: &str, key: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = method(channel, 60, 40, &Fields::new().u16(0).short(exchange).short(key).u8(0));
    let header = Fields::new().u16(60).u16(0).u64(body.len() as u64).u16(0x1000).u8(2);
    bytes.extend(frame(CONTENT_HEADER, channel, &header.0));
    for part in body.chunks(131_072 - 8) {
        bytes.extend(frame(BODY, channel, part));
    }
    bytes
}

pub fn tcp(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).expect("the listener accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_write_timeout(Some(PATIENCE)).expect("a socket");
    stream.set_nodelay(true).expect("a socket");
    stream
}

pub fn is_patience(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Asks again and again until it is true.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it never comes to this: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
