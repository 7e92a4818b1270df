# SPDX-License-Identifier: Apache-2.0
"""What the machine must have, and the command that installs what is missing.

Runs before anything is installed, so it uses the standard library only. What the build checks
is checked by the build's own functions.
"""

import argparse
import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

from . import cuda, index, kernels, settings
from .command import Command
from .config import Base, Paths, Pythons
from .errors import Exit, SeriesError

# Debian and Ubuntu, Fedora and RHEL
_PACKAGES = {
    "git": ("git", "git"),
    "make": ("make", "make"),
    "python": ("python3", "python3.12"),
    "venv": ("python3-venv", "python3-pip"),
    "compiler": ("g++", "gcc-c++"),
    "headers": ("python3-dev", "python3-devel"),
}
DISK_GB = {"cpu": 12, "cuda": 40}
# Soon is enough to know that an index is out of reach.
IMPATIENT = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}


@dataclasses.dataclass(frozen=True)
class Item:
    """One prerequisite: what was found, and if that is not enough, what to do."""

    name: str
    ok: bool
    found: str
    todo: str = ""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `doctor`."""
    settings.add_arguments(parser, settings.BUILD)


def run(command: Command) -> Exit:
    """Name each missing prerequisite and the command that installs it."""
    args = command.args
    items = examine(command.paths, command.base, args.device, args.kernels, args.sources)
    for item in items:
        mark = "ok     " if item.ok else "missing"
        command.say(f"{mark} {item.name}: {item.found}{f'; {item.todo}' if item.todo else ''}")
    command.report = {"items": [vars(item) for item in items]}
    return Exit.OK if all(item.ok for item in items) else Exit.FAILED


def examine(paths: Paths, base: Base, device: str, wanted: str, sources: str) -> list[Item]:
    """All prerequisites, in the order in which they are needed."""
    if device == "auto":
        device = "cuda" if cuda.has_gpu() else "cpu"
    return [
        _tool("git", _version("git", "--version"), (2, 30), _install("git")),
        _tool("make", _version("make", "--version"), (4,), _install("make")),
        *_python(base.python),
        _asked("machine", "fit for the build", lambda: kernels.check_machine(cpu=device == "cpu")),
        *_compilers(device, wanted),
        *([] if sources else [_index(paths, base)]),
        _disk(paths.build, DISK_GB[device], device),
    ]


def _install(what: str) -> str:
    debian, fedora = _PACKAGES[what]
    return f"dnf install {fedora}" if shutil.which("dnf") else f"apt-get install {debian}"


def _version(command: str, *arguments: str) -> tuple[int, ...]:
    """The first dotted number that the command prints; () if it does not run."""
    try:
        done = subprocess.run(
            [command, *arguments], capture_output=True, text=True, check=False, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    match = re.search(r"\d+(?:\.\d+)*", done.stdout)
    return tuple(map(int, match[0].split("."))) if match and not done.returncode else ()


def _tool(name: str, version: tuple[int, ...], least: tuple[int, ...], todo: str) -> Item:
    text = ".".join(map(str, version)) or "not found"
    need = ".".join(map(str, least))
    ok = bool(version) and version >= least
    return Item(name, ok, text if ok else f"{text}, needs {need} or newer", "" if ok else todo)


def _asked(name: str, found: str, check: Callable[[], object], todo: str = "") -> Item:
    """An item that holds unless `check`, which the build calls too, raises."""
    try:
        check()
    except SeriesError as error:
        return Item(name, False, error.what, todo or error.hint)
    return Item(name, True, found)


def _python(pythons: Pythons) -> Iterator[Item]:
    version = sys.version_info[:3]
    ok = version in pythons
    text = ".".join(map(str, version)) + ("" if ok else f", needs {pythons}")
    yield Item(
        "python", ok, text, "" if ok else f"{_install('python')}; then make PYTHON=python3.12"
    )
    # Debian ships venv without ensurepip, and then it makes environments without pip.
    venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
    yield Item("venv", venv, "yes" if venv else "no", "" if venv else _install("venv"))
    # Triton compiles a module of Python's on first use.
    header = Path(sysconfig.get_path("include")) / "Python.h"
    found = header.is_file()
    text = str(header) if found else "no Python.h"
    yield Item("Python headers", found, text, "" if found else _install("headers"))


def _compilers(device: str, wanted: str) -> Iterator[Item]:
    install = _install("compiler")
    if device == "cpu":
        yield _asked("C++ compiler", "GNU, 12 or newer", kernels.compiler, install)
        return
    cc = os.environ.get("CC") or "gcc"
    yield _tool("C compiler", _version(cc, "-dumpversion"), (1,), install)
    if wanted == "source":
        yield _asked("CUDA compiler", "found", cuda.compiler)


def _index(paths: Paths, base: Base) -> Item:
    """Whether the package index gives the pinned source, asked as fetch asks."""

    def ask() -> None:
        if base.archive.name not in index.offers(paths, base.package, base.version, **IMPATIENT):
            raise SeriesError(
                Exit.SOURCE, f"it has no {base.archive.name}", hint="use another, or SOURCES="
            )

    return _asked("package index", f"gives {base.archive.name}", ask)


def _disk(build: Path, need: int, device: str) -> Item:
    where = next(folder for folder in (build, *build.parents) if folder.exists())
    free = shutil.disk_usage(where).free / 1e9
    if free >= need:
        return Item("disk", True, f"{free:.0f} GB free")
    return Item(
        "disk",
        False,
        f"{free:.0f} GB free, {device} needs {need}",
        f"free space in {where}, or use BUILD_DIR= on another disk",
    )
