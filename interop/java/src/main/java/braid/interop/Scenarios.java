package braid.interop;

import static braid.interop.Kit.*;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.math.BigDecimal;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.Collections;
import java.util.Date;
import java.util.HashMap;
import java.util.HashSet;
import java.util.List;
import java.util.Map;
import java.util.Random;
import java.util.Set;
import java.util.TreeSet;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.IntStream;

/** The scenarios of interop/SCENARIOS.md, one method each: sNN_name. */
@SuppressWarnings("unused")
final class Scenarios {

    static void s01_work_queue_acks_and_retry(Kit k) throws Exception {
        String q = k.queue(k.channel(), "tasks");
        int tasks = 20;
        Map<Integer, AtomicInteger> done = new ConcurrentHashMap<>();
        CountDownLatch allDone = new CountDownLatch(tasks);
        CountDownLatch bothHaveOne = new CountDownLatch(2);
        List<String> wrong = Collections.synchronizedList(new ArrayList<>());
        List<Channel> workers = new ArrayList<>();
        for (int w = 0; w < 2; w++) {
            Channel ch = k.channelOnNewConnection();
            workers.add(ch);
            ch.basicQos(1);
            ch.basicConsume(q, false, new DefaultConsumer(ch) {
                boolean first = true;

                @Override
                public void handleDelivery(String tag, Envelope e, BasicProperties p, byte[] body) throws IOException {
                    if (first) { // keep the first task until the other worker has one too: the queue is shared
                        first = false;
                        bothHaveOne.countDown();
                        try {
                            if (!bothHaveOne.await(PATIENCE, TimeUnit.MILLISECONDS)) {
                                wrong.add("one worker got nothing");
                            }
                        } catch (InterruptedException x) {
                            Thread.currentThread().interrupt();
                        }
                    }
                    int n = Integer.parseInt(new String(body, StandardCharsets.UTF_8));
                    boolean fails = n % 3 == 0;
                    if (fails && !e.isRedeliver()) {
                        ch.basicNack(e.getDeliveryTag(), false, true);
                        return;
                    }
                    if (!fails && e.isRedeliver()) {
                        wrong.add("task " + n + " redelivered though nobody gave it back");
                    }
                    done.computeIfAbsent(n, x -> new AtomicInteger()).incrementAndGet();
                    ch.basicAck(e.getDeliveryTag(), false);
                    allDone.countDown();
                }
            });
        }
        Channel pub = k.confirming();
        for (int i = 1; i <= tasks; i++) {
            publish(pub, "", q, "" + i);
        }
        settled(pub);
        that(allDone.await(PATIENCE, TimeUnit.MILLISECONDS), "not all tasks done: " + done.keySet());
        for (Channel w : workers) {
            w.close();
        }
        same("wrong", List.of(), wrong);
        same("tasks done", tasks, done.size());
        done.forEach((n, times) -> same("task " + n + " done", 1, times.get()));
        same("left in the queue", 0L, ready(pub, q));
    }

    static void s02_topic_logs(Kit k) throws Exception {
        Channel ch = k.confirming();
        String x = k.exchange(ch, "topic");
        String errors = k.queue(ch, "errors");
        String all = k.queue(ch, "all");
        String auth = k.queue(ch, "auth");
        ch.queueBind(errors, x, "*.error");
        ch.queueBind(all, x, "#");
        ch.queueBind(auth, x, "auth.*");
        List<String> keys = List.of("auth.error", "auth.info", "kernel.error", "kernel.info", "auth.login.error", "auth", "");
        for (String key : keys) {
            publish(ch, x, key, "<" + key + ">");
        }
        settled(ch);
        Map<String, List<String>> expected = Map.of(
                errors, List.of("<auth.error>", "<kernel.error>"),
                all, keys.stream().map(key -> "<" + key + ">").toList(),
                auth, List.of("<auth.error>", "<auth.info>"));
        for (var e : expected.entrySet()) {
            Inbox in = consume(ch, e.getKey(), true);
            List<Msg> got = in.next(e.getValue().size());
            same(e.getKey(), e.getValue(), texts(got));
            for (Msg m : got) {
                same("exchange", x, m.envelope().getExchange());
                same("routing key", m.text(), "<" + m.envelope().getRoutingKey() + ">");
            }
            same("left", 0L, ready(ch, e.getKey()));
            same("more", 0, in.messages.size());
        }
    }

    static void s03_dead_letter_after_ttl(Kit k) throws Exception {
        Channel ch = k.confirming();
        String x = k.exchange(ch, "direct");
        String dlx = k.exchange(ch, "fanout");
        String dead = k.queue(ch, "dead");
        ch.queueBind(dead, dlx, "");
        String byQueue = k.queue(ch, "ttl", "x-message-ttl", 200, "x-dead-letter-exchange", dlx);
        String byMessage = k.queue(ch, "expiration", "x-dead-letter-exchange", dlx);
        ch.queueBind(byQueue, x, "one");
        ch.queueBind(byMessage, x, "two");
        Inbox in = consume(ch, dead, true);
        long before = System.currentTimeMillis() / 1000 - 1;
        publish(ch, x, "one", "by queue");
        publish(ch, x, "two", PERSISTENT.builder().expiration("200").build(), "by message");
        settled(ch);
        Map<String, Msg> got = new HashMap<>();
        for (Msg m : in.next(2)) {
            got.put(m.text(), m);
        }
        for (String text : List.of("by queue", "by message")) {
            Msg m = got.get(text);
            that(m != null, "missing " + text + " in " + got.keySet());
            String q = text.equals("by queue") ? byQueue : byMessage;
            String key = text.equals("by queue") ? "one" : "two";
            List<Map<String, Object>> deaths = xDeath(m);
            same(text + ": deaths", 1, deaths.size());
            Map<String, Object> d = deaths.get(0);
            same(text + ": count", 1L, d.get("count"));
            same(text + ": reason", "expired", d.get("reason"));
            same(text + ": queue", q, d.get("queue"));
            same(text + ": exchange", x, d.get("exchange"));
            same(text + ": routing-keys", List.of(key), d.get("routing-keys"));
            that(d.get("time") instanceof Date t && t.getTime() / 1000 >= before, text + ": time " + d.get("time"));
            same(text + ": original-expiration", text.equals("by queue") ? null : "200", d.get("original-expiration"));
            same(text + ": first reason", "expired", string(m.headers().get("x-first-death-reason")));
            same(text + ": first queue", q, string(m.headers().get("x-first-death-queue")));
            same(text + ": first exchange", x, string(m.headers().get("x-first-death-exchange")));
            same(text + ": expiration", null, m.props().getExpiration());
            same(text + ": exchange", dlx, m.envelope().getExchange());
            same(text + ": routing key", key, m.envelope().getRoutingKey());
        }
        same("left", List.of(0L, 0L), List.of(ready(ch, byQueue), ready(ch, byMessage)));
    }

