"""The learning curve of a run, read from its log."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright import locks
from charwright.errors import RunError, RunLockedError
from charwright.run import Run

Floats = npt.NDArray[np.float64]

AXES = {"minutes": "minutes of training", "characters": "characters read", "epochs": "epochs", "steps": "steps"}
"""What the horizontal axis may count, and its label."""


@dataclass(frozen=True)
class Line:
    """The losses (N,) at N points of a training run, in nats per character, over each of the axes (N,)."""

    at: Mapping[str, Floats]
    nats: Floats

    def __len__(self) -> int:
        return len(self.nats)


@dataclass(frozen=True)
class Curve:
    """The losses of one run. `notes` say what a reader should know about them, a line each."""

    name: str
    seed: int
    identity: str
    """What runs have in common that differ only in their seed."""
    training: Line
    validation: Line
    notes: tuple[str, ...] = field(default=())

    @property
    def best(self) -> int:
        """The index of the lowest validation loss, or of the lowest training loss if there is no validation."""
        return int(np.argmin(self.judged.nats))

    @property
    def judged(self) -> Line:
        """The losses by which the run is judged: of the validation if there are any."""
        return self.validation if len(self.validation) else self.training


def read_curve(folder: str | os.PathLike[str]) -> Curve:
    """Read the curve of a run.

    Raises:
        RunError: (or a subclass) when there is no run, a file of it is damaged, or nothing is logged yet.
    """
    run = Run.open(folder)
    notes: list[str] = []
    name = os.fspath(folder).rstrip("/\\") or os.fspath(folder)
    points, resumed, ended = _points(run)
    if not points:
        if _is_training(run):
            raise RunError(f"{name} is training and has no losses yet")
        if not any(True for _ in run.log()):
            raise RunError(f"{name} has no log of its training, so there is nothing to plot")
        raise RunError(f"{name} has no losses yet")
    if resumed:
        steps = f"step{'s' * (len(resumed) > 1)} {', '.join(f'{step:,}' for step in resumed)}"
        notes.append(f"{name} was resumed at {steps}")
    if not ended:
        notes.append(
            f"{name} is still training" if _is_training(run) else f"{name} was interrupted: its log has no end"
        )
    per_token = _characters_per_token(run)
    training = [point for point in points if per_token is not None and _is_number(point.get("train_loss"))]
    validation = [point for point in points if _is_number(point.get("validation_loss"))]
    if not validation:
        notes.append(f"{name} has no validation: its curve is the training loss")
    if per_token is None:
        notes.append(f"{name} predicts bytes, and how many there are per character is not recorded: no training loss")
    if not validation and not training:
        raise RunError(f"{name} has no loss per character")
    characters = per_token or 1.0
    return Curve(
        name,
        run.config.recipe.training.seed,
        _identity(run),
        _line(training, "train_loss", characters, per=characters),
        _line(validation, "validation_loss", characters, per=1.0),
        tuple(notes),
    )


def _points(run: Run) -> tuple[list[dict[str, Any]], list[int], bool]:
    """The measured points of a log in the order of their steps, the steps of its resumes, and whether it has ended.

    A resume that trained nothing, as one without a larger budget, is left out.
    What was measured before a resume or a rollback, at a later step than that of its start, is left out.
    """
    found: dict[int, dict[str, Any]] = {}
    steps: dict[int, dict[str, Any]] = {}
    resumed, begun, ended, layout = [], None, False, _layout(run)
    for event in run.log():
        kind, step = event.get("event"), event.get("step")
        if type(step) is not int:
            continue
        if kind in ("start", "resume"):
            layout = {key: event.get(key, value) for key, value in layout.items()}
        if kind in ("start", "resume", "rollback"):
            for points in (found, steps):
                for later in [at for at in points if at > step]:
                    del points[later]
        if kind == "resume":
            begun = step
        elif begun is not None and step > begun:
            resumed.append(begun)
            begun = None
        losses = (event.get("train_loss"), event.get("validation_loss"))
        if kind in ("epoch", "validation") and any(map(_is_number, losses)):
            found[step] = layout | event
        if kind == "step" and _is_number(event.get("loss")):
            steps[step] = layout | event | {"train_loss": event["loss"]}
        ended = kind == "end"
    chosen = found or steps  # Before its first validation a run has only the losses of its steps.
    return [chosen[step] for step in sorted(chosen)], resumed, ended


def _layout(run: Run) -> dict[str, Any]:
    """What the log says at each start, from the configuration."""
    sequences = run.config.recipe.sequences
    return {"batch": sequences.batch, "seq_length": sequences.seq_length, "steps_per_epoch": None}


def _line(points: list[dict[str, Any]], key: str, characters: float, per: float) -> Line:
    """The losses of some points, divided by `per`; a token is so many characters."""
    steps = np.array([point["step"] for point in points], dtype=np.float64)
    tokens = np.array([point["step"] * point["batch"] * point["seq_length"] for point in points], dtype=np.float64)
    epochs = [_epochs(point) for point in points]
    minutes = np.array([_number(point.get("time_s")) / 60 for point in points], dtype=np.float64)
    nats = np.array([point[key] for point in points], dtype=np.float64)
    at = {
        "minutes": minutes,
        "characters": tokens * characters,
        "epochs": np.array(epochs, dtype=np.float64),
        "steps": steps,
    }
    return Line(at, nats / per)


def _epochs(point: Mapping[str, Any]) -> float:
    per_epoch = _number(point.get("steps_per_epoch"))
    return point["step"] / per_epoch if per_epoch > 0 else _number(point.get("epoch"))


def _characters_per_token(run: Run) -> float | None:
    """1 for a model of characters; for one of bytes, as the plan has it, or None."""
    if run.vocabulary.level == "character":
        return 1.0
    plan = run.config.plan or {}
    characters, tokens = _number(plan.get("characters")), _number(plan.get("tokens"))
    return characters / tokens if characters > 0 and tokens > 0 else None


def _identity(run: Run) -> str:
    recipe = run.config.recipe.to_json()
    recipe["training"] = {key: value for key, value in recipe["training"].items() if key != "seed"}
    parent = run.config.parent.folder if run.config.parent else None
    return json.dumps([recipe, run.config.sha256, parent], sort_keys=True)


def _is_training(run: Run) -> bool:
    try:
        locks.check_free(run.folder)
    except RunLockedError:
        return True
    return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float:
    return float(value) if _is_number(value) else math.nan
