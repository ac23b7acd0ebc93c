//! A topic exchange: `*` is one word, `#` any number of them.

use crate::{Outcome, expect};
use lapin::{
    BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ExchangeKind, options::*, types::FieldTable,
};

const EXCHANGE: &str = "tutorial.rust.topic_logs";

pub async fn run(uri: &str) -> Outcome {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel
        .exchange_declare(EXCHANGE.into(), ExchangeKind::Topic, ExchangeDeclareOptions::default(), FieldTable::default())
        .await?;
    let mut orange = subscribe(&channel, &["*.orange.*"]).await?;
    let mut lazy_or_rabbit = subscribe(&channel, &["*.*.rabbit", "lazy.#"]).await?;
    // the last one goes to both: it shows that nothing unwanted came before it
    for key in [
        "quick.orange.rabbit",
        "lazy.orange.elephant",
        "quick.orange.fox",
        "lazy.brown.fox",
        "lazy.pink.rabbit",
        "quick.brown.fox",
        "orange",
        "lazy.orange.new.rabbit",
        "lazy.orange.rabbit",
    ] {
        let options = BasicPublishOptions::default();
        channel.basic_publish(EXCHANGE.into(), key.into(), options, key.as_bytes(), BasicProperties::default()).await?.await?;
    }
    expect(&mut orange, &["quick.orange.rabbit", "lazy.orange.elephant", "quick.orange.fox", "lazy.orange.rabbit"]).await?;
    let expected = [
        "quick.orange.rabbit",
        "lazy.orange.elephant",
        "lazy.brown.fox",
        "lazy.pink.rabbit",
        "lazy.orange.new.rabbit",
        "lazy.orange.rabbit",
    ];
    expect(&mut lazy_or_rabbit, &expected).await?;
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
