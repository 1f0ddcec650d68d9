"""Everything that charwright raises on purpose.

    CharwrightError
    ├── UsageError              options that contradict each other
    ├── ConfigError             an option out of its bounds, an unknown key in a file of options
    ├── CorpusError             a text that cannot be used
    │   ├── CorpusNotFoundError     no file, folder or name like that
    │   ├── DecodingError           bytes that are no text in the given encoding
    │   └── DownloadError           no network, or not the file that was expected
    ├── VocabularyError         a vocabulary that contradicts itself or does not fit
    ├── RunError                a run folder that cannot be used
    │   ├── RunNotFoundError        no run there
    │   ├── RunExistsError          a run there already
    │   └── DamagedRunError         a file in it that is not what it should be
    ├── ForeignModelError       a model of another program that cannot be read, or not written for it
    ├── DivergedError           the loss is no longer a number
    └── MissingExtraError       an optional package that is not installed

The message of each is one line for the person at the terminal: what is wrong, where, and what to do.
"""

from __future__ import annotations


class CharwrightError(Exception):
    """The root of the tree: a mistake or a misfortune that the user can do something about."""

    exit_code = 1


class UsageError(CharwrightError):
    """Options that contradict each other."""

    exit_code = 2


class ConfigError(CharwrightError):
    """An option out of its bounds, or an unknown key in a file of options."""

    exit_code = 2


class CorpusError(CharwrightError):
    """A text that cannot be used."""


class CorpusNotFoundError(CorpusError):
    """No file, folder or named corpus like that."""


class DecodingError(CorpusError):
    """Bytes that are no text in the given encoding."""


class DownloadError(CorpusError):
    """No network, or not the file that was expected."""


class VocabularyError(CharwrightError):
    """A vocabulary that contradicts itself, or does not fit what it is used with."""


class RunError(CharwrightError):
    """A run folder that cannot be used."""


class RunNotFoundError(RunError):
    """There is no run in that folder."""


class RunExistsError(RunError):
    """There is a run in that folder already."""


class DamagedRunError(RunError):
    """A file of a run is not what it should be."""


class ForeignModelError(CharwrightError):
    """A model of another program that cannot be read, or one of ours that cannot be written for it."""


class DivergedError(CharwrightError):
    """The training loss is no longer a finite number."""

    exit_code = 3


class MissingExtraError(CharwrightError):
    """An optional package is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs an optional package; install it with: pip install 'charwright[{extra}]'")
