"""`charwright prepare`: read a large text into the cache ahead of the training."""

from __future__ import annotations

from typing import Any

import click

from charwright.cli.options import SectionedCommand, config_options, given, say
from charwright.config import CorpusConfig
from charwright.errors import UsageError
from charwright.schema import field_names


@click.command(cls=SectionedCommand, short_help="Prepare a large text ahead of training.")
@click.argument("corpus", nargs=-1, required=True)
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def prepare(ctx: click.Context, /, corpus: tuple[str, ...], **_: Any) -> None:
    """Read CORPUS once, and keep it in the cache, from where training with the same options starts at once.

    Training does the same when it first reads a text of 64 MB or more; smaller ones need no preparation.
    """
    from charwright.cli.download import user_places
    from charwright.data.large_texts import MappedCorpus, open_corpus

    if "-" in corpus:
        raise UsageError("standard input can be read only once, so it cannot be prepared; write it to a file")
    found = open_corpus(corpus, CorpusConfig(**given(ctx, field_names(CorpusConfig))), user_places())
    for note in found.notes:
        say(note)
    characters = f"{len(found.text):,} characters"
    if isinstance(found, MappedCorpus):
        click.echo(f"prepared {found.name}: {characters}, {len(found.text.alphabet.characters):,} of them distinct")
    else:
        click.echo(f"{found.name} needs no preparation: {characters} are read into memory at each start")
