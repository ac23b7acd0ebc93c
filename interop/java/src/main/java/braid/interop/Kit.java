package braid.interop;

import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.AlreadyClosedException;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import com.rabbitmq.client.GetResponse;
import com.rabbitmq.client.LongString;
import com.rabbitmq.client.Method;
import com.rabbitmq.client.ShutdownSignalException;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.security.SecureRandom;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;

/** What one scenario has in hand: connections, fresh names that are removed at the end, and assertions that say what they saw. */
final class Kit {

    static final class Skip extends RuntimeException {
        Skip(String why) {
            super(why);
        }
    }

    static final class Failed extends RuntimeException {
        Failed(String what) {
            super(what);
        }
    }

    interface Step {
        void run(Channel ch) throws Exception;
    }

    interface Condition {
        boolean holds() throws Exception;
    }

    static final int PATIENCE = 10_000;
    /** How long we look for something that must not come. */
    static final int QUIET = 250;

    static final AMQP.BasicProperties TRANSIENT = new AMQP.BasicProperties.Builder().deliveryMode(1).build();
    static final AMQP.BasicProperties PERSISTENT = new AMQP.BasicProperties.Builder().deliveryMode(2).build();

    private static final SecureRandom RANDOM = new SecureRandom();

    final boolean rabbit;
    final boolean rabbitBefore4;
    final String restartCmd;
    private final ConnectionFactory factory;
    private final List<Connection> connections = new ArrayList<>();
    private final List<String> queues = new ArrayList<>();
    private final List<String> exchanges = new ArrayList<>();
    private Connection main;

    Kit(ConnectionFactory factory, boolean rabbit, boolean rabbitBefore4, String restartCmd) {
        this.factory = factory;
        this.rabbit = rabbit;
        this.rabbitBefore4 = rabbitBefore4;
        this.restartCmd = restartCmd;
    }

    // --- connections and names ---

    Connection connect() throws Exception {
        Connection c = connectPatiently(factory, 10);
        synchronized (connections) {
            connections.add(c);
        }
        return c;
    }

    /** A broker that is starting refuses for a while. */
    static Connection connectPatiently(ConnectionFactory factory, int seconds) throws Exception {
        long end = System.nanoTime() + TimeUnit.SECONDS.toNanos(seconds);
        while (true) {
            try {
                return factory.newConnection();
            } catch (IOException | TimeoutException e) {
                if (System.nanoTime() > end) {
                    throw e;
                }
                Thread.sleep(100);
            }
        }
    }

    Channel channel() throws Exception {
        if (main == null || !main.isOpen()) {
            main = connect();
        }
        return main.createChannel();
    }

    Channel channelOnNewConnection() throws Exception {
        return connect().createChannel();
    }

    static String fresh(String what) {
        byte[] r = new byte[6];
        RANDOM.nextBytes(r);
        return "interop.java." + what + "." + HexFormat.of().formatHex(r);
    }

    String queueName(String what) {
        String name = fresh(what);
        queues.add(name);
        return name;
    }

    String exchangeName(String what) {
        String name = fresh(what);
        exchanges.add(name);
        return name;
    }

    String queue(Channel ch, String what, Object... args) throws IOException {
        String name = queueName(what);
        ch.queueDeclare(name, true, false, false, map(args));
        return name;
    }

    String exchange(Channel ch, String type, Object... args) throws IOException {
        String name = exchangeName(type);
        ch.exchangeDeclare(name, type, true, false, map(args));
        return name;
    }

    /** An exchange of a type that a RabbitMQ may not have: then the scenario is skipped there. */
    String pluginExchange(String type, Object... args) throws Exception {
        String name = exchangeName(type);
        Connection own = connect();
        try (Channel ch = own.createChannel()) {
            ch.exchangeDeclare(name, type, true, false, map(args));
            return name;
        } catch (IOException | ShutdownSignalException e) {
            if (rabbit) {
                throw new Skip("this RabbitMQ has no exchange type " + type);
            }
            throw e;
        }
    }

    void braidOnly() {
        if (rabbit) {
            throw new Skip("Braid only");
        }
    }

    void cleanUp() {
        synchronized (connections) {
            for (Connection c : connections) {
                c.abort(2000);
            }
        }
        if (queues.isEmpty() && exchanges.isEmpty()) {
            return;
        }
        try (Connection c = connectPatiently(factory, 10)) {
            for (String q : queues) {
                attempt(c, ch -> ch.queueDelete(q));
            }
            for (String x : exchanges) {
                attempt(c, ch -> ch.exchangeDelete(x));
            }
        } catch (Exception e) {
            System.err.println("cleaning up: " + e);
        }
    }

