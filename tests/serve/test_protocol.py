"""The protocol: offers of other protocols, invalid and large heads and bodies, slow clients, too many connections."""

from __future__ import annotations

import io
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from charwright.serve import protocol
from charwright.serve.journal import RequestLog
from services import Raw, Running, eventually

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
OFFER = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
BODY = b'{"model": "letters", "prompt": "ab", "max_tokens": 3}'
SIZED = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


def log_lines(log: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.getvalue().splitlines()]


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


def statuses(client: Raw, count: int) -> list[bytes]:
    """The statuses of the next answers, each with a body of which the length is declared."""
    found = []
    for _ in range(count):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            part = client.socket.recv(1)
            assert part, head
            head += part
        found.append(head.split()[1])
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None
        rest = int(length[1])
        while rest:
            rest -= len(client.socket.recv(rest))
    return found


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("offer", [OFFER, OFFER.replace(b"h2c", b"websocket")], ids=["h2c", "websocket"])
def test_offer_of_another_protocol_is_ignored_in_each_request(running: Running, offer: bytes, body: bytes) -> None:
    with Raw(running) as client:
        for _ in range(3):
            client.send(HEAD + offer + body)
            assert statuses(client, 1) == [b"200"]
        client.send((HEAD + offer + body) * 2 + HEAD + body + HEALTH + HEAD + offer + body)
        assert statuses(client, 5) == [b"200"] * 5


@pytest.mark.parametrize(
    "at", [10, len(HEAD) - 1, len(HEAD) + 50, len(HEAD + OFFER) + 3, len(HEAD + OFFER + SIZED) - 9]
)
def test_offer_of_another_protocol_is_ignored_in_a_divided_request(running: Running, at: int) -> None:
    request = HEAD + OFFER + SIZED
    with Raw(running) as client:
        for _ in range(2):
            client.send(request[:at])
            time.sleep(0.05)
            client.send(request[at:])
            assert statuses(client, 1) == [b"200"]


def test_body_after_an_offer_is_not_read_as_a_request(running: Running) -> None:
    with Raw(running) as client:
        client.send(HEALTH)
        assert statuses(client, 1) == [b"200"]
        client.send(HEAD + OFFER + b"Content-Length: %d\r\n\r\n" % len(HEALTH))
        time.sleep(0.05)
        client.send(HEALTH)
        assert statuses(client, 1) == [b"400"]
        client.send(HEALTH.replace(b"\r\n\r\n", b"\r\n" + OFFER + b"\r\n"))
        assert statuses(client, 1) == [b"200"]


@pytest.mark.parametrize("where", ["names", "value", "line"])
def test_head_that_has_no_end_gets_431(serve: Any, where: str) -> None:
    running = serve()
    begin = {"line": b"GET /", "value": b"GET / HTTP/1.1\r\nX: ", "names": b"GET / HTTP/1.1\r\n"}[where]
    part = b"".join(b"X-%d: a\r\n" % i for i in range(1000)) if where == "names" else b"a" * 10_000
    with Raw(running) as client:
        sent = 0
        with suppress(OSError):
            client.send(begin)
            while sent < 1 << 20:
                client.send(part)
                sent += len(part)
                time.sleep(0.005)
        assert sent < 300_000
        assert running.metric("charwright_refusals_total", reason="head") == 1
    assert running.complete().status == 200


@pytest.mark.parametrize("before", [b"", HEALTH], ids=["first", "pipelined"])
@pytest.mark.parametrize("where", [b"/%s HTTP/1.1\r\n", b"/ HTTP/1.1\r\nX: %s\r\n"], ids=["line", "value"])
def test_head_that_is_too_large_at_once_gets_431(serve: Any, before: bytes, where: bytes) -> None:
    running = serve()
    for size, status in ((60_000, b"404" if where.startswith(b"/%s") else b"200"), (70_000, b"431")):
        with Raw(running) as client:
            client.send(before + b"GET " + where % (b"a" * size) + b"Host: localhost\r\n\r\n")
            assert statuses(client, 2 if before else 1)[-1] == status


@pytest.mark.parametrize("head", [HEAD, HEALTH.removesuffix(b"\r\n")], ids=["waited for", "answered before"])
def test_what_follows_a_body_has_an_end(serve: Any, head: bytes) -> None:
    running = serve()
    with Raw(running) as client:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        sent = 0
        with suppress(OSError):
            while sent < 1 << 20:
                client.send(b"x: y\r\n" * 1000)
                sent += 6000
                time.sleep(0.005)
        assert sent < 300_000
    assert running.complete().status == 200


def test_fields_after_a_body_are_no_headers(serve: Any) -> None:
    running = serve()
    head, body = HEAD.replace(b"Content-Type: application/json\r\n", b""), CHUNKED.removesuffix(b"\r\n")
    with Raw(running) as client:
        client.send(head + body + b"Content-Type: application/json\r\n\r\n")
        assert statuses(client, 1) == [b"415"]
    with Raw(running) as client:
        client.send(HEAD + body + b"Content-Type: text/plain\r\n\r\n")
        assert statuses(client, 1) == [b"200"]


