"""What pip calls to build charwright: scikit-build-core, and an installation that succeeds without the kernels too.

Without a C compiler, or CMake, or where the kernels do not compile, the package is built without them and this says
so. pip shows what a build prints only with -v, so it is said on the terminal as well, where there is one.
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
charwright is installed without its C kernels: {why}.
Everything works, but training on the CPU takes about twice as long.
To have them, mend that and install charwright again; `pip install -v` shows
all that the build says.
******************************************************************************
"""


def get_requires_for_build_wheel(config_settings: Settings | None = None) -> list[str]:
    """CMake and Ninja from the index where the machine has none, and nothing where there is no compiler to use them."""
    return build.get_requires_for_build_wheel(_settings(config_settings))


def get_requires_for_build_editable(config_settings: Settings | None = None) -> list[str]:
    """The same for an editable installation."""
    return build.get_requires_for_build_editable(_settings(config_settings))


def build_wheel(folder: str, config_settings: Settings | None = None, metadata: str | None = None) -> str:
    """A wheel with the kernels, or one without them."""
    return _build(build.build_wheel, folder, config_settings, metadata)


def build_editable(folder: str, config_settings: Settings | None = None, metadata: str | None = None) -> str:
    """The same for an editable installation."""
    return _build(build.build_editable, folder, config_settings, metadata)


def _build(make: Callable[..., str], folder: str, config_settings: Settings | None, metadata: str | None) -> str:
    why = "they did not compile" if _compiler_may_exist() else "there is no C compiler (gcc or clang)"
    try:
        name = make(folder, _settings(config_settings), metadata)
    except (CMakeNotFoundError, NinjaNotFoundError) as error:
        why = f"{error}"
        name = make(folder, _without_kernels(config_settings), metadata)
    # A wheel with a library in it is for one platform; only one without is for any.
    if name.endswith("-none-any.whl"):
        if os.environ.get("CHARWRIGHT_REQUIRE_KERNELS"):
            raise SystemExit(f"CHARWRIGHT_REQUIRE_KERNELS is set, and the kernels were not built: {why}")
        _say(NOTE.format(why=why))
    return name


def _settings(config_settings: Settings | None) -> Settings | None:
    """What was asked for, or that without the kernels where nothing could compile them."""
    return config_settings if _compiler_may_exist() else _without_kernels(config_settings)


def _without_kernels(config_settings: Settings | None) -> Settings:
    return {**(config_settings or {}), "wheel.cmake": "false"}


def _compiler_may_exist() -> bool:
    """Whether CMake has a chance to find a compiler, looking where it would look."""
    if sys.platform == "win32" or os.environ.get("CMAKE_ARGS") or os.environ.get("CMAKE_TOOLCHAIN_FILE"):
        return True  # Visual Studio is not on the PATH; who sets the others knows better.
    named = shlex.split(os.environ.get("CC", ""))
    return any(shutil.which(name) for name in (named[:1] or ["cc", "gcc", "clang"]))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
    with suppress(OSError), Path("/dev/tty").open("w", encoding="utf-8") as terminal:
        terminal.write(text)
