"""A text, a run trained on it, and a function that runs commands."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from charwright import cli
from commands import SMALL, TEXT


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread: None) -> None:
    """All models here are small."""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs, which tests must not change."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "hamlet.txt").write_text(TEXT, encoding="utf-8")
    arguments = ["train", folder / "hamlet.txt", "--out", folder / "run", "--epochs", "2", *SMALL]
    assert cli.run(list(map(str, arguments))) == 0
    return folder / "run"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))
