"""`--to onnx`: two graphs that contain the weights.

    step.onnx       ids (B, T) int64, state (L, S, B, H) -> logits (B, T, V), next_state (L, S, B, H)
    generate.onnx   prompt (B, T) int64, temperature (), uniform (B, N) -> ids (B, N) int64

B, T and N are dynamic. The generator includes the loop, the mask of [UNK] and labels, and sampling, so that one call
generates text; everything except ids is float32. A temperature of 0 takes the most likely token. S is 2 for an LSTM
(h and c), else 1.

The step graph of a model with n-grams also has the input context (B, K) and the output next_context (B, K), int64: the
last K tokens that were read, the most recent first, each 1 + its id, and 0 where there is none. K is the order of the
n-grams less one.

The graphs are built node by node, because one attribute is easy to get wrong: a GRU that applies the reset gate after
the recurrent product, as charwright, Keras and cuDNN do, has `linear_before_reset=1`. Both graphs are run and compared
with the model before anything is written. The layers are those of `onnx_layers.py`; those of an input-reset GRU are the
equal GRU.

V is the vocabulary size, E the embedding size, H the number of units, L the number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import STATES, ModelConfig
from charwright.errors import ForeignModelError, MissingExtraError
from charwright.generation.layout import as_gru
from charwright.interop.model_card import as_json
from charwright.interop.onnx_check import GREEDY_TEMPERATURE, check_graphs, mask_of
from charwright.interop.onnx_layers import Graph, add_layer, layer_constants
from charwright.ngrams import MULTIPLIERS
from charwright.run import Run

OPSET = 17
IR_VERSION = 8
MAX_BYTES = (1 << 31) - 1  # of a graph that contains its weights

Array = npt.NDArray[np.float32]


def onnx_graphs(run: Run, card: Mapping[str, Any]) -> dict[str, bytes]:
    """Return the two files by name, after checking both against the model.

    Raises:
        ForeignModelError: when a graph differs from the model, or is larger than the format allows.
        MissingExtraError: when onnx or onnxruntime is not installed.
    """
    weights = run.weights()
    network = _Network(run.model, weights, len(run.vocabulary.labels))
    metadata = {
        "vocabulary": as_json(run.vocabulary.tokens),
        "unit": run.vocabulary.level,
        "card": as_json(card),
    }
    files = {"step.onnx": network.step(metadata), "generate.onnx": network.generate(metadata)}
    check_graphs(files, run.model, weights, labels=len(run.vocabulary.labels))
    return files


class _Network:
    """Builder of the graphs of one model."""

    def __init__(self, config: ModelConfig, weights: Mapping[str, Array], labels: int = 0) -> None:
        try:
            import onnx
        except ImportError as error:
            raise MissingExtraError("exporting to ONNX", "onnx") from error
        config, weights = as_gru(config, weights)
        self.onnx, self.helper, self.config = onnx, onnx.helper, config
        self.tokens, self.labels = len(weights["head.bias"]), labels
        self.constants: dict[str, npt.NDArray[Any]] = {"embedding": weights["embedding.weight"]}
        for layer in range(config.layers):
            self.constants |= layer_constants(config, weights, layer)
        head = weights["embedding.weight" if config.tied else "head.weight"]
        self.constants["head"], self.constants["head_bias"] = np.ascontiguousarray(head.T), weights["head.bias"]
        for number in range(-1, max(2, config.layers)):
            self.constants[f"number_{number}"] = np.array([number], dtype=np.int64)
        if config.ngram_bits:
            self.constants |= _ngram_constants(config, weights)

    def step(self, metadata: Mapping[str, str]) -> bytes:
        """Return the step graph: logits at each position, and the state after the last."""
        graph = Graph(self.helper)
        by_time = graph.add("Transpose", ["ids"], perm=[1, 0])
        logits, *after = self._steps(graph, by_time, *self._carried)  # (T, B, V)
        graph.add_output("logits", "Transpose", [logits], perm=[1, 0, 2])
        for name, value in zip(self._carried, after, strict=True):
            graph.add_output(f"next_{name}", "Identity", [value])
        inputs = [self._value("ids", np.int64, "B", "T"), *self._states("{}")]
        outputs = [self._value("logits", np.float32, "B", "T", self.tokens), *self._states("next_{}")]
        return self._model("step", graph, inputs, outputs, metadata)

    def generate(self, metadata: Mapping[str, str]) -> bytes:
        """Return the generator graph: read a prompt, then sample one id per column of random numbers."""
        graph = Graph(self.helper)
        batch = graph.add("Gather", [graph.add("Shape", ["prompt"]), "number_0"])
        units = [self.config.layers, STATES[self.config.cell], self.config.units]
        self.constants["layers_and_states"] = np.array(units[:2], dtype=np.int64)
        self.constants["units"] = np.array(units[2:], dtype=np.int64)
        self.constants["hidden"] = mask_of(self.tokens, self.labels)
        self.constants["places"] = np.arange(self.tokens, dtype=np.int64)
        self.constants["coldest"] = np.array(GREEDY_TEMPERATURE, dtype=np.float32)
        self.constants["zero"] = np.array(0, dtype=np.float32)
        self.constants["one"] = np.array(1, dtype=np.float32)
        shape = graph.add("Concat", ["layers_and_states", batch, "units"], axis=0)
        zeros = [graph.add("ConstantOfShape", [shape])]
        if self.config.ngram_bits:
            zeros.append(self._no_context(graph, batch))
        by_time = graph.add("Transpose", ["prompt"], perm=[1, 0])
        logits, *states = self._steps(graph, by_time, *zeros)
        last = graph.add("Squeeze", [graph.add("Gather", [logits, "number_-1"], axis=0), "number_0"])  # (B, V)
        # NaN, negative, or so small that dividing by it would overflow: greedy.
        greedy = graph.add("Not", [graph.add("Greater", ["temperature", "coldest"])])
        divisor = graph.add("Where", [greedy, "one", "temperature"])
        count = graph.add("Squeeze", [graph.add("Gather", [graph.add("Shape", ["uniform"]), "number_1"]), "number_0"])
        body = self._loop_body(greedy, divisor)
        *_, drawn = graph.add("Loop", [count, "", last, *states], outputs=2 + len(states), body=body)  # (N, B)
        graph.add_output("ids", "Transpose", [drawn], perm=[1, 0])
        inputs = [
            self._value("prompt", np.int64, "B", "T"),
            self._value("temperature", np.float32),
            self._value("uniform", np.float32, "B", "N"),
        ]
        return self._model("generate", graph, inputs, [self._value("ids", np.int64, "B", "N")], metadata)

    def _steps(self, graph: Graph, ids: str, state: str, context: str = "") -> tuple[str, ...]:
        """Add the network: logits (T, B, V) for ids (T, B) from a state (L, S, B, H), and the state after the last.

        With n-grams a context (B, K) comes in and one goes out too.
        """
        config = self.config
        values = graph.add("Gather", ["embedding", ids])  # (T, B, E)
        states = []
        for layer in range(config.layers):
            before = graph.add("Gather", [state, f"number_{layer}"], axis=0)  # (1, S, B, H)
            before = graph.add("Squeeze", [before, "number_0"])
            parts = [graph.add("Gather", [before, f"number_{part}"], axis=0) for part in range(STATES[config.cell])]
            found = add_layer(graph, config, layer, values, parts)
            values = graph.add("Squeeze", [found[0], "number_1"])  # (T, B, H)
            states.append(graph.add("Unsqueeze", [graph.add("Concat", found[1:], axis=0), "number_0"]))
        product = graph.add("MatMul", [values, "head"])
        logits, after = graph.add("Add", [product, "head_bias"]), graph.add("Concat", states, axis=0)
        return (logits, after) if not context else self._with_ngrams(graph, ids, logits, after, context)

    def _with_ngrams(self, graph: Graph, ids: str, logits: str, after: str, context: str) -> tuple[str, str, str]:
        """Add the n-grams to logits (T, B, V), and the context after the last id."""
        earlier = graph.add("Transpose", [graph.add("Gather", [context, "recent_first"], axis=1)], perm=[1, 0])
        marks = graph.add("Concat", [earlier, graph.add("Add", [ids, "number_1"])], axis=0)  # (K + T, B)
        # c_0 to c_K of each step: the same marks, from later on and from earlier on.
        order = self.config.ngram_order
        shifted = [graph.add("Slice", [marks, f"begin_{back}", f"end_{back}", "number_0"]) for back in range(order)]
        shifted = [graph.add("Unsqueeze", [part, "number_-1"]) for part in shifted]
        last = graph.add("Concat", shifted, axis=2)  # (T, B, K + 1)
        for n in range(2, order + 1):
            sums = graph.add("ReduceSum", [graph.add("Mul", [last, f"multipliers_{n}"]), "number_-1"], keepdims=1)
            offsets = graph.add("Div", [graph.add("Mod", [sums, "hashes"]), "per_offset"])  # (T, B, 1)
            complete = graph.add("Greater", [shifted[n - 1], "number_0"])
            offsets = graph.add("Where", [complete, offsets, "last_offset"])
            votes = graph.add("Gather", ["ngrams", graph.add("Add", [offsets, "places"])], axis=0)
            logits = graph.add("Add", [logits, votes])
        recent = graph.add("Gather", [marks, "last_ones"], axis=0)
        return logits, after, graph.add("Transpose", [recent], perm=[1, 0])

    def _no_context(self, graph: Graph, batch: str) -> str:
        """Add the context (B, K) before the first id."""
        shape = graph.add("Concat", [batch, "width"], axis=0)
        nothing = self.onnx.numpy_helper.from_array(np.zeros(1, dtype=np.int64))
        zeros: str = graph.add("ConstantOfShape", [shape], value=nothing)
        return zeros

    @property
    def _carried(self) -> tuple[str, ...]:
        """What is carried from step to step."""
        return ("state", "context") if self.config.ngram_bits else ("state",)

    def _loop_body(self, greedy: str, divisor: str) -> Any:
        """Return one loop iteration: sample an id from the logits, then feed it to the network."""
        graph = Graph(self.helper, "turn_")
        drawn = self._sample(graph, greedy, divisor)  # (B)
        before = [f"{name}_before" for name in self._carried]
        logits, *after = self._steps(graph, graph.add("Unsqueeze", [drawn, "number_0"]), *before)
        graph.add_output("going_on", "Identity", ["going"])
        graph.add_output("logits_after", "Squeeze", [logits, "number_0"])
        for name, value in zip(self._carried, after, strict=True):
            graph.add_output(f"{name}_after", "Identity", [value])
        graph.add_output("drawn", "Identity", [drawn])
        inputs = [
            self._value("turn", np.int64),
            self._value("going", np.bool_),
            self._value("logits_before", np.float32, "B", self.tokens),
            *self._states("{}_before"),
        ]
        outputs = [
            self._value("going_on", np.bool_),
            self._value("logits_after", np.float32, "B", self.tokens),
            *self._states("{}_after"),
            self._value("drawn", np.int64, "B"),
        ]
        return self.helper.make_graph(graph.nodes, "turn", inputs, outputs)

    def _sample(self, graph: Graph, greedy: str, divisor: str) -> str:
        """Sample ids (B): the first whose cumulative probability exceeds the random number, with [UNK] masked."""
        scores = graph.add("Add", ["logits_before", "hidden"])
        most_likely = graph.add("ArgMax", [scores], axis=1, keepdims=0)
        divided = graph.add("Div", ["logits_before", divisor])
        probabilities = graph.add("Softmax", [graph.add("Add", [divided, "hidden"])], axis=1)
        sums = graph.add("CumSum", [probabilities, "number_1"])  # (B, V)
        number = graph.add("Unsqueeze", [graph.add("Gather", ["uniform", "turn"], axis=1), "number_1"])  # (B, 1)
        total = graph.add("Gather", [sums, "number_-1"], axis=1)
        passed = graph.add("Greater", [sums, graph.add("Mul", [number, total])])
        # If rounding leaves no sum above the number, take the last id with a nonzero probability.
        first = graph.add("ArgMax", [graph.add("Cast", [passed], to=self._kind(np.float32))], axis=1, keepdims=0)
        possible = graph.add("Greater", [probabilities, "zero"])
        places = graph.add("Where", [possible, "places", "number_0"])
        last = graph.add("ReduceMax", [places], axes=[1], keepdims=0)
        any_passed = graph.add(
            "ReduceMax", [graph.add("Cast", [passed], to=self._kind(np.int64))], axes=[1], keepdims=0
        )
        found = graph.add("Where", [graph.add("Cast", [any_passed], to=self._kind(np.bool_)), first, last])
        drawn: str = graph.add("Where", [greedy, most_likely, found])
        return drawn

    def _states(self, pattern: str) -> list[Any]:
        """Return what is carried, as inputs or outputs; `pattern` makes the names."""
        config = self.config
        state = self._value(pattern.format("state"), np.float32, config.layers, STATES[config.cell], "B", config.units)
        context = self._value(pattern.format("context"), np.int64, "B", config.ngram_order - 1)
        return [state, context][: len(self._carried)]

    def _value(self, name: str, kind: type, *shape: int | str) -> Any:
        return self.helper.make_tensor_value_info(name, self._kind(kind), shape)

    def _kind(self, kind: type) -> int:
        return int(self.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def _model(
        self, name: str, graph: Graph, inputs: list[Any], outputs: list[Any], metadata: Mapping[str, str]
    ) -> bytes:
        used = {name for node in graph.nodes for name in _names_in(node)}
        constants = [
            self.onnx.numpy_helper.from_array(array, name) for name, array in self.constants.items() if name in used
        ]
        if sum(array.nbytes for array in self.constants.values()) > MAX_BYTES:
            raise ForeignModelError("the model is too large for an ONNX file, which is limited to 2 GiB")
        made = self.helper.make_graph(graph.nodes, f"charwright_{name}", inputs, outputs, constants)
        model = self.helper.make_model(
            made,
            opset_imports=[self.helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="charwright",
        )
        self.helper.set_model_props(model, dict(metadata))
        self.onnx.checker.check_model(model, full_check=True)
        data: bytes = model.SerializeToString()
        return data


def _names_in(node: Any) -> list[str]:
    """Return the input names of a node and of the graphs nested in it."""
    inner = [name for attribute in node.attribute for held in attribute.g.node for name in _names_in(held)]
    return [*node.input, *inner]


def _ngram_constants(config: ModelConfig, weights: Mapping[str, Array]) -> dict[str, npt.NDArray[Any]]:
    """Return the array of the n-grams, and the numbers that make its offsets."""
    order, before = config.ngram_order, config.ngram_order - 1
    numbers: dict[str, Any] = {
        f"multipliers_{len(row)}": [*row, *[0] * (order - len(row))] for row in MULTIPLIERS[:before]
    }
    for back in range(order):
        numbers |= {f"begin_{back}": [before - back], f"end_{back}": [-back or np.iinfo(np.int64).max]}
    numbers |= {"hashes": [1 << 32], "per_offset": [1 << (32 - config.ngram_bits)], "width": [before]}
    numbers["last_offset"] = [1 << config.ngram_bits]  # of contexts that begin before the text
    numbers |= {"recent_first": range(before - 1, -1, -1), "last_ones": range(-1, -before - 1, -1)}
    numbers["places"] = range(len(weights["head.bias"]))
    made = {name: np.array(values, dtype=np.int64) for name, values in numbers.items()}
    return {"ngrams": weights["ngrams.weight"], **made}