    private static void attempt(Connection c, Step step) throws Exception {
        Channel ch = c.createChannel();
        try {
            step.run(ch);
            ch.close();
        } catch (IOException e) {
            System.err.println("cleaning up: " + e.getCause());
        }
    }

    static Map<String, Object> map(Object... pairs) {
        Map<String, Object> m = new HashMap<>();
        for (int i = 0; i < pairs.length; i += 2) {
            m.put((String) pairs[i], pairs[i + 1]);
        }
        return m;
    }

    // --- messages ---

    record Msg(String consumer, Envelope envelope, AMQP.BasicProperties props, byte[] body) {
        String text() {
            return new String(body, StandardCharsets.UTF_8);
        }

        boolean redelivered() {
            return envelope.isRedeliver();
        }

        long tag() {
            return envelope.getDeliveryTag();
        }

        Map<String, Object> headers() {
            return props.getHeaders() == null ? Map.of() : props.getHeaders();
        }
    }

    /** A consumer whose deliveries wait until the scenario takes them. */
    static final class Inbox extends DefaultConsumer {
        final LinkedBlockingQueue<Msg> messages = new LinkedBlockingQueue<>();
        final CompletableFuture<String> cancelled = new CompletableFuture<>();
        String tag;

        Inbox(Channel ch) {
            super(ch);
        }

        @Override
        public void handleDelivery(String tag, Envelope e, AMQP.BasicProperties p, byte[] body) {
            messages.add(new Msg(tag, e, p, body));
        }

        @Override
        public void handleCancel(String tag) {
            cancelled.complete(tag);
        }

        Msg next() throws InterruptedException {
            Msg m = messages.poll(PATIENCE, TimeUnit.MILLISECONDS);
            if (m == null) {
                throw new Failed("no delivery after " + PATIENCE + " ms");
            }
            return m;
        }

        List<Msg> next(int n) throws InterruptedException {
            List<Msg> got = new ArrayList<>();
            while (got.size() < n) {
                Msg m = messages.poll(PATIENCE, TimeUnit.MILLISECONDS);
                if (m == null) {
                    throw new Failed("only " + got.size() + " of " + n + " deliveries came: " + texts(got));
                }
                got.add(m);
            }
            return got;
        }

        void ack(Msg m) throws IOException {
            getChannel().basicAck(m.tag(), false);
        }

        void cancel() throws IOException {
            getChannel().basicCancel(tag);
        }
    }

    static Inbox consume(Channel ch, String queue, boolean autoAck, Object... args) throws IOException {
        Inbox in = new Inbox(ch);
        in.tag = ch.basicConsume(queue, autoAck, "", false, false, map(args), in);
        return in;
    }

    static void quiet(String what, Inbox... inboxes) throws InterruptedException {
        Thread.sleep(QUIET);
        for (Inbox in : inboxes) {
            if (!in.messages.isEmpty()) {
                throw new Failed(what + ": unexpected delivery of " + texts(List.copyOf(in.messages)));
            }
        }
    }

    static void publish(Channel ch, String exchange, String key, String text) throws IOException {
        publish(ch, exchange, key, PERSISTENT, text);
    }

    static void publish(Channel ch, String exchange, String key, AMQP.BasicProperties p, String text) throws IOException {
        ch.basicPublish(exchange, key, p, text.getBytes(StandardCharsets.UTF_8));
    }

    static AMQP.BasicProperties headers(Object... pairs) {
        return PERSISTENT.builder().headers(map(pairs)).build();
    }

    /** A channel in confirm mode. */
    Channel confirming() throws Exception {
        Channel ch = channel();
        ch.confirmSelect();
        return ch;
    }

    static void settled(Channel confirming) throws Exception {
        confirming.waitForConfirmsOrDie(PATIENCE);
    }

    static List<String> texts(List<Msg> messages) {
        return messages.stream().map(Msg::text).toList();
    }

    /** What is in the queue now, taken out by basic.get. */
    static List<Msg> drain(Channel ch, String queue) throws IOException {
        List<Msg> got = new ArrayList<>();
        for (GetResponse r; (r = ch.basicGet(queue, true)) != null; ) {
            got.add(new Msg(null, r.getEnvelope(), r.getProps(), r.getBody()));
        }
        return got;
    }

