"""Endings: the same in pieces as in the whole text, by a definition that examines every character."""

from __future__ import annotations

import re
import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charwright.generation.endings import _IN_WORD, Endings

STOPS, WIDE, CLOSERS = ".!?…؟।۔", "。！？｡", "\"'”’»›)]}」』】）》〉"
SENTENCE = re.compile(rf"[{STOPS}]+[{re.escape(CLOSERS)}]*\Z")
WIDE_SENTENCE = re.compile(rf"[{WIDE}]+[{re.escape(CLOSERS)}]*\Z")
PARAGRAPH = re.compile(r"\n[ \t]*\n\Z")


def by_definition(text: str, stops: list[str], unit: str, count: int) -> tuple[str, str | None, str | None]:
    """What is shown of `text`, why it ended, and at which stop string: the ending that is complete first."""
    begin = 0
    for size in range(1, len(text) + 1):
        head, found = text[:size], []
        found += [(size - len(stop), "stop", stop) for stop in stops if head.endswith(stop)]
        end = unit_at_end(head[begin:], unit)
        if end is not None:
            count -= 1
            if count == 0:
                found.append((begin + end[0], unit, None))
            begin += end[1]
        if found:
            at, name, stop = min(found, key=lambda each: each[0])
            return text[:at], name, stop
    return text, None, None


def unit_at_end(text: str, unit: str) -> tuple[int, int] | None:
    """If the last character completes a unit that is not empty: where its end is, and where the next begins."""
    if unit == "word" and is_between(text[-1]) and not all(map(is_between, text)):
        return len(text) - 1, len(text)
    if unit == "line" and text[-1] == "\n" and text.strip():
        return len(text) - 1, len(text)
    if unit == "paragraph" and (match := PARAGRAPH.search(text)) and text.strip():
        return match.start(), len(text)
    if unit == "sentence":
        body, after = text[:-1], text[-1]
        match = SENTENCE.search(body) if after.isspace() else None
        if match is None and after not in WIDE + CLOSERS:
            match = WIDE_SENTENCE.search(body)
        if match and body[: match.start()].strip():
            return len(body), len(body)
    return None


def is_between(character: str) -> bool:
    """Whether a character divides words."""
    return _IN_WORD.match(character) is None


def in_pieces(pieces: list[str], stops: list[str], until: str | None) -> tuple[str, str | None, str | None]:
    """The same, as `Endings` finds it."""
    endings = Endings(stops, until)
    shown = ""
    for piece in pieces:
        shown += endings.feed(piece)
        if endings.ended:
            assert endings.held == ""
            return shown, endings.ended, endings.stop
    return shown + endings.flush(), None, None


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in pairwise(edges)]


TEXTS = st.one_of(
    st.text("ab", max_size=30),
    st.text("ab .!\n\t\"')", max_size=40),
    st.text("的。！」.a\n ", max_size=40),
    st.text(max_size=20),
)
STOP_TEXTS = st.lists(st.text("ab .\n", min_size=1, max_size=4) | st.text("的。a", min_size=1, max_size=3), max_size=3)
UNTIL = st.none() | st.tuples(st.sampled_from(["word", "line", "paragraph", "sentence"]), st.integers(1, 3))


@given(TEXTS, STOP_TEXTS, UNTIL, st.lists(st.integers(0, 40), max_size=8))
@example("Hi. !! Yo. ", [], ("sentence", 2), [4, 6])
@example("Hi。.x y. ", [], ("sentence", 2), [4])
@example("a\n \n\nb\n\n", [], ("paragraph", 2), [2, 3, 4])
@example("aaab", ["aab", "b"], None, [1, 2, 3])
def test_the_pieces_make_no_difference(
    text: str, stops: list[str], unit: tuple[str, int] | None, places: list[int]
) -> None:
    name, count = unit or ("", 0)
    until = f"{count} {name}s" if unit else None
    expected = by_definition(text, stops, name, count)
    assert in_pieces(cut(text, places), stops, until) == expected
    assert in_pieces(list(text), stops, until) == expected
    assert in_pieces([text], stops, until) == expected


@given(TEXTS, STOP_TEXTS, UNTIL)
def test_only_what_may_be_an_ending_is_held_back(text: str, stops: list[str], unit: tuple[str, int] | None) -> None:
    """The text read is shown or held back, and the text held back may still be an ending."""
    endings = Endings(stops, f"{unit[1]} {unit[0]}" if unit else None)
    shown = ""
    for size in range(1, len(text) + 1):
        shown += endings.feed(text[size - 1])
        if endings.ended:
            break
        assert shown + endings.held == text[:size]
        held = endings.held
        assert not held or any(stop.startswith(held) for stop in stops) or may_be_unit(held, unit[0] if unit else "")


def may_be_unit(held: str, unit: str) -> bool:
    return {"paragraph": not held.strip(), "sentence": set(held) <= set(STOPS + WIDE + CLOSERS)}.get(unit, False)


