"""One trial of a search: a model trained for a few minutes and measured, or given up on the way."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from charwright.config import Recipe
from charwright.data.sequences import Dataset, make_dataset, shrink_to_fit
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DivergedError, UsageError
from charwright.evaluate import evaluate
from charwright.model.language_model import LanguageModel
from charwright.model.machine import choose_precision
from charwright.training.events import End, Event, Validation
from charwright.training.loop import fit

MARKS = (0.3, 0.5, 0.7)
"""Shares of the budget at which trials are compared. The learning rate falls over the whole of it, so that two losses
say something about each other at the same share alone."""

PROBE_PIECES = 64
PROBE_LENGTH = 300


@dataclass(frozen=True)
class Task:
    """What all trials of a search have in common: the text, the minutes of each, and where it is computed."""

    vocabulary: Vocabulary
    training_text: str
    validation_text: str
    minutes: float
    device: torch.device
    core: str = "auto"

    def check(self) -> None:
        """See that there is enough text to learn and to measure, before anything is begun.

        Raises:
            UsageError: when nothing is kept to measure on.
            CorpusError: when the text is too short.
        """
        shrink_to_fit(len(self.vocabulary.encode(self.training_text)), Recipe().sequences)
        if not self.validation_text:
            raise UsageError("a search needs a text to measure on: a --val-fraction above 0, or --validation TEXT")
        if len(self.validation_text) < 2:
            raise CorpusError("the text to measure on has fewer than two characters")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    `kind` is complete, pruned (given up because others were better at the same share of the budget), failed or stopped
    (by a signal: it does not count). `loss` is that of the whole validation text in nats per character, carried; that
    of a trial which was given up is the last one that was seen, on a part of the text. `seconds` is all that it took.
    """

    kind: str
    loss: float | None = None
    fraction: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    chars_per_s: float = 0.0
    parameters: int = 0
    why: str = ""


Hopeless = Callable[[int, float], bool]
"""Told the number of a mark and the loss there, says whether to give the trial up."""


