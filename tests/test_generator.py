"""Completions: single, in a batch, streamed, reproducible."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charwright.config import GenerationConfig, ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, UsageError, VocabularyError
from charwright.generation.completions import Completion
from charwright.generation.generator import Generator
from charwright.model.language_model import LanguageModel
from writers import LETTERS, random_writer

VOCABULARY = LETTERS


@pytest.fixture(scope="module")
def writer() -> Generator:
    return random_writer()


PROMPTS = ["a", "", "A: bad 中", "b\n" * 20, "éé"]


def test_a_batch_of_prompts_of_different_lengths(writer: Generator) -> None:
    """Stream i is the completion of prompt i, with other prompts of any length in the batch."""
    together = writer.generate(PROMPTS, length=60, seed=5)
    for index, prompt in enumerate(PROMPTS):
        others = ["ccc" * (i + 1) for i in range(index)]
        alone = writer.generate([*others, prompt], length=60, seed=5)[-1]
        assert alone == together[index]
    assert writer.generate(PROMPTS[0], length=60, seed=5) == together[:1]


def test_a_prompt_is_read_to_its_end(writer: Generator) -> None:
    """The continuation is the one that would follow if the model had generated the prompt."""
    whole = writer.generate("A: ", length=80, temperature=0)[0]
    for cut in (1, 20, 50):
        head = "A: " + whole.continuation[:cut]
        assert writer.generate(head, length=80 - cut, temperature=0)[0].continuation == whole.continuation[cut:]


def test_other_prompts_give_other_texts(writer: Generator) -> None:
    first, second = writer.generate("ab", length=60, seed=1)[0], writer.generate("ba", length=60, seed=1)[0]
    assert first.continuation != second.continuation


def test_a_seed_gives_the_same_text_again(writer: Generator) -> None:
    first = writer.generate("a", length=100, seed=7)
    assert writer.generate("a", length=100, seed=7) == first
    assert random_writer().generate("a", length=100, seed=7) == first
    assert writer.generate("a", length=100, seed=8)[0].continuation != first[0].continuation


def test_a_longer_text_begins_with_the_shorter_one(writer: Generator) -> None:
    long, short = writer.generate("a", length=100, seed=7)[0], writer.generate("a", length=30, seed=7)[0]
    assert long.continuation.startswith(short.continuation)


def test_five_texts_from_one_prompt_differ(writer: Generator) -> None:
    five = writer.generate("a", num=5, length=100, seed=7)
    assert len({text.continuation for text in five}) == 5
    assert [text.stream for text in five] == [0, 1, 2, 3, 4]
    assert five[:2] == writer.generate("a", num=2, length=100, seed=7)


def test_each_prompt_has_its_texts_one_after_another(writer: Generator) -> None:
    texts = writer.generate(["a", "b"], num=2, length=10, seed=1)
    assert [text.prompt for text in texts] == ["a", "a", "b", "b"]
    assert str(texts[2]) == "b" + texts[2].continuation


@pytest.mark.parametrize("prompt", PROMPTS)
def test_stream_is_generate_piece_by_piece(writer: Generator, prompt: str) -> None:
    pieces = list(writer.stream(prompt, length=70, seed=3))
    assert all(pieces)
    assert len(pieces) > 1
    assert "".join(pieces) == writer.generate(prompt, length=70, seed=3)[0].continuation


def test_a_stream_is_generated_on_demand(writer: Generator) -> None:
    endless, read = writer.stream("a", length=10**12, seed=3), ""
    while len(read) < 3000:
        read += next(endless)
    assert writer.generate("a", length=len(read), seed=3)[0].continuation == read


def test_the_first_characters_come_at_once(writer: Generator) -> None:
    """Regardless of the model's speed: the first character does not wait for a thousand others."""
    assert len(next(writer.stream("a", length=10**6, seed=3))) == 1


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_lengths_are_exact_and_unknown_is_never_generated(prompts: list[str], length: int, seed: int) -> None:
    """Even by a model that gives [UNK] the highest probability."""
    for text, prompt in zip(
        random_writer(unknown_bias=50).generate(prompts, length=length, seed=seed, temperature=2.0),
        prompts,
        strict=True,
    ):
        assert len(text.continuation) == length
        assert set(text.continuation) <= set(VOCABULARY.characters)
        assert text.prompt == prompt


