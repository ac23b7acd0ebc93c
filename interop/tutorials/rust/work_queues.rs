//! Tasks in a durable queue are shared by workers that take one at a time; the task of a worker that dies is not lost.

use crate::Outcome;
use lapin::{BasicProperties, Connection, ConnectionProperties, options::*, types::FieldTable};
use std::{collections::BTreeSet, time::Duration};
use tokio_stream::StreamExt;

const QUEUE: &str = "tutorial.rust.tasks";

pub async fn run(uri: &str) -> Outcome {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    channel.queue_declare(QUEUE.into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    for i in 1..=12 {
        let persistent = BasicProperties::default().with_delivery_mode(2);
        let task = format!("task {i}");
        channel
            .basic_publish("".into(), QUEUE.into(), BasicPublishOptions::default(), task.as_bytes(), persistent)
            .await?
            .await?;
    }

    // a worker that takes its first task to the grave
    let mortal = Connection::connect(uri, ConnectionProperties::default()).await?;
    let deathbed = mortal.create_channel().await?;
    deathbed.basic_qos(1, BasicQosOptions::default()).await?;
    let mut last =
        deathbed.basic_consume(QUEUE.into(), "mortal".into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
    tokio::time::timeout(Duration::from_secs(10), last.next()).await?.ok_or("cancelled")??;
    mortal.close(200, "dead".into()).await?;

    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let mut channels = Vec::new(); // a channel that is dropped closes itself
    for worker in ["first", "second"] {
        let own = connection.create_channel().await?;
        own.basic_qos(1, BasicQosOptions::default()).await?;
        let mut tasks =
            own.basic_consume(QUEUE.into(), worker.into(), BasicConsumeOptions::default(), FieldTable::default()).await?;
        channels.push(own);
        let report = report.clone();
        tokio::spawn(async move {
            while let Some(Ok(task)) = tasks.next().await {
                let _ = report.send(String::from_utf8_lossy(&task.data).into_owned());
                if task.acker.ack(BasicAckOptions::default()).await.is_err() {
                    break;
                }
            }
        });
    }
    let mut done = BTreeSet::new();
    while done.len() < 12 {
        match tokio::time::timeout(Duration::from_secs(10), reports.recv()).await {
            Ok(Some(task)) => done.insert(task),
            _ => return Err(format!("done: {done:?}").into()),
        };
    }
    channel.queue_delete(QUEUE.into(), QueueDeleteOptions::default()).await?;
    connection.close(200, "bye".into()).await?;
    Ok(())
}
