"""The scenarios of ../SCENARIOS.md with pika."""

import datetime
import decimal
import os
import sys
import time

import pika
from pika.exceptions import ChannelClosedByBroker, NackError, UnroutableError

from harness import Inbox, Skip, check, equal, main, scenario

PERSISTENT = pika.BasicProperties(delivery_mode=2)


def put(channel, queue, *bodies, exchange="", **properties):
    for body in bodies:
        body = body if isinstance(body, bytes) else str(body).encode()
        channel.basic_publish(exchange, queue, body, pika.BasicProperties(**properties))


@scenario(1)
def work_queue_acks_and_retry(run):
    setup = run.channel(confirm=True)
    queue = run.queue(setup, durable=True)
    tasks = [str(n) for n in range(20)]
    done, again = [], []

    def work(channel, message):
        task = message.body.decode()
        if int(task) % 3 == 0 and not message.redelivered:
            channel.basic_nack(message.tag, requeue=True)
            return
        if int(task) % 3 == 0:
            again.append(task)
        check(message.redelivered == (int(task) % 3 == 0), f"redelivered of task {task} is {message.redelivered}")
        channel.basic_ack(message.tag)
        done.append(task)

    for _ in range(2):
        Inbox(run.channel(run.connect()), queue, prefetch=1, on_message=work)
    put(setup, queue, *tasks, delivery_mode=2)
    run.until(lambda: len(done) >= 20, lambda: f"20 tasks, have {done}")
    run.quiet()
    equal(sorted(done, key=int), tasks, "tasks done")
    equal(sorted(again, key=int), tasks[::3], "tasks done at the second delivery")
    equal(run.ready(queue), (0, 2), "messages and consumers")


@scenario(2)
def topic_logs(run):
    channel = run.channel()
    exchange = run.exchange(channel, "topic")
    keys = ["auth.error", "auth.info", "kernel.error", "kernel.info", "auth.login.error", "auth", ""]
    want = {
        "*.error": ["auth.error", "kernel.error"],
        "#": keys,
        "auth.*": ["auth.error", "auth.info"],
    }
    inboxes = {}
    for pattern in want:
        queue = run.queue(channel, exclusive=True)
        channel.queue_bind(queue, exchange, pattern)
        inboxes[pattern] = Inbox(channel, queue, auto_ack=True)
    for key in keys:
        put(channel, key, key, exchange=exchange)
    for pattern, expected in want.items():
        run.take(inboxes[pattern], len(expected))
    run.quiet()
    for pattern, expected in want.items():
        equal(inboxes[pattern].bodies, expected, f"messages of {pattern}")
        equal([m.routing_key for m in inboxes[pattern].messages], expected, f"routing keys of {pattern}")


def check_death(headers, index, queue, reason, count, exchange, keys):
    death = headers["x-death"][index]
    equal(death["queue"], queue, "x-death queue")
    equal(death["reason"], reason, "x-death reason")
    equal(death["count"], count, "x-death count")
    equal(death["exchange"], exchange, "x-death exchange")
    equal(death["routing-keys"], keys, "x-death routing-keys")
    check(isinstance(death["time"], datetime.datetime), "x-death time is a timestamp")
    return death


@scenario(3)
def dead_letter_after_ttl(run):
    channel = run.channel()
    dlx = run.exchange(channel, "fanout")
    dead = run.queue(channel)
    channel.queue_bind(dead, dlx)
    inbox = Inbox(channel, dead, auto_ack=True)
    by_queue = run.queue(channel, arguments={"x-message-ttl": 200, "x-dead-letter-exchange": dlx})
    by_message = run.queue(channel, arguments={"x-dead-letter-exchange": dlx, "x-dead-letter-routing-key": "moved"})
    began = time.monotonic()
    put(channel, by_queue, "a", headers={"mine": 7})
    run.take(inbox, 1)
    put(channel, by_message, "b", expiration="150")
    run.take(inbox, 2)
    a, b = inbox.messages
    check(a.at - began >= 0.2, "came before its TTL")
    equal(inbox.bodies, ["a", "b"], "dead letters")
    equal((a.exchange, a.routing_key), (dlx, by_queue), "exchange and key of a")
    equal((b.exchange, b.routing_key), (dlx, "moved"), "exchange and key of b")
    check_death(a.headers, 0, by_queue, "expired", 1, "", [by_queue])
    equal(a.headers["mine"], 7, "own header")
    check("original-expiration" not in a.headers["x-death"][0], "a had no expiration")
    death = check_death(b.headers, 0, by_message, "expired", 1, "", [by_message])
    equal(death["original-expiration"], "150", "original-expiration")
    equal(b.properties.expiration, None, "expiration of the dead letter")
    for message, queue in ((a, by_queue), (b, by_message)):
        equal(message.headers["x-first-death-queue"], queue, "x-first-death-queue")
        equal(message.headers["x-first-death-reason"], "expired", "x-first-death-reason")
        equal(message.headers["x-first-death-exchange"], "", "x-first-death-exchange")


@scenario(4, braid_only=True)
def dead_letter_after_three_retries(run):
    for how in ("nack", "reject"):
        channel = run.channel()
        dlx = run.exchange(channel, "fanout")
        dead = run.queue(channel)
        channel.queue_bind(dead, dlx)
        queue = run.queue(channel, arguments={"x-max-retries": 3, "x-dead-letter-exchange": dlx})
        seen, good = [], []

        def work(channel, message):
            if message.body == b"bad":
                seen.append(message.redelivered)
                if how == "nack":
                    channel.basic_nack(message.tag, requeue=True)
                else:
                    channel.basic_reject(message.tag, requeue=True)
            else:
                good.append(message.body.decode())
                channel.basic_ack(message.tag)

        Inbox(channel, queue, prefetch=1, on_message=work)
        letters = Inbox(run.channel(), dead, auto_ack=True)
        put(channel, queue, "before", "bad", "after")
        run.take(letters, 1, "dead letters")
        run.until(lambda: len(good) == 2, "the neighbours")
        run.quiet()
        equal(seen, [False, True, True, True], f"redelivered flags by {how}")
        equal(good, ["before", "after"], "neighbours")
        equal(letters.bodies, ["bad"], "dead letters")
        check_death(letters.messages[0].headers, 0, queue, "delivery_limit", 1, "", [queue])
        equal(run.ready(queue)[0], 0, "messages left")


