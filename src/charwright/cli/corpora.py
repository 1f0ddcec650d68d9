"""The texts of commands: `workflow.texts` with the user's places, and notices on stderr."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from charwright.cli.options import say
from charwright.config import CorpusConfig, RecordsConfig, SplitConfig

if TYPE_CHECKING:
    from charwright.data.large_texts import AnyCorpus
    from charwright.data.texts import Text
    from charwright.run import Run
    from charwright.workflow.texts import Texts


def read_texts(
    corpus: Sequence[str],
    validation: Sequence[str],
    reading: CorpusConfig,
    split: SplitConfig | None = None,
    records: RecordsConfig | None = None,
    *,
    detect: bool = False,
) -> Texts:
    """Read a corpus, and split it unless a validation text is given; `detect` finds out whether it is a list."""
    from charwright.cli.download import user_places
    from charwright.workflow import texts

    split = split or SplitConfig()
    return texts.read_texts(corpus, validation, reading, split, user_places(), say, records, detect=detect)


def read_one(corpus: Sequence[str], reading: CorpusConfig) -> AnyCorpus:
    """Read a corpus as a whole."""
    from charwright.cli.download import user_places
    from charwright.data.large_texts import open_corpus

    found = open_corpus(corpus, reading, user_places())
    for note in found.notes:
        say(note)
    return found


def training_text(run: Run, moved: Sequence[str]) -> Text:
    """The training text of a run; `moved` says where its corpus is now, if it has moved."""
    from charwright.cli.download import user_places
    from charwright.workflow.texts import training_text_of_run

    return training_text_of_run(run, moved, user_places())


def texts_again(run: Run, moved: Sequence[str]) -> tuple[Text, Text]:
    """The training text and the validation text of a run."""
    from charwright.cli.download import user_places
    from charwright.workflow.texts import texts_of_run

    return texts_of_run(run, moved, user_places())
