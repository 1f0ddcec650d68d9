"""Small writers for tests: one with random weights, and one that writes what it is told to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from charwright.config import ModelConfig, RecordsConfig
from charwright.data.labels import LabelledVocabulary
from charwright.data.records import ENDS
from charwright.data.vocabulary import Vocabulary
from charwright.generation.engine import Engine
from charwright.generation.generator import Generator
from charwright.generation.streams import Stream
from charwright.run import Run
from charwright.run_config import RunRecords

LETTERS = Vocabulary("\n .!abcdeABCDE:é中")
AB = Vocabulary("\nab ")
LABELLED = LabelledVocabulary("\nab ", ["one", "two", "three"])


def weights_of(config: ModelConfig, size: int, *, seed: int = 2, unknown_bias: float = 0.0) -> dict[str, np.ndarray]:
    """Weights that are large enough for the text to depend on what came before."""
    random = np.random.Generator(np.random.Philox(seed))
    shapes = config.weight_shapes(size)
    weights = {name: random.normal(0, 0.8, shape).astype(np.float32) for name, shape in shapes.items()}
    if config.multiplicative:  # A scale that is far from 1 makes a plain recurrent network chaotic.
        weights["recurrent.0.weight_mx"] *= np.float32(0.1)
    weights["head.bias"][0] += np.float32(unknown_bias)
    return weights


def random_writer(
    vocabulary: Vocabulary = LETTERS,
    precision: str = "q8",
    *,
    cell: str = "gru",
    layers: int = 1,
    ngram_bits: int = 0,
    ngram_order: int = 4,
    variant: str | None = None,
    unknown_bias: float = 0.0,
) -> Generator:
    """A generator with random weights; `variant` is that of the kernels, `none` for numpy."""
    config = ModelConfig(
        cell=cell, layers=layers, units=16, embedding_size=8, ngram_bits=ngram_bits, ngram_order=ngram_order
    )
    weights = weights_of(config, len(vocabulary), unknown_bias=unknown_bias)
    writer = Generator(config, weights, vocabulary, precision, threads=1)
    if variant is not None:
        writer.engine = Engine(config, weights, precision, threads=1, variant=variant)
    return writer


RECORD_MODEL = ModelConfig(units=16, embedding_size=8)


def record_weights(vocabulary: Vocabulary = AB, favoured: Sequence[int] = ()) -> dict[str, np.ndarray]:
    """Random weights, with which a record has a few characters; the favoured ids are the most likely ones."""
    weights = weights_of(RECORD_MODEL, len(vocabulary))
    weights["head.bias"][1] -= np.float32(1)
    weights["head.bias"][list(favoured)] += np.float32(30)
    return weights


def record_writer(vocabulary: Vocabulary = AB, end: str = "\n", *known: str, favoured: Sequence[int] = ()) -> Generator:
    """A generator of records with these weights."""
    weights = record_weights(vocabulary, favoured)
    return Generator(RECORD_MODEL, weights, vocabulary, threads=1, record_end=end, known_records=lambda: known)


def save_records(folder: Path, vocabulary: Vocabulary = AB, end: str = "\n", *, favoured: Sequence[int] = ()) -> Run:
    """A run with these weights, as if it was trained on records."""
    kind = next((kind for kind, known in ENDS.items() if known == end), end)
    records = RecordsConfig(kind, "first" if vocabulary.labels else None), RunRecords(end, 90, 10)
    return Run.save(folder, RECORD_MODEL, record_weights(vocabulary, favoured), vocabulary, records=records)


class Scripted:
    """A stand-in for the engine that draws these ids one after another, whatever it reads, and then again.

    Draw n has an ln p of -n.
    """

    precision, vocabulary_size = "q8", 257

    def __init__(self, ids: Sequence[int]) -> None:
        self.script = list(ids)

    @classmethod
    def of_bytes(cls, data: bytes) -> Scripted:
        return cls([byte + 1 for byte in data])

    def zero_state(self, streams: int = 1) -> np.ndarray:
        return np.zeros((streams, 1, 1, 16), dtype=np.int32)

    def advance(self, streams: Sequence[Stream], steps: int) -> None:
        for stream in streams:
            stream.make_room(steps + 1)
            for _ in range(steps):
                if stream.at + 1 == stream.length:
                    stream.ids[stream.length] = self.script[stream.drawn % len(self.script)]
                    stream.drawn += 1
                    if stream.scores is not None:
                        stream.scores[stream.length] = -stream.drawn
                    stream.length += 1
                stream.at += 1
