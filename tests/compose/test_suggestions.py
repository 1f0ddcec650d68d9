"""Suggestions: how much of the model's continuation is shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charwright.compose.suggestions import MAX_COLUMNS, GenerationRequest, suggest

REQUEST = GenerationRequest("To", 3, 0.5)


class FixedGenerator:
    """A generator that always yields the same pieces, and records its requests."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.requests: list[tuple[str, int, float, int]] = []

    def stream(self, prompt: str, /, *, length: int, temperature: float, seed: int) -> Iterator[str]:
        self.requests.append((prompt, length, temperature, seed))
        yield from self.pieces


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" be", ", or\nnot"], " be, or"),
        (["\n", "Who's there?\nNay"], "\nWho's there?"),
        (["\n\n\n\n\nNay"], "\n\n\n"),
        (["\ufffdn\ufffd", "o\n"], "no"),
        ([], ""),
        (["words " * 30], "words words words words words words words"),
        (["x" * 200], "x" * MAX_COLUMNS),
        (["字" * 200], "字" * 20),
        (["字" * 20 + "，字"], "字" * 20 + "，"),
    ],
)
def test_a_suggestion_is_the_rest_of_the_line(pieces: list[str], expected: str) -> None:
    generator = FixedGenerator(*pieces)
    assert suggest(generator, REQUEST) == expected
    assert generator.requests == [("To", MAX_COLUMNS, 0.5, 3)]
