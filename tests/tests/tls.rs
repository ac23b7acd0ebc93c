//! AMQP over TLS: certificates made for the test, names in client certificates, files that change while it runs.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use tests::Braid;
use tests::wire::{self, HEADER, Login, Refused, Wire, eventually};

/// Signs for servers and clients alike.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().expect("randomness");
        let mut parameters = CertificateParams::new(Vec::new()).expect("valid");
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        let pem = parameters.self_signed(&key).expect("signed").pem();
        Authority { pem, issuer: Issuer::new(parameters, key) }
    }

    fn sign(&self, name: &str) -> Identity {
        let key = KeyPair::generate().expect("randomness");
        let mut parameters = CertificateParams::new(vec!["localhost".into()]).expect("valid");
        parameters.distinguished_name.push(DnType::CommonName, name);
        let certificate = parameters.signed_by(&key, &self.issuer).expect("signed").pem();
        Identity { certificate, key: key.serialize_pem() }
    }

    /// A broker with a certificate signed by this authority, who also vouches for clients.
    fn house(&self, name: &str) -> Braid {
        let dir = Braid::fresh_dir(name);
        self.sign("localhost").install(&dir);
        std::fs::write(dir.join("ca.pem"), &self.pem).expect("a file");
        let listeners = ["--amqp", "127.0.0.1:0", "--amqps", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let files = ["--tls-certificate", "server.pem", "--tls-key", "server.key", "--tls-client-ca", "ca.pem"];
        Braid::start_in(dir, &[&listeners[..], &files].concat())
    }

    fn trusting(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).expect("PEM")).expect("a certificate");
        roots
    }

    /// A stream to the broker, once hands are shaken.
    fn stream(&self, braid: &Braid, own: Option<&Identity>) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("known");
        let builder = builder.with_root_certificates(self.trusting());
        let config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                let chain = vec![CertificateDer::from_pem_slice(own.certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).expect("PEM");
                builder.with_client_auth_cert(chain, key).expect("they belong together")
            }
        };
        shake_hands(config, braid)
    }
}

impl Identity {
    fn install(&self, dir: &Path) {
        std::fs::write(dir.join("server.pem"), &self.certificate).expect("a file");
        std::fs::write(dir.join("server.key"), &self.key).expect("a file");
    }
}

fn shake_hands(config: ClientConfig, braid: &Braid) -> std::io::Result<StreamOwned<ClientConnection, TcpStream>> {
    let name = ServerName::try_from("localhost").expect("a name");
    let session = ClientConnection::new(Arc::new(config), name).expect("a session");
    let mut stream = StreamOwned::new(session, wire::tcp(&braid.address("amqps")));
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(stream)
}

const EXTERNAL: Login =
    Login { mechanism: "EXTERNAL", user: "", password: "", vhost: "/", capabilities: &["authentication_failure_close"] };

fn works(mut wire: Wire) {
    wire.confirm_select();
    wire.declare_queue("q", true).expect("it may");
    let body = vec![7; 300_000];
    assert_eq!(wire.publish_confirmed("", "q", &body), Ok(true));
    assert_eq!(wire.get("q"), Ok(Some(body)));
    wire.close();
}

#[test]
fn amqp_over_tls_by_password_and_by_certificate() {
    let authority = Authority::new("test authority");
    let braid = authority.house("tls-works");
    works(Wire::over(authority.stream(&braid, None).expect("hands are shaken")).log_in(&Login::default()).expect("guest may"));
    braid.tell(&["user", "add", "ann", "unused"]);
    braid.tell(&["permission", "set", "ann"]);
    let external = |name: &str| {
        let identity = authority.sign(name);
        Wire::over(authority.stream(&braid, Some(&identity)).expect("hands are shaken")).log_in(&EXTERNAL)
    };
    works(external("ann").expect("the certificate vouches for her"));
    assert_eq!(external("bob").err().expect("there is no bob").code(), 403);
    let mut nobody = Wire::over(authority.stream(&braid, None).expect("hands are shaken"));
    nobody.say(HEADER);
    let start = nobody.wait_for(10, 10).expect("it greets");
    let offered = |frame: &wire::Frame| String::from_utf8_lossy(&frame.payload).contains("EXTERNAL");
    assert!(!offered(&start), "EXTERNAL is for those who show a certificate");
    nobody.say(&EXTERNAL.start_ok());
    assert_eq!(
        nobody.wait_for(10, 30),
        Err(Refused::Close(0, 503, "COMMAND_INVALID - unknown authentication mechanism 'EXTERNAL'".into()))
    );
    assert!(Wire::connect(&braid.address("amqp")).log_in(&EXTERNAL).is_err(), "nor over a plain socket");
    assert_eq!(braid.metric("panics_total"), Some(0.0));
}

