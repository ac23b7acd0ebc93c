//! A whole node with a fake inside: it opens its doors, answers, reads again what it is told to, and stops in order.

mod support;

use server::clock::Clock;
use server::control::{self, Ask};
use server::owner::Change;
use server::protocols::Protocols;
use server::run::{self, Parts, Signal};
use server::settings::{Given, Scalar, Settings};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::*;
use tokio::sync::mpsc;

const GOODBYE: &[u8] = b"broker forced connection closure with reason 'shutdown'";

struct Node {
    dir: PathBuf,
    journal: Arc<FakeJournal>,
    signals: mpsc::Sender<Signal>,
    end: Option<std::thread::JoinHandle<Result<(), String>>>,
}

impl Node {
    fn start(adapt: impl FnOnce(&mut Given)) -> Node {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("braid-living-{}-{number}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let zero = || Some(Scalar("0".into()));
        let mut given = Given { data_dir: Some(dir.clone()), amqp: zero(), http: zero(), ..Given::default() };
        adapt(&mut given);
        let settings = server::settings::load(&given, Some(&empty(&dir)), std::iter::empty()).unwrap();
        Node::serve(dir, settings)
    }

    fn serve(dir: PathBuf, settings: Settings) -> Node {
        let journal = Arc::new(FakeJournal::default());
        let parts = Parts {
            node: Box::new(FakeNode::new(journal.clone())),
            journal: journal.clone(),
            protocols: Protocols::new(|_, _, _, _| Box::new(Line::new())),
            clock: Clock::start(),
        };
        let (signals, told) = mpsc::channel(4);
        let end = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(run::serve(settings, parts, told))
        });
        Node { dir, journal, signals, end: Some(end) }
    }

    fn address(&self, name: &str) -> SocketAddr {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            if let Ok(text) = std::fs::read_to_string(self.dir.join("listeners.json")) {
                let addresses: serde_json::Value = serde_json::from_str(&text).unwrap();
                return addresses[name].as_str().unwrap().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "listeners.json did not appear");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    fn client(&self) -> Client1 {
        Client1 { stream: TcpStream::connect(self.address("amqp")).unwrap() }
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address("http")).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn stop(&mut self) -> Result<(), String> {
        self.signals.blocking_send(Signal::Stop).unwrap();
        self.end.take().unwrap().join().unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn empty(dir: &std::path::Path) -> PathBuf {
    let path = dir.join("braid.toml");
    std::fs::write(&path, "").unwrap();
    path
}

#[test]
fn it_answers_on_every_door_and_cleans_up_behind_itself() {
    let mut node = Node::start(|_| {});
    assert!(node.address("amqp").ip().is_loopback(), "nobody but guest: loopback only");
    assert!(node.get("/livez").starts_with("HTTP/1.1 200"));
    assert!(node.get("/readyz").starts_with("HTTP/1.1 200"));
    assert!(node.get("/").starts_with("HTTP/1.1 404"));
    let _client = node.client();
    let metrics = node.get("/metrics");
    for line in ["braid_messages_in_total{protocol=\"line\"} 7", "braid_groups_total 1", "braid_alarm{reason=\"disk\"} "] {
        assert!(metrics.contains(line), "{line} is missing in {metrics}");
    }
    let status = control::ask(&node.dir, &Ask::Status { status: true }).unwrap();
    assert_eq!(status["listeners"]["amqp"], node.address("amqp").to_string());
    let users = control::ask(&node.dir, &Ask::Change(Change::ListUsers)).unwrap();
    assert_eq!(users[0]["user"], "guest");
    let missing = Ask::Change(Change::DeleteUser { user: "x".into() });
    assert_eq!(control::ask(&node.dir, &missing).unwrap_err(), "no user 'x'");
    node.stop().unwrap();
    assert!(node.journal.closed.load(Ordering::SeqCst), "the store was closed");
    assert!(!node.dir.join("listeners.json").exists() && !node.dir.join("control.sock").exists());
}

#[test]
fn a_stop_drains_what_slow_readers_are_owed() {
    let mut node = Node::start(|_| {});
    let (mut consumer, mut producer) = (node.client(), node.client());
    consumer.consume("q");
    let mut body = b"q\0".to_vec();
    // More than all the kernel's buffers take while nobody reads.
    body.resize(20_000_000, b'x');
    producer.say(b'T', &body);
    producer.say(b'A', b"");
    assert_eq!(producer.hear().unwrap().0, b'a', "everything before was taken in");
    let stopping = std::thread::spawn(move || {
        node.stop().unwrap();
        node
    });
    std::thread::sleep(Duration::from_millis(200));
    let (kind, got) = consumer.hear().unwrap();
    assert_eq!((kind, got.len()), (b'D', body.len() - 2));
    assert_eq!(consumer.hear().unwrap(), (b'X', GOODBYE.to_vec()));
    assert_eq!(producer.hear().unwrap(), (b'X', GOODBYE.to_vec()));
    assert_eq!(consumer.hear(), None);
    drop((consumer, producer));
    let node = stopping.join().unwrap();
    assert!(node.journal.closed.load(Ordering::SeqCst));
}

#[test]
fn half_open_connections_are_limited_until_they_authenticate() {
    let mut node = Node::start(|given| given.half_open_max = Some(Scalar("2".into())));
    let (mut first, second) = (node.client(), node.client());
    first.say(b'?', b"");
    assert_eq!(first.hear().unwrap().0, b'p', "both are in");
    let mut third = node.client();
    assert_eq!(third.hear(), None, "one too many");
    first.say(b'A', b"");
    assert_eq!(first.hear().unwrap().0, b'a');
    let mut fourth = node.client();
    fourth.say(b'A', b"");
    assert_eq!(fourth.hear().unwrap().0, b'a');
    drop((first, second, fourth));
    node.stop().unwrap();
}

/// A certificate for localhost and its key, as PEM.
fn certificate(name: &str) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    (parameters.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

/// Speaks the line protocol over TLS; trusts exactly this certificate.
fn tls_client(
    address: SocketAddr,
    pem: &str,
) -> Result<rustls::StreamOwned<rustls::ClientConnection, TcpStream>, rustls::Error> {
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = rustls::ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap())?;
    let mut stream = rustls::StreamOwned::new(client, TcpStream::connect(address).unwrap());
    match stream.conn.complete_io(&mut stream.sock) {
        Ok(_) => Ok(stream),
        Err(error) => Err(rustls::Error::General(error.to_string())),
    }
}

#[test]
fn tls_carries_the_same_and_takes_new_certificates_while_running() {
    let (old, key) = certificate("old");
    let files = std::env::temp_dir().join(format!("braid-tls-{}", std::process::id()));
    std::fs::create_dir_all(&files).unwrap();
    let (chain_file, key_file) = (files.join("chain.pem"), files.join("key.pem"));
    std::fs::write(&chain_file, &old).unwrap();
    std::fs::write(&key_file, key).unwrap();
    let mut node = Node::start(|given| {
        given.amqps = Some(Scalar("0".into()));
        given.tls_certificate = Some(chain_file.clone());
        given.tls_key = Some(key_file.clone());
    });
    let address = node.address("amqps");
    let mut consumer = tls_client(address, &old).unwrap();
    consumer.write_all(&frame(b'C', b"q")).unwrap();
    assert_eq!(hear(&mut consumer).unwrap().0, b'c');
    let mut body = b"q\0".to_vec();
    body.extend((0..1_000_000u32).map(|i| (i % 251) as u8));
    let (sent, pem) = (body.clone(), old.clone());
    let producing = std::thread::spawn(move || {
        let mut producer = tls_client(address, &pem).unwrap();
        producer.write_all(&frame(b'P', &sent)).unwrap();
        assert_eq!(hear(&mut producer).unwrap().0, b'K');
    });
    let (kind, got) = hear(&mut consumer).unwrap();
    assert_eq!(kind, b'D');
    assert!(got == body[2..], "a large message survived");
    producing.join().unwrap();

    // A bad file changes nothing, a good one the next session.
    std::fs::write(&chain_file, "nonsense").unwrap();
    node.signals.blocking_send(Signal::Reload).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    tls_client(address, &old).unwrap();
    let (new, key) = certificate("new");
    std::fs::write(&chain_file, &new).unwrap();
    std::fs::write(&key_file, key).unwrap();
    node.signals.blocking_send(Signal::Reload).unwrap();
    let deadline = Instant::now() + Duration::from_secs(5);
    while tls_client(address, &new).is_err() {
        assert!(Instant::now() < deadline, "the new certificate is not in use");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(tls_client(address, &old).is_err());
    // The session that began with the old one goes on, and hears the goodbye.
    let stopping = std::thread::spawn(move || node.stop());
    assert_eq!(hear(&mut consumer).unwrap(), (b'X', GOODBYE.to_vec()));
    drop(consumer);
    stopping.join().unwrap().unwrap();
    let _ = std::fs::remove_dir_all(&files);
}
