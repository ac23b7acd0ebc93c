import com.rabbitmq.client.*;
import java.util.*;
import java.util.concurrent.*;

/** A call is a message with a reply queue and a correlation id. */
public class Rpc {
    static final String QUEUE = "tutorial.java.rpc";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection server = factory.newConnection(); Connection client = factory.newConnection()) {
            Channel serving = server.createChannel();
            serving.queueDelete(QUEUE);
            serving.queueDeclare(QUEUE, false, false, false, null);
            serving.basicQos(1);
            serving.basicConsume(QUEUE, false, (tag, request) -> {
                AMQP.BasicProperties answer = new AMQP.BasicProperties.Builder()
                        .correlationId(request.getProperties().getCorrelationId()).build();
                int n = Integer.parseInt(new String(request.getBody()));
                serving.basicPublish("", request.getProperties().getReplyTo(), answer, ("" + fibonacci(n)).getBytes());
                serving.basicAck(request.getEnvelope().getDeliveryTag(), false);
            }, tag -> {});

            Channel calling = client.createChannel();
            int[] expected = {0, 1, 1, 2, 3, 5, 8, 13, 21, 34};
            for (int n = 0; n < expected.length; n++) {
                String got = call(calling, "" + n);
                if (!got.equals("" + expected[n])) {
                    throw new IllegalStateException("fibonacci(" + n + ") = " + got);
                }
            }
            serving.queueDelete(QUEUE);
        }
        System.out.println("ok java rpc");
    }

    static String call(Channel channel, String argument) throws Exception {
        String id = UUID.randomUUID().toString();
        String replies = channel.queueDeclare().getQueue();
        CompletableFuture<String> answer = new CompletableFuture<>();
        String tag = channel.basicConsume(replies, true, (t, delivery) -> {
            if (id.equals(delivery.getProperties().getCorrelationId())) {
                answer.complete(new String(delivery.getBody()));
            }
        }, t -> {});
        AMQP.BasicProperties request = new AMQP.BasicProperties.Builder().correlationId(id).replyTo(replies).build();
        channel.basicPublish("", QUEUE, request, argument.getBytes());
        String got = answer.get(10, TimeUnit.SECONDS);
        channel.basicCancel(tag);
        return got;
    }

    static int fibonacci(int n) {
        return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2);
    }
}
