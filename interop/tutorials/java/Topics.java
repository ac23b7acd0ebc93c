import com.rabbitmq.client.*;
import java.util.*;
import java.util.concurrent.*;

/** A topic exchange: `*` is one word, `#` any number of them. */
public class Topics {
    static final String EXCHANGE = "tutorial.java.topic_logs";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.exchangeDeclare(EXCHANGE, BuiltinExchangeType.TOPIC);
            BlockingQueue<String> orange = subscribe(channel, "*.orange.*");
            BlockingQueue<String> lazyOrRabbit = subscribe(channel, "*.*.rabbit", "lazy.#");
            for (String key : List.of("quick.orange.rabbit", "lazy.orange.elephant", "quick.orange.fox", "lazy.brown.fox",
                    "lazy.pink.rabbit", "quick.brown.fox", "orange", "lazy.orange.new.rabbit")) {
                channel.basicPublish(EXCHANGE, key, null, key.getBytes());
            }
            expect(orange, "quick.orange.rabbit", "lazy.orange.elephant", "quick.orange.fox");
            expect(lazyOrRabbit, "quick.orange.rabbit", "lazy.orange.elephant", "lazy.brown.fox", "lazy.pink.rabbit",
                    "lazy.orange.new.rabbit");
            channel.exchangeDelete(EXCHANGE);
        }
        System.out.println("ok java topics");
    }

    static BlockingQueue<String> subscribe(Channel channel, String... patterns) throws Exception {
        BlockingQueue<String> keys = new LinkedBlockingQueue<>();
        String queue = channel.queueDeclare().getQueue();
        for (String pattern : patterns) {
            channel.queueBind(queue, EXCHANGE, pattern);
        }
        channel.basicConsume(queue, true, (tag, delivery) -> keys.add(delivery.getEnvelope().getRoutingKey()), tag -> {});
        return keys;
    }

    static void expect(BlockingQueue<String> keys, String... expected) throws Exception {
        for (String e : expected) {
            String got = keys.poll(10, TimeUnit.SECONDS);
            if (!e.equals(got)) {
                throw new IllegalStateException("expected " + e + ", got " + got);
            }
        }
        if (!keys.isEmpty()) {
            throw new IllegalStateException("too much: " + keys);
        }
    }
}
