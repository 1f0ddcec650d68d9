"""The C kernels as a recurrent core: a layer over a whole sequence in one call, forward and backward.

The kernels compute all of it: the table of the first layer, or the input product of a later one, the recurrence, and
the gradients of all weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from charwright.config import GATES, PRODUCTS
from charwright.kernels import CELL_CODES, UNITS_MULTIPLE, Kernels, Layer, Linear
from charwright.model.cells import State, Weights
from charwright.model.compute import refuse_second_derivatives
from charwright.model.kernel_calls import address, borrow, check_ids, fresh, give_back, share_threads

# Numbers that the kernels keep of each unit and step.
SLOTS = {"gru": 4, "igru": 4, "lstm": 4, "rnn": 1}


def native_layer(
    kernels: Kernels,
    cell: str,
    x: Tensor,
    ids: Tensor | None,
    state: State,
    weights: Weights,
    dtype: torch.dtype,
    mask: Tensor | None,
) -> tuple[Tensor, State]:
    """One layer: the embedding x (V, E) float32 with ids (T, B), or the inputs at each position (T, B, E).

    The mask (B, H) multiplies the state inside the recurrent product, and so does the scale of a multiplicative layer,
    which has ids. Returns outputs (T, B, H) in `dtype` and the last state in float32.

    Raises:
        ValueError: if a part has another type or shape than the kernels read, or an id has no row in the embedding.
    """
    share_threads(kernels)
    units = weights.weight_hh.shape[1]
    _check_layer(kernels, x, ids, cell, state, weights, mask)
    narrow, spare = -x.shape[-1] % UNITS_MULTIPLE, -units % UNITS_MULTIPLE
    if narrow:
        x = F.pad(x, (0, narrow))
        weights = _with_inputs(weights, narrow)
    if spare:
        weights = _with_units(weights, cell, spare)
        state = tuple(F.pad(part, (0, spare)) for part in state)
        mask = F.pad(mask, (0, spare)) if mask is not None else None
    c = state[1] if cell == "lstm" else None
    # A function of autograd cannot tell itself whether gradients are wanted: within it, they never are.
    wanted = torch.is_grad_enabled()
    result: Any = _NativeLayer.apply(  # type: ignore[no-untyped-call]
        kernels, cell, dtype, wanted, x if ids is not None else x.to(dtype), ids, mask, state[0], c, *weights
    )
    outputs, *last = result
    if spare:
        outputs, last = outputs[..., :units], [part[..., :units] for part in last]
    return outputs, tuple(last)


def _check_layer(
    kernels: Kernels, x: Tensor, ids: Tensor | None, cell: str, state: State, weights: Weights, mask: Tensor | None
) -> None:
    """Check that the kernels can read what they get, which they cannot check."""
    for part in weights:
        if part is not None and part.dtype != torch.float32:
            raise ValueError(
                f"the C kernels need float32 weights, not {part.dtype}; "
                "give the model Compute(core='plain') of charwright.model.compute"
            )
    units, width = weights.weight_hh.shape[1], x.shape[-1]
    if weights.weight_ih.shape[1] != width:
        raise ValueError(f"the inputs have {width} numbers, and the weights {weights.weight_ih.shape[1]}")
    if weights.weight_mx is not None and (ids is None or weights.weight_mx.shape != (units, width)):
        raise ValueError(f"a multiplicative layer has ids, and weights ({units}, {width})")
    _check_shapes(cell, weights)
    steps, batch = (x if ids is None else ids).shape[:2]
    if not steps or not batch:
        raise ValueError(f"a layer needs at least one step and one row, not {steps} and {batch}")
    if ids is not None:
        if ids.dtype != torch.int64 or x.dtype != torch.float32:
            raise ValueError(f"ids must be int64 and their embedding float32, not {ids.dtype} and {x.dtype}")
        check_ids(kernels, ids, len(x))
    per_row = (batch, units)
    rows = {"the state": state, "the mask of the state": () if mask is None else (mask,)}
    for name, parts in rows.items():
        for part in parts:
            if part.dtype != torch.float32 or part.shape != per_row:
                raise ValueError(f"{name} must be float32 {per_row}, not {part.dtype} {tuple(part.shape)}")


def _check_shapes(cell: str, weights: Weights) -> None:
    units, width = weights.weight_hh.shape[1], weights.weight_ih.shape[1]
    of_gates, of_products = GATES[cell] * units, PRODUCTS[cell] * units
    shapes: dict[str, tuple[int, ...]] = {"weight_ih": (of_gates, width), "weight_hh": (of_products, units)}
    shapes |= {"bias_ih": (of_gates,), "bias_hh": (of_products,)}
    for name, shape in shapes.items():
        found = getattr(weights, name)
        if found is not None and found.shape != shape:
            raise ValueError(f"{name} of a layer of {units} units must be {shape}, not {tuple(found.shape)}")


def _with_inputs(weights: Weights, narrow: int) -> Weights:
    """The weights for inputs that are padded with zeros."""
    scale = weights.weight_mx
    return weights._replace(
        weight_ih=F.pad(weights.weight_ih, (0, narrow)),
        weight_mx=None if scale is None else F.pad(scale, (0, narrow)),
    )


def _with_units(weights: Weights, cell: str, spare: int) -> Weights:
    """The weights with more units, which stay zero."""
    bias, scale = weights.bias_hh, weights.weight_mx
    return Weights(
        weight_ih=_filled_gates(weights.weight_ih.T, GATES[cell], spare).T,
        weight_hh=F.pad(_filled_gates(weights.weight_hh.T, PRODUCTS[cell], spare).T, (0, spare)),
        bias_ih=_filled_gates(weights.bias_ih, GATES[cell], spare),
        bias_hh=None if bias is None else _filled_gates(bias, PRODUCTS[cell], spare),
        weight_mx=None if scale is None else F.pad(scale, (0, 0, 0, spare)),
    )


def _filled_gates(x: Tensor, gates: int, spare: int) -> Tensor:
    """(..., G * H) -> (..., G * (H + spare)), each gate padded with zeros."""
    shaped = F.pad(x.unflatten(-1, (gates, -1)), (0, spare))  # type: ignore[no-untyped-call]
    return shaped.flatten(-2)


class _Inputs(NamedTuple):
    """What a layer computes of its inputs, and how."""

    kernels: Kernels
    low: Tensor  # the inputs (..., E) in the type of the products
    wide: bool  # whether the results and gradients are float32, as those of a table

    def product(self, weight: Tensor, bias: Tensor | None, *, curved: bool = False) -> Tensor:
        """Low (..., E) x weight^T + bias -> (..., N), and if it is curved 1 + tanh of that."""
        outputs = self.low.new_empty((*self.low.shape[:-1], len(weight)), dtype=torch.float32 if self.wide else None)
        layer = self._layer(weight)
        layer.bias, layer.y, layer.curved = address(bias), outputs.data_ptr(), int(curved)
        self._run(layer, backward=False)
        return outputs

    def gradients(
        self,
        d_outputs: Tensor,
        weight: Tensor,
        d_x: Tensor | None,
        *,
        curve: Tensor | None = None,
        adding: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Those of the weight and of a bias; that of the inputs is written to `d_x`, or added.

        `curve`: what a curved product returned.
        """
        d_weight, d_bias = torch.empty_like(weight), weight.new_empty(len(weight))
        layer = self._layer(weight)
        layer.curved, layer.y, layer.adding = int(curve is not None), address(curve), int(adding)
        layer.d_y, layer.d_x = d_outputs.data_ptr(), address(d_x)
        layer.d_weight, layer.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
        self._run(layer, backward=True)
        return d_weight, d_bias

    def _layer(self, weight: Tensor) -> Linear:
        outputs, inputs = weight.shape
        return Linear(
            bf16=int(self.low.dtype == torch.bfloat16), threads=torch.get_num_threads(), wide=int(self.wide),
            rows=self.low.numel() // inputs, inputs=inputs, outputs=outputs, x=self.low.data_ptr(),
            weight=weight.data_ptr(),
        )  # fmt: skip

    def _run(self, layer: Linear, *, backward: bool) -> None:
        scratch = borrow((self.kernels.linear_bytes(layer, backward=backward),), torch.uint8)
        layer.scratch = scratch.data_ptr()
        self.kernels.linear(layer, backward=backward)
        give_back(scratch)


