"""Generate text from prompts: one completion, a batch, or character by character."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from charwright.arguments import require
from charwright.config import GenerationConfig, ModelConfig, RecordsConfig
from charwright.data.records import Records
from charwright.data.vocabulary import UNKNOWN_ID, Vocabulary
from charwright.errors import UsageError, VocabularyError
from charwright.generation.beams import beam_search, check_options
from charwright.generation.completions import Completion, Completions, finished
from charwright.generation.draft import Guard
from charwright.generation.endings import check_beginning
from charwright.generation.engine import Engine
from charwright.generation.known_records import KnownRecords
from charwright.generation.masks import allowed
from charwright.generation.openings import Opening, Openings
from charwright.generation.record_scores import Score
from charwright.generation.record_search import RecordSearch
from charwright.generation.session import Session, prompt_ids
from charwright.generation.text_scores import TextScores


class Trained(Protocol):
    """What a generator needs of a model."""

    config: ModelConfig

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        """Return the weights by name."""


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
        record_end: str | None = None,
        records: RecordsConfig | None = None,
        known_records: Callable[[], Iterable[str]] | None = None,
    ):
        """Lay out the weights. `Generator.of(model, vocabulary)` takes them from a model.

        `record_end` is what ends each record, for a model that was trained on records: it is read before every prompt.
        `records` is how a text is divided into them, by default by `record_end`; `score` does so.
        `known_records` returns the records of the text, which are not new; it is called when they are needed.
        """
        require(model, ModelConfig, "a generator is of a model's config", "pass model.config, or use Generator.of")
        self.vocabulary, self.record_end, self._known_records = vocabulary, record_end, known_records
        self._division = records or (RecordsConfig(record_end) if record_end else None)
        self.engine = Engine(model, weights, precision, threads=threads)
        if len(vocabulary) != self.engine.vocabulary_size:
            known, tokens = len(vocabulary), self.engine.vocabulary_size
            raise VocabularyError(f"the vocabulary has {known:,} tokens, and the model {tokens:,}")

    @classmethod
    def of(cls, model: Trained, vocabulary: Vocabulary, precision: str = "q8", **options: Any) -> Generator:
        """Create a generator with a model's current weights; the options are those of the constructor."""
        require(vocabulary, Vocabulary, "a generator is of a model and its Vocabulary")
        return cls(model.config, model.arrays(), vocabulary, precision, **options)

    def __reduce__(self) -> NoReturn:
        """Refuse to be copied or pickled: the weights are laid out for this processor, outside of Python's memory."""
        raise UsageError("a generator cannot be copied or pickled; call charwright.load again, in each process")

    def generate(
        self,
        prompts: str | Sequence[str] = "",
        config: GenerationConfig | None = None,
        *,
        label: str | None = None,
        logprobs: bool = False,
        guard: Guard | None = None,
        **options: Any,
    ) -> Completions:
        """Generate `num` completions of each prompt in one batch.

        Options are the fields of `GenerationConfig`. Completion i of the result is stream i: its random numbers depend
        only on the seed (0 by default) and on i. `guard` forbids ids at each step (a `CopyGuard`).

        A model of records begins each text as a record, and goes on with others behind its end; `records` ends there.
        With a model that has labels, each text is one record with this `label`, or with one that is drawn.

        Raises:
            UsageError: if no character is allowed, there is no such label, or a prompt is not a `str`.
        """
        config = GenerationConfig.of(config, options)
        several = isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes)
        listed: list[Any] = list(prompts) if several else [prompts]
        repeated = [prompt for prompt in listed for _ in range(config.num)]
        return Completions(self.texts(repeated, config, label=label, logprobs=logprobs, guard=guard))

    def records(
        self,
        num: int = 1,
        config: GenerationConfig | None = None,
        *,
        prompt: str = "",
        label: str | None = None,
        new: bool = False,
        distance: int | None = None,
        known: Iterable[str] | None = None,
        logprobs: bool = False,
        **options: Any,
    ) -> Completions:
        """Generate records, each without its end, of at most `length` characters: `load("runs/names").records(50)`.

        Record i is stream i of the seed, unless they are `new`.

        Args:
            num: the number of records.
            config: options, instead of one by one.
            prompt: the beginning of each record.
            label: which of the model's labels the records have; drawn for each of them by default.
            new: different records that are not in the text, without regard to the whitespace around them. Others are
                thrown away, and so is what has no end, as the `note` of the result says. If they become very rare
                there are fewer than `num`, and the note says why.
            distance: throw away records that are within so many edits of a known one, too.
            known: the records that are not new; by default those of the texts that the run was trained and validated
                on, read again.
            logprobs: return ln p of each character, too.
            **options: the fields of `GenerationConfig`, apart from `num`.

        Raises:
            UsageError: when the model was not trained on records, there is no such label, or it is not known what is
                new.
            MissingExtraError: when `distance` is given and RapidFuzz is not installed.
            CorpusError: when the text of the run is gone or has changed.
        """
        config = GenerationConfig.of(config, {**options, "num": num})
        self._required_record_end()
        if not new and (distance is not None or known is not None):
            raise UsageError("distance and known belong to new=True")
        others = KnownRecords(self.known_records() if known is None else known, distance) if new else None
        search = self.search(config, others, prompt=prompt, label=label, logprobs=logprobs)
        found = Completions()
        while not search.done:
            found += search.advance()
        found.note = "; ".join(line for line in (search.report(), search.shortfall()) if line)
        return found

    def search(
        self,
        config: GenerationConfig,
        known: KnownRecords | None,
        *,
        prompt: str = "",
        label: str | None = None,
        guard: Guard | None = None,
        logprobs: bool = False,
    ) -> RecordSearch:
        """Start a search for `num` new records, or for any if none are known; it goes on step by step.

        Raises:
            UsageError: when the model was not trained on records, there is no such label, or the prompt ends a record.
        """
        self.opening(label=label)
        end = self._required_record_end()
        check_beginning(prompt, end)
        return RecordSearch(
            Session(self.engine, self.vocabulary),
            config,
            partial(self.opening, config.seed or 0, label=label),
            end,
            known,
            prompt=prompt,
            guard=guard,
            logprobs=logprobs,
        )

    def known_records(self) -> Iterable[str]:
        """Return the records of the text, which are not new.

        Raises:
            UsageError: when they are not known.
            CorpusError: when the text is gone or has changed.
        """
        if self._known_records is None:
            raise UsageError("which records are new? pass the others as known, or load the run with charwright.load")
        return self._known_records()

    def opening(self, seed: int = 0, stream: int = 0, *, label: str | None = None) -> Opening:
        """Return what is read before a prompt: for a model of records, the end of a record, and a label if it has any.

        Raises:
            UsageError: when there is no such label.
        """
        if self.vocabulary.labels and self.record_end is None:
            raise UsageError(
                "the model has labels, which come behind the end of a record: pass record_end, or open the run with"
                " charwright.load"
            )
        return self._openings.of(label, seed=seed, stream=stream)

    def stream(
        self,
        prompt: str = "",
        config: GenerationConfig | None = None,
        *,
        label: str | None = None,
        with_end: bool = False,
        **options: Any,
    ) -> Iterator[str]:
        """Generate one completion, and yield its text as it grows, a few characters at a time.

        `with_end` adds the end of the record, if the model has labels and the text ends with its record.

        Raises:
            UsageError: as for `generate`, or if `num` is not 1.
        """
        config = GenerationConfig.of(config, options)
        if config.num != 1:
            raise UsageError(f"stream generates one text; call it for each of the {config.num}, or use generate")
        for _, piece in self.write([prompt], config, label=label, with_end=with_end):
            yield piece

    def write(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        label: str | None = None,
        guard: Guard | None = None,
        with_end: bool = False,
    ) -> Iterator[tuple[int, str]]:
        """Yield (index of the prompt, piece of text) as the streams advance.

        A model of records reads the end of a record before each prompt, and others read a newline for an empty one;
        neither is part of the text. With a model that has labels, each text is one record with this `label`, or with
        one that is drawn.

        Raises:
            UsageError: if no character is allowed, or there is no such label.
        """
        _check_prompts(prompts)
        session = Session(self.engine, self.vocabulary)
        openings = [self.opening(config.seed or 0, index, label=label).ids for index in range(len(prompts))]
        numbers = {
            session.join(prompt, config, index, guard=guard, context=opening, record_end=self._last_end): index
            for index, (prompt, opening) in enumerate(zip(prompts, openings, strict=True))
        }
        while drafts := session.advance():
            for draft in drafts:
                piece = draft.pop() + (self.record_end or "" if with_end and draft.ended == "record" else "")
                if piece:
                    yield numbers[draft], piece

    def texts(
        self,
        prompts: Sequence[str],
        config: GenerationConfig,
        *,
        label: str | None = None,
        logprobs: bool = False,
        guard: Guard | None = None,
    ) -> Iterator[Completion]:
        """Complete all prompts in one batch. Yield completions in order, each as soon as those before it are done."""
        _check_prompts(prompts)
        session, drafts = Session(self.engine, self.vocabulary), []
        for index, prompt in enumerate(prompts):
            opening = self.opening(config.seed or 0, index, label=label)
            options: dict[str, Any] = {"guard": guard, "logprobs": logprobs, "record_end": self._last_end}
            draft = session.join(prompt, config, index, context=opening.ids, **options)
            drafts.append((draft, opening.label))
        for draft, name in drafts:
            while draft.ended is None:
                session.advance()
            yield finished(draft, logprobs=logprobs, label=name)

    def beam_search(
        self,
        prompt: str,
        config: GenerationConfig,
        beams: int,
        *,
        label: str | None = None,
        record_end: str | None = None,
    ) -> Completion:
        """Return the most likely completion that beam search finds. Temperature and seed have no effect.

        It has this label of the model, and ends before `record_end`, if they are given.

        Raises:
            UsageError: if no character is allowed, there is no such label, `beams` is less than 1, or an option of
                sampling is set.
        """
        check_options(config, beams)
        opening, record_end = self.opening(label=label), record_end or self._last_end
        found = beam_search(
            self.engine,
            self.vocabulary,
            prompt_ids(self.vocabulary, prompt, opening.ids),
            ~allowed(self.vocabulary, config, record_end),
            beams=beams,
            length=config.length,
            stop=config.stop,
            until=config.until,
            record_end=record_end,
        )
        scores = tuple(found.logprobs)
        return Completion(prompt, found.text, 0, 0, found.ended, found.stop, scores, opening.label, found.end_logprob)

    def logprobs(self, text: str) -> list[float]:
        """Return ln p of each character of `text` after the first, given those before it, from a zero state.

        A character outside the vocabulary has ln p([UNK]) - ln(1,114,112 - V), as everywhere.

        Raises:
            UsageError: if the text has fewer than two characters, or the model generates bytes.
        """
        if self.vocabulary.level != "character" or len(text) < 2:
            raise UsageError("log-probabilities need a text of at least two characters and a character-level model")
        ids = self.vocabulary.encode(text)
        unknown = ids[1:] == UNKNOWN_ID
        scores: list[float] = (self.engine.scores([ids])[0] - unknown * self.vocabulary.unknown_nats).tolist()
        return scores

    def score(
        self,
        text: str | Iterable[str] | Records,
        *,
        by: str | None = None,
        separator: str | None = None,
        independent: bool = False,
        warm_up: int = 0,
        label: str | None = None,
    ) -> Iterator[Score]:
        """Yield what each record of a text costs in bits, in order, with memory that does not grow with the text.

        (Where a regular expression ends the records of training, the whole text is read first.)

        The sum of the records' `bits` divided by that of their `chars` is what `evaluate` gives as bits per character,
        in the same precision; if the text is read along, for one of at most 1,048,576 characters.

        Args:
            text: the text, or pieces of it, or `Records`. Lines end at a newline, not at a carriage return.
            by: `line`, `blank` (records end at blank lines), `file` (the whole text), `character`, or `record`: as in
                training, each from a zero state after the end of another one. By default `record` for a model of
                records, otherwise `line`.
            separator: the text that ends a record, instead of `by`.
            independent: each record is read from a zero state, after a newline (or what ended each record in
                training), and all of its characters are predicted. Otherwise the text is read along, unless `by` is
                `record`: in blocks of 1,048,576 characters, each cut into streams as `evaluate` cuts a text; the first
                stream of a block continues the block before.
            warm_up: the ids before each stream that are read without being scored, so that it does not begin coldly.
            label: what is taken for the label of all records. By default the labels are read from their column, as in
                training.

        Raises:
            UsageError: when the options contradict each other, or the model has no such label.
            CorpusError: (while reading) when a record has no label.
        """
        return self.text_scores.of(
            text, by=by, separator=separator, independent=independent, warm_up=warm_up, label=label
        )

    @cached_property
    def text_scores(self) -> TextScores:
        """What `score` does, also for files in pieces."""
        return TextScores(self.engine, self.vocabulary, self._division, self.record_end)

    @cached_property
    def _openings(self) -> Openings:
        return Openings(self.engine, self.vocabulary, self.record_end)

    @property
    def _last_end(self) -> str | None:
        """What ends a text: the end of its record, if another one would need a label of its own."""
        return self.record_end if self.vocabulary.labels else None

    def _required_record_end(self) -> str:
        """What ends a record."""
        if self.record_end is None:
            raise UsageError("what ends a record? open a run that was trained on records with charwright.load")
        return self.record_end


def _check_prompts(prompts: Sequence[str]) -> None:
    if isinstance(prompts, str):
        raise UsageError("prompts are a list of str; for one prompt, pass a list of it")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UsageError(f"a prompt is a str, not {type(prompt).__name__}")
