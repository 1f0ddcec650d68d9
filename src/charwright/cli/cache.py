"""`charwright cache`: list the prepared texts, and remove them."""

from __future__ import annotations

import click

from charwright.errors import UsageError

ALL = "\0"
"""The value of --clear without a name, which no text has."""


@click.command(short_help="List and clear prepared texts.")
@click.option(
    "--clear",
    is_flag=False,
    flag_value=ALL,
    default=None,
    metavar="[NAME]",
    help="Remove the texts of one name, or all of them.",
)
def cache(clear: str | None) -> None:
    """List the texts that were prepared, with their sizes on disk; they are made again when they are needed.

    They are in the user's cache folder, or in the one that CHARWRIGHT_CACHE names.
    """
    from charwright.data.large_texts import cache_of
    from charwright.data.parts import Places

    texts = cache_of(Places.of_this_user())
    if clear is not None:
        removed = texts.clear(None if clear == ALL else clear)
        if not removed and clear != ALL:
            raise UsageError(f"no prepared text is named {clear!r}; list them with: charwright cache")
        click.echo(f"removed {', '.join(removed) or 'nothing'}")
        return
    total = 0
    for entry in texts.entries():
        manifest, size = entry.manifest, entry.size_bytes
        sources = entry.origin.sources[:3]
        places = ", ".join("standard input" if source.kind == "stdin" else source.location for source in sources)
        more = f" and {len(entry.origin.sources) - 3:,} more" if len(entry.origin.sources) > 3 else ""
        click.echo(f"{_megabytes(size):>11}  {manifest.name}  {entry.folder.name}  {manifest.characters:,} characters")
        click.echo(f"{'':11}  from {places}{more}")
        total += size
    click.echo(f"{_megabytes(total):>11}  in {texts.folder}")


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
