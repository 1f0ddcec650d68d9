"""Who may ask: keys, host names, origins; what an answer never contains; the routes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from charwright import __version__
from charwright.errors import UsageError
from charwright.serve.access import check_exposure
from charwright.serve.app import Access
from charwright.serve.journal import RequestLog
from charwright.serve.keys import Keys
from charwright.serve.limits import ServiceConfig
from services import Running, eventually, hosted
from writers import random_writer

KEY, OTHER = "first-key-of-some-length", "second-key-of-some-length"
ROUTES = ["/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/v1/models/letters", "/v1/nothing", "/favicon.ico"]


@pytest.fixture
def keyed(serve: Any) -> Running:
    text = f"# two keys\n{KEY}\n\nsha256:{hashlib.sha256(OTHER.encode()).hexdigest()}\n"
    running: Running = serve(access=Access(Keys.parse(text, "keys")))
    return running


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_asks_for_a_key(keyed: Running, path: str) -> None:
    assert keyed.get(path).status == 401
    assert keyed.get(path, Authorization="Bearer wrong").status == 401
    assert keyed.get(path, Authorization=f"Bearer {KEY}x").status == 401
    assert keyed.get(path, Authorization=KEY).status == 401
    assert keyed.get(path, Authorization=f"Bearer {KEY}").status in (200, 404)
    assert keyed.get(path, Authorization=f"bearer {OTHER}").status in (200, 404)


def test_health_needs_no_key(keyed: Running) -> None:
    assert keyed.get("/healthz").json == {"status": "alive"}
    assert keyed.get("/readyz").json == {"status": "ready"}


def test_completion_asks_for_a_key(keyed: Running) -> None:
    reply = keyed.complete()
    assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert keyed.complete(headers={"Authorization": f"Bearer {OTHER}"}).status == 200


def test_browser_asks_for_the_key_as_a_password(keyed: Running) -> None:
    assert keyed.get("/").headers["www-authenticate"].startswith("Basic ")
    basic = base64.b64encode(f"anyone:{KEY}".encode()).decode()
    assert keyed.get("/", Authorization=f"Basic {basic}").status == 200
    wrong = base64.b64encode(KEY.encode()).decode()
    assert keyed.get("/", Authorization=f"Basic {wrong}").status == 401
    assert keyed.get("/", Authorization="Basic !!!").status == 401


def test_each_key_has_its_own_limit(serve: Any) -> None:
    running = serve(access=Access(Keys.parse(f"{KEY}\n{OTHER}", "keys")), max_per_caller=2)
    first, second = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
    assert running.complete(n=2, headers=first).status == 200
    assert running.complete(n=3, headers=second).status == 400


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no key"),
        ("# only a comment\n", "has no key"),
        ("short\n", "line 1: a key must have at least 16"),
        ("with spaces in the key\n", "line 1: a key must have"),
        ("schlüssel-mit-umlaut\n", "line 1: a key must have"),
        (f"{KEY}\nsha256:abc\n", "line 2: sha256: must be followed by 64"),
    ],
)
def test_wrong_key_file(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        Keys.parse(text, "FILE")
    assert not text.strip() or text.strip().splitlines()[-1].strip() not in str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "localhost:80", "LOCALHOST:1", "127.0.0.1", "[::1]:8000", "[::1]"])
def test_loopback_names_are_allowed(running: Running, host: str) -> None:
    assert running.get("/healthz", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "a@localhost",
             "localhost:x", "10.0.0.1", "[::1", "localhost/evil", "127.0.0.2"]
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/v1/models"])
def test_other_host_names_are_refused(running: Running, host: str, path: str) -> None:
    reply = running.get(path, Host=host)
    assert reply.status in (400, 403)
    if reply.status == 403:
        assert reply.error["code"] == "host_not_allowed"


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_health_is_told_under_any_name_or_none(running: Running, path: str) -> None:
    assert running.get(path, Host="balancer.example").status == 200
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")


def test_two_host_headers_are_refused(running: Running) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
        client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 403 ")


def test_named_hosts_and_addresses_are_allowed(serve: Any) -> None:
    named = serve(access=Access(hosts=["Writer.example"]))
    assert named.get("/v1/models", Host="writer.EXAMPLE:8000").status == 200
    assert named.get("/v1/models", Host="10.0.0.1").status == 403
    anywhere = serve(access=Access(addresses=True))
    assert anywhere.get("/v1/models", Host="10.0.0.1:8000").status == 200
    assert anywhere.get("/v1/models", Host="writer.example").status == 403
    assert serve(access=Access(hosts=["*"])).get("/v1/models", Host="writer.example").status == 200


def test_other_origins_are_refused(running: Running) -> None:
    for origin in ("https://evil.example", "null", "http://localhost:1", "http://[", "file://127.0.0.1"):
        reply = running.complete(headers={"Origin": origin})
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
    assert running.complete(headers={"Origin": running.url}).status == 200
    reply = running.request("OPTIONS", "/v1/completions", headers={"Origin": "https://evil.example"})
    assert reply.status == 405
    assert not any(name.startswith("access-control") for name in reply.headers)


def test_named_origins_are_allowed(serve: Any) -> None:
    running = serve(access=Access(Keys.parse(KEY, "keys"), origins=["https://page.example"]))
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type"
    reply = running.request("OPTIONS", "/v1/completions", headers=asked)
    assert reply.status == 200
    assert reply.headers["access-control-allow-origin"] == "https://page.example"
    headers = {"Origin": "https://page.example", "Authorization": f"Bearer {KEY}"}
    reply = running.complete(headers=headers)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "https://page.example")
    for status, wrong in ((400, {"temperature": -1}), (404, {"model": "other"})):
        reply = running.complete(headers=headers, **wrong)
        assert (reply.status, reply.headers.get("access-control-allow-origin")) == (status, "https://page.example")
    assert running.complete(headers={"Origin": "https://page.example"}).headers["access-control-allow-origin"]
    assert running.complete(headers=headers | {"Origin": "https://other.example"}).status == 403


def test_exposed_service_needs_keys() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.5.5.5"):
        check_exposure(host, keys=False, no_auth=False)
    for host in ("0.0.0.0", "::", "192.168.1.5", "machine.example"):
        with pytest.raises(UsageError, match="--api-key-file FILE, or --no-auth"):
            check_exposure(host, keys=False, no_auth=False)
        check_exposure(host, keys=True, no_auth=False)
        check_exposure(host, keys=False, no_auth=True)
    with pytest.raises(UsageError, match="contradict"):
        check_exposure("127.0.0.1", keys=True, no_auth=True)


def test_answers_have_safe_headers(running: Running) -> None:
    for path in ("/", "/docs", "/v1/models", "/nothing"):
        headers = running.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-request-id"].startswith("req_")
        assert "server" not in headers
    for path in ("/", "/docs"):
        policy = running.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src ")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy


def test_names_are_escaped_and_paths_are_not_told(serve: Any) -> None:
    name = "<b>&\"'é 中"

    def unreadable(_: object) -> str:
        raise UsageError(f"cannot read {Path.cwd()!s}/novel.txt")

    model = hosted(name, random_writer())
    model.training_text = unreadable
    running = serve({name: model})
    for path in ("/", "/docs", "/openapi.json", "/v1/models", "/metrics"):
        body = running.get(path).body
        assert b"<b>&" not in body or path in ("/v1/models", "/metrics")
        assert str(Path.cwd()).encode() not in body
    assert [model["id"] for model in running.get("/v1/models").json["data"]] == [name]
    quoted = "/v1/models/%3Cb%3E%26%22%27%C3%A9%20%E4%B8%AD"
    assert running.get(quoted).json["id"] == name
    reply = running.complete(model=name, max_copy=5)
    assert (reply.status, reply.error["param"]) == (400, "max_copy")
    assert str(Path.cwd()) not in reply.error["message"]


def test_routes(running: Running) -> None:
    assert running.get("/v1/models").json["data"][0] == {
        "id": "letters", "object": "model", "created": 1_700_000_000, "owned_by": "charwright", "labels": [],
    }  # fmt: skip
    for path, allowed in (("/v1/models", "GET"), ("/v1/completions", "POST")):
        reply = running.request("DELETE", path)
        assert reply.status == 405
        assert allowed in reply.headers["allow"]
        assert reply.error["type"] == "invalid_request_error"
    for path in ("/v1/models/", "/v1/models/x/y", "/v1", "//", "/../etc/passwd", "/v1/completions/"):
        assert running.get(path).status == 404
    assert "do not chat" in running.get("/v1/chat/completions").error["message"]
    assert running.request("HEAD", "/").body == b""


def test_openapi_document_has_the_limits(serve: Any) -> None:
    running = serve(max_tokens=77, max_prompts=3)
    document = running.get("/openapi.json").json
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["max_tokens"]["anyOf"][0]["maximum"] == 77
    assert fields["prompt"]["anyOf"][1]["maxItems"] == 3
    assert "security" not in document
    page = running.get("/docs").body.decode()
    for name in fields:
        assert f"<code>{name}</code>" in page
    for path in document["paths"]:
        assert path in page


def test_metrics(serve: Any) -> None:
    running = serve()
    running.complete(prompt="ab", max_tokens=50)
    running.complete(temperature=-1)
    text = running.get("/metrics").body.decode()
    for line in (
        'charwright_requests_total{route="/v1/completions",status="200"} 1.0',
        'charwright_requests_total{route="/v1/completions",status="400"} 1.0',
        'charwright_characters_total{kind="generated",model="letters"} 50.0',
        'charwright_characters_total{kind="prompt",model="letters"} 2.0',
        'charwright_first_character_seconds_count{model="letters"} 1.0',
        'charwright_refusals_total{reason="invalid"} 1.0',
        'charwright_waiting_texts{model="letters"} 0.0',
        'charwright_active_texts{model="letters"} 0.0',
        "charwright_streams 0.0",
        "charwright_ready 1.0",
        f'charwright_build_info{{version="{__version__}"}} 1.0',
    ):
        assert line in text
    for path in ("/a", "/b", "/c"):
        running.get(path)
    # A request is counted after its answer.
    assert eventually(lambda: running.metric("charwright_requests_total", route="other", status="404") == 3)


def test_log_has_no_prompt_unless_asked(serve: Any) -> None:
    for as_json in (True, False):
        for prompts in (True, False):
            stream = io.StringIO()
            running = serve(log=RequestLog(as_json=as_json, prompts=prompts, stream=stream))
            running.complete(prompt="ab\nAB", max_tokens=5)
            running.get("/healthz")
            running.get("/a?ab=AB")
            running.stop()
            lines = stream.getvalue().splitlines()
            assert len(lines) == 2
            assert ("AB" in lines[0]) == prompts
            assert "AB" not in lines[1]
            if as_json:
                first = json.loads(lines[0])
                assert (first["status"], first["characters"], first["texts"]) == (200, 5, 1)


def test_limits_have_bounds() -> None:
    with pytest.raises(Exception, match="`max_n` must be at least 1"):
        ServiceConfig(max_n=0)
