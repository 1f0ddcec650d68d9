"""Clients that people have, unchanged: the openai package and simonw/llm."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from charwright.config import GenerationConfig
from charwright.serve.app import Access
from charwright.serve.keys import Keys
from services import Running
from writers import random_writer

KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0, timeout=30) as each:
        yield each


def wanted(prompt: str, length: int, seed: int, **options: Any) -> str:
    return random_writer().generate(prompt, GenerationConfig(length=length, seed=seed, **options))[0].continuation


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["letters", "chinese", "bytes"]
    assert client.models.retrieve("chinese").owned_by == "charwright"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")


def test_openai_completes(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="letters", prompt="ab", max_tokens=100, seed=3, temperature=0.8)
    assert answer.choices[0].text == wanted("ab", 100, 3, temperature=0.8)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 102
    assert answer._request_id


def test_openai_passes_our_own_options(client: openai.OpenAI) -> None:
    extra = {"top_k": 3, "until": "line"}
    answer = client.completions.create(model="letters", prompt="ab", max_tokens=500, seed=3, extra_body=extra)
    assert answer.choices[0].text == wanted("ab", 500, 3, top_k=3, until="line", temperature=1.0)


def test_openai_streams(client: openai.OpenAI) -> None:
    with client.completions.create(
        model="letters", prompt="ab", max_tokens=900, seed=3, stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, last = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == wanted("ab", 900, 3, temperature=1.0)
    assert last.usage is not None
    assert last.usage.completion_tokens == 900


def test_openai_reads_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="letters", prompt="ab", max_tokens=0, echo=True, logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens == ["a", "b"]
    assert found.token_logprobs is not None
    assert found.top_logprobs is not None
    assert found.token_logprobs[1] == found.top_logprobs[1]["b"]


def test_openai_names_the_parameter_of_an_error(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="best_of: is not supported") as caught:
        client.completions.create(model="letters", prompt="ab", best_of=2)
    assert (caught.value.param, caught.value.type) == ("best_of", "invalid_request_error")
    with pytest.raises(openai.NotFoundError, match="do not chat"):
        client.chat.completions.create(model="letters", messages=[{"role": "user", "content": "hello"}])


def test_openai_does_not_repeat_a_request_that_takes_too_long(serve: Any) -> None:
    running = serve(max_tokens=10_000_000, total_s=0.3)
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", timeout=30) as patient:
        with pytest.raises(openai.InternalServerError, match="took too long"):
            patient.completions.create(model="letters", prompt="ab", max_tokens=10_000_000)
        assert patient.max_retries > 0
    assert running.metric("charwright_refusals_total", reason="time") == 1


def test_openai_aborts_a_stream(running: Running, client: openai.OpenAI) -> None:
    with client.completions.create(model="letters", prompt="ab", max_tokens=10_000, stream=True) as stream:
        next(iter(stream))
    assert running.is_empty(within_s=1)


def test_openai_waits_in_many_threads(client: openai.OpenAI) -> None:
    texts: dict[int, str] = {}

    def ask(seed: int) -> None:
        texts[seed] = client.completions.create(model="letters", prompt="c", max_tokens=300, seed=seed).choices[0].text

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == {seed: wanted("c", 300, seed, temperature=1.0) for seed in range(20)}


def test_openai_sends_its_key(serve: Any) -> None:
    running = serve(access=Access(Keys.parse(KEY, "keys")))
    good, wrong = (openai.OpenAI(base_url=f"{running.url}/v1", api_key=k, max_retries=0) for k in (KEY, "wrong"))
    assert [model.id for model in good.models.list()] == ["letters"]
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        wrong.completions.create(model="letters", prompt="a")


def test_openai_reads_when_to_try_again(serve: Any) -> None:
    running = serve(max_per_caller=1, max_tokens=10_000_000)
    client = openai.OpenAI(base_url=f"{running.url}/v1", api_key="unused", max_retries=0)
    with client.completions.create(model="letters", prompt="ab", max_tokens=10_000_000, stream=True) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError, match="you have 1 texts in progress") as caught:
            client.completions.create(model="letters", prompt="ab")
    assert int(caught.value.response.headers["retry-after"]) >= 1


def llm(home: Path, *arguments: str) -> str:
    environment = os.environ | {"LLM_USER_PATH": str(home), "HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "llm", *arguments],
        env=environment, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def llm_home(running: Running, tmp_path: Path) -> Path:
    model = {"model_id": "letters", "model_name": "letters", "api_base": f"{running.url}/v1", "completion": "true"}
    lines = [f"{'- ' if key == 'model_id' else '  '}{key}: {value}" for key, value in model.items()]
    (tmp_path / "extra-openai-models.yaml").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.mark.parametrize("options", [[], ["--no-stream"]], ids=["stream", "whole"])
def test_llm_writes(llm_home: Path, options: list[str]) -> None:
    sampling = ["-o", "max_tokens", "200", "-o", "seed", "3", "-o", "temperature", "0.8"]
    text = llm(llm_home, "-m", "letters", "ab", *sampling, *options)
    assert text.rstrip("\n") == wanted("ab", 200, 3, temperature=0.8).rstrip("\n")


def test_llm_reads_logprobs(llm_home: Path) -> None:
    llm(llm_home, "-m", "letters", "ab", "-o", "logprobs", "2", "-o", "max_tokens", "5")
    assert "top_logprobs" in llm(llm_home, "logs", "-n", "1", "--json")
