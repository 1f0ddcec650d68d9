"""The build backend: scikit-build-core, with an installation that succeeds even if the kernels cannot be built.

Without a C compiler or CMake, or if the kernels do not compile, the package is built without them and a note is
printed. pip shows build output only with -v, so the note is also written to the terminal, if there is one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from scikit_build_core import build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist
from scikit_build_core.errors import CMakeNotFoundError, NinjaNotFoundError

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

Settings = dict[str, Any]

NOTE = """
******************************************************************************
charwright is installed without its C kernels: {reason}.
Everything works, but training on the CPU takes two to four times as long.
To install them, fix this and reinstall charwright; `pip install -v` shows
the full build output. docs/how-to/build-wheels.md names a compiler from pip.
******************************************************************************
"""


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """Return CMake and Ninja if they are missing, and nothing if there is no compiler to use them."""
    return build.get_requires_for_build_wheel(_settings(config_settings))


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """Return the requirements of an editable installation, likewise."""
    return build.get_requires_for_build_editable(_settings(config_settings))


def build_wheel(folder: str, config_settings: Settings | None = None, metadata: str | None = None) -> str:
    """Build a wheel, with the kernels if possible."""
    return _build(build.build_wheel, folder, config_settings, metadata)


def build_editable(folder: str, config_settings: Settings | None = None, metadata: str | None = None) -> str:
    """Build an editable installation, with the kernels if possible."""
    return _build(build.build_editable, folder, config_settings, metadata)


def _build(builder: Callable[..., str], folder: str, config_settings: Settings | None, metadata: str | None) -> str:
    reason = "they did not compile" if _compiler_may_exist() else "there is no C compiler (gcc or clang)"
    try:
        name = builder(folder, _settings(config_settings), metadata)
    except (CMakeNotFoundError, NinjaNotFoundError) as error:
        reason = f"{error}"
        name = builder(folder, _without_kernels(config_settings), metadata)
    # A wheel with the compiled library is specific to a platform; only one without it has the tag any.
    if name.endswith("-none-any.whl"):
        if os.environ.get("CHARWRIGHT_REQUIRE_KERNELS"):
            raise SystemExit(f"CHARWRIGHT_REQUIRE_KERNELS is set, but the kernels were not built: {reason}")
        _print_note(NOTE.format(reason=reason))
    return name


def _settings(config_settings: Settings | None) -> Settings | None:
    """Return the given settings, without the kernels if nothing can compile them."""
    return config_settings if _compiler_may_exist() else _without_kernels(config_settings)


def _without_kernels(config_settings: Settings | None) -> Settings:
    return {**(config_settings or {}), "wheel.cmake": "false"}


def _compiler_may_exist() -> bool:
    """Whether CMake may find a compiler, judged by the places where it looks."""
    if sys.platform == "win32" or os.environ.get("CMAKE_ARGS") or os.environ.get("CMAKE_TOOLCHAIN_FILE"):
        return True  # Visual Studio is not on the PATH; the variables may name a compiler.
    named = shlex.split(os.environ.get("CC", ""))
    return any(shutil.which(name) for name in (named[:1] or ["cc", "gcc", "clang"]))


def _print_note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    terminal = Path("CONOUT$" if sys.platform == "win32" else "/dev/tty")
    with suppress(OSError), terminal.open("w", encoding="utf-8") as shown:
        shown.write(text)
