"""The rooms of the house: who may import whom, who may open a file, who may need PyTorch.

All is read from the sources with `ast`, so that an import inside a function counts, and one under TYPE_CHECKING too:
a type that a room names is a room that it knows.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import charwright

PACKAGE = Path(charwright.__file__).parent

RANKS = {
    "errors": 0,
    "config": 0,
    "data": 1,
    "model": 1,
    "kernels": 1,
    "storage": 1,
    "evaluate": 2,
    "run_config": 2,
    "run": 2,
    "generation": 2,
    "dynamic": 3,
    "training": 3,
    "interop": 4,
    "serve": 4,
    "cli": 5,
    "__main__": 6,
    "__init__": 6,
}
# Rooms of one rank are siblings and do not know each other, with these exceptions.
SIBLINGS = {("config", "errors"), ("model", "kernels"), ("run", "run_config"), ("__main__", "cli")}
# Training is given what saves and what writes; it does not look for them.
FORBIDDEN = {("training", "run"), ("training", "run_config"), ("data", "kernels")}

MAY_OPEN = {"data/corpus.py", "data/named.py", "storage.py"}
MAY_OPEN |= {f"interop/{name}.py" for name in ("keras_files", "tensorflow_files", "numpy_file", "web_page")}
OPENS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "fdopen", "load_file", "save_file", "fromfile"}
OPENS |= {"tofile", "memmap", "loadtxt", "savez", "mkstemp", "NamedTemporaryFile"}

HEAVY = {"torch", "numpy", "safetensors", "pooch", "matplotlib", "rich", "tensorboard", "prompt_toolkit", "optuna"}
HEAVY |= {"h5py", "tensorflow", "onnx", "onnxruntime", "google"}
WITHOUT_TORCH = ("errors", "config", "data", "storage", "run_config", "run", "generation", "kernels", "interop")


def room_of(path: str) -> str:
    """The room of a file, by its path inside the package."""
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def imported_modules(source: str, path: str) -> Iterator[str]:
    """The full names of all that a file imports, wherever in the file it does."""
    package = ["charwright", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) == "import_module" and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value)


def rooms_known(source: str, path: str) -> set[str]:
    """The other rooms that a file imports from."""
    # The version lives at the front door, and whoever only reads it knows nothing of the other rooms.
    names = [name.split(".") for name in imported_modules(source, path) if name != "charwright.__version__"]
    inside = {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "charwright"}
    # `from charwright import Run` goes through the front door, which knows everything.
    return {room if room in RANKS else "__init__" for room in inside} - {room_of(path)}


def allowed(room: str, other: str) -> bool:
    if (room, other) in FORBIDDEN:
        return False
    return RANKS[other] < RANKS[room] or (room, other) in SIBLINGS


def _called(node: ast.Call) -> str:
    """The last name of what a call calls."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def files_opened(source: str) -> list[str]:
    """The calls of a file that open files. `Run.open` opens a run, whose files storage.py opens."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(node) for node in calls if _called(node) in OPENS and ast.unparse(node.func) != "Run.open"]


def needs(source: str, path: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imported_modules(source, path))


FILES = {str(path.relative_to(PACKAGE).as_posix()): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_file_belongs_to_a_room():
    assert len(FILES) > 20
    assert {room_of(path) for path in FILES} <= set(RANKS)
    assert not {Path(path).name for path in FILES} & {"utils.py", "helpers.py", "common.py"}


@pytest.mark.parametrize("path", FILES)
def test_imports_go_downward_only(path):
    room = room_of(path)
    upward = sorted(other for other in rooms_known(FILES[path], path) if not allowed(room, other))
    assert not upward, f"{path} may not know {', '.join(upward)}"


@pytest.mark.parametrize("path", [path for path in FILES if path not in MAY_OPEN and room_of(path) != "cli"])
def test_nobody_else_opens_a_file(path):
    assert files_opened(FILES[path]) == []


@pytest.mark.parametrize("path", [path for path in FILES if room_of(path) in WITHOUT_TORCH])
def test_these_rooms_need_no_torch(path):
    assert not needs(FILES[path], path, "torch")


# The download bar and the editor's screen are imported by the commands that show them, inside their functions.
LATER = {"cli/download.py", "cli/editor.py", "cli/text_window.py"}
AT_START = [path for path in FILES if room_of(path) in ("cli", "__init__", "__main__") and path not in LATER]


@pytest.mark.parametrize("path", AT_START)
def test_the_terminal_waits_for_nothing_heavy(path):
    tree = ast.parse(FILES[path])
    at_the_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = [name.split(".") for name in imported_modules(ast.unparse(at_the_top), path)]
    assert not {parts[0] for parts in names} & HEAVY
    assert {parts[1] for parts in names if parts[0] == "charwright"} <= {"cli", "config", "errors", "__version__"}


def test_the_files_that_may_open_files_exist():
    assert set(FILES) >= MAY_OPEN


@pytest.mark.parametrize(
    ("path", "source", "known"),
    [
        ("data/corpus.py", "from charwright.model.cells import State", {"model"}),
        ("data/corpus.py", "from charwright import model", {"model"}),
        ("data/corpus.py", "import charwright.model.cells as c", {"model"}),
        ("data/corpus.py", "from ..model import cells", {"model"}),
        ("data/corpus.py", "from .. import model", {"model"}),
        ("data/corpus.py", "from . import named", set()),
        ("run.py", "from . import training", {"training"}),
        ("data/corpus.py", "def f():\n    from charwright.training.loop import fit", {"training"}),
        ("data/corpus.py", "if TYPE_CHECKING:\n    from charwright.run import Run", {"run"}),
        ("data/corpus.py", "from charwright import Run", {"__init__"}),
        ("data/corpus.py", "import charwright", {"__init__"}),
        ("data/corpus.py", "from charwright import __version__", set()),
        ("data/corpus.py", "importlib.import_module('charwright.cli')", {"cli"}),
        ("data/corpus.py", "from charwright.errors import X\nimport numpy", {"errors"}),
    ],
)
def test_the_reader_of_imports_sees(path, source, known):
    assert rooms_known(source, path) == known


def test_the_table():
    assert not allowed("data", "model")
    assert not allowed("model", "data")
    assert not allowed("kernels", "model")
    assert allowed("model", "kernels")
    assert allowed("generation", "kernels")
    assert not allowed("generation", "run")
    assert not allowed("evaluate", "generation")
    assert not allowed("training", "run")
    assert not allowed("errors", "config")
    assert allowed("cli", "training")
    assert not allowed("cli", "__init__")


def test_the_reader_of_opened_files_sees():
    source = "open('x')\nPath('x').open()\npath.read_text()\nnp.fromfile('x')\nRun.open('x')\nopened()\n"
    assert len(files_opened(source)) == 4
