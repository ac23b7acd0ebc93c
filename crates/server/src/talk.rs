//! A connection's own task: reads its socket, waits for writability when somebody met EAGAIN, pauses, and says goodbye.

use crate::conn::Conn;
use crate::hub::{Hub, Wants};
use crate::limits;
use crate::scratch::with_input;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Instant, timeout, timeout_at};

pub struct Talk {
    hub: Arc<Hub>,
    conn: Arc<Conn>,
    socket: OwnedReadHalf,
    is_tls: bool,
    /// What the machine has not consumed yet: mostly nothing, or the first part of a frame.
    kept: Vec<u8>,
    /// The machine stopped in the middle of it: it is offered again before the socket is read.
    unheard: bool,
}

enum Step {
    Heard(Wants),
    Look,
    Ended(Option<io::Error>),
}

/// How a conversation ended, for the log.
#[derive(Debug)]
pub enum End {
    Finished,
    PeerClosed,
    Failed(String),
}

impl Talk {
    /// `said` is what came behind a TLS handshake.
    pub fn new(hub: Arc<Hub>, conn: Arc<Conn>, socket: OwnedReadHalf, is_tls: bool, said: Vec<u8>) -> Talk {
        let unheard = !said.is_empty();
        Talk { hub, conn, socket, is_tls, kept: said, unheard }
    }

    /// Runs until the connection is over; `authenticated` is called once, when it is.
    pub async fn run(mut self, authenticated: impl FnOnce()) -> End {
        let end = self.converse(authenticated).await;
        if let End::Finished = end {
            self.farewell().await;
        }
        self.hub.disconnect(&self.conn);
        end
    }

    async fn converse(&mut self, authenticated: impl FnOnce()) -> End {
        let mut authenticated = Some(authenticated);
        let mut reads = 0;
        self.hub.look_after(&self.conn);
        let mut wants = self.hub.wants(&self.conn);
        loop {
            if wants.failed {
                return End::Failed(self.failure());
            }
            if wants.finished {
                return End::Finished;
            }
            if wants.authenticated
                && let Some(authenticated) = authenticated.take()
            {
                authenticated();
            }
            if wants.pause {
                wants = self.pause().await;
                continue;
            }
            if wants.read && self.unheard {
                wants = self.hear_kept();
                continue;
            }
            if reads == limits::READS_PER_TURN {
                reads = 0;
                tokio::task::yield_now().await;
            }
            match poll_fn(|cx| self.poll_step(cx, wants)).await.unwrap_or_else(|error| Step::Ended(Some(error))) {
                Step::Heard(next) => (reads, wants) = (reads + 1, next),
                Step::Look => wants = self.look(),
                Step::Ended(None) => return End::PeerClosed,
                Step::Ended(Some(error)) => return End::Failed(error.to_string()),
            }
        }
    }

    /// Input first: it serves everything else on the way. Only who would wait leaves a waker.
    fn poll_step(&mut self, cx: &mut Context, wants: Wants) -> Poll<io::Result<Step>> {
        if wants.read
            && let Poll::Ready(step) = self.poll_input(cx)
        {
            return Poll::Ready(step);
        }
        if self.conn.take_poke(cx.waker()) {
            return Poll::Ready(Ok(Step::Look));
        }
        if wants.write {
            ready!(self.conn.socket.as_ref().poll_write_ready(cx))?;
            return Poll::Ready(Ok(Step::Look));
        }
        Poll::Pending
    }

    fn poll_input(&mut self, cx: &mut Context) -> Poll<io::Result<Step>> {
        if self.kept.len() > limits::READ_BYTES / 2 {
            return self.poll_large_input(cx);
        }
        with_input(|buffer| {
            let kept = if self.is_tls { 0 } else { self.kept.len() };
            buffer[..kept].copy_from_slice(&self.kept[..kept]);
            let mut read = ReadBuf::new(buffer);
            read.set_filled(kept);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
            let input = read.filled();
            let count = input.len() - kept;
            if count == 0 {
                return Poll::Ready(Ok(Step::Ended(None)));
            }
            if self.is_tls {
                self.hub.decipher(&self.conn, input, &mut self.kept)?;
                return Poll::Ready(Ok(Step::Heard(self.hear_kept())));
            }
            let heard = self.hub.hear_input(&self.conn, input);
            self.kept.clear();
            self.kept.extend_from_slice(&input[heard.bytes..]);
            // A short read may be followed by silence, and the silent hold no buffers.
            if self.kept.is_empty() && count < limits::READ_BYTES / 4 {
                self.kept = Vec::new();
            }
            self.unheard = !self.kept.is_empty() && !heard.wants.read;
            Poll::Ready(Ok(Step::Heard(heard.wants)))
        })
    }

