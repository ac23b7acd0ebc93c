//! Health and metrics over HTTP/1.1: `GET /livez`, `/readyz`, `/metrics`; everything else is 404.
//!
//! Three fixed paths need no framework: a request is read up to its blank line within limits, answered, and the connection
//! is closed.

use crate::limits;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// What the pages say.
pub trait Pages: Send + Sync + 'static {
    /// An `Err` says why not.
    fn ready(&self) -> Result<(), String>;
    fn metrics(&self) -> String;
}

/// Accepts until it is aborted.
pub async fn run(listener: TcpListener, pages: Arc<dyn Pages>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                open.retain(|task| !task.is_finished());
                // Who asks is answered at once, so the oldest is one that says nothing: it makes room.
                if open.len() >= limits::HTTP_CONNECTIONS_MAX
                    && let Some(oldest) = open.pop_front()
                {
                    oldest.abort();
                }
                let pages = pages.clone();
                let task = tokio::spawn(async move {
                    let limit = Duration::from_millis(limits::HTTP_TIMEOUT_MS);
                    let _ = tokio::time::timeout(limit, serve(stream, &*pages)).await;
                });
                open.push_back(task.abort_handle());
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await,
        }
    }
}

async fn serve(mut stream: TcpStream, pages: &dyn Pages) -> io::Result<()> {
    let mut head = Vec::with_capacity(1024);
    let complete = loop {
        if head.windows(4).any(|w| w == b"\r\n\r\n") {
            break true;
        }
        if head.len() > limits::HTTP_HEADER_BYTES_MAX {
            break false;
        }
        if stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    };
    let response = if complete { respond(&head, pages) } else { page(431, "too many headers\n", true) };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // Closing with unread input would reset the connection before the answer is read.
    let mut rest = [0; 1024];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

fn respond(head: &[u8], pages: &dyn Pages) -> String {
    let line = head.split(|b| *b == b'\r').next().and_then(|line| std::str::from_utf8(line).ok()).unwrap_or("");
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1" | "HTTP/1.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return page(400, "bad request\n", true);
    };
    let body = method != "HEAD";
    let path = target.split('?').next().unwrap_or(target);
    if !matches!(path, "/livez" | "/readyz" | "/metrics") {
        return page(404, "not found\n", body);
    }
    if !matches!(method, "GET" | "HEAD") {
        return page(405, "method not allowed\n", body);
    }
    match path {
        "/livez" => page(200, "ok\n", body),
        "/metrics" => page(200, &pages.metrics(), body),
        _ => match pages.ready() {
            Ok(()) => page(200, "ok\n", body),
            Err(why) => page(503, &format!("{why}\n"), body),
        },
    }
}

fn page(status: u16, text: &str, with_body: bool) -> String {
    let reason = match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    };
    let length = text.len();
    let allow = if status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
    let body = if with_body { text } else { "" };
    format!(
        "HTTP/1.1 {status} {reason}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n\
         Content-Length: {length}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
}

/// The other end, for health checks: an `Err` says why not.
pub fn ask_ready(address: SocketAddr) -> io::Result<()> {
    let limit = Some(Duration::from_millis(limits::HTTP_ASK_MS));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(limits::HTTP_ASK_MS))?;
    stream.set_read_timeout(limit)?;
    stream.set_write_timeout(limit)?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: braid\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(limits::HTTP_HEADER_BYTES_MAX as u64).read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(());
    }
    let answer = String::from_utf8_lossy(&answer);
    Err(io::Error::other(answer.lines().last().unwrap_or("no answer").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(bool);
    impl Pages for Fixed {
        fn ready(&self) -> Result<(), String> {
            if self.0 { Ok(()) } else { Err("recovering".into()) }
        }
        fn metrics(&self) -> String {
            "braid_up 1\n".into()
        }
    }

    #[test]
    fn three_paths_are_known_and_the_rest_is_refused() {
        for (line, status, end) in [
            ("GET /livez HTTP/1.1", "200", "\r\n\r\nok\n"),
            ("GET /metrics?x=1 HTTP/1.0", "200", "\r\n\r\nbraid_up 1\n"),
            ("HEAD /metrics HTTP/1.1", "200", "\r\n\r\n"),
            ("GET / HTTP/1.1", "404", "not found\n"),
            ("GET /api/overview HTTP/1.1", "404", "not found\n"),
            ("POST /livez HTTP/1.1", "405", "method not allowed\n"),
            ("nonsense", "400", "bad request\n"),
            ("", "400", "bad request\n"),
        ] {
            let answer = respond(format!("{line}\r\n\r\n").as_bytes(), &Fixed(true));
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.ends_with(end), "{line}: {answer}");
        }
        assert!(respond(b"GET /readyz HTTP/1.1\r\n\r\n", &Fixed(false)).ends_with("recovering\n"));
    }
}
