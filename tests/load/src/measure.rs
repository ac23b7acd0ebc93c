//! Parts shared by the load programs: arguments, clock, histogram, process-tree
//! accounting, pacing and a one-line JSON writer. Nothing but libc is needed.
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::net::TcpStream;
use std::os::fd::AsRawFd;

// ---------- arguments ----------
/// `--key value` and bare `--flag` (a flag is a key followed by another key or the end).
pub struct Args(HashMap<String, String>);
impl Args {
    pub fn parse() -> Args {
        let v: Vec<String> = std::env::args().skip(1).collect();
        let mut m = HashMap::new();
        let mut i = 0;
        while i < v.len() {
            let k = match v[i].strip_prefix("--") {
                Some(k) => k.to_string(),
                None => {
                    eprintln!("unexpected argument {}", v[i]);
                    std::process::exit(2)
                }
            };
            if i + 1 < v.len() && !v[i + 1].starts_with("--") {
                m.insert(k, v[i + 1].clone());
                i += 2;
            } else {
                m.insert(k, "true".into());
                i += 1;
            }
        }
        Args(m)
    }
    pub fn num(&self, k: &str, d: u64) -> u64 {
        match self.0.get(k) {
            None => d,
            Some(s) => s.replace('_', "").parse().unwrap_or_else(|_| {
                eprintln!("--{k}: not a number: {s}");
                std::process::exit(2)
            }),
        }
    }
    pub fn str(&self, k: &str, d: &str) -> String {
        self.0.get(k).cloned().unwrap_or_else(|| d.to_string())
    }
    pub fn flag(&self, k: &str) -> bool {
        self.0.get(k).is_some_and(|v| v == "true" || v == "1")
    }
}

// ---------- clock ----------
/// Nanoseconds of CLOCK_MONOTONIC: comparable between processes of one machine.
pub fn now_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

// ---------- histogram ----------
/// Log-linear histogram of nanoseconds, 128 steps per octave (error below 0.8 %).
#[derive(Clone)]
pub struct Hist {
    c: Vec<u64>,
    pub n: u64,
    pub max: u64,
}
const SUB: u32 = 7;
impl Default for Hist {
    fn default() -> Self {
        Hist { c: vec![0; ((64 - SUB as usize) + 1) << SUB], n: 0, max: 0 }
    }
}
impl Hist {
    fn ix(v: u64) -> usize {
        if v < (1 << SUB) {
            return v as usize;
        }
        let e = 63 - v.leading_zeros();
        let m = (v >> (e - SUB)) & ((1 << SUB) - 1);
        ((((e - SUB + 1) as u64) << SUB) + m) as usize
    }
    fn val(i: usize) -> u64 {
        if i < (1 << SUB) {
            return i as u64;
        }
        let e = (i >> SUB) as u32 - 1 + SUB;
        let m = (i & ((1 << SUB) - 1)) as u64;
        (1u64 << e) + (m << (e - SUB)) + (1u64 << (e - SUB)) / 2
    }
    pub fn rec(&mut self, v: u64) {
        self.c[Self::ix(v)] += 1;
        self.n += 1;
        if v > self.max {
            self.max = v;
        }
    }
    pub fn merge(&mut self, o: &Hist) {
        for (a, b) in self.c.iter_mut().zip(&o.c) {
            *a += b;
        }
        self.n += o.n;
        self.max = self.max.max(o.max);
    }
    pub fn q(&self, q: f64) -> u64 {
        if self.n == 0 {
            return 0;
        }
        let want = ((self.n as f64) * q).ceil() as u64;
        let mut s = 0;
        for (i, c) in self.c.iter().enumerate() {
            s += c;
            if s >= want.max(1) {
                return Self::val(i).min(self.max);
            }
        }
        self.max
    }
}

// ---------- JSON line ----------
pub struct Json(String);
impl Default for Json {
    fn default() -> Self {
        Json("{".into())
    }
}
impl Json {
    fn key(&mut self, k: &str) {
        if self.0.len() > 1 {
            self.0.push(',');
        }
        self.0.push_str(&format!("\"{k}\":"));
    }
    pub fn s(&mut self, k: &str, v: &str) -> &mut Self {
        self.key(k);
        self.0.push('"');
        for ch in v.chars() {
            match ch {
                '"' => self.0.push_str("\\\""),
                '\\' => self.0.push_str("\\\\"),
                c if (c as u32) < 32 => self.0.push(' '),
                c => self.0.push(c),
            }
        }
        self.0.push('"');
        self
    }
    pub fn u(&mut self, k: &str, v: u64) -> &mut Self {
        self.key(k);
        self.0.push_str(&v.to_string());
        self
    }
    pub fn f(&mut self, k: &str, v: f64) -> &mut Self {
        self.key(k);
        self.0.push_str(&if v.is_finite() { format!("{v:.3}") } else { "null".into() });
        self
    }
    pub fn hist(&mut self, p: &str, h: &Hist) -> &mut Self {
        if h.n > 0 {
            for (n, q) in [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999)] {
                self.f(&format!("{p}_{n}_us"), h.q(q) as f64 / 1e3);
            }
            self.f(&format!("{p}_max_us"), h.max as f64 / 1e3);
        }
        self
    }
    pub fn print(&mut self) {
        println!("{}}}", self.0);
    }
}