@scenario(5)
def fanout_to_two_services(run):
    channel = run.channel()
    exchange = run.exchange(channel, "fanout", durable=True)
    services = [run.queue(channel, durable=True) for _ in range(2)]
    for queue in services:
        channel.queue_bind(queue, exchange, "")
        channel.queue_bind(queue, exchange, "another key")
    inboxes = [Inbox(run.channel(run.connect()), queue, ack=True) for queue in services]
    events = [str(n) for n in range(10)]
    for event in events:
        put(channel, f"any.{event}", event, exchange=exchange)
    for inbox in inboxes:
        run.take(inbox, 10)
    channel.queue_unbind(services[0], exchange, "")
    channel.queue_unbind(services[0], exchange, "another key")
    put(channel, "", "last", exchange=exchange)
    run.take(inboxes[1], 11)
    run.quiet()
    equal(inboxes[0].bodies, events, "first service")
    equal(inboxes[1].bodies, [*events, "last"], "second service")


@scenario(6)
def rpc_reply_queue(run):
    channel = run.channel()
    requests = run.queue(channel)

    def serve(channel, message):
        put(channel, message.properties.reply_to, int(message.body) ** 2, correlation_id=message.properties.correlation_id)
        channel.basic_ack(message.tag)

    Inbox(run.channel(run.connect()), requests, prefetch=1, on_message=serve)
    replies = channel.queue_declare("", exclusive=True).method.queue
    check(replies.startswith("amq.gen-"), f"server-named queue is {replies}")
    inbox = Inbox(channel, replies, auto_ack=True)
    for n in range(10):
        put(channel, requests, n, reply_to=replies, correlation_id=f"call-{n}")
    run.take(inbox, 10, "answers")
    answers = {m.properties.correlation_id: int(m.body) for m in inbox.messages}
    equal(answers, {f"call-{n}": n * n for n in range(10)}, "answers")


@scenario(7)
def rpc_direct_reply_to(run):
    channel = run.channel()
    requests = run.queue(channel)
    names = []

    def serve(channel, message):
        names.append(message.properties.reply_to)
        put(channel, message.properties.reply_to, int(message.body) ** 2, correlation_id=message.properties.correlation_id)
        channel.basic_ack(message.tag)

    Inbox(run.channel(run.connect()), requests, prefetch=1, on_message=serve)
    inbox = Inbox(channel, "amq.rabbitmq.reply-to", auto_ack=True)
    for n in range(10):
        put(channel, requests, n, reply_to="amq.rabbitmq.reply-to", correlation_id=f"call-{n}")
    run.take(inbox, 10, "answers")
    answers = {m.properties.correlation_id: int(m.body) for m in inbox.messages}
    equal(answers, {f"call-{n}": n * n for n in range(10)}, "answers")
    check(all(name.startswith("amq.rabbitmq.reply-to.") for name in names), f"reply-to was rewritten: {names[:1]}")
    other = run.channel()

    def without_consumer():
        put(other, requests, 1, reply_to="amq.rabbitmq.reply-to")
        other.queue_declare(requests, passive=True)

    run.refused(406, "PRECONDITION_FAILED - fast reply consumer does not exist", without_consumer, "no reply consumer")


@scenario(8)
def priorities(run):
    channel = run.channel()
    queue = run.queue(channel, arguments={"x-max-priority": 10})
    sent = [("low1", 1), ("none1", None), ("high1", 9), ("mid1", 5), ("low2", 1), ("over1", 200), ("none2", 0), ("high2", 9), ("top1", 10), ("mid2", 5)]
    for body, priority in sent:
        put(channel, queue, body, priority=priority)
    run.until_ready(queue, len(sent))
    inbox = Inbox(channel, queue, prefetch=1, ack=True)
    run.take(inbox, len(sent))
    equal(inbox.bodies, ["over1", "top1", "high1", "high2", "mid1", "mid2", "low1", "low2", "none1", "none2"], "order")


@scenario(9)
def headers_routing(run):
    channel = run.channel()
    exchange = run.exchange(channel, "headers")
    bindings = {
        "all": {"x-match": "all", "type": "report", "format": "pdf", "x-ignored": "1"},
        "default": {"type": "report", "format": "pdf"},
        "any": {"x-match": "any", "type": "report", "format": "pdf", "x-ignored": "1"},
        "all-with-x": {"x-match": "all-with-x", "type": "report", "x-tenant": "a"},
        "any-with-x": {"x-match": "any-with-x", "type": "log", "x-tenant": "a"},
        "number": {"x-match": "all", "size": 3},
        "exists": {"x-match": "all", "format": None},
    }
    queues = {}
    for name, arguments in bindings.items():
        queues[name] = run.queue(channel)
        try:
            channel.queue_bind(queues[name], exchange, "", arguments)
        except ChannelClosedByBroker as error:
            if name.endswith("-with-x") and not run.braid:
                raise Skip(f"peer refuses {name}") from error
            raise
    messages = {
        "1": {"type": "report", "format": "pdf"},
        "2": {"type": "report", "format": "txt", "x-tenant": "a"},
        "3": {"type": "log", "x-ignored": "1"},
        "4": {"x-tenant": "a"},
        "5": {"size": 3, "other": True},
        "6": {"size": 4},
        "7": {},
        "8": {"type": "report", "format": "pdf", "x-tenant": "b", "x-ignored": "2"},
    }
    for body, headers in messages.items():
        put(channel, "whatever", body, exchange=exchange, headers=headers)
    put(channel, "whatever", "9", exchange=exchange)
    want = {
        "all": ["1", "8"],
        "default": ["1", "8"],
        "any": ["1", "2", "8"],
        "all-with-x": ["2"],
        "any-with-x": ["2", "3", "4"],
        "number": ["5"],
        "exists": ["1", "2", "8"],
    }
    run.until_ready(queues["any"], 3)
    for name, expected in want.items():
        run.until_ready(queues[name], len(expected))
        equal([m.body.decode() for m in run.drain(queues[name])], expected, f"messages of {name}")


