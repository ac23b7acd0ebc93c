//! The release binary as a test sees it: started, asked for its addresses, killed, started again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The workspace's folder.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// Where cargo builds.
pub fn target() -> PathBuf {
    workspace().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// Builds the binary as it is shipped, once a test run. `BRAID_BINARY` names one that is built already.
pub fn release_binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(built) = std::env::var_os("BRAID_BINARY") {
            return PathBuf::from(built);
        }
        let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
        let built = Command::new(cargo).args(["build", "--release", "-p", "server"]).current_dir(workspace()).status();
        assert!(built.expect("cargo runs").success(), "the release binary does not build");
        target().join("release/braid")
    })
}

/// A running broker with a data directory of its own. Dropping it kills the process and removes the directory.
pub struct Braid {
    child: Child,
    dir: PathBuf,
    arguments: Vec<String>,
    /// How many files it may have open.
    files_max: Option<u32>,
    remove: bool,
}

impl Braid {
    /// On a fresh directory, on free ports of loopback.
    pub fn start(name: &str) -> Braid {
        Braid::start_with(name, &["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"])
    }

    pub fn start_with(name: &str, arguments: &[&str]) -> Braid {
        Braid::start_in(Braid::fresh_dir(name), arguments)
    }

    /// On free ports, with more arguments.
    pub fn start_and(name: &str, arguments: &[&str]) -> Braid {
        Braid::start_with(name, &[&["--amqp", "127.0.0.1:0", "--http", "127.0.0.1:0"], arguments].concat())
    }

    /// An empty directory to put files in before it starts there.
    pub fn fresh_dir(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("braid-test-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a temporary directory");
        dir
    }

    pub fn start_in(dir: PathBuf, arguments: &[&str]) -> Braid {
        Braid::start_within(dir, arguments, None)
    }

    pub fn start_within(dir: PathBuf, arguments: &[&str], files_max: Option<u32>) -> Braid {
        let arguments: Vec<String> = arguments.iter().map(|a| a.to_string()).collect();
        let child = spawn(&dir, &arguments, files_max);
        let mut braid = Braid { child, dir, arguments, files_max, remove: true };
        braid.wait_until_ready();
        braid
    }

    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.data().join("listeners.json").exists() {
            if let Some(status) = self.child.try_wait().expect("our own child") {
                panic!("braid ended at start: {status}; its log: {}", self.log());
            }
            assert!(Instant::now() < deadline, "braid does not come up; its log: {}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where the broker lives: its data, its log, and what a test puts beside them.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Memory that is its own, in bytes: no file pages.
    pub fn memory(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("the kernel says");
        line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number") << 10
    }

    /// `braid …` over the control socket.
    pub fn ask(&self, words: &[&str]) -> Output {
        let mut braid = Command::new(release_binary());
        braid.current_dir(&self.dir).args(words).args(["--data-dir", "data"]).stdin(Stdio::null());
        braid.output().expect("the release binary runs")
    }

    /// The same, and it must work; answers what was printed.
    pub fn tell(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        let wrong = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "braid {words:?}: {wrong}");
        String::from_utf8(output.stdout).expect("text")
    }

    /// One page over HTTP: status and body.
    pub fn page(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address("http")).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a socket");
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: braid\r\n\r\n").as_bytes()).expect("it reads");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("it answers");
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and a body");
        (head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"), body.into())
    }

    /// The value of a line of `/metrics`: name with labels.
    pub fn metric(&self, name: &str) -> Option<f64> {
        let (_, text) = self.page("/metrics");
        text.lines().find_map(|line| line.strip_prefix("braid_")?.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.pid().to_string()]).status();
        assert!(sent.expect("kill runs").success());
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The address that a listener is bound to.
    pub fn address(&self, listener: &str) -> String {
        let text = std::fs::read_to_string(self.data().join("listeners.json")).expect("written at start");
        let listeners: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        listeners[listener].as_str().unwrap_or_else(|| panic!("no listener {listener} in {text}")).to_string()
    }

    pub fn port(&self, listener: &str) -> u16 {
        let address = self.address(listener);
        address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("address:port")
    }

    /// From now on the ports stay what they are, so that clients find it again.
    pub fn keep_ports(&mut self) {
        for listener in ["amqp", "http"] {
            let address = self.address(listener);
            if let Some(at) = self.arguments.iter().position(|a| *a == format!("--{listener}")) {
                self.arguments[at + 1] = address;
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        let _ = std::fs::remove_file(self.data().join("listeners.json"));
    }

    /// SIGTERM; answers its exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal("TERM");
        let status = self.child.wait().expect("our own child");
        let _ = std::fs::remove_file(self.data().join("listeners.json"));
        status.code()
    }

    /// Starts again on the same directory; answers how long it took until its listeners accept.
    pub fn restart(&mut self) -> Duration {
        let began = Instant::now();
        self.child = spawn(&self.dir, &self.arguments, self.files_max);
        self.wait_until_ready();
        began.elapsed()
    }

    /// Where the process id stands, for scripts that restart the broker themselves.
    pub fn pid_file(&self) -> PathBuf {
        let path = self.dir.join("pid");
        std::fs::write(&path, self.pid().to_string()).expect("a file");
        path
    }

    pub fn log_file(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// What starts it on the same directory and ports.
    pub fn command_line(&self) -> String {
        let data = self.data();
        format!("{} --data-dir {} {}", release_binary().display(), data.display(), self.arguments.join(" "))
    }

    /// A script may have restarted the broker: ends the process that runs now.
    pub fn restarted_elsewhere(&mut self) {
        let pid = std::fs::read_to_string(self.dir.join("pid")).unwrap_or_default();
        if !pid.trim().is_empty() && pid.trim() != self.pid().to_string() {
            let _ = Command::new("kill").args(["-9", pid.trim()]).status();
        }
    }

    /// Keeps the directory when dropped, for somebody to look at.
    pub fn keep(&mut self) {
        self.remove = false;
    }
}

impl Drop for Braid {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("braid's log ({}):\n{}", self.dir.display(), self.log());
        } else if self.remove {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn spawn(dir: &Path, arguments: &[String], files_max: Option<u32>) -> Child {
    let log = std::fs::File::options().create(true).append(true).open(dir.join("log")).expect("a log file");
    let mut command = Command::new(release_binary());
    if let Some(files_max) = files_max {
        command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {files_max} && exec \"$0\" \"$@\"")]).arg(release_binary());
    }
    command
        .current_dir(dir)
        .arg("--data-dir")
        .arg(dir.join("data"))
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone().expect("a log file"))
        .stderr(log)
        .spawn()
        .expect("the release binary runs")
}
