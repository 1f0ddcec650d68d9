"""The HTTP service under load: `charwright serve` as a process of its own, with models of random weights.

    python benchmarks/serving.py                        # all parts: about ten minutes
    python benchmarks/serving.py --only speed first     # some of the parts
    python benchmarks/serving.py --quick                # a smoke test; its figures are meaningless

- speed: 64 streams together, compared with the engine alone, which generates 64 texts in a process of its own. The two
  take turns; a ratio is the median of the rounds' ratios, with minimum and maximum.
- first: the time from a request to the first character of its stream, with 1 client and with 64, each of which asks
  again as soon as its text is complete. The first text of each client, when all start at once, does not count.
- overload: 640 clients without a pause, ten times as many as there are places in a batch. Half of them are one caller,
  whose texts exceed the limit of a caller; the others together exceed the queue.
- aborts: requests that the client aborts at random points, after which nothing may be left of them.
- start: from the start of the process until it is ready, its memory after the first text, the start after `kill -9`.
- drain: SIGTERM while 64 texts are generated and others wait.

The load comes from `serving_client.py`, whose share of the processor is reported too. Everything stays on loopback
addresses. The memory and the processor time of the service are read from /proc, so this needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from charwright.config import ModelConfig
from charwright.run import Run
from generation import TUTORIAL, random_model, spread, times
from machine import describe_machine, ratio_and_spread
from serving_client import SERVICE

HERE = Path(__file__).parent
MODELS = {"gru-512": ModelConfig(cell="gru", units=512, embedding_size=256), "gru-1024": TUTORIAL}
BATCH = 64
OVERLOAD = 10 * BATCH
SOURCES = 9
WAITING = 32
"""Texts that wait in the queue when SIGTERM arrives."""
NAME = "model"


class Service:
    """A running `charwright serve`."""

    def __init__(self, run: Path, port: int, *options: str) -> None:
        command = [str(Path(sys.executable).with_name("charwright")), "serve", f"{NAME}={run}", "--port", str(port)]
        self.port = port
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the process)
        began = time.perf_counter()
        self._process = subprocess.Popen([*command, *options], stdout=self._log, stderr=self._log)
        self.pid = self._process.pid
        while not self._ready():
            if self._process.poll() is not None or time.perf_counter() - began > 60:
                self._process.kill()
                raise SystemExit(f"the service did not become ready:\n{self.log()[-2000:]}")
            time.sleep(0.002)
        self.ready_s = time.perf_counter() - began

    def _ready(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/readyz")[0] == 200
        return False

    def get(self, path: str) -> tuple[int, str]:
        """The status and the text of a page."""
        connection = http.client.HTTPConnection(SERVICE, self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def gauges(self) -> dict[str, float]:
        """Every gauge of /metrics that counts texts, streams or connections at this moment."""
        text = self.get("/metrics")[1]
        names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE") and line.endswith(" gauge")}
        lines = [line.rpartition(" ") for line in text.splitlines() if line.partition("{")[0].split()[0] in names]
        return {name: float(value) for name, _, value in lines if name.startswith("charwright")}

    @property
    def memory_mb(self) -> float:
        """The resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e6

    @property
    def cpu_s(self) -> float:
        """Processor time of all threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def log(self) -> str:
        """What it has printed."""
        self._log.seek(0)
        return self._log.read()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(number)
        try:
            return self._process.wait(60)
        finally:
            self._process.kill()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((SERVICE, 0))
        return int(listener.getsockname()[1])


@contextmanager
def service(run: Path, *options: str) -> Iterator[Service]:
    """Start the service, and end it."""
    one = Service(run, free_port(), *options)
    try:
        yield one
    finally:
        one.end()


class Client:
    """A process of `serving_client.py` at work."""

    def __init__(self, one: Service, what: str, **plan: Any) -> None:
        command = [sys.executable, "-I", "-S", str(HERE / "serving_client.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what, "port": one.port, "model": NAME} | plan))
        self._process.stdin.close()

    @property
    def working(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def line(self) -> str:
        """The next line that it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def findings(self) -> dict[str, Any]:
        """What it found, at its end."""
        line = self.line()
        if self._process.wait() or not line:
            raise SystemExit("the client failed")
        found: dict[str, Any] = json.loads(line)
        return found


