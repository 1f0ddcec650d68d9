"""`charwright evaluate`, `info` and `inspect`: their output for people and as JSON."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import charwright as cw
from charwright.cli.info import chart
from charwright.config import ModelConfig
from charwright.generation import engine
from charwright.generation.engine import Engine
from charwright.run import Run
from commands import SMALL, TEXT, Terminal, process
from writers import LETTERS, weights_of


def test_evaluate(charwright: Terminal, trained: Path, corpus: Path) -> None:
    result = charwright("evaluate", trained, corpus)
    note = f"{trained} was trained on this text: its figure says nothing about new text.\n"
    assert (result.code, result.err) == (0, note)
    assert re.match(r"\d\.\d{4} nats per character \(\d\.\d{4} bits\), carried\n[\d,]+ characters", result.out)


@pytest.mark.parametrize("protocol", ["carried", "windows-32"])
def test_evaluate_json(charwright: Terminal, trained: Path, tmp_path: Path, protocol: str) -> None:
    (tmp_path / "new.txt").write_text("To be 中, or not. " * 20, encoding="utf-8")
    result = charwright("evaluate", trained, tmp_path / "new.txt", "--json", "--protocol", protocol)
    values = json.loads(result.out)
    assert result.err == ""
    of_the_text = {"trained_on_text", "validation_text"}
    assert values.keys() == {"nats_per_char", "bits_per_char", "chars", "unknown_chars", "protocol"} | of_the_text
    assert values["protocol"] == protocol
    assert values["unknown_chars"] in (19, 20)
    assert values["bits_per_char"] == pytest.approx(values["nats_per_char"] / 0.6931471805599453)


@pytest.mark.parametrize("command", ["evaluate", "compare"])
def test_threads(
    charwright: Terminal, trained: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    counts: list[int | None] = []

    class Counted(Engine):
        def __init__(self, *arguments: Any, threads: int | None = None) -> None:
            super().__init__(*arguments, threads=threads)
            counts.append(threads)

    monkeypatch.setattr(engine, "Engine", Counted)
    monkeypatch.setattr(torch, "set_num_threads", counts.append)
    for precision in ("f32", "q8"):
        assert charwright(command, trained, corpus, "--threads", "3", "--precision", precision).code == 0
    assert counts == [3, 3]
    assert charwright(command, trained, corpus).code == 0
    assert counts == [3, 3]
    refused = charwright(command, trained, corpus, "--threads", "0")
    assert refused.code == 2
    assert "--threads" in refused.line


def test_info(charwright: Terminal, trained: Path) -> None:
    result = charwright("info", trained)
    assert (result.code, result.err) == (0, "")
    layers = ("embedding", "recurrent.0 (multiplicative igru)", "head")
    for shown in (*layers, f"{len(TEXT):,} characters", "Recipe: default", "step "):
        assert shown in result.out


def test_info_json(charwright: Terminal, trained: Path) -> None:
    values = json.loads(charwright("info", trained, "--json").out)
    run = Run.open(trained)
    assert values["parameters"] == sum(array.size for array in run.weights().values())
    assert [layer["name"] for layer in values["layers"]] == ["embedding", "recurrent.0", "head", "ngrams"]
    assert sum(layer["parameters"] for layer in values["layers"]) == values["parameters"]
    assert values["history"] == run.epochs()
    assert values["corpus"]["sha256"] == hashlib.sha256(TEXT.encode()).hexdigest()


def test_info_says_what_is_wrong_with_the_weights(charwright: Terminal, copy: Path) -> None:
    weights = copy / "model.safetensors"
    assert json.loads(charwright("info", copy, "--json").out)["weights"] == "intact"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert json.loads(charwright("info", copy, "--json").out)["weights"] == "damaged"
    result = charwright("info", copy)
    assert result.code == 0
    assert "model.safetensors is damaged: its content has changed" in result.err
    content[-1] ^= 1
    weights.write_bytes(content)
    vocabulary = copy / "vocabulary.json"
    values = json.loads(vocabulary.read_text(encoding="utf-8"))
    vocabulary.write_text(json.dumps(values | {"characters": values["characters"][::-1]}), encoding="utf-8")
    assert json.loads(charwright("info", copy, "--json").out)["weights"] == "unusable"
    weights.unlink()
    assert json.loads(charwright("info", copy, "--json").out)["weights"] == "missing"
    assert "has no trained weights yet" in charwright("info", copy).err


def test_info_of_a_run_with_n_grams(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    options = ["--steps", "2", "--ngram-bits", "8", "--ngram-order", "6", *SMALL]
    assert charwright("train", corpus, "--out", tmp_path / "run", *options).code == 0
    shown = charwright("info", tmp_path / "run").out
    assert "ngrams (hashed table)" in shown
    assert "\nN-grams of 2 to 6 tokens (256 numbers)\n" in shown
    values = json.loads(charwright("info", tmp_path / "run", "--json").out)
    tokens = len(Run.open(tmp_path / "run").vocabulary)
    last = {"name": "ngrams", "kind": "hashed table", "output": [None, None, tokens], "parameters": 256 + tokens}
    assert values["layers"][-1] == last


def test_info_of_a_multiplicative_run(charwright: Terminal, corpus: Path, tmp_path: Path) -> None:
    options = ["--steps", "2", "--layers", "2", "--multiplicative", *SMALL]
    assert charwright("train", corpus, "--out", tmp_path / "run", *options).code == 0
    shown = charwright("info", tmp_path / "run").out
    assert "recurrent.0 (multiplicative igru)" in shown
    assert "recurrent.1 (igru)" in shown
    values = json.loads(charwright("info", tmp_path / "run", "--json").out)
    run = Run.open(tmp_path / "run")
    assert values["parameters"] == sum(array.size for array in run.weights().values())
    assert [layer["name"] for layer in values["layers"]] == [
        "embedding",
        "recurrent.0",
        "recurrent.1",
        "head",
        "ngrams",
    ]
    assert "multiplicative input-reset GRU units" in repr(run) + run._repr_html_()


def test_info_of_an_input_reset_run(charwright: Terminal, tmp_path: Path) -> None:
    config = ModelConfig(cell="igru", layers=2, units=16, embedding_size=8, multiplicative=True)
    run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
    shown = charwright("info", run.folder).out
    # W has three gates, U two, and the biases as many; the first layer has the scale too.
    assert re.search(rf"recurrent\.0 \(multiplicative igru\) .* {48 * 8 + 32 * 16 + 48 + 32 + 16 * 8:,} ", shown)
    assert re.search(rf"recurrent\.1 \(igru\) .* {48 * 16 + 32 * 16 + 48 + 32:,} ", shown)
    assert "2 layers of 16 multiplicative input-reset GRU units" in repr(run)


def test_info_of_a_run_without_an_epoch(charwright: Terminal, copy: Path) -> None:
    (copy / "log.jsonl").write_bytes(b'{"event": "start", "st\xff')
    shutil.rmtree(copy / "checkpoints")
    assert "No epochs yet" in charwright("info", copy).out
    assert "no log of its training" in charwright("info", copy, "--plot", copy / "x.png").line


def test_info_of_a_folder_whose_name_looks_like_markup(charwright: Terminal, copy: Path) -> None:
    odd = copy.rename(copy.parent / "[red]a$b$[bold]")
    result = charwright("info", odd)
    assert result.code == 0
    assert "[red]a$b$[bold]" in result.out.replace("\n", "")


def test_plot(charwright: Terminal, copy: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    odd = copy.rename(copy.parent / "a$b_$^")
    for name, file in (("x.png", "x.png"), ("y", "y.png")):
        result = charwright("info", odd, "--plot", tmp_path / name)
        assert result.code == 0
        assert f"wrote {tmp_path / file}" in result.err
        assert (tmp_path / file).read_bytes().startswith(b"\x89PNG")
    assert "exists; choose another file" in charwright("info", odd, "--plot", tmp_path / "x.png").line
    assert charwright("info", odd, "--plot", tmp_path / "x.png", "--force").code == 0
    for words in (["--plot", tmp_path / "x.docx"], ["--plot", "-"], ["--force"]):
        assert charwright("info", odd, *words).code == 2


def test_plot_without_matplotlib(trained: Path, tmp_path: Path) -> None:
    result = process("info", trained, "--plot", tmp_path / "x.png", prelude="sys.modules['matplotlib'] = None")
    assert result.code == 1
    assert "pip install 'charwright[plot]'" in result.line


def test_inspect_a_chinese_text(charwright: Terminal, tmp_path: Path) -> None:
    text = "道可道，非常道。名可名，非常名。\n" * 40
    (tmp_path / "道德經.txt").write_text(text, encoding="utf-8")
    ids = cw.Vocabulary.from_text(text).encode(text)
    result = charwright("inspect", tmp_path / "道德經.txt", *SMALL, "--dropout", "0.1")
    assert (result.code, result.err) == (0, "")
    for shown in (
        "Text: 道德經",
        f"{len(text):,} characters, 40 lines",
        "Vocabulary: 9 tokens",
        "'\\n' 40",
        "道 120",
        "input   '道可道，",
        "target  '可道，非",
        f"ids     {' '.join(map(str, ids[:15].tolist()))} ...",
        f"  step 0: input {ids[0]} ('道'), target {ids[1]} ('可')",
        f"  step 4: input {ids[4]} ('非'), target {ids[5]} ('常')",
        "likeliest after '",
        "(16, 4)",
        "(16, 4, 9)",
        "ln V = 2.1972",
        "sample '",
    ):
        assert shown in result.out
    loss = float(re.search(r"loss ([\d.]+) nats", result.out).group(1))  # type: ignore[union-attr]
    assert loss == pytest.approx(2.1972, abs=0.02)


def test_inspect_counts_what_min_count_leaves_out(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("ab" * 300 + "xyzxyq", encoding="utf-8")
    out = charwright("inspect", tmp_path / "x.txt", *SMALL, "--min-count", "3").out
    assert "  0 [UNK] 6 (4 characters)   1 a 300   2 b 300\n" in out


def test_inspect_shows_long_records_in_part(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("\n".join(["a" * 900, *"bcdefgh"] * 20), encoding="utf-8")
    out = charwright("inspect", tmp_path / "x.txt", *SMALL, "--records", "line").out
    assert "1 to 900 characters, 113.4 on average. The first:\n" in out
    shown = out.split("The first:\n")[1].splitlines()[:6]
    assert shown[0].endswith(" ...'")
    assert shown[1:5] == ["  | 'b'", "  | 'c'", "  | 'd'", "  | 'e'"]


def test_inspect_shows_control_characters_as_escapes(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\tb\x1b[31mred\x07\n" * 300, encoding="utf-8")
    result = charwright("inspect", tmp_path / "x.txt", *SMALL)
    assert result.code == 0
    assert "  | a       b\\x1b[31mred\\x07\n" in result.out
    assert not set(result.out) & {"\x1b", "\x07"}


def test_inspect_bytes_and_a_text_shorter_than_a_batch(charwright: Terminal, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("道可道", encoding="utf-8")
    result = charwright("inspect", tmp_path / "x.txt", "--level", "byte", "--units", "8")
    assert result.code == 0
    assert "the 256 bytes of UTF-8" in result.out
    assert "instead of 64 x 100" in result.out


def test_bars_begin_where_the_heading_says() -> None:
    """Of many points some are left out, and the lowest may be one of them."""
    points = [(0, 1.0), (1, 0.1), *((step, 2.0) for step in range(2, 40))]
    first, *rest = chart(points)
    assert not any("0.1000" in line for line in rest)
    assert first.count("█") == round(40 * (1 - 0.09) / (2 - 0.09))
