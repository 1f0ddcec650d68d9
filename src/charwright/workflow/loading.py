"""Loading a trained run for generation."""

from __future__ import annotations

import os

from charwright.generation.generator import Generator
from charwright.run import Run


def load(folder: str | os.PathLike[str], precision: str = "q8", *, threads: int | None = None) -> Generator:
    """A generator with the weights of a run: `load("runs/novel").generate("ROMEO:", length=200, seed=7)`.

    Args:
        folder: the run folder.
        precision: q8 (8-bit integers, the same text on every machine), bf16 or f32.
        threads: the most CPU threads to use.

    Raises:
        RunError: when there is no run in the folder, or it has no intact weights.
    """
    run = Run.open(folder)
    return Generator(run.model, run.weights(), run.vocabulary, precision, threads=threads)
