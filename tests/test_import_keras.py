"""Keras files are imported with the same logits, or refused with a one-line reason."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from charwright.config import ModelConfig
from charwright.data.byte_vocabulary import ByteVocabulary
from charwright.errors import ForeignModelError, VocabularyError
from charwright.generation.engine import Engine
from charwright.interop.foreign_model import ForeignModel, fit_rows, read_model, read_vocabulary
from charwright.interop.keras_files import read_h5, read_keras, weights_h5_bytes
from charwright.interop.keras_weights import KerasLayer, from_keras, to_keras
from charwright.model.compute import Compute
from charwright.model.language_model import LanguageModel
from keras_models import gru_arrays, layer, ramp, ramp_weights, write_h5, write_keras
from ramps import ramp_arrays, some_ids

h5py = pytest.importorskip("h5py")

FORMS = ["tutorial-small/ckpt_1.weights.h5"]
FORMS += [f"keras2-{name}/weights_keras2.h5" for name in ("gru", "gru2", "lstm")]
CONFIGS = [
    ModelConfig(cell=cell, layers=layers, units=5, embedding_size=3, tied=False)
    for cell in ("gru", "lstm", "rnn")
    for layers in (1, 3)
]


def golden_errors(model: ForeignModel, golden: Path) -> tuple[float, float]:
    """Return the largest differences of the logits and the last states from TensorFlow's."""
    expected = np.load(golden)
    engine = Engine(model.config, model.weights, precision="f32")
    state = engine.zero_state()
    logits = np.stack([engine.step(np.array([i]), state)[0] for i in expected["ids"][0]])
    states = {f"state_{i}_{j}": state[0, i, j, : model.config.units] for i, j in np.ndindex(*state.shape[1:3])}
    if "state" in expected:
        states = {"state": states["state_0_0"]}
    worst = max(float(np.abs(values - expected[name][0]).max()) for name, values in states.items())
    return float(np.abs(logits - expected["logits"][0]).max()), worst


@pytest.mark.parametrize("form", FORMS)
def test_imported_models_match_keras(shared: Path, form: str) -> None:
    path = shared / "fixtures" / form
    logits, states = golden_errors(read_model(path), path.with_name("golden.npz"))
    assert logits < 1e-5
    assert states < 1e-5


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.cell}-{config.layers}")
def test_round_trip_changes_no_weight(config: ModelConfig, tmp_path: Path) -> None:
    weights = ramp_weights(config, 7)
    (tmp_path / "model.weights.h5").write_bytes(weights_h5_bytes(to_keras(config, weights)))
    back = read_model(tmp_path / "model.weights.h5")
    assert back.config == config
    assert all(np.array_equal(back.weights[name], array) for name, array in weights.items())
    assert set(back.weights) == set(weights)


@pytest.mark.parametrize("layers", [1, 3])
def test_an_input_reset_gru_comes_back_as_the_equal_gru(layers: int, tmp_path: Path) -> None:
    config = ModelConfig(cell="igru", layers=layers, units=5, embedding_size=3)
    weights = ramp_arrays(config, 7)
    (tmp_path / "model.weights.h5").write_bytes(weights_h5_bytes(to_keras(config, weights)))
    back = read_model(tmp_path / "model.weights.h5")
    assert back.config == dataclasses.replace(config, cell="gru")
    assert {name: array.shape for name, array in back.weights.items()} == back.config.weight_shapes(7)
    ids = some_ids(9, 2, 7)
    with torch.no_grad():
        wanted, found = (
            LanguageModel.from_arrays(each, arrays, compute=Compute(core="plain"))(ids)[0]
            for each, arrays in ((config, weights), (back.config, back.weights))
        )
    assert torch.equal(found, wanted)


def test_tied_weights_are_in_both_layers() -> None:
    config = ModelConfig(units=4, embedding_size=4, tied=True)
    weights = ramp_weights(config, 6)
    back, arrays = from_keras(to_keras(config, weights), "memory")
    assert not back.tied
    assert np.array_equal(arrays["head.weight"], weights["embedding.weight"])


