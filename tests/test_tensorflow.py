"""Import and export against TensorFlow itself: checkpoints and SavedModels in, SavedModels and Keras weights out.

TensorFlow is in a separate environment; `CHARWRIGHT_TENSORFLOW` names its Python. One process there runs all tasks,
because importing TensorFlow takes seconds.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charwright as cw
from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import label_ids
from charwright.generation.layout import as_gru
from charwright.interop.foreign_model import ForeignModel
from charwright.run import Run
from charwright.run_config import RunRecords
from test_import_keras import golden_errors
from writers import LABELLED, LETTERS, save_records, weights_of

CHECKPOINTS = {
    "tutorial-small/tf_ckpt": "tf_ckpt",
    "tutorial-small/one_step": "saved",
    "keras2-gru/ckpt_1": "gru",
    "keras2-gru2": "gru2",
    "keras2-lstm/ckpt_1.index": "lstm",
}
CONFIGS = {
    "plain": ModelConfig(units=12, embedding_size=8),
    "bytes": ModelConfig(units=12, embedding_size=8),
    "gru-2-tied": ModelConfig(layers=2, units=8, embedding_size=8, tied=True),
    "igru-2": ModelConfig(cell="igru", layers=2, units=12, embedding_size=8),
    "lstm-2": ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8),
    "rnn": ModelConfig(cell="rnn", units=12, embedding_size=8),
    "n-grams": ModelConfig(units=12, embedding_size=8, ngram_bits=10),
    "n-grams-lstm-2": ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8, ngram_bits=1),
    "multiplicative": ModelConfig(units=12, embedding_size=8, multiplicative=True),
    "multiplicative-igru": ModelConfig(cell="igru", units=12, embedding_size=8, multiplicative=True, ngram_bits=6),
    "multiplicative-lstm-2": ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8, multiplicative=True),
    "multiplicative-rnn": ModelConfig(cell="rnn", units=12, embedding_size=8, multiplicative=True, ngram_bits=6),
    "n-grams-of-2": ModelConfig(units=12, embedding_size=8, ngram_bits=6, ngram_order=2),
    "n-grams-of-8": ModelConfig(cell="rnn", units=4, embedding_size=8, ngram_bits=8, ngram_order=8),
}
EXPORTED = ("saved", *CONFIGS)
ODD = {
    "good [1] *": ("gru", "gru_1"),
    "numbered": ("second2", "second1"),
    "unclear": ("first", "deeper"),
    "normalized": ("gru", "normalization"),
    "two-way": ("forward_layer", "backward_layer"),
}
"""Checkpoints by name, and the layers in them."""


def run_tasks(python: Path, tasks: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
    """Run tasks of `tensorflow_side.py` in the TensorFlow environment."""
    source = Path(cw.__file__).parents[1]
    done = subprocess.run(
        [str(python), str(Path(__file__).with_name("tensorflow_side.py"))],
        input=json.dumps([[kind, [str(word) for word in words]] for kind, words in tasks]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"PYTHONPATH": str(source)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def truncated(fixtures: Path, folder: Path) -> None:
    """Write a checkpoint whose data file is truncated."""
    folder.mkdir()
    for path in (fixtures / "keras2-gru").glob("ckpt_1*"):
        (folder / path.name).write_bytes(path.read_bytes())
    data = next(folder.glob("*.data-*"))
    data.write_bytes(data.read_bytes()[:9000])


@pytest.fixture(scope="module")
def done(tensorflow: Path, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run all tasks; return their results by name, and their `folder`."""
    folder, fixtures = tmp_path_factory.mktemp("tensorflow"), shared / "fixtures"
    golden = fixtures / "tutorial-small" / "golden.npz"
    tokens = folder / "tokens.json"
    tokens.write_text(json.dumps(np.load(golden)["vocabulary"].tolist()), encoding="utf-8")
    truncated(fixtures, folder / "cut")
    (folder / "no-graph").mkdir()
    (folder / "no-graph" / "saved_model.pb").write_bytes(b"\x00\x01 no graph")
    words = ["--vocabulary", tokens]
    tasks: dict[str, tuple[str, list[Any]]] = {}
    for source, name in CHECKPOINTS.items():
        options = [] if name == "saved" else words
        tasks[f"in {name}"] = ("charwright", ["import", fixtures / source, "--out", folder / name, *options])
    for name, config in CONFIGS.items():
        vocabulary = ByteVocabulary() if name == "bytes" else LETTERS
        Run.save(folder / name, config, weights_of(config, len(vocabulary)), vocabulary)
    for name in EXPORTED:
        # TensorFlow cannot load a SavedModel from a folder with brackets in its name; export and import can.
        out = folder / (f"{name} [out]" if name == "rnn" else f"{name}-out")
        tasks[f"out {name}"] = ("charwright", ["export", folder / name, "--to", "saved-model", "--out", out])
        if name != "rnn":
            tasks[f"generate {name}"] = ("generate", [out, "ROMEO:", 1000] if name == "saved" else [out, "abc", 30])
            tasks[f"pieces {name}"] = ("in_pieces", [out])
        tasks[f"back {name}"] = ("charwright", ["import", out, "--out", folder / f"{name}-back"])
    labelled, out = (
        save_records(folder / "labelled", LABELLED, favoured=label_ids(LABELLED)).folder,
        folder / "labelled-out",
    )
    tasks["out labelled"] = ("charwright", ["export", labelled, "--to", "saved-model", "--out", out])
    tasks["generate labelled"] = ("generate", [out, "\n", 30])
    tasks["back labelled"] = ("charwright", ["import", out, "--out", folder / "labelled-back"])
    weights = folder / "saved.weights.h5"
    tasks["out keras"] = ("charwright", ["export", folder / "saved", "--to", "keras", "--out", weights])
    tasks["my_model"] = ("my_model", [weights, golden])
    tasks["one_step"] = ("one_step", [folder / "saved-out", fixtures / "tutorial-small" / "one_step", golden])
    for name, source in (("cut", folder / "cut"), ("no-graph", folder / "no-graph")):
        tasks[f"in {name}"] = ("charwright", ["import", source, "--out", folder / f"{name}-run", *words])
    three = folder / "three.json"
    three.write_text('["[UNK]", "a", "b", "c"]', encoding="utf-8")
    for name, groups in ODD.items():
        tasks[f"write {name}"] = ("checkpoint", [folder / name, *groups])
        tasks[f"in {name}"] = (
            "charwright",
            ["import", folder / name, "--out", folder / f"{name}-run", "--vocabulary", three],
        )
    results = run_tasks(tensorflow, list(tasks.values()))
    return dict(zip(tasks, results, strict=True)) | {"folder": folder}


