"""What every scenario needs: connections, fresh names, waiting for conditions, cleaning up, one line of output each."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
import uuid

import pika
from pika.exceptions import AMQPError, ChannelClosedByBroker

SCENARIOS = []


class Skip(Exception):
    """The scenario cannot be run against this peer; the text says why."""


class TooLong(Exception):
    """The scenario's own limit has passed."""


def scenario(number, *, braid_only=False, limit=20):
    def add(function):
        SCENARIOS.append((number, function.__name__, function, braid_only, limit))
        return function

    return add


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def short(value):
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:400]}..."


def equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {short(got)}, want {short(want)}")


class Inbox:
    """A consumer that keeps what it gets."""

    def __init__(self, channel, queue, *, prefetch=None, auto_ack=False, ack=False, exclusive=False, arguments=None, on_message=None):
        self.channel, self.messages, self.cancelled = channel, [], False
        self.ack, self.on_message = ack, on_message
        if prefetch is not None:
            channel.basic_qos(prefetch_count=prefetch)
        channel.add_on_cancel_callback(self._cancelled)
        self.tag = channel.basic_consume(queue, self._deliver, auto_ack=auto_ack, exclusive=exclusive, arguments=arguments)

    def _cancelled(self, _frame):
        self.cancelled = True

    def _deliver(self, channel, method, properties, body):
        message = Message(method, properties, body)
        self.messages.append(message)
        if self.on_message:
            self.on_message(channel, message)
        if self.ack:
            channel.basic_ack(message.tag)

    @property
    def bodies(self):
        return [m.body.decode() for m in self.messages]


class Message:
    def __init__(self, method, properties, body):
        self.tag, self.redelivered, self.routing_key, self.exchange = method.delivery_tag, method.redelivered, method.routing_key, method.exchange
        self.properties, self.body, self.at = properties, body, time.monotonic()
        self.count = getattr(method, "message_count", None)

    @property
    def headers(self):
        return self.properties.headers or {}


