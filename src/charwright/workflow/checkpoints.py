"""Converts snapshots to the checkpoints that `run.py` writes, and back."""

from __future__ import annotations

from collections.abc import Callable

from charwright.arrays import Arrays
from charwright.errors import ConfigError, DamagedRunError, RunError
from charwright.run import Run
from charwright.schema import quoted
from charwright.training.snapshot import Position, Snapshot


def save_checkpoint(run: Run, snapshot: Snapshot, keep: int | None) -> None:
    """Write the weights to use and a checkpoint, and remove all but the newest `keep` checkpoints."""
    groups = {"weights": snapshot.weights, "optimizer": snapshot.optimizer}
    optional = {"state": snapshot.state, "average": snapshot.average, "best": snapshot.best}
    groups |= {name: arrays for name, arrays in optional.items() if arrays}
    # The checkpoint comes last: a resume relies on the weights to use having been written with it.
    run.write_weights(snapshot.to_use)
    run.write_checkpoint(snapshot.position.step, groups, snapshot.position.to_json(), keep)


def save_initial_checkpoint(run: Run, weights: Arrays, keep: int | None) -> None:
    """Write a checkpoint at step 0, so that a resume before the first one finds the initial weights."""
    save_checkpoint(run, Snapshot(Position(), weights, optimizer={}), keep)


def restore_weights(run: Run, snapshot: Snapshot) -> bool:
    """Write the weights to use again if their file is missing or damaged; returns whether it was."""
    try:
        run.weights()
    except RunError:
        run.write_weights(snapshot.to_use)
        return True
    return False


def load_checkpoint(run: Run, notify: Callable[[str], None] = lambda _: None) -> Snapshot | None:
    """The newest checkpoint; None if the run was stopped before its first. `notify` is told of damaged newer ones.

    Raises:
        RunError: when the run was not trained here, or was stopped before it had the weights to start from.
        DamagedRunError: when no checkpoint is intact.
    """
    found = run.latest_checkpoint(notify)
    if found is None:
        _check_can_start_over(run)
        return None
    arrays, position = found
    try:
        read = Position.from_json(position, f"{run.folder}: position.json of step {position.get('step')}")
    except ConfigError as error:
        raise DamagedRunError(error.for_shell) from error
    return Snapshot(
        position=read,
        weights=arrays["weights"],
        optimizer=arrays["optimizer"],
        state=arrays.get("state", {}),
        average=arrays.get("average", {}),
        best=arrays.get("best", {}),
    )


def _check_can_start_over(run: Run) -> None:
    """Check that a run without a checkpoint can start from the beginning."""
    kinds = {event.get("event") for event in run.log()}
    lost = run.has_weights and "checkpoint" in kinds
    if run.config.parent is not None and not lost:  # It was stopped before its initial checkpoint.
        raise RunError(f"{run.folder} was stopped before it had weights; train it again with --from and --force")
    # With other events, it was stopped between its first weights and its first checkpoint.
    if lost or (run.has_weights and not kinds):
        why = "has lost its checkpoints" if lost else "was not trained here"
        raise RunError(
            f"{run.folder} {why}, so there is no training to resume; "
            f"continue from its weights with: charwright train TEXT --from {quoted(run.folder)}"
        )
