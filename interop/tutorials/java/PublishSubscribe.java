import com.rabbitmq.client.*;
import java.util.concurrent.*;

/** A fanout exchange copies each log line to every subscriber's own queue. */
public class PublishSubscribe {
    static final String EXCHANGE = "tutorial.java.logs";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.exchangeDeclare(EXCHANGE, BuiltinExchangeType.FANOUT);
            BlockingQueue<String> screen = subscribe(channel);
            BlockingQueue<String> file = subscribe(channel);
            for (int i = 1; i <= 3; i++) {
                channel.basicPublish(EXCHANGE, "", null, ("line " + i).getBytes());
            }
            for (int i = 1; i <= 3; i++) {
                String onScreen = screen.poll(10, TimeUnit.SECONDS);
                String inFile = file.poll(10, TimeUnit.SECONDS);
                if (!("line " + i).equals(onScreen) || !("line " + i).equals(inFile)) {
                    throw new IllegalStateException("line " + i + ": " + onScreen + ", " + inFile);
                }
            }
            channel.exchangeDelete(EXCHANGE);
        }
        System.out.println("ok java publish_subscribe");
    }

    static BlockingQueue<String> subscribe(Channel channel) throws Exception {
        BlockingQueue<String> lines = new LinkedBlockingQueue<>();
        String queue = channel.queueDeclare().getQueue();
        channel.queueBind(queue, EXCHANGE, "");
        channel.basicConsume(queue, true, (tag, delivery) -> lines.add(new String(delivery.getBody())), tag -> {});
        return lines;
    }
}
