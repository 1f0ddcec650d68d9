"""How a run computes: recorded in config.json, and kept by a resume as long as it is possible and wanted."""

from __future__ import annotations

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
from charwright.workflow.texts import Notify


def record_of(choice: Choice) -> ComputeRecord:
    """What config.json keeps of a choice; called with the threads set that the run uses."""
    compute = choice.compute
    return ComputeRecord(
        device=str(compute.device),
        core=compute.core,
        precision=compute.precision_name,
        kernel=compute.kernel,
        threads=compute.threads or torch.get_num_threads(),
        measured=choice.measured,
    )


def choice_for_resume(
    record: ComputeRecord | None,
    recipe: Recipe,
    vocabulary_size: int,
    wanted: Wanted,
    notify: Notify,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Choice:
    """The recorded choice if it is still wanted and possible; otherwise a new one, with a notice if there was one."""
    kept = None if record is None else kept_compute(record, wanted)
    if record is not None and kept is not None:
        return Choice(kept, record.measured)
    choice = choose_here(recipe, vocabulary_size, wanted, clock=clock)
    if record is not None:
        notify(f"continues on {record_of(choice)}; until now it computed on {record}")
    return choice


def kept_compute(record: ComputeRecord, wanted: Wanted) -> Compute | None:
    """The recorded choice, or None if the user asks for another or this machine cannot do it.

    The number of threads may change; a machine with fewer than recorded uses its own.
    """
    asked = {"core": asked_core(wanted.core), "precision": wanted.precision}
    if any(value not in ("auto", getattr(record, name)) for name, value in asked.items()):
        return None
    try:
        chosen = Compute.choose(record.device, record.core, record.precision)
        if wanted.device != "auto" and choose_device(wanted.device) != chosen.device:
            return None
        if record.kernel is not None and record.kernel not in usable_variants():
            return None
    except UsageError:
        return None
    recorded = record.threads if record.threads <= torch.get_num_threads() else None
    return Compute(chosen.device, chosen.core, chosen.precision, wanted.threads or recorded, record.kernel)
