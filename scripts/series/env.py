# SPDX-License-Identifier: Apache-2.0
"""The engine's environment: Python, the locked packages, vLLM installed editable."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from . import index, tools
from .config import Base, Paths
from .errors import Exit, hide
from .git import git
from .state import digest, read_text, write_atomic
from .steps import Steps, ask

# Files of vLLM that an editable install reads; everything else is picked up from the tree as it is.
_METADATA = ("setup.py", "pyproject.toml", "requirements", "README.md", "vllm/envs.py")
# From the index of torch's CPU builds; the rest of the lock is the same for both builds.
_TORCH = ("torch", "torchvision")
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


def without_torch(lock: str) -> str:
    """The lock without torch, torchvision and the CUDA libraries, which only torch wants."""
    kept = {
        name: lines
        for name, lines in entries(lock).items()
        if name not in _TORCH and not name.startswith(("nvidia-", "cuda-"))
    }
    return "".join("".join(lines) for lines in kept.values())


# ---- the environment ----


def interpreter(base: Base, wanted: str) -> str:
    """The Python for the environment: a path or a version for uv; default this one."""
    if wanted:
        return wanted
    if sys.version_info[:2] not in base.python:
        raise Exit.USAGE(
            f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, "
            f"{base.package} {base.version} needs {base.python}",
            "name another with PYTHON=",
        )
    # Not the tool's virtual environment itself: the engine's must survive it.
    return os.path.realpath(sys.executable)


def stamp_file(paths: Paths) -> Path:
    """What the environment was built from; inside it, so that both go together."""
    return paths.env / "series-build.json"


def require_built(paths: Paths) -> None:
    """Raise Exit.BUILD unless the environment of the tree is there, and was tried."""
    if not read_stamp(paths).get("checked"):
        raise Exit.BUILD("the environment is not built", "run make build")


def read_stamp(paths: Paths) -> dict[str, Any]:
    try:
        found = json.loads(stamp_file(paths).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    # A moved checkout or another Python under the same name: the programs in it start no more.
    where = {"folder": str(paths.env), "interpreter": os.path.realpath(python(paths))}
    alive = isinstance(found, dict) and python(paths).exists()
    return found if alive and all(found.get(k, v) == v for k, v in where.items()) else {}


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
        raise Exit.USAGE(f"TORCH_INDEX={url} is neither a URL nor a folder", "correct it")
    return folder.as_uri()


def make(base: Base, paths: Paths, steps: Steps, device: str, wanted: str, torch: str) -> bool:
    """Make or update the environment; False if it was as it should be.

    `wanted` is the Python asked for ('' for any), `torch` an index with torch's CPU build, or ''.
    """
    lock = base.locks / ("cuda.txt" if device == "cuda" else "engine.txt")
    text = _read_lock(base, lock)
    want = {"lock": digest(text.encode()), "torch_index": hide(torch)}
    stamp = read_stamp(paths)
    asked = wanted or stamp.get("python", "")
    if stamp and stamp.get("python") == asked and want == {key: stamp.get(key) for key in want}:
        return False
    if not stamp or stamp.get("python") != asked:
        steps.say("environment: building it")
        steps.run(
            "venv",
            [tools.uv(paths), "venv", "--clear", "--python", interpreter(base, wanted), paths.env],
            env=index.environment(paths),
            hint=f"PYTHON= names the interpreter, {base.python}",
        )
        _check_python(base, paths)
    else:
        stamp_file(paths).unlink()  # half an update is no environment
    if torch:
        rest = paths.state / "engine-without-torch.txt"
        write_atomic(rest, without_torch(text).encode())
        _sync(paths, steps, rest, f"packages of {lock.name} without torch")
        _install_torch(paths, steps, text, torch)
    else:
        _sync(paths, steps, lock, f"packages of {lock.name}")
    where = {"folder": str(paths.env), "interpreter": os.path.realpath(python(paths))}
    write_stamp(paths, python=asked, **where, **want)
    return True


def _read_lock(base: Base, lock: Path) -> str:
    """The text of a lock, which must have the torch of base.toml."""
    if not lock.is_file():
        raise Exit.BUILD(f"{lock} is missing", "restore it with git checkout")
    text = read_text(lock, Exit.BUILD)
    found = version_of(text, "torch")
    if found != base.torch:
        raise Exit.BUILD(
            f"{lock} has torch {found}, base.toml says {base.torch}",
            "renew the lock, or correct [build] torch",
        )
    return text


def _pip(paths: Paths, steps: Steps, name: str, verb: str, *words: str | Path, **more: Any) -> None:
    """One step of uv's pip on the environment."""
    uv = (tools.uv(paths), "pip", verb, "--python", python(paths))
    steps.run(name, [*uv, *words], **more)


def _sync(paths: Paths, steps: Steps, lock: Path, what: str) -> None:
    """Make the environment's packages those of a lock."""
    total = len(entries(read_text(lock, Exit.BUILD)))
    steps.say(f"environment: {total} {what}")
    env = index.environment(paths)
    unpacked = Path(env["UV_CACHE_DIR"]) / "archive-v0"

    def count(folder: Path, pattern: str = "*") -> int:
        return sum(1 for _ in folder.glob(pattern))

    before = count(unpacked)
    _pip(
        paths,
        steps,
        "packages",
        *("sync", "--require-hashes", lock),
        env=env,
        hint="run it again to continue; uv takes its index from UV_DEFAULT_INDEX or pip's settings",
        how_far=lambda: (
            f"packages: {count(unpacked) - before} fetched, "
            f"{count(paths.env, 'lib/python3*/site-packages/*.dist-info')} of {total} installed"
        ),
    )


def _install_torch(paths: Paths, steps: Steps, lock: str, torch: str) -> None:
    """Install torch's CPU build from the index `torch`."""
    names = [f"{name}=={version_of(lock, name)}+cpu" for name in _TORCH]
    steps.say(f"environment: {' '.join(names)} from TORCH_INDEX (hashes are not recorded)")
    # No other index may answer for these two: a public one could offer the same names.
    env = {k: v for k, v in index.environment(paths).items() if k not in index.INDEXES}
    hint = f"TORCH_INDEX must offer {' and '.join(names)} for this Python"
    words = ("install", "--no-deps", "--default-index", torch, *names)
    _pip(paths, steps, "torch", *words, env=env, hint=hint)


def _check_python(base: Base, paths: Paths) -> None:
    said = ask(python(paths), "-c", "import sys; print(*sys.version_info[:2])").split()
    if tuple(map(int, said)) not in base.python:
        raise Exit.USAGE(
            f"the environment's Python is {'.'.join(said)}, "
            f"{base.package} {base.version} needs {base.python}",
            "name another with PYTHON=",
        )


def torch_version(paths: Paths) -> str:
    """The version of the torch that is installed, with its local part."""
    for folder in paths.env.glob("lib/python3*/site-packages/torch-*.dist-info"):
        return folder.name.removeprefix("torch-").removesuffix(".dist-info")
    raise Exit.BUILD(f"{paths.env} has no torch", f"remove {paths.env} and run it again")


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
    path = f"{paths.env / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    setup = {**extra, "VLLM_VERSION_OVERRIDE": version, "PATH": path}
    words = ("install", "--no-build-isolation", "--no-deps", "--editable", paths.tree)
    _pip(paths, steps, "install", *words, env={**index.environment(paths), **setup})
    write_stamp(paths, editable=want)
    return True
