"""What ranks do with a text: they prepare it in turn, wait for each other, and read their own rows only."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charwright import kernels
from charwright.data.mapped_ids import MappedIds
from charwright.data.sequences import Pair, Streams, Windows
from charwright.errors import RankError
from charwright.training import sums
from charwright.training.ranks import ALONE, Group, Ranks
from charwright.training.sharing import Part, part_of, rows_of
from charwright.training.sums import turns_of
from torchrun import log, train

slow = pytest.mark.slow


class Store:
    """The counters of torchrun's store."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, key: str, amount: int) -> int:
        with self._lock:
            self._counts[key] += amount
            return self._counts[key]


class Member(Group):
    """A rank without processes and connections."""

    def __init__(self, store: Store, rank: int, size: int, per_machine: int, timeout_s: float = 60) -> None:
        Ranks.__init__(self)
        self.rank, self.size, self._store, self._timeout_s = rank, size, store, timeout_s
        self._machine, self._local = divmod(rank, per_machine)
        self._preparations = 0


def together(ranks: list[Member], work: Any) -> list[Any]:
    """What each rank returns or raises."""
    results: list[Any] = [None] * len(ranks)

    def run(rank: Member) -> None:
        try:
            results[rank.rank] = work(rank)
        except Exception as error:
            results[rank.rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_the_first_rank_of_each_machine_prepares_first_and_all_wait_for_all() -> None:
    store, events, lock = Store(), [], threading.Lock()

    def work(rank: Member) -> list[int]:
        def prepare(round_: int) -> int:
            with lock:
                events.append(("begins", round_, rank.rank))
            time.sleep(0.02 * (rank.rank + 1))
            with lock:
                events.append(("ends", round_, rank.rank))
            return 10 * round_ + rank.rank

        return [rank.prepare(lambda number=number: prepare(number)) for number in (1, 2)]

    found = together([Member(store, rank, 6, 3) for rank in range(6)], work)
    assert found == [[10 + rank, 20 + rank] for rank in range(6)]
    for number in (1, 2):
        for rank in range(6):
            first = rank // 3 * 3
            if rank != first:
                assert events.index(("ends", number, first)) < events.index(("begins", number, rank))
    assert {number for _, number, _ in events[:12]} == {1}, "none goes on before all have done"


def test_a_preparation_may_take_longer_than_the_timeout() -> None:
    store = Store()
    found = together(
        [Member(store, rank, 2, 2, timeout_s=0.4) for rank in range(2)],
        lambda rank: rank.prepare(lambda: time.sleep(1.0) or rank.rank),
    )
    assert found == [0, 1]


def test_without_a_sign_of_life_the_others_end() -> None:
    store = Store()
    waiting = Member(store, 1, 2, 2, timeout_s=0.3)
    [_, error] = together([Member(store, 0, 2, 2), waiting], lambda rank: rank.rank and rank.prepare(lambda: None))
    assert isinstance(error, RankError)
    assert "no longer reaches the others" in str(error)
    assert "0.3 s" in str(error)


def test_one_rank_alone_only_works() -> None:
    assert ALONE.prepare(lambda: 5) == 5


# Rows.


class Counting(MappedIds):
    """Ids that count how many of them are read."""

    def __init__(self, length: int) -> None:
        self.length, self.read, self.dtype = length, 0, np.dtype(np.int32)

    def __len__(self) -> int:
        return self.length

    def take(self, indices: Any) -> Any:
        self.read += indices.size
        return (indices % self.length).astype(np.int32)


class Own:
    """A dataset of a user's own."""

    carries, batch, seq_length, steps_per_epoch = False, 7, 3, 4

    def batches(self, epoch: int, start: int = 0) -> Iterator[Pair]:
        for step in range(start, self.steps_per_epoch):
            inputs = np.arange(21).reshape(3, 7) + 100 * step + 1000 * epoch
            yield inputs, inputs + 1


@given(st.sampled_from([Windows, Streams]), st.integers(1, 9), st.integers(1, 5), st.integers(0, 3))
def test_a_rank_reads_its_rows_and_no_others(kind: type[Windows | Streams], batch: int, size: int, start: int) -> None:
    if batch < size:
        return
    whole = kind(Counting(600), 5, batch, seed=3)
    expected = list(whole.batches(2, start))
    parts = []
    for rank in range(size):
        fixed = Ranks()
        fixed.rank, fixed.size = rank, size
        part = part_of(batch, fixed) or Part(slice(batch), batch)
        ids = Counting(600)
        own = rows_of(kind(ids, 5, batch, seed=3), part)
        assert (own.batch, own.steps_per_epoch, own.carries) == (batch, whole.steps_per_epoch, whole.carries)
        parts.append(list(own.batches(2, start)))
        assert ids.read == len(expected) * 6 * len(range(batch)[part.rows])
    for step, (inputs, targets) in enumerate(expected):
        assert (np.concatenate([part[step][0] for part in parts], axis=1) == inputs).all()
        assert (np.concatenate([part[step][1] for part in parts], axis=1) == targets).all()


def test_the_rows_of_another_dataset_are_cut_out() -> None:
    assert rows_of(Own(), None).__class__ is Own
    cut = rows_of(Own(), Part(slice(2, 5), 7))
    assert (cut.batch, cut.seq_length, cut.steps_per_epoch, cut.carries) == (7, 3, 4, False)
    for (inputs, targets), (all_inputs, all_targets) in zip(cut.batches(1, 2), Own().batches(1, 2), strict=True):
        assert (inputs == all_inputs[:, 2:5]).all()
        assert (targets == all_targets[:, 2:5]).all()


# Gradients.


class Neighbor(Ranks):
    """One of several ranks of one machine, in threads."""

    one_machine = True

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list[Any]) -> None:
        super().__init__()
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def meet(self) -> None:
        self._barrier.wait()

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def first(self, make: Any) -> Any:
        return self.gather(make() if self.rank == 0 else None)[0]

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        parts = self.gather(tensor.clone())
        return tensor.copy_(torch.stack(parts).sum(0))


