//! The scenarios of interop/SCENARIOS.md, one function each: sNN_name.

use crate::{kit::*, table};
use lapin::{
    BasicProperties, Confirmation, ErrorKind, ExchangeKind,
    options::*,
    types::{AMQPValue, DecimalValue},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    pin::Pin,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    sync::Barrier,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

type Running<'a> = Pin<Box<dyn Future<Output = R> + Send + 'a>>;

pub struct Scenario {
    function: &'static str,
    pub run: for<'a> fn(&'a Kit) -> Running<'a>,
}

impl Scenario {
    pub fn number(&self) -> &'static str {
        &self.function[1..3]
    }
    pub fn name(&self) -> &'static str {
        &self.function[4..]
    }
}

macro_rules! scenarios {
    ($($f:ident)*) => { vec![$(Scenario { function: stringify!($f), run: |k| Box::pin($f(k)) }),*] };
}

pub fn all() -> Vec<Scenario> {
    scenarios! {
        s01_work_queue_acks_and_retry
        s02_topic_logs
        s03_dead_letter_after_ttl
        s04_dead_letter_after_three_retries
        s05_fanout_to_two_services
        s06_rpc_reply_queue
        s07_rpc_direct_reply_to
        s08_priorities
        s09_headers_routing
        s10_delayed_messages
        s11_confirms_and_mandatory_returns
        s12_transactions
        s13_exclusive_and_auto_delete
        s14_single_active_consumer_failover
        s15_prefetch_one_fairness
        s16_redelivery_order_after_consumer_dies
        s17_durable_survives_restart
        s18_retry_ladder_ttl
        s19_retry_ladder_delay
        s20_order_per_entity
        s21_consumer_timeout
        s22_errors_close_channel_not_connection
        s23_basic_get_and_counts
        s24_alternate_exchange
        s25_exchange_to_exchange
        s26_max_length_overflow
        s27_large_messages
        s28_properties_and_header_types_round_trip
        s29_many_channels
        s30_quorum_queue_delivery_limit
        s31_consumer_priority_and_cancel
        s32_nack_multiple_and_recover
        s33_queue_expires
        s34_unacked_requeued_on_close
    }
}

/// Awaits every task; the first failure is the result.
async fn join(mut tasks: JoinSet<R>) -> R {
    while let Some(done) = tasks.join_next().await {
        done.unwrap_or_else(|e| bad(format!("a task died: {e}")))?;
    }
    Ok(())
}

fn locked<T>(m: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    m.lock().unwrap_or_else(|e| e.into_inner())
}

async fn s01_work_queue_acks_and_retry(k: &Kit) -> R {
    let publisher = k.confirming().await?;
    let q = k.queue(&publisher, "tasks", table! {}).await?;
    let done = Arc::new(Mutex::new(BTreeMap::<u32, u32>::new()));
    let both_have_one = Arc::new(Barrier::new(2));
    let mut workers = JoinSet::new();
    let mut channels = Vec::new();
    for _ in 0..2 {
        let (_, ch) = k.alone().await?;
        qos(&ch, 1).await?;
        channels.push(ch.clone());
        let mut inbox = consume(&ch, &q, false).await?;
        let (done, both_have_one) = (done.clone(), both_have_one.clone());
        workers.spawn(async move {
            let mut first = true;
            loop {
                // until the scenario closes the channel
                let d = match inbox.next().await {
                    Ok(d) => d,
                    Err(_) if !inbox.ch.status().connected() => return Ok(()),
                    Err(e) => return Err(e),
                };
                if std::mem::take(&mut first) && timeout(PATIENCE, both_have_one.wait()).await.is_err() {
                    return bad("one worker got nothing");
                }
                let n: u32 = text(&d).parse().unwrap_or(0);
                let fails = n.is_multiple_of(3);
                if fails && !d.redelivered {
                    nack(&d, false, true).await?;
                    continue;
                }
                that(fails || !d.redelivered, format!("task {n} redelivered though nobody gave it back"))?;
                *locked(&done).entry(n).or_default() += 1;
                ack(&d).await?;
            }
        });
    }
    for n in 1..=20 {
        say(&publisher, "", &q, &n.to_string()).await?;
    }
    let deadline = Instant::now() + PATIENCE;
    while locked(&done).len() < 20 && Instant::now() < deadline && workers.len() == 2 {
        if let Ok(Some(early)) = timeout(Duration::from_millis(10), workers.join_next()).await {
            early.unwrap_or_else(|e| bad(e))?;
        }
    }
    for ch in channels {
        close_channel(&ch).await?;
    }
    join(workers).await?;
    same("tasks done, each how often", locked(&done).clone(), (1..=20).map(|n| (n, 1)).collect::<BTreeMap<_, _>>())?;
    same("left in the queue", ready(&publisher, &q).await?, 0)
}

async fn s02_topic_logs(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let x = k.exchange(&ch, ExchangeKind::Topic, table! {}).await?;
    let keys = ["auth.error", "auth.info", "kernel.error", "kernel.info", "auth.login.error", "auth", ""];
    let cases: [(&str, &[&str]); 3] =
        [("*.error", &["auth.error", "kernel.error"]), ("#", &keys), ("auth.*", &["auth.error", "auth.info"])];
    let mut queues = Vec::new();
    for (pattern, _) in cases {
        let q = k.queue(&ch, "logs", table! {}).await?;
        bind(&ch, &q, &x, pattern).await?;
        queues.push(q);
    }
    for key in keys {
        say(&ch, &x, key, &format!("<{key}>")).await?;
    }
    for ((pattern, expected), q) in cases.iter().zip(&queues) {
        let mut inbox = consume(&ch, q, true).await?;
        for key in *expected {
            let d = inbox.next().await?;
            same(pattern, text(&d), format!("<{key}>"))?;
            same("exchange", d.exchange.as_str(), x.as_str())?;
            same("routing key", d.routing_key.as_str(), *key)?;
        }
        same("left", ready(&ch, q).await?, 0)?;
        inbox.quiet(pattern).await?;
    }
    Ok(())
}

async fn s03_dead_letter_after_ttl(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let x = k.exchange(&ch, ExchangeKind::Direct, table! {}).await?;
    let dlx = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let dead = k.queue(&ch, "dead", table! {}).await?;
    bind(&ch, &dead, &dlx, "").await?;
    let by_queue = k.queue(&ch, "ttl", table! {"x-message-ttl" => 200, "x-dead-letter-exchange" => &dlx}).await?;
    let by_message = k.queue(&ch, "expiration", table! {"x-dead-letter-exchange" => &dlx}).await?;
    bind(&ch, &by_queue, &x, "one").await?;
    bind(&ch, &by_message, &x, "two").await?;
    let mut inbox = consume(&ch, &dead, true).await?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    say(&ch, &x, "one", "by queue").await?;
    publish(&ch, &x, "two", persistent().with_expiration("200".into()), "by message").await?;
    let mut seen = BTreeSet::new();
    for d in inbox.take(2).await? {
        let t = text(&d);
        let (q, key, original) =
            if t == "by queue" { (&by_queue, "one", None) } else { (&by_message, "two", Some("200".to_string())) };
        let list = deaths(&d)?;
        same("deaths", list.len(), 1)?;
        let death = &list[0];
        same("count", death.count(), 1)?;
        same("reason", death.str("reason"), "expired")?;
        same("queue", death.str("queue"), q.as_str())?;
        same("exchange", death.str("exchange"), x.as_str())?;
        let keys = AMQPValue::FieldArray(vec![Value::value(key)].into());
        same("routing-keys", death.get("routing-keys"), Some(&keys))?;
        match death.get("time") {
            Some(AMQPValue::Timestamp(at)) if *at + 1 >= now => {}
            other => return bad(format!("time is {other:?}")),
        }
        same("original-expiration", string(death.get("original-expiration")), original)?;
        same("first reason", string(header(&d, "x-first-death-reason")).as_deref(), Some("expired"))?;
        same("first queue", string(header(&d, "x-first-death-queue")).as_ref(), Some(q))?;
        same("first exchange", string(header(&d, "x-first-death-exchange")).as_ref(), Some(&x))?;
        same("expiration", d.properties.expiration().as_ref(), None::<&lapin::types::ShortString>)?;
        same("exchange", d.exchange.as_str(), dlx.as_str())?;
        same("routing key", d.routing_key.as_str(), key)?;
        seen.insert(t);
    }
    same("both", seen.len(), 2)?;
    same("left", (ready(&ch, &by_queue).await?, ready(&ch, &by_message).await?), (0, 0))
}

