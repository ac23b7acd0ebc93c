//! A fanout exchange copies each log line to every subscriber's own queue.

use crate::{Outcome, expect};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, options::*, types::FieldTable,
};

const EXCHANGE: &str = "tutorial.rust.logs";

pub async fn run(uri: &str) -> Outcome {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Fanout, ExchangeDeclareOptions::default(), FieldTable::default())
        .await?;
    let mut screen = subscribe(&channel, "screen").await?;
    let mut file = subscribe(&channel, "file").await?;
    let lines = ["line 1", "line 2", "line 3"];
    for line in lines {
        let options = BasicPublishOptions::default();
        channel.basic_publish(EXCHANGE.into(), "".into(), options, line.as_bytes(), BasicProperties::default()).await?.await?;
    }
    expect(&mut screen, &lines).await?;
    expect(&mut file, &lines).await?;
    channel.exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default()).await?;
    connection.close(200, "bye".into()).await?;
    Ok(())
}

async fn subscribe(channel: &Channel, tag: &str) -> Outcome<Consumer> {
    let queue = channel.queue_declare("".into(), QueueDeclareOptions::exclusive(), FieldTable::default()).await?;
    let queue = queue.name().clone();
    channel.queue_bind(queue.clone(), EXCHANGE.into(), "".into(), QueueBindOptions::default(), FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    Ok(channel.basic_consume(queue, tag.into(), options, FieldTable::default()).await?)
}
