"""`charwright serve`: runs behind an HTTP service with the OpenAI completions API."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    NamedPath,
    SectionedCommand,
    SectionedOption,
    config_options,
    engine_precision_option,
    engine_threads_option,
    given,
)
from charwright.errors import MissingExtraError, UsageError
from charwright.schema import field_names
from charwright.serve.limits import ServiceConfig

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.run import Run
    from charwright.serve.hosting import ReadText
    from charwright.serve.lines import Lines


LARGEST_KEY_FILE = 1 << 20  # bytes


class AccessOption(SectionedOption):
    """An option about who may use the service."""

    section = "Access"


@click.command(cls=SectionedCommand, short_help="Serve trained models over HTTP, as the OpenAI API.")
@click.argument("runs", metavar="RUN...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@engine_precision_option
@engine_threads_option
@click.option(
    "--corpus",
    multiple=True,
    metavar="TEXT",
    help="The training text, for max_copy, if it has moved; for a single run.",
)
@click.option(
    "--log",
    type=click.Choice(["text", "json", "off"]),
    default="text",
    show_default=True,
    help="One line for each request, on standard error.",
)
@click.option("--log-prompts", is_flag=True, help="Log the prompts too.")
@click.option(
    "--api-key-file",
    cls=AccessOption,
    type=NamedPath(dir_okay=False),
    metavar="FILE",
    help="Require an API key of this file, which has one key a line, or sha256: followed by its SHA-256.",
)
@click.option("--no-auth", cls=AccessOption, is_flag=True, help="Let everyone who reaches the address generate.")
@click.option(
    "--allow-host",
    cls=AccessOption,
    multiple=True,
    metavar="NAME",
    help="A host name by which clients reach the service, besides localhost; * allows all. Repeatable.",
)
@click.option(
    "--cors-origin",
    cls=AccessOption,
    multiple=True,
    metavar="ORIGIN",
    help="An origin (https://name) whose web pages may use the service. Repeatable.",
)
@click.option(
    "--trusted-proxy",
    cls=AccessOption,
    multiple=True,
    metavar="ADDRESS",
    help="A proxy whose X-Forwarded-For names the caller. Repeatable.",
)
@config_options(ServiceConfig(), "Limits")
@click.pass_context
def serve(
    ctx: click.Context,
    /,
    runs: tuple[str, ...],
    host: str,
    port: int,
    precision: str,
    threads: int | None,
    corpus: tuple[str, ...],
    log: str,
    log_prompts: bool,
    api_key_file: Path | None,
    no_auth: bool,
    allow_host: tuple[str, ...],
    cors_origin: tuple[str, ...],
    trusted_proxy: tuple[str, ...],
    **_: Any,
) -> int:
    """Serve the models of RUNs over HTTP, as the OpenAI completions API.

    Any client of that API can use them: set its base URL to http://127.0.0.1:8000/v1. A model has the name of its
    folder, or another with NAME=RUN. A web page to try them is at the root, the description of the API at /docs.

    SIGTERM, SIGHUP and Ctrl-C end the service after the requests in progress; a second Ctrl-C ends it at once.
    """
    host = host.removeprefix("[").removesuffix("]")  # As in the address of a page.
    limits = ServiceConfig(**given(ctx, field_names(ServiceConfig)))
    if log_prompts and log == "off":
        raise UsageError("--log-prompts requires a log; remove --log off")
    _check_corpus(corpus, runs)
    _require_extra()
    from charwright.serve import access

    access.check_exposure(host, keys=api_key_file is not None, no_auth=no_auth)
    access.check_names(allow_host, cors_origin, trusted_proxy)
    from charwright.serve.hosting import load_all
    from charwright.serve.keys import Keys

    keys = Keys.parse(_text(api_key_file), f"--api-key-file: {api_key_file}") if api_key_file is not None else None
    with ThreadPoolExecutor(1) as beside:
        loading = beside.submit(load_all, [_named(run) for run in runs], _reader(corpus), precision, threads=threads)
        # The rest of the service is imported meanwhile.
        from charwright.serve.app import Access
        from charwright.serve.journal import Problems, RequestLog
        from charwright.serve.lines import Lines
        from charwright.serve.server import listen
        from charwright.serve.server import serve as run_server
        from charwright.serve.service import Service

        models = loading.result()
    for model in models.values() if corpus else ():
        model.read_text()  # A wrong text is noticed now.
    problems = Problems(as_json=log == "json")
    with Lines(sys.stderr, notice=problems.notice) as lines:
        _report_problems(problems, lines)
        return run_server(
            Service(models, limits),
            Access(keys, allow_host, addresses=not access.is_loopback(host), origins=cors_origin),
            listen(host, port),
            log=None if log == "off" else RequestLog(as_json=log == "json", prompts=log_prompts, stream=lines),
            trusted_proxies=",".join(trusted_proxy) or None,
            say=lines.say,
        )


def _report_problems(formatter: logging.Formatter, lines: Lines) -> None:
    """Write the problems of the service to standard error."""
    handler = logging.StreamHandler(lines)
    handler.setFormatter(formatter)
    logger = logging.getLogger("charwright.serve")
    logger.handlers, logger.propagate = [handler], False


def _check_corpus(corpus: Sequence[str], runs: Sequence[str]) -> None:
    if corpus and len(runs) > 1:
        raise UsageError("--corpus is for one run; serve the others in a process of their own")
    for name in corpus:
        if not _exists(name):
            raise UsageError(f"--corpus: there is no file or folder {name}")


def _exists(place: str) -> bool:
    return os.path.exists(place)  # noqa: PTH110  Path.exists raises an error where a name is too long for a file.


def _require_extra() -> None:
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("charwright serve", "serve") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_KEY_FILE + 1)
        if len(data) > LARGEST_KEY_FILE:
            raise UsageError(f"--api-key-file: {path} is too large to be a file of keys")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"--api-key-file: {path} is not UTF-8") from error
    except OSError as error:
        raise UsageError(f"--api-key-file: cannot read {path}: {error.strerror}") from error


def _named(run: str) -> tuple[str | None, Path]:
    """The name of a model, if one is given, and the folder of its run."""
    name, equals, folder = run.partition("=")
    if not equals or _exists(run):
        return None, Path(run)
    if not re.fullmatch(r"[^/\\]*[^/\\\s][^/\\]*", name) or not name.isprintable() or not folder:
        raise UsageError(f"NAME=RUN needs a name without slashes, and a folder, not {run!r}")
    return name, Path(folder)


def _reader(corpus: Sequence[str]) -> ReadText:
    def read(run: Run) -> Text:
        from charwright.data.parts import Places
        from charwright.workflow.texts import training_text_of_run

        # A request must not start a download.
        return training_text_of_run(run, corpus, dataclasses.replace(Places.of_this_user(), offline=True))

    return read
