"""What `charwright generate` works with: a run, its generator, and what only some options need."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from charwright.config import GenerationConfig

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.generation.draft import Draft, Guard
    from charwright.generation.generator import Generator
    from charwright.generation.record_search import RecordSearch
    from charwright.generation.session import Session
    from charwright.run import Run

MANY = 64
"""Records that are printed as they grow, at most."""


class Work:
    """A run and its generator; loads what only some options need on demand."""

    def __init__(
        self,
        run: Run,
        precision: str,
        threads: int | None,
        corpus: Sequence[str],
        state_in: Path | None,
        label: str | None,
        *,
        explicit: bool,
    ) -> None:
        from charwright.generation.paused import paused_precision
        from charwright.workflow.loading import generator_of

        self._run, self._corpus, self._state_in, self._label = run, corpus, state_in, label
        if state_in is not None and not explicit:
            precision = paused_precision(state_in)
        self._precision, self._threads = precision, threads
        self._weights = run.weights()  # Once: a training run may write others at any time.
        self.generator: Generator = generator_of(run, precision, threads=threads, weights=self._weights)
        self.generator.opening(label=label)  # An unknown label is refused before a prompt is read.
        self._text: Text | None = None

    def adapt_to(self, prompt: str) -> None:
        """Let the model adapt to the prompt."""
        from charwright.cli.download import user_places
        from charwright.workflow.loading import adapted_weights, generator_of

        weights = adapted_weights(self._run, prompt, self._corpus, user_places())
        self.generator = generator_of(self._run, self._precision, threads=self._threads, weights=weights)

    def training_text(self) -> Text:
        """The text that the run was trained on, read again."""
        if self._text is None:
            from charwright.cli.corpora import training_text

            self._text = training_text(self._run, self._corpus)
        return self._text

    def begin(
        self, prompt: str, config: GenerationConfig, *, logprobs: bool, exact: bool
    ) -> tuple[Session, list[Draft], list[str | None]]:
        """Start a session and join its texts, whose labels are the last of the three."""
        from charwright.arrays import fingerprint
        from charwright.generation.paused import read_paused
        from charwright.generation.session import Session

        writer = self.generator
        session = Session(writer.engine, writer.vocabulary, one_by_one=exact)
        join = partial(session.join, prompt, config, guard=self._guard(config), logprobs=logprobs)
        if self._state_in is not None:
            starts = read_paused(self._state_in, writer.engine, fingerprint(self._weights))
            drafts = [join(index, start=start, record_end=writer.record_end) for index, start in enumerate(starts)]
            return session, drafts, [None] * len(drafts)
        openings = [writer.opening(config.seed or 0, index, label=self._label) for index in range(config.num)]
        drafts = [
            join(index, context=opening.ids, record_end=writer.record_end) for index, opening in enumerate(openings)
        ]
        return session, drafts, [opening.label for opening in openings]

    def many_records(self, num: int, *, novelty: bool, paused: bool) -> bool:
        """Whether so many records are wanted that they are printed one by one, and not as they grow."""
        plain = self._state_in is None and not novelty and not paused
        return self.generator.record_end is not None and num > MANY and plain

    def search(
        self,
        prompt: str,
        config: GenerationConfig,
        *,
        new: bool,
        distance: int | None,
        further: Sequence[str],
        logprobs: bool,
    ) -> RecordSearch:
        """Start a search for records, or for new ones, after reading those of the text and of further files."""
        from charwright.cli.download import user_places
        from charwright.generation.known_records import KnownRecords
        from charwright.workflow.loading import known_records

        known = None
        if new:
            known = KnownRecords(known_records(self._run, self._corpus, user_places(), further), distance)
        return self.generator.search(
            config, known, prompt=prompt, label=self._label, guard=self._guard(config), logprobs=logprobs
        )

    def _guard(self, config: GenerationConfig) -> Guard | None:
        if config.max_copy is None:
            return None
        from charwright.data.texts import ids_of
        from charwright.generation.novelty import CopyGuard

        vocabulary = self.generator.vocabulary
        return CopyGuard(ids_of(self.training_text(), vocabulary), len(vocabulary), config.max_copy).forbidden

    def save(self, path: Path, drafts: Sequence[Draft]) -> None:
        """Write the file that --state-in reads."""
        from charwright.arrays import fingerprint
        from charwright.generation.paused import write_paused

        drawn = [draft.paused() for draft in drafts]
        write_paused(path, self.generator.engine, fingerprint(self._weights), drawn)
