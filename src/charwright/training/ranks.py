"""The ranks of a training: the processes, on one or several machines, that share the rows of each batch.

`torchrun` starts them and says in the environment who is who; `join` reads that. One process alone is `ALONE`, which
changes nothing and needs no torch.distributed.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor

from charwright.errors import RankError, UsageError, for_shell
from charwright.processes import started_at, usable_cores

Made = TypeVar("Made")

TIMEOUT = "CHARWRIGHT_RANKS_TIMEOUT"
TIMEOUT_S = 300.0
"""How long a rank waits for another that does not answer. One that ends is noticed at once."""

BEATS = "beats"
"""The counter of signs of life."""

POLL_S = 0.05


class Ranks:
    """One process that trains alone: rank 0 of 1.

    `launch` names the start by torchrun that this process belongs to; a restarted group has the name of the first one.
    """

    rank, size = 0, 1
    one_machine = False
    """Whether there are several, all on one machine."""

    def __init__(self, launch: str | None = None) -> None:
        self.launch = launch

    def rows(self, count: int) -> slice:
        """The part of `count` rows that belongs to this rank; the parts differ by one row at most."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns on rank 0, on all ranks; the others do not call it."""
        return make()

    def gather(self, value: Made) -> list[Made]:
        """The values of all ranks, in their order."""
        return [value]

    def prepare(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on this rank; the first rank of each machine works first, then the others.

        So they find what it has left in the cache. All wait for the slowest, however long it takes.
        """
        return work()

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks, with the same bits on each; returns it."""
        return tensor

    def meet(self) -> None:
        """Wait until all ranks have come here; each then sees what the others have written to shared memory."""

    def whole(self, part: Tensor, count: int) -> Tensor:
        """(L, rows, H) -> (L, count, H): the rows of all ranks."""
        if self.size == 1:
            return part
        whole = part.new_zeros(part.shape[0], count, part.shape[2])
        whole[:, self.rows(count)] = part
        return self.sum(whole)

    def speaks(self) -> bool:
        """Whether this rank reports the failure of the group: the first that asks does."""
        return True

    def described(self, error: Exception) -> str:
        """The message of an error, for the command line, with the rank that has failed."""
        return for_shell(error)

    def leave(self) -> None:
        """End the connections to the other ranks."""


ALONE = Ranks()


class Group(Ranks):
    """Several ranks, connected by torch.distributed: gloo for tensors on CPUs, nccl for those on GPUs."""

    def __init__(
        self,
        rank: int,
        size: int,
        launch: str,
        attempt: str,
        timeout_s: float,
        *,
        machine: int,
        local: int,
        one_machine: bool,
    ) -> None:
        """Connect, as the environment that torchrun sets says. This is rank `local` of machine `machine`.

        `attempt` tells the restarts of a group apart: PyTorch 2.13 keeps one store for all of them, in which the
        addresses of the ranks before would still be found.

        Raises:
            RankError: when the other ranks cannot be reached.
        """
        from torch import distributed

        super().__init__(launch)
        self.rank, self.size = rank, size
        self._timeout_s = timeout_s
        self._machine, self._local, self._preparations = machine, local, 0
        self.one_machine, self._token = one_machine, torch.zeros(1)
        self._library: Any = distributed
        backend = "cpu:gloo,cuda:nccl" if distributed.is_nccl_available() and torch.cuda.is_available() else "gloo"
        with self._connected():
            timeout = timedelta(seconds=timeout_s)
            shared, *_ = next(self._library.rendezvous("env://", timeout=timeout))
            self._store = self._library.PrefixStore(f"charwright/{attempt}", shared)
            self._library.init_process_group(backend, store=self._store, rank=rank, world_size=size, timeout=timeout)

    @property
    def name(self) -> str:
        """The rank and its machine, for messages."""
        return f"rank {self.rank} of {self.size} on {socket.gethostname()}"

    @contextmanager
    def _connected(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"{self.name} no longer reaches the others: one has ended, "
                f"or has not answered for {self._timeout_s:g} s"
            ) from error

    def first(self, make: Callable[[], Made]) -> Made:
        """What `make` returns on rank 0, sent to all ranks as a pickle."""
        box: list[Any] = [make() if self.rank == 0 else None]
        with self._connected():
            self._library.broadcast_object_list(box, src=0)
        made: Made = box[0]
        return made

    def gather(self, value: Made) -> list[Made]:
        """The values of all ranks, in their order."""
        boxes: list[Any] = [None] * self.size
        with self._connected():
            self._library.all_gather_object(boxes, value)
        return boxes

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over the ranks, with the same bits on each; returns it."""
        with self._connected():
            self._library.all_reduce(tensor)
        return tensor

    def meet(self) -> None:
        """Wait until all ranks have come here; each then sees what the others have written to shared memory."""
        with self._connected():
            self._library.all_reduce(self._token)

    def prepare(self, work: Callable[[], Made]) -> Made:
        """What `work` returns on this rank; the first rank of each machine works first, then the others.

        Counters in the store of torchrun say who has done, since an operation of torch.distributed waits for as long as
        the timeout at most.
        """
        self._preparations += 1
        all_done = f"preparation-{self._preparations}"
        machine_done = f"{all_done}/machine-{self._machine}"
        if self._local > 0:
            self._await(machine_done, 1)
        with self._beating():
            made = work()
        with self._connected():
            if self._local == 0:
                self._store.add(machine_done, 1)
            self._store.add(all_done, 1)
        self._await(all_done, self.size)
        return made

    def _await(self, key: str, count: int) -> None:
        """Wait until a counter has reached a number, for as long as a rank that works gives signs of life."""
        seen, since_s = -1, time.monotonic()
        with self._connected():
            while self._store.add(key, 0) < count:
                if (beats := self._store.add(BEATS, 0)) != seen:
                    seen, since_s = beats, time.monotonic()
                if time.monotonic() - since_s > self._timeout_s:
                    raise RuntimeError("no sign of life")
                time.sleep(POLL_S)

    @contextmanager
    def _beating(self) -> Iterator[None]:
        """Give signs of life, in a thread."""
        done = threading.Event()

        def beat() -> None:
            while not done.wait(self._timeout_s / 10):
                with suppress(RuntimeError):  # The main thread will say so.
                    self._store.add(BEATS, 1)

        thread = threading.Thread(target=beat, name="charwright-beat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def speaks(self) -> bool:
        """Whether this rank is the first that asks; if the store of torchrun is gone too, each one is."""
        try:
            return int(self._store.add("failed", 1)) == 1
        except RuntimeError:
            return True

    def described(self, error: Exception) -> str:
        """The message of an error, for the command line, with the rank that has failed."""
        return for_shell(error) if isinstance(error, RankError) else f"{self.name}: {for_shell(error)}"

    def leave(self) -> None:
        """End the connections to the other ranks."""
        self._library.destroy_process_group()


def join(environment: Mapping[str, str]) -> Ranks:
    """The ranks that torchrun has started, this process among them; `ALONE` without torchrun.

    Each rank uses its share of the cores of its machine, or its own GPU. torchrun sets OMP_NUM_THREADS to 1 where
    nobody has set it, so 1 cannot be told from a wish; `--threads` can.

    Raises:
        UsageError: when the timeout is not a number of seconds.
        RankError: when the other ranks cannot be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in environment:
        return ALONE
    rank, size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
    local, neighbors = int(environment["LOCAL_RANK"]), int(environment["LOCAL_WORLD_SIZE"])
    if neighbors > 1 and environment.get("OMP_NUM_THREADS", "1") == "1":
        torch.set_num_threads(max(1, usable_cores() // neighbors))
    if torch.cuda.is_available():
        torch.cuda.set_device(local % torch.cuda.device_count())
    launch = environment["TORCHELASTIC_RUN_ID"]
    if launch == "none":  # Without --rdzv-id the process of torchrun, which survives restarts, tells starts apart.
        torchrun = os.getppid()
        launch = f"{socket.gethostname()}:{torchrun}:{started_at(torchrun)}"
    if size == 1:
        return Ranks(launch)
    # Each torchrun counts for itself, so several of them have no common number.
    attempt = environment["TORCHELASTIC_RESTART_COUNT"] if environment["GROUP_WORLD_SIZE"] == "1" else "0"
    timeout_s, machine = _timeout_s(environment), int(environment["GROUP_RANK"])
    one_machine = neighbors == size
    return Group(rank, size, launch, attempt, timeout_s, machine=machine, local=local, one_machine=one_machine)


def _timeout_s(environment: Mapping[str, str]) -> float:
    text = environment.get(TIMEOUT, str(TIMEOUT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 86_400:
        raise UsageError(f"{TIMEOUT} must be a number of seconds from 1 to 86400, not {text!r}")
    return seconds
