//! Producers and consumers go on while the broker is killed and started again, and the books are kept.

use crate::books::{Books, Sitting, Sums, VIOLATIONS, Violation};
use crate::message::{Id, Random};
use crate::process::{Outcome, Process};
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::uri::AMQPUri;
use lapin::{BasicProperties, Confirmation, Connection, ConnectionProperties, PublisherConfirm};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;

/// Between two attempts to connect.
const KNOCK: Duration = Duration::from_millis(2);
/// A broker that moves nothing for so long moves nothing any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a connection to a broker that was killed may still have in hand.
const GRACE: Duration = Duration::from_millis(300);
/// What was settled this long is settled for good, with a margin.
const SETTLED: Duration = Duration::from_millis(1_300);

#[derive(Clone)]
pub struct Plan {
    pub uri: String,
    pub seed: u64,
    pub kills: u32,
    pub confirmed: u64,
    pub producers: u16,
    pub consumers: u16,
    pub queues: usize,
    /// Unconfirmed messages of one producer.
    pub window: usize,
    /// A life lasts between these, in milliseconds.
    pub life_ms: (u64, u64),
    pub quorum: bool,
}

struct Run {
    plan: Plan,
    uri: AMQPUri,
    books: Books,
    /// Producers finish.
    enough: AtomicBool,
    /// Consumers finish.
    over: AtomicBool,
}

/// Answers whether every promise was kept.
pub async fn run(plan: Plan, process: &mut Process) -> Outcome<bool> {
    let mut uri: AMQPUri = plan.uri.parse()?;
    if uri.vhost.is_empty() {
        uri.vhost = "/".into();
    }
    let books = Books::new(plan.seed as u16, plan.producers as usize, plan.queues);
    let run = Arc::new(Run { plan: plan.clone(), uri, books, enough: false.into(), over: false.into() });
    let mut random = Random(plan.seed);
    run.books.begin_life();
    process.start()?;
    run.declare().await?;
    let mut producers = JoinSet::new();
    (0..plan.producers).for_each(|number| drop(producers.spawn(run.clone().produce(number))));
    let mut consumers = JoinSet::new();
    (0..plan.consumers).for_each(|number| drop(consumers.spawn(run.clone().consume(number))));
    // Some kills meet a broker that is still recovering. The last comes when all is drained: nothing may come back.
    for _ in 1..plan.kills {
        sleep(Duration::from_millis(random.between(plan.life_ms.0, plan.life_ms.1))).await;
        run.kill_and_start(process)?;
    }
    run.confirm_enough().await?;
    run.enough.store(true, SeqCst);
    all_end(&mut producers, "producer").await?;
    run.drain().await?;
    if plan.kills > 0 {
        sleep(SETTLED).await;
        run.kill_and_start(process)?;
        run.drain().await?;
    }
    let left = run.ready().await?;
    run.over.store(true, SeqCst);
    all_end(&mut consumers, "consumer").await?;
    let sums = run.books.close();
    Ok(report(&run.plan, &run.books, &sums, left))
}

async fn all_end(tasks: &mut JoinSet<()>, who: &str) -> Outcome<()> {
    let all = async { while tasks.join_next().await.is_some() {} };
    timeout(2 * PATIENCE, all).await.map_err(|_| format!("a {who} waits for an answer that does not come"))
}

impl Run {
    fn kill_and_start(&self, process: &mut Process) -> Outcome<()> {
        self.books.end_life();
        if !process.kill()? {
            self.books.tell(Violation::Crashed, "the broker was dead before it was killed".into());
        }
        self.books.begin_life();
        process.start()
    }

