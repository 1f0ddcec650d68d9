"""Several models of one text and one that learns from them, as one training.

The teachers are runs of their own, beside the run that learns from them. So a training that was stopped goes on when
the same call is made again: what is done is not done twice.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from charwright.config import BUDGETS, CorpusConfig
from charwright.data.large_texts import open_corpus
from charwright.data.lists import is_list
from charwright.data.parts import Places
from charwright.errors import UsageError
from charwright.planning.recipes import DEFAULT
from charwright.run import Run
from charwright.training.early_stopping import EARLY_STOPPING, TARGET
from charwright.training.events import End, Event
from charwright.training.ranks import ALONE, Ranks
from charwright.workflow.preparation import check_corpus_given
from charwright.workflow.texts import Notify, Specs
from charwright.workflow.training import resume, train

TEACHING = 0.6
"""The share of the minutes that the teachers have together."""
MOST_TEACHERS = 64
LASTING = ("device", "core", "threads", "should_stop", "clock", "tensorboard", "progress")
"""The arguments that a resume has too."""
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
    _check(corpus, count, arguments, ranks)
    reading, places = reading or CorpusConfig(), places or Places.of_this_user()
    text = open_corpus(corpus, reading, places)
    if arguments.setdefault("records", "none" if not is_list(text.text) else "line") != "none":
        raise UsageError("--ensemble needs running text; --records none takes a list as such")
    arguments = {name: value for name, value in arguments.items() if name not in {"parent", "teachers"}}
    folder = Path("runs") / text.name if out is None else Path(out)
    school = [folder.with_name(f"{folder.name}-teachers") / str(number) for number in range(1, count + 1)]
    goes_on = not force and _goes_on(folder, school)
    if not goes_on:
        Run.check_place(folder, force=force)
    if not any(arguments.get(name) for name in BUDGETS):
        arguments["minutes"] = DEFAULT.training.minutes
    minutes: float | None = arguments.get("minutes")
    shares = (None, None) if minutes is None else (minutes * TEACHING / count, minutes * (1 - TEACHING))
    ends: list[End] = []

    def watched(event: Event) -> None:
        ends.extend([event] if isinstance(event, End) else [])
        on_event(event)

    lasting: dict[str, Any] = {"places": places, "on_event": watched, "notify": notify}
    lasting |= {name: arguments.pop(name) for name in LASTING if name in arguments}
    arguments |= {"reading": reading, **lasting}
    for number, place in enumerate(school, 1):
        begun = _begun(place, text.sha256)
        if begun is not None and _finished(begun):
            notify(f"teacher {number} of {count}: {place}, trained before")
            continue
        notify(f"teacher {number} of {count}: {place}")
        if begun is not None:
            run = resume(place, **lasting)
        else:
            own: dict[str, Any] = {
                "seed": (seed * MOST_TEACHERS + number) % 2**63,
                "minutes": shares[0],
                "spent_s": spent_s,
            }
            run = train(corpus, out=place, **{**arguments, **own})
        spent_s = 0.0
        if ends[-1].reason not in FINISHED:
            return run
    if goes_on:
        return resume(folder, **lasting)
    own = {"seed": seed, "minutes": shares[1], "spent_s": spent_s}
    return train(corpus, out=folder, teachers=school, force=force, **{**arguments, **own})


def _check(corpus: Specs, count: int, arguments: dict[str, Any], ranks: Ranks) -> None:
    """See that the arguments are those of an ensemble."""
    specs = [corpus] if isinstance(corpus, str | os.PathLike) else list(corpus)
    if not 1 <= count <= MOST_TEACHERS:
        raise UsageError(f"--ensemble takes a number from 1 to {MOST_TEACHERS}, not {count}")
    if "-" in map(str, specs):
        raise UsageError("--ensemble reads the text several times; keep standard input in a file")
    if ranks.size > 1:
        raise UsageError("--ensemble trains in one process, without torchrun")
    if arguments.get("parent") is not None or arguments.get("teachers"):
        raise UsageError("--ensemble trains its own teachers from initial weights; leave out --from and --teacher")


def _begun(place: Path, sha256: str) -> Run | None:
    """The teacher in a folder; None if there is nothing.

    Raises:
        UsageError: when it is one of another text.
    """
    if not place.exists():
        return None
    run = Run.open(place, for_writing=True)
    if run.config.sha256 != sha256:
        raise UsageError(f"{place} is a teacher of another text; remove it, or choose another --out")
    return run


def _finished(run: Run) -> bool:
    """Whether the training of a run has come to its end."""
    last = None
    for event in run.log():
        last = event
    return last is not None and last.get("event") == "end" and last.get("reason") in FINISHED


def _goes_on(folder: Path, teachers: list[Path]) -> bool:
    """Whether a folder has a run that learns from these teachers and has not come to its end."""
    if not (folder / "config.json").is_file():
        return False
    run = Run.open(folder)
    same = [teacher.folder for teacher in run.config.teachers] == [str(place.resolve()) for place in teachers]
    return same and not _finished(run)
