# SPDX-License-Identifier: Apache-2.0
"""`bundle`: the build in one folder, for machines without a network.

build/<base>/bundle/NAME holds the wheel of the patched vLLM, the wheels of the lock for one Python,
the documents, the patches, the tiny model, an SBOM, the sums and `install.py`. It is written as
NAME.part and renamed. Wheels are kept in build/downloads/wheels and linked from there, so that a
rerun continues; the same tree, locks and index give the same bytes.
"""

import argparse
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from proof import evidence
from series import cuda, index, kernels, patches, settings, tools
from series import env as environments
from series.command import Command
from series.config import ROOT, Artifact
from series.errors import Exit
from series.fetch import download
from series.git import git
from series.state import locked, read_text, sha256
from series.steps import Progress, Steps

from . import install, wheel

# The published wheel of vLLM 0.19.1 is for glibc 2.31 too.
GLIBC = 31
# From here on a wheel's download says how far it is.
LARGE = 50_000_000
# What of the checkout goes in; its own tests and workflows do not.
SOURCES = ("README.md", "CHANGELOG.md", "LICENSE", "docs", "patches", "scripts", "pyproject.toml")
# Of the work tree: what the demo compares the engine's answer with.
REFERENCE = (
    "tests/__init__.py",
    "tests/models/__init__.py",
    "tests/models/multimodal/__init__.py",
    "tests/models/multimodal/exaone4_5*.py",
)


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `bundle`."""
    settings.add_arguments(parser, settings.BUILD)
    parser.add_argument("--out", type=Path, help="where the folder goes (build/<base>/bundle)")


def run(command: Command) -> None:
    """Pack what `build` made, and say the sum of its sums."""
    base, paths, args = command.base, command.paths, command.args
    # What is packed is the series: no edit and no commit that it does not name.
    evidence.require_tree(base, paths)
    refuse_edits()
    if args.torch_index:
        raise Exit.USAGE(
            "a bundle has the packages of the lock, which TORCH_INDEX= does not hash",
            "make bundle TORCH_INDEX=, which forgets it",
        )
    device, which = environments.read_stamp(paths)["checked"]
    if device == "cuda" and which != "precompiled":
        raise Exit.USAGE(
            "a bundle for cards takes the published kernels",
            "make bundle DEVICE=cuda KERNELS=precompiled",
        )
    command.report = pack(command, device, (args.out or paths.state / "bundle").resolve())
    command.say(
        "{folder}: {bytes} bytes, sha256 of {} {sums}".format(install.SUMS, **command.report)
    )


def pack(command: Command, device: str, out: Path) -> dict[str, Any]:
    """Write the bundle of a device into `out`; where it is, its sizes and its sums."""
    base, paths = command.base, command.paths
    steps = Steps(paths.state / "logs", quiet=command.args.json)
    with command.lock(), locked(paths.downloads / "wheels.lock", command.args.wait):
        found = _kernels(command, steps, device)
        name, part = _start(command, out, device)
        own = wheel.make(base, paths, steps, device, found, part / "wheels")
        chosen = _wheels(command, steps, device)
        _fill(command, part, own, chosen)
        about = _about(command, device, name, found)
        _sbom(command, part, own, chosen, about)
        _sums(part, about)
        shutil.rmtree(out / name, ignore_errors=True)
        part.rename(out / name)
    own = out / name / "wheels" / own.name
    return {
        "folder": str(out / name),
        "bytes": sum(file.stat().st_size for file in (out / name).rglob("*") if file.is_file()),
        "sums": sha256(out / name / install.SUMS),
        "wheel": {"name": own.name, "bytes": own.stat().st_size, "sha256": sha256(own)},
        "packages": len(chosen),
    }


def refuse_edits() -> None:
    """Raise unless what is packed of the checkout is committed: its bytes are a commit's."""
    changed = git(ROOT, "status", "--porcelain", "--", *SOURCES)
    if changed:
        raise Exit.DIRTY(
            f"the checkout has a change that is not committed: {changed.splitlines()[0].strip()}",
            "commit it, or undo it",
        )


def _kernels(command: Command, steps: Steps, device: str) -> dict[str, Path]:
    base, paths = command.base, command.paths
    if device == "cuda":
        return cuda.precompiled(base, paths, steps, command.sources())
    return kernels.make(base, paths, steps, len(os.sched_getaffinity(0)))


def _start(command: Command, out: Path, device: str) -> tuple[str, Path]:
    base = command.base
    number = wheel.version(base, device).removesuffix(".cpu")
    name = f"{base.package}-{number}-{device}-py{_python(command)}"
    part = out / f"{name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return name, part


def _python(command: Command) -> str:
    """The release of the environment's Python, like 3.12."""
    (folder,) = (command.paths.env / "lib").glob("python3*")
    return folder.name.removeprefix("python")


# ---- the wheels of the lock ----


