"""The evaluation of a text on disk is that of the same text in memory, up to the rounding of sums."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.config import SplitConfig, VocabularyConfig
from charwright.data import split
from charwright.data.large_texts import MappedCorpus, open_corpus
from charwright.data.mapped_text import MappedText
from charwright.data.parts import Places
from charwright.data.split import split_text
from charwright.data.texts import Text
from charwright.data.vocabularies import make_vocabulary
from charwright.errors import CorpusError, UsageError
from charwright.evaluation.dynamic import evaluate_dynamically
from charwright.evaluation.evaluate import evaluate, evaluate_text
from charwright.evaluation.evaluation import Evaluation
from charwright.evaluation.in_memory import evaluate_string
from charwright.evaluation.mapped import evaluate_mapped
from charwright.evaluation.readers import ModelReader
from charwright.generation.engine import Engine
from charwright.training.ranks import Ranks
from charwright.training.sharing import reader_of
from commands import TEXT, Terminal
from ramps import fill_with_ramps

MIXED = "Über allen Gipfeln\nist Ruh, 道可道 😀\n" * 600
OPTIONS: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16, "steps": 6}

pytestmark = pytest.mark.usefixtures("one_thread")


def mapped(text: str, folder: Path) -> MappedText:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8", newline="")
    corpus = open_corpus(path, None, Places(folder / "cache", mapped_from_bytes=0))
    assert isinstance(corpus, MappedCorpus)
    return corpus.text


def same(found: Evaluation, expected: Evaluation) -> None:
    assert (found.chars, found.unknown_chars, found.protocol) == (
        expected.chars,
        expected.unknown_chars,
        expected.protocol,
    )
    assert found.nats_per_char == pytest.approx(expected.nats_per_char, rel=1e-6)
    assert found.bits_per_char == pytest.approx(expected.bits_per_char, rel=1e-6)
    assert found.blocks == pytest.approx(expected.blocks, rel=1e-6)


@pytest.mark.parametrize("protocol", ["carried", "windows-1", "windows-100", "windows-300"])
@pytest.mark.parametrize("level", ["character", "byte"])
@pytest.mark.parametrize("length", [2, 17, 400, 3333, len(MIXED)])
def test_on_disk_as_in_memory(tmp_path: Path, level: str, protocol: str, length: int) -> None:
    text = MIXED[:length]
    vocabulary = make_vocabulary("Übernamefistugl \n道", VocabularyConfig(level=level))
    model = fill_with_ramps(
        cw.LanguageModel(cw.ModelConfig(units=6, embedding_size=4, cell="lstm", layers=2), len(vocabulary))
    )
    there = mapped(text, tmp_path)
    try:
        expected = evaluate(model, vocabulary, text, protocol)
    except CorpusError as error:
        with pytest.raises(CorpusError, match=str(error)):
            evaluate_text(ModelReader(model), vocabulary, there, protocol)
        return
    same(evaluate_text(ModelReader(model), vocabulary, there, protocol), expected)
    assert evaluate_text(ModelReader(model), vocabulary, text, protocol) == expected
    if level == "character" and length > 400:
        assert expected.unknown_chars > 0
        part = there.part([(100, 300), (310, length)])
        same(
            evaluate_text(ModelReader(model), vocabulary, part, protocol),
            evaluate(model, vocabulary, text[100:300] + text[310:], protocol),
        )


@pytest.mark.parametrize("precision", ["f32", "q8"])
def test_an_engine_evaluates_a_text_on_disk(tmp_path: Path, precision: str) -> None:
    vocabulary = make_vocabulary(TEXT, VocabularyConfig())
    model = cw.LanguageModel(cw.ModelConfig(units=16, embedding_size=8), len(vocabulary), seed=1)
    engine = Engine(model.config, model.arrays(), precision=precision)
    for protocol in ("carried", "windows-50"):
        same(
            evaluate_mapped(engine.continued_nats, vocabulary, mapped(TEXT * 2, tmp_path), protocol),
            evaluate_string(engine.target_nats, vocabulary, TEXT * 2, protocol),
        )


def test_a_protocol_that_does_not_exist(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(TEXT, VocabularyConfig())
    model = cw.LanguageModel(cw.ModelConfig(units=6, embedding_size=4), len(vocabulary))
    with pytest.raises(UsageError, match="`protocol` must be"):
        evaluate_text(ModelReader(model), vocabulary, mapped(TEXT, tmp_path), "backwards")


class Half(Ranks):
    """One of two ranks, which gets what the other has found."""

    def __init__(self, rank: int, shared: list[np.ndarray]) -> None:
        super().__init__()
        self.rank, self.size, self._shared = rank, 2, iter(shared)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(torch.from_numpy(next(self._shared)))


class Recording(Half):
    def __init__(self, rank: int) -> None:
        super().__init__(rank, [])
        self.found: list[np.ndarray] = []

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.found.append(tensor.numpy().copy())
        return tensor


def test_ranks_divide_a_text_on_disk(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(TEXT, VocabularyConfig())
    model = fill_with_ramps(cw.LanguageModel(cw.ModelConfig(units=6, embedding_size=4), len(vocabulary)))
    there, recording = mapped(TEXT * 3, tmp_path), Recording(1)
    alone = evaluate_text(reader_of(model, recording), vocabulary, there)
    assert 0 < alone.nats_per_char < evaluate(model, vocabulary, TEXT * 3).nats_per_char, "half of the columns"
    whole = evaluate_text(reader_of(model, Half(0, recording.found)), vocabulary, there)
    same(whole, evaluate(model, vocabulary, TEXT * 3))


# Where such a text comes from.


def test_a_long_part_held_out_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, there = SplitConfig(val_limit=None, val_fraction=0.5), mapped(TEXT, tmp_path)
    training, short = split_text(there, config)
    assert isinstance(short, str)
    monkeypatch.setattr(split, "READ_UP_TO", len(short) - 1)
    for kind in ("blocks", "tail"):
        config = SplitConfig(val_limit=None, val_fraction=0.5, val_split=kind)
        training, long = split_text(there, config)
        assert isinstance(long, MappedText)
        assert (training[:], long[:]) == split_text(TEXT, config)


@pytest.mark.parametrize("separate", [False, True])
def test_training_validates_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separate: bool) -> None:
    """A text of its own, or a part that is held out; and so does the resume."""
    monkeypatch.setattr(split, "READ_UP_TO", 10)
    for name, text in (("text", TEXT * 2), ("other", MIXED[:3000])):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    validation = tmp_path / "other.txt" if separate else ()
    found: list[Any] = []
    for name, limit in (("there", 0), ("here", 1 << 30)):
        places = Places(tmp_path / "cache", mapped_from_bytes=limit)
        run = cw.train(tmp_path / "text.txt", validation=validation, out=tmp_path / name, places=places, **OPTIONS)
        resumed = cw.resume(run, places=places, steps=12)
        found.append([event["validation_loss"] for event in resumed.log() if event.get("validation_loss") is not None])
    assert len(found[0]) >= 2
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    prepared = list((tmp_path / "cache" / "texts").glob("[!.]*"))
    assert len(prepared) == 1 + separate


def test_evaluate_and_compare_read_from_disk(
    charwright: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARWRIGHT_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    run = cw.train(text, out=tmp_path / "run", places=Places(tmp_path / "other"), **OPTIONS).folder
    commands = (["evaluate", run, text], ["evaluate", run, text, "--precision", "q8"], ["compare", run, text])

    def outputs() -> list[Any]:
        return [json.loads(charwright(*command, "--json").out) for command in commands]

    before = outputs()
    assert not (tmp_path / "cache").exists()
    mapped_places = partial(Places, mapped_from_bytes=0)
    monkeypatch.setattr("charwright.cli.download.user_places", lambda: mapped_places(tmp_path / "cache"))
    after = outputs()
    assert len(list((tmp_path / "cache" / "texts").glob("[!.]*"))) == 1
    for one, other in zip(before[:2], after[:2], strict=True):
        assert one.keys() == other.keys()
        assert one["nats_per_char"] == pytest.approx(other["nats_per_char"], rel=1e-6)
    assert before[2]["runs"][0]["nats_per_char"] == pytest.approx(after[2]["runs"][0]["nats_per_char"], rel=1e-6)
    assert "was trained on this text" in charwright("compare", run, text).out


def test_dynamic_evaluation_reads_a_text_from_disk(tmp_path: Path) -> None:
    vocabulary = make_vocabulary(TEXT, VocabularyConfig())
    model = cw.LanguageModel(cw.ModelConfig(units=6, embedding_size=4), len(vocabulary), seed=1)
    texts: list[Text] = [TEXT[:300], mapped(TEXT[:300], tmp_path)]
    results = [evaluate_dynamically(model, vocabulary, text) for text in texts]
    assert results[0] == results[1]
