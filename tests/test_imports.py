"""The architecture: which package may import which, open files, or need PyTorch.

The sources are read with `ast`, so imports inside functions and under TYPE_CHECKING count too.
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
    "arguments": 0,
    "notebook": 0,
    "schema": 0,
    "passages": 0,
    "config": 0,
    "ngrams": 0,
    "threads": 0,
    "signals": 0,
    "locks": 0,
    "processes": 0,
    "storage": 0,
    "arrays": 0,
    "terminal_bar": 0,
    "webpage": 0,
    "data": 1,
    "model": 1,
    "kernels": 1,
    "evaluation": 2,
    "run_config": 2,
    "run": 2,
    "run_place": 2,
    "run_view": 2,
    "generation": 2,
    "training": 3,
    "planning": 4,
    "workflow": 5,
    "tuning": 6,
    "explanation": 6,
    "interop": 6,
    "plotting": 6,
    "compose": 6,
    "serve": 6,
    "cli": 7,
    "__main__": 8,
    "__init__": 8,
}
# Packages of one rank do not import each other, with these exceptions.
SIBLINGS = {
    ("arguments", "errors"),
    ("schema", "errors"),
    ("schema", "arguments"),
    ("config", "errors"),
    ("config", "schema"),
    ("config", "passages"),
    ("storage", "errors"),
    ("storage", "processes"),
    ("arrays", "errors"),
    ("arrays", "storage"),
    ("locks", "errors"),
    ("model", "kernels"),
    ("run", "run_config"),
    ("run", "run_place"),
    ("run", "run_view"),
    ("run_view", "run_config"),
    ("__main__", "cli"),
}
# Training is given a function that saves; it never opens a run.
FORBIDDEN = {("training", "run"), ("training", "run_config"), ("data", "kernels"), ("planning", "run")}

MAY_OPEN = {f"data/{name}.py" for name in ("parts", "byte_streams", "named", "map_writer", "mapped_ids", "text_cache")}
MAY_OPEN |= {"storage.py", "arrays.py", "locks.py", "processes.py", "compose/text_file.py", "model/features.py"}
MAY_OPEN |= {"webpage/template.py", "training/sums.py"}
MAY_OPEN |= {f"interop/{name}.py" for name in ("keras_files", "tensorflow_import", "numpy_export")}
OPENS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "fdopen", "load_file", "save_file", "fromfile"}
OPENS |= {"tofile", "memmap", "loadtxt", "savez", "mkstemp", "NamedTemporaryFile", "safe_open", "mmap"}

HEAVY = {"torch", "numpy", "safetensors", "pooch", "matplotlib", "rich", "tensorboard", "prompt_toolkit", "optuna"}
HEAVY |= {"IPython"}
HEAVY |= {"uniplot", "h5py", "tensorflow", "onnx", "onnxruntime", "google"}
HEAVY |= {"uvicorn", "starlette", "pydantic", "prometheus_client", "httptools"}
WITHOUT_TORCH = (
    "errors",
    "arguments",
    "schema",
    "config",
    "threads",
    "data",
    "storage",
    "arrays",
    "terminal_bar",
    "webpage",
    "locks",
    "processes",
    "run_config",
    "run_place",
    "run",
    "generation",
    "kernels",
)
WITHOUT_TORCH += ("interop", "compose", "plotting", "serve", "notebook", "run_view")


def package_of(path: str) -> str:
    """The subpackage or top-level module of a file, by its path inside the package."""
    return path.split("/", maxsplit=1)[0].removesuffix(".py")


def imported_modules(source: str, path: str) -> Iterator[str]:
    """The full names of all imports of a file, anywhere in it."""
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


def packages_imported(source: str, path: str) -> set[str]:
    """The other subpackages that a file imports from."""
    # The version is in the root package; reading it imports nothing else.
    names = [name.split(".") for name in imported_modules(source, path) if name != "charwright.__version__"]
    inside = {parts[1] if len(parts) > 1 else "__init__" for parts in names if parts[0] == "charwright"}
    # `from charwright import Run` goes through the root package, which imports everything.
    return {package if package in RANKS else "__init__" for package in inside} - {package_of(path)}


def allowed(package: str, other: str) -> bool:
    if (package, other) in FORBIDDEN:
        return False
    return RANKS[other] < RANKS[package] or (package, other) in SIBLINGS


def _called(node: ast.Call) -> str:
    """The last name of the called function."""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def files_opened(source: str) -> list[str]:
    """The calls that open files, except `Run.open`, which opens a run through storage.py."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [ast.unparse(node) for node in calls if _called(node) in OPENS and ast.unparse(node.func) != "Run.open"]


