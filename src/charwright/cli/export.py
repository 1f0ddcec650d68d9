"""`charwright export`: export a run to another format."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile, ZipFile

import click

from charwright.cli.options import NamedPath, given, say
from charwright.errors import RunError, UsageError

if TYPE_CHECKING:
    from charwright.run import Run


@dataclass(frozen=True)
class _Task:
    """The run to export, the destination, and the model card."""

    run: Run
    path: Path
    card: Mapping[str, Any]
    temperature: float


def _onnx(task: _Task) -> None:
    from charwright.interop.onnx_export import onnx_graphs
    from charwright.storage import whole_folder, write_file

    files = onnx_graphs(task.run, task.card)
    with whole_folder(task.path) as folder:
        for name, data in files.items():
            write_file(folder / name, data)


def _keras(task: _Task) -> None:
    from charwright.interop.keras_files import weights_h5_bytes
    from charwright.interop.keras_weights import to_keras
    from charwright.storage import write_file

    write_file(task.path, weights_h5_bytes(to_keras(task.run.model, task.run.weights())))


def _saved_model(task: _Task) -> None:
    from charwright.interop.saved_model_export import write_saved_model
    from charwright.storage import whole_folder

    with whole_folder(task.path) as folder:
        write_saved_model(task.run, folder, task.card, task.temperature)


def _html(task: _Task) -> None:
    from charwright.interop.html_export import page_bytes
    from charwright.storage import write_file

    write_file(task.path, page_bytes(task.run, task.card))


def _numpy(task: _Task) -> None:
    from charwright.interop.numpy_export import npz_bytes
    from charwright.storage import write_file

    write_file(task.path, npz_bytes(task.run, task.card))


FOLDERS = {
    "onnx": {"step.onnx", "generate.onnx"},
    "saved-model": {"saved_model.pb", "fingerprint.pb", "variables", "assets"},
}
"""The formats that are folders, and the files in them."""
BEGINNINGS = {"keras": b"\x89HDF", "html": b"<!doctype html>", "numpy": b"PK\x03\x04"}
"""The first bytes of the formats that are files."""

PAGE_OF_A_MODEL = b'<script type="application/octet-stream" id="weights">'
"""What no other page of charwright has, and hardly any page of others."""

FORMATS: Mapping[str, tuple[str, Callable[[_Task], None]]] = {
    "onnx": ("-onnx", _onnx),
    "saved-model": ("-saved-model", _saved_model),
    "keras": (".weights.h5", _keras),
    "html": (".html", _html),
    "numpy": (".npz", _numpy),
}
"""The suffix of each format's file or folder, and the function that writes it."""


@click.command(short_help="Export a run to another format.")
@click.argument("run", type=NamedPath())
@click.option("--to", "to", required=True, type=click.Choice(list(FORMATS)), help="Export format.")
@click.option(
    "--out",
    type=NamedPath(),
    metavar="PATH",
    help="Output file or folder.  [default: the run's name plus a suffix, in the current folder]",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Initial sampling temperature of a SavedModel; it can be changed after loading.",
)
@click.option("--force", is_flag=True, help="Replace an existing export.")
@click.pass_context
def export(ctx: click.Context, /, run: Path, to: str, out: Path | None, temperature: float, force: bool) -> None:
    """Export RUN to another format.

    \b
      onnx         a folder with two graphs: one step, and a generator that includes the loop and the sampling
      saved-model  a folder that TensorFlow loads without charwright: the tutorial's generate_one_step
      keras        a .weights.h5 file that the tutorial's MyModel loads
      html         one page that generates text in any browser, offline, with 8-bit weights
      numpy        one .npz file with the plain weights
    """  # noqa: D301  (\b keeps click from rewrapping the list)
    from charwright import __version__
    from charwright.interop.model_card import model_card
    from charwright.run import Run

    if not math.isfinite(temperature):
        raise UsageError(f"--temperature must be finite, not {temperature}")
    if to != "saved-model" and given(ctx, ["temperature"]):
        raise UsageError("--temperature requires --to saved-model; other formats take it when generating")
    opened = Run.open(run)
    ending, write = FORMATS[to]
    path = out if out is not None else Path(opened.folder.resolve().name + ending)
    _check_path(path, to, force=force)
    write(_Task(opened, path, model_card(opened, __version__), temperature))
    say(f"wrote {path} ({_size(path) / 1e6:,.2f} MB)")


def _check_path(path: Path, to: str, *, force: bool) -> None:
    """Check that nothing but an older export would be overwritten, and that the parent folder exists.

    Raises:
        UsageError: when the path is standard output or the name of another format, or Keras does not load such a name.
        RunError: when the parent folder is missing, or the path exists and must not be replaced.
    """
    from charwright.run_place import OF_A_RUN

    another = "choose another path with --out"
    if str(path) == "-":
        raise UsageError("an export cannot be written to standard output; name a file with --out")
    if to == "keras" and not path.name.endswith(".weights.h5"):
        raise UsageError(f"Keras loads weights from files named *.weights.h5, unlike {path}; choose another with --out")
    for other, (ending, _) in FORMATS.items():
        if other != to and not {to, other} & set(FOLDERS) and path.name.endswith(ending):
            raise UsageError(f"{path} has the name of an export --to {other}; {another}")
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: the folder {path.parent} does not exist")
    if not (path.exists() or path.is_symlink()):
        return
    if not (path.is_dir() if to in FOLDERS else path.is_file()):
        raise RunError(f"{path} exists and is not a {'folder' if to in FOLDERS else 'file'}; {another}")
    if to in FOLDERS and not {entry.name for entry in path.iterdir()} <= FOLDERS[to]:
        raise RunError(f"the folder {path} contains other files; {another}")
    for folder in path.resolve().parents:
        if (folder / "config.json").is_file() and path.resolve().relative_to(folder).parts[0] in OF_A_RUN:
            raise RunError(f"{path} is a part of the run {folder}; {another}")
    if not force:
        raise RunError(f"{path} exists; {another}, or replace it with --force")
    if to not in FOLDERS and path.stat().st_size and not _is_export(path, to):
        raise RunError(f"{path} is not an export of this format, and is not replaced; {another}")


def _is_export(path: Path, to: str) -> bool:
    """Whether a file looks like an older export: by its first bytes; pages and archives by their content."""
    with path.open("rb") as file:
        if file.read(len(BEGINNINGS[to])) != BEGINNINGS[to]:
            return False
    if to == "html":
        return PAGE_OF_A_MODEL in path.read_bytes()
    if to != "numpy":
        return True
    try:
        with ZipFile(path) as archive:
            return "card.npy" in archive.namelist()
    except BadZipFile:
        return False


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