def ask(one: Service, what: str, **plan: Any) -> dict[str, Any]:
    """Let a client work and return what it found."""
    return Client(one, what, **plan).findings()


class Engine:
    """The engine alone, in a process of its own."""

    def __init__(self, run: Path) -> None:
        command = [sys.executable, str(HERE / "serving_engine.py"), str(run)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def speed(self, streams: int, length: int, seed: int) -> float:
        """Characters per second."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"streams": streams, "length": length, "seed": seed}) + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def check_complete(found: Mapping[str, Any], wanted: int) -> None:
    """End the program unless all answers are complete texts."""
    if found["statuses"] != {"200": wanted} or found["complete"] != wanted or found["faults"]:
        raise SystemExit(f"{wanted} complete answers were expected: {found['statuses']}, {found['faults']}")


def listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in sorted(counts.items())) or "none"


# The parts.


def speed(options: argparse.Namespace) -> None:
    """64 streams together, and the engine alone."""
    print(f"\n### {BATCH} streams together, {options.length:,} characters each\n")
    print("| model | engine alone, characters/s | service, characters/s | ratio | service, cores | client, cores |")
    print("|---|---|---|---|---|---|")
    for name, run in options.runs.items():
        engine, alone, served, cores, client = Engine(run), [], [], [], []
        with service(run) as one:
            for turn in range(options.rounds + 1):
                plan = {"clients": BATCH, "length": options.length, "seed": 1 + turn * BATCH}
                by_engine = engine.speed(BATCH, options.length, 1 + turn)
                before = one.cpu_s
                found = ask(one, "together", **plan)
                check_complete(found, BATCH)
                if turn:  # The first round warms up both sides.
                    alone.append(by_engine)
                    served.append(found["characters"] / found["wall_s"])
                    cores.append((one.cpu_s - before) / found["wall_s"])
                    client.append(found["cpu_s"] / found["wall_s"])
        engine.close()
        ratio = times(ratio_and_spread(served, alone))
        row = [name, spread(alone), spread(served), ratio, spread(cores, 2), spread(client, 2)]
        print("| " + " | ".join(row) + " |", flush=True)
    print("| target | | | at least 0.85 | | |", flush=True)


def first(options: argparse.Namespace) -> None:
    """The time to the first character, with 1 client and with 64."""
    print(f"\n### Time to the first character, {options.requests:,} texts of 200 characters in each round\n")
    print("| model | clients | p50, ms | p99, ms | texts/s | service, cores | client, cores | target of p99 |")
    print("|---|---|---|---|---|---|---|---|")
    for name, run in options.runs.items():
        with service(run) as one:
            ask(one, "together", clients=BATCH, length=200)
            for clients, target in ((1, "20 ms"), (BATCH, "150 ms")):
                rounds, cores = [], []
                for turn in range(options.rounds):
                    before = one.cpu_s
                    plan = {"clients": clients, "length": 200, "requests": options.requests + clients}
                    found = ask(one, "loop", seed=turn * 100_000, **plan)
                    check_complete(found, options.requests + clients)
                    rounds.append(found)
                    cores.append((one.cpu_s - before) / found["wall_s"])
                halves = [1000 * percentile(found["first_s"], 0.5) for found in rounds]
                tails = [1000 * percentile(found["first_s"], 0.99) for found in rounds]
                rate = [found["complete"] / found["wall_s"] for found in rounds]
                share = [found["cpu_s"] / found["wall_s"] for found in rounds]
                row = [name, str(clients), spread(halves, 1), spread(tails, 1), spread(rate)]
                print("| " + " | ".join([*row, spread(cores, 2), spread(share, 2), target]) + " |", flush=True)


def overload(options: argparse.Namespace) -> None:
    """Ten times the capacity."""
    print(f"\n### {OVERLOAD} clients without a pause for {options.seconds:g} s, texts of 500 characters, GRU 512\n")
    with service(options.runs["gru-512"]) as one:
        ask(one, "together", clients=BATCH, length=500)
        start, memory, before, began = one.memory_mb, [], one.cpu_s, time.perf_counter()
        plan = {"clients": OVERLOAD, "sources": SOURCES, "length": 500, "seconds": options.seconds}
        client = Client(one, "loop", **plan)
        while client.working and time.perf_counter() - began < options.seconds:
            time.sleep(min(10.0, max(options.seconds / 3, 0.1)))
            memory.append(one.memory_mb)
        found = client.findings()
        cores = (one.cpu_s - before) / found["wall_s"]
        time.sleep(1)
        left = {name: value for name, value in idle_gauges(one).items() if value}
        end = one.memory_mb
    statuses, refused = found["statuses"], found["refused_s"]
    accepted, complete = statuses.get("200", 0), found["complete"]
    wanted = set(statuses) <= {"200", "429", "503"} and accepted == complete and not found["faults"]
    print("| what | figure | target |\n|---|---|---|")
    print(f"| answers by status | {listed(statuses)} | 200, 429 and 503 only |")
    print(f"| accepted, and complete | {accepted:,} and {complete:,} | the same |")
    print(f"| faults | {listed(found['faults'])} | none |")
    print(f"| characters/s | {found['characters'] / found['wall_s']:,.0f} | |")
    if found["first_s"]:
        middle, tail = (percentile(found["first_s"], share) for share in (0.5, 0.99))
        print(f"| first character of accepted texts, p50 and p99 | {middle:.2f} and {tail:.2f} s | |")
    if refused:
        tail = 1000 * percentile(refused, 0.99)
        print(f"| refusals, p50 and p99 | {1000 * statistics.median(refused):.1f} and {tail:.1f} ms | |")
    shown = ", ".join(f"{one:.0f}" for one in memory)
    print(f"| memory at the start, under load, at the end, MB | {start:.0f}; {shown}; {end:.0f} | flat |")
    print(f"| cores: service, client | {cores:.2f}, {found['cpu_s'] / found['wall_s']:.2f} | |")
    print(f"| gauges that are not back at 0 | {listed_gauges(left)} | none |", flush=True)
    options.failed |= not wanted or bool(left)


def aborts(options: argparse.Namespace) -> None:
    """Requests that are aborted at random points."""
    few = max(options.aborts // 10, 1)
    print(f"\n### {options.aborts:,} requests with random aborts, texts of 400 characters, GRU 512\n")
    with service(options.runs["gru-512"]) as one:
        kinds: dict[str, int] = {}
        statuses: dict[str, int] = {}
        faults: dict[str, int] = {}
        memory = []
        for seed, requests in ((1, few), (2, options.aborts - few)):
            found = ask(one, "abort", clients=32, length=400, requests=requests, seed=seed)
            for total, part in ((kinds, found["kinds"]), (statuses, found["statuses"]), (faults, found["faults"])):
                for name, count in part.items():
                    total[name] = total.get(name, 0) + count
            time.sleep(1)
            memory.append(one.memory_mb)
        left = {name: value for name, value in idle_gauges(one).items() if value}
        check_complete(ask(one, "together", clients=BATCH, length=100), BATCH)
        log = one.log()
    growth = memory[1] / memory[0] - 1
    print("| what | figure | target |\n|---|---|---|")
    print(f"| how they ended | {listed(kinds)} | |")
    print(f"| answers before the abort, by status | {listed(statuses)} | |")
    print(f"| faults | {listed(faults)} | none |")
    print(f"| memory after {few:,} and at the end, MB | {memory[0]:.1f} and {memory[1]:.1f} ({growth:+.1%}) | ± 5 % |")
    print(f"| gauges that are not back at 0 | {listed_gauges(left)} | none |")
    print(f"| tracebacks in the log | {log.count('Traceback')} | 0 |", flush=True)
    options.failed |= bool(left) or bool(faults) or abs(growth) > 0.05 or "Traceback" in log


def idle_gauges(one: Service) -> dict[str, float]:
    """The gauges that are 0 when nothing is generated, and nothing waits."""
    wait_until = time.perf_counter() + 5
    while True:
        found = {name: value for name, value in one.gauges().items() if any(word in name for word in IDLE)}
        if not any(found.values()) or time.perf_counter() > wait_until:
            return found
        time.sleep(0.1)


IDLE = ("active", "running", "waiting", "queue", "streams", "pending", "in_progress", "in_flight")
"""Words in the names of these gauges."""


def listed_gauges(gauges: Mapping[str, float]) -> str:
    return ", ".join(f"`{name}` {value:g}" for name, value in gauges.items()) or "none"


def start(options: argparse.Namespace) -> None:
    """The start, the memory after the first text, and the start after a kill."""
    print("\n### Start, the tutorial's model\n")
    ready, again, memory = [], [], []
    run = options.runs["gru-1024"]
    for turn in range(options.rounds + 1):
        port = free_port()
        one = Service(run, port)
        check_complete(ask(one, "together", clients=1, length=200), 1)
        after = one.memory_mb
        one.end(signal.SIGKILL)
        another = Service(run, port)
        check_complete(ask(another, "together", clients=1, length=200), 1)
        another.end()
        if turn:  # The first one reads the files from disk.
            ready.append(one.ready_s)
            memory.append(after)
            again.append(another.ready_s)
    print("| what | figure | target |\n|---|---|---|")
    print(f"| from the start of the process to ready, s | {spread(ready, 2)} | 0.5 |")
    print(f"| the same on the same port after `kill -9`, s | {spread(again, 2)} | 1 |")
    print(f"| memory after the first text, MB | {spread(memory)} | 120 |", flush=True)


def drain(options: argparse.Namespace) -> None:
    """SIGTERM under load."""
    total = BATCH + WAITING
    print(
        f"\n### SIGTERM while {BATCH} texts are generated and {WAITING} wait, {options.length:,} characters, GRU 512\n"
    )
    print("| round | answers by status | complete | faults | exit code | from SIGTERM to the exit, s |")
    print("|---|---|---|---|---|---|")
    for turn in range(options.rounds):
        one = Service(options.runs["gru-512"], free_port())
        client = Client(one, "together", clients=total, length=options.length, announce=BATCH // 2)
        assert client.line() == "begun\n"
        began = time.perf_counter()
        code = one.end()
        seconds = time.perf_counter() - began
        found = client.findings()
        row = [str(turn + 1), listed(found["statuses"]), str(found["complete"]), listed(found["faults"]), str(code)]
        print("| " + " | ".join([*row, f"{seconds:.2f}"]) + " |", flush=True)
        options.failed |= code != 0 or found["complete"] != total
    print(f"| target | 200: {total} | {total} | none | 0 | |", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "speed": speed,
    "first": first,
    "overload": overload,
    "aborts": aborts,
    "start": start,
    "drain": drain,
}


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of overload")
    parser.add_argument("--length", type=int, default=10_000, help="characters of a text")
    parser.add_argument("--requests", type=int, default=2000, help="texts in each round of the part `first`")
    parser.add_argument("--aborts", type=int, default=10_000, help="requests of the part `aborts`")
    parser.add_argument("--quick", action="store_true", help="little of each, as a smoke test")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.seconds, options.length, options.requests, options.aborts = 1, 2.0, 500, 100, 200
    print(describe_machine())
    print(f"Python {platform.python_version()}, numpy {np.__version__}, q8, rounds: {options.rounds}")
    options.failed = False
    with tempfile.TemporaryDirectory() as folder:
        options.runs = {}
        for name, config in MODELS.items():
            model = random_model(config)
            options.runs[name] = Path(folder, name)
            Run.save(options.runs[name], config, model.weights, model.vocabulary)
        for name in options.only or PARTS:
            PARTS[name](options)
    if options.failed:
        raise SystemExit("a target that does not depend on speed was missed")


if __name__ == "__main__":
    main()