@scenario(10)
def delayed_messages(run):
    exchange = run.plugin_exchange("x-delayed-message", arguments={"x-delayed-type": "direct"}, durable=True)
    channel = run.channel()
    queue = run.queue(channel)
    channel.queue_bind(queue, exchange, "k")
    inbox = Inbox(channel, queue, auto_ack=True)
    sent = {}
    for delay in (900, 300, 600, None):
        sent[str(delay)] = time.monotonic()
        put(channel, "k", str(delay), exchange=exchange, headers={"x-delay": delay} if delay else {})
    run.take(inbox, 4)
    equal(inbox.bodies, ["None", "300", "600", "900"], "order")
    for message in inbox.messages[1:]:
        waited = message.at - sent[message.body.decode()]
        check(waited >= int(message.body) / 1000, f"{message.body} came after {waited} s")


@scenario(11)
def confirms_and_mandatory_returns(run):
    channel = run.channel(confirm=True)
    exchange = run.exchange(channel, "direct")
    queue = run.queue(channel, durable=True)
    channel.queue_bind(queue, exchange, "k")
    for n in range(100):
        channel.basic_publish(exchange, "k", str(n), PERSISTENT, mandatory=True)
    equal(run.ready(queue)[0], 100, "messages after their confirms")
    properties = pika.BasicProperties(headers={"a": 1}, message_id="m1", content_type="text/plain")
    try:
        channel.basic_publish(exchange, "nowhere", b"come back", properties, mandatory=True)
    except UnroutableError as error:
        equal(len(error.messages), 1, "messages returned")
        back = error.messages[0]
        equal((back.method.reply_code, back.method.reply_text), (312, "NO_ROUTE"), "return")
        equal((back.method.exchange, back.method.routing_key), (exchange, "nowhere"), "exchange and key of return")
        equal(back.body, b"come back", "body of return")
        equal((back.properties.headers, back.properties.message_id, back.properties.content_type), ({"a": 1}, "m1", "text/plain"), "properties of return")
    else:
        raise AssertionError("confirmed without a return before it")
    channel.basic_publish(exchange, "nowhere", b"dropped", mandatory=False)
    channel.basic_publish(exchange, "k", b"last", mandatory=True)
    equal([m.body for m in run.drain(queue)], [str(n).encode() for n in range(100)] + [b"last"], "messages")


@scenario(12)
def transactions(run):
    channel = run.channel()
    queue = run.queue(channel)
    channel.tx_select()
    put(channel, queue, "a", "b")
    run.quiet(0.1)
    equal(run.ready(queue)[0], 0, "ready before commit")
    channel.tx_commit()
    equal(run.ready(queue)[0], 2, "ready after commit")
    put(channel, queue, "c")
    channel.tx_rollback()
    channel.tx_commit()
    equal(run.ready(queue)[0], 2, "ready after rollback")
    message = run.get(channel, queue, ack=False)
    equal(message.body, b"a", "first message")
    channel.basic_ack(message.tag)
    channel.tx_rollback()
    equal(run.ready(queue)[0], 1, "ready after the ack was rolled back")
    channel.close()
    run.until_ready(queue, 2)
    channel = run.channel()
    channel.tx_select()
    message = run.get(channel, queue, ack=False)
    equal((message.body, message.redelivered), (b"a", True), "the message comes again")
    channel.basic_ack(message.tag)
    put(channel, queue, "d")
    channel.tx_commit()
    channel.close()
    run.quiet(0.1)
    equal([m.body for m in run.drain(queue)], [b"b", b"d"], "messages in the end")
    channel = run.channel()
    channel.tx_select()
    run.refused(406, "PRECONDITION_FAILED - cannot switch from tx to confirm mode", channel.confirm_delivery, "confirm.select in tx mode")


LOCKED = (
    "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue '{}' in vhost '/'. It could be originally declared on "
    "another connection or the exclusive property value does not match that of the original declaration."
)


@scenario(13)
def exclusive_and_auto_delete(run):
    owner = run.connect()
    mine = run.queue(run.channel(owner), exclusive=True)
    for action in (
        lambda c: c.queue_declare(mine, exclusive=True),
        lambda c: c.queue_declare(mine, passive=True),
        lambda c: c.basic_consume(mine, lambda *_: None),
        lambda c: c.queue_delete(mine),
    ):
        run.refused(405, LOCKED.format(mine), lambda action=action: action(run.channel()), "exclusive queue of another connection")
    owner.close()
    check(run.gone("queue", mine), "the exclusive queue outlived its connection")

    channel = run.channel()
    queue = run.queue(channel, auto_delete=True)
    put(channel, queue, "x")
    check(not run.gone("queue", queue), "auto-delete before any consumer")
    first, second = Inbox(channel, queue, auto_ack=True), Inbox(run.channel(), queue, auto_ack=True)
    first.channel.basic_cancel(first.tag)
    check(not run.gone("queue", queue), "auto-delete with a consumer left")
    second.channel.basic_cancel(second.tag)
    check(run.gone("queue", queue), "auto-delete queue is there after its last consumer")

    exchange = run.exchange(channel, "fanout", auto_delete=True)
    target = run.queue(channel)
    check(not run.gone("exchange", exchange), "auto-delete exchange before any binding")
    channel.queue_bind(target, exchange, "1")
    channel.queue_bind(target, exchange, "2")
    channel.queue_unbind(target, exchange, "1")
    check(not run.gone("exchange", exchange), "auto-delete exchange with a binding left")
    channel.queue_unbind(target, exchange, "2")
    check(run.gone("exchange", exchange), "auto-delete exchange is there after its last binding")