def test_a_length_may_begin_with_zeros(serve: Any) -> None:
    running = serve()
    for digits, status in ((b"0" * 5000, b"200"), (b"9" * 15, b"413")):
        with Raw(running) as client:
            client.send(HEAD + b"Content-Length: " + digits + SIZED.removeprefix(b"Content-Length: "))
            assert statuses(client, 1) == [status]


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"2\r\n{}zz\r\n"])
def test_invalid_chunk_gets_400(serve: Any, log: io.StringIO, chunk: bytes) -> None:
    running = serve(log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        time.sleep(0.05)
        client.send(chunk)
        answer = client.read_all()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answer
    assert eventually(lambda: len(log_lines(log)) == 1)
    [line] = log_lines(log)
    assert (line["path"], line["status"], line["refused"]) == ("/v1/completions", 400, "http")


def test_invalid_body_does_not_touch_the_answer_of_a_route_without_one(serve: Any) -> None:
    running = serve()
    with Raw(running) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
        answer = client.read_all()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"GARBAGE\r\n\r\n", 400, "http"),
        (b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400, "http"),
        (b"GET / HTTP/1.1\r\nX: %s\r\n\r\n" % (b"a" * 100_000), 431, "head"),
    ],
    ids=["garbage", "connect", "large"],
)
def test_refusal_of_the_protocol_is_numbered_counted_and_logged(
    serve: Any, log: io.StringIO, data: bytes, status: int, reason: str
) -> None:
    running = serve(log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as client:
        client.send(data)
        head, _, body = client.read_all().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert eventually(lambda: len(log_lines(log)) == 1)
    [line] = log_lines(log)
    assert (line["method"], line["path"], line["status"], line["refused"]) == ("-", "other", status, reason)
    assert f"x-request-id: {line['id']}".encode() in head
    assert b"x-content-type-options: nosniff" in head
    assert running.metric("charwright_refusals_total", reason=reason) == 1
    assert running.metric("charwright_requests_total", route="other", status=str(status)) == 1


def test_refusal_waits_for_the_answer_before_it(running: Running) -> None:
    with Raw(running) as client:
        client.send(HEAD + SIZED + b"GARBAGE\r\n\r\n")
        assert statuses(client, 2) == [b"200", b"400"]
        assert client.read_all() == b""


def test_idle_connection_makes_room_for_a_new_one(serve: Any) -> None:
    running = serve(max_connections=3)
    with ExitStack() as stack:
        kept = [stack.enter_context(Raw(running)) for _ in range(3)]
        for each in [*kept, kept[0]]:  # The second is the longest idle one then.
            each.send(HEALTH)
            assert statuses(each, 1) == [b"200"]
        assert running.get("/healthz").status == 200
        assert kept[1].read_all() == b""
        for each in (kept[0], kept[2]):
            each.send(HEALTH)
            assert statuses(each, 1) == [b"200"]


def test_too_many_busy_connections_get_503(serve: Any, log: io.StringIO) -> None:
    running = serve(max_connections=2, log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as unused, Raw(running) as half:
        half.send(HEALTH)
        assert statuses(half, 1) == [b"200"]
        half.send(HEALTH[:9])
        time.sleep(0.05)
        with Raw(running) as client:
            client.complete()
            head = client.read_all().partition(b"\r\n\r\n")[0]
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"\r\nretry-after: 1" in head
        assert b"\r\nconnection: close" in head
        assert eventually(lambda: len(log_lines(log)) == 1)
        [line] = log_lines(log)
        assert (line["status"], line["refused"]) == (503, "connections")
        assert f"x-request-id: {line['id']}".encode() in head
        unused.socket.close()
        assert eventually(lambda: len(running.server.server_state.connections) == 1)
        assert running.get("/healthz").status == 200


@pytest.fixture
def crowded(serve: Any) -> Iterator[Running]:
    """A service with as many connections as may ask for texts, none of which is idle."""
    running: Running = serve(max_connections=2)
    with Raw(running), Raw(running):
        assert eventually(lambda: len(running.server.server_state.connections) == 2)
        yield running


def test_probes_are_answered_beyond_the_limit_of_connections(crowded: Running) -> None:
    for path in ("/healthz", "/readyz", "/metrics", "/healthz?from=watchdog"):
        reply = crowded.get(path)
        assert (reply.status, reply.headers.get("connection")) == (200, "close")
    assert [reply.status for reply in (crowded.complete(), crowded.get("/v1/models"), crowded.get("/"))] == [503] * 3
    assert crowded.metric("charwright_refusals_total", reason="connections") == 3


def test_connection_beyond_the_limit_carries_one_probe(crowded: Running) -> None:
    with Raw(crowded) as client:
        client.send(HEALTH + HEAD + SIZED)
        assert client.read_all().count(b"HTTP/1.1 200 ") == 1


def test_connections_for_probes_have_a_limit(crowded: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EXCESS", 1)
    monkeypatch.setattr(protocol, "EXCESS_S", 0.5)
    with Raw(crowded) as silent:
        assert eventually(lambda: len(crowded.server.server_state.connections) == 3)
        with Raw(crowded) as client:
            assert client.read_all().startswith(b"HTTP/1.1 503 ")
        began = time.monotonic()
        assert silent.read_all() == b""
        assert time.monotonic() - began < 5
    assert crowded.get("/healthz").status == 200


def test_connection_beyond_the_limit_may_ask_for_everything_when_there_is_room(serve: Any) -> None:
    running = serve(max_connections=1)
    with Raw(running) as first, Raw(running) as second:
        assert eventually(lambda: len(running.server.server_state.connections) == 2)
        first.socket.close()
        assert eventually(lambda: len(running.server.server_state.connections) == 1)
        for _ in range(2):
            second.complete(max_tokens=3)
            assert statuses(second, 1) == [b"200"]


def large_request(client: Raw) -> None:
    """Ask for an answer that no buffer holds."""
    client.complete(prompt=["ab" * 9000] * 4, max_tokens=0, echo=True, logprobs=5)
    assert b" 200 OK" in client.read_until(b"\r\n\r\n")


def test_client_that_reads_slowly_gets_the_whole_answer(serve: Any) -> None:
    running = serve(idle_s=0.4, max_request=10_000_000)
    with Raw(running, small_buffer=True) as client:
        large_request(client)
        tail = b""
        slow_until = time.monotonic() + 1.5
        while b"total_tokens" not in tail:
            slow = time.monotonic() < slow_until
            part = client.socket.recv(2000 if slow else 1 << 16)
            assert part, "the answer was cut"
            tail = (tail + part)[-100:]
            if slow:
                time.sleep(0.05)
    assert running.metric("charwright_abandoned_requests_total") == 0


def test_client_that_does_not_read_a_whole_answer_is_counted(serve: Any) -> None:
    running = serve(idle_s=0.3, max_request=10_000_000)
    with Raw(running, small_buffer=True) as client:
        large_request(client)
        assert eventually(lambda: running.metric("charwright_abandoned_requests_total") == 1)
        assert eventually(lambda: not running.server.server_state.connections)
        assert b"total_tokens" not in client.read_all()


def test_client_that_leaves_in_an_offer(running: Running) -> None:
    with Raw(running) as client:
        client.send(HEAD + OFFER + SIZED[:30])
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_all() == b""


@pytest.mark.parametrize("begin", [b"", b"GET /heal"], ids=["silent", "in its head"])
def test_a_client_that_sends_no_request_gives_way_when_there_are_too_many(
    serve: Any, monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    monkeypatch.setattr(protocol, "EXCESS_S", 0.3)
    running = serve(max_connections=3)
    with ExitStack() as held:
        for _ in range(3):
            held.enter_context(Raw(running)).send(begin)
        assert running.complete().status == 503
        assert eventually(lambda: running.complete().status == 200)


def test_a_client_that_sends_its_head_slowly_is_answered_where_there_is_room(
    serve: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "EXCESS_S", 0.05)
    with Raw(serve(max_connections=3)) as client:
        for _ in range(2):
            for part in (HEALTH[:5], HEALTH[5:20], HEALTH[20:]):
                time.sleep(0.2)
                client.send(part)
            assert statuses(client, 1) == [b"200"]


def test_a_head_that_has_just_begun_does_not_give_way(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "EXCESS_S", 1.0)
    running = serve(max_connections=1)
    with Raw(running) as client:
        time.sleep(1.2)
        client.send(HEALTH[:20])
        time.sleep(0.1)
        assert running.complete().status == 503
        client.send(HEALTH[20:])
        assert statuses(client, 1) == [b"200"]


def test_a_stream_in_http_1_0_has_no_chunks(running: Running) -> None:
    body = BODY.replace(b"}", b', "stream": true}')
    request = HEAD.replace(b"1.1", b"1.0") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with Raw(running) as client:
        client.send(request)
        head, _, events = client.read_all().partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"chunked" not in head
    assert events.startswith(b"data: {")
    assert events.endswith(b"data: [DONE]\n\n")
    with Raw(running) as client:
        client.send(request.replace(b"true", b"null"))
        head, _, answer = client.read_all().partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(answer) in head


def test_tls_is_told_that_this_is_plain_http(running: Running) -> None:
    with Raw(running) as client:
        client.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
        assert b"this port speaks plain HTTP" in client.read_all()


def test_a_client_that_leaves_while_it_sends_is_counted(serve: Any, log: io.StringIO) -> None:
    running = serve(log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as client:
        client.send(HEAD + b"Content-Length: 2000\r\n\r\n{")
        time.sleep(0.1)
    assert eventually(lambda: running.metric("charwright_abandoned_requests_total") == 1)
    assert eventually(lambda: [(line["status"], line["abandoned"]) for line in log_lines(log)] == [(499, True)])
