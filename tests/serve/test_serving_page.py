"""The programs of docs/how-to/serve.md work: each is run against a service, at its port instead of 8000."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from charwright.config import ModelConfig
from charwright.data.vocabulary import Vocabulary
from charwright.run import Run
from service_process import serving
from test_docs import blocks
from writers import weights_of

PAGE = "docs/how-to/serve.md"
VOCABULARY = Vocabulary("\n Itwasdehnr")


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a service with a run called novel."""
    folder = tmp_path_factory.mktemp("runs") / "novel"
    model = ModelConfig(units=16, embedding_size=8)
    Run.save(folder, model, weights_of(model, len(VOCABULARY)), VOCABULARY)
    with serving(folder) as (_, port):
        yield port


def run(*command: str | Path, stdin: str = "", **environment: str) -> str:
    """What a program prints; it must succeed, and print text of the model."""
    done = subprocess.run(
        [*map(str, command)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"no_proxy": "127.0.0.1"} | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def with_port(source: str, port: int) -> str:
    return source.replace("127.0.0.1:8000", f"127.0.0.1:{port}")


def is_text_of_the_model(text: str) -> bool:
    """Whether it has the requested length and only characters that the model knows."""
    return len(text.removesuffix("\n")) in (500, 499) and not VOCABULARY.unknown_in(text)


def test_the_python_program_runs(port: int) -> None:
    pytest.importorskip("openai")
    [program] = blocks(PAGE, "python")
    assert is_text_of_the_model(run(sys.executable, "-c", with_port(program, port)))


def test_the_javascript_program_runs(port: int) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    [program] = blocks(PAGE, "js")
    assert is_text_of_the_model(run("node", "--input-type=module", "-", stdin=with_port(program, port)))


def test_the_javascript_program_fails_where_the_service_does(port: int) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    [program] = blocks(PAGE, "js")
    with pytest.raises(AssertionError, match="there is no model 'poem'"):
        run("node", "--input-type=module", "-", stdin=with_port(program, port).replace('"novel"', '"poem"'))


def test_the_javascript_program_notices_an_error_in_the_stream(tmp_path: Path) -> None:
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    [program] = blocks(PAGE, "js")
    folder = tmp_path / "novel"
    model = ModelConfig(units=16, embedding_size=8)
    Run.save(folder, model, weights_of(model, len(VOCABULARY)), VOCABULARY)
    endless = program.replace("max_tokens: 500", "max_tokens: 10000000")
    with (
        serving(folder, "--total-s", "0.3", "--max-tokens", "10000000", "--max-request", "10000000") as (_, port),
        pytest.raises(AssertionError, match="the request took too long"),
    ):
        run("node", "--input-type=module", "-", stdin=with_port(endless, port))


def test_llm_reads_the_file(port: int, tmp_path: Path) -> None:
    pytest.importorskip("llm")
    [models] = [body for body in blocks(PAGE, "yaml") if "model_id" in body]
    (tmp_path / "extra-openai-models.yaml").write_text(with_port(models, port), encoding="utf-8")
    [command] = [line for body in blocks(PAGE, "sh") for line in body.splitlines() if line.startswith("llm ")]
    program = command.replace("llm ", f"{sys.executable} -m llm ")
    assert is_text_of_the_model(run("sh", "-c", program, LLM_USER_PATH=str(tmp_path)))


def test_the_streaming_command_runs(port: int) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    [command] = [body for body in blocks(PAGE, "sh") if "curl -sN" in body]
    events = run("sh", "-c", with_port(command, port)).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts = [json.loads(event.removeprefix("data: "))["choices"][0]["text"] for event in events[:-2]]
    assert len("".join(texts)) == 2000
