"""One trial of a search: a model trained for a few minutes and evaluated, or pruned on the way."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from charwright.config import Recipe
from charwright.data.records import Records
from charwright.data.short_texts import shrink_to_fit
from charwright.data.texts import Text, ids_of, in_memory
from charwright.data.vocabulary import Vocabulary
from charwright.errors import CorpusError, DamagedRunError, DivergedError, UsageError, is_out_of_memory
from charwright.evaluation.evaluate import evaluate_text
from charwright.evaluation.readers import ModelReader
from charwright.model.compute import Compute
from charwright.training.events import End, Event, Validation
from charwright.training.loop import fit
from charwright.workflow.assembly import assemble

MARKS = (0.3, 0.5, 0.7)
"""Fractions of the budget at which trials are compared. The learning rate falls over the whole budget, so losses are
comparable only at the same fraction."""

PROBE_PIECES = 64
PROBE_LENGTH = 300
PROBE_RECORDS = 1000


@dataclass(frozen=True)
class Task:
    """What all trials of a search share: the texts, the minutes of each trial, and how it computes."""

    vocabulary: Vocabulary
    training_text: Text
    validation_text: Text
    minutes: float
    compute: Compute

    def check(self) -> None:
        """Check that there is enough text to train and validate on.

        Raises:
            UsageError: when there is no validation text.
            CorpusError: when the text is too short.
        """
        shrink_to_fit(len(ids_of(self.training_text, self.vocabulary)), Recipe().sequences)
        if not self.validation_text:
            raise UsageError(
                "a search needs validation text: a longer text, a --val-fraction above 0, or --validation TEXT"
            )
        if len(self.validation_text) < 2:
            raise CorpusError("the validation text has fewer than two characters")


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    `kind` is complete, pruned (others were better at the same fraction of the budget), failed or stopped (by a signal:
    it does not count). `loss` is the carried loss on the whole validation text in nats per character; for a pruned
    trial, the last one seen, on a part of the text. `seconds` is everything it took.
    """

    kind: str
    loss: float | None = None
    fraction: float = 0.0
    steps: int = 0
    seconds: float = 0.0
    chars_per_s: float = 0.0
    parameters: int = 0
    why: str = ""

    @classmethod
    def from_json(cls, values: Any, where: str) -> Outcome:
        """Read what `vars` returned; `where` names the search.

        Raises:
            DamagedRunError: when the values are anything else.
        """
        try:
            outcome = cls(**values)
        except TypeError as error:
            raise DamagedRunError(f"{where} is damaged: the outcome of a trial has other keys") from error
        numbers = (outcome.fraction, outcome.steps, outcome.seconds, outcome.chars_per_s, outcome.parameters)
        loss = 0.0 if outcome.loss is None else outcome.loss
        typed = all(type(number) in {int, float} and math.isfinite(number) for number in numbers)
        if not (typed and type(loss) in {int, float} and type(outcome.kind) is type(outcome.why) is str):
            raise DamagedRunError(f"{where} is damaged: the outcome of a trial has a value of another type")
        return outcome


ShouldPrune = Callable[[int, float], bool]
"""Given the number of a mark and the loss there, decides whether to prune the trial."""


