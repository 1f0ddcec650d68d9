"""How a run computes is recorded in config.json, shown, and kept by a resume; and `info --machine --measure`."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charwright as cw
from charwright import kernels
from charwright.config import ModelConfig, Recipe, SequenceConfig
from charwright.errors import ConfigError, DamagedRunError, UsageError
from charwright.model import compute
from charwright.model.compute import Compute, Wanted
from charwright.planning import survey as survey_module
from charwright.planning.choice import Choice
from charwright.planning.measurement import Workload
from charwright.planning.survey import Surveyed, best_of, survey
from charwright.run import Run
from charwright.run_config import ComputeRecord
from charwright.training.events import Event, Start
from charwright.workflow import computing, preparation
from charwright.workflow.computing import choice_for_resume, kept_compute
from commands import SMALL, TEXT, Terminal

pytestmark = pytest.mark.usefixtures("one_thread", "no_variables")

HERE = kernels.available()
OPTIONS: dict[str, Any] = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 16}
RECORD = ComputeRecord("cpu", "fused", "bf16", None, 1, {"fused bf16": 200, "fused f32": 100})


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CHARWRIGHT_CORE", "CHARWRIGHT_KERNELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "hamlet.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def run(text: Path, tmp_path: Path) -> Run:
    return cw.train(text, out=tmp_path / "run", steps=4, device="cpu", **OPTIONS)


def edit(run: Run, compute: Any) -> None:
    """Replace the entry in config.json."""
    path = run.folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["compute"] = compute
    if compute is None:
        del values["compute"]
    path.write_text(json.dumps(values), encoding="utf-8")


def config_of(run: Run) -> dict[str, Any]:
    """The entry in config.json."""
    entry: dict[str, Any] = json.loads((run.folder / "config.json").read_text(encoding="utf-8"))["compute"]
    return entry


# The record.


def test_a_run_records_what_it_logs(run: Run) -> None:
    record = Run.open(run.folder).config.compute
    rule = Compute.choose("cpu")
    assert record == ComputeRecord("cpu", rule.core, rule.precision_name, rule.kernel, None)
    start = next(run.log())
    for name in ("device", "core", "precision"):
        assert start[name] == getattr(record, name)


def test_a_measured_choice_is_recorded_and_used(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, charwright: Terminal
) -> None:
    choice = Choice(Compute(core="fused", precision=torch.bfloat16, threads=1), {"fused bf16": 200, "fused f32": 100})
    monkeypatch.setattr(preparation, "choose_here", lambda *_: choice)
    words = ["--recipe", "tutorial", "--minutes", "0.01", *SMALL, "--out", tmp_path / "run"]
    assert charwright("train", text, *words).code == 0
    opened = Run.open(tmp_path / "run")
    assert opened.config.compute == RECORD
    assert {key: next(opened.log())[key] for key in ("core", "precision")} == {"core": "fused", "precision": "bf16"}
    shown = charwright("info", tmp_path / "run").out
    assert "Computed on the cpu by the fused core in bf16, 1 thread, fastest of 2 measured\n" in shown
    assert json.loads(charwright("info", tmp_path / "run", "--json").out)["compute"] == RECORD.to_json()
    edit(opened, RECORD.to_json() | {"threads": None, "measured": None})
    assert "Computed on the cpu by the fused core in bf16\n" in charwright("info", tmp_path / "run").out


def test_a_variant_is_shown() -> None:
    assert str(ComputeRecord("cpu", "native", "f32", "avx512", 2)) == "the cpu by the native core in f32 (avx512)"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"core": 1}, r"compute\.core must be a string"),
        ({"core": "fast"}, r"compute\.core must be one of native, fused, torch, plain"),
        ({"precision": "f64"}, r"compute\.precision must be one of f32, bf16"),
        ({"kernel": 5}, r"compute\.kernel must be a string"),
        ({"kernel": "avx2"}, r"compute\.kernel must be null, not 'avx2', for the core fused"),
        ({"threads": "2"}, r"compute\.threads must be an integer"),
        ({"threads": 0}, r"compute\.threads must be at least 1"),
        ({"device": None}, r"compute\.device must be a string"),
        ({"measured": [1]}, r"compute\.measured must be an object"),
        ({"measured": {"fused f32": 1.5}}, r"compute\.measured\.fused f32 must be an integer"),
        ({"cores": 2}, "the key 'cores' is unknown"),
    ],
)
def test_a_damaged_record_names_the_key(run: Run, change: dict[str, Any], named: str) -> None:
    edit(run, RECORD.to_json() | change)
    with pytest.raises(DamagedRunError, match=named):
        Run.open(run.folder)


def test_a_missing_key_is_named(run: Run) -> None:
    edit(run, {name: value for name, value in RECORD.to_json().items() if name != "kernel"})
    with pytest.raises(DamagedRunError, match="the key 'kernel' is missing"):
        Run.open(run.folder)


# The resume.


def resumed(run: Run, **options: Any) -> tuple[Start, list[str]]:
    """The first event and the notices of a resume by one step more."""
    seen: list[Event] = []
    notices: list[str] = []
    steps = 1 + max(event["step"] for event in run.log())
    cw.resume(run.folder, steps=steps, on_event=seen.append, notify=notices.append, **options)
    assert isinstance(seen[0], Start)
    return seen[0], notices


def test_a_resume_computes_as_before(run: Run) -> None:
    edit(run, RECORD.to_json())
    start, notices = resumed(run)
    assert (start.core, start.precision, notices) == ("fused", "bf16", [])
    assert Run.open(run.folder).config.compute == RECORD
    start, notices = resumed(run, core="fused", precision="bf16", device="cpu")
    assert (start.core, start.precision, notices) == ("fused", "bf16", [])


@pytest.mark.parametrize("asked", [{"core": "torch"}, {"precision": "f32"}, {"core": "fused", "precision": "f32"}])
def test_what_a_resume_does_not_ask_for_stays(run: Run, asked: dict[str, str]) -> None:
    edit(run, RECORD.to_json())
    start, notices = resumed(run, **asked)
    assert (start.core, start.precision) == (asked.get("core", "fused"), asked.get("precision", "bf16"))
    record = Run.open(run.folder).config.compute
    assert record == ComputeRecord("cpu", start.core, start.precision, None, 1), "nothing was measured for this one"
    assert notices == [f"continues on {record}; until now it computed on {RECORD}"]
    later, notices = resumed(run)
    assert (later.core, later.precision, notices) == (start.core, start.precision, []), "later resumes stay with it"


@pytest.mark.skipif(not HERE, reason="the C kernels were not built here")
def test_the_variant_stays_when_the_precision_changes() -> None:
    record = ComputeRecord("cpu", "native", "f32", HERE[-1])
    assert kept_compute(record, Wanted(precision="bf16")) == Compute(
        core="native", precision=torch.bfloat16, kernel=HERE[-1]
    )
    assert kept_compute(record, Wanted(core="torch")) == Compute(core="torch")
    assert kept_compute(RECORD, Wanted(core="native", threads=1)) == Compute(
        core="native", precision=torch.bfloat16, threads=1, kernel=HERE[0]
    )


def test_a_fork_of_a_process_that_has_trained_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch would wait for the threads of the other process for ever."""
    monkeypatch.setattr(compute, "STARTED_IN", {os.getpid() + 1})
    with pytest.raises(UsageError, match="by the method spawn"):
        Compute(threads=2).start()
    Compute(threads=1).start()
    assert os.getpid() in compute.STARTED_IN