async fn s04_dead_letter_after_three_retries(k: &Kit) -> R {
    k.braid_only()?;
    for by_reject in [false, true] {
        let ch = k.confirming().await?;
        let dlx = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
        let dead = k.queue(&ch, "dead", table! {}).await?;
        bind(&ch, &dead, &dlx, "").await?;
        let q = k.queue(&ch, "work", table! {"x-max-retries" => 3, "x-dead-letter-exchange" => &dlx}).await?;
        for t in ["before", "poison", "after"] {
            say(&ch, "", &q, t).await?;
        }
        let worker = k.channel().await?;
        let mut inbox = consume(&worker, &q, false).await?;
        let mut morgue = consume(&k.channel().await?, &dead, true).await?;
        let mut flags = Vec::new();
        let mut neighbours = BTreeSet::new();
        while flags.len() < 4 || neighbours.len() < 2 {
            let d = inbox.next().await?;
            if text(&d) == "poison" {
                flags.push(d.redelivered);
                if by_reject { reject(&d, true).await? } else { nack(&d, false, true).await? }
            } else {
                that(!d.redelivered, format!("{} redelivered", text(&d)))?;
                that(neighbours.insert(text(&d)), format!("{} came twice", text(&d)))?;
                ack(&d).await?;
            }
        }
        same("redelivered flags", flags, vec![false, true, true, true])?;
        let d = morgue.next().await?;
        same("dead", text(&d), "poison")?;
        same("reason", deaths(&d)?[0].str("reason"), "delivery_limit")?;
        same("queue", deaths(&d)?[0].str("queue"), q.as_str())?;
        same("first reason", string(header(&d, "x-first-death-reason")).as_deref(), Some("delivery_limit"))?;
        inbox.quiet("after the dead letter").await?;
        morgue.quiet("after the dead letter").await?;
        close_channel(&worker).await?;
        same("left", ready(&ch, &q).await?, 0)?;
    }
    Ok(())
}

async fn s05_fanout_to_two_services(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let x = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let a = k.queue(&ch, "billing", table! {}).await?;
    let b = k.queue(&ch, "mailing", table! {}).await?;
    bind(&ch, &a, &x, "").await?;
    bind(&ch, &b, &x, "ignored").await?;
    let mut in_a = consume(&k.alone().await?.1, &a, true).await?;
    let mut in_b = consume(&k.alone().await?.1, &b, true).await?;
    let events: Vec<String> = (0..10).map(|i| format!("event {i}")).collect();
    for e in &events {
        say(&ch, &x, &format!("any.{e}"), e).await?;
    }
    same("first service", texts(&in_a.take(10).await?), events.clone())?;
    same("second service", texts(&in_b.take(10).await?), events)?;
    unbind(&ch, &a, &x, "").await?;
    say(&ch, &x, "", "last").await?;
    same("second service", text(&in_b.next().await?), "last")?;
    in_a.quiet("after unbind").await?;
    in_b.quiet("after unbind").await
}

/// An RPC server that squares numbers; what it saw as reply-to is kept.
async fn serve(k: &Kit, queue: &str) -> R<Arc<Mutex<Vec<String>>>> {
    let (_, ch) = k.alone().await?;
    let mut inbox = consume(&ch, queue, false).await?;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let reply_tos = seen.clone();
    tokio::spawn(async move {
        while let Ok(d) = inbox.next().await {
            let reply_to = d.properties.reply_to().clone().unwrap_or_else(|| "".into());
            locked(&reply_tos).push(reply_to.to_string());
            let n: u64 = text(&d).parse().unwrap_or(0);
            let mut answer = BasicProperties::default();
            if let Some(id) = d.properties.correlation_id() {
                answer = answer.with_correlation_id(id.clone());
            }
            let _ = publish(&ch, "", reply_to.as_str(), answer, &(n * n).to_string()).await;
            let _ = ack(&d).await;
        }
    });
    Ok(seen)
}

async fn call(client: &lapin::Channel, rpc: &str, reply_to: &str, replies: &mut Inbox) -> R {
    let mut expected = BTreeMap::new();
    for n in 1..=10 {
        let id = format!("call-{n}");
        let props = BasicProperties::default().with_correlation_id(id.as_str().into()).with_reply_to(reply_to.into());
        publish(client, "", rpc, props, &n.to_string()).await?;
        expected.insert(id, (n * n).to_string());
    }
    let mut got = BTreeMap::new();
    for d in replies.take(10).await? {
        let id = d.properties.correlation_id().as_ref().map(|s| s.to_string()).unwrap_or_default();
        got.insert(id, text(&d));
    }
    same("answers", got, expected)
}

async fn s06_rpc_reply_queue(k: &Kit) -> R {
    let rpc = k.queue(&k.channel().await?, "rpc", table! {}).await?;
    serve(k, &rpc).await?;
    let (_, client) = k.alone().await?;
    let replies = client.queue_declare("".into(), QueueDeclareOptions::exclusive(), table! {}).await?;
    let replies = replies.name().to_string();
    that(replies.starts_with("amq.gen-"), format!("the server-named queue is called {replies}"))?;
    let mut inbox = consume(&client, &replies, true).await?;
    call(&client, &rpc, &replies, &mut inbox).await
}

async fn s07_rpc_direct_reply_to(k: &Kit) -> R {
    const DIRECT: &str = "amq.rabbitmq.reply-to";
    let rpc = k.queue(&k.channel().await?, "rpc", table! {}).await?;
    let seen = serve(k, &rpc).await?;
    let (_, client) = k.alone().await?;
    let mut inbox = consume(&client, DIRECT, true).await?;
    call(&client, &rpc, DIRECT, &mut inbox).await?;
    let seen = locked(&seen).clone();
    same("requests", seen.len(), 10)?;
    for reply_to in seen {
        that(reply_to.starts_with("amq.rabbitmq.reply-to."), format!("the server saw reply-to {reply_to}"))?;
    }
    let mut errors = Errors::new(k).await?;
    let text = "PRECONDITION_FAILED - fast reply consumer does not exist";
    errors
        .closes_channel("reply-to without a consumer", 406, text, async |ch| {
            publish(&ch, "", &rpc, BasicProperties::default().with_reply_to(DIRECT.into()), "x").await
        })
        .await
}

async fn s08_priorities(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "prio", table! {"x-max-priority" => 10}).await?;
    let mut sent = Vec::new();
    let priorities = [Some(5), Some(1), Some(10), None, Some(0), Some(5), Some(200), Some(1), Some(9), Some(10), None];
    for (i, p) in priorities.into_iter().enumerate() {
        let t = format!("{i} at {p:?}");
        let props = match p {
            Some(p) => persistent().with_priority(p),
            None => persistent(),
        };
        publish(&ch, "", &q, props, &t).await?;
        sent.push((p.unwrap_or(0).min(10), t));
    }
    sent.sort_by_key(|(p, _)| std::cmp::Reverse(*p)); // stable
    let mut inbox = consume(&ch, &q, true).await?;
    let expected: Vec<String> = sent.into_iter().map(|(_, t)| t).collect();
    same("order", texts(&inbox.take(expected.len()).await?), expected)
}