class TestNgrams:
    """A SavedModel of a run with n-grams has one more layer than Keras's."""

    config = ModelConfig(units=4, embedding_size=4, ngram_bits=3)

    def layers(self, order: int = 4) -> list[KerasLayer]:
        config = dataclasses.replace(self.config, ngram_order=order)
        return to_keras(config, ramp_weights(config, 6) | {"ngrams.weight": ramp((14,), 1)})

    def changed(self, **arrays: Any) -> list[KerasLayer]:
        layers = self.layers()
        return [*layers[:-1], KerasLayer("model/ngrams", {**layers[-1].arrays, **arrays})]

    @pytest.mark.parametrize("order", [2, 4, 8])
    def test_array_and_order_are_carried(self, order: int) -> None:
        config, weights = from_keras(self.layers(order), "memory")
        assert config == dataclasses.replace(self.config, ngram_order=order)
        assert np.array_equal(weights["ngrams.weight"], ramp((14,), 1))

    @pytest.mark.parametrize("shape", [(13,), (7,), (5,), (6,), (0,), (14, 1)])
    def test_arrays_of_other_sizes_are_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ForeignModelError, match="n-grams has shape"):
            from_keras(self.changed(weight=np.broadcast_to(np.float32(0), shape)), "memory")

    @pytest.mark.parametrize(
        ("order", "complaint"),
        [
            ([2.5], r"order of the n-grams is \[2\.5\]; expected one whole number"),
            ([2, 3], r"order of the n-grams is \[2\.0, 3\.0\]; expected one whole number"),
            ([9], "must be at most 8, not 9"),
            ([1], "must be at least 2, not 1"),
            ([np.nan], "'order' of model/ngrams has a value that is not finite"),
        ],
    )
    def test_other_orders_are_refused(self, order: list[float], complaint: str) -> None:
        with pytest.raises(ForeignModelError, match=complaint):
            from_keras(self.changed(order=np.array(order, dtype=np.float32)), "memory")

    def test_a_second_array_is_refused(self) -> None:
        with pytest.raises(ForeignModelError, match="memory has 2 arrays of n-grams"):
            from_keras([*self.layers(), self.layers()[-1]], "memory")

    def test_another_layer_with_a_weight_is_unknown(self) -> None:
        with pytest.raises(ForeignModelError, match="model/scale is not an embedding"):
            from_keras([*self.layers(), KerasLayer("model/scale", {"weight": ramp((14,), 1)})], "memory")

    def test_ids_cannot_be_shifted(self) -> None:
        """The offsets are of the ids that the model was trained with."""
        model = ForeignModel(self.config, ramp_weights(self.config, 6), None)
        for tokens in (list("abcdef"), list("abcd")):
            with pytest.raises(VocabularyError, match=r"x\.json: the model has n-grams, and so needs the vocabulary"):
                fit_rows(model, tokens, "x.json")
        assert fit_rows(model, list("abcde"), "x.json")[1] is model.weights


