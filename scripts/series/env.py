# SPDX-License-Identifier: Apache-2.0
"""The engine's environment: Python, the locked packages, vLLM installed editable."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import index
from .config import Base, Paths
from .errors import Exit, SeriesError
from .git import git
from .state import digest, write_atomic
from .steps import Steps

PYTHONS = ((3, 10), (3, 13))
# Files of vLLM that an editable install reads; everything else is picked up from the tree as it is.
_METADATA = ("setup.py", "pyproject.toml", "requirements", "README.md", "vllm/envs.py")
# From the index of torch's CPU builds; the rest of the lock is the same for both builds.
_TORCH = ("torch", "torchvision")
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_ENTRY = re.compile(r"^(?P<name>[a-z0-9][a-z0-9._-]*)==(?P<version>\S+)")


# ---- the lock ----


def entries(lock: str) -> dict[str, list[str]]:
    """The lines of a lock by package name; a package can have several versions."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in lock.splitlines(keepends=True):
        match = _ENTRY.match(line)
        if match:
            lines = found.setdefault(match["name"], [])
        if not line.startswith("#"):
            lines.append(line)
    return found


def version_of(lock: str, name: str) -> str:
    """The version that a lock gives `name`."""
    match = _ENTRY.match(entries(lock)[name][0])
    assert match is not None
    return match["version"]


def _wanted_by(lines: list[str]) -> set[str]:
    """The packages that uv names as the reason for an entry (its `# via` comments)."""
    text = "".join(line for line in lines if line.lstrip().startswith("#"))
    return set(text.replace("#", " ").replace("via", " ", 1).split())


def without_torch(lock: str) -> str:
    """The lock without torch, torchvision and the CUDA packages that nothing but torch wants."""
    packages = entries(lock)
    dropped = set(_TORCH)
    while True:
        more = {
            name
            for name, lines in packages.items()
            if name.startswith(("nvidia-", "cuda-", "triton")) and _wanted_by(lines) <= dropped
        } - dropped
        if not more:
            return "".join("".join(v) for k, v in packages.items() if k not in dropped)
        dropped |= more


# ---- the environment ----


def interpreter(wanted: str) -> str:
    """The Python for the environment: a path or a version for uv; default this one."""
    if wanted:
        return wanted
    if not PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        raise SeriesError(
            Exit.USAGE,
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, vLLM needs 3.10 to 3.13",
            hint="name another with PYTHON=",
        )
    # Not the tool's virtual environment itself: the engine's must survive it.
    return os.path.realpath(sys.executable)


def stamp_file(paths: Paths) -> Path:
    """What the environment was made from; inside it, so that both go together."""
    return paths.env / "series-build.json"


