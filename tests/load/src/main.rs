//! Raw AMQP 0-9-1 load program: hand-made frames over blocking sockets, one thread
//! per producer and per consumer, so that the client is not what is measured.
//! One line of JSON per run. `tests/load/compare.py` runs the cases of README's table with it.
mod measure;
use measure::*;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

fn bad(m: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, m.into())
}

// ---------- writing ----------
struct W(Vec<u8>);
impl W {
    fn method(c: u16, m: u16) -> W {
        let mut w = W(Vec::with_capacity(64));
        w.u16(c);
        w.u16(m);
        w
    }
    fn u8(&mut self, v: u8) -> &mut Self {
        self.0.push(v);
        self
    }
    fn u16(&mut self, v: u16) -> &mut Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    fn u32(&mut self, v: u32) -> &mut Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    fn u64(&mut self, v: u64) -> &mut Self {
        self.0.extend_from_slice(&v.to_be_bytes());
        self
    }
    fn ss(&mut self, s: &str) -> &mut Self {
        self.0.push(s.len() as u8);
        self.0.extend_from_slice(s.as_bytes());
        self
    }
    fn ls(&mut self, s: &[u8]) -> &mut Self {
        self.u32(s.len() as u32);
        self.0.extend_from_slice(s);
        self
    }
    fn table(&mut self, t: &Table) -> &mut Self {
        let mut b = W(Vec::new());
        for (k, v) in t {
            b.ss(k);
            match v {
                V::S(s) => {
                    b.u8(b'S').ls(s.as_bytes());
                }
                V::I(i) => {
                    b.u8(b'l').u64(*i as u64);
                }
                V::B(x) => {
                    b.u8(b't').u8(*x as u8);
                }
                V::T(t) => {
                    b.u8(b'F').table(t);
                }
            }
        }
        self.ls(&b.0)
    }
    fn frame(&self, ty: u8, ch: u16, out: &mut Vec<u8>) {
        out.push(ty);
        out.extend_from_slice(&ch.to_be_bytes());
        out.extend_from_slice(&(self.0.len() as u32).to_be_bytes());
        out.extend_from_slice(&self.0);
        out.push(0xCE);
    }
}
enum V {
    S(String),
    I(i64),
    B(bool),
    T(Table),
}
type Table = Vec<(String, V)>;