class TestMultiplicative:
    """A SavedModel of a multiplicative run has one more variable than Keras's layer."""

    config = ModelConfig(layers=2, units=4, embedding_size=5, multiplicative=True)

    def layers(self, config: ModelConfig = config) -> list[KerasLayer]:
        return to_keras(config, ramp_arrays(config, 6))

    def changed(self, index: int, **arrays: Any) -> list[KerasLayer]:
        layers = self.layers()
        layers[index] = KerasLayer(layers[index].name, {**layers[index].arrays, **arrays})
        return layers

    @pytest.mark.parametrize("layers", [1, 2])
    @pytest.mark.parametrize("cell", ["gru", "lstm", "rnn"])
    def test_the_scale_is_carried(self, cell: str, layers: int) -> None:
        config = dataclasses.replace(self.config, cell=cell, layers=layers)
        made = self.layers(config)
        assert [layer.multiplicative for layer in made] == [False, True, *[False] * layers]
        assert made[1].arrays["scale_kernel"].shape == (5, 4)
        back, weights = from_keras(made, "memory")
        assert back == config
        wanted = ramp_arrays(config, 6)
        assert set(weights) == set(wanted)
        assert all(np.array_equal(weights[name], array) for name, array in wanted.items())

    def test_only_the_first_layer_can_be_multiplicative(self) -> None:
        layers = self.changed(2, scale_kernel=np.zeros((4, 4), dtype=np.float32))
        with pytest.raises(ForeignModelError, match="memory: gru_1 is multiplicative; only the first"):
            from_keras(layers, "memory")
        with pytest.raises(ForeignModelError, match="memory: gru_1 is multiplicative; only the first"):
            from_keras([layers[0], KerasLayer("gru", self.plain()), *layers[2:]], "memory")

    def plain(self) -> dict[str, np.ndarray]:
        return {name: array for name, array in self.layers()[1].arrays.items() if name != "scale_kernel"}

    @pytest.mark.parametrize(
        ("scale", "complaint"),
        [
            (np.zeros((4, 5)), r"'recurrent\.0\.weight_mx' is \(5, 4\), and the other layers require \(4, 5\)"),
            (np.zeros(20), r"'scale_kernel' of gru has shape \(20,\); expected a matrix"),
            (np.full((5, 4), np.inf), "'scale_kernel' of gru has a value that is not finite"),
        ],
    )
    def test_other_scales_are_refused(self, scale: np.ndarray, complaint: str) -> None:
        with pytest.raises(ForeignModelError, match=complaint):
            from_keras(self.changed(1, scale_kernel=scale.astype(np.float32)), "memory")

    def test_a_token_more_or_less(self) -> None:
        """No row of the scale belongs to a token."""
        model = ForeignModel(self.config, ramp_arrays(self.config, 6), None)
        for tokens in (list("abcdef"), list("abcd")):
            _, weights, _ = fit_rows(model, tokens, "x.json")
            shapes = {name: array.shape for name, array in weights.items()}
            assert shapes == self.config.weight_shapes(len(tokens) + 1)


class TestOrder:
    """Two layers of the same size differ only in their order."""

    first, second = gru_arrays(4, 4, 10), gru_arrays(4, 4, 500)

    def read(self, tmp_path: Path, **places: tuple[str, list[npt.NDArray[Any]]]) -> dict[str, npt.NDArray[np.float32]]:
        groups = {"embedding": ("embedding", [ramp((6, 4), 1)]), "dense": ("dense", [ramp((4, 6), 2), ramp((6,), 3)])}
        write_h5(tmp_path / "x.weights.h5", groups | {name.replace("__", "/"): group for name, group in places.items()})
        return from_keras(read_h5(tmp_path / "x.weights.h5"), "x")[1]

    def is_right(self, weights: dict[str, npt.NDArray[np.float32]]) -> bool:
        candidate = self.first[0].T[8:]
        return np.array_equal(weights["recurrent.0.weight_ih"][8:], candidate)

    def test_attributes_are_ordered_by_creation(self, tmp_path: Path) -> None:
        # Keras 3 stores an attribute that sorts after `layers` in that list, and the other under its own name.
        assert self.is_right(
            self.read(tmp_path, layers__gru__cell=("gru_2", self.first), aa__cell=("gru_10", self.second))
        )

    def test_lists_keep_their_order(self, tmp_path: Path) -> None:
        assert self.is_right(
            self.read(tmp_path, layers__gru__cell=("zwei", self.first), layers__gru_1__cell=("eins", self.second))
        )

    def test_first_layer_reads_the_embedding(self, tmp_path: Path) -> None:
        groups = {"embedding": ("embedding", [ramp((6, 3), 1)]), "dense": ("dense", [ramp((4, 6), 2), ramp((6,), 3)])}
        groups |= {"zz/cell": ("last", gru_arrays(3, 4, 5)), "aa/cell": ("begin", gru_arrays(4, 4, 7))}
        write_h5(tmp_path / "x.weights.h5", groups)
        assert from_keras(read_h5(tmp_path / "x.weights.h5"), "x")[1]["recurrent.0.weight_ih"].shape == (12, 3)

    def test_unknown_order_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ForeignModelError, match="cannot determine which of the recurrent layers"):
            self.read(tmp_path, upper__cell=("upper", self.first), lower__cell=("lower", self.second))


