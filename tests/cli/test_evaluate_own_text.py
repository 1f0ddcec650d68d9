"""`charwright evaluate` without a corpus: a run on its own validation text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from charwright.run import Run
from commands import SMALL, Terminal

NAMES = "".join(f"{first}{last}\n" for first in ("al", "bo", "cy", "di", "ed") for last in ("ma", "no", "ra", "ti"))


def test_a_run_is_evaluated_on_its_validation_text(charwright: Terminal, trained: Path) -> None:
    result = charwright("evaluate", trained, "--json")
    values = json.loads(result.out)
    best = min(epoch["validation_loss"] for epoch in Run.open(trained).epochs())
    assert values["nats_per_char"] == pytest.approx(best, rel=1e-3)
    assert (values["validation_text"], values["trained_on_text"]) == (True, False)
    assert f"on the validation text of {trained}" in result.err


def test_a_corpus_is_no_validation_text(charwright: Terminal, trained: Path, corpus: Path) -> None:
    assert json.loads(charwright("evaluate", trained, corpus, "--json").out)["validation_text"] is False


def test_records_keep_their_protocol_unless_another_is_chosen(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(NAMES, encoding="utf-8")
    run = tmp_path / "run"
    charwright("train", tmp_path / "names.txt", "--records", "line", "--out", run, "--epochs", "1", *SMALL)
    by_record = json.loads(charwright("evaluate", run, "--json").out)
    assert (by_record["protocol"], by_record["records"]) == ("records", 2)
    carried = json.loads(charwright("evaluate", run, "--json", "--protocol", "carried").out)
    assert carried["protocol"] == "carried"
    assert carried["chars"] == by_record["chars"] - 1


def test_a_run_without_a_validation_text_needs_a_corpus(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    charwright("train", corpus, "--val-fraction", "0", "--out", run, "--epochs", "1", *SMALL)
    result = charwright("evaluate", run)
    assert result.code == 2
    assert result.err.endswith(f"{run} has no validation text; name a CORPUS after it\n")


def test_a_text_that_is_gone_is_one_line(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    charwright("train", corpus, "--out", run, "--epochs", "1", *SMALL)
    corpus.unlink()
    result = charwright("evaluate", run)
    assert result.code == 1
    assert result.err.endswith("; name a CORPUS after the run\n")
