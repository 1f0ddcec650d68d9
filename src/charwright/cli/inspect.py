"""`charwright inspect`: the first half of the tutorial on a terminal, from the text to the untrained model."""

from __future__ import annotations

from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    WEIGHT_DROPOUT_ADVICE,
    SectionedCommand,
    config_options,
    given,
    removed_option,
    seed_option,
)
from charwright.cli.score_table import safe
from charwright.config import CorpusConfig, ModelConfig, RecordsConfig, SequenceConfig, VocabularyConfig
from charwright.schema import field_names

if TYPE_CHECKING:
    from collections import Counter

    from charwright.data.records import Records
    from charwright.data.sequences import Dataset
    from charwright.data.texts import Text
    from charwright.data.vocabulary import Vocabulary

SHOWN = 250


@click.command(cls=SectionedCommand, short_help="Show a text as the model sees it.")
@click.argument("corpus", nargs=-1, required=True)
@click.option(
    "--recipe", "recipe_name", default="tutorial", show_default=True, metavar="NAME|FILE", help="Options to start from."
)
@seed_option(1, "Random seed for batch order and weights.")
@removed_option("--weight-dropout", WEIGHT_DROPOUT_ADVICE)
@config_options(ModelConfig(units=1024, embedding_size=256), "Model")
@config_options(SequenceConfig(order="windows", batch=64, seq_length=100), "Sequences")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(RecordsConfig(), "Records")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def inspect(ctx: click.Context, /, corpus: tuple[str, ...], recipe_name: str, seed: int, **_: Any) -> None:
    """Show CORPUS as the model sees it: text, vocabulary, sequences, batches, and the output of an untrained model.

    Batches and model are those of a recipe. `charwright train CORPUS --explain-plan` shows what is planned for CORPUS.
    """
    from charwright.cli.corpora import read_one
    from charwright.data.lists import is_list, settled
    from charwright.data.records import Records
    from charwright.data.texts import character_counts, ids_of
    from charwright.data.vocabularies import vocabulary_to_train
    from charwright.planning.recipe_file import recipe_of
    from charwright.workflow.assembly import dataset_of
    from charwright.workflow.texts import divided

    options = given(ctx, field_names(VocabularyConfig, RecordsConfig, SequenceConfig, ModelConfig))
    if options.get("records", "none") != "none":
        options = {"order": "streams"} | options
    recipe = recipe_of(recipe_name).with_options({**options, "seed": seed})
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    corpus_read = read_one(corpus, reading)
    text = divided(corpus_read.text, settled(corpus_read.text, recipe.records))
    vocabulary = vocabulary_to_train(text, recipe.vocabulary)
    ids = ids_of(text, vocabulary)
    dataset, word = dataset_of(recipe, vocabulary, text)
    counts = character_counts(text)

    _show_text(corpus_read.name, text, counts)
    _show_vocabulary(vocabulary, counts)
    if isinstance(text, Records):
        _show_records(text)
    _show_sequences(vocabulary, ids, dataset.seq_length)
    _show_batch(dataset, word)
    end = text.end if isinstance(text, Records) else None
    _show_untrained(vocabulary, dataset, recipe.model, seed, recipe.training.embedding_range, end)
    if "records" not in options and is_list(corpus_read.text):
        click.echo("(train takes this list as records, one for each line: see inspect --records line)")
    if recipe_name == "tutorial" and not options.keys() & set(field_names(ModelConfig)):
        click.echo("(the size of the tutorial's model; train plans one for the text and the time, see --explain-plan)")


def _heading(title: str) -> None:
    click.echo()
    click.secho(title, bold=True)


def _show_text(name: str, text: Text, counts: Counter[str]) -> None:
    _heading(f"Text: {name}")
    lines = counts["\n"]
    click.echo(f"{len(text):,} characters, {lines:,} line{'s' * (lines != 1)}. The first {min(SHOWN, len(text))}:")
    click.echo("\n".join("  | " + safe(line.expandtabs()) for line in text[:SHOWN].splitlines()))


