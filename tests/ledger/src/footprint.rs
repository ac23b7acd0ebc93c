//! What Braid costs when it does little, and how soon it is back. Figures are printed, never judged: they belong to a
//! machine. Client and broker share it.

use crate::Arguments;
use crate::process::{Outcome, Own};
use crate::wire::Wire;
use std::net::SocketAddr;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

const MIB: f64 = 1024.0 * 1024.0;
const BODY: usize = 100;
/// Unconfirmed messages of a publisher.
const WINDOW: u64 = 5_000;

/// `count` messages of `size` bytes that carry their number, each confirmed.
fn publish(address: SocketAddr, queue: &'static str, count: u64, size: usize) -> JoinHandle<Outcome<u64>> {
    spawn(move || {
        let mut wire = Wire::connect(address)?;
        wire.confirm()?;
        let (mut sent, mut confirmed) = (0, 0);
        let mut body = vec![b'x'; size];
        while confirmed < count {
            while sent < count && sent - confirmed < WINDOW && wire.unflushed() < 64 << 10 {
                body[..8].copy_from_slice(&u64::to_be_bytes(sent));
                wire.publish(queue, &body);
                sent += 1;
            }
            wire.flush()?;
            if sent == count || sent - confirmed >= WINDOW {
                confirmed = wire.confirmed()?;
            }
        }
        Ok(confirmed)
    })
}

/// Takes `count` messages in order.
fn consume(address: SocketAddr, queue: &'static str, count: u64) -> JoinHandle<Outcome<()>> {
    spawn(move || {
        let mut wire = Wire::connect(address)?;
        wire.consume(queue, 2_000)?;
        for expected in 0..count {
            let body = wire.delivery()?;
            let number = body.first_chunk().map_or(u64::MAX, |number| u64::from_be_bytes(*number));
            if number != expected {
                return Err(format!("message {number} came where {expected} was due"));
            }
            if (expected + 1).is_multiple_of(500) || expected + 1 == count {
                wire.ack_up_to(expected + 1)?;
            }
        }
        Ok(())
    })
}

fn join<T>(handle: JoinHandle<Outcome<T>>) -> Outcome<T> {
    handle.join().map_err(|_| "a client panicked".to_owned())?
}

/// Messages a second, and the broker's CPU seconds for a million of them.
struct Pace {
    began: Instant,
    cpu: Duration,
}

impl Pace {
    fn begin(own: &Own) -> Pace {
        Pace { began: Instant::now(), cpu: own.cpu() }
    }

    fn end(self, own: &Own, what: &str, count: u64) -> f64 {
        let rate = count as f64 / self.began.elapsed().as_secs_f64();
        let cpu = (own.cpu() - self.cpu).as_secs_f64() / count as f64 * 1e6;
        println!("{what}: {rate:.0}/s, {cpu:.2} CPU-s of the broker per million");
        rate
    }
}

/// A long backlog costs disk, not memory, and drains in order about as fast as messages flow through.
pub fn backlog(arguments: &Arguments) -> Outcome<bool> {
    let count = arguments.number("count", 10_000_000)?;
    let mut own = arguments.own()?;
    own.start_and_listen()?;
    Wire::connect(own.amqp)?.declare("backlog")?;
    let hot_count = (count / 5).max(1);
    let pace = Pace::begin(&own);
    let consumer = consume(own.amqp, "backlog", hot_count);
    join(publish(own.amqp, "backlog", hot_count, BODY))?;
    join(consumer)?;
    let hot = pace.end(&own, "hot (published, confirmed, delivered, settled)", hot_count);
    std::thread::sleep(Duration::from_millis(500));
    let before = own.rss();
    let pace = Pace::begin(&own);
    join(publish(own.amqp, "backlog", count, BODY))?;
    pace.end(&own, "filling (published, confirmed)", count);
    let full = own.rss();
    println!(
        "{count} messages of {BODY} B: RSS {:.1} MiB -> {:.1} MiB, added {:.1} MiB",
        mib(before),
        mib(full),
        mib(full) - mib(before)
    );
    let pace = Pace::begin(&own);
    join(consume(own.amqp, "backlog", count))?;
    let cold = pace.end(&own, "draining in order (delivered, settled)", count);
    println!(
        "draining is {:.0} % of hot; RSS behind it {:.1} MiB, {} segment files",
        cold / hot * 100.0,
        mib(own.rss()),
        own.files()
    );
    own.remove();
    Ok(true)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / MIB
}

/// Idle durable queues: no file, no descriptor, little memory; declared and bound over 16 connections.
pub fn queues(arguments: &Arguments) -> Outcome<bool> {
    let count = arguments.number("count", 100_000)?;
    let mut own = arguments.own()?;
    own.start_and_listen()?;
    drop(Wire::connect(own.amqp)?);
    std::thread::sleep(Duration::from_millis(200));
    let (empty, files, descriptors) = (own.rss(), own.files(), own.descriptors());
    let name = |number: u64| format!("tenant-{number:06}.orders");
    let pace = Pace::begin(&own);
    on_16_connections(own.amqp, count, move |wire, number| wire.declare(&name(number)))?;
    pace.end(&own, "durable queues declared, one answer awaited at a time by each of 16 connections", count);
    std::thread::sleep(Duration::from_millis(1_500));
    let declared = own.rss();
    each("queue", declared - empty, count);
    println!("files {files} -> {}, descriptors {descriptors} -> {}", own.files(), own.descriptors());
    let pace = Pace::begin(&own);
    on_16_connections(own.amqp, count, move |wire, number| wire.bind(&name(number), "amq.direct", &name(number)))?;
    pace.end(&own, "bindings to a direct exchange, likewise", count);
    std::thread::sleep(Duration::from_millis(1_500));
    each("binding", own.rss() - declared, count);
    own.kill();
    let back = own.start_and_listen()?;
    println!("kill -9, and listening again after {} ms with RSS {:.1} MiB", back.as_millis(), mib(own.rss()));
    own.remove();
    Ok(true)
}

