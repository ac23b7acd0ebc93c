//! What one scenario has in hand: connections, fresh names that are removed at the end, and assertions that say what
//! they saw.

use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, Consumer, Error, ErrorKind, Event, ExchangeKind,
    message::Delivery,
    options::*,
    types::{AMQPValue, FieldTable},
    uri::AMQPUri,
};
use std::{
    fmt::Debug,
    future::Future,
    hash::{BuildHasher, RandomState},
    panic::Location,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::{Stream, StreamExt};

pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long we look for something that must not come.
pub const QUIET: Duration = Duration::from_millis(250);

pub enum Fail {
    Skip(String),
    Bad(String),
}

pub type R<T = ()> = Result<T, Fail>;

impl From<Error> for Fail {
    #[track_caller]
    fn from(e: Error) -> Self {
        Fail::Bad(format!("{e} (line {})", Location::caller().line()))
    }
}

#[track_caller]
pub fn bad<T>(what: impl std::fmt::Display) -> R<T> {
    Err(Fail::Bad(format!("{what} (line {})", Location::caller().line())))
}

#[track_caller]
pub fn that(holds: bool, what: impl std::fmt::Display) -> R {
    if holds { Ok(()) } else { bad(what) }
}

#[track_caller]
pub fn same<T: PartialEq<U> + Debug, U: Debug>(what: &str, got: T, expected: U) -> R {
    if got == expected { Ok(()) } else { bad(format!("{what}: expected {expected:?}, got {got:?}")) }
}

/// A field table: `table! {"x-max-length" => 3, "x-overflow" => "drop-head"}`.
#[macro_export]
macro_rules! table {
    ($($k:expr => $v:expr),* $(,)?) => {{
        #[allow(unused_mut)]
        let mut t = lapin::types::FieldTable::default();
        $(t.insert($k.into(), $crate::kit::Value::value($v));)*
        t
    }};
}

pub trait Value {
    fn value(self) -> AMQPValue;
}
impl Value for &str {
    fn value(self) -> AMQPValue {
        AMQPValue::LongString(self.into())
    }
}
impl Value for &String {
    fn value(self) -> AMQPValue {
        AMQPValue::LongString(self.as_str().into())
    }
}
impl Value for i32 {
    fn value(self) -> AMQPValue {
        AMQPValue::LongInt(self)
    }
}
impl Value for bool {
    fn value(self) -> AMQPValue {
        AMQPValue::Boolean(self)
    }
}
impl Value for AMQPValue {
    fn value(self) -> AMQPValue {
        self
    }
}

pub fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

pub fn with_headers(headers: FieldTable) -> BasicProperties {
    persistent().with_headers(headers)
}

#[derive(Clone, Copy)]
pub struct Peer {
    pub rabbit: bool,
    pub rabbit_before_4: bool,
}

pub struct Kit {
    uri: AMQPUri,
    pub peer: Peer,
    pub restart_cmd: Option<String>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    main: Option<Arc<Connection>>,
    connections: Vec<Arc<Connection>>,
    queues: Vec<String>,
    exchanges: Vec<String>,
}

impl Kit {
    pub fn new(uri: AMQPUri, peer: Peer, restart_cmd: Option<String>) -> Self {
        Kit { uri, peer, restart_cmd, kept: Mutex::default() }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// A broker that is starting refuses for a while.
    pub async fn connect(&self) -> R<Arc<Connection>> {
        self.connect_to(self.uri.clone()).await
    }

    pub async fn connect_with_channel_max(&self, n: u16) -> R<Arc<Connection>> {
        let mut uri = self.uri.clone();
        uri.query.channel_max = Some(n);
        self.connect_to(uri).await
    }

    async fn connect_to(&self, uri: AMQPUri) -> R<Arc<Connection>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Connection::connect_uri(uri.clone(), ConnectionProperties::default()).await {
                Ok(c) => {
                    let c = Arc::new(c);
                    self.kept().connections.push(c.clone());
                    return Ok(c);
                }
                Err(e) if Instant::now() > deadline => return bad(format!("cannot connect: {e}")),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// A channel of the scenario's main connection.
    pub async fn channel(&self) -> R<Channel> {
        let main = self.kept().main.clone();
        let main = match main {
            Some(c) if c.status().connected() => c,
            _ => {
                let c = self.connect().await?;
                self.kept().main = Some(c.clone());
                c
            }
        };
        Ok(main.create_channel().await?)
    }

    /// The same in confirm mode: `publish` waits for the verdict.
    pub async fn confirming(&self) -> R<Channel> {
        let ch = self.channel().await?;
        ch.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(ch)
    }

    /// A connection of its own and a channel on it.
    pub async fn alone(&self) -> R<(Arc<Connection>, Channel)> {
        let c = self.connect().await?;
        let ch = c.create_channel().await?;
        Ok((c, ch))
    }

    pub fn queue_name(&self, what: &str) -> String {
        let name = fresh(what);
        self.kept().queues.push(name.clone());
        name
    }

    pub fn exchange_name(&self, what: &str) -> String {
        let name = fresh(what);
        self.kept().exchanges.push(name.clone());
        name
    }

    pub async fn queue(&self, ch: &Channel, what: &str, args: FieldTable) -> R<String> {
        let name = self.queue_name(what);
        ch.queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), args).await?;
        Ok(name)
    }

    pub async fn exchange(&self, ch: &Channel, kind: ExchangeKind, args: FieldTable) -> R<String> {
        let name = self.exchange_name("x");
        let durable = ExchangeDeclareOptions { durable: true, ..Default::default() };
        ch.exchange_declare(name.as_str().into(), kind, durable, args).await?;
        Ok(name)
    }

    /// An exchange of a type that a RabbitMQ may not have: then the scenario is skipped there.
    pub async fn plugin_exchange(&self, kind: &str, args: FieldTable) -> R<String> {
        let (_own, ch) = self.alone().await?;
        match self.exchange(&ch, ExchangeKind::Custom(kind.into()), args).await {
            Err(_) if self.peer.rabbit => Err(Fail::Skip(format!("this RabbitMQ has no exchange type {kind}"))),
            other => other,
        }
    }

    pub fn braid_only(&self) -> R {
        if self.peer.rabbit { Err(Fail::Skip("Braid only".into())) } else { Ok(()) }
    }

    pub async fn clean_up(self) {
        let kept = std::mem::take(&mut *self.kept());
        for c in &kept.connections {
            let _ = timeout(Duration::from_secs(2), c.close(200, "done".into())).await;
        }
        if kept.queues.is_empty() && kept.exchanges.is_empty() {
            return;
        }
        let work = async {
            let c = self.connect().await?;
            for q in &kept.queues {
                let ch = c.create_channel().await?;
                if let Err(e) = ch.queue_delete(q.as_str().into(), Default::default()).await {
                    eprintln!("cleaning up {q}: {e}");
                }
            }
            for x in &kept.exchanges {
                let ch = c.create_channel().await?;
                if let Err(e) = ch.exchange_delete(x.as_str().into(), Default::default()).await {
                    eprintln!("cleaning up {x}: {e}");
                }
            }
            let _ = c.close(200, "done".into()).await;
            R::Ok(())
        };
        match timeout(Duration::from_secs(20), work).await {
            Ok(Ok(())) => {}
            Ok(Err(Fail::Bad(e) | Fail::Skip(e))) => eprintln!("cleaning up: {e}"),
            Err(_) => eprintln!("cleaning up: not finished"),
        }
    }
}

pub fn fresh(what: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // RandomState is seeded by the operating system once per process
    static SEED: std::sync::OnceLock<RandomState> = std::sync::OnceLock::new();
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let r = SEED.get_or_init(RandomState::new).hash_one((n, std::process::id()));
    format!("interop.lapin.{what}.{r:016x}")
}

// --- messages ---

/// In confirm mode the verdict, else `NotRequested`.
pub async fn publish(ch: &Channel, exchange: &str, key: &str, props: BasicProperties, text: &str) -> R<Confirmation> {
    let sent = ch.basic_publish(exchange.into(), key.into(), Default::default(), text.as_bytes(), props).await?;
    Ok(sent.await?)
}

/// A persistent message; in confirm mode it must be acked.
pub async fn say(ch: &Channel, exchange: &str, key: &str, text: &str) -> R {
    match publish(ch, exchange, key, persistent(), text).await? {
        Confirmation::Nack(_) => bad(format!("{text} was nacked")),
        _ => Ok(()),
    }
}

/// A consumer together with its channel.
pub struct Inbox {
    pub ch: Channel,
    consumer: Consumer,
}

pub async fn consume(ch: &Channel, queue: &str, no_ack: bool) -> R<Inbox> {
    consume_with(ch, queue, no_ack, FieldTable::default()).await
}

pub async fn consume_with(ch: &Channel, queue: &str, no_ack: bool, args: FieldTable) -> R<Inbox> {
    let options = BasicConsumeOptions { no_ack, ..Default::default() };
    let consumer = ch.basic_consume(queue.into(), "".into(), options, args).await?;
    Ok(Inbox { ch: ch.clone(), consumer })
}

impl Inbox {
    #[track_caller]
    pub fn next(&mut self) -> impl Future<Output = R<Delivery>> {
        let line = Location::caller().line();
        async move {
            match timeout(PATIENCE, self.consumer.next()).await {
                Ok(Some(Ok(d))) => Ok(d),
                Ok(Some(Err(e))) => Err(Fail::Bad(format!("instead of a delivery: {e} (line {line})"))),
                Ok(None) => Err(Fail::Bad(format!("the consumer was cancelled (line {line})"))),
                Err(_) => Err(Fail::Bad(format!("no delivery after {} ms (line {line})", PATIENCE.as_millis()))),
            }
        }
    }

    #[track_caller]
    pub fn take(&mut self, n: usize) -> impl Future<Output = R<Vec<Delivery>>> {
        let line = Location::caller().line();
        async move {
            let mut got = Vec::new();
            while got.len() < n {
                match self.next().await {
                    Ok(d) => got.push(d),
                    Err(Fail::Bad(e)) => {
                        return Err(Fail::Bad(format!("{} of {n} came: {:?}; then {e} (line {line})", got.len(), texts(&got))));
                    }
                    Err(e) => return Err(e),
                }
            }
            Ok(got)
        }
    }

    /// Nothing more comes. (The end of the stream, after a cancel, is nothing.)
    pub async fn quiet(&mut self, what: &str) -> R {
        match timeout(QUIET, self.consumer.next()).await {
            Ok(Some(Ok(d))) => bad(format!("{what}: unexpected delivery of {:?}", text(&d))),
            Ok(Some(Err(e))) => bad(format!("{what}: {e}")),
            Ok(None) | Err(_) => Ok(()),
        }
    }

    /// The server cancels.
    pub async fn cancelled(&mut self) -> R {
        match timeout(PATIENCE, self.consumer.next()).await {
            Ok(None) => Ok(()),
            Ok(Some(Ok(d))) => bad(format!("a delivery of {:?} instead of basic.cancel", text(&d))),
            Ok(Some(Err(e))) => bad(format!("instead of basic.cancel: {e}")),
            Err(_) => bad("no basic.cancel"),
        }
    }

    pub async fn cancel(&self) -> R {
        Ok(self.ch.basic_cancel(self.consumer.tag(), Default::default()).await?)
    }
}

pub async fn ack(d: &Delivery) -> R {
    that(d.acker.ack(Default::default()).await?, "the delivery was settled before")
}

pub async fn reject(d: &Delivery, requeue: bool) -> R {
    that(d.acker.reject(BasicRejectOptions { requeue }).await?, "the delivery was settled before")
}

pub async fn nack(d: &Delivery, multiple: bool, requeue: bool) -> R {
    that(d.acker.nack(BasicNackOptions { multiple, requeue }).await?, "the delivery was settled before")
}

pub fn text(d: &Delivery) -> String {
    String::from_utf8_lossy(&d.data).into_owned()
}

pub fn texts(all: &[Delivery]) -> Vec<String> {
    all.iter().map(text).collect()
}

pub fn header<'a>(d: &'a Delivery, name: &str) -> Option<&'a AMQPValue> {
    d.properties.headers().as_ref().and_then(|h| h.inner().get(name))
}