async fn s09_headers_routing(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let x = k.exchange(&ch, ExchangeKind::Headers, table! {}).await?;
    let mut queues = Vec::new();
    for form in ["all", "any", "all-with-x", "any-with-x"] {
        let q = k.queue(&ch, form, table! {}).await?;
        let args = table! {"x-match" => form, "format" => "pdf", "kind" => "report", "x-source" => "scanner"};
        let bound = ch.queue_bind(q.as_str().into(), x.as_str().into(), "".into(), Default::default(), args).await;
        if bound.is_err() && k.peer.rabbit && form.ends_with("-with-x") {
            return Err(Fail::Skip(format!("this RabbitMQ refuses x-match {form}")));
        }
        bound?;
        queues.push((form, q));
    }
    let messages = [
        table! {"format" => "pdf", "kind" => "report"},
        table! {"format" => "pdf"},
        table! {"kind" => "report", "x-source" => "scanner"},
        table! {"x-source" => "scanner"},
        table! {"format" => "pdf", "kind" => "report", "x-source" => "scanner", "more" => 1},
        table! {"format" => "zip", "kind" => "photo", "x-source" => "web"},
        table! {},
    ];
    for (i, headers) in messages.into_iter().enumerate() {
        publish(&ch, &x, "", with_headers(headers), &(i + 1).to_string()).await?;
    }
    say(&ch, &x, "", "8").await?; // without a header table
    let expected = [&["1", "5"][..], &["1", "2", "3", "5"], &["5"], &["1", "2", "3", "4", "5"]];
    for ((form, q), expected) in queues.iter().zip(expected) {
        same(form, texts(&drain(&ch, q).await?), expected)?;
    }
    Ok(())
}

async fn s10_delayed_messages(k: &Kit) -> R {
    let x = k.plugin_exchange("x-delayed-message", table! {"x-delayed-type" => "direct"}).await?;
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "late", table! {}).await?;
    bind(&ch, &q, &x, "k").await?;
    let mut inbox = consume(&ch, &q, true).await?;
    let mut sent = BTreeMap::new();
    let mut confirms = Vec::new();
    for delay in [900, 300, 600, 0] {
        sent.insert(delay.to_string(), (Instant::now(), delay as u64));
        let props = if delay == 0 { persistent() } else { with_headers(table! {"x-delay" => delay}) };
        let body = delay.to_string();
        confirms.push(ch.basic_publish(x.as_str().into(), "k".into(), Default::default(), body.as_bytes(), props).await?);
    }
    for c in confirms {
        that(c.await?.is_ack(), "a delayed message was not acked")?;
    }
    let mut order = Vec::new();
    for _ in 0..4 {
        let t = text(&inbox.next().await?);
        let Some((at, delay)) = sent.get(&t) else { return bad(format!("what is {t:?}")) };
        not_before(*at, *delay)?;
        order.push(t);
    }
    same("order", order, ["0", "300", "600", "900"])?;
    inbox.quiet("after the last").await
}

async fn s11_confirms_and_mandatory_returns(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "confirmed", table! {}).await?;
    let x = k.exchange(&ch, ExchangeKind::Direct, table! {}).await?;
    let mut confirms = Vec::new();
    for i in 0..100 {
        let body = i.to_string();
        let sent = ch.basic_publish("".into(), q.as_str().into(), Default::default(), body.as_bytes(), persistent()).await?;
        confirms.push(sent);
    }
    for (i, c) in confirms.into_iter().enumerate() {
        same(&format!("confirm {i}"), c.await?, Confirmation::Ack(None))?;
    }
    same("in the queue", ready(&ch, &q).await?, 100)?;

    let props =
        persistent().with_content_type("text/plain".into()).with_message_id("id-1".into()).with_headers(table! {"a" => "b"});
    let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
    let sent = ch.basic_publish(x.as_str().into(), "nowhere".into(), mandatory, b"lost", props.clone()).await?;
    // lapin gives the returned message with the confirm only if the return came first
    let Confirmation::Ack(Some(returned)) = sent.await? else { return bad("no return before the ack, or no ack") };
    same("code and text", (returned.reply_code, returned.reply_text.as_str()), (312, "NO_ROUTE"))?;
    same("exchange", returned.exchange.as_str(), x.as_str())?;
    same("routing key", returned.routing_key.as_str(), "nowhere")?;
    same("properties", &returned.properties, &props)?;
    same("body", text(&returned), "lost")?;
    let verdict = publish(&ch, &x, "nowhere", persistent(), "dropped").await?;
    same("not mandatory", verdict, Confirmation::Ack(None))?;
    same("more returns", ch.wait_for_confirms().await?.len(), 0)
}

async fn s12_transactions(k: &Kit) -> R {
    let other = k.channel().await?;
    let q = k.queue(&other, "tx", table! {}).await?;
    let (_, tx) = k.alone().await?;
    tx.tx_select().await?;
    say(&tx, "", &q, "one").await?;
    say(&tx, "", &q, "two").await?;
    sleep(QUIET).await;
    same("before commit", ready(&other, &q).await?, 0)?;
    tx.tx_commit().await?;
    same("after commit", ready(&other, &q).await?, 2)?;
    say(&tx, "", &q, "three").await?;
    tx.tx_rollback().await?;
    tx.tx_commit().await?;
    same("after rollback", ready(&other, &q).await?, 2)?;

    let Some(m) = get(&tx, &q, false).await? else { return bad("nothing to get") };
    same("got", text(&m), "one")?;
    ack(&m).await?;
    tx.tx_rollback().await?;
    sleep(QUIET).await;
    same("rolled back, not redelivered", ready(&other, &q).await?, 1)?;
    close_channel(&tx).await?;
    ready_becomes(&other, &q, 2).await?;

    let (_, tx) = k.alone().await?;
    tx.tx_select().await?;
    let Some(m) = get(&tx, &q, false).await? else { return bad("nothing to get again") };
    same("got again", (text(&m).as_str(), m.redelivered), ("one", true))?;
    ack(&m).await?;
    tx.tx_commit().await?;
    close_channel(&tx).await?;
    sleep(QUIET).await;
    same("left", texts(&drain(&other, &q).await?), ["two"])
}

fn locked_text(q: &str) -> String {
    format!(
        "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{q}' in vhost '/'. It could be originally declared \
         on another connection or the exclusive property value does not match that of the original declaration."
    )
}

async fn s13_exclusive_and_auto_delete(k: &Kit) -> R {
    let mut errors = Errors::new(k).await?;
    let other = errors.c.clone();
    let (owner, own) = k.alone().await?;
    let q = k.queue_name("exclusive-and-so-long-that-the-error-is-cut");
    own.queue_declare(q.as_str().into(), QueueDeclareOptions::exclusive(), table! {}).await?;
    let locked = locked_text(&q);
    errors.closes_channel("passive declare", 405, &locked, async |ch| look(&ch, &q).await).await?;
    errors.closes_channel("consume", 405, &locked, async |ch| consume(&ch, &q, true).await).await?;
    look(&own, &q).await?;
    close(&owner).await?;
    that(!exists(&other, &q).await?, "the exclusive queue outlives its connection")?;

    let ch = other.create_channel().await?;
    let auto = k.queue_name("auto");
    ch.queue_declare(auto.as_str().into(), QueueDeclareOptions::durable().auto_delete(), table! {}).await?;
    sleep(QUIET).await;
    that(exists(&other, &auto).await?, "the auto-delete queue went before it had a consumer")?;
    let one = consume(&ch, &auto, true).await?;
    let two = consume(&ch, &auto, true).await?;
    one.cancel().await?;
    that(exists(&other, &auto).await?, "the auto-delete queue went with a consumer left")?;
    two.cancel().await?;
    that(!exists(&other, &auto).await?, "the auto-delete queue outlives its last consumer")?;

    let x = k.exchange_name("auto");
    let options = ExchangeDeclareOptions { durable: true, auto_delete: true, ..Default::default() };
    ch.exchange_declare(x.as_str().into(), ExchangeKind::Direct, options, table! {}).await?;
    let bound = k.queue(&ch, "bound", table! {}).await?;
    bind(&ch, &bound, &x, "1").await?;
    bind(&ch, &bound, &x, "2").await?;
    unbind(&ch, &bound, &x, "1").await?;
    that(exchange_exists(&other, &x).await?, "the auto-delete exchange went with a binding left")?;
    unbind(&ch, &bound, &x, "2").await?;
    that(!exchange_exists(&other, &x).await?, "the auto-delete exchange outlives its last binding")
}

