"""The profile of a text: size, vocabulary and script."""

from __future__ import annotations

import pytest

from charwright.config import VocabularyConfig
from charwright.data.vocabularies import make_vocabulary
from charwright.planning.profile import TextProfile, script_of


def test_the_profile_of_a_text() -> None:
    text = "道可道，非常道。" * 1000
    of_characters = TextProfile.of(text, make_vocabulary(text, VocabularyConfig()))
    assert of_characters == TextProfile(characters=8000, vocabulary=7, script="CJK", tokens=8000)
    of_bytes = TextProfile.of(text, make_vocabulary(text, VocabularyConfig(level="byte")))
    assert of_bytes == TextProfile(characters=8000, vocabulary=257, script="CJK", tokens=24000)


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