// ---------- a connection ----------
struct Conn {
    s: TcpStream,
    rd: RdBuf,
    frame_max: usize,
}
struct Frame {
    ty: u8,
    a: usize,
    b: usize, // payload is rd.buf[a..b]
}
fn next_frame(rd: &mut RdBuf) -> io::Result<Option<Frame>> {
    let d = rd.data();
    if d.len() < 7 {
        return Ok(None);
    }
    let n = u32::from_be_bytes([d[3], d[4], d[5], d[6]]) as usize;
    if d.len() < n + 8 {
        return Ok(None);
    }
    if d[n + 7] != 0xCE {
        return Err(bad("frame end missing"));
    }
    let f = Frame { ty: d[0], a: rd.start + 7, b: rd.start + 7 + n };
    rd.start += n + 8;
    Ok(Some(f))
}
fn cm(p: &[u8]) -> (u16, u16) {
    (u16::from_be_bytes([p[0], p[1]]), u16::from_be_bytes([p[2], p[3]]))
}
fn be64(p: &[u8]) -> u64 {
    u64::from_be_bytes(p[..8].try_into().unwrap())
}
fn close_text(p: &[u8]) -> String {
    let code = u16::from_be_bytes([p[4], p[5]]);
    let n = p[6] as usize;
    format!("closed by the broker: {code} {}", String::from_utf8_lossy(&p[7..7 + n]))
}
impl Conn {
    fn send(&mut self, w: &W, ch: u16) -> io::Result<()> {
        let mut o = Vec::new();
        w.frame(1, ch, &mut o);
        self.s.write_all(&o)
    }
    /// Wait for one method of the given class and id; everything else but a close is passed over.
    fn expect(&mut self, c: u16, m: u16) -> io::Result<Vec<u8>> {
        let end = now_ns() + 60_000_000_000;
        loop {
            while let Some(f) = next_frame(&mut self.rd)? {
                if f.ty == 1 {
                    let p = self.rd.buf[f.a..f.b].to_vec();
                    match cm(&p) {
                        x if x == (c, m) => return Ok(p),
                        (20, 40) | (10, 50) => return Err(bad(close_text(&p))),
                        _ => {}
                    }
                }
            }
            if now_ns() > end {
                return Err(bad(format!("no {c}.{m} within 60 s")));
            }
            self.rd.fill(&self.s)?;
        }
    }
    fn open(o: &Opt, rdcap: usize) -> io::Result<Conn> {
        let s = connect(&o.host, o.port)?;
        s.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut c = Conn { s, rd: RdBuf::new(rdcap), frame_max: 131072 };
        c.s.write_all(b"AMQP\0\0\x09\x01")?;
        c.expect(10, 10)?;
        let caps: Table = ["publisher_confirms", "consumer_cancel_notify", "basic.nack"]
            .iter()
            .map(|k| (k.to_string(), V::B(true)))
            .collect();
        let props: Table = vec![("product".into(), V::S("amqpload".into())), ("capabilities".into(), V::T(caps))];
        let mut w = W::method(10, 11);
        w.table(&props).ss("PLAIN");
        w.ls(format!("\0{}\0{}", o.user, o.pass).as_bytes()).ss("en_US");
        c.send(&w, 0)?;
        let p = c.expect(10, 30)?;
        let chmax = u16::from_be_bytes([p[4], p[5]]);
        let fm = u32::from_be_bytes([p[6], p[7], p[8], p[9]]);
        c.frame_max = if fm == 0 { 131072 } else { fm.min(131072) as usize };
        let mut w = W::method(10, 31);
        w.u16(chmax).u32(c.frame_max as u32).u16(0);
        c.send(&w, 0)?;
        let mut w = W::method(10, 40);
        w.ss(&o.vhost).ss("").u8(0);
        c.send(&w, 0)?;
        c.expect(10, 41)?;
        c.channel(1)?;
        Ok(c)
    }
    fn channel(&mut self, ch: u16) -> io::Result<()> {
        let mut w = W::method(20, 10);
        w.ss("");
        self.send(&w, ch)?;
        self.expect(20, 11).map(|_| ())
    }
    /// Close the channel and wait: everything sent before has been taken in by the broker.
    fn finish(&mut self) -> io::Result<()> {
        let mut w = W::method(20, 40);
        w.u16(200).ss("bye").u16(0).u16(0);
        self.send(&w, 1)?;
        self.expect(20, 41)?;
        let mut w = W::method(10, 50);
        w.u16(200).ss("bye").u16(0).u16(0);
        self.send(&w, 0)?;
        let _ = self.expect(10, 51);
        Ok(())
    }
}

