"""Trains a prepared run: assembles the model and the dataset, opens the run folder, and logs the events there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

from charwright import kernels
from charwright.evaluation.evaluate import evaluate_text
from charwright.evaluation.evaluation import Evaluation
from charwright.generation.generator import Generator
from charwright.locks import alone_in
from charwright.model.compute import why_no_kernels
from charwright.model.language_model import LanguageModel
from charwright.run import Run
from charwright.signals import STOPPING, interrupted_at_end
from charwright.training.events import End, Event
from charwright.training.loop import fit
from charwright.training.progress import TensorBoard
from charwright.training.ranks import Ranks
from charwright.training.sharing import part_of, reader_of
from charwright.workflow.assembly import Assembly, assemble
from charwright.workflow.checkpoints import restore_weights, save_checkpoint, save_initial_checkpoint
from charwright.workflow.launches import record_launch
from charwright.workflow.preparation import Prepared
from charwright.workflow.texts import Notify

SAMPLE_LENGTH = 160
SAMPLE_RECORDS = 8

OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Environment:
    """What surrounds a training, as `charwright.workflow.training.train` was given it."""

    began: float
    """When the training was asked for, by `clock`: the budget in minutes counts from there."""
    clock: Callable[[], float]
    on_event: OnEvent
    notify: Notify
    should_stop: Callable[[], str | None]
    ranks: Ranks
    tensorboard: bool


def execute(prepared: Prepared, env: Environment) -> Run:
    """Train, and return the run with the weights it ends with."""
    if prepared.teachers is not None:
        env.notify(f"learns from {prepared.teachers.summary(prepared.recipe.training)}")
    assembling = env.clock()
    assembly = assemble(
        prepared.recipe, prepared.vocabulary, prepared.training_text, prepared.choice.compute, prepared.weights,
        prepared.teachers, env.should_stop,
    )  # fmt: skip
    # The budget of a resume already has the time of the teachers' predictions.
    began = env.began + (env.clock() - assembling if prepared.resume else 0.0)
    _notify_how(prepared, assembly, env)
    with ExitStack() as held:
        run = env.ranks.first(lambda: _open_run(prepared, env, held))
        _train(prepared, assembly, run, env, began)
    return run


def _notify_how(prepared: Prepared, assembly: Assembly, env: Environment) -> None:
    """Tell what is particular about the way this training computes."""
    if assembly.notice:
        env.notify(assembly.notice)
    if prepared.choice.compute.device.type == "cpu" and kernels.load() is None:
        env.notify(f"note: {why_no_kernels(cost=True)}")
    if (part := part_of(assembly.dataset.batch, env.ranks)) is not None:
        env.notify(f"{env.ranks.size} ranks share each batch of {part.total} rows")


def _open_run(prepared: Prepared, env: Environment, held: ExitStack) -> Run:
    """Create or open the run folder, with the weights of a parent as its first checkpoint; `held` gets its lock."""
    run = prepared.open_run()
    if not prepared.resume:  # A resume has held the lock since before it read the folder.
        held.enter_context(alone_in(run.folder))
    if prepared.snapshot is not None and restore_weights(run, prepared.snapshot):
        env.notify(
            f"model.safetensors is written again from the checkpoint of step {prepared.snapshot.position.step:,}"
        )
    if env.ranks.launch is not None:
        record_launch(run, env.ranks.launch)
    if prepared.weights is not None:
        save_initial_checkpoint(run, prepared.weights, prepared.recipe.training.keep_checkpoints)
    return run


def _train(prepared: Prepared, assembly: Assembly, run: Run, env: Environment, began: float) -> None:
    """Train in a run folder whose lock the first rank holds, and write the events to its log."""
    training, snapshot, first = prepared.recipe.training, prepared.snapshot, env.ranks.rank == 0
    board = TensorBoard(run.folder / "tensorboard") if env.tensorboard and first else None
    spent_s = max(0.0, env.ranks.first(lambda: env.clock() - began))
    if not prepared.resume and training.minutes is not None and spent_s >= training.minutes * 60:
        env.notify(f"the start took {spent_s:.1f} s, the whole budget: the model has learned nothing; raise --minutes")
    training_loop = fit if assembly.train_step is None else partial(fit, train_step=assembly.train_step)
    with ExitStack() as ending:
        interrupted = ending.enter_context(interrupted_at_end(STOPPING if first else b""))
        if board is not None:
            ending.callback(board.close)
        for event in training_loop(
            assembly.model,
            assembly.dataset,
            training,
            validate=_validator(prepared, env.ranks) if prepared.validation_text else None,
            sample=_sampler(prepared, run) if first else None,
            save=(lambda taken: save_checkpoint(run, taken, training.keep_checkpoints)) if first else None,
            resume=snapshot,
            should_stop=lambda: env.should_stop() or interrupted(),
            clock=env.clock,
            spent_s=spent_s,
            ranks=env.ranks,
            pretrained=run.config.parent is not None,
        ):
            if first:
                run.append_log(event.to_json())
            env.on_event(event)
            if board is not None:
                board.write(event)
            done = isinstance(event, End) and event.reason == "done"
            if done and snapshot is not None and snapshot.position.step == event.step:
                env.notify("the budget was already spent; to train on, raise it with --epochs, --steps or --minutes")


def _validator(prepared: Prepared, ranks: Ranks) -> Callable[[LanguageModel], Evaluation]:
    return lambda model: evaluate_text(reader_of(model, ranks), prepared.vocabulary, prepared.validation_text)


def _sampler(prepared: Prepared, run: Run) -> Callable[[LanguageModel], str]:
    """What the model generates without a prompt, with the same seed each time."""
    vocabulary, records = prepared.vocabulary, run.config.records
    options: dict[str, Any] = {"length": SAMPLE_LENGTH, "temperature": 0.8, "seed": prepared.recipe.training.seed}

    def sample(model: LanguageModel) -> str:
        if records and vocabulary.labels:  # Each record begins with a label.
            generator = Generator(model.config, model.arrays(), vocabulary, "q8", record_end=records.end)
            found = generator.records(SAMPLE_RECORDS, **options)
            return "".join(record.continuation + records.end for record in found)[:SAMPLE_LENGTH]
        [text] = Generator.of(model, vocabulary).generate(**options)
        return text.continuation

    return sample
