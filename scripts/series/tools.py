# SPDX-License-Identifier: Apache-2.0
"""Virtual environments of the tool itself: build/tools with uv, build/dev with what checks it."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from .config import Paths
from .errors import Exit, hide
from .git import first_line
from .state import digest, locked, make_build_folder

LOCKS = Path(__file__).resolve().parents[2] / "ci/locks"
# The longest a Unix socket's path may be is 107 bytes; vLLM and multiprocessing add up to 50.
LONGEST_TMPDIR = 57


def caches(paths: Paths) -> dict[str, str]:
    """Where programs of any kind keep what they write, unless the caller has said where."""
    folder = paths.build / "cache"
    temporary = folder / "tmp"
    chosen = {
        "PIP_CACHE_DIR": str(folder / "pip"),
        "UV_CACHE_DIR": str(folder / "uv"),
        "PYTHONPYCACHEPREFIX": str(folder / "pycache"),
    }
    if len(os.fsencode(temporary)) <= LONGEST_TMPDIR:
        make_build_folder(paths.build)
        temporary.mkdir(parents=True, exist_ok=True)
        chosen["TMPDIR"] = str(temporary)
    return {key: os.environ.get(key) or value for key, value in chosen.items()}


def make(paths: Paths, name: str) -> Path:
    """The folder of `build/<name>`, built from ci/locks/<name>.txt unless it is up to date."""
    folder, lock = paths.build / name, LOCKS / f"{name}.txt"
    interpreter = os.path.realpath(sys.executable)
    want = "\n".join([digest(lock.read_bytes()), platform.python_version(), interpreter])
    stamp = folder / ".built"

    def built() -> bool:
        # A copy of a build folder can have lost what the link leads to.
        whole = stamp.is_file() and (folder / "bin/python").is_file()
        return whole and stamp.read_text(encoding="utf-8") == want

    if built():
        return folder
    make_build_folder(paths.build)
    with locked(paths.build / f".{name}.lock", 600):
        if built():
            return folder
        print(f"building {folder}", file=sys.stderr)
        if folder.is_symlink():
            folder.unlink()
        shutil.rmtree(folder, ignore_errors=True)
        _run(
            [interpreter, "-m", "venv", folder],
            paths,
            f"{interpreter} cannot make a virtual environment",
            "make doctor says what is missing",
        )
        install = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        _run(
            [folder / "bin/python", *install, "--require-hashes", "-r", lock],
            paths,
            f"cannot install {lock.name} of ci/locks",
            "check pip's index and proxy settings",
        )
        stamp.write_text(want, encoding="utf-8")
    return folder


def _run(argv: list[str | Path], paths: Paths, what: str, hint: str) -> None:
    # Every file is named by its hash, so the machine's constraints have no say.
    env = {**os.environ, **caches(paths), "PIP_CONSTRAINT": os.devnull}
    env["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    env.pop("PYTHONPATH", None)
    done = subprocess.run(argv, env=env, capture_output=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [b""]
        raise Exit.BUILD(f"{what} ({hide(first_line(lines[-1]))})", hint)


def uv(paths: Paths) -> Path:
    """The uv of this virtual environment (build/dev has one), else the one of build/tools."""
    beside = Path(sys.executable).parent / "uv"
    inside = sys.prefix != sys.base_prefix and beside.exists()
    return beside if inside else make(paths, "tools") / "bin/uv"
