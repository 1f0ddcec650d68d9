"""`charwright train`: a text in, a run folder out."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import (
    SectionedCommand,
    config_options,
    core_option,
    device_option,
    field_names,
    given,
    say,
    threads_option,
)
from charwright.cli.planning import Planner
from charwright.cli.signals import stop_asked
from charwright.cli.work import READING, Work, model_and_dataset, named_recipe, new_work, resumed_work, trained_run
from charwright.config import (
    CorpusConfig,
    ModelConfig,
    SequenceConfig,
    SplitConfig,
    TrainingConfig,
    VocabularyConfig,
)
from charwright.errors import ConfigError, DamagedRunError, RunError, UsageError

if TYPE_CHECKING:
    from charwright.evaluate import Evaluation
    from charwright.model.language_model import LanguageModel
    from charwright.run import Run
    from charwright.storage import Arrays
    from charwright.training.snapshot import Snapshot

SAMPLE_LENGTH = 160
STOPPING = b"\nstopping after this step; once more to stop at once\n"
PLANNED_OPTIONS = ("units", "learning_rate", "dropout", "state_dropout", "weight_decay", "patience")
"""Those that depend on the text, the machine or the budget; what a plan says of the others is the same for all."""


@click.command(cls=SectionedCommand, short_help="Learn to write like a text.")
@click.argument("corpus", nargs=-1)
@click.option(
    "--recipe",
    "recipe_name",
    default="default",
    show_default=True,
    metavar="NAME|FILE",
    help="Set of options to start from: default, tutorial, a JSON file of options, or an earlier run.",
)
@click.option("--explain-plan", is_flag=True, help="Say what would be chosen for this text and why; train nothing.")
@click.option("--out", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/NAME OF THE CORPUS]")
@click.option("--resume", type=click.Path(path_type=Path), metavar="RUN", help="Go on with a run that was stopped.")
@click.option(
    "--from",
    "parent",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Begin with the weights and options of a trained run; characters that it does not know are added.",
)
@click.option("--corpus", "corpus_moved", multiple=True, metavar="TEXT", help="With --resume: where the text is now.")
@click.option("--force", is_flag=True, help="Replace the run that is in the folder.")
@click.option(
    "--validation", multiple=True, metavar="TEXT", help="Measure on this text instead of a part of the corpus."
)
@device_option
@core_option
@threads_option
@click.option("--tensorboard", is_flag=True, help="Write TensorBoard files into the run's folder too.")
@config_options(TrainingConfig(minutes=5.0), "Training", planned=PLANNED_OPTIONS)
@config_options(ModelConfig(), "Model", planned=PLANNED_OPTIONS)
@config_options(SequenceConfig(), "Sequences", planned=PLANNED_OPTIONS)
@config_options(SplitConfig(), "Validation")
@config_options(VocabularyConfig(), "Vocabulary")
@config_options(CorpusConfig(), "Reading the corpus")
@click.pass_context
def train(
    ctx: click.Context,
    /,
    corpus: tuple[str, ...],
    recipe_name: str,
    out: Path | None,
    resume: Path | None,
    parent: Path | None,
    corpus_moved: tuple[str, ...],
    force: bool,
    validation: tuple[str, ...],
    device: str,
    core: str,
    threads: int | None,
    tensorboard: bool,
    explain_plan: bool,
    **_: Any,
) -> int:
    """Learn to write like CORPUS: files, folders, - for standard input, addresses, or names.

    Names are shakespeare, python-docs and python-code.
    """
    began_s = time.monotonic()  # The budget is for all that the user waits for.
    if corpus and resume:
        raise UsageError("--resume finds the run's own text; if it has moved, name it with --corpus")
    if force and resume:
        raise UsageError("--force replaces a run and --resume goes on with it: choose one")
    if parent and resume:
        raise UsageError("--from begins another run and --resume goes on with one: choose one")
    if explain_plan and resume:
        raise UsageError("--explain-plan is for a new run; `charwright info RUN --json` has the plan of an old one")
    if corpus_moved and not resume:
        raise UsageError("--corpus belongs to --resume; name the text without it")
    if tensorboard:
        from charwright.training.progress import TensorBoard

        TensorBoard.require()  # before anything is measured or made
    options = given(ctx, field_names(VocabularyConfig, SplitConfig, SequenceConfig, ModelConfig, TrainingConfig))
    _use_threads(threads)
    if resume:
        work = resumed_work(resume, corpus_moved, options, given(ctx, ("recipe_name", "out", "validation", *READING)))
    else:
        if parent and given(ctx, ("recipe_name",)):
            raise UsageError("--from takes the options of its run instead of a recipe's; give those to change singly")
        begun = trained_run(parent, options, replaced=out if force else None) if parent else None
        planner = Planner(options, device, core, explain=explain_plan)
        origin = begun or named_recipe(recipe_name, planner)
        if explain_plan and origin.planner is None:
            raise UsageError("--explain-plan explains the plan of the default recipe; here the options are given")
        work = new_work(origin, corpus, validation, CorpusConfig(**given(ctx, READING)), out, force)
    return _train(work, device, core, began_s, tensorboard=tensorboard)


def _train(work: Work, device_name: str, core: str, began_s: float, *, tensorboard: bool) -> int:
    """Make the model and the dataset, open the run, and let `fit` work; the command began at `began_s`."""
    from charwright.training.loop import fit
    from charwright.training.progress import TensorBoard, Writers, terminal_progress

    training = work.recipe.training
    model, dataset = model_and_dataset(work, device_name, core)
    run = work.open_run()
    if work.weights is not None:
        _save_beginning(run, work.weights, training.keep_checkpoints)
    snapshot = _snapshot_of(run) if work.resume else None
    writers = [_Log(run), terminal_progress()]
    if tensorboard:
        writers.append(TensorBoard(run.folder / "tensorboard"))
    spent_s = time.monotonic() - began_s
    if not work.resume and training.minutes is not None and spent_s >= training.minutes * 60:
        say(f"starting took {spent_s:.1f} s, which was all the time: the model has learned nothing; raise --minutes")
    reason, step = "done", -1
    with Writers(*writers) as writer, stop_asked(STOPPING) as should_stop:
        for event in fit(
            model,
            dataset,
            training,
            validate=_validator(work) if work.validation_text else None,
            sample=_sampler(work),
            save=lambda taken: _save(run, taken, training.keep_checkpoints),
            resume=snapshot,
            should_stop=should_stop,
            spent_s=spent_s,
        ):
            writer.write(event)
            reason, step = getattr(event, "reason", reason), event.step
    if reason in ENDS_EARLY:
        say(ENDS_EARLY[reason])
    elif reason != "done":
        say(f"stopped and saved; go on with: charwright train --resume {run.folder}")
        return 128 + int(signal.Signals[reason])
    if snapshot is not None and snapshot.position.step == step:
        say("its budget was spent already; to train on, raise it with --epochs, --steps or --minutes")
    say(f"saved {run.folder}; write with: charwright generate {run.folder}")
    return 0


ENDS_EARLY = {
    "target": "the validation loss that was asked for is reached",
    "turned": "the validation loss has turned: training ends here, with the best weights",
}


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


class _Log:
    """Events to the run's log.jsonl."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def write(self, event: Any) -> None:
        self.run.append_log(event.to_json())

    def close(self) -> None:
        pass