async fn s14_single_active_consumer_failover(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "sac", table! {"x-single-active-consumer" => true}).await?;
    let mut one = consume(&k.alone().await?.1, &q, false).await?;
    let (second, ch2) = k.alone().await?;
    let mut two = consume(&ch2, &q, false).await?;
    let mut three = consume(&k.alone().await?.1, &q, false).await?;
    for t in ["1", "2", "3"] {
        say(&ch, "", &q, t).await?;
    }
    for d in one.take(3).await? {
        ack(&d).await?;
    }
    two.quiet("first is active").await?;
    three.quiet("first is active").await?;
    one.cancel().await?;
    for t in ["4", "5", "6"] {
        say(&ch, "", &q, t).await?;
    }
    same("second", texts(&two.take(3).await?), ["4", "5", "6"])?;
    one.quiet("second is active").await?;
    three.quiet("second is active").await?;
    close(&second).await?;
    let got = three.take(3).await?;
    same("third", texts(&got), ["4", "5", "6"])?;
    for d in &got {
        that(d.redelivered, format!("{} not marked as redelivered", text(d)))?;
        ack(d).await?;
    }
    say(&ch, "", &q, "7").await?;
    let d = three.next().await?;
    same("third", (text(&d).as_str(), d.redelivered), ("7", false))
}

async fn s15_prefetch_one_fairness(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "fair", table! {}).await?;
    let (_, slowly) = k.alone().await?;
    qos(&slowly, 1).await?;
    let (_, fastly) = k.alone().await?;
    qos(&fastly, 1).await?;
    let mut slow = consume(&slowly, &q, false).await?;
    say(&ch, "", &q, "0").await?;
    let held = slow.next().await?;
    let mut fast = consume(&fastly, &q, false).await?;
    for i in 1..10 {
        say(&ch, "", &q, &i.to_string()).await?;
    }
    for i in 1..10 {
        let d = fast.next().await?;
        same("the fast worker's next", text(&d), i.to_string())?;
        if i == 1 {
            fast.quiet("without an ack").await?;
            slow.quiet("without an ack").await?;
        }
        ack(&d).await?;
    }
    slow.quiet("all done").await?;
    fast.quiet("all done").await?;
    ack(&held).await?;
    close_channel(&slowly).await?;
    close_channel(&fastly).await?;
    same("left", ready(&ch, &q).await?, 0)
}

async fn s16_redelivery_order_after_consumer_dies(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "order", table! {}).await?;
    for i in 1..=20 {
        say(&ch, "", &q, &i.to_string()).await?;
    }
    let (dying, ch1) = k.alone().await?;
    qos(&ch1, 10).await?;
    let mut first = consume(&ch1, &q, false).await?;
    let held = first.take(10).await?;
    ack(&held[2]).await?;
    ack(&held[4]).await?;
    first.take(2).await?; // the credit of the two acked brings 11 and 12
    close(&dying).await?;
    let mut second = consume(&k.alone().await?.1, &q, true).await?;
    let expected: Vec<_> = (1..=20).filter(|i| ![3, 5].contains(i)).map(|i: u32| (i.to_string(), i <= 12)).collect();
    let got: Vec<_> = second.take(18).await?.iter().map(|d| (text(d), d.redelivered)).collect();
    same("order and redelivered", got, expected)
}

async fn s17_durable_survives_restart(k: &Kit) -> R {
    let Some(restart) = &k.restart_cmd else { return Err(Fail::Skip("no --restart-cmd".into())) };
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "durable", table! {}).await?;
    let x = k.exchange(&ch, ExchangeKind::Topic, table! {}).await?;
    bind(&ch, &q, &x, "a.*").await?;
    let weak_x = k.exchange_name("weak");
    ch.exchange_declare(weak_x.as_str().into(), ExchangeKind::Direct, Default::default(), table! {}).await?;
    let weak_q = k.queue_name("weak");
    let (_, own) = k.alone().await?;
    if let Err(e) = own.queue_declare(weak_q.as_str().into(), QueueDeclareOptions::default(), table! {}).await {
        that(k.peer.rabbit, format!("a non-durable queue was refused: {e}"))?;
    }
    let props =
        persistent().with_message_id("m".into()).with_timestamp(1_700_000_000).with_headers(table! {"n" => 7, "s" => "text"});
    for i in 0..50 {
        publish(&ch, &x, "a.b", props.clone(), &format!("kept {i}")).await?;
        publish(&ch, &x, "a.b", BasicProperties::default().with_delivery_mode(1), &format!("lost {i}")).await?;
    }

    let mut command = tokio::process::Command::new("sh");
    command.arg("-c").arg(restart).stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    match command.status().await {
        Ok(status) => that(status.success(), format!("--restart-cmd: {status}"))?,
        Err(e) => return bad(format!("--restart-cmd: {e}")),
    }

    let (c, after) = k.alone().await?;
    that(!exists(&c, &weak_q).await?, "the non-durable queue is still there")?;
    that(!exchange_exists(&c, &weak_x).await?, "the non-durable exchange is still there")?;
    that(exchange_exists(&c, &x).await?, "the durable exchange is gone")?;
    same("ready", ready(&after, &q).await?, 50)?;
    after.confirm_select(Default::default()).await?;
    say(&after, &x, "a.c", "new").await?;
    let mut inbox = consume(&after, &q, true).await?;
    for i in 0..50 {
        let d = inbox.next().await?;
        same("message", text(&d), format!("kept {i}"))?;
        same("properties", &d.properties, &props)?;
        same("exchange and key", (d.exchange.as_str(), d.routing_key.as_str()), (x.as_str(), "a.b"))?;
    }
    same("through the old binding", text(&inbox.next().await?), "new")?;
    inbox.quiet("after the last").await
}

async fn s18_retry_ladder_ttl(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let retry = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let work = k.queue(&ch, "work", table! {"x-dead-letter-exchange" => &retry}).await?;
    let args = table! {"x-message-ttl" => 100, "x-dead-letter-exchange" => "", "x-dead-letter-routing-key" => &work};
    let wait = k.queue(&ch, "wait", args).await?;
    bind(&ch, &wait, &retry, "").await?;
    let mut inbox = consume(&ch, &work, false).await?;
    say(&ch, "", &work, "job").await?;
    for round in 0..2 {
        let d = inbox.next().await?;
        let so_far = if header(&d, "x-death").is_none() { 0 } else { deaths(&d)?.len() };
        same("deaths so far", so_far, round * 2)?;
        reject(&d, false).await?;
    }
    let d = inbox.next().await?;
    let list: Vec<_> = deaths(&d)?.iter().map(|d| (d.str("queue"), d.str("reason"), d.count())).collect();
    let expected = vec![(wait.clone(), "expired".to_string(), 2), (work.clone(), "rejected".to_string(), 2)];
    same("x-death", list, expected)?;
    same("first reason", string(header(&d, "x-first-death-reason")).as_deref(), Some("rejected"))?;
    same("first queue", string(header(&d, "x-first-death-queue")).as_ref(), Some(&work))?;
    ack(&d).await?;
    inbox.quiet("after the ack").await?;
    inbox.cancel().await?;
    same("left", (ready(&ch, &work).await?, ready(&ch, &wait).await?), (0, 0))
}

