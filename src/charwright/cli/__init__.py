"""The command line: each command has a file here, which parses, makes one call and prints.

Generated text goes to stdout, everything else to stderr. Commands import what they need when they are called.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from charwright import __version__
from charwright.errors import CharwrightError

COMMANDS = ("train", "generate", "evaluate", "inspect", "info")


class _Commands(click.Group):
    """Loads a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"charwright.cli.{name}"), name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, message="charwright %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of every error.")
def cli(debug: bool) -> None:
    r"""Teach a small recurrent network to write like any text, one character at a time.

    \b
      charwright train novel.txt           learn from a text
      charwright generate runs/novel       write like it
    """
    if debug:
        os.environ["CHARWRIGHT_DEBUG"] = "1"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 done, 1 it failed, 2 wrong usage, 3 diverged, 130 and 143 stopped by a signal."""
    try:
        result: Any = cli.main(args=arguments, prog_name="charwright", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        _quiet_stdout()
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of a pipe has seen enough; nothing is wrong.
        _quiet_stdout()
        return 0
    except CharwrightError as error:
        if os.environ.get("CHARWRIGHT_DEBUG"):
            raise
        sys.stdout.flush()
        click.echo(f"charwright: {error}", err=True)
        return error.exit_code


def _quiet_stdout() -> None:
    """Let the interpreter's last flush go nowhere, since the pipe is closed."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
