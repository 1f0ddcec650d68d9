"""The loss on a text, against sums computed one id at a time."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.carried import MOST_STREAMS, SHORTEST_STREAM
from charwright.data.labels import LabelledVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, UsageError, VocabularyError
from charwright.evaluation.evaluation import standard_error_of_difference
from charwright.evaluation.protocols import parse_protocol
from ramps import fill_with_ramps

pytestmark = pytest.mark.usefixtures("one_thread")

ALPHABET = "abcdefghij"


def make_model(size: int, **options: object) -> cw.LanguageModel:
    return fill_with_ramps(cw.LanguageModel(cw.ModelConfig(units=6, embedding_size=4, **options), size))


def make_text(length: int, alphabet: str = ALPHABET) -> str:
    return "".join(alphabet[i * i % 7 + i % (len(alphabet) - 6)] for i in range(length))


def nats_of(model: cw.LanguageModel, ids: list[int]) -> list[float]:
    """-ln p of each id but the first, one id at a time with the state carried."""
    state, nats = None, []
    with torch.no_grad():
        for current, following in pairwise(ids):
            logits, state = model(torch.tensor([[current]]), state)
            nats.append(-float(logits[0, 0].double().log_softmax(0)[following]))
    return nats


@pytest.mark.parametrize("length", [2, 3, 129, 130, 700])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_carried_equals_a_plain_loop(length: int, cell: str) -> None:
    """Across the boundaries of the chunks too."""
    vocabulary, text = Vocabulary(ALPHABET), make_text(length)
    model = make_model(len(vocabulary), cell=cell, layers=2)
    result = cw.evaluate(model, vocabulary, text)
    expected = nats_of(model, vocabulary.encode(text).tolist())
    assert result.nats_per_char == pytest.approx(sum(expected) / (length - 1), rel=1e-5)
    assert result.bits_per_char == pytest.approx(result.nats_per_char / math.log(2))
    assert (result.chars, result.unknown_chars, result.protocol) == (length - 1, 0, "carried")


@pytest.mark.parametrize("length", [2001, 2999, 3005])
def test_carried_streams_include_every_character(length: int) -> None:
    vocabulary, text = Vocabulary(ALPHABET), make_text(length)
    model = make_model(len(vocabulary))
    ids, streams = vocabulary.encode(text).tolist(), (length - 1) // SHORTEST_STREAM
    cuts = [(length - 1) * i // streams for i in range(streams + 1)]
    rows = [nats_of(model, ids[begin : end + 1]) for begin, end in pairwise(cuts)]
    assert min(map(len, rows)) >= SHORTEST_STREAM
    result = cw.evaluate(model, vocabulary, text)
    assert result.chars == length - 1
    assert result.nats_per_char == pytest.approx(sum(map(sum, rows)) / (length - 1), rel=1e-5)


def test_carried_has_at_most_64_streams() -> None:
    """The loss of an uninformed model is ln V for each character, and every one counts once."""
    vocabulary, length = Vocabulary("ab"), MOST_STREAMS * SHORTEST_STREAM * 2 + 17
    model = cw.LanguageModel(cw.ModelConfig(units=2, embedding_size=2, cell="rnn"), 3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    widths = set()
    forward = model.forward
    model.forward = lambda ids, state=None: widths.add(ids.shape[1]) or forward(ids, state)  # type: ignore[method-assign]
    result = cw.evaluate(model, vocabulary, "ab" * (length // 2) + "a")
    assert widths == {MOST_STREAMS}
    assert result.chars == length - 1
    assert result.nats_per_char == pytest.approx(math.log(3), rel=1e-6)


@pytest.mark.parametrize(("length", "window"), [(41, 10), (40, 10), (50, 10), (700, 3), (12, 11), (5, 1), (300, 140)])
def test_each_window_starts_from_a_zero_state(length: int, window: int) -> None:
    vocabulary, text = Vocabulary(ALPHABET), make_text(length)
    model, ids = make_model(len(vocabulary)), vocabulary.encode(text).tolist()
    count = (length - 1) // window
    expected = [nats_of(model, ids[i * window : (i + 1) * window + 1]) for i in range(count)]
    result = cw.evaluate(model, vocabulary, text, f"windows-{window}")
    assert (result.chars, result.protocol) == (count * window, f"windows-{window}")
    assert result.nats_per_char == pytest.approx(sum(map(sum, expected)) / result.chars, rel=1e-5)


def test_unknown_characters_cost_their_identification() -> None:
    vocabulary = Vocabulary("abc")
    model = make_model(4)
    result = cw.evaluate(model, vocabulary, "abλcaμ")
    expected = nats_of(model, [1, 2, 0, 3, 1, 0])
    assert result.unknown_chars == 2
    assert result.nats_per_char == pytest.approx((sum(expected) + 2 * math.log(1_114_112 - 4)) / 5, rel=1e-5)


def test_an_unknown_character_is_cheaper_with_a_larger_vocabulary() -> None:
    known = "".join(map(chr, range(0x4E00, 0x4E00 + 20_000)))
    model = cw.LanguageModel(cw.ModelConfig(units=1, embedding_size=1), 20_001)
    with torch.no_grad():
        model.weight("head.weight").zero_()
    result = cw.evaluate(model, Vocabulary(known), "abc")
    assert result.nats_per_char == pytest.approx(math.log(20_001) + math.log(1_114_112 - 20_001), abs=1e-4)


def test_an_unknown_first_character_is_not_predicted() -> None:
    assert cw.evaluate(make_model(4), Vocabulary("abc"), "λab").unknown_chars == 0


def test_merging_rare_characters_does_not_lower_the_loss() -> None:
    """Of two uninformed models, the one with the smaller vocabulary is not better."""
    text = "abcdefghij" * 20
    losses = [
        cw.evaluate(
            cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=4), 1 + size), Vocabulary(text[:size]), text
        )
        for size in (10, 3)
    ]
    assert losses[1].nats_per_char > losses[0].nats_per_char + 3


@pytest.mark.parametrize("protocol", ["carried", "windows-7"])
def test_the_loss_of_a_byte_model_is_per_character(protocol: str) -> None:
    """An uninformed byte-level model costs ln 257 per byte, and Cyrillic letters have two."""
    model = cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=4), 257)
    with torch.no_grad():
        model.weight("head.weight").zero_()
    text = "слово" * 21
    result = cw.evaluate(model, ByteVocabulary(), text, protocol)
    assert result.nats_per_char == pytest.approx(2 * math.log(257), rel=0.02)
    assert result.chars == pytest.approx(len(text) - 1, abs=4)
    assert result.unknown_chars == 0


@pytest.mark.parametrize(
    ("vocabulary", "text", "protocol"),
    [
        (Vocabulary("ab"), "", "carried"),
        (Vocabulary("ab"), "a", "carried"),
        (Vocabulary("ab"), "abababab", "windows-8"),
        (ByteVocabulary(), "я", "carried"),
        (ByteVocabulary(), "я", "windows-1"),
    ],
)
def test_a_text_that_is_too_short_is_refused(vocabulary: Vocabulary, text: str, protocol: str) -> None:
    with pytest.raises(CorpusError):
        cw.evaluate(make_model(len(vocabulary)), vocabulary, text, protocol)


@pytest.mark.parametrize(
    "protocol",
    ["", "windows", "windows-", "windows-0", "windows--3", "windows-x", "carried-3", f"windows-{'1' * 5000}"],
)
def test_an_unknown_protocol_is_refused(protocol: str) -> None:
    with pytest.raises(UsageError, match="carried, windows-N"):
        cw.evaluate(make_model(3), Vocabulary("ab"), "abab", protocol)


def test_protocols_are_parsed() -> None:
    assert parse_protocol("carried") is None
    assert parse_protocol("windows-256") == 256


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_does_not_change_the_model(training: bool) -> None:
    """No dropout, no gradients, and the mode is restored."""
    model = make_model(len(ALPHABET) + 1, dropout=0.5).train(training)
    first, second = (cw.evaluate(model, Vocabulary(ALPHABET), make_text(50)) for _ in range(2))
    assert first == second
    assert model.training is training
    assert all(weight.grad is None for weight in model.parameters())


def test_the_result_is_plain_json() -> None:
    values = cw.evaluate(make_model(3), Vocabulary("ab"), "abba").to_json()
    assert set(values) == {"nats_per_char", "bits_per_char", "chars", "unknown_chars", "protocol"}
    assert not any(isinstance(value, np.generic) for value in values.values())


@pytest.mark.parametrize(("length", "count"), [(2, 1), (32, 1), (33, 2), (257, 16), (3005, 16), (17_011, 17)])
def test_blocks_are_the_nats_of_equal_parts_in_order(length: int, count: int) -> None:
    """Also with fewer streams than blocks, so that a stream has several blocks."""
    vocabulary, text = Vocabulary(ALPHABET), make_text(length)
    model = make_model(len(vocabulary))
    ids, streams, chars = vocabulary.encode(text).tolist(), max(1, (length - 1) // SHORTEST_STREAM), length - 1
    cuts = [chars * i // streams for i in range(streams + 1)]
    nats = [nat for begin, end in pairwise(cuts) for nat in nats_of(model, ids[begin : end + 1])]
    edges = [chars * i // count for i in range(count + 1)]
    expected = [sum(nats[begin:end]) / (end - begin) for begin, end in pairwise(edges)]
    result = cw.evaluate(model, vocabulary, text)
    assert result.blocks == pytest.approx(expected, rel=1e-5)
    assert np.average(result.blocks, weights=np.diff(edges)) == pytest.approx(result.nats_per_char)


def test_blocks_of_bytes_end_at_characters() -> None:
    """The blocks of byte-level and character-level models have the same characters."""
    text = "aя中" * 40 + "aaa" * 40
    by_byte = cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=4), 257)
    with torch.no_grad():
        by_byte.weight("head.weight").zero_()
    result = cw.evaluate(by_byte, ByteVocabulary(), text)
    edges = [1 + 239 * i // 14 for i in range(15)]
    sizes = [len(text[begin:end].encode()) / (end - begin) for begin, end in pairwise(edges)]
    assert result.blocks == pytest.approx([size * math.log(257) for size in sizes], rel=1e-5)
    chars = 233
    for changed in (text, text[::-1]):
        windows = cw.evaluate(by_byte, ByteVocabulary(), changed, "windows-50")
        edges = [chars * i // 14 for i in range(15)]
        assert (windows.chars, len(windows.blocks)) == (chars, 14)
        # The number of characters in complete windows of bytes is an estimate, but every byte counts.
        assert np.average(windows.blocks, weights=np.diff(edges)) == pytest.approx(windows.nats_per_char)


def test_unknown_characters_count_in_their_block() -> None:
    vocabulary = Vocabulary("ab")
    model = cw.LanguageModel(cw.ModelConfig(units=2, embedding_size=2), 3)
    with torch.no_grad():
        model.weight("head.weight").zero_()
    blocks = cw.evaluate(model, vocabulary, "ab" * 30 + "abλ" + "ab" * 20).blocks
    assert len(blocks) == 6
    costly = math.log(3) + math.log(1_114_112 - 3) / 17
    assert blocks == pytest.approx([math.log(3)] * 3 + [costly] + [math.log(3)] * 2, rel=1e-5)


def evaluation(*blocks: float) -> cw.Evaluation:
    return cw.Evaluation(sum(blocks) / len(blocks), 1.0, 100, 0, "carried", blocks)


def test_the_standard_error_is_that_of_the_paired_differences() -> None:
    """Blocks that are hard for both models do not widen it."""
    a, b = evaluation(1.0, 5.0, 2.0, 3.0), evaluation(1.1, 5.0, 2.2, 3.1)
    assert standard_error_of_difference(a, b) == pytest.approx(np.std([0.1, 0.0, 0.2, 0.1], ddof=1) / 2)
    assert standard_error_of_difference(a, a) == 0
    assert standard_error_of_difference(evaluation(1.0), evaluation(2.0)) == math.inf
    with pytest.raises(ValueError, match="same text"):
        standard_error_of_difference(a, evaluation(1.0, 2.0))


def test_the_vocabulary_is_that_of_the_model() -> None:
    model = cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=4), 5)
    with pytest.raises(VocabularyError, match="the vocabulary has 4 tokens, and the model 5"):
        cw.evaluate(model, cw.Vocabulary("abc"), "abc")
    for text in (cw.Corpus.from_text("abcd"), b"abcd", None):
        with pytest.raises(UsageError, match="is a str or Records, not"):
            cw.evaluate(model, cw.Vocabulary("abcd"), text)  # type: ignore[arg-type]
    labelled = cw.Records.of(["a", "b"], "\n")
    with pytest.raises(CorpusError, match="the model has labels"):
        cw.evaluate(model, LabelledVocabulary("ab\n", ["x"]), labelled)
