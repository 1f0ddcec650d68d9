"""charwright teaches a small recurrent network to write like any text, one character at a time.

corpus -> vocabulary -> sequences -> model -> training loop -> run folder -> generator.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from charwright.config import (
        CorpusConfig,
        GenerationConfig,
        ModelConfig,
        Recipe,
        SequenceConfig,
        SplitConfig,
        TrainingConfig,
        VocabularyConfig,
    )
    from charwright.data.corpus import Corpus, read_corpus, split_corpus
    from charwright.data.sequences import Streams, Windows
    from charwright.data.vocabulary import Vocabulary
    from charwright.errors import CharwrightError
    from charwright.evaluate import Evaluation, evaluate
    from charwright.generation.engine import Engine
    from charwright.generation.generator import Generator, Text
    from charwright.generation.novelty import CopyGuard, Novelty
    from charwright.generation.session import Draft, Session
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run
    from charwright.training.batch import Batch
    from charwright.training.loop import fit, make_optimizer, train_step
    from charwright.training.recipes import RECIPES

# Each public name and its module: imported when first asked for, so that the terminal never waits for PyTorch.
_HOMES = {
    "CorpusConfig": "config",
    "GenerationConfig": "config",
    "ModelConfig": "config",
    "Recipe": "config",
    "SequenceConfig": "config",
    "SplitConfig": "config",
    "TrainingConfig": "config",
    "VocabularyConfig": "config",
    "Corpus": "data.corpus",
    "read_corpus": "data.corpus",
    "split_corpus": "data.corpus",
    "Streams": "data.sequences",
    "Windows": "data.sequences",
    "Vocabulary": "data.vocabulary",
    "CharwrightError": "errors",
    "Evaluation": "evaluate",
    "evaluate": "evaluate",
    "Engine": "generation.engine",
    "Generator": "generation.generator",
    "Text": "generation.generator",
    "CopyGuard": "generation.novelty",
    "Draft": "generation.session",
    "Novelty": "generation.novelty",
    "Session": "generation.session",
    "LanguageModel": "model.language_model",
    "Run": "run",
    "Batch": "training.batch",
    "fit": "training.loop",
    "make_optimizer": "training.loop",
    "train_step": "training.loop",
    "RECIPES": "training.recipes",
}

__all__ = [
    "RECIPES",
    "Batch",
    "CharwrightError",
    "CopyGuard",
    "Corpus",
    "CorpusConfig",
    "Draft",
    "Engine",
    "Evaluation",
    "GenerationConfig",
    "Generator",
    "LanguageModel",
    "ModelConfig",
    "Novelty",
    "Recipe",
    "Run",
    "SequenceConfig",
    "Session",
    "SplitConfig",
    "Streams",
    "Text",
    "TrainingConfig",
    "Vocabulary",
    "VocabularyConfig",
    "Windows",
    "__version__",
    "evaluate",
    "fit",
    "make_optimizer",
    "read_corpus",
    "split_corpus",
    "train_step",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(f"charwright.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'charwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """The package itself, whose names always mean what `__all__` promises.

    A module may have the name of what it holds (`evaluate`), and importing it sets that name on the package.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
