import com.rabbitmq.client.*;
import java.util.*;
import java.util.concurrent.*;

/** Tasks in a durable queue are shared by workers that take one at a time; the task of a worker that dies is not lost. */
public class WorkQueues {
    static final String QUEUE = "tutorial.java.tasks";

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);
        Set<String> done = ConcurrentHashMap.newKeySet();
        CountDownLatch allDone = new CountDownLatch(12);

        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            channel.queueDelete(QUEUE);
            channel.queueDeclare(QUEUE, true, false, false, null);

            // a worker that takes its first task to the grave
            Connection mortal = factory.newConnection();
            Channel deathbed = mortal.createChannel();
            deathbed.basicQos(1);
            CountDownLatch tookOne = new CountDownLatch(1);
            deathbed.basicConsume(QUEUE, false, (tag, task) -> tookOne.countDown(), tag -> {});

            for (int i = 1; i <= 12; i++) {
                channel.basicPublish("", QUEUE, MessageProperties.PERSISTENT_TEXT_PLAIN, ("task " + i).getBytes());
            }
            if (!tookOne.await(10, TimeUnit.SECONDS)) {
                throw new IllegalStateException("the first worker got no task");
            }
            mortal.close();

            for (int worker = 0; worker < 2; worker++) {
                Channel own = connection.createChannel();
                own.basicQos(1);
                own.basicConsume(QUEUE, false, (tag, task) -> {
                    done.add(new String(task.getBody()));
                    own.basicAck(task.getEnvelope().getDeliveryTag(), false);
                    allDone.countDown();
                }, tag -> {});
            }
            if (!allDone.await(10, TimeUnit.SECONDS) || done.size() != 12) {
                throw new IllegalStateException("done: " + done);
            }
            channel.queueDelete(QUEUE);
        }
        System.out.println("ok java work_queue");
    }
}
