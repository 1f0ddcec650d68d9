"""What `charwright compose` does to a text, without a terminal: edits, undo, suggestions, rows, the file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charwright.cli.manuscript import LONGEST, Change, Manuscript, TextFile, Wish, suggestion
from charwright.cli.rows import first_word, is_wide, moved, row_starts
from charwright.errors import CharwrightError, RunError, UsageError

WORDS = st.text(alphabet="ab \n中，é", max_size=30)


def width(character: str) -> int:
    return 2 if is_wide(character) else 1


def manuscript(text: str = "") -> Manuscript:
    return Manuscript(text, temperature=0.8, seed=7)


def typed(text: str, page: Manuscript | None = None) -> Manuscript:
    page = page or manuscript()
    for character in text:
        page.insert(character)
    return page


def suggested(text: str, answer: str) -> Manuscript:
    page = typed(text)
    page.pause()
    assert page.receive(page.wish(), answer)
    return page


class Parrot:
    """Says the same whatever it is asked, in pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces
        self.asked: list[tuple[str, int, float, int]] = []

    def stream(self, prompt: str, /, *, length: int, temperature: float, seed: int) -> Iterator[str]:
        self.asked.append((prompt, length, temperature, seed))
        yield from self.pieces


# Changes.


@given(WORDS, WORDS)
def test_a_change_leads_from_one_text_to_the_other_and_back(before: str, after: str) -> None:
    change = Change.between(before, after)
    assert change.apply(before) == after
    assert change.undone().apply(after) == before


@given(WORDS, WORDS, WORDS)
def test_a_change_is_as_small_as_it_can_be(begin: str, middle: str, end: str) -> None:
    change = Change.between(begin + end, begin + middle + end)
    assert (change.removed, len(change.inserted)) == ("", len(middle))


@given(st.lists(WORDS, min_size=1, max_size=8), st.lists(st.booleans(), max_size=20))
def test_all_can_be_undone_and_redone(states: list[str], pauses: list[bool]) -> None:
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


# Undo.


def test_undo_goes_word_by_word() -> None:
    page = typed("to be  or")
    seen = []
    while page.undo():
        seen.append(page.text)
    assert seen == ["to be  ", "to ", ""]
    assert page.redo()
    assert (page.text, page.cursor) == ("to ", 3)


def test_a_pause_begins_a_step() -> None:
    page = typed("wor")
    page.pause()
    typed("ds", page)
    assert page.undo()
    assert page.text == "wor"


def test_characters_deleted_in_a_row_come_back_together() -> None:
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


def test_an_edit_forgets_what_was_undone() -> None:
    page = typed("a")
    page.undo()
    typed("b", page)
    assert not page.redo()


def test_what_the_model_wrote_by_itself_is_one_step() -> None:
    page = suggested("He ", "was here")
    page.begin_flow()
    for piece in (" and", " t", "he", "re"):
        page.insert(piece)
        page.pause()
    page.end_flow()
    typed("!", page)
    assert page.text == "He was here and there!"
    assert page.undo()
    assert page.undo()
    assert page.text == "He "


# Suggestions.


def test_a_suggestion_stands_at_the_end_only() -> None:
    page = suggested("ab", "cd")
    assert page.suggestion == "cd"
    page.edit("ab", 1)
    assert page.suggestion == ""
    page.edit("ab", 2)
    assert page.suggestion == "cd"


def test_typing_what_was_suggested_keeps_the_rest() -> None:
    page = suggested("To ", "be or")
    typed("be", page)
    assert page.suggestion == " or"
    typed("x", page)
    assert page.suggestion == ""
    assert page.wants_suggestion


def test_taking_all_and_taking_a_word() -> None:
    page = suggested("To", " be or not")
    page.take_word()
    assert (page.text, page.suggestion) == ("To be", " or not")
    page.take()
    assert (page.text, page.cursor, page.suggestion) == ("To be or not", 12, "")
    page.undo()
    assert page.text == "To be"


