"""The run folder: where a model, its vocabulary and its training live, as safetensors and JSON.

    config.json             model, recipe, corpus, versions
    vocabulary.json
    model.safetensors       the weights to use
    checkpoints/step-N/     what a resume needs; its manifest.json is written last
    corpus/                 text that could not be read again
    log.jsonl               one event a line

Files are written beside their place, flushed to the disk and moved there, so that each is whole or as it was before.
Reading is strict. Weights are numpy arrays here: no PyTorch is needed to open a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import CorpusConfig, ModelConfig, Recipe
from charwright.data.corpus import Corpus, Source
from charwright.data.vocabulary import Vocabulary
from charwright.errors import (
    ConfigError,
    DamagedRunError,
    RunError,
    RunExistsError,
    RunNotFoundError,
    VocabularyError,
)

FORMAT = 1
Arrays = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class RunConfig:
    """What `config.json` holds.

    `corpus` says where the text came from and what it was: None for a model that was saved without one.
    """

    recipe: Recipe
    recipe_name: str
    sources: tuple[Source, ...]
    corpus: CorpusConfig
    characters: int
    sha256: str
    validation: tuple[Source, ...]
    versions: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "format": FORMAT,
            "recipe_name": self.recipe_name,
            "recipe": self.recipe.to_json(),
            "corpus": {
                "characters": self.characters,
                "sha256": self.sha256,
                "reading": self.corpus.to_json(),
                "sources": [asdict(source) for source in self.sources],
                "validation": [asdict(source) for source in self.validation],
            },
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> RunConfig:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        top = _object(values, {"format", "recipe_name", "recipe", "corpus", "versions"}, where)
        corpus = _object(
            top["corpus"], {"characters", "sha256", "reading", "sources", "validation"}, f"{where}: corpus"
        )
        try:
            return cls(
                recipe=Recipe.from_json(top["recipe"], f"{where}: recipe"),
                recipe_name=str(top["recipe_name"]),
                sources=_sources(corpus["sources"], f"{where}: corpus.sources"),
                corpus=CorpusConfig.from_json(corpus["reading"], f"{where}: corpus.reading"),
                characters=int(corpus["characters"]),
                sha256=str(corpus["sha256"]),
                validation=_sources(corpus["validation"], f"{where}: corpus.validation"),
                versions={str(key): str(value) for key, value in top["versions"].items()},
            )
        except (ConfigError, ValueError, TypeError, AttributeError) as error:
            raise DamagedRunError(f"{error}" if where in str(error) else f"{where}: {error}") from error


class Run:
    """A run folder that exists.

    >>> run = Run.open("runs/demo")                                     # doctest: +SKIP
    >>> writer = charwright.Generator(run.model, run.weights(), run.vocabulary)  # doctest: +SKIP
    """

    def __init__(self, folder: Path, config: RunConfig, vocabulary: Vocabulary) -> None:
        """Hold what `open` and `create` found or made."""
        self.folder, self.config, self.vocabulary = folder, config, vocabulary

    @property
    def model(self) -> ModelConfig:
        """The shape of the network."""
        return self.config.recipe.model

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Run:
        """Open a run and check its configuration and vocabulary.

        Raises:
            RunNotFoundError: when there is no run in the folder.
            DamagedRunError: when a file is not what it should be.
        """
        path = Path(folder)
        if not (path / "config.json").is_file():
            raise RunNotFoundError(_no_run_message(path))
        values = _read_json(path / "config.json")
        version = values.get("format") if isinstance(values, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise DamagedRunError(
                f"{path / 'config.json'} has format {version}; this charwright reads up to {FORMAT}: update it"
            )
        config = RunConfig.from_json(values, str(path / "config.json"))
        try:
            vocabulary = Vocabulary.from_json(_read_json(path / "vocabulary.json"))
        except VocabularyError as error:
            raise DamagedRunError(f"{path / 'vocabulary.json'}: {error}") from error
        return cls(path, config, vocabulary)

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], config: RunConfig, vocabulary: Vocabulary, *, force: bool = False
    ) -> Run:
        """Make a run folder; `force` puts it in the place of an older run.

        Raises:
            RunExistsError: when there is something in that place, and it is no run or `force` is not given.
        """
        path = Path(folder)
        old: Path | None = None
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            is_run = (path / "config.json").is_file()
            if not (force and is_run):
                raise RunExistsError(_exists_message(path, is_run))
            old = path.with_name(f".{path.name}.replaced-{os.getpid()}")
            path.rename(old)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(path / "vocabulary.json", vocabulary.to_json())
            write_json(path / "config.json", config.to_json())
        except OSError as error:
            raise RunError(f"cannot make the run folder {path}: {error.strerror}; choose another with --out") from error
        if old is not None:
            shutil.rmtree(old)
        return cls(path, config, vocabulary)

    @classmethod
    def save(
        cls,
        folder: str | os.PathLike[str],
        model: ModelConfig,
        weights: Arrays,
        vocabulary: Vocabulary,
        *,
        corpus: Corpus | None = None,
        force: bool = False,
    ) -> Run:
        """Keep a model that was trained by hand: `Run.save("runs/mine", model.config, model.arrays(), vocabulary)`."""
        config = RunConfig(
            recipe=Recipe(model=model),
            recipe_name="by hand",
            sources=corpus.sources if corpus else (),
            corpus=CorpusConfig(),
            characters=len(corpus.text) if corpus else 0,
            sha256=corpus.sha256 if corpus else "",
            validation=(),
            versions={},
        )
        run = cls.create(folder, config, vocabulary, force=force)
        run.write_weights(weights)
        return run

    def rewrite_config(self, config: RunConfig) -> None:
        """Put another configuration in the place of the old one, as a resume with a larger budget does."""
        write_json(self.folder / "config.json", config.to_json())
        self.config = config

    def weights(self) -> Arrays:
        """The weights to use, checked: every name and shape as the model has them, every number finite.

        Raises:
            DamagedRunError: naming the file and the weight that is wrong.
        """
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise RunError(
                f"{self.folder} has no trained weights yet; train on with: charwright train --resume {self.folder}"
            )
        arrays = read_arrays(path)
        self.check_weights(arrays, path)
        return arrays

    def check_weights(self, arrays: Arrays, path: Path) -> None:
        """See that arrays are this run's weights; `path` names them in messages."""
        expected = self.model.weight_shapes(len(self.vocabulary))
        for name in sorted(set(arrays) ^ set(expected)):
            raise DamagedRunError(f"{path}: the weight {name!r} is {'unknown' if name in arrays else 'missing'}")
        for name, shape in expected.items():
            if arrays[name].shape != shape:
                raise DamagedRunError(f"{path}: the weight {name!r} has shape {arrays[name].shape}, not {shape}")
            if not np.isfinite(arrays[name]).all():
                raise DamagedRunError(f"{path}: the weight {name!r} has a number that is not finite")

    def write_weights(self, weights: Arrays) -> None:
        """Put the weights to use in place."""
        write_arrays(self.folder / "model.safetensors", weights)

    def keep_text(self, location: str, text: str) -> None:
        """Keep a text that cannot be read again, as UTF-8, at a path inside the run folder."""
        path = self.folder / location
        path.parent.mkdir(exist_ok=True)
        _write_bytes(path, text.encode("utf-8"))

    def write_checkpoint(
        self, step: int, arrays: Mapping[str, Arrays], position: Mapping[str, Any], keep: int | None
    ) -> None:
        """Write what a resume needs, the manifest last, and remove all but the newest `keep` checkpoints.

        `arrays` holds a dictionary of arrays for each file name without its ending.
        """
        folder = self.folder / "checkpoints" / f"step-{step}"
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        for name, group in arrays.items():
            write_arrays(folder / f"{name}.safetensors", group)
        write_json(folder / "position.json", dict(position))
        listed = {path.name: _size_and_hash(path) for path in sorted(folder.iterdir())}
        write_json(folder / "manifest.json", {"format": FORMAT, "step": step, "files": listed})
        _sync_folder(folder.parent)
        kept = self._checkpoint_folders()[:keep]
        for older in (self.folder / "checkpoints").iterdir():
            if older not in kept:  # Those that a kill left unfinished go too.
                shutil.rmtree(older, ignore_errors=True)

    def latest_checkpoint(self) -> tuple[dict[str, Arrays], dict[str, Any]] | None:
        """The newest whole checkpoint, as its groups of arrays and its position; None where there is none.

        Raises:
            DamagedRunError: when there are checkpoints but none is whole.
        """
        complaint = None
        for folder in self._checkpoint_folders():
            try:
                names = _check_manifest(folder)
                arrays = {name[:-12]: read_arrays(folder / name) for name in names if name.endswith(".safetensors")}
                return arrays, _read_json(folder / "position.json")
            except DamagedRunError as error:
                complaint = complaint or error
        if complaint is not None:
            raise complaint
        return None

    def append_log(self, event: Mapping[str, Any]) -> None:
        """Add a line to log.jsonl."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")

    def log(self) -> Iterator[dict[str, Any]]:
        """The events of log.jsonl; a last line that was cut off is passed over."""
        path = self.folder / "log.jsonl"
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    event = json.loads(line)
                except ValueError:
                    continue
                if isinstance(event, dict):
                    yield event

    def epochs(self) -> list[dict[str, Any]]:
        """The epoch events, one for each step: where a resume did some again, the last word counts."""
        by_step = {event["step"]: event for event in self.log() if event.get("event") == "epoch" and "step" in event}
        return [by_step[step] for step in sorted(by_step)]

    def _checkpoint_folders(self) -> list[Path]:
        """All finished checkpoint folders, newest first."""
        folder = self.folder / "checkpoints"
        found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
        whole = [path for path in found if (path / "manifest.json").is_file()]
        return sorted(whole, key=lambda path: int(path.name[5:]), reverse=True)


def write_arrays(path: Path, arrays: Arrays) -> None:
    """Write a safetensors file, whole or not at all."""
    from safetensors.numpy import save

    _write_bytes(path, save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def read_arrays(path: Path) -> Arrays:
    """Read a safetensors file of float32 arrays.

    Raises:
        DamagedRunError: when it is cut off, no safetensors, or of another type.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: Arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
        raise DamagedRunError(f"{path} is damaged: {error}") from error
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise DamagedRunError(f"{path}: {name!r} is {array.dtype}, not float32")
    return arrays


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(values, ensure_ascii=False, indent=1, allow_nan=False)
    _write_bytes(path, (text + "\n").encode("utf-8"))


