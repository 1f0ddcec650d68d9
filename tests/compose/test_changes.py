"""Changes between two states of a text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from charwright.compose.changes import Change

TEXTS = st.text(alphabet="ab \n中，é", max_size=30)


@given(TEXTS, TEXTS)
def test_a_change_and_its_inverse_convert_between_two_texts(before: str, after: str) -> None:
    change = Change.between(before, after)
    assert change.apply(before) == after
    assert change.inverse().apply(after) == before


@given(TEXTS, TEXTS, TEXTS)
def test_a_change_is_minimal(begin: str, middle: str, end: str) -> None:
    change = Change.between(begin + end, begin + middle + end)
    assert (change.removed, len(change.inserted)) == ("", len(middle))
