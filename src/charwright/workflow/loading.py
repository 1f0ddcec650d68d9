"""Loading a trained run for generation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from charwright.arrays import Arrays
from charwright.config import RecordsConfig
from charwright.data.large_texts import open_corpus
from charwright.data.parts import Places
from charwright.data.records import Records, without_label
from charwright.data.texts import in_memory
from charwright.generation.generator import Generator
from charwright.run import Run
from charwright.workflow.texts import texts_of_run, training_text_of_run


def load(
    folder: str | os.PathLike[str], precision: str = "q8", *, threads: int | None = None, adapt_to: str = ""
) -> Generator:
    """A generator with the weights of a run: `load("runs/novel").generate("ROMEO:", length=200, seed=7)`.

    Args:
        folder: the run folder.
        precision: q8 (8-bit integers, the same text on every machine), bf16 or f32.
        threads: the most CPU threads to use.
        adapt_to: a text whose names, subject and style the model is to take on, by training on it for a moment.

    Raises:
        RunError: when there is no run in the folder, or it has no intact weights.
        CorpusError: when there is a text to adapt to, and that of the run is gone or has changed.
    """
    run = Run.open(folder)
    weights = adapted_weights(run, adapt_to, (), Places.of_this_user()) if adapt_to else None
    return generator_of(run, precision, threads=threads, weights=weights)


def adapted_weights(run: Run, text: str, moved: Sequence[str], places: Places) -> Arrays:
    """The weights of a run after training on a text for a moment; `evaluation.dynamic.adapted_to` describes it.

    The training text of the run is read again, as for `training_text_of_run`: it tells how far each weight may move.
    """
    # Generation needs no PyTorch otherwise, and starts without it.
    from charwright.evaluation.dynamic import adapted_to
    from charwright.model.compute import Compute
    from charwright.model.language_model import LanguageModel

    model = LanguageModel.from_arrays(run.model, run.weights(), Compute.choose("cpu", precision="f32"))
    return adapted_to(model, run.vocabulary, text, training_text_of_run(run, moved, places)).arrays()


def generator_of(
    run: Run, precision: str = "q8", *, threads: int | None = None, weights: Arrays | None = None
) -> Generator:
    """A generator with the weights of an open run, or others; arguments and errors as for `load`."""
    ends = run.config.records
    return Generator(
        run.model,
        run.weights() if weights is None else weights,
        run.vocabulary,
        precision,
        threads=threads,
        record_end=ends.end if ends else None,
        records=run.config.recipe.records if run.config.recipe.records.records != "none" else None,
        known_records=lambda: known_records(run, (), Places.of_this_user()),
    )


def known_records(run: Run, moved: Sequence[str], places: Places, further: Sequence[str] = ()) -> Iterator[str]:
    """The records of a run's training text and validation text, and of further texts, with a column of labels or not.

    The other arguments and errors are as for `texts_of_run`.
    """
    for text in texts_of_run(run, moved, places):
        if isinstance(text, Records):
            yield from text
    config = run.config.recipe.records
    for spec in further:
        text = in_memory(open_corpus([spec], run.config.corpus, places).text)
        for record in Records.parse(text, RecordsConfig(config.records), run.config.record_end):
            yield without_label(record, config.label, run.vocabulary.labels)