def _write_bytes(path: Path, data: bytes) -> None:
    """A temporary file in the same folder, flushed to the disk, moved into place; then the folder's own entry."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path}: {error.strerror}") from error
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return  # Windows has no handle for folders.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DamagedRunError(f"{path} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path} is damaged: {error}") from error


def _object(values: Any, keys: set[str], where: str) -> dict[str, Any]:
    """A JSON object with just these keys."""
    if not isinstance(values, dict):
        raise DamagedRunError(f"{where} is damaged: an object was expected")
    for key in sorted(set(values) ^ keys):
        raise DamagedRunError(f"{where}: the key {key!r} is {'unknown' if key in values else 'missing'}")
    return values


def _sources(values: Any, where: str) -> tuple[Source, ...]:
    if not isinstance(values, list):
        raise DamagedRunError(f"{where} is damaged: a list was expected")
    keys = {"kind", "location", "sha256", "characters"}
    return tuple(Source(**_object(value, keys, where)) for value in values)


def _size_and_hash(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _check_manifest(folder: Path) -> list[str]:
    """The files of a checkpoint, after each was found to be what the manifest says."""
    manifest = _object(_read_json(folder / "manifest.json"), {"format", "step", "files"}, str(folder / "manifest.json"))
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file() or _size_and_hash(path) != expected:
            raise DamagedRunError(f"{path} is missing or not what manifest.json says")
    return list(manifest["files"])


def _no_run_message(path: Path) -> str:
    if not path.exists():
        parent = path.parent
        runs = sorted(item.parent for item in parent.glob("*/config.json")) if parent.is_dir() else []
        known = f"; there are {', '.join(map(str, runs[:5]))}" if runs else ""
        return f"there is no run {str(path)!r}{known}"
    if path.is_file():
        return f"{path} is a file, not a run folder"
    return f"{path} is not a run folder: it has no config.json"


def _exists_message(path: Path, is_run: bool) -> str:
    if not is_run:
        return f"{path} exists and is not a run; choose another place with --out"
    return f"{path} holds a run already; go on with --resume {path}, replace it with --force, or choose another --out"