def test_an_answer_that_comes_too_late_is_not_shown() -> None:
    page = typed("a")
    wish = page.wish()
    typed("b", page)
    assert not page.receive(wish, "cd")
    assert page.suggestion == ""


def test_the_same_place_asks_for_the_same() -> None:
    page = typed("ab")
    wish = page.wish()
    typed("c", page)
    assert page.wish() != wish
    page.undo()
    typed("ab", page)
    assert page.wish() == wish


def test_a_wish_is_the_text_before_the_cursor() -> None:
    page = manuscript("abc")
    page.edit("abc", 2)
    assert page.wish().context == "ab"


def test_a_slow_model_reads_less() -> None:
    page = manuscript("x" * 5000)
    for seconds, expected in ((0.01, 2000), (0.6, 1000), (0.2, 1000), (100, 200), (0.2, 200), (0.1, 400), (0, 800)):
        page.learn_pace(page.wish(), seconds)
        assert len(page.wish().context) == expected


def test_other_seeds_and_other_temperatures_ask_again() -> None:
    page = suggested("a", "b")
    page.next_seed()
    assert (page.seed, page.wants_suggestion) == (8, True)
    page.next_seed(-1)
    assert page.seed == 7
    manuscript().next_seed(-8)
    page = suggested("a", "b")
    page.heat(1)
    assert (page.temperature, page.wants_suggestion) == (0.9, True)


def test_the_temperature_goes_by_whole_tenths_between_0_and_2() -> None:
    page = Manuscript(temperature=0.75, seed=0)
    page.heat(1)
    assert page.temperature == 0.8
    page = Manuscript(temperature=0.75, seed=0)
    page.heat(-1)
    assert page.temperature == 0.7
    seen = set()
    for _ in range(30):
        page.heat(-1)
        seen.add(page.temperature)
    assert seen == {0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0}
    for _ in range(30):
        page.heat(1)
    assert page.temperature == 2


WISH = Wish("To", 3, 0.5)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([" be", ", or\nnot"], " be, or"),
        (["\n", "Who's there?\nNay"], "\nWho's there?"),
        (["\n\n\n\n\nNay"], "\n\n\n"),
        (["\ufffdn\ufffd", "o\n"], "no"),
        ([], ""),
        (["words " * 30], "words words words words words words words"),
        (["x" * 200], "x" * LONGEST),
        (["字" * 200], "字" * 20),
        (["字" * 20 + "，字"], "字" * 20 + "，"),
    ],
)
def test_a_suggestion_is_the_rest_of_the_line(pieces: list[str], expected: str) -> None:
    parrot = Parrot(*pieces)
    assert suggestion(parrot, WISH) == expected
    assert parrot.asked == [("To", LONGEST, 0.5, 3)]


# Words and rows.


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("to be", "to"),
        (" to be", " to"),
        ("\nto be", "\nto"),
        ("be, or", "be,"),
        ("中文字", "中"),
        ("中，文", "中，"),
        ("「中」文", "「中」"),
        ("abc中文", "abc"),
        ("한국어 글", "한국어"),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_the_first_word(text: str, word: str) -> None:
    assert first_word(text) == word


@pytest.mark.parametrize(
    ("line", "rows"),
    [
        ("", [""]),
        ("to be or", ["to be or"]),
        ("to be or not", ["to be or ", "not"]),
        ("to be   or not", ["to be   ", "or not"]),
        ("incomprehensible", ["incompre", "hensible"]),
        ("an incomprehensible", ["an ", "incompre", "hensible"]),
        ("中文字符，一", ["中文字", "符，一"]),
        ("a中文字符", ["a中文字", "符"]),
    ],
)
def test_lines_break_between_words(line: str, rows: list[str]) -> None:
    starts = [*row_starts(line, 8, width), len(line)]
    assert [line[begin:end] for begin, end in pairwise(starts)] == rows


@given(WORDS.map(lambda text: text.replace("\n", "")), st.integers(2, 9))
def test_rows_fit(line: str, columns: int) -> None:
    starts = [*row_starts(line, columns, width), len(line)]
    for begin, end in pairwise(starts):
        assert sum(map(width, line[begin:end].rstrip(" "))) <= columns


