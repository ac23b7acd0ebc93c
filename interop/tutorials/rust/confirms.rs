//! The broker confirms what it has taken over: one by one, and while the publisher goes on.

use crate::Outcome;
use lapin::{BasicProperties, Connection, ConnectionProperties, options::*, types::FieldTable};

pub async fn run(uri: &str) -> Outcome {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let queue = channel.queue_declare("".into(), QueueDeclareOptions::exclusive(), FieldTable::default()).await?;
    let queue = queue.name().clone();
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let publish = async |text: String| {
        let options = BasicPublishOptions::default();
        channel.basic_publish("".into(), queue.clone(), options, text.as_bytes(), BasicProperties::default()).await
    };

    for i in 0..50 {
        if !publish(format!("single {i}")).await?.await?.is_ack() {
            return Err(format!("single {i} was not confirmed").into());
        }
    }

    let mut outstanding = Vec::new();
    for i in 0..500 {
        outstanding.push(publish(format!("async {i}")).await?);
    }
    for (i, confirm) in outstanding.into_iter().enumerate() {
        if !confirm.await?.is_ack() {
            return Err(format!("async {i} was not confirmed").into());
        }
    }

    let passive = QueueDeclareOptions { passive: true, ..Default::default() };
    let ready = channel.queue_declare(queue.clone(), passive, FieldTable::default()).await?.message_count();
    if ready != 550 {
        return Err(format!("550 confirmed, {ready} in the queue").into());
    }
    connection.close(200, "bye".into()).await?;
    Ok(())
}
