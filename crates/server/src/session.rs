//! One TLS session over a connection's socket, without a task of its own: whoever speaks enciphers and writes.

use protocol::Outbox;
use rustls::ServerConnection;
use std::io::{self, Read, Write};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;

pub struct Session {
    tls: ServerConnection,
}

impl Session {
    pub fn new(tls: ServerConnection) -> Session {
        Session { tls }
    }

    pub fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    /// Takes all of `input` and adds what it says to `plain`.
    pub fn read(&mut self, mut input: &[u8], plain: &mut Vec<u8>) -> io::Result<()> {
        while !input.is_empty() {
            self.tls.read_tls(&mut input)?;
            let state = self.tls.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            let length = plain.len();
            plain.resize(length + state.plaintext_bytes_to_read(), 0);
            self.tls.reader().read_exact(&mut plain[length..])?;
            if state.peer_has_closed() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Enciphers and writes what is ready, until the socket takes no more.
    pub fn flush(&mut self, socket: &OwnedWriteHalf, outbox: &mut Outbox) -> io::Result<()> {
        loop {
            while self.tls.wants_write() {
                self.tls.write_tls(&mut Socket(socket.as_ref()))?;
            }
            if outbox.ready().is_empty() {
                return Ok(());
            }
            // As much as the session's own buffer takes.
            let count = self.tls.writer().write(outbox.ready())?;
            outbox.advance(count);
        }
    }

    /// Says goodbye in TLS's own way; best effort.
    pub fn close(&mut self, socket: &OwnedWriteHalf) {
        self.tls.send_close_notify();
        while self.tls.wants_write() {
            if self.tls.write_tls(&mut Socket(socket.as_ref())).is_err() {
                return;
            }
        }
    }
}

/// A socket that never waits.
pub struct Socket<'a>(pub &'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Socket<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(bytes)
    }
}
