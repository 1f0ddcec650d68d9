"""Several models of one text and one that learns from them, as one training.

The teachers are runs of their own, beside the run that learns from them. So a training that was stopped goes on when
the same call is made again: what is done is not done twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from charwright.config import BUDGETS, CorpusConfig
from charwright.data.large_texts import open_corpus
from charwright.data.lists import is_list
from charwright.data.parts import Places
from charwright.errors import RunExistsError, UsageError
from charwright.planning.plan import option_values
from charwright.planning.recipes import DEFAULT, PLANNED
from charwright.run import Run
from charwright.schema import flag
from charwright.training.early_stopping import EARLY_STOPPING, TARGET
from charwright.training.events import End, Event
from charwright.training.ranks import ALONE, Ranks
from charwright.workflow.preparation import RESUMABLE, check_corpus_given, origin_of_recipe
from charwright.workflow.texts import Notify, Specs
from charwright.workflow.training import resume, train

DEFAULT_MINUTES = DEFAULT.training.minutes or 5.0
TEACHING = 0.6
"""The share of the minutes that the teachers have together."""
MOST_TEACHERS = 64
LASTING = {"device", "core", "threads", "should_stop", "clock", "tensorboard", "progress"}
"""The arguments that a resume has too."""
OPTIONS = set(option_values(DEFAULT))
FINISHED = ("done", TARGET, EARLY_STOPPING)


def train_ensemble(
    corpus: Specs,
    *,
    count: int = 4,
    out: str | os.PathLike[str] | None = None,
    seed: int = DEFAULT.training.seed,
    force: bool = False,
    reading: CorpusConfig | None = None,
    places: Places | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    notify: Notify = lambda _: None,
    spent_s: float = 0.0,
    ranks: Ranks = ALONE,
    **arguments: Any,
) -> Run:
    """Train some models, and one that learns what they predict: `train_ensemble("poems.txt", minutes=10)`.

    Of a budget in minutes the teachers have 0.6 together; any other is for each of them, and for the last model too.
    The teachers are the runs 1, 2, ... in a folder beside `out`, whose name ends with `-teachers`. The same call goes
    on with a training that was stopped; `force` replaces the run in `out`, and keeps teachers of the same text.

    Args:
        corpus: as for `train`, except that it is read several times, so standard input is refused.
        count: how many teachers there are.
        out: the folder of the run that learns from them; by default runs/ and the name of the corpus.
        seed: that of the last model; those of the teachers follow from it.
        force: replace the run in `out`.
        reading: how files are decoded.
        places: where corpora are looked up.
        on_event: called with each event of each training.
        notify: called with each line about something the user may want to know.
        spent_s: seconds of the first teacher's budget that are already spent.
        ranks: must be one.
        **arguments: the other arguments and options of `train`.

    Returns:
        The run that has learned from the teachers, or the one in which training was stopped.

    Raises:
        CharwrightError: (a subclass) as for `train`.
    """
    check_corpus_given(corpus)
    options = {name: arguments[name] for name in OPTIONS & arguments.keys()}
    _check(corpus, count, arguments, {**options, "seed": seed}, ranks)
    reading, places = reading or CorpusConfig(), places or Places.of_this_user()
    text = open_corpus(corpus, reading, places)
    if options.get("records", "line" if is_list(text.text) else "none") != "none":
        advice = "leave out --records" if "records" in options else "to read it as running text, add --records none"
        raise UsageError(f"{text.name} is a list, and --ensemble needs running text; {advice}")
    folder = Path("runs") / text.name if out is None else Path(out)
    school = [folder.with_name(f"{folder.name}-teachers") / str(number) for number in range(1, count + 1)]
    goes_on = not force and _goes_on(folder, school)
    if not goes_on:
        Run.check_place(folder, force=force)
    given = {name: options.pop(name, None) for name in BUDGETS}
    given = {name: amount for name, amount in given.items() if amount is not None} or {"minutes": DEFAULT_MINUTES}
    [(budget, amount)] = given.items()
    shares = [amount, amount] if budget != "minutes" else [amount * TEACHING / count, amount * (1 - TEACHING)]
    ends: list[End] = []

    def watched(event: Event) -> None:
        ends.extend([event] if isinstance(event, End) else [])
        on_event(event)

    lasting: dict[str, Any] = {name: arguments[name] for name in LASTING & arguments.keys()}
    lasting |= {"places": places, "on_event": watched, "notify": notify}
    lasting |= {name: options[name] for name in set(RESUMABLE) & options.keys()}
    rest = {name: value for name, value in arguments.items() if name not in {*BUDGETS, "parent", "teachers"}}
    rest |= {"reading": reading, "records": "none", **lasting}
    for number, place in enumerate(school, 1):
        own = (seed * MOST_TEACHERS + number) % 2**63
        begun = _begun(place, text.sha256, {**options, "seed": own})
        if begun is not None and _finished(begun, budget, shares[0]):
            notify(f"teacher {number} of {count}: {place}, trained before")
            continue
        notify(f"teacher {number} of {count}: {place}")
        if begun is not None:
            run = resume(place, **lasting, **{budget: shares[0]})
        else:
            run = train(corpus, out=place, seed=own, spent_s=spent_s, **rest, **{budget: shares[0]})
        spent_s = 0.0
        if ends[-1].reason not in FINISHED:
            return run
    if goes_on:
        return resume(folder, **lasting, **{budget: shares[1]})
    return train(
        corpus, out=folder, teachers=school, seed=seed, force=force, spent_s=spent_s, **rest, **{budget: shares[1]}
    )


def _check(corpus: Specs, count: int, arguments: Mapping[str, Any], options: Mapping[str, Any], ranks: Ranks) -> None:
    """See that the arguments are those of an ensemble, and the options valid."""
    specs = [corpus] if isinstance(corpus, str | os.PathLike) else list(corpus)
    if not 1 <= count <= MOST_TEACHERS:
        raise UsageError(f"--ensemble takes a number from 1 to {MOST_TEACHERS}, not {count}")
    if "-" in map(str, specs):
        raise UsageError("--ensemble reads the text several times; keep standard input in a file")
    if ranks.size > 1:
        raise UsageError("--ensemble trains in one process, without torchrun")
    if arguments.get("parent") is not None or arguments.get("teachers"):
        raise UsageError("--ensemble trains its own teachers from initial weights; leave out --from and --teacher")
    origin_of_recipe(arguments.get("recipe", PLANNED), options)


def _begun(place: Path, sha256: str, options: Mapping[str, Any]) -> Run | None:
    """The teacher in a folder; None if there is nothing.

    Raises:
        UsageError: when it is one of another text, or was trained with other options.
    """
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return None
    run = Run.open(place, for_writing=True)
    if run.config.sha256 != sha256:
        raise UsageError(f"{place} is a teacher of another text; remove {place.parent}, or choose another --out")
    values = option_values(run.config.recipe)
    for name, value in options.items():
        if name not in {*RESUMABLE, "written"} and values[name] != value:
            raise UsageError(
                f"{place} was trained with {flag(name)} {values[name]}, not {value}; remove {place.parent} to train "
                "teachers anew, or choose another --out"
            )
    return run


def _finished(run: Run, budget: str = "", amount: float = 0.0) -> bool:
    """Whether the training of a run has come to its end, with at least this budget if one is named."""
    if budget and (getattr(run.config.recipe.training, budget) or 0) < amount:
        return False
    last = None
    for event in run.log():
        last = event
    return last is not None and last.get("event") == "end" and last.get("reason") in FINISHED


def _goes_on(folder: Path, teachers: list[Path]) -> bool:
    """Whether a folder has a run that learns from these teachers.

    Raises:
        RunExistsError: when it has come to its end.
    """
    if not (folder / "config.json").is_file():
        return False
    run = Run.open(folder)
    if [teacher.folder for teacher in run.config.teachers] != [str(place.resolve()) for place in teachers]:
        return False
    if _finished(run):
        raise RunExistsError(
            f"{folder} has learned from its teachers; train it longer with --resume {folder}, or replace it "
            "with --force"
        )
    return True