def _show_vocabulary(vocabulary: Vocabulary, counts: Counter[str]) -> None:
    _heading(f"Vocabulary: {len(vocabulary):,} tokens")
    if vocabulary.level == "byte":
        click.echo("[UNK] = 0, then the 256 bytes of UTF-8")
        return
    listed = [f"{i} {_shown(character)} {counts[character]:,}" for i, character in enumerate(vocabulary.characters, 1)]
    most = 100
    click.echo("id, character, count:")
    unknown = counts.keys() - set(vocabulary.characters)
    others = f" {sum(counts[character] for character in unknown):,} ({len(unknown):,} characters)" if unknown else ""
    click.echo("  " + "   ".join([f"0 [UNK]{others}", *listed[:most]]))
    if len(listed) > most:
        once = sum(n == 1 for n in counts.values())
        click.echo(f"  ... and {len(listed) - most:,} more{f'; {once:,} occur once' if once else ''}")
    if labels := vocabulary.labels:
        click.echo(f"labels: {', '.join(labels[:most])}{' ...' if len(labels) > most else ''}")


def _show_records(records: Records) -> None:
    _heading(f"Records: {records.count:,}, each ends with {records.end!r}")
    lengths = [len(record) for record in records]
    mean = sum(lengths) / len(lengths)
    click.echo(f"{min(lengths):,} to {max(lengths):,} characters, {mean:.1f} on average. The first:")
    for record, label in zip(islice(records, 5), records.labels or repeat(""), strict=False):
        shown = record if len(record) <= SHOWN else record[:SHOWN] + " ..."
        click.echo(f"  | {f'[{label}] ' if label else ''}{shown!r}")


def _shown(character: str) -> str:
    """A character, or its escape if it is not visible."""
    return character if character.isprintable() and not character.isspace() else repr(character)


def _show_sequences(vocabulary: Vocabulary, ids: Any, seq_length: int) -> None:
    _heading(f"A sequence of {seq_length}: the target is the input shifted by one")
    piece = ids[: seq_length + 1]
    click.echo(f"ids     {' '.join(map(str, piece[:15].tolist()))} ...")
    click.echo(f"input   {vocabulary.decode(piece[:-1])!r}")
    click.echo(f"target  {vocabulary.decode(piece[1:])!r}")
    for step in range(min(5, len(piece) - 1)):
        seen, wanted = vocabulary.decode(piece[step : step + 1]), vocabulary.decode(piece[step + 1 : step + 2])
        click.echo(f"  step {step}: input {piece[step]} ({seen!r}), target {piece[step + 1]} ({wanted!r})")


def _show_batch(dataset: Dataset, word: str | None) -> None:
    _heading("Batches")
    if word:
        click.echo(word)
    inputs, targets = next(iter(dataset.batches(1)))
    click.echo(f"inputs {inputs.shape} and targets {targets.shape}, as (time, batch), {inputs.dtype}")
    click.echo(f"{dataset.steps_per_epoch:,} batch{'es' * (dataset.steps_per_epoch != 1)} per epoch")


def _show_untrained(
    vocabulary: Vocabulary,
    dataset: Dataset,
    config: ModelConfig,
    seed: int,
    embedding_range: float,
    record_end: str | None,
) -> None:
    import math

    import torch
    import torch.nn.functional as F

    from charwright.generation.generator import Generator
    from charwright.model.language_model import LanguageModel

    model = LanguageModel(config, len(vocabulary), seed=seed, embedding_range=embedding_range).eval()
    _heading(f"Model: {sum(weight.numel() for weight in model.parameters()):,} parameters, untrained")
    for name, shape in config.weight_shapes(len(vocabulary)).items():
        click.echo(f"  {name:24} {' x '.join(map(str, shape)):>14}  {math.prod(shape):>12,}")
    inputs, targets = next(iter(dataset.batches(1)))
    with torch.no_grad():
        logits, _ = model(torch.from_numpy(inputs))
        loss = float(F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(targets).flatten()))
    click.echo(f"logits {tuple(logits.shape)}, as (time, batch, vocabulary)")
    click.echo(f"loss {loss:.4f} nats per token; ln V = {math.log(len(vocabulary)):.4f}: close to a uniform guess")
    chances, ids = torch.softmax(logits[0, 0], dim=0).topk(min(3, len(vocabulary)))
    likeliest = ", ".join(f"{vocabulary.decode([i])!r} {p:.3f}" for p, i in zip(chances, ids.tolist(), strict=True))
    click.echo(
        f"likeliest after {vocabulary.decode(inputs[:1, 0])!r}: {likeliest}; a sample is drawn from such chances"
    )
    generator = Generator.of(model, vocabulary, record_end=record_end)
    written = generator.generate(length=100, temperature=1.0, seed=seed)[0].continuation
    click.echo(f"sample {written!r}")
