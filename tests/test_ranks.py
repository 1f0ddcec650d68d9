"""Several ranks train as one process does: real processes, started by torchrun on this machine."""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import charwright as cw
from charwright.arrays import read_arrays
from charwright.errors import RankError, UsageError
from charwright.evaluation.evaluate import evaluate, evaluate_text
from charwright.training.batch import make_batch, make_part
from charwright.training.ranks import ALONE, TIMEOUT, Ranks, join
from charwright.training.sharing import Agreement, Part, part_of, reader_of
from torchrun import finish, log, losses, our_lines, start, torchrun, train, wait_until, workers

SMALL = [
    *("--units", "16", "--embedding-size", "8", "--batch", "6", "--seq-length", "16", "--steps", "24", "--warmup", "0"),
    *("--learning-rate", "0.01", "--precision", "f32", "--device", "cpu", "--log-every", "1", "--threads", "1"),
]
FULL = [*("--layers", "2", "--dropout", "0.2", "--recurrent-dropout", "0.2", "--state-reset", "0.3")]
CLIPPED = ["--clip-norm", "0.05"]
ENDLESS = [*SMALL, "--steps", "1000000", "--checkpoint-minutes", "0.002"]

slow = pytest.mark.slow
on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the processes from /proc")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 3,000 words in an order without a period: 138 steps of 6 x 16, of which a part is validated on."""
    words = ["the ", "quick\n", "brown ", "fox ", "jumps ", "over "]
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text("".join(words[i * i * i % 6] + words[i % 5] for i in range(1430)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The beginning of it: 12 steps of 6 x 16 in an epoch, so that 24 steps are two epochs."""
    path = tmp_path_factory.mktemp("short") / "text.txt"
    path.write_text(corpus.read_text(encoding="utf-8")[:1360], encoding="utf-8")
    return path


def saved(run: Path) -> bool:
    """Whether a run has a complete checkpoint."""
    return any(run.glob("checkpoints/step-*[0-9]/manifest.json"))


# Losses.


@pytest.mark.parametrize(
    ("ranks", "options"),
    [
        pytest.param(2, ["--cell", "gru", *FULL, *CLIPPED], id="gru, streams, dropout, resets, clipping"),
        pytest.param(2, ["--ngram-bits", "9", *FULL, *CLIPPED], id="gru, n-grams, streams, dropout, resets, clipping"),
        pytest.param(2, ["--cell", "lstm", *FULL, "--order", "windows"], id="lstm, windows, dropout"),
        pytest.param(2, ["--cell", "lstm", *FULL], id="lstm, streams, dropout, resets", marks=slow),
        pytest.param(2, ["--cell", "gru", "--optimizer", "adam"], id="gru, streams, adam", marks=slow),
        pytest.param(2, ["--cell", "lstm", "--core", "fused", *CLIPPED], id="lstm, fused, clipping", marks=slow),
        pytest.param(4, ["--cell", "gru", *FULL, *CLIPPED], id="four ranks with one or two rows each", marks=slow),
    ],
)
def test_the_losses_of_several_ranks_are_those_of_one(
    ranks: int, options: list[str], short: Path, tmp_path: Path
) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    train(1, short, "--out", alone, *SMALL, *options)
    train(ranks, short, "--out", together, *SMALL, *options)
    expected, found = losses(alone), losses(together)
    epochs = sum(event["event"] == "epoch" for event in log(alone))
    assert epochs >= 2
    assert len(expected) == 24 + 2 * epochs, "each step, and training and validation of each epoch"
    # Usually they agree to 2e-7, but Adam makes a step of a gradient whose sign is that of its rounding.
    assert found == pytest.approx(expected, rel=1e-4)
    one, other = (read_arrays(run / "model.safetensors") for run in (alone, together))
    apart = np.concatenate([np.abs(other[name] - weight).ravel() for name, weight in one.items()])
    assert np.median(apart) < 2e-4
    assert np.mean(apart > 2e-3) < 0.02
    assert apart.max() < 0.02, "two steps of Adam"


def test_rank_0_alone_prints_and_writes_a_complete_folder(short: Path, tmp_path: Path) -> None:
    train(1, short, "--out", tmp_path / "alone", *SMALL)
    stderr = train(2, short, "--out", tmp_path / "together", *SMALL)
    assert stderr.count("epoch 1 ") == stderr.count("saved ") == 1
    assert stderr.count("2 ranks share each batch of 6 rows") == 1
    names = [{path.relative_to(run) for path in run.rglob("*")} for run in (tmp_path / "alone", tmp_path / "together")]
    assert names[1] - names[0] == {Path("launch.json")}
    assert names[0] <= names[1]
    events = [[event["event"] for event in log(tmp_path / run)] for run in ("alone", "together")]
    assert events[0] == events[1]


@pytest.mark.parametrize(
    ("first", "second"),
    [pytest.param(1, 2, marks=slow), pytest.param(2, 1, marks=slow), pytest.param(2, 3, marks=slow)],
)
def test_a_run_resumes_on_another_number_of_ranks(first: int, second: int, short: Path, tmp_path: Path) -> None:
    """Within an epoch, with carried state: its rows are divided anew."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    # A plan for 7 steps has another weight decay than one for 24, and a resumed run keeps that of its first plan.
    options = [*SMALL, "--cell", "lstm", *FULL, "--schedule", "constant", "--weight-decay", "0.1"]
    train(1, short, "--out", whole, *options)
    train(first, short, "--out", run, *options, "--steps", "7")
    state = read_arrays(run / "checkpoints" / "step-7" / "state.safetensors")
    assert [part.shape for part in state.values()] == [(2, 6, 16)] * 2, "the state of all rows"
    train(second, "--resume", run, "--steps", "24")
    expected = {event["step"]: event["loss"] for event in log(whole) if event["event"] == "step"}
    found = {event["step"]: event["loss"] for event in log(run) if event["event"] == "step"}
    assert found == pytest.approx(expected, rel=2e-5)


# Ends.


@on_linux
@pytest.mark.parametrize("dies", [pytest.param(0, marks=slow), 1])
def test_a_rank_that_dies_ends_the_others_with_a_line(dies: int, corpus: Path, tmp_path: Path) -> None:
    process = start(torchrun(2), corpus, "--out", tmp_path / "run", *ENDLESS)
    wait_until(lambda: saved(tmp_path / "run"), process)
    os.kill(workers(process)[dies], signal.SIGKILL)
    began = time.monotonic()
    code, stderr = finish(process)
    assert code != 0
    assert time.monotonic() - began < 60
    # torchrun may end the survivor before it has noticed.
    assert all("no longer reaches the others" in line for line in our_lines(stderr)), stderr
    assert len(our_lines(stderr)) <= 1


@slow
@on_linux
def test_a_rank_that_hangs_ends_the_others_with_a_line(corpus: Path, tmp_path: Path) -> None:
    process = start(torchrun(2), corpus, "--out", tmp_path / "run", *ENDLESS, **{TIMEOUT: "4"})
    wait_until(lambda: saved(tmp_path / "run"), process)
    stopped = workers(process)[1]
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: len(workers(process)) < 2, process)
    os.kill(stopped, signal.SIGCONT)  # torchrun gives a stopped process half a minute to end.
    code, stderr = finish(process)
    assert code != 0
    [line] = our_lines(stderr)
    assert "rank 0 of 2" in line
    assert "has not answered for 4 s" in line


@on_linux
@slow
def test_torchrun_restarts_a_group_and_it_goes_on_with_its_run(corpus: Path, tmp_path: Path) -> None:
    options = [*SMALL, "--steps", "150", "--checkpoint-minutes", "0.001", "--cell", "lstm", *FULL]
    train(1, corpus, "--out", tmp_path / "alone", *options)
    command = torchrun(2, "--max-restarts", "2")
    process = start(command, corpus, "--out", tmp_path / "run", "--force", *options)
    wait_until(lambda: saved(tmp_path / "run"), process)
    os.kill(random.Random(1).choice(workers(process)), signal.SIGKILL)
    code, stderr = finish(process)
    assert code == 0, stderr
    assert "which this start by torchrun has begun" in stderr
    assert [event["event"] for event in log(tmp_path / "run")].count("resume") >= 1
    ends = [log(tmp_path / run)[-1] for run in ("alone", "run")]
    assert ends[1]["step"] == ends[0]["step"] == 150
    assert ends[1]["best_loss"] == pytest.approx(ends[0]["best_loss"], rel=1e-3)


@slow
@on_linux
@pytest.mark.parametrize("sent", [pytest.param(signal.SIGINT, marks=slow), signal.SIGTERM])
def test_a_signal_to_torchrun_saves_a_checkpoint(sent: signal.Signals, corpus: Path, tmp_path: Path) -> None:
    process = start(torchrun(2), corpus, "--out", tmp_path / "run", *SMALL, "--steps", "1000000")
    wait_until(lambda: len(log(tmp_path / "run")) > 5, process)
    process.send_signal(sent)
    _, stderr = finish(process)
    assert stderr.count("stopped and saved; resume with: charwright train --resume") == 1, stderr
    checkpoint, end = log(tmp_path / "run")[-2:]
    assert (checkpoint["event"], end["event"], end["reason"]) == ("checkpoint", "end", sent.name)
    train(1, "--resume", tmp_path / "run", "--steps", str(end["step"] + 2))


def test_more_ranks_than_rows_are_one_line(short: Path, tmp_path: Path) -> None:
    code, stderr = finish(start(torchrun(2), short, "--out", tmp_path / "run", *SMALL, "--batch", "1"))
    assert code != 0
    [line] = our_lines(stderr)
    assert "2 ranks cannot share batches of 1 rows; raise --batch or start fewer ranks" in line
    assert not (tmp_path / "run").exists()


@slow
@pytest.mark.parametrize(
    ("specs", "complaint"), [(["-"], "cannot read one standard input"), (["nowhere.txt"], "nowhere.txt")]
)
def test_a_text_that_cannot_be_read_is_one_line(specs: list[str], complaint: str, tmp_path: Path) -> None:
    code, stderr = finish(start(torchrun(2), *specs, "--out", tmp_path / "run", *SMALL))
    assert code != 0
    [line] = our_lines(stderr)
    assert complaint in line


@slow
def test_a_run_folder_has_to_be_named(short: Path) -> None:
    code, stderr = finish(start(torchrun(2), short, *SMALL))
    assert code != 0
    [line] = our_lines(stderr)
    assert "--out" in line


# The parts, in this process.


class Fixed(Ranks):
    """One of several ranks that never speaks to the others."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor


def test_without_torchrun_a_process_is_alone() -> None:
    assert join({"RANK": "1", "WORLD_SIZE": "4"}) is ALONE
    assert (ALONE.rank, ALONE.size, ALONE.launch) == (0, 1, None)
    agreement = Agreement(ALONE, lambda: 5.0, lambda: "why")
    assert (agreement.now(), agreement.stop()) == (5.0, "why")


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_the_timeout_is_a_number_of_seconds(text: str) -> None:
    environment = {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    environment |= {"LOCAL_WORLD_SIZE": "1", "GROUP_WORLD_SIZE": "2", TIMEOUT: text}
    with pytest.raises(UsageError, match=TIMEOUT):
        join(environment)


@pytest.mark.parametrize(("count", "size"), [(32, 2), (7, 3), (5, 5), (100, 8)])
def test_the_rows_of_the_ranks_are_all_rows(count: int, size: int) -> None:
    parts = [Fixed(rank, size).rows(count) for rank in range(size)]
    assert [row for part in parts for row in range(count)[part]] == list(range(count))
    lengths = [len(range(count)[part]) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    assert math.fsum(Part(part, count).share for part in parts) == pytest.approx(1)


def test_more_ranks_than_rows_are_refused() -> None:
    with pytest.raises(UsageError, match="8 ranks cannot share batches of 7 rows"):
        part_of(7, Fixed(0, 8))
    assert part_of(7, ALONE) is None


def test_a_part_has_the_masks_and_resets_of_its_rows() -> None:
    """Those that one process draws for the whole batch."""
    config = cw.ModelConfig(units=8, embedding_size=6, layers=2, dropout=0.4, recurrent_dropout=0.3)
    model = cw.LanguageModel(config, 11, seed=1)
    training = cw.TrainingConfig(steps=1, state_reset=0.4)
    ids = np.arange(11 * 7).reshape(11, 7) % 11
    hidden = (torch.ones(2, 7, 8),)
    whole = make_batch((ids[:-1], ids[1:]), hidden, training, 3, torch.device("cpu"))
    parts = []
    for rank in range(3):
        part = part_of(7, Fixed(rank, 3))
        assert part is not None
        own = tuple(state[:, part.rows] for state in hidden)
        rows = ids[:, part.rows]
        parts.append(make_part((rows[:-1], rows[1:]), own, training, 3, model, part))
    assert torch.equal(torch.cat([part.inputs for part in parts], dim=1), whole.inputs)
    assert whole.state is not None
    assert torch.equal(torch.cat([part.state[0] for part in parts if part.state], dim=1), whole.state[0])
    model.train()
    loss, _ = model.loss(whole.inputs, whole.targets, whole.state, generator=whole.generator)
    shares = [model.loss(part.inputs, part.targets, part.state, masks=part.masks)[0].detach() for part in parts]
    sizes = [part.inputs.shape[1] for part in parts]
    assert sum(size * float(share) for size, share in zip(sizes, shares, strict=True)) / 7 == pytest.approx(
        float(loss.detach())
    )


def test_a_validation_is_divided_by_streams() -> None:
    model = cw.LanguageModel(cw.ModelConfig(units=8, embedding_size=6), 5, seed=1)
    vocabulary, text = cw.Vocabulary("abcd"), "abacadbbcd" * 500
    whole = evaluate(model, vocabulary, text)
    found = [evaluate_text(reader_of(model, Fixed(rank, 2)), vocabulary, text).nats_per_char for rank in range(2)]
    assert sum(found) == pytest.approx(whole.nats_per_char), "each rank has left the streams of the other at zero"
    assert min(found) > 0.3 * whole.nats_per_char


def test_a_lost_rank_is_an_error_of_the_user() -> None:
    assert RankError("lost", 3).exit_code == 3
