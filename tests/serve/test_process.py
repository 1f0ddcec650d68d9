"""`charwright serve` as a process: start, mistakes, signals, a crash, several models, no PyTorch."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import pytest

from charwright.config import ModelConfig
from charwright.run import Run
from commands import process
from service_process import serving
from services import eventually
from writers import LETTERS, random_writer, weights_of

LONG = ["--max-tokens", "10000000", "--max-request", "1000000000"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `random_writer`."""
    folder = tmp_path_factory.mktemp("runs") / "letters"
    config = ModelConfig(units=16, embedding_size=8)
    Run.save(folder, config, weights_of(config, len(LETTERS)), LETTERS)
    return folder


class Process:
    """A service in a process of its own."""

    def __init__(self, *arguments: str | Path, prelude: str = "", port: int = 0) -> None:
        command = [sys.executable, "-c", f"import sys; {prelude}\nfrom charwright.cli import main; main()", "serve"]
        self.lines: list[str] = []
        self._connections: list[http.client.HTTPConnection] = []
        self.popen = subprocess.Popen(
            [*command, *map(str, arguments), "--port", str(port)], stderr=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert eventually(lambda: any(line.startswith("serving") for line in self.lines), 30), self.lines
        found = re.search(r"at http://127\.0\.0\.1:(\d+)", "".join(self.lines))
        assert found is not None
        self.port = int(found[1])

    def _read(self) -> None:
        assert self.popen.stderr is not None
        self.lines.extend(self.popen.stderr)

    def open(self, method: str, path: str, **parameters: Any) -> http.client.HTTPResponse:
        """Send a request; the body of the answer is still to be read."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        self._connections.append(connection)
        body = json.dumps({"model": "letters", "prompt": "ab"} | parameters) if method == "POST" else None
        connection.request(method, path, body, {"Content-Type": "application/json"})
        return connection.getresponse()

    def complete(self, **parameters: Any) -> http.client.HTTPResponse:
        return self.open("POST", "/v1/completions", **parameters)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if any, and wait for the exit code."""
        if number is not None:
            self.popen.send_signal(number)
        code = self.popen.wait(timeout=30)
        self._reader.join(timeout=10)
        return code

    def clean(self) -> None:
        for connection in self._connections:
            connection.close()
        self.popen.kill()
        self.popen.wait()
        self._reader.join(timeout=10)
        assert self.popen.stderr is not None
        self.popen.stderr.close()


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Process] = []

    def begin(*arguments: Any, **options: Any) -> Process:
        started.append(Process(*arguments, **options))
        return started[-1]

    yield begin
    for each in started:
        each.clean()


def test_serves_the_text_of_the_command_without_pytorch(start: Start, run: Path) -> None:
    blocked = "sys.modules['torch'] = None; sys.modules['rich'] = None"
    service = start(run, f"other={run}", prelude=blocked)
    for name in ("letters", "other"):
        answer = json.loads(service.complete(model=name, max_tokens=200, seed=7, temperature=0.8).read())
        command = process("generate", run, "--prompt", "ab", "--length", "200", "--seed", "7", "--json")
        assert answer["choices"][0]["text"] == json.loads(command.out)["continuation"]
    assert service.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_lets_accepted_requests_end(start: Start, run: Path, number: int) -> None:
    service = start(run, *LONG, "--log", "off")
    length = 600_000
    streams = [service.complete(max_tokens=length, stream=True, seed=seed) for seed in range(5)]
    service.popen.send_signal(number)
    assert eventually(lambda: any("5 requests in progress" in line for line in service.lines))
    assert service.open("GET", "/readyz").status == 503
    assert service.open("GET", "/healthz").status == 200
    refused = service.complete()
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    for stream in streams:
        body = stream.read().decode()
        assert body.endswith("data: [DONE]\n\n")
        events = [json.loads(event[6:]) for event in body.split("\n\n")[:-2]]
        assert sum(len(event["choices"][0]["text"]) for event in events) == length
    assert service.end() == 0


def test_idle_service_ends_at_once(start: Start, run: Path) -> None:
    service = start(run)
    kept = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
    kept.request("GET", "/healthz")
    kept.getresponse().read()
    began = time.monotonic()
    assert service.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 2
    kept.close()


def test_what_does_not_end_in_time_gets_an_error(start: Start, run: Path) -> None:
    service = start(run, *LONG, "--drain-s", "0.5")
    stream = service.complete(max_tokens=10_000_000, stream=True)
    whole: list[http.client.HTTPResponse] = []
    thread = threading.Thread(target=lambda: whole.append(service.complete(max_tokens=10_000_000)))
    thread.start()
    time.sleep(0.3)
    assert service.end(signal.SIGTERM) == 0
    thread.join()
    last = stream.read().decode().split("\n\n")[-2]
    assert json.loads(last[6:])["error"]["message"].startswith("the service ended before the text")
    assert whole[0].status == 503
    assert json.loads(whole[0].read())["error"]["code"] == "overloaded"
    assert any("2 requests did not end in time" in line for line in service.lines)


