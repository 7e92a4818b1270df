# SPDX-License-Identifier: Apache-2.0
"""The verbs that keep the work tree: doctor, fetch, apply, status, export, check and clean."""

from __future__ import annotations

import argparse
import shutil

from .command import Command
from .config import Paths
from .errors import Exit, SeriesError
from .state import locked


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of a verb of this module."""
    if verb == "doctor":
        parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
        parser.add_argument("--kernels", choices=("precompiled", "source"), default="precompiled")
    if verb == "check":
        parser.add_argument("--lint", action="store_true", help="headers and series only")


def doctor(command: Command) -> Exit:
    """Name each missing prerequisite and the command that installs it."""
    from .doctor import examine

    items = examine(command.paths.build, command.args.device, command.args.kernels)
    for item in items:
        mark = "ok     " if item.ok else "missing"
        command.say(f"{mark} {item.name}: {item.found}{f'; {item.mend}' if item.mend else ''}")
    command.report = {"items": [vars(item) for item in items]}
    return Exit.OK if all(item.ok for item in items) else Exit.FAILED


def fetch(command: Command) -> Exit:
    """Get the pinned source and compare its sha256."""
    path = command.fetch()
    command.report = {"file": str(path)}
    command.say(f"verified {path.name}")
    return Exit.OK


def apply(command: Command) -> Exit:
    """Make or update the work tree: one commit a patch."""
    from . import tree

    with command.lock():
        command.report = tree.apply(
            command.base, command.paths, command.fetch, command.origin(), upto=None
        )
    count = len(command.report["patches"])
    if command.report["changed"]:
        command.say(f"applied {count} patches in {command.paths.tree}")
    else:
        command.say(f"nothing to do: {count} patches are applied in {command.paths.tree}")
        if command.report["edits"]:
            command.say(f"it also holds {command.report['edits']}")
    return Exit.OK


def unapply(command: Command) -> Exit:
    """Take the work tree back to the pinned source."""
    from . import tree

    with command.lock():
        command.report = tree.apply(
            command.base, command.paths, command.fetch, command.origin(), upto=0
        )
    done = (
        "no patch is applied" if command.report["changed"] else "nothing to do: no patch is applied"
    )
    command.say(f"{done} in {command.paths.tree}")
    return Exit.OK


def status(command: Command) -> Exit:
    """Say what the work tree holds."""
    from . import tree

    command.report = report = tree.status(command.base, command.paths)
    command.say(f"base      {report['base']}{'' if report['source'] else ' (not fetched)'}")
    command.say(f"work tree {report['tree']}: {report['state']}")
    if report["edits"]:
        command.say(f"edits     {report['edits']}")
    for name in report["series"]:
        command.say(f"  {'applied' if name in report['applied'] else 'not yet'} {name}")
    return Exit.OK


def export(command: Command) -> Exit:
    """Write the commits of the work tree to patches/."""
    from . import tree

    with command.lock():
        command.report = report = tree.export(command.base, command.paths)
    for word in ("changed", "removed"):
        for name in report[word]:
            command.say(f"{word} {name}.patch")
    if not report["changed"] and not report["removed"]:
        command.say("no patch changed")
    return Exit.OK


def check(command: Command) -> Exit:
    """Lint, apply exactly to a scratch tree, round trip, lock, trailers."""
    from . import check as checks

    found = checks.check_lint(command.base)
    if not found and not command.args.lint:
        with command.lock():
            command.report = checks.check_series(command.base, command.paths, command.fetch)
        found = checks.check_trailers(command)
    command.report["findings"] = [vars(finding) for finding in found]
    for finding in found:
        command.say(str(finding))
    if found:
        raise SeriesError(
            Exit.FAILED,
            f"{len(found)} rules of {command.base.folder} are broken",
            hint="see the lines above",
        )
    command.say("check passed" if not command.args.lint else "lint passed")
    return Exit.OK


def clean(command: Command) -> Exit:
    """Remove the work tree, unless it holds edits."""
    from . import tree

    command.report = {"removed": command.paths.tree.exists()}
    if command.report["removed"]:
        with locked(command.paths.state / ".lock", command.args.wait):
            tree.clean(command.paths)
    command.say("removed the work tree" if command.report["removed"] else "nothing to do")
    return Exit.OK


def distclean(command: Command) -> Exit:
    """Remove the build folder, unless a work tree in it holds edits."""
    from . import tree

    build = command.paths.build
    if not build.exists():
        command.say("nothing to do")
        return Exit.OK
    if not (build / "CACHEDIR.TAG").is_file():
        raise SeriesError(
            Exit.USAGE, f"{build} was not made by this tool", hint="remove it yourself"
        )
    for folder in sorted(build.glob("*/vllm")):
        paths = Paths(build, folder.parent.name)
        with locked(paths.state / ".lock", command.args.wait):
            tree.clean(paths)
    shutil.rmtree(build)
    command.say(f"removed {build}")
    return Exit.OK
