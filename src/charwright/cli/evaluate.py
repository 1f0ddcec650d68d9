"""`charwright evaluate`: how well a run predicts a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from charwright.cli.options import SectionedCommand, config_options, field_names, given
from charwright.config import CorpusConfig


@click.command(cls=SectionedCommand, short_help="Measure how well a run predicts a text.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("corpus", nargs=-1, required=True)
@click.option("--protocol", default="carried", show_default=True, help="carried, or windows-N from a zero state each.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
@click.option(
    "--precision",
    type=click.Choice(["f32", "bf16", "q8"]),
    default="f32",
    show_default=True,
    help="Arithmetic of the matrix products; q8 is that of `generate`, in whole numbers, on the CPU.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    run: Path,
    corpus: tuple[str, ...],
    protocol: str,
    device: str,
    precision: str,
    as_json: bool,
    **_: Any,
) -> None:
    """Measure RUN on CORPUS, in nats and bits per character: lower is better."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import read_corpus
    from charwright.evaluate import evaluate as measure_model
    from charwright.evaluate import measure, parse_protocol
    from charwright.run import Run

    parse_protocol(protocol)
    opened = Run.open(run)
    weights = opened.weights()
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    text = read_corpus(corpus, reading, user_places())

    if precision == "q8":
        from charwright.generation.engine import Engine

        result = measure(Engine(opened.model, weights).target_nats, opened.vocabulary, text.text, protocol)
    else:
        from charwright.model.language_model import LanguageModel
        from charwright.model.machine import choose_device, choose_precision

        model = LanguageModel.from_arrays(opened.model, weights).to(choose_device(device))
        model.precision = choose_precision(precision, choose_device(device))
        result = measure_model(model, opened.vocabulary, text.text, protocol)
    if as_json:
        click.echo(json.dumps(result.to_json()))
        return
    click.echo(f"{result.nats_per_char:.4f} nats per character ({result.bits_per_char:.4f} bits), {result.protocol}")
    unknown = f", {result.unknown_chars:,} of them unknown to the model" if result.unknown_chars else ""
    click.echo(f"{result.chars:,} characters predicted{unknown}")