// ---------- options ----------
#[derive(Clone)]
struct Opt {
    host: String,
    port: u64,
    user: String,
    pass: String,
    vhost: String,
    producers: u64,
    consumers: u64,
    queues: u64,
    size: usize,
    count: u64,
    persistent: bool,
    transient_queue: bool,
    qtype: String,
    window: u64,
    auto_ack: bool,
    prefetch: u64,
    ack_every: u64,
    rate: u64,
    fanout: bool,
    keep: bool,
    timeout: u64,
    prefix: String,
    pid: String,
}
fn qname(o: &Opt, i: u64) -> String {
    format!("{}.{}", o.prefix, i)
}
fn setup(o: &Opt, fresh: bool) -> io::Result<u64> {
    if fresh {
        for i in 0..o.queues {
            let mut c = Conn::open(o, 65536)?;
            let mut w = W::method(50, 40);
            w.u16(0).ss(&qname(o, i)).u8(0);
            c.send(&w, 1)?;
            let _ = c.expect(50, 41); // a missing queue may be an error to some brokers
        }
    }
    let mut c = Conn::open(o, 65536)?;
    let ex = format!("{}.fanout", o.prefix);
    if o.fanout {
        let mut w = W::method(40, 10);
        w.u16(0).ss(&ex).ss("fanout").u8(0b0010).table(&vec![]);
        c.send(&w, 1)?;
        c.expect(40, 11)?;
    }
    let mut n = 0;
    for i in 0..o.queues {
        let mut args: Table = vec![];
        if o.qtype != "classic" {
            args.push(("x-queue-type".into(), V::S(o.qtype.clone())));
        }
        let mut w = W::method(50, 10);
        w.u16(0).ss(&qname(o, i)).u8(if o.transient_queue { 0 } else { 0b10 }).table(&args);
        c.send(&w, 1)?;
        let p = c.expect(50, 11)?;
        let k = 5 + p[4] as usize;
        n += u32::from_be_bytes(p[k..k + 4].try_into().unwrap()) as u64;
        if o.fanout {
            let mut w = W::method(50, 20);
            w.u16(0).ss(&qname(o, i)).ss(&ex).ss("").u8(0).table(&vec![]);
            c.send(&w, 1)?;
            c.expect(50, 21)?;
        }
    }
    c.finish()?;
    Ok(n)
}
fn teardown(o: &Opt) -> io::Result<()> {
    let mut c = Conn::open(o, 65536)?;
    for i in 0..o.queues {
        let mut w = W::method(50, 40);
        w.u16(0).ss(&qname(o, i)).u8(0);
        c.send(&w, 1)?;
        c.expect(50, 41)?;
    }
    if o.fanout {
        let mut w = W::method(40, 20);
        w.u16(0).ss(&format!("{}.fanout", o.prefix)).u8(0);
        c.send(&w, 1)?;
        c.expect(40, 21)?;
    }
    c.finish()
}

struct Shared {
    received: AtomicU64,
    expected: u64,
    t_end: AtomicU64,
    done: AtomicBool,
    deadline: u64,
}
#[derive(Default)]
struct Out {
    n: u64,
    t_last: u64,
    lat: Hist,
    nacks: u64,
    err: Option<String>,
}

