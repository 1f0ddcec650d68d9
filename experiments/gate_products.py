"""Which recurrent products a GRU needs: the trials from which the input-reset GRU was chosen.

    python experiments/gate_products.py --texts plays:900000:0 --passes 3 none,full,full units=392
    python experiments/gate_products.py --texts plays:900000:0 --passes 3 full,full,full units=320

Texts, model and plan are as in held_rates.py, with a learning rate held for 0.4 of the steps and a multiplicative layer
of GRU. A variant names the recurrent weights of the reset gate, the update gate and the candidate:

- `full`: those of every unit to every unit; `none`: no weights, so that the gate reads the input alone.
- `open`, of the reset gate: it is 1.
- `diagonal`: those of each unit to itself.
- `blocksS.A.B...`: units in blocks of S; block j reads the blocks j + A, j + B and so on, modulo their number.
- `sharedK`: K neighboring units have the same weights.

Weights that are left out are zeros in a full matrix, whose initial weights are those of a GRU, and the recurrent bias
of the reset gate stays; the cell `igru` begins with weights larger by a fifth and has no such bias. A trial takes as
long as with all weights. A line for each text is added to gate_products.jsonl.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charwright.config import ModelConfig
from charwright.model.cells import Weights
from charwright.model.language_model import LanguageModel
from held_rates import HeldRate, add_line, parse_trials, parser_of_trials

LEDGER = Path(__file__).with_name("gate_products.jsonl")
HOLD = 0.4
OPEN = 20.0
"""A bias that opens a gate."""
FEWEST = 8
"""Inputs of a unit, at least, by which the initial weights of a sparse gate are scaled."""


def kept_weights(kind: str, units: int) -> Tensor:
    """The weights (H, H) that a gate has: 1 for each of them."""
    kept = torch.zeros(units, units)
    if kind == "full" or kind.startswith("shared"):
        kept[:] = 1
    elif kind == "diagonal":
        kept.fill_diagonal_(1)
    elif kind.startswith("blocks"):
        size, *offsets = map(int, kind.removeprefix("blocks").split("."))
        blocks = units // size
        for block in range(blocks):
            for offset in offsets:
                other = (block + offset) % blocks
                kept[block * size : (block + 1) * size, other * size : (other + 1) * size] = 1
    elif kind not in ("none", "open"):
        raise ValueError(f"there is no kind of gate {kind}")
    return kept


def shared(weights: Tensor, count: int) -> Tensor:
    """The weights (H, H) with `count` neighboring rows of one value, as large as those of a single row."""
    return weights.unflatten(0, (-1, count)).mean(dim=1).mul(count**0.5).repeat_interleave(count, dim=0)


class SparseNet(LanguageModel):
    """The library's model of one layer of GRU, without some recurrent weights."""

    variant: tuple[str, ...] = ()

    def __init__(self, config: ModelConfig, vocabulary_size: int, **rest: Any) -> None:
        """Make the model, with initial weights of sparse gates as large as those of full ones."""
        super().__init__(config, vocabulary_size, **rest)
        gates = [kept_weights(kind, config.units) for kind in self.variant]
        self.kept = torch.cat(gates)
        self.opened = torch.zeros(len(self.kept))
        self.opened[: config.units] = OPEN * (self.variant[0] == "open")
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            parts = self.weight("recurrent.0.weight_hh").chunk(3)
            for part, kept in zip(parts, gates, strict=True):
                if not bool(kept.all()):
                    inputs = kept.sum(dim=1, keepdim=True).clamp(min=FEWEST)
                    part.copy_(torch.randn(kept.shape, generator=generator) * (3 * inputs) ** -0.5 * kept)

    def _layer(self, layer: int) -> Weights:
        weights = super()._layer(layer)
        assert weights.bias_hh is not None
        parts = [
            shared(part, int(kind.removeprefix("shared"))) if kind.startswith("shared") else part
            for part, kind in zip((weights.weight_hh * self.kept).chunk(3), self.variant, strict=True)
        ]
        return weights._replace(weight_hh=torch.cat(parts), bias_hh=weights.bias_hh + self.opened)


def main() -> None:
    """Run a trial for each text, and add its line."""
    parser = parser_of_trials(__doc__)
    parser.add_argument("variant", help="RESET,UPDATE,CANDIDATE")
    asked = parse_trials(parser)
    torch.set_num_threads(1)
    net = type("Net", (SparseNet,), {"variant": tuple(asked.variant.split(","))})
    for text in asked.texts.split(","):
        trial = HeldRate(text, asked.passes, HOLD, 0.0, {"multiplicative": True, **asked.options}, net)
        loss = trial.learn()
        known = {"text": text, "passes": asked.passes, "variant": asked.variant, "options": asked.options}
        add_line(LEDGER, {**known, "steps": trial.steps, "loss": loss})


if __name__ == "__main__":
    main()