async fn s19_retry_ladder_delay(k: &Kit) -> R {
    let x = k.plugin_exchange("x-delayed-message", table! {"x-delayed-type" => "direct"}).await?;
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "work", table! {}).await?;
    bind(&ch, &q, &x, "job").await?;
    let mut inbox = consume(&ch, &q, false).await?;
    publish(&ch, &x, "job", with_headers(table! {"attempt" => 1}), "job").await?;
    let delays = [0, 200, 400];
    let mut sent = Instant::now();
    for attempt in 1..=3 {
        let d = inbox.next().await?;
        same("attempt", integer(header(&d, "attempt")), Some(attempt.into()))?;
        if attempt > 1 {
            not_before(sent, delays[attempt as usize - 1] as u64)?;
        }
        if attempt < 3 {
            sent = Instant::now();
            let headers = table! {"attempt" => attempt + 1, "x-delay" => delays[attempt as usize]};
            publish(&ch, &x, "job", with_headers(headers), &text(&d)).await?;
        }
        ack(&d).await?;
    }
    inbox.quiet("after the third").await?;
    inbox.cancel().await?;
    same("left", ready(&ch, &q).await?, 0)
}

async fn s20_order_per_entity(k: &Kit) -> R {
    let x = k.plugin_exchange("x-consistent-hash", table! {}).await?;
    let ch = k.confirming().await?;
    // entity -> (shard, consumer, event) in order of arrival
    type Seen = BTreeMap<String, Vec<(usize, usize, u32)>>;
    let seen = Arc::new(Mutex::new(Seen::new()));
    let mut workers = JoinSet::new();
    for shard in 0..3 {
        let q = k.queue(&ch, "shard", table! {"x-single-active-consumer" => true}).await?;
        bind(&ch, &q, &x, "1").await?;
        for worker in 0..2 {
            let (_, c) = k.alone().await?;
            qos(&c, 5).await?;
            let mut inbox = consume(&c, &q, false).await?;
            let seen = seen.clone();
            workers.spawn(async move {
                while let Ok(d) = inbox.next().await {
                    let t = text(&d);
                    let (entity, event) = t.split_once(' ').unwrap_or((&t, ""));
                    locked(&seen).entry(entity.into()).or_default().push((shard, worker, event.parse().unwrap_or(99)));
                    ack(&d).await?;
                }
                R::Ok(())
            });
        }
    }
    let mut confirms = Vec::new();
    for event in 0..10 {
        for entity in 0..30 {
            let (key, body) = (format!("entity-{entity}"), format!("entity-{entity} {event}"));
            let sent =
                ch.basic_publish(x.as_str().into(), key.into(), Default::default(), body.as_bytes(), persistent()).await?;
            confirms.push(sent);
        }
    }
    for c in confirms {
        that(c.await?.is_ack(), "an event was not acked")?;
    }
    let arrived = || locked(&seen).values().map(Vec::len).sum::<usize>();
    let deadline = Instant::now() + PATIENCE;
    while arrived() < 300 && Instant::now() < deadline {
        sleep(Duration::from_millis(10)).await;
    }
    sleep(QUIET).await;
    workers.abort_all();
    same("events", arrived(), 300)?;
    let seen = locked(&seen).clone();
    same("entities", seen.len(), 30)?;
    for (entity, list) in seen {
        let (shard, worker, _) = list[0];
        let expected: Vec<_> = (0..10).map(|event| (shard, worker, event)).collect();
        same(&format!("{entity}: (queue, consumer, event)"), list, expected)?;
    }
    Ok(())
}

async fn s21_consumer_timeout(k: &Kit) -> R {
    k.braid_only()?;
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "timeout", table! {"x-consumer-timeout" => 1000}).await?;
    let (_, hung) = k.alone().await?;
    let mut first = consume(&hung, &q, false).await?;
    let sent = Instant::now();
    say(&ch, "", &q, "job").await?;
    let held = first.next().await?;
    that(!held.redelivered, "redelivered at the first worker")?;
    let mut second = consume(&k.alone().await?.1, &q, false).await?;
    let d = second.next().await?;
    not_before(sent, 1000)?;
    same("at the second worker", (text(&d).as_str(), d.redelivered), ("job", true))?;
    ack(&d).await?;
    first.cancelled().await?; // lapin declares consumer_cancel_notify
    same("ready, asked on the first worker's channel", ready(&hung, &q).await?, 0)
}

async fn s22_errors_close_channel_not_connection(k: &Kit) -> R {
    let mut e = Errors::new(k).await?;
    let bystander = e.c.create_channel().await?;
    let ch = e.c.create_channel().await?;
    let missing = fresh("missing");
    let no_queue = format!("NOT_FOUND - no queue '{missing}' in vhost '/'");
    let no_exchange = format!("NOT_FOUND - no exchange '{missing}' in vhost '/'");
    let q = k.queue(&ch, "q", table! {}).await?;
    let the_queue = format!("queue '{q}' in vhost '/'");
    let x = k.exchange(&ch, ExchangeKind::Direct, table! {}).await?;
    let declare = async |ch: lapin::Channel, name: &str, options, args| ch.queue_declare(name.into(), options, args).await;
    let durable = QueueDeclareOptions::durable;

    e.closes_channel("passive declare of a missing queue", 404, &no_queue, async |ch| look(&ch, &missing).await).await?;
    e.closes_channel("passive declare of a missing exchange", 404, &no_exchange, async |ch| look_x(&ch, &missing).await)
        .await?;
    e.closes_channel("publish to a missing exchange", 404, &no_exchange, async |ch| say(&ch, &missing, "", "x").await).await?;
    e.closes_channel("consume from a missing queue", 404, &no_queue, async |ch| consume(&ch, &missing, true).await).await?;
    e.closes_channel("bind to a missing exchange", 404, &no_exchange, async |ch| bind(&ch, &q, &missing, "").await).await?;
    let text =
        format!("PRECONDITION_FAILED - inequivalent arg 'durable' for {the_queue}: received 'false' but current is 'true'");
    e.closes_channel("redeclare as not durable", 406, &text, async |ch| {
        declare(ch, &q, QueueDeclareOptions::default(), table! {}).await
    })
    .await?;
    let text = format!(
        "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for {the_queue}: received the value '10' of type 'signedint' \
         but current is none"
    );
    e.closes_channel("redeclare with x-max-length", 406, &text, async |ch| {
        declare(ch, &q, durable(), table! {"x-max-length" => 10}).await
    })
    .await?;
    let text = format!(
        "PRECONDITION_FAILED - inequivalent arg 'type' for exchange '{x}' in vhost '/': received 'fanout' but current is 'direct'"
    );
    e.closes_channel("redeclare an exchange as fanout", 406, &text, async |ch| {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        ch.exchange_declare(x.as_str().into(), ExchangeKind::Fanout, options, table! {}).await
    })
    .await?;
    let negative = k.queue_name("negative");
    let text = format!(
        "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '{negative}' in vhost '/': {{value_negative,-10}}"
    );
    e.closes_channel("x-message-ttl -10", 406, &text, async |ch| {
        declare(ch, &negative, durable(), table! {"x-message-ttl" => -10}).await
    })
    .await?;
    let text = "PRECONDITION_FAILED - unknown delivery tag 5";
    e.closes_channel("unknown delivery tag", 406, text, async |ch| ch.basic_ack(5, Default::default()).await).await?;
    let user = consume(&ch, &q, false).await?;
    let text = format!("PRECONDITION_FAILED - {the_queue} in use");
    e.closes_channel("delete if-unused", 406, &text, async |ch| {
        ch.queue_delete(q.as_str().into(), QueueDeleteOptions { if_unused: true, ..Default::default() }).await
    })
    .await?;
    user.cancel().await?;
    ch.confirm_select(Default::default()).await?;
    say(&ch, "", &q, "x").await?;
    let text = format!("PRECONDITION_FAILED - {the_queue} not empty");
    e.closes_channel("delete if-empty", 406, &text, async |ch| {
        ch.queue_delete(q.as_str().into(), QueueDeleteOptions { if_empty: true, ..Default::default() }).await
    })
    .await?;
    let text = "PRECONDITION_FAILED - invalid expiration 'foo': no_integer";
    e.closes_channel("expiration foo", 406, text, async |ch| {
        publish(&ch, "", &q, BasicProperties::default().with_expiration("foo".into()), "x").await
    })
    .await?;
    let reserved = format!("amq.{q}");
    let text = format!("ACCESS_REFUSED - queue name '{reserved}' contains reserved prefix 'amq.*'");
    e.closes_channel("reserved name", 403, &text, async |ch| declare(ch, &reserved, durable(), table! {}).await).await?;
    let text = "ACCESS_REFUSED - operation not permitted on the default exchange";
    e.closes_channel("bind to the default exchange", 403, text, async |ch| bind(&ch, &q, "", "key").await).await?;
    let alone = k.queue(&ch, "alone", table! {}).await?;
    let exclusive = BasicConsumeOptions { exclusive: true, no_ack: true, ..Default::default() };
    let _only = ch.basic_consume(alone.as_str().into(), "".into(), exclusive, table! {}).await?;
    let text = format!("ACCESS_REFUSED - queue '{alone}' in vhost '/' in exclusive use");
    e.closes_channel("exclusive consumer", 403, &text, async |ch| consume(&ch, &alone, true).await).await?;
    let locked = k.queue_name("locked");
    let (_, owner) = k.alone().await?;
    owner.queue_declare(locked.as_str().into(), QueueDeclareOptions::exclusive(), table! {}).await?;
    e.closes_channel("another's exclusive queue", 405, &locked_text(&locked), async |ch| {
        declare(ch, &locked, QueueDeclareOptions::exclusive(), table! {}).await
    })
    .await?;
    if !k.peer.rabbit_before_4 {
        let odd = k.exchange_name("odd");
        let text = "PRECONDITION_FAILED - unknown exchange type 'x-nope'";
        e.closes_channel("unknown exchange type", 406, text, async |ch| {
            let kind = ExchangeKind::Custom("x-nope".into());
            ch.exchange_declare(odd.as_str().into(), kind, Default::default(), table! {}).await
        })
        .await?;
    }
    same("bystander", ready(&bystander, &q).await?, 1)?;
    same("bystander", texts(&drain(&bystander, &q).await?), ["x"])
}

