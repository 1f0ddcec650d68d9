"""The example in one file, held to the library: same weights, same batches, same losses, same greedy text."""

from __future__ import annotations

import ast
import dataclasses
import doctest
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.model.compute import Compute

pytestmark = pytest.mark.usefixtures("one_thread")

TUTORIAL = cw.RECIPES["tutorial"].training
PATH = Path(__file__).parents[1] / "examples" / "char_rnn.py"
WORDS = ["first ", "citizen:\n", "before ", "we ", "proceed ", "any ", "further, ", "hear me speak. "]
TEXT = "".join(WORDS[i * i * i % 7] + WORDS[i % 8] for i in range(120))
# T * B is a power of two, so that division by it is exact. The library divides the gradients at another place.
SEQ_LENGTH, BATCH = 16, 4
EMBEDDING, UNITS, SEED, STEPS, LEARNING_RATE = 6, 16, 3, 100, 0.03


@pytest.fixture(scope="module")
def char_rnn() -> ModuleType:
    spec = importlib.util.spec_from_file_location("char_rnn", PATH)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Ours(NamedTuple):
    """What the library makes of the text."""

    vocabulary: cw.Vocabulary
    dataset: cw.Windows
    model: cw.LanguageModel


def ours(text: str = TEXT, seq_length: int = SEQ_LENGTH, batch: int = BATCH) -> Ours:
    vocabulary = cw.Vocabulary.from_text(text)
    dataset = cw.Windows(vocabulary.encode(text), seq_length, batch, SEED)
    config = cw.ModelConfig(units=UNITS, embedding_size=EMBEDDING)
    model = cw.LanguageModel(
        config, len(vocabulary), seed=SEED, embedding_range=TUTORIAL.embedding_range, compute=Compute(core="plain")
    )
    return Ours(vocabulary, dataset, model)


def our_losses(model: cw.LanguageModel, dataset: cw.Windows) -> list[float]:
    """By the tutorial's recipe, with another budget and another rate."""
    config = dataclasses.replace(
        cw.RECIPES["tutorial"].training, epochs=None, steps=STEPS, learning_rate=LEARNING_RATE, log_every=1
    )
    return [event.loss for event in cw.fit(model, dataset, config) if event.name == "step"]


def trained(
    char_rnn: ModuleType, seq_length: int = SEQ_LENGTH, batch: int = BATCH
) -> tuple[torch.nn.Module, Any, list[float]]:
    """The example's model and vocabulary after training, and the losses on the way."""
    vocabulary = char_rnn.Vocabulary.from_text(TEXT)
    dataset = char_rnn.Windows(vocabulary.encode(TEXT), seq_length, batch, SEED)
    model = char_rnn.LanguageModel(len(vocabulary), EMBEDDING, UNITS, SEED)
    losses = list(char_rnn.fit(model, dataset, STEPS, LEARNING_RATE))
    return model, vocabulary, losses


def its_weights(model: torch.nn.Module) -> dict[str, np.ndarray]:
    """The example's weights by the library's names."""
    names = {
        "embedding": "embedding.weight",
        "weight_ih": "recurrent.0.weight_ih",
        "weight_hh": "recurrent.0.weight_hh",
        "bias_ih": "recurrent.0.bias_ih",
        "bias_hh": "recurrent.0.bias_hh",
        "head_weight": "head.weight",
        "head_bias": "head.bias",
    }
    return {names[name]: weight.detach().numpy() for name, weight in model.named_parameters()}


def assert_same_bits(its: dict[str, np.ndarray], library: dict[str, np.ndarray]) -> None:
    assert set(its) == set(library)
    for name, weight in library.items():
        np.testing.assert_array_equal(its[name], weight, err_msg=name, strict=True)


def test_it_is_short_and_needs_pytorch_and_numpy_alone() -> None:
    source = PATH.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 250
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level or (node.module or "").partition(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "numpy"}


def test_its_examples_are_true(char_rnn: ModuleType) -> None:
    results = doctest.testmod(char_rnn)
    assert results.attempted > 0
    assert results.failed == 0


def test_the_vocabulary_and_the_ids(char_rnn: ModuleType) -> None:
    text = "Ein Kätzchen, 猫 und 😀\tNaïve\n" + TEXT
    its, library = char_rnn.Vocabulary.from_text(text), cw.Vocabulary.from_text(text)
    assert its.tokens == library.tokens
    assert len(its) == len(library)
    other = text[::-1] + "Ünknown: 🐍"
    assert (ids := its.encode(other).tolist()) == library.encode(other).tolist()
    assert 0 in ids
    assert its.decode(ids) == library.decode(ids)


def test_the_default_text_is_the_librarys_python_docs(char_rnn: ModuleType, tmp_path: Path) -> None:
    assert char_rnn.read_corpus(None) == cw.read_corpus(["python-docs"]).text
    path = tmp_path / "text.txt"
    path.write_bytes("é\r\n猫\n".encode())
    assert char_rnn.read_corpus(str(path)) == cw.read_corpus([str(path)]).text == "é\n猫\n"


