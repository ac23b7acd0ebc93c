//! The broker under test: our own binary, or whatever two commands start and kill.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub type Outcome<T> = Result<T, String>;

pub enum Process {
    Own(Own),
    /// Shell commands. The first may stay in the foreground or not; the second answers when everything is dead.
    Foreign {
        start: String,
        kill: String,
    },
}

pub struct Own {
    binary: PathBuf,
    pub dir: PathBuf,
    pub amqp: SocketAddr,
    pub http: SocketAddr,
    child: Option<Child>,
}

impl Process {
    pub fn start(&mut self) -> Outcome<()> {
        match self {
            Process::Own(own) => own.start(),
            Process::Foreign { start, .. } => {
                let spawned = Command::new("bash").args(["-c", start]).stdin(Stdio::null()).stdout(Stdio::null()).spawn();
                spawned.map(drop).map_err(|error| format!("{start}: {error}"))
            }
        }
    }

    /// `kill -9`. False if it was dead already.
    pub fn kill(&mut self) -> Outcome<bool> {
        match self {
            Process::Own(own) => Ok(own.kill()),
            Process::Foreign { kill, .. } => {
                let done = Command::new("bash").args(["-c", kill]).status().map_err(|error| format!("{kill}: {error}"))?;
                if done.success() { Ok(true) } else { Err(format!("{kill}: {done}")) }
            }
        }
    }
}

impl Own {
    /// On free ports of loopback, which stay the same over restarts.
    pub fn new(binary: &Path, dir: &Path) -> Outcome<Own> {
        let _ = std::fs::remove_dir_all(dir);
        std::fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let free = || TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
        let ports = free().and_then(|first| Ok((first, free()?))).map_err(|error| error.to_string())?;
        Ok(Own { binary: binary.to_owned(), dir: dir.to_owned(), amqp: ports.0, http: ports.1, child: None })
    }

    pub fn start(&mut self) -> Outcome<()> {
        let log = std::fs::File::options().create(true).append(true).open(self.dir.join("log"));
        let log = log.map_err(|error| format!("a log file: {error}"))?;
        let child = Command::new(&self.binary)
            .arg("--data-dir")
            .arg(self.dir.join("data"))
            .args(["--amqp", &self.amqp.to_string(), "--http", &self.http.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().map_err(|error| error.to_string())?)
            .stderr(log)
            .spawn();
        self.child = Some(child.map_err(|error| format!("{}: {error}", self.binary.display()))?);
        Ok(())
    }

    /// Starts, and answers how long it took until the AMQP listener accepts.
    pub fn start_and_listen(&mut self) -> Outcome<Duration> {
        let began = Instant::now();
        self.start()?;
        while TcpStream::connect(self.amqp).is_err() {
            if self.is_dead() || began.elapsed() > Duration::from_secs(60) {
                return Err(format!("it does not come up; see {}", self.dir.join("log").display()));
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(began.elapsed())
    }

    fn is_dead(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    pub fn kill(&mut self) -> bool {
        let alive = !self.is_dead();
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        alive
    }

    pub fn remove(mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    fn proc(&self, file: &str) -> PathBuf {
        let id = self.child.as_ref().map_or(0, Child::id);
        PathBuf::from(format!("/proc/{id}/{file}"))
    }

    /// Resident bytes, page cache not among them.
    pub fn rss(&self) -> u64 {
        let status = std::fs::read_to_string(self.proc("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    }

    /// Processor time used so far, user and system.
    pub fn cpu(&self) -> Duration {
        let stat = std::fs::read_to_string(self.proc("stat")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks: u64 = [11, 12].iter().filter_map(|i| fields.get(*i)?.parse::<u64>().ok()).sum();
        // Linux counts in hundredths of a second for every process that reads this.
        Duration::from_millis(ticks * 10)
    }

    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(self.proc("fd")).map_or(0, Iterator::count)
    }

    pub fn files(&self) -> usize {
        let folders = ["segments", "spill"].map(|folder| self.dir.join("data").join(folder));
        folders.iter().map(|folder| std::fs::read_dir(folder).map_or(0, Iterator::count)).sum()
    }

    /// One figure of `/metrics`.
    pub fn figure(&self, name: &str) -> Option<f64> {
        use std::io::{Read, Write};
        let mut stream = TcpStream::connect(self.http).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: braid\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.kill();
    }
}
