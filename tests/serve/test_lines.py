"""The thread that writes the log: in order, never in the way of the service, and nothing is lost in silence."""

from __future__ import annotations

import io
import os
import threading
import time

import pytest

from charwright.serve import lines as module
from charwright.serve.lines import Lines


class Stalled(io.StringIO):
    """A stream whose reader stalls until `resume`."""

    def __init__(self) -> None:
        super().__init__()
        self.stalled, self.resume = threading.Event(), threading.Event()

    def write(self, text: str) -> int:
        self.stalled.set()
        assert self.resume.wait(20)
        return super().write(text)


def test_lines_come_in_order_and_all_at_the_end() -> None:
    stream = io.StringIO()
    with Lines(stream) as lines:
        for number in range(1000):
            lines.write(f"{number}\n")
    assert stream.getvalue().split() == [str(number) for number in range(1000)]


def test_dropped_lines_are_counted_at_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 8)
    stream = Stalled()
    with Lines(stream, notice=lambda message: f"<{message}>") as lines:
        lines.write("one\n")
        assert stream.stalled.wait(5)
        for text in ("two\n", "six\n", "ten\n", "eleven\n"):
            lines.write(text)
        stream.resume.set()
    assert stream.getvalue() == "one\ntwo\nsix\n<2 lines were dropped here, since nobody read the log>\n"


def test_a_line_after_dropped_ones_comes_after_their_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 8)
    stream = Stalled()
    with Lines(stream) as lines:
        lines.write("one\n")
        assert stream.stalled.wait(5)
        for text in ("two\n", "eleven\n", "six\n"):
            lines.write(text)
        stream.resume.set()
    assert stream.getvalue() == "one\ntwo\n1 line was dropped here, since nobody read the log\nsix\n"


def test_a_pipe_that_nobody_reads_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSING_S", 0.1)
    read, write = os.pipe()
    with os.fdopen(write, "w", encoding="ascii") as stream, os.fdopen(read, "rb") as reader:
        with Lines(stream) as lines:
            lines.say("é" * 100_000)
        assert reader.read(400_001) == b"\\xe9" * 100_000 + b"\n"


def test_the_end_waits_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLOSING_S", 0.1)
    stream, began = Stalled(), time.monotonic()
    with Lines(stream) as lines:
        lines.say("one")
    assert 0.05 < time.monotonic() - began < 2
    stream.resume.set()


def test_a_write_that_fails_is_not_the_last() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if text == "one\n":
                failed.set()
                raise OSError("no space left on device")
            return super().write(text)

    stream, failed = Full(), threading.Event()
    with Lines(stream) as lines:
        lines.say("one")
        assert failed.wait(5)
        lines.say("two")
    assert stream.getvalue() == "two\n"


def test_a_closed_or_missing_stream_is_harmless() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w", encoding="utf-8") as stream, Lines(stream) as lines:
        lines.say("one")
    with Lines(None) as lines:
        lines.say("one")