    /// The machine waits for something larger than the shared buffer: read behind what is kept.
    fn poll_large_input(&mut self, cx: &mut Context) -> Poll<io::Result<Step>> {
        let kept = self.kept.len();
        if kept > limits::KEPT_BYTES_MAX {
            return Poll::Ready(Err(io::Error::other("the protocol left too much input unread")));
        }
        if self.is_tls {
            return with_input(|buffer| {
                let mut read = ReadBuf::new(buffer);
                ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
                if read.filled().is_empty() {
                    return Poll::Ready(Ok(Step::Ended(None)));
                }
                self.hub.decipher(&self.conn, read.filled(), &mut self.kept)?;
                Poll::Ready(Ok(Step::Heard(self.hear_kept())))
            });
        }
        self.kept.resize(kept + limits::READ_BYTES, 0);
        let mut read = ReadBuf::new(&mut self.kept[kept..]);
        let polled = Pin::new(&mut self.socket).poll_read(cx, &mut read);
        let count = read.filled().len();
        self.kept.truncate(kept + count);
        ready!(polled)?;
        if count == 0 {
            return Poll::Ready(Ok(Step::Ended(None)));
        }
        Poll::Ready(Ok(Step::Heard(self.hear_kept())))
    }

    fn hear_kept(&mut self) -> Wants {
        let heard = self.hub.hear_input(&self.conn, &self.kept);
        self.kept.drain(..heard.bytes);
        if self.kept.is_empty() {
            self.kept = Vec::new();
        }
        self.unheard = !self.kept.is_empty() && !heard.wants.read;
        heard.wants
    }

    fn look(&self) -> Wants {
        self.hub.look_after_own(&self.conn);
        self.hub.wants(&self.conn)
    }

    async fn pause(&self) -> Wants {
        self.hub.pause(&self.conn);
        let poked = poll_fn(|cx| if self.conn.take_poke(cx.waker()) { Poll::Ready(()) } else { Poll::Pending });
        let _ = timeout(Duration::from_millis(limits::SLOW_DOWN_MS), poked).await;
        self.look()
    }

    /// Lets the last bytes leave, and waits a little until the peer has closed: closing a socket with unread input resets
    /// it, and the reset can overtake what we said last.
    async fn farewell(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(limits::FAREWELL_MS);
        loop {
            let wants = self.look();
            if wants.drained || wants.failed {
                break;
            }
            let moved = poll_fn(|cx| {
                if self.conn.take_poke(cx.waker()) {
                    return Poll::Ready(Ok(()));
                }
                if wants.write { self.conn.socket.as_ref().poll_write_ready(cx) } else { Poll::Pending }
            });
            match timeout_at(deadline, moved).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return,
            }
        }
        if let Some(tls) = &mut self.conn.speech().tls {
            tls.close(&self.conn.socket);
        }
        let stream: &tokio::net::TcpStream = self.conn.socket.as_ref();
        if socket2::SockRef::from(stream).shutdown(std::net::Shutdown::Write).is_err() {
            return;
        }
        let silence = async {
            while let Ok(()) = self.socket.readable().await {
                let mut ignored = [0; 1024];
                match self.socket.try_read(&mut ignored) {
                    Ok(0) => return,
                    Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                    _ => {}
                }
            }
        };
        let _ = timeout(Duration::from_millis(limits::LINGER_MS), silence).await;
    }

    fn failure(&self) -> String {
        format!("{:?}", self.conn.speech().failed)
    }
}
