"""Prompts become texts: one, many at once, or character by character."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig, ModelConfig
from charwright.data.vocabulary import UNKNOWN_ID, StreamDecoder, Vocabulary
from charwright.errors import UsageError
from charwright.generation.engine import Engine
from charwright.generation.sampling import draw, probabilities, uniforms


class Trained(Protocol):
    """What a generator asks of a model."""

    config: ModelConfig

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """The weights by name."""


@dataclass(frozen=True)
class Text:
    """What was written: `str()` of it is the prompt and what follows."""

    prompt: str
    continuation: str
    seed: int
    stream: int

    def __str__(self) -> str:
        return self.prompt + self.continuation


@dataclass
class _Stream:
    """One text while it is being written."""

    pending: deque[int]  # ids of the prompt that are still to be read
    random: np.random.Generator
    decoder: StreamDecoder
    left: int  # characters still to write
    next_id: int = 0


class Generator:
    """Writes with a trained model.

    >>> writer = Generator(model.config, model.arrays(), vocabulary)    # doctest: +SKIP
    >>> print(writer.generate("ROMEO:", length=200, seed=7)[0])         # doctest: +SKIP
    """

    def __init__(self, model: ModelConfig, weights: Mapping[str, npt.NDArray[np.float32]], vocabulary: Vocabulary):
        """Lay out the weights; `Generator.of(model, vocabulary)` takes them from a model."""
        self.vocabulary = vocabulary
        self.engine = Engine(model, weights)
        self._masked = np.zeros(len(vocabulary), dtype=np.bool_)
        self._masked[UNKNOWN_ID] = True

    @classmethod
    def of(cls, model: Trained, vocabulary: Vocabulary) -> Generator:
        """A generator with a model's present weights."""
        return cls(model.config, model.arrays(), vocabulary)

    def generate(
        self, prompts: str | Sequence[str] = "", config: GenerationConfig | None = None, **options: Any
    ) -> list[Text]:
        """Write `num` texts from each prompt, all together.

        Options are the fields of `GenerationConfig`. Text i of the result is stream i: its draws depend on the seed
        and on i alone. Without a seed, 0 is taken.
        """
        config = dataclasses.replace(config or GenerationConfig(), **options)
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        repeated = [prompt for prompt in listed for _ in range(config.num)]
        written: list[list[str]] = [[] for _ in repeated]
        for index, piece in self.write(repeated, config):
            written[index].append(piece)
        return [
            Text(prompt, "".join(pieces), config.seed or 0, index)
            for index, (prompt, pieces) in enumerate(zip(repeated, written, strict=True))
        ]

    def stream(self, prompt: str = "", config: GenerationConfig | None = None, **options: Any) -> Iterator[str]:
        """Write one text, and yield its characters as they are made."""
        config = dataclasses.replace(config or GenerationConfig(), **options)
        for _, piece in self.write([prompt], config):
            yield piece

    def write(self, prompts: Sequence[str], config: GenerationConfig) -> Iterator[tuple[int, str]]:
        """Yield (index of the prompt, piece of text) as the streams advance, one step of all at a time.

        An empty prompt begins as a line does: the model reads a newline that is not part of the text.

        Raises:
            UsageError: when the vocabulary has nothing but [UNK] to write with.
        """
        if len(self.vocabulary) < 2:
            raise UsageError("this model's vocabulary has no characters to write with")
        streams = [self._stream(prompt, index, config) for index, prompt in enumerate(prompts)]
        state = self.engine.zero_state(len(streams))
        active = list(range(len(streams)))
        while active:
            ids = np.array([self._next_id(streams[index]) for index in active])
            logits = self.engine.step(ids, state)
            for row, index in enumerate(active):
                stream = streams[index]
                if not stream.pending:
                    yield from ((index, piece) for piece in self._advance(stream, logits[row], config))
            going = [row for row, index in enumerate(active) if streams[index].left > 0]
            if len(going) < len(active):
                active, state = [active[row] for row in going], np.ascontiguousarray(state[:, :, going])

    def _stream(self, prompt: str, index: int, config: GenerationConfig) -> _Stream:
        beginning = prompt or ("\n" if not self.vocabulary.unknown_in("\n") else " ")
        pending = deque(self.vocabulary.encode(beginning).tolist())
        return _Stream(pending, uniforms(config.seed or 0, index), self.vocabulary.decoder(), config.length)

    def _next_id(self, stream: _Stream) -> int:
        return stream.pending.popleft() if stream.pending else stream.next_id

    def _advance(self, stream: _Stream, logits: npt.NDArray[np.float32], config: GenerationConfig) -> Iterator[str]:
        """Draw the next id; yield the character that it completes."""
        chances = probabilities(logits, config.temperature, config.top_k, config.top_p, self._masked)
        stream.next_id = draw(chances, stream.random.random())
        piece = stream.decoder.feed(stream.next_id)[: stream.left]
        stream.left -= len(piece)
        if piece:
            yield piece