// ---------- process tree ----------
#[derive(Clone, Copy, Default)]
pub struct Usage {
    pub cpu_s: f64,
    pub rss_kb: u64,
    pub procs: u64,
}
/// CPU seconds (own plus waited-for children) and RSS of the processes in `roots`
/// (comma-separated pids) and all their descendants. Empty `roots` gives zeros.
pub fn tree_usage(roots: &str) -> Usage {
    let mut set: Vec<u32> = roots.split(',').filter_map(|s| s.trim().parse().ok()).collect();
    if set.is_empty() {
        return Usage::default();
    }
    let mut stats: HashMap<u32, (u32, u64)> = HashMap::new(); // pid -> (ppid, ticks)
    if let Ok(d) = fs::read_dir("/proc") {
        for e in d.flatten() {
            let pid: u32 = match e.file_name().to_str().and_then(|s| s.parse().ok()) {
                Some(p) => p,
                None => continue,
            };
            if let Ok(s) = fs::read_to_string(format!("/proc/{pid}/stat")) {
                let rest = match s.rfind(')') {
                    Some(i) => &s[i + 2..],
                    None => continue,
                };
                let f: Vec<&str> = rest.split(' ').collect();
                let g = |i: usize| f.get(i).and_then(|x| x.parse::<u64>().ok()).unwrap_or(0);
                // f[0] state, f[1] ppid, f[11..15] utime stime cutime cstime
                stats.insert(pid, (g(1) as u32, g(11) + g(12) + g(13) + g(14)));
            }
        }
    }
    let mut i = 0;
    while i < set.len() {
        let p = set[i];
        for (c, (pp, _)) in &stats {
            if *pp == p && !set.contains(c) {
                set.push(*c);
            }
        }
        i += 1;
    }
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let mut u = Usage::default();
    for p in &set {
        if let Some((_, t)) = stats.get(p) {
            u.cpu_s += *t as f64 / hz;
            u.procs += 1;
        }
        if let Ok(s) = fs::read_to_string(format!("/proc/{p}/status")) {
            for l in s.lines() {
                if let Some(r) = l.strip_prefix("VmRSS:") {
                    u.rss_kb += r.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap_or(0);
                }
            }
        }
    }
    u
}
pub fn self_cpu_s() -> f64 {
    unsafe {
        let mut r: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut r);
        let t = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
        t(r.ru_utime) + t(r.ru_stime)
    }
}
/// CPU seconds the whole machine has spent busy since boot (to see foreign noise).
pub fn machine_busy_s() -> f64 {
    let s = fs::read_to_string("/proc/stat").unwrap_or_default();
    let f: Vec<u64> = s.lines().next().unwrap_or("").split_whitespace().skip(1).filter_map(|x| x.parse().ok()).collect();
    let hz = unsafe { libc::sysconf(libc::_SC_CLK_TCK) } as f64;
    let g = |i: usize| *f.get(i).unwrap_or(&0);
    (g(0) + g(1) + g(2) + g(5) + g(6) + g(7)) as f64 / hz
}
pub fn raise_nofile() {
    unsafe {
        let want = libc::rlimit { rlim_cur: 200_000, rlim_max: 200_000 };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &want) != 0 {
            let mut r: libc::rlimit = std::mem::zeroed();
            libc::getrlimit(libc::RLIMIT_NOFILE, &mut r);
            r.rlim_cur = r.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &r);
        }
    }
}

// ---------- sockets ----------
pub fn connect(host: &str, port: u64) -> io::Result<TcpStream> {
    let s = TcpStream::connect((host, port as u16))?;
    s.set_nodelay(true)?;
    Ok(s)
}
/// A growing read buffer over a socket.
pub struct RdBuf {
    pub buf: Vec<u8>,
    pub start: usize,
    pub end: usize,
}
impl RdBuf {
    pub fn new(cap: usize) -> Self {
        RdBuf { buf: vec![0; cap], start: 0, end: 0 }
    }
    fn room(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > self.buf.len() / 2 || self.end == self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.buf.len() {
            let n = self.buf.len() * 2;
            self.buf.resize(n, 0);
        }
    }
    /// Blocking read (or until the socket's read timeout). Ok(0) on timeout; an error at end of file.
    pub fn fill(&mut self, s: &TcpStream) -> io::Result<usize> {
        self.room();
        let e = self.end;
        match (&mut &*s).read(&mut self.buf[e..]) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker")),
            Ok(n) => {
                self.end += n;
                Ok(n)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted) => {
                Ok(0)
            }
            Err(e) => Err(e),
        }
    }
    /// Read what is there without waiting.
    pub fn fill_now(&mut self, s: &TcpStream) -> io::Result<usize> {
        self.room();
        let n = unsafe {
            libc::recv(
                s.as_raw_fd(),
                self.buf[self.end..].as_mut_ptr() as *mut libc::c_void,
                self.buf.len() - self.end,
                libc::MSG_DONTWAIT,
            )
        };
        if n == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed by the broker"));
        }
        if n < 0 {
            let e = io::Error::last_os_error();
            return match e.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(0),
                _ => Err(e),
            };
        }
        self.end += n as usize;
        Ok(n as usize)
    }
    pub fn data(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }
}
/// Wait until the socket is readable or `ns` have passed.
pub fn wait_readable(s: &TcpStream, ns: u64) {
    unsafe {
        let mut p = libc::pollfd { fd: s.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        let t = libc::timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
        libc::ppoll(&mut p, 1, &t, std::ptr::null());
    }
}
/// Ask the kernel for exact timers in this thread (for paced sending).
pub fn exact_timers() {
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1u64, 0, 0, 0) };
}