def test_unknown_is_never_the_most_likely() -> None:
    assert "[UNK]" not in random_writer(unknown_bias=50).generate("a", length=50, temperature=0)[0].continuation


def test_unknown_characters_of_a_prompt_are_read_as_unknown(writer: Generator) -> None:
    texts = writer.generate("aЖb", length=40, temperature=0) + writer.generate("a漢b", length=40, temperature=0)
    assert texts[0].continuation == texts[1].continuation
    assert str(texts[0]).startswith("aЖb")


def test_an_empty_prompt_starts_a_line(writer: Generator) -> None:
    assert (
        writer.generate(length=40, seed=1)[0].continuation == writer.generate("\n", length=40, seed=1)[0].continuation
    )
    assert str(writer.generate(length=40, seed=1)[0]) == writer.generate("\n", length=40, seed=1)[0].continuation


@pytest.mark.parametrize("characters", ["ab", "a b", "a"])
def test_an_empty_prompt_without_newlines_in_the_vocabulary(characters: str) -> None:
    assert len(random_writer(Vocabulary(characters)).generate(length=10)[0].continuation) == 10


def test_an_empty_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="no characters"):
        random_writer(Vocabulary("")).generate("a", length=10)


def test_no_prompts_give_no_completions(writer: Generator) -> None:
    assert writer.generate([], length=10) == []


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 60))
def test_bytes_stream_whole_characters(seed: int, length: int) -> None:
    writer = random_writer(ByteVocabulary())
    pieces = list(writer.stream("中", length=length, seed=seed))
    assert all(len(piece) >= 1 for piece in pieces)
    text = "".join(pieces)
    assert len(text) == length
    assert text == writer.generate("中", length=length, seed=seed)[0].continuation
    assert text.encode("utf-8").decode("utf-8") == text


def test_an_end_and_why(writer: Generator) -> None:
    text = writer.generate("a", length=500, seed=1, stop=("b", "zz"))[0]
    assert (text.ended, text.stop) == ("stop", "b")
    assert "b" not in text.continuation
    line = writer.generate("a", length=500, seed=1, until="line")[0]
    assert (line.ended, line.stop) == ("line", None)
    assert "\n" not in line.continuation.lstrip(" \n")
    assert writer.generate("a", length=3, seed=1, until="line", ban="\n")[0].ended == "length"


def test_texts_come_in_order_as_soon_as_those_before_are_done(writer: Generator) -> None:
    config = GenerationConfig(length=2000, stop=("b",), seed=1)
    texts = writer.texts(["a", "b", "c"], config)
    assert next(texts) == writer.generate(["a", "b", "c"], config)[0]
    endless = writer.texts(["a", "b"], GenerationConfig(length=10**12, stop=("b",), seed=1))
    assert next(endless).ended == "stop"


def test_pieces_of_many_texts_come_with_their_number(writer: Generator) -> None:
    pieces = list(writer.write(PROMPTS, GenerationConfig(length=60, seed=5)))
    together = ["".join(piece for number, piece in pieces if number == index) for index in range(len(PROMPTS))]
    assert together == [text.continuation for text in writer.generate(PROMPTS, length=60, seed=5)]
    first = writer.write(["a", "b", "c"], GenerationConfig(length=60, seed=5))
    assert [next(first)[0] for _ in range(3)] == [0, 1, 2]  # interleaved, not one after another


@pytest.mark.parametrize("precision", ["q8", "bf16", "f32"])
def test_logprobs_are_those_of_the_text(precision: str) -> None:
    """Under the model itself, at any temperature and with any masks."""
    writer = random_writer(precision=precision)
    [text] = writer.generate("a:", length=80, seed=3, temperature=1.7, top_k=5, ban="c", logprobs=True)
    assert text.logprobs is not None
    np.testing.assert_allclose(text.logprobs, writer.logprobs(str(text))[1:], rtol=1e-9)
    assert writer.generate("a:", length=80, seed=3, temperature=1.7, top_k=5, ban="c")[0] == Completion(
        text.prompt, text.continuation, text.seed, text.stream
    )


