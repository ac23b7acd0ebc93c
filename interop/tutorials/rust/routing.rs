//! A direct exchange: one subscriber wants errors only, another every severity but debug.

use crate::{Outcome, expect};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, options::*, types::FieldTable,
};

const EXCHANGE: &str = "tutorial.rust.direct_logs";

pub async fn run(uri: &str) -> Outcome {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Direct, ExchangeDeclareOptions::default(), FieldTable::default())
        .await?;
    let mut disk = subscribe(&channel, &["error"]).await?;
    let mut screen = subscribe(&channel, &["info", "warning", "error"]).await?;
    // the last one shows that nothing unwanted came before it
    for key in ["info", "error", "debug", "warning", "error"] {
        let options = BasicPublishOptions::default();
        channel.basic_publish(EXCHANGE.into(), key.into(), options, key.as_bytes(), BasicProperties::default()).await?.await?;
    }
    expect(&mut disk, &["error", "error"]).await?;
    expect(&mut screen, &["info", "error", "warning", "error"]).await?;
    channel.exchange_delete(EXCHANGE.into(), ExchangeDeleteOptions::default()).await?;
    connection.close(200, "bye".into()).await?;
    Ok(())
}

async fn subscribe(channel: &Channel, keys: &[&str]) -> Outcome<Consumer> {
    let queue = channel.queue_declare("".into(), QueueDeclareOptions::exclusive(), FieldTable::default()).await?;
    let queue = queue.name().clone();
    for key in keys {
        let options = QueueBindOptions::default();
        channel.queue_bind(queue.clone(), EXCHANGE.into(), (*key).into(), options, FieldTable::default()).await?;
    }
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    Ok(channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?)
}
