"""Whether a text plainly is a list of lines, such as names, words or molecules, so that nobody has to say so."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import replace

import numpy as np

from charwright.config import RecordsConfig
from charwright.data.records import ENDS
from charwright.data.texts import Text, in_memory

FEWEST = 100
LONGEST = 300
MOST_SPACES = 2
ALMOST_ALL = 0.98
READ = 1 << 20
"""Characters that are looked at."""


def is_list(text: Text) -> bool:
    """Whether a text has at least 100 lines, of which almost all could be entries of a list and few are equal.

    An entry has at most two spaces, at most 300 characters, and no punctuation at its end. Lines of one and the same
    length are the lines of a wrapped text, as of a genome. In doubt it is no list; `--records line` says that it is.
    """
    lines = text[:READ].split("\n")
    lines = [line for line in (lines[:-1] if len(text) > READ else lines) if line]
    if len(lines) < FEWEST:
        return False
    lengths = np.array([len(line) for line in lines])
    usual = np.count_nonzero(lengths == np.bincount(lengths.clip(max=LONGEST + 1)).argmax())
    entries = sum(map(_is_entry, lines))
    return bool(
        entries >= ALMOST_ALL * len(lines)
        and len(set(lines)) > len(lines) / 2
        and usual < len(lines) / 2
        and text[:READ].count("\n\n") <= len(lines) / 100
    )


def settled(text: Text, config: RecordsConfig) -> RecordsConfig:
    r"""How a text is divided where a TEXT ends its records.

    A TEXT that always fills a line of its own ends the records with that line, and \n in a TEXT that does not occur as
    it stands is a newline.
    """
    end = config.records
    if end in ("none", *ENDS) or config.expression is not None:
        return config
    whole = in_memory(text)
    if end not in whole and (meant := end.replace(r"\n", "\n").replace(r"\t", "\t")) in whole:
        return replace(config, records=meant)
    expression = _whole_line(end)
    if len(re.findall(expression, whole, re.MULTILINE)) != whole.count(end) or "\n" in end or end not in whole:
        return config
    return replace(config, records=f"/{expression}/")


def divider_in_words(records: str) -> str:
    """What ends each record: a line that always is one, as `settled` has it, or anything else."""
    match = re.fullmatch(r"/\^(.+)\$\\n\?/", records)
    line = re.sub(r"\\(.)", r"\1", match[1]) if match else ""
    return f"lines {line}" if records == f"/{_whole_line(line)}/" else repr(records)


def _whole_line(text: str) -> str:
    return "^" + re.sub(r"([][.^$*+?{}\\|()])", r"\\\1", text) + r"$\n?"


def _is_entry(line: str) -> bool:
    short = len(line) <= LONGEST and sum(character.isspace() for character in line) <= MOST_SPACES
    return short and not line[0].isspace() and not _is_punctuation(line[-1])


def _is_punctuation(character: str) -> bool:
    """Whether a character ends or divides sentences or statements; brackets may end a molecule."""
    return unicodedata.category(character) == "Po" or character in "{};"
