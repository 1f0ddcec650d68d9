"""A light client that loads `charwright serve`: many connections in one thread, in a process of its own.

    echo '{"do": "together", "port": 8000, "model": "gru", "clients": 64, "length": 2000}' |
        python -I -S benchmarks/serving_client.py

The client shares the machine's cores with the service that it measures, so it uses sockets and a selector alone, and
parses a stream when it has ended. It reads a plan as JSON from standard input, and prints its findings as JSON. It
connects to loopback addresses only.
"""

from __future__ import annotations

import heapq
import json
import re
import selectors
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from typing import Any

SERVICE = "127.0.0.1"
PROMPT = "ROMEO:"
TEMPERATURE = 0.8
PATIENCE_S = 120.0  # without any event, after which the client gives up

FIRST_TEXT = re.compile(rb'"text": ?"[^"]')
LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after: *\d+", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
END_OF_CHUNKS = b"\r\n0\r\n\r\n"


@dataclass
class Answer:
    """What became of one request; `status` is 0 if the connection ended before the answer did."""

    status: int
    complete: bool
    characters: int = 0
    first_s: float | None = None
    total_s: float = 0.0
    fault: str = ""


@dataclass(frozen=True)
class Plan:
    """What to do, as read from standard input."""

    do: str
    port: int
    model: str
    clients: int
    length: int
    requests: int = 0
    seconds: float = 0.0
    sources: int = 1
    """Clients are spread over this many loopback addresses, half of them on the first: each is another caller."""
    seed: int = 0
    announce: int = 0
    """Print a line as soon as this many streams have begun."""

    def request(self, seed: int, *, stream: bool = True) -> bytes:
        """A whole request for one text."""
        body = {"model": self.model, "prompt": PROMPT, "max_tokens": self.length, "temperature": TEMPERATURE}
        content = json.dumps(body | {"seed": seed, "stream": stream}).encode()
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: {SERVICE}:{self.port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content

    def source(self, client: int) -> str:
        """The address that a client connects from."""
        others = self.sources - 1
        return SERVICE if not others or client % 2 == 0 else f"127.0.0.{2 + client // 2 % others}"


@dataclass(eq=False)
class Connection:
    """One connection that is kept alive: it sends a request and reads the answer."""

    plan: Plan
    client: int
    data: bytearray = field(default_factory=bytearray)
    began: float = 0.0
    first_s: float | None = None
    end: int | None = None
    """Length of an answer that declares it."""
    answers: int = 0
    rest: bytes = b""
    """What the socket did not take yet."""

    def __post_init__(self) -> None:
        self.open()

    def open(self) -> None:
        """Connect."""
        source = (self.plan.source(self.client), 0)
        self.socket = socket.create_connection((SERVICE, self.plan.port), PATIENCE_S, source_address=source)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)

    def send(self, request: bytes) -> None:
        """Send a request; it is small enough for the socket's buffer."""
        self.data.clear()
        self.first_s = self.end = None
        self.began = time.perf_counter()
        assert self.socket.send(request) == len(request)

    def receive(self) -> bool:
        """Read what has arrived; true if this was the end of the answer or of the connection."""
        try:
            piece = self.socket.recv(1 << 18)
        except BlockingIOError:
            return False
        except OSError:
            return True
        if not piece:
            return True
        self.data += piece
        if self.first_s is None and FIRST_TEXT.search(self.data):
            self.first_s = time.perf_counter() - self.began
        if self.end is None and (head := self.data.find(b"\r\n\r\n")) >= 0:
            declared = LENGTH.search(self.data, 0, head + 2)
            self.end = head + 4 + int(declared[1]) if declared else -1
        return self.end == len(self.data) or (self.end == -1 and self.data.endswith(END_OF_CHUNKS))

    def answer(self) -> Answer:
        """The answer that has arrived."""
        total_s = time.perf_counter() - self.began
        self.answers += 1
        head, _, body = bytes(self.data).partition(b"\r\n\r\n")
        if not body or (self.end == -1 and not body.endswith(END_OF_CHUNKS)):
            return Answer(0, False, fault=f"the connection ended after {len(self.data)} bytes")
        status = int(head[9:12])
        if status != 200:
            told = RETRY_AFTER.search(head + b"\r\n") is not None
            fault = "" if told or status not in (429, 503) else "no Retry-After"
            return Answer(status, False, total_s=total_s, fault=fault or ("" if told else body[:200].decode()))
        if self.end != -1:
            choice = json.loads(body)["choices"][0]
            return Answer(200, choice["finish_reason"] == "length", len(choice["text"]), self.first_s, total_s)
        characters, fault = read_stream(b"".join(chunks(body)))
        if not fault and characters != self.plan.length:
            fault = f"{characters} characters instead of {self.plan.length}"
        return Answer(200, not fault, characters, self.first_s, total_s, fault)

    def close(self, *, reset: bool = False) -> None:
        """Close the connection; with `reset`, abruptly."""
        if reset:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def chunks(body: bytes) -> Iterator[bytes]:
    """The pieces of a chunked body."""
    at = 0
    while True:
        line = body.index(b"\r\n", at)
        size = int(body[at:line], 16)
        if size == 0:
            return
        yield body[line + 2 : line + 2 + size]
        at = line + 2 + size + 2


