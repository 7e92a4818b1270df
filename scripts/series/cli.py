# SPDX-License-Identifier: Apache-2.0
"""The command line behind the Makefile."""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any, NoReturn

from .config import ROOT, Base, Paths
from .errors import Exit, SeriesError
from .state import locked, make_build_folder


class Command:
    """What every command gets: the options, the base, the folders and a way to report."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.paths = Paths(Path(args.build_dir).resolve(), args.base)
        self.report: dict[str, Any] = {}

    @functools.cached_property
    def base(self) -> Base:
        return Base.load(self.args.base)

    def say(self, text: str) -> None:
        """Print a line for a person; with --json standard output is left to the report."""
        print(text, file=sys.stderr if self.args.json else sys.stdout, flush=True)

    def sources(self) -> Path | None:
        return Path(self.args.sources) if self.args.sources else None

    def fetch(self) -> Path:
        """The verified source archive, fetched if it is not there."""
        from . import fetch

        make_build_folder(self.paths.build)
        with locked(self.paths.downloads / ".lock", self.args.wait):
            if self.args.source == "git":
                return fetch.fetch_git(self.base, self.paths)
            return fetch.fetch_archive(self.base, self.paths, sources=self.sources())

    def origin(self) -> str:
        """What the base commit is made from, for the record of an apply."""
        if self.args.source == "git":
            return f"git {self.base.git_commit}"
        return f"archive {self.base.archive.sha256}"


def doctor(command: Command) -> Exit:
    """name each missing prerequisite and the command that mends it"""
    from .doctor import examine

    items = examine(command.paths.build, command.args.device, command.args.kernels)
    for item in items:
        mark = "ok     " if item.ok else "missing"
        command.say(f"{mark} {item.name}: {item.found}{f'; {item.mend}' if item.mend else ''}")
    command.report = {"items": [vars(item) for item in items]}
    return Exit.OK if all(item.ok for item in items) else Exit.FAILED


def fetch(command: Command) -> Exit:
    """get the pinned source and compare its sha256"""
    path = command.fetch()
    command.report = {"file": str(path)}
    command.say(f"verified {path.name}")
    return Exit.OK


def apply(command: Command) -> Exit:
    """make or update the work tree: one commit a patch"""
    from . import tree

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
    """take the work tree back to the pinned source"""
    from . import tree

    command.report = tree.apply(
        command.base, command.paths, command.fetch, command.origin(), upto=0
    )
    done = (
        "no patch is applied" if command.report["changed"] else "nothing to do: no patch is applied"
    )
    command.say(f"{done} in {command.paths.tree}")
    return Exit.OK


def status(command: Command) -> Exit:
    """say what the work tree holds"""
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
    """write the commits of the work tree to patches/"""
    from . import tree

    command.report = report = tree.export(command.base, command.paths)
    for word in ("changed", "removed"):
        for name in report[word]:
            command.say(f"{word} {name}.patch")
    if not report["changed"] and not report["removed"]:
        command.say("no patch changed")
    return Exit.OK


def check(command: Command) -> Exit:
    """lint, apply exactly to a scratch tree, round trip, lock"""
    from . import check as checks

    found = checks.check_lint(command.base)
    command.report = {"findings": [vars(finding) for finding in found]}
    for finding in found:
        command.say(str(finding))
    if found:
        raise SeriesError(
            Exit.FAILED,
            f"{len(found)} rules of {command.base.folder} are broken",
            hint="see the lines above",
        )
    if not command.args.lint:
        command.report.update(checks.check_series(command.base, command.paths, command.fetch))
    command.say("check passed" if not command.args.lint else "lint passed")
    return Exit.OK


def clean(command: Command) -> Exit:
    """remove the work tree, unless it holds edits"""
    from . import tree

    command.report = {"removed": command.paths.tree.exists()}
    if command.report["removed"]:
        with locked(command.paths.state / ".lock", command.args.wait):
            tree.clean(command.paths)
    command.say("removed the work tree" if command.report["removed"] else "nothing to do")
    return Exit.OK


def distclean(command: Command) -> Exit:
    """remove the build folder, unless a work tree in it holds edits"""
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


def elsewhere(command: Command) -> Exit:
    """Run a command that has a module of its own."""
    module = importlib.import_module(f".{command.args.module}", __package__)
    module.run(command.base, command.paths, command.args)
    return Exit.OK


# Commands that only read, or that take the locks they need themselves.
UNLOCKED = (doctor, fetch, status, clean, distclean, elsewhere)


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, like for every other error."""

    def error(self, message: str) -> NoReturn:
        raise SeriesError(Exit.USAGE, message, hint="see --help, or make help")


def parser(arguments: list[str]) -> argparse.ArgumentParser:
    """The parser; a command with a module of its own adds its options only when it is called."""
    common = Parser(add_help=False)
    common.add_argument("--base", default="v0.19.1", help="folder of patches/ (%(default)s)")
    common.add_argument("--build-dir", default=str(ROOT / "build"), help="where all state lives")
    common.add_argument("--json", action="store_true", help="print a report in JSON")
    common.add_argument("--source", choices=("archive", "git"), default="archive")
    common.add_argument("--sources", default="", help="folder with a copy of the pinned files")
    common.add_argument(
        "--wait", type=float, default=600.0, help="seconds to wait for another command (600)"
    )
    top = Parser(prog="series", description=__doc__)
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for function in (doctor, fetch, apply, unapply, status, export, check, clean, distclean):
        one = sub.add_parser(function.__name__, parents=[common], help=function.__doc__)
        one.set_defaults(function=function)
        if function is doctor:
            one.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
            one.add_argument("--kernels", choices=("precompiled", "source"), default="precompiled")
        if function is check:
            one.add_argument("--lint", action="store_true", help="headers and series only")
    for name, module, text in (
        ("build", "build", "make the environment and the kernels"),
        ("test-model", "stages", "run the tests of the series in the work tree"),
        ("test-each", "stages", "run each patch's own tests on the tree after that patch"),
    ):
        one = sub.add_parser(name, parents=[common], help=text)
        one.set_defaults(function=elsewhere, module=module)
        if arguments[:1] == [name]:
            importlib.import_module(f".{module}", __package__).add_arguments(one)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status is one of `Exit`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command: Command | None = None
    try:
        command = Command(parser(arguments).parse_args(arguments))
        if command.args.function in UNLOCKED:
            code: Exit = command.args.function(command)
        else:
            _ = command.base  # loaded first: an unknown base must not leave a folder behind
            make_build_folder(command.paths.build)
            with locked(command.paths.state / ".lock", command.args.wait):
                code = command.args.function(command)
    except SeriesError as error:
        print(f"error: {error}", file=sys.stderr)
        code = error.code
        if command:
            command.report.update(error=error.what, hint=error.hint)
    except OSError as error:
        print(f"error: {error}; check the file, its permissions and the disk", file=sys.stderr)
        code = Exit.FAILED
    except KeyboardInterrupt:
        print("error: interrupted; run it again to continue", file=sys.stderr)
        code = Exit.INTERRUPTED
    if command and command.args.json:
        print(json.dumps({"exit": int(code), **command.report}))
    return int(code)
