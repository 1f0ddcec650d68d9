"""The texts of the experiments, in several scripts, kinds and sizes, all available on a Debian machine.

They are built deterministically from Python's standard library and from the manual pages of the packages manpages-ru
and manpages-zh; tiny shakespeare is read from the folder that CHARWRIGHT_DATA names.
"""

from __future__ import annotations

import gzip
import os
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

MAN = Path("/usr/share/man")
KB, MB = 1_000, 1_000_000


def shakespeare() -> str:
    """The tutorial's text without its last tenth, which is reserved for reporting."""
    text = _whole_shakespeare()
    return text[: int(len(text) * 0.9)]


def whole_text(name: str) -> str:
    """A text including the part that results are reported on."""
    return _whole_shakespeare() if name == "shakespeare" else TEXTS[name]()


def _whole_shakespeare() -> str:
    for path in Path(os.environ.get("CHARWRIGHT_DATA", ".")).glob("*.txt"):
        if path.stat().st_size == 1_115_394:
            return path.read_text(encoding="utf-8")
    raise SystemExit("tiny shakespeare not found; set CHARWRIGHT_DATA to the folder that contains it")


def _library_files() -> Iterator[Path]:
    """The standard library's source files in a fixed order that mixes the packages."""
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in root.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(1).shuffle(files)
    return iter(files)


@cache
def source_code() -> str:
    """About 30 MB of Python."""
    return "\n".join(path.read_text(encoding="utf-8", errors="ignore") for path in _library_files())


@cache
def documentation() -> str:
    """The docstrings of the library as paragraphs: English prose of a kind."""
    blocks = re.findall(r'"""(.+?)"""', source_code(), re.DOTALL)
    prose = ("\n".join(line.strip() for line in block.strip().splitlines()) for block in blocks)
    return "\n\n".join(block for block in prose if len(block) > 80)


@cache
def words() -> str:
    """Every word of the documentation once, one per line."""
    found = sorted(set(re.findall(r"[a-z]{3,16}", documentation().lower())))
    random.Random(1).shuffle(found)
    return "\n".join(found) + "\n"


def _manual(language: str) -> str:
    """All manual pages in a language, without troff markup."""
    pages = []
    for path in sorted((MAN / language).rglob("*.gz")):
        text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="ignore")
        lines = (re.sub(r"\\f[A-Z]|\\[&-]|^\.\w+ ?", "", line) for line in text.splitlines())
        pages.append("\n".join(line for line in lines if line and not line.startswith((".", "'"))))
    return "\n\n".join(pages)


def _whole_manual(*languages: str) -> str:
    """The manual pages in some languages; without their packages there are those of a few programs at most."""
    text = "".join(map(_manual, languages))
    if len(text) < MB:
        found = f"{len(text):,} characters of manual pages in {', '.join(languages)} under {MAN}"
        raise SystemExit(f"only {found}: apt-get install manpages-ru manpages-zh")
    return text


@cache
def russian() -> str:
    """Manual pages in Russian: Cyrillic among Latin."""
    return _whole_manual("ru")


@cache
def chinese() -> str:
    """Manual pages in Chinese, simplified and traditional: thousands of characters."""
    return _whole_manual("zh_CN", "zh_TW")


TEXTS: dict[str, Callable[[], str]] = {
    "shakespeare": shakespeare,
    "shakespeare-20k": lambda: shakespeare()[: 20 * KB],
    "shakespeare-50k": lambda: shakespeare()[: 50 * KB],
    "shakespeare-100k": lambda: shakespeare()[: 100 * KB],
    "code-20k": lambda: source_code()[: 20 * KB],
    "code-50k": lambda: source_code()[: 50 * KB],
    "code-100k": lambda: source_code()[: 100 * KB],
    "code-200k": lambda: source_code()[: 200 * KB],
    "code-2m": lambda: source_code()[: 2 * MB],
    "code-20m": lambda: source_code()[: 20 * MB],
    "docs-20k": lambda: documentation()[: 20 * KB],
    "docs-50k": lambda: documentation()[: 50 * KB],
    "docs-100k": lambda: documentation()[: 100 * KB],
    "docs-200k": lambda: documentation()[: 200 * KB],
    "docs-2m": lambda: documentation()[: 2 * MB],
    "russian-100k": lambda: russian()[: 100 * KB],
    "russian-200k": lambda: russian()[: 200 * KB],
    "russian": russian,
    "chinese-100k": lambda: chinese()[: 100 * KB],
    "chinese-200k": lambda: chinese()[: 200 * KB],
    "chinese": chinese,
    "words": words,
    "words-5k": lambda: "".join(words().splitlines(keepends=True)[:5000]),
    "words-5k-sorted": lambda: "".join(sorted(words().splitlines(keepends=True)[:5000])),
}


def main() -> None:
    """Print the length of every text, and write the texts into a folder if one is given."""
    import sys

    for name, make in TEXTS.items():
        text = make()
        print(f"{name:16} {len(text):>12,} characters, {len(set(text)):>5,} different")
        if len(sys.argv) > 1:
            folder = Path(sys.argv[1])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
