"""Learning curves: what is read from logs, how seeds are summarized, and that figures say it without colour."""

from __future__ import annotations

import errno
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charwright as cw
from charwright import locks
from charwright.config import ModelConfig, Recipe
from charwright.data.vocabulary import Vocabulary
from charwright.errors import RunError, RunNotFoundError, UsageError
from charwright.plotting import terminal
from charwright.plotting.colors import COLORS, ON_ANY_BACKGROUND
from charwright.plotting.curves import read_curve
from charwright.plotting.figure import DASHES, MARKERS
from charwright.run_config import RunConfig
from writers import weights_of

START = {"event": "start", "step": 0, "time_s": 0.0, "steps_per_epoch": 10, "batch": 4, "seq_length": 25}
END = {"event": "end", "step": 40, "time_s": 240.0, "reason": "done"}


def epoch(step: int, train: float, validation: float | None, **more: Any) -> dict[str, Any]:
    values = {"event": "epoch", "step": step, "time_s": step * 6.0, "epoch": step // 10, "train_loss": train}
    return values | {"validation_loss": validation, "best": False} | more


def write_run(
    folder: Path, events: list[dict[str, Any]], *, seed: int = 1, level: str = "character", **plan: int
) -> Path:
    vocabulary = Vocabulary("ab") if level == "character" else cw.make_vocabulary("", cw.VocabularyConfig(level="byte"))
    recipe = Recipe(model=ModelConfig(units=2, embedding_size=2))
    recipe = replace(recipe, training=replace(recipe.training, seed=seed))
    if plan:
        plan |= {"vocabulary": 257, "script": "latin", "passes": 1.0, "speeds": {}, "reasons": {}}  # type: ignore[dict-item]
    config = RunConfig(recipe, "default", (), cw.CorpusConfig(), 100, "", (), {}, plan=plan or None)
    cw.Run.create(folder, config, vocabulary, weights=weights_of(recipe.model, len(vocabulary)))
    lines = [json.dumps(event) + "\n" for event in events]
    (folder / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    events = [START, epoch(10, 3.0, 2.9), epoch(20, 2.0, 2.1), epoch(30, 1.5, 1.8), epoch(40, 1.2, 1.9), END]
    return write_run(tmp_path / "whole", events)


def test_a_curve_on_every_axis(whole: Path) -> None:
    curve = read_curve(whole)
    assert curve.notes == ()
    assert curve.validation.nats.tolist() == [2.9, 2.1, 1.8, 1.9]
    assert curve.training.nats.tolist() == [3.0, 2.0, 1.5, 1.2]
    expected = {"steps": [10, 20, 30, 40], "epochs": [1, 2, 3, 4], "minutes": [1, 2, 3, 4]}
    expected["characters"] = [1000, 2000, 3000, 4000]
    assert {name: values.tolist() for name, values in curve.validation.at.items()} == expected
    assert curve.best == 2


@pytest.mark.parametrize(("unit", "value"), [("nats", 1.8), ("bits", 1.8 / math.log(2)), ("perplexity", math.exp(1.8))])
def test_units(whole: Path, unit: str, value: float) -> None:
    curves = cw.plot(whole, y=unit)
    assert curves.table() == [f"{whole}: best validation {value:.4f} at step 30"]
    assert f"best validation {value:.4f}" in curves.text()


def test_what_a_resume_does_again_counts_once(tmp_path: Path) -> None:
    resume = START | {"event": "resume", "step": 20, "time_s": 120.0}
    before = [START, epoch(10, 3.0, 2.9), epoch(20, 2.0, 2.1), epoch(25, 9.0, 9.0)]
    events = [
        *before,
        resume,
        epoch(30, 1.5, 1.8),
        {"event": "rollback", "step": 30, "time_s": 1.0},
        epoch(40, 1.2, 1.9),
    ]
    curve = read_curve(write_run(tmp_path / "run", events))
    assert curve.validation.at["steps"].tolist() == [10, 20, 30, 40]
    assert curve.notes == (
        f"{tmp_path / 'run'} was resumed at step 20",
        f"{tmp_path / 'run'} was interrupted: its log has no end",
    )
    with locks.locked(tmp_path / "run" / ".lock") as mine:
        assert mine
        assert read_curve(tmp_path / "run").notes[1] == f"{tmp_path / 'run'} is still training"


def test_a_resume_that_trains_nothing_is_not_noted(tmp_path: Path) -> None:
    def resumed(step: int) -> dict[str, Any]:
        return START | {"event": "resume", "step": step, "time_s": 120.0}

    first, second = epoch(20, 2.0, 2.1), epoch(30, 1.5, 1.8)
    events = [
        START,
        first,
        resumed(20),
        resumed(20),
        second,
        resumed(30),
        END | {"step": 30},
        resumed(30),
        epoch(40, 1.2, 1.9),
        END,
    ]
    curve = read_curve(write_run(tmp_path / "run", events))
    assert curve.notes == (f"{tmp_path / 'run'} was resumed at steps 20, 30",)


def test_a_run_without_validation(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [START, epoch(10, 3.0, None), epoch(40, 2.0, None), END])
    curves = cw.plot(run)
    assert curves.notes == (f"{run} has no validation: its curve is the training loss",)
    assert curves.table() == [f"{run}: lowest training loss 2.0000 at step 40"]
    assert cw.plot(run).text()


def test_a_run_in_its_first_epoch_has_the_losses_of_its_steps(tmp_path: Path) -> None:
    steps = [{"event": "step", "step": at, "time_s": at, "epoch": 1, "loss": 4.0 / at} for at in (1, 2)]
    curve = read_curve(write_run(tmp_path / "run", [START, *steps]))
    assert curve.training.nats.tolist() == [4.0, 2.0]
    assert len(curve.validation) == 0


def test_a_model_of_bytes_counts_characters(tmp_path: Path) -> None:
    """Its training loss is logged per byte, its validation loss per character."""
    events = [START, epoch(10, 1.0, 2.9), END]
    curve = read_curve(write_run(tmp_path / "a", events, level="byte", characters=100, tokens=300))
    assert curve.training.nats.tolist() == [3.0]
    assert curve.validation.nats.tolist() == [2.9]
    assert curve.validation.at["characters"].tolist() == pytest.approx([1000 / 3])
    unknown = read_curve(write_run(tmp_path / "b", events, level="byte"))
    assert len(unknown.training) == 0
    assert "no training loss" in unknown.notes[0]


def test_runs_of_several_seeds_are_one_curve(tmp_path: Path) -> None:
    runs = []
    for seed, shift in ((1, 0.0), (2, 0.2), (3, 0.1)):
        events = [START, epoch(10, 3.0, 2.9 + shift), epoch(20 + seed, 2.0, 1.9 + shift), END]
        runs.append(write_run(tmp_path / f"gru-seed{seed}", events, seed=seed))
    [group] = cw.plot(runs).groups
    assert group.name == f"{tmp_path / 'gru'}, 3 seeds"
    band = group.band("steps", training=False)
    assert band.x.tolist() == [10, 21]  # as far as all of them go
    at_21 = [1.9, np.interp(21, [10, 22], [3.1, 2.1]), np.interp(21, [10, 23], [3.0, 2.0])]
    assert band.low.tolist() == pytest.approx([2.9, min(at_21)])
    assert band.median.tolist() == pytest.approx([3.0, sorted(at_21)[1]])
    assert band.high.tolist() == pytest.approx([3.1, max(at_21)])
    assert "best validation 1.9000 at step 21, median of 3 seeds 2.0000, highest 2.1000" in cw.plot(runs).table()[0]
    assert len(cw.plot(runs, apart=True).groups) == 3
    repeated = write_run(tmp_path / "again", [START, epoch(10, 3.0, 2.9), END], seed=1)
    assert len(cw.plot([runs[0], repeated]).groups) == 2


def test_runs_of_which_one_has_no_validation_yet_are_judged_by_their_training(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / f"gru-seed{seed}", [START, epoch(10, 3.0 + seed, validation), END], seed=seed)
        for seed, validation in ((1, 1.0), (2, None))
    ]
    [line] = cw.plot(runs).table()
    assert "lowest training loss 4.0000 at step 10, median of 2 seeds 4.5000, highest 5.0000" in line


def test_broken_runs_are_left_out_with_a_line(whole: Path, tmp_path: Path) -> None:
    damaged = write_run(tmp_path / "damaged", [START, END])
    (damaged / "vocabulary.json").write_text("{", encoding="utf-8")
    silent = write_run(tmp_path / "silent", [START])
    odd = write_run(tmp_path / "odd", [START, epoch(10, math.nan, math.inf), {"event": "epoch", "step": "x"}, END])
    curves = cw.plot([damaged, whole, silent, odd, tmp_path / "none"])
    assert len(curves.groups) == 1
    assert len(curves.notes) == 4
    for note, words in zip(curves.notes, ("vocabulary.json", "no losses yet", "no losses yet", "no run"), strict=True):
        assert re.fullmatch(f"left out: .*{words}.*", note)
    with pytest.raises(RunError, match=r"none of the 2 runs can be plotted; .*no losses yet"):
        cw.plot([silent, odd])
    with pytest.raises(RunNotFoundError):
        cw.plot(tmp_path / "none")
    with pytest.raises(UsageError, match="`y` must be one of nats, bits, perplexity"):
        cw.plot(whole, y="watts")


def test_an_unreadable_run_is_left_out_with_a_line(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut = write_run(tmp_path / "shut", [START, epoch(10, 3.0, 2.9), END])
    open_ = cw.Run.open

    def refuse(folder: str, **options: bool) -> cw.Run:
        if Path(folder) == shut:
            raise PermissionError(errno.EACCES, "Permission denied", str(shut / "config.json"))
        return open_(folder, **options)

    monkeypatch.setattr(cw.Run, "open", refuse)
    curves = cw.plot([shut, whole])
    assert len(curves.groups) == 1
    assert curves.notes == (f"left out: cannot read {shut / 'config.json'}: Permission denied",)
    with pytest.raises(RunError, match=r"cannot read .*: Permission denied"):
        cw.plot(shut)


def test_a_run_that_was_not_trained_has_nothing_to_plot(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    for _ in range(2):
        with pytest.raises(RunError, match="has no log of its training, so there is nothing to plot"):
            cw.plot(run)
        (run / "log.jsonl").unlink(missing_ok=True)


def test_the_terminal_needs_neither_colour_nor_width(whole: Path) -> None:
    curves = cw.plot([whole])
    for width in (30, 80, 200):
        text = curves.text(width, 12)
        assert text.isascii() or set(text) <= set(map(chr, range(128))) | set("┌─┐│└┘")
        plotted = [line for line in text.splitlines() if line[0] in "┌│└"]
        assert len(plotted) == 14
        assert max(map(len, plotted)) <= width
        inside = "".join(line[1 : line.rindex("│")] for line in plotted[1:-1])
        assert set(inside) == set(" Aa*")
        assert inside.count("*") == 1
    assert "\x1b[" not in curves.text()
    assert "\x1b[" in curves.text(color=True)


@pytest.mark.parametrize(
    ("low", "high", "most", "labels"),
    [
        (0.18, 1.9, 4, ["0.5", "1.0", "1.5"]),
        (0.025, 0.058, 4, ["0.03", "0.04", "0.05"]),
        (-10.0, 1_000_010.0, 3, ["0", "500,000", "1,000,000"]),
        (1.0, 1e13, 2, ["5e+12", "1e+13"]),
        (1.9999, 2.0001, 2, ["1.9999", "2.0000", "2.0001"]),
    ],
)
def test_a_tick_is_the_number_that_is_written(low: float, high: float, most: int, labels: list[str]) -> None:
    found = terminal.ticks(low, high, most)
    assert [label for _, label in found] == labels
    for value, label in found:
        assert float(label.replace(",", "")) == pytest.approx(value)


def test_labels_stand_in_the_rows_and_columns_of_their_values(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [START, *(epoch(step, step / 50, None) for step in range(10, 91))])
    text = cw.plot(run, x="steps").text(80, 20)
    rows = [line for line in text.splitlines() if line.startswith("│")]
    width, found = rows[0].rindex("│") - 1, {}
    for row in rows:
        inside, label = row[1 : width + 1].rstrip(), row[width + 2 :].strip()
        found |= {label: len(inside) / width} if label else {}
    # The curve is a straight line from corner to corner.
    assert list(found) == ["1.5", "1.0", "0.5"]
    for label, along in found.items():
        assert along == pytest.approx((float(label) - 0.2) / 1.6, abs=0.08)
    below = next(line for line in text.splitlines()[len(rows) :] if line.split()[:1] == ["20"])
    for label in ("20", "40", "60", "80"):
        middle = below.index(label) + len(label) / 2 - 1
        assert middle / width == pytest.approx((float(label) - 10) / 80, abs=0.03)


def luminance(color: str) -> float:
    """WCAG 2: relative luminance."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_curves_differ_without_colour() -> None:
    assert len(set(COLORS)) == len(COLORS)
    assert set(ON_ANY_BACKGROUND) < set(COLORS)
    pairs = {(str(DASHES[i % len(DASHES)]), MARKERS[i % len(MARKERS)]) for i in range(len(DASHES) * len(MARKERS))}
    assert len(pairs) == len(DASHES) * len(MARKERS)
    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in COLORS)  # on white paper


def test_the_figure_says_what_the_text_says(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    odd = whole.rename(tmp_path / "_a$b_$^")
    curves = cw.plot(odd, x="characters", y="bits")
    axes = curves.figure().axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("characters read", "bits per character")
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [f"{odd}, validation, best {1.8 / math.log(2):.4f}", f"{odd}, training"]
    validation, training, best = axes.get_lines()
    assert validation.get_ydata().tolist() == pytest.approx([value / math.log(2) for value in (2.9, 2.1, 1.8, 1.9)])
    assert training.get_xdata().tolist() == [1000, 2000, 3000, 4000]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == pytest.approx((3000, 1.8 / math.log(2)))
    svg = curves.image("svg").decode("utf-8")
    assert svg == curves.image("svg").decode("utf-8")
    assert "characters read</text>" in svg
    assert "best validation" in svg
    assert curves._repr_png_().startswith(b"\x89PNG")


def test_hours_from_three_on(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [START, epoch(10, 3.0, 2.9), epoch(4000, 2.0, 2.0), END])
    curves = cw.plot(run)
    assert curves.x_label == "hours of training"
    pytest.importorskip("matplotlib")
    assert curves.figure().axes[0].get_lines()[0].get_xdata().tolist() == pytest.approx([1 / 60, 400 / 60])


def test_a_file_is_replaced_only_with_force(whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = cw.plot(whole)
    assert curves.save(tmp_path / "x") == tmp_path / "x.png"
    with pytest.raises(RunError, match="exists; choose another file, or replace it with `force=True`"):
        curves.save(tmp_path / "x.png")
    assert curves.save(tmp_path / "x.png", force=True).read_bytes().startswith(b"\x89PNG")
    assert curves.save(tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")
    with pytest.raises(UsageError, match="choose another file"):
        curves.save("-")
    for name, message in (("x.jpg", "does not end with .png, .svg or .pdf"), ("no/x.png", "there is no folder")):
        with pytest.raises((RunError, UsageError), match=message):
            curves.save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "x.pdf", "x.png"]


def test_plotting_leaves_the_settings_of_matplotlib_alone(whole: Path) -> None:
    pytest.importorskip("matplotlib")
    code = f"""
import matplotlib, charwright
names = ("font.family", "svg.fonttype", "svg.hashsalt")
before = [matplotlib.rcParams[name] for name in names]
charwright.plot({str(whole)!r}).image("svg")
assert [matplotlib.rcParams[name] for name in names] == before
import sys
assert not {{"matplotlib.pyplot", "torch"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)