@pytest.mark.parametrize(("seq_length", "batch"), [(SEQ_LENGTH, BATCH), (10, 7)])
def test_the_batches_of_two_epochs(char_rnn: ModuleType, seq_length: int, batch: int) -> None:
    library = ours(seq_length=seq_length, batch=batch)
    its = char_rnn.Windows(library.vocabulary.encode(TEXT).astype(np.int64), seq_length, batch, SEED)
    for epoch in (1, 2):
        expected = list(library.dataset.batches(epoch))
        batches = list(its.batches(epoch))
        assert len(batches) == len(expected) > 1
        for (inputs, targets), (our_inputs, our_targets) in zip(batches, expected, strict=True):
            np.testing.assert_array_equal(inputs.numpy(), our_inputs, strict=True)
            np.testing.assert_array_equal(targets.numpy(), our_targets, strict=True)


def test_a_text_without_a_batch_is_refused(char_rnn: ModuleType) -> None:
    char_rnn.Windows(np.ones(12, dtype=np.int64), seq_length=3, batch=3)
    with pytest.raises(ValueError, match="2 windows of 4 characters"):
        char_rnn.Windows(np.ones(11, dtype=np.int64), seq_length=3, batch=3)


@pytest.mark.parametrize("seed", [1, SEED])
def test_the_weights_of_a_seed(char_rnn: ModuleType, seed: int) -> None:
    config = cw.ModelConfig(units=UNITS, embedding_size=EMBEDDING)
    library = cw.LanguageModel(config, 11, seed=seed, embedding_range=TUTORIAL.embedding_range)
    assert_same_bits(its_weights(char_rnn.LanguageModel(11, EMBEDDING, UNITS, seed)), library.arrays())


def test_training_and_greedy_text(char_rnn: ModuleType) -> None:
    """Over several epochs: the same losses and weights bit for bit, and what is written with them."""
    vocabulary, dataset, model = ours()
    expected = our_losses(model, dataset)
    assert len(expected) == STEPS > 2 * dataset.steps_per_epoch
    assert expected[-1] < 0.2 * expected[0]
    its_model, its_vocabulary, losses = trained(char_rnn)
    assert losses == expected
    assert_same_bits(its_weights(its_model), model.arrays())

    generator = cw.Generator(model.config, model.arrays(), vocabulary, precision="f32")
    for prompt in ("we ", "Z", "further, hear"):
        [text] = generator.generate(prompt, length=100, temperature=0)
        assert len(set(text.continuation)) > 3, "so that it is no one character, again and again"
        assert char_rnn.generate(its_model, its_vocabulary, prompt, 100, temperature=0) == str(text)


def test_training_with_other_sizes(char_rnn: ModuleType) -> None:
    """Where T * B is no power of two, gradients round otherwise in the last bit."""
    _, dataset, model = ours(seq_length=10, batch=7)
    _, _, losses = trained(char_rnn, seq_length=10, batch=7)
    assert losses[:25] == pytest.approx(our_losses(model, dataset)[:25], rel=1e-5)


def test_draws_follow_the_temperature_and_the_seed(char_rnn: ModuleType) -> None:
    logits = torch.tensor([9.0, 1.0, 0.0, -0.5])
    for temperature in (0.5, 1.0, 2.0):
        generator = torch.Generator().manual_seed(1)
        drawn = np.array([char_rnn.draw(logits, temperature, generator) for _ in range(2000)])
        shares = np.bincount(drawn, minlength=4) / len(drawn)
        expected = (np.exp(logits.numpy() / temperature) * [0, 1, 1, 1]).astype(np.float64)
        assert shares[0] == 0, "[UNK] is never written"
        assert shares == pytest.approx(expected / expected.sum(), abs=0.03)
    assert char_rnn.draw(logits, 0, generator) == 1

    vocabulary = char_rnn.Vocabulary.from_text(TEXT)
    model = char_rnn.LanguageModel(len(vocabulary), EMBEDDING, UNITS)
    texts = [char_rnn.generate(model, vocabulary, "we ", 50, 1.0, seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_it_draws_from_no_global_randomness(char_rnn: ModuleType) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    vocabulary = char_rnn.Vocabulary.from_text(TEXT)
    dataset = char_rnn.Windows(vocabulary.encode(TEXT), SEQ_LENGTH, BATCH, SEED)
    model = char_rnn.LanguageModel(len(vocabulary), EMBEDDING, UNITS)
    assert len(list(char_rnn.fit(model, dataset, 2, LEARNING_RATE))) == 2
    char_rnn.generate(model, vocabulary, "we ", 5, 1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_as_a_program_it_learns_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    options = ["--steps", "60", "--seq-length", "16", "--batch", "4", "--units", "16", "--length", "80"]
    done = subprocess.run(
        [sys.executable, PATH, path, *options, "--prompt", "we "],
        capture_output=True, text=True, encoding="utf-8", check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    first, *rest = done.stdout.split("\n", 5)
    assert first == f"{len(TEXT):,} characters, V = {len(set(TEXT)) + 1}; the loss of guessing is 3.258"
    told = [re.fullmatch(r"step +(\d+)   loss (\d+\.\d{3})", line) for line in rest[:4]]
    assert [match and match[1] for match in told] == ["1", "20", "40", "60"]
    losses = [float(match[2]) for match in told if match]
    assert losses[0] == pytest.approx(3.258, abs=0.05)
    assert losses[-1] < 0.9 * losses[0]
    sample = rest[4]
    assert sample.startswith("we ")
    assert sample.endswith("\n")
    assert len(sample) == len("we ") + 80 + len("\n")