async fn s23_basic_get_and_counts(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "counts", table! {}).await?;
    that(get(&ch, &q, true).await?.is_none(), "a message in the empty queue")?;
    for i in 0..5 {
        say(&ch, "", &q, &i.to_string()).await?;
    }
    let Some(m) = get(&ch, &q, false).await? else { return bad("nothing to get") };
    same("message count", m.message_count, 4)?;
    same("body and redelivered", (text(&m).as_str(), m.redelivered), ("0", false))?;
    same("exchange and key", (m.exchange.as_str(), m.routing_key.as_str()), ("", q.as_str()))?;
    same("tag", m.delivery_tag, 1)?;
    let seen = look(&k.channel().await?, &q).await?;
    same("ready and consumers", (seen.message_count(), seen.consumer_count()), (4, 0))?;
    let two = k.channel().await?;
    qos(&two, 1).await?;
    let mut a = consume(&two, &q, false).await?;
    let mut b = consume(&two, &q, false).await?;
    a.next().await?;
    b.next().await?;
    let seen = ch.queue_declare(q.as_str().into(), QueueDeclareOptions::durable(), table! {}).await?;
    same("ready and consumers, two unacked more", (seen.message_count(), seen.consumer_count()), (2, 2))?;
    close_channel(&two).await?;
    ready_becomes(&ch, &q, 4).await?;
    nack(&m, false, true).await?;
    ready_becomes(&ch, &q, 5).await?;
    let Some(m) = get(&ch, &q, false).await? else { return bad("nothing to get again") };
    same("body and redelivered", (text(&m).as_str(), m.redelivered), ("0", true))?;
    ack(&m).await?;
    same("purged", ch.queue_purge(q.as_str().into(), Default::default()).await?, 4)?;
    same("purged again", ch.queue_purge(q.as_str().into(), Default::default()).await?, 0)?;
    say(&ch, "", &q, "x").await?;
    say(&ch, "", &q, "y").await?;
    same("deleted with", ch.queue_delete(q.as_str().into(), Default::default()).await?, 2)?;
    same("deleted again", ch.queue_delete(q.as_str().into(), Default::default()).await?, 0)?;
    Ok(ch.exchange_delete(fresh("missing").into(), Default::default()).await?)
}

async fn s24_alternate_exchange(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let alternate = k.exchange(&ch, ExchangeKind::Topic, table! {}).await?;
    let x = k.exchange(&ch, ExchangeKind::Direct, table! {"alternate-exchange" => &alternate}).await?;
    let q = k.queue(&ch, "routed", table! {}).await?;
    let rest = k.queue(&ch, "rest", table! {}).await?;
    bind(&ch, &q, &x, "known").await?;
    bind(&ch, &rest, &alternate, "other.#").await?;
    let mandatory = async |key: &str, body: &str| {
        let options = BasicPublishOptions { mandatory: true, ..Default::default() };
        R::Ok(ch.basic_publish(x.as_str().into(), key.into(), options, body.as_bytes(), persistent()).await?.await?)
    };
    same("routed", mandatory("known", "1").await?, Confirmation::Ack(None))?;
    same("by the alternate", mandatory("other.a", "2").await?, Confirmation::Ack(None))?;
    let Confirmation::Ack(Some(returned)) = mandatory("lost", "3").await? else { return bad("3 was not returned") };
    same("code and text", (returned.reply_code, returned.reply_text.as_str()), (312, "NO_ROUTE"))?;
    same("exchange and key", (returned.exchange.as_str(), returned.routing_key.as_str()), (x.as_str(), "lost"))?;
    same("routed", texts(&drain(&ch, &q).await?), ["1"])?;
    let others = drain(&ch, &rest).await?;
    same("through the alternate", texts(&others), ["2"])?;
    same("exchange and key", (others[0].exchange.as_str(), others[0].routing_key.as_str()), (x.as_str(), "other.a"))
}

async fn s25_exchange_to_exchange(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let topic = k.exchange(&ch, ExchangeKind::Topic, table! {}).await?;
    let fanout = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let q = k.queue(&ch, "q", table! {}).await?;
    bind_x(&ch, &fanout, &topic, "a.*").await?;
    bind(&ch, &q, &fanout, "").await?;
    say(&ch, &topic, "a.b", "1").await?;
    say(&ch, &topic, "b.b", "no").await?;
    let got = drain(&ch, &q).await?;
    same("through both", texts(&got), ["1"])?;
    same("exchange", got[0].exchange.as_str(), topic.as_str())?;
    bind_x(&ch, &topic, &fanout, "").await?; // a cycle
    bind(&ch, &q, &topic, "a.#").await?; // a second way
    say(&ch, &topic, "a.c", "2").await?;
    say(&ch, &fanout, "a.d", "3").await?;
    same("once each", texts(&drain(&ch, &q).await?), ["2", "3"])?;
    unbind(&ch, &q, &topic, "a.#").await?;
    ch.exchange_unbind(fanout.as_str().into(), topic.as_str().into(), "a.*".into(), Default::default(), table! {}).await?;
    say(&ch, &topic, "a.e", "no more").await?;
    say(&ch, &fanout, "a.f", "4").await?;
    same("after unbind", texts(&drain(&ch, &q).await?), ["4"])
}