def _wheels(command: Command, steps: Steps, device: str) -> list[dict[str, Any]]:
    """The wheels of the lock and of uv, downloaded: name, version, file, url, sha256."""
    base, paths = command.base, command.paths
    lock = base.locks / ("cuda.txt" if device == "cuda" else "engine.txt")
    entries = environments.entries(read_text(lock, Exit.BUILD))
    uv = environments.entries(read_text(tools.LOCKS / "tools.txt", Exit.BUILD))["uv"]
    text = "".join("".join(lines) for lines in entries.values()) + "".join(uv)
    python = _python(command)
    platform = ("--python-version", python, "--python-platform", f"x86_64-manylinux_2_{GLIBC}")
    steps.say(f"wheels: asking the index for the {len(entries) + 1} packages of {lock.name}")
    listed = index.pylock(paths, text, f"the packages of {lock.name}", *platform, "--no-build")
    chosen: list[dict[str, Any]] = json.loads(
        _library(command, "bundle.choose", python, str(GLIBC), given=listed)
    )
    folder = paths.downloads / "wheels"
    folder.mkdir(parents=True, exist_ok=True)
    env, progress = index.environment(paths), Progress()
    for number, row in enumerate(chosen):
        progress.show(f"wheels: {number} of {len(chosen)}, {row['file']}", number / len(chosen))
        if f"--hash=sha256:{row['sha256']}" not in text:
            raise Exit.SOURCE(
                f"the index offers another {row['file']} than {lock.name} lists",
                "use another index",
            )
        target, pinned = folder / row["file"], Artifact(row["file"], row["sha256"])
        if not target.is_file() or sha256(target) != row["sha256"]:
            target.unlink(missing_ok=True)
            download(row["url"], pinned, target, env, show=row["size"] > LARGE)
    progress.done()
    return chosen


def _library(command: Command, module: str, *words: str, given: str) -> str:
    """What a module prints in build/bundle, which has the libraries that it needs."""
    python = tools.make(command.paths, "bundle") / "bin/python"
    env = {**os.environ, **tools.caches(command.paths), "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        [python, "-B", "-m", module, *words], input=given, env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise Exit.BUILD(f"{module}: {done.stderr.strip()[-300:]}", "report it")
    return done.stdout


# ---- the folder ----


def _fill(command: Command, part: Path, own: Path, chosen: list[dict[str, Any]]) -> None:
    """Everything but the SBOM and the sums."""
    tree = command.paths.tree
    for row in chosen:
        _link(command.paths.downloads / "wheels" / row["file"], part / "wheels" / row["file"])
    rows = [f"{row['name']}=={row['version']} --hash=sha256:{row['sha256']}" for row in chosen]
    rows = [line for line in rows if not line.startswith("uv==")]
    number = own.name.split("-")[1]
    rows.append(f"{command.base.package}=={number} --hash=sha256:{sha256(own)}")
    (part / "requirements.txt").write_text("\n".join(sorted(rows)) + "\n", encoding="utf-8")
    for name in git(ROOT, "ls-files", "-z", "--", *SOURCES).split("\0"):
        if name and (ROOT / name).is_file():
            _copy(ROOT / name, part / name)
    for name in git(tree, "ls-files", "-z", "--", *REFERENCE).split("\0"):
        if name:
            _copy(tree / name, part / "reference" / name)
    _copy(Path(install.__file__), part / "install.py")


def _link(source: Path, target: Path) -> None:
    """A hard link, as nobody edits a wheel; a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _about(command: Command, device: str, name: str, found: dict[str, Path]) -> dict[str, Any]:
    base = command.base
    files = [file for inner, file in found.items() if inner.endswith(".so")]
    return {
        "name": name,
        "version": wheel.version(base, device),
        "base": base.name,
        "tree": list(_locked(command).patches.values())[-1][1],
        "device": device,
        "python": _python(command),
        "glibc": max(GLIBC, wheel.glibc(files)),
        "date": wheel.epoch(command.paths.tree),
    }


def _locked(command: Command) -> patches.Locked:
    lock = patches.Locked.read(command.base)
    assert lock is not None
    return lock


def _sbom(
    command: Command,
    part: Path,
    own: Path,
    chosen: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    base = command.base
    series = []
    for name, content in patches.read(base).items():
        mail = patches.Mail.parse(content)
        problem = patches.section(mail, "Problem")
        series.append(
            {
                "name": name,
                "subject": mail.subject,
                "problem": problem,
                "url": mail.upstream().url,
                "diff": content.decode("utf-8", "replace"),
                "file": f"patches/{base.name}/{name}.patch",
            }
        )
    given = {
        **about,
        "package": base.package,
        "upstream": {"version": base.version, "sha256": base.archive.sha256},
        "wheel": {"file": own.name, "sha256": sha256(own)},
        "patches": series,
        # Not where the index of this machine has them.
        "packages": [{k: row[k] for k in ("name", "version", "file", "sha256")} for row in chosen],
    }
    text = _library(command, "bundle.sbom", given=json.dumps(given))
    (part / "sbom.cdx.json").write_text(text, encoding="utf-8")


def _sums(part: Path, about: dict[str, Any]) -> None:
    """bundle.json, which has the sizes, and SHA256SUMS of it and all else."""
    files = sorted(p.relative_to(part).as_posix() for p in part.rglob("*") if p.is_file())
    about = about | {"sizes": {name: (part / name).stat().st_size for name in files}}
    text = json.dumps(about, indent=1, sort_keys=True) + "\n"
    (part / "bundle.json").write_text(text, encoding="utf-8")
    lines = [f"{sha256(part / name)}  {name}\n" for name in sorted([*files, "bundle.json"])]
    (part / install.SUMS).write_text("".join(lines), encoding="utf-8")
