"""The features of a text, on texts that show each of them."""

from __future__ import annotations

import numpy as np
import pytest

from charwright.explanation.features import FEWEST, FEWEST_CHANGES, Feature, features_of


def values(text: str, name: str) -> list[int]:
    [feature] = [feature for feature in features_of(text) if feature.name == name]
    return [int(value) for value in feature.values]


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("inside ( )", "a(b(c)d)e", "011111100"),
        ("inside ( )", "a)b(c\n\nd", "00011100"),
        ("inside ( )", "甲（乙）丙", "01100"),
        ("inside [ ]", "a[0]", "0110"),
        ("inside { }", "{a}b", "1100"),
        ("inside < >", "<a>b<c\nd", "11001100"),
        ("depth of brackets", "([{}])", "123210"),
        ('inside " "', '"a"b"c\n\nd', "110011100"),
        ("inside quotation marks", "“a”b「c『d』e」f", "110011111100"),
        ("inside quotation marks", "„a“b«c»", "1100110"),
        ("after a newline", "a\nb", "010"),
        ("position in the line", "ab\nc", "1201"),
        ("length of the line before", "ab\nc\n\nd", "0022100"),
        ("indentation", "  a b\n\tc", "12222011"),
        ("in the indentation", "  a b\n\tc", "11000110"),
        ("in a comment", "a # b\nc", "0011100"),
        ("position in the word", "ab c1d", "120101"),
        ("capitalized word", "Ab cD Éf", "11000011"),
        ("upper case", "aBÉ中", "0110"),
        ("digit", "a1٣", "011"),
        ("space", "a \t\u3000\n", "01110"),
        ("punctuation", "a,。(", "0111"),
        ("Latin letter", "aéж中א1", "110000"),
        ("CJK letter", "aж中א", "0010"),
        ("Hebrew letter", "aא", "01"),
        ("Arabic letter", "aب", "01"),
        ("Cyrillic letter", "aж", "01"),
    ],
)
def test_features(name: str, text: str, expected: str) -> None:
    assert values(text, name) == [int(digit) for digit in expected]


def test_every_feature_has_a_value_for_each_character_and_a_meaning() -> None:
    text = "One (two)\n  “three” 四 🙂 e\u0301\r\n"
    found = features_of(text)
    assert len({feature.name for feature in found}) == len(found)
    for feature in found:
        assert feature.values.shape == (len(text),)
        assert feature.meaning
        assert not feature.is_binary or set(feature.values.tolist()) <= {0.0, 1.0}


def test_what_is_too_rare_says_so() -> None:
    [brackets] = [f for f in features_of("(a) b " * 4 + "c" * 100) if f.name == "inside ( )"]
    assert brackets.too_rare() == "it is too rare in this text"
    [brackets] = [f for f in features_of("(abcd) efgh " * 40) if f.name == "inside ( )"]
    assert brackets.too_rare() == ""
    [digits] = [f for f in features_of("abc" * 100) if f.name == "digit"]
    assert digits.too_rare() == "it never changes"
    # What holds nearly everywhere is as rare outside as what hardly holds is inside.
    mostly = np.ones(4000, dtype=np.float32)
    mostly[::200] = 0
    everywhere = Feature("x", "", mostly)
    assert (np.count_nonzero(np.diff(mostly)) >= FEWEST_CHANGES, np.count_nonzero(mostly == 0) < FEWEST) == (True, True)
    assert everywhere.too_rare() == Feature("y", "", 1 - mostly).too_rare() == "it is too rare in this text"


def test_very_long_lines_count_up_to_a_limit() -> None:
    assert max(values("a" * 5000 + "\nb", "position in the line")) == 200
    assert values("a" * 5000 + "\nb", "length of the line before")[-1] == 200
