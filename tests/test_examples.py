"""The example programs, run small."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

import charwright as cw

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ["first ", "citizen:\n", "before ", "we ", "proceed ", "any ", "further, "]
Program = Callable[..., str]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "custom_training.py"
    spec = importlib.util.spec_from_file_location("custom_training", path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def program(module: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Program:
    """The program on a text of so many batches of four; what it prints."""

    def run(way: str, batches: int, epochs: int, *more: str) -> str:
        text = "".join(WORDS[i * i * i % 7] + WORDS[i % 5] for i in range(400 * batches))[: 4 * 101 * batches]
        corpus = tmp_path / "text.txt"
        corpus.write_text(text, encoding="utf-8")
        options = ["--epochs", str(epochs), "--units", "12", "--batch", "4", "--out", str(tmp_path / "runs"), *more]
        module.main([str(corpus), way, *options])
        return capsys.readouterr().out

    return run


def losses(printed: str) -> list[float]:
    return [float(loss) for loss in re.findall(r"^Epoch \d+ loss ([\d.]+)", printed, re.MULTILINE)]


def test_fit_takes_a_train_step_of_ones_own(program: Program) -> None:
    printed = program("fit", batches=10, epochs=3)
    assert len(losses(printed)) == 3
    assert losses(printed)[-1] < losses(printed)[0]
    assert len(printed.split("\n", 3)[3].strip("\n")) > 150, "and it writes something"


def test_the_loop_tells_every_50_batches_and_keeps_weights_every_5_epochs(program: Program, tmp_path: Path) -> None:
    printed = program("loop", batches=51, epochs=6)
    batches = re.findall(r"^Epoch (\d+) batch (\d+) loss [\d.]+$", printed, re.MULTILINE)
    assert batches == [(str(epoch), str(number)) for epoch in range(1, 7) for number in (0, 50)]
    assert len(re.findall(r"^Epoch \d loss [\d.]+, [\d.]+ s$", printed, re.MULTILINE)) == 6
    assert losses(printed)[-1] < losses(printed)[0]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["epoch-5", "epoch-6"]
    kept = cw.Run.open(tmp_path / "runs" / "epoch-5")
    assert cw.Generator(kept.model, kept.weights(), kept.vocabulary).generate("we", length=5, seed=1)


def test_the_curriculum_learns_too(program: Program) -> None:
    printed = program("curriculum", 4, 3, "--k", "2")
    assert losses(printed)[-1] < losses(printed)[0]


def test_the_texts_share_falls_as_an_inverse_sigmoid(module: ModuleType) -> None:
    model = cw.LanguageModel(cw.ModelConfig(units=4, embedding_size=4), 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sampling = module.ScheduledSampling(k=3)
    ids = torch.tensor([[1, 2, 3]]).T
    shares = []
    for _ in range(20):
        sampling(model, cw.Batch(ids, ids, None, torch.Generator().manual_seed(1)), optimizer)
        shares.append(sampling.share)
    assert shares == pytest.approx([3 / (3 + math.exp(i / 3)) for i in range(20)])


def test_with_the_text_alone_the_curriculum_is_teacher_forcing(module: ModuleType) -> None:
    """And without it the model reads what it wrote: the same loss in the one case, another in the other."""
    ids = torch.arange(1, 6).repeat(3)[:, None].expand(15, 4)

    def loss(train_step: Callable[..., torch.Tensor]) -> float:
        model = cw.LanguageModel(cw.ModelConfig(units=12, embedding_size=4), 6)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(5)
        batch = cw.Batch(ids[:-1], ids[1:], None, torch.Generator().manual_seed(1))
        return float(train_step(model, batch, torch.optim.SGD(model.parameters(), lr=0.1)))

    always, never = module.ScheduledSampling(k=1e9), module.ScheduledSampling(k=1)
    never.step = 10_000
    assert loss(always) == pytest.approx(loss(module.my_train_step), rel=1e-5)
    assert loss(never) != pytest.approx(loss(module.my_train_step), rel=1e-2)