def read_stream(body: bytes) -> tuple[int, str]:
    """The number of characters of a stream of one choice, and what is wrong with it."""
    characters, reason, done = 0, None, False
    for event in body.split(b"\n\n"):
        if event == b"data: [DONE]":
            done = True
        elif event.startswith(b"data: "):
            message = json.loads(event[6:])
            if "error" in message:
                return characters, f"error in the stream: {message['error']['message']}"
            for choice in message["choices"]:
                characters += len(choice["text"])
                reason = choice["finish_reason"] or reason
    return characters, "" if done and reason == "length" else f"[DONE]: {done}, finish_reason: {reason}"


def together(plan: Plan) -> dict[str, Any]:
    """All clients ask at once, each for one text, on connections that have been used before."""
    selector = selectors.DefaultSelector()
    warm = Plan(plan.do, plan.port, plan.model, plan.clients, 1)
    connections = [Connection(warm, client) for client in range(plan.clients)]
    for connection in connections:
        connection.send(warm.request(0))
    _until_answered(selector, connections)
    for connection in connections:
        connection.answer()
        connection.plan = plan
    requests = [plan.request(plan.seed + client) for client in range(plan.clients)]
    began, used = time.perf_counter(), time.process_time()
    for connection, request in zip(connections, requests, strict=True):
        connection.send(request)
    _until_answered(selector, connections, plan.announce)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - used
    answers = [connection.answer() for connection in connections]
    for connection in connections:
        connection.close()
    return _summary(answers) | {"wall_s": wall_s, "cpu_s": cpu_s}


def _until_answered(selector: selectors.BaseSelector, connections: list[Connection], announce: int = 0) -> None:
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    waiting = len(connections)
    while waiting:
        events = selector.select(PATIENCE_S)
        if not events:
            sys.exit(f"nothing arrived for {PATIENCE_S:g} s; {waiting} answers are missing")
        for key, _ in events:
            if key.data.receive():
                selector.unregister(key.fileobj)
                waiting -= 1
        if announce and sum(connection.first_s is not None for connection in connections) >= announce:
            print("begun", flush=True)
            announce = 0


def loop(plan: Plan) -> dict[str, Any]:
    """Each client asks again as soon as it has its answer, until enough requests are answered or the time is over."""
    selector = selectors.DefaultSelector()
    began, used = time.perf_counter(), time.process_time()
    ends = began + plan.seconds if plan.seconds else float("inf")
    most = plan.requests or sys.maxsize
    connections = [Connection(plan, client) for client in range(plan.clients)]
    sent = 0
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(plan.request(plan.seed + sent))
        sent += 1
    answers, steady, open_ones = [], [], len(connections)
    while open_ones:
        events = selector.select(PATIENCE_S)
        if not events:
            sys.exit(f"nothing arrived for {PATIENCE_S:g} s; {open_ones} answers are missing")
        for key, _ in events:
            connection = key.data
            if not connection.receive():
                continue
            answer = connection.answer()
            answers.append(answer)
            if connection.answers > 1 and answer.first_s is not None:
                steady.append(answer.first_s)
            again = sent < most and time.perf_counter() < ends
            if not again or answer.status == 0 or CLOSES.search(connection.data):
                selector.unregister(connection.socket)
                connection.close()
                open_ones -= 1
                if not again:
                    continue
                connection.open()
                selector.register(connection.socket, selectors.EVENT_READ, connection)
                open_ones += 1
            connection.send(plan.request(plan.seed + sent))
            sent += 1
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - used
    return _summary(answers) | {"wall_s": wall_s, "cpu_s": cpu_s, "first_s": steady}