def needs(source: str, path: str, package: str) -> bool:
    return any(name.split(".")[0] == package for name in imported_modules(source, path))


FILES = {str(path.relative_to(PACKAGE).as_posix()): path.read_text("utf-8") for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_file_belongs_to_a_known_package():
    assert len(FILES) > 20
    assert {package_of(path) for path in FILES} <= set(RANKS)
    assert not {Path(path).name for path in FILES} & {"utils.py", "helpers.py", "common.py"}


@pytest.mark.parametrize("path", FILES)
def test_imports_go_downward_only(path):
    package = package_of(path)
    upward = sorted(other for other in packages_imported(FILES[path], path) if not allowed(package, other))
    assert not upward, f"{path} must not import {', '.join(upward)}"


def module_of(path: str) -> str:
    """The full name of a file's module."""
    return ".".join(["charwright", *path.removesuffix(".py").split("/")]).removesuffix(".__init__")


def module_graph(files: dict[str, str]) -> dict[str, set[str]]:
    """The modules that each module imports: at the top, inside functions, or under TYPE_CHECKING."""
    modules = {module_of(path): path for path in files}

    def target(name: str) -> str:  # `charwright.config.GATES` is imported from `charwright.config`
        return name if name in modules else name.rpartition(".")[0]

    return {
        module: {target(name) for name in imported_modules(files[path], path) if name != "charwright.__version__"}
        & set(modules) - {module}
        for module, path in modules.items()
    }


def import_cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of an import cycle, the first one again at the end; empty if there is none."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module not in finished:
            for other in sorted(graph[module]):
                if cycle := visit(other, [*path, module]):
                    return cycle
            finished.add(module)
        return []

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), [])


def test_no_modules_import_each_other_in_a_cycle():
    assert " -> ".join(import_cycle(module_graph(FILES))) == ""


def test_cycles_are_found():
    files = {
        "__init__.py": "",
        "config.py": "",
        "data/corpus.py": "from charwright.config import X\nfrom charwright import __version__",
        "cli/info.py": "from charwright import Run",
        "data/named.py": "def f():\n    from . import vocabulary",
        "data/vocabulary.py": "if TYPE_CHECKING:\n    from charwright.data.named import Text",
    }
    graph = module_graph(files)
    assert graph["charwright.data.corpus"] == {"charwright.config"}
    assert graph["charwright.cli.info"] == {"charwright"}
    named, vocabulary = "charwright.data.named", "charwright.data.vocabulary"
    assert import_cycle(graph) == [named, vocabulary, named]
    graph[vocabulary].clear()
    assert import_cycle(graph) == []


@pytest.mark.parametrize("path", [path for path in FILES if path not in MAY_OPEN and package_of(path) != "cli"])
def test_no_other_file_opens_files(path):
    assert files_opened(FILES[path]) == []


@pytest.mark.parametrize("path", [path for path in FILES if package_of(path) in WITHOUT_TORCH])
def test_these_packages_do_not_import_torch(path):
    assert not needs(FILES[path], path, "torch")


# The download bar and the editor's screen are imported by the commands that show them, inside their functions.
LATER = {"cli/download.py"}
AT_START = [path for path in FILES if package_of(path) in ("cli", "__init__", "__main__") and path not in LATER]


@pytest.mark.parametrize("path", AT_START)
def test_the_command_line_imports_nothing_heavy_at_its_start(path):
    tree = ast.parse(FILES[path])
    at_the_top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    names = [name.split(".") for name in imported_modules(ast.unparse(at_the_top), path)]
    assert not {parts[0] for parts in names} & HEAVY
    # The service's options import no more than the others'.
    ours = [parts[1] for parts in names if parts[0] == "charwright" and parts[1:3] != ["serve", "limits"]]
    assert set(ours) <= {
        "arguments",
        "cli",
        "config",
        "errors",
        "schema",
        "signals",
        "__version__",
    }


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
    assert packages_imported(source, path) == known


def test_the_table():
    assert not allowed("data", "model")
    assert not allowed("model", "data")
    assert not allowed("kernels", "model")
    assert allowed("model", "kernels")
    assert allowed("generation", "kernels")
    assert not allowed("generation", "run")
    assert not allowed("evaluation", "generation")
    assert not allowed("training", "run")
    assert not allowed("errors", "config")
    assert allowed("cli", "training")
    assert not allowed("cli", "__init__")


def test_the_reader_of_opened_files_sees():
    source = "open('x')\nPath('x').open()\npath.read_text()\nnp.fromfile('x')\nRun.open('x')\nopened()\n"
    assert len(files_opened(source)) == 4