class TestKerasFiles:
    def weights(self) -> bytes:
        memory = io.BytesIO()
        groups = {
            "layers/embedding": ("embedding", [ramp((6, 3), 1)]),
            "layers/gru/cell": ("zwei", gru_arrays(3, 4, 5)),
            "layers/gru_1/cell": ("eins", gru_arrays(4, 4, 7)),
            "layers/dense": ("dense", [ramp((4, 6), 2), ramp((6,), 3)]),
        }
        write_h5(memory, groups)
        return memory.getvalue()

    def config(self, *, functional: bool = False, **options: Any) -> dict[str, Any]:
        names = ["embedding", "zwei", "dropout", "eins", "dense"]
        kinds = ["Embedding", "GRU", "Dropout", "GRU", "Dense"]
        before = ["input", *names] if functional else [None] * 6
        layers = [layer("InputLayer", "input")]
        layers += [
            layer(kind, name, previous, **(options if kind == "GRU" else {}))
            for kind, name, previous in zip(kinds, names, before, strict=False)
        ]
        return {"class_name": "Functional" if functional else "Sequential", "config": {"layers": layers}}

    @pytest.mark.parametrize("functional", [True, False])
    def test_known_layers_are_read(self, tmp_path: Path, *, functional: bool) -> None:
        write_keras(tmp_path / "x.keras", self.config(functional=functional), self.weights())
        config, weights = from_keras(read_keras(tmp_path / "x.keras"), "x")
        assert config == ModelConfig(layers=2, units=4, embedding_size=3)
        assert np.array_equal(weights["recurrent.1.weight_ih"][8:], gru_arrays(4, 4, 7)[0].T[8:])

    def test_custom_class_is_read_as_weights(self, tmp_path: Path) -> None:
        config = {"class_name": "MyModel", "registered_name": "MyModel", "config": {"trainable": True}}
        write_keras(tmp_path / "x.keras", config, self.weights())
        assert len(read_keras(tmp_path / "x.keras")) == 4

    @pytest.mark.parametrize(
        ("options", "complaint"),
        [
            ({"reset_after": False}, "reset_after=False"),
            ({"activation": "relu"}, "activation='relu'"),
            ({"go_backwards": True}, "go_backwards=True"),
        ],
    )
    def test_unsupported_options_are_refused(self, tmp_path: Path, options: dict[str, Any], complaint: str) -> None:
        write_keras(tmp_path / "x.keras", self.config(**options), self.weights())
        with pytest.raises(ForeignModelError, match=complaint):
            read_keras(tmp_path / "x.keras")

    @pytest.mark.parametrize("own_class", [True, False])
    def test_lambda_is_refused(self, tmp_path: Path, *, own_class: bool) -> None:
        config = self.config()
        config["config"]["layers"].append(layer("Lambda", "evil", function={"class_name": "__lambda__"}))
        if own_class:
            config["class_name"] = "MyModel"
        write_keras(tmp_path / "x.keras", config, self.weights())
        with pytest.raises(ForeignModelError, match=r"unsupported Lambda layer; .* no code is run"):
            read_keras(tmp_path / "x.keras")

    def test_layer_with_two_inputs_is_refused(self, tmp_path: Path) -> None:
        config = self.config(functional=True)
        config["config"]["layers"][-1]["inbound_nodes"] += layer("Dense", "x", "zwei")["inbound_nodes"]
        write_keras(tmp_path / "x.keras", config, self.weights())
        with pytest.raises(ForeignModelError, match="input of layer dense is not the layer before it alone"):
            read_keras(tmp_path / "x.keras")

    def test_deeply_nested_configuration(self, tmp_path: Path) -> None:
        write_keras(tmp_path / "x.keras", {}, self.weights())
        for depth in (300, 900, 100_000):
            nested = '{"class_name": "MyModel", "config": ' + "[" * depth + "]" * depth + "}"
            with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
                archive.writestr("config.json", nested)
                archive.writestr("model.weights.h5", self.weights())
            with suppress(ForeignModelError):
                assert len(read_keras(tmp_path / "x.keras")) == 4

    @pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:/evil"])
    def test_member_outside_the_archive_is_refused(self, tmp_path: Path, name: str) -> None:
        write_keras(tmp_path / "x.keras", self.config(), self.weights(), **{name: b"evil"})
        with pytest.raises(ForeignModelError, match="points outside the archive"):
            read_keras(tmp_path / "x.keras")

    def test_layers_in_wrong_order_are_refused(self, tmp_path: Path) -> None:
        config = self.config()
        config["config"]["layers"].reverse()
        write_keras(tmp_path / "x.keras", config, self.weights())
        with pytest.raises(ForeignModelError, match="the layers are Dense, GRU, GRU, Embedding"):
            read_keras(tmp_path / "x.keras")

    @pytest.mark.parametrize("odd", [[], {}, 3, None])
    def test_odd_names(self, tmp_path: Path, odd: Any) -> None:
        for place in ("class_name", "registered_name", "module"):
            config = self.config()
            config["config"]["layers"][2][place] = odd
            write_keras(tmp_path / "x.keras", config, self.weights())
            with suppress(ForeignModelError):
                read_keras(tmp_path / "x.keras")
        write_keras(tmp_path / "x.keras", self.config() | {"class_name": odd}, self.weights())
        assert len(read_keras(tmp_path / "x.keras")) == 4

    @pytest.mark.parametrize(
        ("method", "readable"), [(zipfile.ZIP_DEFLATED, True), (zipfile.ZIP_LZMA, False), (zipfile.ZIP_BZIP2, False)]
    )
    def test_recompressed_archives(self, tmp_path: Path, method: int, *, readable: bool) -> None:
        with zipfile.ZipFile(tmp_path / "x.keras", "w", method) as archive:
            archive.writestr("config.json", json.dumps(self.config()))
            archive.writestr("model.weights.h5", self.weights())
        if readable:
            assert len(read_keras(tmp_path / "x.keras")) == 4
            return
        with pytest.raises(ForeignModelError, match="compression method that Keras does not use"):
            read_keras(tmp_path / "x.keras")

    def test_archive_that_claims_too_many_bytes(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.keras", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("config.json", json.dumps(self.config()))
            archive.writestr("model.weights.h5", bytes(10_000_000))
        with pytest.raises(ForeignModelError, match="more than is plausible"):
            read_keras(tmp_path / "x.keras")

    def test_truncated_file_is_refused(self, tmp_path: Path) -> None:
        write_keras(tmp_path / "x.keras", self.config(), self.weights())
        whole = (tmp_path / "x.keras").read_bytes()
        for end in (5, len(whole) // 2, len(whole) - 5):
            (tmp_path / "x.keras").write_bytes(whole[:end])
            with pytest.raises(ForeignModelError, match="is damaged"):
                read_keras(tmp_path / "x.keras")


class TestKeras2Models:
    """Whole models in one HDF5 file, as Keras 2 saved them."""

    def write(self, path: Path, layers: list[dict[str, Any]], kind: str = "Sequential") -> None:
        weights = {
            "embedding": {"embeddings:0": ramp((6, 3), 1)},
            "eins": dict(zip(("kernel:0", "recurrent_kernel:0", "bias:0"), gru_arrays(3, 4, 5), strict=True)),
            "dense": {"kernel:0": ramp((4, 6), 2), "bias:0": ramp((6,), 3)},
        }
        with h5py.File(path, "w") as file:
            file.attrs["model_config"] = json.dumps({"class_name": kind, "config": {"layers": layers}})
            root = file.create_group("model_weights")
            root.attrs["layer_names"] = ["input", *weights]
            root.create_group("input").attrs["weight_names"] = []
            for name, arrays in weights.items():
                group = root.create_group(name)
                group.attrs["weight_names"] = [f"my_model/{name}/{array}" for array in arrays]
                for array, values in arrays.items():
                    group[f"my_model/{name}/{array}"] = values

    def layers(self, **gru: Any) -> list[dict[str, Any]]:
        before = {"embedding": "input", "eins": "embedding", "dense": "eins"}
        kinds = {"input": "InputLayer", "embedding": "Embedding", "eins": "GRU", "dense": "Dense"}
        return [
            {
                "class_name": kind,
                "config": {"name": name, **(gru if kind == "GRU" else {})},
                "name": name,
                "inbound_nodes": [[[before[name], 0, 0, {}]]] if name in before else [],
            }
            for name, kind in kinds.items()
        ]

    @pytest.mark.parametrize("kind", ["Sequential", "Functional", "Model"])
    def test_known_layers_are_read(self, tmp_path: Path, kind: str) -> None:
        self.write(tmp_path / "x.h5", self.layers(), kind)
        model = read_model(tmp_path / "x.h5")
        assert model.config == ModelConfig(units=4, embedding_size=3)
        assert np.array_equal(model.weights["recurrent.0.weight_ih"][8:], gru_arrays(3, 4, 5)[0].T[8:])

    def test_unsupported_options_are_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path / "x.h5", self.layers(activation="relu"))
        with pytest.raises(ForeignModelError, match="activation='relu'"):
            read_model(tmp_path / "x.h5")
        self.write(tmp_path / "x.h5", [*self.layers(), {"class_name": "Lambda", "config": {}}])
        with pytest.raises(ForeignModelError, match="unsupported Lambda layer"):
            read_model(tmp_path / "x.h5")
        layers = self.layers()
        layers[-1]["inbound_nodes"] = [[["eins", 0, 0, {}], ["embedding", 0, 0, {}]]]
        self.write(tmp_path / "x.h5", layers, "Functional")
        with pytest.raises(ForeignModelError, match="input of layer dense is not the layer before it alone"):
            read_model(tmp_path / "x.h5")

    @pytest.mark.parametrize("config", ["[]", "1", "{", '{"config": 3}', '{"config": {"layers": [1]}}'])
    def test_invalid_configuration(self, tmp_path: Path, config: str) -> None:
        self.write(tmp_path / "x.h5", self.layers())
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file.attrs["model_config"] = config
        with suppress(ForeignModelError):
            read_model(tmp_path / "x.h5")

    def test_bidirectional_layer_is_refused(self, tmp_path: Path) -> None:
        self.write(tmp_path / "x.h5", self.layers())
        with h5py.File(tmp_path / "x.h5", "a") as file:
            file["model_weights/eins/backward/kernel:0"] = ramp((3, 12), 9)
        with pytest.raises(ForeignModelError, match="a second 'kernel' in one layer"):
            read_model(tmp_path / "x.h5")


class TestDamagedHdf5:
    def groups(self) -> dict[str, tuple[str, list[npt.NDArray[Any]]]]:
        return {
            "embedding": ("embedding", [ramp((6, 3), 1)]),
            "gru/cell": ("gru", gru_arrays(3, 4, 5)),
            "dense": ("dense", [ramp((4, 6), 2), ramp((6,), 3)]),
        }

    def refuses(self, path: Path, complaint: str) -> None:
        with pytest.raises(ForeignModelError, match=complaint):
            read_model(path)

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        write_h5(tmp_path / "x.weights.h5", self.groups())
        return tmp_path / "x.weights.h5"

    def test_undamaged_file(self, path: Path) -> None:
        assert read_model(path).config == ModelConfig(units=4, embedding_size=3)

    def test_truncated(self, path: Path) -> None:
        whole = path.read_bytes()
        for end in (20, 200, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:end])
            self.refuses(path, "damaged")

    def test_any_byte_may_be_wrong(self, path: Path) -> None:
        whole = path.read_bytes()
        for place in range(0, 2000, 19):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
            with suppress(ForeignModelError):
                read_model(path)

    @pytest.mark.parametrize("kind", ["external", "soft"])
    def test_links_are_not_followed(self, path: Path, tmp_path: Path, kind: str) -> None:
        other = tmp_path / "other.h5"
        with h5py.File(other, "w") as file:
            file["0"] = ramp((6, 3), 1)
        with h5py.File(path, "a") as file:
            del file["embedding/vars/0"]
            file["embedding/vars/0"] = (
                h5py.ExternalLink(str(other), "/0") if kind == "external" else h5py.SoftLink("/x")
            )
        self.refuses(path, "is a link, and links are not followed")

    def test_external_data_is_not_read(self, path: Path, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"\0" * 72)
        with h5py.File(path, "a") as file:
            del file["embedding/vars/0"]
            file["embedding/vars"].create_dataset("0", (6, 3), "f4", external=[(str(tmp_path / "secret"), 0, 72)])
        self.refuses(path, "in another file")

    def test_virtual_datasets_are_not_read(self, path: Path, tmp_path: Path) -> None:
        layout = h5py.VirtualLayout((6, 3), "f4")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "0", (6, 3))
        with h5py.File(path, "a") as file:
            del file["embedding/vars/0"]
            file["embedding/vars"].create_virtual_dataset("0", layout)
        self.refuses(path, "in another file")

    @pytest.mark.parametrize("shape", [(1 << 40, 1 << 20), (6, 3000)])
    def test_shape_larger_than_the_file(self, path: Path, shape: tuple[int, int]) -> None:
        with h5py.File(path, "a") as file:
            del file["embedding/vars/0"]
            file["embedding/vars"].create_dataset("0", shape, "f4", chunks=(1, 64))
        self.refuses(path, "larger than the file's data")

    def test_cyclic_groups(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            file["gru/again"] = file["gru"]
        self.refuses(path, "too many groups or nested too deeply")

    def test_integer_array(self, path: Path) -> None:
        with h5py.File(path, "a") as file:
            del file["dense/vars/1"]
            file["dense/vars/1"] = np.arange(6)
        self.refuses(path, "has type int64, not a floating-point type")

    def test_unknown_layer(self, tmp_path: Path) -> None:
        groups = self.groups() | {"layer_normalization": ("layer_normalization", [ramp((4,), 1)] * 3)}
        write_h5(tmp_path / "x.weights.h5", groups)
        self.refuses(tmp_path / "x.weights.h5", "layer_normalization is not an embedding")

    def test_bidirectional_layer(self, tmp_path: Path) -> None:
        groups = self.groups()
        groups["bidirectional/forward_layer/cell"] = groups.pop("gru/cell")
        write_h5(tmp_path / "x.weights.h5", groups)
        self.refuses(tmp_path / "x.weights.h5", "forward_layer is not an embedding")

    @pytest.mark.parametrize(
        ("place", "arrays", "complaint"),
        [
            ("gru/cell", [ramp((3, 12), 1), ramp((4, 12), 2), ramp((12,), 3)], "reset_after=False"),
            (
                "gru/cell",
                [ramp((3, 12), 1), ramp((4, 12), 2), ramp((3, 12), 3)],
                "which does not fit gru",
            ),
            ("gru/cell", [ramp((3, 8), 1), ramp((4, 8), 2)], "an LSTM four"),
            ("gru/cell", [ramp((5, 12), 1), ramp((4, 12), 2)], "shapes do not match: 'recurrent.0.weight_ih'"),
            ("embedding", [np.full((6, 3), np.nan, dtype=np.float32)], "not finite"),
            ("dense", [ramp((4, 7), 2), ramp((7,), 3)], "shapes do not match: 'head.weight'"),
            ("dense", [ramp((4, 6, 1), 2), ramp((6,), 3)], "expected a matrix"),
            ("dense_1", [ramp((4, 6), 2), ramp((6,), 3)], "has 2 dense layers"),
            (
                "lstm/cell",
                [ramp((4, 16), 1), ramp((4, 16), 2), ramp((16,), 3)],
                "layers must be the same",
            ),
        ],
    )
    def test_layers_that_do_not_form_a_network(
        self, tmp_path: Path, place: str, arrays: list[npt.NDArray[Any]], complaint: str
    ) -> None:
        groups = self.groups()
        name = {"gru/cell": "gru", "lstm/cell": "lstm_1"}.get(place, place)
        groups[place] = (name, arrays)
        write_h5(tmp_path / "x.weights.h5", groups)
        self.refuses(tmp_path / "x.weights.h5", complaint)

    @pytest.mark.parametrize("name", ["gru/cell", "dense", "embedding"])
    def test_missing_layer(self, tmp_path: Path, name: str) -> None:
        groups = self.groups()
        del groups[name]
        write_h5(tmp_path / "x.weights.h5", groups)
        self.refuses(tmp_path / "x.weights.h5", "has no")

    def test_other_files(self, tmp_path: Path) -> None:
        (tmp_path / "text.h5").write_text("not HDF5")
        self.refuses(tmp_path / "text.h5", "is not a model that can be imported")
        (tmp_path / "empty.h5").write_bytes(b"")
        self.refuses(tmp_path / "empty.h5", "is not a model that can be imported")
        self.refuses(tmp_path, "not a SavedModel and contains no checkpoint")
        self.refuses(tmp_path / "none.h5", "none.h5 does not exist")


def test_missing_biases_are_zeros() -> None:
    layers = [
        KerasLayer("embedding", {"embeddings": ramp((6, 3), 1)}),
        KerasLayer("gru", {"kernel": ramp((3, 12), 2), "recurrent_kernel": ramp((4, 12), 3)}),
        KerasLayer("dense", {"kernel": ramp((4, 6), 4)}),
    ]
    weights = from_keras(layers, "memory")[1]
    assert not any(weights[f"recurrent.0.{name}"].any() for name in ("bias_ih", "bias_hh"))
    assert not weights["head.bias"].any()


class TestRows:
    """The same characters get the same logits, whatever tokens come before them."""

    def model(self, tokens: int) -> ForeignModel:
        config = ModelConfig(units=4, embedding_size=3)
        return ForeignModel(config, ramp_weights(config, tokens), None)

    @pytest.mark.parametrize(
        ("tokens", "rows", "shift"),
        [
            (["a", "b", "c"], 4, 0),
            (["[UNK]", "a", "b", "c"], 4, 0),
            (["a", "b", "c"], 5, 1),
            (["", "[UNK]", "a", "b", "c"], 5, 1),
            (["a", "b", "c"], 3, -1),
        ],
    )
    def test_rows_are_matched(self, tokens: list[str], rows: int, shift: int) -> None:
        model = self.model(rows)
        vocabulary, weights, note = fit_rows(model, tokens, "x.json")
        assert vocabulary.characters == "abc"
        assert (note is None) == (shift == 0)
        before, after = (Engine(model.config, arrays, precision="f32") for arrays in (model.weights, weights))
        old, new = before.zero_state(), after.zero_state()
        for i in vocabulary.encode("cab"):
            was, now = before.step(np.array([i + shift]), old)[0], after.step(np.array([i]), new)[0]
            assert np.array_equal(now[1:], was[1 + shift :])
            assert shift >= 0 or now[0] < now[1:].min() - 5

    @pytest.mark.parametrize(
        ("tokens", "rows", "complaint"),
        [
            (["a", "b", "c"], 6, "6 tokens but x.json has 3 characters, not counting"),
            (["a", "b", "c"], 2, "2 tokens but x.json has 3 characters"),
            (["[UNK]", "a", "b"], 4, "4 tokens but x.json has 3 tokens"),
            (["[UNK]", "a", "b"], 2, "2 tokens but x.json has 3 tokens"),
        ],
    )
    def test_mismatch_names_both_sizes(self, tokens: list[str], rows: int, complaint: str) -> None:
        with pytest.raises(VocabularyError, match=complaint):
            fit_rows(self.model(rows), tokens, "x.json")

    def test_vocabulary_is_used_as_it_is(self) -> None:
        vocabulary, _, note = fit_rows(self.model(257), ByteVocabulary(), "x.json")
        assert isinstance(vocabulary, ByteVocabulary)
        assert note is None
        with pytest.raises(VocabularyError, match=r"256 tokens but x\.json has 257"):
            fit_rows(self.model(256), ByteVocabulary(), "x.json")

    @pytest.mark.parametrize("tokens", [["a", "[UNK]"], ["[UNK]", "", "a"], [""], ["[UNK]", "[UNK]", "a"]])
    def test_special_tokens_must_come_first(self, tokens: list[str]) -> None:
        with pytest.raises(VocabularyError, match="before all characters"):
            fit_rows(self.model(len(tokens)), tokens, "x.json")

    @pytest.mark.parametrize(
        ("text", "complaint"),
        [
            ("{}", "keys format, unit and characters"),
            ('"abc"', "is not a vocabulary"),
            ("[1, 2]", "is not a vocabulary"),
            ('["ab"]', 'the token "ab" is not a single character'),
            ("[", "is not JSON"),
        ],
    )
    def test_files_that_are_not_a_vocabulary(self, tmp_path: Path, text: str, complaint: str) -> None:
        (tmp_path / "tokens.json").write_text(text)
        with pytest.raises(VocabularyError, match=complaint):
            read_vocabulary(tmp_path / "tokens.json")

    def test_vocabulary_file(self, tmp_path: Path) -> None:
        (tmp_path / "tokens.json").write_text('["[UNK]", "\\n", "詩"]', encoding="utf-8")
        assert read_vocabulary(tmp_path / "tokens.json") == ["[UNK]", "\n", "詩"]
