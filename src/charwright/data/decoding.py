"""Decoding of bytes to text, strict unless replacing is asked for; errors report the position and what to try."""

from __future__ import annotations

import codecs
import re
import unicodedata

from charwright.config import CorpusConfig
from charwright.errors import DecodingError

# UTF-32 comes before UTF-16, whose byte order mark is a prefix of its own.
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
_LONGEST_MARK = 4
_FEW_NULS = 100
"""A text with a NUL for so many bytes may be damaged; with more it is something else."""
_SAMPLE_BYTES = 1 << 16

# With this many UTF-8 continuation bytes before the first invalid byte, the file is damaged UTF-8.
_MIN_CONTINUATION_BYTES = 6

_COMPRESSIONS = {
    rb"\x1f\x8b\x08": ("gzip", ".gz", "gzip"),
    rb"BZh[1-9]1AY&SY": ("bzip2", ".bz2", "bzip2"),
    rb"\xfd7zXZ\x00": ("xz", ".xz", "xz"),
    rb"\x28\xb5\x2f\xfd": ("Zstandard", ".zst", "zstd"),
}
"""What compressed files begin with: their format, the ending of their names, and what decompresses them."""
_READ_ON = "read on with --errors replace"

REPLACEMENT = "\ufffd"
"""What stands for bytes that are not text where errors are replaced."""

