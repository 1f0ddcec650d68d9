"""The plain core: the cells of `cells.py` in a loop over time, the reference for the fast cores."""

from __future__ import annotations

import torch
from torch import Tensor

from charwright.model.cells import CELL_FUNCTIONS, State, Weights


def unroll(cell: str, x: Tensor, state: State, weights: Weights, mask: Tensor | None = None) -> tuple[Tensor, State]:
    """The cell over a whole sequence, step by step: x (T, B, E) -> outputs (T, B, H) and the last state.

    A mask (B, H) on the state inside the recurrent product is equal to one on the columns of the weights, row by row.
    """
    if mask is not None:
        return _unroll_masked(cell, x, state, weights, mask)
    outputs = []
    for x_t in x:
        state = CELL_FUNCTIONS[cell](x_t, state, weights)
        outputs.append(state[0])
    return torch.stack(outputs), state


def _unroll_masked(cell: str, x: Tensor, state: State, weights: Weights, mask: Tensor) -> tuple[Tensor, State]:
    """Each row of the batch separately, with its own masked weights."""
    rows = []
    for b in range(x.shape[1]):
        masked = weights._replace(weight_hh=weights.weight_hh * mask[b])
        rows.append(unroll(cell, x[:, b : b + 1], tuple(part[b : b + 1] for part in state), masked))
    outputs = torch.cat([row[0] for row in rows], dim=1)
    return outputs, tuple(torch.cat(parts) for parts in zip(*(row[1] for row in rows), strict=True))
