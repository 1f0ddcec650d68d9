"""Suggestions: how much of the model's continuation is shown."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from charwright.compose.suggestions import MAX_COLUMNS, GenerationRequest, suggest
from writers import LABELLED, record_writer

REQUEST = GenerationRequest("To", 3, 0.5)


class FixedGenerator:
    """A generator that always yields the same pieces, and records its requests."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.requests: list[tuple[str, str | None, int, float, int]] = []

    def stream(
        self, prompt: str, /, *, label: str | None, with_end: bool, length: int, temperature: float, seed: int
    ) -> Iterator[str]:
        self.requests.append((prompt, label, length, temperature, seed))
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
    assert generator.requests == [("To", None, MAX_COLUMNS, 0.5, 3)]


@pytest.mark.parametrize(
    ("end", "context", "expected"),
    [
        ("\n", "An", "na\n"),
        ("\n\n", "An", "na\nBert\n\n"),
        ("\n\n", "Anna\n", "na\nBert\n\n"),
        ("a\n", "An", "na\n"),
    ],
)
def test_a_continuation_ends_with_the_record(end: str, context: str, expected: str) -> None:
    generator = FixedGenerator("na\nBert\n", "\nCleo\n\n")
    request = GenerationRequest(context, 3, 0.5, end, "girl")
    assert "".join(request.stream(generator, 100)) == expected
    assert generator.requests == [(context, "girl", 100, 0.5, 3)]


def test_the_context_may_have_the_first_part_of_a_records_end() -> None:
    request = GenerationRequest("Anna\n", 3, 0.5, "\n\n")
    assert "".join(request.stream(FixedGenerator("\nBert\n\n"), 100)) == "\n"


def test_a_labelled_record_is_suggested_to_its_end() -> None:
    """With a generator of the real kind: the text ends with its record, and the end is suggested too."""
    writer = record_writer(LABELLED)
    for seed in range(20):
        request = GenerationRequest("a", seed, 0.8, "\n", "two")
        found = "".join(request.stream(writer, 300))
        assert found.endswith("\n")
        assert found.count("\n") == 1
    assert any(suggest(writer, GenerationRequest("a", seed, 0.8, "\n", "two")) == "\n" for seed in range(200))
