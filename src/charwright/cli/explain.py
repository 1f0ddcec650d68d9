"""`charwright explain`: what a run's network does with a text, as a page, a picture or JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import NamedPath, SectionedCommand, config_options, given, say, seed_option
from charwright.config import CorpusConfig
from charwright.errors import RunError, UsageError
from charwright.schema import field_names, flag

if TYPE_CHECKING:
    from charwright.data.texts import Text
    from charwright.run import Run


@click.command(cls=SectionedCommand, short_help="Show what a run has learned.")
@click.argument("run", type=NamedPath())
@click.argument("text", nargs=-1)
@click.option(
    "--out",
    type=NamedPath(),
    metavar="FILE.html",
    help="The page.  [default: the run's name and -explained.html, in the current folder]",
)
@click.option("--png", type=NamedPath(), metavar="FILE.png", help="Write a picture, and a page with --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, and a page with --out.")
@click.option(
    "--length",
    type=click.IntRange(20, 50_000),
    default=5000,
    show_default=True,
    help="Characters of TEXT to show, from its beginning.",
)
@click.option("--corpus", multiple=True, metavar="TEXT", help="The training text, if it has moved.")
@seed_option(0, "Seed of everything drawn.")
@click.option("--force", is_flag=True, help="Replace existing files.")
@config_options(CorpusConfig(), "Reading the text")
@click.pass_context
def explain(
    ctx: click.Context,
    /,
    run: Path,
    text: tuple[str, ...],
    out: Path | None,
    png: Path | None,
    as_json: bool,
    length: int,
    corpus: tuple[str, ...],
    seed: int,
    force: bool,
    **_: Any,
) -> None:
    """Show what RUN has learned: let it read TEXT and look inside, in one page that works offline.

    The page has the surprise of each character with what the model expected instead; the neurons that follow a
    feature, such as the inside of brackets, found among all of them; how far back the network remembers; what the
    temperature does; the averages of the gates; and a map of the characters.

    By default TEXT is the validation text of the run.
    """
    from charwright.cli.download import user_places
    from charwright.explanation.explain import explain as explain_run
    from charwright.run import Run
    from charwright.storage import write_file

    reading = given(ctx, field_names(CorpusConfig))
    if reading and not text:
        raise UsageError(f"{flag(next(iter(reading)))} applies to a TEXT; name one after the run")
    opened = Run.open(run)
    page = _page_path(opened, out, png, as_json=as_json)
    for option, path, endings in (("--out", page, (".html", ".htm")), ("--png", png, (".png",))):
        _check_path(option, path, endings, force=force)
    if png is not None:
        _check_matplotlib()
    name, given_text = _read(text, reading) if text else ("", None)
    with _progress() as progress:
        found = explain_run(
            opened,
            given_text,
            source=name,
            length=length,
            moved=corpus,
            seed=seed,
            places=user_places(),
            progress=progress,
        )
    for path, data in ((page, found.page), (png, found.picture)):
        if path is not None:
            contents = data()
            write_file(path, contents)
            say(f"wrote {path} ({len(contents) / 1e6:,.2f} MB)")
    if as_json:
        click.echo(json.dumps(found.to_json(), ensure_ascii=False))
        return
    for note in found.notes:
        say(note)
    click.echo(str(found))


def _page_path(run: Run, out: Path | None, png: Path | None, *, as_json: bool) -> Path | None:
    """The path of the page; None if only other forms are wanted."""
    if out is not None or png is not None or as_json:
        return out
    return Path(f"{run.folder.resolve().name}-explained.html")


def _check_path(option: str, path: Path | None, endings: tuple[str, ...], *, force: bool) -> None:
    """Check that a file can be written and that nothing would be overwritten.

    Raises:
        UsageError: when the path is standard output, or its ending is another.
        RunError: when the folder is missing, or the path exists and must not be replaced.
    """
    if path is None:
        return
    if str(path) == "-":
        raise UsageError("a page or picture cannot be written to standard output; name a file")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise RunError(f"{path} is a folder; name a file")
    if path.suffix.lower() not in endings:
        what = "a picture" if option == "--png" else "a page"
        raise UsageError(f"{option} {path}: {what} is written to a file that ends with {' or '.join(endings)}")
    if path.exists() and not force:
        raise RunError(f"{path} exists; choose another path, or replace it with --force")


def _check_matplotlib() -> None:
    from charwright.explanation.picture import matplotlib

    matplotlib()


def _read(text: Sequence[str], reading: dict[str, Any]) -> tuple[str, Text]:
    """The name of a text, and the text; a large one stays on disk."""
    from charwright.cli.download import user_places
    from charwright.data.large_texts import open_corpus

    name = text[0] if len(text) == 1 else f"{text[0]} and {len(text) - 1} more"
    corpus = open_corpus(text, CorpusConfig(**reading), user_places())
    for note in corpus.notes:
        say(note)
    return "standard input" if name == "-" else name, corpus.text


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """The present part on a terminal: a wide network takes a minute."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console

    with Console(stderr=True).status("reading") as status:
        yield status.update
