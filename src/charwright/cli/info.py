"""`charwright info`: the layers, weights, text and training history of a run."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import NamedPath, say
from charwright.errors import DamagedRunError, RunError, UsageError

if TYPE_CHECKING:
    from charwright.planning.survey import Surveyed
    from charwright.run import Run

SHOWN_LABELS = 20

BARS = 40  # columns of the longest bar of a loss
BESIDE_BARS = 26


@click.command(short_help="Show layers, weights and history of a run.")
@click.argument("run", type=NamedPath(), required=False)
@click.option("--machine", is_flag=True, help="Show what this machine offers, and what auto selects.")
@click.option("--measure", is_flag=True, help="With --machine: measure every way in which this machine can compute.")
@click.option(
    "--plot",
    type=NamedPath(dir_okay=False),
    metavar="FILE.png|svg|pdf",
    help="Save a figure of the losses, as `charwright plot` does.",
)
@click.option("--force", is_flag=True, help="With --plot: replace FILE if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(run: Path | None, machine: bool, measure: bool, plot: Path | None, force: bool, as_json: bool) -> None:
    """Show the layers and weights of RUN, its text, how it computes, and the history of its losses."""
    from charwright.run import Run

    if measure and not machine:
        raise UsageError("--measure measures this machine: use it with --machine")
    if force and plot is None:
        raise UsageError("--force replaces the file of --plot; add --plot FILE")
    if machine and (run is not None or plot is not None):
        raise UsageError(f"--machine shows this machine; leave out {run if run is not None else '--plot'}")
    if machine:
        if measure:
            _print_speeds(as_json=as_json)
        else:
            _print_machine(as_json=as_json)
        return
    if run is None:
        raise UsageError("name a run, or use --machine")

    opened = Run.open(run)
    if plot is not None:
        _plot(opened, plot, force=force)
    if as_json:
        click.echo(json.dumps(_facts(opened), ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    console.print(_summary_table(opened))
    _print_corpus(opened)
    _print_history(opened)
    _, problem = _state_of_weights(opened)
    if problem:
        say(problem)


def _print_machine(*, as_json: bool) -> None:
    from charwright.model.compute import describe_machine

    facts = describe_machine()
    if as_json:
        click.echo(json.dumps(facts))
        return
    for name, value in facts.items():
        click.echo(f"{name.replace('_', ' '):16} {', '.join(value) if isinstance(value, list) else value}")


def _print_speeds(*, as_json: bool) -> None:
    """A line for each candidate as soon as it is measured, and the best at the end; or one JSON object."""
    from charwright.planning.survey import TYPICAL, best_of, survey
    from charwright.run_view import cell_in_words

    found = []
    if not as_json:
        model, batch = TYPICAL.model, TYPICAL.sequences
        click.echo(
            f"characters/s in training, 1 layer of {model.units} {cell_in_words(model)} units with dropout, "
            f"{batch.batch} x {batch.seq_length} characters, {TYPICAL.vocabulary} tokens:"
        )
    for one in survey(workload=TYPICAL):
        found.append(one)
        if not as_json:
            shown = f"{one.speed:>12,.0f}" if one.speed is not None else f"failed: {one.why}"
            click.echo(f"  {one.label:52} {shown}")
    best = best_of(found)
    if as_json:
        click.echo(json.dumps({"best": best and best.label, "candidates": [_candidate(one) for one in found]}))
    elif best is not None:
        click.echo(f"best: {best.label}")


def _candidate(one: Surveyed) -> dict[str, Any]:
    return {
        "label": one.label,
        "device": str(one.compute.device),
        "core": one.compute.core,
        "precision": one.compute.precision_name,
        "kernel": one.compute.kernel,
        "recurrent_dropout": one.masked,
        "chars_per_s": None if one.speed is None else round(one.speed),
        "error": one.why or None,
    }


def _layers(run: Run) -> list[dict[str, Any]]:
    """The rows of the summary: layer, output shape, parameters."""
    model, size = run.model, len(run.vocabulary)
    parameters: dict[str, int] = {}
    for name, shape in model.weight_shapes(size).items():
        layer = name.rsplit(".", 1)[0]
        parameters[layer] = parameters.get(layer, 0) + math.prod(shape)
    widths = {"embedding": model.embedding_size, "head": size, "ngrams": size}
    kinds = {"embedding": "embedding", "head": "dense", "ngrams": "hashed table"}
    if model.multiplicative:
        kinds["recurrent.0"] = f"multiplicative {model.cell}"
    return [
        {
            "name": name,
            "kind": kinds.get(name, model.cell),
            "output": [None, None, widths.get(name, model.units)],
            "parameters": count,
        }
        for name, count in parameters.items()
    ]


def _state_of_weights(run: Run) -> tuple[str, str]:
    """Whether the weights are intact, missing, damaged or unusable, and what is wrong."""
    try:
        run.weights()
    except DamagedRunError as error:
        return "damaged", error.for_shell
    except RunError as error:  # Among others, weights of another vocabulary.
        return ("unusable" if run.has_weights else "missing"), error.for_shell
    return "intact", ""


def _facts(run: Run) -> dict[str, Any]:
    layers = _layers(run)
    return {
        "parameters": sum(layer["parameters"] for layer in layers),
        "layers": layers,
        "vocabulary": len(run.vocabulary),
        "unit": run.vocabulary.level,
        "labels": list(run.vocabulary.labels),
        "weights": _state_of_weights(run)[0],
        "history": run.history(),
        **run.config.to_json(),
    }


def _summary_table(run: Run) -> Any:
    from rich.table import Table
    from rich.text import Text

    layers = _layers(run)
    total = sum(layer["parameters"] for layer in layers)
    # The folder name may contain brackets, which are not markup.
    table = Table(title=Text(str(run.folder)), title_justify="left", caption_justify="left")
    table.caption = f"{total:,} parameters, {total * 4 / 1e6:.2f} MB in float32"
    table.add_column("Layer")
    table.add_column("Output (time, batch, ...)")
    table.add_column("Parameters", justify="right")
    for layer in layers:
        table.add_row(f"{layer['name']} ({layer['kind']})", f"(T, B, {layer['output'][2]})", f"{layer['parameters']:,}")
    return table


def _print_corpus(run: Run) -> None:
    config = run.config
    places = ", ".join(source.location for source in config.sources[:3])
    more = f" and {len(config.sources) - 3} more" if len(config.sources) > 3 else ""
    click.echo(f"\nCorpus: {places or 'not recorded'}{more}")
    if config.characters:
        click.echo(f"{config.characters:,} characters, SHA-256 {config.sha256}")
    if config.records:
        records = config.records
        held_out = f", {records.validation:,} of them for validation" if records.validation else ""
        count = records.training + records.validation  # 0 if it is not known, as in an imported run
        click.echo(f"{f'{count:,} records' if count else 'Records'} that end with {records.end!r}{held_out}")
    if labels := run.vocabulary.labels:
        click.echo(f"{len(labels):,} labels: {', '.join(labels[:SHOWN_LABELS])}{' ...' * (len(labels) > SHOWN_LABELS)}")
    if config.parent:
        step = "" if config.parent.step is None else f" at step {config.parent.step:,}"
        learned = f", trained on {config.parent.characters:,} characters" if config.parent.characters else ""
        click.echo(f"Continues from {config.parent.folder}{step}{learned}")
    if config.teachers:
        click.echo(f"Learns from the predictions of {', '.join(teacher.folder for teacher in config.teachers)}")
    if config.plan:
        read = (
            f"{config.plan['characters']:,} characters ({config.plan['script']}) read {config.plan['passes']:g} times"
        )
        click.echo(f"Planned for {read}")
    if config.compute:
        compute = config.compute
        threads = f", {compute.threads} thread{'' if compute.threads == 1 else 's'}" if compute.threads else ""
        measured = f", fastest of {len(compute.measured)} measured" if compute.measured else ""
        click.echo(f"Computed on {compute}{threads}{measured}")
    click.echo(
        f"Vocabulary: {len(run.vocabulary):,} tokens ({run.vocabulary.level} level). Recipe: {config.recipe_name}"
    )
    if run.model.ngram_bits:
        from charwright.ngrams import in_words

        click.echo(in_words(run.model.ngram_bits, run.model.ngram_order).capitalize())


def _print_history(run: Run) -> None:
    epochs = run.history()
    if not epochs:
        click.echo("No epochs yet.")
        return
    validated = [epoch for epoch in epochs if epoch.get("validation_loss") is not None]
    key, shown = ("validation_loss", validated) if validated else ("train_loss", epochs)
    points = [(epoch["step"], epoch[key]) for epoch in shown]
    name, unit = key.replace("_", " ").capitalize(), "character" if validated else "token"
    click.echo(f"\n{name}, nats per {unit} (bars begin at {_baseline(points):.2f}):")
    for line in chart(points, width=max(1, min(BARS, shutil.get_terminal_size().columns - BESIDE_BARS))):
        click.echo(line)


def _baseline(points: Sequence[tuple[int, float]]) -> float:
    """Where the bars of a chart begin."""
    return min(value for _, value in points) * 0.9


def chart(points: Sequence[tuple[int, float]], rows: int = 16, width: int = BARS) -> list[str]:
    """A bar per point, at most `rows`: the first, the last, and an even selection between."""
    from charwright.notebook import thinned

    low = _baseline(points)
    points = thinned(points, rows)
    high = max(value for _, value in points)
    return [
        f"  step {step:>9,}  {value:.4f}  " + "█" * max(1, round(width * (value - low) / max(high - low, 1e-9)))
        for step, value in points
    ]


def _plot(run: Run, path: Path, *, force: bool) -> None:
    from charwright.plotting.plots import checked_place, plot

    checked_place(path, force=force)
    click.echo(f"wrote {plot(run.folder, x='steps').save(path, force=force)}", err=True)
