"""The command line: each command has a file here, which parses, makes one call and prints.

Generated text goes to stdout, everything else to stderr. Commands import what they need when they are called.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import click

from charwright import __version__
from charwright.errors import CharwrightError

COMMANDS = ("train", "tune", "generate", "compose", "evaluate", "compare", "inspect", "info", "import", "export")
ALIASES = {"chat": "compose"}
FILES = {"import": "import_model"}
"""The file and function of a command whose name is a word of Python."""

HELP = """Teach a small recurrent network to write like any text, one character at a time.

\b
  charwright train novel.txt           learn from a text
  charwright generate runs/novel       write like it
"""


@dataclass
class _Settings:
    """What holds for every command."""

    debug: bool = False


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(_Settings).debug = True


def _debug_option(*, hidden: bool = False) -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        hidden=hidden,
        help="Show the traceback of every error.",
    )


class _Commands(click.Group):
    """Loads a command's file when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        file = FILES.get(name, name)
        command = getattr(importlib.import_module(f"charwright.cli.{file}"), file)
        assert isinstance(command, click.Command)
        # People add it behind the command that failed.
        if not any("--debug" in parameter.opts for parameter in command.params):
            command.params.append(_debug_option(hidden=True))
        return command


@click.group(
    cls=_Commands,
    params=[_debug_option()],
    help=HELP,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="charwright %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """The group of all commands; its help is `HELP`."""
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit with its code."""
    # A character that the terminal's encoding lacks must not end the work.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: 0 done, 1 it failed, 2 wrong usage, 3 diverged, 130 and 143 stopped by a signal."""
    settings = _Settings()
    try:
        result: Any = cli.main(args=arguments, prog_name="charwright", standalone_mode=False, obj=settings)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as error:
        # How click says that the reader of a pipe has seen enough; nothing is wrong.
        return error.code if isinstance(error.code, int) and error.code != 1 else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _failed(settings, error, _usage_line(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except CharwrightError as error:
        return _failed(settings, error, str(error), error.exit_code)
    except MemoryError as error:
        return _failed(settings, error, f"there is not enough memory for this{f': {error}' if str(error) else ''}", 1)
    except OSError as error:
        # A full disk, a folder that may not be read: the system's misfortunes are no mistakes of ours.
        return _failed(settings, error, str(error), 1)
    finally:
        _flush_stdout()


def _failed(settings: _Settings, error: Exception, message: str, exit_code: int) -> int:
    if settings.debug:
        raise error
    with suppress(OSError):
        sys.stdout.flush()
    click.echo(f"charwright: {message}", err=True)
    return exit_code


def _usage_line(error: click.ClickException) -> str:
    """What is wrong with the words of the command line, and where help is, in one line."""
    message = error.format_message().replace("\n", " ").rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message}; see {ctx.command_path} --help" if ctx is not None else message


def _flush_stdout() -> None:
    """Let the interpreter's last flush go nowhere when nobody can take it."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
