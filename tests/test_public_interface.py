"""What other people's programs count on: the public names, the version, the README's program."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import charwright

ROOT = Path(__file__).parent.parent


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # Small models are slowed down by more.
    )


@pytest.mark.parametrize("name", charwright.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(charwright, name)
    assert name in dir(charwright)
    if name not in ("RECIPES", "__version__"):
        assert value.__doc__
        assert value.__name__ == name


def test_star_import_gives_all_names() -> None:
    names: dict[str, object] = {}
    exec("from charwright import *", names)
    assert set(charwright.__all__) <= set(names)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'teach'"):
        charwright.teach  # noqa: B018


@pytest.mark.parametrize(
    "before", ["", "charwright.fit", "import charwright.evaluate", "from charwright.evaluate import evaluate"]
)
def test_evaluate_is_the_function_whatever_was_imported_before(before: str) -> None:
    """Importing the module of the same name must not put it in the function's place."""
    code = f"import charwright\n{before}\nprint(charwright.evaluate.__code__.co_name)"
    done = python(code)
    assert done.stdout == "evaluate\n", done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    done = python("import sys, charwright; print(sorted({'torch', 'numpy', 'click'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_opening_a_run_and_writing_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import charwright as c; c.Run, c.Generator, c.Vocabulary, c.Engine"
    assert python(code).stderr == ""


def test_the_version_is_the_changelogs_newest() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("there is no CHANGELOG.md yet")
    headings = re.findall(r"^## \[?v?(\d+\.\d+\.\d+[^\s\]]*)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings, "CHANGELOG.md has no heading with a version"
    assert headings[0] == charwright.__version__


def readme_programs() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_program_runs(tmp_path: Path) -> None:
    programs = readme_programs()
    if not programs:
        pytest.skip("README.md has no block of Python yet")
    for program in programs:
        done = python(program, tmp_path)
        assert done.returncode == 0, done.stderr