#[test]
fn a_certificate_of_somebody_else_is_not_accepted() {
    let authority = Authority::new("test authority");
    let braid = authority.house("tls-stranger");
    let stranger = Authority::new("test authority").sign("guest");
    let refused = match authority.stream(&braid, Some(&stranger)) {
        Err(_) => true,
        // TLS 1.3 clients hear of it with the first bytes.
        Ok(mut stream) => stream.write_all(HEADER).is_err() || stream.read(&mut [0; 1]).map_or(true, |count| count == 0),
    };
    assert!(refused);
    works(Wire::over(authority.stream(&braid, None).expect("hands are shaken")).log_in(&Login::default()).expect("guest may"));
}

#[test]
fn what_is_no_tls_is_closed_and_harms_nobody() {
    let authority = Authority::new("test authority");
    let braid = authority.house("tls-hostile");
    let mut silent = wire::tcp(&braid.address("amqps"));
    let mut hello_only = wire::tcp(&braid.address("amqps"));
    hello_only.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").expect("it reads");
    for bytes in [&HEADER[..], b"GET / HTTP/1.1\r\n\r\n", &[0xff; 70_000], &[0x16, 3, 1, 0xff, 0xff, 1]] {
        let mut stream = wire::tcp(&braid.address("amqps"));
        let _ = stream.write_all(bytes);
        let mut said = Vec::new();
        let end = stream.read_to_end(&mut said);
        assert!(!end.is_err_and(|error| wire::is_patience(&error)), "it is closed");
        assert!(!said.starts_with(b"AMQP"), "not a word in the clear");
    }
    for stream in [&mut silent, &mut hello_only] {
        let end = stream.read_to_end(&mut Vec::new());
        assert!(!end.is_err_and(|error| wire::is_patience(&error)), "who does not shake hands is let go");
    }
    works(Wire::over(authority.stream(&braid, None).expect("hands are shaken")).log_in(&Login::default()).expect("guest may"));
    assert_eq!(braid.metric("panics_total"), Some(0.0));
}

#[test]
fn a_hangup_brings_new_certificates_and_broken_ones_change_nothing() {
    let first = Authority::new("first authority");
    let second = Authority::new("second authority");
    let braid = first.house("tls-reload");
    let mut old =
        Wire::over(first.stream(&braid, None).expect("hands are shaken")).log_in(&Login::default()).expect("guest may");
    second.sign("localhost").install(braid.dir());
    std::fs::write(braid.dir().join("ca.pem"), &second.pem).expect("a file");
    braid.signal("HUP");
    eventually("the second authority's certificate is shown", || second.stream(&braid, None).is_ok());
    assert!(first.stream(&braid, None).is_err(), "the first one's is not shown any more");
    assert!(old.is_well(), "who is in stays in");
    let certificate = std::fs::read(braid.dir().join("server.pem")).expect("ours");
    for (file, broken) in [("server.pem", &b"not a certificate"[..]), ("server.key", b""), ("server.pem", &certificate[..100])]
    {
        let path = braid.dir().join(file);
        let good = std::fs::read(&path).expect("ours");
        let complaints = braid.log().matches("the old certificates stay in use").count();
        std::fs::write(&path, broken).expect("a file");
        braid.signal("HUP");
        eventually("it says so", || braid.log().matches("the old certificates stay in use").count() > complaints);
        works(Wire::over(second.stream(&braid, None).expect("the old one")).log_in(&Login::default()).expect("guest may"));
        std::fs::write(&path, good).expect("a file");
    }
    assert!(old.is_well(), "who is in stays in");
}

#[test]
fn both_versions_of_tls_that_are_safe_are_spoken() {
    let authority = Authority::new("test authority");
    let braid = authority.house("tls-versions");
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[version]).expect("known");
        let config = builder.with_root_certificates(authority.trusting()).with_no_client_auth();
        works(Wire::over(shake_hands(config, &braid).expect("spoken")).log_in(&Login::default()).expect("guest may"));
    }
}
