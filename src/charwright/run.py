"""The run folder: reads and writes its config, vocabulary, weights, checkpoints and log.

    config.json             model, recipe, corpus, versions
    vocabulary.json
    model.safetensors       the weights to use
    checkpoints/step-N/     everything a resume needs; manifest.json is written last
    corpus/                 text from standard input, which cannot be read again
    log.jsonl               one event per line

Every file is written atomically and read strictly, by `storage`. Weights are numpy arrays: opening a run does not need
PyTorch.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from charwright.arguments import require
from charwright.arrays import Arrays, problem_of, read_arrays, read_metadata, read_with_metadata, write_arrays
from charwright.config import CorpusConfig, ModelConfig, Recipe, RecordsConfig
from charwright.data.large_texts import AnyCorpus
from charwright.data.parts import STDIN_PATH
from charwright.data.texts import Text
from charwright.data.vocabularies import vocabulary_from_json
from charwright.data.vocabulary import Vocabulary
from charwright.errors import (
    DamagedRunError,
    RunError,
    RunNotFoundError,
    UsageError,
    VocabularyError,
    for_shell,
)
from charwright.locks import is_free
from charwright.run_config import RunConfig, RunRecords
from charwright.run_place import check_place, keep_text, new_place, no_run_message, remove_leftovers, resolved
from charwright.run_view import as_html, network
from charwright.schema import flag, quoted
from charwright.storage import (
    append_json_line,
    check_format,
    check_manifest,
    checked,
    file_identity,
    json_sha256,
    move,
    read_json,
    read_json_lines,
    sync_folder,
    write_json,
    write_manifest,
)


class Run:
    """An existing run folder, which stands for its path in `load(run)`, `train(..., parent=run)` and all others.

    >>> run = Run.open("runs/demo")                                     # doctest: +SKIP
    >>> writer = charwright.Generator(run.model, run.weights(), run.vocabulary)  # doctest: +SKIP
    """

    def __init__(self, folder: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
        """Hold what `open` read or `create` wrote."""
        self.folder, self.config, self.vocabulary = folder, config, vocabulary
        self._identity = file_identity(folder / "vocabulary.json")

    @property
    def model(self) -> ModelConfig:
        """The configuration of the network."""
        return self.config.recipe.model

    def __fspath__(self) -> str:
        return str(self.folder)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}: {network(self.model, len(self.vocabulary))})"

    def _repr_html_(self) -> str:
        return as_html(self.folder, self.config, len(self.vocabulary), self.history())

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, for_writing: bool = False) -> Run:
        """Open a run and check its configuration and vocabulary.

        `for_writing` also removes what a killed process left behind, and moves a run back that it had moved away.

        Raises:
            RunNotFoundError: when there is no run in the folder.
            DamagedRunError: when a file is damaged.
        """
        require(folder, (str, os.PathLike), "a run is named by its folder")
        path = Path(folder)
        if for_writing and not path.exists():
            remove_leftovers(resolved(path))
        if not (path / "config.json").is_file():
            raise RunNotFoundError(no_run_message(path))
        identity = file_identity(path / "config.json")
        values = read_json(path / "config.json", BACKUP)
        check_format(values, str(path / "config.json"))
        config = RunConfig.from_json(values, str(path / "config.json"))
        try:
            vocabulary = vocabulary_from_json(read_json(path / "vocabulary.json", BACKUP))
        except VocabularyError as error:
            raise DamagedRunError(f"{path / 'vocabulary.json'}: {error.for_shell}") from error
        if file_identity(path / "config.json") != identity:  # Its vocabulary may be that of another run.
            return Run.open(path, for_writing=for_writing)
        if for_writing and is_free(path):  # What a process writes that trains there is no leftover.
            remove_leftovers(path.resolve())
        return cls(path, config, vocabulary)

    def check_resumable(self) -> None:
        """Check that this version can continue the training of the run.

        Raises:
            RunError: when it was trained with an option that no longer exists, or its vocabulary has changed.
        """
        self._check_vocabulary(read_metadata(self.folder / "model.safetensors"))
        for name, value in self.config.removed.items():
            raise RunError(
                f"{self.folder} was trained with {flag(name)} {value:g}, which no longer exists, so it cannot "
                f"resume; continue from its weights with: charwright train TEXT --from {quoted(self.folder)}"
            )

    @classmethod
    def create(
        cls,
        folder: str | os.PathLike[str],
        config: RunConfig,
        vocabulary: Vocabulary,
        *,
        weights: Arrays | None = None,
        texts: Mapping[str, Text] | None = None,
        force: bool = False,
    ) -> Run:
        """Create a run folder, with weights if given; `force` replaces an existing run.

        `texts` cannot be read again and are kept, as UTF-8 at their paths within the folder.

        Raises:
            UsageError: when the weights are not those of such a model.
            RunExistsError: when the folder exists and is not a run, or `force` is not given.
            RunLockedError: when another process trains in it.
            RunError: when the system refuses; everything is as it was before.
        """
        path = Path(folder)
        if weights is not None and (problem := problem_of(weights, config.recipe.model.weight_shapes(len(vocabulary)))):
            raise UsageError(f"this model cannot be saved: {problem}")
        with new_place(path, force=force) as place:
            write_json(place / "vocabulary.json", vocabulary.to_json())
            for location, text in (texts or {}).items():
                keep_text(place / location, text)
            if weights is not None:
                write_arrays(place / "model.safetensors", weights, {VOCABULARY: _vocabulary_sha256(place)})
            write_json(place / "config.json", config.to_json())
        return cls(path, config, vocabulary)

    @staticmethod
    def check_place(folder: str | os.PathLike[str], *, force: bool = False) -> None:
        """Check that `create` would not overwrite anything.

        Raises:
            RunExistsError: when the folder exists and is not a run, or `force` is not given.
            RunLockedError: when another process trains in it.
            RunError: when a folder cannot be created there.
        """
        check_place(folder, force=force)

    def lies_in(self, folder: str | os.PathLike[str]) -> bool:
        """Whether this run is that folder or inside it, so that replacing the folder would remove the run."""
        place = self.folder.resolve()
        return Path(folder).exists() and any(Path(folder).samefile(outer) for outer in (place, *place.parents))

    @classmethod
    def save(
        cls,
        folder: str | os.PathLike[str],
        model: ModelConfig,
        weights: Arrays,
        vocabulary: Vocabulary,
        *,
        corpus: AnyCorpus | None = None,
        reading: CorpusConfig | None = None,
        records: tuple[RecordsConfig, RunRecords] | None = None,
        recipe_name: str = "by hand",
        force: bool = False,
    ) -> Run:
        """Save a model trained with `fit`: `Run.save("runs/mine", model.config, model.arrays(), vocabulary)`.

        `records` is how the text is divided into records, and what is known of them, for a model of records.
        """
        require(model, ModelConfig, "a run is saved with its ModelConfig", "pass model.config")
        require(weights, Mapping, "the weights of a model are arrays by name", "pass model.arrays()")
        require(vocabulary, Vocabulary, "a run is saved with its Vocabulary")
        config = RunConfig(
            recipe=Recipe(model=model, records=records[0]) if records else Recipe(model=model),
            recipe_name=recipe_name,
            sources=corpus.sources if corpus else (),
            corpus=reading or CorpusConfig(),
            characters=len(corpus.text) if corpus else 0,
            sha256=corpus.sha256 if corpus else "",
            validation=(),
            versions={},
            records=records[1] if records else None,
        )
        texts = {STDIN_PATH: corpus.unrepeatable} if corpus and corpus.unrepeatable else None
        return cls.create(folder, config, vocabulary, weights=weights, texts=texts, force=force)

    def rewrite_config(self, config: RunConfig) -> None:
        """Replace the configuration, as a resume with a larger budget does."""
        write_json(self.folder / "config.json", config.to_json())
        self.config = config

    @property
    def has_weights(self) -> bool:
        """Whether there is a file of weights, intact or not."""
        return (self.folder / "model.safetensors").is_file()

    def weights(self) -> Arrays:
        """The weights to generate with, checked against the model: names, shapes and finite values.

        Raises:
            RunError: when there are none yet, or the vocabulary is not theirs.
            DamagedRunError: naming the file and the damaged weight.
        """
        path = self.folder / "model.safetensors"
        if not self.has_weights:
            raise RunError(
                f"{self.folder} has no trained weights yet; train it with: "
                f"charwright train --resume {quoted(self.folder)}"
            )
        try:
            arrays, metadata = read_with_metadata(path, {"F32"})
            self.check_weights(arrays, path)
            self._check_vocabulary(metadata)
        except DamagedRunError as error:
            if not self._checkpoint_folders() or isinstance(error.__cause__, PermissionError):
                raise
            restored = f"charwright train --resume {quoted(self.folder)} restores it"
            raise DamagedRunError(f"{error.for_shell}; {restored}") from error
        finally:
            self._check_not_replaced()
        return arrays

    def _check_vocabulary(self, metadata: Mapping[str, str]) -> None:
        if metadata.get(VOCABULARY, own := _vocabulary_sha256(self.folder)) != own:
            raise RunError(f"{self.folder / 'vocabulary.json'} has changed since the weights were saved{BACKUP}")

    def _check_not_replaced(self) -> None:
        """Check that the folder still holds the run that was opened, whose vocabulary never changes.

        Raises:
            RunError: when `--force` has replaced it meanwhile.
        """
        if file_identity(self.folder / "vocabulary.json") != self._identity:
            raise RunError(f"{self.folder} was replaced by another run while it was read; try again")

    def weights_step(self) -> int | None:
        """The step of the weights to use, according to the log: the best, or the last that was saved."""
        best, saved = None, None
        for event in self.log():
            if type(event.get("step")) is int:
                best = event["step"] if event.get("best") is True else best
                saved = event["step"] if event.get("event") == "checkpoint" else saved
        return saved if best is None else best

    def check_weights(self, arrays: Arrays, path: Path) -> None:
        """Check that arrays are weights of this run's model; `path` names them in messages.

        Raises:
            DamagedRunError: naming the file and the damaged weight.
        """
        if problem := problem_of(arrays, self.model.weight_shapes(len(self.vocabulary))):
            raise DamagedRunError(f"{path}: {problem}")

    def write_weights(self, weights: Arrays) -> None:
        """Write the weights to use."""
        write_arrays(self.folder / "model.safetensors", weights, {VOCABULARY: _vocabulary_sha256(self.folder)})

    def write_checkpoint(
        self, step: int, arrays: Mapping[str, Arrays], position: Mapping[str, Any], keep: int | None
    ) -> None:
        """Write a checkpoint, its manifest last, and remove all but the newest `keep`.

        `arrays` has a dictionary of arrays for each file, by name without extension.
        """
        parent = self.folder / "checkpoints"
        place, new, old = (parent / f"step-{step}{ending}" for ending in ("", ".new", ".old"))
        shutil.rmtree(new, ignore_errors=True)
        try:
            _fill_checkpoint(new, step, arrays, position)
            # The same step may have been saved before; an intact checkpoint always exists under one of the names.
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)
                move(place, old)
            move(new, place)
            sync_folder(parent)
        except (OSError, RunError) as error:
            shutil.rmtree(new, ignore_errors=True)
            reason = error.strerror if isinstance(error, OSError) else for_shell(error)
            raise RunError(f"cannot save the checkpoint {place}: {reason}") from error
        # A later step is from before a rollback or an older resume.
        kept = [path for path in self._checkpoint_folders() if path.suffix == "" and _step_of(path) <= step][:keep]
        for other in parent.iterdir():
            if other not in kept:
                shutil.rmtree(other, ignore_errors=True)

    def latest_checkpoint(
        self, notify: Callable[[str], None] = lambda _: None
    ) -> tuple[dict[str, Arrays], dict[str, Any]] | None:
        """The newest intact checkpoint, as its groups of arrays and its position; None if there is none.

        `notify` is called with a line for each one that is damaged and newer.

        Raises:
            DamagedRunError: when there are checkpoints but none is intact.
        """
        damaged = list[DamagedRunError]()
        for folder in self._checkpoint_folders():
            try:
                found = self._read_checkpoint(folder)
            except DamagedRunError as error:
                damaged.append(error)
                continue
            for newer in damaged:
                notify(f"{newer}; an older checkpoint is used, and the steps since are trained again")
            return found
        if damaged:
            raise damaged[0]
        return None

    def _read_checkpoint(self, folder: Path) -> tuple[dict[str, Arrays], dict[str, Any]]:
        files = [folder / name for name in check_manifest(folder)]
        arrays = {path.stem: read_arrays(path) for path in files if path.suffix == ".safetensors"}
        for name in ("weights", "optimizer"):
            if name not in arrays:
                raise DamagedRunError(f"{folder / name}.safetensors is missing")
        self.check_weights(arrays["weights"], folder / "weights.safetensors")
        position = read_json(folder / "position.json")
        return arrays, checked(position, dict, str(folder / "position.json"))

    def append_log(self, event: Mapping[str, Any]) -> None:
        """Append an event to log.jsonl."""
        append_json_line(self.folder / "log.jsonl", event)

    def log(self) -> Iterator[dict[str, Any]]:
        """The events of log.jsonl; a truncated line is skipped."""
        return read_json_lines(self.folder / "log.jsonl")

    def epochs(self) -> list[dict[str, Any]]:
        """The epoch events, one per step; of those that a resume repeated, the last."""
        return [event for event in self.history() if event["event"] == "epoch"]

    def history(self) -> list[dict[str, Any]]:
        """The same with the validations within epochs."""
        by_step = {event["step"]: event for event in self.log() if _is_measured(event)}
        return [by_step[step] for step in sorted(by_step)]

    def _checkpoint_folders(self) -> list[Path]:
        """All complete checkpoint folders, newest first; an `.old` one counts if a kill prevented its replacement."""
        found = (self.folder / "checkpoints").glob("step-*")
        whole = [path for path in found if _CHECKPOINT.fullmatch(path.name) and (path / "manifest.json").is_file()]
        return sorted(whole, key=lambda path: (_step_of(path), path.suffix == ""), reverse=True)


VOCABULARY = "vocabulary_sha256"  # in the metadata of the weights: they are for this vocabulary alone
BACKUP = "; copy it from a backup of the run, or train anew"  # Without these files a run is of no use.
_CHECKPOINT = re.compile(r"step-(\d+)(\.old)?")


def _vocabulary_sha256(folder: Path) -> str:
    return json_sha256(folder / "vocabulary.json")


def _step_of(folder: Path) -> int:
    return int(folder.stem.removeprefix("step-"))


def _fill_checkpoint(folder: Path, step: int, arrays: Mapping[str, Arrays], position: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    for name, group in arrays.items():
        write_arrays(folder / f"{name}.safetensors", group)
    write_json(folder / "position.json", dict(position))
    write_manifest(folder, step)


def _is_measured(event: Mapping[str, Any]) -> bool:
    """Whether an event is an epoch or a validation, with the fields that readers rely on."""
    # Before the first step there is no training loss yet.
    loss = "train_loss" if event.get("step") else "validation_loss"
    figures = [event.get(key) for key in ("step", "epoch", loss)]
    return event.get("event") in {"epoch", "validation"} and all(isinstance(figure, int | float) for figure in figures)
