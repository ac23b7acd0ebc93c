import com.rabbitmq.client.*;
import java.util.*;
import java.util.concurrent.*;

/** A direct exchange: one subscriber wants errors only, another every severity. */
public class Routing {
    static final String EXCHANGE = "tutorial.java.direct_logs";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.exchangeDeclare(EXCHANGE, BuiltinExchangeType.DIRECT);
            BlockingQueue<String> disk = subscribe(channel, "error");
            BlockingQueue<String> screen = subscribe(channel, "info", "warning", "error");
            for (String severity : List.of("info", "error", "debug", "warning", "error")) {
                channel.basicPublish(EXCHANGE, severity, null, severity.getBytes());
            }
            expect(disk, "error", "error");
            expect(screen, "info", "error", "warning", "error");
            channel.exchangeDelete(EXCHANGE);
        }
        System.out.println("ok java routing");
    }

    static BlockingQueue<String> subscribe(Channel channel, String... severities) throws Exception {
        BlockingQueue<String> lines = new LinkedBlockingQueue<>();
        String queue = channel.queueDeclare().getQueue();
        for (String severity : severities) {
            channel.queueBind(queue, EXCHANGE, severity);
        }
        channel.basicConsume(queue, true, (tag, delivery) -> lines.add(delivery.getEnvelope().getRoutingKey()), tag -> {});
        return lines;
    }

    static void expect(BlockingQueue<String> lines, String... expected) throws Exception {
        for (String e : expected) {
            String got = lines.poll(10, TimeUnit.SECONDS);
            if (!e.equals(got)) {
                throw new IllegalStateException("expected " + e + ", got " + got);
            }
        }
        if (!lines.isEmpty()) {
            throw new IllegalStateException("too much: " + lines);
        }
    }
}
