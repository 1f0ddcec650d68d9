"""The choice of the core and of the kernels' variant, and the accuracy of the native core."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from charwright import cli, kernels
from charwright.config import GATES, PRODUCTS, STATES, ModelConfig
from charwright.errors import UsageError
from charwright.model import compute as compute_module
from charwright.model import recurrent
from charwright.model.cells import Weights
from charwright.model.compute import Compute, Wanted, choose_core, describe_machine
from charwright.model.language_model import LanguageModel
from charwright.model.native import native_layer
from charwright.model.recurrent import Tokens, run_layer
from charwright.planning.choice import candidates
from ramps import fill_with_ramps, ramp, some_ids

CPU = torch.device("cpu")
CELLS = list(GATES)
HERE = kernels.available()
COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)

pytestmark = pytest.mark.usefixtures("one_thread", "no_variables")
needs_kernels = pytest.mark.skipif(not HERE, reason="the C kernels were not built here")


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None of the variables that choose a core, and no cached library."""
    for name in ("CHARWRIGHT_CORE", "CHARWRIGHT_KERNELS", "CHARWRIGHT_KERNELS_LIBRARY"):
        monkeypatch.delenv(name, raising=False)
    yield
    kernels._library.cache_clear()
    kernels._load.cache_clear()


# The choice of core.


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_auto_on_a_cpu_with_kernels_is_native(dtype: torch.dtype) -> None:
    assert choose_core("auto", CPU, dtype) == "native"
    assert describe_machine()["kernels"] == HERE[0]


def test_auto_without_kernels_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "none")
    assert choose_core("auto", CPU) == "fused"
    cause = "switches the C kernels off" if HERE else "were not built"
    assert describe_machine()["kernels"].startswith("none: ")
    assert cause in describe_machine()["kernels"]
    with pytest.raises(UsageError, match=f"`core` native: .*{cause}"):
        choose_core("native", CPU)


def test_auto_in_float64_is_fused_and_native_is_refused() -> None:
    assert choose_core("auto", CPU, torch.float64) == "fused"
    with pytest.raises(UsageError, match="works on the cpu in f32 and bf16, not on cpu in "):
        choose_core("native", CPU, torch.float64)