// ---------- producer ----------
fn producer(o: &Opt, id: u64, n: u64, bar: &Barrier, sh: &Shared) -> Out {
    let mut out = Out::default();
    let r = (|| -> io::Result<()> {
        let c = Conn::open(o, 65536);
        let mut c = match c {
            Ok(mut c) => {
                if o.window > 0 {
                    let mut w = W::method(85, 10);
                    w.u8(0);
                    c.send(&w, 1)?;
                    c.expect(85, 11)?;
                }
                c
            }
            Err(e) => {
                bar.wait();
                return Err(e);
            }
        };
        // one message as a template
        let mut t = Vec::new();
        let (ex, rk) =
            if o.fanout { (format!("{}.fanout", o.prefix), String::new()) } else { (String::new(), qname(o, id % o.queues)) };
        let mut w = W::method(60, 40);
        w.u16(0).ss(&ex).ss(&rk).u8(0);
        w.frame(1, 1, &mut t);
        let mut w = W(Vec::new());
        w.u16(60).u16(0).u64(o.size as u64).u16(0x1000).u8(if o.persistent { 2 } else { 1 });
        w.frame(2, 1, &mut t);
        let body: Vec<u8> = (0..o.size).map(|i| (i as u8).wrapping_mul(31)).collect();
        let mut stamp = None;
        for part in body.chunks(c.frame_max - 8) {
            if stamp.is_none() && part.len() >= 8 {
                stamp = Some(t.len() + 7);
            }
            W(part.to_vec()).frame(3, 1, &mut t);
        }
        let per = (65536 / t.len()).max(1) as u64;
        let mut batch: Vec<u8> = Vec::with_capacity(t.len() * per as usize);
        let gap = if o.rate > 0 { 1e9 * o.producers as f64 / o.rate as f64 } else { 0.0 };
        if o.rate > 0 {
            exact_timers();
        }
        let mut sent = 0u64;
        let mut confirmed = 0u64; // every tag up to this one is settled (multiples), plus singles
        let mut settled = 0u64;
        let mut times: VecDeque<u64> = VecDeque::new(); // send times of tags > confirmed
        let mut single: VecDeque<bool> = VecDeque::new();
        bar.wait();
        let t0 = now_ns() + if o.rate > 0 { (gap / o.producers as f64 * id as f64) as u64 } else { 0 };
        let mut polls = 0u64;
        while sent < n || (o.window > 0 && settled < n) {
            let now = now_ns();
            if now > sh.deadline {
                return Err(bad("deadline passed"));
            }
            let room = if o.window > 0 { o.window.saturating_sub(sent - settled) } else { u64::MAX };
            let mut k = room.min(n - sent).min(per);
            if o.rate > 0 {
                let due = if now < t0 { 0 } else { ((now - t0) as f64 / gap) as u64 + 1 };
                k = k.min(due.saturating_sub(sent));
            }
            if k > 0 {
                batch.clear();
                for i in 0..k {
                    let b = batch.len();
                    batch.extend_from_slice(&t);
                    let ts = if o.rate > 0 { t0 + ((sent + i) as f64 * gap) as u64 } else { now };
                    if let Some(p) = stamp {
                        batch[b + p..b + p + 8].copy_from_slice(&ts.to_be_bytes());
                    }
                    if o.window > 0 {
                        times.push_back(ts);
                        single.push_back(false);
                    }
                }
                c.s.write_all(&batch)?;
                sent += k;
            }
            // take in what the broker says
            if o.window > 0 {
                let full = sent - settled >= o.window || sent == n;
                if o.rate > 0 && !full {
                    let next = t0 + (sent as f64 * gap) as u64;
                    let now = now_ns();
                    if next > now {
                        wait_readable(&c.s, next - now);
                    }
                    c.rd.fill_now(&c.s)?;
                } else if full {
                    c.rd.fill(&c.s)?;
                } else {
                    c.rd.fill_now(&c.s)?;
                }
            } else {
                if o.rate > 0 {
                    let next = t0 + (sent as f64 * gap) as u64;
                    let now = now_ns();
                    if next > now {
                        wait_readable(&c.s, next - now);
                    }
                }
                polls += 1;
                if polls % 16 == 0 {
                    c.rd.fill_now(&c.s)?;
                }
            }
            let mut at = 0;
            while let Some(f) = next_frame(&mut c.rd)? {
                if f.ty != 1 {
                    continue;
                }
                let p = &c.rd.buf[f.a..f.b];
                match cm(p) {
                    (60, 80) | (60, 120) => {
                        if at == 0 {
                            at = now_ns();
                        }
                        let tag = be64(&p[4..]);
                        let multi = p[12] & 1 == 1;
                        if cm(p).1 == 120 {
                            out.nacks += 1;
                        }
                        if multi {
                            let upto = if tag == 0 { sent } else { tag };
                            while confirmed < upto && !times.is_empty() {
                                let ts = times.pop_front().unwrap();
                                if !single.pop_front().unwrap() {
                                    out.lat.rec(at.saturating_sub(ts));
                                    settled += 1;
                                }
                                confirmed += 1;
                            }
                        } else if tag > confirmed {
                            let ix = (tag - confirmed - 1) as usize;
                            if ix < times.len() && !single[ix] {
                                single[ix] = true;
                                out.lat.rec(at.saturating_sub(times[ix]));
                                settled += 1;
                            }
                            while single.front() == Some(&true) {
                                single.pop_front();
                                times.pop_front();
                                confirmed += 1;
                            }
                        }
                    }
                    (20, 40) | (10, 50) => return Err(bad(close_text(p))),
                    _ => {}
                }
            }
            out.n = sent;
        }
        if o.window == 0 {
            // a synchronous step: the broker has taken in all that was sent
            c.s.set_read_timeout(Some(Duration::from_millis(50)))?;
            out.n = sent;
            c.finish()?;
            out.t_last = now_ns();
            return Ok(());
        }
        out.t_last = now_ns();
        c.finish()
    })();
    if let Err(e) = r {
        out.err = Some(format!("producer {id}: {e}"));
    }
    out
}