    /// Waits until enough is confirmed, as long as anything is.
    async fn confirm_enough(&self) -> Outcome<()> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let now = self.books.confirmed.load(SeqCst);
            if now >= self.plan.confirmed {
                return Ok(());
            }
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > PATIENCE {
                return Err(format!("nothing is confirmed any more, after {now}"));
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn queue_name(&self, number: usize) -> String {
        format!("ledger.{:04x}.{number}", self.books.run)
    }

    /// A connection, and the life that it belongs to.
    async fn connect(&self) -> (Connection, u32) {
        loop {
            let life = self.books.life();
            let connecting = Connection::connect_uri(self.uri.clone(), ConnectionProperties::default());
            if let Ok(Ok(connection)) = timeout(Duration::from_secs(10), connecting).await
                && life == self.books.life()
            {
                return (connection, life);
            }
            sleep(KNOCK).await;
        }
    }

    /// Some calls of the client library never answer when the broker dies under them.
    async fn outlived(&self, life: u32) {
        while self.books.life() == life {
            sleep(Duration::from_millis(20)).await;
        }
        sleep(GRACE).await;
    }

    async fn declare(&self) -> Outcome<()> {
        let (connection, _) = self.connect().await;
        let channel = connection.create_channel().await.map_err(|error| error.to_string())?;
        let mut arguments = FieldTable::default();
        if self.plan.quorum {
            arguments.insert("x-queue-type".into(), lapin::types::AMQPValue::LongString("quorum".into()));
        }
        for number in 0..self.plan.queues {
            let name = self.queue_name(number);
            let declared = channel.queue_declare(name.as_str().into(), QueueDeclareOptions::durable(), arguments.clone());
            declared.await.map_err(|error| format!("{name}: {error}"))?;
        }
        Ok(())
    }

    /// Messages that wait in the queues.
    async fn ready(&self) -> Outcome<u64> {
        let (connection, _) = self.connect().await;
        let channel = connection.create_channel().await.map_err(|error| error.to_string())?;
        let mut ready = 0;
        for number in 0..self.plan.queues {
            let passive = QueueDeclareOptions { passive: true, ..Default::default() };
            let name = self.queue_name(number);
            let queue = channel.queue_declare(name.as_str().into(), passive, FieldTable::default()).await;
            ready += u64::from(queue.map_err(|error| format!("{name}: {error}"))?.message_count());
        }
        Ok(ready)
    }

    /// Until nothing is ready and nothing more comes.
    async fn drain(&self) -> Outcome<()> {
        let (mut last, mut since) = (u64::MAX, Instant::now());
        loop {
            let delivered = self.books.delivered.load(SeqCst);
            if delivered != last {
                (last, since) = (delivered, Instant::now());
            }
            if since.elapsed() > Duration::from_millis(500) {
                match self.ready().await {
                    Ok(0) => return Ok(()),
                    Ok(ready) if since.elapsed() > PATIENCE => return Err(format!("{ready} messages are not delivered")),
                    Ok(_) => {}
                    Err(error) if since.elapsed() > PATIENCE => return Err(error),
                    Err(_) => {}
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn produce(self: Arc<Self>, producer: u16) {
        while !self.enough.load(SeqCst) {
            let (connection, life) = self.connect().await;
            let mut window = VecDeque::new();
            tokio::select! {
                _ = self.publish(producer, life, &connection, &mut window) => {}
                () = self.outlived(life) => {}
            }
            // What was confirmed before the end counts; what was not is in doubt, and is never sent again.
            let mut patience = if self.books.life() == life { PATIENCE } else { GRACE };
            for (id, confirm) in window {
                let answer = timeout(patience, confirm).await;
                if answer.is_err() {
                    patience = Duration::ZERO;
                }
                self.hear(id, life, answer.ok().and_then(Result::ok));
            }
        }
    }

    async fn publish(
        &self,
        producer: u16,
        life: u32,
        connection: &Connection,
        window: &mut VecDeque<(Id, PublisherConfirm)>,
    ) -> Result<(), lapin::Error> {
        let channel = connection.create_channel().await?;
        channel.confirm_select(Default::default()).await?;
        while !self.enough.load(SeqCst) {
            let id = self.books.send(producer);
            let queue = self.queue_name(id.queue(self.plan.queues));
            let properties = BasicProperties::default().with_delivery_mode(2);
            let body = id.body();
            let sent = channel.basic_publish("".into(), queue.as_str().into(), Default::default(), &body, properties);
            window.push_back((id, sent.await?));
            while window.len() >= self.plan.window
                && let Some((id, confirm)) = window.pop_front()
            {
                self.hear(id, life, Some(confirm.await?));
            }
        }
        Ok(())
    }

    fn hear(&self, id: Id, life: u32, answer: Option<Confirmation>) {
        match answer {
            Some(Confirmation::Ack(_)) => self.books.confirm(id, life),
            Some(_) => drop(self.books.refused.fetch_add(1, SeqCst)),
            None => {}
        }
    }

    async fn consume(self: Arc<Self>, consumer: u16) {
        let mut random = Random(self.plan.seed ^ 0xc0_4503 ^ (consumer as u64) << 32);
        while !self.over.load(SeqCst) {
            let (connection, life) = self.connect().await;
            // In every second life the consumers come late, so that messages get old and queues long.
            if life.is_multiple_of(2) && !self.enough.load(SeqCst) {
                sleep(Duration::from_millis(random.between(0, 1_000))).await;
            }
            tokio::select! {
                _ = self.sit(consumer, life, &connection, &mut random) => {}
                () = self.outlived(life) => {}
            }
            if !self.over.load(SeqCst) {
                self.books.end_sitting(life);
            }
        }
    }

    async fn sit(&self, consumer: u16, life: u32, connection: &Connection, random: &mut Random) -> Result<(), lapin::Error> {
        let number = consumer as usize % self.plan.queues;
        let channel = connection.create_channel().await?;
        channel.basic_qos(300, Default::default()).await?;
        let (queue, tag) = (self.queue_name(number), format!("{consumer}"));
        let options = BasicConsumeOptions::default();
        let consuming = channel.basic_consume(queue.as_str().into(), tag.as_str().into(), options, FieldTable::default());
        let mut deliveries = consuming.await?;
        let mut sitting = Sitting::new(life, number);
        let (mut held, mut hold): (Vec<(Id, Delivery)>, u64) = (Vec::new(), 1);
        while !self.over.load(SeqCst) {
            match timeout(Duration::from_millis(20), deliveries.next()).await {
                Ok(Some(delivery)) => {
                    let delivery = delivery?;
                    if let Some(id) = self.books.deliver(&mut sitting, &delivery.data, delivery.redelivered) {
                        held.push((id, delivery));
                    }
                }
                Ok(None) => break,
                Err(_) => hold = 0,
            }
            if held.len() as u64 >= hold
                && let Some((_, last)) = held.last()
            {
                last.ack(BasicAckOptions { multiple: true }).await?;
                self.books.settle(held.drain(..).map(|(id, _)| id), life);
                hold = random.between(1, 64);
            }
        }
        Ok(())
    }
}

fn report(plan: &Plan, books: &Books, sums: &Sums, left: u64) -> bool {
    let mut restarts = books.restarts_ms();
    restarts.sort_unstable();
    let mut json = serde_json::json!({
        "seed": plan.seed,
        "kills": plan.kills,
        "sent": sums.sent,
        "confirmed": books.confirmed.load(SeqCst),
        "refused": books.refused.load(SeqCst),
        "delivered": books.delivered.load(SeqCst),
        "redelivered": books.redelivered.load(SeqCst),
        "in_doubt": sums.in_doubt,
        "in_doubt_delivered": sums.in_doubt_delivered,
        "left_in_queues": left,
        "restart_to_first_confirm_ms": restarts,
    });
    let mut told = Vec::new();
    let mut kept = left == 0;
    for (violation, name) in VIOLATIONS {
        let count = books.count(violation);
        json[name] = count.into();
        told.push(format!("{count} {name}"));
        kept &= count == 0;
    }
    println!("{json}");
    let confirmed = books.confirmed.load(SeqCst);
    let (median, worst) = (restarts.get(restarts.len() / 2), restarts.last());
    println!(
        "{} kills, {confirmed} confirmed: {}; {} in doubt, of which {} came; restart to first confirm {} ms median, {} worst",
        plan.kills,
        told.join(", "),
        sums.in_doubt,
        sums.in_doubt_delivered,
        median.copied().unwrap_or_default(),
        worst.copied().unwrap_or_default(),
    );
    kept
}