def test_up_and_down_go_by_rows_and_keep_their_column() -> None:
    text = "to be or not to be\nxy\nthat is the question"  # to be or| not to| be/ xy/ that is| the| question
    places = [(6, 6)]
    for _ in range(7):
        places.append(moved(text, places[-1][0], 1, 8, width, places[-1][1]))
    assert [place for place, _ in places] == [6, 15, 18, 21, 28, 33, 40, 42]
    for expected in (33, 28, 21, 18, 15, 6, 0):
        places.append(moved(text, places[-1][0], -1, 8, width, 6))
        assert places[-1][0] == expected


def test_up_from_the_first_row_goes_to_the_beginning_and_down_from_the_last_to_the_end() -> None:
    assert moved("abc", 2, -1, 8, width) == (0, 2)
    assert moved("abc", 2, 1, 8, width) == (3, 2)


@given(WORDS, st.integers(0, 30), st.integers(2, 9), st.sampled_from([-1, 1]))
def test_going_up_and_down_stays_in_the_text(text: str, cursor: int, columns: int, step: int) -> None:
    cursor = min(cursor, len(text))
    reached, _ = moved(text, cursor, step, columns, width)
    assert 0 <= reached <= len(text)
    assert (reached - cursor) * step >= 0


# The file.


def test_a_text_comes_back_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    file = TextFile(path)
    assert file.read() is None
    assert file.holds("")
    assert not file.holds("中文\n")
    file.save("中文\n", path)
    assert file.holds("中文\n")
    assert path.read_bytes() == "中文\n".encode()
    assert TextFile(path).read() == "中文\n"


def test_a_file_of_somebody_else_is_noticed(tmp_path: Path) -> None:
    path, other = tmp_path / "story.txt", tmp_path / "other.txt"
    file = TextFile(path)
    assert not file.is_anothers(path)
    file.save("mine", path)
    assert not file.is_anothers(path)
    path.write_text("theirs", encoding="utf-8")
    assert file.is_anothers(path)
    other.write_text("", encoding="utf-8")
    assert file.is_anothers(other)


def test_in_a_hurry_a_text_goes_beside_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "story.txt"
    path.write_text("theirs", encoding="utf-8")
    assert TextFile(path).rescue("mine") == tmp_path / "story-2.txt"
    assert TextFile(path).rescue("mine") == tmp_path / "story-3.txt"
    assert path.read_text(encoding="utf-8") == "theirs"
    assert TextFile().rescue("mine") == Path("charwright-unsaved.txt")
    assert Path("charwright-unsaved.txt").read_text(encoding="utf-8") == "mine"
    assert TextFile(tmp_path / "nowhere" / "x").rescue("mine") is None
    assert TextFile().rescue("") is None
    assert sorted(found.name for found in tmp_path.iterdir()) == [
        "charwright-unsaved.txt",
        "story-2.txt",
        "story-3.txt",
        "story.txt",
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_a_file_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "diary.txt"
    path.write_bytes(b"\xef\xbb\xbfDear\r\ndiary")
    path.chmod(0o600)
    file = TextFile(path)
    assert file.read() == "Dear\ndiary"
    file.save("Dear\ndiary,", path)
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder"):
        TextFile(tmp_path / "nowhere" / "story.txt").read()
    (tmp_path / "latin.txt").write_bytes(b"d\xe9j\xe0")
    with pytest.raises(CharwrightError, match="byte 1"):
        TextFile(tmp_path / "latin.txt").read()
    with pytest.raises(RunError, match="cannot write"):
        TextFile().save("x", tmp_path / "nowhere" / "story.txt")


def test_what_came_as_no_utf_8_is_saved_as_it_came(tmp_path: Path) -> None:
    TextFile().save(b"caf\xe9".decode("utf-8", "surrogateescape"), tmp_path / "x.txt")
    assert (tmp_path / "x.txt").read_bytes() == b"caf\xe9"
