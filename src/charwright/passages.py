"""Passages of a text at whose end generation may stop: words, lines, paragraphs, sentences."""

from __future__ import annotations


def parse_until(until: str) -> tuple[str, int] | None:
    """The kind of passage and the count in `word`, `line`, `paragraph`, `3 sentences`; None for anything else."""
    words = until.split()
    counted = len(words) == 2 and words[0].isdecimal() and len(words[0]) < 10
    count = int(words.pop(0)) if counted else 1
    kinds = {f"{kind}{s}": kind for kind in ("word", "line", "paragraph", "sentence") for s in ("", "s")}
    return (kinds[words[0]], count) if len(words) == 1 and words[0] in kinds and count > 0 else None