pub fn string(v: Option<&AMQPValue>) -> Option<String> {
    match v? {
        AMQPValue::LongString(s) => Some(s.to_string()),
        AMQPValue::ShortString(s) => Some(s.to_string()),
        other => Some(format!("{other:?}")),
    }
}

pub fn integer(v: Option<&AMQPValue>) -> Option<i64> {
    match v? {
        AMQPValue::ShortShortInt(n) => Some((*n).into()),
        AMQPValue::ShortShortUInt(n) => Some((*n).into()),
        AMQPValue::ShortInt(n) => Some((*n).into()),
        AMQPValue::ShortUInt(n) => Some((*n).into()),
        AMQPValue::LongInt(n) => Some((*n).into()),
        AMQPValue::LongUInt(n) => Some((*n).into()),
        AMQPValue::LongLongInt(n) => Some(*n),
        _ => None,
    }
}

pub struct Death(FieldTable);

impl Death {
    pub fn get(&self, field: &str) -> Option<&AMQPValue> {
        self.0.inner().get(field)
    }
    pub fn str(&self, field: &str) -> String {
        string(self.get(field)).unwrap_or_else(|| format!("no {field}"))
    }
    pub fn count(&self) -> i64 {
        integer(self.get("count")).unwrap_or(-1)
    }
}

