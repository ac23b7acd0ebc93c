//! The binary itself: what it prints, what it leaves, how it ends.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

struct Braid {
    dir: PathBuf,
    child: Child,
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_braid"));
    command.current_dir(dir).env_clear().args(["--data-dir", "data", "--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    command
}

fn fresh_dir(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("braid-process-{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

impl Braid {
    fn start(dir: PathBuf) -> Braid {
        let child = command(&dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let braid = Braid { dir, child };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !braid.dir.join("data/listeners.json").exists() {
            assert!(Instant::now() < deadline, "it does not come up");
            std::thread::sleep(Duration::from_millis(2));
        }
        braid
    }

    fn address(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.dir.join("data/listeners.json")).unwrap();
        serde_json::from_str::<serde_json::Value>(&text).unwrap()[name].as_str().unwrap().to_owned()
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    fn ask(&self, words: &[&str]) -> Output {
        let mut braid = Command::new(env!("CARGO_BIN_EXE_braid"));
        braid.current_dir(&self.dir).env_clear().args(words).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Braid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// The first bytes of an AMQP conversation: the server starts it.
fn greet(address: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"AMQP\0\0\x09\x01").unwrap();
    let mut head = [0; 11];
    stream.read_exact(&mut head).unwrap();
    assert_eq!((head[0], &head[7..]), (1, &[0, 10, 0, 10][..]), "connection.start");
    stream
}

#[test]
fn it_starts_greets_stops_and_starts_again() {
    let mut braid = Braid::start(fresh_dir("life"));
    let mut client = greet(&braid.address("amqp"));
    let status = braid.ask(&["status"]);
    let text = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && text.contains(&braid.address("http")), "{text}");
    braid.signal("-TERM");
    let status = braid.child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    let mut said = String::new();
    braid.child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.starts_with("Braid ") && said.contains("amqp://guest:guest@127.0.0.1:"), "{said}");
    assert!(client.read_to_end(&mut Vec::new()).is_ok(), "the client was let go in order");
    assert!(!braid.dir.join("data/listeners.json").exists());
    assert!(!braid.ask(&["status"]).status.success(), "nobody answers any more");
    let dir = braid.dir.clone();
    std::mem::forget(braid);
    greet(&Braid::start(dir).address("amqp"));
}

#[test]
fn a_second_process_on_the_same_data_ends_and_changes_nothing() {
    let braid = Braid::start(fresh_dir("second"));
    let before = braid.address("amqp");
    let second = command(&braid.dir).output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    let wrong = String::from_utf8(second.stderr).unwrap();
    assert!(wrong.contains("in use by another process"), "{wrong}");
    assert_eq!(braid.address("amqp"), before);
    greet(&before);
    assert!(braid.ask(&["status"]).status.success(), "the control socket is still the first one's");
}

#[test]
fn what_is_not_understood_ends_it_before_it_touches_anything() {
    let dir = fresh_dir("wrong");
    std::fs::write(dir.join("braid.toml"), "amqp = 0\n\nmqtt = 1883\n").unwrap();
    let from_file = command(&dir).output().unwrap();
    let wrong = String::from_utf8(from_file.stderr).unwrap();
    assert!(!from_file.status.success() && wrong.contains("braid.toml") && wrong.contains("line 3"), "{wrong}");
    let from_flag = command(&dir).args(["--mqtt", "1883"]).output().unwrap();
    assert_eq!(from_flag.status.code(), Some(2));
    assert!(!dir.join("data").exists());
    std::fs::remove_dir_all(dir).unwrap();
}