@scenario(14)
def single_active_consumer_failover(run):
    setup = run.channel()
    queue = run.queue(setup, arguments={"x-single-active-consumer": True})
    second_connection = run.connect()
    first = Inbox(run.channel(), queue, ack=True)
    second = Inbox(run.channel(second_connection), queue)
    third = Inbox(run.channel(run.connect()), queue, ack=True)
    put(setup, queue, 1, 2, 3)
    run.take(first, 3)
    run.quiet()
    equal((second.bodies, third.bodies), ([], []), "messages of those who wait")
    first.channel.basic_cancel(first.tag)
    put(setup, queue, 4, 5, 6)
    run.take(second, 3)
    run.quiet()
    equal((first.bodies, third.bodies), (["1", "2", "3"], []), "messages of the others after the cancel")
    run.cut(second_connection)
    run.take(third, 3)
    put(setup, queue, 7)
    run.take(third, 4)
    equal(third.bodies, ["4", "5", "6", "7"], "messages of the third")
    equal([m.redelivered for m in third.messages], [True, True, True, False], "redelivered")


@scenario(15)
def prefetch_one_fairness(run):
    channel = run.channel()
    queue = run.queue(channel)
    slow = Inbox(run.channel(run.connect()), queue, prefetch=1)
    put(channel, queue, "first")
    run.take(slow, 1)
    quick = Inbox(run.channel(run.connect()), queue, prefetch=1, ack=True)
    put(channel, queue, *range(19))
    run.take(quick, 19)
    run.quiet()
    equal(slow.bodies, ["first"], "messages of the slow worker")
    equal(quick.bodies, [str(n) for n in range(19)], "messages of the quick worker")
    quick.channel.basic_cancel(quick.tag)
    put(channel, queue, "next")
    run.quiet()
    equal(len(slow.messages), 1, "a second delivery without an ack")
    slow.channel.basic_ack(slow.messages[0].tag)
    run.take(slow, 2)
    equal(slow.bodies, ["first", "next"], "messages of the slow worker in the end")
    slow.channel.basic_ack(slow.messages[1].tag)


@scenario(16)
def redelivery_order_after_consumer_dies(run):
    channel = run.channel()
    queue = run.queue(channel)
    put(channel, queue, *range(1, 21))
    run.until_ready(queue, 20)
    dying = run.connect()
    first = Inbox(run.channel(dying), queue, prefetch=10)
    run.take(first, 10)
    for message in first.messages[:10]:
        if message.body in (b"3", b"5"):
            first.channel.basic_ack(message.tag)
    run.take(first, 12)
    run.quiet(0.1)
    equal(first.bodies, [str(n) for n in range(1, 13)], "messages of the first")
    run.cut(dying)
    run.until_ready(queue, 18)
    second = Inbox(channel, queue, ack=True)
    run.take(second, 18)
    want = [n for n in range(1, 21) if n not in (3, 5)]
    equal(second.bodies, [str(n) for n in want], "messages of the second")
    equal([m.redelivered for m in second.messages], [n <= 12 for n in want], "redelivered")


@scenario(17, limit=60)
def durable_survives_restart(run):
    if not run.options.restart_cmd:
        raise Skip("no --restart-cmd")
    channel = run.channel(confirm=True)
    queue = run.queue(channel, durable=True, arguments={"x-max-length": 1000})
    exchange = run.exchange(channel, "topic", durable=True)
    passing = run.exchange(channel, "topic")
    channel.queue_bind(queue, exchange, "a.*")
    transient = run.queue(run.channel())
    for n in range(50):
        channel.basic_publish(exchange, "a.b", str(n), pika.BasicProperties(delivery_mode=2 if n % 2 == 0 else 1, message_id=f"m{n}", headers={"n": n}))
    equal(run.ready(queue)[0], 50, "messages before")
    run.restart()
    channel = run.channel(confirm=True)
    run.queue(channel, queue, durable=True, arguments={"x-max-length": 1000})
    run.exchange(channel, "topic", exchange, durable=True)
    check(run.gone("queue", transient), "the transient queue is there")
    check(run.gone("exchange", passing), "the transient exchange is there")
    channel.basic_publish(exchange, "a.c", "new", PERSISTENT, mandatory=True)
    messages = run.drain(queue)
    equal([m.body.decode() for m in messages], [str(n) for n in range(0, 50, 2)] + ["new"], "messages after")
    equal([m.properties.message_id for m in messages[:-1]], [f"m{n}" for n in range(0, 50, 2)], "message ids")
    equal([m.headers.get("n") for m in messages[:-1]], list(range(0, 50, 2)), "headers")
    equal([(m.exchange, m.routing_key) for m in messages[:1]], [(exchange, "a.b")], "exchange and key")


@scenario(18)
def retry_ladder_ttl(run):
    channel = run.channel()
    to_wait, to_work = run.exchange(channel, "direct"), run.exchange(channel, "direct")
    work = run.queue(channel, arguments={"x-dead-letter-exchange": to_wait})
    wait = run.queue(channel, arguments={"x-dead-letter-exchange": to_work, "x-message-ttl": 200})
    channel.queue_bind(work, to_work, "job")
    channel.queue_bind(wait, to_wait, "job")

    def attempt(channel, message):
        if len(inbox.messages) < 3:
            channel.basic_reject(message.tag, requeue=False)
        else:
            channel.basic_ack(message.tag)

    inbox = Inbox(channel, work, prefetch=1, on_message=attempt)
    put(channel, "job", "task", exchange=to_work)
    run.take(inbox, 3)
    first, second, third = inbox.messages
    check("x-death" not in first.headers, "x-death at the first delivery")
    check(second.at - first.at >= 0.2 and third.at - second.at >= 0.2, "came before the TTL")
    equal(len(second.headers["x-death"]), 2, "entries of x-death at the second delivery")
    equal(len(third.headers["x-death"]), 2, "entries of x-death at the third delivery")
    check_death(third.headers, 0, wait, "expired", 2, to_wait, ["job"])
    check_death(third.headers, 1, work, "rejected", 2, to_work, ["job"])
    equal(third.headers["x-first-death-reason"], "rejected", "x-first-death-reason")
    equal(third.headers["x-first-death-queue"], work, "x-first-death-queue")
    equal(third.headers["x-first-death-exchange"], to_work, "x-first-death-exchange")
    run.quiet()
    equal((run.ready(work)[0], run.ready(wait)[0]), (0, 0), "messages left")


