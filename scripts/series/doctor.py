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
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from . import cuda, index, kernels, settings
from .command import Command
from .config import Base, Paths
from .errors import Exit, SeriesError
from .steps import ask

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
    version = sys.version_info[:3]
    outdated = "" if version in base.python else f", needs {base.python}"
    newer = f"{_install('python')}; then make PYTHON=python3.12"
    # Debian ships venv without ensurepip, and then it makes environments without pip.
    venv = all(map(importlib.util.find_spec, ("venv", "ensurepip")))
    # Triton compiles a module of Python's on first use.
    header = Path(sysconfig.get_path("include")) / "Python.h"
    found = str(header) if header.is_file() else "no Python.h"
    items = [
        _tool("git", "git", "--version", (2, 30), _install("git")),
        _tool("make", "make", "--version", (4,), _install("make")),
        Item("python", not outdated, f"{_dotted(version)}{outdated}", newer),
        Item("venv", venv, "yes" if venv else "no", _install("venv")),
        Item("Python headers", header.is_file(), found, _install("headers")),
        _asked("machine", "fit for the build", lambda: kernels.check_machine(cpu=device == "cpu")),
    ]
    install = _install("compiler")
    if device == "cpu":
        items.append(_asked("C++ compiler", "GNU, 12 or newer", kernels.compiler, install))
    else:
        cc = os.environ.get("CC") or "gcc"
        items.append(_tool("C compiler", cc, "-dumpversion", (1,), install))
        if wanted == "source":
            items.append(_asked("CUDA compiler", "found", cuda.compiler))
    if not sources:
        items.append(_index(paths, base))
    items.append(_disk(paths.build, DISK_GB[device], device))
    return [dataclasses.replace(item, todo="" if item.ok else item.todo) for item in items]


def _install(what: str) -> str:
    debian, fedora = _PACKAGES[what]
    return f"dnf install {fedora}" if shutil.which("dnf") else f"apt-get install {debian}"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _tool(name: str, command: str, option: str, least: tuple[int, ...], todo: str) -> Item:
    """A program whose answer to `option` begins with a version."""
    match = re.search(r"\d+(?:\.\d+)*", ask(command, option))
    version = tuple(map(int, match[0].split("."))) if match else ()
    ok = version >= least
    lacking = "" if ok else f", needs {_dotted(least)} or newer"
    return Item(name, ok, f"{_dotted(version) or 'not found'}{lacking}", todo)


def _asked(name: str, found: str, check: Callable[[], object], todo: str = "") -> Item:
    """An item that holds unless `check`, which the build calls too, raises."""
    try:
        check()
    except SeriesError as error:
        return Item(name, False, error.what, todo or error.hint)
    return Item(name, True, found)


def _index(paths: Paths, base: Base) -> Item:
    """Whether the package index gives the pinned source, asked as fetch asks."""

    def ask() -> None:
        if base.archive.name not in index.offers(paths, base.package, base.version, **IMPATIENT):
            raise Exit.SOURCE(f"it has no {base.archive.name}", "use another, or SOURCES=")

    return _asked("package index", f"gives {base.archive.name}", ask)


def _disk(build: Path, need: int, device: str) -> Item:
    where = next(folder for folder in (build, *build.parents) if folder.exists())
    free = shutil.disk_usage(where).free / 1e9
    lacking = "" if free >= need else f", {device} needs {need}"
    todo = f"free space in {where}, or use BUILD_DIR= on another disk"
    return Item("disk", not lacking, f"{free:.0f} GB free{lacking}", todo)
