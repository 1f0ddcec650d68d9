"""The equations of the recurrent cells, one time step each.

This is the reference implementation: written for reading, tested against PyTorch's layers, and the standard for every
fast core. B is the batch size, E the input size, H the number of units. The weights of the gates are stacked: r, z, n
for the GRU; i, f, g, o for the LSTM. P gates read the state too: all, but r of an input-reset GRU.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
"""(h,) for GRU and RNN, (h, c) for LSTM; a model with n-grams adds the last tokens."""


class Weights(NamedTuple):
    """The weights of one layer with G gates; only the GRUs have a second bias."""

    weight_ih: Tensor  # (G * H, E): input to gates
    weight_hh: Tensor  # (P * H, H): hidden state to gates
    bias_ih: Tensor  # (G * H,)
    bias_hh: Tensor | None = None  # (P * H,): added to weight_hh h; r multiplies the candidate's part
    weight_mx: Tensor | None = None  # P (H, E): input to the scale of the state, in a multiplicative layer


def scaled_state(x: Tensor, h: Tensor, weights: Weights) -> Tensor:
    """What U multiplies: h, and in a multiplicative layer (1 + tanh(P x)) * h, so that each input has its own product.

    The factored weights of Sutskever, Martens & Hinton (2011, *Generating text with recurrent neural networks*) and of
    Krause et al. (2016, arXiv:1609.07959), with the identity as the matrix before the scale. x: (B, E); h: (B, H).
    """
    return h if weights.weight_mx is None else (1 + torch.tanh(x @ weights.weight_mx.T)) * h


def gru_cell(x: Tensor, state: State, weights: Weights) -> State:
    """One step of the gated recurrent unit, reset after the product (Cho et al., 2014, arXiv:1406.1078; the variant
    of cuDNN, PyTorch and Keras's `reset_after=True`).

        r  = sigmoid(W_r x + b_r + U_r h + c_r)
        z  = sigmoid(W_z x + b_z + U_z h + c_z)
        n  = tanh(W_n x + b_n + r * (U_n h + c_n))
        h' = z * h + (1 - z) * n

    In a multiplicative layer the h of U h is the scaled state, here and below.

    x: (B, E); state: (h (B, H),); returns (h' (B, H),).
    """
    (h,) = state
    bias_hh = weights.bias_hh if weights.bias_hh is not None else torch.zeros_like(weights.bias_ih)
    x_r, x_z, x_n = (x @ weights.weight_ih.T + weights.bias_ih).chunk(3, dim=1)
    h_r, h_z, h_n = (scaled_state(x, h, weights) @ weights.weight_hh.T + bias_hh).chunk(3, dim=1)
    r = torch.sigmoid(x_r + h_r)
    z = torch.sigmoid(x_z + h_z)
    n = torch.tanh(x_n + r * h_n)
    return (z * h + (1 - z) * n,)


def as_gru(weights: Weights) -> Weights:
    """The weights of a GRU that computes the same as an input-reset GRU: those from the state to r are zeros."""
    zeros, bias = weights.weight_hh.new_zeros(weights.weight_hh.shape[1:] * 2), weights.bias_hh
    whole = torch.cat([zeros, weights.weight_hh])
    return weights._replace(weight_hh=whole, bias_hh=None if bias is None else torch.cat([zeros[0], bias]))


def igru_cell(x: Tensor, state: State, weights: Weights) -> State:
    """One step of a GRU whose reset gate reads the input alone, r = sigmoid(W_r x + b_r), and as `gru_cell` otherwise.

    It saves a third of the recurrent products. docs/explanation/input-reset.md has the losses of both.
    """
    return gru_cell(x, state, as_gru(weights))


def lstm_cell(x: Tensor, state: State, weights: Weights) -> State:
    """One step of long short-term memory (Hochreiter & Schmidhuber, 1997; with Gers's forget gate, 2000).

        i, f, o = sigmoid(W x + b + U h), each with its own rows
        g  = tanh(W_g x + b_g + U_g h)
        c' = f * c + i * g
        h' = o * tanh(c')

    x: (B, E); state: (h (B, H), c (B, H)); returns (h', c').
    """
    h, c = state
    gates = x @ weights.weight_ih.T + weights.bias_ih + scaled_state(x, h, weights) @ weights.weight_hh.T
    i, f, g, o = gates.chunk(4, dim=1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def rnn_cell(x: Tensor, state: State, weights: Weights) -> State:
    """One step of the plain recurrent network (Elman, 1990): h' = tanh(W x + b + U h).

    x: (B, E); state: (h (B, H),); returns (h' (B, H),).
    """
    (h,) = state
    product = scaled_state(x, h, weights) @ weights.weight_hh.T
    return (torch.tanh(x @ weights.weight_ih.T + weights.bias_ih + product),)


CELL_FUNCTIONS = {"gru": gru_cell, "igru": igru_cell, "lstm": lstm_cell, "rnn": rnn_cell}
