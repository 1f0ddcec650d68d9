"""`charwright export`: a run becomes a model of another program."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from charwright.cli.options import given, say
from charwright.errors import RunError, UsageError

if TYPE_CHECKING:
    from charwright.run import Run


@dataclass(frozen=True)
class _Task:
    """What to export, where to, and what to say of it."""

    run: Run
    place: Path
    card: Mapping[str, Any]
    temperature: float


def _onnx(task: _Task) -> None:
    from charwright.interop.onnx_files import onnx_graphs
    from charwright.storage import whole_folder, write_file

    files = onnx_graphs(task.run, task.card)
    with whole_folder(task.place) as folder:
        for name, data in files.items():
            write_file(folder / name, data)


def _keras(task: _Task) -> None:
    from charwright.interop.keras_files import weights_h5_bytes
    from charwright.interop.keras_layout import to_keras
    from charwright.storage import write_file

    write_file(task.place, weights_h5_bytes(to_keras(task.run.model, task.run.weights())))


def _saved_model(task: _Task) -> None:
    from charwright.interop.saved_model import write_saved_model
    from charwright.storage import whole_folder

    with whole_folder(task.place) as folder:
        write_saved_model(task.run, folder, task.card, task.temperature)


def _html(task: _Task) -> None:
    from charwright.interop.web_page import page_bytes
    from charwright.storage import write_file

    write_file(task.place, page_bytes(task.run, task.card))


def _numpy(task: _Task) -> None:
    from charwright.interop.numpy_file import npz_bytes
    from charwright.storage import write_file

    write_file(task.place, npz_bytes(task.run, task.card))


FOLDERS = {
    "onnx": {"step.onnx", "generate.onnx"},
    "saved-model": {"saved_model.pb", "fingerprint.pb", "variables", "assets"},
}
"""The formats that are folders, and what lies in them."""

FORMATS: Mapping[str, tuple[str, Callable[[_Task], None]]] = {
    "onnx": ("-onnx", _onnx),
    "saved-model": ("-saved-model", _saved_model),
    "keras": (".weights.h5", _keras),
    "html": (".html", _html),
    "numpy": (".npz", _numpy),
}
"""What a format's file or folder ends in, and what writes it."""


@click.command(short_help="Make of a run what other programs read.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "to", required=True, type=click.Choice(list(FORMATS)), help="The format.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="The file or folder to write.  [default: the run's name, in the folder where you are]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="What a SavedModel divides its logits by; it can be changed after loading.",
)
@click.option("--force", is_flag=True, help="Put it in the place of an older export.")
@click.pass_context
def export(ctx: click.Context, /, run: Path, to: str, out: Path | None, temperature: float, force: bool) -> None:
    """Write RUN in another format.

    \b
      onnx         a folder of two graphs: one step, and a generator with the loop and the sampling inside
      saved-model  a folder that plain TensorFlow loads: the tutorial's generate_one_step
      keras        a .weights.h5 file that the tutorial's MyModel loads
      html         one page that writes in any browser, offline, with 8-bit weights
      numpy        one .npz file with the plain weights
    """  # noqa: D301  (click's own mark for lines that stay as they are)
    from charwright import __version__
    from charwright.interop.card import model_card
    from charwright.run import Run

    if not math.isfinite(temperature):
        raise UsageError(f"--temperature must be a number, not {temperature}")
    if to != "saved-model" and given(ctx, ["temperature"]):
        raise UsageError("--temperature is for --to saved-model; the other formats take it when they write")
    opened = Run.open(run)
    ending, write = FORMATS[to]
    place = out if out is not None else Path(opened.folder.resolve().name + ending)
    _check_place(place, to, force=force)
    write(_Task(opened, place, model_card(opened, __version__), temperature))
    say(f"wrote {place} ({_size(place) / 1e6:,.2f} MB)")


def _check_place(place: Path, to: str, *, force: bool) -> None:
    """See that nothing else is lost, and that there is a folder to write to."""
    another = "choose another place with --out"
    if str(place) == "-":
        raise UsageError("an export goes into a file, not to standard output; name it with --out")
    if not place.parent.is_dir():
        raise RunError(f"cannot write {place}: there is no folder {place.parent}")
    if not (place.exists() or place.is_symlink()):
        return
    if not (place.is_dir() if to in FOLDERS else place.is_file()):
        raise RunError(f"{place} exists and is no {'folder' if to in FOLDERS else 'file'}; {another}")
    if to in FOLDERS and not {path.name for path in place.iterdir()} <= FOLDERS[to]:
        raise RunError(f"{place} is a folder with other things in it; {another}")
    if not force:
        raise RunError(f"{place} exists; {another}, or replace it with --force")


def _size(place: Path) -> int:
    """Bytes of a file, or of all files of a folder."""
    files = place.rglob("*") if place.is_dir() else [place]
    return sum(path.stat().st_size for path in files if path.is_file())
