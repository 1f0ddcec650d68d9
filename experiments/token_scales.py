"""What a token may scale inside the layer: the variants from which the multiplicative layer was chosen.

    python experiments/token_scales.py --texts plays:900000:0,docs:1000000:1000000 --passes 3 proj
    python experiments/token_scales.py --texts plays:900000:0 --passes 3 proj+out embedding_size=256

Texts, model and plan are as in held_rates.py, with a learning rate held for 0.4 of the steps. E is the embedding, and
every matrix begins at zero, so that all scales begin at 1. Variants, some joined by +:

- `none`: the layer is not multiplicative.
- `proj`: 1 + E P of the token scales the state inside the recurrent product.
- `tanh`, with `proj`: 1 + tanh(E P), which is the library's layer; `tanh2`, `tanh4`: 1 + c tanh(E P / c), with c 2 or
  4; `sigmoid`: 2 sigmoid(E P).
- `table`: 1 + a row of its own per token; `exp`: the exponential of that row.
- `spared`: without weight decay on P or the table.
- `prev`: the token before adds a projection of its own to the scale; `gprev`: and to the inputs of the gates.
- `mi`: 1 + E M scales the products of the gates too (multiplicative integration, Wu et al., 2016).
- `out`: 1 + E Q of the token scales what the output layer reads.
- `gate`: 2 sigmoid(Q h) of the state scales the embedding that the gates read, as in a round of Mogrifier gates (Melis
  et al., 2020).

A line for each text is added to token_scales.jsonl. Trials of sweep.py and small_schedules.py with a layer as in `proj`
are in unbounded_scales.jsonl.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.config import ModelConfig
from charwright.model.cells import State
from charwright.model.dropout import Dropout
from charwright.model.fused import fused_layer
from charwright.model.language_model import LanguageModel
from charwright.model.recurrent import linear
from held_rates import HeldRate, add_line, parse_trials, parser_of_trials

LEDGER = Path(__file__).with_name("token_scales.jsonl")
HOLD = 0.4
VARIANTS = (
    "none",
    "proj",
    "tanh",
    "tanh2",
    "tanh4",
    "sigmoid",
    "table",
    "exp",
    "spared",
    "prev",
    "gprev",
    "mi",
    "out",
    "gate",
)


class ScaledConfig(ModelConfig):
    """A shape with the weights of some variants."""

    variants: frozenset[str] = frozenset()

    def weight_shapes(self, vocabulary_size: int) -> dict[str, tuple[int, ...]]:
        """As in the library, and the matrices of the variants."""
        units, size = self.units, self.embedding_size
        shapes = {
            "proj": {"scale.proj": (units, size)},
            "table": {"scale.table": (vocabulary_size, units)},
            "exp": {"scale.table": (vocabulary_size, units)},
            "prev": {"scale.prev": (units, size)},
            "gprev": {"scale.prev": (units, size), "scale.gprev": (3 * units, size)},
            "mi": {"scale.mi": (3 * units, size)},
            "out": {"scale.out": (units, size)},
            "gate": {"scale.gate": (size, units)},
        }
        added = {name: shape for variant in sorted(self.variants) for name, shape in shapes.get(variant, {}).items()}
        return super().weight_shapes(vocabulary_size) | added


class ScaledNet(LanguageModel):
    """The library's model of one layer of GRU, with scales by token."""

    config: ScaledConfig
    before: Tensor | None = None
    """The last token of each row of the batch before."""

    def _layers(self, ids: Tensor, state: State | None, dropout: Dropout | None) -> tuple[Tensor, Tensor | None, State]:
        variants, weights = self.config.variants, self._layer(0)
        h = (self.zero_state(ids.shape[1]) if state is None else state)[0][0]
        embedding = self.weight("embedding.weight")
        mask = dropout.state_mask(h) if dropout is not None else None
        gates = F.embedding(ids, linear(embedding, weights.weight_ih, weights.bias_ih, torch.float32))
        scale = F.embedding(ids, self._scales(embedding))
        if variants & {"prev", "gprev"}:
            previous = self._previous(ids)
            scale = scale + F.embedding(previous, embedding @ self.weight("scale.prev").T)
            if "gprev" in variants:
                gates = gates + F.embedding(previous, embedding @ self.weight("scale.gprev").T)
        if "mi" in variants:
            x = self._integrated(gates, scale if mask is None else scale * mask, h, ids, embedding)
        elif "gate" in variants:
            x = self._gated(F.embedding(ids, embedding), scale if mask is None else scale * mask, h, mask)
        else:
            x, _ = fused_layer("gru", gates, scale, (h,), weights, torch.float32, mask)
        after = (x[-1][None],)
        if "out" in variants:
            x = x * F.embedding(ids, 1 + embedding @ self.weight("scale.out").T)
        return x, (None if dropout is None else dropout.output_mask(x)), after

    def _scales(self, embedding: Tensor) -> Tensor:
        """The scale of each token (V, H)."""
        if "proj" in self.config.variants:
            return self._bounded(embedding @ self.weight("scale.proj").T)
        table = self.weight("scale.table")
        return torch.exp(table) if "exp" in self.config.variants else 1 + table

    def _bounded(self, x: Tensor) -> Tensor:
        variants = self.config.variants
        if "sigmoid" in variants:
            return 2 * torch.sigmoid(x)
        for name, bound in (("tanh", 1), ("tanh2", 2), ("tanh4", 4)):
            if name in variants:
                return 1 + bound * torch.tanh(x / bound)
        return 1 + x

    def _previous(self, ids: Tensor) -> Tensor:
        """The token before each position; before the first batch it is the token itself."""
        known = self.before is not None and self.before.shape[1] == ids.shape[1]
        first = self.before if self.before is not None and known else ids[:1]
        self.before = ids[-1:]
        return torch.cat([first, ids[:-1]])

    def _integrated(self, gates: Tensor, scale: Tensor, h: Tensor, ids: Tensor, embedding: Tensor) -> Tensor:
        """The layer step by step, with scaled products."""
        weights, outputs = self._layer(0), []
        assert weights.bias_hh is not None
        by_gate = F.embedding(ids, 1 + embedding @ self.weight("scale.mi").T)
        for t in range(len(ids)):
            product = ((h * scale[t]) @ weights.weight_hh.T) * by_gate[t] + weights.bias_hh
            h = stepped(h, gates[t], product)
            outputs.append(h)
        return torch.stack(outputs)

    def _gated(self, x: Tensor, scale: Tensor, h: Tensor, mask: Tensor | None) -> Tensor:
        """The layer step by step, over inputs (T, B, E) that the state gates."""
        weights, outputs = self._layer(0), []
        for t in range(len(x)):
            gate = 2 * torch.sigmoid((h if mask is None else h * mask) @ self.weight("scale.gate").T)
            h = stepped(h, F.linear(x[t] * gate, weights.weight_ih, weights.bias_ih), self._product(h * scale[t]))
            outputs.append(h)
        return torch.stack(outputs)

    def _product(self, h: Tensor) -> Tensor:
        """The recurrent product (B, 3H)."""
        weights = self._layer(0)
        return F.linear(h, weights.weight_hh, weights.bias_hh)


