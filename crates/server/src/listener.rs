//! Takes connections in: limits first, then TLS, then the protocol's machine, then a task of its own.

use crate::conn::Speech;
use crate::hub::Hub;
use crate::limits;
use crate::log::clean;
use crate::protocols::{Protocol, Protocols};
use crate::session::Session;
use crate::talk::{End, Talk};
use crate::tls::{self, Tls};
use broker::Client;
use protocol::{Now, Peer};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Counts who is in, and says who may come.
pub struct Gate {
    connections_max: usize,
    per_address_max: usize,
    half_open_max: usize,
    connections: AtomicUsize,
    half_open: AtomicUsize,
    addresses: Mutex<HashMap<IpAddr, usize>>,
    /// In which second a refusal was last logged: a flood of them must not become a flood of lines.
    complained_s: AtomicU64,
}

/// The right to be connected; given back when dropped.
pub struct Admission {
    gate: Arc<Gate>,
    /// `None` for loopback, where proxies and everything on this machine come from: no limit of its own.
    address: Option<IpAddr>,
    _half_open: HalfOpen,
}

/// One of those that have not authenticated yet.
struct HalfOpen(Option<Arc<Gate>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    TooMany,
    TooManyOfThisAddress,
    TooManyHalfOpen,
}

impl Gate {
    pub fn new(connections_max: usize, per_address_max: usize, half_open_max: usize) -> Arc<Gate> {
        Arc::new(Gate {
            connections_max,
            per_address_max,
            half_open_max,
            connections: AtomicUsize::new(0),
            half_open: AtomicUsize::new(0),
            addresses: Mutex::default(),
            complained_s: AtomicU64::new(0),
        })
    }

    pub fn admit(self: &Arc<Gate>, from: IpAddr) -> Result<Admission, Refusal> {
        let from = from.to_canonical();
        let _half_open = HalfOpen::take(self)?;
        let address = (!from.is_loopback()).then_some(from);
        if let Some(address) = address {
            let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
            let count = addresses.entry(address).or_default();
            if *count >= self.per_address_max {
                return Err(Refusal::TooManyOfThisAddress);
            }
            *count += 1;
        }
        let admission = Admission { gate: self.clone(), address, _half_open };
        if self.connections.fetch_add(1, Ordering::Relaxed) >= self.connections_max {
            return Err(Refusal::TooMany);
        }
        Ok(admission)
    }

    /// True at most once a second.
    fn may_complain(&self, now: Now) -> bool {
        let second = now.unix_ms / 1000;
        self.complained_s.swap(second, Ordering::Relaxed) != second
    }

    pub fn half_open(&self) -> usize {
        self.half_open.load(Ordering::Relaxed)
    }
}

impl Admission {
    pub fn authenticated(&mut self) {
        self._half_open = HalfOpen(None);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.gate.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut addresses = self.gate.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                addresses.remove(&address);
            }
        }
    }
}

impl HalfOpen {
    fn take(gate: &Arc<Gate>) -> Result<HalfOpen, Refusal> {
        let taken = HalfOpen(Some(gate.clone()));
        if gate.half_open.fetch_add(1, Ordering::Relaxed) >= gate.half_open_max {
            return Err(Refusal::TooManyHalfOpen);
        }
        Ok(taken)
    }
}

impl Drop for HalfOpen {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.half_open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What all listeners share.
pub struct House {
    pub hub: Arc<Hub>,
    pub gate: Arc<Gate>,
    pub protocols: Protocols,
    pub tls: Option<Tls>,
}

/// Accepts until it is aborted.
pub async fn run(house: Arc<House>, listener: TcpListener, protocol: Protocol, with_tls: bool) {
    let mut complained = None;
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                let house = house.clone();
                match house.gate.admit(from.ip()) {
                    Ok(admission) => drop(tokio::spawn(serve(house, stream, from, protocol, with_tls, admission))),
                    Err(refusal) => {
                        house.hub.counts.connections_refused.fetch_add(1, Ordering::Relaxed);
                        if house.gate.may_complain(house.hub.clock.now()) {
                            tracing::warn!(%from, ?refusal, "connection refused");
                        }
                    }
                }
            }
            Err(error) if is_of_the_peer(&error) => {}
            Err(error) => {
                // No descriptor or no memory: those who are connected go on, those who knock wait in the kernel's queue.
                if complained.replace(error.kind()) != Some(error.kind()) {
                    tracing::error!(%error, "cannot accept connections");
                }
                tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
                continue;
            }
        }
        complained = None;
    }
}

/// It gave up between knocking and being let in.
fn is_of_the_peer(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted)
}

async fn serve(
    house: Arc<House>,
    stream: TcpStream,
    from: SocketAddr,
    protocol: Protocol,
    with_tls: bool,
    mut admission: Admission,
) {
    let end = match introduce(&house, stream, from, protocol, with_tls).await {
        Ok(talk) => talk.run(|| admission.authenticated()).await,
        Err(error) => End::Failed(error.to_string()),
    };
    match end {
        End::Finished | End::PeerClosed => tracing::debug!(%from, ?end, "connection closed"),
        End::Failed(why) => tracing::info!(%from, why = %clean(&why), "connection ended"),
    }
}

async fn introduce(house: &House, stream: TcpStream, from: SocketAddr, protocol: Protocol, with_tls: bool) -> io::Result<Talk> {
    stream.set_nodelay(true)?;
    let is_loopback = from.ip().to_canonical().is_loopback();
    let mut peer = Peer { address: from.to_string(), is_loopback, tls: with_tls, certificate_name: None };
    let (mut session, mut said) = (None, Vec::new());
    if let Some(tls) = house.tls.as_ref().filter(|_| with_tls) {
        let (connection, early) = tls.accept(&stream).await?;
        peer.certificate_name = tls::certificate_name(&connection);
        session = Some(Box::new(Session::new(connection)));
        said = early;
    }
    let client = Client { address: peer.address.clone(), is_loopback, protocol: protocol.name() };
    let machine = house.protocols.start(protocol, peer, house.hub.clock.now());
    let (read, write) = stream.into_split();
    let connected = house.hub.connect(client, write, Speech::new(machine, session));
    let conn = connected.map_err(|error| io::Error::other(error.text))?;
    Ok(Talk::new(house.hub.clone(), conn, read, with_tls, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_holds_and_is_given_back() {
        let gate = Gate::new(3, 2, 2);
        let [a, b]: [IpAddr; 2] = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
        let mut first = gate.admit(a).unwrap();
        let mut second = gate.admit(a).unwrap();
        assert_eq!(gate.admit(b).err(), Some(Refusal::TooManyHalfOpen));
        first.authenticated();
        assert_eq!(gate.admit(a).err(), Some(Refusal::TooManyOfThisAddress));
        assert_eq!(gate.half_open(), 1, "a refusal gives back what it took");
        second.authenticated();
        let third = gate.admit(b).unwrap();
        assert_eq!(gate.admit(b).err(), Some(Refusal::TooMany));
        drop((first, second, third));
        assert_eq!((gate.half_open(), gate.connections.load(Ordering::Relaxed)), (0, 0));
        assert!(gate.addresses.lock().unwrap().is_empty());
    }
}
