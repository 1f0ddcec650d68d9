"""What the library does not have, tried on small texts: distillation of several models into one, and noisy inputs.

    python experiments/small_texts.py --corpus docs-20k,code-20k --minutes 0.5 --teachers 2 units=256 dropout=0.39
    python experiments/small_texts.py --corpus docs-20k,code-20k --minutes 0.5 --input-dropout 0.1 units=256 dropout=0.5

The first trains teachers that differ in their seed, and a student on their mean prediction (Hinton et al., 2015), each
for an equal number of steps; the student's time for the teachers' predictions counts too. The second replaces random
input characters by others of the batch (Xie et al., 2017). Compare either with a trial of sweep.py of as many minutes,
whose protocol it has. A line for each text is added to small_texts.jsonl.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import charwright as cw
from charwright.evaluation.in_memory import evaluate_string
from charwright.evaluation.readers import ModelReader
from charwright.model.cells import State
from charwright.training.batch import Batch, TrainStep
from sweep import Trained, run_trial, value_of

Array = npt.NDArray[Any]
LEDGER = Path(__file__).with_name("small_texts.jsonl")
SOFT = 0.7  # the teachers' part of the student's target; the rest is the character of the text
FORWARD = 0.3  # the time of a teacher's prediction, as a part of a training step


def learning_from(teachers: Sequence[cw.LanguageModel]) -> TrainStep:
    """A training step towards the mean prediction of the teachers, which carry states of their own."""
    states: list[State | None] = [None] * len(teachers)

    def step(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        wanted = torch.zeros(())
        with torch.no_grad():
            for i, teacher in enumerate(teachers):
                logits, states[i] = teacher(batch.inputs, _restarted(states[i], batch.state))
                wanted = wanted + logits.softmax(-1) * (SOFT / len(teachers))
            wanted.scatter_add_(-1, batch.targets[..., None], torch.full_like(wanted[..., :1], 1 - SOFT))
        logits, state = model(batch.inputs, batch.state, generator=batch.generator)
        loss = -(wanted * logits.log_softmax(-1)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        batch.state = tuple(part.detach() for part in state)
        return loss.detach()

    return step


def _restarted(teacher: State | None, student: State | None) -> State | None:
    """The teacher's state, where the student's is not a fresh start."""
    if teacher is None or student is None:
        return None
    continues = (student[0].abs().sum(-1, keepdim=True) > 0).float().amax(0)
    return tuple(part * continues for part in teacher)


def ensemble_loss(trained: Sequence[Trained]) -> float:
    """The carried loss of the mean prediction of several models."""

    def nats(inputs: Array, targets: Array) -> Array:
        each = [np.exp(-ModelReader(one.model).target_nats(inputs, targets).astype(np.float64)) for one in trained]
        return -np.log(np.mean(each, axis=0))

    first = trained[0]
    return evaluate_string(nats, first.vocabulary, first.held_out).nats_per_char


def noisy(rate: float) -> TrainStep:
    """The library's training step on inputs of which some are replaced by others of the batch."""

    def step(model: cw.LanguageModel, batch: Batch, optimizer: torch.optim.Optimizer) -> Tensor:
        ids, generator = batch.inputs, batch.generator
        replaced = torch.rand(ids.shape, generator=generator) < rate
        others = ids.flatten()[torch.randint(ids.numel(), (ids.numel(),), generator=generator)].view_as(ids)
        batch.inputs = torch.where(replaced, others, ids)
        return cw.train_step(model, batch, optimizer)

    return step


def run(corpus: str, minutes: float, options: dict[str, Any], count: int, rate: float) -> dict[str, Any]:
    """Train with noisy inputs, or the teachers and the student; returns the line for the ledger."""
    known = {"corpus": corpus, "minutes": minutes, "options": options}
    if not count:
        line = run_trial(corpus, minutes, options, noisy(rate)).line
        return {**known, "input_dropout": rate, **_figures(line)}
    share = minutes / (count + 1 + count * FORWARD)
    teachers = [run_trial(corpus, share, {**options, "seed": seed}) for seed in range(1, count + 1)]
    step = learning_from([teacher.model.eval() for teacher in teachers])
    student = run_trial(corpus, share, {**options, "seed": count + 1}, step).line
    losses = [teacher.line["carried"] for teacher in teachers]
    return {**known, "teachers": losses, "ensemble": round(ensemble_loss(teachers), 4), **_figures(student)}


def _figures(line: dict[str, Any]) -> dict[str, Any]:
    return {name: line[name] for name in ("steps", "passes", "train", "carried", "windows", "curve")}


def main() -> None:
    """Run a trial for each text, and add its line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", required=True, help="names from corpora.py, separated by commas")
    parser.add_argument("--minutes", type=float, required=True, help="the budget, of teachers and student together")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--teachers", type=int, default=0, help="number of teachers")
    kind.add_argument("--input-dropout", type=float, default=0.0, help="share of replaced input characters")
    parser.add_argument("options", nargs="*", metavar="OPTION=VALUE")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    options = {name: value_of(value) for name, _, value in (item.partition("=") for item in asked.options)}
    for corpus in asked.corpus.split(","):
        line = run(corpus, asked.minutes, options, asked.teachers, asked.input_dropout)
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
