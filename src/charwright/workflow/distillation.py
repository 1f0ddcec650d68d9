"""The runs from whose predictions a new run learns, and the text that it reads for that.

Beside the user's text, which teachers know by heart, they write a text of their own, and what they predict there tells
more about them. Both are read together, in parts that take turns: the user's text as often as it takes to be a fifth.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from charwright.arrays import Arrays, fingerprint
from charwright.config import TrainingConfig, VocabularyConfig
from charwright.data.records import Records
from charwright.data.split import split_text
from charwright.data.texts import Text, character_counts, ids_of, plain
from charwright.data.vocabulary import Ids, Vocabulary
from charwright.errors import CharwrightError, RunError, RunNotFoundError, StoppedError, UsageError
from charwright.model.compute import Compute
from charwright.model.language_model import LanguageModel
from charwright.planning.profile import TextProfile
from charwright.run import Run
from charwright.run_config import Teacher
from charwright.run_place import no_run_message
from charwright.schema import SEEDS
from charwright.training.distillation import Lessons, mean_predictions, taking_turns
from charwright.workflow.loading import generator_of
from charwright.workflow.texts import Texts

MOST_BYTES = 1 << 30  # of predictions: 2 for each token of the vocabulary at each token that is read
SHARE = 4  # The teachers write this many tokens for each one of the user's text that is read.
STREAMS = 64  # texts of each teacher
WRITTEN = 300_000
"""The tokens that teachers write, if nothing else is asked for."""
WRITING_MINUTES = 2.0  # In a shorter training they write fewer.
FORWARD = 0.35  # the time of a teacher's prediction, as a part of a training step of as many tokens
MOST_UNKNOWN = 0.05  # of the characters, where the teachers left out rare ones
NAMED = 10
"""Unknown characters that a message lists, at most."""


@dataclass(frozen=True)
class Teachers:
    """Trained runs with one vocabulary, and their weights."""

    runs: tuple[Run, ...]
    weights: tuple[Arrays, ...]

    @classmethod
    def of(cls, folders: Sequence[str | os.PathLike[str]], replaced: Path | None = None) -> Teachers:
        """Open the runs; `replaced` is the folder that will be replaced by the new run.

        Raises:
            RunError: (or a subclass) when there is no run in a folder, or it has no intact weights.
            UsageError: when a run has another vocabulary than the first, or was trained on records.
        """
        folders = [os.fspath(folder) for folder in folders]
        for path in map(Path, folders):
            if not (path / "config.json").is_file():
                raise RunNotFoundError(no_run_message(path))
        runs = tuple(Run.open(Path(folder).resolve()) for folder in folders)
        for number, (run, folder) in enumerate(zip(runs, folders, strict=True)):
            if run.folder in (earlier.folder for earlier in runs[:number]):
                raise UsageError(f"{folder} is named twice; each teacher counts once")
            if replaced is not None and run.lies_in(replaced):
                raise UsageError(f"--force would remove {folder}, which --teacher names; choose another --out")
            if run.config.recipe.records.records != "none":
                raise UsageError(f"{folder} was trained on records; --teacher takes runs that read running text")
            if run.vocabulary != runs[0].vocabulary:
                raise UsageError(
                    f"{folder} has another vocabulary than {folders[0]}; teachers are runs that learned from one text"
                )
        return cls(runs, tuple(run.weights() for run in runs))

    @classmethod
    def reopen(cls, run: Run) -> Teachers | None:
        """Open the teachers of a run, as they were when it was begun; None if it has none.

        Raises:
            RunError: when one is gone or has other weights now.
        """
        entries = run.config.teachers
        if not entries:
            return None
        try:
            found = cls.of([entry.folder for entry in entries])
        except CharwrightError as error:
            raise RunError(
                f"{run.folder} learns from {_listed(entries)}, which it needs to resume: {error.for_shell}"
            ) from error
        for entry, now in zip(entries, found.entries, strict=True):
            if entry != now:
                raise RunError(f"{entry.folder} has other weights than when {run.folder} began to learn from it")
        return found

    @property
    def entries(self) -> tuple[Teacher, ...]:
        """The records of the teachers in config.json."""
        pairs = zip(self.runs, self.weights, strict=True)
        return tuple(Teacher(str(run.folder), fingerprint(weights).hex()) for run, weights in pairs)

    @property
    def vocabulary_options(self) -> VocabularyConfig:
        """The options of their vocabulary."""
        return dataclasses.replace(self.runs[0].config.recipe.vocabulary, level=self.vocabulary.level)

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary of all of them, and of a run that learns from them."""
        return self.runs[0].vocabulary

    def check(self, texts: Texts) -> None:
        """Check that the teachers know the characters of the texts, and how they are read.

        Raises:
            UsageError: naming what they do not know.
        """
        if isinstance(texts.training, Records):
            raise UsageError("--teacher needs running text; leave out --records")
        if self.vocabulary.level == "character":
            self._check_known(character_counts(plain(texts.whole)))
        if len(ids_of(texts.training, self.vocabulary)) > self._most:
            raise UsageError(
                f"predictions of {len(self.vocabulary):,} tokens in {len(texts.training):,} characters take more than "
                f"{MOST_BYTES >> 20:,} MB; --teacher is for shorter texts"
            )

    def _check_known(self, counts: Counter[str]) -> None:
        """Check that the characters are known, or almost all where the teachers left out rare ones."""
        unknown = sorted(set(counts) - set(self.vocabulary.characters))
        share = sum(counts[character] for character in unknown) / max(1, counts.total())
        if unknown and (self.vocabulary_options.min_count == 1 or share > MOST_UNKNOWN):
            names = " ".join(c if c.isprintable() and not c.isspace() else repr(c) for c in unknown[:NAMED])
            raise UsageError(
                f"the text has {len(unknown):,} characters that {self.runs[0].folder} does not know: {names}"
                f"{' ...' if len(unknown) > NAMED else ''} ({share:.1%} of it)"
            )

    def notes(self, texts: Texts) -> list[str]:
        """What the user may not expect of the teachers of a run with these texts."""
        if texts.validation_corpus is not None:
            return []
        return [
            f"note: {run.folder} held out another part of this text, so it has seen some of what is held out now"
            for run in self.runs
            if run.config.sha256 == texts.corpus.sha256
            and split_text(texts.whole, run.config.recipe.split)[0] != texts.training
        ]

    def summary(self, training: TrainingConfig) -> str:
        """What they do, in a line."""
        count = len(self.runs)
        writing = " and in a text that they write" if written_tokens(training) else ""
        return f"{count} teacher{'' if count == 1 else 's'}: what they predict in the text{writing}"

    def profile(self, text: TextProfile, training: TrainingConfig) -> TextProfile:
        """What a plan has to know of a text that is read with theirs."""
        written, times = self._read(text.tokens, written_tokens(training))
        beside = written + (times - 1) * text.tokens
        return dataclasses.replace(text, beside=beside, once=round(FORWARD * len(self.runs) * (text.tokens + beside)))

    def lessons(
        self,
        training_text: Text,
        compute: Compute,
        training: TrainingConfig,
        should_stop: Callable[[], str | None] = lambda: None,
    ) -> Lessons:
        """The user's text and what the teachers write, with their mean predictions; a function of the seed.

        Raises:
            StoppedError: when `should_stop`, which is called now and then, returns a reason.
        """

        def check() -> None:
            if reason := should_stop():
                raise StoppedError(reason)

        own = np.asarray(ids_of(training_text, self.vocabulary)[:])
        written, times = self._read(len(own), written_tokens(training))
        pieces = self._write(written, training.seed, check)
        order = np.random.Generator(np.random.Philox(key=training.seed)).permutation(len(pieces))
        ids, mine = taking_turns(own, np.concatenate([pieces[index] for index in order]), times)
        models = [
            LanguageModel.from_arrays(run.model, weights, compute).eval()
            for run, weights in zip(self.runs, self.weights, strict=True)
        ]
        predictions = mean_predictions(models, ids, check)
        device = predictions.device
        return Lessons(torch.from_numpy(ids).to(device), predictions, torch.from_numpy(mine).to(device))

    @property
    def _most(self) -> int:
        """The tokens whose predictions fit into memory."""
        return MOST_BYTES // (2 * len(self.vocabulary))

    def _read(self, own: int, written: int) -> tuple[int, int]:
        """How much of `written` tokens the teachers write, and how often a pass reads the user's `own` tokens."""
        room = self._most * SHARE // (SHARE + 1)  # The rest is for the user's text, as often as it is read.
        written = max(0, min(written, room if own * SHARE <= room else self._most - own))
        return written, max(1, round(written / (SHARE * own)))

    def _write(self, tokens: int, seed: int, between: Callable[[], None]) -> list[Ids]:
        """What the teachers write, in pieces: the same on every machine, since 8-bit weights are.

        `between` is called after each teacher, and may raise.
        """
        length = tokens // (len(self.runs) * STREAMS)
        pieces = [np.zeros(0, dtype=np.int32)]
        for index, (run, weights) in enumerate(zip(self.runs, self.weights, strict=True)):
            if length:
                generator = generator_of(run, weights=weights)
                found = generator.generate(
                    [""] * STREAMS, length=length, temperature=1.0, seed=(seed * len(self.runs) + index) % SEEDS
                )
                pieces += [self.vocabulary.encode(completion.continuation) for completion in found]
                between()
        return pieces


def written_tokens(training: TrainingConfig) -> int:
    """How much teachers are to write."""
    if training.written is not None:
        return training.written
    return WRITTEN if training.minutes is None else round(WRITTEN * min(1.0, training.minutes / WRITING_MINUTES))


def _listed(entries: Sequence[Teacher]) -> str:
    return ", ".join(entry.folder for entry in entries)