@pytest.mark.parametrize("source", CHECKPOINTS)
def test_imported_models_match_tensorflow(done: dict[str, Any], shared: Path, source: str) -> None:
    name = CHECKPOINTS[source]
    assert done[f"in {name}"]["code"] == 0, done[f"in {name}"]["err"]
    run = Run.open(done["folder"] / name)
    path = shared / "fixtures" / source
    golden = (path if (path / "golden.npz").is_file() else path.parent) / "golden.npz"
    logits, states = golden_errors(ForeignModel(run.model, run.weights(), None), golden)
    assert logits < 1e-5
    assert states < 1e-5
    assert run.vocabulary.tokens == np.load(golden)["vocabulary"].tolist()


@pytest.mark.parametrize("name", EXPORTED)
def test_saved_model_round_trip(done: dict[str, Any], name: str) -> None:
    for direction in ("out", "back"):
        assert done[f"{direction} {name}"]["code"] == 0, done[f"{direction} {name}"]["err"]
    went, back = Run.open(done["folder"] / name), Run.open(done["folder"] / f"{name}-back")
    assert back.vocabulary == went.vocabulary
    model, weights = as_gru(went.model, went.weights())
    weights = {"head.weight": weights["embedding.weight"], **weights}
    assert back.model == dataclasses.replace(model, tied=False)
    assert all(np.array_equal(array, weights[key]) for key, array in back.weights().items())


@pytest.mark.parametrize("name", [name for name in EXPORTED if name != "rnn"])
def test_states_are_carried(done: dict[str, Any], name: str) -> None:
    result = done[f"pieces {name}"]
    assert result["error"] < 1e-5
    config = CONFIGS.get(name, ModelConfig())
    contexts = [[9, 8, 7, 6, 5, 4, 3], [10, 9, 8, 7, 6, 5, 4]]
    assert result["context"] == ([row[: config.ngram_order - 1] for row in contexts] if config.ngram_bits else None)


def test_labels_are_never_sampled(done: dict[str, Any]) -> None:
    """Even if the model wants nothing else. The import reads them, and what ends a record, from the card."""
    assert done["out labelled"]["code"] == 0, done["out labelled"]["err"]
    text = bytes(done["generate labelled"]["bytes"]).decode("utf-8")
    assert len(text) == 31
    assert set(text) <= set(LABELLED.characters)
    assert done["back labelled"]["code"] == 0, done["back labelled"]["err"]
    back, went = (Run.open(done["folder"] / name) for name in ("labelled-back", "labelled"))
    assert back.vocabulary == LABELLED
    assert back.config.recipe.records == went.config.recipe.records
    assert back.config.records == RunRecords("\n", 0, 0)


def test_tensorflow_generates_a_thousand_characters(done: dict[str, Any]) -> None:
    text = bytes(done["generate saved"]["bytes"]).decode("utf-8")
    assert text.startswith("ROMEO:")
    assert len(text) == 1006
    assert "[UNK]" not in text
    assert len(bytes(done["generate bytes"]["bytes"])) == 33


def test_one_step_matches_the_tutorial(done: dict[str, Any]) -> None:
    result = done["one_step"]
    assert result["states"] < 1e-5
    assert result["logits"] < 1e-5
    assert result["state"] < 1e-5
    assert result["unknown"] == 0
    # Five standard deviations above the expected value.
    assert result["chi_square"] < result["kinds"] + 5 * (2 * result["kinds"]) ** 0.5


def test_tutorial_class_loads_exported_weights(done: dict[str, Any]) -> None:
    assert done["out keras"]["code"] == 0
    assert done["my_model"]["error"] < 1e-5


@pytest.mark.parametrize("name", ["good [1] *", "numbered"])
def test_checkpoints_with_a_layer_order(done: dict[str, Any], name: str) -> None:
    assert done[f"in {name}"]["code"] == 0, done[f"in {name}"]["err"]
    assert Run.open(done["folder"] / f"{name}-run").model.layers == 2


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("cut", "its index claims"),
        ("no-graph", "is not a SavedModel and contains no checkpoint"),
        ("unclear", "cannot determine which of the recurrent layers model/deeper, model/first comes first"),
        ("normalized", "model/normalization is not an embedding"),
        ("two-way", "model/backward_layer is not an embedding"),
    ],
)
def test_refused_checkpoints_are_one_line(done: dict[str, Any], name: str, complaint: str) -> None:
    result = done[f"in {name}"]
    assert result["code"] == 1
    assert complaint in result["err"]
    assert result["err"].count("\n") == 1
    assert not (done["folder"] / f"{name}-run").exists()
