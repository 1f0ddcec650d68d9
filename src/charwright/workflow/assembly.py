"""Assemble the parts of a training run: the model and the dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from charwright.arrays import Arrays
from charwright.config import Recipe
from charwright.data.record_streams import RecordStreams
from charwright.data.records import Records
from charwright.data.sequences import Dataset, make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.data.texts import Text, id_counts, ids_of
from charwright.data.vocabulary import Vocabulary
from charwright.model.compute import Compute
from charwright.model.growth import grow_arrays
from charwright.model.initialization import start_from_frequencies
from charwright.model.language_model import LanguageModel
from charwright.training.batch import TrainStep
from charwright.workflow.distillation import Teachers


@dataclass(frozen=True)
class Assembly:
    """A model before its first step, and its batches; `notice` says if these are smaller than configured.

    `train_step` is that of a model that learns from others, and None for any other.
    """

    model: LanguageModel
    dataset: Dataset
    notice: str | None = None
    train_step: TrainStep | None = None


def assemble(
    recipe: Recipe,
    vocabulary: Vocabulary,
    training_text: Text,
    compute: Compute,
    weights: Arrays | None = None,
    teachers: Teachers | None = None,
    should_stop: Callable[[], str | None] = lambda: None,
) -> Assembly:
    """Build the dataset, and the model on its device; `weights` replace the initial weights.

    With `teachers`, the dataset and the training step are those of their lessons.

    Raises:
        CorpusError: when the text is too short.
        StoppedError: when `should_stop` returns a reason while teachers write and predict.
    """
    training = recipe.training
    if teachers is None:
        step: TrainStep | None = None
        dataset, notice = dataset_of(recipe, vocabulary, training_text)
    else:
        lessons = teachers.lessons(training_text, compute, training, should_stop)
        step = lessons.step
        dataset, notice = lessons.dataset(recipe.sequences, training.seed)
    seed = training.seed if weights is None else None
    model = LanguageModel(
        recipe.model, len(vocabulary), seed=seed, embedding_range=training.embedding_range, compute=compute
    )
    if weights is not None:
        model.load_arrays(weights)
    elif training.output_bias == "frequencies":
        start_from_frequencies(model.weight("head.bias"), id_counts(training_text, vocabulary))
    return Assembly(model, dataset, notice, step)


def dataset_of(recipe: Recipe, vocabulary: Vocabulary, training_text: Text) -> tuple[Dataset, str | None]:
    """The batches of a text, and a notice when they are smaller than configured.

    Raises:
        CorpusError: when the text is too short.
    """
    if isinstance(training_text, Records):
        ids, stops = training_text.ids(vocabulary)
        sequences, notice = shrink_to_fit(len(ids), recipe.sequences)
        return RecordStreams(ids, stops, sequences.seq_length, sequences.batch, recipe.training.seed), notice
    all_ids = ids_of(training_text, vocabulary)
    sequences, notice = shrink_to_fit(len(all_ids), recipe.sequences)
    return make_dataset(all_ids, sequences, recipe.training.seed), notice


def grow_weights(weights: Arrays, vocabulary: Vocabulary, training_text: Text, seed: int) -> Arrays:
    """The weights with rows for a vocabulary that has grown; `training_text` gives the frequencies."""
    key = np.array([seed, 0], dtype=np.uint64)
    return grow_arrays(weights, id_counts(training_text, vocabulary), np.random.Generator(np.random.Philox(key=key)))
