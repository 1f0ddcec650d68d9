"""How options are declared and checked: the base of the dataclasses in config.py."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import re
import shlex
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from difflib import get_close_matches
from typing import Any, ClassVar, Self

from charwright.arguments import MOST_THREADS, require
from charwright.errors import ConfigError, register

LARGEST = 2**53
"""The maximum of a count that nothing else limits, which a float holds exactly."""
SEEDS = 2**63
"""Random seeds are below this: signed integers of 64 bits, which every library takes."""


def option(
    default: Any,
    help_text: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    none_word: str | None = None,
) -> Any:
    """Make a dataclass field with bounds and a help text.

    `minimum` and `maximum` are inclusive, `above` and `below` exclusive. `none_word` is the command line's spelling of
    None (`--keep-checkpoints all`).
    """
    bounds = {"minimum": minimum, "maximum": maximum, "above": above, "below": below}
    return field(
        default=default,
        metadata={"help": help_text, "choices": choices, "none_word": none_word, **bounds},
    )


def random_seed(default: int | None, help_text: str) -> Any:
    """Make the field of a random seed; its help text says the bound, which nobody would guess."""
    return option(default, f"{help_text} At most {SEEDS - 1}.", minimum=0, maximum=SEEDS - 1)


def flag(name: str) -> str:
    """The command line's spelling of a field name."""
    return "--" + name.replace("_", "-")


def with_old_name(message: str, given: Iterable[str], renamed: Mapping[str, str], names: Iterable[str]) -> str:
    """A complaint about an option, with its old name if it was given by that, which may be a slip of one of `names`."""
    for old in given:
        if old in renamed and message.startswith(f"{flag(renamed[old])} "):
            return f"{message} ({old_name(old, renamed[old], names)})"
    return message


def old_name(old: str, new: str, names: Iterable[str]) -> str:
    """What an option is called now, and which of `names` may be meant instead."""
    others = set(names) - {old, new}
    return f"{flag(old)} is the old name of {flag(new)}{did_you_mean(old, others)}"


def refuse_unknown(names: Iterable[str], known: Iterable[str], old: Iterable[str] = ()) -> None:
    """Check that options exist, by their names or by `old` ones, which are never suggested.

    Raises:
        ConfigError: naming the first that does not, and the one that is spelled like it.
    """
    for name in names:
        if name not in known and name not in old:
            raise ConfigError(f"there is no option `{name}`{did_you_mean(name, known)}")