async fn s26_max_length_overflow(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let dlx = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let dead = k.queue(&ch, "dead", table! {}).await?;
    bind(&ch, &dead, &dlx, "").await?;
    // one after the other, each after the verdict on the one before: + for ack, - for nack
    let verdicts = async |queue: &str, bodies: &[&str]| {
        let mut verdicts = String::new();
        for t in bodies {
            verdicts.push(if publish(&ch, "", queue, persistent(), t).await?.is_ack() { '+' } else { '-' });
        }
        R::Ok(verdicts)
    };

    let drop = k.queue(&ch, "drop", table! {"x-max-length" => 3, "x-dead-letter-exchange" => &dlx}).await?;
    same("drop-head confirms", verdicts(&drop, &["1", "2", "3", "4", "5"]).await?, "+++++")?;
    for expected in ["1", "2"] {
        let d = wait_for(&ch, &dead).await?;
        same("drop-head, dropped", text(&d), expected)?;
        same("reason", deaths(&d)?[0].str("reason"), "maxlen")?;
        same("queue", deaths(&d)?[0].str("queue"), drop.as_str())?;
    }
    same("drop-head, kept", texts(&drain(&ch, &drop).await?), ["3", "4", "5"])?;

    let args = table! {"x-max-length" => 3, "x-overflow" => "reject-publish", "x-dead-letter-exchange" => &dlx};
    let rejecting = k.queue(&ch, "reject", args).await?;
    same("reject-publish confirms", verdicts(&rejecting, &["1", "2", "3", "4"]).await?, "+++-")?;
    same("reject-publish, kept", texts(&drain(&ch, &rejecting).await?), ["1", "2", "3"])?;
    same("room again", verdicts(&rejecting, &["5"]).await?, "+")?;
    sleep(QUIET).await;
    same("reject-publish dead-letters nothing", ready(&ch, &dead).await?, 0)?;

    let args = table! {"x-max-length" => 3, "x-overflow" => "reject-publish-dlx", "x-dead-letter-exchange" => &dlx};
    let burying = k.queue(&ch, "rejectdlx", args).await?;
    same("reject-publish-dlx confirms", verdicts(&burying, &["1", "2", "3", "4"]).await?, "+++-")?;
    let d = wait_for(&ch, &dead).await?;
    same("reject-publish-dlx, dead", text(&d), "4")?;
    same("reason", deaths(&d)?[0].str("reason"), "maxlen")?;
    same("reject-publish-dlx, kept", texts(&drain(&ch, &burying).await?), ["1", "2", "3"])?;

    let bytes = k.queue(&ch, "bytes", table! {"x-max-length-bytes" => 10}).await?;
    same("bytes, confirms", verdicts(&bytes, &["aaaa", "bbbb", "cccccc"]).await?, "+++")?;
    ready_becomes(&ch, &bytes, 2).await?;
    same("bytes, kept", texts(&drain(&ch, &bytes).await?), ["bbbb", "cccccc"])
}

async fn s27_large_messages(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "large", table! {}).await?;
    const FRAME: usize = 131_064;
    let mut state = 27u32; // a small generator: the bytes must only not repeat by frames
    let mut body = |size: usize| -> Vec<u8> {
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .take(size)
        .collect()
    };
    let sizes = [0, 1, FRAME - 1, FRAME, FRAME + 1, 2 * FRAME, 2 * FRAME + 1, 4 << 20];
    let bodies: Vec<Vec<u8>> = sizes.into_iter().map(&mut body).collect();
    for b in &bodies {
        let sent = ch.basic_publish("".into(), q.as_str().into(), Default::default(), b, persistent()).await?;
        that(sent.await?.is_ack(), "not acked")?;
    }
    let mut inbox = consume(&k.alone().await?.1, &q, true).await?;
    for b in &bodies {
        let d = inbox.next().await?;
        that(d.data == *b, format!("sent {} bytes, got {} or others", b.len(), d.data.len()))?;
    }
    inbox.cancel().await?;
    let largest = &bodies[bodies.len() - 1];
    let sent = ch.basic_publish("".into(), q.as_str().into(), Default::default(), largest, persistent()).await?;
    sent.await?;
    let Some(m) = get(&ch, &q, true).await? else { return bad("nothing to get") };
    that(m.data == *largest, "the largest differs by get")
}

async fn s28_properties_and_header_types_round_trip(k: &Kit) -> R {
    use AMQPValue::*;
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "props", table! {}).await?;
    let nested = table! {"a" => 1, "b" => FieldTable(table! {"c" => FieldArray(vec![LongLongInt(1), "two".value(), Double(3.0)].into())})};
    let mixed = vec![
        LongInt(1),
        LongLongInt(2),
        ShortInt(3),
        ShortShortInt(4),
        "five".value(),
        Double(6.5),
        Boolean(false),
        Timestamp(7),
        FieldArray(Default::default()),
        FieldTable(Default::default()),
        Void,
    ];
    let headers = table! {
        "true" => true,
        "false" => false,
        "byte-min" => ShortShortInt(i8::MIN),
        "byte-max" => ShortShortInt(i8::MAX),
        "ubyte-max" => ShortShortUInt(u8::MAX),
        "short-min" => ShortInt(i16::MIN),
        "short-max" => ShortInt(i16::MAX),
        "ushort-max" => ShortUInt(u16::MAX),
        "int-min" => LongInt(i32::MIN),
        "int-max" => LongInt(i32::MAX),
        "uint-max" => LongUInt(u32::MAX),
        "long-min" => LongLongInt(i64::MIN),
        "long-max" => LongLongInt(i64::MAX),
        "float" => Float(1.5),
        "double" => Double(std::f64::consts::PI),
        "decimal" => DecimalValue(self::DecimalValue { scale: 3, value: 123_456_789 }),
        "string" => "grüße 東京 🐇",
        "string-empty" => "",
        "string-long" => &"x".repeat(70_000),
        "string-not-utf8" => LongString(vec![0xff, 0, 0xfe].into()),
        "timestamp" => Timestamp(1_700_000_000),
        "bytes" => ByteArray(vec![0, 1, 255, 127, 128].into()),
        "null" => Void,
        "table" => FieldTable(nested),
        "table-empty" => FieldTable(Default::default()),
        "list" => FieldArray(mixed.into()),
        "list-empty" => FieldArray(Default::default()),
        "k".repeat(128) => "long key",
    };
    let full = BasicProperties::default()
        .with_content_type("application/json".into())
        .with_content_encoding("gzip".into())
        .with_headers(headers.clone())
        .with_delivery_mode(2)
        .with_priority(7)
        .with_correlation_id("c".repeat(255).into())
        .with_reply_to("reply".into())
        .with_expiration("3600000".into())
        .with_message_id("id".into())
        .with_timestamp(1_234_567_890)
        .with_type("type".into())
        .with_user_id("guest".into())
        .with_app_id("äpp".into());
    let empty = BasicProperties::default().with_headers(Default::default()).with_content_type("".into());
    let bare = BasicProperties::default();
    let mut inbox = consume(&ch, &q, true).await?;
    publish(&ch, "", &q, full.clone(), "full").await?;
    let d = inbox.next().await?;
    for (name, sent) in headers.inner() {
        same(&format!("header {name}"), header(&d, name.as_str()), Some(sent))?;
    }
    same("properties", &d.properties, &full)?;
    for props in [empty, bare] {
        publish(&ch, "", &q, props.clone(), "little").await?;
        same("properties", &inbox.next().await?.properties, &props)?;
    }
    Ok(())
}