def test_prompts_are_a_list_of_texts(writer: Generator) -> None:
    """One text would be taken for as many prompts as it has characters."""
    for iterate in (writer.texts, writer.write):
        with pytest.raises(UsageError, match="prompts are a list of str"):
            next(iter(iterate("abc", GenerationConfig(length=2))))
        with pytest.raises(UsageError, match="a prompt is a str, not bytes"):
            next(iter(iterate([b"abc"], GenerationConfig(length=2))))  # type: ignore[list-item]
    with pytest.raises(UsageError, match="a prompt is a str, not int"):
        writer.generate(3, length=2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options", [{"num": 2}, {"max_copy": 5}, {"repetition_penalty": 1.5}, {"top_k": 1}, {"top_p": 0.5}, {"min_p": 0.1}]
)
def test_beam_search_refuses_what_has_no_effect_on_it(writer: Generator, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"does not sample; leave out {next(iter(options))}"):
        writer.beam_search("a", GenerationConfig(length=2, **options), 2)


def test_a_generator_stays_in_its_process(writer: Generator) -> None:
    for copied in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(UsageError, match=r"call charwright\.load again, in each process"):
            copied(writer)


def test_logprobs_of_a_text_are_the_models_log_softmax() -> None:
    torch = pytest.importorskip("torch")
    model = LanguageModel(ModelConfig(units=24, embedding_size=8, cell="lstm", layers=2), len(VOCABULARY), seed=3)
    text = "ab: 中Ж\nDE.é"
    ids = torch.from_numpy(VOCABULARY.encode(text).astype(np.int64))[:, None]
    with torch.no_grad():
        expected = torch.log_softmax(model(ids)[0][:-1, 0].double(), -1).gather(1, ids[1:])[:, 0]
    found = Generator.of(model, VOCABULARY, "f32").logprobs(text)
    unknown = (ids[1:, 0] == 0).numpy()
    assert unknown.sum() == 1
    np.testing.assert_allclose(found, expected.numpy() - unknown * VOCABULARY.unknown_nats, atol=1e-5)


def test_logprobs_need_characters(writer: Generator) -> None:
    for one, text in [(writer, "a"), (writer, ""), (random_writer(ByteVocabulary()), "ab")]:
        with pytest.raises(UsageError, match="at least two characters"):
            one.logprobs(text)


def test_a_repetition_penalty_ends_loops(writer: Generator) -> None:
    """At temperature 0 this model repeats itself forever; with a penalty it does not."""
    loop = writer.generate("a", length=600, temperature=0)[0].continuation
    assert loop[-300:-200] in loop[-200:]
    free = writer.generate("a", length=600, temperature=0, repetition_penalty=1.5)[0].continuation
    assert not any(free[at : at + 30] in free[at + 1 :] for at in range(570))


def test_min_p_of_one_is_greedy(writer: Generator) -> None:
    greedy = writer.generate("a", length=50, temperature=0)[0].continuation
    assert writer.generate("a", length=50, temperature=1, min_p=1.0, seed=9)[0].continuation == greedy


def test_options_of_a_config_and_by_name(writer: Generator) -> None:
    config = GenerationConfig(length=20, seed=4, temperature=1.5)
    assert writer.generate("a", config) == writer.generate("a", length=20, seed=4, temperature=1.5)
    assert writer.generate("a", config, length=5)[0].continuation == writer.generate("a", config)[0].continuation[:5]


@pytest.mark.parametrize(
    "options",
    [{"length": 0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"num": 0}, {"min_p": 1.5}, {"until": "dawn"}],
)
def test_options_out_of_bounds(writer: Generator, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(options))}`"):
        writer.generate("a", **options)


def test_top_k_of_one_is_greedy(writer: Generator) -> None:
    greedy = writer.generate("a", length=50, temperature=0)[0].continuation
    assert writer.generate("a", length=50, temperature=1, top_k=1, seed=9)[0].continuation == greedy
    assert writer.generate("a", length=50, temperature=1, top_p=1e-9, seed=9)[0].continuation == greedy


def test_of_takes_the_current_weights() -> None:
    config = ModelConfig(units=16, embedding_size=8)
    model = LanguageModel(config, len(VOCABULARY), seed=3)
    expected = Generator(config, model.arrays(), VOCABULARY).generate("a", length=30, seed=1)
    assert Generator.of(model, VOCABULARY).generate("a", length=30, seed=1) == expected


def test_a_vocabulary_of_another_size_is_refused() -> None:
    model = LanguageModel(ModelConfig(units=16, embedding_size=8), 5)
    with pytest.raises(VocabularyError, match="the vocabulary has 3 tokens, and the model 5"):
        Generator.of(model, Vocabulary("ab"))
