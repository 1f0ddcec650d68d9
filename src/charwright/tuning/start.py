"""How a search starts: the recipe of its first trial, and how all its trials compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from charwright.config import Recipe
from charwright.model.compute import Wanted
from charwright.planning.calibration import plan_here
from charwright.planning.choice import Choice
from charwright.planning.profile import TextProfile
from charwright.run_config import ComputeRecord
from charwright.tuning.search import Search
from charwright.tuning.trial import Task
from charwright.workflow.computing import choice_for_resume, record_of
from charwright.workflow.texts import Notify


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

    def task_of(self, search: Search, notify: Notify) -> Task:
        """The task of a search that is open: it computes as chosen at the search's start."""
        choice = self._choice
        if choice is None:
            kept = search.compute
            record = None if kept is None else ComputeRecord.from_json(kept, f"{search.folder}: compute")
            choice = choice_for_resume(record, search.start, len(self.task.vocabulary), self.wanted, notify)
        search.keep_compute(record_of(choice).to_json())
        return dataclasses.replace(self.task, compute=choice.compute)
