"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference texts and fixtures that is too large for the repository."""
    named = os.environ.get("CHARWRIGHT_SHARED")
    if not named:
        pytest.skip("CHARWRIGHT_SHARED names no folder with the reference texts and fixtures")
    return Path(named)


@pytest.fixture(scope="session")
def tinyshakespeare(shared: Path) -> str:
    """The tutorial's text: 1,115,394 characters."""
    return (shared / "data" / "tinyshakespeare.txt").read_bytes().decode("utf-8")
