"""`charwright import` and `charwright export` from the command line."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charwright.config import GATES, ModelConfig, RecordsConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.corpus import Source
from charwright.data.labels import LabelledVocabulary
from charwright.errors import ForeignModelError
from charwright.generation.engine import Engine
from charwright.interop.model_card import find_card, model_card, records_of
from charwright.interop.numpy_export import npz_bytes
from charwright.model.language_model import LanguageModel
from charwright.ngrams import MULTIPLIERS
from charwright.run import Run
from charwright.run_config import RunRecords
from commands import Terminal
from writers import LABELLED, LETTERS, save_records, weights_of

pytest.importorskip("h5py")

MODEL = ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.save(tmp_path / "run", MODEL, weights_of(MODEL, len(LETTERS)), LETTERS)


class TestImport:
    @pytest.fixture
    def keras_file(self, shared: Path) -> Path:
        return shared / "fixtures" / "tutorial-small" / "ckpt_1.weights.h5"

    def test_tutorial_model_is_imported_and_trained_further(
        self, charwright: Terminal, shared: Path, keras_file: Path, tmp_path: Path
    ) -> None:
        corpus, out = shared / "data" / "tinyshakespeare.txt", tmp_path / "run"
        result = charwright("import", keras_file, "--out", out, "--corpus", corpus)
        assert result.code == 0
        assert "GRU, one layer of 64 units, 25,218 parameters" in result.err
        assert "loss on the first 2,000 characters of tinyshakespeare: 2.5539 nats" in result.err
        assert len(charwright("generate", out, "--prompt", "ROMEO:", "--length", "50").out) >= 50
        measured = json.loads(charwright("evaluate", out, corpus, "--json").out)
        assert 2.4 < measured["nats_per_char"] < 2.7
        assert f"Recipe: imported from {keras_file}" in charwright("info", out).out
        before = (out / "config.json").read_bytes()
        resumed = charwright("train", "--resume", out, "--epochs", "3")
        assert "was not trained here, so there is no training to resume" in resumed.line
        assert (out / "config.json").read_bytes() == before
        further = charwright("train", corpus, "--from", out, "--steps", "2", "--out", tmp_path / "more")
        assert further.code == 0
        assert "65 known characters" in further.err

    def test_wrong_corpus(self, charwright: Terminal, keras_file: Path, tmp_path: Path) -> None:
        other = tmp_path / "other.txt"
        other.write_text("".join(chr(0x410 + number % 65) for number in range(3000)), encoding="utf-8")
        result = charwright("import", keras_file, "--out", tmp_path / "run", "--corpus", other)
        assert result.code == 0
        # One more character also matches the rows, without one for [UNK]; only the loss reveals the mistake.
        more = tmp_path / "more.txt"
        more.write_text(other.read_text(encoding="utf-8") + "z", encoding="utf-8")
        off = charwright("import", keras_file, "--out", tmp_path / "off", "--corpus", more)
        assert "has 66 tokens but more has 66 characters" in off.line
        assert not (tmp_path / "off").exists()
        result = charwright("import", keras_file, "--out", tmp_path / "run", "--corpus", other, "--force")
        assert "worse than chance (4.19 for 66 tokens): other may not be the text" in result.err

    def test_errors_are_one_line_and_leave_no_run(self, charwright: Terminal, keras_file: Path, tmp_path: Path) -> None:
        out, short = tmp_path / "run", tmp_path / "short.txt"
        short.write_text("abc\n", encoding="utf-8")
        place = ["--out", out]
        arrays = tmp_path / "arrays.npz"
        np.savez(arrays, weight=np.zeros(3))
        (tmp_path / "cut.h5").write_bytes(keras_file.read_bytes()[:5000])
        (tmp_path / "tokens.json").write_text('["[UNK]", "a"]', encoding="utf-8")
        for words, complaint in (
            ([keras_file, *place], "name the training text with --corpus NAME|FILE"),
            ([keras_file, *place, "--corpus", short], "has 66 tokens but short has 4 characters"),
            ([keras_file, *place, "--vocabulary", tmp_path / "tokens.json"], "tokens.json has 2 tokens"),
            ([keras_file, *place, "--vocabulary", tmp_path / "none.json"], "none.json is missing"),
            ([keras_file, *place, "--corpus", "shakespear"], "shakespear"),
            ([keras_file, *place, "--vocabulary", short, "--corpus", short], "give only one of them"),
            ([tmp_path / "cut.h5", *place, "--corpus", short], "is damaged"),
            ([tmp_path / "none.h5", *place, "--corpus", short], "does not exist"),
            ([tmp_path, *place, "--corpus", short], "is not a SavedModel and contains no checkpoint"),
            ([short, *place, "--corpus", short], "is not a model that can be imported"),
            ([arrays, *place, "--corpus", short], "if it is an export of charwright, its run folder has the model"),
        ):
            result = charwright("import", *words)
            assert result.code in {1, 2}
            assert complaint in result.line
            assert not out.exists()

    def test_existing_run_is_kept(self, charwright: Terminal, keras_file: Path, run: Run) -> None:
        before = (run.folder / "model.safetensors").read_bytes()
        result = charwright("import", keras_file, "--out", run.folder, "--corpus", "shakespeare")
        assert "already holds a run" in result.line
        assert (run.folder / "model.safetensors").read_bytes() == before

    def test_the_name_of_another_format_is_refused(self, charwright: Terminal, run: Run, tmp_path: Path) -> None:
        for to, name in (("numpy", "a.html"), ("html", "a.npz"), ("html", "a.weights.h5")):
            result = charwright("export", run.folder, "--to", to, "--out", tmp_path / name)
            assert (result.code, list(tmp_path.glob("a.*"))) == (2, [])
            assert f"{name} has the name of an export --to " in result.line

    @pytest.mark.parametrize(("package", "extra"), [("h5py", "keras"), ("tensorflow", "tensorflow")])
    def test_missing_extra(
        self,
        charwright: Terminal,
        shared: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        package: str,
        extra: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        name = {"h5py": "weights_keras2.h5", "tensorflow": "ckpt_1"}[package]
        source = shared / "fixtures" / "keras2-gru" / name
        result = charwright("import", source, "--out", tmp_path / "run", "--corpus", "shakespeare")
        assert f"pip install 'charwright[{extra}]'" in result.line
        assert not (tmp_path / "run").exists()


class TestExport:
    @pytest.mark.parametrize(("to", "name"), [("onnx", "run-onnx"), ("keras", "run.weights.h5"), ("numpy", "run.npz")])
    def test_export_writes_one_file(
        self, charwright: Terminal, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str, name: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = charwright("export", run.folder, "--to", to)
        assert result.code == 0
        assert result.err.startswith(f"wrote {name} (")
        assert (tmp_path / name).exists()
        again = charwright("export", run.folder, "--to", to)
        assert f"{name} exists; choose another path with --out, or replace it with --force" in again.line
        assert charwright("export", run.folder, "--to", to, "--force").code == 0
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["run", name])

    def test_keras_round_trip_changes_no_weight(self, charwright: Terminal, run: Run, tmp_path: Path) -> None:
        file, back = tmp_path / "model.weights.h5", tmp_path / "back"
        assert charwright("export", run.folder, "--to", "keras", "--out", file).code == 0
        words = ["import", file, "--out", back, "--vocabulary", run.folder / "vocabulary.json"]
        assert charwright(*words).code == 0
        again = Run.open(back)
        assert again.vocabulary == run.vocabulary
        assert again.model == run.model
        assert all(np.array_equal(again.weights()[name], array) for name, array in run.weights().items())

    def test_numpy_arrays(self, charwright: Terminal, run: Run, tmp_path: Path) -> None:
        assert charwright("export", run.folder, "--to", "numpy", "--out", tmp_path / "x.npz").code == 0
        with np.load(tmp_path / "x.npz") as file:
            assert set(file) == {*run.weights(), "characters", "card"}
            assert all(np.array_equal(file[name], array) for name, array in run.weights().items())
            assert "".join(map(chr, file["characters"])) == run.vocabulary.characters
            assert json.loads(str(file["card"]))["model"]["cell"] == "lstm"

    def test_numpy_has_an_input_reset_gru_as_the_equal_gru(self, charwright: Terminal, tmp_path: Path) -> None:
        config = ModelConfig(cell="igru", layers=2, units=12, embedding_size=8)
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        assert charwright("export", run.folder, "--to", "numpy", "--out", tmp_path / "x.npz").code == 0
        with np.load(tmp_path / "x.npz") as file:
            assert json.loads(str(file["card"]))["model"] == config.to_json() | {"cell": "gru"}
            for name, array in run.weights().items():
                spare = 12 if "_hh" in name else 0
                assert not file[name][:spare].any()
                assert np.array_equal(file[name][spare:], array)

    def test_keras_has_an_input_reset_gru_as_the_equal_gru(self, charwright: Terminal, tmp_path: Path) -> None:
        config, file = ModelConfig(cell="igru", units=12, embedding_size=8), tmp_path / "x.weights.h5"
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        assert charwright("export", run.folder, "--to", "keras", "--out", file).code == 0
        words = ["import", file, "--out", tmp_path / "back", "--vocabulary", run.folder / "vocabulary.json"]
        result = charwright(*words)
        assert result.code == 0
        assert "GRU, one layer of 12 units" in result.err
        assert "input-reset" not in result.err
        assert Run.open(tmp_path / "back").model == dataclasses.replace(config, cell="gru")

    def test_a_model_of_records_carries_its_labels(self, charwright: Terminal, tmp_path: Path) -> None:
        run, plain = save_records(tmp_path / "run", LABELLED), save_records(tmp_path / "plain", end="\n\n")
        assert charwright("export", run.folder, "--to", "numpy", "--out", tmp_path / "x.npz").code == 0
        with np.load(tmp_path / "x.npz") as file:
            card = json.loads(str(file["card"]))
            assert "".join(map(chr, file["characters"])) == LABELLED.characters
            assert len(file["embedding.weight"]) == card["first_label_id"] + len(card["labels"])
        assert (card["record_end"], card["labels"]) == ("\n", ["one", "two", "three"])
        assert records_of(card) == (RecordsConfig("line", "first"), "\n")
        assert records_of({}) is None
        for damaged in ({"record_end": ""}, {"record_end": "\n"}, card | {"records": 7}, card | {"label": "middle"}):
            with pytest.raises(ForeignModelError, match="model card"):
                records_of(damaged)
        assert charwright("export", plain.folder, "--to", "numpy", "--out", tmp_path / "y.npz").code == 0
        with np.load(tmp_path / "y.npz") as file:
            card = json.loads(str(file["card"]))
        assert card["record_end"] == "\n\n"
        assert not {"labels", "first_label_id"} & set(card)

    def test_a_page_offers_the_labels(self, charwright: Terminal, tmp_path: Path) -> None:
        run, page = save_records(tmp_path / "run", LABELLED), tmp_path / "page.html"
        assert charwright("export", run.folder, "--to", "html", "--out", page).code == 0
        assert '"labels": ["one", "two", "three"]' in page.read_text(encoding="utf-8")

    @pytest.mark.parametrize("order", [2, 4, 8])
    def test_ngrams_are_carried(self, charwright: Terminal, tmp_path: Path, order: int) -> None:
        config = ModelConfig(units=12, embedding_size=8, ngram_bits=6, ngram_order=order)
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        assert charwright("export", run.folder, "--to", "numpy", "--out", tmp_path / "x.npz").code == 0
        with np.load(tmp_path / "x.npz") as file:
            assert np.array_equal(file["ngrams.weight"], run.weights()["ngrams.weight"])
            card = json.loads(str(file["card"]))["model"]
            assert (card["ngram_bits"], card["ngram_order"]) == (6, order)
        assert charwright("export", run.folder, "--to", "onnx", "--out", tmp_path / "x").code == 0
        assert charwright("export", run.folder, "--to", "html", "--out", tmp_path / "x.html").code == 0
        page = (tmp_path / "x.html").read_text(encoding="utf-8")
        lengths = "2 tokens" if order == 2 else f"2 to {order} tokens"
        assert ">GRU, one layer of 12 units, 8-bit weights</span>" in page
        assert f">of {lengths}, 64 numbers</span>" in page

    @pytest.mark.parametrize(("bits", "order"), [(1, 4), (6, 2), (6, 8), (20, 4)])
    def test_the_documented_function_adds_what_the_engine_adds(self, bits: int, order: int) -> None:
        page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
        [block] = [part for part in page.split("```python\n") if "def votes" in part]
        names: dict[str, Any] = {}
        exec(block.partition("\n\nprint(")[0], names)
        assert names["MULTIPLIERS"] == MULTIPLIERS
        config = ModelConfig(units=12, embedding_size=8, ngram_bits=bits, ngram_order=order)
        weights = weights_of(config, len(LETTERS))
        whole = Engine(config, weights, "f32")
        others = {name: array for name, array in weights.items() if name != "ngrams.weight"}
        plain = Engine(dataclasses.replace(config, ngram_bits=0), others, "f32")
        states, read = (whole.zero_state(), plain.zero_state()), []
        for i in (3, 1, 4, 1, 5, 9, 2, 6, 5, 3):
            read.append(i)
            added = whole.step(np.array([i]), states[0]) - plain.step(np.array([i]), states[1])
            for ids in (read, read[-order:]):
                votes = names["votes"](ids, weights["ngrams.weight"], len(LETTERS), order)
                assert votes == pytest.approx(added[0], abs=1e-5)

    @pytest.mark.parametrize("multiplicative", [False, True])
    @pytest.mark.parametrize("cell", ["gru", "igru"])
    def test_the_documented_network_computes_what_pytorch_does(
        self, tmp_path: Path, cell: str, multiplicative: bool
    ) -> None:
        page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
        [block] = [part for part in page.split("```python\n") if "def step" in part]
        config = ModelConfig(cell=cell, units=12, embedding_size=8, multiplicative=multiplicative)
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        (tmp_path / "novel.npz").write_bytes(npz_bytes(run, model_card(run, "1.2")))
        names: dict[str, Any] = {}
        exec(block.partition("\n\nfor ")[0].replace("novel.npz", str(tmp_path / "novel.npz")), names)
        model, h, ids = LanguageModel.from_arrays(config, run.weights()), names["h"], [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
        with torch.no_grad():
            wanted, _ = model(torch.tensor(ids)[:, None])
        for i, row in zip(ids, wanted[:, 0].numpy(), strict=True):
            logits, h = names["step"](i, h)
            assert logits == pytest.approx(row, abs=1e-4)

    @pytest.mark.parametrize("to", ["numpy", "onnx"])
    @pytest.mark.parametrize("cell", GATES)
    def test_a_multiplicative_layer_is_carried(self, charwright: Terminal, tmp_path: Path, to: str, cell: str) -> None:
        config = ModelConfig(cell=cell, units=12, embedding_size=8, multiplicative=True)
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        result = charwright("export", run.folder, "--to", to, "--out", tmp_path / "x")
        assert result.code == 0, result.err
        if to == "numpy":
            with np.load(tmp_path / "x") as file:
                assert np.array_equal(file["recurrent.0.weight_mx"], run.weights()["recurrent.0.weight_mx"])
                assert json.loads(str(file["card"]))["model"]["multiplicative"] is True

    def test_keras_has_no_multiplicative_layer(self, charwright: Terminal, tmp_path: Path) -> None:
        config, file = ModelConfig(units=12, embedding_size=8, multiplicative=True), tmp_path / "x.weights.h5"
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        result = charwright("export", run.folder, "--to", "keras", "--out", file)
        assert result.code == 2
        assert "--to keras: the model has a multiplicative layer, which Keras does not have; choose" in result.line
        assert not file.exists()

    def test_keras_has_no_ngrams(self, charwright: Terminal, tmp_path: Path) -> None:
        config, file = ModelConfig(units=12, embedding_size=8, ngram_bits=6), tmp_path / "x.weights.h5"
        run = Run.save(tmp_path / "run", config, weights_of(config, len(LETTERS)), LETTERS)
        result = charwright("export", run.folder, "--to", "keras", "--out", file)
        assert result.code == 2
        assert "--to keras: the model has n-grams, which Keras does not have; choose another format" in result.line
        assert not file.exists()

    def test_labels_survive_the_way_through_keras(self, charwright: Terminal, tmp_path: Path) -> None:
        run, file, back = save_records(tmp_path / "run", LABELLED), tmp_path / "x.weights.h5", tmp_path / "back"
        assert charwright("export", run.folder, "--to", "keras", "--out", file).code == 0
        words = ["import", file, "--out", back, "--vocabulary", run.folder / "vocabulary.json"]
        assert charwright(*words).code == 0
        assert Run.open(back).vocabulary == LABELLED
        assert Run.open(back).config.records is None
        assert charwright(*words, "--force", "--records", "line", "--label", "first").code == 0
        assert Run.open(back).config.records == RunRecords("\n", 0, 0)
        written = charwright("generate", back, "--prompt", "", "--num", "5", "--label", "one", "--seed", "1")
        assert written.code == 0, written.err
        assert written.out.count("\n") == 5

    def test_the_text_tells_how_a_model_of_records_reads(self, charwright: Terminal, tmp_path: Path) -> None:
        text, file, back = tmp_path / "x.tsv", tmp_path / "x.weights.h5", tmp_path / "back"
        text.write_text("".join(f"{label}\t{word}\n" for label in ("one", "three", "two") for word in ("ab", "ba")))
        vocabulary = LabelledVocabulary("\nab", ["one", "three", "two"])
        run = save_records(tmp_path / "run", vocabulary)
        assert charwright("export", run.folder, "--to", "keras", "--out", file).code == 0
        words = ["import", file, "--out", back, "--corpus", text]
        assert "the model has 7 tokens" in charwright(*words).line
        result = charwright(*words, "--records", "line", "--label", "first")
        assert result.code == 0
        assert "loss on the first 18 characters of x: " in result.err
        assert Run.open(back).vocabulary == vocabulary
        assert Run.open(back).config.records == RunRecords("\n", 6, 0)
        assert charwright("evaluate", back, text).code == 0
        new = charwright("generate", back, "--prompt", "", "--num", "3", "--new", "--seed", "1")
        assert not {"ab", "ba"} & set(new.out.split())
        regex = charwright("import", file, "--out", tmp_path / "other", "--records", "/x+/", "--vocabulary", text)
        assert "what does /x+/ match? give the text with --corpus" in regex.line

    def test_byte_level_round_trip(self, charwright: Terminal, tmp_path: Path) -> None:
        vocabulary = ByteVocabulary()
        run = Run.save(tmp_path / "run", MODEL, weights_of(MODEL, len(vocabulary)), vocabulary)
        file, back = tmp_path / "x.weights.h5", tmp_path / "back"
        assert charwright("export", run.folder, "--to", "keras", "--out", file).code == 0
        words = ["import", file, "--out", back, "--vocabulary", run.folder / "vocabulary.json"]
        assert charwright(*words).code == 0
        assert Run.open(back).vocabulary == vocabulary

    def test_errors_are_one_line_and_change_nothing(self, charwright: Terminal, run: Run, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        (tmp_path / "kept" / "letter.txt").write_text("dear", encoding="utf-8")
        (tmp_path / "kept" / "letter.weights.h5").write_text("dear", encoding="utf-8")
        np.savez(tmp_path / "kept" / "mine.npz", mine=np.arange(3))
        (tmp_path / "kept" / "mine.html").write_text("<!doctype html>\n<p>dear", encoding="utf-8")
        for words, complaint in (
            ([tmp_path / "none", "--to", "numpy"], "there is no run"),
            ([run.folder, "--to", "pdf"], "'pdf' is not one of"),
            ([run.folder], "Missing option '--to'"),
            ([run.folder, "--to", "numpy", "--temperature", "2"], "--temperature requires --to saved-model"),
            ([run.folder, "--to", "numpy", "--out", tmp_path / "no" / "x.npz"], "does not exist"),
            ([run.folder, "--to", "keras", "--out", tmp_path / "x.keras"], "files named *.weights.h5, unlike"),
            ([run.folder, "--to", "onnx", "--out", tmp_path / "kept", "--force"], "contains other files"),
            ([run.folder, "--to", "onnx", "--out", run.folder, "--force"], "contains other files"),
            *(
                (
                    [run.folder, "--to", to, "--out", tmp_path / "kept" / name, "--force"],
                    "is not an export of this",
                )
                for to, name in (
                    ("numpy", "letter.txt"),
                    ("keras", "letter.weights.h5"),
                    ("html", "letter.txt"),
                    ("numpy", "mine.npz"),
                    ("html", "mine.html"),
                )
            ),
        ):
            result = charwright("export", *words)
            assert result.code in {1, 2}
            assert complaint in result.line
        assert (tmp_path / "kept" / "letter.txt").read_text(encoding="utf-8") == "dear"
        assert np.load(tmp_path / "kept" / "mine.npz")["mine"].tolist() == [0, 1, 2]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "run"]

    def test_a_card_names_the_text_and_not_where_it_lies(self, run: Run) -> None:
        run.config = dataclasses.replace(
            run.config,
            sources=(
                Source("file", "/home/anna/novel.txt", "0" * 64, 9),
                Source("url", "https://anna:secret@example.org/a.txt?key=1", "0" * 64, 9),
                Source("url", "file:///home/anna/b.txt", "0" * 64, 9),
                Source("name", "shakespeare", "0" * 64, 9),
                Source("stdin", "corpus/stdin.txt", "0" * 64, 9),
            ),
        )
        run.config = dataclasses.replace(run.config, recipe_name="/home/anna/recipe.json")
        card = model_card(run, "1.0")
        assert card["recipe"] == "recipe.json"
        run.config = dataclasses.replace(run.config, recipe_name="imported from /home/anna/model.npz")
        assert model_card(run, "1.0")["recipe"] == "imported from model.npz"
        names = ["novel.txt", "https://example.org/a.txt", "b.txt", "shakespeare", "stdin.txt"]
        assert card["corpus"]["sources"] == names

    def test_invalid_destinations_are_kept(self, charwright: Terminal, run: Run, tmp_path: Path) -> None:
        (tmp_path / "note.txt").write_text("dear", encoding="utf-8")
        (tmp_path / "empty").mkdir()
        (run.folder / "checkpoints").mkdir()
        (run.folder / "checkpoints" / "a").write_bytes(b"")
        os.mkfifo(tmp_path / "pipe")
        for to, place, complaint in (
            ("onnx", tmp_path / "note.txt", "is not a folder"),
            ("html", tmp_path / "empty", "is not a file"),
            ("html", tmp_path / "pipe", "is not a file"),
            ("html", "/dev/null", "is not a file"),
            ("html", "-", "cannot be written to standard output"),
            ("numpy", run.folder / "model.safetensors", "is a part of the run"),
            ("html", run.folder / "config.json", "is a part of the run"),
            ("html", run.folder / "checkpoints" / "a", "is a part of the run"),
        ):
            for force in ([], ["--force"]):
                result = charwright("export", run.folder, "--to", to, "--out", place, *force)
                assert complaint in result.line
        result = charwright("export", run.folder, "--to", "saved-model", "--temperature", "nan")
        assert "must be finite" in result.line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "note.txt", "pipe", "run"]
        assert (tmp_path / "note.txt").read_text(encoding="utf-8") == "dear"

    @pytest.mark.parametrize(
        ("to", "package", "extra"),
        [
            ("onnx", "onnx", "onnx"),
            ("onnx", "onnxruntime", "onnx"),
            ("keras", "h5py", "keras"),
            ("saved-model", "tensorflow", "tensorflow"),
        ],
    )
    def test_missing_extra(
        self,
        charwright: Terminal,
        run: Run,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        to: str,
        package: str,
        extra: str,
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        result = charwright("export", run.folder, "--to", to, "--out", tmp_path / "x.weights.h5")
        assert f"pip install 'charwright[{extra}]'" in result.line
        assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_a_card_in_a_foreign_file_may_be_anything() -> None:
    ours = b'{"made_by": "charwright 0.2.0", "cell": "gru"}'
    for strange in (b'{"made_by":' + b"[" * 200_000 + b"]" * 200_000 + b"}", b'{"made_by', b'{"made_by": 3}'):
        assert find_card([strange]) == {}
        assert find_card([strange, ours])["cell"] == "gru"