// ---------- consumer ----------
fn consumer(o: &Opt, id: u64, bar: &Barrier, sh: &Shared) -> Out {
    let mut out = Out::default();
    let mut waited = false;
    let r = (|| -> io::Result<()> {
        let mut c = Conn::open(o, 262144)?;
        if !o.auto_ack {
            let mut w = W::method(60, 10);
            w.u32(0).u16(o.prefetch as u16).u8(0);
            c.send(&w, 1)?;
            c.expect(60, 11)?;
        }
        bar.wait();
        waited = true;
        let mut args: Table = vec![];
        if o.qtype == "stream" {
            args.push(("x-stream-offset".into(), V::S("first".into())));
            let _ = V::I(0);
        }
        let mut w = W::method(60, 20);
        w.u16(0).ss(&qname(o, id % o.queues)).ss("c").u8(if o.auto_ack { 0b10 } else { 0 }).table(&args);
        c.send(&w, 1)?;
        c.expect(60, 21)?;
        let mut tag = 0u64;
        let mut unacked = 0u64;
        let mut left = 0u64;
        let mut first = false;
        let mut ack = Vec::with_capacity(32);
        let mut send_ack = |s: &mut TcpStream, tag: u64| -> io::Result<()> {
            ack.clear();
            let mut w = W::method(60, 80);
            w.u64(tag).u8(1);
            w.frame(1, 1, &mut ack);
            s.write_all(&ack)
        };
        let mut stop = false;
        while !stop {
            let now = now_ns();
            let mut got = 0;
            while let Some(f) = next_frame(&mut c.rd)? {
                let p = &c.rd.buf[f.a..f.b];
                let mut complete = false;
                match f.ty {
                    3 => {
                        if first && p.len() >= 8 {
                            out.lat.rec(now.saturating_sub(be64(p)));
                        }
                        first = false;
                        left = left.saturating_sub(p.len() as u64);
                        complete = left == 0;
                    }
                    1 => match cm(p) {
                        (60, 60) => {
                            let k = 5 + p[4] as usize;
                            tag = be64(&p[k..]);
                        }
                        (20, 40) | (10, 50) => return Err(bad(close_text(p))),
                        (60, 30) => return Err(bad("consumer cancelled by the broker")),
                        _ => {}
                    },
                    2 => {
                        left = be64(&p[4..]);
                        first = true;
                        complete = left == 0;
                    }
                    _ => {}
                }
                if complete {
                    got += 1;
                    unacked += 1;
                    if !o.auto_ack && unacked >= o.ack_every {
                        send_ack(&mut c.s, tag)?;
                        unacked = 0;
                    }
                }
            }
            if got > 0 {
                out.n += got;
                let before = sh.received.fetch_add(got, SeqCst);
                if before + got >= sh.expected && before < sh.expected {
                    sh.t_end.store(now_ns(), SeqCst);
                    sh.done.store(true, SeqCst);
                }
            }
            if sh.done.load(Relaxed) || now > sh.deadline {
                stop = true;
            } else if c.rd.fill(&c.s)? == 0 && unacked > 0 && !o.auto_ack {
                send_ack(&mut c.s, tag)?;
                unacked = 0;
            }
        }
        if unacked > 0 && !o.auto_ack {
            send_ack(&mut c.s, tag)?;
        }
        c.finish()
    })();
    if !waited {
        bar.wait();
    }
    if let Err(e) = r {
        out.err = Some(format!("consumer {id}: {e}"));
    }
    out
}

