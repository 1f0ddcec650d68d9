"""Installing charwright where a C compiler is and where none is: both succeed, and both train."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import shutil
import site
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What a build reads, and nothing that was built before.
SOURCES = ("pyproject.toml", "backend", "CMakeLists.txt", "README.md", "LICENSE", "src")
COMPILERS = ("cc", "gcc", "clang")
TINY = ("--steps", "3", "--units", "16", "--embedding-size", "8", "--seq-length", "20", "--batch", "4")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with charwright in it, and what pip said."""

    folder: Path
    environment: dict[str, str]
    said: str

    def charwright(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment's own; it must succeed."""
        command = [self.folder / "bin" / "python", "-m", "charwright", *arguments]
        return run(command, self.environment, self.folder)

    def machine(self) -> dict[str, str]:
        facts: dict[str, str] = json.loads(self.charwright("info", "--machine", "--json").stdout)
        return facts


def run(command: list[str | Path], environment: dict[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def build_tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scikit-build-core, so that the installations need no index themselves."""
    folder = tmp_path_factory.mktemp("build-tools")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", folder]
    done = subprocess.run(
        [*command, "--constraint", ROOT / "constraints.txt", "scikit-build-core"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip(f"scikit-build-core cannot be had here: {done.stderr.splitlines()[-1]}")
    return folder


def path_with(folder: Path, *tools: str) -> str:
    """A PATH that leads to the named tools and to nothing else."""
    folder.mkdir()
    for tool in tools:
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return str(folder)


def install(folder: Path, build_tools: Path, **changes: str) -> Installed:
    """Install a copy of the sources into an environment that borrows this one's PyTorch and the rest."""
    folder.mkdir(exist_ok=True)
    home, tree = folder / "environment", folder / "tree"
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(source, tree / name)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    [library] = home.glob("lib/python*/site-packages")
    # An editable charwright is found through a .pth file, which a folder that is itself named in one does not read.
    (library / "borrowed.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    kept = ("CC", "CMAKE_ARGS", "PYTHONPATH", "CHARWRIGHT_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(kept)}
    environment |= {"OMP_NUM_THREADS": "1", **changes}
    command = [home / "bin" / "python", "-m", "pip", "install", "-v", "--ignore-installed", "--no-deps"]
    done = run([*command, "--no-build-isolation", tree], environment | {"PYTHONPATH": str(build_tools)}, folder)
    return Installed(home, environment, done.stdout + done.stderr)


def train(installed: Installed, tmp_path: Path) -> str:
    """A few steps; returns what was said."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    done = installed.charwright("train", corpus, *TINY, "--out", tmp_path / "run")
    assert (tmp_path / "run" / "model.safetensors").is_file()
    return done.stderr


@pytest.fixture(scope="module")
def without_compiler(build_tools: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("without")
    return install(folder, build_tools, PATH=path_with(folder / "bin", "sh"), CC="/nonexistent")


def test_without_a_compiler_installing_succeeds_and_says_what_is_missing(without_compiler: Installed) -> None:
    assert "installed without its C kernels: there is no C compiler" in without_compiler.said
    assert "two to four times as long" in without_compiler.said
    assert "py3-none-any.whl" in without_compiler.said


def test_without_a_compiler_info_says_what_it_costs(without_compiler: Installed) -> None:
    facts = without_compiler.machine()
    assert facts["kernels"].startswith("none: the C kernels were not built, so training")
    assert "two to four times as long" in facts["kernels"]
    assert facts["kernels_here"] == []


def test_without_a_compiler_the_fused_core_trains(without_compiler: Installed, tmp_path: Path) -> None:
    if without_compiler.machine()["device"] == "cpu":
        assert without_compiler.machine()["core"] == "fused"
    assert "the C kernels were not built" in train(without_compiler, tmp_path)


def test_a_compiler_without_cmake_installs_too(build_tools: Path, tmp_path: Path) -> None:
    found = [name for name in COMPILERS if shutil.which(name)]
    if not found:
        pytest.skip("there is no C compiler here")
    installed = install(tmp_path, build_tools, PATH=path_with(tmp_path / "bin", *found))
    assert "without its C kernels: Could not find CMake" in installed.said
    assert installed.machine()["kernels_here"] == []


def test_kernels_that_do_not_compile_are_left_out(build_tools: Path, tmp_path: Path) -> None:
    """A compiler that finds every source wrong, as one for another language would."""
    broken = tmp_path / "broken-cc"
    broken.write_text("#!/bin/sh\nexit 1\n")
    broken.chmod(0o755)
    if not shutil.which("cmake"):
        pytest.skip("there is no CMake here")
    installed = install(tmp_path, build_tools, CC=str(broken))
    assert "without its C kernels: they did not compile" in installed.said
    assert installed.machine()["kernels_here"] == []


def assembles_tiles(folder: Path) -> bool:
    """Whether the compiler and its assembler are new enough for every variant, on this processor's family."""
    program = folder / "tiles.c"
    program.write_text('__asm__("tdpbf16ps %tmm2, %tmm1, %tmm0");')
    compiler = next(filter(None, map(shutil.which, COMPILERS)))
    command = [compiler, "-c", "-mavx512bf16", "-mavxvnni", program, "-o", folder / "tiles.o"]
    return sys.platform == "linux" and subprocess.run(command, capture_output=True, check=False).returncode == 0


def built_variants(library: Path) -> set[str]:
    """The variants in a library, whether or not they run on this machine."""
    loaded = ctypes.CDLL(str(library))
    loaded.cw_variant_name.restype = ctypes.c_char_p
    names = map(loaded.cw_variant_name, itertools.count())
    return {name.decode() for name in itertools.takewhile(lambda name: name is not None, names)}


def test_with_a_compiler_the_native_core_trains(build_tools: Path, tmp_path: Path) -> None:
    if not shutil.which("cmake") or not any(shutil.which(name) for name in COMPILERS):
        pytest.skip("there is no C compiler with CMake here")
    installed = install(tmp_path, build_tools)
    assert "without its C kernels" not in installed.said
    facts = installed.machine()
    assert "portable" in facts["kernels_here"]
    if facts["device"] == "cpu":
        assert facts["core"] == "native"
    [library] = installed.folder.glob("lib/python*/site-packages/charwright/kernels")
    [kernels] = [path for path in library.iterdir() if path.suffix in (".so", ".dylib", ".dll")]
    if assembles_tiles(tmp_path):
        assert built_variants(kernels) >= {"amx", "avx512bf16", "avx512vnni", "avx512", "avx2", "portable"}
    assert not [path.name for path in library.iterdir() if path.suffix in (".c", ".h")]
    assert "kernels" not in train(installed, tmp_path)


@pytest.mark.skipif(not shutil.which("git") or not (ROOT / ".git").exists(), reason="needs a checkout and git")
def test_the_newest_pip_builds_the_whole_checkout(tmp_path: Path) -> None:
    """No folder of the project hides a package that pip or the build needs."""
    tree, home = tmp_path / "tree", tmp_path / "environment"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tree / name)
    subprocess.run([sys.executable, "-m", "venv", home], check=True)
    pip = [home / "bin" / "python", "-m", "pip"]
    newest = subprocess.run(
        [*pip, "install", "--quiet", "--upgrade", "pip"], capture_output=True, text=True, check=False
    )
    if newest.returncode != 0:
        pytest.skip(f"the newest pip cannot be had here: {newest.stderr.splitlines()[-1]}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "PIP_CON"))}
    done = run([*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path / "wheels", tree], environment, tmp_path)
    assert [path.suffix for path in (tmp_path / "wheels").iterdir()] == [".whl"], done.stdout
