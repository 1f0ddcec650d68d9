"""The manuscript: edits, undo, suggestions and sampling options."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from charwright.compose.manuscript import MAX_CONTEXT, Manuscript
from charwright.schema import SEEDS

TEXTS = st.text(alphabet="ab \n中，é", max_size=30)


def manuscript(text: str = "") -> Manuscript:
    return Manuscript(text, temperature=0.8, seed=7)


def typed(text: str, page: Manuscript | None = None) -> Manuscript:
    page = page or manuscript()
    for character in text:
        page.insert(character)
    return page


def suggested(text: str, suggestion: str) -> Manuscript:
    page = typed(text)
    page.pause()
    assert page.receive(page.request(), suggestion)
    return page


# Undo.


@given(st.lists(TEXTS, min_size=1, max_size=8), st.lists(st.booleans(), max_size=20))
def test_every_edit_can_be_undone_and_redone(states: list[str], pauses: list[bool]) -> None:
    page = manuscript(states[0])
    for state, pause in zip(states[1:], pauses + [False] * len(states), strict=False):
        page.edit(state, len(state))
        if pause:
            page.pause()
    last = page.text
    while page.undo():
        pass
    assert page.text == states[0]
    while page.redo():
        pass
    assert page.text == last


def test_undo_works_word_by_word() -> None:
    page = typed("to be  or")
    seen = []
    while page.undo():
        seen.append(page.text)
    assert seen == ["to be  ", "to ", ""]
    assert page.redo()
    assert (page.text, page.cursor) == ("to ", 3)


def test_a_pause_begins_a_new_undo_step() -> None:
    page = typed("wor")
    page.pause()
    typed("ds", page)
    assert page.undo()
    assert page.text == "wor"


def test_characters_deleted_in_a_row_are_one_undo_step() -> None:
    page = typed("word")
    page.pause()
    for rest in ("wor", "wo"):
        page.edit(rest, len(rest))
    assert page.undo()
    assert (page.text, page.cursor) == ("word", 4)


def test_nothing_to_undo_or_redo() -> None:
    page = typed("a")
    assert page.undo()
    assert not page.undo()
    assert page.redo()
    assert not page.redo()


def test_an_edit_clears_the_redo_history() -> None:
    page = typed("a")
    page.undo()
    typed("b", page)
    assert not page.redo()


def test_continuous_generation_is_one_undo_step() -> None:
    page = suggested("He ", "was here")
    page.start_generating()
    for piece in (" and", " t", "he", "re"):
        page.insert(piece)
        page.pause()
    page.stop_generating()
    typed("!", page)
    assert page.text == "He was here and there!"
    assert page.undo()
    assert page.undo()
    assert page.text == "He "


# Suggestions.


def test_a_suggestion_is_shown_only_at_the_end() -> None:
    page = suggested("ab", "cd")
    assert page.suggestion == "cd"
    page.edit("ab", 1)
    assert page.suggestion == ""
    page.edit("ab", 2)
    assert page.suggestion == "cd"


def test_typing_the_beginning_of_a_suggestion_keeps_the_rest() -> None:
    page = suggested("To ", "be or")
    typed("be", page)
    assert page.suggestion == " or"
    typed("x", page)
    assert page.suggestion == ""
    assert page.needs_suggestion


def test_typing_the_beginning_of_a_suggestion_elsewhere_discards_it() -> None:
    page = suggested("ab", "cd")
    page.edit("acb", 2)
    page.edit("acb", 3)
    assert page.suggestion == "", "the c was typed in the middle"
    page = suggested("ab", "cd")
    page.edit("acd", 3)
    assert page.suggestion == "", "the b was replaced"


def test_accepting_a_word_and_the_whole_suggestion() -> None:
    page = suggested("To", " be or not")
    page.accept_word()
    assert (page.text, page.suggestion) == ("To be", " or not")
    page.accept()
    assert (page.text, page.cursor, page.suggestion) == ("To be or not", 12, "")
    page.undo()
    assert page.text == "To be"


def test_a_late_reply_is_discarded() -> None:
    page = typed("a")
    request = page.request()
    typed("b", page)
    assert not page.receive(request, "cd")
    assert page.suggestion == ""


def test_the_same_text_and_cursor_make_the_same_request() -> None:
    page = typed("ab")
    request = page.request()
    typed("c", page)
    assert page.request() != request
    page.undo()
    typed("ab", page)
    assert page.request() == request


def test_the_context_is_the_text_before_the_cursor() -> None:
    page = manuscript("abc")
    page.edit("abc", 2)
    assert page.request().context == "ab"


def test_the_context_in_a_text_of_records_is_the_record_before_the_cursor() -> None:
    page = Manuscript("Anna\n\nBert\nof Bern", temperature=0.8, seed=7, record_end="\n\n")
    assert page.request().context == "Bert\nof Bern"
    assert page.request().record_end == "\n\n"
    typed("\n", page)
    assert page.request().context == "Bert\nof Bern\n"
    typed("\n", page)
    assert page.request().context == ""


def test_a_context_does_not_begin_with_a_part_of_a_records_end() -> None:
    for length in range(MAX_CONTEXT - 3, MAX_CONTEXT + 3):
        page = Manuscript("Anna\n\n" + "x" * length, temperature=0.8, seed=7, record_end="\n\n")
        assert page.request().context == "x" * min(length, MAX_CONTEXT)


def test_a_label_stays_the_same_within_a_record_and_changes_with_the_seed() -> None:
    page = Manuscript("Anna\nBert\nC", temperature=0.8, seed=7, record_end="\n", label_of=str)
    assert page.request().label == str(7 + 10)
    typed("leo", page)
    page.change_temperature(1)
    assert page.request().label == str(7 + 10)
    page.change_seed()
    assert page.request().label == str(8 + 10)
    typed("\nD", page)
    assert page.request().label == str(8 + 15)


def test_a_slow_model_gets_a_shorter_context() -> None:
    page = manuscript("x" * 5000)
    for seconds, expected in ((0.01, 2000), (0.6, 1000), (0.2, 1000), (100, 200), (0.2, 200), (0.1, 400), (0, 800)):
        page.adapt_context(page.request(), seconds)
        assert len(page.request().context) == expected


def test_a_slow_reply_to_a_short_context_shortens_no_other() -> None:
    page = typed("B")
    page.adapt_context(page.request(), 0.4)
    page.edit("x" * 5000, 5000)
    assert len(page.request().context) == MAX_CONTEXT


def test_a_new_seed_or_temperature_needs_a_new_suggestion() -> None:
    page = suggested("a", "b")
    page.change_seed()
    assert (page.seed, page.needs_suggestion) == (8, True)
    page.change_seed(-1)
    assert page.seed == 7
    page.change_seed(-8)
    assert page.seed == SEEDS - 1
    page = suggested("a", "b")
    page.change_temperature(1)
    assert (page.temperature, page.needs_suggestion) == (0.9, True)


def test_the_temperature_moves_in_multiples_of_a_tenth_between_0_and_2() -> None:
    page = Manuscript(temperature=0.75, seed=0)
    page.change_temperature(1)
    assert page.temperature == 0.8
    page = Manuscript(temperature=0.75, seed=0)
    page.change_temperature(-1)
    assert page.temperature == 0.7
    seen = set()
    for _ in range(30):
        page.change_temperature(-1)
        seen.add(page.temperature)
    assert seen == {0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0}
    for _ in range(30):
        page.change_temperature(1)
    assert page.temperature == 2
