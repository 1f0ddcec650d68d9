"""The scores of the records of a list, against `evaluate`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import ModelConfig, RecordsConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import LabelledVocabulary
from charwright.data.records import Records
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, UsageError
from commands import Terminal
from ramps import fill_with_ramps
from writers import AB, LABELLED, record_writer, save_records

pytestmark = pytest.mark.usefixtures("one_thread")

CHARACTERS = Vocabulary("\n%abcdX:")
LABELS = LabelledVocabulary("\n%abcdX:", ["x", "yy"])


def pair(vocabulary: Vocabulary, config: RecordsConfig, end: str) -> tuple[cw.LanguageModel, cw.Generator]:
    """A model, and a generator of records with its weights."""
    model = fill_with_ramps(cw.LanguageModel(ModelConfig(units=6, embedding_size=4), len(vocabulary)))
    return model, cw.Generator(model.config, model.arrays(), vocabulary, "f32", record_end=end, records=config)


def cut(text: str, cuts: Sequence[int]) -> list[str]:
    bounds = [0, *sorted(min(at, len(text)) for at in cuts), len(text)]
    return [text[begin:end] for begin, end in pairwise(bounds)]


@pytest.mark.parametrize(
    ("kind", "text"),
    [("blank", "ab\n\n  \nba\n   "), ("blank", "\r\nab\r\n\r\nb\r\n"), ("line", "ab\r\r\nb\n\r"), ("%%", "ab%%%b%%")],
)
def test_odd_ends_are_those_of_training(kind: str, text: str) -> None:
    records = Records.parse(text, RecordsConfig(kind))
    _, generator = pair(CHARACTERS, RecordsConfig(kind), records.end)
    assert [score.text for score in generator.score(text)] == list(records)


@pytest.mark.parametrize("kind", ["line", "blank", "%%", "/%+\n?/", "/\\n(?=X:)/"])
@pytest.mark.parametrize("vocabulary", [CHARACTERS, ByteVocabulary()], ids=["characters", "bytes"])
@given(st.text("ab \n%X:é\t", max_size=60), st.lists(st.integers(0, 60), max_size=4))
def test_the_records_of_a_text_cost_what_evaluate_gives(
    vocabulary: Vocabulary, kind: str, text: str, cuts: list[int]
) -> None:
    config = RecordsConfig(kind)
    try:
        records = Records.parse(text, config)
    except CorpusError:
        return
    model, generator = pair(vocabulary, config, records.end)
    found = list(generator.score(cut(text, cuts)))
    expected = cw.evaluate(model, vocabulary, records)
    assert [score.text for score in found] == list(records)
    assert sum(score.chars for score in found) == expected.chars
    assert sum(score.unknown_chars for score in found) == expected.unknown_chars
    assert sum(score.nats for score in found) == pytest.approx(expected.nats_per_char * expected.chars, rel=1e-5)
    lines = text.split("\n")
    for score in found:
        assert "\n".join(lines[score.line - 1 :])[score.column - 1 :].startswith(score.text)


@pytest.mark.parametrize("column", ["first", "last"])
def test_labels_are_read_from_their_column(column: str) -> None:
    lines = [f"x\t{name}" if column == "first" else f"{name}\tx" for name in ("abc", "d", "a\tb")]
    lines += ["yy\tab" if column == "first" else "ab\tyy"]
    text, config = "\n".join(lines) + "\n", RecordsConfig("line", column)
    model, generator = pair(LABELS, config, "\n")
    found = list(generator.score(text))
    expected = cw.evaluate(model, LABELS, Records.parse(text, config))
    assert [(score.label, score.text) for score in found] == [("x", "abc"), ("x", "d"), ("x", "a\tb"), ("yy", "ab")]
    assert sum(score.nats for score in found) == pytest.approx(expected.nats_per_char * expected.chars, rel=1e-5)
    [alone] = generator.score("ab", label="yy")
    assert alone.bits == pytest.approx(found[-1].bits)
    [other] = generator.score("ab", label="x")
    assert (other.label, other.bits != alone.bits) == ("x", True)


def test_mistakes_about_labels() -> None:
    _, generator = pair(LABELS, RecordsConfig("line", "first"), "\n")
    with pytest.raises(CorpusError, match=r"^line 2 has no tab.*name one with `label`"):
        list(generator.score("x\ta\nb\n"))
    with pytest.raises(UsageError, match=r"^line 2: there is no label 'z'; the model has x, yy"):
        list(generator.score("x\ta\nz\tb\n"))
    with pytest.raises(UsageError, match="no label 'z'"):
        generator.score("a", label="z")
    with pytest.raises(UsageError, match="remove `by`"):
        generator.score("a", by="line")
    with pytest.raises(UsageError, match="remove `by` and `separator`"):
        generator.score("a", separator=";")


def test_a_model_of_records_can_read_along() -> None:
    """As running text, if it is told to."""
    plain = cw.Generator.of(pair(CHARACTERS, RecordsConfig("line"), "\n")[0], CHARACTERS, "f32")
    _, generator = pair(CHARACTERS, RecordsConfig("line"), "\n")
    text = "ab\ncd\n\na\n"
    assert list(generator.score(text, by="line")) == list(plain.score(text))
    assert list(generator.score(text, by="character")) == list(plain.score(text, by="character"))
    with pytest.raises(UsageError, match="not trained on records"):
        plain.score(text, by="record")
    with pytest.raises(UsageError, match="`warm_up` belongs to"):
        generator.score(text, warm_up=3)
    with pytest.raises(UsageError, match="choose one"):
        generator.score(text, by="record", separator=";")


def test_records_of_several_files_and_of_a_stream(charwright: Terminal, tmp_path: Path) -> None:
    run = save_records(tmp_path / "run", AB).folder
    (tmp_path / "a.txt").write_text("ab\n\nba", encoding="utf-8")
    (tmp_path / "b.txt").write_text("a\n", encoding="utf-8")
    result = charwright("score", run, tmp_path / "a.txt", tmp_path / "b.txt", "--json")
    found = [json.loads(line) for line in result.out.splitlines()]
    assert [(Path(one["file"]).name, one["line"], one["text"]) for one in found] == [
        ("a.txt", 1, "ab"),
        ("a.txt", 3, "ba"),
        ("b.txt", 1, "a"),
    ]
    assert "3 records, 8 characters predicted" in result.err
    assert "label" not in found[0]
    assert charwright("score", run, tmp_path / "a.txt", "--independent").out.count("\n") == 3


def test_labels_on_the_command_line(charwright: Terminal, tmp_path: Path) -> None:
    run = save_records(tmp_path / "run", LABELLED).folder
    (tmp_path / "a.txt").write_text("one\tab\ntwo\tba\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("ab\n", encoding="utf-8")
    expected = json.loads(charwright("evaluate", run, tmp_path / "a.txt", "--json").out)
    found = [json.loads(line) for line in charwright("score", run, tmp_path / "a.txt", "--json").out.splitlines()]
    assert [(one["label"], one["text"]) for one in found] == [("one", "ab"), ("two", "ba")]
    assert sum(one["bits"] for one in found) / 6 == pytest.approx(expected["bits_per_char"], abs=1e-6)
    assert "[one] ab\n" in charwright("score", run, tmp_path / "a.txt").out
    table = charwright("score", run, tmp_path / "b.txt", "--label", "one", "--csv").out.splitlines()
    assert (table[0].split(",")[-2:], table[1].split(",")[-2:]) == (["text", "label"], ["ab", "one"])
    assert "no label 'four'" in charwright("score", run, tmp_path / "b.txt", "--label", "four").line
    assert "b.txt has no tab" in charwright("score", run, tmp_path / "b.txt").line
    assert [score.label for score in cw.score(run, tmp_path / "b.txt", label="two")] == ["two"]


def test_texts_of_a_model_with_labels_are_single_records() -> None:
    writer = record_writer(LABELLED)
    found = writer.generate("a", num=20, length=300, seed=1, label="two")
    assert {one.label for one in found} == {"two"}
    assert {one.ended for one in found} == {"record"}
    assert not any("\n" in str(one) for one in found)
    assert "".join(writer.stream("a", length=300, seed=1, label="two")) == found[0].continuation
    with pytest.raises(UsageError, match="no label 'four'"):
        writer.generate("a", label="four")


def test_the_end_of_a_labelled_record_can_be_part_of_its_text() -> None:
    writer = record_writer(LABELLED)
    plain = "".join(writer.stream("a", length=300, seed=1, label="two"))
    assert "".join(writer.stream("a", length=300, seed=1, label="two", with_end=True)) == plain + "\n"
    assert writer.beam_search("a", cw.GenerationConfig(), 4, label="two").ended == "record"


def test_records_that_are_divided_already() -> None:
    text = "x\tabc\nyy\td\n"
    config = RecordsConfig("line", "first")
    _, generator = pair(LABELS, config, "\n")
    records = Records.parse(text, config)
    expected = [(score.text, score.label, score.bits) for score in generator.score(text)]
    assert [(score.text, score.label, score.bits) for score in generator.score(records)] == expected
    assert list(generator.score(records, by="record")) == list(generator.score(records))
    assert {score.label for score in generator.score(records, label="x")} == {"x"}
    assert [score.text for score in generator.score(text, label="x")] == ["abc", "d"], "the column is no text"
    with pytest.raises(UsageError, match="take label alone"):
        generator.score(records, by="line")
    with pytest.raises(UsageError, match="these records have none"):
        list(generator.score(Records.of(["ab"], "\n")))
    with pytest.raises(UsageError, match=r"Records\.of"):
        generator.score(["ab", "cd"])
    with pytest.raises(UsageError, match="is a str, not NoneType"):
        list(generator.score(["x\tab\n", None]))  # type: ignore[list-item]


def test_a_model_with_labels_needs_what_ends_a_record() -> None:
    model, _ = pair(LABELS, RecordsConfig("line", "first"), "\n")
    bare = cw.Generator.of(model, LABELS, "f32")
    for call in (lambda: bare.generate("a"), lambda: list(bare.stream("a", label="x")), lambda: bare.score("a")):
        with pytest.raises(UsageError, match="record_end"):
            call()
    ended = cw.Generator.of(model, LABELS, "f32", record_end="\n").generate("a", label="x", length=5)
    assert ended[0].label == "x"


def test_the_end_is_that_of_the_run(charwright: Terminal, tmp_path: Path) -> None:
    """Where an expression matches different texts, another text may have another end most often."""
    (tmp_path / "a.txt").write_text("ab;ba;a b|" * 30, encoding="utf-8")
    (tmp_path / "b.txt").write_text("ab|ba|", encoding="utf-8")
    words = ("--records", "/[;|]/", "--steps", "3", "--units", "16", "--embedding-size", "8", "--threads", "1")
    other = ("--validation", tmp_path / "b.txt")
    assert charwright("train", tmp_path / "a.txt", *other, *words, "--out", tmp_path / "run").code == 0
    expected = json.loads(charwright("evaluate", tmp_path / "run", tmp_path / "b.txt", "--json").out)
    assert expected["unknown_chars"] == 0
    found = [
        json.loads(line)
        for line in charwright("score", tmp_path / "run", tmp_path / "b.txt", "--json").out.splitlines()
    ]
    assert sum(one["bits"] for one in found) / 6 == pytest.approx(expected["bits_per_char"], abs=1e-5)
    assert "line:column" in charwright("score", tmp_path / "run", tmp_path / "b.txt").out
    best = [event["validation_loss"] for event in cw.Run.open(tmp_path / "run").log() if event.get("validation_loss")]
    assert best[-1] == pytest.approx(expected["nats_per_char"], abs=0.05)


def test_a_single_record_can_be_measured(charwright: Terminal, tmp_path: Path) -> None:
    run = save_records(tmp_path / "run", AB).folder
    (tmp_path / "one.txt").write_text("ab\n", encoding="utf-8")
    (tmp_path / "none.txt").write_text("\n\n\n", encoding="utf-8")
    assert json.loads(charwright("evaluate", run, tmp_path / "one.txt", "--json").out)["records"] == 1
    assert "there is no record in" in charwright("score", run, tmp_path / "none.txt").line
    assert "the text has no record" in charwright("evaluate", run, tmp_path / "none.txt").line


def test_prompts_are_text() -> None:
    for prompts in (b"a", [b"a"], [1], None):
        with pytest.raises(UsageError, match="a prompt is a str, not"):
            record_writer().generate(prompts)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="one text"):
        list(record_writer().stream("a", num=3))


def test_an_unknown_character_costs_the_same_everywhere() -> None:
    _, generator = pair(CHARACTERS, RecordsConfig("line"), "\n")
    found = generator.score("aéb", by="character")
    assert np.allclose(generator.logprobs("aéb"), [-score.nats for score in found][1:], atol=1e-5)
