"""`charwright generate`: a run and a prompt in, text on stdout as it is made."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from charwright.cli.options import SectionedCommand, config_options, field_names, given
from charwright.config import GenerationConfig
from charwright.errors import CharwrightError


@click.command(cls=SectionedCommand, short_help="Write like a run's text.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", help="What the text begins with; - reads it from standard input.")
@click.option("--no-prompt", "without_prompt", is_flag=True, help="Write only what follows the prompt.")
@config_options(GenerationConfig(), "Writing")
@click.pass_context
def generate(ctx: click.Context, /, run: Path, prompt: str | None, without_prompt: bool, **_: Any) -> None:
    """Write like RUN's text. The prompt comes first, then what the model makes of it."""
    from charwright.generation.generator import Generator
    from charwright.run import Run

    options = given(ctx, field_names(GenerationConfig))
    options.setdefault("seed", _fresh_seed())
    config = GenerationConfig(**options)
    opened = Run.open(run)
    writer = Generator(opened.model, opened.weights(), opened.vocabulary)
    text = _prompt(prompt)
    if unknown := opened.vocabulary.unknown_in(text):
        shown = " ".join(repr(character) for character in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        click.echo(f"the model has never seen {shown}; going on all the same", err=True)
    shown_prompt = "" if without_prompt else text
    if config.num == 1:
        _write(shown_prompt)
        for piece in writer.stream(text, config):
            _write(piece)
        _write("\n")
    else:
        _write_many(writer, text, shown_prompt, config)


def _write_many(writer: Any, text: str, shown_prompt: str, config: GenerationConfig) -> None:
    """All texts are made together; the first is shown as it grows, the others when their turn comes."""
    waiting: list[list[str]] = [[] for _ in range(config.num)]
    _heading(0, config.num)
    _write(shown_prompt)
    for index, piece in writer.write([text] * config.num, config):
        if index == 0:
            _write(piece)
        else:
            waiting[index].append(piece)
    _write("\n")
    for index, pieces in enumerate(waiting[1:], start=1):
        _heading(index, config.num)
        _write(shown_prompt + "".join(pieces) + "\n")


def _heading(index: int, count: int) -> None:
    """Which text comes now; on stderr, so that stdout holds generated text alone."""
    sys.stdout.flush()
    click.echo(f"--- {index + 1} of {count} ---", err=True)


def _write(piece: str) -> None:
    sys.stdout.write(piece)
    sys.stdout.flush()


def _prompt(given_prompt: str | None) -> str:
    """The prompt from the option, or from standard input when it is asked for or something is piped in."""
    if given_prompt is not None and given_prompt != "-":
        return given_prompt
    if sys.stdin is None or (given_prompt is None and sys.stdin.isatty()):
        return ""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise CharwrightError(f"the prompt on standard input is not UTF-8: byte {error.start} does not fit") from error
    # A shell's last newline belongs to the pipe, not to the prompt.
    return text.replace("\r\n", "\n").removesuffix("\n")


def _fresh_seed() -> int:
    import secrets

    return secrets.randbits(32)