class Run:
    """One run of one scenario."""

    def __init__(self, options, peer):
        self.options, self.peer = options, peer
        self.braid = peer == "braid"
        self.connections, self.queues, self.exchanges = [], [], []
        self.connection = self.connect()

    def connect(self, **more):
        parameters = pika.URLParameters(self.options.uri)
        for key, value in more.items():
            setattr(parameters, key, value)
        connection = pika.BlockingConnection(parameters)
        self.connections.append(connection)
        return connection

    def channel(self, connection=None, confirm=False):
        channel = (connection or self.connection).channel()
        if confirm:
            channel.confirm_delivery()
        return channel

    @staticmethod
    def name(kind):
        return f"interop-pika-{kind}-{uuid.uuid4().hex[:12]}"

    def queue(self, channel, name=None, **options):
        arguments = options.pop("arguments", None)
        name = self.name("q") if name is None else name
        name = channel.queue_declare(name, arguments=arguments, **options).method.queue
        self.queues.append(name)
        return name

    def exchange(self, channel, kind, name=None, **options):
        name = name or self.name("x")
        self.exchanges.append(name)
        channel.exchange_declare(name, kind, **options)
        return name

    def plugin_exchange(self, kind, **options):
        """An exchange of a type that RabbitMQ has by a plugin only."""
        if self.braid:
            return self.exchange(self.channel(), kind, **options)
        try:
            probe = self.connect()
            return self.exchange(probe.channel(), kind, **options)
        except AMQPError:
            raise Skip(f"peer has no exchange type {kind}") from None

    def pump(self, seconds=0.02):
        for connection in list(self.connections):
            if connection.is_open:
                connection.process_data_events(0)
        time.sleep(seconds)

    def until(self, condition, what, limit=12):
        end = time.monotonic() + limit
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f"waited {limit} s for {what() if callable(what) else what}")
            self.pump(0.005)

    def take(self, inbox, count, what="messages"):
        self.until(lambda: len(inbox.messages) >= count, lambda: f"{count} {what}, have {inbox.bodies}")
        return inbox.messages

    def quiet(self, seconds=0.25):
        """Long enough for something wrong to show itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.pump()

    def ready(self, queue):
        """(messages ready, consumers) as a passive declare says."""
        channel = self.connection.channel()
        method = channel.queue_declare(queue, passive=True).method
        channel.close()
        return method.message_count, method.consumer_count

    def until_ready(self, queue, count):
        self.until(lambda: self.ready(queue)[0] == count, lambda: f"{count} ready in queue, has {self.ready(queue)[0]}")

    def get(self, channel, queue, ack=True):
        method, properties, body = channel.basic_get(queue, auto_ack=ack)
        return None if method is None else Message(method, properties, body)

    def get_soon(self, channel, queue, ack=True):
        found = []

        def look():
            message = self.get(channel, queue, ack)
            if message is not None:
                found.append(message)
            return found

        self.until(look, "a message to get")
        return found[0]

    def drain(self, queue):
        channel, messages = self.channel(), []
        while (message := self.get(channel, queue)) is not None:
            messages.append(message)
        channel.close()
        return messages

    def gone(self, kind, name):
        channel = self.channel()
        try:
            if kind == "queue":
                channel.queue_declare(name, passive=True)
            else:
                channel.exchange_declare(name, passive=True)
        except ChannelClosedByBroker as error:
            equal(error.reply_code, 404, f"passive declare of {kind}")
            return True
        channel.close()
        return False

    @staticmethod
    def refused(code, text, action, what):
        """The action must close its channel with this code and text."""
        try:
            action()
        except ChannelClosedByBroker as error:
            equal((error.reply_code, error.reply_text), (code, text), what)
        else:
            raise AssertionError(f"{what}: was not refused")

    @staticmethod
    def cut(connection):
        """The connection goes without a word."""
        connection._impl._transport._sock.shutdown(socket.SHUT_RDWR)
        try:
            connection.process_data_events(0.1)
        except AMQPError:
            pass

    def restart(self):
        subprocess.run(self.options.restart_cmd, shell=True, check=True, stdout=sys.stderr, timeout=55)
        end = time.monotonic() + 20
        while True:
            try:
                self.connection = self.connect()
                return
            except (AMQPError, OSError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def clean(self):
        for connection in self.connections:
            try:
                if connection.is_open:
                    connection.close()
            except Exception:  # it may be anything that the scenario left behind
                pass
        if not self.queues and not self.exchanges:
            return
        connection = pika.BlockingConnection(pika.URLParameters(self.options.uri))
        for name in self.queues:
            self._try(connection, lambda c, n=name: c.queue_delete(n))
        for name in self.exchanges:
            self._try(connection, lambda c, n=name: c.exchange_delete(n))
        connection.close()

    @staticmethod
    def _try(connection, action):
        channel = connection.channel()
        try:
            action(channel)
            channel.close()
        except ChannelClosedByBroker:
            pass


def server_properties(uri):
    connection = pika.BlockingConnection(pika.URLParameters(uri))
    properties = connection._impl.server_properties
    connection.close()
    return properties


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--uri", default=os.environ.get("BRAID_AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/"))
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--peer", choices=["auto", "braid", "rabbitmq"], default="auto")
    parser.add_argument("--restart-cmd")
    options = parser.parse_args()
    only = {part for item in options.only for part in item.split(",")}
    chosen = sorted(s for s in SCENARIOS if not only or s[1] in only or f"{s[0]:02}" in only or str(s[0]) in only)
    if options.list:
        for number, name, *_ in chosen:
            print(f"{number:02} {name}")
        return 0
    if not chosen:
        print("no such scenario", file=sys.stderr)
        return 2
    peer = options.peer
    if peer == "auto":
        try:
            peer = "braid" if "braid" in server_properties(options.uri) else "rabbitmq"
        except (AMQPError, OSError) as error:
            print(f"cannot connect to {options.uri}: {error!r}", file=sys.stderr)
            return 2

    def alarm(*_):
        raise TooLong("took longer than its limit")

    signal.signal(signal.SIGALRM, alarm)
    failed = False
    for number, name, function, braid_only, limit in chosen:
        label, run, began = f"{number:02} {name}", None, time.monotonic()
        if braid_only and peer == "rabbitmq":
            print(f"skip {label}: Braid only", flush=True)
            continue
        try:
            signal.alarm(limit)
            run = Run(options, peer)
            function(run)
            line = f"ok {label}"
        except Skip as reason:
            line = f"skip {label}: {reason}"
        except Exception as error:
            failed = True
            traceback.print_exc()
            line = f"not ok {label}: {type(error).__name__}: {error}".replace("\n", " ")
        finally:
            signal.alarm(0)
        try:
            signal.alarm(10)
            if run:
                run.clean()
        except Exception as error:
            traceback.print_exc()
            if line.startswith("ok"):
                failed = True
                line = f"not ok {label}: while cleaning up: {type(error).__name__}: {error}".replace("\n", " ")
        finally:
            signal.alarm(0)
        print(line, flush=True)
        print(f"   {time.monotonic() - began:.2f} s", file=sys.stderr, flush=True)
    return 1 if failed else 0