    /** The next message of a queue that is filled by somebody else. */
    static Msg await(Channel ch, String queue) throws Exception {
        GetResponse[] r = new GetResponse[1];
        eventually("a message in " + queue, () -> (r[0] = ch.basicGet(queue, true)) != null);
        return new Msg(null, r[0].getEnvelope(), r[0].getProps(), r[0].getBody());
    }

    static long ready(Channel ch, String queue) throws IOException {
        return ch.queueDeclarePassive(queue).getMessageCount();
    }

    static void readyBecomes(Channel ch, String queue, long n) throws Exception {
        eventually(n + " ready messages in " + queue, () -> ready(ch, queue) == n);
    }

    // --- assertions ---

    static void eventually(String what, Condition c) throws Exception {
        long end = System.nanoTime() + TimeUnit.MILLISECONDS.toNanos(PATIENCE);
        while (!c.holds()) {
            if (System.nanoTime() > end) {
                throw new Failed("waited in vain for " + what);
            }
            Thread.sleep(10);
        }
    }

    static void that(boolean holds, String what) {
        if (!holds) {
            throw new Failed(what);
        }
    }

    static void same(String what, Object expected, Object got) {
        if (!Objects.deepEquals(expected, got)) {
            throw new Failed(what + ": expected " + expected + ", got " + got);
        }
    }

    /** Strings in tables arrive as LongString. */
    static Object plain(Object v) {
        if (v instanceof LongString) {
            return v.toString();
        }
        if (v instanceof List<?> l) {
            return l.stream().map(Kit::plain).toList();
        }
        if (v instanceof Map<?, ?> m) {
            Map<Object, Object> r = new HashMap<>();
            m.forEach((k, x) -> r.put(k, plain(x)));
            return r;
        }
        return v;
    }

    static String string(Object v) {
        return v == null ? null : v.toString();
    }

    @SuppressWarnings("unchecked")
    static List<Map<String, Object>> xDeath(Msg m) {
        Object v = plain(m.headers().get("x-death"));
        that(v instanceof List, "no x-death in " + m.headers());
        return (List<Map<String, Object>>) v;
    }

    /** On a fresh channel of `c`, `step` closes the channel with this code and text; the connection stays. */
    static void closesChannel(Connection c, String what, int code, String text, Step step) throws Exception {
        Channel ch = c.createChannel();
        that(ch != null, what + ": no channel left");
        CompletableFuture<ShutdownSignalException> closed = new CompletableFuture<>();
        ch.addShutdownListener(closed::complete);
        try {
            step.run(ch);
        } catch (IOException | AlreadyClosedException e) {
            // the reason comes through the listener
        }
        ShutdownSignalException why;
        try {
            why = closed.get(PATIENCE, TimeUnit.MILLISECONDS);
        } catch (TimeoutException | ExecutionException e) {
            throw new Failed(what + ": the channel was not closed");
        }
        Method reason = why.getReason();
        if (why.isHardError()) {
            throw new Failed(what + ": the connection was closed: " + why.getMessage());
        }
        if (!(reason instanceof AMQP.Channel.Close close)) {
            throw new Failed(what + ": closed by " + reason);
        }
        // reply-text is a short string: RabbitMQ keeps 252 bytes and three dots of what does not fit
        String cut = text.length() > 255 ? text.substring(0, 252) + "..." : text;
        same(what, code + " " + cut, close.getReplyCode() + " " + close.getReplyText());
        that(c.isOpen(), what + ": the connection is closed too");
    }

    static boolean exists(Connection c, String queue) throws Exception {
        return passes(c, ch -> ch.queueDeclarePassive(queue));
    }

    static boolean exchangeExists(Connection c, String exchange) throws Exception {
        return passes(c, ch -> ch.exchangeDeclarePassive(exchange));
    }

    /** A passive declare: true, or 404; anything else is a failure. */
    private static boolean passes(Connection c, Step passive) throws Exception {
        Channel ch = c.createChannel();
        try {
            passive.run(ch);
            ch.close();
            return true;
        } catch (IOException e) {
            if (e.getCause() instanceof ShutdownSignalException s && s.getReason() instanceof AMQP.Channel.Close close
                    && close.getReplyCode() == 404) {
                return false;
            }
            throw e;
        }
    }
}
