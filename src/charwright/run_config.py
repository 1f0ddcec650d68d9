"""`config.json` of a run folder: the recipe, the text and the versions that a run was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from charwright.config import CorpusConfig, ModelConfig, Recipe
from charwright.data.corpus import Source
from charwright.errors import ConfigError, DamagedRunError
from charwright.storage import FORMAT, checked, exact_object

RUN_CORES = ("native", "fused", "torch", "plain")
PRECISIONS = ("f32", "bf16")


@dataclass(frozen=True)
class Parent:
    """The run that another one continues from: `from` in config.json.

    `folder` is as given on the command line; `step` is that of the weights, or None if unknown; `characters` and
    `sha256` describe the parent's corpus.
    """

    folder: str
    step: int | None
    characters: int
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"run": self.folder, "step": self.step, "characters": self.characters, "sha256": self.sha256}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Parent:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        entry = exact_object(values, {"run", "step", "characters", "sha256"}, where)
        return cls(
            folder=checked(entry["run"], str, f"{where}.run"),
            step=None if entry["step"] is None else checked(entry["step"], int, f"{where}.step"),
            characters=checked(entry["characters"], int, f"{where}.characters"),
            sha256=checked(entry["sha256"], str, f"{where}.sha256"),
        )


@dataclass(frozen=True)
class Teacher:
    """A run from whose predictions another one learns: an entry of `teachers` in config.json.

    `folder` is its absolute path; `sha256` is that of its weights.
    """

    folder: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {"run": self.folder, "sha256": self.sha256}

    @classmethod
    def from_json(cls, values: Any, where: str) -> Teacher:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        entry = exact_object(values, {"run", "sha256"}, where)
        return cls(*(checked(entry[name], str, f"{where}.{name}") for name in ("run", "sha256")))


@dataclass(frozen=True)
class ComputeRecord:
    """How a run computes: `compute` in config.json.

    `kernel` is the variant of the C kernels, or None for a core without them; `threads` is the number that the user
    gave, or None. `measured` are characters per second of the candidates by their labels, if the choice was measured.
    """

    device: str
    core: str
    precision: str
    kernel: str | None
    threads: int | None = None
    measured: Mapping[str, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: str) -> ComputeRecord:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        entry = exact_object(values, {"device", "core", "precision", "kernel", "threads", "measured"}, where)
        names = {name: checked(entry[name], str, f"{where}.{name}") for name in ("device", "core", "precision")}
        for name, allowed in (("core", RUN_CORES), ("precision", PRECISIONS)):
            if names[name] not in allowed:
                raise DamagedRunError(f"{where}.{name} must be one of {', '.join(allowed)}, not {names[name]!r}")
        kernel = None if entry["kernel"] is None else checked(entry["kernel"], str, f"{where}.kernel")
        if kernel is not None and names["core"] != "native":
            raise DamagedRunError(f"{where}.kernel must be null, not {kernel!r}, for the core {names['core']}")
        threads = None if entry["threads"] is None else checked(entry["threads"], int, f"{where}.threads")
        if threads is not None and threads < 1:
            raise DamagedRunError(f"{where}.threads must be at least 1, not {threads}")
        return cls(
            **names,
            kernel=kernel,
            threads=threads,
            measured=None if entry["measured"] is None else _speeds(entry["measured"], f"{where}.measured"),
        )

    def __str__(self) -> str:
        """`the cpu by the native core in f32 (avx512)`."""
        variant = f" ({self.kernel})" if self.kernel else ""
        return f"the {self.device} by the {self.core} core in {self.precision}{variant}"


def _speeds(values: Any, where: str) -> dict[str, int]:
    return {label: checked(speed, int, f"{where}.{label}") for label, speed in checked(values, dict, where).items()}


@dataclass(frozen=True)
class RunRecords:
    """The records of a run: `records` in config.json. What ends each of them, and how many there are on each side."""

    end: str
    training: int
    validation: int

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any, where: str) -> RunRecords:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        entry = exact_object(values, {"end", "training", "validation"}, where)
        counts = {name: checked(entry[name], int, f"{where}.{name}") for name in ("training", "validation")}
        end = checked(entry["end"], str, f"{where}.end")
        if not end:
            raise DamagedRunError(f"{where}.end must not be empty")
        return cls(end, **counts)


@dataclass(frozen=True)
class RunConfig:
    """The content of `config.json`.

    `corpus` is how files were decoded; `sources`, `characters` and `sha256` identify the text, and are empty for a
    model that was saved without one. `parent` is the run whose weights this one started from, `teachers` are those
    whose predictions it learns from. `plan` is what the recipe was derived from, if it was planned; `compute` is how
    the run computes, if that is known. `records` are what the text is divided into, if it is.
    """

    recipe: Recipe
    recipe_name: str
    sources: tuple[Source, ...]
    corpus: CorpusConfig
    characters: int
    sha256: str
    validation: tuple[Source, ...]
    versions: Mapping[str, str]
    parent: Parent | None = None
    teachers: tuple[Teacher, ...] = ()
    plan: Mapping[str, Any] | None = None
    compute: ComputeRecord | None = None
    records: RunRecords | None = None
    removed: Mapping[str, Any] = field(default_factory=dict)
    """Options of an earlier version that the run was trained with and this version no longer has; not written."""

    @property
    def record_end(self) -> str | None:
        """What ends each record; None if the run was trained on running text."""
        return self.records.end if self.records else None

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "format": FORMAT,
            **({"from": self.parent.to_json()} if self.parent else {}),
            **({"teachers": [teacher.to_json() for teacher in self.teachers]} if self.teachers else {}),
            "recipe_name": self.recipe_name,
            "recipe": self.recipe.to_json(),
            "corpus": {
                "characters": self.characters,
                "sha256": self.sha256,
                "reading": self.corpus.to_json(),
                "sources": [asdict(source) for source in self.sources],
                "validation": [asdict(source) for source in self.validation],
            },
            **({"plan": dict(self.plan)} if self.plan else {}),
            **({"compute": self.compute.to_json()} if self.compute else {}),
            **({"records": self.records.to_json()} if self.records else {}),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_json(cls, values: Any, where: str) -> RunConfig:
        """Read what `to_json` wrote.

        Raises:
            DamagedRunError: naming the key that is missing, unknown or wrong.
        """
        keys = {"format", "recipe_name", "recipe", "corpus", "versions"}
        keys |= {"from", "teachers", "plan", "compute", "records"} & set(values if isinstance(values, dict) else ())
        top = exact_object(values, keys, where)
        corpus = exact_object(
            top["corpus"], {"characters", "sha256", "reading", "sources", "validation"}, f"{where}: corpus"
        )
        try:
            return cls(
                recipe=Recipe.from_json(top["recipe"], f"{where}: recipe"),
                recipe_name=checked(top["recipe_name"], str, f"{where}: recipe_name"),
                sources=_sources(corpus["sources"], f"{where}: corpus.sources"),
                corpus=CorpusConfig.from_json(corpus["reading"], f"{where}: corpus.reading"),
                characters=checked(corpus["characters"], int, f"{where}: corpus.characters"),
                sha256=checked(corpus["sha256"], str, f"{where}: corpus.sha256"),
                validation=_sources(corpus["validation"], f"{where}: corpus.validation"),
                versions=checked(top["versions"], dict, f"{where}: versions"),
                parent=Parent.from_json(top["from"], f"{where}: from") if "from" in top else None,
                teachers=_teachers(top.get("teachers", []), f"{where}: teachers"),
                plan=_plan(top["plan"], f"{where}: plan") if "plan" in top else None,
                compute=ComputeRecord.from_json(top["compute"], f"{where}: compute") if "compute" in top else None,
                records=RunRecords.from_json(top["records"], f"{where}: records") if "records" in top else None,
                removed=_removed(top["recipe"]),
            )
        except ConfigError as error:
            raise DamagedRunError(error.for_shell) from error


def _removed(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a recipe that this version no longer has, as far as they were in use."""
    return {name: value for name, value in recipe.get("model", {}).items() if name in ModelConfig.REMOVED and value}


