"""Decides when training stops before its budget is spent, from the validations that it records."""

from __future__ import annotations

from charwright.config import TrainingConfig
from charwright.evaluation.evaluation import Evaluation, paired_error
from charwright.training.snapshot import Position

TARGET = "target"
EARLY_STOPPING = "early_stopping"


def record_validation(position: Position, result: Evaluation) -> bool:
    """Record a validation in `position`; whether it is the best one so far.

    A validation counts as worse if its loss exceeds the best by more than two standard errors of the difference, paired
    over the blocks of the text.
    """
    loss = result.nats_per_char
    if position.best_loss is None or loss < position.best_loss:
        position.best_loss, position.best_step = loss, position.step
        position.best_blocks, position.worse = result.blocks, 0
        return True
    noise = paired_error(result.blocks, position.best_blocks)
    # After a rollback the best step may still be ahead; a higher loss on the way there does not count.
    behind = position.step <= (position.best_step or 0)
    position.worse = position.worse + 1 if loss - position.best_loss > 2 * noise and not behind else 0
    return False


def stop_reason(position: Position, config: TrainingConfig) -> str | None:
    """Why training stops before its budget is spent: `target`, `early_stopping` or None."""
    if config.target_loss is not None and position.best_loss is not None and position.best_loss <= config.target_loss:
        return TARGET
    if config.patience is not None and position.worse >= config.patience:
        position.worse = 0  # A resume of this run continues with full patience.
        return EARLY_STOPPING
    return None
