"""Records: behind the end of another, up to their own; only new ones, in one order; with labels."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charwright.config import GenerationConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import LabelledVocabulary, label_ids
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation import record_search
from charwright.generation.beams import Found, beam_search
from charwright.generation.generator import Generator
from charwright.generation.known_records import KnownRecords
from charwright.generation.masks import allowed
from charwright.generation.record_search import RecordSearch
from charwright.generation.session import Session
from writers import AB, LABELLED, RECORD_MODEL, record_weights, record_writer


@pytest.fixture(scope="module")
def writer() -> Generator:
    return record_writer(AB, "\n", "a", " b ", "ab")


def plain_texts(writer: Generator, count: int, **options: Any) -> list[str]:
    """Texts behind the end of a record, up to the next, as the plain generator writes them."""
    plain = Generator(RECORD_MODEL, record_weights(AB), AB, threads=1)
    return [text.continuation for text in plain.generate("\n", num=count, stop=("\n",), **options)]


def distance(a: str, b: str) -> int:
    """The edit distance, by its definition."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


# Records.


def test_the_end_of_a_record_has_a_probability(writer: Generator) -> None:
    """With that of its characters it is the probability of the record, as `score` has it."""
    plain = Generator(RECORD_MODEL, record_weights(AB), AB, threads=1)
    for record in writer.records(20, seed=5, logprobs=True):
        assert record.logprobs is not None
        assert record.end_logprob is not None
        scores = plain.logprobs(f"\n{record.continuation}\n")
        np.testing.assert_allclose([*record.logprobs, record.end_logprob], scores, rtol=1e-9)
    found = writer.beam_search("", GenerationConfig(), 3, record_end="\n")
    assert found.logprobs is not None
    assert found.ended == "record"
    assert found.end_logprob is not None
    scores = plain.logprobs(f"\n{found.continuation}\n")
    np.testing.assert_allclose([*found.logprobs, found.end_logprob], scores, rtol=1e-6)
    assert writer.records(1, seed=5)[0].end_logprob is None
    [cut] = writer.generate("a", length=1, seed=5, logprobs=True)
    assert (cut.ended, cut.end_logprob) == ("length", None)


def test_a_record_begins_behind_the_end_of_another_and_ends_before_its_own(writer: Generator) -> None:
    records = writer.records(100, seed=5)
    assert [record.continuation for record in records] == plain_texts(writer, 100, seed=5)
    assert {record.ended for record in records} == {"record"}
    assert [record.stream for record in records] == list(range(100))


def test_a_record_has_at_most_its_length(writer: Generator) -> None:
    records = writer.records(50, seed=5, length=4)
    assert {record.ended for record in records} == {"record", "length"}
    assert all(len(record.continuation) == 4 for record in records if record.ended == "length")


def test_a_prompt_begins_each_record(writer: Generator) -> None:
    plain = Generator(RECORD_MODEL, record_weights(AB), AB, threads=1)
    expected = plain.generate("\nab", num=20, stop=("\n",), seed=2)
    found = writer.records(20, prompt="ab", seed=2)
    with pytest.raises(UsageError, match="give the beginning of one record"):
        writer.records(2, prompt="a\nb", new=True, known=[])
    assert [record.continuation for record in found] == [text.continuation for text in expected]
    assert all(str(record).startswith("ab") for record in found)


@pytest.mark.parametrize(
    ("vocabulary", "end"),
    [(AB, "\n\n"), (Vocabulary("|ab中"), "|"), (Vocabulary("|ab中"), "中|"), (ByteVocabulary(), "b")],
)
def test_any_text_ends_a_record(vocabulary: Vocabulary, end: str) -> None:
    records = record_writer(vocabulary, end).records(30, seed=1, length=3000, temperature=1.5)
    assert "record" in {record.ended for record in records}
    assert all(end not in record.continuation for record in records)


def test_only_needs_no_end(writer: Generator) -> None:
    records = writer.records(20, only="a", seed=1)
    assert {record.ended for record in records} == {"record"}
    assert set("".join(map(str, records))) == {"a"}
    assert not allowed(AB, GenerationConfig(only="a"))[1]


def test_little_is_sampled_behind_the_ends(writer: Generator) -> None:
    """A call of the engine takes as many steps for all, so calls are shorter than records."""
    session, config = Session(writer.engine, AB, call_s=3600), GenerationConfig(seed=1)
    drafts = [session.join("", config, index, context=AB.encode("\n"), record_end="\n") for index in range(500)]
    while session.advance():
        pass
    needed = sum(draft.shown + 1 for draft in drafts)
    assert sum(draft.stream.drawn for draft in drafts) < 1.7 * needed