# How an aborted request ends: the client closes at once without a word, in the middle of its request, while it waits
# for the headers, in the middle of the stream, while it waits for a text that is not streamed, or after the last byte.
ABORTS = ("silent", "half", "waiting", "streaming", "unstreamed", "complete")


@dataclass(eq=False)
class Aborted:
    """A request that will be aborted in one of these ways."""

    kind: str
    connection: Connection
    closes_at: float = float("inf")
    receives: int = 0
    """Pieces to read before the connection is closed."""


def abort(plan: Plan) -> dict[str, Any]:
    """Requests that are aborted at random points."""
    random, selector = Random(plan.seed), selectors.DefaultSelector()
    began, used = time.perf_counter(), time.process_time()
    kinds: Counter[str] = Counter()
    answers: list[Answer] = []
    live: set[Aborted] = set()
    due: list[tuple[float, int, Aborted]] = []
    sent = 0

    def finish(one: Aborted) -> None:
        live.remove(one)
        selector.unregister(one.connection.socket)
        one.connection.close(reset=random.random() < 0.5)
        kinds[one.kind] += 1

    while sent < plan.requests or live:
        while sent < plan.requests and len(live) < plan.clients:
            one = Aborted(random.choice(ABORTS), Connection(plan, sent))
            request = plan.request(plan.seed + sent, stream=one.kind != "unstreamed")
            if one.kind == "half":
                request = request[: random.randrange(1, len(request))]
            if one.kind != "silent":
                one.connection.send(request)
            if one.kind in ("silent", "half", "waiting", "unstreamed"):
                # Most of these are closed within the time that the first characters take.
                one.closes_at = time.perf_counter() + random.choice((0.0, random.expovariate(1 / 0.01)))
                heapq.heappush(due, (one.closes_at, sent, one))
            one.receives = random.randrange(1, 6)
            live.add(one)
            selector.register(one.connection.socket, selectors.EVENT_READ, one)
            sent += 1
        if (
            not (events := selector.select(max(due[0][0] - time.perf_counter(), 0.0) if due else PATIENCE_S))
            and not due
        ):
            sys.exit(f"nothing arrived for {PATIENCE_S:g} s; {len(live)} answers are missing")
        for key, _ in events:
            one = key.data
            ended = one.connection.receive()
            one.receives -= 1
            if ended:
                answers.append(one.connection.answer())
            if ended or (one.kind == "streaming" and one.receives <= 0):
                finish(one)
        while due and due[0][0] <= time.perf_counter():
            _, _, one = heapq.heappop(due)
            if one in live:
                finish(one)
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - used
    return _summary(answers) | {"wall_s": wall_s, "cpu_s": cpu_s, "kinds": dict(kinds)}


def _summary(answers: list[Answer]) -> dict[str, Any]:
    statuses = Counter(str(answer.status) for answer in answers)
    faults = Counter(answer.fault for answer in answers if answer.fault)
    return {
        "statuses": dict(statuses),
        "complete": sum(answer.complete for answer in answers),
        "characters": sum(answer.characters for answer in answers),
        "faults": dict(faults.most_common(5)),
        "refused_s": [answer.total_s for answer in answers if answer.status in (429, 503)][:100_000],
    }


if __name__ == "__main__":
    given = Plan(**json.load(sys.stdin))
    print(json.dumps({"together": together, "loop": loop, "abort": abort}[given.do](given)))
