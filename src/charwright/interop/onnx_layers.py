"""The recurrent layers of ONNX graphs: the operators GRU, LSTM and RNN, or plain operators for a multiplicative layer.

The recurrent operators multiply U by the state as it is, so a multiplicative layer is a Scan over time, whose body is
the equations of `model/cells.py`. Its inputs and outputs are those of the recurrent operators, and it keeps
charwright's order of gates; that of the operators is ONNX's (`GATE_ORDER`).

T is time, B the batch, E the size of a layer's input, H the number of units, G the number of gates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from charwright.config import GATES, ModelConfig

GATE_ORDER = {"gru": (1, 0, 2), "lstm": (0, 3, 1, 2), "rnn": (0,)}
"""charwright's position (r, z, n and i, f, g, o) of each ONNX gate (z, r, n and i, o, f, g)."""

Array = npt.NDArray[np.float32]


@dataclass
class Graph:
    """A growing list of nodes, with generated names for their outputs."""

    helper: Any
    prefix: str = ""  # of all names, unique to a nested graph
    nodes: list[Any] = field(default_factory=list)

    def add(self, operation: str, inputs: Sequence[str], outputs: int = 1, **attributes: Any) -> Any:
        """Add a node and return the name of its output, or the list of names if there are several."""
        names = [f"{self.prefix}{operation}_{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(self.helper.make_node(operation, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def add_output(self, name: str, operation: str, inputs: Sequence[str], **attributes: Any) -> None:
        """Add a node whose output is the graph output `name`."""
        self.nodes.append(self.helper.make_node(operation, list(inputs), [name], **attributes))


def layer_constants(config: ModelConfig, weights: Mapping[str, Array], layer: int) -> dict[str, Array]:
    """Return the weights of a layer as `add_layer` names them.

    For an operator they are inputs (1, G * H, E), recurrent (1, G * H, H) and biases (1, 2 * G * H). For a
    multiplicative layer, inputs (E, G * H), recurrent (H, G * H), the biases (G * H) of both, scale (E, H) and a one.
    """
    named = {name: weights[f"recurrent.{layer}.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih")}
    second = weights.get(f"recurrent.{layer}.bias_hh", np.zeros_like(named["bias_ih"]))
    if config.multiplicative and layer == 0:
        scale = weights["recurrent.0.weight_mx"]
        return {
            "inputs_0": np.ascontiguousarray(named["weight_ih"].T),
            "recurrent_0": np.ascontiguousarray(named["weight_hh"].T),
            "bias_0": named["bias_ih"],
            "second_bias_0": second,
            "scale_0": np.ascontiguousarray(scale.T),
            "one": np.ones(1, dtype=np.float32),
        }
    biases = np.concatenate([_reorder_gates(config.cell, named["bias_ih"]), _reorder_gates(config.cell, second)])
    return {
        f"inputs_{layer}": _reorder_gates(config.cell, named["weight_ih"])[None],
        f"recurrent_{layer}": _reorder_gates(config.cell, named["weight_hh"])[None],
        f"biases_{layer}": biases[None],
    }


def add_layer(graph: Graph, config: ModelConfig, layer: int, values: str, state: Sequence[str]) -> list[str]:
    """Add a layer: its outputs (T, 1, B, H) for values (T, B, E), and the state after the last.

    The parts of the state, before and after, are (1, B, H): the operators have an axis for the direction.
    """
    if config.multiplicative and layer == 0:
        return _add_scan(graph, config, values, state)
    weights = [f"{name}_{layer}" for name in ("inputs", "recurrent", "biases")]
    attributes: dict[str, Any] = {"hidden_size": config.units}
    if config.cell == "gru":
        attributes["linear_before_reset"] = 1
    inputs = [values, *weights, "", *state]
    found: list[str] = graph.add(config.cell.upper(), inputs, outputs=1 + len(state), **attributes)
    return found


def _add_scan(graph: Graph, config: ModelConfig, values: str, state: Sequence[str]) -> list[str]:
    """Add a multiplicative layer: the products of the inputs for all steps at once, then a loop over time."""
    gates = graph.add("Add", [graph.add("MatMul", [values, "inputs_0"]), "bias_0"])  # (T, B, G * H)
    turned = graph.add("Tanh", [graph.add("MatMul", [values, "scale_0"])])
    scale = graph.add("Add", [turned, "one"])  # (T, B, H)
    body = _scan_body(graph, config, len(state))
    inputs = [*state, gates, scale]
    *after, outputs = graph.add("Scan", inputs, outputs=len(state) + 1, body=body, num_scan_inputs=2)
    return [outputs, *after]


def _scan_body(outer: Graph, config: ModelConfig, parts: int) -> Any:
    """Return one step of a multiplicative layer as a graph: the state after it, and its output."""
    graph = Graph(outer.helper, f"{outer.prefix}time_")

    def value(name: str, *shape: int | str) -> Any:
        kind = graph.helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        return graph.helper.make_tensor_value_info(f"{graph.prefix}{name}", int(kind), shape)

    wide, units = GATES[config.cell] * config.units, config.units
    before = [value(f"before_{part}", 1, "B", units) for part in range(parts)]
    inputs = [*before, value("gates", "B", wide), value("scale", "B", units)]
    *state, gates, scale = [given.name for given in inputs]
    scaled = graph.add("Mul", [scale, state[0]])  # (1, B, H)
    product = graph.add("Add", [graph.add("MatMul", [scaled, "recurrent_0"]), "second_bias_0"])
    after = {"gru": _gru, "lstm": _lstm, "rnn": _rnn}[config.cell](graph, gates, product, state)
    outputs = [*(value(f"after_{part}", 1, "B", units) for part in range(parts)), value("output", 1, "B", units)]
    for made, name in zip(outputs, [*after, after[0]], strict=True):
        graph.add_output(made.name, "Identity", [name])
    return graph.helper.make_graph(graph.nodes, "time", inputs, outputs)


def _gru(graph: Graph, gates: str, product: str, state: Sequence[str]) -> list[str]:
    """Add a GRU step: gates in the order r, z, n; z * h + (1 - z) * n is n + z * (h - n)."""
    x_r, x_z, x_n = graph.add("Split", [gates], outputs=3, axis=-1)
    h_r, h_z, h_n = graph.add("Split", [product], outputs=3, axis=-1)
    r, z = (graph.add("Sigmoid", [graph.add("Add", pair)]) for pair in ([x_r, h_r], [x_z, h_z]))
    n = graph.add("Tanh", [graph.add("Add", [x_n, graph.add("Mul", [r, h_n])])])
    return [graph.add("Add", [n, graph.add("Mul", [z, graph.add("Sub", [state[0], n])])])]


def _lstm(graph: Graph, gates: str, product: str, state: Sequence[str]) -> list[str]:
    """Add an LSTM step: gates in the order i, f, g, o."""
    i, f, g, o = graph.add("Split", [graph.add("Add", [gates, product])], outputs=4, axis=-1)
    i, f, o = (graph.add("Sigmoid", [gate]) for gate in (i, f, o))
    new = graph.add("Mul", [i, graph.add("Tanh", [g])])
    c = graph.add("Add", [graph.add("Mul", [f, state[1]]), new])
    return [graph.add("Mul", [o, graph.add("Tanh", [c])]), c]


def _rnn(graph: Graph, gates: str, product: str, _: Sequence[str]) -> list[str]:
    """Add a step of a plain recurrent network."""
    return [graph.add("Tanh", [graph.add("Add", [gates, product])])]


def _reorder_gates(cell: str, rows: Array) -> Array:
    """Reorder the gates of rows (G * H, ...) from charwright's order to ONNX's."""
    blocks = rows.reshape(GATES[cell], -1, *rows.shape[1:])
    return np.ascontiguousarray(blocks[list(GATE_ORDER[cell])]).reshape(rows.shape)
