"""`charwright import`: import a Keras or TensorFlow model as a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import NamedPath, SectionedCommand, config_options, given, say
from charwright.config import CorpusConfig, RecordsConfig
from charwright.errors import UsageError, VocabularyError
from charwright.schema import field_names

if TYPE_CHECKING:
    from charwright.arrays import Arrays
    from charwright.config import ModelConfig
    from charwright.data.large_texts import AnyCorpus
    from charwright.data.records import Records
    from charwright.data.texts import Text
    from charwright.data.vocabulary import Vocabulary
    from charwright.interop.foreign_model import ForeignModel
    from charwright.run import Run
    from charwright.run_config import RunRecords

CHECKED_CHARACTERS = 2000
CHANCE_FACTOR = 1.05
"""A loss above this multiple of the uniform distribution's means wrong characters; an untrained model is about at 1."""


@click.command("import", cls=SectionedCommand, short_help="Import a model from Keras or TensorFlow as a run.")
@click.argument("source", metavar="SRC", type=NamedPath())
@click.option("--out", required=True, type=NamedPath(), metavar="RUN", help="Run folder to create.")
@click.option("--corpus", multiple=True, metavar="NAME|FILE", help="The text that the model was trained on.")
@click.option(
    "--vocabulary",
    "vocabulary_file",
    type=NamedPath(),
    metavar="FILE",
    help="The model's characters: a JSON list in id order, or a run's vocabulary.json.",
)
@click.option("--force", is_flag=True, help="Replace an existing run.")
@config_options(CorpusConfig(), "Reading the corpus")
@config_options(RecordsConfig(), "Records")
@click.pass_context
def import_model(
    ctx: click.Context,
    /,
    source: Path,
    out: Path,
    corpus: tuple[str, ...],
    vocabulary_file: Path | None,
    force: bool,
    **_: Any,
) -> None:
    """Import SRC as a run: a .weights.h5, .h5 or .keras file, a TensorFlow checkpoint or a SavedModel folder.

    The model must be an embedding, GRU, LSTM or simple RNN layers, and a dense layer, as in TensorFlow's tutorial. No
    code in SRC is executed. Weights alone do not contain the characters: give the training text with --corpus or the
    characters with --vocabulary. A SavedModel contains them, and if charwright wrote it, also what ends a record and
    the labels.
    """
    from charwright.cli.corpora import read_texts
    from charwright.data.vocabulary import UNKNOWN
    from charwright.interop.foreign_model import fit_rows, read_model
    from charwright.run import Run

    if corpus and vocabulary_file is not None:
        raise UsageError("--corpus and --vocabulary both define the characters; give only one of them")
    Run.check_place(out, force=force)
    model = read_model(source, with_vocabulary=vocabulary_file is None)
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    text = read_texts(corpus, (), reading).corpus if corpus else None
    division = _Division.of(model, given(ctx, field_names(RecordsConfig)), text)
    divided: Text | None = division.text if division and division.text else text.text if text else None
    tokens, tokens_source = _tokens(model, source, (text.name, divided) if text and divided else None, vocabulary_file)
    vocabulary, weights, note = fit_rows(model, tokens, tokens_source)
    nats = _nats(model.config, weights, vocabulary, divided) if divided else None
    below_chance = nats is not None and nats > CHANCE_FACTOR * math.log(len(vocabulary))
    if note and below_chance:
        # The row count is unusual and the predictions are useless: the text has one character too many or too few.
        raise VocabularyError(
            f"the model has {model.tokens:,} tokens but {tokens_source} has {len(vocabulary) - 1:,} characters, not "
            f"counting {UNKNOWN}, and the model predicts it worse than chance"
        )
    if note:
        say(note)
    run = Run.save(
        out,
        model.config,
        weights,
        vocabulary,
        corpus=text,
        reading=reading,
        records=division.of_run if division else None,
        recipe_name=f"imported from {source}",
        force=force,
    )
    _say_model(run, vocabulary)
    if text and divided and nats is not None:
        checked = min(len(divided), CHECKED_CHARACTERS)
        say(f"loss on the first {checked:,} characters of {text.name}: {nats:.4f} nats per character")
        if below_chance:
            chance = f"chance ({math.log(len(vocabulary)):.2f} for {len(vocabulary):,} tokens)"
            say(f"this is worse than {chance}: {text.name} may not be the text that this model was trained on")