def test_native_is_refused_on_another_device() -> None:
    assert choose_core("auto", torch.device("cuda")) == "torch"
    with pytest.raises(UsageError, match="not on cuda"):
        choose_core("native", torch.device("cuda"))


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
@pytest.mark.parametrize("kernels_here", [True, False], ids=["kernels", "none"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("cell", CELLS)
def test_auto_never_reaches_the_reference(
    cell: str, masked: bool, kernels_here: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The core of each device computes here on the CPU, where the reference path would raise."""

    def reference(*_: object) -> None:
        raise AssertionError("the reference path is for tests")

    monkeypatch.setattr(recurrent, "unroll", reference)
    if not kernels_here:
        monkeypatch.setenv("CHARWRIGHT_KERNELS", "none")
    monkeypatch.setattr(compute_module, "choose_device", lambda _: torch.device(device))
    pool = candidates(Wanted(), masked=masked)
    cores = {choose_core("auto", torch.device(device)), Compute.choose().core, *(one.core for one in pool)}
    for core in cores:
        shape = ModelConfig(cell=cell, layers=2, units=21, embedding_size=5, recurrent_dropout=0.2 * masked)
        model = LanguageModel(shape, 30, compute=Compute(core=core)).train()
        ids = torch.arange(24).reshape(6, 4)
        loss, _ = model.loss(ids, ids, generator=torch.Generator().manual_seed(1))
        loss.backward()
        assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("core", ["plain", "fused", "torch"])
def test_the_variable_replaces_auto_only(core: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_CORE", core)
    assert choose_core("auto", CPU) == core
    assert choose_core("plain", CPU) == "plain"
    assert choose_core("fused", CPU) == "fused"


def test_unknown_names_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^`core` \(or CHARWRIGHT_CORE\) must be one of auto, .*, not 'fastest'$"):
        choose_core("fastest", CPU)
    monkeypatch.setenv("CHARWRIGHT_CORE", "quickest")
    with pytest.raises(UsageError, match=r"not 'quickest'$"):
        choose_core("auto", CPU)


@needs_kernels
def test_an_unknown_variant_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS", "avx1024")
    with pytest.raises(
        UsageError, match=r"^CHARWRIGHT_KERNELS=avx1024: this machine runs .*portable; choose one of them, or none$"
    ):
        choose_core("auto", CPU)
    with pytest.raises(UsageError, match=r"^the kernel variant avx2048 does not run here: this machine runs "):
        kernels.load("avx2048")


@needs_kernels
@pytest.mark.parametrize("variable", ["none", "avx1024"])
def test_a_named_variant_overrides_the_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS", variable)
    loaded = kernels.load("portable")
    assert loaded is not None
    assert loaded.name == "portable"


# The variants.


@needs_kernels
def test_the_variants_are_in_order_of_preference() -> None:
    assert [name for name in kernels.VARIANTS if name in HERE] == HERE
    assert HERE[-1] == "portable"
    loaded = kernels.load()
    assert loaded is not None
    assert loaded.name == HERE[0]


def trained_loss(core: str, cell: str) -> float:
    """The loss of a small model, with a size that no vector width divides, after a few steps of Adam."""
    model = fill_with_ramps(
        LanguageModel(ModelConfig(cell=cell, layers=2, units=21, embedding_size=5), 30, compute=Compute(core=core))
    )
    ids = some_ids(13, 5, 30)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(5):
        loss, _ = model.loss(ids, ids.roll(-1, 0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.parametrize("variant", [*(HERE or ["portable"]), "none"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_variant_trains_to_the_same_loss(cell: str, variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if variant != "none" and not HERE:
        pytest.skip("the C kernels were not built here")
    monkeypatch.setenv("CHARWRIGHT_KERNELS", variant)
    core = choose_core("auto", CPU)
    assert core == ("fused" if variant == "none" else "native")
    assert trained_loss("auto", cell) == pytest.approx(trained_loss("plain", cell), rel=1e-5)


# The library.


def other_library(folder: Path, source: str) -> Path:
    if COMPILER is None:
        pytest.skip("there is no C compiler here")
    (folder / "other.c").write_text(source)
    library = folder / "other.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, folder / "other.c"], check=True)
    return library


@pytest.mark.parametrize(
    "source", [f"int cw_abi(void) {{ return {kernels.ABI + 1}; }}", "int something_else(void) { return 1; }"]
)
def test_a_library_of_another_version_is_ignored(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARWRIGHT_KERNELS_LIBRARY", str(other_library(tmp_path, source)))
    kernels._library.cache_clear()
    kernels._load.cache_clear()
    with pytest.warns(RuntimeWarning, match="other.so holds no C kernels of this version and is not used"):
        assert kernels.available() == []
    kernels._library.cache_clear()
    with pytest.warns(RuntimeWarning, match="holds no C kernels"):
        assert kernels.load() is None
    assert choose_core("auto", CPU) == "fused"


def test_a_file_that_is_not_a_library_is_named_and_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "charwright_kernels.so"
    path.write_bytes(b"not a library")
    monkeypatch.setenv("CHARWRIGHT_KERNELS_LIBRARY", str(path))
    kernels._library.cache_clear()
    kernels._load.cache_clear()
    with pytest.warns(RuntimeWarning, match="cannot be loaded and are not used"):
        assert kernels.load() is None


# Accuracy: the kernels in float32 against the plain loop in float64.


def one_layer(
    core: str,
    cell: str,
    dtype: torch.dtype,
    precision: torch.dtype,
    *,
    units: int,
    batch: int,
    steps: int,
    tokens: bool,
    masked: bool,
) -> dict[str, Tensor]:
    """Outputs, last state and all gradients of a layer with float32 inputs, computed in `dtype`."""

    def given(*shape: int, scale: float, phase: int) -> Tensor:
        return ramp(*shape, scale=scale, phase=phase, dtype=torch.float32).to(dtype).requires_grad_()

    rows, products, width = GATES[cell] * units, PRODUCTS[cell] * units, 5
    table = given(11, width, scale=0.5, phase=5)
    leaves = {
        "table": table,
        "weight_ih": given(rows, width, scale=0.5, phase=1),
        "weight_hh": given(products, units, scale=0.5 / units**0.5, phase=2),
        "bias_ih": given(rows, scale=0.5, phase=3),
        **({"bias_hh": given(products, scale=0.5, phase=4)} if cell in ("gru", "igru") else {}),
        **{f"state.{i}": given(batch, units, scale=0.5, phase=20 + i) for i in range(STATES[cell])},
    }
    connections, mask = leaves["weight_hh"], None
    if masked:  # the weights, and the state of each row
        connections = connections * ((ramp(products, units, phase=41) > -0.2).to(dtype) * 1.25)
        mask = (ramp(batch, units, phase=40) > 0).to(dtype) * 2
    weights = Weights(leaves["weight_ih"], connections, leaves["bias_ih"], leaves.get("bias_hh"))
    ids = some_ids(steps, batch, 11)
    state = tuple(leaves[f"state.{i}"] for i in range(STATES[cell]))
    outputs, last = run_layer(core, cell, Tokens(ids, table) if tokens else table[ids], state, weights, precision, mask)
    total = (outputs * ramp(*outputs.shape, scale=1, phase=30).to(dtype)).sum()
    for i, part in enumerate(last):
        total = total + (part * ramp(*part.shape, scale=1, phase=31 + i).to(dtype)).sum()
    gradients = torch.autograd.grad(total, list(leaves.values()))
    found = {"outputs": outputs, **{f"last.{i}": part for i, part in enumerate(last)}}
    found |= {f"gradient of {name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return {name: value.detach() for name, value in found.items()}


@needs_kernels
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("steps", [1, 17])
@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("units", [1, 7, 48, 500])
@pytest.mark.parametrize("cell", CELLS)
def test_float32_is_within_1e_5_of_float64(cell: str, units: int, batch: int, steps: int, masked: bool) -> None:
    for tokens in (True, False):
        sizes = {"units": units, "batch": batch, "steps": steps, "tokens": tokens, "masked": masked}
        ours = one_layer("native", cell, torch.float32, torch.float32, **sizes)
        plain = one_layer("plain", cell, torch.float64, torch.float64, **sizes)
        for name, expected in plain.items():
            error = float((ours[name].double() - expected).abs().max())
            # What is small is a sum of terms that cancel, with the rounding of these.
            assert error <= 1e-5 * max(float(expected.abs().max()), 0.1), (name, tokens, error)


# Reproducibility.


@needs_kernels
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tokens", [True, False], ids=["ids", "vectors"])
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("cell", CELLS)
def test_kernels_give_the_same_bits_with_any_number_of_threads(
    cell: str, masked: bool, tokens: bool, precision: torch.dtype
) -> None:
    loaded = kernels.load()
    assert loaded is not None
    # Rows for more than one piece of work per thread, and a table that is shared by columns.
    units, batch, steps, width, rows, products = 100, 9, 31, 21, GATES[cell] * 100, PRODUCTS[cell] * 100

    def given(*shape: int, scale: float, phase: int) -> Tensor:
        return ramp(*shape, scale=scale, phase=phase, dtype=torch.float32).requires_grad_()

    found = []
    for threads in (1, 1, 2, 2, 3):
        torch.set_num_threads(threads)
        inputs = given(11, width, scale=0.5, phase=1) if tokens else given(steps, batch, width, scale=0.5, phase=1)
        weights = Weights(
            given(rows, width, scale=0.2, phase=4),
            given(products, units, scale=0.05, phase=2),
            given(rows, scale=0.5, phase=5),
            given(products, scale=0.5, phase=3) if cell in ("gru", "igru") else None,
            given(units, width, scale=0.2, phase=6) if tokens else None,
        )
        state = tuple(given(batch, units, scale=0.5, phase=20 + i) for i in range(STATES[cell]))
        asked = [inputs, *state, *(weight for weight in weights if weight is not None)]
        mask = (ramp(batch, units, phase=40, dtype=torch.float32) > 0).float() * 2 if masked else None
        ids = some_ids(steps, batch, 11) if tokens else None
        outputs, last = native_layer(loaded, cell, inputs, ids, state, weights, precision, mask)
        total = (outputs.float() * ramp(*outputs.shape, scale=1, phase=30, dtype=torch.float32)).sum()
        total = total + sum((part * part).sum() for part in last)
        found.append([outputs, *last, *torch.autograd.grad(total, asked)])
    for other in found[1:]:
        assert [torch.equal(value, same) for value, same in zip(found[0], other, strict=True)] == [True] * len(other)


# Threads.


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
def test_the_native_core_uses_the_given_number_of_threads(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    forward = kernels.Kernels.forward

    def counting(self: kernels.Kernels, layer: Any) -> None:
        seen.add(layer.threads)
        forward(self, layer)

    monkeypatch.setattr(kernels.Kernels, "forward", counting)
    (tmp_path / "corpus.txt").write_text(CORPUS)
    words = ["train", tmp_path / "corpus.txt", *TINY, "--out", tmp_path / "run", "--threads", threads]
    assert cli.run([*map(str, words)]) == 0
    assert seen == {threads}


CORPUS = "The quick brown fox jumps over the lazy dog.\n" * 60
TINY = ["--units", "16", "--steps", "2", "--batch", "4", "--seq-length", "20", "--device", "cpu", "--core", "native"]
COUNT_THREADS = """
import sys
from charwright.cli import main
from charwright.kernels import Kernels
seen = set()
run = Kernels.forward
def forward(self, layer):
    seen.add(layer.threads)
    run(self, layer)
Kernels.forward = forward
try:
    main(sys.argv[1:])
finally:
    print("threads", *sorted(seen))
"""


@needs_kernels
def test_the_native_core_uses_the_threads_of_the_variable(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text(CORPUS)
    words = ["train", tmp_path / "corpus.txt", *TINY, "--out", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["threads 1"], done.stdout + done.stderr
