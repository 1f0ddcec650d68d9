"""The files for deployment: the image, and the unit for systemd. What can run without Docker and systemd is run."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import charwright as cw
from charwright.serve.limits import ServiceConfig
from service_process import serving

ROOT = Path(__file__).resolve().parent.parent.parent
UNIT = ROOT / "deploy" / "charwright.service"
# What the image is built from.
SOURCES = ("backend", "CMakeLists.txt", "constraints.txt", "LICENSE", "pyproject.toml", "README.md", "src")
KEY = "a-key-that-is-long-enough"
Instruction = tuple[str, str]


def instructions() -> list[Instruction]:
    """The instructions of the Dockerfile, each with its arguments in one line."""
    lines = [line for line in (ROOT / "Dockerfile").read_text("utf-8").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def stages() -> list[list[Instruction]]:
    """The instructions of each stage."""
    found: list[list[Instruction]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def values(name: str, stage: int = -1) -> list[str]:
    """The arguments of each instruction of this name."""
    return [rest for one, rest in stages()[stage] if one == name]


def pip_commands() -> list[list[str]]:
    return [shlex.split(rest) for rest in values("RUN", 0) if rest.startswith("pip ")]


def packages() -> set[str]:
    """The packages that the image installs besides charwright."""
    [command] = [command for command in pip_commands() if "install" in command and "--no-deps" not in command]
    return {word for word in command[command.index("install") + 1 :] if not word.startswith("-")}


# The image.


def test_both_stages_have_the_same_python() -> None:
    # The environment is copied from one to the other, and refers to the interpreter by its path.
    builder, final = stages()
    assert builder[0][1].removesuffix(" AS builder") == final[0][1]
    assert "slim" in final[0][1]


def test_the_image_has_packages_at_the_tested_versions_and_no_torch() -> None:
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert packages() <= pinned.keys()
    assert {"click", "numpy", "safetensors"} <= packages()
    assert "torch" not in packages()
    assert not any(re.search(r"[=<>~]", word) for word in packages())  # the versions are those of one file only
    [environment] = values("ENV", 0)
    assert "PIP_CONSTRAINT=/source/constraints.txt" in environment.split()


def test_the_image_has_all_packages_of_the_extra() -> None:
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    extra = ast.literal_eval(text.split("\nserve = ")[1].split("]")[0] + "]")
    assert {re.split(r"[<>=]", requirement)[0] for requirement in extra} <= packages()


def test_the_final_stage_installs_nothing_and_is_not_root() -> None:
    assert not any("apt-get" in rest or "pip" in rest for rest in values("RUN"))
    [user] = values("USER")
    assert re.fullmatch(r"(\d+):(\d+)", user)
    assert int(user.partition(":")[0]) >= 10_000
    assert f"--uid {user.partition(':')[0]} " in " ".join(values("RUN"))
    assert [name for name, _ in stages()[-1]].index("USER") < [name for name, _ in stages()[-1]].index("ENTRYPOINT")


def test_the_first_process_is_the_service() -> None:
    [entry], [command] = values("ENTRYPOINT"), values("CMD")
    assert json.loads(entry)[:2] == ["charwright", "serve"]
    assert isinstance(json.loads(command), list)
    port = json.loads(entry)[json.loads(entry).index("--port") + 1]
    assert values("EXPOSE") == [port]
    assert f":{port}/healthz" in values("HEALTHCHECK")[0]


def test_the_build_sees_what_a_wheel_needs_and_no_more() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line[:1] not in ("", "#")]
    assert lines[0] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == set(SOURCES)
    assert all((ROOT / name).exists() for name in SOURCES)


# The unit.


def unit() -> dict[str, list[str]]:
    """The settings of the unit, in all sections."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text("utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_unit_waits_longer_than_the_service_drains() -> None:
    [seconds] = unit()["TimeoutStopSec"]
    assert int(seconds) > ServiceConfig().drain_s
    stop = re.search(r"--stop-timeout (\d+)", (ROOT / "docs" / "how-to" / "serve.md").read_text("utf-8"))
    assert stop is not None
    assert int(stop[1]) > ServiceConfig().drain_s