@scenario(19)
def retry_ladder_delay(run):
    exchange = run.plugin_exchange("x-delayed-message", arguments={"x-delayed-type": "topic"})
    channel = run.channel()
    queue = run.queue(channel)
    channel.queue_bind(queue, exchange, "job.#")
    sent = []

    def attempt(channel, message):
        number = message.headers["attempt"]
        if number < 3:
            delay = 200 * 2 ** (number - 1)
            sent.append((time.monotonic(), delay))
            put(channel, "job.again", message.body, exchange=exchange, headers={"attempt": number + 1, "x-delay": delay})
        channel.basic_ack(message.tag)

    inbox = Inbox(channel, queue, prefetch=1, on_message=attempt)
    put(channel, "job.first", "task", exchange=exchange, headers={"attempt": 1})
    run.take(inbox, 3)
    run.quiet()
    equal([m.headers["attempt"] for m in inbox.messages], [1, 2, 3], "attempts")
    for (at, delay), message in zip(sent, inbox.messages[1:], strict=True):
        check(message.at - at >= delay / 1000, f"came {message.at - at} s after, delay {delay} ms")


@scenario(20)
def order_per_entity(run):
    exchange = run.plugin_exchange("x-consistent-hash", durable=True)
    channel = run.channel(confirm=True)
    seen = []
    workers = [run.connect(), run.connect()]
    for _ in range(3):
        queue = run.queue(channel, arguments={"x-single-active-consumer": True})
        channel.queue_bind(queue, exchange, "1")
        for which, worker in enumerate(workers):
            Inbox(run.channel(worker), queue, prefetch=5, ack=True, on_message=lambda _c, m, key=(queue, which): seen.append((key, m.body.decode())))
    for n in range(10):
        for entity in range(30):
            put(channel, f"entity-{entity}", f"{entity}:{n}", exchange=exchange)
    run.until(lambda: len(seen) >= 300, lambda: f"300 events, have {len(seen)}")
    run.quiet()
    equal(len(seen), 300, "events")
    for entity in range(30):
        events = [(key, body) for key, body in seen if body.startswith(f"{entity}:")]
        equal(len({key for key, _ in events}), 1, f"consumers of entity {entity}")
        equal([body for _, body in events], [f"{entity}:{n}" for n in range(10)], f"order of entity {entity}")


@scenario(21, braid_only=True)
def consumer_timeout(run):
    for notify in (True, False):
        setup = run.channel()
        queue = run.queue(setup, arguments={"x-consumer-timeout": 1000})
        if notify:
            holder = run.connect()
        else:
            holder = run.connect(client_properties={"capabilities": {"basic.nack": True, "publisher_confirms": True, "consumer_cancel_notify": False}})
        stuck = Inbox(run.channel(holder), queue, prefetch=1)
        put(setup, queue, "held")
        run.take(stuck, 1)
        equal(stuck.messages[0].redelivered, False, "redelivered at first")
        other = Inbox(run.channel(run.connect()), queue, ack=True)
        run.take(other, 1)
        equal([(m.body, m.redelivered) for m in other.messages], [(b"held", True)], "what the other worker gets")
        check(other.messages[0].at - stuck.messages[0].at >= 0.9, "came before the timeout")
        if notify:
            run.until(lambda stuck=stuck: stuck.cancelled, "basic.cancel")
            stuck.channel.queue_declare(queue, passive=True)
        else:
            run.until(lambda stuck=stuck: stuck.channel.is_closed, "channel close")
            reason = stuck.channel._closing_reason
            text = (
                f"PRECONDITION_FAILED - delivery acknowledgement on channel {stuck.channel.channel_number} timed out. Timeout value used: 1000 ms. "
                "This timeout value can be configured, see consumers doc guide to learn more"
            )
            equal((reason.reply_code, reason.reply_text), (406, text), "channel close")
            holder.channel().queue_declare(queue, passive=True)


