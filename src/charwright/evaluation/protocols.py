"""How a text is read for an evaluation, `carried` or in windows, and the blocks that compare two evaluations."""

from __future__ import annotations

from charwright.data.carried import MOST_STREAMS, SHORTEST_STREAM
from charwright.errors import UsageError

FEWEST_BLOCKS = 16
SHORTEST_BLOCK = 16


def parse_protocol(protocol: str) -> int | None:
    """The N of `windows-N`, or None for `carried`.

    Raises:
        UsageError: for anything else.
    """
    if protocol == "carried":
        return None
    kind, _, number = protocol.partition("-")
    if kind != "windows" or not number.isdecimal() or len(number) > 9 or int(number) < 1:
        raise UsageError(
            "--protocol must be carried, windows-N (windows-256, say), or records for a text in records, "
            f"not {protocol!r}"
        )
    return int(number)


def block_cuts(chars: int) -> list[int]:
    """Where blocks begin in a text of which `chars` characters are predicted, and where the last one ends."""
    count = max(1, min(MOST_STREAMS, max(FEWEST_BLOCKS, chars // SHORTEST_STREAM), chars // SHORTEST_BLOCK))
    return [0, *(1 + chars * i // count for i in range(1, count + 1))]
