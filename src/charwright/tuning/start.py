"""How a search starts: the recipe of its first trial, and how all its trials compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from charwright.config import Recipe
from charwright.errors import UsageError
from charwright.model.compute import Compute, Wanted
from charwright.planning.calibration import choose_here, plan_here
from charwright.planning.choice import Choice
from charwright.planning.profile import TextProfile
from charwright.run_config import ComputeRecord
from charwright.tuning.search import Search
from charwright.tuning.trial import Task
from charwright.workflow.computing import is_recorded, kept_compute, record_of


class Start:
    """Plans a new search, and keeps how it computes: trials that compute differently cannot be compared."""

    def __init__(self, task: Task, options: Mapping[str, Any], wanted: Wanted) -> None:
        """Hold what a search starts from; `wanted` is what the user asks for."""
        self.task, self.options, self.wanted = task, options, wanted
        self._choice: Choice | None = None

    def recipe(self) -> Recipe:
        """The recipe of the first trial: the plan that `train` would follow for this text and these minutes."""
        text = TextProfile.of(self.task.training_text, self.task.vocabulary)
        plan, self._choice = plan_here(text, {"minutes": self.task.minutes, **self.options}, self.wanted)
        return plan.recipe

    def compute(self) -> dict[str, Any] | None:
        """How the trials of a new search compute, once its recipe is planned."""
        return None if self._choice is None else record_of(self._choice).to_json()

    def task_of(self, search: Search) -> Task:
        """The task of a search that is open: it computes as chosen at the search's start.

        Raises:
            UsageError: when this machine cannot, or the user asks for something else.
        """
        if search.compute is not None:
            return dataclasses.replace(self.task, compute=self._recorded(search, search.compute))
        choice = self._choice or self._first_choice(search)
        search.keep_compute(record_of(choice).to_json())
        return dataclasses.replace(self.task, compute=choice.compute)

    def _recorded(self, search: Search, values: Mapping[str, Any]) -> Compute:
        record = ComputeRecord.from_json(values, f"{search.named}: compute")
        compute = kept_compute(record, self.wanted)
        if compute is None or not is_recorded(compute, record):
            reason = "that is not possible here" if compute is None else f"not on {record_of(Choice(compute))}"
            raise UsageError(
                f"{search.named} is a search whose trials compute on {record}; {reason}, and trials that compute"
                " differently cannot be compared; choose another place with --out"
            )
        return compute

    def _first_choice(self, search: Search) -> Choice:
        """For a search that has not kept its choice: it was stopped before, or is of an earlier version.

        An earlier version kept the core that `auto` selected, and chose the rest by the rule.
        """
        wanted = dataclasses.replace(self.wanted, core=search.protocol.get("--core", self.wanted.core))
        if search.results():
            return Choice(wanted.by_rule())
        return choose_here(search.start, len(self.task.vocabulary), wanted)