def _validator(work: Work) -> Callable[[LanguageModel], Evaluation]:
    from charwright.evaluate import evaluate

    return lambda model: evaluate(model, work.vocabulary, work.validation_text)


def _sampler(work: Work) -> Callable[[LanguageModel], str]:
    """What the model writes without a prompt, by the same draws each time."""
    from charwright.generation.generator import Generator

    def sample(model: LanguageModel) -> str:
        writer = Generator.of(model, work.vocabulary)
        [text] = writer.generate(length=SAMPLE_LENGTH, temperature=0.8, seed=work.recipe.training.seed)
        return text.continuation

    return sample


def _save(run: Run, snapshot: Snapshot, keep: int | None) -> None:
    groups = {"weights": snapshot.weights, "optimizer": snapshot.optimizer}
    groups |= {"state": snapshot.state} if snapshot.state else {}
    groups |= {"average": snapshot.average} if snapshot.average else {}
    groups |= {"best": snapshot.best} if snapshot.best else {}
    # The checkpoint last: a resume from it takes for granted that the weights to use were written with it.
    run.write_weights(snapshot.to_use)
    run.write_checkpoint(snapshot.position.step, groups, snapshot.position.to_json(), keep)


def _save_beginning(run: Run, weights: Arrays, keep: int | None) -> None:
    """A checkpoint of no step, so that a resume before the first one finds the weights that the run began with."""
    from charwright.training.snapshot import Position, Snapshot

    _save(run, Snapshot(Position(), weights, optimizer={}), keep)


def _snapshot_of(run: Run) -> Snapshot | None:
    """The newest checkpoint; None where the run was stopped before its first."""
    from charwright.training.snapshot import Position, Snapshot

    found = run.latest_checkpoint()
    if found is None and run.config.parent is not None:
        # It was stopped between its first file and the checkpoint of its beginning.
        raise RunError(f"{run.folder} was stopped before it had weights; begin it again with --from and --force")
    if found is None and run.has_weights and not any(run.log()):
        raise RunError(
            f"{run.folder} was not trained here, so there is no training to resume; go on with: charwright "
            f"train TEXT --from {run.folder}"
        )
    if found is None:
        return None
    arrays, position = found
    try:
        read = Position.from_json(position, f"{run.folder}: position.json of step {position.get('step')}")
    except ConfigError as error:
        raise DamagedRunError(str(error)) from error
    return Snapshot(
        position=read,
        weights=arrays["weights"],
        optimizer=arrays["optimizer"],
        state=arrays.get("state", {}),
        average=arrays.get("average", {}),
        best=arrays.get("best", {}),
    )
