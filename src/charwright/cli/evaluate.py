"""`charwright evaluate`: how well a run predicts a text, as it is or as it goes on learning."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from charwright.cli.options import SectionedCommand, SectionedOption, config_options, field_names, given
from charwright.config import CorpusConfig, flag
from charwright.errors import CorpusError, UsageError

if TYPE_CHECKING:
    from charwright.evaluate import Evaluation
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])
Measure = Callable[[str, str], "Evaluation"]
"""Measures a text by a protocol."""


class DynamicOption(SectionedOption):
    """An option of dynamic evaluation."""

    section = "Dynamic evaluation"


def machine_options(command: Command) -> Command:
    """Give a command the options that say where and in which arithmetic it measures."""
    precision = click.option(
        "--precision",
        type=click.Choice(["f32", "bf16", "q8"]),
        default="f32",
        show_default=True,
        help="Arithmetic of the matrix products; q8 is that of `generate`, in whole numbers, on the CPU.",
    )
    device = click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or mps.")
    return device(precision(command))


@click.command(cls=SectionedCommand, short_help="Measure how well a run predicts a text.")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("corpus", nargs=-1, required=True)
@click.option("--protocol", default="carried", show_default=True, help="carried, or windows-N from a zero state each.")
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--dynamic",
    cls=DynamicOption,
    is_flag=True,
    help="Measure also a copy that goes on learning from each piece of CORPUS once it has predicted it.",
)
@click.option(
    "--dynamic-rate",
    cls=DynamicOption,
    type=click.FloatRange(min=0),
    default=0.0003,
    show_default=True,
    help="How far a piece moves the weights; 0 learns nothing.",
)
@click.option(
    "--dynamic-decay",
    cls=DynamicOption,
    type=click.FloatRange(0, 1),
    default=0.002,
    show_default=True,
    help="Share of the way back to the trained weights that they go after each piece.",
)
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
    dynamic: bool,
    dynamic_rate: float,
    dynamic_decay: float,
    **_: Any,
) -> None:
    """Measure RUN on CORPUS, in nats and bits per character: lower is better."""
    from charwright.cli.download import user_places
    from charwright.data.corpus import read_corpus
    from charwright.evaluate import parse_protocol
    from charwright.run import Run

    parse_protocol(protocol)
    _check_dynamic(ctx, dynamic, protocol, precision)
    opened = Run.open(run)
    measure = measure_of(opened, device, precision)
    reading = CorpusConfig(**given(ctx, field_names(CorpusConfig)))
    text = read_corpus(corpus, reading, user_places()).text

    static = measure(text, protocol)
    learned = _measured_dynamically(opened, device, precision, text, dynamic_rate, dynamic_decay) if dynamic else None
    if as_json:
        values = static.to_json()
        if learned is not None:
            values["dynamic"] = learned[0].to_json() | {
                "rate": dynamic_rate,
                "decay": dynamic_decay,
                "gradient_sizes_from": learned[1],
            }
        click.echo(json.dumps(values))
        return
    _show(static, learned)


def measure_of(run: Run, device: str, precision: str) -> Measure:
    """What measures a run, on a device and in a precision by name; its weights are read once.

    Raises:
        UsageError: when there is no such device here.
        RunError: when the run has no weights, or damaged ones.
    """
    from charwright.evaluate import evaluate as measure_model
    from charwright.evaluate import measure

    if precision == "q8":
        from charwright.generation.engine import Engine

        engine = Engine(run.model, run.weights())
        return lambda text, protocol: measure(engine.target_nats, run.vocabulary, text, protocol)
    model = _model_of(run, device, precision)
    return lambda text, protocol: measure_model(model, run.vocabulary, text, protocol)


def _model_of(run: Run, device: str, precision: str) -> LanguageModel:
    from charwright.model.language_model import LanguageModel
    from charwright.model.machine import choose_device, choose_precision

    model = LanguageModel.from_arrays(run.model, run.weights()).to(choose_device(device))
    model.precision = choose_precision(precision, choose_device(device))
    return model


def _check_dynamic(ctx: click.Context, dynamic: bool, protocol: str, precision: str) -> None:
    """See that what was asked for goes together."""
    lonely = given(ctx, ["dynamic_rate", "dynamic_decay"])
    if lonely and not dynamic:
        raise UsageError(f"{flag(next(iter(lonely)))} is about learning on; ask for it with --dynamic")
    if dynamic and protocol != "carried":
        raise UsageError(f"--dynamic learns along one carried stream and cannot be measured in {protocol}")
    if dynamic and precision == "q8":
        raise UsageError("--dynamic changes the weights, which q8 cannot; take --precision f32 or bf16")


def _measured_dynamically(
    run: Run, device: str, precision: str, text: str, rate: float, decay: float
) -> tuple[Evaluation, str]:
    """The evaluation, and where the sizes of the gradients came from: the training text, or this one."""
    from charwright.cli.corpora import training_text
    from charwright.dynamic import evaluate_dynamically

    model, source = _model_of(run, device, precision), "training text"
    try:
        trained_on = training_text(run, ())
    except CorpusError as error:
        trained_on, source = "", "this text"
        click.echo(f"the training text is not at hand ({str(error).partition(';')[0]})", err=True)
    with _progress() as progress:
        result = evaluate_dynamically(
            model, run.vocabulary, text, trained_on, rate=rate, decay=decay, progress=progress
        )
    return result, source


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A bar where a person is looking: this takes a minute for a hundred thousand characters."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TimeRemainingColumn

    columns = ("learning on", BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _show(static: Evaluation, learned: tuple[Evaluation, str] | None) -> None:
    click.echo(_line(static))
    if learned is not None:
        from charwright.evaluate import paired_error

        result, source = learned
        error = paired_error(result.blocks, static.blocks)
        error_known = error if math.isfinite(error) else None
        click.echo(f"{_line(result)}: {difference_shown(result.nats_per_char - static.nats_per_char, error_known)}")
    unknown = f", {static.unknown_chars:,} of them unknown to the model" if static.unknown_chars else ""
    click.echo(f"{static.chars:,} characters predicted{unknown}")
    if learned is not None:
        click.echo(f"sizes of the gradients: from {'the ' if source == 'training text' else ''}{source}")


def _line(result: Evaluation) -> str:
    return f"{result.nats_per_char:.4f} nats per character ({result.bits_per_char:.4f} bits), {result.protocol}"


def difference_shown(difference: float, error: float | None) -> str:
    """A difference between two losses, and its standard error where that is known."""
    return f"{difference:+.3f}" + (f" ± {error:.3f}" if error is not None else "")
