"""Texts that are lists of records: divided, split, shuffled, evaluated, and trained on."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charwright as cw
from charwright.config import ModelConfig, Recipe, RecordsConfig, SplitConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import LabelledVocabulary, label_id, label_ids
from charwright.data.lists import divider_in_words, is_list, settled
from charwright.data.record_streams import RecordStreams
from charwright.data.records import Records, split_records
from charwright.data.vocabularies import make_vocabulary, vocabulary_from_json
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, CorpusError, UsageError, VocabularyError
from charwright.evaluation.evaluate import evaluate_text
from charwright.evaluation.evaluation import standard_error_of_difference
from charwright.evaluation.readers import ModelReader
from charwright.evaluation.records import evaluate_records
from charwright.generation.engine import Engine
from charwright.run import Run
from charwright.training.events import Epoch
from charwright.tuning.trial import probe
from charwright.workflow.notes import notes_on
from commands import SMALL, Terminal
from ramps import fill_with_ramps

pytestmark = pytest.mark.usefixtures("one_thread")

words = st.text("abcé道", min_size=1, max_size=9)
lists = st.lists(words, min_size=2, max_size=60)


def numbers(count: int) -> list[str]:
    """Words of different lengths, as of a language with few letters."""
    return ["".join("aeiklmnost"[int(digit)] for digit in f"{'98' * (i % 4)}{i * 7919}") for i in range(1, count + 1)]


LIST = "\n".join(numbers(400)) + "\n"


class TestDividing:
    @pytest.mark.parametrize(
        ("kind", "text", "expected", "end"),
        [
            ("line", "Anna\r\nBo\n\n  \nCai", ["Anna", "Bo", "Cai"], "\n"),
            ("blank", "\n\na\nb\n\n\nc\n \t\nd\n", ["a\nb", "c", "d"], "\n\n"),
            ("blank", "春眠\n不覺\n\u3000\n處處\r\n\r\n聞", ["春眠\n不覺", "處處", "聞"], "\n\n"),
            ("%%", "one%%two%%%%three", ["one", "two", "three"], "%%"),
            (".", "a.b.c", ["a", "b", "c"], "."),
            ("/^X:.*\n/", "X:1\nabc\nX:2\ncba\nX:1\naaa\n", ["abc\n", "cba\n", "aaa\n"], "X:1\n"),
            ("/", "a/b/", ["a", "b"], "/"),
            ("/\\n(?=>)/", ">a\nAC\n>b\nGT\n", [">a\nAC", ">b\nGT"], "\n\n"),
            ("/\\n(?=>)/", ">a\nAC\n>b\nGT", [">a\nAC", ">b\nGT"], "\n\n"),
            ("/\\n(?=>)/", ">a\nAC\n\n>b\n\nGT\n\n", [">a\nAC", ">b\n\nGT"], "\n\n\n"),
            ("/;(?=A)/", "A;b;A;c", ["A;b", "A;c"], ";;"),
            ("/\\n(?=\\d)/", "1 ab\n2 ba\n", ["1 ab", "2 ba"], "\n"),
        ],
    )
    def test_records_are_what_ends_leave(self, kind: str, text: str, expected: list[str], end: str) -> None:
        records = Records.parse(text, RecordsConfig(kind))
        assert (list(records), records.end, records.count) == (expected, end, len(expected))
        assert records.text == "".join(record + end for record in expected)
        assert records[:3] == records.text[:3]

    def test_labels_are_a_column(self) -> None:
        first = Records.parse("fr\tMarie\nde\tHans\tPeter\n", RecordsConfig("line", "first"))
        last = Records.parse("Marie\tfr\nHans\tPeter\tde\n", RecordsConfig("line", "last"))
        assert list(first) == list(last) == ["Marie", "Hans\tPeter"]
        assert first.labels == last.labels == ("fr", "de")

    @pytest.mark.parametrize(
        ("text", "config", "message"),
        [
            ("one line only\n", RecordsConfig("line"), "only 1 record with `records` 'line'"),
            ("a--b", RecordsConfig("%%"), "only 1 record"),
            (" \n\n", RecordsConfig("line"), "only 0 records"),
            ("fr\tMarie\nHans\n", RecordsConfig("line", "first"), "record 2 has no tab.*'Hans'"),
            ("Part 1 of Part 2 of Part 3", RecordsConfig("/(?=Part )/"), "matches no character, so nothing ends"),
            ("fr\tMarie\n\tHans\n", RecordsConfig("line", "first"), "record 2 has an empty column"),
        ],
    )
    def test_what_is_no_list_is_refused(self, text: str, config: RecordsConfig, message: str) -> None:
        with pytest.raises(CorpusError, match=message):
            Records.parse(text, config)

    @pytest.mark.parametrize("records", ["", "/(/", "/a*/", "/a{99999999999999999999}/", f"/{'(' * 5000}{')' * 5000}/"])
    def test_what_ends_nothing_is_refused(self, records: str) -> None:
        with pytest.raises(ConfigError, match="`records`"):
            RecordsConfig(records)

    def test_a_label_belongs_to_a_record(self) -> None:
        with pytest.raises(
            ConfigError, match="`label` first is a column of records, and running text has none; add `records` line"
        ):
            RecordsConfig(label="first")
        recipe = Recipe().with_options({"records": "line", "label": "last"})
        assert Recipe.from_json(json.loads(json.dumps(recipe.to_json())), "here") == recipe
        assert Recipe.from_json({}, "here").records == RecordsConfig()

    @given(lists)
    def test_ids_are_those_of_the_text(self, records: list[str]) -> None:
        made = Records.of(records, "\n")
        for vocabulary in (Vocabulary.from_text("abcé道\n"), ByteVocabulary()):
            ids, stops = made.ids(vocabulary)
            pieces = [vocabulary.decode(piece) for piece in np.split(ids, stops)]
            assert pieces == [*(record + "\n" for record in records), ""]

    def test_a_label_is_the_first_id_of_its_record(self) -> None:
        records = Records.of(["ab", "c", "a"], "\n", ["x", "y", "x"])
        vocabulary = LabelledVocabulary("\nabc", ["x", "y"])
        ids, stops = records.ids(vocabulary)
        assert ids.tolist() == [5, 2, 3, 1, 6, 4, 1, 5, 2, 1]
        assert stops.tolist() == [4, 7, 10]
        with pytest.raises(UsageError, match="no label 'z'; the model has x, y"):
            Records.of(["ab"], "\n", ["z"]).ids(vocabulary)


class TestLabels:
    def test_the_vocabulary_has_them_behind_its_characters(self) -> None:
        records = Records.parse("de\tHans\nfr\tMarie\nde\tEva\n", RecordsConfig("line", "first"))
        vocabulary = make_vocabulary(records, Recipe().vocabulary)
        assert vocabulary.labels == ("de", "fr")
        assert vocabulary.characters == "\nEHMaeinrsv"
        assert vocabulary.tokens[-2:] == ["[de]", "[fr]"]
        assert list(label_ids(vocabulary)) == [12, 13]
        assert label_id(vocabulary, "fr") == 13
        assert vocabulary.unknown_nats == Vocabulary(vocabulary.characters).unknown_nats
        assert vocabulary != Vocabulary(vocabulary.characters)
        assert vocabulary_from_json(json.loads(json.dumps(vocabulary.to_json()))) == vocabulary

    def test_mistakes_are_named(self) -> None:
        vocabulary = LabelledVocabulary("ab", ["de"])
        with pytest.raises(UsageError, match="no label 'it'; the model has de"):
            label_id(vocabulary, "it")
        with pytest.raises(UsageError, match="the model has no labels"):
            label_id(Vocabulary("ab"), "it")
        with pytest.raises(VocabularyError, match="cannot grow"):
            vocabulary.grown("abc")
        assert vocabulary.grown("ba") is vocabulary
        for labels in (["de", "de"], [""]):
            with pytest.raises(VocabularyError, match="labels"):
                LabelledVocabulary("ab", labels)
        for values in ("de", [1]):
            with pytest.raises(VocabularyError, match="'labels' must be a list"):
                vocabulary_from_json({"format": 1, "unit": "character", "characters": "a", "labels": values})
        labelled = Records.of(["a", "b"], "\n", ["x", "y"])
        with pytest.raises(UsageError, match="remove `level` byte"):
            make_vocabulary(labelled, Recipe().with_options({"level": "byte"}).vocabulary)


class TestSplitting:
    @given(lists, st.builds(SplitConfig, st.floats(0, 0.5), st.none(), st.sampled_from(["blocks", "tail"])))
    def test_no_record_is_on_both_sides_and_none_is_lost(self, listed: list[str], config: SplitConfig) -> None:
        training, held_out = split_records(Records.of(listed, "\n"), config)
        kept, other = list(training), list(held_out or ())
        assert sorted(kept + other) == sorted(listed)
        assert not set(kept) & set(other)
        different = len(set(listed))
        wanted = different - int(different * (1 - config.val_fraction))
        assert len(set(other)) == (wanted if wanted < different else 0)
        assert kept == [record for record in listed if record in set(kept)]

    def test_they_are_spread_evenly_or_the_last(self) -> None:
        records = Records.of(numbers(100), "\n", [str(i % 3) for i in range(100)])
        _, spread = split_records(records, SplitConfig(0.1))
        _, tail = split_records(records, SplitConfig(0.1, val_split="tail"))
        assert spread is not None
        assert tail is not None
        assert list(spread) == numbers(100)[9::10]
        assert spread.labels == tuple(str(i % 3) for i in range(9, 100, 10))
        assert list(tail) == numbers(100)[90:]

    def test_the_limit_is_in_characters(self) -> None:
        _, held_out = split_records(Records.of(["abcd"] * 3 + numbers(1000), "\n"), SplitConfig(0.5, 100))
        assert held_out is not None
        assert 50 < len(held_out) <= 110

    @pytest.mark.parametrize("split", ["blocks", "tail"])
    def test_the_limit_holds_if_the_records_held_out_are_the_longest(self, split: str) -> None:
        listed = [f"short {i}" for i in range(3000)] + [f"long {i} " + "x" * 300 for i in range(300)]
        _, held_out = split_records(Records.of(listed, "\n"), SplitConfig(0.1, 10_000, split))
        assert held_out is not None
        assert 8_000 < len(held_out) <= 10_500


class TestStreams:
    @staticmethod
    def dataset(listed: list[str], seq_length: int = 3, batch: int = 4) -> tuple[RecordStreams, Vocabulary]:
        records, vocabulary = Records.of(listed, "\n"), Vocabulary.from_text("".join(listed) + "\n")
        return RecordStreams(*records.ids(vocabulary), seq_length, batch, seed=5), vocabulary

    def read(self, dataset: RecordStreams, epoch: int) -> np.ndarray:
        """The characters (span, B) that an epoch predicts the successors of."""
        return np.concatenate([inputs for inputs, _ in dataset.batches(epoch)])

    def test_an_epoch_reads_whole_records_in_a_new_order(self) -> None:
        listed = numbers(96)
        dataset, vocabulary = self.dataset(listed, seq_length=2, batch=1)
        orders = []
        for epoch in (1, 2):
            read = vocabulary.decode(self.read(dataset, epoch)[:, 0]).split("\n")
            assert sorted(read[:-1]) == sorted(listed) or set(read[:-1]) < set(listed)
            orders.append(read)
        assert orders[0] != orders[1]
        assert orders[0] != listed

    @given(lists, st.integers(1, 5), st.integers(1, 3), st.integers(1, 1000))
    def test_the_target_follows_the_input_in_the_same_order(
        self, listed: list[str], seq_length: int, batch: int, epoch: int
    ) -> None:
        total = sum(len(word) + 1 for word in listed)
        if total < 2 * seq_length * batch:
            return
        dataset, vocabulary = self.dataset(listed, seq_length, batch)
        pairs = list(dataset.batches(epoch))
        assert len(pairs) == dataset.steps_per_epoch == total // batch // seq_length
        columns = np.concatenate([inputs for inputs, _ in pairs] + [pairs[-1][1][-1:]])
        for (inputs, targets), (following, _) in itertools.pairwise(pairs):
            assert (inputs[1:] == targets[:-1]).all()
            assert (targets[-1] == following[0]).all()
        inner = {word for column in columns.T for word in vocabulary.decode(column).split("\n")[1:-1]}
        assert inner <= set(listed)

    def test_any_batch_and_any_rows_are_the_same_alone(self) -> None:
        dataset, _ = self.dataset(numbers(60))
        whole, part = list(dataset.batches(7)), dataset.part(slice(1, 3))
        for (inputs, targets), (some, wanted) in zip(whole[2:], part.batches(7, 2), strict=True):
            assert (inputs[:, 1:3] == some).all()
            assert (targets[:, 1:3] == wanted).all()


class TestEvaluating:
    @pytest.mark.parametrize("labels", [None, "xyx" * 7])
    @pytest.mark.parametrize("end", ["\n", "\n\n"])
    def test_each_record_costs_what_it_costs_alone(self, labels: str | None, end: str) -> None:
        listed = [*numbers(20), "aqua"]  # q and u are unknown
        records = Records.of(listed, end, labels)
        vocabulary = LabelledVocabulary("\naeiklmnost", ["x", "y"]) if labels else Vocabulary("\naeiklmnost")
        model = fill_with_ramps(cw.LanguageModel(ModelConfig(units=6, embedding_size=4), len(vocabulary)))
        engine = Engine(model.config, model.arrays(), "f32")
        nats = 0.0
        for number, record in enumerate(listed):
            mark = [label_id(vocabulary, labels[number])] if labels else []
            before, ids = [*vocabulary.encode(end), *mark], vocabulary.encode(record + end)
            scores = engine.scores([np.array([*before, *ids], dtype=np.int32)])[0]
            nats -= float(scores[len(before) - 1 :].sum())
        found = evaluate_text(ModelReader(model), vocabulary, records)
        assert found.unknown_chars == 2
        expected = nats + 2 * vocabulary.unknown_nats
        assert found.chars == len(records)
        assert found.nats_per_char * found.chars == pytest.approx(expected, rel=1e-5)
        assert found.nats_per_record == pytest.approx(expected / 21, rel=1e-5)
        assert (found.protocol, found.records, found.to_json()["records"]) == ("records", 21, 21)
        by_engine = evaluate_records(engine.target_nats, vocabulary, records)
        assert by_engine.nats_per_char == pytest.approx(found.nats_per_char, rel=1e-5)

    def test_scores_of_records_add_up_to_it(self) -> None:
        records, vocabulary = Records.of(numbers(30), "%%"), Vocabulary("%aeiklmnost")
        model = fill_with_ramps(cw.LanguageModel(ModelConfig(units=6, embedding_size=4), len(vocabulary)))
        generator = cw.Generator(model.config, model.arrays(), vocabulary, "f32", record_end="%%")
        scores = list(generator.score(records.text, separator="%%", independent=True))
        found = cw.evaluate(model, vocabulary, records)
        assert sum(score.nats for score in scores) == pytest.approx(found.nats_per_char * found.chars, rel=1e-5)

    def test_blocks_make_a_standard_error(self) -> None:
        records, vocabulary = Records.of(numbers(300), "\n"), Vocabulary("\naeiklmnost")
        losses = []
        for seed in (1, 2):
            model = cw.LanguageModel(ModelConfig(units=6, embedding_size=4), len(vocabulary), seed=seed)
            losses.append(evaluate_text(ModelReader(model), vocabulary, records))
        lengths = np.diff([0, *(sum(len(r) + 1 for r in numbers(300)[: 300 * i // 64]) for i in range(1, 65))])
        mean = np.average(losses[0].blocks, weights=lengths)
        assert mean == pytest.approx(losses[0].nats_per_char)
        assert 0 < standard_error_of_difference(*losses) < math.inf

    def test_a_search_looks_at_some(self) -> None:
        some, protocol = probe(Records.of(numbers(3000), "\n"))
        assert isinstance(some, Records)
        assert (some.count, protocol) == (1000, "records")


class TestFinding:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (LIST, True),
            ("".join(f"C{'(=O)' * (i % 4)}CC{i}N\n" for i in range(200)), True),  # molecules
            ("".join(f"{a} {b}\n" for a, b in itertools.product(numbers(15), numbers(15))), True),  # full names
            ("\n".join(numbers(50)), False),  # too few
            ("\n".join(f"{word} is a word, and a short one." for word in numbers(200)), False),
            ("\n".join(numbers(400) * 3), False),  # hardly any is different
            ("ACGTACGTAC\n" * 3 + "".join(f"{i:010}\n" for i in range(300)), False),  # wrapped
            ("".join(f"  x{word} = 1\n\n" for word in numbers(200)), False),
            ("床前明月光，\n疑是地上霜。\n舉頭望明月，\n低頭思故鄉。\n" * 60, False),
            ("", False),
        ],
    )
    def test_only_what_plainly_is_a_list(self, text: str, expected: bool) -> None:
        assert is_list(text) is expected

    def test_prose_and_plays_are_none(self, tinyshakespeare: str) -> None:
        assert not is_list(tinyshakespeare)
        assert not is_list(Path(__file__).read_text(encoding="utf-8"))


class TestTraining:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "words.txt"
        path.write_text(LIST, encoding="utf-8")
        return path

    def test_a_list_is_found_and_said(self, charwright: Terminal, file: Path, tmp_path: Path) -> None:
        result = charwright("train", file, "--out", tmp_path / "run", "--steps", "6", *SMALL)
        assert result.code == 0
        assert "plan: they are 360 records, one per line, in a new order each time; --records none" in result.err
        config = json.loads((tmp_path / "run" / "config.json").read_text())
        assert config["records"] == {"end": "\n", "training": 360, "validation": 40}
        assert config["recipe"]["records"] == {"records": "line", "label": None}
        assert "a list" in config["plan"]["reasons"]["records"]
        shown = charwright("info", tmp_path / "run").out
        assert "400 records that end with '\\n', 40 of them for validation" in shown
        found = charwright("evaluate", tmp_path / "run", file)
        assert "nats per record, 400 records" in found.out
        carried = charwright("evaluate", tmp_path / "run", file, "--protocol", "carried", "--json")
        assert "records" not in json.loads(carried.out)
        assert charwright("evaluate", tmp_path / "run", file, "--dynamic").code == 2

    @pytest.mark.parametrize(
        ("row", "note"),
        [
            ("{word}\t{kind}", "column 2 has 2 different values; with --records line --label last they are"),
            ("{kind}\t{word}", "column 1 has 2 different values; with --records line --label first they are"),
            ("{word}\tM{number}", "column 2 looks like identifiers; cut -f1, for example, leaves column 1 alone"),
            ("{number}\t{word}", "column 1 looks like identifiers; cut -f2, for example, leaves column 2 alone"),
            ("{word}\t{word}s", None),
            (
                "{word}\tM{number}\t{kind}",
                "column 2 looks like identifiers; cut -f1,3, for example, leaves columns 1,3",
            ),
            ("{word} CHEMBL{number}", "column 2 looks like identifiers; cut -d' ' -f1, for example, leaves column 1"),
            ("{number},{word}", "column 1 looks like identifiers; cut -d, -f2, for example, leaves column 2"),
            ("{word} {kind}", None),
            ("{word}", None),
        ],
    )
    def test_what_columns_may_be_is_said(
        self, charwright: Terminal, tmp_path: Path, row: str, note: str | None
    ) -> None:
        rows = [row.format(word=word, kind="ab"[i % 2], number=i) for i, word in enumerate(numbers(200))]
        (tmp_path / "list.txt").write_text("\n".join(rows), encoding="utf-8")
        result = charwright("train", tmp_path / "list.txt", "--out", tmp_path / "run", "--steps", "2", *SMALL)
        assert result.code == 0
        if note is None:
            assert "note: column" not in result.err
        else:
            assert f"note: {note}" in result.err

    def test_a_heading_over_identifiers_is_said(self, charwright: Terminal, tmp_path: Path) -> None:
        rows = ["smiles,id", *(f"{word},M{i}" for i, word in enumerate(numbers(200)))]
        (tmp_path / "list.csv").write_text("\n".join(rows), encoding="utf-8")
        words = ("train", tmp_path / "list.csv", "--records", "line", "--out", tmp_path / "run", "--steps", "2", *SMALL)
        note = "cut -d, -f1 | tail -n +2, for example, leaves column 1 alone, without the heading"
        assert note in charwright(*words).err

    def test_records_of_a_validation_text_that_are_known_are_counted(
        self, charwright: Terminal, file: Path, tmp_path: Path
    ) -> None:
        other = tmp_path / "other.txt"
        other.write_text("".join([*file.read_text(encoding="utf-8").splitlines(keepends=True)[:3], "zz\n", "zzz\n"]))
        words = ("train", file, "--validation", other, "--out", tmp_path / "run", "--steps", "2", *SMALL)
        assert "note: 3 of the 5 records of the validation text are in the training text\n" in charwright(*words).err

    def test_a_run_on_running_text_can_go_on_with_a_list(
        self, charwright: Terminal, file: Path, tmp_path: Path
    ) -> None:
        """Its plan reads excerpts, which a list has none of."""
        words = ("train", file, "--records", "none", "--out", tmp_path / "running", "--steps", "2", *SMALL)
        assert charwright(*words).code == 0
        assert Run.open(tmp_path / "running").config.recipe.sequences.order == "excerpts"
        words = ("train", file, "--from", tmp_path / "running", "--records", "line", "--steps", "2")
        assert charwright(*words, "--out", tmp_path / "run").code == 0

    def test_it_can_be_running_text(self, charwright: Terminal, file: Path, tmp_path: Path) -> None:
        result = charwright("train", file, "--out", tmp_path / "run", "--steps", "6", "--records", "none", *SMALL)
        assert result.code == 0
        assert "records" not in result.err
        assert "records" not in json.loads((tmp_path / "run" / "config.json").read_text())
        by_record = charwright("evaluate", tmp_path / "run", file, "--protocol", "records", "--json")
        assert json.loads(by_record.out)["records"] == 400
        recipe = charwright("train", file, "--recipe", "tutorial", "--steps", "1", "--out", tmp_path / "t", *SMALL)
        assert "records" not in recipe.err

    def test_a_resume_equals_a_training_without_a_stop(self, file: Path, tmp_path: Path) -> None:
        options = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16, "records": "line"}
        whole = cw.train(file, out=tmp_path / "whole", steps=60, **options)
        stopped = cw.train(
            file,
            out=tmp_path / "stopped",
            steps=60,
            should_stop=iter([None] * 37 + ["SIGINT"]).__next__,
            **options,
        )
        resumed = cw.resume(stopped)
        assert all((resumed.weights()[name] == value).all() for name, value in whole.weights().items())

    def test_labels_are_learned(self, charwright: Terminal, tmp_path: Path) -> None:
        file = tmp_path / "two.txt"
        file.write_text("".join(f"{'ab'[i % 2]}\t{'xy'[i % 2] * (2 + i % 3)}\n" for i in range(200)))
        options = ("--records", "line", "--label", "first", "--steps", "150", "--learning-rate", "0.02")
        assert charwright("train", file, "--out", tmp_path / "run", *options, *SMALL).code == 0
        run = cw.load(tmp_path / "run")
        assert run.vocabulary.labels == ("a", "b")
        ids = [np.array([*run.vocabulary.encode("\n"), label_id(run.vocabulary, label), 0]) for label in "ab"]
        for word, row in zip("xy", ids, strict=True):
            row[2] = run.vocabulary.encode(word)[0]
            assert run.engine.scores([row.astype(np.int32)])[0][-1] > math.log(0.9)
        assert "2 labels: a, b" in charwright("info", tmp_path / "run").out
        assert charwright("evaluate", tmp_path / "run", file).code == 0
        assert "was trained with labels" in charwright("score", tmp_path / "run", file, "--by", "line").line

    def test_a_run_that_continues_has_the_same_labels(self, charwright: Terminal, tmp_path: Path) -> None:
        known, other = tmp_path / "known.tsv", tmp_path / "other.tsv"
        known.write_text("".join(f"{'ab'[i % 2]}\t{'xy'[i % 2] * (2 + i % 3)}\n" for i in range(40)))
        other.write_text("".join(f"{'ac'[i % 2]}\t{'xy'[i % 2] * (2 + i % 3)}\n" for i in range(40)))
        options = ("--records", "line", "--label", "first", "--steps", "2", *SMALL)
        assert charwright("train", known, "--out", tmp_path / "run", *options).code == 0
        plain = ("--records", "line", "--steps", "2", *SMALL)
        assert charwright("train", known, "--out", tmp_path / "plain", *plain).code == 0
        more = ("--records", "line", "--label", "first", "--steps", "2", "--out", tmp_path / "more")
        assert charwright("train", known, "--from", tmp_path / "run", *more).code == 0
        for text, parent, labels in ((other, "run", "'c', and"), (known, "plain", "'a', and")):
            result = charwright("train", text, "--from", tmp_path / parent, *more, "--force")
            assert f"the text has the label {labels}" in result.line
            assert {"run": "has a, b;", "plain": "has no labels;"}[parent] in result.line
        assert "no label 'c'; the model has a, b" in charwright("evaluate", tmp_path / "run", other).line

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--label", "first"], "--label first is a column of records"),
            (["--records", "/(/"], "is not a regular expression"),
            (["--records", "%%"], "only 1 record with --records '%%'"),
            (["--records", "line", "--label", "first"], "record 1 has no tab"),
            (["--records", "line", "--order", "windows"], "--records reads in streams"),
        ],
    )
    def test_a_mistake_leaves_nothing(
        self, charwright: Terminal, file: Path, tmp_path: Path, options: list[str], words: str
    ) -> None:
        result = charwright("train", file, "--out", tmp_path / "run", "--steps", "2", *SMALL, *options)
        assert words in result.line
        assert not (tmp_path / "run").exists()

    def test_runs_on_records_are_compared_by_record(self, charwright: Terminal, file: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            charwright("train", file, "--out", tmp_path / name, "--steps", "3", "--seed", str(len(name)), *SMALL)
        for corpus in ([], [file]):
            result = charwright("compare", tmp_path / "one", tmp_path / "two", *corpus)
            assert result.code == 0
            assert f"each of {400 if corpus else 40} records on its own" in result.out

    def test_runs_on_different_records_are_compared_as_running_text(
        self, charwright: Terminal, file: Path, tmp_path: Path
    ) -> None:
        for name, records in (("one", "line"), ("two", "none")):
            charwright("train", file, "--out", tmp_path / name, "--steps", "3", "--records", records, *SMALL)
        result = charwright("compare", tmp_path / "one", tmp_path / "two", file)
        assert result.code == 0
        assert "The runs differ in --records or --label, so the text is read as running text" in result.out

    def test_inspect_shows_them(self, charwright: Terminal, file: Path) -> None:
        result = charwright("inspect", file, "--records", "line", *SMALL)
        assert result.code == 0
        assert "Records: 400, each ends with '\\n'" in result.out
        assert f"| {numbers(1)[0]!r}" in result.out

    def test_inspect_shows_labels(self, charwright: Terminal, tmp_path: Path) -> None:
        path = tmp_path / "labels.tsv"
        path.write_text(
            "".join(f"{'xy'[i % 2]}\t{number}\n" for i, number in enumerate(numbers(400))), encoding="utf-8"
        )
        result = charwright("inspect", path, "--records", "line", "--label", "first", *SMALL)
        assert result.code == 0
        assert result.out.splitlines()[-1].startswith("sample ")

    def test_the_order_changes_with_the_epoch(self) -> None:
        records, vocabulary = Records.of(numbers(100), "\n"), Vocabulary("\naeiklmnost")
        dataset = cw.RecordStreams(*records.ids(vocabulary), 8, 4)
        model = cw.LanguageModel(ModelConfig(units=8, embedding_size=4), len(vocabulary))
        config = cw.TrainingConfig(epochs=2, learning_rate=0.02)
        done = [event for event in cw.fit(model, dataset, config) if isinstance(event, Epoch)]
        assert [event.epoch for event in done] == [1, 2]
        assert done[1].train_loss < done[0].train_loss

    @pytest.mark.parametrize("stops", [[], [10, 5, 100], [50], [50, 101]])
    def test_they_end_where_records_end(self, stops: list[int]) -> None:
        with pytest.raises(CorpusError, match="must rise to 100"):
            cw.RecordStreams(np.zeros(100, np.int32), np.array(stops), 8, 4)


# What divides a list.

PARTS = ["one\ntwo\n", "three --- four\n", "five\n"] * 10


@pytest.mark.parametrize("divider", ["---", "%%", "* * *", "(end)"])
def test_a_text_that_always_fills_a_line_divides_by_lines(divider: str) -> None:
    parts = [part.replace("---", "--") for part in PARTS]
    for ended in ("", divider, divider + "\n"):
        text = f"{divider}\n".join(parts) + ended
        found = settled(text, RecordsConfig(divider))
        records = Records.parse(text, found)
        assert (list(records), records.end) == (parts, divider + "\n")
        assert divider_in_words(found.records) == f"lines {divider}"


def test_a_text_that_is_part_of_a_line_divides_where_it_stands() -> None:
    text = "---\n".join(PARTS)
    assert settled(text, RecordsConfig("---")).records == "---"
    assert settled("a;b;c", RecordsConfig(";")).records == ";"
    assert settled(text, RecordsConfig("/^---/")).records == "/^---/"
    assert settled(text, RecordsConfig("line")).records == "line"


def test_expressions_are_shown_as_they_are() -> None:
    for expression in (r"/^\d+$\n?/", r"/^(a|b)$\n?/", "/^---/"):
        assert divider_in_words(expression) == repr(expression)


def test_a_newline_is_written_as_in_other_options() -> None:
    assert settled("a---\nb---\n", RecordsConfig(r"---\n")).records == "---\n"
    assert settled(r"a---\nb---\n", RecordsConfig(r"---\n")).records == r"---\n", "as it stands in the text"


@pytest.mark.parametrize("given", ["lines", "Line", "blanks"])
def test_a_misspelled_kind_is_named(given: str) -> None:
    with pytest.raises(CorpusError) as caught:
        Records.parse("a\nb\n", RecordsConfig(given))
    assert f"did you mean --records {given.lower().rstrip('s')}? Otherwise" in caught.value.for_shell


def test_what_divides_a_list_is_noted() -> None:
    def notes(text: str) -> list[str]:
        return list(notes_on(text, text, RecordsConfig(), detect=True))

    assert notes("---\n".join(PARTS)) == [
        "note: the line --- occurs 29 times; with --records '---' each part is a record"
    ]
    tunes = "\n".join(f"X:{number}\nT:Tune\nCDEF|\n" for number in range(30))
    assert notes(tunes) == ["note: the blocks between blank lines begin with X:; with --records blank each is a record"]
    assert not notes("A paragraph of a novel.\n\n" * 100)
    for line in ("```", "//", "##", '"""', "{{"):  # of source code and its documentation
        assert not notes(f"one\n{line}\ntwo\n" * 100)
    assert not notes(("A chapter of a novel, which is long. " * 100 + "\n***\n") * 30)
