"""The texts of a run: read and split for a new run, found again for an existing one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from charwright.config import CorpusConfig, SplitConfig
from charwright.data.corpus import Source
from charwright.data.large_texts import AnyCorpus, open_corpus, reopen_corpus
from charwright.data.parts import Places
from charwright.data.split import split_text
from charwright.data.texts import Text
from charwright.errors import RunError
from charwright.run import Run

Specs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Corpora as a user names them: files, folders, `-`, addresses and names; one or several."""

Notify = Callable[[str], None]
"""Called with a line for the user about something unexpected."""


@dataclass(frozen=True)
class Texts:
    """A corpus, the part of it to train on, and the text to validate on.

    `validation_corpus` is the source of the validation text if that is not a part of the corpus.
    """

    corpus: AnyCorpus
    training: Text
    validation: Text
    validation_corpus: AnyCorpus | None = None


def read_texts(
    corpus: Specs, validation: Specs, reading: CorpusConfig, split: SplitConfig, places: Places, notify: Notify
) -> Texts:
    """Read a corpus, and split it unless a validation text is given.

    Raises:
        CorpusError: when a text cannot be found, read or decoded.
    """
    text = open_corpus(corpus, reading, places)
    separate = open_corpus(validation, reading, places) if validation else None
    for note in (*text.notes, *(separate.notes if separate else ())):
        notify(note)
    if separate is not None:
        return Texts(text, text.text, separate.text, separate)
    return Texts(text, *split_text(text.text, split))


def texts_of_run(run: Run, moved: Sequence[str], places: Places) -> tuple[Text, Text]:
    """The training text and the validation text of a run, unchanged since it was trained.

    `moved` says where the corpus is now, if it has moved.

    Raises:
        RunError: when `moved` is a different text.
        CorpusError: when a text is gone, has changed or cannot be read.
    """
    training, held_out = split_text(_corpus_of_run(run, moved, places), run.config.recipe.split)
    if not run.config.validation:
        return training, held_out
    sources = _located(run, run.config.validation)
    sha256 = sources[0].sha256 if len(sources) == 1 else ""  # That of several together is not recorded.
    return training, reopen_corpus(sources, sha256, run.config.corpus, places).text


def training_text_of_run(run: Run, moved: Sequence[str], places: Places) -> Text:
    """The training text of a run; arguments and errors as for `texts_of_run`."""
    return split_text(_corpus_of_run(run, moved, places), run.config.recipe.split)[0]


def _corpus_of_run(run: Run, moved: Sequence[str], places: Places) -> Text:
    """The whole corpus, before the split."""
    config = run.config
    if not moved:
        return reopen_corpus(_located(run, config.sources), config.sha256, config.corpus, places).text
    text = open_corpus(moved, config.corpus, places)
    if text.sha256 != config.sha256:
        raise RunError(f"{', '.join(moved)} is not the text that {run.folder} was trained on (SHA-256 differs)")
    return text.text


def _located(run: Run, sources: Sequence[Source]) -> list[Source]:
    """The sources, with text from standard input located in the run folder, which keeps it."""
    kept = {source: str(run.folder / source.location) for source in sources if source.kind == "stdin"}
    return [dataclasses.replace(source, location=kept.get(source, source.location)) for source in sources]
