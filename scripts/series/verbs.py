# SPDX-License-Identifier: Apache-2.0
"""The verbs that keep the work tree: fetch, apply, status, export, check and clean."""

import argparse
import contextlib
import shutil
from pathlib import Path
from typing import Any

from . import export as exports
from . import patches as files
from . import releases, settings, tree
from .command import Command
from .commits import build, compare_lock
from .config import ROOT, Paths
from .errors import Exit
from .lint import Finding, lint
from .patches import Locked
from .state import locked


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of a verb of this module."""
    if verb == "check":
        parser.add_argument("--lint", action="store_true", help="headers and series only")
    if verb == "export":
        parser.add_argument(
            "--drop", action="append", default=[], metavar="NAME", help="remove this patch"
        )
    if verb == "configure":
        settings.add_arguments(parser, settings.BUILD)


def configure(command: Command) -> None:
    """Keep settings without building."""
    command.report = {"settings": settings.read(command.paths)}
    _say_settings(command)


def _say_settings(command: Command) -> None:
    kept = command.report["settings"]
    words = " ".join(f"{name}={value}" for name, value in kept.items())
    command.say(f"settings  {words or 'none'} ({command.paths.settings})")


def fetch(command: Command) -> None:
    """Get the pinned source and compare its sha256."""
    path = command.fetch()
    command.report = {"file": str(path)}
    command.say(f"verified {path.name}")


def apply(command: Command) -> None:
    """Make or update the work tree: one commit a patch."""
    with command.lock():
        command.report = tree.apply(command.base, command.paths, command.fetch, command.origin())
    listed, found = files.names(command.base), command.report["patches"]
    count = sum(name in found for name in listed)
    if command.report["changed"]:
        command.say(f"applied {count} patches in {command.paths.tree}")
    elif count < len(listed):
        command.say(f"{count} of {len(listed)} patches are applied in {command.paths.tree}")
    else:
        command.say(f"nothing to do: {count} patches are applied in {command.paths.tree}")
    if command.report["edits"]:
        command.say(f"it also holds {command.report['edits']}")


def unapply(command: Command) -> None:
    """Take the work tree back to the pinned source."""
    with command.lock():
        command.report = tree.apply(
            command.base, command.paths, command.fetch, command.origin(), upto=0
        )
    nothing = "" if command.report["changed"] else "nothing to do: "
    command.say(f"{nothing}no patch is applied in {command.paths.tree}")


def status(command: Command) -> None:
    """Say what the work tree holds, and the settings."""
    command.report = report = tree.status(command.base, command.paths)
    command.say(f"base      {report['base']}{'' if report['source'] else ' (not fetched)'}")
    _say_settings(command)
    command.say(f"work tree {report['tree']}: {report['state']}")
    if report["edits"]:
        command.say(f"edits     {report['edits']}")
    for name in report["series"]:
        command.say(f"  {'applied' if name in report['applied'] else 'not yet'} {name}")


def export(command: Command) -> None:
    """Write the commits of the work tree to patches/."""
    drop = [name for names in command.args.drop for name in names.split()]
    with command.lock():
        command.report = report = exports.export(command.base, command.paths, drop=drop)
    for old, new in report["renamed"].items():
        command.say(f"renamed {old}.patch to {new}.patch")
    for word in ("changed", "removed"):
        for name in report[word]:
            if name not in {**report["renamed"], **dict.fromkeys(report["renamed"].values())}:
                command.say(f"{word} {name}.patch")
    if not report["changed"] and not report["removed"]:
        command.say("no patch changed")


def check(command: Command) -> None:
    """Lint, apply exactly to a scratch tree, round trip, lock, trailers, index."""
    found = lint(command.base)
    if not found and not command.args.lint:
        # Not the lock of the work tree, which it does not touch.
        with command.lock(".check.lock"):
            command.report = _check_series(command)
        sources = releases.trees(command)
        for source in sources:
            found += releases.findings(releases.judge(command.base, source))
        found += releases.nowhere(command.base, sources)
        found += releases.cited(command.base, sources)
    index = ROOT / "patches/README.md"
    if not found and not (index.is_file() and index.read_bytes() == files.index(ROOT).encode()):
        found = [Finding("index", "patches/README.md", "run make export, which writes it")]
    command.report["findings"] = [vars(finding) for finding in found]
    for finding in found:
        command.say(str(finding))
    if found:
        raise Exit.FAILED(
            f"{len(found)} rules of {command.base.folder} are broken", "see the lines above"
        )
    command.say("check passed" if not command.args.lint else "lint passed")


def _check_series(command: Command) -> dict[str, Any]:
    """Apply the series exactly to a scratch tree and compare it with series.lock.

    Applying includes the round trip: the exported commits equal the files byte for byte.
    """
    base, scratch = command.base, command.paths.state / ".check"
    if Locked.read(base) is None:
        raise Exit.LOCK(f"{base.lock_file} is missing", "run make apply export and commit it")
    try:
        built = build(base, command.fetch(), scratch, files.read(base))
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    compare_lock(base, built)
    return {"patches": list(built.patches), "base_tree": built.base}


def clean(command: Command) -> None:
    """Remove the work tree, unless it holds work of the user's."""
    command.report = {"removed": command.paths.tree.exists()}
    if command.paths.state.exists():
        with locked(command.paths.state / ".lock", command.args.wait):
            tree.clean(command.paths)
    command.say("removed the work tree" if command.report["removed"] else "nothing to do")


# What lies in the build folder beside the folders of the bases; not results that cost time.
OURS = {
    *("CACHEDIR.TAG", "cache", "config.mk", "cuda-parts", "demo", "dev", "dev.lock", "downloads"),
    *("faults", "kernels", "releases", "series-error.log", "tools", "tools.lock"),
}


def distclean(command: Command) -> None:
    """Remove the build folder, unless a work tree in it holds work of the user's."""
    build = command.paths.build
    command.report = {"removed": build.exists()}
    if not build.exists():
        command.say("nothing to do")
        return
    if not (build / "CACHEDIR.TAG").is_file():
        raise Exit.USAGE(f"{build} does not belong to this tool", "remove it yourself")
    for path in sorted(build.iterdir()):
        base = path.is_dir() and any((path / name).exists() for name in (".lock", "vllm"))
        if path.name not in OURS and not path.name.startswith(".") and not base:
            raise Exit.DIRTY(
                f"{path} is not what a build makes", "move it out of the build folder, or remove it"
            )
    with contextlib.ExitStack() as locks:
        held = {*build.glob(".*lock"), *build.glob("*/.*lock")}
        held |= {folder.parent / ".lock" for folder in build.glob("*/vllm")}
        for lock in sorted(held):
            locks.enter_context(locked(lock, command.args.wait))
        every = [Paths(build, folder.parent.name) for folder in sorted(build.glob("*/vllm"))]
        for paths in every:
            tree.settle(paths.tree)
            tree.refuse_loss(paths)
        for paths in every:
            tree.clean(paths)
        _remove(build)
    command.say(f"removed {build}")


def _remove(build: Path) -> None:
    """Remove the folder; its tag and the locks that others wait for go last."""
    for path in [*build.iterdir(), *build.glob("*/*")]:
        if path.name == "CACHEDIR.TAG" or path.name.endswith("lock"):
            continue
        if not path.is_dir() or path.is_symlink():
            path.unlink(missing_ok=True)
        elif not any(path.glob(".*lock")):
            shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(build)
