//! Runs the scenarios of interop/SCENARIOS.md with lapin.

mod kit;
mod scenarios;

use kit::{Fail, Kit, PATIENCE, Peer};
use lapin::uri::AMQPUri;
use std::{collections::BTreeSet, time::Duration};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Args {
    uri: Option<String>,
    only: BTreeSet<String>,
    list: bool,
    peer: String,
    restart_cmd: Option<String>,
}

fn usage(problem: &str) -> ! {
    eprintln!("{problem}");
    eprintln!(
        "usage: interop-lapin [--uri URI] [--only NN|NAME[,...]]... [--list] [--peer auto|braid|rabbitmq] [--restart-cmd CMD]"
    );
    std::process::exit(2)
}

fn args() -> Args {
    let mut args = Args {
        uri: std::env::var("BRAID_AMQP_URI").ok(),
        only: BTreeSet::new(),
        list: false,
        peer: "auto".into(),
        restart_cmd: None,
    };
    let mut rest = std::env::args().skip(1);
    while let Some(arg) = rest.next() {
        let mut value = || rest.next().unwrap_or_else(|| usage(&format!("{arg} needs a value")));
        match arg.as_str() {
            "--uri" => args.uri = Some(value()),
            "--only" => args.only.extend(value().split(',').map(|s| s.trim_start_matches('0').to_string())),
            "--list" => args.list = true,
            "--peer" => args.peer = value(),
            "--restart-cmd" => args.restart_cmd = Some(value()),
            _ => usage(&format!("unknown argument {arg}")),
        }
    }
    args
}

#[tokio::main(worker_threads = 2)]
async fn main() {
    let mut args = args();
    let all = scenarios::all();
    if args.list {
        for s in &all {
            println!("{} {}", s.number(), s.name());
        }
        return;
    }
    let Some(uri) = args.uri.take() else { usage("no --uri, and BRAID_AMQP_URI is not set") };
    let mut uri: AMQPUri = uri.parse().unwrap_or_else(|e| usage(&format!("--uri: {e}")));
    if uri.vhost.is_empty() {
        uri.vhost = "/".into(); // "amqp://host:port/" means the default vhost here, as in most other clients
    }
    let everything = args.only.is_empty();
    let chosen: Vec<_> = all
        .into_iter()
        .filter(|s| {
            let by_number = args.only.remove(s.number().trim_start_matches('0'));
            let by_name = args.only.remove(s.name());
            everything || by_number || by_name
        })
        .collect();
    if !args.only.is_empty() {
        usage(&format!("no scenario {:?}", args.only));
    }
    let seen = match look_at_peer(&uri).await {
        Ok(seen) => seen,
        Err(e) => {
            eprintln!("no broker at {}:{}: {e}", uri.authority.host, uri.authority.port);
            std::process::exit(1)
        }
    };
    let rabbit = match args.peer.as_str() {
        "auto" => !seen.braid,
        "braid" => false,
        "rabbitmq" => true,
        _ => usage("--peer is auto, braid or rabbitmq"),
    };
    eprintln!("peer {}, version {}", if rabbit { "rabbitmq" } else { "braid" }, seen.version);
    let before_4 = seen.version.split('.').next().and_then(|v| v.parse::<u32>().ok()).is_some_and(|v| v < 4);
    let peer = Peer { rabbit, rabbit_before_4: rabbit && before_4 };

    let mut good = true;
    for s in chosen {
        let kit = Kit::new(uri.clone(), peer, args.restart_cmd.clone());
        let limit = Duration::from_secs(if s.number() == "17" { 60 } else { 20 });
        let label = format!("{} {}", s.number(), s.name());
        let line = match tokio::time::timeout(limit, (s.run)(&kit)).await {
            Ok(Ok(())) => format!("ok {label}"),
            Ok(Err(Fail::Skip(why))) => format!("skip {label}: {why}"),
            Ok(Err(Fail::Bad(why))) => format!("not ok {label}: {}", why.split_whitespace().collect::<Vec<_>>().join(" ")),
            Err(_) => format!("not ok {label}: not finished after {} s", limit.as_secs()),
        };
        good &= !line.starts_with("not ok");
        kit.clean_up().await;
        println!("{line}");
    }
    std::process::exit(if good { 0 } else { 1 });
}

struct Seen {
    braid: bool,
    version: String,
}

/// lapin does not show the server-properties: read connection.start ourselves.
async fn look_at_peer(uri: &AMQPUri) -> Result<Seen, std::io::Error> {
    let connect = || async {
        let mut s = tokio::net::TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
        s.write_all(b"AMQP\0\0\x09\x01").await?;
        let mut head = [0; 7];
        s.read_exact(&mut head).await?;
        let mut start = vec![0; u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize];
        s.read_exact(&mut start).await?;
        Ok::<_, std::io::Error>(start)
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let start = loop {
        match connect().await {
            Ok(start) => break start,
            Err(e) if tokio::time::Instant::now() > deadline => return Err(e),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    };
    let find = |key: &[u8]| start.windows(key.len()).position(|w| w == key).map(|at| &start[at + key.len()..]);
    let version = find(b"\x07versionS")
        .and_then(|v| {
            let len = u32::from_be_bytes(v.get(..4)?.try_into().ok()?) as usize;
            Some(String::from_utf8_lossy(v.get(4..4 + len)?).into_owned())
        })
        .unwrap_or_default();
    Ok(Seen { braid: find(b"\x05braid").is_some(), version })
}
