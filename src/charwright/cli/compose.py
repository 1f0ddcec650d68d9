"""`charwright compose`: write a text together with a model, in the terminal."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import NamedPath, SectionedCommand, config_options, fresh_seed, given
from charwright.config import GenerationConfig
from charwright.errors import MissingExtraError, UsageError
from charwright.schema import field_names, quoted

if TYPE_CHECKING:
    from charwright.compose.text_file import TextFile

SEEDS = 10_000
"""Random seeds are below this: short enough for the status line, and to type again."""


@click.command(cls=SectionedCommand, short_help="Write a text together with a model, in the terminal.")
@click.argument("run", type=NamedPath())
@click.option("--prompt", default="", help="The beginning of the text.")
@click.option(
    "--out",
    type=NamedPath(dir_okay=False),
    metavar="FILE",
    help="The file to save to; if it exists, you continue its text.",
)
@click.option("--label", metavar="NAME", help="The label of the records that you write.")
@config_options(GenerationConfig(), "Sampling", only=["temperature", "seed"])
@click.pass_context
def compose(ctx: click.Context, /, run: Path, prompt: str, out: Path | None, label: str | None, **_: Any) -> int:
    """Write a text together with the model of RUN, in the terminal.

    As you type, the model suggests a continuation after the cursor: Tab accepts it, Ctrl-N shows the next one, and
    Ctrl-G generates text until you press a key. F1 shows all keys. The text is printed when you quit.
    """
    _require_prompt_toolkit()
    _require_terminal(run)
    from charwright.compose.editor import Editor
    from charwright.compose.manuscript import Manuscript
    from charwright.compose.text_file import TextFile
    from charwright.run import Run
    from charwright.workflow.loading import generator_of

    options = given(ctx, field_names(GenerationConfig))
    config = GenerationConfig(**{"seed": fresh_seed(SEEDS)} | options)
    file = TextFile(out)
    text = _initial_text(file, prompt)
    opened = Run.open(run)
    generator = generator_of(opened)
    generator.opening(label=label)  # Refuse an unknown label before the screen changes.
    manuscript = Manuscript(
        text,
        temperature=config.temperature,
        seed=config.seed or 0,
        record_end=generator.record_end or "",
        label_of=lambda seed: generator.opening(seed, label=label).label,
    )
    try:
        return Editor(generator, manuscript, file).run()
    finally:
        # Print the text after an error too, so that nothing is lost.
        with suppress(OSError):  # The terminal may be closed.
            _print(manuscript.text)
            if manuscript.text and file.was_saved and file.is_saved(manuscript.text):
                click.echo(f"saved to {file.path}", err=True)


def _require_prompt_toolkit() -> None:
    try:
        import prompt_toolkit  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("charwright compose", "compose") from error


def _require_terminal(run: Path) -> None:
    streams = (sys.stdin, sys.stdout)
    if not all(stream is not None and stream.isatty() for stream in streams):
        raise UsageError(f"compose needs a terminal; without one, use: charwright generate {quoted(run)} --prompt TEXT")
    if os.environ.get("TERM") in ("dumb", "unknown"):
        raise UsageError(f"this terminal has no cursor control; use: charwright generate {quoted(run)} --prompt TEXT")


def _initial_text(file: TextFile, prompt: str) -> str:
    """Return the text of the file, or the prompt if there is none."""
    text = file.read() if file.path is not None else None
    if text and prompt:
        raise UsageError(f"{file.path} already contains text to continue: remove --prompt, or choose another --out")
    return text or prompt


def _print(text: str) -> None:
    if text:
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    sys.stdout.flush()
