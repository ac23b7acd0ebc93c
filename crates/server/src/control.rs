//! The operator's door: a unix socket in the data directory, one JSON object a line, one line back. Who can open the socket is
//! who owns the data.

use crate::hub::Hub;
use crate::limits;
use crate::owner::{Answer, Change};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Ask {
    Change(Change),
    Status { status: bool },
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    Ok(serde_json::Value),
    Error(String),
}

pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.sock")
}

/// The data directory's lock is ours, so a socket that is there already is a dead one.
pub fn bind(data_dir: &Path) -> std::io::Result<UnixListener> {
    let path = path(data_dir);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Accepts until it is aborted. `status` says what `braid status` shows.
pub async fn run(listener: UnixListener, hub: Arc<Hub>, status: Arc<dyn Fn() -> serde_json::Value + Send + Sync>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (hub, status) = (hub.clone(), status.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, &hub, &*status).await {
                        tracing::debug!(%error, "control connection ended");
                    }
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await,
        }
    }
}

async fn serve(stream: UnixStream, hub: &Hub, status: &(dyn Fn() -> serde_json::Value + Send + Sync)) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = tokio::io::BufReader::new(read);
    loop {
        let mut line = Vec::new();
        if (&mut read).take(limits::CONTROL_LINE_BYTES_MAX).read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let told = match serde_json::from_slice::<Ask>(&line) {
            Ok(Ask::Status { .. }) => Told::Ok(status()),
            Ok(Ask::Change(change)) => administer(hub, change).await,
            Err(error) => Told::Error(format!("not understood: {error}")),
        };
        let mut answer = serde_json::to_vec(&told)?;
        answer.push(b'\n');
        write.write_all(&answer).await?;
    }
}

/// Answers once the change is on disk.
pub async fn administer(hub: &Hub, change: Change) -> Told {
    match hub.with_node(|node, now, effects| node.administer(now, change, effects)) {
        Err(error) => Told::Error(error.text),
        Ok(Answer { value, safe_at }) => {
            while safe_at.is_some_and(|position| hub.journal.durable() < position) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Told::Ok(value)
        }
    }
}

/// The other end, for the command line.
pub fn ask(data_dir: &Path, ask: &Ask) -> Result<serde_json::Value, String> {
    let path = path(data_dir);
    let not_there = |error: std::io::Error| format!("no broker answers at {}: {error}", path.display());
    let mut stream = std::os::unix::net::UnixStream::connect(&path).map_err(not_there)?;
    let mut line = serde_json::to_vec(ask).map_err(|error| error.to_string())?;
    line.push(b'\n');
    stream.write_all(&line).map_err(not_there)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(not_there)?;
    match serde_json::from_str(&answer).map_err(|error| format!("the broker's answer was not understood: {error}"))? {
        Told::Ok(value) => Ok(value),
        Told::Error(error) => Err(error),
    }
}
