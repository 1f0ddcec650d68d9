"""charwright trains a small recurrent network to write like any text, one character at a time.

corpus -> vocabulary -> sequences -> model -> training loop -> run folder -> generator.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from charwright.config import (
        CorpusConfig,
        GenerationConfig,
        ModelConfig,
        Recipe,
        RecordsConfig,
        SequenceConfig,
        SplitConfig,
        TrainingConfig,
        VocabularyConfig,
    )
    from charwright.data.corpus import Corpus, read_corpus
    from charwright.data.record_streams import RecordStreams
    from charwright.data.records import Records
    from charwright.data.sequences import Excerpts, Streams, Windows
    from charwright.data.split import split_corpus
    from charwright.data.vocabularies import make_vocabulary
    from charwright.data.vocabulary import Vocabulary
    from charwright.errors import CharwrightError
    from charwright.evaluation.evaluate import evaluate
    from charwright.evaluation.evaluation import Evaluation
    from charwright.explanation.explain import explain
    from charwright.explanation.explanation import Explanation
    from charwright.generation.completions import Completion, Completions
    from charwright.generation.draft import Draft, Fragment
    from charwright.generation.engine import Engine
    from charwright.generation.generator import Generator
    from charwright.generation.novelty import CopyGuard, Novelty
    from charwright.generation.record_scores import Score
    from charwright.generation.session import Session
    from charwright.model.language_model import LanguageModel
    from charwright.planning.recipes import RECIPES
    from charwright.plotting.plots import LearningCurves, plot
    from charwright.run import Run
    from charwright.training.batch import Batch
    from charwright.training.loop import fit, train_step
    from charwright.training.optimizer import make_optimizer
    from charwright.training.watching import watch
    from charwright.workflow.ensemble import train_ensemble
    from charwright.workflow.loading import load
    from charwright.workflow.scoring import score
    from charwright.workflow.training import plan, resume, train

    Text = Completion  # The old name, which warns.

# Each public name and its module, imported on first use: the command line must not wait for PyTorch.
_HOMES = {
    "CorpusConfig": "config",
    "GenerationConfig": "config",
    "ModelConfig": "config",
    "Recipe": "config",
    "RecordsConfig": "config",
    "SequenceConfig": "config",
    "SplitConfig": "config",
    "TrainingConfig": "config",
    "VocabularyConfig": "config",
    "Corpus": "data.corpus",
    "read_corpus": "data.corpus",
    "RecordStreams": "data.record_streams",
    "Records": "data.records",
    "Excerpts": "data.sequences",
    "Streams": "data.sequences",
    "Windows": "data.sequences",
    "split_corpus": "data.split",
    "make_vocabulary": "data.vocabularies",
    "Vocabulary": "data.vocabulary",
    "CharwrightError": "errors",
    "Evaluation": "evaluation.evaluation",
    "evaluate": "evaluation.evaluate",
    "explain": "explanation.explain",
    "Explanation": "explanation.explanation",
    "Engine": "generation.engine",
    "Generator": "generation.generator",
    "Completion": "generation.completions",
    "Completions": "generation.completions",
    "CopyGuard": "generation.novelty",
    "Draft": "generation.draft",
    "Fragment": "generation.draft",
    "Novelty": "generation.novelty",
    "Score": "generation.record_scores",
    "Session": "generation.session",
    "LanguageModel": "model.language_model",
    "Run": "run",
    "Batch": "training.batch",
    "fit": "training.loop",
    "make_optimizer": "training.optimizer",
    "train_step": "training.loop",
    "watch": "training.watching",
    "train_ensemble": "workflow.ensemble",
    "load": "workflow.loading",
    "score": "workflow.scoring",
    "plan": "workflow.training",
    "resume": "workflow.training",
    "train": "workflow.training",
    "RECIPES": "planning.recipes",
    "LearningCurves": "plotting.plots",
    "plot": "plotting.plots",
}

__all__ = [
    "RECIPES",
    "Batch",
    "CharwrightError",
    "Completion",
    "Completions",
    "CopyGuard",
    "Corpus",
    "CorpusConfig",
    "Draft",
    "Engine",
    "Evaluation",
    "Excerpts",
    "Explanation",
    "Fragment",
    "GenerationConfig",
    "Generator",
    "LanguageModel",
    "LearningCurves",
    "ModelConfig",
    "Novelty",
    "Recipe",
    "RecordStreams",
    "Records",
    "RecordsConfig",
    "Run",
    "Score",
    "SequenceConfig",
    "Session",
    "SplitConfig",
    "Streams",
    "TrainingConfig",
    "Vocabulary",
    "VocabularyConfig",
    "Windows",
    "__version__",
    "evaluate",
    "explain",
    "fit",
    "load",
    "make_optimizer",
    "make_vocabulary",
    "plan",
    "plot",
    "read_corpus",
    "resume",
    "score",
    "split_corpus",
    "train",
    "train_ensemble",
    "train_step",
    "watch",
]


if not TYPE_CHECKING:  # To a type checker a name that is not listed above is an error.

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            value = getattr(importlib.import_module(f"charwright.{_HOMES[name]}"), name)
            globals()[name] = value
            return value
        if name == "Text":
            warnings.warn("charwright.Text is now charwright.Completion", DeprecationWarning, stacklevel=2)
            return __getattr__("Completion")
        raise AttributeError(f"module 'charwright' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
