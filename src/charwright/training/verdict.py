"""What a validation says: whether the model is the best so far, and whether training has come to its end."""

from __future__ import annotations

import math

from charwright.config import TrainingConfig
from charwright.evaluate import Evaluation, paired_error
from charwright.training.snapshot import Position


def judge(position: Position, result: Evaluation) -> bool:
    """Note a validation in `position`; whether it is the best one so far.

    One that is not counts as worse when it lies above the best by more than two standard errors of their difference,
    paired over the blocks of the text.
    """
    loss = result.nats_per_char
    if position.best_loss is None or loss < position.best_loss:
        position.best_loss, position.best_step = loss, position.step
        position.best_blocks, position.worse = result.blocks, 0
        return True
    noise = paired_error(result.blocks, position.best_blocks)
    # After a fall the best one may lie ahead still: on the way there being worse is no turn.
    behind = position.step <= (position.best_step or 0)
    position.worse = position.worse + 1 if loss - position.best_loss > 2 * noise and not behind else 0
    return False


def why_to_stop(position: Position, config: TrainingConfig) -> str | None:
    """The reason to stop before the budget is spent: target, turned or none."""
    if config.target_loss is not None and (position.best_loss or math.inf) <= config.target_loss:
        return "target"
    if config.patience is not None and position.worse >= config.patience:
        position.worse = 0  # Whoever resumes this run wants it to go on.
        return "turned"
    return None
