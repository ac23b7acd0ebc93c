//! The classic tutorials with lapin, each in a file of its own; this one runs them all.

mod confirms;
mod hello;
mod publish_subscribe;
mod routing;
mod rpc;
mod topics;
mod work_queues;

use lapin::Consumer;
use std::{error::Error, future::Future, time::Duration};
use tokio_stream::StreamExt;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

#[tokio::main(worker_threads = 2)]
async fn main() {
    let Some(uri) = std::env::args().nth(1) else {
        eprintln!("usage: interop-tutorials URI");
        std::process::exit(2);
    };
    let uri = uri.trim_end_matches('/'); // "amqp://host:port/" would be the vhost with the empty name
    let mut good = true;
    good &= show("hello", hello::run(uri)).await;
    good &= show("work_queue", work_queues::run(uri)).await;
    good &= show("publish_subscribe", publish_subscribe::run(uri)).await;
    good &= show("routing", routing::run(uri)).await;
    good &= show("topics", topics::run(uri)).await;
    good &= show("rpc", rpc::run(uri)).await;
    good &= show("confirms", confirms::run(uri)).await;
    std::process::exit(if good { 0 } else { 1 });
}

async fn show(name: &str, tutorial: impl Future<Output = Outcome>) -> bool {
    let outcome = tokio::time::timeout(Duration::from_secs(60), tutorial).await;
    match &outcome {
        Ok(Ok(())) => println!("ok rust {name}"),
        Ok(Err(e)) => println!("not ok rust {name}: {e}"),
        Err(_) => println!("not ok rust {name}: not finished"),
    }
    matches!(outcome, Ok(Ok(())))
}

/// The next delivery of an automatically acknowledged consumer, as text.
async fn next(consumer: &mut Consumer) -> Outcome<String> {
    let delivery = tokio::time::timeout(Duration::from_secs(10), consumer.next()).await?.ok_or("cancelled")??;
    Ok(String::from_utf8(delivery.data)?)
}

async fn expect(consumer: &mut Consumer, expected: &[&str]) -> Outcome {
    for e in expected {
        let got = next(consumer).await?;
        if got != *e {
            return Err(format!("expected {e}, got {got}").into());
        }
    }
    Ok(())
}
