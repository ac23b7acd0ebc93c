//! A node's life: open, listen, serve, and stop in order.

use crate::alarms::{self, Watermarks};
use crate::clock::Clock;
use crate::control::{self, Told};
use crate::http::{self, Pages};
use crate::hub::Hub;
use crate::listener::{self, Gate, House};
use crate::owner::{ALARMS, Change, Journal, Owner, alarm_name};
use crate::protocols::{Protocol, Protocols};
use crate::settings::{Listen, Settings};
use crate::tls::Tls;
use crate::{journal, limits, metrics, reader, timer};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// What is to be served: the real things, or fakes in tests.
pub struct Parts {
    pub node: Box<dyn Owner>,
    pub journal: Arc<dyn Journal>,
    pub protocols: Protocols,
    pub clock: Clock,
}

/// What the outside tells a running node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    Stop,
    /// Read certificates, definitions and the limits of alarms again.
    Reload,
}

/// Serves until it is told to stop. Answers once everything is on disk and marked clean.
pub async fn serve(settings: Settings, parts: Parts, mut signals: mpsc::Receiver<Signal>) -> Result<(), String> {
    let tls = settings.tls.clone().map(Tls::open).transpose()?;
    let hub = Hub::new(parts.node, parts.journal, parts.clock);
    let threads = Threads::start(&hub).map_err(|error| format!("cannot start threads: {error}"))?;
    let mut tasks = vec![tokio::spawn(timer::run(hub.clone())).abort_handle()];
    if let Some(file) = &settings.definitions {
        import(&hub, file).await?;
    }
    let gate = Gate::new(settings.connections_max, settings.connections_per_address_max, settings.half_open_max);
    let house = Arc::new(House { hub: hub.clone(), gate: gate.clone(), protocols: parts.protocols, tls });
    let ready = Arc::new(AtomicBool::new(false));
    let site = Site { hub: hub.clone(), gate, ready: ready.clone(), start: Instant::now() };

    let mut doors = Doors::default();
    doors.open(&settings, &house, &site).await?;
    let (set_watermarks, watermarks) = watch::channel(Watermarks::of(&settings));
    tasks.push(tokio::spawn(alarms::run(hub.clone(), watermarks)).abort_handle());
    match control::bind(&settings.data_dir) {
        Ok(listener) => {
            let addresses = doors.addresses.clone();
            let status = Arc::new(move || site.status(&addresses));
            tasks.push(tokio::spawn(control::run(listener, hub.clone(), status)).abort_handle());
        }
        Err(error) => tracing::warn!(%error, "no control socket: commands like `braid status` will not work"),
    }
    announce(&settings.data_dir, &doors.addresses).map_err(|error| format!("listeners.json: {error}"))?;
    ready.store(true, Ordering::Release);
    print!("{}", banner(&settings, &doors.addresses));
    let _ = std::io::stdout().flush();

    while let Some(Signal::Reload) = signals.recv().await {
        reload(&settings, &house, &set_watermarks).await;
    }
    ready.store(false, Ordering::Release);
    doors.close();
    drain(&hub, &mut signals).await;
    tasks.iter().for_each(AbortHandle::abort);
    let closing = hub.clone();
    let closed = tokio::task::spawn_blocking(move || {
        threads.join(&closing);
        closing.journal.close()
    });
    closed.await.map_err(|error| error.to_string())?.map_err(|error| format!("the store could not be closed: {error}"))?;
    for gone in [control::path(&settings.data_dir), settings.data_dir.join("listeners.json")] {
        let _ = std::fs::remove_file(gone);
    }
    tracing::info!("stopped");
    Ok(())
}

/// Threads that are not tokio's: their work is the disk's.
struct Threads {
    stop: journal::Stop,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(hub: &Arc<Hub>) -> std::io::Result<Threads> {
        let stop = journal::Stop::default();
        let mut handles = vec![journal::spawn_writer(hub, stop.clone())?, journal::spawn_checkpointer(hub, stop.clone())?];
        for number in 0..limits::READER_THREADS {
            handles.push(reader::spawn(hub, number)?);
        }
        Ok(Threads { stop, handles })
    }

    fn join(self, hub: &Hub) {
        self.stop.store(true, Ordering::Release);
        hub.reads.close();
        for handle in self.handles {
            let _ = handle.join();
        }
    }
}