def _teachers(values: Any, where: str) -> tuple[Teacher, ...]:
    listed = checked(values, list, where)
    return tuple(Teacher.from_json(value, f"{where}[{index}]") for index, value in enumerate(listed))


def _plan(values: Any, where: str) -> dict[str, Any]:
    """The record of a plan, as `planning.plan.Plan.to_json` writes it."""
    kinds: dict[str, type] = {"characters": int, "tokens": int, "vocabulary": int, "script": str, "passes": float}
    kinds |= {"speeds": dict, "reasons": dict}
    plan = exact_object(values, set(kinds), where)
    return {name: checked(plan[name], kind, f"{where}.{name}") for name, kind in kinds.items()}


def _sources(values: Any, where: str) -> tuple[Source, ...]:
    listed = checked(values, list, where)
    return tuple(_source(value, f"{where}[{index}]") for index, value in enumerate(listed))


def _source(values: Any, where: str) -> Source:
    entry = exact_object(values, {"kind", "location", "sha256", "characters"}, where)
    return Source(
        kind=checked(entry["kind"], str, f"{where}.kind"),
        location=checked(entry["location"], str, f"{where}.location"),
        sha256=checked(entry["sha256"], str, f"{where}.sha256"),
        characters=checked(entry["characters"], int, f"{where}.characters"),
    )
