"""The models of the service: each run with its engine and vocabulary, under a name that clients use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from charwright.data.texts import AnyIds, Text, ids_of
from charwright.data.vocabulary import Vocabulary
from charwright.errors import UsageError
from charwright.generation.draft import Guard
from charwright.generation.generator import Generator
from charwright.generation.novelty import CopyGuard
from charwright.run import Run
from charwright.storage import file_sha256
from charwright.workflow.loading import generator_of

LONGEST_NAME = 256
"""Characters of the name of a model."""

ReadText = Callable[[Run], Text]
"""Reads the training text of a run."""


@dataclass
class HostedModel:
    """A run that the service generates with."""

    name: str
    created: int
    """When the run was written, in seconds since 1970."""
    generator: Generator = field(repr=False)
    run: Run = field(repr=False)
    training_text: ReadText = field(repr=False)
    sha256: str = ""
    """That of the file of weights."""
    _ids: AnyIds | None = field(default=None, repr=False)

    @classmethod
    def load(
        cls, name: str, folder: Path, training_text: ReadText, precision: str = "q8", *, threads: int | None = None
    ) -> HostedModel:
        """Open a run and lay out its weights.

        Raises:
            RunError: if there is no usable run in the folder.
        """
        run = Run.open(folder)
        generator = generator_of(run, precision, threads=threads)
        sha256 = file_sha256(run.folder / "model.safetensors")
        return cls(name, int((folder / "config.json").stat().st_mtime), generator, run, training_text, sha256)

    def read_text(self) -> None:
        """Read the training text now rather than for the first guard.

        Raises:
            CharwrightError: if it cannot be read, or is another text.
        """
        self._text_ids()

    def guard(self, max_copy: int) -> Guard:
        """Make the guard that `max_copy` needs. The first one reads the training text.

        Raises:
            CharwrightError: if the training text cannot be read.
        """
        return CopyGuard(self._text_ids(), len(self.vocabulary), max_copy).forbidden

    @property
    def facts(self) -> dict[str, str]:
        """What tells the model from another of its name."""
        return {"created": str(self.created), "sha256": self.sha256}

    @property
    def vocabulary(self) -> Vocabulary:
        """The characters or bytes that the model knows."""
        return self.generator.vocabulary

    def _text_ids(self) -> AnyIds:
        if self._ids is None:
            self._ids = ids_of(self.training_text(self.run), self.vocabulary)
        return self._ids


def load_all(
    named: Sequence[tuple[str | None, Path]],
    training_text: ReadText,
    precision: str = "q8",
    *,
    threads: int | None = None,
) -> dict[str, HostedModel]:
    """Load runs under the given names, by default those of their folders.

    Raises:
        UsageError: if two runs have the same name, or a name is too long.
        RunError: if there is no usable run in a folder.
    """
    models: dict[str, HostedModel] = {}
    for given, folder in named:
        # A link, such as one to the current model, has a name of its own.
        name = given or (folder if folder.name not in ("", "..") else folder.resolve()).name
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise UsageError(f"the name of a model must be Unicode: give it one: NAME={folder}")
        if len(name) > LONGEST_NAME:
            raise UsageError(f"the name of a model has at most {LONGEST_NAME} characters, not {len(name):,}")
        if name in models:
            raise UsageError(f"two runs have the name {name!r}; name one of them: NAME={folder}")
        models[name] = HostedModel.load(name, folder, training_text, precision, threads=threads)
    return models