class LayerGradients(NamedTuple):
    """What the backward pass of a layer computes."""

    x: Tensor | None  # of the inputs, in their type and shape
    weights: Weights
    state: State  # before the first step


class _Kept(NamedTuple):
    """What the backward pass reads, and partly overwrites with gradients, which `save_for_backward` does not allow."""

    layer: Layer  # has addresses of all else
    inputs: _Inputs
    weights: Weights
    ids: Tensor | None
    mask: Tensor | None
    scale: Tensor | None
    hidden: Tensor
    masked: Tensor | None
    cells: Tensor | None
    gates: Tensor


class LayerPass:
    """A layer's forward pass over a sequence, and what its one backward pass needs; sizes are those of the kernels."""

    def __init__(
        self,
        kernels: Kernels,
        cell: str,
        dtype: torch.dtype,
        x: Tensor,
        ids: Tensor | None,
        state: State,
        weights: Weights,
        mask: Tensor | None,
        *,
        keep: bool,
    ) -> None:
        """Arguments as for `native_layer`; `keep`: for a backward pass."""
        self._kernels, self._cell, self._x_dtype = kernels, cell, x.dtype
        steps, batch = (x if ids is None else ids).shape[:2]
        weights = Weights(*map(_contiguous, weights))
        units, tokens = weights.weight_hh.shape[1], 0 if ids is None else len(x)
        ids, mask = _contiguous(ids), _contiguous(mask)
        inputs = _Inputs(kernels, x.to(dtype).contiguous(), wide=ids is not None)
        scale = None if weights.weight_mx is None else inputs.product(weights.weight_mx, None, curved=True)
        gate_inputs = inputs.product(weights.weight_ih, weights.bias_ih)  # the table, or those at each position
        hidden = fresh(steps + 1, batch, units, dtype=dtype)
        masked = None if mask is None and scale is None else borrow(hidden.shape, dtype)
        cells = borrow(hidden.shape, dtype) if cell == "lstm" else None
        gates = borrow((steps, batch, SLOTS[cell] * units), dtype)
        last = tuple(part.clone(memory_format=torch.contiguous_format) for part in state)
        packed = _packed(kernels, cell, weights.weight_hh, dtype, backward=False)
        layer = Layer(
            cell=CELL_CODES[cell], bf16=int(dtype == torch.bfloat16), steps=steps, batch=batch, units=units,
            threads=torch.get_num_threads(), tokens=tokens, ids=address(ids), bias=address(weights.bias_hh),
            mask=address(mask), scale=address(scale), packed=packed.data_ptr(), hidden=hidden.data_ptr(),
            masked=address(masked), gates=gates.data_ptr(), cells=address(cells), state_h=last[0].data_ptr(),
            state_c=None if cells is None else last[1].data_ptr(),
            **{"inputs" if ids is None else "table": gate_inputs.data_ptr()},
        )  # fmt: skip
        kernels.forward(layer)
        # This memory ends here, or is the caller's.
        layer.table = layer.inputs = layer.packed = layer.state_h = layer.state_c = None
        self._kept: _Kept | None = None
        if keep:
            self._kept = _Kept(layer, inputs, weights, ids, mask, scale, hidden, masked, cells, gates)
        else:
            give_back(masked, cells, gates)
        # A graph of autograd keeps this object and refers to the results, so they do not stay here.
        self._results: tuple[Tensor, State] | None = (hidden[1:], last)

    def take_results(self) -> tuple[Tensor, State]:
        """The outputs (T, B, H) and the last state; once."""
        assert self._results is not None
        results, self._results = self._results, None
        return results

    def backward(self, d_outputs: Tensor, d_last: Sequence[Tensor], *, d_x_wanted: bool = True) -> LayerGradients:
        """The gradients, from those of the outputs (T, B, H) and of the last state.

        Raises:
            RuntimeError: the second time; the kernels overwrite what they need.
        """
        if self._kept is None:
            raise RuntimeError("the native core supports one backward pass per forward pass; run it forward again")
        kept, self._kept = self._kept, None
        layer, weights, low, dtype = kept.layer, kept.weights, kept.inputs.low, kept.hidden.dtype
        d_outputs = d_outputs.to(dtype).contiguous()
        d_state = tuple(part.contiguous().clone() for part in d_last)  # The kernels overwrite it.
        d_gates = None if kept.ids is None else fresh(len(low), len(weights.weight_ih))
        d_bias = None if weights.bias_hh is None else torch.empty_like(weights.bias_hh)
        d_scale = None if kept.scale is None else torch.empty_like(kept.scale)
        packed = _packed(self._kernels, self._cell, weights.weight_hh, dtype, backward=True)
        layer.threads, layer.packed, layer.d_outputs = torch.get_num_threads(), packed.data_ptr(), d_outputs.data_ptr()
        layer.d_h, layer.d_c = d_state[0].data_ptr(), address(d_state[1] if kept.cells is not None else None)
        layer.d_table, layer.d_scale, layer.d_bias = address(d_gates), address(d_scale), address(d_bias)
        self._kernels.backward(layer)
        del packed  # before the step's peak of memory
        d_weights = _weight_gradient(self._kernels, layer, weights.weight_hh)
        if d_gates is None:
            d_gates = fresh(*d_outputs.shape[:2], len(weights.weight_ih), dtype=dtype)
            self._kernels.input_gradient(layer, d_gates.data_ptr())
        give_back(kept.masked, kept.cells, kept.gates)
        d_x = torch.empty_like(low, dtype=torch.float32 if kept.inputs.wide else None) if d_x_wanted else None
        d_input_weights, d_input_bias = kept.inputs.gradients(d_gates, weights.weight_ih, d_x)
        d_mx = None
        if d_scale is not None and weights.weight_mx is not None:
            d_mx, _ = kept.inputs.gradients(d_scale, weights.weight_mx, d_x, curve=kept.scale, adding=True)
        d_x = None if d_x is None else d_x.to(self._x_dtype)
        return LayerGradients(d_x, Weights(d_input_weights, d_weights, d_input_bias, d_bias, d_mx), d_state)


