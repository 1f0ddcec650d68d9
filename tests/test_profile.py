"""The profile of a text: size, vocabulary and script."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from charwright.config import RecordsConfig, VocabularyConfig
from charwright.data.large_texts import open_corpus
from charwright.data.parts import Places
from charwright.data.records import Records
from charwright.data.vocabularies import make_vocabulary
from charwright.planning.profile import TextProfile, script_of
from charwright.planning.repetition import TYPICAL, repetition


def test_the_profile_of_a_text() -> None:
    text = "道可道，非常道。" * 1000
    of_characters = TextProfile.of(text, make_vocabulary(text, VocabularyConfig()))
    assert of_characters == TextProfile(characters=8000, vocabulary=7, script="CJK", tokens=8000, repetition=1.0)
    of_bytes = TextProfile.of(text, make_vocabulary(text, VocabularyConfig(level="byte")))
    assert of_bytes == TextProfile(characters=8000, vocabulary=257, script="CJK", tokens=24000, repetition=1.0)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("To be, or not to be", "Latin"),
        ("Быть или не быть, to be", "Cyrillic"),
        ("道可道，非常道", "CJK"),
        ("すべての人は、ひとしく", "Hiragana"),
        ("1234 +-* 5", "no letters"),
        ("", "no letters"),
    ],
)
def test_scripts(text: str, script: str) -> None:
    assert script_of(text) == script


def letters(count: int, seed: int) -> str:
    """Letters at random, of which hardly any passage occurs twice."""
    codes = np.random.Generator(np.random.Philox(key=seed)).integers(97, 123, count)
    return bytes(codes.astype(np.uint8)).decode("ascii")


def test_the_repetition_of_a_text() -> None:
    once = letters(20_000, seed=1)
    assert repetition(once) == 0
    assert repetition("") == repetition("too short") == 0
    assert repetition("\ud800" * 1000) == 1, "a lone surrogate"
    assert repetition(once + once) == pytest.approx(1, abs=0.02)
    # A third of the text occurs in it twice.
    assert repetition(letters(20_000, seed=2) + once[:5_000] * 2) == pytest.approx(1 / 3, abs=0.05)


def test_what_spans_the_edge_of_a_block_is_no_repetition() -> None:
    """In a text without repetition a passage that begins in front of a block and ends in it is not found again."""
    assert repetition(letters(400, seed=3)) == 0


def test_the_repetition_of_other_texts(tmp_path: Path) -> None:
    text = letters(3_000, seed=4) * 2
    vocabulary = make_vocabulary(text, VocabularyConfig())
    assert TextProfile.of(text, vocabulary).repetition == repetition(text) > 0.8
    lines = Records.parse("\n".join([text[:50]] * 40), RecordsConfig("line"))
    assert TextProfile.of(lines, vocabulary).repetition == TYPICAL
    (tmp_path / "long.txt").write_text(text, encoding="utf-8")
    mapped = open_corpus(tmp_path / "long.txt", places=Places(tmp_path / "cache", mapped_from_bytes=0)).text
    assert not isinstance(mapped, str)
    assert TextProfile.of(mapped, vocabulary).repetition == repetition(text)
