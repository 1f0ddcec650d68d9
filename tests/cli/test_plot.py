"""`charwright plot`."""

from __future__ import annotations

from pathlib import Path

import pytest

from commands import Terminal, process


def test_a_plot_in_a_pipe(charwright: Terminal, trained: Path) -> None:
    result = charwright("plot", trained, "--y", "bits", "--x", "epochs")
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[0] == "bits per character"
    assert lines[-2] == "epochs   (A validation, a training, * best)"
    assert lines[-1].startswith(f"A a  {trained}: best validation ")
    assert max(map(len, lines[:-1])) <= 80
    assert result.err == ""


def test_a_figure(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    result = charwright("plot", trained, trained, "-o", tmp_path / "x.svg")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines()[-1] == f"wrote {tmp_path / 'x.svg'}"
    assert (tmp_path / "x.svg").read_bytes().startswith(b"<?xml")
    assert "replace it with --force" in charwright("plot", trained, "-o", tmp_path / "x.svg").line
    assert charwright("plot", trained, "-o", tmp_path / "x.svg", "--force").code == 0
    assert charwright("plot", trained, "--force").code == 2
    assert "choose another file" in charwright("plot", trained, "-o", "-").line
    for folder in (tmp_path, Path()):
        assert f"{folder} is a folder; name a file" in charwright("plot", trained, "-o", folder).line


def test_one_bad_run_among_several(charwright: Terminal, trained: Path, tmp_path: Path) -> None:
    result = charwright("plot", trained, tmp_path / "none")
    assert result.code == 0
    assert result.err.startswith("left out: there is no run")
    assert "there is no run" in charwright("plot", tmp_path / "none").line


@pytest.mark.parametrize(("options", "package"), [([], "uniplot"), (["-o", "x.png"], "matplotlib")])
def test_without_the_extra(trained: Path, options: list[str], package: str) -> None:
    result = process("plot", trained, *options, prelude=f"sys.modules[{package!r}] = None")
    assert result.code == 1
    assert "pip install 'charwright[plot]'" in result.line
