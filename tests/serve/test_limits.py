"""Limits and failures: queues, clients that leave, do not send or do not read, long prompts, a broken engine."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from contextlib import suppress
from typing import Any

import pytest

from charwright.errors import CorpusError
from charwright.generation.engine import MOST_STREAMS
from charwright.generation.generator import Generator
from charwright.serve.app import Access
from charwright.serve.guards import Guards
from charwright.serve.journal import RequestLog
from charwright.serve.keys import Keys
from services import Raw, Reply, Running, eventually, hosted
from writers import random_writer

LONG = 10_000_000


def in_thread(call: Any, **options: Any) -> tuple[threading.Thread, list[Reply]]:
    replies: list[Reply] = []
    thread = threading.Thread(target=lambda: replies.append(call(**options)))
    thread.start()
    return thread, replies


@pytest.fixture
def slow(serve: Any) -> Running:
    """A service whose texts are longer than any test."""
    running: Running = serve(max_tokens=LONG, max_per_caller=1000, max_n=1000, max_waiting=2, wait_s=0.3)
    return running


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_frees_its_place_within_a_second(slow: Running, stream: bool) -> None:
    with Raw(slow) as client:
        client.complete(max_tokens=LONG, stream=stream, n=5)
        if stream:
            client.read_until(b"data: ")
        assert eventually(lambda: slow.service.held == 5)
    assert slow.is_empty(within_s=1)
    assert eventually(lambda: slow.metric("charwright_abandoned_requests_total") == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_the_log_tells_that_a_client_left(serve: Any, stream: bool) -> None:
    log = io.StringIO()
    running = serve(max_tokens=LONG, log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as client:
        client.complete(max_tokens=LONG, stream=stream)
        if stream:
            client.read_until(b"data: ")
        assert eventually(lambda: running.service.held == 1)
    assert eventually(log.getvalue)
    line = json.loads(log.getvalue())
    assert (line["status"], line["abandoned"]) == (200 if stream else 499, True)


def test_client_that_leaves_before_its_turn(slow: Running) -> None:
    with Raw(slow) as first, Raw(slow) as second:
        first.complete(max_tokens=LONG, stream=True, n=MOST_STREAMS)
        first.read_until(b"data: ")
        second.complete(max_tokens=LONG, stream=True)
        assert eventually(lambda: slow.service.held == MOST_STREAMS + 1)
        second.socket.close()
        assert eventually(lambda: slow.service.held == MOST_STREAMS, within_s=1)
    assert slow.is_empty(within_s=1)


def test_full_service_refuses_with_503(slow: Running) -> None:
    with Raw(slow) as client:
        client.complete(max_tokens=LONG, stream=True, n=MOST_STREAMS)
        client.read_until(b"data: ")
        reply = slow.complete(n=3)
        assert (reply.status, reply.error["code"]) == (503, "overloaded")
        assert int(reply.headers["retry-after"]) >= 1
        began = time.monotonic()
        waited = slow.complete(n=2)
        assert (waited.status, waited.error["code"]) == (503, "overloaded")
        assert 0.25 < time.monotonic() - began < 3
        assert slow.metric("charwright_refusals_total", reason="full") == 1
        assert slow.metric("charwright_refusals_total", reason="wait") == 1
    assert slow.is_empty()
    assert slow.complete(n=3).status == 200


def test_text_that_waits_gets_the_first_free_place(slow: Running) -> None:
    with Raw(slow) as client:
        client.complete(max_tokens=LONG, stream=True, n=MOST_STREAMS)
        client.read_until(b"data: ")
        thread, replies = in_thread(slow.complete, prompt="ab", seed=1)
        assert eventually(lambda: slow.service.held == MOST_STREAMS + 1)
    thread.join()
    assert replies[0].status == 200


def test_free_place_goes_to_the_caller_with_the_fewest(serve: Any) -> None:
    keys = ["first-key-of-some-length", "second-key-of-some-length"]
    running = serve(
        access=Access(Keys.parse("\n".join(keys), "keys")), max_tokens=LONG, max_per_caller=1000, max_prompts=1000
    )
    many, few = ({"Authorization": f"Bearer {key}"} for key in keys)
    with Raw(running) as hog:
        hog.complete(keys[0], prompt=["ab"] * (3 * MOST_STREAMS), max_tokens=20_000, stream=True)
        hog.read_until(b"data: ")
        reply = running.complete(headers=few, max_tokens=5)
        assert reply.status == 200
        assert running.metric("charwright_characters_total", model="letters", kind="prompt") < 2 * 2.5 * MOST_STREAMS
    assert running.is_empty()
    assert running.complete(headers=many, max_tokens=5).status == 200


def test_caller_with_too_many_texts_gets_429(serve: Any) -> None:
    running = serve(max_tokens=LONG, max_per_caller=3)
    with Raw(running) as client:
        client.complete(max_tokens=LONG, stream=True, n=2)
        client.read_until(b"data: ")
        reply = running.complete(n=2)
        assert (reply.status, reply.error["code"], reply.error["type"]) == (
            429,
            "rate_limit_exceeded",
            "rate_limit_error",
        )
        assert int(reply.headers["retry-after"]) >= 1
        assert running.complete(n=1).status == 200
    assert running.is_empty()
    assert running.complete(n=3).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_request_that_takes_too_long(serve: Any, stream: bool) -> None:
    log = io.StringIO()
    running = serve(max_tokens=LONG, total_s=0.3, log=RequestLog(as_json=True, prompts=False, stream=log))
    reply = running.complete(max_tokens=LONG, stream=stream)
    if stream:
        last = reply.body.decode().split("\n\n")[-2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "timeout"
        assert "[DONE]" not in reply.body.decode()
    else:
        assert (reply.status, reply.error["code"]) == (503, "timeout")
        assert reply.headers["x-should-retry"] == "false"
        assert "retry-after" not in reply.headers
    assert running.is_empty(within_s=1)
    assert eventually(lambda: log.getvalue().endswith("\n"))
    entry = json.loads(log.getvalue())
    assert (entry["status"], entry["refused"]) == (200 if stream else 503, "time")


def test_log_says_that_the_service_ended_before_a_stream(serve: Any) -> None:
    log = io.StringIO()
    running = serve(max_tokens=LONG, log=RequestLog(as_json=True, prompts=False, stream=log))
    with Raw(running) as client:
        client.complete(max_tokens=LONG, stream=True)
        client.read_until(b"data: ")
        running.service.cut()
        client.read_until(b"the service ended before the text")
    assert eventually(lambda: log.getvalue().endswith("\n"))
    assert json.loads(log.getvalue())["refused"] == "drain"


def test_body_has_room_for_all_prompts_in_ascii(serve: Any) -> None:
    running = serve()
    limits = running.service.limits
    reply = running.complete(prompt=["字" * limits.max_prompt] * limits.max_prompts, max_tokens=0)
    assert reply.status == 200, reply.body


def test_client_that_does_not_read_is_dropped(serve: Any) -> None:
    running = serve(max_tokens=LONG, idle_s=0.3)
    with Raw(running, small_buffer=True) as client:
        client.complete(max_tokens=LONG, stream=True)
        assert eventually(lambda: running.metric("charwright_streams") == 1)
        assert running.is_empty(within_s=10)
        assert b"[DONE]" not in client.read_all()


@pytest.mark.parametrize(
    "part",
    [b"", b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX: "],
    ids=["nothing", "line", "head"],
)
def test_client_that_sends_no_request_is_dropped(serve: Any, part: bytes) -> None:
    running = serve(idle_s=0.3)
    with Raw(running) as client:
        client.send(part)
        began = time.monotonic()
        assert client.read_all() == b""
        assert time.monotonic() - began < 5


def test_client_that_sends_no_body_gets_408(serve: Any) -> None:
    running = serve(idle_s=0.3)
    with Raw(running) as client:
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 50\r\n\r\n{"
        )
        assert client.read_all().startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("declared", [True, False])
def test_body_that_is_too_large_gets_413(serve: Any, declared: bool) -> None:
    running = serve(max_body_bytes=2000)
    body = b'{"model": "letters", "prompt": "' + b"a" * 5000 + b'"}'
    with Raw(running) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        if declared:
            client.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        else:
            client.send(head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        answer = client.read_all()
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"larger than 2,000 bytes" in answer


def test_body_that_trickles_gets_408(serve: Any) -> None:
    running = serve(idle_s=0.5)
    with Raw(running) as client:
        client.send(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 5000\r\n\r\n"
        )
        began = time.monotonic()
        while time.monotonic() - began < 5:
            time.sleep(0.1)
            try:
                client.send(b" ")
            except OSError:
                break
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\r\n"),
        (b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"{"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n", b"a"),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /healthz HT"),
    ],
    ids=["newline", "refused", "body", "half"],
)
def test_connection_with_nothing_to_answer_is_closed(serve: Any, first: bytes, second: bytes) -> None:
    running = serve(idle_s=0.5)
    with Raw(running) as client:
        client.send(first)
        client.read_until(b"\r\n\r\n")
        with suppress(OSError):
            client.send(second)
        began = time.monotonic()
        client.read_all()
        assert time.monotonic() - began < 3


def test_answer_is_not_cut_when_the_next_request_begins(serve: Any) -> None:
    running = serve(idle_s=0.3, max_tokens=LONG)
    with Raw(running) as client:
        client.complete(max_tokens=1_500_000, stream=True)
        client.read_until(b"data: ")
        client.send(b"POST ")
        assert client.read_until(b"data: [DONE]")


def test_client_that_does_not_read_but_goes_on_asking_is_dropped(serve: Any) -> None:
    running = serve(max_tokens=LONG, idle_s=0.5, total_s=1)
    with Raw(running, small_buffer=True) as client:
        client.complete(max_tokens=LONG, stream=True)
        client.send(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert eventually(lambda: running.metric("charwright_streams") == 1)
        assert running.is_empty(within_s=10)


def test_answer_has_a_limit(serve: Any) -> None:
    running = serve(max_request=1000)
    assert running.complete(n=10, max_tokens=100).status == 200
    for wrong in ({"n": 11}, {"logprobs": 0}, {"echo": True, "prompt": ["a", "b"] * 6}):
        reply = running.complete(**({"n": 10, "max_tokens": 100} | wrong))
        assert (reply.status, reply.error["param"]) == (400, "max_tokens")
    assert running.complete(n=5, max_tokens=100, logprobs=0).status == 200
    assert running.complete(n=2, max_tokens=100, logprobs=3).status == 200


def test_one_guard_is_made_at_a_time(serve: Any) -> None:
    release = threading.Event()

    def slow_text(_: object) -> str:
        release.wait(20)
        return "abc" * 100

    model = hosted("letters", random_writer())
    model.training_text = slow_text
    running = serve({"letters": model}, wait_s=0.5)
    asked = [in_thread(running.complete, max_copy=most) for most in (5, 6)]
    assert eventually(lambda: running.service.held == 2)
    assert running.complete().status == 200
    for thread, replies in asked:
        thread.join()
        assert (replies[0].status, replies[0].headers["retry-after"]) == (503, "1")
        assert "reading the training text for max_copy" in replies[0].error["message"]
    release.set()
    assert eventually(lambda: running.complete(max_copy=5).status == 200)
    assert running.complete(max_copy=6).status == 200
    assert running.is_empty()


def test_training_text_that_is_read_at_the_start_is_not_read_again(serve: Any) -> None:
    read: list[object] = []

    def text_of(run: object) -> str:
        read.append(run)
        return "abc" * 100

    model = hosted("letters", random_writer())
    model.training_text = text_of
    model.read_text()
    running = serve({"letters": model})
    assert [running.complete(max_copy=most).status for most in (5, 6)] == [200, 200]
    assert len(read) == 1


def test_long_prompt_does_not_stall_the_others(serve: Any) -> None:
    running = serve(max_prompt=1_000_000, max_body_bytes=2_000_000)
    thread, replies = in_thread(running.complete, prompt="ab" * 450_000, max_tokens=1)
    assert eventually(lambda: running.service.held == 1)
    began = time.monotonic()
    assert running.complete(prompt="ab", max_tokens=10, seed=1).status == 200
    short_s = time.monotonic() - began
    assert not replies, "the long prompt was read before the short one"
    thread.join()
    assert replies[0].status == 200
    assert short_s < 1


def test_connection_is_kept(running: Running) -> None:
    with Raw(running) as client:
        for _ in range(3):
            client.complete(max_tokens=3)
            assert b'"finish_reason":"length"' in client.read_until(b"total_tokens")


class BrokenWriter:
    """An engine that fails while `broken` is true."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.broken = engine, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def advance(self, streams: Any, steps: int) -> None:
        if self.broken:
            raise RuntimeError("broken")
        self._engine.advance(streams, steps)