ELSEWHERE = {
    "lr": "learning_rate", "hidden_size": "units", "hidden_dim": "units", "num_layers": "layers", "rnn": "cell",
    "embedding_dim": "embedding_size", "embed_dim": "embedding_size", "batch_size": "batch", "seq_len": "seq_length",
    "sequence_length": "seq_length", "bptt": "seq_length", "max_steps": "steps", "num_epochs": "epochs",
    "max_new_tokens": "length", "max_tokens": "length", "max_length": "length", "temp": "temperature", "n": "num",
    "num_return_sequences": "num", "grad_clip": "clip_norm", "max_grad_norm": "clip_norm",
}  # fmt: skip
"""What other libraries call an option."""


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The option among `names` that is meant by `name`, as the end of a sentence; empty if there is none."""
    known = sorted(names)
    close = [ELSEWHERE[name]] if ELSEWHERE.get(name, "") in known else get_close_matches(name, known, 1, cutoff=0.75)
    return f"; did you mean {flag(close[0])}?" if close else ""


def quoted(path: str | os.PathLike[str]) -> str:
    """A path as the shell takes it, for the commands that messages show."""
    text = os.fspath(path)
    if os.name == "nt":  # Double quotes are understood by cmd and by PowerShell.
        return text if re.fullmatch(r"[\w:.\\/+=-]+", text) else f'"{text}"'
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else shlex.quote(text)  # Letters of any script are safe.


def field_names(*configs: type) -> list[str]:
    """The names of all fields of some config classes."""
    return [item.name for config in configs for item in fields(config)]


def _option_types(cls: type) -> dict[str, tuple[type, bool]]:
    hints = typing.get_type_hints(cls)
    return {item.name: _plain_type(hints[item.name]) for item in fields(cls)}


# Reading the hints takes longer than generating some texts.
option_types: Callable[[type], dict[str, tuple[type, bool]]] = functools.cache(_option_types)
"""The plain type of each field of a config class, and whether None is allowed."""


def _plain_type(annotation: Any) -> tuple[type, bool]:
    """The plain type behind `int`, `float | None`, `tuple[str, ...]` and so on, and whether None is allowed."""
    if isinstance(annotation, types.UnionType):
        inner = [part for part in typing.get_args(annotation) if part is not type(None)]
        return inner[0], True
    return typing.get_origin(annotation) or annotation, False


def _complaint(value: Any, kind: type, metadata: Mapping[str, Any]) -> str | None:
    """What is wrong with `value`, or None if it is valid."""
    value = _plain(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1000 else math.inf
    if kind is tuple:
        right = isinstance(value, tuple) and all(isinstance(item, str) and item for item in value)
        return None if right else "must be a text that is not empty, or several"
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        return f"must be {words.get(kind, kind.__name__)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "must be a finite number"
    if (choices := metadata.get("choices")) and value not in choices:
        return f"must be one of {', '.join(choices)}"
    if (low := metadata.get("minimum")) is not None and value < low:
        return f"must be at least {_shown(low)}"
    if (high := metadata.get("maximum")) is not None and value > high:
        return f"must be at most {_shown(high)}"
    if (low := metadata.get("above")) is not None and value <= low:
        return f"must be above {_shown(low)}"
    if (high := metadata.get("below")) is not None and value >= high:
        return f"must be below {_shown(high)}"
    return None


def checked_number(name: str, value: Any, *, minimum: int, maximum: int = LARGEST) -> int:
    """An argument that is a whole number, checked as a field of a config class is.

    Raises:
        ConfigError: when it is none, or out of bounds.
    """
    if complaint := _complaint(value, int, {"minimum": minimum, "maximum": maximum}):
        raise ConfigError(f"{flag(name)} {complaint}, not {value!r}")
    return int(value)


def thread_count(given: Any) -> int | None:
    """The number of threads that a caller asks for; None leaves it to the machine.

    Raises:
        ConfigError: when it is not a whole number from 1 to `MOST_THREADS`.
    """
    return None if given is None else checked_number("threads", given, minimum=1, maximum=MOST_THREADS)


def _plain(value: Any) -> Any:
    """A number of NumPy, say, as one of Python."""
    if isinstance(value, int | float):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _shown(bound: float) -> str:
    return str(bound) if isinstance(bound, int) else f"{bound:.15g}"


class Config:
    """The base of the config dataclasses: validation, and conversion to and from plain JSON values."""

    RENAMED: ClassVar[Mapping[str, str]] = {}
    """Keys of the previous version and their present names: files with them stay readable."""
    REMOVED: ClassVar[frozenset[str]] = frozenset()
    """Keys of the previous version that no longer exist and are ignored in files."""

    def __init_subclass__(cls) -> None:
        """Let messages name the options of the class."""
        register({*cls.__annotations__, *cls.RENAMED})

    def __post_init__(self) -> None:
        """Check every field against its type and bounds.

        Raises:
            ConfigError: naming the option, the problem and the value.
        """
        kinds = option_types(type(self))
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            kind, optional = kinds[item.name]
            if value is None and optional:
                continue
            if kind is tuple and isinstance(value, str | list):
                value = (value,) if isinstance(value, str) else tuple(value)
            if complaint := _complaint(value, kind, item.metadata):
                raise ConfigError(f"{flag(item.name)} {complaint}, not {value!r}")
            if kind in (int, float, tuple):
                object.__setattr__(self, item.name, kind(value))

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    @classmethod
    def of(cls, config: Self | None, options: Mapping[str, Any]) -> Self:
        """`config`, or the default one, with some options changed.

        Raises:
            ConfigError: when there is no such option, or a value is out of bounds.
            UsageError: when `config` is something else.
        """
        require(config, (cls, types.NoneType), f"options are those of a {cls.__name__}", "pass each by its name")
        refuse_unknown(options, field_names(cls))
        return dataclasses.replace(config or cls(), **options)  # type: ignore[type-var]

    @classmethod
    def from_json(cls, values: Any, where: str) -> Self:
        """Read what `to_json` wrote; `where` names the place in messages.

        A missing key takes its default, so that older files stay readable.

        Raises:
            ConfigError: at an unknown key, or a value out of bounds.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"{where} must be an object, not {type(values).__name__}")
        values = {cls.RENAMED.get(key, key): value for key, value in values.items() if key not in cls.REMOVED}
        known = {item.name for item in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(set(values) - known):
            raise ConfigError(f"{where} has the unknown key {unknown[0]!r}; it may come from a later version")
        try:
            return cls(**values)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error.for_shell}") from error
