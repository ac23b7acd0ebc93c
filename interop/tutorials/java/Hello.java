import com.rabbitmq.client.*;
import java.util.concurrent.*;

/** One program sends a message to a queue, another receives it. */
public class Hello {
    static final String QUEUE = "tutorial.java.hello";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection sender = factory.newConnection(); Channel channel = sender.createChannel()) {
            channel.queueDelete(QUEUE);
            channel.queueDeclare(QUEUE, false, false, false, null);
            channel.basicPublish("", QUEUE, null, "Hello World!".getBytes());
        }

        try (Connection receiver = factory.newConnection(); Channel channel = receiver.createChannel()) {
            channel.queueDeclare(QUEUE, false, false, false, null);
            CompletableFuture<String> received = new CompletableFuture<>();
            channel.basicConsume(QUEUE, true,
                    (tag, delivery) -> received.complete(new String(delivery.getBody())), tag -> {});
            String text = received.get(10, TimeUnit.SECONDS);
            channel.queueDelete(QUEUE);
            if (!text.equals("Hello World!")) {
                throw new IllegalStateException("received " + text);
            }
        }
        System.out.println("ok java hello");
    }
}