def test_a_long_prompt_is_read_at_once(writer: Generator) -> None:
    session = Session(writer.engine, AB, call_s=3600)
    session._steps = 512
    draft = session.join("ab" * 200, GenerationConfig(seed=1), context=AB.encode("\n"), record_end="\n")
    session.advance()
    assert draft.stream.drawn > 0


def whole(found: Found) -> float:
    """ln p of a text and its end."""
    return found.mean * (len(found.text) + (found.ended != "length"))


@pytest.mark.parametrize("beams", [1, 2, 5, 20])
def test_beams_find_the_most_likely_record(writer: Generator, beams: int) -> None:
    """Of those that are found as texts up to a stop string, of which a longer one may win: by ln p per character."""
    ends, gains = set(), []
    for prompt in ("", "a", "b ", "bb", "  a"):
        ids, options = AB.encode("\n" + prompt), {"beams": beams, "length": 8}
        found = beam_search(writer.engine, AB, ids, ~allowed(AB, GenerationConfig()), **options, record_end="\n")
        stopped = beam_search(writer.engine, AB, ids, ~allowed(AB, GenerationConfig()), **options, stop=("\n",))
        gains.append(whole(found) - whole(stopped))
        completion = writer.beam_search(prompt, GenerationConfig(length=8), beams, record_end="\n")
        assert (completion.continuation, completion.ended) == (found.text, found.ended)
        ends.add(found.ended)
    assert "record" in ends
    assert min(gains) > -1e-9
    assert (max(gains) > 0.1) == (beams > 1)


def test_every_text_begins_behind_the_end_of_a_record() -> None:
    """One that goes on with other records too."""
    plain, writer = Generator(RECORD_MODEL, record_weights(AB), AB, threads=1), record_writer(AB, "b\n")
    expected = [text.continuation for text in plain.generate(["b\n", "b\na"], length=50, seed=4)]
    assert [text.continuation for text in writer.generate(["", "a"], length=50, seed=4)] == expected
    assert "".join(writer.stream("", length=50, seed=4)) == expected[0]


# New records.


def judged_one_by_one(texts: list[str], known: set[str], wanted: int) -> tuple[list[str], Counter[str]]:
    taken, thrown_away = list[str](), Counter[str]()
    for text in texts:
        record = text.strip()
        if len(taken) == wanted:
            break
        if not record:
            thrown_away["empty"] += 1
        elif record in known:
            thrown_away["in the text"] += 1
        elif record in {each.strip() for each in taken}:
            thrown_away["repeated"] += 1
        else:
            taken.append(text)
    return taken, thrown_away


@pytest.mark.parametrize("wanted", [1, 7, 150])
def test_new_records_are_those_of_the_texts_in_order(writer: Generator, wanted: int) -> None:
    """As if one text were written after the other, although 64 are at a time."""
    texts = plain_texts(writer, 2000, seed=3, temperature=1.0)
    expected, thrown_away = judged_one_by_one(texts, {"a", "b", "ab"}, wanted)
    found = writer.records(wanted, new=True, seed=3, temperature=1.0)
    assert [str(record) for record in found] == expected
    reasons = ", ".join(f"{count} {reason}" for reason, count in thrown_away.most_common())
    assert found.note == (f"threw away {thrown_away.total():,}: {reasons}" if thrown_away else "")


def test_more_of_them_begin_with_the_same(writer: Generator) -> None:
    few, many = (list(map(str, writer.records(count, new=True, seed=9))) for count in (5, 80))
    assert many[:5] == few


def test_the_known_records_may_be_given(writer: Generator) -> None:
    first = str(writer.records(1, new=True, seed=4)[0])
    assert str(writer.records(1, new=True, seed=4, known=[f"  {first}\r"])[0]) != first
    with pytest.raises(UsageError, match="pass the others as known"):
        Generator(RECORD_MODEL, record_weights(AB), AB, record_end="\n").records(1, new=True)


def test_the_prompt_belongs_to_the_record() -> None:
    writer = record_writer()
    ab = [str(record) for record in writer.records(30, prompt="ab", seed=2)]
    found = writer.records(5, new=True, prompt="ab", seed=2, known=ab)
    assert not {str(record) for record in found} & set(ab)


