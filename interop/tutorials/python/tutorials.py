"""The six classic tutorial programs, each in one self-checking run. usage: tutorials.py URI NAME"""

import sys
import uuid

import pika

connection = pika.BlockingConnection(pika.URLParameters(sys.argv[1]))
channel = connection.channel()
run = uuid.uuid4().hex[:8]


def receive(queue, count, on_message=None):
    got = []
    for method, properties, body in channel.consume(queue, inactivity_timeout=10):
        assert method is not None, f"waited 10 s, have {got}"
        got.append(body.decode())
        if on_message:
            on_message(properties, body)
        channel.basic_ack(method.delivery_tag)
        if len(got) == count:
            channel.cancel()
            return got


def private_queue(exchange, *keys):
    queue = channel.queue_declare("", exclusive=True).method.queue
    for key in keys:
        channel.queue_bind(queue, exchange, key)
    return queue


def work_queue():
    queue = f"tasks-{run}"
    channel.queue_declare(queue, durable=True)
    channel.basic_qos(prefetch_count=1)
    for n in range(5):
        channel.basic_publish("", queue, f"task {n}", pika.BasicProperties(delivery_mode=2))
    assert receive(queue, 5) == [f"task {n}" for n in range(5)]
    channel.queue_delete(queue)


def publish_subscribe():
    channel.exchange_declare(f"logs-{run}", "fanout")
    listeners = [private_queue(f"logs-{run}", "") for _ in range(2)]
    channel.basic_publish(f"logs-{run}", "", "hello")
    assert [receive(queue, 1) for queue in listeners] == [["hello"], ["hello"]]
    channel.exchange_delete(f"logs-{run}")


def routing():
    channel.exchange_declare(f"direct-{run}", "direct")
    errors, everything = private_queue(f"direct-{run}", "error"), private_queue(f"direct-{run}", "info", "warning", "error")
    for key in ("info", "error", "warning", "debug"):
        channel.basic_publish(f"direct-{run}", key, key)
    assert receive(everything, 3) == ["info", "error", "warning"]
    assert receive(errors, 1) == ["error"]
    channel.exchange_delete(f"direct-{run}")


def topics():
    channel.exchange_declare(f"topic-{run}", "topic")
    kernel, critical = private_queue(f"topic-{run}", "kern.*"), private_queue(f"topic-{run}", "*.critical", "all.#")
    for key in ("kern.info", "kern.critical", "cron.critical", "all.of.it", "cron.info"):
        channel.basic_publish(f"topic-{run}", key, key)
    assert receive(kernel, 2) == ["kern.info", "kern.critical"]
    assert receive(critical, 3) == ["kern.critical", "cron.critical", "all.of.it"]
    channel.exchange_delete(f"topic-{run}")


def rpc():
    requests = channel.queue_declare(f"rpc-{run}", auto_delete=True).method.queue
    replies = channel.queue_declare("", exclusive=True).method.queue
    channel.basic_publish("", requests, "30", pika.BasicProperties(reply_to=replies, correlation_id=run))

    def serve(properties, body):
        a, b = 0, 1
        for _ in range(int(body)):
            a, b = b, a + b
        channel.basic_publish("", properties.reply_to, str(a), pika.BasicProperties(correlation_id=properties.correlation_id))

    receive(requests, 1, serve)
    ids = []
    assert receive(replies, 1, lambda properties, _: ids.append(properties.correlation_id)) == ["832040"]
    assert ids == [run]


def confirms():
    channel.confirm_delivery()
    queue = channel.queue_declare("", exclusive=True).method.queue
    for n in range(50):
        channel.basic_publish("", queue, str(n), mandatory=True)  # raises when it is not confirmed
    assert channel.queue_declare(queue, passive=True).method.message_count == 50


{f.__name__: f for f in (work_queue, publish_subscribe, routing, topics, rpc, confirms)}[sys.argv[2]]()
connection.close()
