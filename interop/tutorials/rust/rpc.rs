//! A call is a message with a reply queue and a correlation id.

use crate::Outcome;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, options::*, types::FieldTable};
use std::time::Duration;
use tokio_stream::StreamExt;

const QUEUE: &str = "tutorial.rust.rpc";

pub async fn run(uri: &str) -> Outcome {
    let server = Connection::connect(uri, ConnectionProperties::default()).await?;
    let serving = server.create_channel().await?;
    serving.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    serving.queue_declare(QUEUE.into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
    tokio::spawn(serve(serving.clone()));

    let client = Connection::connect(uri, ConnectionProperties::default()).await?;
    let calling = client.create_channel().await?;
    for (n, expected) in [0, 1, 1, 2, 3, 5, 8, 13, 21, 34].into_iter().enumerate() {
        let got = call(&calling, n).await?;
        if got != expected {
            return Err(format!("fibonacci({n}) = {got}").into());
        }
    }
    serving.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    client.close(200, "bye".into()).await?;
    server.close(200, "bye".into()).await?;
    Ok(())
}

async fn serve(channel: Channel) -> Option<()> {
    channel.basic_qos(1, BasicQosOptions::default()).await.ok()?;
    let mut requests = channel
        .basic_consume(QUEUE.into(), "server".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await
        .ok()?;
    while let Some(Ok(request)) = requests.next().await {
        let reply_to = request.properties.reply_to().clone()?;
        let id = request.properties.correlation_id().clone()?;
        let n: u64 = std::str::from_utf8(&request.data).ok()?.parse().ok()?;
        let answer = fibonacci(n).to_string();
        let properties = BasicProperties::default().with_correlation_id(id);
        channel.basic_publish("".into(), reply_to, BasicPublishOptions::default(), answer.as_bytes(), properties).await.ok()?;
        request.acker.ack(BasicAckOptions::default()).await.ok()?;
    }
    Some(())
}

async fn call(channel: &Channel, argument: usize) -> Outcome<u64> {
    let replies = channel.queue_declare("".into(), QueueDeclareOptions::exclusive(), FieldTable::default()).await?;
    let replies = replies.name().clone();
    let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut answers = channel.basic_consume(replies.clone(), "".into(), options, FieldTable::default()).await?;
    let id = format!("call {argument}");
    let properties = BasicProperties::default().with_correlation_id(id.as_str().into()).with_reply_to(replies);
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), QUEUE.into(), options, argument.to_string().as_bytes(), properties).await?.await?;
    loop {
        let answer = tokio::time::timeout(Duration::from_secs(10), answers.next()).await?.ok_or("cancelled")??;
        if answer.properties.correlation_id().as_ref().is_some_and(|i| i.as_str() == id) {
            return Ok(String::from_utf8(answer.data)?.parse()?);
        }
    }
}

fn fibonacci(n: u64) -> u64 {
    if n < 2 { n } else { fibonacci(n - 1) + fibonacci(n - 2) }
}
