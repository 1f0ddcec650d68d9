"""Decode a stream of bytes in pieces, with the text, and the errors, of decoding it as a whole.

Characters, line ends, byte order marks and combining marks are never divided between pieces.
"""

from __future__ import annotations

import codecs
import sys
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NoReturn

from charwright.config import CorpusConfig
from charwright.data.decoding import (
    REPLACEMENT,
    binary_message,
    canonical_encoding,
    decode,
    replaced,
    surrogate_message,
    undecodable_message,
)
from charwright.errors import DecodingError

PIECE_BYTES = 2 << 20
"""Small enough for the cache of a processor, from where the next stage takes it."""

SAMPLED_BYTES = 64 << 20
"""What an error message is worked out from; for a file of at most this size it is that of decoding it as a whole."""

UNDIVIDED = ("punycode", "idna")
"""Encodings that only make sense as a whole."""

_BOM = "\ufeff"
_LONGEST_MARK = 4


@dataclass(frozen=True)
class Piece:
    """A piece of text in UTF-8 and as `str`; without `text` it is ASCII."""

    utf8: bytes
    text: str | None = None

    @property
    def characters(self) -> str | bytes:
        """The characters, as bytes if they are ASCII."""
        return self.utf8 if self.text is None else self.text


@dataclass
class TextStream:
    """The bytes of one part of a corpus; `reopen` reads them from the start again, for an error message."""

    stream: BinaryIO
    where: str
    reopen: Callable[[], BinaryIO]
    piece_bytes: int = PIECE_BYTES
    sampled_bytes: int = SAMPLED_BYTES
    done_bytes: int = field(default=0, init=False)

    def pieces(self, config: CorpusConfig) -> Iterator[Piece]:
        """Yield the text, converted and normalized as configured.

        Raises:
            DecodingError: as `decode` does, with the same message.
            OSError: when the file cannot be read.
        """
        encoding = canonical_encoding(config.encoding)
        if encoding == "utf-8" and config.normalize == "none":
            yield from self._utf8_pieces(config)
        else:
            yield from self._decoded_pieces(encoding, config)

    def _utf8_pieces(self, config: CorpusConfig) -> Iterator[Piece]:
        left, final, started = b"", False, False
        while not final:
            read = self.stream.read(self.piece_bytes)
            final = not read
            data = left + read if left else read
            if b"\0" in data:
                if config.errors != "replace":
                    self._fail(config, data, binary=True)
                data = data.replace(b"\0", REPLACEMENT.encode())
            held = b"\r" if data.endswith(b"\r") and not final else b""  # The LF may be in the next piece.
            text, used = None, len(data) - len(held)
            if not data.isascii():
                try:
                    text, used = codecs.utf_8_decode(data[:used], config.errors, final)
                except UnicodeDecodeError as error:
                    self._fail(config, data, error)
            utf8, left = data[:used] if used < len(data) else data, data[used:]
            if text and config.errors == "replace":
                utf8 = text.encode("utf-8")
            self.done_bytes += used
            if not started and text and text.startswith(_BOM):
                text = text.lstrip(_BOM)
                utf8 = text.encode("utf-8")
            started = started or bool(utf8)
            if config.newlines == "lf" and b"\r" in utf8:
                utf8 = utf8.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
                text = text and text.replace("\r\n", "\n").replace("\r", "\n")
            if utf8:
                yield Piece(utf8, text or None)

    def _decoded_pieces(self, encoding: str, config: CorpusConfig) -> Iterator[Piece]:
        """Decode any encoding, and normalize."""
        read = self._read_with_head()
        data = next(read)
        decoder = codecs.getincrementaldecoder(_with_byte_order(encoding, data))(config.errors)
        held, final, started, characters = "", False, False, 0
        while not final:
            final = not data
            try:
                text = decoder.decode(data, final)
            except UnicodeDecodeError as error:
                self.done_bytes += len(data) - len(error.object)
                self._fail(config, error.object, error)
            except UnicodeError as error:  # a codec that reports no position
                raise DecodingError(f"{self.where} is not {config.encoding}: {error}") from error
            if config.errors == "replace":
                text = replaced(text)
            if "\0" in text:
                self._fail(config, data, binary=True)
            self._check_surrogates(text, characters)
            self.done_bytes += len(data)
            characters += len(text)
            if not started:
                text = text.lstrip(_BOM)
                started = bool(text)
            text, held = _divided(held + text, config, final=final)
            if text:
                utf8 = text.encode("utf-8")
                yield Piece(utf8, None if utf8.isascii() else text)
            data = next(read, b"")

    def _read_with_head(self) -> Iterator[bytes]:
        """Yield the bytes, of which the first come with all of the byte order mark."""
        head = self.stream.read(self.piece_bytes)
        while len(head) < _LONGEST_MARK and (more := self.stream.read(self.piece_bytes)):
            head += more
        yield head
        while data := self.stream.read(self.piece_bytes):
            yield data

    def _check_surrogates(self, text: str, before: int) -> None:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # utf-7 and others can encode lone surrogates
            raise DecodingError(surrogate_message(self.where, before + error.start)) from error

    def _fail(
        self, config: CorpusConfig, data: bytes, error: UnicodeDecodeError | None = None, *, binary: bool = False
    ) -> NoReturn:
        """Raise the error of decoding the whole; beyond a size it is worked out from `data`, which is at its place."""
        with self.reopen() as again:
            sample = again.read(self.sampled_bytes + 1)
        if len(sample) <= self.sampled_bytes:
            decode(sample, config, self.where)
        if binary or error is None:
            raise DecodingError(binary_message(data, self.where, self.done_bytes))
        raise DecodingError(undecodable_message(data, config.encoding, error, self.where, self.done_bytes)) from error


def _with_byte_order(encoding: str, head: bytes) -> str:
    """Return an encoding that needs no byte order mark where there is none, which Python has for whole texts only."""
    marks = {
        "utf-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
        "utf-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    }.get(encoding)
    if marks is None or head.startswith(marks):
        return encoding
    return f"{encoding}-{'le' if sys.byteorder == 'little' else 'be'}"


def _divided(text: str, config: CorpusConfig, *, final: bool) -> tuple[str, str]:
    """Return the part of a text that is complete, converted and normalized, and the rest, for the next piece."""
    cut = len(text)
    if config.normalize != "none" and not final:
        cut = next((at for at in range(len(text) - 1, -1, -1) if not composes(text[at])), 0)
    if not final and text[cut - 1 : cut] == "\r":
        cut -= 1  # An LF may follow.
    done, held = text[:cut], text[cut:]
    if config.newlines == "lf":
        done = done.replace("\r\n", "\n").replace("\r", "\n")
    if config.normalize != "none":
        done = unicodedata.normalize(config.normalize.upper(), done)  # type: ignore[arg-type]
    return done, held


def composes(character: str) -> bool:
    """Whether a character may compose, or be ordered, with the ones before it, in any normal form.

    Marks do, and the vowels and final consonants of Hangul; a text may be divided before any other character.
    """
    first = unicodedata.normalize("NFKD", character)[0]
    return unicodedata.category(first).startswith("M") or "\u1160" <= first <= "\u11ff"
