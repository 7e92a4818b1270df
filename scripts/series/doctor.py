# SPDX-License-Identifier: Apache-2.0
"""What the machine must have, and the command that installs what is missing.

Runs before anything is installed, so it uses the standard library only.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


@dataclasses.dataclass(frozen=True)
class Item:
    """One prerequisite: what was found, and if that is not enough, the command that mends it."""

    name: str
    ok: bool
    found: str
    mend: str = ""


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


def _tool(name: str, version: tuple[int, ...], least: tuple[int, ...], mend: str) -> Item:
    text = ".".join(map(str, version)) or "not found"
    need = ".".join(map(str, least))
    ok = bool(version) and version >= least
    return Item(name, ok, text if ok else f"{text}, needs {need} or newer", "" if ok else mend)


def examine(build: Path, device: str, kernels: str) -> list[Item]:
    """All prerequisites, in the order in which they are needed."""
    items = [
        _tool("git", _version("git", "--version"), (2, 30), _install("git")),
        _tool("make", _version("make", "--version"), (4,), _install("make")),
    ]
    python = sys.version_info[:3]
    ok = (3, 10) <= python < (3, 14)
    text = ".".join(map(str, python))
    items.append(
        Item(
            "python",
            ok,
            text if ok else f"{text}, needs 3.10 to 3.13",
            "" if ok else f"{_install('python')}; then make PYTHON=python3.12",
        )
    )
    # Debian ships venv without ensurepip, and then it makes environments without pip.
    venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
    items.append(Item("venv", venv, "yes" if venv else "no", "" if venv else _install("venv")))
    compiler = os.environ.get("CXX") or "g++"
    items.append(
        _tool("C++ compiler", _version(compiler, "-dumpfullversion"), (12,), _install("compiler"))
    )
    import sysconfig

    header = Path(sysconfig.get_path("include")) / "Python.h"
    items.append(
        Item(
            "Python headers",
            header.is_file(),
            str(header) if header.is_file() else "no Python.h",
            "" if header.is_file() else _install("headers"),
        )
    )
    if device == "cuda" and kernels == "source":
        nvcc = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin/nvcc"
        found = shutil.which("nvcc") or (str(nvcc) if nvcc.is_file() else "")
        items.append(
            Item(
                "CUDA compiler",
                bool(found),
                found or "no nvcc",
                ""
                if found
                else "use KERNELS=precompiled, or install the CUDA toolkit and set CUDA_HOME",
            )
        )
    need = DISK_GB["cuda" if device == "cuda" else "cpu"]
    where = next(folder for folder in (build, *build.parents) if folder.exists())
    free = shutil.disk_usage(where).free / 1e9
    items.append(
        Item(
            "disk",
            free >= need,
            f"{free:.0f} GB free" + ("" if free >= need else f", needs {need}"),
            "" if free >= need else f"free space in {where}, or use BUILD_DIR= on another disk",
        )
    )
    return items
