#!/usr/bin/env python3
"""Braid beside RabbitMQ: the same load, the same machine, in turn; medians and ratios.

    cargo build --release -p server -p load
    python3 tests/load/compare.py [--rounds 3] [--cases a,b,c,g,h,hp,e] [--no-rabbitmq]

Starts target/release/braid and, where it is installed, rabbitmq-server on loopback ports and fresh directories. What counts is
CPU-seconds of the broker's processes per million messages (g: per delivery): it survives a noisy machine, rates do not.
Durability: Braid confirms after fdatasync; RabbitMQ's classic queues confirm from the page cache, its quorum queues after fsync.
"""
import argparse, json, os, pathlib, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
DURABLE = "--size 1024 --persistent --confirm-window 1000 --prefetch 1000"
MANY = "--producers 100 --consumers 100 --queues 50"
# name: (what, options, messages for Braid, messages for RabbitMQ, per delivery?)
CASES = {
    "a": ("100 B transient, auto-ack, 1 → 1", "--size 100 --auto-ack", 20_000_000, 1_000_000, False),
    "b": ("1 KiB persistent, confirms, manual ack, 1 → 1", DURABLE, 3_000_000, 300_000, False),
    "c": ("the same into a quorum queue", DURABLE + " --queue-type quorum", 3_000_000, 200_000, False),
    "g": ("fan-out 1 → 10 queues, per delivery", "--size 100 --auto-ack --fanout --queues 10 --consumers 10", 1_000_000, 60_000, True),
    "h": ("100 producers, 100 consumers, 50 queues, transient", "--size 100 --auto-ack " + MANY, 10_000_000, 600_000, False),
    "hp": ("the same, 1 KiB persistent with confirms",
           "--size 1024 --persistent --confirm-window 100 --prefetch 100 --ack-every 10 " + MANY, 1_000_000, 200_000, False),
    "e": ("5,000 msg/s of 1 KiB persistent: confirm p50 / p99", DURABLE + " --ack-every 10 --rate 5000", 50_000, 50_000, False),
}


def wait_for(port, seconds=60):
    deadline = time.time() + seconds
    while time.time() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nothing listens on port {port}")


class Braid:
    name, port = "Braid", 5698

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="braid-compare-", dir=ROOT / "target")
        command = [TARGET / "braid", "--data-dir", self.dir, "--amqp", f"127.0.0.1:{self.port}", "--http", "off"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self.port)
        self.pids = str(self.process.pid)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        shutil.rmtree(self.dir)


class RabbitMQ:
    name, port = "RabbitMQ", 5697

    def __enter__(self):
        self.dir = tempfile.mkdtemp(prefix="rabbitmq-compare-", dir="/var/tmp")
        environment = dict(
            os.environ, RABBITMQ_NODE_PORT=str(self.port), RABBITMQ_NODENAME="compare@localhost", RABBITMQ_NODE_IP_ADDRESS="127.0.0.1",
            RABBITMQ_MNESIA_BASE=self.dir, RABBITMQ_LOG_BASE=self.dir, RABBITMQ_ENABLED_PLUGINS_FILE=self.dir + "/plugins",
            RABBITMQ_PID_FILE=self.dir + "/pid", ERL_EPMD_ADDRESS="127.0.0.1", RABBITMQ_DIST_PORT="25698", HOME=self.dir,
            ERL_EPMD_PORT="4370")
        server = shutil.which("rabbitmq-server", path="/usr/lib/rabbitmq/bin:/usr/sbin:/usr/bin")
        real = "/usr/lib/rabbitmq/bin/rabbitmq-server"
        self.process = subprocess.Popen([real if os.path.exists(real) else server], env=environment, cwd=self.dir,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        wait_for(self.port, 120)
        self.pids = str(self.process.pid)
        return self

    def __exit__(self, *_):
        os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait(60)
        subprocess.run(["pkill", "-f", "epmd.*4370"], check=False)
        shutil.rmtree(self.dir, ignore_errors=True)


def run(broker, case, count):
    what, options, _, _, _ = CASES[case]
    command = [TARGET / "load", "--port", str(broker.port), "--pid", broker.pids, "--count", str(count), "--timeout", "300", *options.split()]
    line = subprocess.run(command, capture_output=True, text=True).stdout.strip().splitlines()
    result = json.loads(line[-1]) if line else {"error": "no result"}
    if "error" in result and result["error"]:
        print(f"  {broker.name} {case}: {result['error']}", file=sys.stderr)
    return result


def figure(case, result):
    if case == "e":
        return result["confirm_p50_us"] / 1000, result["confirm_p99_us"] / 1000
    return (result["broker_cpu_s_per_million_received" if CASES[case][4] else "broker_cpu_s_per_million_published"],)


def measured(broker_class, cases, rounds):
    found = {case: [] for case in cases}
    with broker_class() as broker:
        for _ in range(rounds):
            for case in cases:
                count = CASES[case][2 if broker.name == "Braid" else 3]
                result = run(broker, case, count)
                if not result.get("error"):
                    found[case].append((figure(case, result), result["recv_per_s"]))
                    print(f"  {broker.name} {case}: {figure(case, result)} at {result['recv_per_s']:,.0f}/s", file=sys.stderr)
    return found


def text(values):
    if not values:
        return "–"
    columns = list(zip(*[figures for figures, _ in values]))
    medians = [statistics.median(column) for column in columns]
    if len(medians) > 1:
        return " / ".join(f"{median:.2f} ms" for median in medians)
    return f"{medians[0]:.3g} ({min(columns[0]):.3g}–{max(columns[0]):.3g})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--no-rabbitmq", action="store_true")
    options = parser.parse_args()
    cases = options.cases.split(",")
    ours = measured(Braid, cases, options.rounds)
    peer = {case: [] for case in cases}
    if not options.no_rabbitmq and os.path.exists("/usr/sbin/rabbitmq-server"):
        peer = measured(RabbitMQ, cases, options.rounds)
    print("| case | Braid: CPU-s per million | messages/s | RabbitMQ | ratio |\n|---|---|---|---|---|")
    for case in cases:
        rate = statistics.median(rate for _, rate in ours[case]) if ours[case] else 0
        ratio = "–"
        if ours[case] and peer[case]:
            ratio = f"{statistics.median(f[0] for f, _ in ours[case]) / statistics.median(f[0] for f, _ in peer[case]):.3f}"
        print(f"| {case}: {CASES[case][0]} | {text(ours[case])} | {rate:,.0f} | {text(peer[case])} | {ratio} |")


main()
