"""Loading a trained run for generation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from charwright.data.parts import Places
from charwright.data.records import Records
from charwright.generation.generator import Generator
from charwright.run import Run
from charwright.workflow.texts import texts_of_run


def load(folder: str | os.PathLike[str], precision: str = "q8", *, threads: int | None = None) -> Generator:
    """A generator with the weights of a run: `load("runs/novel").generate("ROMEO:", length=200, seed=7)`.

    Args:
        folder: the run folder.
        precision: q8 (8-bit integers, the same text on every machine), bf16 or f32.
        threads: the most CPU threads to use.

    Raises:
        RunError: when there is no run in the folder, or it has no intact weights.
    """
    return generator_of(Run.open(folder), precision, threads=threads)


def generator_of(run: Run, precision: str = "q8", *, threads: int | None = None) -> Generator:
    """A generator with the weights of an open run; arguments and errors as for `load`."""
    ends = run.config.records
    return Generator(
        run.model,
        run.weights(),
        run.vocabulary,
        precision,
        threads=threads,
        record_end=ends.end if ends else None,
        known_records=lambda: known_records(run, (), Places.of_this_user()),
    )


def known_records(run: Run, moved: Sequence[str], places: Places) -> Iterator[str]:
    """The records of a run's training text and validation text; arguments and errors as for `texts_of_run`."""
    for text in texts_of_run(run, moved, places):
        if isinstance(text, Records):
            yield from text