def test_a_record_without_an_end_is_thrown_away(writer: Generator) -> None:
    found = writer.records(10, new=True, seed=3, length=4)
    assert "without an end within 4 characters" in found.note
    assert all(len(str(record)) < 4 for record in found)


def test_a_search_in_vain_ends_after_500_texts(writer: Generator) -> None:
    found = writer.records(5, new=True, temperature=0, seed=1)
    assert len(found) <= 1
    tries = 500 + len(found)
    assert found.note.endswith(
        f"found {len(found)} of 5 new records in {tries} tries; raise --temperature, or train on more records"
    )


class FewNew(KnownRecords):
    """Takes every hundredth record."""

    asked = 0

    def reason(self, record: str) -> str | None:
        self.asked += 1
        return None if self.asked % 100 == 0 else "in the text"


def test_the_tries_are_bounded(writer: Generator) -> None:
    search = writer.search(GenerationConfig(num=60, seed=1), FewNew([]))
    found = []
    while not search.done:
        found += search.advance()
        assert len(search._session.drafts) <= record_search.MOST_STREAMS
    assert (search.tries, search.found, len(found)) == (2200, 22, 22)
    assert search.report() == "threw away 2,178: 2,178 in the text"


class Slow(Session):
    """The first text ends last."""

    def advance(self, most: int | None = None) -> list[Any]:
        first = self.drafts[0]
        if first.stream.sampler.stream == 0 and len(self.drafts) > 1:
            self.drafts.remove(first)
            self.drafts.append(first)
        return super().advance(most)


def test_texts_wait_for_the_first(writer: Generator) -> None:
    """They are as many as are needed, and are judged in their order."""
    config = GenerationConfig(num=300, seed=6)
    search = RecordSearch(Slow(writer.engine, AB), config, lambda _: writer.opening(), "\n", KnownRecords([]))
    found, waited = [], 0
    while not search.done:
        found += search.advance()
        waited = max(waited, len(search._waiting))
    assert [text.stream for text in found] == sorted(text.stream for text in found)
    assert waited <= record_search.AHEAD
    assert list(map(str, found)) == list(map(str, writer.records(300, new=True, seed=6, known=[])))


def test_other_models_have_no_records() -> None:
    plain = Generator(RECORD_MODEL, record_weights(AB), AB)
    with pytest.raises(UsageError, match="open a run that was trained on records"):
        plain.records(3)


def test_distance_and_known_need_new(writer: Generator) -> None:
    for options in ({"distance": 1}, {"known": ["a"]}):
        with pytest.raises(UsageError, match="belong to new"):
            writer.records(3, **options)  # type: ignore[arg-type]


# Nearly known records.


def test_new_records_have_their_distance(writer: Generator) -> None:
    found = [str(record).strip() for record in writer.records(15, new=True, distance=2, seed=3, temperature=1.5)]
    assert len(found) == 15
    assert min(distance(a, b) for a, b in combinations([*found, "a", "b", "ab"], 2) if {a, b} & set(found)) == 3


WORDS = st.text("ab中", max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(WORDS, max_size=6), st.lists(WORDS, max_size=6), WORDS, st.integers(1, 3))
def test_near_is_what_the_definition_says(text: list[str], written: list[str], record: str, most: int) -> None:
    known = KnownRecords(text, most)
    for each in written:
        known.add(each)
    near = any(distance(record, other) <= most for other in [*text, *written])
    assert (known.reason(record) is not None) == (near or not record)


def test_a_distance_is_at_least_one() -> None:
    with pytest.raises(UsageError, match="at least one edit, not 0"):
        KnownRecords([], 0)


def test_one_edit_is_an_edit() -> None:
    assert KnownRecords(["anna"], 1).reason("hanna") == "within 1 edit of another"
    assert KnownRecords(["anna"], 2).reason("hannah") == "within 2 edits of another"


# Labels.


def test_known_records_are_several_texts() -> None:
    for known, message in (("ab", "not one"), (b"ab", "not one"), ([b"ab"], "is a str, not bytes")):
        with pytest.raises(UsageError, match=message):
            record_writer().records(1, new=True, known=known)  # type: ignore[arg-type]