async fn s29_many_channels(k: &Kit) -> R {
    // lapin chooses the numbers: with 201 of them and 200 in use, the next is always 201
    let c = k.connect_with_channel_max(201).await?;
    let mut inboxes = Vec::new();
    for i in 1..=200 {
        let ch = c.create_channel().await?;
        let q = k.queue_name("many");
        ch.queue_declare(q.as_str().into(), QueueDeclareOptions::exclusive(), table! {}).await?;
        inboxes.push((i, consume(&ch, &q, true).await?));
        say(&ch, "", &q, &format!("message {i}")).await?;
    }
    for (i, inbox) in &mut inboxes {
        same("message", text(&inbox.next().await?), format!("message {i}"))?;
    }
    for i in 0..50 {
        // lapin frees the number a moment after it got close-ok
        let deadline = Instant::now() + PATIENCE;
        let ch = loop {
            match c.create_channel().await {
                Err(e) if matches!(e.kind(), ErrorKind::ChannelsLimitReached) && Instant::now() < deadline => {
                    tokio::task::yield_now().await;
                }
                other => break other?,
            }
        };
        same("channel number", ch.id(), 201)?;
        let q = ch.queue_declare("".into(), QueueDeclareOptions::exclusive(), table! {}).await?.name().to_string();
        say(&ch, "", &q, &format!("again {i}")).await?;
        same("on the new channel", text(&wait_for(&ch, &q).await?), format!("again {i}"))?;
        close_channel(&ch).await?;
    }
    for (i, inbox) in &mut inboxes {
        that(inbox.ch.status().connected(), format!("channel {i} is closed"))?;
    }
    Ok(())
}

async fn s30_quorum_queue_delivery_limit(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let dlx = k.exchange(&ch, ExchangeKind::Fanout, table! {}).await?;
    let dead = k.queue(&ch, "dead", table! {}).await?;
    bind(&ch, &dead, &dlx, "").await?;
    let args = table! {"x-queue-type" => "quorum", "x-delivery-limit" => 2, "x-dead-letter-exchange" => &dlx};
    let q = k.queue(&ch, "quorum", args).await?;
    let mut inbox = consume(&ch, &q, false).await?;
    say(&ch, "", &q, "poison").await?;
    for n in 0..=2 {
        let d = inbox.next().await?;
        let count = if header(&d, "x-delivery-count").is_none() { Some(0) } else { integer(header(&d, "x-delivery-count")) };
        same("x-delivery-count and redelivered", (count, d.redelivered), (Some(n), n > 0))?;
        reject(&d, true).await?;
    }
    let d = wait_for(&ch, &dead).await?;
    same("dead", text(&d), "poison")?;
    same("reason", deaths(&d)?[0].str("reason"), "delivery_limit")?;
    same("queue", deaths(&d)?[0].str("queue"), q.as_str())?;
    inbox.quiet("after the dead letter").await
}

async fn s31_consumer_priority_and_cancel(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "prio", table! {}).await?;
    let (_, lower) = k.alone().await?;
    let (_, higher) = k.alone().await?;
    qos(&higher, 3).await?;
    let mut low = consume(&lower, &q, false).await?;
    let mut high = consume_with(&higher, &q, false, table! {"x-priority" => 10}).await?;
    for i in 1..=5 {
        say(&ch, "", &q, &i.to_string()).await?;
    }
    let held = high.take(3).await?;
    same("higher", texts(&held), ["1", "2", "3"])?;
    same("lower", texts(&low.take(2).await?), ["4", "5"])?;
    ack(&held[0]).await?;
    high.quiet("nothing to do").await?;
    low.quiet("nothing to do").await?;
    say(&ch, "", &q, "6").await?;
    same("higher with credit again", text(&high.next().await?), "6")?;
    ack(&held[1]).await?;
    ack(&held[2]).await?;
    high.cancel().await?;
    say(&ch, "", &q, "7").await?;
    same("lower after the cancel", text(&low.next().await?), "7")?;
    high.quiet("after the cancel").await?;
    ch.queue_delete(q.as_str().into(), Default::default()).await?;
    low.cancelled().await?;
    lower.queue_declare("".into(), QueueDeclareOptions::exclusive(), table! {}).await?;
    Ok(())
}

async fn s32_nack_multiple_and_recover(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "settle", table! {}).await?;
    let all: Vec<String> = (1..=6).map(|i| i.to_string()).collect();
    for t in &all {
        say(&ch, "", &q, t).await?;
    }
    let w = k.channel().await?;
    let mut inbox = consume(&w, &q, false).await?;
    let got = inbox.take(6).await?;
    same("first", texts(&got), all.clone())?;
    nack(&got[5], true, true).await?;
    let got = inbox.take(6).await?;
    same("after nack", texts(&got), all.clone())?;
    that(got.iter().all(|d| d.redelivered), "not all marked as redelivered")?;
    w.basic_ack(got[2].delivery_tag, BasicAckOptions { multiple: true }).await?;
    w.basic_recover(BasicRecoverOptions { requeue: true }).await?;
    let got = inbox.take(3).await?;
    same("after ack and recover", texts(&got), &all[3..])?;
    that(got.iter().all(|d| d.redelivered), "not all marked as redelivered")?;
    // dropped: there is no dead-letter exchange
    w.basic_nack(got[1].delivery_tag, BasicNackOptions { multiple: true, requeue: false }).await?;
    w.basic_ack(0, BasicAckOptions { multiple: true }).await?; // all that is left
    inbox.quiet("all settled").await?;
    close_channel(&w).await?;
    same("left", ready(&ch, &q).await?, 0)
}

async fn s33_queue_expires(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let c = k.connect().await?;
    let expires = || table! {"x-expires" => 600};
    let unused = k.queue(&ch, "unused", expires()).await?;
    // a passive declare renews the lease: look seldom
    let mut gone = false;
    for pause in [1200, 1800, 2400, 3000] {
        sleep(Duration::from_millis(pause)).await;
        gone = !exists(&c, &unused).await?;
        if gone {
            break;
        }
    }
    that(gone, "the unused queue is still there")?;

    let used = k.queue(&ch, "used", expires()).await?;
    let inbox = consume(&ch, &used, true).await?;
    sleep(Duration::from_millis(1500)).await;
    same("consumers", look(&ch, &used).await?.consumer_count(), 1)?;
    inbox.cancel().await?;

    for tries in 0.. {
        let renewed = k.queue(&ch, "renewed", expires()).await?;
        say(&ch, "", &renewed, "still here").await?;
        let (mut on_time, mut last, mut found) = (true, Instant::now(), 1);
        for _ in 0..4 {
            sleep(Duration::from_millis(250)).await;
            let ok = ch.queue_declare(renewed.as_str().into(), QueueDeclareOptions::durable(), expires()).await?;
            found = ok.message_count();
            on_time &= last.elapsed() < Duration::from_millis(500);
            last = Instant::now();
        }
        if on_time || tries == 3 {
            // else this machine was too slow for the question
            return same("messages in the queue that was renewed", found, 1);
        }
    }
    Ok(())
}

async fn s34_unacked_requeued_on_close(k: &Kit) -> R {
    let ch = k.confirming().await?;
    let q = k.queue(&ch, "close", table! {}).await?;
    let all: Vec<String> = (1..=5).map(|i| i.to_string()).collect();
    for t in &all {
        say(&ch, "", &q, t).await?;
    }
    let (_, first) = k.alone().await?;
    let mut inbox = consume(&first, &q, false).await?;
    let got = inbox.take(5).await?;
    that(got.iter().all(|d| !d.redelivered), "marked as redelivered at first")?;
    close_channel(&first).await?;
    let (c, second) = k.alone().await?;
    let mut inbox = consume(&second, &q, false).await?;
    let got = inbox.take(5).await?;
    same("after channel close", texts(&got), all.clone())?;
    that(got.iter().all(|d| d.redelivered), "not all marked as redelivered")?;
    close(&c).await?;
    let (_, third) = k.alone().await?;
    let mut inbox = consume(&third, &q, true).await?;
    let got = inbox.take(5).await?;
    same("after connection close", texts(&got), all)?;
    that(got.iter().all(|d| d.redelivered), "not all marked as redelivered")?;
    close_channel(&third).await?;
    sleep(QUIET).await;
    same("auto-acked ones", ready(&ch, &q).await?, 0)
}