fn each(what: &str, bytes: u64, count: u64) {
    println!("RSS added {:.1} MiB: {:.0} bytes a {what}", mib(bytes), bytes as f64 / count as f64);
}

fn on_16_connections(
    address: SocketAddr,
    count: u64,
    call: impl Fn(&mut Wire, u64) -> Outcome<()> + Copy + Send + 'static,
) -> Outcome<()> {
    let clients: Vec<_> = (0..16)
        .map(|first| {
            spawn(move || {
                let mut wire = Wire::connect(address)?;
                (first..count).step_by(16).try_for_each(|number| call(&mut wire, number))
            })
        })
        .collect();
    clients.into_iter().try_for_each(join)
}

/// Connections that have a channel and say nothing.
pub fn idle(arguments: &Arguments) -> Outcome<bool> {
    let count = arguments.number("count", 5_000)?;
    let mut own = arguments.own()?;
    own.start_and_listen()?;
    let mut wires = (0..100).map(|_| Wire::connect(own.amqp)).collect::<Outcome<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(1));
    let before = own.rss();
    let began = Instant::now();
    for _ in 0..count {
        wires.push(Wire::connect(own.amqp)?);
    }
    println!("{count} connections with a channel, opened one after the other in {:.1} s", began.elapsed().as_secs_f64());
    std::thread::sleep(Duration::from_secs(2));
    each("connection", own.rss() - before, count);
    drop(wires);
    own.remove();
    Ok(true)
}

/// From nothing to listening, with an empty data directory each time.
pub fn start(arguments: &Arguments) -> Outcome<bool> {
    let count = arguments.number("count", 11)?;
    let (mut times, mut rss) = (Vec::new(), 0);
    for _ in 0..count {
        let mut own = arguments.own()?;
        times.push(own.start_and_listen()?.as_secs_f64() * 1e3);
        std::thread::sleep(Duration::from_millis(200));
        rss = own.rss();
        own.remove();
    }
    times.sort_by(f64::total_cmp);
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{count} empty starts until AMQP accepts: {median:.1} ms median, {worst:.1} ms worst; RSS {:.1} MiB", mib(rss));
    Ok(true)
}

/// A life that has written so much is ended before its checkpoint, which begins at 512 MiB, is done.
const FILLED_IN_A_LIFE: u64 = 120 << 20;
const FILLING_LIVES: u32 = 40;

/// `kill -9` when that much stands in the journal that no checkpoint knows, then the time to the first confirm. A checkpoint
/// comes before a life can write 1 GiB, so several lives do, each killed before.
pub fn fill(arguments: &Arguments) -> Outcome<bool> {
    let target = arguments.number("bytes", 1 << 30)?;
    let mut own = arguments.own()?;
    own.start_and_listen()?;
    Wire::connect(own.amqp)?.declare("fill")?;
    for life in 1..=FILLING_LIVES {
        let waiting = fill_and_kill(&mut own, target)?;
        let began = Instant::now();
        let listening = own.start_and_listen()?;
        let mut wire = Wire::connect(own.amqp)?;
        wire.confirm()?;
        wire.publish("fill", &[0; FILL_BODY]);
        wire.flush()?;
        wire.confirmed()?;
        println!(
            "kill {life}: {:.0} MiB in the journal not checkpointed; listening after {} ms, first confirm after {} ms, RSS {:.1} MiB",
            mib(waiting),
            listening.as_millis(),
            began.elapsed().as_millis(),
            mib(own.rss()),
        );
        if waiting >= target {
            own.remove();
            return Ok(true);
        }
    }
    Err(format!("{FILLING_LIVES} lives, and never that much without a checkpoint"))
}

const FILL_BODY: usize = 4 << 10;

/// Answers how much stood in the journal.
fn fill_and_kill(own: &mut Own, target: u64) -> Outcome<u64> {
    let journal = |own: &Own| own.figure("braid_journal_bytes").map_or(0, |bytes| bytes as u64);
    let count = 8 * FILLED_IN_A_LIFE / FILL_BODY as u64;
    let publishers = [(); 2].map(|()| publish(own.amqp, "fill", count, FILL_BODY));
    let (mut now, mut least) = (0, u64::MAX);
    while !publishers.iter().any(JoinHandle::is_finished) {
        now = journal(own);
        least = least.min(now);
        if now >= target || now - least >= FILLED_IN_A_LIFE {
            break;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    own.kill();
    // They end with their connections.
    publishers.into_iter().for_each(|publisher| drop(join(publisher)));
    Ok(now)
}