def test_a_device_stays_when_the_core_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine with a GPU, too: `auto` would be the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    kept = kept_compute(RECORD, Wanted(core="torch"))
    assert kept is not None
    assert str(kept.device) == "cpu"
    moved = kept_compute(RECORD, Wanted("cuda"))
    assert moved is not None
    assert (str(moved.device), moved.core, moved.precision_name) == ("cuda", "fused", "bf16")


def test_a_combination_that_is_impossible_is_chosen_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core `native` is for the CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(Compute, "start", lambda _: None)
    asked: list[Wanted] = []

    def choose(_: object, __: int, wanted: Wanted, **___: Any) -> Choice:
        asked.append(wanted)
        return Choice(Compute(torch.device("cuda"), "torch"))

    monkeypatch.setattr(computing, "choose_here", choose)
    monkeypatch.setattr(Wanted, "by_rule", lambda _: Compute())
    record, notices = ComputeRecord("cpu", "native", "bf16", None, 1), list[str]()
    choice, renewed = choice_for_resume(record, Recipe(), 9, Wanted("cuda"), notices.append)
    assert asked == [Wanted("cuda", threads=1)]
    assert renewed == ComputeRecord("cuda", "torch", "f32", None, 1)
    assert notices == [f"continues on {renewed}; until now it computed on {record}"]
    assert choice.compute.core == "torch"