def test_second_signal_ends_at_once(start: Start, run: Path) -> None:
    service = start(run, *LONG)
    stream = service.complete(max_tokens=10_000_000, stream=True)
    service.popen.send_signal(signal.SIGINT)
    assert eventually(lambda: any("in progress" in line for line in service.lines))
    assert service.end(signal.SIGINT) == 130
    stream.close()


def test_killed_service_starts_again_on_its_port(start: Start, run: Path) -> None:
    service = start(run, *LONG)
    stream = service.complete(max_tokens=10_000_000, stream=True)
    stream.read(1000)
    assert service.end(signal.SIGKILL) == -signal.SIGKILL
    again = start(run, port=service.port)
    assert again.open("GET", "/readyz").status == 200
    stream.close()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "nowhere"),
        (["RUN", "RUN"], "two runs have the name 'letters'; name one of them: NAME="),
        (["a/b=RUN"], "NAME=RUN needs a name without slashes"),
        (["RUN", "--host", "0.0.0.0"], "give --api-key-file FILE, or --no-auth"),
        (["RUN", "--host", "no.such.name.invalid"], "--api-key-file FILE"),
        (["RUN", "--host", "no.such.name.invalid", "--no-auth"], "is no address of this machine"),
        (["RUN", "--host", "192..168.0.1", "--no-auth"], ": it is no host name"),
        (["RUN", "--allow-host", "\udcff"], "--allow-host takes a name"),
        (["RUN", "--api-key-file", "nowhere"], "cannot read nowhere"),
        (["RUN", "--api-key-file", "EMPTY"], "has no key"),
        (["RUN", "--cors-origin", "example.org"], "--cors-origin takes an origin as browsers send it"),
        (["RUN", "--cors-origin", "https://Example.org"], "--cors-origin takes an origin as browsers send it"),
        (["RUN", "--allow-host", "https://a.example"], "--allow-host takes a name"),
        (["RUN", "--allow-host", "a.example:8443"], "--allow-host takes a name"),
        (["RUN", "--trusted-proxy", "nonsense"], "--trusted-proxy takes an IP address"),
        (["RUN", "--corpus", "nowhere"], "there is no file or folder nowhere"),
        (["RUN", "--corpus", "n" * 300], "there is no file or folder nnn"),
        (["RUN", "--corpus", "OTHER"], "other.txt is not the text that"),
        (["n" * 300 + "=RUN"], "the name of a model has at most 256 characters, not 300"),
        (["RUN", "--log", "off", "--log-prompts"], "--log-prompts requires a log"),
        (["RUN", "--max-n", "0"], "--max-n must be at least 1"),
        (["RUN", "--port", "PORT"], "choose another with --port"),
    ],
    ids=str,
)
def test_mistake_gets_one_line(charwright: Any, run: Path, tmp_path: Path, arguments: list[str], words: str) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    other_text = tmp_path / "other.txt"
    other_text.write_text("A text that the run was not trained on.\n" * 9)
    with socket.create_server(("127.0.0.1", 0)) as other:
        values = {"RUN": str(run), "EMPTY": str(empty), "OTHER": str(other_text)}
        values["PORT"] = str(other.getsockname()[1])
        filled = [re.sub("RUN|EMPTY|OTHER|PORT", lambda found: values[found[0]], argument) for argument in arguments]
        result = charwright("serve", "--port", "0", *filled)
    assert result.code in (1, 2)
    assert words in result.line


def test_missing_extra_is_named(run: Path) -> None:
    result = process("serve", run, prelude="sys.modules['uvicorn'] = None")
    assert result.code == 1
    assert "charwright[serve]" in result.line


def test_closed_standard_error_does_not_end_the_service(run: Path) -> None:
    read, write = os.pipe()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from charwright.cli import main; main()", "serve", str(run), "--port", str(port)]
    popen = subprocess.Popen(command, stderr=write)
    os.close(write)
    os.close(read)
    try:

        def answers() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            with suppress(OSError), closing(connection):
                connection.request("GET", "/v1/models")
                return connection.getresponse().status == 200
            return False

        assert eventually(answers, 20)
        assert all(answers() for _ in range(3))
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=20) == 0
    finally:
        popen.kill()
        popen.wait()


def test_hangup_that_is_ignored_stays_so(start: Start, run: Path) -> None:
    service = start(run, prelude="import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)")
    service.popen.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert service.open("GET", "/readyz").status == 200
    assert service.end(signal.SIGTERM) == 0


def test_standard_error_that_nobody_reads_does_not_stall_the_service(run: Path) -> None:
    with serving(run, "--log-prompts", "--drain-s", "0.5", *LONG) as (popen, port), ExitStack() as stack:
        for length in [*[1] * 8, 10_000_000]:  # A pipe holds three of the prompts.
            connection = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)))
            body = json.dumps({"model": run.name, "prompt": "a" * 20_000, "max_tokens": length, "stream": True})
            connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200
            if length == 1:
                answer.read()
        popen.send_signal(signal.SIGTERM)
        assert popen.wait(timeout=5) == 0


def test_random_writer_is_the_run(run: Path) -> None:
    opened = Run.open(run)
    assert opened.vocabulary == random_writer().vocabulary