    static void s04_dead_letter_after_three_retries(Kit k) throws Exception {
        k.braidOnly();
        for (boolean byReject : new boolean[] {false, true}) {
            Channel ch = k.confirming();
            String dlx = k.exchange(ch, "fanout");
            String dead = k.queue(ch, "dead");
            ch.queueBind(dead, dlx, "");
            String q = k.queue(ch, "work", "x-max-retries", 3, "x-dead-letter-exchange", dlx);
            for (String t : List.of("before", "poison", "after")) {
                publish(ch, "", q, t);
            }
            settled(ch);
            Channel worker = k.channel();
            Inbox in = consume(worker, q, false);
            Inbox morgue = consume(k.channel(), dead, true);
            List<Boolean> flags = new ArrayList<>();
            Set<String> neighbours = new HashSet<>();
            while (flags.size() < 4 || neighbours.size() < 2) {
                Msg m = in.next();
                if (m.text().equals("poison")) {
                    flags.add(m.redelivered());
                    if (byReject) {
                        worker.basicReject(m.tag(), true);
                    } else {
                        worker.basicNack(m.tag(), false, true);
                    }
                } else {
                    that(!m.redelivered(), m.text() + " redelivered");
                    that(neighbours.add(m.text()), m.text() + " came twice");
                    in.ack(m);
                }
            }
            same("redelivered flags", List.of(false, true, true, true), flags);
            Msg m = morgue.next();
            same("dead", "poison", m.text());
            same("reason", "delivery_limit", xDeath(m).get(0).get("reason"));
            same("queue", q, xDeath(m).get(0).get("queue"));
            same("first reason", "delivery_limit", string(m.headers().get("x-first-death-reason")));
            quiet("after the dead letter", in, morgue);
            worker.close();
            same("left", 0L, ready(ch, q));
        }
    }

    static void s05_fanout_to_two_services(Kit k) throws Exception {
        Channel ch = k.confirming();
        String x = k.exchange(ch, "fanout");
        String a = k.queue(ch, "billing");
        String b = k.queue(ch, "mailing");
        ch.queueBind(a, x, "");
        ch.queueBind(b, x, "ignored");
        Inbox inA = consume(k.channelOnNewConnection(), a, true);
        Inbox inB = consume(k.channelOnNewConnection(), b, true);
        List<String> events = IntStream.range(0, 10).mapToObj(i -> "event " + i).toList();
        for (String e : events) {
            publish(ch, x, "any." + e, e);
        }
        settled(ch);
        same("first service", events, texts(inA.next(10)));
        same("second service", events, texts(inB.next(10)));
        ch.queueUnbind(a, x, "");
        publish(ch, x, "", "last");
        settled(ch);
        same("second service", "last", inB.next().text());
        quiet("after unbind", inA, inB);
    }

    static void s06_rpc_reply_queue(Kit k) throws Exception {
        String rpc = k.queue(k.channel(), "rpc");
        serve(k.channelOnNewConnection(), rpc, new LinkedBlockingQueue<>());
        Channel client = k.channelOnNewConnection();
        String replies = client.queueDeclare().getQueue();
        that(replies.startsWith("amq.gen-"), "server-named queue is called " + replies);
        call(client, rpc, replies, consume(client, replies, true));
    }

    static void s07_rpc_direct_reply_to(Kit k) throws Exception {
        String rpc = k.queue(k.channel(), "rpc");
        LinkedBlockingQueue<String> seen = new LinkedBlockingQueue<>();
        serve(k.channelOnNewConnection(), rpc, seen);
        Channel client = k.channelOnNewConnection();
        call(client, rpc, "amq.rabbitmq.reply-to", consume(client, "amq.rabbitmq.reply-to", true));
        for (String replyTo : seen) {
            that(replyTo.startsWith("amq.rabbitmq.reply-to."), "the server saw reply-to " + replyTo);
        }
        same("requests", 10, seen.size());
        closesChannel(client.getConnection(), "reply-to without a consumer", 406,
                "PRECONDITION_FAILED - fast reply consumer does not exist",
                ch -> publish(ch, "", rpc, new BasicProperties.Builder().replyTo("amq.rabbitmq.reply-to").build(), "x"));
    }

    /** An RPC server that squares numbers. */
    private static void serve(Channel ch, String queue, LinkedBlockingQueue<String> replyTos) throws IOException {
        ch.basicConsume(queue, false, new DefaultConsumer(ch) {
            @Override
            public void handleDelivery(String tag, Envelope e, BasicProperties p, byte[] body) throws IOException {
                replyTos.add(p.getReplyTo());
                long n = Long.parseLong(new String(body, StandardCharsets.UTF_8));
                BasicProperties answer = new BasicProperties.Builder().correlationId(p.getCorrelationId()).build();
                publish(ch, "", p.getReplyTo(), answer, "" + n * n);
                ch.basicAck(e.getDeliveryTag(), false);
            }
        });
    }

    private static void call(Channel client, String rpc, String replyTo, Inbox replies) throws Exception {
        Map<String, String> expected = new HashMap<>();
        for (int n = 1; n <= 10; n++) {
            String id = "call-" + n;
            expected.put(id, "" + n * n);
            publish(client, "", rpc, new BasicProperties.Builder().correlationId(id).replyTo(replyTo).build(), "" + n);
        }
        Map<String, String> got = new HashMap<>();
        for (Msg m : replies.next(10)) {
            got.put(m.props().getCorrelationId(), m.text());
        }
        same("answers", expected, got);
    }

