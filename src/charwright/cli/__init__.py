"""The command line: one file per command, which parses the options, calls the package and prints the result.

Results go to stdout; progress, notes and errors go to stderr. Commands import what they need when they run.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn, TextIO

import click

from charwright import __version__
from charwright.errors import CharwrightError, StoppedError, is_out_of_memory

COMMANDS = (
    "train",
    "tune",
    "generate",
    "compose",
    "serve",
    "evaluate",
    "score",
    "compare",
    "plot",
    "explain",
    "inspect",
    "prepare",
    "cache",
    "info",
    "import",
    "export",
)
FILES = {"import": "import_model"}
"""The file and function of a command whose name is a Python keyword."""

NO_ROOM = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
"""What the system answers when there is no room to write."""

WITHOUT_TORCH = "this needs PyTorch, which is not installed: python -m pip install torch"

HELP = """Train a small recurrent network to write like any text, one character at a time.

\b
  charwright train novel.txt           train on a text
  charwright generate runs/novel       generate text like it
"""


@dataclass
class _Settings:
    """Settings of all commands."""

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
        help="Show the traceback of errors.",
    )


class _Commands(click.Group):
    """Imports the file of a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        if name not in COMMANDS:
            return None
        file = FILES.get(name, name)
        command = getattr(importlib.import_module(f"charwright.cli.{file}"), file)
        assert isinstance(command, click.Command)
        # Users append it to the command that failed.
        if not any("--debug" in parameter.opts for parameter in command.params):
            command.params.append(_debug_option(hidden=True))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; a wrong name gets the one that is spelled like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            begun = [name for name in COMMANDS if name.startswith(args[0])]
            close = begun or get_close_matches(args[0], COMMANDS, 1)
            if not (args[0] and close):
                raise
            said = f"{error.message.rstrip('.')}; did you mean {close[0]}?"
            raise click.UsageError(said, error.ctx) from error


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
    # A closed stream is None. Nobody reads messages then, but a result must not vanish.
    if sys.stdout is None:
        sys.stdout = _unwritable()
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8")
    # A character that the terminal cannot encode must not stop the command; a file gets all, whatever the locale.
    with suppress(AttributeError):
        sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
        if not sys.stdout.isatty():
            encoding = sys.stdout.encoding if "PYTHONIOENCODING" in os.environ else "utf-8"
            sys.stdout.reconfigure(encoding=encoding, errors="replace", newline="\n")  # type: ignore[union-attr]
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 (done), 1 (failed), 2 (usage), 3 (diverged), 129, 130 or 143 (signal)."""
    settings = _Settings()
    try:
        # Texts are looked up as patterns by us; a prompt such as "?" is none, also on Windows.
        result: Any = cli.main(
            args=arguments,
            prog_name="charwright",
            standalone_mode=False,
            obj=settings,
            windows_expand_args=False,
        )
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SystemExit as error:
        # How click reports a closed pipe, which is not an error.
        return error.code if isinstance(error.code, int) and error.code != 1 else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        return _failed(settings, error, _usage_line(error), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except StoppedError as error:
        with suppress(OSError):  # The terminal may be closed.
            click.echo("stopped before the first step; the same command begins again", err=True)
        return 128 + int(signal.Signals[error.reason])
    except CharwrightError as error:
        return _failed(settings, error, error.for_shell, error.exit_code)
    except (ModuleNotFoundError, MemoryError, RuntimeError) as error:
        lack = _lack(error)
        if lack is None:
            raise
        return _failed(settings, error, lack, 1)
    except OSError as error:
        if os.name == "nt" and error.errno == errno.EINVAL and error.filename is None:
            return 0  # How Windows reports a closed pipe.
        # A full disk or an unreadable folder is not a bug: no traceback.
        return _failed(settings, error, _system_line(error), 1)
    finally:
        _flush_stdout()


def _lack(error: Exception) -> str | None:
    """What is missing on this machine, PyTorch or memory, if that is the error."""
    if isinstance(error, ModuleNotFoundError):
        return WITHOUT_TORCH if error.name == "torch" else None
    if isinstance(error, MemoryError):
        return f"not enough memory{f': {error}' if str(error) else ''}"
    return "not enough memory" if is_out_of_memory(error) else None


def _unwritable() -> TextIO:
    """A stream in the place of a closed one, where the system refuses each write."""
    return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")


def _failed(settings: _Settings, error: Exception, message: str, exit_code: int) -> int:
    if settings.debug:
        raise error
    with suppress(OSError):
        sys.stdout.flush()
    with suppress(OSError):  # The terminal may be closed.
        click.echo(f"charwright: {message}", err=True)
    return exit_code


def _usage_line(error: click.ClickException) -> str:
    """A usage error in one line, with a pointer to the help."""
    message = re.sub(r"\s*[\n\t]\s*", " ", error.format_message()).rstrip(".")
    ctx = getattr(error, "ctx", None)
    return f"{message}; see {ctx.command_path} --help" if ctx is not None else message


def _system_line(error: OSError) -> str:
    """What the system refused, and with which file if it says so."""
    if error.strerror is None:
        return str(error)
    # Whoever writes a file names it.
    if error.filename is None and error.errno == errno.EBADF:
        return f"standard output is closed; redirect it to a file, or to {os.devnull} to discard it"
    if error.filename is None and error.errno in NO_ROOM:
        return f"cannot write to standard output: {error.strerror}"
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"


def _flush_stdout() -> None:
    """Flush stdout, or discard it if the pipe is closed."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
