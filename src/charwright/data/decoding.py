"""Bytes to text, strictly: what is not text is refused with the place and a way out."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import unicodedata
import zlib

from charwright.config import CorpusConfig
from charwright.errors import DecodingError

_BOMS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}

# Tried in this order when UTF-8 fails: the strict multi-byte encodings first, since one-byte ones accept nearly all.
_WORTH_TRYING = ("utf-16", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "cp1251", "koi8-r", "cp1252", "latin-1")

_OPENERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}


def decompressed(data: bytes, suffix: str, where: str) -> bytes:
    """The contents of a .gz, .bz2 or .xz file; other bytes as they are."""
    opener = _OPENERS.get(suffix.lower())
    if opener is None:
        return data
    try:
        return opener(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DecodingError(f"{where} does not decompress: {error}") from error


def looks_binary(data: bytes) -> bool:
    """Whether the first 8 kB hold a NUL byte and no byte order mark."""
    return b"\0" in data[:8192] and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))


def decode(data: bytes, config: CorpusConfig, where: str) -> str:
    """Decode one file; the byte order mark goes, newlines and normalization as configured.

    Raises:
        DecodingError: with the byte offset and the encodings worth trying, or when the file is binary.
    """
    try:
        text = data.decode(config.encoding)
    except LookupError as error:
        raise DecodingError(f"--encoding {config.encoding!r} is not an encoding that Python knows") from error
    except UnicodeDecodeError as error:
        if looks_binary(data):
            raise DecodingError(_binary_message(data, where)) from error
        raise DecodingError(_undecodable_message(data, config.encoding, error, where)) from error
    if "\0" in text:
        raise DecodingError(_binary_message(data, where))
    text = text.removeprefix("\ufeff")
    if config.newlines == "lf":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.normalize != "none":
        text = unicodedata.normalize(config.normalize.upper(), text)  # type: ignore[arg-type]
    return text


def _binary_message(data: bytes, where: str) -> str:
    """Compressed or binary data looks like this: a NUL where text has none."""
    return f"{where} is not a text file: there is a NUL byte at byte {data.find(0):,}; give a text file"


def _undecodable_message(data: bytes, encoding: str, error: UnicodeDecodeError, where: str) -> str:
    byte = data[error.start]
    marked = [name for mark, name in _BOMS.items() if data.startswith(mark) and name != encoding]
    fitting = marked or [name for name in _WORTH_TRYING if _decodes(data, name)][:4]
    advice = f"try {' or '.join(f'--encoding {name}' for name in fitting)}" if fitting else "give a text file"
    return f"{where} is not {encoding}: byte {error.start:,} (0x{byte:02x}) does not fit; {advice}"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    # Control characters and unassigned ones betray a wrong guess.
    sample = text[:20000]
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f\ufeff" for c in sample)
