"""Slips of Python callers: each is answered in one line that says what is wanted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.errors import CharwrightError, ConfigError, OptionError, RunError, UsageError
from charwright.model import kernel_calls

TEXT = "the quick brown fox jumps over the lazy dog\n" * 20
VOCABULARY = cw.Vocabulary.from_text(TEXT)
IDS = VOCABULARY.encode(TEXT)
CONFIG = cw.ModelConfig(units=16, embedding_size=8)


@pytest.fixture(scope="module")
def model() -> cw.LanguageModel:
    return cw.LanguageModel(CONFIG, len(VOCABULARY))


@pytest.fixture(scope="module")
def generator(model: cw.LanguageModel) -> cw.Generator:
    return cw.Generator.of(model, VOCABULARY)


def windows(**changes: Any) -> cw.Windows:
    return cw.Windows(IDS, **{"seq_length": 10, "batch": 4, **changes})


def other_optimizer() -> torch.optim.Optimizer:
    return torch.optim.Adam(cw.LanguageModel(CONFIG, 9).parameters())


CORPUS = cw.Corpus.from_text(TEXT)
TRAINING = cw.TrainingConfig(steps=1)
ANY: Any = None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, g: cw.Vocabulary.from_text(CORPUS), "a text is a str, not Corpus: pass its text"),
        (lambda m, g: VOCABULARY.encode(["ab"]), "a text is a str, not list: several are encoded by encode_batch"),
        (lambda m, g: cw.LanguageModel(CONFIG, VOCABULARY), "a whole number, not Vocabulary: pass its len()"),
        (lambda m, g: cw.LanguageModel(CONFIG, 0), "a vocabulary has at least one token, not 0"),
        (lambda m, g: cw.LanguageModel({"units": 16}, 5), "a ModelConfig, not dict"),
        (lambda m, g: next(cw.fit(m, IDS, TRAINING)), "reads Windows, Streams, Excerpts or RecordStreams, not ndarray"),
        (lambda m, g: next(cw.fit(m, windows(), 60)), "a TrainingConfig, not int"),
        (lambda m, g: next(cw.fit(VOCABULARY, windows(), TRAINING)), "fit trains a LanguageModel, not Vocabulary"),
        (lambda m, g: cw.make_optimizer(m, 0.1), "a TrainingConfig, not float"),
        (lambda m, g: cw.Generator.of(VOCABULARY, m), "of a model and its Vocabulary, not LanguageModel"),
        (lambda m, g: g.generate("a", 5), "options are those of a GenerationConfig, not int: pass each by its name"),
        (lambda m, g: g.generate("a", temprature=1), "there is no option `temprature`; did you mean `temperature`?"),
        (lambda m, g: g.generate("a", length=0), "`length` must be at least 1, not 0"),
        (lambda m, g: g.score(None), "a text to score is a str, pieces of one, or Records, not NoneType"),
        (lambda m, g: g.score(["abc", "def"], independent=True), "let each end with '\\n'"),
        (lambda m, g: cw.split_corpus(TEXT, 0.1), "those of a SplitConfig, not float"),
        (lambda m, g: cw.split_corpus(CORPUS), "a str or Records, not Corpus: pass its text"),
        (lambda m, g: cw.read_corpus(3), "a corpus is a path, an address or a name, or several of them, not int"),
        (lambda m, g: cw.read_corpus([3]), "a corpus is a path, an address or a name, or several of them, not int"),
        (lambda m, g: cw.read_corpus(TEXT), f"a text of {len(TEXT)} characters is no name of a file"),
        (
            lambda m, g: cw.train(None, steps=1),
            "a corpus is a path, an address or a name, or several of them, not None",
        ),
        (lambda m, g: cw.plan(CORPUS), "name the files of the text"),
        (lambda m, g: cw.plot(5), "a run is named by its folder, not int"),
        (lambda m, g: cw.load(m), "a run is named by its folder, not LanguageModel"),
        (
            lambda m, g: cw.Run.save("x", CONFIG, m, VOCABULARY),
            "arrays by name, not LanguageModel: pass model.arrays()",
        ),
        (lambda m, g: windows(seq_length=100.0), "`seq_length` must be a whole number, not 100.0"),
        (lambda m, g: windows(batch="64"), "`batch` must be a whole number, not '64'"),
        (lambda m, g: windows(seed=-1), "`seed` must be at least 0, not -1"),
        (lambda m, g: cw.Generator.of(m, VOCABULARY, threads=1.5), "`threads` must be a whole number, not 1.5"),
        (lambda m, g: cw.evaluate(m, VOCABULARY, cw.Records.of([], "\n")), "there are no records to evaluate"),
        (
            lambda m, g: cw.evaluate(m, VOCABULARY, cw.Records.of(["a"], "\n"), "windows-9"),
            "one by one; for windows-9",
        ),
        (lambda m, g: cw.evaluate(m, VOCABULARY, cw.Records.of(["a"], "\n"), "record"), "`protocol` must be carried"),
        (lambda m, g: cw.evaluate(VOCABULARY, m, TEXT), "a model and its Vocabulary, not Vocabulary first"),
        (lambda m, g: cw.read_corpus(b"text.txt"), "several of them, not bytes"),
        (lambda m, g: cw.read_corpus("once upon " * 200), "a text of 2,000 characters is no name of a file"),
        (lambda m, g: m(torch.zeros(4).long()), "ids must be (T, B), time first, not of shape (4,)"),
        (lambda m, g: m(torch.zeros(2, 2, 3).long()), "ids must be (T, B), time first, not of shape (2, 2, 3)"),
        (lambda m, g: cw.Generator(m, m.arrays(), VOCABULARY), "not LanguageModel: pass model.config"),
        (lambda m, g: cw.Generator(CONFIG, m.named_weights(), VOCABULARY), "is no array of NumPy: pass model.arrays()"),
        (lambda m, g: cw.Run.save("x", m, m.arrays(), VOCABULARY), "not LanguageModel: pass model.config"),
        (lambda m, g: next(cw.fit(m, windows(), TRAINING, optimizer=other_optimizer())), "no parameter of this model"),
        (lambda m, g: next(cw.fit(m, windows(), TRAINING, optimizer="adam")), "make_optimizer, not str"),
        (lambda m, g: list(cw.fit(m, windows(), TRAINING, validate=lambda m: 0.5)), "an Evaluation, as charwright"),
        (lambda m, g: cw.plan("x", lr=0.1), "there is no option `lr`; did you mean `learning_rate`?"),
        (lambda m, g: g.generate(max_new_tokens=3), "there is no option `max_new_tokens`; did you mean `length`?"),
        (lambda m, g: cw.LanguageModel.from_arrays(CONFIG, {}), "'embedding.weight' is missing"),
        (lambda m, g: cw.LanguageModel(CONFIG, True), "a vocabulary has at least one token, not True"),
    ],
)
def test_a_slip_is_named(
    call: Callable[[Any, Any], object], message: str, model: cw.LanguageModel, generator: cw.Generator
) -> None:
    with pytest.raises((CharwrightError, ValueError)) as caught:
        call(model, generator)
    assert message in str(caught.value)


def test_texts_are_one_path_several_or_an_iterator(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    small: dict[str, Any] = {
        "units": 16,
        "embedding_size": 8,
        "batch": 2,
        "seq_length": 8,
        "ngram_bits": 0,
        "threads": 1,
    }
    run = cw.train(iter([path]), validation=iter([path]), out=tmp_path / "run", steps=1, **small)
    for steps, corpus in enumerate((str(path), path, [path], iter([path])), 2):
        cw.resume(run, corpus=corpus, steps=steps)
    with pytest.raises(ConfigError, match=r"there is no option `unitz`; did you mean `units`\?"):
        cw.resume(run, unitz=3)
    assert cw.plan(iter([path]), validation=iter([path]), steps=1).recipe.training.steps == 1
    taught = cw.train_ensemble(iter([path]), validation=iter([path]), count=1, out=tmp_path / "all", steps=1, **small)
    assert len(taught.config.teachers) == 1


def test_the_name_of_a_file_is_not_evaluated_as_a_text(model: cw.LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    with pytest.raises(UsageError, match="is the name of a file: read it first"):
        cw.evaluate(model, VOCABULARY, str(tmp_path / "a.txt"))
    assert cw.evaluate(model, VOCABULARY, "the dog" * 100).chars == 699


def test_whole_numbers_of_numpy_are_whole_numbers() -> None:
    dataset = windows(seq_length=np.int8(10), batch=np.int8(4))
    assert (type(dataset.seq_length), type(dataset.batch), dataset.steps_per_epoch) == (int, int, 20)
    assert cw.LanguageModel(CONFIG, np.int64(5)).vocabulary_size == 5


def test_one_text_is_spelled_for_python_and_for_the_shell() -> None:
    error = ConfigError("--val-fraction must be at most 0.5; add --no-tied, or --force")
    assert str(error) == "`val_fraction` must be at most 0.5; add `tied=False`, or `force=True`"
    assert error.for_shell == "--val-fraction must be at most 0.5; add --no-tied, or --force"
    assert str(OptionError("is odd", "top_k")) == "`top_k`: is odd"


def test_commands_in_messages_stay_as_they_are() -> None:
    command = "continue it with `charwright train --resume x`, or choose another --out"
    assert str(RunError(command)) == "continue it with `charwright train --resume x`, or choose another `out`"
    assert str(RunError("free some: charwright cache --clear")) == "free some: charwright cache --clear"
    assert str(RunError("a -- b, x--y and --")) == "a -- b, x--y and --"


def test_what_python_has_no_option_for_stays_as_it_is() -> None:
    for message in ("look with --novelty", "there is no label '--units'", "--state-out writes one", "/--seed/ is odd"):
        assert str(UsageError(message)) == message


def test_a_compiled_model_is_trained(model: cw.LanguageModel) -> None:
    compiled: Any = torch.compile(cw.LanguageModel(CONFIG, len(VOCABULARY)), backend="eager")
    assert [event.name for event in cw.fit(compiled, windows(), TRAINING)][-1] == "end"


def by_autograd(model: cw.LanguageModel, batch: cw.Batch, optimizer: torch.optim.Optimizer) -> torch.Tensor:
    loss, batch.state = model.loss(batch.inputs, batch.targets, batch.state)
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss


def test_the_working_memory_is_free_after_training() -> None:
    list(cw.fit(cw.LanguageModel(CONFIG, len(VOCABULARY)), windows(), TRAINING, train_step=by_autograd))
    assert not kernel_calls._spare


def test_a_vocabulary_says_what_it_knows() -> None:
    assert "q" in VOCABULARY
    assert "quick" in VOCABULARY
    assert "Q" not in VOCABULARY
    assert 3 not in VOCABULARY


def test_datasets_and_completions_show_what_they_are(generator: cw.Generator) -> None:
    assert repr(windows()) == "<Windows of 880 ids, seq_length=10, batch=4, seed=1: 20 steps per epoch>"
    assert repr(cw.Excerpts(IDS, 10, 4)).startswith("<Excerpts of 880 ids, ")
    texts = generator.generate("the", num=2, length=5)
    assert str(texts) == f"{texts[0]}\n\n{texts[1]}"
