"""Starts by torchrun: which run one has begun, so that a restarted group goes on with it."""

from __future__ import annotations

from pathlib import Path

from charwright.errors import CharwrightError, UsageError
from charwright.run import Run
from charwright.storage import read_json, write_json

LAUNCH = "launch.json"


def run_of_launch(folder: Path | None, launch: str) -> Run | None:
    """The run that a start by torchrun has begun in `folder`, or None if the folder has none or another's.

    Raises:
        UsageError: when no folder is named: a restarted group has to find it.
        DamagedRunError: when the run is its own and damaged.
    """
    if folder is None:
        raise UsageError(
            "under torchrun name the run folder with --out: a group that is restarted looks for its run there"
        )
    try:
        recorded = read_json(folder / LAUNCH)
    except (CharwrightError, OSError):  # There is none, or it cannot be its own.
        return None
    return Run.open(folder, for_writing=True) if recorded == {"launch": launch} else None


def record_launch(run: Run, launch: str) -> None:
    """Note in a run folder which start by torchrun has created it."""
    write_json(run.folder / LAUNCH, {"launch": launch})
