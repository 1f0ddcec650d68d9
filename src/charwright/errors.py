"""The exceptions that charwright raises.

    CharwrightError
    ├── UsageError              options that contradict each other
    │   └── OptionError             options whose values do not suit the model
    ├── ConfigError             an option out of bounds, or an unknown key in a file of options
    ├── CorpusError             a text that cannot be used
    │   ├── CorpusNotFoundError     no such file, folder or named corpus
    │   ├── DecodingError           bytes that are not text in the given encoding
    │   └── DownloadError           no network, or not the expected file
    ├── VocabularyError         a vocabulary that is inconsistent or does not fit
    ├── RunError                a run folder that cannot be used
    │   ├── RunNotFoundError        no run in the folder
    │   ├── RunExistsError          the folder already holds a run
    │   ├── RunLockedError          another process trains in the folder
    │   └── DamagedRunError         a file of the run is damaged
    ├── ForeignModelError       a model of another library that cannot be read or written
    ├── DivergedError           training diverges
    ├── StoppedError            training is asked to stop before its first step
    ├── RankError               a process of a distributed training failed, or is unreachable
    └── MissingExtraError       an optional package is not installed

Each message is one line for the user: what is wrong, where, and what to do. It is written once, with options as the
shell has them (`--val-fraction`); `str()` names them as Python does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

_OPTION = re.compile(r"`charwright [^`]*`|: charwright [a-z]+ .*|(?<![\w'\"/-])--([a-z][a-z0-9-]*)")
"""An option in a message, unless it is quoted. Commands for the shell match without the group and stay as they are."""
_IN_PYTHON = {"from": "parent", "teacher": "teachers", "ensemble": "count", "force": "force=True"}
_ARGUMENTS = {
    "out", "force", "device", "core", "threads", "precision", "recipe", "parent", "teachers", "count", "validation",
    "corpus", "by", "separator", "independent", "warm_up", "protocol", "x", "y",
}  # fmt: skip
"""What Python's calls have beside the options of the config classes, which `register` adds."""


def register(names: Iterable[str]) -> None:
    """Let messages name these options as Python has them."""
    _ARGUMENTS.update(names)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory cannot be allocated: Python's, or PyTorch's on any device."""
    # PyTorch has a class for it on accelerators; on the CPU only the message tells.
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    said = ("can't allocate memory", "not enough memory", "out of memory")
    return named or (isinstance(error, RuntimeError) and any(words in str(error) for words in said))


class CharwrightError(Exception):
    """The base class: a problem that the user can do something about."""

    exit_code = 1

    @property
    def for_shell(self) -> str:
        """The message with options as the command line has them: `--val-fraction`."""
        return super().__str__()

    def __str__(self) -> str:
        """The message with options as Python has them: `val_fraction`."""
        return _OPTION.sub(lambda found: _in_python(found[1] or "") or found[0], self.for_shell)


def for_shell(error: BaseException) -> str:
    """The message of any error, with options as the command line has them."""
    return error.for_shell if isinstance(error, CharwrightError) else str(error)


def _in_python(option: str) -> str:
    """What is `--option` on the command line, as an argument of a call; empty if Python has none."""
    name = _IN_PYTHON.get(option, option.replace("-", "_"))
    if name.removeprefix("no_") in _ARGUMENTS and name not in _ARGUMENTS:
        return f"`{name.removeprefix('no_')}=False`"
    return f"`{name}`" if name.partition("=")[0] in _ARGUMENTS else ""


class UsageError(CharwrightError):
    """Options that contradict each other."""

    exit_code = 2


class OptionError(UsageError):
    """Options whose values do not suit the model.

    The message is for the command line; `options` (field names) and `problem` let others name the options their way.
    """

    def __init__(self, problem: str, *options: str) -> None:
        flags = ["--" + option.replace("_", "-") for option in options]
        super().__init__(f"{' and '.join(flags)}: {problem}")
        self.problem, self.options = problem, options

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process raise it: pickle would call the class with the message."""
        return type(self), (self.problem, *self.options)


class ConfigError(CharwrightError):
    """An option out of bounds, or an unknown key in a file of options."""

    exit_code = 2


class CorpusError(CharwrightError):
    """A text that cannot be used."""


class CorpusNotFoundError(CorpusError):
    """There is no such file, folder or named corpus."""


class DecodingError(CorpusError):
    """The bytes are not text in the given encoding."""


class DownloadError(CorpusError):
    """The network fails, or sends another file than expected."""


class VocabularyError(CharwrightError):
    """A vocabulary that is inconsistent, or does not fit the model."""


class RunError(CharwrightError):
    """A run folder that cannot be used."""


class RunNotFoundError(RunError):
    """There is no run in the folder."""


class RunExistsError(RunError):
    """The folder already holds a run."""


class RunLockedError(RunError):
    """Another process trains in the folder."""


class DamagedRunError(RunError):
    """A file of a run is damaged."""


class ForeignModelError(CharwrightError):
    """A model of another library that cannot be read, or a run that cannot be written for it."""


class DivergedError(CharwrightError):
    """Training diverges at every learning rate."""

    exit_code = 3


class StoppedError(CharwrightError):
    """Training is asked to stop before its first step; `reason` is what `should_stop` returned."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"stopped before the first step ({reason}); the same call begins again")
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process raise it: pickle would call the class with the message."""
        return type(self), (self.reason,)


class RankError(CharwrightError):
    """A process of a distributed training failed, or is unreachable."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class MissingExtraError(CharwrightError):
    """An optional package is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package; install it with: pip install 'charwright[{extra}]'")
        self.purpose, self.extra = purpose, extra

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process raise it: pickle would call the class with the message."""
        return type(self), (self.purpose, self.extra)
