"""The public interface: names, imports, version, and the README's program."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import charwright

ROOT = Path(__file__).parent.parent


def python(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        check=False,
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # More threads slow small models down.
    )


@pytest.mark.parametrize("name", charwright.__all__)
def test_every_public_name_exists(name: str) -> None:
    value = getattr(charwright, name)
    assert name in dir(charwright)
    if name not in ("RECIPES", "__version__"):
        assert value.__doc__
        assert value.__name__ == name


def test_star_import_gives_all_names() -> None:
    names: dict[str, object] = {}
    exec("from charwright import *", names)
    assert set(charwright.__all__) <= set(names)


def test_the_previous_name_of_a_completion_warns() -> None:
    with pytest.warns(DeprecationWarning, match="Text is now charwright.Completion"):
        assert charwright.Text is charwright.Completion
    assert "Text" not in dir(charwright)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'teach'"):
        charwright.teach  # noqa: B018


def test_evaluate_is_the_function() -> None:
    """Importing the module of the same name must not replace it."""
    module = importlib.import_module("charwright.evaluation.evaluate")
    assert charwright.evaluate is module.evaluate


def test_no_public_name_is_that_of_a_module() -> None:
    modules = {module.name for module in pkgutil.iter_modules(charwright.__path__)}
    assert not modules & set(charwright.__all__)


def test_importing_the_package_imports_no_torch() -> None:
    done = python("import sys, charwright; print(sorted({'torch', 'numpy', 'click'} & set(sys.modules)))")
    assert done.stdout == "[]\n", done.stderr


def test_loading_a_run_and_generating_need_no_torch() -> None:
    run = Path(__file__).parent / "fixtures" / "old_runs" / "gru"
    code = f"""
import sys
sys.modules["torch"] = None
import charwright
charwright.Run, charwright.Engine, charwright.Session, charwright.Vocabulary
[text] = charwright.load({str(run)!r}).generate("a", length=5, seed=7)
assert len(text.continuation) == 5
"""
    assert python(code).stderr == ""


def test_the_version_is_the_changelogs_newest() -> None:
    changelog = ROOT / "CHANGELOG.md"
    headings = re.findall(r"^## \[?v?(\d+\.\d+\.\d+[^\s\]]*)", changelog.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings, "CHANGELOG.md has no heading with a version"
    assert headings[0] == charwright.__version__


def readme_programs() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def test_the_readmes_program_runs(tmp_path: Path) -> None:
    programs = readme_programs()
    assert programs
    for program in programs:
        done = python(program, tmp_path)
        assert done.returncode == 0, done.stderr
