"""The texts of a run: read and split for a new run, found again for an existing one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from charwright.arguments import require_paths
from charwright.config import CorpusConfig, RecordsConfig, SplitConfig
from charwright.data.corpus import Corpus, Source
from charwright.data.large_texts import AnyCorpus, MappedCorpus, open_corpus, reopen_corpus
from charwright.data.lists import is_list, settled
from charwright.data.parts import Places
from charwright.data.records import Records
from charwright.data.split import split_text
from charwright.data.texts import Text, in_memory
from charwright.errors import RunError, UsageError
from charwright.run import Run
from charwright.run_config import RunRecords
from charwright.workflow.notes import notes_on

Specs = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""Corpora as a user names them: files, folders, `-`, addresses and names; one or several."""

Notify = Callable[[str], None]
"""Called with a line for the user about something unexpected."""


@dataclass(frozen=True)
class Texts:
    """A corpus, its whole text, the part of it to train on, and the text to validate on.

    `records` is how the texts are divided into records, if they are. `validation_corpus` is the source of the
    validation text if that is not a part of the corpus.
    """

    corpus: AnyCorpus
    whole: Text
    training: Text
    validation: Text
    records: RecordsConfig
    validation_corpus: AnyCorpus | None = None

    @property
    def run_records(self) -> RunRecords | None:
        """What config.json keeps of the records."""
        if not isinstance(self.training, Records):
            return None
        held_out = self.validation.count if isinstance(self.validation, Records) else 0
        return RunRecords(self.training.end, self.training.count, held_out)


def listed(specs: Specs) -> Sequence[str | os.PathLike[str]]:
    """One or several as several, which can be read more than once.

    Raises:
        UsageError: when it is a text that was read already, or no path at all.
    """
    if isinstance(specs, Corpus | MappedCorpus):
        raise UsageError("name the files of the text; a corpus that was read already is for fit, see the tutorial")
    require_paths(specs)
    return (specs,) if isinstance(specs, str | os.PathLike) else tuple(specs)


def read_texts(
    corpus: Specs,
    validation: Specs,
    reading: CorpusConfig,
    split: SplitConfig,
    places: Places,
    notify: Notify,
    records: RecordsConfig | None = None,
    *,
    detect: bool = False,
) -> Texts:
    """Read a corpus, and split it unless a validation text is given.

    Both are divided into `records`. To `detect` a list makes it one of lines.

    Raises:
        CorpusError: when a text cannot be found, read or decoded.
    """
    text = open_corpus(corpus, reading, places)
    separate = open_corpus(validation, reading, places) if validation else None
    for note in (*text.notes, *(separate.notes if separate else ())):
        notify(note)
    records = records or RecordsConfig()
    if detect and is_list(text.text):
        records = dataclasses.replace(records, records="line")
    records = settled(text.text, records)
    whole = divided(text.text, records)
    for note in notes_on(text.text, whole, records, detect=detect):
        notify(note)
    if separate is not None:
        held_out = divided(separate.text, records, whole.end if isinstance(whole, Records) else None)
        if isinstance(whole, Records) and isinstance(held_out, Records) and (shared := held_out.shared_with(whole)):
            notify(
                f"note: {shared:,} of the {held_out.count:,} records of the validation text are in the training text"
            )
        if part := _part_of_training(text, separate):
            notify(f"note: the validation text is {part}, so its loss says nothing about new text")
        return Texts(text, whole, whole, held_out, records, separate)
    return Texts(text, whole, *split_text(whole, split), records)


def _part_of_training(text: AnyCorpus, validation: AnyCorpus) -> str:
    """What the validation text is of the training text, in words: all of it, a part or nothing ("").

    Parts of texts on disk are not looked for, since these need not fit in memory.
    """
    if validation.sha256 == text.sha256:
        return "the training text"
    if isinstance(validation.text, str) and isinstance(text.text, str) and validation.text in text.text:
        return "a part of the training text"
    return ""


def divided(text: Text, records: RecordsConfig, end: str | None = None) -> Text:
    """A text in records, which are in memory; the text itself if it has none.

    `end` is that of the records of a run, which each record of a text to evaluate has.

    Raises:
        CorpusError: as for `Records.parse`.
    """
    return text if records.records == "none" else Records.parse(in_memory(text), records, end)


def texts_of_run(run: Run, moved: Specs, places: Places) -> tuple[Text, Text]:
    """The training text and the validation text of a run, unchanged since it was trained.

    `moved` says where the corpus is now, if it has moved.

    Raises:
        RunError: when `moved` is a different text.
        CorpusError: when a text is gone, has changed or cannot be read.
    """
    recipe = run.config.recipe
    training, held_out = split_text(_divided_corpus(run, moved, places), recipe.split)
    if not run.config.validation:
        return training, held_out
    sources = _located(run, run.config.validation)
    sha256 = sources[0].sha256 if len(sources) == 1 else ""  # That of several together is not recorded.
    text = reopen_corpus(sources, sha256, run.config.corpus, places).text
    return training, divided(text, recipe.records, run.config.record_end)


def training_text_of_run(run: Run, moved: Specs, places: Places) -> Text:
    """The training text of a run; arguments and errors as for `texts_of_run`."""
    return split_text(_divided_corpus(run, moved, places), run.config.recipe.split)[0]


def _divided_corpus(run: Run, moved: Specs, places: Places) -> Text:
    """The whole corpus, in records with the end that the run has recorded."""
    return divided(_corpus_of_run(run, moved, places), run.config.recipe.records, run.config.record_end)


def _corpus_of_run(run: Run, moved: Specs, places: Places) -> Text:
    """The whole corpus, before the split."""
    config = run.config
    moved = listed(moved)
    if not moved:
        return reopen_corpus(_located(run, config.sources), config.sha256, config.corpus, places).text
    text = open_corpus(moved, config.corpus, places)
    if text.sha256 != config.sha256:
        given = ", ".join(str(part) for part in moved)
        raise RunError(f"{given} is not the text that {run.folder} was trained on (SHA-256 differs)")
    return text.text


def _located(run: Run, sources: Sequence[Source]) -> list[Source]:
    """The sources, with text from standard input located in the run folder, which keeps it."""
    kept = {source: str(run.folder / source.location) for source in sources if source.kind == "stdin"}
    return [dataclasses.replace(source, location=kept.get(source, source.location)) for source in sources]
