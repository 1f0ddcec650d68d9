"""Prompts become texts: one, many at once, or character by character."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright.config import GenerationConfig, ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.beams import beam_search
from charwright.generation.engine import Engine
from charwright.generation.session import Draft, Guard, Session, allowed, prompt_ids


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
    ended: str = "length"
    """Why it ended: `length`, `stop`, `line`, `paragraph` or `sentence`; or `interrupted`, when it has not."""
    stop: str | None = None
    """The stop text that was met; it is not part of the continuation."""
    logprobs: tuple[float, ...] | None = None
    """ln p of each character of the continuation under the model itself, where they were asked for."""

    def __str__(self) -> str:
        return self.prompt + self.continuation


class Generator:
    """Writes with a trained model.

    >>> writer = Generator(model.config, model.arrays(), vocabulary)    # doctest: +SKIP
    >>> print(writer.generate("ROMEO:", length=200, seed=7)[0])         # doctest: +SKIP
    """

    def __init__(
        self,
        model: ModelConfig,
        weights: Mapping[str, npt.NDArray[np.float32]],
        vocabulary: Vocabulary,
        precision: str = "q8",
        *,
        threads: int | None = None,
    ):
        """Lay out the weights; `Generator.of(model, vocabulary)` takes them from a model."""
        self.vocabulary = vocabulary
        self.engine = Engine(model, weights, precision, threads=threads)

    @classmethod
    def of(cls, model: Trained, vocabulary: Vocabulary, precision: str = "q8") -> Generator:
        """A generator with a model's present weights."""
        return cls(model.config, model.arrays(), vocabulary, precision)

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        config: GenerationConfig | None = None,
        *,
        logprobs: bool = False,
        guard: Guard | None = None,
        **options: Any,
    ) -> list[Text]:
        """Write `num` texts from each prompt, all together.

        Options are the fields of `GenerationConfig`. Text i of the result is stream i: its draws depend on the seed
        and on i alone. Without a seed, 0 is taken. `guard` forbids ids on the way (`novelty.CopyGuard`).
        """
        config = dataclasses.replace(config or GenerationConfig(), **options)
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        repeated = [prompt for prompt in listed for _ in range(config.num)]
        return list(self.texts(repeated, config, logprobs=logprobs, guard=guard))

    def stream(self, prompt: str = "", config: GenerationConfig | None = None, **options: Any) -> Iterator[str]:
        """Write one text, and yield its characters as they are made, some at a time."""
        config = dataclasses.replace(config or GenerationConfig(), **options)
        for _, piece in self.write([prompt], config):
            yield piece

    def write(
        self, prompts: Sequence[str], config: GenerationConfig, *, guard: Guard | None = None
    ) -> Iterator[tuple[int, str]]:
        """Yield (index of the prompt, piece of text) as the streams advance.

        An empty prompt begins as a line does: the model reads a newline that is not part of the text.

        Raises:
            UsageError: when there is nothing to write with.
        """
        session = Session(self.engine, self.vocabulary)
        numbers = {session.join(prompt, config, index, guard=guard): index for index, prompt in enumerate(prompts)}
        while drafts := session.advance():
            for draft in drafts:
                if piece := draft.pop():
                    yield numbers[draft], piece

    def texts(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        logprobs: bool = False,
        guard: Guard | None = None,
    ) -> Iterator[Text]:
        """Write a text from each prompt, all together; yield them in order, each as soon as those before are done."""
        session = Session(self.engine, self.vocabulary)
        drafts = [
            session.join(prompt, config, index, guard=guard, logprobs=logprobs) for index, prompt in enumerate(prompts)
        ]
        for draft in drafts:
            while draft.ended is None:
                session.advance()
            yield finished(draft, logprobs=logprobs)

    def likeliest(self, prompt: str, config: GenerationConfig, beams: int) -> Text:
        """The likeliest text that beam search finds; see `beams.beam_search`. Temperature and seed mean nothing here.

        Raises:
            UsageError: when there is nothing to write with, or no beam to search with.
        """
        if beams < 1:
            raise UsageError(f"a search needs one beam at least, not {beams}")
        found = beam_search(
            self.engine,
            self.vocabulary,
            prompt_ids(self.vocabulary, prompt),
            ~allowed(self.vocabulary, config),
            beams=beams,
            length=config.length,
            stop=config.stop,
            until=config.until,
        )
        return Text(prompt, found.text, 0, 0, found.ended, found.stop, tuple(found.logprobs))

    def logprobs(self, text: str) -> list[float]:
        """The ln p of each character of `text` after the first, given those before it, from a zero state.

        Raises:
            UsageError: when the text has fewer than two characters, or the model's unit is the byte.
        """
        if self.vocabulary.unit != "character" or len(text) < 2:
            raise UsageError(
                "there are log-probabilities for two characters or more, of a model that writes characters"
            )
        return [float(score) for score in self.engine.scores([self.vocabulary.encode(text)])[0]]


def finished(draft: Draft, *, logprobs: bool = False) -> Text:
    """What a draft has become, when nobody has called `pop` yet; one that has not ended was interrupted."""
    sampler = draft.stream.sampler
    scores = tuple(draft.logprobs[: draft.shown]) if logprobs else None
    ended = draft.ended or "interrupted"
    return Text(draft.prompt, draft.pop(), sampler.seed, sampler.stream, ended, draft.endings.stop, scores)