@scenario(22)
def errors_close_channel_not_connection(run):
    witness = run.channel()
    queue = run.queue(witness, durable=True)
    exchange = run.exchange(witness, "direct")
    none = run.name("none")
    other = run.connect()
    locked = run.queue(run.channel(other), exclusive=True)
    consumed = run.queue(witness)
    Inbox(run.channel(), consumed, exclusive=True)
    filled = run.queue(witness)
    put(witness, filled, "x")
    run.until_ready(filled, 1)
    precondition = "PRECONDITION_FAILED - "

    def publish(channel, exchange, **properties):
        put(channel, queue, "x", exchange=exchange, **properties)
        channel.queue_declare(queue, passive=True)

    def ack(channel):
        channel.basic_ack(5)
        channel.queue_declare(queue, passive=True)

    def bind_default(channel):
        channel.queue_bind(queue, "", "k")

    cases = [
        (404, f"NOT_FOUND - no queue '{none}' in vhost '/'", lambda c: c.queue_declare(none, passive=True)),
        (404, f"NOT_FOUND - no exchange '{none}' in vhost '/'", lambda c: c.exchange_declare(none, passive=True)),
        (404, f"NOT_FOUND - no exchange '{none}' in vhost '/'", lambda c: publish(c, none)),
        (404, f"NOT_FOUND - no queue '{none}' in vhost '/'", lambda c: c.basic_consume(none, lambda *_: None)),
        (404, f"NOT_FOUND - no exchange '{none}' in vhost '/'", lambda c: c.queue_bind(queue, none, "k")),
        (406, precondition + f"inequivalent arg 'durable' for queue '{queue}' in vhost '/': received 'false' but current is 'true'", lambda c: c.queue_declare(queue)),
        (
            406,
            precondition + f"inequivalent arg 'x-max-length' for queue '{queue}' in vhost '/': received the value '10' of type 'signedint' but current is none",
            lambda c: c.queue_declare(queue, durable=True, arguments={"x-max-length": 10}),
        ),
        (
            406,
            precondition + f"inequivalent arg 'type' for exchange '{exchange}' in vhost '/': received 'fanout' but current is 'direct'",
            lambda c: c.exchange_declare(exchange, "fanout"),
        ),
        (
            406,
            precondition + f"invalid arg 'x-message-ttl' for queue '{none}' in vhost '/': {{value_negative,-10}}",
            lambda c: c.queue_declare(none, arguments={"x-message-ttl": -10}),
        ),
        (406, precondition + "unknown delivery tag 5", ack),
        (406, precondition + f"queue '{consumed}' in vhost '/' in use", lambda c: c.queue_delete(consumed, if_unused=True)),
        (406, precondition + f"queue '{filled}' in vhost '/' not empty", lambda c: c.queue_delete(filled, if_empty=True)),
        (406, precondition + "invalid expiration 'foo': no_integer", lambda c: publish(c, "", expiration="foo")),
        (403, f"ACCESS_REFUSED - queue name 'amq.{none}' contains reserved prefix 'amq.*'", lambda c: c.queue_declare(f"amq.{none}")),
        (403, "ACCESS_REFUSED - operation not permitted on the default exchange", bind_default),
        (403, f"ACCESS_REFUSED - queue '{consumed}' in vhost '/' in exclusive use", lambda c: c.basic_consume(consumed, lambda *_: None)),
        (405, LOCKED.format(locked), lambda c: c.queue_declare(locked, exclusive=True)),
    ]
    if run.braid:
        cases.append((406, precondition + "unknown exchange type 'x-nope'", lambda c: c.exchange_declare(none, "x-nope")))
    for number, (code, text, action) in enumerate(cases):
        channel = run.channel()
        run.refused(code, text, lambda channel=channel, action=action: action(channel), f"case {number} ({text[:60]})")
    check(run.connection.is_open, "the connection is closed")
    put(witness, queue, "fine")
    run.until_ready(queue, 1)


@scenario(23)
def basic_get_and_counts(run):
    channel = run.channel()
    queue = run.queue(channel)
    equal(run.get(channel, queue), None, "get of an empty queue")
    put(channel, queue, "a", "b", "c", "d")
    run.until_ready(queue, 4)
    a = run.get(channel, queue, ack=False)
    equal((a.body, a.count, a.redelivered, a.exchange, a.routing_key), (b"a", 3, False, "", queue), "first get")
    equal(run.ready(queue), (3, 0), "ready and consumers with one unacked")
    b = run.get(channel, queue)
    equal((b.body, b.count), (b"b", 2), "second get")
    declared = channel.queue_declare(queue).method
    equal((declared.message_count, declared.consumer_count), (2, 0), "declare-ok")
    equal(channel.queue_purge(queue).method.message_count, 2, "purge-ok")
    put(channel, queue, "e")
    run.until_ready(queue, 1)
    channel.basic_nack(a.tag, requeue=True)
    run.until_ready(queue, 2)
    inbox = Inbox(run.channel(), queue, prefetch=1)
    run.take(inbox, 1)
    equal((inbox.bodies, inbox.messages[0].redelivered), (["a"], True), "the message requeued")
    equal(run.ready(queue), (1, 1), "ready and consumers with a consumer")
    equal(channel.queue_delete(queue).method.message_count, 1, "delete-ok")
    equal(channel.queue_delete(queue).method.message_count, 0, "delete-ok of a missing queue")
    channel.exchange_delete(run.name("none"))


@scenario(24)
def alternate_exchange(run):
    channel = run.channel(confirm=True)
    alternate = run.exchange(channel, "direct")
    exchange = run.exchange(channel, "direct", arguments={"alternate-exchange": alternate})
    main_queue, rest = run.queue(channel), run.queue(channel)
    channel.queue_bind(main_queue, exchange, "known")
    channel.queue_bind(rest, alternate, "unknown")
    channel.basic_publish(exchange, "known", b"1", mandatory=True)
    channel.basic_publish(exchange, "unknown", b"2", mandatory=True)
    try:
        channel.basic_publish(exchange, "neither", b"3", mandatory=True)
    except UnroutableError as error:
        equal(error.messages[0].body, b"3", "returned")
        equal(error.messages[0].method.exchange, exchange, "exchange of return")
    else:
        raise AssertionError("was not returned")
    equal([m.body for m in run.drain(main_queue)], [b"1"], "main queue")
    equal([(m.body, m.exchange, m.routing_key) for m in run.drain(rest)], [(b"2", exchange, "unknown")], "queue of the alternate exchange")


@scenario(25)
def exchange_to_exchange(run):
    channel = run.channel(confirm=True)
    source, middle = run.exchange(channel, "topic"), run.exchange(channel, "fanout")
    one, both = run.queue(channel), run.queue(channel)
    channel.exchange_bind(middle, source, "a.#")
    channel.exchange_bind(source, middle, "")
    channel.queue_bind(one, middle)
    channel.queue_bind(both, middle)
    channel.queue_bind(both, source, "a.b")
    channel.basic_publish(source, "a.b", b"1")
    channel.basic_publish(source, "b", b"2")
    channel.basic_publish(middle, "b", b"3")
    channel.basic_publish(middle, "a.b", b"4")
    equal([m.body for m in run.drain(one)], [b"1", b"3", b"4"], "queue at the middle")
    messages = run.drain(both)
    equal([m.body for m in messages], [b"1", b"3", b"4"], "queue at both")
    equal([m.exchange for m in messages], [source, middle, middle], "exchanges")
    channel.exchange_unbind(middle, source, "a.#")
    channel.basic_publish(source, "a.c", b"5")
    channel.basic_publish(source, "a.b", b"6")
    equal([m.body for m in run.drain(one)], [], "queue at the middle after unbind")
    equal([m.body for m in run.drain(both)], [b"6"], "queue at both after unbind")


