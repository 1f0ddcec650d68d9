"""A service in a thread of the test process, on a port of its own."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.vocabulary import Vocabulary
from charwright.generation.generator import Generator
from charwright.serve.app import Access, create_app
from charwright.serve.hosting import HostedModel
from charwright.serve.journal import Log
from charwright.serve.limits import ServiceConfig
from charwright.serve.server import Server, listen, url_of
from charwright.serve.service import Service
from writers import LETTERS, random_writer

TEXT = "abc ab.\nAB cab! " * 20


MODELS: dict[str, Vocabulary] = {
    "letters": LETTERS,
    "chinese": Vocabulary("\n，。不可名天地常有欲無道非\u2028"),
    "bytes": ByteVocabulary(),
}


@dataclass
class Reply:
    """An answer of the service."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return str(self.json["choices"][0]["text"])

    @property
    def error(self) -> dict[str, Any]:
        """OpenAI's error object, and nothing else."""
        assert set(self.json) == {"error"}, self.body
        assert set(self.json["error"]) == {"message", "type", "param", "code"}
        return dict(self.json["error"])

    @property
    def chunks(self) -> list[Any]:
        """The events of a whole stream."""
        assert self.headers["content-type"].startswith("text/event-stream")
        events = self.body.decode("ascii").split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        assert all(event.startswith("data: ") for event in events[:-1])
        return [json.loads(event[6:]) for event in events[:-2]]


@dataclass
class Running:
    """A service that runs, and a plain client of it."""

    service: Service
    url: str
    port: int
    server: Server
    thread: threading.Thread
    said: list[str] = field(default_factory=list)

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, headers=headers)

    def complete(self, *, headers: Mapping[str, str] | None = None, **parameters: Any) -> Reply:
        body = json.dumps({"model": "letters"} | parameters).encode()
        return self.request("POST", "/v1/completions", body, {"Content-Type": "application/json", **(headers or {})})

    def metric(self, name: str, **labels: str) -> float:
        value = self.service.metrics.registry.get_sample_value(name, labels)
        return 0.0 if value is None else value

    def is_empty(self, within_s: float = 30) -> bool:
        """Whether no text is left in the service."""
        return eventually(lambda: self.service.held == 0 and self.metric("charwright_streams") == 0, within_s)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


class Raw:
    """A connection on which a test sends what it likes."""

    def __init__(self, running: Running, *, small_buffer: bool = False) -> None:
        self.socket = socket.socket()
        if small_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", running.port))

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def complete(self, key: str = "none", **parameters: Any) -> None:
        body = json.dumps({"model": "letters", "prompt": "ab"} | parameters).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        head += f"Authorization: Bearer {key}\r\n"
        self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def read_until(self, mark: bytes) -> bytes:
        data = b""
        while mark not in data:
            part = self.socket.recv(65536)
            if not part:
                raise AssertionError(f"closed after {data!r}")
            data += part
        return data

    def read_all(self) -> bytes:
        data = b""
        try:
            while part := self.socket.recv(65536):
                data += part
        except ConnectionResetError:
            pass
        return data


def eventually(condition: Callable[[], bool], within_s: float = 5) -> bool:
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def hosted(name: str, generator: Generator, text: str = TEXT) -> HostedModel:
    return HostedModel(name, 1_700_000_000, generator, None, lambda _: text)  # type: ignore[arg-type]


def start(
    models: Mapping[str, HostedModel] | None = None,
    *,
    access: Access | None = None,
    log: Log | None = None,
    **limits: Any,
) -> Running:
    if limits.get("max_tokens", 0) > 100_000:
        limits.setdefault("max_request", 10**12)
    if models is None:
        models = {"letters": hosted("letters", random_writer())}
    service = Service(models, ServiceConfig(**limits))
    listener = listen("127.0.0.1", 0)
    said: list[str] = []
    server = Server(service, create_app(service, access or Access(), log=log), say=said.append)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    url, port = url_of(listener), listener.getsockname()[1]
    thread.start()
    assert eventually(lambda: server.started)
    return Running(service, url, port, server, thread, said)
