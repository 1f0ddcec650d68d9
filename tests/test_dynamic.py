"""Dynamic evaluation, against a direct implementation of the paper's rule, and its invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import charwright as cw
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DivergedError
from charwright.evaluation import dynamic
from charwright.evaluation.dynamic import adapted_to, evaluate_dynamically
from charwright.model.compute import Compute
from ramps import fill_with_ramps

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHABET = "abcdefghij"
VOCABULARY = Vocabulary(ALPHABET)


def make_model(**options: object) -> cw.LanguageModel:
    return fill_with_ramps(cw.LanguageModel(cw.ModelConfig(**{"units": 6, "embedding_size": 4, **options}), 11))


def make_text(length: int) -> str:
    return "".join(ALPHABET[i * i % 7 + i % 4] for i in range(length))


def random_text(length: int, seed: int = 1) -> str:
    return "".join(np.random.default_rng(seed).choice(list(ALPHABET), length))


class Reference:
    """Section 3 of the paper, one tensor and one segment at a time."""

    def __init__(self, model: cw.LanguageModel) -> None:
        self.model = cw.LanguageModel(model.config, 11, compute=Compute(core="plain")).eval()
        self.model.load_arrays(model.arrays())
        self.state: tuple[torch.Tensor, ...] | None = None

    def score(self, ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        row = torch.tensor(ids)[:, None]
        logits, state = self.model(row[:-1], self.state)
        self.state = tuple(part.detach() for part in state)
        losses = F.cross_entropy(logits[:, 0], row[1:, 0], reduction="none")
        return losses.detach(), list(torch.autograd.grad(losses.mean(), list(self.model.parameters())))

    def run(self, training: list[list[int]], segments: list[list[int]], rate: float, decay: float) -> list[float]:
        weights = list(self.model.parameters())
        trained = [weight.detach().clone() for weight in weights]
        gradients = [self.score(ids)[1] for ids in training]
        sizes = [torch.stack(some).square().mean(0).sqrt() for some in zip(*gradients, strict=True)]
        arrays = self.model.weight("ngrams.weight") if self.model.config.ngram_bits else None
        counted = [size.flatten() for size, weight in zip(sizes, weights, strict=True) if weight is not arrays]
        mean = torch.cat(counted).mean()
        self.state, nats = None, []
        for ids in segments:
            losses, gradient = self.score(ids)
            nats += losses.tolist()
            with torch.no_grad():
                for weight, g, theta, size in zip(weights, gradient, trained, sizes, strict=True):
                    back = (decay * size / mean).clamp(max=1)
                    weight.copy_(weight + back * (theta - weight) - rate * g / (size + dynamic.EPSILON * mean))
        return nats


def pieces(text: str) -> list[list[int]]:
    ids = VOCABULARY.encode(text).tolist()
    return [ids[i : i + dynamic.SEGMENT + 1] for i in range(0, len(ids) - 1, dynamic.SEGMENT)]


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "gru", "layers": 2},
        {"cell": "lstm", "dropout": 0.5},
        {"cell": "rnn", "tied": True, "embedding_size": 6},
        {"cell": "gru", "ngram_bits": 12, "ngram_order": 3},
    ],
)
def test_the_loss_is_that_of_the_papers_rule(options: dict[str, object]) -> None:
    model, rate, decay = make_model(**options), 0.01, 0.7
    training = random_text(dynamic.SEGMENT * (dynamic.WARM_UP + 2) + 1)
    text = make_text(400)
    expected = Reference(model).run(pieces(training), pieces(text), rate, decay)
    result = evaluate_dynamically(model, VOCABULARY, text, training, rate=rate, decay=decay)
    assert result.nats_per_char == pytest.approx(np.mean(expected), rel=1e-5)
    assert result.blocks[-1] == pytest.approx(np.mean(expected[-(399 - 399 * 15 // 16) :]), rel=1e-4)
    assert (result.chars, result.protocol) == (399, "dynamic")
    assert abs(result.nats_per_char - cw.evaluate(model, VOCABULARY, text).nats_per_char) > 0.01


def test_a_long_training_text_is_sampled_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two spans, from the beginning and from the middle, each from a zero state."""
    monkeypatch.setattr(dynamic, "SPANS", 2)
    monkeypatch.setattr(dynamic, "SEGMENTS_PER_SPAN", 40)
    span = 40 * dynamic.SEGMENT + 1
    first, second = make_text(span), random_text(span)
    model, text = make_model(), make_text(200)
    found = evaluate_dynamically(model, VOCABULARY, text, first + "a" * 5000 + second * 2, rate=0.01)
    reference = Reference(model)
    scored = reference.score
    counted: list[int] = []

    def score(ids: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        counted.append(len(ids))
        if len(counted) == 41:
            reference.state = None
        return scored(ids)

    reference.score = score  # type: ignore[method-assign]
    middle = (first + "a" * 5000 + second * 2)[(3 * span + 5000) // 2 :][:span]
    expected = reference.run(pieces(first) + pieces(middle), pieces(text), 0.01, dynamic.DECAY)
    assert found.nats_per_char == pytest.approx(np.mean(expected), rel=1e-5)


def test_without_a_training_text_training_starts_after_the_warm_up() -> None:
    model, warm = make_model(), dynamic.SEGMENT * dynamic.WARM_UP
    text = make_text(warm + 5 * dynamic.SEGMENT + 1)
    still = evaluate_dynamically(model, VOCABULARY, text, rate=0)
    for training in ("", make_text(1)):
        along = evaluate_dynamically(model, VOCABULARY, text, training, rate=0.01)
        assert along.blocks[:14] == still.blocks[:14]
        assert along.blocks[-1] < still.blocks[-1] - 0.01
    sooner = evaluate_dynamically(model, VOCABULARY, text, make_text(warm // 2 + 1), rate=0.01)
    assert sooner.blocks[:7] == still.blocks[:7]
    assert sooner.blocks[9] < still.blocks[9]


def test_a_rate_of_zero_gives_the_carried_loss() -> None:
    model, text = make_model(cell="lstm", layers=2), make_text(1900)
    static = cw.evaluate(model, VOCABULARY, text)
    found = evaluate_dynamically(model, VOCABULARY, text, make_text(4000), rate=0)
    assert found.nats_per_char == pytest.approx(static.nats_per_char, rel=1e-6)
    assert found.blocks == pytest.approx(static.blocks, rel=1e-5)


def test_random_text_is_not_predicted() -> None:
    """A rule that looked ahead would have a loss below ln 10."""
    text = random_text(6000, seed=2)
    found = evaluate_dynamically(make_model(), VOCABULARY, text, random_text(6000), rate=0.01)
    assert found.nats_per_char > math.log(10) - 0.01


def test_a_repetitive_text_is_learned() -> None:
    model, text = make_model(), "abcdefghij" * 150
    found = evaluate_dynamically(model, VOCABULARY, text, make_text(4000), rate=0.01)
    assert found.blocks[-1] < 0.7 * found.blocks[0]
    assert found.nats_per_char < cw.evaluate(model, VOCABULARY, text).nats_per_char


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_not_changed(training: bool) -> None:
    model = make_model(dropout=0.5).train(training)
    before = model.arrays()
    with torch.no_grad():
        first, second = (
            evaluate_dynamically(model, VOCABULARY, make_text(300), make_text(3000), rate=0.01) for _ in range(2)
        )
    assert first == second
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())
    assert all((before[name] == array).all() for name, array in model.arrays().items())


def test_unknown_characters_and_bytes_count_as_in_static_evaluation() -> None:
    text = make_text(100) + "λ" + make_text(100)
    found = evaluate_dynamically(make_model(), VOCABULARY, text, rate=0)
    assert found.unknown_chars == 1
    assert found.nats_per_char == pytest.approx(cw.evaluate(make_model(), VOCABULARY, text).nats_per_char, rel=1e-6)
    by_byte = cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=4), 257)
    assert evaluate_dynamically(by_byte, ByteVocabulary(), "слово" * 21, rate=0).chars == 104


def test_progress_ends_at_1() -> None:
    seen: list[float] = []
    evaluate_dynamically(make_model(), VOCABULARY, make_text(70), progress=seen.append)
    assert seen == pytest.approx([32 / 69, 64 / 69, 1])


def test_divergence_is_an_error() -> None:
    with pytest.raises(DivergedError, match="--dynamic-rate"):
        evaluate_dynamically(make_model(), VOCABULARY, make_text(2000), make_text(3000), rate=1e38)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_that_is_too_short_is_refused(text: str) -> None:
    with pytest.raises(CorpusError, match="fewer than two"):
        evaluate_dynamically(make_model(), VOCABULARY, text)


def test_a_model_adapts_to_a_text_before_it_continues_it() -> None:
    training, read = make_text(3000), "abcabdabe" * 200
    model = make_model()
    before = {name: array.copy() for name, array in model.arrays().items()}
    adapted = adapted_to(model, VOCABULARY, read, training, rate=0.01)
    assert all((array == before[name]).all() for name, array in model.arrays().items())
    following = "abcabdabe" * 20
    learned, known = (cw.evaluate(one, VOCABULARY, following).nats_per_char for one in (adapted, model))
    assert learned < known - 0.05
    # It is the model that dynamic evaluation has at the end of the text.
    longer = evaluate_dynamically(model, VOCABULARY, read + following, training, rate=0.01)
    assert longer.nats_per_char < evaluate_dynamically(model, VOCABULARY, read, training, rate=0.01).nats_per_char
    same = adapted_to(model, VOCABULARY, "", training)
    assert all((array == before[name]).all() for name, array in same.arrays().items())
    with pytest.raises(DivergedError, match="adapts to the text"):
        adapted_to(model, VOCABULARY, read, training, rate=1e30)