pub fn deaths(d: &Delivery) -> R<Vec<Death>> {
    let Some(AMQPValue::FieldArray(list)) = header(d, "x-death") else {
        return bad(format!("no x-death in {:?}", d.properties.headers()));
    };
    list.as_slice()
        .iter()
        .map(|v| match v {
            AMQPValue::FieldTable(t) => Ok(Death(t.clone())),
            other => bad(format!("x-death holds {other:?}")),
        })
        .collect()
}

pub async fn get(ch: &Channel, queue: &str, no_ack: bool) -> R<Option<lapin::message::BasicGetMessage>> {
    Ok(ch.basic_get(queue.into(), BasicGetOptions { no_ack }).await?)
}

/// What is in the queue now, taken out by basic.get.
pub async fn drain(ch: &Channel, queue: &str) -> R<Vec<Delivery>> {
    let mut got = Vec::new();
    while let Some(m) = get(ch, queue, true).await? {
        got.push(m.delivery);
    }
    Ok(got)
}

/// The next message of a queue that is filled by somebody else.
pub async fn wait_for(ch: &Channel, queue: &str) -> R<Delivery> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(m) = get(ch, queue, true).await? {
            return Ok(m.delivery);
        }
        if Instant::now() > deadline {
            return bad(format!("no message came to {queue}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

pub async fn look(ch: &Channel, queue: &str) -> Result<lapin::Queue, Error> {
    ch.queue_declare(queue.into(), QueueDeclareOptions { passive: true, ..Default::default() }, FieldTable::default()).await
}

pub async fn look_x(ch: &Channel, exchange: &str) -> Result<(), Error> {
    let passive = ExchangeDeclareOptions { passive: true, ..Default::default() };
    ch.exchange_declare(exchange.into(), ExchangeKind::Direct, passive, FieldTable::default()).await
}

pub async fn ready(ch: &Channel, queue: &str) -> R<u32> {
    Ok(look(ch, queue).await?.message_count())
}

pub async fn ready_becomes(ch: &Channel, queue: &str, n: u32) -> R {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = ready(ch, queue).await?;
        if now == n {
            return Ok(());
        }
        if Instant::now() > deadline {
            return bad(format!("{queue} has {now} ready messages, not {n}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
}

/// A passive declare: true, or false for 404; anything else is a failure.
fn found<T>(answer: Result<T, Error>) -> R<bool> {
    match answer {
        Ok(_) => Ok(true),
        Err(e) => match e.kind() {
            ErrorKind::ProtocolError(p) if p.get_id() == 404 => Ok(false),
            _ => Err(e.into()),
        },
    }
}

pub async fn exists(c: &Connection, queue: &str) -> R<bool> {
    let ch = c.create_channel().await?;
    let found = found(look(&ch, queue).await)?;
    if found {
        close_channel(&ch).await?;
    }
    Ok(found)
}

pub async fn exchange_exists(c: &Connection, exchange: &str) -> R<bool> {
    let ch = c.create_channel().await?;
    let found = found(look_x(&ch, exchange).await)?;
    if found {
        close_channel(&ch).await?;
    }
    Ok(found)
}

pub async fn bind(ch: &Channel, queue: &str, exchange: &str, key: &str) -> R {
    Ok(ch.queue_bind(queue.into(), exchange.into(), key.into(), Default::default(), FieldTable::default()).await?)
}

pub async fn unbind(ch: &Channel, queue: &str, exchange: &str, key: &str) -> R {
    Ok(ch.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default()).await?)
}

pub async fn bind_x(ch: &Channel, destination: &str, source: &str, key: &str) -> R {
    let none = FieldTable::default();
    Ok(ch.exchange_bind(destination.into(), source.into(), key.into(), Default::default(), none).await?)
}

pub async fn qos(ch: &Channel, prefetch: u16) -> R {
    Ok(ch.basic_qos(prefetch, Default::default()).await?)
}

pub async fn close(c: &Connection) -> R {
    Ok(c.close(200, "bye".into()).await?)
}

pub async fn close_channel(ch: &Channel) -> R {
    Ok(ch.close(200, "bye".into()).await?)
}

/// Clocks of whole milliseconds may differ by one.
pub fn not_before(sent: Instant, delay_ms: u64) -> R {
    let waited = sent.elapsed();
    that(
        waited + Duration::from_millis(1) >= Duration::from_millis(delay_ms),
        format!("delay {delay_ms} ms, came after {waited:?}"),
    )
}

// --- errors ---

/// A connection on which steps close their channels. The reason is taken from lapin's events: asynchronous methods
/// (publish, ack) have no answer that could carry it.
pub struct Errors {
    pub c: Arc<Connection>,
    events: Pin<Box<dyn Stream<Item = Event> + Send>>,
}

impl Errors {
    pub async fn new(kit: &Kit) -> R<Self> {
        let c = kit.connect().await?;
        let events = Box::pin(c.events_listener());
        Ok(Errors { c, events })
    }

    /// On a fresh channel `step` closes the channel with this code and text; the connection stays.
    pub async fn closes_channel<F, T, E>(&mut self, what: &str, code: u16, expected: &str, step: impl FnOnce(Channel) -> F) -> R
    where
        F: Future<Output = Result<T, E>>,
    {
        let ch = self.c.create_channel().await?;
        let _ = step(ch.clone()).await;
        let error = loop {
            match timeout(PATIENCE, self.events.next()).await {
                Ok(Some(Event::Error(e))) => break e,
                Ok(Some(_)) => {}
                Ok(None) => return bad(format!("{what}: the connection is gone")),
                Err(_) => return bad(format!("{what}: the channel was not closed")),
            }
        };
        let ErrorKind::ProtocolError(p) = error.kind() else {
            return bad(format!("{what}: {error}"));
        };
        // reply-text is a short string: RabbitMQ keeps 252 bytes and three dots of what does not fit
        let cut = if expected.len() > 255 { format!("{}...", &expected[..252]) } else { expected.to_string() };
        same(what, format!("{} {}", p.get_id(), p.get_message()), format!("{code} {cut}"))?;
        that(!ch.status().connected(), format!("{what}: the channel is still open"))?;
        that(self.c.status().connected(), format!("{what}: the connection is closed too"))
    }
}
