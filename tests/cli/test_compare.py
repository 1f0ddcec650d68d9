"""`charwright compare`: which run is better, by how much, and with which standard error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from charwright import cli
from charwright.cli.compare import split_words
from charwright.run import Run
from commands import SMALL, TEXT, Terminal


@pytest.fixture(scope="module")
def worse(trained: Path) -> Path:
    """A run on the same text with less training."""
    arguments = ["train", trained.parent / "hamlet.txt", "--out", trained.parent / "worse", "--steps", "1", *SMALL]
    assert cli.run(list(map(str, arguments))) == 0
    return trained.parent / "worse"


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level run on another text."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / "x.txt").write_text("not to be; " * 300, encoding="utf-8")
    words = ["train", folder / "x.txt", "--out", folder / "run", "--steps", "2", "--level", "byte", *SMALL]
    assert cli.run(list(map(str, words))) == 0
    return folder / "run"


@pytest.fixture
def new(tmp_path: Path) -> Path:
    path = tmp_path / "new.txt"
    path.write_text("To be 中, or not to be: that is one.\n" * 30, encoding="utf-8")
    return path


def facts(charwright: Terminal, *words: str | Path) -> dict[str, Any]:
    result = charwright("compare", *words, "--json")
    assert result.code == 0, result.err
    return json.loads(result.out)  # type: ignore[no-any-return]


def test_the_table(charwright: Terminal, trained: Path, worse: Path, new: Path) -> None:
    result = charwright("compare", worse, trained, new, "--windows", "32")
    assert (result.code, result.err) == (0, "")
    header, first, second, empty, measured, *unknown = result.out.splitlines()
    assert header.split() == ["run", "nats", "bits", "difference", "in", "32s", "parameters", "min", "chars/s"]
    assert first.split()[:2] == ["*", "run"]
    assert "best" in first
    assert second.split()[0] == "worse"
    assert " ± " in second
    assert len({len(line) for line in (header, first, second)}) == 1
    assert empty == ""
    assert measured.startswith(f"Per character, on {new} (1,079 characters predicted)")
    assert [line.split(";")[0] for line in unknown] == [
        f"30 of the characters are not in the vocabulary of {name}" for name in ("run", "worse")
    ]


@pytest.mark.parametrize("precision", ["f32", "bf16", "q8"])
def test_the_losses_are_those_of_evaluate(
    charwright: Terminal, trained: Path, worse: Path, elsewhere: Path, new: Path, precision: str
) -> None:
    options = ["--precision", precision, "--device", "cpu"]
    values = facts(charwright, elsewhere, worse, trained, new, "--windows", "20", *options)
    assert (values["chars"], values["windows"]) == (1079, 20)
    rows = values["runs"]
    assert [row["nats_per_char"] for row in rows] == sorted(row["nats_per_char"] for row in rows)
    for row in rows:
        for key, protocol in (("nats_per_char", "carried"), ("windows_nats_per_char", "windows-20")):
            alone = charwright("evaluate", row["run"], new, "--json", "--protocol", protocol, *options)
            assert row[key] == json.loads(alone.out)["nats_per_char"]
        assert row["difference"] == pytest.approx(row["nats_per_char"] - rows[0]["nats_per_char"])
    assert rows[0]["standard_error"] == 0 < rows[1]["standard_error"] < 0.5
    unknown = {Path(row["run"]): row["unknown_chars"] for row in rows}
    assert unknown == {trained: 30, worse: 30, elsewhere: 0}


def test_training_time_and_speed_come_from_the_log(
    charwright: Terminal, copy: Path, worse: Path, trained: Path, new: Path
) -> None:
    events = [
        {"event": "epoch", "step": 1, "epoch": 1, "train_loss": 2.0, "chars_per_s": 100.0, "elapsed_s": 30.0},
        {"event": "epoch", "step": 2, "epoch": 2, "train_loss": 2.0, "chars_per_s": 400.0, "elapsed_s": 10.0},
        {"event": "checkpoint", "step": 2, "time_s": 90.0},
        {"event": "sample", "step": 2, "time_s": 99.0, "text": "x"},
    ]
    (copy / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
    logless = Path(shutil.copytree(worse, copy.parent / "logless"))
    (logless / "log.jsonl").unlink()
    rows = {Path(row["run"]).name: row for row in facts(charwright, copy, logless, trained, new)["runs"]}
    assert (rows["copy"]["minutes"], rows["copy"]["chars_per_s"]) == (1.5, 175.0)
    assert (rows["logless"]["minutes"], rows["logless"]["chars_per_s"]) == (None, None)
    assert rows["run"]["minutes"] > 0
    assert rows["run"]["parameters"] == sum(array.size for array in Run.open(trained).weights().values())
    shown = charwright("compare", copy, logless, new).out.splitlines()
    assert next(line for line in shown if "copy" in line).split()[-2:] == ["1.5", "175"]
    assert next(line for line in shown if "logless" in line).split()[-2:] == ["-", "-"]


def test_a_text_shorter_than_a_window(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("To be, or not", encoding="utf-8")
    [row] = facts(charwright, trained, tmp_path / "short.txt")["runs"]
    assert (row["windows_nats_per_char"], row["standard_error"]) == (None, None)
    shown = charwright("compare", trained, tmp_path / "short.txt").out.splitlines()[1].split()
    assert shown[5] == "-"


def test_runs_of_the_same_name_are_shown_by_path(
    charwright: Terminal, trained: Path, elsewhere: Path, new: Path
) -> None:
    out = charwright("compare", trained, elsewhere, new).out
    assert f" {trained} " in out
    assert f" {elsewhere} " in out


def test_names_are_not_markup(charwright: Terminal, copy: Path, new: Path) -> None:
    odd = copy.rename(copy.parent / "[red]a[bold]")
    assert "[red]a[bold]" in charwright("compare", odd, new).out


def test_without_a_corpus_the_validation_text_is_used(charwright: Terminal, trained: Path, worse: Path) -> None:
    values = facts(charwright, trained, worse)
    best = min(epoch["validation_loss"] for epoch in Run.open(trained).epochs())
    assert values["runs"][0]["nats_per_char"] == pytest.approx(best, rel=1e-3)
    assert "on the validation text of the runs" in charwright("compare", trained, worse).out


def test_json_says_which_runs_were_trained_on_the_text(
    charwright: Terminal, trained: Path, elsewhere: Path, corpus: Path
) -> None:
    rows = json.loads(charwright("compare", trained, elsewhere, corpus, "--json").out)["runs"]
    assert {row["run"]: row["trained_on_text"] for row in rows} == {str(trained): True, str(elsewhere): False}
    assert json.loads(charwright("evaluate", trained, corpus, "--json").out)["trained_on_text"] is True


def test_a_text_that_a_run_was_trained_on_is_noted(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    out = charwright("compare", trained, elsewhere, trained.parent / "hamlet.txt").out
    assert out.count("was trained on this text") == 1
    assert f"{trained} was trained on this text" in out


def test_runs_and_corpora_are_told_apart(trained: Path, tmp_path: Path) -> None:
    run, folder = str(trained), str(tmp_path)
    assert split_words([run, run, folder, "-"]) == ([run, run], [folder, "-"])
    assert split_words([run]) == ([run], [])
    assert split_words(["nowhere", run]) == (["nowhere"], [run])
    (tmp_path / "custom" / "epoch-1").mkdir(parents=True)
    (tmp_path / "custom" / "epoch-1" / "config.json").write_text("{}", "utf-8")
    custom = str(tmp_path / "custom")
    for words in ([custom, run, run, "-"], [run, custom, run, "-"], [run, run, custom, "-"]):
        assert split_words(words) == ([run, run], ["-"])


def changed(run: Path, change: Any) -> None:
    values = json.loads((run / "config.json").read_text(encoding="utf-8"))
    change(values)
    (run / "config.json").write_text(json.dumps(values), encoding="utf-8")


def test_runs_without_a_common_validation_text_need_a_corpus(
    charwright: Terminal, copy: Path, trained: Path, elsewhere: Path
) -> None:
    unlike = charwright("compare", trained, elsewhere)
    assert unlike.code == 2
    assert "name a CORPUS" in unlike.line
    changed(copy, lambda values: values["recipe"]["split"].update(val_fraction=0.2))
    assert "name a CORPUS" in charwright("compare", trained, copy).line
    changed(copy, lambda values: values["recipe"]["split"].update(val_fraction=0.0))
    assert "the runs have no validation text" in charwright("compare", copy).line
    changed(copy, lambda values: values["corpus"].update(sha256=""))
    assert "name a CORPUS" in charwright("compare", copy).line


def test_one_run_whose_text_is_found_is_enough(charwright: Terminal, copy: Path, trained: Path) -> None:
    changed(copy, lambda values: values["corpus"]["sources"][0].update(location=str(copy / "gone.txt")))
    alone = charwright("compare", copy)
    assert alone.code == 1
    assert f"{copy / 'gone.txt'} is gone; name a CORPUS after the runs" in alone.line
    assert charwright("compare", copy, trained).code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ([], 2, "RUN"),
        (["FOLDER/nowhere", "TEXT"], 1, "no run"),
        (["FOLDER/nowhere", "RUN", "TEXT"], 1, "no run"),
        (["TEXT", "RUN"], 1, "is a file"),
        (["RUN", "FOLDER/nowhere.txt"], 1, "nowhere.txt"),
        (["RUN", "TEXT", "RUN"], 2, "runs come before the corpus"),
        (["RUN", "TEXT", "--windows", "0"], 2, "--windows"),
        (["RUN", "TEXT", "--device", "tpu9"], 2, "--device"),
        (["RUN", "--encoding", "utf-8"], 2, "--encoding"),
        (["BROKEN", "RUN", "TEXT"], 1, "model.safetensors"),
    ],
)
def test_mistakes(
    charwright: Terminal, copy: Path, trained: Path, corpus: Path, words: list[str], code: int, message: str
) -> None:
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    places = {"RUN": str(trained), "TEXT": str(corpus), "BROKEN": str(copy)}
    result = charwright("compare", *[places.get(w, w.replace("FOLDER", str(corpus.parent))) for w in words])
    assert result.code == code
    assert message in result.line


def test_the_difference_of_a_run_to_itself_is_zero(charwright: Terminal, trained: Path, corpus: Path) -> None:
    values = facts(charwright, trained, trained, corpus)
    assert [row["difference"] for row in values["runs"]] == [0, 0]
    assert [row["standard_error"] for row in values["runs"]] == [0, 0]
    assert values["chars"] == len(TEXT) - 1


def test_a_run_without_weights_is_left_out(charwright: Terminal, trained: Path, new: Path, tmp_path: Path) -> None:
    begun = Path(shutil.copytree(trained, tmp_path / "begun"))
    (begun / "model.safetensors").unlink()
    result = charwright("compare", begun, trained, new)
    assert (result.code, result.err) == (0, f"left out {begun}, which has no trained weights yet\n")
    assert "begun" not in result.out
    assert "has no trained weights yet" in charwright("compare", begun, new).line