@dataclass(frozen=True)
class _Division:
    """How the text of a model of records is divided, what ends each, and the records of the corpus, if it is given."""

    config: RecordsConfig
    end: str
    text: Records | None

    @classmethod
    def of(cls, model: ForeignModel, options: Mapping[str, Any], text: AnyCorpus | None) -> _Division | None:
        """What the options say, and otherwise the model; None for running text."""
        from charwright.data.lists import settled
        from charwright.data.records import ENDS, Records
        from charwright.data.texts import in_memory

        config, end = model.records or (RecordsConfig(), "")
        if options:
            config = RecordsConfig(**{**config.to_json(), **options})
        if config.records == "none":
            return None
        if text is not None:
            config = settled(text.text, config)
        records = Records.parse(in_memory(text.text), config) if text else None
        if "records" in options:
            if records is None and config.expression is not None:
                raise UsageError(f"what does {config.records} match? give the text with --corpus, or the end itself")
            end = records.end if records else ENDS.get(config.records, config.records)
        return cls(config, end, records)

    @property
    def of_run(self) -> tuple[RecordsConfig, RunRecords]:
        """What the run keeps of it."""
        from charwright.run_config import RunRecords

        return self.config, RunRecords(self.end, self.text.count if self.text else 0, 0)


def _tokens(
    model: ForeignModel, source: Path, text: tuple[str, Text] | None, file: Path | None
) -> tuple[Vocabulary | list[str], str]:
    """Return the characters in id order and where they come from; `text` has a name."""
    from charwright.config import VocabularyConfig
    from charwright.data.vocabularies import make_vocabulary
    from charwright.interop.foreign_model import read_vocabulary

    if file is not None:
        return read_vocabulary(file), str(file)
    if model.vocabulary is not None:
        return model.vocabulary, str(source)
    if text is not None:
        name, content = text
        vocabulary = make_vocabulary(content, VocabularyConfig())
        return vocabulary if vocabulary.labels else list(vocabulary.characters), name
    raise UsageError(
        f"{source} does not contain the characters of its {model.tokens:,} tokens: name the training text with "
        "--corpus NAME|FILE, or list them with --vocabulary FILE"
    )


def _say_model(run: Run, vocabulary: Vocabulary) -> None:
    from charwright.run_view import cell_in_words

    model = run.model
    count = sum(map(math.prod, model.weight_shapes(len(vocabulary)).values()))
    layers = "one layer" if model.layers == 1 else f"{model.layers} layers"
    say(f"{run.folder}: {cell_in_words(model)}, {layers} of {model.units:,} units, {count:,} parameters")


def _nats(config: ModelConfig, weights: Arrays, vocabulary: Vocabulary, text: Text) -> float | None:
    """Return the loss on the beginning of the text, in nats per character; wrong characters give one above chance."""
    from charwright.data.labels import label_ids
    from charwright.data.records import Records
    from charwright.generation.engine import Engine

    if isinstance(text, Records):
        ids = text.ids(vocabulary)[0]
        ids = ids[(ids < label_ids(vocabulary).start).cumsum() <= CHECKED_CHARACTERS]
    else:
        ids = vocabulary.encode(text[:CHECKED_CHARACTERS])
    if len(ids) < 2:
        return None
    scores = Engine(config, weights, precision="f32").scores([ids])[0]
    return float(-scores[ids[1:] < label_ids(vocabulary).start].mean())  # A label is no character.