/// Says goodbye to everyone and lets what was said leave, for a while. A second word to stop ends the patience.
async fn drain(hub: &Hub, signals: &mut mpsc::Receiver<Signal>) {
    tracing::info!(connections = hub.connections(), "stopping");
    hub.stop("broker forced connection closure with reason 'shutdown'");
    let deadline = tokio::time::Instant::now() + Duration::from_millis(limits::DRAIN_MS);
    let empty = async {
        while hub.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::select! {
        () = empty => {}
        () = tokio::time::sleep_until(deadline) => tracing::warn!(connections = hub.connections(), "some did not go"),
        Some(Signal::Stop) = signals.recv() => {}
    }
}

async fn reload(settings: &Settings, house: &House, watermarks: &watch::Sender<Watermarks>) {
    match settings.read_again() {
        Ok(now) => drop(watermarks.send_replace(Watermarks::of(&now))),
        Err(error) => tracing::error!(%error, "settings not read again: the limits of alarms stay as they are"),
    }
    if let Some(tls) = &house.tls {
        match tls.reload() {
            Ok(()) => tracing::info!("certificates read again"),
            Err(error) => tracing::error!(%error, "bad certificate files: the old certificates stay in use"),
        }
    }
    if let Some(file) = &settings.definitions
        && let Err(error) = import(&house.hub, file).await
    {
        tracing::error!(%error, "definitions not read again");
    }
}

async fn import(hub: &Hub, file: &Path) -> Result<(), String> {
    let definitions = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    match control::administer(hub, Change::Import { definitions }).await {
        Told::Ok(summary) => {
            tracing::info!(file = %file.display(), %summary, "definitions imported");
            Ok(())
        }
        Told::Error(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// Open listeners.
#[derive(Default)]
struct Doors {
    addresses: BTreeMap<&'static str, SocketAddr>,
    tasks: Vec<AbortHandle>,
}

impl Doors {
    /// All addresses are bound before the first connection is accepted.
    async fn open(&mut self, settings: &Settings, house: &Arc<House>, site: &Site) -> Result<(), String> {
        let host = default_host(&house.hub);
        let amqp = self.bind("amqp", &settings.amqp, host).await?;
        let amqps = self.bind("amqps", &settings.amqps, host).await?;
        let pages = self.bind("http", &settings.http, host).await?;
        for (listener, with_tls) in [(amqp, false), (amqps, true)] {
            if let Some(listener) = listener {
                self.spawn(listener::run(house.clone(), listener, Protocol::Amqp, with_tls));
            }
        }
        if let Some(listener) = pages {
            self.spawn(http::run(listener, Arc::new(site.clone())));
        }
        Ok(())
    }

    async fn bind(&mut self, name: &'static str, listen: &Listen, default_host: &str) -> Result<Option<TcpListener>, String> {
        let Listen::At { host, port } = listen else { return Ok(None) };
        let host = host.as_deref().unwrap_or(default_host);
        let wrong = |error: std::io::Error| format!("cannot listen on {host}:{port} ({name}): {error}");
        let listener = TcpListener::bind((host, *port)).await.map_err(wrong)?;
        self.addresses.insert(name, listener.local_addr().map_err(wrong)?);
        Ok(Some(listener))
    }

    fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push(tokio::spawn(task).abort_handle());
    }

    fn close(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Loopback as long as nobody but guest could log in: guest may not come from elsewhere anyway.
fn default_host(hub: &Hub) -> &'static str {
    let users = hub.with_node(|node, now, effects| node.administer(now, Change::ListUsers, effects));
    let users = users.map(|answer| answer.value).unwrap_or_default();
    let others = users.as_array().is_some_and(|users| users.iter().any(|user| user["user"] != "guest"));
    if others { "0.0.0.0" } else { "127.0.0.1" }
}

/// The address of a listener of the broker that runs over this data directory.
pub fn announced(data_dir: &Path, listener: &str) -> Option<SocketAddr> {
    let text = std::fs::read(data_dir.join("listeners.json")).ok()?;
    serde_json::from_slice::<BTreeMap<String, SocketAddr>>(&text).ok()?.remove(listener)
}

/// `listeners.json` appears once everything accepts, and never half written.
fn announce(data_dir: &Path, addresses: &BTreeMap<&'static str, SocketAddr>) -> std::io::Result<()> {
    let (path, new) = (data_dir.join("listeners.json"), data_dir.join("listeners.json.new"));
    std::fs::write(&new, serde_json::to_vec(addresses)?)?;
    std::fs::rename(new, path)
}

fn banner(settings: &Settings, addresses: &BTreeMap<&'static str, SocketAddr>) -> String {
    let mut text = format!("Braid {}, data in {}\n", env!("CARGO_PKG_VERSION"), settings.data_dir.display());
    for (name, address) in addresses {
        let here = from_here(*address);
        text += &match *name {
            "amqp" => {
                let user =
                    settings.default_user.as_ref().map_or("guest:guest".into(), |first| format!("{}:PASSWORD", first.user));
                let url = format!("amqp://{user}@{here}");
                format!(
                    "  amqp   {address}   {url}\n         try: python3 -c \"import pika; \
                     c = pika.BlockingConnection(pika.URLParameters('{url}')).channel(); c.queue_declare('hello'); \
                     c.basic_publish('', 'hello', b'it works'); print(c.basic_get('hello', auto_ack=True)[2])\"\n"
                )
            }
            "http" => format!("  http   {address}   try: curl http://{here}/metrics\n"),
            other => format!("  {other:<6} {address}\n"),
        };
    }
    text
}

/// What to connect to on this machine.
pub fn from_here(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(if address.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() });
    }
    address
}

/// What `/readyz`, `/metrics` and `braid status` look at.
#[derive(Clone)]
struct Site {
    hub: Arc<Hub>,
    gate: Arc<Gate>,
    ready: Arc<AtomicBool>,
    start: Instant,
}

impl Site {
    fn status(&self, addresses: &BTreeMap<&'static str, SocketAddr>) -> serde_json::Value {
        let alarms: Vec<&str> = ALARMS.into_iter().filter(|alarm| self.hub.has_alarm(*alarm)).map(alarm_name).collect();
        serde_json::json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.start.elapsed().as_secs(),
            "listeners": addresses,
            "alarms": alarms,
            "figures": metrics::collect(&self.hub, &self.gate),
        })
    }
}

impl Pages for Site {
    fn ready(&self) -> Result<(), String> {
        if self.ready.load(Ordering::Acquire) { Ok(()) } else { Err("not ready".into()) }
    }

    fn metrics(&self) -> String {
        metrics::render(&metrics::collect(&self.hub, &self.gate))
    }
}
