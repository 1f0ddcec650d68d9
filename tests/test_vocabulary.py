"""Characters to ids and back."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from charwright.config import VocabularyConfig
from charwright.data import code_points
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabularies import make_vocabulary, vocabulary_from_json
from charwright.data.vocabulary import UNKNOWN, Vocabulary
from charwright.errors import VocabularyError

# Characters of one, two, three and four bytes, near the edges where their widths in memory change.
characters = st.sampled_from("\0\n az~\x7f\x80éÿĀжﬀ中\ud7ff\ue000\ufeff\uffff\U00010000😀\U0010ffff")
texts = st.text(characters, max_size=60) | st.text(max_size=60)
# Python strings may contain lone surrogates, UTF-8 may not.
strings = st.text(st.characters(exclude_categories=()) | st.sampled_from("\ud800\udc00"), max_size=40)


def encode_by_character(vocabulary: Vocabulary, text: str) -> list[int]:
    """Encode one character at a time, as the reference for `encode`."""
    ids = {character: i for i, character in enumerate(vocabulary.characters, start=1)}
    return [ids.get(character, 0) for character in text]


def test_tutorial_ids(tinyshakespeare):
    vocabulary = Vocabulary.from_text(tinyshakespeare)
    assert len(tinyshakespeare) == 1_115_394
    assert len(vocabulary) == 66
    first = [19, 48, 57, 58, 59, 2, 16, 48, 59, 48, 65, 44, 53, 11, 1]
    assert vocabulary.encode(tinyshakespeare[:15]).tolist() == first
    assert vocabulary.decode(first) == "First Citizen:\n"
    ragged = vocabulary.encode_batch(["abcdefg", "xyz", ""])
    assert [ids.tolist() for ids in ragged] == [[40, 41, 42, 43, 44, 45, 46], [63, 64, 65], []]
    assert vocabulary.decode_batch(ragged) == ["abcdefg", "xyz", ""]
    assert vocabulary.decode(vocabulary.encode(tinyshakespeare)) == tinyshakespeare


@given(texts)
@example("")
def test_a_text_round_trips_through_its_own_vocabulary(text):
    vocabulary = Vocabulary.from_text(text)
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert ids.shape == (len(text),)
    assert vocabulary.decode(ids) == text
    assert vocabulary.characters == "".join(sorted(set(text)))


@given(known=texts, text=strings)
@example(known="ab", text="a\ud800\udc00b")
@example(known="中", text="ab中\U0010ffff")
@example(known="".join(map(chr, range(1, 300))), text="\x00aÿĀŐ")
def test_encode_matches_encoding_by_character(known, text):
    vocabulary = Vocabulary.from_text(known)
    assert vocabulary.encode(text).tolist() == encode_by_character(vocabulary, text)


@pytest.mark.parametrize("size", [1, 254, 255, 256, 257])
def test_vocabulary_sizes_around_256(size):
    # With at most 255 characters ids fit in a byte, and `encode` takes another path.
    vocabulary = Vocabulary("".join(map(chr, range(size))))
    text = "".join(map(chr, range(256)))
    assert vocabulary.encode(text).tolist() == encode_by_character(vocabulary, text)
    assert vocabulary.encode(text + "中").tolist() == encode_by_character(vocabulary, text + "中")


@given(text=texts, chunk=st.integers(1, 7))
def test_decoding_a_stream_gives_the_same_text(text, chunk):
    for vocabulary in (Vocabulary.from_text(text), ByteVocabulary()):
        decoder = vocabulary.decoder()
        parts = [decoder.feed(i) for i in vocabulary.encode(text).tolist()]
        assert "".join([*parts, decoder.flush()]) == text


def test_unknown_characters_have_id_0_and_decode_to_unk():
    vocabulary = Vocabulary.from_text("banana")
    assert vocabulary.tokens[0] == UNKNOWN == "[UNK]"
    assert vocabulary.encode("bandana").tolist() == [2, 1, 3, 0, 1, 3, 1]
    assert vocabulary.decode([2, 0, 1]) == "b[UNK]a"
    assert vocabulary.unknown_in("drab, dry bananas") == ["d", "r", ",", " ", "y", "s"]
    assert vocabulary.unknown_in("nab") == []


def test_rare_characters_become_unknown():
    vocabulary = Vocabulary.from_text("aaabbc中中", VocabularyConfig(min_count=2))
    assert vocabulary.characters == "ab中"
    assert vocabulary.encode("abc中").tolist() == [1, 2, 0, 3]


@given(text=texts, least=st.integers(1, 4))
def test_min_count_keeps_the_frequent_characters(text, least):
    wanted = sorted(character for character in set(text) if text.count(character) >= least)
    assert make_vocabulary(text, VocabularyConfig(min_count=least)).characters == "".join(wanted)


@given(known=texts, text=strings, least=st.integers(1, 3))
@example(known="zb", text="ab中a\ud800", least=1)
def test_growing_appends_characters(known, text, least):
    old = Vocabulary(Vocabulary.from_text(known).characters[::-1])  # an order that is not sorted
    grown = old.grown(text, VocabularyConfig(min_count=least))
    added = grown.characters.removeprefix(old.characters)
    assert grown.characters == old.characters + added
    own = make_vocabulary(text, VocabularyConfig(min_count=least)).characters
    assert added == "".join(c for c in own if c not in old.characters)
    assert grown.encode(known).tolist() == old.encode(known).tolist()
    assert grown.encode(text).tolist() == encode_by_character(grown, text)
    assert vocabulary_from_json(grown.to_json()) == grown


def test_growing_past_255_characters():
    old = Vocabulary("".join(map(chr, range(255))))
    grown = old.grown("中a")
    assert grown.encode("a中ÿ").tolist() == [98, 256, 0]
    assert old.grown("abc") == old


def test_byte_vocabularies_do_not_grow_and_the_level_cannot_change():
    assert ByteVocabulary().grown("中") == ByteVocabulary()
    assert Vocabulary("a").grown("b", VocabularyConfig()).characters == "ab"
    for vocabulary, level in ((ByteVocabulary(), "character"), (Vocabulary("a"), "byte")):
        with pytest.raises(VocabularyError, match=f"not {level}-level; its level cannot change"):
            vocabulary.grown("中", VocabularyConfig(level=level))


def test_a_text_longer_than_one_chunk_is_counted_completely():
    half = code_points.CHUNK
    text = "é" + "a" * half + "中b" + "a" * half + "中é"
    assert make_vocabulary(text, VocabularyConfig(min_count=2)).characters == "aé中"


def test_lone_surrogates_are_rejected():
    assert Vocabulary.from_text("a\ud800b\udfff").characters == "ab"
    with pytest.raises(VocabularyError, match="surrogate"):
        Vocabulary("a\ud800")


def test_a_repeated_character_is_rejected():
    with pytest.raises(VocabularyError, match="'a' more than once"):
        Vocabulary("aba")


@pytest.mark.parametrize(
    ("vocabulary", "ids", "wrong"),
    [
        (Vocabulary("abc"), [1, 4, 2], 4),
        (Vocabulary("abc"), [-1], -1),
        (Vocabulary("abc"), np.array([2**63], dtype=np.uint64), 2**63),
        (ByteVocabulary(), [256, 257], 257),
        (ByteVocabulary(), [-1], -1),
    ],
)
def test_an_id_outside_the_vocabulary_is_reported(vocabulary, ids, wrong):
    with pytest.raises(VocabularyError, match=f"id {wrong} is outside the vocabulary of {len(vocabulary)}"):
        vocabulary.decode(ids)


@pytest.mark.parametrize("ids", [[1.5], [[1, 2]], 3, [True], ["a"]])
def test_ids_that_are_not_a_1d_array_of_integers_are_rejected(ids):
    with pytest.raises(VocabularyError, match="a 1-D array of integers"):
        Vocabulary("abc").decode(ids)


def test_bytes_cover_every_character():
    vocabulary = make_vocabulary("any text", VocabularyConfig(level="byte"))
    assert isinstance(vocabulary, ByteVocabulary)
    assert len(vocabulary) == 257
    assert vocabulary.encode("aé").tolist() == [98, 0xC3 + 1, 0xA9 + 1]
    assert vocabulary.unknown_in("é中😀") == []


@given(strings)
def test_bytes_encode_every_string_and_round_trip(text):
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode(text)
    assert ids.dtype == np.int32
    assert (ids > 0).all()
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert vocabulary.decode(ids) == text


@given(st.lists(st.integers(0, 256), max_size=20))
def test_any_bytes_decode(ids):
    # An untrained byte-level model generates invalid UTF-8.
    text = ByteVocabulary().decode(ids)
    expected = bytes(i - 1 if i else 0xFF for i in ids).decode("utf-8", "replace")
    assert text == expected


def test_an_invalid_byte_becomes_a_replacement_character():
    assert ByteVocabulary().decode([98, 0, 99]) == "a\ufffdb"
    assert ByteVocabulary().decode([98, 0xE4 + 1]) == "a\ufffd"


@given(texts)
def test_json_round_trip_and_equality(text):
    for vocabulary in (Vocabulary.from_text(text), ByteVocabulary()):
        written = json.dumps(vocabulary.to_json())
        again = vocabulary_from_json(json.loads(written))
        assert again == vocabulary
        assert hash(again) == hash(vocabulary)
        assert again.encode(text).tolist() == vocabulary.encode(text).tolist()


def test_inequality():
    assert Vocabulary("ab") != Vocabulary("ba")
    assert Vocabulary("") != ByteVocabulary()
    assert Vocabulary("ab") != "ab"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "an object with the keys"),
        ({"format": 1, "unit": "character"}, "an object with the keys"),
        ({"format": 1, "unit": "character", "characters": "ab", "more": 1}, "an object with the keys"),
        ({"format": 2, "unit": "character", "characters": "ab"}, "later version"),
        ({"format": 1, "unit": "word", "characters": "ab"}, "not 'word'"),
        ({"format": 1, "unit": "byte", "characters": "ab"}, "must be empty"),
        ({"format": 1, "unit": "character", "characters": ["a"]}, "must be a string"),
        ({"format": 1, "unit": "character", "characters": "aa"}, "more than once"),
        ({"format": 1, "unit": "character", "characters": "\ud800"}, "surrogate"),
    ],
)
def test_reading_json_is_strict(values, words):
    with pytest.raises(VocabularyError, match=words):
        vocabulary_from_json(values)
