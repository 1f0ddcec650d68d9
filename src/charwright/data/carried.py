"""The streams of the protocol `carried`: where a text is cut so that many parts of it are read side by side."""

from __future__ import annotations

MOST_STREAMS = 64
SHORTEST_STREAM = 1000


def stream_bounds(predicted: int) -> list[int]:
    """The bounds (S + 1,) of the streams among the ids to predict: nearly equal, at least 1,000 ids, at most 64."""
    streams = max(1, min(MOST_STREAMS, predicted // SHORTEST_STREAM))
    return [predicted * i // streams for i in range(streams + 1)]