    static void s08_priorities(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "prio", "x-max-priority", 10);
        Integer[] priorities = {5, 1, 10, null, 0, 5, 200, 1, 9, 10, null};
        record Sent(int priority, String text) {}
        List<Sent> sent = new ArrayList<>();
        for (int i = 0; i < priorities.length; i++) {
            String text = i + " at " + priorities[i];
            publish(ch, "", q, PERSISTENT.builder().priority(priorities[i]).build(), text);
            sent.add(new Sent(priorities[i] == null ? 0 : Math.min(10, priorities[i]), text));
        }
        settled(ch);
        sent.sort((a, b) -> b.priority() - a.priority()); // stable
        Inbox in = consume(ch, q, true);
        same("order", sent.stream().map(Sent::text).toList(), texts(in.next(priorities.length)));
    }

    static void s09_headers_routing(Kit k) throws Exception {
        Channel ch = k.confirming();
        String x = k.exchange(ch, "headers");
        Map<String, String> queues = new HashMap<>();
        for (String match : List.of("all", "any", "all-with-x", "any-with-x")) {
            String q = k.queue(ch, match);
            queues.put(match, q);
            try {
                ch.queueBind(q, x, "", map("x-match", match, "format", "pdf", "kind", "report", "x-source", "scanner"));
            } catch (IOException e) {
                if (k.rabbit && match.endsWith("-with-x")) {
                    throw new Skip("this RabbitMQ refuses x-match " + match);
                }
                throw e;
            }
        }
        publish(ch, x, "", headers("format", "pdf", "kind", "report"), "1");
        publish(ch, x, "", headers("format", "pdf"), "2");
        publish(ch, x, "", headers("kind", "report", "x-source", "scanner"), "3");
        publish(ch, x, "", headers("x-source", "scanner"), "4");
        publish(ch, x, "", headers("format", "pdf", "kind", "report", "x-source", "scanner", "more", 1), "5");
        publish(ch, x, "", headers("format", "zip", "kind", "photo", "x-source", "web"), "6");
        publish(ch, x, "", PERSISTENT, "7");
        settled(ch);
        same("all", List.of("1", "5"), texts(drain(ch, queues.get("all"))));
        same("any", List.of("1", "2", "3", "5"), texts(drain(ch, queues.get("any"))));
        same("all-with-x", List.of("5"), texts(drain(ch, queues.get("all-with-x"))));
        same("any-with-x", List.of("1", "2", "3", "4", "5"), texts(drain(ch, queues.get("any-with-x"))));
    }

    static void s10_delayed_messages(Kit k) throws Exception {
        String x = k.pluginExchange("x-delayed-message", "x-delayed-type", "direct");
        Channel ch = k.confirming();
        String q = k.queue(ch, "late");
        ch.queueBind(q, x, "k");
        Inbox in = consume(ch, q, true);
        Map<String, Long> sentAt = new HashMap<>();
        for (int delay : new int[] {900, 300, 600, 0}) {
            sentAt.put("" + delay, System.nanoTime());
            publish(ch, x, "k", delay == 0 ? PERSISTENT : headers("x-delay", delay), "" + delay);
        }
        List<String> order = new ArrayList<>();
        for (int i = 0; i < 4; i++) {
            Msg m = in.next();
            notBefore(sentAt.get(m.text()), Integer.parseInt(m.text()));
            order.add(m.text());
        }
        same("order", List.of("0", "300", "600", "900"), order);
        quiet("after the last", in);
    }

    private static void notBefore(long sentAt, long delayMs) {
        long waited = System.nanoTime() - sentAt;
        // clocks of whole milliseconds may differ by one
        that(waited >= TimeUnit.MILLISECONDS.toNanos(delayMs - 1), "delay " + delayMs + " ms, came after " + waited / 1000 + " us");
    }

    static void s11_confirms_and_mandatory_returns(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "confirmed");
        String x = k.exchange(ch, "direct");
        TreeSet<Long> open = new TreeSet<>();
        LinkedBlockingQueue<String> events = new LinkedBlockingQueue<>();
        CompletableFuture<BasicProperties> returned = new CompletableFuture<>();
        ch.addConfirmListener(
                (tag, multiple) -> {
                    synchronized (open) {
                        Set<Long> settled = multiple ? open.headSet(tag, true) : open.subSet(tag, true, tag, true);
                        for (Long t : settled) {
                            events.add("ack " + t);
                        }
                        settled.clear();
                    }
                },
                (tag, multiple) -> events.add("nack " + tag));
        ch.addReturnListener((code, text, exchange, key, p, body) -> {
            events.add("return " + code + " " + text + " '" + exchange + "' '" + key + "' " + new String(body, StandardCharsets.UTF_8));
            returned.complete(p);
        });
        Set<String> expected = new HashSet<>();
        for (int i = 0; i < 100; i++) {
            synchronized (open) {
                open.add(ch.getNextPublishSeqNo());
            }
            expected.add("ack " + ch.getNextPublishSeqNo());
            publish(ch, "", q, "" + i);
        }
        Set<String> got = new HashSet<>();
        for (int i = 0; i < 100; i++) {
            got.add(events.poll(PATIENCE, TimeUnit.MILLISECONDS));
        }
        same("confirms", expected, got);
        same("in the queue", 100L, ready(ch, q));

        BasicProperties props = new BasicProperties.Builder().deliveryMode(2).contentType("text/plain").messageId("id-1")
                .headers(map("a", "b")).build();
        synchronized (open) {
            open.add(ch.getNextPublishSeqNo());
        }
        ch.basicPublish(x, "nowhere", true, props, "lost".getBytes(StandardCharsets.UTF_8));
        same("first", "return 312 NO_ROUTE '" + x + "' 'nowhere' lost", events.poll(PATIENCE, TimeUnit.MILLISECONDS));
        same("then", "ack 101", events.poll(PATIENCE, TimeUnit.MILLISECONDS));
        BasicProperties back = returned.get(PATIENCE, TimeUnit.MILLISECONDS);
        same("content type", "text/plain", back.getContentType());
        same("message id", "id-1", back.getMessageId());
        same("delivery mode", 2, back.getDeliveryMode());
        same("headers", Map.of("a", "b"), plain(back.getHeaders()));

        synchronized (open) {
            open.add(ch.getNextPublishSeqNo());
        }
        publish(ch, x, "nowhere", "dropped");
        same("not mandatory", "ack 102", events.poll(PATIENCE, TimeUnit.MILLISECONDS));
        Thread.sleep(QUIET);
        same("more events", 0, events.size());
    }

    static void s12_transactions(Kit k) throws Exception {
        Channel other = k.channel();
        String q = k.queue(other, "tx");
        Channel tx = k.channelOnNewConnection();
        tx.txSelect();
        publish(tx, "", q, "one");
        publish(tx, "", q, "two");
        Thread.sleep(QUIET);
        same("before commit", 0L, ready(other, q));
        tx.txCommit();
        same("after commit", 2L, ready(other, q));
        publish(tx, "", q, "three");
        tx.txRollback();
        tx.txCommit();
        same("after rollback", 2L, ready(other, q));

        GetResponse r = tx.basicGet(q, false);
        same("got", "one", new String(r.getBody(), StandardCharsets.UTF_8));
        tx.basicAck(r.getEnvelope().getDeliveryTag(), false);
        tx.txRollback();
        Thread.sleep(QUIET);
        same("rolled back, not redelivered", 1L, ready(other, q));
        tx.close();
        readyBecomes(other, q, 2);

        tx = k.channelOnNewConnection();
        tx.txSelect();
        r = tx.basicGet(q, false);
        same("got again", "one", new String(r.getBody(), StandardCharsets.UTF_8));
        that(r.getEnvelope().isRedeliver(), "not marked as redelivered");
        tx.basicAck(r.getEnvelope().getDeliveryTag(), false);
        tx.txCommit();
        tx.close();
        Thread.sleep(QUIET);
        same("left", List.of("two"), texts(drain(other, q)));
    }

    static void s13_exclusive_and_auto_delete(Kit k) throws Exception {
        Connection other = k.connect();
        Connection owner = k.connect();
        Channel own = owner.createChannel();
        String q = k.queueName("exclusive-and-so-long-that-the-error-is-cut");
        own.queueDeclare(q, false, true, false, null);
        String locked = "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '" + q + "' in vhost '/'."
                + " It could be originally declared on another connection or the exclusive property value does not match"
                + " that of the original declaration.";
        closesChannel(other, "passive declare", 405, locked, ch -> ch.queueDeclarePassive(q));
        closesChannel(other, "consume", 405, locked, ch -> consume(ch, q, true));
        own.queueDeclarePassive(q);
        owner.close();
        that(!exists(other, q), "the exclusive queue outlives its connection");

        Channel ch = other.createChannel();
        String auto = k.queueName("auto");
        ch.queueDeclare(auto, true, false, true, null);
        Thread.sleep(QUIET);
        that(exists(other, auto), "the auto-delete queue went before it had a consumer");
        Inbox one = consume(ch, auto, true);
        Inbox two = consume(ch, auto, true);
        one.cancel();
        that(exists(other, auto), "the auto-delete queue went with a consumer left");
        two.cancel();
        that(!exists(other, auto), "the auto-delete queue outlives its last consumer");

        String x = k.exchangeName("auto");
        ch.exchangeDeclare(x, "direct", true, true, null);
        String a = k.queue(ch, "bound");
        ch.queueBind(a, x, "1");
        ch.queueBind(a, x, "2");
        ch.queueUnbind(a, x, "1");
        that(exchangeExists(other, x), "the auto-delete exchange went with a binding left");
        ch.queueUnbind(a, x, "2");
        that(!exchangeExists(other, x), "the auto-delete exchange outlives its last binding");
    }

    static void s14_single_active_consumer_failover(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "sac", "x-single-active-consumer", true);
        Inbox one = consume(k.channelOnNewConnection(), q, false);
        Inbox two = consume(k.channelOnNewConnection(), q, false);
        Inbox three = consume(k.channelOnNewConnection(), q, false);
        for (String t : List.of("1", "2", "3")) {
            publish(ch, "", q, t);
        }
        for (Msg m : one.next(3)) {
            one.ack(m);
        }
        quiet("first is active", two, three);
        one.cancel();
        for (String t : List.of("4", "5", "6")) {
            publish(ch, "", q, t);
        }
        same("second", List.of("4", "5", "6"), texts(two.next(3)));
        quiet("second is active", one, three);
        two.getChannel().getConnection().close();
        List<Msg> got = three.next(3);
        same("third", List.of("4", "5", "6"), texts(got));
        for (Msg m : got) {
            that(m.redelivered(), m.text() + " not marked as redelivered");
            three.ack(m);
        }
        publish(ch, "", q, "7");
        Msg m = three.next();
        same("third", "7", m.text());
        that(!m.redelivered(), "7 marked as redelivered");
    }

    static void s15_prefetch_one_fairness(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "fair");
        Channel slowly = k.channelOnNewConnection();
        slowly.basicQos(1);
        Channel fastly = k.channelOnNewConnection();
        fastly.basicQos(1);
        Inbox slow = consume(slowly, q, false);
        publish(ch, "", q, "0");
        Msg held = slow.next();
        Inbox fast = consume(fastly, q, false);
        for (int i = 1; i < 10; i++) {
            publish(ch, "", q, "" + i);
        }
        settled(ch);
        for (int i = 1; i < 10; i++) {
            Msg m = fast.next();
            same("the fast worker's next", "" + i, m.text());
            if (i == 1) {
                quiet("without an ack", fast, slow);
            }
            fast.ack(m);
        }
        quiet("all done", slow, fast);
        slow.ack(held);
        slow.cancel();
        fast.cancel();
        slowly.close();
        fastly.close();
        same("left", 0L, ready(ch, q));
    }

    static void s16_redelivery_order_after_consumer_dies(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "order");
        for (int i = 1; i <= 20; i++) {
            publish(ch, "", q, "" + i);
        }
        settled(ch);
        Channel dying = k.channelOnNewConnection();
        dying.basicQos(10);
        Inbox first = consume(dying, q, false);
        List<Msg> held = first.next(10);
        first.ack(held.get(2));
        first.ack(held.get(4));
        // the credit of the two acked brings 11 and 12
        first.next(2);
        dying.getConnection().abort();
        Inbox second = consume(k.channelOnNewConnection(), q, true);
        List<String> expected = new ArrayList<>();
        for (int i = 1; i <= 20; i++) {
            if (i != 3 && i != 5) {
                expected.add(i + (i <= 12 ? " again" : ""));
            }
        }
        List<String> got = new ArrayList<>();
        for (Msg m : second.next(18)) {
            got.add(m.text() + (m.redelivered() ? " again" : ""));
        }
        same("order", expected, got);
    }

    static void s17_durable_survives_restart(Kit k) throws Exception {
        if (k.restartCmd == null) {
            throw new Skip("no --restart-cmd");
        }
        Channel ch = k.confirming();
        String q = k.queue(ch, "durable");
        String x = k.exchange(ch, "topic");
        ch.queueBind(q, x, "a.*");
        String weakX = k.exchangeName("weak");
        ch.exchangeDeclare(weakX, "direct", false, false, null);
        String weakQ = k.queueName("weak");
        Connection own = k.connect();
        try {
            own.createChannel().queueDeclare(weakQ, false, false, false, null);
        } catch (IOException e) {
            that(k.rabbit, "a non-durable queue was refused: " + e.getCause());
        }
        BasicProperties p = new BasicProperties.Builder().deliveryMode(2).messageId("m").timestamp(new Date(1_700_000_000_000L))
                .headers(map("n", 7, "s", "text")).build();
        for (int i = 0; i < 50; i++) {
            publish(ch, x, "a.b", p, "kept " + i);
            publish(ch, x, "a.b", TRANSIENT, "lost " + i);
        }
        settled(ch);

        Process restart = new ProcessBuilder("sh", "-c", k.restartCmd).redirectOutput(ProcessBuilder.Redirect.DISCARD)
                .redirectError(ProcessBuilder.Redirect.INHERIT).start();
        restart.getOutputStream().close();
        try {
            same("exit code of --restart-cmd", 0, restart.waitFor());
        } finally {
            restart.destroy();
        }

        Connection c = k.connect();
        that(!exists(c, weakQ), "the non-durable queue is still there");
        that(!exchangeExists(c, weakX), "the non-durable exchange is still there");
        that(exchangeExists(c, x), "the durable exchange is gone");
        Channel after = c.createChannel();
        same("ready", 50L, ready(after, q));
        after.confirmSelect();
        publish(after, x, "a.c", "new");
        settled(after);
        Inbox in = consume(after, q, true);
        for (int i = 0; i < 50; i++) {
            Msg m = in.next();
            same("message", "kept " + i, m.text());
            same("message id", "m", m.props().getMessageId());
            same("timestamp", new Date(1_700_000_000_000L), m.props().getTimestamp());
            same("delivery mode", 2, m.props().getDeliveryMode());
            same("headers", Map.of("n", 7, "s", "text"), plain(m.headers()));
            same("exchange and key", x + " a.b", m.envelope().getExchange() + " " + m.envelope().getRoutingKey());
        }
        same("through the old binding", "new", in.next().text());
        quiet("after the last", in);
    }

    static void s18_retry_ladder_ttl(Kit k) throws Exception {
        Channel ch = k.confirming();
        String retry = k.exchange(ch, "fanout");
        String work = k.queue(ch, "work", "x-dead-letter-exchange", retry);
        String wait = k.queue(ch, "wait", "x-message-ttl", 100, "x-dead-letter-exchange", "", "x-dead-letter-routing-key", work);
        ch.queueBind(wait, retry, "");
        Inbox in = consume(ch, work, false);
        publish(ch, "", work, "job");
        settled(ch);
        for (int i = 0; i < 2; i++) {
            Msg m = in.next();
            same("deaths so far", i * 2, i == 0 && !m.headers().containsKey("x-death") ? 0 : xDeath(m).size());
            ch.basicReject(m.tag(), false);
        }
        Msg m = in.next();
        List<String> deaths = new ArrayList<>();
        for (Map<String, Object> d : xDeath(m)) {
            deaths.add(d.get("queue") + " " + d.get("reason") + " " + d.get("count"));
        }
        same("x-death", List.of(wait + " expired 2", work + " rejected 2"), deaths);
        same("first reason", "rejected", string(m.headers().get("x-first-death-reason")));
        same("first queue", work, string(m.headers().get("x-first-death-queue")));
        in.ack(m);
        quiet("after the ack", in);
        in.cancel();
        same("left", List.of(0L, 0L), List.of(ready(ch, work), ready(ch, wait)));
    }

    static void s19_retry_ladder_delay(Kit k) throws Exception {
        String x = k.pluginExchange("x-delayed-message", "x-delayed-type", "direct");
        Channel ch = k.confirming();
        String q = k.queue(ch, "work");
        ch.queueBind(q, x, "job");
        Inbox in = consume(ch, q, false);
        publish(ch, x, "job", headers("attempt", 1), "job");
        int[] delays = {0, 200, 400};
        long sentAt = System.nanoTime() - 1_000_000;
        for (int attempt = 1; attempt <= 3; attempt++) {
            Msg m = in.next();
            same("attempt", attempt, m.headers().get("attempt"));
            notBefore(sentAt, delays[attempt - 1]);
            if (attempt < 3) {
                sentAt = System.nanoTime();
                publish(ch, x, "job", headers("attempt", attempt + 1, "x-delay", delays[attempt]), m.text());
                settled(ch);
            }
            in.ack(m);
        }
        quiet("after the third", in);
        in.cancel();
        same("left", 0L, ready(ch, q));
    }

    static void s20_order_per_entity(Kit k) throws Exception {
        String x = k.pluginExchange("x-consistent-hash");
        Channel ch = k.confirming();
        record Seen(String queue, String consumer, int event) {}
        Map<String, List<Seen>> seen = new ConcurrentHashMap<>();
        CountDownLatch all = new CountDownLatch(300);
        for (int i = 0; i < 3; i++) {
            String q = k.queue(ch, "shard" + i, "x-single-active-consumer", true);
            ch.queueBind(q, x, "1");
            for (int j = 0; j < 2; j++) {
                Channel c = k.channelOnNewConnection();
                c.basicQos(5);
                c.basicConsume(q, false, new DefaultConsumer(c) {
                    @Override
                    public void handleDelivery(String tag, Envelope e, BasicProperties p, byte[] body) throws IOException {
                        String[] part = new String(body, StandardCharsets.UTF_8).split(" ");
                        List<Seen> of = seen.computeIfAbsent(part[0], n -> Collections.synchronizedList(new ArrayList<>()));
                        of.add(new Seen(q, q + tag, Integer.parseInt(part[1])));
                        c.basicAck(e.getDeliveryTag(), false);
                        all.countDown();
                    }
                });
            }
        }
        for (int event = 0; event < 10; event++) {
            for (int entity = 0; entity < 30; entity++) {
                publish(ch, x, "entity-" + entity, "entity-" + entity + " " + event);
            }
        }
        settled(ch);
        that(all.await(PATIENCE, TimeUnit.MILLISECONDS), "300 events sent, " + (300 - all.getCount()) + " came");
        same("entities", 30, seen.size());
        seen.forEach((entity, list) -> {
            same(entity + ": events", IntStream.range(0, 10).boxed().toList(), list.stream().map(Seen::event).toList());
            same(entity + ": queues", 1L, list.stream().map(Seen::queue).distinct().count());
            same(entity + ": consumers", 1L, list.stream().map(Seen::consumer).distinct().count());
        });
    }

    static void s21_consumer_timeout(Kit k) throws Exception {
        k.braidOnly();
        Channel ch = k.confirming();
        String q = k.queue(ch, "timeout", "x-consumer-timeout", 1000);
        Channel hung = k.channelOnNewConnection();
        Inbox first = consume(hung, q, false);
        long sentAt = System.nanoTime();
        publish(ch, "", q, "job");
        that(!first.next().redelivered(), "redelivered at the first worker");
        Inbox second = consume(k.channelOnNewConnection(), q, false);
        Msg m = second.next();
        notBefore(sentAt, 1000);
        same("at the second worker", "job", m.text());
        that(m.redelivered(), "not marked as redelivered");
        second.ack(m);
        // the Java client declares consumer_cancel_notify
        same("cancelled", first.tag, first.cancelled.get(PATIENCE, TimeUnit.MILLISECONDS));
        same("ready, asked on the first worker's channel", 0L, ready(hung, q));
    }

    static void s22_errors_close_channel_not_connection(Kit k) throws Exception {
        Connection c = k.connect();
        Channel bystander = c.createChannel();
        Channel ch = c.createChannel();
        String missing = fresh("missing");
        String noQueue = "NOT_FOUND - no queue '" + missing + "' in vhost '/'";
        String noExchange = "NOT_FOUND - no exchange '" + missing + "' in vhost '/'";
        String q = k.queue(ch, "q");
        String theQueue = "queue '" + q + "' in vhost '/'";
        String x = k.exchange(ch, "direct");
        closesChannel(c, "passive declare of a missing queue", 404, noQueue, e -> e.queueDeclarePassive(missing));
        closesChannel(c, "passive declare of a missing exchange", 404, noExchange, e -> e.exchangeDeclarePassive(missing));
        closesChannel(c, "publish to a missing exchange", 404, noExchange, e -> publish(e, missing, "", "x"));
        closesChannel(c, "consume from a missing queue", 404, noQueue, e -> consume(e, missing, true));
        closesChannel(c, "bind to a missing exchange", 404, noExchange, e -> e.queueBind(q, missing, ""));
        closesChannel(c, "redeclare as not durable", 406, "PRECONDITION_FAILED - inequivalent arg 'durable' for " + theQueue
                + ": received 'false' but current is 'true'", e -> e.queueDeclare(q, false, false, false, null));
        closesChannel(c, "redeclare with x-max-length", 406, "PRECONDITION_FAILED - inequivalent arg 'x-max-length' for " + theQueue
                + ": received the value '10' of type 'signedint' but current is none",
                e -> e.queueDeclare(q, true, false, false, map("x-max-length", 10)));
        closesChannel(c, "redeclare an exchange as fanout", 406, "PRECONDITION_FAILED - inequivalent arg 'type' for exchange '" + x
                + "' in vhost '/': received 'fanout' but current is 'direct'", e -> e.exchangeDeclare(x, "fanout", true));
        String negative = k.queueName("negative");
        closesChannel(c, "x-message-ttl -10", 406, "PRECONDITION_FAILED - invalid arg 'x-message-ttl' for queue '" + negative
                + "' in vhost '/': {value_negative,-10}",
                e -> e.queueDeclare(negative, true, false, false, map("x-message-ttl", -10)));
        closesChannel(c, "unknown delivery tag", 406, "PRECONDITION_FAILED - unknown delivery tag 5", e -> e.basicAck(5, false));
        Inbox user = consume(ch, q, false);
        closesChannel(c, "delete if-unused", 406, "PRECONDITION_FAILED - " + theQueue + " in use", e -> e.queueDelete(q, true, false));
        user.cancel();
        ch.confirmSelect();
        publish(ch, "", q, "x");
        settled(ch);
        closesChannel(c, "delete if-empty", 406, "PRECONDITION_FAILED - " + theQueue + " not empty", e -> e.queueDelete(q, false, true));
        closesChannel(c, "expiration foo", 406, "PRECONDITION_FAILED - invalid expiration 'foo': no_integer",
                e -> publish(e, "", q, new BasicProperties.Builder().expiration("foo").build(), "x"));
        String reserved = "amq." + q;
        closesChannel(c, "reserved name", 403, "ACCESS_REFUSED - queue name '" + reserved + "' contains reserved prefix 'amq.*'",
                e -> e.queueDeclare(reserved, true, false, false, null));
        closesChannel(c, "bind to the default exchange", 403, "ACCESS_REFUSED - operation not permitted on the default exchange",
                e -> e.queueBind(q, "", "key"));
        String alone = k.queue(ch, "alone");
        ch.basicConsume(alone, true, "", false, true, null, new DefaultConsumer(ch));
        closesChannel(c, "exclusive consumer", 403, "ACCESS_REFUSED - queue '" + alone + "' in vhost '/' in exclusive use",
                e -> consume(e, alone, true));
        String locked = k.queueName("locked");
        k.channelOnNewConnection().queueDeclare(locked, false, true, false, null);
        closesChannel(c, "another's exclusive queue", 405, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '" + locked
                + "' in vhost '/'. It could be originally declared on another connection or the exclusive property value does not"
                + " match that of the original declaration.", e -> e.queueDeclare(locked, false, true, false, null));
        if (!k.rabbitBefore4) {
            String odd = k.exchangeName("odd");
            closesChannel(c, "unknown exchange type", 406, "PRECONDITION_FAILED - unknown exchange type 'x-nope'",
                    e -> e.exchangeDeclare(odd, "x-nope"));
        }
        same("bystander", 1L, ready(bystander, q));
        same("bystander", "x", texts(drain(bystander, q)).get(0));
    }

    static void s23_basic_get_and_counts(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "counts");
        same("get on empty", null, ch.basicGet(q, true));
        for (int i = 0; i < 5; i++) {
            publish(ch, "", q, "" + i);
        }
        settled(ch);
        GetResponse r = ch.basicGet(q, false);
        same("message count", 4, r.getMessageCount());
        same("body", "0", new String(r.getBody(), StandardCharsets.UTF_8));
        that(!r.getEnvelope().isRedeliver(), "redelivered");
        same("exchange and key", "/" + q, r.getEnvelope().getExchange() + "/" + r.getEnvelope().getRoutingKey());
        same("tag", 1L, r.getEnvelope().getDeliveryTag());
        AMQP.Queue.DeclareOk ok = k.channel().queueDeclarePassive(q);
        same("ready", 4, ok.getMessageCount());
        same("consumers", 0, ok.getConsumerCount());
        Channel two = k.channel();
        two.basicQos(1);
        Inbox a = consume(two, q, false);
        Inbox b = consume(two, q, false);
        a.next();
        b.next();
        ok = ch.queueDeclare(q, true, false, false, null);
        same("ready with two unacked more", 2, ok.getMessageCount());
        same("consumers", 2, ok.getConsumerCount());
        two.close();
        readyBecomes(ch, q, 4);
        ch.basicNack(r.getEnvelope().getDeliveryTag(), false, true);
        readyBecomes(ch, q, 5);
        r = ch.basicGet(q, false);
        that(r.getEnvelope().isRedeliver(), "not redelivered");
        same("body", "0", new String(r.getBody(), StandardCharsets.UTF_8));
        ch.basicAck(r.getEnvelope().getDeliveryTag(), false);
        same("purged", 4, ch.queuePurge(q).getMessageCount());
        same("purged again", 0, ch.queuePurge(q).getMessageCount());
        publish(ch, "", q, "x");
        publish(ch, "", q, "y");
        settled(ch);
        same("deleted with", 2, ch.queueDelete(q).getMessageCount());
        same("deleted again", 0, ch.queueDelete(q).getMessageCount());
        ch.exchangeDelete(fresh("missing"));
    }

    static void s24_alternate_exchange(Kit k) throws Exception {
        Channel ch = k.confirming();
        LinkedBlockingQueue<String> returned = new LinkedBlockingQueue<>();
        ch.addReturnListener((code, text, exchange, key, p, body) ->
                returned.add(code + " " + text + " " + exchange + " " + key + " " + new String(body, StandardCharsets.UTF_8)));
        String alternate = k.exchange(ch, "topic");
        String x = k.exchange(ch, "direct", "alternate-exchange", alternate);
        String q = k.queue(ch, "routed");
        String rest = k.queue(ch, "rest");
        ch.queueBind(q, x, "known");
        ch.queueBind(rest, alternate, "other.#");
        ch.basicPublish(x, "known", true, PERSISTENT, "1".getBytes());
        ch.basicPublish(x, "other.a", true, PERSISTENT, "2".getBytes());
        settled(ch);
        same("returned", 0, returned.size());
        ch.basicPublish(x, "lost", true, PERSISTENT, "3".getBytes());
        settled(ch);
        same("returned", "312 NO_ROUTE " + x + " lost 3", returned.poll(PATIENCE, TimeUnit.MILLISECONDS));
        same("routed", List.of("1"), texts(drain(ch, q)));
        List<Msg> others = drain(ch, rest);
        same("through the alternate", List.of("2"), texts(others));
        same("exchange of it", x, others.get(0).envelope().getExchange());
        same("key of it", "other.a", others.get(0).envelope().getRoutingKey());
    }

    static void s25_exchange_to_exchange(Kit k) throws Exception {
        Channel ch = k.confirming();
        String topic = k.exchange(ch, "topic");
        String fanout = k.exchange(ch, "fanout");
        String q = k.queue(ch, "q");
        ch.exchangeBind(fanout, topic, "a.*");
        ch.queueBind(q, fanout, "");
        publish(ch, topic, "a.b", "1");
        publish(ch, topic, "b.b", "no");
        settled(ch);
        List<Msg> got = drain(ch, q);
        same("through both", List.of("1"), texts(got));
        same("exchange", topic, got.get(0).envelope().getExchange());
        ch.exchangeBind(topic, fanout, ""); // a cycle
        ch.queueBind(q, topic, "a.#"); // a second way
        publish(ch, topic, "a.c", "2");
        publish(ch, fanout, "a.d", "3");
        settled(ch);
        same("once each", List.of("2", "3"), texts(drain(ch, q)));
        ch.queueUnbind(q, topic, "a.#");
        ch.exchangeUnbind(fanout, topic, "a.*");
        publish(ch, topic, "a.e", "no more");
        publish(ch, fanout, "a.f", "4");
        settled(ch);
        same("after unbind", List.of("4"), texts(drain(ch, q)));
    }

    static void s26_max_length_overflow(Kit k) throws Exception {
        Channel ch = k.confirming();
        String dlx = k.exchange(ch, "fanout");
        String dead = k.queue(ch, "dead");
        ch.queueBind(dead, dlx, "");

        String drop = k.queue(ch, "drop", "x-max-length", 3, "x-dead-letter-exchange", dlx);
        same("drop-head confirms", "+++++", confirms(ch, drop, "1", "2", "3", "4", "5"));
        List<Msg> buried = List.of(await(ch, dead), await(ch, dead));
        same("drop-head, dropped", List.of("1", "2"), texts(buried));
        for (Msg m : buried) {
            same("reason", "maxlen", xDeath(m).get(0).get("reason"));
            same("queue", drop, xDeath(m).get(0).get("queue"));
        }
        same("drop-head, kept", List.of("3", "4", "5"), texts(drain(ch, drop)));

        String reject = k.queue(ch, "reject", "x-max-length", 3, "x-overflow", "reject-publish", "x-dead-letter-exchange", dlx);
        same("reject-publish confirms", "+++-", confirms(ch, reject, "1", "2", "3", "4"));
        same("reject-publish, kept", List.of("1", "2", "3"), texts(drain(ch, reject)));
        same("room again", "+", confirms(ch, reject, "5"));
        Thread.sleep(QUIET);
        same("reject-publish dead-letters nothing", 0L, ready(ch, dead));

        String rejectDlx = k.queue(ch, "rejectdlx", "x-max-length", 3, "x-overflow", "reject-publish-dlx",
                "x-dead-letter-exchange", dlx);
        same("reject-publish-dlx confirms", "+++-", confirms(ch, rejectDlx, "1", "2", "3", "4"));
        Msg m = await(ch, dead);
        same("reject-publish-dlx, dead", "4", m.text());
        same("reason", "maxlen", xDeath(m).get(0).get("reason"));
        same("reject-publish-dlx, kept", List.of("1", "2", "3"), texts(drain(ch, rejectDlx)));

        String bytes = k.queue(ch, "bytes", "x-max-length-bytes", 10);
        same("bytes, confirms", "+++", confirms(ch, bytes, "aaaa", "bbbb", "cccccc"));
        readyBecomes(ch, bytes, 2);
        same("bytes, kept", List.of("bbbb", "cccccc"), texts(drain(ch, bytes)));
    }

    /** Publishes one after the other, each after the verdict on the one before: + for ack, - for nack. */
    private static String confirms(Channel ch, String queue, String... texts) throws Exception {
        StringBuilder verdicts = new StringBuilder();
        for (String t : texts) {
            publish(ch, "", queue, t);
            verdicts.append(ch.waitForConfirms(PATIENCE) ? '+' : '-');
        }
        return verdicts.toString();
    }

    static void s27_large_messages(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "large");
        int frame = 131064;
        List<byte[]> bodies = new ArrayList<>();
        Random random = new Random(27);
        for (int size : new int[] {0, 1, frame - 1, frame, frame + 1, 2 * frame, 2 * frame + 1, 4 << 20}) {
            byte[] body = new byte[size];
            random.nextBytes(body);
            bodies.add(body);
            ch.basicPublish("", q, PERSISTENT, body);
        }
        settled(ch);
        Inbox in = consume(k.channelOnNewConnection(), q, true);
        for (byte[] body : bodies) {
            Msg m = in.next();
            that(Arrays.equals(body, m.body()), "sent " + body.length + " bytes, got " + m.body().length + " or others");
        }
        in.cancel();
        byte[] largest = bodies.get(bodies.size() - 1);
        ch.basicPublish("", q, PERSISTENT, largest);
        settled(ch);
        that(Arrays.equals(largest, ch.basicGet(q, true).getBody()), "the largest differs by get");
    }

    static void s28_properties_and_header_types_round_trip(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "props");
        Map<String, Object> h = new HashMap<>();
        h.put("true", true);
        h.put("false", false);
        h.put("byte-min", Byte.MIN_VALUE);
        h.put("byte-max", Byte.MAX_VALUE);
        h.put("short-min", Short.MIN_VALUE);
        h.put("short-max", Short.MAX_VALUE);
        h.put("int-min", Integer.MIN_VALUE);
        h.put("int-max", Integer.MAX_VALUE);
        h.put("long-min", Long.MIN_VALUE);
        h.put("long-max", Long.MAX_VALUE);
        h.put("float", 1.5f);
        h.put("double", Math.PI);
        h.put("decimal", new BigDecimal("123456.789"));
        h.put("decimal-negative", new BigDecimal("-0.07"));
        h.put("string", "grüße 東京 🐇");
        h.put("string-empty", "");
        h.put("string-long", "x".repeat(70_000));
        h.put("timestamp", new Date(1_700_000_000_000L));
        h.put("bytes", new byte[] {0, 1, -1, 127, -128});
        h.put("null", null);
        h.put("table", map("a", 1, "b", map("c", List.of(1L, "two", map("three", 3.0)))));
        h.put("table-empty", Map.of());
        List<Object> mixed = new ArrayList<>(List.of(1, 2L, (short) 3, (byte) 4, "five", 6.5, false, new Date(7000), List.of(), Map.of()));
        mixed.add(null);
        h.put("list", mixed);
        h.put("list-empty", List.of());
        h.put("k".repeat(128), "long key");
        BasicProperties p = new BasicProperties.Builder().contentType("application/json").contentEncoding("gzip").headers(h)
                .deliveryMode(2).priority(7).correlationId("c".repeat(255)).replyTo("reply").expiration("3600000").messageId("id")
                .timestamp(new Date(1_234_567_890_000L)).type("type").userId("guest").appId("äpp").build();
        publish(ch, "", q, p, "full");
        publish(ch, "", q, new BasicProperties.Builder().build(), "bare");
        publish(ch, "", q, new BasicProperties.Builder().headers(Map.of()).contentType("").build(), "empty");
        settled(ch);
        Inbox in = consume(ch, q, true);
        Msg m = in.next();
        BasicProperties r = m.props();
        same("content-type", p.getContentType(), r.getContentType());
        same("content-encoding", p.getContentEncoding(), r.getContentEncoding());
        same("delivery-mode", p.getDeliveryMode(), r.getDeliveryMode());
        same("priority", p.getPriority(), r.getPriority());
        same("correlation-id", p.getCorrelationId(), r.getCorrelationId());
        same("reply-to", p.getReplyTo(), r.getReplyTo());
        same("expiration", p.getExpiration(), r.getExpiration());
        same("message-id", p.getMessageId(), r.getMessageId());
        same("timestamp", p.getTimestamp(), r.getTimestamp());
        same("type", p.getType(), r.getType());
        same("user-id", p.getUserId(), r.getUserId());
        same("app-id", p.getAppId(), r.getAppId());
        same("header names", h.keySet(), m.headers().keySet());
        for (String name : h.keySet()) {
            same("header " + name, h.get(name), plain(m.headers().get(name)));
        }
        r = in.next().props();
        for (Object v : new Object[] {r.getContentType(), r.getHeaders(), r.getDeliveryMode(), r.getPriority(), r.getTimestamp()}) {
            same("a property that was not sent", null, v);
        }
        r = in.next().props();
        same("empty headers", Map.of(), r.getHeaders());
        same("empty content type", "", r.getContentType());
    }

    static void s29_many_channels(Kit k) throws Exception {
        Connection c = k.connect();
        List<Inbox> inboxes = new ArrayList<>();
        for (int i = 1; i <= 200; i++) {
            Channel ch = c.createChannel(i);
            that(ch != null, "no channel " + i);
            String q = k.queueName("many");
            ch.queueDeclare(q, false, true, false, null);
            inboxes.add(consume(ch, q, true));
            publish(ch, "", q, "message " + i);
        }
        for (int i = 1; i <= 200; i++) {
            same("channel " + i, "message " + i, inboxes.get(i - 1).next().text());
        }
        for (int i = 0; i < 50; i++) {
            Channel ch = c.createChannel(201);
            that(ch != null, "channel 201 is not free");
            String q = ch.queueDeclare().getQueue();
            publish(ch, "", q, "again " + i);
            same("on the reopened channel", "again " + i, await(ch, q).text());
            ch.close();
        }
        for (Inbox in : inboxes) {
            that(in.getChannel().isOpen(), "channel " + in.getChannel().getChannelNumber() + " is closed");
            same("more", 0, in.messages.size());
        }
    }

    static void s30_quorum_queue_delivery_limit(Kit k) throws Exception {
        Channel ch = k.confirming();
        String dlx = k.exchange(ch, "fanout");
        String dead = k.queue(ch, "dead");
        ch.queueBind(dead, dlx, "");
        String q = k.queue(ch, "quorum", "x-queue-type", "quorum", "x-delivery-limit", 2, "x-dead-letter-exchange", dlx);
        Inbox in = consume(ch, q, false);
        publish(ch, "", q, "poison");
        settled(ch);
        for (long n = 0; n <= 2; n++) {
            Msg m = in.next();
            Object count = m.headers().get("x-delivery-count");
            same("x-delivery-count", n, count == null ? 0L : ((Number) count).longValue());
            same("redelivered", n > 0, m.redelivered());
            ch.basicReject(m.tag(), true);
        }
        Msg m = await(ch, dead);
        same("dead", "poison", m.text());
        same("reason", "delivery_limit", xDeath(m).get(0).get("reason"));
        same("queue", q, xDeath(m).get(0).get("queue"));
        quiet("after the dead letter", in);
    }

    static void s31_consumer_priority_and_cancel(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "prio");
        Channel lower = k.channelOnNewConnection();
        Channel higher = k.channelOnNewConnection();
        higher.basicQos(3);
        Inbox low = consume(lower, q, false);
        Inbox high = consume(higher, q, false, "x-priority", 10);
        for (int i = 1; i <= 5; i++) {
            publish(ch, "", q, "" + i);
            settled(ch);
        }
        List<Msg> held = high.next(3);
        same("higher", List.of("1", "2", "3"), texts(held));
        same("lower", List.of("4", "5"), texts(low.next(2)));
        high.ack(held.get(0));
        quiet("nothing to do", high, low);
        publish(ch, "", q, "6");
        same("higher with credit again", "6", high.next().text());
        for (Msg m : List.of(held.get(1), held.get(2))) {
            high.ack(m);
        }
        high.cancel();
        publish(ch, "", q, "7");
        same("lower after the cancel", "7", low.next().text());
        quiet("after the cancel", high);
        ch.queueDelete(q);
        same("cancelled", low.tag, low.cancelled.get(PATIENCE, TimeUnit.MILLISECONDS));
        that(lower.isOpen(), "the channel of the cancelled consumer is closed");
        lower.queueDeclare().getQueue();
    }

    static void s32_nack_multiple_and_recover(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "settle");
        List<String> all = IntStream.rangeClosed(1, 6).mapToObj(i -> "" + i).toList();
        for (String t : all) {
            publish(ch, "", q, t);
        }
        settled(ch);
        Channel w = k.channel();
        Inbox in = consume(w, q, false);
        List<Msg> got = in.next(6);
        same("first", all, texts(got));
        w.basicNack(got.get(5).tag(), true, true);
        got = in.next(6);
        same("after nack", all, texts(got));
        for (Msg m : got) {
            that(m.redelivered(), m.text() + " not marked as redelivered");
        }
        w.basicAck(got.get(2).tag(), true);
        w.basicRecover(true);
        got = in.next(3);
        same("after ack and recover", List.of("4", "5", "6"), texts(got));
        for (Msg m : got) {
            that(m.redelivered(), m.text() + " not marked as redelivered");
        }
        w.basicNack(got.get(1).tag(), true, false); // dropped: no dead-letter exchange
        w.basicAck(0, true); // all that is left
        quiet("all settled", in);
        w.close();
        same("left", 0L, ready(ch, q));
    }

    static void s33_queue_expires(Kit k) throws Exception {
        Channel ch = k.confirming();
        String unused = k.queue(ch, "unused", "x-expires", 600);
        // a passive declare renews the lease: look seldom
        long pause = 1200;
        for (int tries = 0; tries < 4; tries++) {
            Thread.sleep(pause);
            if (!exists(ch.getConnection(), unused)) {
                break;
            }
            that(tries < 3, "the unused queue is still there");
            pause += 600;
        }

        String used = k.queue(ch, "used", "x-expires", 600);
        Inbox in = consume(ch, used, true);
        Thread.sleep(1500);
        same("consumers", 1L, ch.consumerCount(used));
        in.cancel();

        for (int tries = 0; ; tries++) {
            String renewed = k.queue(ch, "renewed", "x-expires", 600);
            publish(ch, "", renewed, "still here");
            settled(ch);
            boolean onTime = true;
            long last = System.nanoTime();
            long found = 1;
            for (int i = 0; i < 4; i++) {
                Thread.sleep(250);
                found = ch.queueDeclare(renewed, true, false, false, map("x-expires", 600)).getMessageCount();
                onTime &= System.nanoTime() - last < 500_000_000L;
                last = System.nanoTime();
            }
            if (onTime || tries == 3) { // else this machine was too slow for the question
                same("messages in the queue that was renewed", 1L, found);
                break;
            }
        }
    }

    static void s34_unacked_requeued_on_close(Kit k) throws Exception {
        Channel ch = k.confirming();
        String q = k.queue(ch, "close");
        List<String> all = IntStream.rangeClosed(1, 5).mapToObj(i -> "" + i).toList();
        for (String t : all) {
            publish(ch, "", q, t);
        }
        settled(ch);
        Channel w = k.channelOnNewConnection();
        Inbox first = consume(w, q, false);
        for (Msg m : first.next(5)) {
            that(!m.redelivered(), m.text() + " marked as redelivered");
        }
        w.close();
        Channel w2 = k.channelOnNewConnection();
        List<Msg> got = consume(w2, q, false).next(5);
        same("after channel close", all, texts(got));
        for (Msg m : got) {
            that(m.redelivered(), m.text() + " not marked as redelivered");
        }
        w2.getConnection().close();
        Channel w3 = k.channelOnNewConnection();
        got = consume(w3, q, true).next(5);
        same("after connection close", all, texts(got));
        for (Msg m : got) {
            that(m.redelivered(), m.text() + " not marked as redelivered");
        }
        w3.close();
        Thread.sleep(QUIET);
        same("auto-acked ones", 0L, ready(ch, q));
    }
}
