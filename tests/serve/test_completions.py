"""`POST /v1/completions`: texts, streams, scores and usage, against the generator itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from charwright.config import GenerationConfig
from services import MODELS, Running, hosted
from writers import LABELLED, LETTERS, random_writer, record_writer

PROMPTS = {"letters": "abc A", "chinese": "道可道", "bytes": "né 中"}
DEFAULTS: dict[str, Any] = {"temperature": 1.0}


def expected(model: str, prompt: str | list[str], **options: Any) -> list[Any]:
    generator = random_writer(MODELS[model])
    return generator.generate(prompt, GenerationConfig(**(DEFAULTS | options)))


def scores(model: str, text: str) -> list[float]:
    """ln p of each character after the first."""
    generator = random_writer(MODELS[model])
    return [float(value) for value in generator.engine.scores([generator.vocabulary.encode(text)])[0]]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_text_is_that_of_the_generator(running: Running, model: str, stream: bool) -> None:
    reply = running.complete(model=model, prompt=PROMPTS[model], max_tokens=700, seed=7, temperature=0.8, stream=stream)
    [wanted] = expected(model, PROMPTS[model], length=700, seed=7, temperature=0.8)
    if stream:
        assert "".join(chunk["choices"][0]["text"] for chunk in reply.chunks) == wanted.continuation
        assert [chunk["choices"][0]["finish_reason"] for chunk in reply.chunks[-2:]] == [None, "length"]
    else:
        assert reply.text == wanted.continuation


@pytest.mark.parametrize(
    ("options", "own"),
    [
        ({"top_k": 2}, {"top_k": 2}),
        ({"top_p": 0.5}, {"top_p": 0.5}),
        ({"top_p": 0}, {"top_k": 1}),
        ({"min_p": 0.3}, {"min_p": 0.3}),
        ({"min_p": 0}, {}),
        ({"repetition_penalty": 3}, {"repetition_penalty": 3.0}),
        ({"only": "ab\n"}, {"only": "ab\n"}),
        ({"ban": "abc"}, {"ban": "abc"}),
        ({"stop": "a"}, {"stop": ("a",)}),
        ({"stop": ["ab", "ba", "c"]}, {"stop": ("ab", "ba", "c")}),
        ({"until": "2 lines"}, {"until": "2 lines"}),
        ({"temperature": 0}, {"temperature": 0.0}),
        ({"temperature": None, "n": None, "stop": None, "echo": None, "logprobs": None}, {}),
    ],
    ids=str,
)
def test_options_have_the_effect_of_the_command_line(running: Running, options: Any, own: Any) -> None:
    reply = running.complete(prompt="ab", max_tokens=300, seed=3, **options)
    [wanted] = expected("letters", "ab", length=300, seed=3, **own)
    assert reply.text == wanted.continuation
    assert reply.json["choices"][0]["finish_reason"] == ("length" if wanted.ended == "length" else "stop")


def test_defaults_are_those_of_openai(running: Running) -> None:
    reply = running.complete(seed=5)
    [wanted] = expected("letters", "", length=16, seed=5)
    assert reply.text == wanted.continuation
    assert reply.json["object"] == "text_completion"
    assert reply.json["model"] == "letters"
    assert reply.json["usage"] == {"prompt_tokens": 0, "completion_tokens": 16, "total_tokens": 16}


def test_seed_is_drawn_and_told(running: Running) -> None:
    first, second = (running.complete(prompt="a", max_tokens=200) for _ in range(2))
    assert first.text != second.text
    again = running.complete(prompt="a", max_tokens=200, seed=first.json["seed"])
    assert again.text == first.text


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_and_texts(running: Running, stream: bool) -> None:
    prompts = ["ab", "c", "A é中"]
    options = {"include_usage": True} if stream else None
    reply = running.complete(prompt=prompts, n=3, max_tokens=250, seed=9, stream=stream, stream_options=options)
    wanted = [each.continuation for each in expected("letters", prompts, length=250, seed=9, num=3)]
    assert len(set(wanted)) == 9
    usage = {"prompt_tokens": 7, "completion_tokens": 2250, "total_tokens": 2257}
    if not stream:
        assert [choice["text"] for choice in reply.json["choices"]] == wanted
        assert [choice["index"] for choice in reply.json["choices"]] == list(range(9))
        assert reply.json["usage"] == usage
        return
    *parts, last = reply.chunks
    assert (last["choices"], last["usage"]) == ([], usage)
    texts = [""] * 9
    for part in parts:
        assert part["usage"] is None
        texts[part["choices"][0]["index"]] += part["choices"][0]["text"]
    assert texts == wanted


def test_more_texts_than_places(running: Running) -> None:
    reply = running.complete(prompt=["a"] * 8, n=10, max_tokens=30, seed=1)
    wanted = expected("letters", ["a"] * 8, length=30, seed=1, num=10)
    assert [choice["text"] for choice in reply.json["choices"]] == [each.continuation for each in wanted]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_model(running: Running, model: str, stream: bool) -> None:
    prompt = PROMPTS[model]
    reply = running.complete(
        model=model, prompt=prompt, max_tokens=300, seed=2, logprobs=0, echo=True, stream=stream, stop=["zz"]
    )
    parts = [chunk["choices"][0] for chunk in reply.chunks] if stream else reply.json["choices"]
    text = "".join(part["text"] for part in parts)
    assert text == prompt + expected(model, prompt, length=300, seed=2, stop=("zz",))[0].continuation
    found = [value for part in parts for value in part["logprobs"]["token_logprobs"]]
    assert "".join(token for part in parts for token in part["logprobs"]["tokens"]) == text
    assert [at for part in parts for at in part["logprobs"]["text_offset"]] == list(range(len(text)))
    assert all(part["logprobs"]["top_logprobs"] is None for part in parts)
    assert len(found) == len(text)
    assert found[0] is None or model == "bytes"
    if model != "bytes":
        assert found[1:] == pytest.approx(scores(model, text), abs=2e-6)


def test_logprobs_of_bytes_are_sums_over_each_character(running: Running) -> None:
    reply = running.complete(model="bytes", prompt="é中a", max_tokens=0, logprobs=0, echo=True)
    found = reply.json["choices"][0]["logprobs"]["token_logprobs"]
    of_bytes = scores("bytes", "é中a")
    assert found[0] is None
    assert found[1:] == pytest.approx([sum(of_bytes[1:4]), of_bytes[4]], abs=1e-5)


def test_alternatives_are_the_most_likely_characters(running: Running) -> None:
    reply = running.complete(prompt="ab", max_tokens=40, seed=4, logprobs=3, echo=True, top_k=1)
    text, found = reply.text, reply.json["choices"][0]["logprobs"]
    generator = random_writer()
    ids = generator.vocabulary.encode(text)
    state = generator.engine.zero_state()
    assert found["top_logprobs"][0] is None
    for at, index in enumerate(ids[:-1], 1):
        logits = generator.engine.step(np.array([index]), state)[0]
        logp = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        best = np.argsort(-logp, kind="stable")[:3]
        named = {generator.vocabulary.tokens[i]: float(logp[i]) for i in best}
        named[text[at]] = float(logp[ids[at]])
        assert found["top_logprobs"][at] == pytest.approx(named, abs=2e-6)


def test_scoring_a_text_without_writing(running: Running) -> None:
    text = "abc AB.\n" * 300
    reply = running.complete(prompt=[text, "ab"], max_tokens=0, logprobs=0, echo=True)
    for choice, wanted in zip(reply.json["choices"], (text, "ab"), strict=True):
        assert choice["text"] == wanted
        assert choice["finish_reason"] == "length"
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(scores("letters", wanted), abs=2e-6)
    assert reply.json["usage"]["completion_tokens"] == 0


def test_unknown_characters_are_scored_as_in_evaluation(running: Running) -> None:
    text = "a字b"
    found = running.complete(prompt=text, max_tokens=0, logprobs=0, echo=True).json["choices"][0]["logprobs"]
    size = len(MODELS["letters"])
    assert found["token_logprobs"][1] == pytest.approx(
        scores("letters", text)[0] - math.log(1_114_112 - size), abs=2e-6
    )


def test_nothing_to_write(running: Running) -> None:
    reply = running.complete(prompt="ab", max_tokens=0)
    assert (reply.text, reply.json["choices"][0]["finish_reason"]) == ("", "length")
    chunks = running.complete(prompt="ab", max_tokens=0, stream=True).chunks
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == ["length"]


def test_stream_is_ascii_and_asks_proxies_not_to_collect(running: Running) -> None:
    reply = running.complete(model="chinese", prompt="道", max_tokens=100, stream=True, only="\u2028道名")
    assert reply.body.isascii()
    assert len(reply.body.decode().splitlines()) == 2 * len(reply.body.split(b"\n\n")) - 2
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["cache-control"] == "no-cache"


def test_copies_are_limited(running: Running) -> None:
    text = running.complete(prompt="ab", max_tokens=300, seed=1, temperature=0.1, max_copy=3).text
    from services import TEXT

    assert all(text[at : at + 4] not in TEXT for at in range(len(text) - 3))


@pytest.mark.parametrize(
    ("parameters", "param", "words"),
    [
        ({"temperature": 101}, "temperature", "less than or equal to 100"),
        ({"temperature": "1"}, "temperature", "number"),
        ({"max_tokens": -1}, "max_tokens", "0"),
        ({"max_tokens": 10_001}, "max_tokens", "10,000"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"n": 17}, "n", "16"),
        ({"n": 0}, "n", "1"),
        ({"n": True}, "n", "integer"),
        ({"n": 16, "prompt": ["a"] * 9}, "n", "144 texts; the limit is 128"),
        ({"prompt": ["a"] * 17}, "prompt", "17 prompts; the limit is 16"),
        ({"prompt": "a" * 20_001}, "prompt", "20,000"),
        ({"prompt": [1, 2]}, "prompt", "token ids are not supported"),
        ({"prompt": [[1]]}, "prompt", "token ids are not supported"),
        ({"prompt": []}, "prompt", "string"),
        ({"prompt": 5}, "prompt", "string"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"stop": [""]}, "stop", "at least 1 character"),
        ({"top_p": 1.1}, "top_p", "1"),
        ({"top_k": 0}, "top_k", "1"),
        ({"seed": -1}, "seed", "0"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"best_of": 2}, "best_of", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "ban or only"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "requires stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "not a parameter"),
        ({"until": "never"}, "until", "word, line, paragraph or sentence"),
        ({"only": "字"}, "only", "knows none"),
        ({"only": "a", "ban": "a"}, "only", "only: with ban, the model has no character left"),
        ({"ban": LETTERS.characters}, "ban", "ban: the model has no character left"),
        ({"model": "bytes", "only": "a", "ban": "字"}, "ban", "ban: this model generates bytes; '字' has characters"),
        ({"tools": []}, "tools", "not a parameter"),
        ({"model": 5}, "model", "string"),
        ({"model": "bytes", "logprobs": 1}, "logprobs", "bytes"),
    ],
    ids=str,
)
def test_wrong_parameter_is_named(running: Running, parameters: Any, param: str, words: str) -> None:
    reply = running.complete(**parameters)
    assert reply.status == 400
    assert reply.error["param"] == param
    assert reply.error["message"].startswith(f"{param}: ")
    assert words in reply.error["message"]
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"[]", "JSON object"),
        (b"{}", "model: is required"),
        (b'{"model": "letters", "prompt": "\\ud800"}', "not valid JSON"),
        (b'{"model": "letters", "prompt": "\xff"}', "not valid JSON"),
        (b'{"model": "letters", "temperature": NaN}', "finite"),
        (b'{"model": "letters", "temperature": 1e999}', "finite"),
        (b"[" * 100_000, "not valid JSON"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_broken_body(running: Running, body: bytes, words: str) -> None:
    reply = running.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    assert reply.status == 400
    assert words in reply.error["message"]


def test_neutral_values_of_unsupported_parameters_are_accepted(running: Running) -> None:
    neutral = {"suffix": None, "best_of": 1, "logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0}
    assert running.complete(user="someone", **neutral).status == 200


def test_unknown_model(running: Running) -> None:
    reply = running.complete(model="other")
    assert (reply.status, reply.error["code"], reply.error["param"]) == (404, "model_not_found", "model")


def test_body_is_json(running: Running) -> None:
    body = json.dumps({"model": "letters"}).encode()
    for headers in (
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ):
        assert running.request("POST", "/v1/completions", body, headers).status == 415
    good = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert running.request("POST", "/v1/completions", body, good).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_of_a_model_of_records_is_one_record(serve: Callable[..., Running], stream: bool) -> None:
    """It begins behind the end of another, and ends before its own, as that of the generator."""
    generator = record_writer(LABELLED)
    service = serve({"names": hosted("names", generator)})
    for label in (None, "two"):
        options = {"model": "names", "max_tokens": 300, "n": 5, "seed": 3, "stream": stream, "label": label}
        reply = service.complete(**options, prompt="a")
        wanted = generator.records(5, prompt="a", label=label, length=300, seed=3, temperature=1.0)
        texts = [""] * 5
        for part in reply.chunks if stream else [reply.json]:
            for choice in part["choices"]:
                texts[choice["index"]] += choice["text"]
                assert choice["finish_reason"] in (None, "stop")
        assert texts == [record.continuation for record in wanted]


def test_an_unknown_label_is_named(running: Running, serve: Callable[..., Running]) -> None:
    service = serve({"names": hosted("names", record_writer(LABELLED))})
    error = service.complete(model="names", label="four").error
    assert error["param"] == "label"
    assert error["message"].endswith("there is no label 'four'; the model has one, two, three")
    assert running.complete(label="one").error["message"].endswith("the model has no labels")


def test_a_long_option_is_shown_in_short(running: Running) -> None:
    for model, only in (("letters", "字" * 60_000), ("bytes", "é" * 60_000)):
        assert len(running.complete(model=model, only=only).error["message"]) < 200


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_characters_of_the_prompt_are_named(names: Running, stream: bool) -> None:
    for prompt, unknown in (("ab", None), ("a字ab文字", "字文"), (["a", "b文"], "文")):
        reply = names.complete(model="names", prompt=prompt, max_tokens=3, stream=stream)
        answers = reply.chunks if stream else [reply.json]
        assert {answer.get("unknown_characters") for answer in answers} == {unknown}


@pytest.fixture
def names(serve: Callable[..., Running]) -> Running:
    """A service with a model of records, and one that has labels too."""
    models = {"names": record_writer(), "labelled": record_writer(LABELLED)}
    running: Running = serve({name: hosted(name, writer) for name, writer in models.items()})
    return running


def scored(names: Running, prompt: str, **options: Any) -> list[float]:
    """The scores of a prompt, without those of what is generated after it."""
    parameters = {"model": "names", "prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 0} | options
    found = names.complete(**parameters).json["choices"][0]["logprobs"]["token_logprobs"]
    return list(found)


@pytest.mark.parametrize("prompt", ["a", "ab", "ab b\n", "\n", "a字\n", "ab" * 700])
def test_the_scores_of_a_record_are_those_of_the_command_score(names: Running, prompt: str) -> None:
    [score] = record_writer().score(prompt, by="line", independent=True)
    assert -sum(scored(names, prompt)) == pytest.approx(score.nats, abs=1e-6 * len(prompt))
    for record in record_writer().score(prompt):  # The end of a record counts.
        assert -sum(scored(names, record.text + "\n")) == pytest.approx(record.nats, abs=1e-6 * len(prompt))


def test_the_scores_of_a_record_are_those_of_its_generation(names: Running) -> None:
    reply = names.complete(model="names", prompt="ab", max_tokens=300, echo=True, logprobs=2, seed=2)
    [choice] = reply.json["choices"]
    assert choice["logprobs"]["token_logprobs"] == scored(names, choice["text"])
    assert len(choice["logprobs"]["top_logprobs"][0]) >= 2


def test_a_scored_record_needs_its_label(names: Running) -> None:
    for options in ({"max_tokens": 0}, {"stream": True}):
        error = names.complete(model="labelled", prompt="ab", echo=True, logprobs=0, **options).error
        assert error["param"] == "label"
        assert error["message"].endswith("(echo with logprobs); the model has one, two, three")
    engine, ids = record_writer(LABELLED).engine, LABELLED.encode("\nab")
    for number, label in enumerate(LABELLED.labels):
        wanted = engine.scores([np.insert(ids, 1, len(LABELLED) - 3 + number)])[0][1:]
        assert scored(names, "ab", model="labelled", label=label) == pytest.approx(wanted, abs=2e-6)
    for options in ({"echo": True}, {"logprobs": 0}):
        assert names.complete(model="labelled", prompt="ab", **options).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_choice_has_its_label(names: Running, stream: bool) -> None:
    wanted = [record_writer(LABELLED).opening(3, index).label for index in range(8)]
    reply = names.complete(model="labelled", n=8, seed=3, max_tokens=40, stream=stream)
    choices = [choice for part in (reply.chunks if stream else [reply.json]) for choice in part["choices"]]
    assert len(set(wanted)) > 1
    assert [choice["label"] for choice in choices] == [wanted[choice["index"]] for choice in choices]
    assert names.complete(model="labelled", label="two").json["choices"][0]["label"] == "two"
    assert "label" not in names.complete(model="names").json["choices"][0]


def test_a_model_lists_its_labels(names: Running) -> None:
    assert names.get("/v1/models/labelled").json["labels"] == ["one", "two", "three"]
    assert names.get("/v1/models/names").json["labels"] == []


def test_a_prompt_is_of_one_record(names: Running) -> None:
    only_scored = {"max_tokens": 0, "echo": True}
    for prompt, options in (("a\nb", {}), ("ab\n", {}), ("a\nb", only_scored), ("a\n\n", only_scored)):
        for prompts in (prompt, ["a", prompt]):
            error = names.complete(model="names", prompt=prompts, **options).error
            assert error["param"] == "prompt"
            assert "has the end of a record, '\\n'; give the beginning of one record" in error["message"]
    assert names.complete(model="names", prompt="ab\n", **only_scored).text == "ab\n"


@pytest.mark.parametrize("stream", [False, True])
def test_prompts_are_counted_as_in_the_usage(serve: Callable[..., Running], stream: bool) -> None:
    service = serve()
    service.complete(prompt=["abc", "a", "abc"], n=5, max_tokens=4, stream=stream)
    assert service.metric("charwright_characters_total", model="letters", kind="prompt") == 7
    assert service.metric("charwright_characters_total", model="letters", kind="generated") == 60
