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

# UTF-32 stands first, since its mark begins with the one of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be")

_MULTI_BYTE = ("gb18030", "big5", "shift_jis", "euc-jp", "euc-kr")
_CYRILLIC = ("cp1251", "koi8-r")
_WESTERN = ("cp1252", "latin-1")
_MOST_GUESSES = 4
_SAMPLE_BYTES = 1 << 16

# So many continuation bytes of UTF-8 before the first broken byte are no coincidence.
_TELLING = 6

_OPENERS = {".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress}
COMPRESSED = tuple(_OPENERS)


def decompressed(data: bytes, suffix: str, where: str) -> bytes:
    """The contents of a .gz, .bz2 or .xz file; other bytes as they are."""
    opener = _OPENERS.get(suffix.lower())
    if opener is None:
        return data
    try:
        return opener(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DecodingError(f"{where} does not decompress: {error}") from error


def looks_binary(data: bytes, encoding: str) -> bool:
    """Whether there is a NUL byte, which no text has but in the wide encodings UTF-16 and UTF-32."""
    return b"\0" in data and _mark_of(data) is None and _canonical(encoding) not in _WIDE


def decode(data: bytes, config: CorpusConfig, where: str) -> str:
    """Decode one file; the byte order mark goes, newlines and normalization as configured.

    Raises:
        DecodingError: with the byte offset and the encodings worth trying, or when the file is binary.
    """
    encoding = _canonical(config.encoding)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if looks_binary(data, encoding):
            raise DecodingError(_binary_message(data, where)) from error
        raise DecodingError(_undecodable_message(data, config.encoding, error, where)) from error
    except UnicodeError as error:  # a codec that does not say where
        raise DecodingError(f"{where} is not {config.encoding}: {error}") from error
    if "\0" in text:
        raise DecodingError(_binary_message(data, where))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # utf-7 and the like can spell what is no character
        raise DecodingError(f"{where} has half of a surrogate pair at character {error.start:,}; mend it") from error
    text = text.lstrip("\ufeff")
    if config.newlines == "lf":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.normalize != "none":
        text = unicodedata.normalize(config.normalize.upper(), text)  # type: ignore[arg-type]
    return text


def _canonical(encoding: str) -> str:
    """Python's own name of an encoding of text."""
    try:
        b"a".decode(encoding)  # Unlike codecs.lookup, this refuses what turns bytes into bytes, such as hex.
    except UnicodeDecodeError:
        pass  # One byte is no whole character of UTF-16.
    except (LookupError, ValueError) as error:
        raise DecodingError(f"--encoding {encoding!r} is not an encoding that Python knows") from error
    return codecs.lookup(encoding).name


def _mark_of(data: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning tells."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def _binary_message(data: bytes, where: str) -> str:
    """Compressed or binary data looks like this: a NUL where text has none. So does UTF-16 without a mark."""
    wide = [name for name in ("utf-16-le", "utf-16-be") if _decodes(data, name)]
    advice = f"try --encoding {wide[0]}" if wide else "give a text file"
    return f"{where} is not a text file: there is a NUL byte at byte {data.find(0):,}; {advice}"


def _undecodable_message(data: bytes, encoding: str, error: UnicodeDecodeError, where: str) -> str:
    byte = data[error.start]
    return f"{where} is not {encoding}: byte {error.start:,} (0x{byte:02x}) does not fit; {_advice(data, error)}"


def _advice(data: bytes, error: UnicodeDecodeError) -> str:
    """What to do about bytes that did not decode: mend the place, or try other encodings."""
    mark = _mark_of(data)
    if mark is not None and _decodes(data, mark):
        return f"try --encoding {mark}"
    before = data[: error.start]
    if error.encoding == "utf-8" and len(before) - len(before.decode("utf-8", "replace")) >= _TELLING:
        return "all before it is utf-8, so that the file is damaged there; mend or remove that place"
    # Western text has a few bytes beyond ASCII; in the text of other scripts they are the most.
    sample = data[:_SAMPLE_BYTES]
    few = 4 * sum(byte > 127 for byte in sample) < len(sample)
    guesses = _WESTERN + _MULTI_BYTE + _CYRILLIC if few else _MULTI_BYTE + _CYRILLIC + _WESTERN
    fitting = [name for name in ("utf-8", *guesses) if name != error.encoding and _decodes(data, name)]
    choice = " or ".join(f"--encoding {name}" for name in fitting[:_MOST_GUESSES])
    return f"try {choice}" if fitting else "give a text file"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    # Control characters and unassigned ones betray a wrong guess.
    sample = text[:20000]
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f\ufeff" for c in sample)
