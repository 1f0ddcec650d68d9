"""The plan of a training run: made for its text and this machine, said in two lines, explained when asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import say

if TYPE_CHECKING:
    from charwright.data.vocabulary import Vocabulary
    from charwright.training.recipes import Plan


@dataclass(frozen=True)
class Planner:
    """What a plan is made with: the options given by hand, and where training will take place."""

    options: Mapping[str, Any]
    device: str = "auto"
    core: str = "auto"
    explain: bool = False

    def plan(self, training_text: str, vocabulary: Vocabulary) -> Plan:
        """Measure the machine, if the budget is in minutes, and plan; the plan is said on stderr.

        Raises:
            click.exceptions.Exit: when the plan was only to be explained.
        """
        from charwright.model.machine import choose_device
        from charwright.training.calibration import plan_here
        from charwright.training.recipes import Text

        device = choose_device(self.device)
        plan = plan_here(Text.of(training_text, vocabulary), self.options, device=device, core=self.core)
        if self.explain:
            click.echo(explanation(plan))
            raise click.exceptions.Exit(0)
        for line in plan.summary():
            say(line)
        return plan


def explanation(plan: Plan) -> str:
    """All of a plan, for people: its two lines, what was measured, and each option with its reason."""
    rows = plan.explanation()
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    speeds = "  ".join(f"{units} units {speed:,.0f}" for units, speed in plan.speeds.items())
    measured = [f"measured on this machine, in characters/s: {speeds}"] if speeds else []
    table = [f"  {name:{names}}  {value:>{values}}  {reason}" for name, value, reason in rows]
    return "\n".join([*plan.summary(), *measured, "", *table])
