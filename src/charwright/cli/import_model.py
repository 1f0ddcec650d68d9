"""`charwright import`: a model of another program becomes a run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import SectionedCommand, config_options, field_names, given, say
from charwright.config import CorpusConfig
from charwright.errors import UsageError, VocabularyError

if TYPE_CHECKING:
    from charwright.config import ModelConfig
    from charwright.data.corpus import Corpus
    from charwright.data.vocabulary import Vocabulary
    from charwright.interop.imported import Imported
    from charwright.run import Run
    from charwright.storage import Arrays

MEASURED = 2000  # characters
WORSE = 1.05
"""So many times what guessing costs is worse than guessing; an untrained model is about as good."""


@click.command("import", cls=SectionedCommand, short_help="Make a run of a model from Keras or TensorFlow.")
@click.argument("source", metavar="SRC", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), metavar="RUN", help="The run folder to make.")
@click.option("--corpus", multiple=True, metavar="NAME|FILE", help="The text that the model learned from.")
@click.option(
    "--vocabulary",
    "vocabulary_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Its characters: a JSON list in the order of their ids, or a run's vocabulary.json.",
)
@click.option("--force", is_flag=True, help="Put the run in the place of an older one.")
@config_options(CorpusConfig(), "Reading the corpus")
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
    """Make RUN of SRC: a .weights.h5, .h5 or .keras file, a TensorFlow checkpoint or the folder of a SavedModel.

    The model is an embedding, GRU, LSTM or simple recurrent layers, and a dense layer, as in TensorFlow's tutorial.
    Nothing in SRC is executed. Weights alone do not tell which characters they are for: name the text with --corpus, or
    the characters with --vocabulary.
    """
    from charwright.cli.corpora import read_texts
    from charwright.data.corpus import STDIN_PATH
    from charwright.data.vocabulary import UNKNOWN
    from charwright.interop.imported import fit_rows, read_model
    from charwright.run import Run

    if corpus and vocabulary_file is not None:
        raise UsageError("--corpus and --vocabulary both say which characters there are; give one of them")
    Run.check_place(out, force=force)
    model = read_model(source, with_vocabulary=vocabulary_file is None)
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    text = read_texts(corpus, (), reading)[0] if corpus else None
    tokens, told = _tokens(model, source, text, vocabulary_file)
    vocabulary, weights, done = fit_rows(model, tokens, told)
    nats = _nats(model.config, weights, vocabulary, text) if text else None
    nonsense = nats is not None and nats > WORSE * math.log(len(vocabulary))
    if done and nonsense:
        # Another number of rows than Keras's own, and no sense in them: a text that is one character off.
        listed = f"{len(vocabulary) - 1:,} characters, {UNKNOWN} apart, and is predicted worse than guessed"
        raise VocabularyError(
            f"the model has {model.tokens:,} tokens and {told} has {listed}: they do not fit together"
        )
    if done:
        say(done)
    run = Run.save(
        out,
        model.config,
        weights,
        vocabulary,
        corpus=text,
        reading=reading,
        recipe_name=f"imported from {source}",
        force=force,
    )
    if text is not None and text.unrepeatable:
        run.keep_text(STDIN_PATH, text.unrepeatable)
    _tell(run, vocabulary)
    if text is not None and nats is not None:
        say(f"the first {min(len(text.text), MEASURED):,} characters of {text.name}: {nats:.4f} nats per character")
        if nonsense:
            guess = f"guessing among {len(vocabulary):,} tokens ({math.log(len(vocabulary)):.2f})"
            say(f"that is worse than {guess}: {text.name} may not be the text that this model learned from")


def _tokens(
    model: Imported, source: Path, text: Corpus | None, file: Path | None
) -> tuple[Vocabulary | list[str], str]:
    """The characters in the order of their ids, and what told them."""
    from charwright.data.vocabulary import Vocabulary
    from charwright.interop.imported import read_vocabulary

    if file is not None:
        return read_vocabulary(file), str(file)
    if model.vocabulary is not None:
        return model.vocabulary, str(source)
    if text is not None:
        return list(Vocabulary.from_text(text.text).characters), text.name
    raise UsageError(
        f"{source} does not tell which characters its {model.tokens:,} tokens are: name the text that it learned from "
        "with --corpus NAME|FILE, or list them with --vocabulary FILE"
    )


def _tell(run: Run, vocabulary: Vocabulary) -> None:
    model = run.model
    count = sum(map(math.prod, model.weight_shapes(len(vocabulary)).values()))
    layers = "one layer" if model.layers == 1 else f"{model.layers} layers"
    say(f"{run.folder}: {model.cell.upper()}, {layers} of {model.units:,} units, {count:,} parameters")


def _nats(config: ModelConfig, weights: Arrays, vocabulary: Vocabulary, text: Corpus) -> float | None:
    """How well the model predicts the beginning of the text: with the wrong characters, worse than any guess."""
    from charwright.generation.engine import Engine

    ids = vocabulary.encode(text.text[:MEASURED])
    if len(ids) < 2:
        return None
    return float(-Engine(config, weights, precision="f32").scores([ids])[0].mean())
