"""Training: the loop, the step, the optimizer, the schedule, snapshots and events."""
