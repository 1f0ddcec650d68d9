"""Services for the tests of a file or of one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from services import MODELS, Running, hosted, start
from writers import random_writer

Serve = Callable[..., Running]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts services with their own models, limits and access; all end with the test."""
    running: list[Running] = []

    def begin(*arguments: Any, **options: Any) -> Running:
        running.append(start(*arguments, **options))
        return running[-1]

    yield begin
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """A service with three models: letters, Chinese characters, and bytes."""
    each = start({name: hosted(name, random_writer(vocabulary)) for name, vocabulary in MODELS.items()})
    yield each
    assert each.is_empty()
    each.stop()
