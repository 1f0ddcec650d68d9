"""A run trained on a text with brackets, and its explanation."""

from __future__ import annotations

import pytest
from brackets import bracket_text

import charwright as cw


@pytest.fixture(scope="session")
def bracket_run(tmp_path_factory: pytest.TempPathFactory) -> cw.Run:
    """A small network that has learned in seconds whether a bracket is open."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)  # With sizes as small as this, a second one only adds waiting.
    folder = tmp_path_factory.mktemp("brackets")
    (folder / "brackets.txt").write_text(bracket_text(60_000, 1), encoding="utf-8")
    run = cw.train(
        folder / "brackets.txt",
        out=folder / "run",
        steps=400,
        units=16,
        embedding_size=8,
        batch=16,
        seq_length=32,
        learning_rate=0.01,
        weight_decay=0.17,
        schedule="cosine",
        multiplicative=False,
        val_fraction=0.3,
        val_split="tail",
    )
    torch.set_num_threads(before)
    return run


@pytest.fixture(scope="session")
def explained(bracket_run: cw.Run) -> cw.Explanation:
    return cw.explain(bracket_run, length=1000)
