"""Notes on a text that is or could be a list: its columns, its labels, and what divides it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from charwright.config import RecordsConfig
from charwright.data.lists import READ
from charwright.data.records import BLANK_LINES, Records
from charwright.data.texts import Text

MANY_LABELS = 20
FEW_RECORDS = 4
"""Of a label on average: from fewer, little can be learned about it."""
MOST_COLUMNS = 9
FEWEST_PARTS = 20
LONGEST_PART = 2000
"""So many parts of a text may be records, of so many characters on average: the chapters of a novel are longer."""
DIVIDER = re.compile(r"^([-=*%~+@$&])\1{1,9}$", re.MULTILINE)
"""A line of one repeated sign, such as --- or %%."""


def notes_on(text: Text, whole: Text, records: RecordsConfig, *, detect: bool) -> Iterator[str]:
    """Notes on a text, and on the `whole` of it as it is divided; to `detect` records that nobody has named."""
    if records.records == "line" and records.label is None:
        yield from _on_columns(text)
    if records.records == "none" and detect:
        yield from _on_dividers(text)
    if isinstance(whole, Records) and whole.labels is not None:
        yield from _on_labels(whole.count, len(set(whole.labels)))


def _on_dividers(text: Text) -> Iterator[str]:
    """Say so if the same line divides the text again and again, or if almost all blocks begin alike."""
    read = text[:READ]
    for line, count in Counter(match[0] for match in DIVIDER.finditer(read)).most_common(1):
        if count >= FEWEST_PARTS and len(read) <= count * LONGEST_PART:
            yield f"note: the line {line} occurs {_times(count, text)}; with --records '{line}' each part is a record"
            return
    begins = Counter(block[:2] for block in BLANK_LINES.split(read) if block.strip())
    for begin, count in begins.most_common(1):
        if count >= max(FEWEST_PARTS, 0.9 * begins.total()) and re.fullmatch(r"\S[^\w\s]", begin):
            yield f"note: the blocks between blank lines begin with {begin}; with --records blank each is a record"


def _times(count: int, text: Text) -> str:
    return f"{count:,} times" if len(text) <= READ else f"{count:,} times in the first {READ:,} characters"


def _on_labels(records: int, kinds: int) -> Iterator[str]:
    """Say so if a column of labels hardly says of which kind a record is: of numbers, each is another label."""
    if kinds > MANY_LABELS and kinds * FEW_RECORDS > records:
        yield (
            f"note: the {records:,} records have {kinds:,} different labels, too many to learn from a few records each"
        )


def _on_columns(text: Text) -> Iterator[str]:
    """Say so if a column of a list may be a label, or an identifier from which nothing is learned."""
    lines = text[:READ].split("\n")
    lines = [line for line in (lines[:-1] if len(text) > READ else lines) if line]
    rows = [line.split("\t") for line in lines]
    if rows and all(len(row) == 2 for row in rows):
        kinds = [len({row[side] for row in rows}) for side in (0, 1)]
        for column, name, found in ((1, "first", kinds[0]), (2, "last", kinds[1])):
            if 1 < found <= MANY_LABELS and found * FEW_RECORDS <= len(rows):
                yield (
                    f"note: column {column} has {found} different values; with --records line --label {name} they are "
                    "the labels of the other column"
                )
                return
    for divider, flag in (("\t", ""), (",", "-d, "), (";", "-d';' "), (" ", "-d' ' ")):
        if note := _on_identifiers([line.split(divider) for line in lines], flag):
            yield note
            return


def _on_identifiers(rows: Sequence[Sequence[str]], flag: str) -> str:
    """A note if all rows have the same columns, one of which is of identifiers, or ""; the first may be a heading."""
    widths = {len(row) for row in rows}
    if len(widths) != 1 or (width := widths.pop()) not in range(2, MOST_COLUMNS + 1) or len(rows) < FEWEST_PARTS:
        return ""
    for column in range(width):
        values = [row[column] for row in rows]
        heading = not _are_identifiers(values)
        if len(set(values)) == len(values) and _are_identifiers(values[1:]):
            others = ",".join(str(other) for other in range(1, width + 1) if other != column + 1)
            rest = f"column {others}" if width == 2 else f"columns {others}"
            cut = f"cut {flag}-f{others}" + (" | tail -n +2" if heading else "")
            leaves = f"{cut}, for example, leaves {rest} alone" + (", without the heading" if heading else "")
            return f"note: column {column + 1} looks like identifiers; {leaves}"
    return ""


def _are_identifiers(values: Iterable[str]) -> bool:
    """Whether all values are one prefix and a number, such as 17 or CHEMBL17."""
    return len({re.sub(r"\d+", "0", value) for value in values}) == 1
