"""The texts of a run: read for a new one, found again as they were for an old one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from charwright.cli.options import say
from charwright.config import CorpusConfig
from charwright.errors import RunError

if TYPE_CHECKING:
    from charwright.data.corpus import Corpus
    from charwright.run import Run


def read_texts(corpus: Sequence[str], validation: Sequence[str], reading: CorpusConfig) -> tuple[Corpus, Corpus | None]:
    """The text to learn, and that to measure on where one was named; what may surprise is said on stderr."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import read_corpus

    places = user_places()
    text = read_corpus(corpus, reading, places)
    measured = read_corpus(validation, reading, places) if validation else None
    for note in (*text.notes, *(measured.notes if measured else ())):
        say(note)
    return text, measured


def training_text(run: Run, moved: Sequence[str]) -> str:
    """The part of a run's corpus that it was trained on; `moved` says where the corpus is now, if elsewhere.

    Raises:
        RunError: when `moved` is another text.
        CorpusError: when a text is gone, has changed or cannot be read.
    """
    from charwright.data.corpus import split_corpus

    return split_corpus(_corpus(run, moved), run.config.recipe.split)[0]


def texts_again(run: Run, moved: Sequence[str]) -> tuple[str, str]:
    """The training text and the validation text of a run, each what it was when the run began.

    Raises:
        RunError: when `moved` is another text.
        CorpusError: when a text is gone, has changed or cannot be read.
    """
    from charwright.cli.download import user_places
    from charwright.data.corpus import reread_corpus, split_corpus

    training, held_out = split_corpus(_corpus(run, moved), run.config.recipe.split)
    if not run.config.validation:
        return training, held_out
    measured = reread_corpus(_placed(run, run.config.validation), run.config.corpus, user_places())
    return training, measured.text


def _corpus(run: Run, moved: Sequence[str]) -> str:
    """The whole corpus, before the split."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import read_corpus, reread_corpus

    places, config = user_places(), run.config
    if not moved:
        return reread_corpus(_placed(run, config.sources), config.corpus, places).text
    text = read_corpus(moved, config.corpus, places)
    if text.sha256 != config.sha256:
        raise RunError(f"{', '.join(moved)} is not the text that {run.folder} was trained on (SHA-256 differs)")
    return text.text


def _placed(run: Run, sources: Sequence[Any]) -> list[Any]:
    """The sources, with what came through standard input where the run's folder keeps it."""
    inside = {source: str(run.folder / source.location) for source in sources if source.kind == "stdin"}
    return [dataclasses.replace(source, location=inside.get(source, source.location)) for source in sources]