def test_labels_are_never_sampled() -> None:
    """Even by a model that wants nothing else."""
    writer = record_writer(LABELLED, favoured=label_ids(LABELLED))
    for text in writer.records(20, length=20, seed=1, temperature=2.0) + writer.generate("a", length=20, only=None):
        assert set(text.continuation) <= set(LABELLED.characters)
    with pytest.raises(UsageError, match="no characters"):
        record_writer(LabelledVocabulary("", ["one"]), "").generate("a")


def test_a_label_is_read_behind_the_end() -> None:
    writer = record_writer(LABELLED)
    session, texts = Session(writer.engine, LABELLED), []
    for index in range(5):
        context = np.append(LABELLED.encode("\n"), np.int32(label_ids(LABELLED)[1]))
        draft = session.join("", GenerationConfig(seed=3), index, context=context, record_end="\n")
        while draft.ended is None:
            session.advance()
        texts.append(draft.pop())
    records = writer.records(5, label="two", seed=3)
    assert [record.continuation for record in records] == texts
    assert {record.label for record in records} == {"two"}
    assert texts != [record.continuation for record in writer.records(5, label="one", seed=3)]


def test_labels_are_drawn_as_the_model_expects_them() -> None:
    writer = record_writer(LABELLED)
    count = 3000
    drawn = Counter(writer.opening(7, index).label for index in range(count))
    logits = writer.engine.step(LABELLED.encode("\n"), writer.engine.zero_state(1))[0][list(label_ids(LABELLED))]
    shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    for label, share in zip(LABELLED.labels, shares, strict=True):
        assert abs(drawn[label] - count * share) < 4 * math.sqrt(count * share * (1 - share)) + 1
    records = writer.records(20, seed=7)
    assert [record.label for record in records] == [writer.opening(7, index).label for index in range(20)]


def test_an_unknown_label_is_refused() -> None:
    for writer, known in ((record_writer(LABELLED), "one, two, three"), (record_writer(), "no labels")):
        with pytest.raises(UsageError, match=f"no label 'four'; the model has {known}"):
            writer.records(3, label="four")


# The context of a text.


def test_a_context_comes_before_the_prompt(writer: Generator) -> None:
    for prompt in ("", "ab "):
        session = Session(writer.engine, AB)
        inside = session.join(prompt, GenerationConfig(length=40, seed=1), context=AB.encode("ba\n"))
        before = session.join("ba\n" + prompt, GenerationConfig(length=40, seed=1))
        while session.advance():
            pass
        assert inside.pop() == before.pop()
        assert inside.prompt == prompt


def test_an_empty_context_is_none(writer: Generator) -> None:
    session = Session(writer.engine, AB)
    drafts = [session.join("", GenerationConfig(length=40, seed=1), context=each) for each in (None, AB.encode(""))]
    while session.advance():
        pass
    assert drafts[0].pop() == drafts[1].pop()


@pytest.mark.parametrize("prompt", ["a", "ab b", "ab" * 400])
@pytest.mark.parametrize("alternatives", [0, 2])
def test_the_scores_of_a_prompt_behind_a_context(writer: Generator, prompt: str, alternatives: int) -> None:
    session = Session(writer.engine, AB, call_s=1e-9)
    draft = session.join(
        prompt, GenerationConfig(), context=AB.encode("b\n"), echo=True, logprobs=True, alternatives=alternatives,
        score_only=True,
    )  # fmt: skip
    while draft.ended is None:
        session.advance()
    expected = writer.engine.scores([AB.encode("b\n" + prompt)])[0][1:]
    np.testing.assert_allclose(draft.prompt_logprobs, expected, rtol=1e-12)
    if alternatives:
        assert [len(row) for row in draft.prompt_alternatives] == [alternatives] * len(prompt)


def test_a_continued_text_has_its_context(writer: Generator) -> None:
    session = Session(writer.engine, AB, one_by_one=True)
    draft = session.join("", GenerationConfig(length=2, ban="\n"), context=AB.encode("\n"))
    while draft.ended is None:
        session.advance()
    with pytest.raises(UsageError, match="has its context"):
        session.join("", GenerationConfig(), start=draft.paused(), context=AB.encode("\n"))


def test_a_stream_may_have_a_label() -> None:
    writer = record_writer(LABELLED)
    for label in ("one", "two"):
        record = writer.records(1, label=label, seed=3)[0].continuation
        assert "".join(writer.stream(label=label, seed=3, length=200)).partition("\n")[0] == record
    with pytest.raises(UsageError, match="no label 'four'"):
        next(writer.stream(label="four"))
