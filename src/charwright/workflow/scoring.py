"""Scores of the records of files under a run, in one call."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from charwright.config import CorpusConfig
from charwright.data.corpus import checked_specs
from charwright.data.parts import Places
from charwright.data.text_pieces import Streamed
from charwright.generation.record_scores import Score
from charwright.workflow.loading import load


def score(
    run: str | os.PathLike[str],
    files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    by: str | None = None,
    separator: str | None = None,
    independent: bool = False,
    warm_up: int = 0,
    label: str | None = None,
    precision: str = "f32",
    threads: int | None = None,
    reading: CorpusConfig | None = None,
    places: Places | None = None,
) -> Iterator[Score]:
    """Yield what each record of some files costs in bits under a run: `score("runs/novel", "another.txt")`.

    The files are read in pieces, so their length does not matter. `Generator.score` does the same with a text in
    memory, and describes `by`, `separator`, `independent`, `warm_up` and `label`.

    Args:
        run: the run folder.
        files: files, compressed files, folders, `-` (standard input), URLs or named corpora; one or several.
        by: what a record is: `line`, `blank`, `file`, `character`, or `record` as in training, the default for a run
            that was trained on records.
        separator: the text that ends a record, instead of `by`.
        independent: each record is read from a zero state; otherwise the text is read along.
        warm_up: the ids that are read before each stream without being scored.
        label: the label of all records, for a run with labels and files without the column of labels.
        precision: f32, bf16, or q8 (8-bit integers, two to three times as fast).
        threads: the most CPU threads to use.
        reading: encoding, newlines, normalization and glob.
        places: where named corpora are and what `-` reads; by default the user's places, without standard input.

    Raises:
        RunError: when there is no run in the folder, or it has no intact weights.
        CorpusError: (or a subclass) when a file cannot be found, read or decoded, or a record has no label.
        UsageError: when the options contradict each other, or the run has no such label.
    """
    streamed = Streamed.find(checked_specs(files), reading or CorpusConfig(), places or Places.of_this_user())
    return load(run, precision, threads=threads).text_scores.of_pieces(
        streamed.pieces(), by=by, separator=separator, independent=independent, warm_up=warm_up, label=label
    )
