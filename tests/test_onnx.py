"""The ONNX graphs match the model, and a graph that does not is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charwright.config import GATES, ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.data.labels import label_ids
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ForeignModelError
from charwright.generation.engine import Engine
from charwright.generation.sampling import Sampler, uniform
from charwright.interop import onnx_export
from charwright.interop.model_card import model_card
from charwright.interop.onnx_check import check_graphs
from charwright.interop.onnx_export import onnx_graphs
from charwright.model.language_model import LanguageModel
from charwright.run import Run
from writers import LABELLED, LETTERS, save_records, weights_of

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

CONFIGS = [
    ModelConfig(cell=cell, layers=layers, units=12, embedding_size=12, tied=tied)
    for cell, layers, tied in [*((cell, layers, False) for cell in GATES for layers in (1, 2)), ("gru", 2, True)]
]
MULTIPLICATIVE = [
    *(
        ModelConfig(cell=cell, layers=layers, units=12, embedding_size=8, multiplicative=True)
        for cell in GATES
        for layers in (1, 2)
    ),
    ModelConfig(units=12, embedding_size=12, tied=True, multiplicative=True, ngram_bits=6),
]
UTF8 = {"PYTHONIOENCODING": "utf-8"}
NGRAMS = [
    ModelConfig(units=12, embedding_size=8, ngram_bits=10),
    ModelConfig(cell="lstm", layers=2, units=12, embedding_size=8, ngram_bits=1),
    ModelConfig(units=12, embedding_size=8, ngram_bits=6, ngram_order=2),
    ModelConfig(cell="rnn", units=4, embedding_size=8, ngram_bits=8, ngram_order=8),
]


def named(config: ModelConfig) -> str:
    ngrams = f"-{config.ngram_bits}-bits-order-{config.ngram_order}" if config.ngram_bits else ""
    kind = "multiplicative-" if config.multiplicative else ""
    return f"{kind}{config.cell}-{config.layers}{'-tied' if config.tied else ''}{ngrams}"


def saved(folder: Path, config: ModelConfig, vocabulary: Vocabulary = LETTERS) -> Run:
    return Run.save(folder, config, weights_of(config, len(vocabulary)), vocabulary)


def graphs_of(run: Run) -> dict[str, bytes]:
    return onnx_graphs(run, model_card(run, "1.2"))


def session(graph: bytes) -> Any:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("config", [*CONFIGS, *NGRAMS, *MULTIPLICATIVE], ids=named)
def test_both_graphs_match_the_model(config: ModelConfig, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", config)
    graphs = graphs_of(run)
    engine = Engine(config, run.weights(), precision="f32")

    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5], [2, 7, 1, 8, 2, 8, 1, 8, 2]])
    states = np.zeros((config.layers, 2 if config.cell == "lstm" else 1, 2, config.units), dtype=np.float32)
    step = session(graphs["step.onnx"])
    before = config.ngram_order - 1
    begin = {"state": states} | ({"context": np.zeros((2, before), dtype=np.int64)} if config.ngram_bits else {})
    assert {given.name for given in step.get_inputs()} == {"ids", *begin}
    logits, *after = step.run(None, {"ids": ids} | begin)
    state = engine.zero_state(2)
    expected = np.stack([engine.step(column, state) for column in ids.T], axis=1)
    assert np.abs(logits - expected).max() < 1e-5
    hidden = state[:, : config.layers, :, : config.units]
    assert np.abs(after[0] - hidden.transpose(1, 2, 0, 3)).max() < 1e-5
    if config.ngram_bits:
        assert np.array_equal(after[1], ids[:, ::-1][:, :before] + 1)
    # In two chunks, carrying the state: the same logits.
    first, *between = step.run(None, {"ids": ids[:, :2]} | begin)
    second, *_ = step.run(None, {"ids": ids[:, 2:]} | dict(zip(begin, between, strict=True)))
    assert np.abs(np.concatenate([first, second], axis=1) - logits).max() < 1e-5

    numbers = np.array([[uniform(7, stream, at) for at in range(50)] for stream in range(2)], dtype=np.float32)
    generate = session(graphs["generate.onnx"])
    given = {"prompt": ids, "temperature": np.array(0.7, dtype=np.float32), "uniform": numbers}
    (drawn,) = generate.run(None, given)
    for stream in range(2):
        masked = np.arange(len(LETTERS)) == 0
        sampler = Sampler(temperature=0.7, seed=7, stream=stream, masked=masked)
        state = engine.zero_state()
        for i in ids[stream]:
            scores = engine.step(np.array([i]), state)[0]
        for at in range(50):
            assert drawn[stream, at] == sampler.draw(scores, np.zeros(0, dtype=np.int32), at)
            scores = engine.step(drawn[stream, at : at + 1], state)[0]


@pytest.mark.parametrize("config", [*NGRAMS, *MULTIPLICATIVE], ids=named)
def test_states_are_carried_as_in_pytorch(config: ModelConfig, tmp_path: Path) -> None:
    """From the zero state, and from call to call: the same logits, states and last tokens."""
    run = saved(tmp_path / "run", config)
    model, step = LanguageModel.from_arrays(config, run.weights()), session(graphs_of(run)["step.onnx"])
    ids = np.random.default_rng(1).integers(0, len(LETTERS), (23, 3))
    carried: dict[str, Any] = {}
    for given in step.get_inputs()[1:]:
        shape = [3 if size == "B" else size for size in given.shape]
        carried[given.name] = np.zeros(shape, dtype=np.int64 if given.name == "context" else np.float32)
    state = None
    for begin, end in pairwise([0, 1, 2, 5, 6, 7, 16, 23]):
        with torch.no_grad():
            wanted, state = model(torch.from_numpy(ids[begin:end]), state)
        logits, *after = step.run(None, {"ids": ids[begin:end].T} | carried)
        carried = dict(zip(carried, after, strict=True))
        assert np.abs(logits.transpose(1, 0, 2) - wanted.numpy()).max() < 1e-4
        hidden = state[: 2 if config.cell == "lstm" else 1]
        assert np.abs(carried["state"] - torch.stack(hidden, dim=1).numpy()).max() < 1e-5
        if config.ngram_bits:
            assert np.array_equal(carried["context"], state[-1][0].numpy())


@pytest.mark.parametrize("config", [one for one in [*CONFIGS, *MULTIPLICATIVE] if one.layers == 2], ids=named)
def test_plain_operators_are_only_in_a_multiplicative_layer(config: ModelConfig) -> None:
    network = onnx_export._Network(config, weights_of(config, len(LETTERS)))
    nodes = [node.op_type for node in onnx.load_from_string(network.step({})).graph.node]
    assert nodes.count("Scan") == config.multiplicative
    operator = "GRU" if config.cell == "igru" else config.cell.upper()
    assert nodes.count(operator) == config.layers - config.multiplicative


@pytest.mark.parametrize("order", range(2, 9))
def test_contexts_that_begin_before_the_text_share_the_last_offset(order: int) -> None:
    """Each of them adds the same numbers, until the text has enough tokens."""
    config = ModelConfig(cell="rnn", units=1, embedding_size=1, ngram_bits=20, ngram_order=order)
    tokens = len(LETTERS)
    weights = {name: np.zeros(shape, dtype=np.float32) for name, shape in config.weight_shapes(tokens).items()}
    weights["ngrams.weight"][1 << 20 :] = np.arange(tokens) + 1
    step = session(onnx_export._Network(config, weights).step({}))
    ids = np.array([[3, 1, 4, 1, 5, 9, 2, 6, 5]])
    nothing = {"state": np.zeros((1, 1, 1, 1), np.float32), "context": np.zeros((1, order - 1), np.int64)}
    whole, state, context = step.run(None, {"ids": ids} | nothing)
    missing = np.maximum(0, order - 1 - np.arange(ids.size))
    assert np.array_equal(whole[0], missing[:, None] * (np.arange(tokens) + 1))
    (later, *_) = step.run(None, {"ids": ids, "state": state, "context": context})
    assert not later.any()


def test_greedy_generation_takes_the_most_likely_token(tmp_path: Path) -> None:
    config = ModelConfig(units=12, embedding_size=8)
    run = saved(tmp_path / "run", config)
    # Without the mask, [UNK] would be the most likely token.
    weights = run.weights()
    weights["head.bias"][0] = 30
    run.write_weights(weights)
    generate = session(graphs_of(run)["generate.onnx"])
    given = {"prompt": np.array([[3]]), "temperature": np.array(0, dtype=np.float32)}
    (drawn,) = generate.run(None, given | {"uniform": np.full((1, 30), 0.5, dtype=np.float32)})
    engine = Engine(config, weights, precision="f32")
    state, last = engine.zero_state(), 3
    for i in drawn[0]:
        last = 1 + int(engine.step(np.array([last]), state)[0, 1:].argmax())
        assert i == last


@pytest.mark.parametrize("config", [CONFIGS[3], *NGRAMS, *MULTIPLICATIVE[:3]], ids=named)
def test_the_example_writes_what_the_engine_does(config: ModelConfig, tmp_path: Path) -> None:
    run = saved(tmp_path / "run", config)
    for name, graph in graphs_of(run).items():
        (tmp_path / name).write_bytes(graph)
    example = Path(__file__).parents[1] / "examples" / "exported" / "generate_with_onnx.py"
    words = [sys.executable, str(example), str(tmp_path), "abc", "5"]
    done = subprocess.run(words, capture_output=True, check=True, encoding="utf-8", env=os.environ | UTF8)
    engine = Engine(config, run.weights(), precision="f32")
    state, ids = engine.zero_state(), LETTERS.encode("abc").tolist()
    for at in range(102):
        logits = engine.step(np.array(ids[at : at + 1]), state)[0]
        if at >= 2:
            ids.append(1 + int(logits[1:].argmax()))
    assert done.stdout.endswith(f"the most likely character:\n{LETTERS.decode(np.array(ids))}\n")


@pytest.mark.parametrize("temperature", [1e-44, 1e-38, -1.0, float("inf"), float("nan"), 1e6])
def test_unknown_is_never_sampled_at_any_temperature(tmp_path: Path, temperature: float) -> None:
    generate = session(graphs_of(saved(tmp_path / "run", ModelConfig(units=12, embedding_size=8)))["generate.onnx"])
    uniform_numbers = np.linspace(0, 1, 30, dtype=np.float32)[None]
    given = {"prompt": np.array([[3]]), "temperature": np.array(temperature, dtype=np.float32)}
    (drawn,) = generate.run(None, given | {"uniform": uniform_numbers})
    assert drawn.min() > 0


@pytest.mark.parametrize("number", [0.0, float(np.nextafter(np.float32(1), np.float32(0))), 1.0])
def test_uniform_numbers_at_the_bounds_sample_characters(tmp_path: Path, number: float) -> None:
    generate = session(graphs_of(saved(tmp_path / "run", ModelConfig(units=12, embedding_size=8)))["generate.onnx"])
    given = {"prompt": np.array([[3]]), "temperature": np.array(1e-3, dtype=np.float32)}
    (drawn,) = generate.run(None, given | {"uniform": np.full((1, 30), number, dtype=np.float32)})
    assert drawn.min() > 0
    (nothing,) = generate.run(None, given | {"uniform": np.zeros((1, 0), dtype=np.float32)})
    assert nothing.size == 0


def test_metadata(tmp_path: Path) -> None:
    graphs = graphs_of(saved(tmp_path / "run", ModelConfig(units=12, embedding_size=8)))
    for name, graph in graphs.items():
        metadata = session(graph).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["vocabulary"]) == LETTERS.tokens, name
        assert metadata["unit"] == "character"
        assert json.loads(metadata["card"])["model"]["units"] == 12
    byte_graphs = graphs_of(saved(tmp_path / "bytes", ModelConfig(units=12, embedding_size=8), ByteVocabulary()))
    assert session(byte_graphs["step.onnx"]).get_modelmeta().custom_metadata_map["unit"] == "byte"


def test_labels_are_never_sampled(tmp_path: Path) -> None:
    """Even if the model wants nothing else. The card says which ids they are, and what comes before them."""
    labels = label_ids(LABELLED)
    files = graphs_of(save_records(tmp_path / "run", LABELLED, favoured=labels))
    generate = session(files["generate.onnx"])
    card = json.loads(generate.get_modelmeta().custom_metadata_map["card"])
    assert (card["record_end"], card["labels"], card["first_label_id"]) == ("\n", list(LABELLED.labels), labels.start)
    prompt = np.array([[*LABELLED.encode(card["record_end"]), card["first_label_id"] + 1]])
    for temperature in (0.0, 2.0):
        given = {"prompt": prompt, "temperature": np.array(temperature, dtype=np.float32)}
        (drawn,) = generate.run(None, given | {"uniform": np.linspace(0, 1, 50, dtype=np.float32)[None]})
        assert 0 < drawn.min() <= drawn.max() < labels.start


class TestRefusals:
    """A wrong graph is never written; other exporters have made each of these mistakes."""

    config = ModelConfig(units=12, embedding_size=8)

    def graphs(self, config: ModelConfig) -> tuple[dict[str, bytes], dict[str, np.ndarray]]:
        weights = weights_of(config, len(LETTERS))
        network = onnx_export._Network(config, weights)
        return {"step.onnx": network.step({}), "generate.onnx": network.generate({})}, weights

    def modified(self, graph: bytes, modify: Any) -> bytes:
        model = onnx.load_from_string(graph)
        modify(model.graph)
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    modify(attribute.g)
        return bytes(model.SerializeToString())

    def reset_before(self, graph: Any) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "linear_before_reset":
                    attribute.i = 0

    def oldest_first(self, graph: Any) -> None:
        for held in graph.initializer:
            if held.name == "last_ones":
                held.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(held)[::-1].copy(), held.name))

    def no_scale(self, graph: Any) -> None:
        for held in graph.initializer:
            if held.name == "scale_0":
                held.CopyFrom(onnx.numpy_helper.from_array(np.zeros((8, 12), dtype=np.float32), "scale_0"))

    def no_mask(self, graph: Any) -> None:
        for held in graph.initializer:
            if held.name == "hidden":
                held.CopyFrom(onnx.numpy_helper.from_array(np.zeros(len(LETTERS), dtype=np.float32), "hidden"))

    def test_correct_graphs_pass(self) -> None:
        check_graphs(*self.graphs(self.config)[:1], self.config, self.graphs(self.config)[1])

    @pytest.mark.parametrize("name", ["step.onnx", "generate.onnx"])
    def test_reset_gate_before_the_product(self, name: str) -> None:
        graphs, weights = self.graphs(self.config)
        graphs[name] = self.modified(graphs[name], self.reset_before)
        with pytest.raises(ForeignModelError, match=r"differs from|samples differently"):
            check_graphs(graphs, self.config, weights)

    @pytest.mark.parametrize("name", ["step.onnx", "generate.onnx"])
    @pytest.mark.parametrize("config", [NGRAMS[0], NGRAMS[-1]], ids=named)
    def test_ngrams_in_another_order(self, name: str, config: ModelConfig) -> None:
        graphs, weights = self.graphs(config)
        graphs[name] = self.modified(graphs[name], self.oldest_first)
        with pytest.raises(ForeignModelError, match=r"differs from|samples differently"):
            check_graphs(graphs, config, weights)

    @pytest.mark.parametrize("name", ["step.onnx", "generate.onnx"])
    @pytest.mark.parametrize("config", MULTIPLICATIVE[:-1], ids=named)
    def test_a_state_that_is_not_scaled(self, name: str, config: ModelConfig) -> None:
        graphs, weights = self.graphs(config)
        check_graphs(graphs, config, weights)
        graphs[name] = self.modified(graphs[name], self.no_scale)
        with pytest.raises(ForeignModelError, match=r"differs from|samples differently"):
            check_graphs(graphs, config, weights)

    def test_unmasked_unknown(self) -> None:
        graphs, weights = self.graphs(self.config)
        graphs["generate.onnx"] = self.modified(graphs["generate.onnx"], self.no_mask)
        with pytest.raises(ForeignModelError, match="samples differently"):
            check_graphs(graphs, self.config, weights)

    def test_different_weights(self) -> None:
        graphs, weights = self.graphs(self.config)
        weights["head.bias"][3] += np.float32(2e-4)
        with pytest.raises(ForeignModelError, match=r"differs from the model by 0\.0002"):
            check_graphs(graphs, self.config, weights)
