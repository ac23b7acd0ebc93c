//! Keeps books about a broker that is killed again and again, and measures what Braid costs when it does little.
//!
//! ```text
//! ledger kill --braid PATH [--kills 10] [--confirmed 200000] [--producers 4] [--consumers 4] [--queues 2] [--window 500]
//!             [--life-ms 200..3000] [--seed N] [--quorum] [--dir DIR]
//! ledger kill --start-cmd CMD --kill-cmd CMD --uri URI …        the same for any other broker
//! ledger fill --braid PATH [--bytes 1GiB] [--dir DIR]           kill -9 with that much in the journal, and start again
//! ledger footprint backlog|queues|idle|start --braid PATH [--count N] [--dir DIR]
//! ```
//!
//! `kill` prints a line of JSON and a line for people, and fails if a promise was broken. The others print figures.

mod books;
mod footprint;
mod message;
mod process;
mod torment;
mod wire;

use process::{Outcome, Own, Process};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

fn main() -> ExitCode {
    match Arguments::read().and_then(|arguments| arguments.run()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("ledger: {error}");
            ExitCode::from(2)
        }
    }
}

/// Words, and `--name value` pairs.
pub struct Arguments {
    words: Vec<String>,
    named: BTreeMap<String, String>,
}

const NAMES: [&str; 15] = [
    "braid",
    "start-cmd",
    "kill-cmd",
    "uri",
    "dir",
    "kills",
    "confirmed",
    "producers",
    "consumers",
    "queues",
    "window",
    "life-ms",
    "seed",
    "bytes",
    "count",
];

impl Arguments {
    fn read() -> Outcome<Arguments> {
        let (mut words, mut named) = (Vec::new(), BTreeMap::new());
        let mut rest = std::env::args().skip(1);
        while let Some(word) = rest.next() {
            match word.strip_prefix("--") {
                None => words.push(word),
                Some("quorum") => drop(named.insert("quorum".into(), String::new())),
                Some(name) if NAMES.contains(&name) => {
                    let value = rest.next().ok_or_else(|| format!("--{name} needs a value"))?;
                    named.insert(name.to_owned(), value);
                }
                Some(_) => return Err(format!("unknown argument {word}")),
            }
        }
        Ok(Arguments { words, named })
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    pub fn number(&self, name: &str, default: u64) -> Outcome<u64> {
        let Some(text) = self.get(name) else { return Ok(default) };
        let (digits, factor) = match text.find(|c: char| !c.is_ascii_digit()) {
            Some(at) => (&text[..at], &text[at..]),
            None => (text, ""),
        };
        let factor = match factor {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(format!("--{name}: '{text}' is not a number")),
        };
        digits.parse::<u64>().map(|number| number * factor).map_err(|_| format!("--{name}: '{text}' is not a number"))
    }

    /// Our own broker, on a fresh directory.
    pub fn own(&self) -> Outcome<Own> {
        let binary = self.get("braid").ok_or("--braid PATH is missing")?;
        let dir = match self.get("dir") {
            Some(dir) => PathBuf::from(dir),
            None => std::env::temp_dir().join(format!("ledger-{}", std::process::id())),
        };
        Own::new(Path::new(binary), &dir)
    }

    fn run(&self) -> Outcome<bool> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        match *words {
            ["kill"] => self.torment(),
            ["fill"] => footprint::fill(self),
            ["footprint", "backlog"] => footprint::backlog(self),
            ["footprint", "queues"] => footprint::queues(self),
            ["footprint", "idle"] => footprint::idle(self),
            ["footprint", "start"] => footprint::start(self),
            _ => Err("kill, fill, or footprint backlog|queues|idle|start; the first page of main.rs says more".into()),
        }
    }

    fn plan(&self, uri: String) -> Outcome<torment::Plan> {
        let clock = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis() as u64);
        let life = self.get("life-ms").unwrap_or("200..3000");
        let life = life.split_once("..").and_then(|(from, to)| Some((from.parse().ok()?, to.parse().ok()?)));
        Ok(torment::Plan {
            uri,
            seed: self.number("seed", clock)?,
            kills: self.number("kills", 10)? as u32,
            confirmed: self.number("confirmed", 200_000)?,
            producers: self.number("producers", 4)? as u16,
            consumers: self.number("consumers", 4)? as u16,
            queues: self.number("queues", 2)? as usize,
            window: self.number("window", 500)? as usize,
            life_ms: life.filter(|(from, to)| from < to).ok_or("--life-ms is FROM..TO")?,
            quorum: self.get("quorum").is_some(),
        })
    }

    fn torment(&self) -> Outcome<bool> {
        let (mut process, plan) = match (self.get("start-cmd"), self.get("kill-cmd"), self.get("uri")) {
            (Some(start), Some(kill), Some(uri)) => {
                let process = Process::Foreign { start: start.to_owned(), kill: kill.to_owned() };
                (process, self.plan(uri.to_owned())?)
            }
            (None, None, None) => {
                let own = self.own()?;
                let uri = format!("amqp://guest:guest@{}/%2f", own.amqp);
                (Process::Own(own), self.plan(uri)?)
            }
            _ => return Err("--start-cmd, --kill-cmd and --uri belong together".into()),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.map_err(|error| error.to_string())?;
        let kept = runtime.block_on(torment::run(plan, &mut process));
        match (&kept, process) {
            (Ok(true), Process::Own(own)) => own.remove(),
            // The directory stays, for somebody to look at.
            (_, Process::Own(own)) => eprintln!("its data and log are in {}", own.dir.display()),
            (_, Process::Foreign { .. }) => {}
        }
        kept
    }
}
