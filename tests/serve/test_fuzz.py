"""Thousands of requests, made from the schema and broken in every way: no answer is a 5xx, and none is missing."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

from services import Running, hosted, start
from writers import random_writer


@pytest.fixture(scope="module")
def fuzzed() -> Any:
    running = start(
        {"letters": hosted("letters", random_writer())}, max_tokens=300, max_n=4, max_prompts=4, max_prompt=500
    )
    yield running
    assert running.is_empty()
    assert running.get("/readyz").status == 200
    running.stop()


EXAMPLES = {"/v1/completions": 1500}


def test_requests_of_the_schema(fuzzed: Running) -> None:
    schema = schemathesis.openapi.from_url(f"{fuzzed.url}/openapi.json")
    statuses: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=EXAMPLES.get(operation.path, 20),
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.as_strategy())
        def check(case: Any) -> None:
            if isinstance(case.body, dict) and random.Random(json.dumps(case.body, default=str)).random() < 0.8:
                case.body["model"] = "letters"
            response = case.call_and_validate(
                checks=[not_a_server_error, status_code_conformance, response_schema_conformance]
            )
            statuses[response.status_code] = statuses.get(response.status_code, 0) + 1

        check()
    assert statuses[200] > 300, statuses
    assert not any(status >= 500 for status in statuses), statuses


VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    1.5,
    1e308,
    2**70,
    "",
    "a",
    "字",
    "\0",
    [],
    {},
    ["a"],
    [None],
    [[]],
    {"a": 1},
]
FIELDS = ["model", "prompt", "max_tokens", "temperature", "top_p", "n", "stop", "seed", "echo", "logprobs", "stream",
          "stream_options", "user", "suffix", "best_of", "logit_bias", "top_k", "min_p", "until", "max_copy", "only",
          "ban", "repetition_penalty", "unknown", ""]  # fmt: skip


def test_fields_with_values_of_every_kind(fuzzed: Running) -> None:
    chance = random.Random(1)
    seen = set()
    for _ in range(1000):
        body: dict[str, Any] = {"model": "letters", "max_tokens": 5}
        for name in chance.sample(FIELDS, chance.randint(1, 3)):
            body[name] = chance.choice(VALUES)
        reply = fuzzed.request(
            "POST", "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        seen.add(reply.status)
        assert reply.status in (200, 400, 404), (body, reply.body)
        if reply.status != 200:
            assert reply.error["message"]
    assert seen == {200, 400, 404}


def test_bytes_that_are_broken_in_every_way(fuzzed: Running) -> None:
    chance = random.Random(2)
    body = json.dumps({"model": "letters", "prompt": "ab", "max_tokens": 5, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    whole = head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            match chance.randrange(4):
                case 0:
                    data[at] = chance.randrange(256)
                case 1:
                    del data[at : at + chance.randint(1, 20)]
                case 2:
                    data[at:at] = bytes(chance.randrange(256) for _ in range(chance.randint(1, 20)))
                case _:
                    data[at:at] = data[at : at + 30]
            if not data:
                data = bytearray(b"\r\n")
        with socket.create_connection(("127.0.0.1", fuzzed.port), timeout=20) as client:
            client.sendall(bytes(data))
            client.shutdown(socket.SHUT_WR)
            answer = b""
            while part := client.recv(65536):
                answer += part
        statuses = [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")]
        assert not any(status.startswith(b"5") for status in statuses), (bytes(data), answer)
    assert fuzzed.complete(max_tokens=1).status == 200