def test_engine_that_fails_does_not_end_the_service(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    writer: Generator = random_writer()
    engine = BrokenWriter(writer.engine)
    writer.engine = engine  # type: ignore[assignment]
    running = serve({"letters": hosted("letters", writer)})
    engine.broken = True
    reply = running.complete(prompt="a")
    assert (reply.status, reply.error["code"]) == (500, "failed")
    assert "data: " in running.complete(prompt="a", stream=True).body.decode()
    assert "RuntimeError: broken" in caplog.text
    engine.broken = False
    assert running.complete(prompt="a").status == 200
    assert running.get("/readyz").status == 200
    assert running.is_empty()


def test_draining_service_is_not_ready_and_takes_no_work(serve: Any) -> None:
    running = serve()
    running.service.draining = True
    assert running.get("/healthz").status == 200
    assert running.get("/readyz").status == 503
    reply = running.complete()
    assert (reply.status, reply.headers["retry-after"]) == (503, "1")


def test_callers_take_turns_with_guards() -> None:
    """However many values of `max_copy` one caller asks for, another waits for two guards at most."""
    made: list[int] = []
    release = threading.Semaphore(0)

    class Model:
        def guard(self, max_copy: int) -> Any:
            release.acquire()
            made.append(max_copy)
            return max_copy

    async def ask() -> list[Any]:
        guards = Guards(Model())  # type: ignore[arg-type]
        greedy = [asyncio.create_task(guards.get(value, "greedy")) for value in range(10, 20)]
        await asyncio.sleep(0)
        modest = asyncio.create_task(guards.get(5, "modest"))
        gone = asyncio.create_task(guards.get(6, "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        release.release(100)
        return [await one for one in (modest, *greedy)]

    assert asyncio.run(ask()) == [5, *range(10, 20)]
    assert made[:2] == [10, 5]
    assert sorted(made) == [5, *range(10, 20)]


def test_a_thread_that_cannot_start_fails_one_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def guard(self, max_copy: int) -> Any:
            return max_copy

    def broken(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> Any:
        guards = Guards(Model())  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", broken)
            with pytest.raises(RuntimeError, match="can't start"):
                await guards.get(5, "a")
        return await asyncio.wait_for(guards.get(5, "a"), 10)

    assert asyncio.run(ask()) == 5


def test_a_guard_that_cannot_be_made_fails_for_all_that_wait_for_it_and_is_tried_again() -> None:
    tries: list[int] = []

    class Model:
        def guard(self, max_copy: int) -> Any:
            tries.append(max_copy)
            raise CorpusError("the text is gone")

    async def ask() -> list[Any]:
        guards = Guards(Model())  # type: ignore[arg-type]
        both = await asyncio.gather(*(guards.get(5, name) for name in "ab"), return_exceptions=True)
        return [*both, *await asyncio.gather(guards.get(5, "a"), return_exceptions=True)]

    assert [str(error) for error in asyncio.run(ask())] == ["the text is gone"] * 3
    assert len(tries) == 2
