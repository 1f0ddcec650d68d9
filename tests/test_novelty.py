"""Novelty of a text, the guard against copying, and finding the corpus of a run again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charwright.cli.corpora import texts_again, training_text
from charwright.config import CorpusConfig, Recipe, SplitConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.corpus import Corpus, Source, read_corpus, sha256_of
from charwright.data.parts import STDIN_PATH
from charwright.data.split import split_corpus
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, CorpusError, RunError, UsageError, VocabularyError
from charwright.generation import novelty
from charwright.generation.novelty import CopyGuard, Novelty, measure_novelty
from charwright.run import Run
from charwright.run_config import RunConfig
from writers import LETTERS, random_writer

# Two letters give many matches; the others take one, two and four bytes per character.
TEXTS = st.sampled_from(["ab", "abc", "aéβ", "的一是", "aя的😀𝒳"]).flatmap(
    lambda letters: st.text(letters, max_size=60)
)
# Texts are processed in parts; matches must not be lost at their boundaries.
PARTS = st.sampled_from([1, 2, 3, 7, 1 << 16])


def naive(corpus: str, written: str, shortest: int) -> Novelty:
    """By definition: for each position of `written`, the longest match in the corpus."""
    longest, longest_at, copied = "", 0, set()
    for begin in range(len(written)):
        end = begin
        while end < len(written) and written[begin : end + 1] in corpus:
            end += 1
        if end - begin > len(longest):
            longest, longest_at = written[begin:end], begin
        if end - begin >= shortest:
            copied.update(range(begin, end))
    return Novelty(len(written), longest, longest_at, len(copied), shortest)


def thue_morse(doublings: int) -> str:
    """The text on which fingerprints modulo 2**64 fail for any base: it and its complement have the same one."""
    text = "a"
    for _ in range(doublings):
        text += text.translate(MIRROR)
    return text


MIRROR = str.maketrans("ab", "ba")


@given(TEXTS, TEXTS, st.integers(1, 70), PARTS)
@example("", "", 1, 1)
@example("", "a", 1, 1)
@example("a", "", 1, 1)
@example("a", "b", 1, 1)
@example("aaaa", "aaaaaaa", 3, 1)
def test_measure_novelty_follows_the_definition(corpus: str, written: str, shortest: int, part: int) -> None:
    with patch.object(novelty, "PART", part):
        assert measure_novelty(corpus, written, shortest) == naive(corpus, written, shortest)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(1, 60), st.text("ab", max_size=2)), max_size=8), PARTS)
def test_a_patchwork_of_passages(patches: list[tuple[int, int, str]], part: int) -> None:
    corpus = "".join(np.random.default_rng(0).choice(list("abcd"), 400))
    written = "".join(corpus[begin : begin + length] + between for begin, length, between in patches)
    with patch.object(novelty, "PART", part):
        assert measure_novelty(corpus, written) == naive(corpus, written, 20)


@given(TEXTS, st.integers(1, 60))
def test_a_text_is_a_copy_of_itself(text: str, shortest: int) -> None:
    found = measure_novelty(text, text, shortest)
    assert (found.longest, found.longest_at) == (text, 0)
    assert found.copied_chars == (len(text) if shortest <= len(text) else 0)


def test_a_shortest_passage_that_is_longer_than_the_text() -> None:
    found = measure_novelty("the same", "the same", shortest=9)
    assert found.longest == "the same"
    assert found.copied_share == 0
    assert measure_novelty("the same", "the same", shortest=10**12) == replace(found, shortest=10**12)


@pytest.mark.parametrize("shortest", [20, 700, 2048])
def test_a_text_that_defeats_fingerprints(shortest: int) -> None:
    corpus = thue_morse(10) + "c" + thue_morse(9)
    written = "ab" + thue_morse(10).translate(MIRROR) + "ca"
    assert measure_novelty(corpus, written, shortest) == naive(corpus, written, shortest)


def test_the_first_of_equals_is_the_longest() -> None:
    found = measure_novelty("one two", "two, one", 3)
    assert (found.longest, found.longest_at) == ("two", 0)


def test_passages_that_touch_or_overlap_are_counted_once() -> None:
    found = measure_novelty("abcdef xyz", "abcdefxyz-cde-bcdefxyz", 3)
    assert found.copied_chars == 9 + 3 + 8
    assert found.copied_share == 20 / 22


def test_halves_of_surrogate_pairs_equal_nothing() -> None:
    assert measure_novelty("\ud800ab\udfff", "\ud800ab\ud800", 1) == Novelty(4, "ab", 1, 2, 1)
    assert measure_novelty("\ud800", "\ud800", 1).longest == ""
    assert measure_novelty("ab", "b\ud800a").longest == "b"


def test_the_figures_in_json() -> None:
    values = measure_novelty("to be or not to be", "not to bee", 4).to_json()
    assert json.loads(json.dumps(values)) == {
        "characters": 10,
        "longest": "not to be",
        "longest_at": 0,
        "copied_chars": 9,
        "copied_share": 0.9,
        "shortest": 4,
    }
    assert measure_novelty("a", "").to_json()["copied_share"] == 0


@pytest.mark.parametrize("shortest", [0, -3])
def test_a_passage_has_one_character_or_more(shortest: int) -> None:
    with pytest.raises(ConfigError, match=str(shortest)):
        measure_novelty("a", "a", shortest)


def test_a_whole_play(tinyshakespeare: str) -> None:
    passage = tinyshakespeare[700_000:700_150]
    written = "qqq" + passage + "qqq" + tinyshakespeare[65_530:65_549] + "qqq" + tinyshakespeare[-25:]
    found = measure_novelty(tinyshakespeare, written, shortest=21)
    assert (found.longest, found.longest_at) == (passage, 3)
    assert found.copied_chars == 150 + 25


# The guard.


def naively_forbidden(corpus: list[int], size: int, limit: int, recent: list[int]) -> list[bool]:
    """By definition: an id is forbidden if the last `limit` ids followed by it are in the corpus."""
    windows = [corpus[begin : begin + limit + 1] for begin in range(len(corpus) - limit)]
    return [len(recent) >= limit and [*recent[len(recent) - limit :], i] in windows for i in range(size)]


@st.composite
def guarded(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """The size of a vocabulary, the ids of a corpus, and those of a writer who may well have copied."""
    size = draw(st.sampled_from([1, 2, 3, 4, 5, 257, 5000]))
    ids = st.lists(st.sampled_from([*range(min(3, size)), size - 1]), max_size=40)
    corpus, own = draw(ids), draw(ids)
    begin, end = draw(st.integers(0, 40)), draw(st.integers(0, 40))
    return size, corpus, own + corpus[begin:end]


@given(guarded(), st.integers(1, 8), PARTS)
def test_the_guard_follows_the_definition(case: tuple[int, list[int], list[int]], limit: int, part: int) -> None:
    size, corpus, recent = case
    with patch.object(novelty, "PART", part):
        guard = CopyGuard(np.array(corpus, np.int32), size, limit)
    found = guard.forbidden(np.array(recent, np.int32))
    assert (found.shape, found.dtype) == ((size,), np.bool_)
    assert found.tolist() == naively_forbidden(corpus, size, limit, recent)


def test_the_guard_handles_that_text_too() -> None:
    corpus = Vocabulary("ab").encode(thue_morse(10) + "a")
    guard = CopyGuard(corpus, 3, 1024)
    assert guard.forbidden(corpus[:1024]).tolist() == [False, True, False]
    mirrored = Vocabulary("ba").encode(thue_morse(10))
    assert not guard.forbidden(mirrored).any()


def plagiarist(corpus: str, vocabulary: Vocabulary, guard: CopyGuard, length: int) -> str:
    """A text that copies the corpus wherever the guard allows it."""
    ids, written = vocabulary.encode(corpus), vocabulary.encode(corpus[:1]).tolist()
    place = 1
    while len(written) < length:
        forbidden = guard.forbidden(np.array(written, np.int32))
        forbidden[0] = True
        allowed = np.flatnonzero(~forbidden)
        place = place % len(ids)
        if forbidden[ids[place]]:  # Continue at the nearest position of the corpus with an allowed id.
            place = next(i % len(ids) for i in range(place, place + len(ids)) if ids[i % len(ids)] in allowed)
        written.append(int(ids[place]))
        place += 1
    return vocabulary.decode(written)


SENTENCES = (
    "Alas, poor Yorick! I knew him, Horatio: a fellow of infinite jest. Where be your gibes now? " * 2 + "的😀" * 9
)


@pytest.mark.parametrize("limit", [3, 4, 10, 25])
def test_under_guard_no_passage_is_longer_than_the_limit(limit: int) -> None:
    vocabulary = Vocabulary.from_text(SENTENCES)
    guard = CopyGuard(vocabulary.encode(SENTENCES), len(vocabulary), limit)
    written = plagiarist(SENTENCES, vocabulary, guard, 1000)
    found = measure_novelty(SENTENCES, written)
    assert len(found.longest) == limit  # It copies as much as allowed.


def test_the_guard_counts_ids_and_these_may_be_bytes() -> None:
    vocabulary = ByteVocabulary()
    guard = CopyGuard(vocabulary.encode("的一是不"), len(vocabulary), 6)
    assert np.flatnonzero(guard.forbidden(vocabulary.encode("在的一"))).tolist() == [1 + "是".encode()[0]]


def test_a_corpus_without_a_passage_that_long_forbids_nothing() -> None:
    for count in (0, 1, 5):
        ids = np.ones(count, np.int32)
        assert not CopyGuard(ids, 2, 5).forbidden(np.ones(9, np.int32)).any()


def test_a_guard_is_called_like_a_function_and_has_the_limit_of_the_text() -> None:
    writer = random_writer()
    guard = CopyGuard(LETTERS.encode("abcde" * 9), len(LETTERS), 3)
    texts = [writer.generate("ab", length=40, seed=2, max_copy=3, guard=one)[0] for one in (guard, guard.forbidden)]
    assert texts[0] == texts[1]
    for one in (guard, guard.forbidden):
        with pytest.raises(UsageError, match="max_copy is 4, and its guard allows 3"):
            writer.generate("ab", length=40, max_copy=4, guard=one)


def test_what_the_guard_refuses() -> None:
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        CopyGuard(np.zeros(3, np.int32), 2, 0)
    for ids in ([0, 2], [-1, 0]):
        with pytest.raises(VocabularyError, match="vocabulary of 2"):
            CopyGuard(np.array(ids, np.int32), 2, 1)


# The corpus of a run, found again.

PROSE = "".join(f"{number} times the wind blew.\n" for number in range(200))


def run_of(folder: Path, text: Corpus, **changes: object) -> Run:
    """A run of a corpus, which was not trained."""
    config = RunConfig(Recipe(), "default", text.sources, CorpusConfig(), len(text.text), text.sha256, (), {})
    return Run.create(folder, replace(config, **changes), Vocabulary.from_text(text.text))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "wind.txt"
    path.write_text(PROSE, encoding="utf-8")
    return path


@pytest.mark.parametrize("split", [SplitConfig(), SplitConfig(val_split="tail"), SplitConfig(val_fraction=0.0)])
def test_the_training_text_is_found_again(source: Path, tmp_path: Path, split: SplitConfig) -> None:
    run = run_of(tmp_path / "run", read_corpus(source), recipe=Recipe(split=split))
    assert training_text(run, ()) == split_corpus(PROSE, split)[0]
    assert texts_again(run, ()) == split_corpus(PROSE, split)


def test_a_corpus_that_has_moved(source: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", read_corpus(source))
    moved = source.rename(tmp_path / "moved.txt")
    with pytest.raises(CorpusError, match=r"wind\.txt is gone; give its new location with `corpus`$"):
        training_text(run, ())
    assert training_text(run, [str(moved)]) == split_corpus(PROSE, run.config.recipe.split)[0]


def test_a_corpus_that_has_changed(source: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", read_corpus(source))
    source.write_text(PROSE + "!", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"wind\.txt has changed .* with `corpus`"):
        training_text(run, ())
    with pytest.raises(RunError, match=r"wind\.txt is not the text that .*run was trained on \(SHA-256 differs\)$"):
        training_text(run, [str(source)])


def test_a_moved_corpus_is_read_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "café.txt"
    path.write_bytes(PROSE.replace("wind", "café").encode("latin-1"))
    reading = CorpusConfig(encoding="latin-1")
    run = run_of(tmp_path / "run", read_corpus(path, reading), corpus=reading)
    assert "café" in training_text(run, [str(path)])


def test_a_corpus_that_came_through_standard_input(tmp_path: Path) -> None:
    through = Source("stdin", STDIN_PATH, sha256_of(PROSE), len(PROSE))
    run = run_of(tmp_path / "run", Corpus(PROSE, (through,), "stdin"))
    kept = run.folder / STDIN_PATH
    kept.parent.mkdir()
    kept.write_text(PROSE, encoding="utf-8")
    assert "".join(texts_again(run, ())) != ""
    assert training_text(run, ()) == split_corpus(PROSE, run.config.recipe.split)[0]


def test_a_lost_validation_text_does_not_hide_the_training_text(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("a calm\n" * 9, encoding="utf-8")
    recipe = Recipe(split=SplitConfig(val_fraction=0.0))
    run = run_of(tmp_path / "run", read_corpus(source), recipe=recipe, validation=read_corpus(other).sources)
    assert texts_again(run, ()) == (PROSE, "a calm\n" * 9)
    other.unlink()
    assert training_text(run, ()) == PROSE
    with pytest.raises(CorpusError, match=r"other\.txt is gone"):
        texts_again(run, ())
