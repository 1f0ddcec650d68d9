"""The output layer and its loss in the kernels, against the same in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from charwright import kernels
from charwright.model import loss
from charwright.model.loss import head_loss

pytestmark = pytest.mark.skipif(kernels.load() is None, reason="the kernels are not built")

DTYPES = [torch.float32, torch.bfloat16]
STEPS, BATCH = 23, 6  # 138 positions: more than two times the rows that the kernels have in the cache


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x as the kernels multiply it, in double precision; the gradient passes."""
    return x + (x.to(dtype).double() - x).detach()


def in_double_precision(
    x: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, mask: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of x, weight and bias, of products of rounded operands."""
    parts = [part.detach().double().requires_grad_() for part in (x, weight, bias)]
    rows = rounded(parts[0] if mask is None else parts[0] * mask.double(), dtype)
    logits = rows.flatten(0, 1) @ rounded(parts[1], dtype).T + parts[2]
    result = F.cross_entropy(logits, targets.flatten())
    result.backward()  # type: ignore[no-untyped-call]
    return result.detach(), [part.grad for part in parts if part.grad is not None]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("units", "vocabulary"), [(16, 1), (48, 67), (80, 300), (32, 512)])
@pytest.mark.parametrize("variant", kernels.available())
def test_the_output_layer_of_the_kernels_is_that_of_double_precision(
    variant: str, units: int, vocabulary: int, masked: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What the kernels do not take would be computed by PyTorch, as exactly.
    monkeypatch.setattr(loss, "_HeadLoss", None)
    draw = torch.Generator().manual_seed(vocabulary + masked)
    x = torch.randn(STEPS, BATCH, units, generator=draw).to(dtype).requires_grad_()
    weight = (torch.randn(vocabulary, units, generator=draw) / 4).requires_grad_()
    bias = torch.randn(vocabulary, generator=draw).requires_grad_()
    mask = (
        (torch.rand(1, BATCH, units, generator=draw) > 0.3).to(dtype) / 0.7 if masked else None
    )  # as dropout draws it
    targets = torch.randint(vocabulary, (STEPS, BATCH), generator=draw)

    found = head_loss(x, weight, bias, targets, dtype, "native", variant, mask=mask)
    (2 * found).backward()  # type: ignore[no-untyped-call]
    wanted, gradients = in_double_precision(x, weight, bias, targets, mask, dtype)

    assert float(found.detach()) == pytest.approx(float(wanted), rel=1e-5, abs=1e-6)
    allowed = 1e-5 if dtype == torch.float32 else 4e-3  # a number in bfloat16 has 8 bits
    for part, gradient in zip((x, weight, bias), gradients, strict=True):
        assert part.grad is not None
        assert part.grad.dtype == part.dtype
        distance = (part.grad.double() / 2 - gradient).norm()
        assert float(distance) <= allowed * float(gradient.norm()) + 1e-6
    with torch.no_grad():
        again = head_loss(x, weight, bias, targets, dtype, "native", variant, mask=mask)
    assert float(again) == float(found.detach())


def rows_of_parts(
    function: str, most_rows: int, dtype: torch.dtype, mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """The rows of each call of a function of the kernels, with at most so many at once of 600 tokens.

    The loss and the gradients are those of all rows at once.
    """
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(STEPS, BATCH, 32, generator=draw).to(dtype).requires_grad_()
    weight = (torch.randn(600, 32, generator=draw) / 4).requires_grad_()
    bias = torch.randn(600, generator=draw).requires_grad_()
    targets = torch.randint(600, (STEPS, BATCH), generator=draw)
    wanted = head_loss(x, weight, bias, targets, dtype, "native", mask=mask)
    whole = torch.autograd.grad(wanted, (x, weight, bias))
    parts: list[int] = []
    original = getattr(loss.native_loss, function)

    def counting(loaded: kernels.Kernels, rows: Tensor, *args: Any, **options: Any) -> Any:
        parts.append(len(rows))
        return original(loaded, rows, *args, **options)

    monkeypatch.setattr(loss.native_loss, function, counting)
    monkeypatch.setattr(loss, "MOST_LOGITS_BYTES", most_rows * 600 * dtype.itemsize)
    found = head_loss(x, weight, bias, targets, dtype, "native", mask=mask)
    assert float(found.detach()) == pytest.approx(float(wanted.detach()))
    for part, gradient in zip(torch.autograd.grad(found, (x, weight, bias)), whole, strict=True):
        distance = (part.float() - gradient.float()).norm()
        assert float(distance) <= (1e-6 if dtype == torch.float32 else 1e-2) * float(gradient.float().norm())
    return parts


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("most_native_columns", [0, 2048])
def test_a_large_vocabulary_is_computed_in_about_equal_parts(
    most_native_columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where PyTorch multiplies."""
    monkeypatch.setattr(loss, "MOST_NATIVE_COLUMNS", most_native_columns)
    monkeypatch.setattr(loss, "LARGE_HEADS", frozenset())
    monkeypatch.setattr(loss, "FEWEST_ROWS", 1)
    assert rows_of_parts("cross_entropy", 50, dtype, None, monkeypatch) == [46, 46, 46]


@pytest.mark.parametrize(("steps", "megabytes", "expected"), [(3, 20, [1, 1, 1]), (5, 12, [2, 2, 1]), (2, 40, [1, 1])])
def test_no_part_exceeds_the_limit_unless_one_step_does(steps: int, megabytes: int, expected: list[int]) -> None:
    parts = loss._parts(steps, megabytes << 20)
    assert [part.stop - part.start for part in parts] == expected


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dropout", [False, True])
def test_the_kernels_compute_a_large_vocabulary_in_parts_of_whole_steps(
    dropout: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So each row has its own row of the mask."""
    monkeypatch.setattr(loss, "MOST_HEAD_COLUMNS", 600)
    draw = torch.Generator().manual_seed(2)
    mask = (torch.rand(1, BATCH, 32, generator=draw) > 0.3) / 0.7 if dropout else None
    assert rows_of_parts("head", 50, dtype, mask, monkeypatch) == [8 * BATCH, 8 * BATCH, 7 * BATCH]
