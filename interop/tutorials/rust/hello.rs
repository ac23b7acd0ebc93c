//! One program sends a message to a queue, another receives it.

use crate::{Outcome, expect};
use lapin::{BasicProperties, Connection, ConnectionProperties, options::*, types::FieldTable};

const QUEUE: &str = "tutorial.rust.hello";

pub async fn run(uri: &str) -> Outcome {
    let sender = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = sender.create_channel().await?;
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
    channel
        .basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), b"Hello World!", BasicProperties::default())
        .await?
        .await?;
    sender.close(200, "bye".into()).await?;

    let receiver = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = receiver.create_channel().await?;
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut consumer = channel.basic_consume(QUEUE.into(), "receiver".into(), options, FieldTable::default()).await?;
    expect(&mut consumer, &["Hello World!"]).await?;
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    receiver.close(200, "bye".into()).await?;
    Ok(())
}
