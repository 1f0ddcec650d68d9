"""How a run computes: recorded in config.json, and kept by a resume as long as it is possible and wanted."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from charwright.config import Recipe
from charwright.errors import UsageError
from charwright.model.compute import Compute, Wanted, asked_core, choose_device
from charwright.model.features import usable_variants
from charwright.planning.calibration import choose_here
from charwright.planning.choice import Choice
from charwright.run_config import ComputeRecord
from charwright.training.ranks import Ranks
from charwright.workflow.texts import Notify


def record_of(choice: Choice) -> ComputeRecord:
    """What config.json keeps of a choice; the number of threads only if the user gave one."""
    compute = choice.compute
    return ComputeRecord(
        device=str(compute.device),
        core=compute.core,
        precision=compute.precision_name,
        kernel=compute.kernel,
        threads=compute.threads,
        measured=choice.measured,
    )


def choice_for_resume(
    record: ComputeRecord | None,
    recipe: Recipe,
    vocabulary_size: int,
    wanted: Wanted,
    notify: Notify,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Choice, ComputeRecord]:
    """How a run computes from now on, and its new record; a change is one notice.

    What the user does not ask for stays as recorded. If that is not possible here, the choice is made anew. The record
    keeps the number of threads that the user gave, even if this machine has fewer.
    """
    kept = None if record is None else kept_compute(record, wanted)
    if record is not None and kept is not None:
        choice = Choice(kept, record.measured if is_recorded(kept, record) else None)
    else:
        threads = wanted.threads if record is None else _threads(record, wanted)
        anew = dataclasses.replace(wanted, threads=threads)
        anew.by_rule().start()
        choice = choose_here(recipe, vocabulary_size, anew, clock=clock)
    renewed = record_of(choice)
    if record is None:
        return choice, renewed
    if not is_recorded(choice.compute, record):
        notify(f"continues on {renewed}; until now it computed on {record}")
    return choice, dataclasses.replace(renewed, threads=wanted.threads or record.threads)


def kept_compute(record: ComputeRecord, wanted: Wanted) -> Compute | None:
    """The recorded choice with the changes that the user asks for, or None if this machine cannot do it.

    The kernels stay in the recorded variant. The number of threads is as asked for or as recorded; a machine with fewer
    than recorded uses its own.
    """
    asked = asked_core(wanted.core)
    core = record.core if asked == "auto" else asked
    precision = record.precision if wanted.precision == "auto" else wanted.precision
    try:
        device = choose_device(record.device if wanted.device == "auto" else wanted.device)
        chosen = Compute.choose(str(device), core, precision, _threads(record, wanted))
        if chosen.core != "native" or record.kernel is None:
            return chosen
        usable = record.kernel in usable_variants()
    except UsageError:
        return None
    return dataclasses.replace(chosen, kernel=record.kernel) if usable else None


def is_recorded(compute: Compute, record: ComputeRecord) -> bool:
    """Whether a choice is the recorded one; the number of threads may differ."""
    names = (str(compute.device), compute.core, compute.precision_name, compute.kernel)
    return names == (record.device, record.core, record.precision, record.kernel)


def choice_here(choice: Choice, ranks: Ranks) -> Choice:
    """The choice of rank 0, whose machine may have other kernels; a machine without them takes its own best."""
    compute = choice.compute
    if ranks.rank == 0 or compute.core != "native" or compute.kernel is None or compute.kernel in usable_variants():
        return choice
    own = Compute.choose(str(compute.device), compute.core, compute.precision_name, compute.threads)
    return dataclasses.replace(choice, compute=own)


def _threads(record: ComputeRecord, wanted: Wanted) -> int | None:
    """The number of threads to use; None as PyTorch is set."""
    if wanted.threads is not None or record.threads is None:
        return wanted.threads
    return record.threads if record.threads <= torch.get_num_threads() else None