_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""What a decoder accepts although no text has it: NUL, and halves of surrogate pairs."""


def looks_binary(data: bytes, config: CorpusConfig) -> bool:
    """Return whether the data has a NUL byte, or many if errors are replaced; text has them in UTF-16 and UTF-32 only.

    The data is a whole file.
    """
    return has_many_nuls(data[:_LONGEST_MARK], data.count(0), len(data), config)


def has_many_nuls(head: bytes, nuls: int, size: int, config: CorpusConfig) -> bool:
    """Return the same for a file of which only the first bytes and the number of NUL bytes are known."""
    if not nuls or _mark_of(head) is not None or canonical_encoding(config.encoding) in _WIDE:
        return False
    return config.errors != "replace" or nuls * _FEW_NULS >= size


def decode(data: bytes, config: CorpusConfig, where: str) -> str:
    """Decode one file, remove its byte order mark, and convert newlines and normalize as configured.

    Raises:
        DecodingError: when the file is binary or in another encoding and errors are not replaced, with the byte offset
            and the encodings to try.
    """
    encoding = canonical_encoding(config.encoding)
    try:
        text = data.decode(encoding, config.errors)
    except UnicodeDecodeError as error:
        if looks_binary(data, config):
            raise DecodingError(binary_message(data, where)) from error
        raise DecodingError(undecodable_message(data, config.encoding, error, where)) from error
    except UnicodeError as error:  # a codec that reports no position
        raise DecodingError(f"{where} is not {config.encoding}: {error}") from error
    if config.errors == "replace":
        text = replaced(text)
    if "\0" in text:
        raise DecodingError(binary_message(data, where))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # utf-7 and others can encode lone surrogates
        raise DecodingError(surrogate_message(where, error.start)) from error
    text = text.lstrip("\ufeff")
    if config.newlines == "lf":
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if config.normalize != "none":
        text = unicodedata.normalize(config.normalize.upper(), text)  # type: ignore[arg-type]
    return text


def replaced(text: str) -> str:
    """Return a decoded text with U+FFFD for what no text has."""
    return _NO_TEXT.sub(REPLACEMENT, text)


def replacement_note(characters: int, config: CorpusConfig) -> str:
    """Say how many characters of a text stand for what could not be decoded."""
    return f"{characters:,} U+FFFD in the text: what is not {config.encoding} is replaced by it"


def canonical_encoding(encoding: str) -> str:
    """Return Python's name for a text encoding.

    Raises:
        DecodingError: when there is none of this name.
    """
    try:
        b"a".decode(encoding)  # Unlike codecs.lookup, this rejects bytes-to-bytes codecs such as hex.
    except UnicodeDecodeError:
        pass  # One byte is not a complete character in UTF-16.
    except (LookupError, ValueError) as error:
        windows = "; what Windows calls ANSI is a code page such as cp1252" if encoding.lower() == "ansi" else ""
        raise DecodingError(f"--encoding {encoding!r} is not a text encoding known to Python{windows}") from error
    return codecs.lookup(encoding).name


def _mark_of(data: bytes) -> str | None:
    """Return the encoding of a leading byte order mark, or None."""
    return next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)


def binary_message(data: bytes, where: str, offset: int = 0) -> str:
    """Describe a file with NUL bytes: binary data, or UTF-16 without a byte order mark.

    `data` starts at byte `offset` of the file.
    """
    if not offset and (message := _compressed_message(data, where)):
        return message
    wide = [name for name in ("utf-16-le", "utf-16-be") if _decodes(data, name)]
    if data.count(0) * 4 < len(data) and _decodes(data.replace(b"\0", b""), "utf-8"):
        advice = f"remove the NUL bytes, or {_READ_ON}"  # In UTF-16, what lies between them is no text.
    else:
        few = data.count(0) * _FEW_NULS < len(data)  # A log that was cut off while it was written has some.
        advice = f"try --encoding {wide[0]}" if wide else f"give a text file{f', or {_READ_ON}' if few else ''}"
    return f"{where} is not a text file: byte {offset + data.find(0):,} is NUL; {advice}"


def _compressed_message(data: bytes, where: str) -> str | None:
    """Describe a compressed file whose name does not say so; None for any other."""
    for mark, (name, ending, program) in _COMPRESSIONS.items():
        if re.match(mark, data):
            named = "" if where == "standard input" else f"give its name the ending {ending}, or "
            return f"{where} is {name} data: {named}decompress it with {program} -dc"
    return None


def surrogate_message(where: str, at: int) -> str:
    """Describe a text that cannot be written as UTF-8 because of its character `at`."""
    return f"{where} has half of a surrogate pair at character {at:,}; remove it"


def undecodable_message(data: bytes, encoding: str, error: UnicodeDecodeError, where: str, offset: int = 0) -> str:
    """Describe an invalid byte, with advice; `data` starts at byte `offset` of the file."""
    if not offset and (message := _compressed_message(data, where)):
        return message
    byte, at = data[error.start], offset + error.start
    return f"{where} is not {encoding}: byte {at:,} (0x{byte:02x}) is invalid; {_advice(data, error)}"


def _advice(data: bytes, error: UnicodeDecodeError) -> str:
    """Advise on undecodable bytes: repair the file, or try other encodings."""
    mark = _mark_of(data)
    if mark is not None and _decodes(data, mark):
        return f"try --encoding {mark}"
    before = data[: error.start]
    if error.encoding == "utf-8" and len(before) - len(before.decode("utf-8", "replace")) >= _MIN_CONTINUATION_BYTES:
        return f"everything before it is utf-8, so the file is damaged there; repair it, or {_READ_ON}"
    # Western text has few bytes beyond ASCII; in other scripts they are the majority.
    sample = data[:_SAMPLE_BYTES]
    few = 4 * sum(byte > 127 for byte in sample) < len(sample)
    guesses = _WESTERN + _MULTI_BYTE + _CYRILLIC if few else _MULTI_BYTE + _CYRILLIC + _WESTERN
    fitting = [name for name in ("utf-8", *guesses) if name != error.encoding and _decodes(data, name)]
    choice = " or ".join(f"--encoding {name}" for name in fitting[:_MOST_GUESSES])
    return f"try {choice}, or {_READ_ON}" if fitting else "give a text file"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        return False
    # Control and unassigned characters indicate a wrong guess.
    sample = text[:20000]
    return not any(unicodedata.category(c) in ("Cc", "Cn", "Co", "Cs") and c not in "\t\n\r\f\ufeff" for c in sample)