def run_trial(
    task: Task,
    recipe: Recipe,
    hopeless: Hopeless,
    *,
    should_stop: Callable[[], str | None] = lambda: None,
    listen: Callable[[Event], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Train by `recipe` for the minutes of the task and measure what `train` would keep.

    Args:
        task: what all trials share.
        recipe: the options of this one; its budget does not count.
        hopeless: asked at each of `MARKS`.
        should_stop: asked after each step; with a reason, the trial is `stopped`.
        listen: told each event of the training.
        clock: seconds from anywhere.

    A model that diverges, or for which there is not enough memory, makes a failed trial and no error.
    """
    began = clock()
    try:
        outcome = _Training(task, recipe, hopeless, should_stop, listen, clock).outcome()
    except DivergedError:
        outcome = Outcome("failed", why="it diverged")
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        outcome = Outcome("failed", why="not enough memory")
    return dataclasses.replace(outcome, seconds=clock() - began)


def _out_of_memory(error: MemoryError | RuntimeError) -> bool:
    # PyTorch has an error of its own for accelerators, and none for the memory of the CPU.
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or "can't allocate memory" in str(error) or "not enough memory" in str(error)


class _Training:
    """The training of one trial, and what is noticed of it."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        hopeless: Hopeless,
        should_stop: Callable[[], str | None],
        listen: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.task, self.hopeless, self.should_stop, self.listen, self.clock = task, hopeless, should_stop, listen, clock
        # Only the minutes end a trial: one that stopped at a target would be no better than those behind it.
        budget = {"epochs": None, "steps": None, "minutes": task.minutes, "target_loss": None, "patience": None}
        self.recipe = recipe.with_options(budget)
        self.probe, self.protocol = probe(task.validation_text)
        self.curve = Curve()
        self.given_up = False

    def outcome(self) -> Outcome:
        """Train, and measure the weights that were the best on the way."""
        task, model, dataset = self.task, *self._built()
        best, seen, end = model.arrays(), None, None
        for event in self._events(model, dataset):
            self.listen(event)
            if isinstance(event, Validation) and event.validation_loss is not None:
                seen = event.validation_loss
                if event.best:  # The model holds its averaged weights as long as this event is looked at.
                    best = model.arrays()
                self._compare(event.time_s / (task.minutes * 60), seen)
            if isinstance(event, End):
                end = event
        assert end is not None
        told = Outcome(
            "complete",
            seen,
            min(1.0, end.time_s / (task.minutes * 60)),
            steps=end.step,
            chars_per_s=end.step * dataset.batch * dataset.seq_length / max(end.time_s, 1e-9),
            parameters=sum(weight.numel() for weight in model.parameters()),
        )
        if end.reason != "done":
            return dataclasses.replace(told, kind="pruned" if self.given_up else "stopped")
        model.load_arrays(best)
        return dataclasses.replace(told, loss=evaluate(model, task.vocabulary, task.validation_text).nats_per_char)

    def _built(self) -> tuple[LanguageModel, Dataset]:
        """The model and its batches, from the same seed in all trials."""
        task, training = self.task, self.recipe.training
        ids = task.vocabulary.encode(task.training_text)
        sequences, _ = shrink_to_fit(len(ids), self.recipe.sequences)
        model = LanguageModel(
            self.recipe.model,
            len(task.vocabulary),
            seed=training.seed,
            embedding_range=training.embedding_range,
            precision=choose_precision(training.precision, task.device),
            core=task.core,
        )
        return model.to(task.device), make_dataset(ids, sequences, training.seed)

    def _events(self, model: LanguageModel, dataset: Dataset) -> Iterator[Event]:
        return fit(
            model,
            dataset,
            self.recipe.training,
            validate=lambda model: evaluate(model, self.task.vocabulary, self.probe, self.protocol),
            should_stop=lambda: "given up" if self.given_up else self.should_stop(),
            clock=self.clock,
        )

    def _compare(self, fraction: float, loss: float) -> None:
        """Give up if the loss is hopeless at one of the marks that have just been passed."""
        for number, passed in self.curve.passed(fraction, loss):
            self.given_up = self.given_up or self.hopeless(number, passed)


class Curve:
    """The losses of a trial by the share of its budget, of which the values at the marks are asked."""

    def __init__(self) -> None:
        """Nothing is measured yet."""
        self._last: tuple[float, float] | None = None
        self._next = 0

    def passed(self, fraction: float, loss: float) -> list[tuple[int, float]]:
        """Take one more loss: the marks that lie between it and the one before, each with the loss there.

        That is on a straight line between the two; trials are measured when the clock lets them, not at the marks. A
        mark before the first loss is passed over, for nothing is known of it.
        """
        found = []
        before, above = self._last or (fraction, loss)
        while self._next < len(MARKS) and MARKS[self._next] <= fraction:
            if (mark := MARKS[self._next]) >= before:
                share = (mark - before) / (fraction - before) if fraction > before else 1.0
                found.append((self._next, above + share * (loss - above)))
            self._next += 1
        self._last = fraction, loss
        return found


def probe(text: str) -> tuple[str, str]:
    """A part of a validation text, and how to measure it: enough to see how a trial goes, soon and at little cost.

    Many short pieces at once are quick even for a large model: it has few steps to take, and wide ones. They are spread
    evenly over the text. A text that is no longer than a few of them is measured as it is.
    """
    if len(text) <= 2 * PROBE_LENGTH:
        return text, "carried"
    protocol = f"windows-{PROBE_LENGTH}"
    if len(text) <= PROBE_PIECES * PROBE_LENGTH:
        return text, protocol
    begins = [(len(text) - PROBE_LENGTH) * piece // (PROBE_PIECES - 1) for piece in range(PROBE_PIECES)]
    # One more character, for the last piece has to be predicted to its end too.
    return "".join(text[begin : begin + PROBE_LENGTH] for begin in begins) + text[-1], protocol