@scenario(26)
def max_length_overflow(run):
    channel = run.channel(confirm=True)
    dlx = run.exchange(channel, "fanout")
    dead = run.queue(channel)
    channel.queue_bind(dead, dlx)
    letters = Inbox(run.channel(), dead, auto_ack=True)

    def fill(arguments, bodies):
        queue = run.queue(channel, arguments={"x-dead-letter-exchange": dlx, **arguments})
        nacked = []
        for body in bodies:
            try:
                channel.basic_publish("", queue, body)
            except NackError:
                nacked.append(body)
        return queue, nacked, [m.body for m in run.drain(queue)]

    five = [b"1", b"2", b"3", b"4", b"5"]
    queue, nacked, kept = fill({"x-max-length": 3}, five)
    equal((nacked, kept), ([], [b"3", b"4", b"5"]), "drop-head")
    run.take(letters, 2)
    equal(letters.bodies, ["1", "2"], "dead letters of drop-head")
    check_death(letters.messages[0].headers, 0, queue, "maxlen", 1, "", [queue])
    _, nacked, kept = fill({"x-max-length": 3, "x-overflow": "reject-publish"}, five)
    equal((nacked, kept), ([b"4", b"5"], [b"1", b"2", b"3"]), "reject-publish")
    run.quiet()
    equal(len(letters.messages), 2, "dead letters of reject-publish")
    queue, nacked, kept = fill({"x-max-length": 3, "x-overflow": "reject-publish-dlx"}, five)
    equal((nacked, kept), ([b"4", b"5"], [b"1", b"2", b"3"]), "reject-publish-dlx")
    run.take(letters, 4)
    equal(letters.bodies[2:], ["4", "5"], "dead letters of reject-publish-dlx")
    check_death(letters.messages[2].headers, 0, queue, "maxlen", 1, "", [queue])
    _, nacked, kept = fill({"x-max-length-bytes": 10}, [b"a" * 4, b"b" * 4, b"c" * 4])
    equal((nacked, kept), ([], [b"bbbb", b"cccc"]), "x-max-length-bytes")


@scenario(27)
def large_messages(run):
    channel = run.channel(confirm=True)
    queue = run.queue(channel)
    sizes = [0, 1, 131063, 131064, 131065, 2 * 131064, 2 * 131064 + 1, 4 * 1024 * 1024]
    bodies = [os.urandom(size) for size in sizes]
    inbox = Inbox(run.channel(), queue, ack=True)
    for body in bodies:
        channel.basic_publish("", queue, body, PERSISTENT)
    run.take(inbox, len(bodies))
    for message, body in zip(inbox.messages, bodies, strict=True):
        check(message.body == body, f"body of {len(body)} bytes is another, {len(message.body)} bytes")
    inbox.channel.basic_cancel(inbox.tag)
    channel.basic_publish("", queue, bodies[-1])
    check(run.get_soon(channel, queue).body == bodies[-1], "body by get is another")


@scenario(28)
def properties_and_header_types_round_trip(run):
    channel = run.channel()
    queue = run.queue(channel, durable=True)
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    headers = {  # pika cannot send doubles
        "bool": True, "no": False, "zero": 0, "int": -5, "int32max": 2**31 - 1, "int32min": -(2**31),
        "int64max": 2**63 - 1, "int64min": -(2**63), "decimal": decimal.Decimal("3.14"),
        "string": "grün", "empty": "", "long": "x" * 5000, "bytes": b"\x00\xff\xfe", "time": when, "void": None,
        "table": {"a": 1, "deeper": {"b": [1, "two", {"c": None}]}, "none": {}},
        "array": [1, -1, "s", True, [2, [3]], {"k": "v"}, None], "nothing": [],
    }  # fmt: skip
    properties = dict(
        content_type="text/plain", content_encoding="utf-8", headers=headers, delivery_mode=2, priority=7, correlation_id="corr",
        reply_to="somewhere", expiration="600000", message_id="m" * 255, timestamp=1767323045, type="kind", user_id="guest", app_id="app",
    )  # fmt: skip
    put(channel, queue, "x", **properties)
    put(channel, queue, "bare")
    put(channel, queue, "empty table", headers={})
    messages = [run.get_soon(channel, queue) for _ in range(3)]
    for name, value in properties.items():
        equal(getattr(messages[0].properties, name), value, name)
    for name, value in headers.items():
        check(isinstance(messages[0].headers[name], type(value)), f"type of header {name}")
    for name in (*properties, "cluster_id"):
        equal(getattr(messages[1].properties, name), None, f"{name} of the bare message")
    equal(messages[2].properties.headers, {}, "empty headers")


@scenario(29)
def many_channels(run):
    channels = [run.channel() for _ in range(200)]
    inboxes = []
    for channel in channels:
        queue = run.queue(channel, exclusive=True)
        inboxes.append((queue, Inbox(channel, queue, ack=True)))
    run.queues.clear()  # the connection takes them along
    for number, channel in enumerate(channels):
        put(channel, inboxes[(number + 7) % 200][0], number)
    for number in range(200):
        inbox = inboxes[(number + 7) % 200][1]
        run.take(inbox, 1)
        equal(inbox.bodies, [str(number)], f"messages of channel {number}")
    for _ in range(50):
        channel = run.connection.channel(channel_number=777)
        queue = channel.queue_declare("", exclusive=True, auto_delete=True).method.queue
        put(channel, queue, "x")
        channel.close()