@pytest.mark.parametrize(
    ("text", "stops", "shown"),
    [
        ("aaab", ["aab"], "a"),
        ("abcabd", ["abd", "xyz"], "abc"),
        ("xaby", ["b", "ab"], "x"),  # complete at the same place: the longer one wins
        ("xabcy", ["abcy", "b"], "xa"),  # complete first
        ("a\nb\n\nc", ["\n\n"], "a\nb"),
        ("你好。世界", ["世"], "你好。"),
        ("🙂🙃🙂", ["🙃🙂"], "🙂"),
        ("x", ["x"], ""),
    ],
)
def test_stop_strings(text: str, stops: list[str], shown: str) -> None:
    for pieces in ([text], list(text)):
        found, ended, stop = in_pieces(pieces, stops, None)
        assert (found, ended) == (shown, "stop")
        assert stop in stops


def test_words_are_divided_by_whitespace_and_punctuation() -> None:
    assert all(
        map(is_between, ' \t\n\u3000.,;:!?()[]{}<>"/\\|@#$%^&*+=~`…—–“”‘«»¿¡。，、！？；：「」『』（）《》·・،؛؟।')
    )
    assert not any(map(is_between, "aZ09_'’-éßñ字々〇ーあア한ا\u0301\u093f\u0e34\u200d🙂"[:-2]))


@pytest.mark.parametrize(
    ("text", "until", "shown"),
    [
        ("one\ntwo\n", "line", "one"),
        ("\n \none\ntwo\n", "line", "\n \none"),
        ("one\n\ntwo\nthree\n", "2 lines", "one\n\ntwo"),
        ("a\nb\n\nc", "paragraph", "a\nb"),
        ("\n\na\n \t\nb", "paragraph", "\n\na"),
        ("a\n\n\n\nb\n\n", "2 paragraphs", "a\n\n\n\nb"),
        ("l come to", "word", "l"),
        (" and so", "word", " and"),
        (", and so on", "2 words", ", and so"),
        ("don't go.", "2 words", "don't go"),
        ("well-known, he", "word", "well-known"),
        ("今天，很好。", "2 words", "今天，很好"),
        ("हिन्दी में है", "word", "हिन्दी"),
        ("Hello there. How", "sentence", "Hello there."),
        ('"Stop!" he cried. No', "2 sentences", '"Stop!" he cried.'),
        ("It costs 3.50 now. Yes", "sentence", "It costs 3.50 now."),
        ("Wait... what? No", "2 sentences", "Wait... what?"),
        ("。。你好。「世界！」然后", "sentence", "。。你好。"),
        ("你好。「世界！」然后", "2 sentences", "你好。「世界！」"),
        ("He left.\nShe", "sentence", "He left."),
    ],
)
def test_lines_paragraphs_and_sentences(text: str, until: str, shown: str) -> None:
    for pieces in ([text], list(text)):
        found, ended, stop = in_pieces(pieces, [], until)
        assert found == shown
        assert ended is not None
        assert until.rstrip("s").endswith(ended)
        assert stop is None


@pytest.mark.parametrize("text", ["no end", "Hello there.", "。", "a\n", "\n\n\n", "  \n \n"])
@pytest.mark.parametrize("until", ["paragraph", "sentence"])
def test_an_end_that_is_not_confirmed_does_not_count(text: str, until: str) -> None:
    assert in_pieces(list(text), [], until) == (text, None, None)


@pytest.mark.parametrize(
    ("text", "stops", "until", "behind"),
    [
        ("one STOP two", ["STOP"], None, " two"),
        ("one\ntwo", [], "line", "two"),
        ("one\n\n\ntwo", [], "paragraph", "\ntwo"),
        ("One. Two", [], "sentence", " Two"),
        ("一。二", [], "sentence", "二"),
    ],
)
def test_text_read_after_the_end_is_not_lost(text: str, stops: list[str], until: str | None, behind: str) -> None:
    endings = Endings(stops, until)
    endings.feed(text)
    assert endings.behind == behind
    one_by_one = Endings(stops, until)
    for number, character in enumerate(text):
        one_by_one.feed(character)
        if one_by_one.ended:
            assert one_by_one.behind + text[number + 1 :] == behind
            break


def test_without_endings_everything_is_shown_at_once() -> None:
    endings = Endings()
    assert not endings.waiting
    assert endings.feed("Hello. \n\n") == "Hello. \n\n"
    assert endings.flush() == ""


@pytest.mark.parametrize(
    "marks", ["." * 10_000, "。" * 10_000, '."' * 5_000, '"' * 10_000, "。.」" * 3_000, ".。" * 5_000]
)
def test_a_long_run_of_marks_takes_no_time(marks: str) -> None:
    endings = Endings(until="1000000 sentences")
    began = time.process_time()
    for character in marks:
        endings.feed(character)
    assert time.process_time() - began < 1
    whole = Endings(until="sentence")
    began = time.process_time()
    whole.feed("a" + marks)
    assert time.process_time() - began < 0.1
