"""Ids become batches: windows, streams, short texts and prefetching."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from charwright.config import SequenceConfig, SplitConfig, TrainingConfig
from charwright.data.prefetch import prefetch
from charwright.data.sequences import EXCERPT, Excerpts, Streams, Windows, make_dataset
from charwright.data.short_texts import shrink_to_fit
from charwright.data.split import split_corpus
from charwright.data.vocabulary import Vocabulary
from charwright.errors import ConfigError, CorpusError
from charwright.training.budget import AT_ONCE, Budget, remaining_batches
from charwright.training.snapshot import Position

KINDS = {"windows": Windows, "streams": Streams, "excerpts": Excerpts}


def ramp(length: int) -> np.ndarray:
    """Distinct ids: each one is its own position."""
    return np.arange(length, dtype=np.int32)


@st.composite
def datasets(draw):
    """A dataset of any kind over a long enough ramp, and the length of the ramp."""
    kind = draw(st.sampled_from([*KINDS.values()]))
    seq_length, batch = draw(st.integers(1, 12)), draw(st.integers(1, 9))
    length = draw(st.integers(2 + (seq_length + 1) * batch, 600))
    return kind(ramp(length), seq_length, batch, draw(st.integers(0, 2**63 - 1))), length


class TestBoth:
    @given(datasets(), st.integers(1, 2**40))
    def test_the_target_is_the_input_shifted_by_one(self, made, epoch):
        dataset, length = made
        for inputs, targets in dataset.batches(epoch):
            assert inputs.shape == targets.shape == (dataset.seq_length, dataset.batch)
            assert inputs.dtype == targets.dtype == np.int64
            assert (inputs[1:] == targets[:-1]).all()
            assert (targets == (inputs + 1) % length).all()  # also where the ring closes

    @given(datasets(), st.integers(1, 100), st.integers(0, 700))
    def test_any_batch_can_be_reproduced(self, made, epoch, start):
        dataset, _ = made
        whole = list(dataset.batches(epoch))
        assert len(whole) == dataset.steps_per_epoch
        tail = list(dataset.batches(epoch, start))
        assert len(tail) == max(0, len(whole) - start)
        for (x, y), (again_x, again_y) in zip(whole[start:], tail, strict=True):
            assert (x == again_x).all()
            assert (y == again_y).all()

    @pytest.mark.parametrize("kind", KINDS.values())
    def test_the_order_is_a_function_of_seed_and_epoch(self, kind):
        def first(seed: int, epoch: int) -> list[int]:
            return next(iter(kind(ramp(9999), 5, 4, seed).batches(epoch)))[0].ravel().tolist()

        orders = {(seed, epoch): first(seed, epoch) for seed in range(3) for epoch in range(1, 4)}
        assert len(set(map(tuple, orders.values()))) == len(orders)
        np.random.seed(3)
        assert all(first(*key) == order for key, order in orders.items())

    @pytest.mark.parametrize("kind", KINDS.values())
    def test_batches_do_not_share_memory_with_the_text(self, kind):
        ids = np.arange(100, dtype=np.int64)
        for inputs, _ in kind(ids, 4, 3).batches(1):
            inputs[:] = -1
        assert (ids == np.arange(100)).all()

    def test_make_dataset_follows_the_configuration(self):
        windows = make_dataset(ramp(100), SequenceConfig(order="windows", batch=2, seq_length=3), seed=7)
        streams = make_dataset(ramp(100), SequenceConfig(order="streams", batch=2, seq_length=3), seed=7)
        assert isinstance(windows, Windows)
        assert isinstance(streams, Streams)
        assert (windows.carries, streams.carries) == (False, True)
        assert (windows.batch, windows.seq_length, windows.seed) == (2, 3, 7)
        assert (streams.batch, streams.seq_length, streams.seed) == (2, 3, 7)

    @pytest.mark.parametrize("kind", KINDS.values())
    def test_a_text_that_is_too_short_is_rejected_with_the_sizes(self, kind):
        with pytest.raises(CorpusError, match=r"1,000 ids .* batch of 64"):
            kind(ramp(1000), 100, 64)


class TestWindows:
    def test_tutorial_sizes(self, tinyshakespeare):
        ids = Vocabulary.from_text(tinyshakespeare).encode(tinyshakespeare)
        dataset = Windows(ids, 100, 64)
        assert dataset.count == 11_043
        assert dataset.steps_per_epoch == 172
        inputs, targets = dataset.pair(0)
        assert inputs[:15].tolist() == [19, 48, 57, 58, 59, 2, 16, 48, 59, 48, 65, 44, 53, 11, 1]
        assert (inputs == ids[:100]).all()
        assert (targets == ids[1:101]).all()
        assert next(iter(dataset.batches(1)))[0].shape == (100, 64)

    @given(length=st.integers(20, 500), seq_length=st.integers(1, 9), batch=st.integers(1, 2))
    def test_each_piece_occurs_once_and_remainders_are_dropped(self, length, seq_length, batch):
        dataset = Windows(ramp(length), seq_length, batch)
        pieces = length // (seq_length + 1)
        begins = [int(begin) for inputs, _ in dataset.batches(1) for begin in inputs[0]]
        assert len(begins) == pieces // batch * batch
        assert len(set(begins)) == len(begins)
        assert all(begin % (seq_length + 1) == 0 and begin // (seq_length + 1) < pieces for begin in begins)

    def test_each_epoch_drops_different_pieces(self):
        dataset = Windows(ramp(11 * 5), 4, 3)
        seen = [{int(begin) for x, _ in dataset.batches(epoch) for begin in x[0]} for epoch in range(1, 9)]
        assert set.union(*seen) == set(range(0, 55, 5))

    def test_pieces_are_shuffled(self):
        begins = np.concatenate([inputs[0] for inputs, _ in Windows(ramp(5000), 4, 10).batches(1)])
        assert abs(np.corrcoef(begins, np.arange(len(begins)))[0, 1]) < 0.2


class TestStreams:
    @given(
        seq_length=st.integers(1, 9),
        batch=st.integers(1, 7),
        extra=st.integers(0, 100),
        steps=st.integers(1, 20),
        epoch=st.integers(1, 9),
    )
    def test_each_row_continues_where_it_ended(self, seq_length, batch, extra, steps, epoch):
        length = seq_length * batch * steps + extra
        if length < 2:
            return
        dataset = Streams(ramp(length), seq_length, batch)
        ends = None
        for inputs, targets in dataset.batches(epoch):
            if ends is not None:
                assert (inputs[0] == ends).all()
            ends = targets[-1]
        assert ends is not None

    @given(length=st.integers(2, 400), seq_length=st.integers(1, 9), batch=st.integers(1, 9), epoch=st.integers(1, 99))
    def test_no_character_is_read_twice_in_an_epoch(self, length, seq_length, batch, epoch):
        if length // batch < seq_length:
            return
        dataset = Streams(ramp(length), seq_length, batch)
        read = np.concatenate([inputs.ravel() for inputs, _ in dataset.batches(epoch)])
        assert len(set(read.tolist())) == len(read) == length // batch // seq_length * seq_length * batch

    def test_every_character_is_read_over_several_epochs(self):
        # 10 characters in 2 streams of 3: each epoch leaves out 4, and later epochs leave out others.
        dataset = Streams(ramp(10), 3, 2)
        read = {int(i) for epoch in range(1, 30) for inputs, _ in dataset.batches(epoch) for i in inputs.ravel()}
        assert read == set(range(10))
        seams = {int(targets[-1, row]) for e in range(1, 99) for _, targets in dataset.batches(e) for row in (0, 1)}
        assert 0 in seams  # the last character is followed by the first

    def test_streams_are_spread_evenly(self):
        [(inputs, _)] = Streams(ramp(1000), 250, 4).batches(1)
        assert (np.diff(inputs[0]) % 1000 == 250).all()


class TestExcerpts:
    @given(
        seq_length=st.sampled_from([1, 3, 64, 1000]),
        batch=st.integers(1, 4),
        extra=st.integers(0, 9000),
        epoch=st.integers(1, 9),
    )
    def test_rows_read_whole_excerpts_and_none_twice(self, seq_length, batch, extra, epoch):
        dataset = Excerpts(ramp(seq_length * batch + 1 + extra), seq_length, batch)
        pairs = list(dataset.batches(epoch))
        assert len(pairs) == dataset.steps_per_epoch
        for step, (before, (inputs, _)) in enumerate(itertools.pairwise(pairs), 1):
            assert step % dataset.steps_per_excerpt == 0 or (inputs[0] == before[1][-1]).all()
        read = np.concatenate([inputs.ravel() for inputs, _ in pairs])
        assert len(set(read.tolist())) == len(read)
        assert len(read) > len(dataset.ids) - batch * (dataset.steps_per_excerpt + 1) * seq_length

    def test_any_rows_and_any_batch_are_the_same_alone(self):
        dataset = Excerpts(ramp(20 * EXCERPT * 6), 64, 6, seed=3)
        whole = list(dataset.batches(2))
        for start in (0, 13, 64):
            alone = dataset.part(slice(2, 5)).batches(2, start)
            for (inputs, targets), (mine, my_targets) in zip(whole[start:], alone, strict=True):
                assert (inputs[:, 2:5] == mine).all()
                assert (targets[:, 2:5] == my_targets).all()

    def test_a_tenth_of_an_epoch_is_from_all_over_the_text(self):
        length, parts = 1600 * EXCERPT, 160
        for kind, least, most in ((Excerpts, 0.6, 0.8), (Streams, 0.1, 0.2)):
            dataset = kind(ramp(length), 64, 16)
            tenth = itertools.islice(dataset.batches(1), dataset.steps_per_epoch // 10)
            read = np.concatenate([inputs[0] for inputs, _ in tenth])
            assert least <= len(np.unique(read * parts // length)) / parts <= most, kind


class TestShrinking:
    @pytest.mark.parametrize("order", KINDS)
    @pytest.mark.parametrize("length", [2, 3, 4, 50, 300, 2000, 6464])
    def test_short_texts_make_a_dataset(self, order, length):
        wanted = SequenceConfig(order=order, batch=64, seq_length=100)
        config, notice = shrink_to_fit(length, wanted)
        dataset = make_dataset(ramp(length), config, seed=1)
        batches = list(dataset.batches(1))
        assert len(batches) == dataset.steps_per_epoch >= 1
        assert config.order == order
        whole = length >= 64 * (101 if order == "windows" else 100)
        assert (config == wanted) == whole == (notice is None)
        assert config.seq_length == min(100, length - 1)
        if not whole:
            assert f"{length:,} characters" in notice
            assert f"{config.batch} x {config.seq_length} instead of 64 x 100" in notice

    @given(length=st.integers(2, 5000), order=st.sampled_from(list(KINDS)))
    def test_at_least_45_percent_of_any_text_is_used(self, length, order):
        config, _ = shrink_to_fit(length, SequenceConfig(order=order, batch=16, seq_length=32))
        dataset = make_dataset(ramp(length), config, seed=1)
        used = dataset.steps_per_epoch * dataset.batch * dataset.seq_length
        assert used >= (length - 1) * 0.45

    @pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
    @pytest.mark.parametrize("text", ["ab", "abc", "abcd", "ab" * 25, "abc" * 100])
    def test_short_texts_make_batches_after_splitting(self, text, fraction):
        training, _ = split_corpus(text, SplitConfig(val_fraction=fraction))
        ids = Vocabulary.from_text(text).encode(training)
        config, _ = shrink_to_fit(len(ids), SequenceConfig())
        assert next(iter(make_dataset(ids, config, 1).batches(1)))[0].size >= 1

    @pytest.mark.parametrize("length", [0, 1])
    def test_fewer_than_two_characters_are_rejected(self, length):
        with pytest.raises(CorpusError, match="at least two"):
            shrink_to_fit(length, SequenceConfig())


def prefetch_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "charwright-prefetch"]


class Asked:
    """A dataset that notes which threads ask for its batches."""

    def __init__(self, dataset: Streams) -> None:
        self.threads: set[str] = set()
        self._dataset = dataset
        self.carries, self.batch = dataset.carries, dataset.batch
        self.seq_length, self.steps_per_epoch = dataset.seq_length, dataset.steps_per_epoch

    def batches(self, epoch: int, start: int = 0):
        for pair in self._dataset.batches(epoch, start):
            self.threads.add(threading.current_thread().name)
            yield pair


class TestPrefetch:
    @pytest.mark.parametrize(
        ("in_memory", "device", "thread"),
        [(True, "cpu", "MainThread"), (False, "cpu", "charwright-prefetch"), (True, "cuda", "charwright-prefetch")],
    )
    def test_on_a_cpu_batches_from_memory_need_no_thread(self, in_memory, device, thread):
        dataset = Asked(Streams(ramp(100), 5, 2))
        if in_memory:
            dataset.ids = ramp(100)
        config = TrainingConfig(epochs=1)
        budget = Budget(config, Position(), dataset.steps_per_epoch, lambda: 0.0, 0.0)
        assert len(list(remaining_batches(dataset, budget, torch.device(device)))) == dataset.steps_per_epoch
        assert dataset.threads == {thread}

    @pytest.mark.parametrize("start", [0, 3])
    @pytest.mark.parametrize("kind", [Windows, Streams, Excerpts])
    def test_batches_cut_in_a_row_are_those_of_the_dataset(self, kind, start):
        dataset = kind(ramp(600), 5, 2)
        position = Position(step=start, step_in_epoch=start)
        budget = Budget(TrainingConfig(epochs=1), position, dataset.steps_per_epoch, lambda: 0.0, 0.0)
        found = list(remaining_batches(dataset, budget, torch.device("cpu")))
        assert len(found) == dataset.steps_per_epoch - start > 2 * AT_ONCE
        for pair, wanted in zip(found, dataset.batches(position.epoch, start), strict=True):
            assert np.array_equal(pair, wanted)

    @pytest.mark.parametrize("depth", [1, 2, 5])
    def test_the_same_items_in_the_same_order(self, depth):
        assert list(prefetch(iter(range(200)), depth)) == list(range(200))
        assert list(prefetch(iter(()), depth)) == []
        assert prefetch_threads() == []

    def test_none_is_a_valid_item(self):
        assert list(prefetch(iter([None, None]))) == [None, None]

    def test_items_are_prepared_ahead(self):
        made = []
        third = threading.Event()

        def items():
            for i in range(10):
                made.append(i)
                if i == 2:
                    third.set()
                yield i

        ahead = prefetch(items(), depth=2)
        assert next(ahead) == 0
        assert third.wait(5)  # before the next item is requested
        time.sleep(0.02)
        assert len(made) <= 4  # one in use, two queued, one waiting for a place in the queue
        ahead.close()

    def test_an_error_is_raised_after_the_items_before_it(self):
        def items():
            yield 1
            yield 2
            raise CorpusError("the third is bad")

        ahead = prefetch(items())
        assert list(itertools.islice(ahead, 2)) == [1, 2]
        with pytest.raises(CorpusError, match="the third is bad"):
            next(ahead)
        assert prefetch_threads() == []

    @pytest.mark.parametrize("taken", [1, 3])
    def test_the_thread_ends_when_it_is_closed_early(self, taken):
        ahead = prefetch(itertools.count())
        assert list(itertools.islice(ahead, taken)) == list(range(taken))
        assert len(prefetch_threads()) == 1
        ahead.close()
        assert prefetch_threads() == []

    def test_no_thread_starts_before_the_first_item_is_requested(self):
        ahead = prefetch(itertools.count())
        assert prefetch_threads() == []
        ahead.close()


@pytest.mark.parametrize("kind", KINDS.values())
def test_sizes_and_ids_are_checked(kind: type[Streams] | type[Windows]) -> None:
    for seq_length, batch, wrong in ((0, 2, "`seq_length`"), (-1, 2, "`seq_length`"), (4, 0, "`batch`")):
        with pytest.raises(ConfigError, match=f"{wrong} must be at least 1"):
            kind(ramp(50), seq_length, batch)
    for ids, name in (
        (ramp(50).astype(float), "one of float64"),
        (torch.arange(50), "Tensor"),
        (list(range(50)), "list"),
    ):
        with pytest.raises(ConfigError, match=f"ids must be a NumPy array of integers, .* not {name}"):
            kind(ids, 4, 2)


def test_a_piece_that_does_not_exist() -> None:
    windows = Windows(ramp(50), 4, 2)
    assert windows.pair(9)[0].tolist() == [45, 46, 47, 48]
    for index in (10, -1):
        with pytest.raises(IndexError, match=f"piece {index} of 10"):
            windows.pair(index)