def stepped(h: Tensor, gates: Tensor, product: Tensor) -> Tensor:
    """The state (B, H) after a step of a GRU, from what the input and the state give to the gates (B, 3H)."""
    units = h.shape[1]
    r, z = torch.sigmoid(gates[:, : 2 * units] + product[:, : 2 * units]).chunk(2, dim=1)
    n = torch.tanh(gates[:, 2 * units :] + r * product[:, 2 * units :])
    return n + z * (h - n)


def scaled_net(variants: frozenset[str]) -> type[LanguageModel]:
    """The class of a model with some variants."""

    class Net(ScaledNet):
        def __init__(self, config: ModelConfig, vocabulary_size: int, **rest: Any) -> None:
            shape = ScaledConfig(**{item.name: getattr(config, item.name) for item in dataclasses.fields(config)})
            object.__setattr__(shape, "variants", variants)
            super().__init__(shape, vocabulary_size, **rest)

    return Net


def spare_scales(trial: HeldRate) -> None:
    """Move the scales' weights to the parameters that do not decay."""
    decayed, spared = trial.optimizer.param_groups
    named = trial.model.named_weights()
    kept = [named[name] for name in ("scale.proj", "scale.table") if name in named]
    decayed["params"] = [each for each in decayed["params"] if all(each is not one for one in kept)]
    spared["params"].extend(kept)


def main() -> None:
    """Run a trial for each text, and add its line."""
    parser = parser_of_trials(__doc__)
    parser.add_argument("variant", help="of the layer, or several joined by +")
    asked = parse_trials(parser)
    variants = frozenset(asked.variant.split("+"))
    if unknown := variants - set(VARIANTS):
        parser.error(f"there is no variant {min(unknown)}; there are {', '.join(VARIANTS)}")
    if "gate" in variants and variants & {"prev", "gprev", "mi"}:
        parser.error("gate does not go with prev, gprev or mi")
    torch.set_num_threads(1)
    for text in asked.texts.split(","):
        net = LanguageModel if variants == {"none"} else scaled_net(variants)
        trial = HeldRate(text, asked.passes, HOLD, 0.0, asked.options, net)
        if "spared" in variants:
            spare_scales(trial)
        loss = trial.learn()
        known = {"text": text, "passes": asked.passes, "variant": asked.variant, "options": asked.options}
        add_line(LEDGER, {**known, "steps": trial.steps, "loss": loss})


if __name__ == "__main__":
    main()
