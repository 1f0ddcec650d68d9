"""`charwright explain` from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.large_texts import cache_of
from charwright.data.parts import Places
from charwright.run import Run
from charwright.run_view import cell_in_words
from commands import TEXT, Terminal, process
from writers import LETTERS, weights_of


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_page_is_written_and_summed_up(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    result = charwright("explain", trained)
    assert result.code == 0
    page = (elsewhere / "run-explained.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "validation text of the run, which it was not trained on" in page
    assert result.out.startswith("run: multiplicative input-reset GRU, one layer of 16 units")
    assert "bits per character" in result.out
    assert "wrote run-explained.html" in result.err
    assert "run-explained.html exists; choose another path" in charwright("explain", trained).line
    assert charwright("explain", trained, "--force").code == 0
    assert [path.name for path in elsewhere.iterdir()] == ["run-explained.html"]


def test_json_is_one_object_and_writes_no_file(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    result = charwright("explain", trained, "--json", "--length", "100")
    found = json.loads(result.out, parse_constant=pytest.fail)  # NaN is not JSON.
    assert list(elsewhere.iterdir()) == []
    assert len(found["characters"]) == 100
    assert found["characters"][0] == {"character": found["characters"][0]["character"], "bits": None, "choices": []}
    bits = [character["bits"] for character in found["characters"][1:]]
    assert found["bits_per_char"] == pytest.approx(np.mean(bits), abs=1e-3)
    assert {gate["name"] for gate in found["gates"]} == {"reset", "update"}
    assert found["memory"]["lags"][0] == 1
    assert all(feature["reason"] for feature in found["features"] if not feature["best"])


def test_a_text_of_ones_own(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    (elsewhere / "own.txt").write_text("To be — or not?\r\n" * 20, encoding="utf-8")
    found = json.loads(charwright("explain", trained, "own.txt", "--json", "--out", "page.html").out)
    assert found["source"].endswith("characters of own.txt")
    assert found["unknown_chars"] == 40  # the dash and the question mark
    assert "\r" not in "".join(character["character"] for character in found["characters"])
    page = (elsewhere / "page.html").read_text(encoding="utf-8")
    assert "40 of the characters are outside the vocabulary" in page
    # Neurons are still searched on what the run has not seen.
    assert found["searched"]["text"] == "the validation text of the run"


def test_standard_input(trained: Path, tmp_path: Path) -> None:
    result = process("explain", trained, "-", "--json", stdin=TEXT.encode("utf-8"))
    assert json.loads(result.out)["source"] == f"all {len(TEXT):,} characters of standard input"


def test_picture(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    pytest.importorskip("matplotlib")
    (elsewhere / "道德經.txt").write_text("道可道，非常道。\nשלום\tעולם\n🙂\x07$x$\n" * 10, encoding="utf-8")
    result = charwright("explain", trained, "道德經.txt", "--png", "picture.png")
    assert result.code == 0
    assert (elsewhere / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in elsewhere.glob("*.html")] == []


def test_picture_without_matplotlib(trained: Path, tmp_path: Path) -> None:
    result = process("explain", trained, "--png", tmp_path / "x.png", prelude="sys.modules['matplotlib'] = None")
    assert result.code == 1
    assert "pip install 'charwright[plot]'" in result.line
    assert not (tmp_path / "x.png").exists()


def test_a_run_without_its_text_asks_for_one(charwright: Terminal, copy: Path, elsewhere: Path) -> None:
    (copy / "config.json").write_text(
        (copy / "config.json").read_text(encoding="utf-8").replace("hamlet.txt", "gone.txt"), encoding="utf-8"
    )
    assert "is not available" in charwright("explain", copy).line
    assert "name a text to explain the run with" in charwright("explain", copy).line
    (elsewhere / "own.txt").write_text(TEXT, encoding="utf-8")
    result = charwright("explain", copy, "own.txt")
    assert result.code == 0
    assert "neurons are searched on the text that is shown" in result.err
    assert charwright("explain", copy, "--corpus", "own.txt", "--out", "again.html").code == 0
    (elsewhere / "other.txt").write_text(TEXT * 2, encoding="utf-8")
    assert "is not the text that" in charwright("explain", copy, "--corpus", "other.txt", "--force").line


def test_a_run_without_validation(charwright: Terminal, elsewhere: Path) -> None:
    (elsewhere / "own.txt").write_text(TEXT, encoding="utf-8")
    sizes = ["--units", "8", "--embedding-size", "4", "--seq-length", "16", "--batch", "2"]
    trained = charwright("train", "own.txt", "--out", "whole", "--val-fraction", "0", "--steps", "2", *sizes)
    assert trained.code == 0
    result = charwright("explain", "whole", "own.txt")
    assert "whole has no validation text: neurons are searched on the text that is shown" in result.err
    assert "not available" not in result.err


def test_a_large_text_is_mapped(
    charwright: Terminal, trained: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (elsewhere / "own.txt").write_text(TEXT, encoding="utf-8")
    usual = charwright("explain", trained, "own.txt", "--json", "--length", "100").out
    places = Places(elsewhere / "cache", mapped_from_bytes=0)
    monkeypatch.setattr("charwright.cli.download.user_places", lambda: places)
    assert charwright("explain", trained, "own.txt", "--json", "--length", "100").out == usual
    assert len(list(cache_of(places).entries())) == 1


def test_existing_files_are_kept(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    (elsewhere / "old.PNG").write_text("abc", encoding="utf-8")
    result = charwright("explain", trained, "--png", "old.PNG")
    assert (result.code, "old.PNG exists" in result.line) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 1, "there is no run 'nowhere'"),
        (["RUN", "nowhere.txt"], 1, "nowhere.txt"),
        (["RUN", "short.txt"], 1, "has 3 characters; at least 20 are needed"),
        (["RUN", "--out", "missing/page.html"], 1, "the folder missing does not exist"),
        (["RUN", "--out", "."], 1, "is a folder; name a file"),
        (["RUN", "--out", "-"], 2, "cannot be written to standard output"),
        (["RUN", "--out", "page.png"], 2, "--out page.png: a page is written to a file that ends with .html or .htm"),
        (["RUN", "--png", "pic.jpg"], 2, "--png pic.jpg: a picture is written to a file that ends with .png"),
        (["RUN", "--out", "same.png", "--png", "same.png"], 2, "--out same.png: a page is written to"),
        (["RUN", "--out", "same.html", "--png", "same.html"], 2, "--png same.html: a picture is written to"),
        (["RUN", "--length", "5"], 2, "--length"),
        (["RUN", "--encoding", "latin-1"], 2, "--encoding applies to a TEXT"),
    ],
)
def test_mistakes(
    charwright: Terminal, trained: Path, elsewhere: Path, arguments: list[str], code: int, message: str
) -> None:
    (elsewhere / "short.txt").write_text("abc", encoding="utf-8")
    result = charwright("explain", *[str(trained) if word == "RUN" else word for word in arguments])
    assert result.code == code
    assert message in result.line
    assert [path.name for path in elsewhere.iterdir()] == ["short.txt"]


@pytest.mark.parametrize(
    ("model", "vocabulary"),
    [
        (ModelConfig(cell="lstm", layers=2, units=12, embedding_size=12, tied=True), LETTERS),
        (ModelConfig(cell="rnn", units=12, embedding_size=8), LETTERS),
        (ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8, multiplicative=True), LETTERS),
        (ModelConfig(units=12, embedding_size=8), ByteVocabulary()),
        (ModelConfig(units=12, embedding_size=8, ngram_bits=12, ngram_order=2), LETTERS),
        (ModelConfig(units=12, embedding_size=8, ngram_bits=12, ngram_order=8), ByteVocabulary()),
    ],
)
def test_every_network(charwright: Terminal, elsewhere: Path, model: ModelConfig, vocabulary: object) -> None:
    Run.save("own", model, weights_of(model, len(vocabulary)), vocabulary)
    (elsewhere / "text.txt").write_text("abé 中d\nABCDE. e!" * 20, encoding="utf-8")
    result = charwright("explain", "own", "text.txt", "--out", "page.html")
    assert result.code == 0
    assert "own has no record of its corpus: neurons are searched on the text that is shown" in result.err
    page = (elsewhere / "page.html").read_text(encoding="utf-8").partition('id="words"')[0]
    assert ("has no gates" in page) == (model.cell == "rnn")
    assert ("Layer 2: forget" in page) == (model.layers == 2)
    assert ("bytes back" in page) == (vocabulary.level == "byte")
    assert f"{cell_in_words(model)}, " in page
    assert ("multiplicative " in page) == model.multiplicative
    lengths = {2: "2", 8: "2 to 8"}.get(model.ngram_order)
    assert (f"n-grams of {lengths} tokens (4,096 numbers)" in page) == bool(model.ngram_bits)
    unit = "bytes" if vocabulary.level == "byte" else "characters"
    assert (f"n-grams, which see the last {model.ngram_order} {unit}" in page) == bool(model.ngram_bits)


def test_a_text_that_says_the_same_again_and_again(charwright: Terminal, trained: Path, elsewhere: Path) -> None:
    (elsewhere / "same.txt").write_text("e" * 3000, encoding="utf-8")
    result = charwright("explain", trained, "same.txt", "--json")
    assert result.code == 0
    assert json.loads(result.out)["memory"]["positions"] == 0
    shutil.rmtree(elsewhere)
