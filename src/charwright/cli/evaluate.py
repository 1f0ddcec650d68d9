"""`charwright evaluate`: how well a run predicts a text, with static or dynamic evaluation."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from charwright.cli.options import (
    NamedPath,
    SectionedCommand,
    SectionedOption,
    config_options,
    device_option,
    given,
    say,
    threads_option,
)
from charwright.config import CorpusConfig, RecordsConfig
from charwright.errors import CorpusError, UsageError
from charwright.schema import field_names, flag

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.evaluation.evaluation import Evaluation
    from charwright.model.compute import Wanted
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run

Command = TypeVar("Command", bound=Callable[..., Any])
RECORDS = "records"
TRAINED_ON_IT = "{} was trained on this text: its figure says nothing about new text."

Evaluate = Callable[["Text", str], "Evaluation"]
"""Evaluates a text with a protocol."""


class DynamicOption(SectionedOption):
    """An option of dynamic evaluation."""

    section = "Dynamic evaluation"


def machine_options(command: Command) -> Command:
    """Add the options for device, precision and threads."""
    precision = click.option(
        "--precision",
        type=click.Choice(["f32", "bf16", "q8"]),
        default="f32",
        show_default=True,
        help="Arithmetic: floating point, or the 8-bit integers of `generate` (q8), on the CPU.",
    )
    return device_option(precision(threads_option(command)))


@click.command(cls=SectionedCommand, short_help="Evaluate a run on a text.")
@click.argument("run", type=NamedPath())
@click.argument("corpus", nargs=-1)
@click.option(
    "--protocol",
    help="carried, windows-N (windows of N tokens, each from a zero state), or records, each from a zero state.  "
    "[default: records if the run was trained on records, otherwise carried]",
)
@machine_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option(
    "--dynamic",
    cls=DynamicOption,
    is_flag=True,
    help="Also evaluate a copy that keeps training on each segment of CORPUS after predicting it.",
)
@click.option(
    "--dynamic-rate",
    cls=DynamicOption,
    type=click.FloatRange(min=0),
    default=0.0003,
    show_default=True,
    help="Learning rate of dynamic evaluation; 0 disables training.",
)
@click.option(
    "--dynamic-decay",
    cls=DynamicOption,
    type=click.FloatRange(0, 1),
    default=0.002,
    show_default=True,
    help="Fraction of the way back to the trained weights after each segment.",
)
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def evaluate(
    ctx: click.Context,
    /,
    run: Path,
    corpus: tuple[str, ...],
    protocol: str | None,
    device: str,
    precision: str,
    threads: int | None,
    as_json: bool,
    dynamic: bool,
    dynamic_rate: float,
    dynamic_decay: float,
    **_: Any,
) -> None:
    """Evaluate RUN on CORPUS, in nats and bits per character: lower is better.

    Without a CORPUS, RUN is evaluated on the validation text of its own.
    """
    from charwright.evaluation.protocols import parse_protocol
    from charwright.model.compute import Wanted
    from charwright.run import Run

    opened = Run.open(run)
    records = _records_of(opened, protocol)
    protocol = protocol or "carried"
    if records is None:
        parse_protocol(protocol)
    _check_dynamic(ctx, dynamic, protocol if records is None else RECORDS, precision)
    wanted = Wanted(device, precision=precision, threads=threads)
    evaluate_text = evaluator_of(opened, wanted)
    reading = given(ctx, field_names(CorpusConfig))
    text, sha256 = _given_text(opened, corpus, reading, records) if corpus else _own_text(opened, reading, records)

    static = evaluate_text(text, protocol)
    adapted = _evaluated_dynamically(opened, wanted, text, dynamic_rate, dynamic_decay) if dynamic else None
    if sha256 == opened.config.sha256:
        say(TRAINED_ON_IT.format(run))
    if as_json:
        values = static.to_json() | {"trained_on_text": sha256 == opened.config.sha256, "validation_text": not corpus}
        if adapted is not None:
            values["dynamic"] = adapted[0].to_json() | {
                "rate": dynamic_rate,
                "decay": dynamic_decay,
                "gradient_sizes_from": adapted[1],
            }
        click.echo(json.dumps(values))
        return
    _show(static, adapted)


def _given_text(
    run: Run, corpus: Sequence[str], reading: Mapping[str, Any], records: RecordsConfig | None
) -> tuple[Text, str]:
    """A corpus, divided into records if it is to be, and its SHA-256."""
    from charwright.cli.corpora import read_one
    from charwright.workflow.texts import divided

    read = read_one(corpus, CorpusConfig(**reading))
    if records is None:
        return read.text, read.sha256
    return divided(read.text, records, run.config.record_end), read.sha256


def _own_text(run: Run, reading: Mapping[str, Any], records: RecordsConfig | None) -> tuple[Text, None]:
    """The validation text of a run; it has no SHA-256, as the run was not trained on it.

    Raises:
        UsageError: when the run has none, or reading options are given.
        CorpusError: when the text of the run is gone or has changed.
    """
    from charwright.cli.corpora import texts_again
    from charwright.data.records import Records
    from charwright.workflow.texts import divided

    if reading:
        raise UsageError(f"{flag(next(iter(reading)))} applies to a CORPUS; name one after the run")
    if not run.config.sha256:
        raise UsageError(f"{run.folder} has no text of its own; name a CORPUS after it")
    try:
        _, text = texts_again(run, ())
    except CorpusError as error:
        raise CorpusError(f"{error.for_shell.partition(';')[0]}; name a CORPUS after the run") from None
    if not text:
        raise UsageError(f"{run.folder} has no validation text; name a CORPUS after it")
    say(f"on the validation text of {run.folder}")
    if records is None:
        return text.text if isinstance(text, Records) else text, None
    return text if isinstance(text, Records) else divided(text, records), None


def _records_of(run: Run, protocol: str | None) -> RecordsConfig | None:
    """How a text is divided for the protocol `records`, the default of a run that was trained on them."""
    trained = run.config.recipe.records
    if protocol == RECORDS and trained.records == "none":
        return RecordsConfig("line")
    return trained if protocol == RECORDS or (protocol is None and trained.records != "none") else None


def evaluator_of(run: Run, wanted: Wanted) -> Evaluate:
    """A function that evaluates a run; the weights are read once. The precision may be q8, that of the engine.

    Raises:
        UsageError: when there is no such device on this machine.
        RunError: when the run has no intact weights.
    """
    from charwright.evaluation.evaluate import evaluate_text
    from charwright.evaluation.readers import ModelReader, Reader

    if wanted.precision == "q8":
        if wanted.device not in ("auto", "cpu"):
            raise UsageError(f"--precision q8 computes on the CPU; leave out --device {wanted.device}")
        from charwright.generation.engine import Engine

        reader: Reader = Engine(run.model, run.weights(), threads=wanted.threads)
    else:
        reader = ModelReader(_model_of(run, wanted))
    return partial(evaluate_text, reader, run.vocabulary)


def _model_of(run: Run, wanted: Wanted) -> LanguageModel:
    from charwright.model.language_model import LanguageModel

    compute = wanted.by_rule()
    compute.start()
    return LanguageModel.from_arrays(run.model, run.weights(), compute)


def _check_dynamic(ctx: click.Context, dynamic: bool, protocol: str, precision: str) -> None:
    """Check that the options are compatible."""
    stray = given(ctx, ["dynamic_rate", "dynamic_decay"])
    if stray and not dynamic:
        raise UsageError(f"{flag(next(iter(stray)))} belongs to dynamic evaluation; add --dynamic")
    for name, value in stray.items():
        if not math.isfinite(value):
            raise UsageError(f"{flag(name)} must be finite, not {value}")
    if dynamic and protocol != "carried":
        raise UsageError(f"--dynamic uses one carried stream and does not support {protocol}")
    if dynamic and precision == "q8":
        raise UsageError("--dynamic changes the weights, which q8 does not support; use --precision f32 or bf16")


def _evaluated_dynamically(run: Run, wanted: Wanted, text: Text, rate: float, decay: float) -> tuple[Evaluation, str]:
    """The evaluation, and the source of the gradient statistics: the training text, or this text."""
    from charwright.cli.corpora import training_text
    from charwright.evaluation.dynamic import evaluate_dynamically

    model, source = _model_of(run, wanted), "training text"
    try:
        trained_on = training_text(run, ())
    except CorpusError as error:
        trained_on, source = "", "this text"
        click.echo(f"the training text is not available ({error.for_shell.partition(';')[0]})", err=True)
    with _progress() as progress:
        result = evaluate_dynamically(
            model, run.vocabulary, text, trained_on, rate=rate, decay=decay, progress=progress
        )
    return result, source


@contextmanager
def _progress() -> Iterator[Callable[[float], None]]:
    """A progress bar on a terminal: a hundred thousand characters take a minute."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, TimeRemainingColumn

    from charwright.terminal_bar import terminal_bar

    with terminal_bar("dynamic evaluation", BarColumn(), TimeRemainingColumn()) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _show(static: Evaluation, adapted: tuple[Evaluation, str] | None) -> None:
    click.echo(_line(static))
    if adapted is not None:
        from charwright.evaluation.evaluation import paired_error

        result, source = adapted
        error = paired_error(result.blocks, static.blocks)
        error_known = error if math.isfinite(error) else None
        click.echo(f"{_line(result)}: {difference_shown(result.nats_per_char - static.nats_per_char, error_known)}")
    if static.records is not None:
        click.echo(f"{static.nats_per_record:.4f} nats per record, {static.records:,} records")
    unknown = f", {static.unknown_chars:,} of them not in the vocabulary" if static.unknown_chars else ""
    click.echo(f"{static.chars:,} character{'s' * (static.chars != 1)} predicted{unknown}")
    if adapted is not None:
        click.echo(f"gradient statistics: from {'the ' if source == 'training text' else ''}{source}")


def _line(result: Evaluation) -> str:
    return f"{result.nats_per_char:.4f} nats per character ({result.bits_per_char:.4f} bits), {result.protocol}"


def difference_shown(difference: float, error: float | None) -> str:
    """A difference between two losses, and its standard error if known."""
    return f"{difference:+.3f}" + (f" ± {error:.3f}" if error is not None else "")