@pytest.mark.parametrize(
    "gone", [{"device": "cuda"}, {"core": "native", "kernel": "avx1024"}, {"device": "abacus"}], ids=str
)
def test_a_machine_that_cannot_go_on_chooses_anew(
    run: Run, gone: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edit(run, RECORD.to_json() | gone)
    start, notices = resumed(run)
    assert (start.device, start.core) == ("cpu", Compute.choose("cpu").core)
    assert len(notices) == 1
    assert resumed(run)[1] == []


def test_a_variable_chooses_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(run, RECORD.to_json())
    monkeypatch.setenv("CHARWRIGHT_CORE", "torch")
    assert resumed(run)[0].core == "torch"
    if HERE:
        edit(run, RECORD.to_json() | {"core": "native", "kernel": HERE[0]})
        monkeypatch.delenv("CHARWRIGHT_CORE")
        monkeypatch.setenv("CHARWRIGHT_KERNELS", "none")
        assert resumed(run)[0].core == "fused"


def test_a_run_without_a_record_gets_one(run: Run) -> None:
    recorded = run.config.compute
    edit(run, None)
    assert Run.open(run.folder).config.compute is None
    assert resumed(run)[1] == []
    assert Run.open(run.folder).config.compute == recorded


def test_a_resume_in_minutes_measures_when_it_chooses_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice(Compute(core="torch"), {"torch f32": 3, "fused f32": 2})
    monkeypatch.setattr(computing, "choose_here", lambda *_, **__: choice)
    edit(run, None)
    assert resumed(run)[0].core == "torch"
    record = Run.open(run.folder).config.compute
    assert record is not None
    assert record.measured == choice.measured


@pytest.mark.parametrize("threads", [0, -1, 10**6, 1.5, True, "2"])
def test_a_number_of_threads_that_is_none_is_refused(threads: Any) -> None:
    with pytest.raises(ConfigError, match=r"`threads` must be (a whole number|at (least 1|most 256)), not "):
        Wanted(threads=threads)


def test_training_leaves_the_number_of_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        (tmp_path / "text.txt").write_text("to be or not to be\n" * 200, encoding="utf-8")
        sizes = {"units": 16, "embedding_size": 8, "batch": 4, "seq_length": 8}
        run = cw.train(str(tmp_path / "text.txt"), out=tmp_path / "run", steps=2, threads=np.int64(1), **sizes)
        cw.resume(run, steps=4, threads=1)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_are_kept_as_far_as_there_are_cores() -> None:
    many = ComputeRecord("cpu", "fused", "f32", None, 2)
    assert torch.get_num_threads() == 1

    def threads(record: ComputeRecord, wanted: Wanted) -> int | None:
        kept = kept_compute(record, wanted)
        assert kept is not None
        return kept.threads

    assert threads(many, Wanted()) is None
    assert threads(many, Wanted(threads=4)) == 4
    assert threads(ComputeRecord("cpu", "fused", "f32", None), Wanted()) is None
    torch.set_num_threads(3)
    assert threads(many, Wanted()) == 2
    torch.set_num_threads(1)


@pytest.mark.parametrize("options", [{}, {"core": "torch"}, {"core": "native", "kernel": "avx1024"}], ids=str)
def test_a_machine_with_fewer_threads_does_not_lower_the_record(run: Run, options: dict[str, str]) -> None:
    """Whether it continues as recorded, with a change, or with a new choice."""
    change = {"threads": 64, **(options if "kernel" in options else {})}
    edit(run, RECORD.to_json() | change)
    start, _ = resumed(run, **({} if "kernel" in options else options))
    assert start.threads == torch.get_num_threads() == 1
    assert config_of(run)["threads"] == 64


def test_only_a_given_number_of_threads_is_recorded(run: Run, text: Path, tmp_path: Path) -> None:
    assert config_of(run)["threads"] is None
    resumed(run)
    assert config_of(run)["threads"] is None
    assert resumed(run, threads=1)[1] == []
    assert config_of(run)["threads"] == 1
    resumed(run)
    assert config_of(run)["threads"] == 1
    given = cw.train(text, out=tmp_path / "given", steps=1, device="cpu", threads=1, **OPTIONS)
    assert config_of(given)["threads"] == 1


# The survey.

TINY = Workload(
    ModelConfig(units=16, embedding_size=4, recurrent_dropout=0.1), 9, SequenceConfig(batch=2, seq_length=4)
)


def test_the_machine_is_measured(charwright: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey_module, "TYPICAL", TINY)
    monkeypatch.setattr(survey_module, "EACH_S", 0.01)
    result = charwright("info", "--machine", "--measure", "--json")
    assert result.code == 0
    facts = json.loads(result.out)
    found = {row["label"]: row for row in facts["candidates"]}
    native = [f"native {name} {variant}" for variant in HERE if variant != "emulated" for name in ("f32", "bf16")]
    assert list(found)[: len(native)] == native
    assert list(found)[len(native) : len(native) + 2] == ["fused f32", "fused bf16"]
    assert {row["recurrent_dropout"] for row in found.values() if row["core"] == "torch"} == {False}
    assert all(row["chars_per_s"] > 0 for row in found.values() if row["error"] is None)
    assert found[facts["best"]]["chars_per_s"] == max(
        row["chars_per_s"] for row in found.values() if row["recurrent_dropout"] and row["chars_per_s"]
    )
    lines = charwright("info", "--machine", "--measure").out.splitlines()
    assert len(lines) == len(found) + 2
    assert lines[-1].startswith("best: ")
    assert charwright("info", "--measure").code == 2


def test_a_candidate_that_fails_does_not_end_the_survey(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(workload: Workload, compute: Compute, *_: object) -> float:
        if compute.core == "fused":
            raise RuntimeError("no such\noperation")
        return 7.0

    monkeypatch.setattr(survey_module, "mean_speed", measure)
    found = list(survey("cpu", TINY, clock=time.monotonic))
    failed = [one for one in found if one.speed is None]
    assert {(one.compute.core, one.why) for one in failed} == {("fused", "no such operation")}
    assert best_of(failed) is None
    assert best_of([Surveyed(Compute(core="torch"), 9.0, masked=False)]) is None