@scenario(30)
def quorum_queue_delivery_limit(run):
    channel = run.channel()
    dlx = run.exchange(channel, "fanout")
    dead = run.queue(channel)
    channel.queue_bind(dead, dlx)
    queue = run.queue(channel, durable=True, arguments={"x-queue-type": "quorum", "x-delivery-limit": 2, "x-dead-letter-exchange": dlx})
    counts = []

    def work(channel, message):
        counts.append((message.headers.get("x-delivery-count", 0), message.redelivered))
        channel.basic_reject(message.tag, requeue=True)

    Inbox(channel, queue, prefetch=1, on_message=work)
    letters = Inbox(run.channel(), dead, auto_ack=True)
    put(channel, queue, "poison", delivery_mode=2)
    run.take(letters, 1, "dead letters")
    run.quiet()
    equal(counts, [(0, False), (1, True), (2, True)], "delivery counts and redelivered")
    check_death(letters.messages[0].headers, 0, queue, "delivery_limit", 1, "", [queue])
    run.until_ready(queue, 0)


@scenario(31)
def consumer_priority_and_cancel(run):
    setup = run.channel()
    queue = run.queue(setup)
    low = Inbox(run.channel(), queue, prefetch=100)
    high = Inbox(run.channel(), queue, prefetch=5, arguments={"x-priority": 10})
    put(setup, queue, *range(8))
    run.take(high, 5)
    run.take(low, 3)
    run.quiet()
    equal((high.bodies, low.bodies), (["0", "1", "2", "3", "4"], ["5", "6", "7"]), "high and low")
    high.channel.basic_ack(high.messages[-1].tag, multiple=True)
    run.ready(queue)
    run.quiet(0.1)
    put(setup, queue, 8, 9)
    run.take(high, 7)
    high.channel.basic_cancel(high.tag)
    put(setup, queue, 10, 11)
    run.take(low, 5)
    equal((high.bodies[5:], low.bodies[3:]), (["8", "9"], ["10", "11"]), "high and low after the ack and the cancel")
    setup.queue_delete(queue)
    run.until(lambda: low.cancelled, "basic.cancel")
    check(low.channel.is_open and not high.cancelled, "the channel is open, who cancelled itself hears nothing")
    low.channel.queue_declare(low_again := run.name("q"), exclusive=True)
    low.channel.queue_delete(low_again)


@scenario(32)
def nack_multiple_and_recover(run):
    channel = run.channel()
    queue = run.queue(channel)
    put(channel, queue, *range(1, 6))
    run.until_ready(queue, 5)

    def get_all(count):
        messages = [run.get_soon(channel, queue, ack=False) for _ in range(count)]
        return messages, [(m.body.decode(), m.redelivered) for m in messages]

    messages, seen = get_all(5)
    equal(seen, [(str(n), False) for n in range(1, 6)], "first time")
    equal([m.tag for m in messages], [1, 2, 3, 4, 5], "delivery tags")
    channel.basic_nack(messages[-1].tag, multiple=True, requeue=True)
    messages, seen = get_all(5)
    equal(seen, [(str(n), True) for n in range(1, 6)], "after nack multiple")
    channel.basic_ack(messages[2].tag, multiple=True)
    channel.basic_recover(requeue=True)
    run.until_ready(queue, 2)
    messages, seen = get_all(2)
    equal(seen, [("4", True), ("5", True)], "after recover")
    channel.basic_ack(0, multiple=True)
    channel.close()
    run.quiet(0.1)
    equal(run.ready(queue)[0], 0, "messages left")


@scenario(33)
def queue_expires(run):
    channel = run.channel()
    expires = {"x-expires": 1000}
    renewed, used, unused = (run.queue(channel, arguments=expires) for _ in range(3))
    inbox = Inbox(channel, used, auto_ack=True)
    put(channel, renewed, "stays")
    began = last = time.monotonic()
    while time.monotonic() - began < 1.6:
        run.quiet(0.25)
        count = channel.queue_declare(renewed, arguments=expires).method.message_count
        if time.monotonic() - last > 0.9:
            raise AssertionError("this machine is too slow to say")
        last = time.monotonic()
        equal(count, 1, "messages of the queue that is redeclared")
    check(run.gone("queue", unused), "the unused queue is there")
    put(channel, used, "works")
    run.take(inbox, 1)
    for _ in range(3):
        run.quiet(2)
        if run.gone("queue", renewed):
            break
    else:
        raise AssertionError("the renewed queue stays for ever")
    check(not run.gone("queue", used), "the queue with a consumer is gone")


@scenario(34)
def unacked_requeued_on_close(run):
    setup = run.channel()
    queue, auto = run.queue(setup), run.queue(setup)
    put(setup, queue, *range(6))
    put(setup, auto, *range(3))
    run.until_ready(queue, 6)
    connection = run.connect()
    first = Inbox(run.channel(connection), queue, prefetch=4)
    taken = Inbox(run.channel(connection), auto, auto_ack=True)
    run.take(first, 4)
    run.take(taken, 3)
    first.channel.close()
    run.until_ready(queue, 6)
    second = Inbox(run.channel(connection), queue, prefetch=3)
    run.take(second, 3)
    equal([(m.body, m.redelivered) for m in second.messages], [(b"0", True), (b"1", True), (b"2", True)], "after the channel is closed")
    second.channel.basic_ack(second.messages[0].tag)
    run.take(second, 4)
    connection.close()
    run.until_ready(queue, 5)
    messages = run.drain(queue)
    equal([(m.body, m.redelivered) for m in messages], [(b"1", True), (b"2", True), (b"3", True), (b"4", False), (b"5", False)], "after the connection is closed")
    equal(run.ready(auto)[0], 0, "auto-acked messages")


if __name__ == "__main__":
    sys.exit(main())
