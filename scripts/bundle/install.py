#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Install the bundle that this file lies in, without a network; the standard library is enough.

    python3.X install.py FOLDER            every file is compared, then FOLDER is made
    python3.X install.py --check           only compare
    python3.X install.py --no-demo FOLDER  without asking the tiny model about a picture

FOLDER becomes a virtual environment of the Python that runs this. Nothing is written elsewhere.
Exit status: 0; 1 and one line if the bundle, the machine or the answer is not right; 2 for usage.
"""

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SUMS = "SHA256SUMS"
MARK = ".installing"
COPY = "copy the bundle again"


class RefusedError(Exception):
    """What is wrong, and what to do, in one line."""


def digest(file: Path) -> str:
    """The hex sha256 of a file's bytes."""
    total = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            total.update(block)
    return total.hexdigest()


def compare(folder: Path) -> dict[str, Any]:
    """Compare every file with SHA256SUMS; what the bundle says of itself.

    Raises:
        RefusedError: a file is missing, shorter, longer or altered, or is not one of the bundle's.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: wanted for wanted, _, name in (line.partition("  ") for line in lines)}
        about: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
        sizes: dict[str, int] = about["sizes"]
    except FileNotFoundError as error:
        raise RefusedError(f"{error.filename} is missing; {COPY}") from None
    except (ValueError, KeyError, UnicodeError) as error:
        raise RefusedError(
            f"{folder} has a damaged {SUMS} or bundle.json ({error!r}); {COPY}"
        ) from None
    if missing := sorted({*sizes, "bundle.json"} - {*sums}):
        raise RefusedError(f"{SUMS} is cut: it lacks {missing[0]}; {COPY}")
    for name in sums:
        file = folder / name
        if not file.is_file():
            raise RefusedError(f"{name} is missing; {COPY}")
        size = sizes.get(name, file.stat().st_size)
        if file.stat().st_size != size:
            raise RefusedError(f"{name} has {file.stat().st_size} bytes, not {size}; {COPY}")
    for name in sorted(p.name for p in (folder / "wheels").iterdir()):
        if f"wheels/{name}" not in sums:
            raise RefusedError(f"wheels/{name} is no file of this bundle; remove it")
    for name, wanted in sums.items():
        if (actual := digest(folder / name)) != wanted:
            raise RefusedError(f"{name} was altered (sha256 {actual}, not {wanted}); {COPY}")
    return about


def check_machine(about: "dict[str, Any]") -> None:
    """Refuse another Python or an older C library than the wheels are for."""
    wanted, found = about["python"], "{}.{}".format(*sys.version_info[:2])
    if found != wanted or sys.implementation.name != "cpython":
        raise RefusedError(
            f"this is Python {found}, the wheels are for {wanted}; run python{wanted} {__file__}"
        )
    name, _, number = (os.confstr("CS_GNU_LIBC_VERSION") or "none 0").partition(" ")
    if name != "glibc" or tuple(map(int, number.split("."))) < (2, about["glibc"]):
        raise RefusedError(
            f"the C library is {name} {number}, the wheels need glibc 2.{about['glibc']}; "
            "use a newer Linux"
        )
    machine = os.uname().machine
    if machine != "x86_64":
        raise RefusedError(f"this machine is {machine}, the wheels are for x86_64; use another")


def make(about: "dict[str, Any]", target: Path) -> None:
    """Make the virtual environment `target` from the wheels alone."""
    if target.exists() and not (target / MARK).exists() and any(target.iterdir()):
        raise RefusedError(f"{target} is there already; name another folder, or remove it")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    (target / MARK).touch()
    (wheel,) = (HERE / "wheels").glob("uv-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".data/scripts/uv")]
        uv = target / ".uv"
        uv.write_bytes(archive.read(name))
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    cache, temporary = target / ".cache", target / ".tmp"
    temporary.mkdir()
    # Its own settings only: no configuration file, no index and no cache of this machine.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_", "PYTHON"))}
    env |= {"UV_CACHE_DIR": str(cache), "TMPDIR": str(temporary), "UV_PYTHON_DOWNLOADS": "never"}
    offline = ["--offline", "--no-config", "--quiet"]
    run([uv, "venv", *offline, "--allow-existing", "--python", sys.executable, target], env)
    install = ["--no-index", "--find-links", HERE / "wheels", "--no-deps", "--require-hashes"]
    python = target / "bin/python"
    wanted = ["-r", HERE / "requirements.txt"]
    run([uv, "pip", "install", *offline, *install, "--python", python, *wanted], env)
    for path in (cache, temporary):
        shutil.rmtree(path, ignore_errors=True)
    uv.unlink()
    (target / MARK).unlink()
    print(f"installed {about['version']} in {target}", flush=True)


def run(words: "list[Any]", env: "dict[str, str]") -> None:
    done = subprocess.run([str(word) for word in words], env=env, stderr=subprocess.PIPE)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").split("\n")
        said = " ".join(line.strip() for line in lines if line.strip())[-500:]
        raise RefusedError(
            f"{Path(words[0]).name} {words[1]} failed ({said}); see docs/use/bundle.md"
        )


def demo(target: Path) -> None:
    """Ask the tiny model about a picture, in the engine and in transformers."""
    home = target / ".demo"
    shutil.rmtree(home, ignore_errors=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYTHON"))}
    env |= {"HOME": str(home), "PYTHONPATH": str(home / "scripts"), "TMPDIR": str(home)}
    env |= {"PATH": f"{target / 'bin'}:{env.get('PATH', '')}"}
    # A copy, as Python leaves byte code beside what it runs.
    for name in ("scripts", "reference"):
        shutil.copytree(HERE / name, home / name)
    words = ["-m", "tiny.demo", "--tree", home / "reference", "--folder", home]
    print("asking the tiny model about a picture (a minute)", flush=True)
    done = subprocess.run([str(w) for w in (target / "bin/python", *words)], env=env)
    shutil.rmtree(home)
    if done.returncode:
        raise RefusedError("the tiny model did not answer rightly; see docs/use/bundle.md")


def main() -> int:
    words = sys.argv[1:]
    options = {word for word in words if word.startswith("-")}
    folders = [word for word in words if not word.startswith("-")]
    if options - {"--check", "--no-demo"} or len(folders) != ("--check" not in options):
        print(__doc__, file=sys.stderr)
        return 2
    try:
        about = compare(HERE)
        print(f"{len(about['sizes']) + 1} files are those that were packed", flush=True)
        print(f"sha256 of {SUMS}: {digest(HERE / SUMS)}", flush=True)
        check_machine(about)
        for name in folders:
            target = Path(name).resolve()
            make(about, target)
            if "--no-demo" not in options:
                demo(target)
    except (RefusedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
