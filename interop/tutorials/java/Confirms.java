import com.rabbitmq.client.*;
import java.util.concurrent.*;

/** The broker confirms what it has taken over: one by one, in batches, and while the publisher goes on. */
public class Confirms {
    static final int COUNT = 500;

    public static void main(String[] args) throws Exception {
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(args[0]);

        try (Connection connection = factory.newConnection(); Channel channel = connection.createChannel()) {
            String queue = channel.queueDeclare().getQueue();
            channel.confirmSelect();

            for (int i = 0; i < 50; i++) {
                channel.basicPublish("", queue, null, ("single " + i).getBytes());
                channel.waitForConfirmsOrDie(10_000);
            }

            for (int i = 0; i < COUNT; i++) {
                channel.basicPublish("", queue, null, ("batch " + i).getBytes());
                if (i % 100 == 99) {
                    channel.waitForConfirmsOrDie(10_000);
                }
            }

            ConcurrentNavigableMap<Long, String> outstanding = new ConcurrentSkipListMap<>();
            CountDownLatch refused = new CountDownLatch(1);
            channel.addConfirmListener((tag, multiple) -> {
                if (multiple) {
                    outstanding.headMap(tag, true).clear();
                } else {
                    outstanding.remove(tag);
                }
            }, (tag, multiple) -> refused.countDown());
            for (int i = 0; i < COUNT; i++) {
                outstanding.put(channel.getNextPublishSeqNo(), "async " + i);
                channel.basicPublish("", queue, null, ("async " + i).getBytes());
            }
            for (long end = System.nanoTime() + 10_000_000_000L; !outstanding.isEmpty() && System.nanoTime() < end; ) {
                Thread.sleep(5);
            }
            if (!outstanding.isEmpty() || refused.getCount() == 0) {
                throw new IllegalStateException("not confirmed: " + outstanding.values());
            }

            int ready = channel.queueDeclarePassive(queue).getMessageCount();
            if (ready != 50 + 2 * COUNT) {
                throw new IllegalStateException("confirmed " + (50 + 2 * COUNT) + ", in the queue " + ready);
            }
        }
        System.out.println("ok java confirms");
    }
}
