"""Fixtures for all test files."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from browsing import launched
from commands import Terminal
from screen import Screen

if TYPE_CHECKING:
    from charwright.model.features import Features

# The same examples in every run, and no deadline: a busy machine must not make a test fail.
settings.register_profile("charwright", derandomize=True, deadline=None)
settings.load_profile("charwright")

# A shell lets its background jobs ignore Ctrl-C, and nohup lets its command ignore the end of the terminal. Children
# inherit that: the processes that tests interrupt would ignore it too, and so would these tests.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference texts and fixtures that are too large for the repository."""
    return _named_by("CHARWRIGHT_SHARED", "folder with the reference texts and fixtures")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for web pages."""
    yield from launched()


@pytest.fixture(scope="session")
def tensorflow() -> Path:
    """A Python with TensorFlow, in an environment of its own."""
    return _named_by("CHARWRIGHT_TENSORFLOW", "Python with TensorFlow").absolute()


def _named_by(variable: str, what: str) -> Path:
    named = os.environ.get(variable)
    if not named:
        pytest.skip(f"{variable} is not set to a {what}")
    return Path(named)


@pytest.fixture(scope="session")
def tinyshakespeare(shared: Path) -> str:
    """The tutorial's text: 1,115,394 characters."""
    return (shared / "data" / "tinyshakespeare.txt").read_bytes().decode("utf-8")


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Features], None]:
    """Make this machine look like another."""
    import torch

    from charwright.model import compute as compute_module

    def pretend(features: Features) -> None:
        for name in ("CHARWRIGHT_CORE", "CHARWRIGHT_KERNELS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(compute_module, "choose_device", lambda _: torch.device(features.device))
        for module in ("charwright.model.compute", "charwright.planning.choice"):
            monkeypatch.setattr(f"{module}.features_of", lambda _: features)
        monkeypatch.setattr(compute_module.kernels, "load", lambda _=None: object())

    return pretend


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """One thread for PyTorch: with sizes as small as in tests, a second one only adds waiting."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    # Sockets must have short names.
    screen = Screen(Path(tmp_path_factory.mktemp("t")) / "s")
    yield screen
    screen.end()


@pytest.fixture
def charwright(capsys: pytest.CaptureFixture[str]) -> Terminal:
    """Runs a command in this process: `charwright("info", run)`."""
    return Terminal(capsys)