class _NativeLayer(torch.autograd.Function):
    """A `LayerPass` for autograd; outputs (T, B, H) and h, or h and c, of the last step (B, H)."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: Kernels,
        cell: str,
        dtype: torch.dtype,
        wanted: bool,
        x: Tensor,
        ids: Tensor | None,
        mask: Tensor | None,
        h: Tensor,
        c: Tensor | None,
        *weights: Tensor | None,
    ) -> tuple[Tensor, ...]:
        state = (h,) if c is None else (h, c)
        keep = wanted and any(ctx.needs_input_grad)
        ctx.forward_pass = LayerPass(kernels, cell, dtype, x, ids, state, Weights(*weights), mask, keep=keep)  # type: ignore[arg-type]
        # So that autograd sees when one of them is changed before the backward pass.
        ctx.save_for_backward(x, ids, mask, *weights)
        outputs, last = ctx.forward_pass.take_results()
        return (outputs, *last)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        ctx.saved_tensors  # noqa: B018  (raises if one was changed)
        made: LayerGradients = ctx.forward_pass.backward(grads[0], grads[1:], d_x_wanted=ctx.needs_input_grad[4])
        d_h, *d_c = made.state
        return (None, None, None, None, made.x, None, None, d_h, d_c[0] if d_c else None, *made.weights)


def _weight_gradient(kernels: Kernels, layer: Layer, weights: Tensor) -> Tensor:
    """The gradient of U (P * H, H) float32 from all steps at once, after backward."""
    rows, units = weights.shape
    size = kernels.outer_bytes(layer.steps * layer.batch, rows, units, bf16=bool(layer.bf16), threads=layer.threads)
    scratch = borrow((size,), torch.uint8)
    result = fresh(rows, units)
    kernels.weight_gradient(layer, scratch.data_ptr(), result.data_ptr())
    give_back(scratch)
    return result


def _contiguous(tensor: Tensor | None) -> Any:
    return None if tensor is None else tensor.contiguous()


def _packed(kernels: Kernels, cell: str, weights: Tensor, dtype: torch.dtype, *, backward: bool) -> Tensor:
    units, bf16 = weights.shape[1], dtype == torch.bfloat16
    packed = fresh(kernels.packed_bytes(cell, units, bf16), dtype=torch.uint8)
    kernels.pack(
        cell, units, bf16=bf16, backward=backward, threads=torch.get_num_threads(), weights=weights.data_ptr(),
        to=packed.data_ptr(),
    )  # fmt: skip
    return packed