def read_stamp(paths: Paths) -> dict[str, Any]:
    try:
        found = json.loads(stamp_file(paths).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and python(paths).exists() else {}


def write_stamp(paths: Paths, **values: Any) -> None:
    text = json.dumps({**read_stamp(paths), **values}, indent=1, sort_keys=True)
    write_atomic(stamp_file(paths), text.encode())


def python(paths: Paths) -> Path:
    """The environment's interpreter."""
    return paths.env / "bin" / "python"


def torch_index(url: str) -> str:
    """A TORCH_INDEX as uv takes it: a URL, or a folder as a file URL."""
    if not url or "://" in url:
        return url
    folder = Path(url).expanduser().resolve()
    if not folder.is_dir():
        raise SeriesError(
            Exit.USAGE, f"TORCH_INDEX={url} is neither a URL nor a folder", hint="correct it"
        )
    return folder.as_uri()


def make(base: Base, paths: Paths, steps: Steps, device: str, wanted: str, torch: str) -> bool:
    """Make or update the environment; False if it was as it should be.

    `wanted` is the Python asked for ('' for any), `torch` an index with torch's CPU build, or ''.
    """
    lock = base.locks / ("cuda.txt" if device == "cuda" else "engine.txt")
    if not lock.is_file():
        raise SeriesError(Exit.BUILD, f"{lock} is missing", hint="restore it with git checkout")
    text = lock.read_text(encoding="utf-8")
    want = {"lock": digest(text.encode()), "torch_index": index.hide(torch)}
    stamp = read_stamp(paths)
    asked = wanted or stamp.get("python", "")
    if stamp and stamp.get("python") == asked and want == {key: stamp.get(key) for key in want}:
        return False

    uv, uv_env = index.uv(), index.environment()
    if not stamp or stamp.get("python") != asked:
        steps.say("environment: making it")
        steps.run(
            "venv",
            [uv, "venv", "--clear", "--python", interpreter(wanted), paths.env],
            env=uv_env,
            hint="PYTHON= names the interpreter, 3.10 to 3.13",
        )
        _check_python(paths)
    else:
        stamp_file(paths).unlink()  # half an update is no environment
    hint = "run it again to continue; uv takes its index from UV_DEFAULT_INDEX or pip's settings"
    sync: list[str | Path] = [
        *(uv, "pip", "sync", "--python", python(paths), "--require-hashes"),
    ]
    if torch:
        rest = paths.state / "engine-without-torch.txt"
        write_atomic(rest, without_torch(text).encode())
        steps.say(f"environment: packages of {lock.name} without torch")
        steps.run("packages", [*sync, rest], env=uv_env, hint=hint)
        names = [f"{name}=={version_of(text, name)}+cpu" for name in _TORCH]
        steps.say(f"environment: {' '.join(names)} from TORCH_INDEX (hashes are not recorded)")
        # No other index may answer for these two: a public one could offer the same names.
        only = {key: value for key, value in uv_env.items() if key not in _INDEXES}
        steps.run(
            "torch",
            [
                *(uv, "pip", "install", "--python", python(paths)),
                *("--no-deps", "--default-index", torch, *names),
            ],
            env=only,
            hint=f"TORCH_INDEX must offer {' and '.join(names)} for this Python",
        )
    else:
        steps.say(f"environment: {len(entries(text))} packages of {lock.name}")
        steps.run("packages", [*sync, lock], env=uv_env, hint=hint)
    write_stamp(paths, python=asked, **want)
    return True


def _check_python(paths: Paths) -> None:
    done = subprocess.run(
        [python(paths), "-c", "import sys; print(*sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    )
    version = tuple(map(int, done.stdout.split()))
    if not PYTHONS[0] <= version <= PYTHONS[1]:
        raise SeriesError(
            Exit.USAGE,
            f"the environment's Python is {version[0]}.{version[1]}, vLLM needs 3.10 to 3.13",
            hint="name another with PYTHON=",
        )


def torch_version(paths: Paths) -> str:
    """The version of the torch that is installed, with its local part."""
    for folder in paths.env.glob("lib/python3*/site-packages/torch-*.dist-info"):
        return folder.name.removeprefix("torch-").removesuffix(".dist-info")
    raise SeriesError(
        Exit.BUILD, f"{paths.env} has no torch", hint=f"remove {paths.env} and run it again"
    )


# ---- vLLM itself ----


def install_editable(paths: Paths, steps: Steps, version: str, extra: dict[str, str]) -> bool:
    """Install the work tree editable as `version`; False if it already is.

    `extra` is the environment of vLLM's setup.py, which decides what that compiles.
    """
    listed = git(paths.tree, "ls-tree", "HEAD", *_METADATA)
    want = {"version": version, "metadata": digest(listed.encode()), "setup": extra}
    marker = paths.tree / "vllm" / "_version.py"
    installed = marker.is_file() and f"'{version}'" in marker.read_text(encoding="utf-8")
    if installed and read_stamp(paths).get("editable") == want:
        return False
    steps.say(f"vllm {version}: installing the work tree")
    steps.run(
        "install",
        [
            *(index.uv(), "pip", "install", "--python", python(paths)),
            *("--no-build-isolation", "--no-deps", "--editable", paths.tree),
        ],
        env={
            **index.environment(),
            **extra,
            "VLLM_VERSION_OVERRIDE": version,
            "PATH": f"{paths.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}",
        },
    )
    write_stamp(paths, editable=want)
    return True