def run_trial(
    task: Task,
    recipe: Recipe,
    should_prune: ShouldPrune,
    *,
    should_stop: Callable[[], str | None] = lambda: None,
    on_event: Callable[[Event], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train by `recipe` for the minutes of the task, and evaluate the weights that `train` would keep.

    Args:
        task: what all trials share.
        recipe: the options of this trial; its budget is ignored.
        should_prune: called at each of `MARKS`.
        should_stop: called after each step; with a reason, the trial is `stopped`.
        on_event: called with each event of the training.
        clock: a monotonic clock, in seconds.

    A model that diverges or does not fit into memory makes a failed trial, not an error.
    """
    began = clock()
    try:
        outcome = _Training(task, recipe, should_prune, should_stop, on_event, clock).outcome()
    except DivergedError:
        outcome = Outcome("failed", why="it diverged")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        outcome = Outcome("failed", why="not enough memory")
    return dataclasses.replace(outcome, seconds=clock() - began)


class _Training:
    """The training of one trial."""

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        should_prune: ShouldPrune,
        should_stop: Callable[[], str | None],
        on_event: Callable[[Event], None],
        clock: Callable[[], float],
    ) -> None:
        self.task, self.clock = task, clock
        self.should_prune, self.should_stop, self.on_event = should_prune, should_stop, on_event
        # Only the minutes end a trial: one that stopped at a target could not be compared with others.
        budget = {"epochs": None, "steps": None, "minutes": task.minutes, "target_loss": None, "patience": None}
        self.recipe = recipe.with_options(budget)
        self.probe, self.protocol = probe(task.validation_text)
        self.curve = LossCurve()
        self.pruned = False

    def outcome(self) -> Outcome:
        """Train, and evaluate the best weights."""
        task = self.task
        assembly = assemble(self.recipe, task.vocabulary, task.training_text, task.compute)
        model, dataset = assembly.model, assembly.dataset
        best, seen, end = model.arrays(), None, None
        for event in fit(
            model,
            dataset,
            self.recipe.training,
            validate=lambda model: evaluate_text(ModelReader(model), task.vocabulary, self.probe, self.protocol),
            should_stop=lambda: "pruned" if self.pruned else self.should_stop(),
            clock=self.clock,
        ):
            self.on_event(event)
            if isinstance(event, Validation) and event.validation_loss is not None:
                seen = event.validation_loss
                if event.best:  # During this event the model holds the EMA of its weights.
                    best = model.arrays()
                self._compare(event.time_s / (task.minutes * 60), seen)
            if isinstance(event, End):
                end = event
        assert end is not None
        outcome = Outcome(
            "complete",
            seen,
            min(1.0, end.time_s / (task.minutes * 60)),
            steps=end.step,
            chars_per_s=end.step * dataset.batch * dataset.seq_length / max(end.time_s, 1e-9),
            parameters=sum(weight.numel() for weight in model.parameters()),
        )
        if end.reason != "done":
            return dataclasses.replace(outcome, kind="pruned" if self.pruned else "stopped")
        model.load_arrays(best)
        loss = evaluate_text(ModelReader(model), task.vocabulary, task.validation_text).nats_per_char
        return dataclasses.replace(outcome, loss=loss)

    def _compare(self, fraction: float, loss: float) -> None:
        """Prune the trial if its loss is hopeless at a mark that has just been passed."""
        for number, passed in self.curve.passed(fraction, loss):
            self.pruned = self.pruned or self.should_prune(number, passed)


class LossCurve:
    """The losses of a trial by the fraction of its budget, interpolated at the marks."""

    def __init__(self) -> None:
        """Start without a loss."""
        self._last: tuple[float, float] | None = None
        self._next = 0

    def passed(self, fraction: float, loss: float) -> list[tuple[int, float]]:
        """Add a loss; returns each mark between it and the previous one, with the loss there.

        Trials are validated when the clock allows, not at the marks, so the loss is interpolated linearly. A mark
        before the first loss is skipped.
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


def probe(text: Text) -> tuple[Text, str]:
    """A part of a validation text and the protocol for it: enough to compare trials, at little cost.

    Many short pieces in one batch are fast even for a large model, since they take few steps. They are spread evenly
    over the text. A text of a few pieces is used as a whole. Of records, a few are used, spread evenly too.
    """
    if isinstance(text, Records):
        count = min(text.count, PROBE_RECORDS)
        return text.chosen(np.arange(count) * text.count // count), "records"
    if len(text) <= 2 * PROBE_LENGTH:
        return in_memory(text), "carried"
    protocol = f"windows-{PROBE_LENGTH}"
    if len(text) <= PROBE_PIECES * PROBE_LENGTH:
        return in_memory(text), protocol
    begins = [(len(text) - PROBE_LENGTH) * piece // (PROBE_PIECES - 1) for piece in range(PROBE_PIECES)]
    # One more character is the target of the last one.
    return "".join(text[begin : begin + PROBE_LENGTH] for begin in begins) + text[len(text) - 1 :], protocol