fn main() {
    let a = Args::parse();
    raise_nofile();
    if a.flag("help") {
        eprintln!("see README.md beside the sources");
        return;
    }
    let o = Opt {
        host: a.str("host", "127.0.0.1"),
        port: a.num("port", 5672),
        user: a.str("user", "guest"),
        pass: a.str("pass", "guest"),
        vhost: a.str("vhost", "/"),
        producers: a.num("producers", 1),
        consumers: a.num("consumers", 1),
        queues: a.num("queues", 1).max(1),
        size: a.num("size", 100) as usize,
        count: a.num("count", 1_000_000),
        persistent: a.flag("persistent"),
        transient_queue: a.flag("transient-queue"),
        qtype: a.str("queue-type", "classic"),
        window: a.num("confirm-window", 0),
        auto_ack: a.flag("auto-ack"),
        prefetch: a.num("prefetch", 1000),
        ack_every: a.num("ack-every", 100),
        rate: a.num("rate", 0),
        fanout: a.flag("fanout"),
        keep: a.flag("keep"),
        timeout: a.num("timeout", 120),
        prefix: a.str("prefix", "load"),
        pid: a.str("pid", ""),
    };
    let mode = a.str("mode", "run");
    let mut j = Json::default();
    j.s("tool", "amqpload").s("label", &a.str("label", "")).s("mode", &mode);
    if mode == "idle" {
        let r0 = tree_usage(&o.pid);
        let t0 = now_ns();
        let mut v = Vec::new();
        let mut err = String::new();
        for _ in 0..o.count {
            match Conn::open(&o, 512) {
                Ok(c) => v.push(c),
                Err(e) => {
                    err = e.to_string();
                    break;
                }
            }
        }
        let t1 = now_ns();
        thread::sleep(Duration::from_secs(a.num("settle", 5)));
        let r1 = tree_usage(&o.pid);
        thread::sleep(Duration::from_secs(a.num("hold", 0)));
        let r2 = tree_usage(&o.pid);
        j.u("connections", v.len() as u64)
            .f("connect_per_s", v.len() as f64 / ((t1 - t0) as f64 / 1e9))
            .f("connect_cpu_ms_each", (r1.cpu_s - r0.cpu_s) * 1e3 / v.len().max(1) as f64)
            .u("rss_kb_before", r0.rss_kb)
            .u("rss_kb_after", r1.rss_kb)
            .f("rss_kb_each", (r1.rss_kb as f64 - r0.rss_kb as f64) / v.len().max(1) as f64)
            .f("hold_cpu_s", r2.cpu_s - r1.cpu_s)
            .s("error", &err)
            .print();
        return;
    }
    // publish: producers only. drain: consumers only. run: both.
    let (np, nc) = match mode.as_str() {
        "publish" => (o.producers, 0),
        "drain" => (0, o.consumers),
        _ => (o.producers, o.consumers),
    };
    let ready = match setup(&o, mode != "drain" && !a.flag("reuse")) {
        Ok(n) => n,
        Err(e) => {
            j.s("error", &format!("setup: {e}")).print();
            std::process::exit(1);
        }
    };
    let per_msg = if o.fanout { o.queues } else { 1 } * if o.qtype == "stream" { (o.consumers / o.queues).max(1) } else { 1 };
    let expected = match mode.as_str() {
        "drain" => {
            if ready > 0 && o.qtype != "stream" {
                ready
            } else {
                o.count
            }
        }
        "publish" => u64::MAX,
        _ => o.count * per_msg,
    };
    let deadline = now_ns() + o.timeout * 1_000_000_000;
    let sh = Arc::new(Shared {
        received: AtomicU64::new(0),
        expected,
        t_end: AtomicU64::new(0),
        done: AtomicBool::new(false),
        deadline,
    });
    let bar = Arc::new(Barrier::new((np + nc) as usize + 1));
    let mut hp = Vec::new();
    let mut hc = Vec::new();
    for i in 0..nc {
        let (o, b, s) = (o.clone(), bar.clone(), sh.clone());
        hc.push(thread::Builder::new().stack_size(512 << 10).spawn(move || consumer(&o, i, &b, &s)).unwrap());
    }
    for i in 0..np {
        let (o, b, s) = (o.clone(), bar.clone(), sh.clone());
        let n = o.count / np + if i < o.count % np { 1 } else { 0 };
        hp.push(thread::Builder::new().stack_size(512 << 10).spawn(move || producer(&o, i, n, &b, &s)).unwrap());
    }
    thread::sleep(Duration::from_millis(300)); // let connection set-up settle before the count starts
    let (u0, c0, m0) = (tree_usage(&o.pid), self_cpu_s(), machine_busy_s());
    bar.wait();
    let t0 = now_ns();
    let mut errs: Vec<String> = Vec::new();
    let (mut pubd, mut recvd, mut nacks, mut tpub) = (0, 0, 0, 0);
    let (mut lat, mut conf) = (Hist::default(), Hist::default());
    for h in hp {
        let x = h.join().unwrap();
        pubd += x.n;
        nacks += x.nacks;
        tpub = tpub.max(x.t_last);
        conf.merge(&x.lat);
        errs.extend(x.err);
    }
    let u_pub = tree_usage(&o.pid);
    for h in hc {
        let x = h.join().unwrap();
        recvd += x.n;
        lat.merge(&x.lat);
        errs.extend(x.err);
    }
    let t_end = match sh.t_end.load(SeqCst) {
        0 => now_ns(),
        t => t,
    };
    let (u1, c1, m1) = (tree_usage(&o.pid), self_cpu_s(), machine_busy_s());
    let psec = if tpub > t0 { (tpub - t0) as f64 / 1e9 } else { 0.0 };
    let rsec = (t_end - t0) as f64 / 1e9;
    let units = pubd.max(if np == 0 { recvd } else { 0 }).max(1) as f64;
    let bc = u1.cpu_s - u0.cpu_s;
    j.u("producers", np).u("consumers", nc).u("queues", o.queues).s("queue_type", &o.qtype);
    j.u("size", o.size as u64).s("persistent", if o.persistent { "yes" } else { "no" });
    j.u("confirm_window", o.window)
        .s("ack", if o.auto_ack { "auto" } else { "manual" })
        .u("prefetch", o.prefetch)
        .u("rate", o.rate);
    j.s("fanout", if o.fanout { "yes" } else { "no" });
    j.u("published", pubd).u("received", recvd).u("nacks", nacks);
    j.f("pub_s", psec).f("all_s", rsec);
    if np > 0 {
        j.f("pub_per_s", if psec > 0.0 { pubd as f64 / psec } else { 0.0 });
    }
    if nc > 0 {
        j.f("recv_per_s", recvd as f64 / rsec);
    }
    j.hist("lat", &lat).hist("confirm", &conf);
    if !o.pid.is_empty() {
        j.f("broker_cpu_s", bc)
            .f("broker_cpu_s_at_pub_end", u_pub.cpu_s - u0.cpu_s)
            .f("broker_cpu_s_per_million_published", bc * 1e6 / units)
            .f("broker_cores", bc / ((now_ns() - t0) as f64 / 1e9))
            .u("rss_kb_before", u0.rss_kb)
            .u("rss_kb_at_pub_end", u_pub.rss_kb)
            .u("rss_kb_after", u1.rss_kb);
        if recvd > 0 {
            j.f("broker_cpu_s_per_million_received", bc * 1e6 / recvd as f64);
        }
    }
    j.f("client_cpu_s", c1 - c0).f("other_cpu_s", (m1 - m0) - (c1 - c0) - bc);
    j.s("error", &errs.join("; ").chars().take(300).collect::<String>());
    j.print();
    if !o.keep && mode != "publish" {
        if let Err(e) = teardown(&o) {
            eprintln!("teardown: {e}");
        }
    }
}
