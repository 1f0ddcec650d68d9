"""`charwright compose`: writing together with a run, in the terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from charwright.cli.options import SectionedCommand, config_options, field_names, fresh_seed, given
from charwright.config import GenerationConfig
from charwright.errors import UsageError

SEEDS = 10_000
"""A seed below this is short enough to be shown in a corner and typed again."""


@click.command(cls=SectionedCommand, short_help="Write together with a run, in the terminal.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--prompt", default="", help="What the text begins with.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Where the text is saved; if the file is there already, you go on with its text.",
)
@config_options(GenerationConfig(), "Writing", only=["temperature", "seed"])
@click.pass_context
def compose(ctx: click.Context, /, run: Path, prompt: str, out: Path | None, **_: Any) -> int:
    """Write a text together with RUN, in the terminal.

    You type, and behind the cursor stands what the model would write next: Tab takes it, Ctrl-N asks for another, and
    Ctrl-G lets the model go on by itself. F1 shows all keys. The text is printed when you leave.
    """
    _require_terminal(run)
    from charwright.cli.editor import Editor
    from charwright.cli.manuscript import Manuscript, TextFile
    from charwright.generation.generator import Generator
    from charwright.run import Run

    options = given(ctx, field_names(GenerationConfig))
    config = GenerationConfig(**{"seed": fresh_seed(SEEDS)} | options)
    file = TextFile(out)
    text = _beginning(file, prompt)
    opened = Run.open(run)
    writer = Generator(opened.model, opened.weights(), opened.vocabulary)
    manuscript = Manuscript(text, temperature=config.temperature, seed=config.seed or 0)
    try:
        return Editor(writer, manuscript, file).run()
    finally:
        # Whatever happened: nothing that was written may be lost.
        with suppress(OSError):  # The terminal may be gone.
            _print(manuscript.text)
            if manuscript.text and file.path is not None and file.holds(manuscript.text):
                click.echo(f"saved to {file.path}", err=True)


def _require_terminal(run: Path) -> None:
    streams = (sys.stdin, sys.stdout)
    if not all(stream is not None and stream.isatty() for stream in streams):
        raise UsageError(f"compose needs a terminal; charwright generate {run} --prompt TEXT writes without one")
    if os.environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError(f"this terminal has no cursor to move; charwright generate {run} --prompt TEXT needs none")


def _beginning(file: Any, prompt: str) -> str:
    """What the text begins with: the file's text, or the prompt."""
    text: str | None = file.read() if file.path is not None else None
    if text and prompt:
        raise UsageError(f"{file.path} has a text already, and you would go on with it: leave --prompt out")
    return text or prompt


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()