def summed(size: int) -> tuple[list[Any], set[int]]:
    """The sums that each of `size` ranks finds in six steps of different lengths, and how many turns they take."""
    barrier, board = threading.Barrier(size), [None] * size
    results: list[Any] = [[] for _ in range(size)]
    turns_taken = set()

    def work(rank: int) -> None:
        weights = [torch.zeros(7, 5), torch.zeros(3)]
        turns = turns_of(weights, Neighbor(rank, size, barrier, board))
        turns_taken.add(len(turns))
        for step in range(6):
            turn = turns[step % len(turns)]
            for own in turn.own:
                own.fill_(10.0**rank * (step + 1))
            turn.add_up()
            time.sleep(0.01 * ((rank + step) % 3))
            results[rank].append([total.clone() for total in turn.total])

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results, turns_taken


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have no /dev/shm")
@pytest.mark.parametrize("size", [2, 3, 4])
def test_gradients_are_added_up_in_shared_memory(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "SHARED_FOLDER", tmp_path)
    check_sums(*summed(size), turns=2)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("problem", ["no folder", "no room", "cannot be mapped"])
def test_without_shared_memory_they_are_sent(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "SHARED_FOLDER", tmp_path / "none" if problem == "no folder" else tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if problem == "no room":
        monkeypatch.setattr(os, "posix_fallocate", refuse)
    elif problem == "cannot be mapped":
        monkeypatch.setattr(torch, "from_file", refuse)
    check_sums(*summed(2), turns=1)
    assert list(tmp_path.iterdir()) == []


def check_sums(results: list[Any], turns_taken: set[int], *, turns: int) -> None:
    assert turns_taken == {turns}
    ones = float("1" * len(results))
    for found in results:
        for step, totals in enumerate(found):
            assert [total.shape for total in totals] == [(7, 5), (3,)]
            assert all((total == ones * (step + 1)).all() for total in totals)


# Early stopping, in processes.


@slow
@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_stop_early_at_the_step_of_one(ranks: int, tmp_path: Path) -> None:
    """The text has no structure, so the validation loss soon rises."""
    letters = np.random.default_rng(1).integers(97, 107, 3000).astype(np.uint8).tobytes().decode()
    (tmp_path / "text.txt").write_text(letters, encoding="utf-8")
    options = [
        *("--units", "32", "--embedding-size", "8", "--batch", "6", "--seq-length", "16", "--epochs", "40"),
        *("--warmup", "0", "--learning-rate", "0.01", "--schedule", "constant", "--patience", "2", "--threads", "1"),
        *("--precision", "f32", "--device", "cpu", "--clip-norm", "1"),
    ]
    train(1, tmp_path / "text.txt", "--out", tmp_path / "alone", *options)
    train(ranks, tmp_path / "text.txt", "--out", tmp_path / "together", *options)
    alone, several = log(tmp_path / "alone"), log(tmp_path / "together")
    assert alone[-1]["reason"] == several[-1]["reason"] != "done"
    assert (alone[-1]["step"], alone[-1]["best_step"]) == (several[-1]["step"], several[-1]["best_step"])
    assert several[-1]["best_loss"] == pytest.approx(alone[-1]["best_loss"], rel=1e-4)


@pytest.mark.parametrize("options", ["core='native'", "core='fused'", "core='fused', optimizer='adamw'"])
def test_training_does_not_import_the_compiler_of_pytorch(options: str, tmp_path: Path) -> None:
    """It would take a second of each start."""
    if "native" in options and kernels.load() is None:
        pytest.skip("the kernels are not built")
    (tmp_path / "text.txt").write_text("abcdefgh\n" * 200, encoding="utf-8")
    code = (
        "import sys, charwright as cw; "
        f"cw.train({str(tmp_path / 'text.txt')!r}, out={str(tmp_path / 'run')!r}, units=16, embedding_size=8, batch=4, "
        f"seq_length=16, steps=3, {options}, device='cpu'); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout.splitlines()[-1] == "False"
