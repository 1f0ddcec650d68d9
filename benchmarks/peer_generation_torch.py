"""PyTorch's side of `generation.py`: PyTorch's own layers, one step at a time, in float32.

PyTorch offers two implementations, nn.GRU on sequences of one character and nn.GRUCell (nn.LSTM and nn.LSTMCell); the
faster one is measured. The ids become text once, at the end, not at each step.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peer_generation import Model, run_peer

TRIALS = 5


class Layers(nn.Module):
    """nn.Embedding, nn.GRU or nn.LSTM, nn.Linear: ids (T, B) -> logits (B, V) after the last, and the state."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        kind = {"gru": nn.GRU, "lstm": nn.LSTM}[model.cell]
        self.embedding = nn.Embedding(len(model.tokens), model.embedding)
        self.recurrent = kind(model.embedding, model.units, model.layers)
        self.head = nn.Linear(model.units, len(model.tokens))
        state = {f"recurrent.{name}_l{layer}": tensor for (layer, name), tensor in _recurrent(model).items()}
        self.load_state_dict(_outer(model) | state)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step or several."""
        outputs, state = self.recurrent(self.embedding(ids), state)
        return self.head(outputs[-1]), state


class Cells(nn.Module):
    """The same with nn.GRUCell or nn.LSTMCell."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        kind = {"gru": nn.GRUCell, "lstm": nn.LSTMCell}[model.cell]
        widths = [model.embedding] + [model.units] * (model.layers - 1)
        self.embedding = nn.Embedding(len(model.tokens), model.embedding)
        self.cells = nn.ModuleList(kind(width, model.units) for width in widths)
        self.head = nn.Linear(model.units, len(model.tokens))
        state = {f"cells.{layer}.{name}": tensor for (layer, name), tensor in _recurrent(model).items()}
        self.load_state_dict(_outer(model) | state)

    def forward(self, ids: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """One step or several."""
        state = state or [None] * len(self.cells)
        for x in self.embedding(ids):
            for layer, cell in enumerate(self.cells):
                state[layer] = cell(x, state[layer])
                x = state[layer] if isinstance(state[layer], Tensor) else state[layer][0]  # noqa: PLW2901
        return self.head(x), state


def _outer(model: Model) -> dict[str, Tensor]:
    """The weights outside the recurrent layers, which have the same names here."""
    return {name: torch.from_numpy(a) for name, a in model.weights.items() if not name.startswith("recurrent.")}


def _recurrent(model: Model) -> dict[tuple[str, str], Tensor]:
    """The recurrent weights by layer and name. The gates are in PyTorch's order; an LSTM has a second bias here."""
    found = {}
    for name, array in model.weights.items():
        if name.startswith("recurrent."):
            _, layer, part = name.split(".")
            found[layer, part] = torch.from_numpy(array)
            if part == "bias_ih":
                found.setdefault((layer, "bias_hh"), torch.zeros(len(array)))
    return found


class TorchWriter:
    """Embedding, recurrent layers, head, softmax, multinomial."""

    def __init__(self, model: Model) -> None:
        torch.manual_seed(model.seed)
        self.model = model
        self.prompt = torch.tensor([model.tokens.index(character) for character in model.prompt])[:, None]
        self.cells = Cells(model)
        self.fastest: dict[int, nn.Module] = {}  # by the number of streams

    def _ways(self) -> dict[str, nn.Module]:
        name = {"gru": "nn.GRU", "lstm": "nn.LSTM"}[self.model.cell]
        return {name: Layers(self.model), name + "Cell": self.cells}

    def prepare(self, streams: int) -> str:
        """Time both implementations briefly, and keep the faster one."""
        ways = self._ways()
        found = dict.fromkeys(ways, float("inf"))
        for _ in range(TRIALS):
            for name, network in ways.items():
                self.fastest[streams] = network
                list(self.pieces(streams, 5))
                began = time.perf_counter()
                list(self.pieces(streams, 50))
                found[name] = min(found[name], time.perf_counter() - began)
        fastest = min(found, key=found.__getitem__)
        self.fastest[streams] = ways[fastest]
        return fastest

    def pieces(self, streams: int, length: int) -> Iterator[Tensor]:
        """Ids (B, 1) of each step."""
        network = self.fastest.get(streams, self.cells)
        ids, state = self.prompt.expand(-1, streams), None
        for _ in range(length):
            logits, state = network(ids, state)
            logits[:, 0] = -torch.inf
            drawn = torch.multinomial(torch.softmax(logits / self.model.temperature, dim=-1), 1)
            yield drawn
            ids = drawn.T

    def join(self, pieces: list[Tensor]) -> list[str]:
        """Convert all ids to text at once."""
        return ["".join([self.model.tokens[i] for i in row]) for row in torch.cat(pieces, dim=1).tolist()]

    def show(self, piece: Tensor) -> str:
        """The character of an id."""
        return self.model.tokens[piece.item()]

    def logits(self, ids: list[int]) -> dict[str, np.ndarray]:
        """Logits of both implementations."""
        found = {}
        for name, network in self._ways().items():
            rows, state = [], None
            for i in ids:
                row, state = network(torch.tensor([[i]]), state)
                rows.append(row[0].numpy())
            found[name] = np.stack(rows)
        return found


if __name__ == "__main__":
    with torch.inference_mode():
        run_peer(TorchWriter, torch.__version__, torch.get_num_threads())