def test_the_unit_takes_its_keys_as_a_credential() -> None:
    [credential], [command] = unit()["LoadCredential"], unit()["ExecStart"]
    assert f"--api-key-file ${{CREDENTIALS_DIRECTORY}}/{credential.partition(':')[0]}" in command


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    # The command has to exist, and is not installed there.
    text = UNIT.read_text("utf-8").replace("/opt/charwright/bin/charwright", "/bin/sh")
    (tmp_path / "charwright.service").write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", tmp_path / "charwright.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


# The image's environment, built here by the image's own commands.


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the image's environment in `opt/charwright`."""
    folder = tmp_path_factory.mktemp("image")
    source = folder / "source"
    source.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, source / name)
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    for name, command in {"python": "", "pip": "-m pip"}.items():
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n')
        (bin_folder / name).chmod(0o755)
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("CHARWRIGHT_", "PYTHONPATH"))}
    settings["PATH"] = f"{bin_folder}{os.pathsep}{settings['PATH']}"
    [variables] = values("ENV", 0)
    settings |= dict(word.split("=", 1) for word in here(variables, folder).split())
    for command in values("RUN", 0):
        if "apt-get" in command:
            continue
        done = subprocess.run(
            ["sh", "-c", here(command, folder)], cwd=source, env=settings, capture_output=True, text=True, check=False
        )
        if "No matching distribution" in done.stderr or "compiler" in done.stderr:
            pytest.skip(f"the environment of the image cannot be built here: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder


def here(command: str, folder: Path) -> str:
    """A command of the image with its absolute paths below a folder."""
    return re.sub(r"(?<![\w.])/(source|wheels|opt)\b", rf"{folder}/\1", command)


@contextmanager
def serving_as_the_image(environment: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service with a small run, as the image starts it; yields its process and port."""
    (tmp_path / "letters.txt").write_text("a bad cab had a bag\n" * 100)
    cw.train(tmp_path / "letters.txt", out=tmp_path / "runs" / "tiny", steps=2, units=16, threads=1)
    (tmp_path / "letters.txt").rename(tmp_path / "moved.txt")
    (tmp_path / "keys").write_text(f"{KEY}\n")
    command = [str(environment / "opt/charwright/bin/charwright"), *json.loads(values("ENTRYPOINT")[0])[1:]]
    command[command.index("--port") + 1] = "0"
    command[command.index("--host") + 1] = "127.0.0.1"
    variables = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent"}
    files = ("--api-key-file", tmp_path / "keys", "--corpus", tmp_path / "moved.txt")
    with serving("tiny", *files, command=command, environment=variables, folder=tmp_path / "runs") as started:
        yield started


def ask(port: int, **more: object) -> dict[str, object]:
    body = {"model": "tiny", "prompt": "abc", "max_tokens": 20, "seed": 1} | more
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), headers, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: dict[str, object] = json.load(answer)
        return found


@pytest.mark.slow
def test_the_environment_of_the_image_serves_without_torch(environment: Path, tmp_path: Path) -> None:
    python = environment / "opt/charwright/bin/python"
    program = "import importlib.metadata as m; print(*[one.metadata['name'] for one in m.distributions()])"
    listed = subprocess.check_output([python, "-c", program], text=True)
    assert not {"torch", "pip"} & set(listed.split())
    with serving_as_the_image(environment, tmp_path) as (process, port):
        answer = ask(port)
        assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 20, "total_tokens": 23}
        assert ask(port, max_copy=5)["usage"] == answer["usage"]  # reads the training text
        health = json.loads(values("HEALTHCHECK")[0].partition(" CMD ")[2])
        check = [str(python), *health[1:-1], health[-1].replace(":8000/", f":{port}/")]
        assert subprocess.run(check, env={"http_proxy": "http://127.0.0.1:9"}, check=False).returncode == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert subprocess.run(check, capture_output=True, check=False).returncode == 1


@pytest.mark.slow
def test_the_environment_of_the_image_has_the_kernels(environment: Path) -> None:
    python = environment / "opt/charwright/bin/python"
    program = "from charwright import kernels; print(kernels.load() is not None)"
    assert subprocess.check_output([python, "-c", program], text=True) == "True\n"
