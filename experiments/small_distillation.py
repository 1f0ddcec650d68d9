"""Several models of a small text, and one that learns from what they predict there and in a text that they write.

    python experiments/small_distillation.py --texts code:20000:0,plays:20000:0 --teachers 4 --passes 200 \
        --written 300000 1000000

A text is a kind, a number of characters and where they begin. A fifth of it is held out, in blocks. The teachers differ
in their seed and have the plan of small_schedules.py; each keeps its best weights. Their mean prediction is evaluated,
and then a student for each number of written tokens, which trains on as many characters as 400 passes over the text.
With --written 0 it learns from the predictions in the text alone. A line for each student is added to
small_distillation.jsonl.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import charwright as cw
from charwright.evaluation.in_memory import evaluate_string
from charwright.evaluation.readers import ModelReader
from charwright.training.batch import make_batch
from charwright.training.distillation import Lessons, mean_predictions, taking_turns
from charwright.training.optimizer import clipped_gradients, set_learning_rate
from small_schedules import Trial

Array = npt.NDArray[Any]
LEDGER = Path(__file__).with_name("small_distillation.jsonl")
LIGHT = {"dropout": 0.1, "recurrent_dropout": 0.1, "weight_decay": 0.2}
"""The regularization of a student that reads much."""
STUDENT_PASSES = 400
STREAMS = 64
SHARE = 4
POINTS = 16


class Teacher(Trial):
    """A trial whose model keeps its best weights."""

    def learn(self, points: int) -> float:
        """Train; returns the lowest loss."""
        lowest, best = math.inf, self.model.arrays()
        with clipped_gradients(self.model, self.optimizer, self.settings.clip_norm):
            for mark in sorted({max(1, self.steps * i // points) for i in range(1, points + 1)}):
                self._train(self._factor, mark)
                loss = self.evaluate()[0]
                if loss < lowest:
                    with self.averages[0].applied():
                        lowest, best = loss, {name: array.copy() for name, array in self.model.arrays().items()}
        self.model.load_arrays(best)
        self.model.eval()
        return lowest


class Student(Trial):
    """A trial that learns from lessons."""

    def learn(self, lessons: Lessons, points: int) -> list[tuple[float, float]]:
        """Train; returns the passes and the losses at some points."""
        dataset, _ = lessons.dataset(self.sequences, self.settings.seed)
        marks = {max(1, self.steps * i // points) for i in range(1, points + 1)}
        curve = []
        with clipped_gradients(self.model, self.optimizer, self.settings.clip_norm):
            while self.step < self.steps:
                for pair in dataset.batches(*divmod(self.step, dataset.steps_per_epoch)):
                    set_learning_rate(self.optimizer, self._factor(self.step))
                    batch = make_batch(pair, self.hidden, self.settings, self.step, torch.device("cpu"))
                    self.model.train()
                    lessons.step(self.model, batch, self.optimizer)
                    self.hidden = batch.state
                    self.step += 1
                    for average in self.averages:
                        average.update(self.step)
                    if self.step in marks:
                        curve.append((self.passes, self.evaluate()[0]))
                    if self.step == self.steps:
                        break
        return curve


def ensemble_loss(teachers: Sequence[Trial]) -> float:
    """The loss of the mean prediction."""

    def nats(inputs: Array, targets: Array) -> Array:
        each = [
            np.exp(-ModelReader(teacher.model).target_nats(inputs, targets).astype(np.float64)) for teacher in teachers
        ]
        return -np.log(np.mean(each, axis=0))

    first = teachers[0]
    return round(evaluate_string(nats, first.vocabulary, first.held_out).nats_per_char, 4)


def lessons_of(teachers: Sequence[Trial], written: int) -> Lessons:
    """What the teachers predict in the text, and in one that they write."""
    own, vocabulary = teachers[0].ids, teachers[0].vocabulary
    pieces = [own[:0]]
    for index, teacher in enumerate(teachers if written else []):
        generator = cw.Generator.of(teacher.model, vocabulary)
        length = written // (len(teachers) * STREAMS)
        found = generator.generate([""] * STREAMS, length=length, temperature=1.0, seed=100 + index)
        pieces += [vocabulary.encode(completion.continuation) for completion in found]
    order = np.random.Generator(np.random.Philox(5)).permutation(len(pieces))
    text = np.concatenate([pieces[index] for index in order])
    ids, mine = taking_turns(own, text, max(1, written // (SHARE * len(own))))
    predictions = mean_predictions([teacher.model for teacher in teachers], ids)
    return Lessons(torch.from_numpy(ids), predictions, torch.from_numpy(mine))


def run(text: str, count: int, passes: float, written: Sequence[int], options: dict[str, Any]) -> None:
    """Train the teachers and the students, and add their lines to the ledger."""
    teachers, losses = [], []
    for seed in range(1, count + 1):
        teachers.append(Teacher(text, passes, "cosine", 0.0, {**options, "seed": seed}))
        losses.append(teachers[-1].learn(POINTS))
    known = {
        "text": text,
        "passes": passes,
        "options": options,
        "teachers": losses,
        "ensemble": ensemble_loss(teachers),
    }
    for amount in written:
        lessons = lessons_of(teachers, amount)
        light = LIGHT if amount else {}
        student = Student(text, STUDENT_PASSES, "cosine", 0.0, {**options, **light, "seed": count + 1})
        curve = student.learn(lessons, POINTS)
        line = {**known, "written": amount, "student": min(loss for _, loss in curve), "curve": curve}
        with LEDGER.open("a") as ledger:
            ledger.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def main() -> None:
    """Run the trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", required=True, help="KIND:CHARACTERS:OFFSET of code, docs or plays, with commas")
    parser.add_argument("--teachers", type=int, default=4, help="number of teachers (default: %(default)s)")
    parser.add_argument("--passes", type=float, default=200, help="of each teacher (default: %(default)s)")
    parser.add_argument("--written", type=int, nargs="+", default=[300_000], help="tokens that the teachers write")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for text in asked.texts.split(","):
        run(text, asked.teachers, asked.passes, asked.written, {})


if __name__ == "__main__":
    main()
