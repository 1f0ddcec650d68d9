"""Generate text from prompts: one completion, a batch, or character by character."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from charwright import notebook
from charwright.config import GenerationConfig, ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.beams import beam_search
from charwright.generation.draft import Draft, Guard
from charwright.generation.engine import Engine
from charwright.generation.masks import allowed
from charwright.generation.record_scores import Score, score_records
from charwright.generation.records import Cutter
from charwright.generation.session import Session, prompt_ids


class Trained(Protocol):
    """What a generator needs of a model."""

    config: ModelConfig

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the weights by name."""


@dataclass(frozen=True)
class Completion:
    """A generated text. `str()` returns the prompt and its continuation."""

    prompt: str
    continuation: str
    seed: int
    stream: int
    ended: str = "length"
    """Why it ended: `length`, `stop`, `line`, `paragraph`, `sentence`, or `interrupted`."""
    stop: str | None = None
    """The stop string that ended it, which is not part of the continuation."""
    logprobs: tuple[float, ...] | None = None
    """ln p of each character of the continuation under the model, if requested."""

    def __str__(self) -> str:
        return self.prompt + self.continuation

    def _repr_html_(self) -> str:
        end = "" if self.ended == "length" else f", ended by {self.ended}"
        note = f"seed {self.seed}, text {self.stream}{end}"
        return notebook.passage(self.continuation, prompt=self.prompt, note=note)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text(str(self))


class Completions(list[Completion]):
    """A list of generated texts; a notebook shows the texts themselves."""

    def _repr_html_(self) -> str:
        return "".join(completion._repr_html_() for completion in self)

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        printer.text("\n\n".join(map(str, self)))


class Generator:
    """Generate text with a trained model.

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
        """Lay out the weights. `Generator.of(model, vocabulary)` takes them from a model."""
        self.vocabulary = vocabulary
        self.engine = Engine(model, weights, precision, threads=threads)

    @classmethod
    def of(cls, model: Trained, vocabulary: Vocabulary, precision: str = "q8") -> Generator:
        """Create a generator with a model's current weights."""
        return cls(model.config, model.arrays(), vocabulary, precision)

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        config: GenerationConfig | None = None,
        *,
        logprobs: bool = False,
        guard: Guard | None = None,
        **options: Any,
    ) -> Completions:
        """Generate `num` completions of each prompt in one batch.

        Options are the fields of `GenerationConfig`. Completion i of the result is stream i: its random numbers depend
        only on the seed (0 by default) and on i. `guard` forbids ids at each step (`novelty.CopyGuard`).
        """
        config = dataclasses.replace(config or GenerationConfig(), **options)
        listed = [prompts] if isinstance(prompts, str) else list(prompts)
        repeated = [prompt for prompt in listed for _ in range(config.num)]
        return Completions(self.texts(repeated, config, logprobs=logprobs, guard=guard))

    def stream(self, prompt: str = "", config: GenerationConfig | None = None, **options: Any) -> Iterator[str]:
        """Generate one completion, and yield its text as it grows, a few characters at a time."""
        config = dataclasses.replace(config or GenerationConfig(), **options)
        for _, piece in self.write([prompt], config):
            yield piece

    def write(
        self, prompts: Sequence[str], config: GenerationConfig, *, guard: Guard | None = None
    ) -> Iterator[tuple[int, str]]:
        """Yield (index of the prompt, piece of text) as the streams advance.

        For an empty prompt the model reads a newline, which is not part of the text.

        Raises:
            UsageError: if no character is allowed.
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
    ) -> Iterator[Completion]:
        """Complete all prompts in one batch. Yield completions in order, each as soon as those before it are done."""
        session = Session(self.engine, self.vocabulary)
        drafts = [
            session.join(prompt, config, index, guard=guard, logprobs=logprobs) for index, prompt in enumerate(prompts)
        ]
        for draft in drafts:
            while draft.ended is None:
                session.advance()
            yield finished(draft, logprobs=logprobs)

    def beam_search(self, prompt: str, config: GenerationConfig, beams: int) -> Completion:
        """Return the most likely completion that beam search finds. Temperature and seed have no effect.

        Raises:
            UsageError: if no character is allowed, or `beams` is less than 1.
        """
        if beams < 1:
            raise UsageError(f"a search needs at least one beam, not {beams}")
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
        return Completion(prompt, found.text, 0, 0, found.ended, found.stop, tuple(found.logprobs))

    def logprobs(self, text: str) -> list[float]:
        """Return ln p of each character of `text` after the first, given those before it, from a zero state.

        Raises:
            UsageError: if the text has fewer than two characters, or the model generates bytes.
        """
        if self.vocabulary.level != "character" or len(text) < 2:
            raise UsageError("log-probabilities need a text of at least two characters and a character-level model")
        return [float(score) for score in self.engine.scores([self.vocabulary.encode(text)])[0]]

    def score(
        self,
        text: str | Iterable[str],
        *,
        by: str = "line",
        separator: str | None = None,
        independent: bool = False,
        warm_up: int = 0,
    ) -> Iterator[Score]:
        """Yield what each record of a text costs in bits, in order, with memory that does not grow with the text.

        The sum of the records' `bits` divided by that of their `chars` is what `evaluate` gives as bits per character,
        for a text of at most 1,048,576 characters and in the same precision.

        Args:
            text: the text, or pieces of it. Records end at a newline, not at a carriage return.
            by: `line`, `blank` (records end at blank lines), `file` (the whole text), or `character`.
            separator: the text that ends a record, instead of `by`.
            independent: each record is read from a zero state, after a newline, and all of its characters are
                predicted. Otherwise the text is read along: in blocks of 1,048,576 characters, each cut into streams as
                `evaluate` cuts a text; the first stream of a block continues the block before.
            warm_up: the ids before each stream that are read without being scored, so that it does not begin coldly.

        Raises:
            UsageError: when the options contradict each other.
        """
        pieces = (("", piece) for piece in ([text] if isinstance(text, str) else text) if piece)
        return score_records(
            self.engine,
            self.vocabulary,
            pieces,
            Cutter(by, separator),
            independent=independent,
            warm_up=warm_up,
        )


def finished(draft: Draft, *, logprobs: bool = False) -> Completion:
    """The completion of a draft on which `pop` was not called. A draft that has not ended was interrupted."""
    sampler = draft.stream.sampler
    scores = tuple(draft.logprobs[: draft.shown]) if logprobs else None
    ended = draft.ended or "interrupted"
    return Completion(draft.prompt, draft.pop(), sampler.seed, sampler.stream, ended, draft.endings.stop, scores)
