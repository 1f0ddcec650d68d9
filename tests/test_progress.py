"""Progress on a terminal and in plain lines."""

from __future__ import annotations

import re
from io import StringIO

import pytest

from charwright.training.events import Epoch, Sample, Start, Step
from charwright.training.progress import BarProgress, PlainProgress, format_seconds, terminal_progress


class FakeTerminal(StringIO):
    def isatty(self) -> bool:
        return True


START = Start(0, 0.0, 1000, 5, 4, 16, "cpu", "f32", "fused", 1)
EPOCH = Epoch(5, 12.0, 1, 2.5, 2.25, 3.25, 1234.5, 12.0, True)


def step_at(time_s: float) -> Step:
    return Step(3, time_s, 1, 2.75, 1e-3, 1234.5, 0.5, 125.0)


def show_all(progress: BarProgress | PlainProgress) -> None:
    for event in (START, step_at(1.0), EPOCH, Sample(5, 12.0, "[bold]To be[/] or\nnot")):
        progress.write(event)
    progress.close()


def test_plain_lines_have_a_minimum_interval() -> None:
    stream = StringIO()
    progress = PlainProgress(stream, every_s=10)
    for time_s in (1, 9, 10, 15, 19, 21):
        progress.write(step_at(time_s))
    assert stream.getvalue().count("\n") == 2
    assert "epoch 1  step 3  loss 2.7500  1,234 chars/s  2:05 left" in stream.getvalue()


def test_the_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    assert isinstance(terminal_progress(StringIO()), PlainProgress)
    stream = FakeTerminal()
    progress = terminal_progress(stream)
    assert isinstance(progress, BarProgress)
    show_all(progress)
    assert "━" in stream.getvalue()
    assert "epoch 1  loss 2.5000  validation 2.2500 (3.250 bits/char)  best so far" in stream.getvalue()
    assert "[bold]To be[/] or" in stream.getvalue()


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color(monkeypatch: pytest.MonkeyPatch, no_color: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.delenv("COLORTERM", raising=False)
    stream = FakeTerminal()
    show_all(BarProgress(stream))
    colours = re.findall(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])(?:;\d+)*m", stream.getvalue())
    assert bool(colours) == (not no_color)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(None, "?"), (0, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (125, "2:05"), (3723, "1:02:03"), (90061, "25:01:01")],
)
def test_format_seconds(seconds: float | None, shown: str) -> None:
    assert format_seconds(seconds) == shown
