# SPDX-License-Identifier: Apache-2.0
"""Verbs that are programs of the engine's environment: demo, evaluate, speed, run and others."""

import argparse
import subprocess
import sys
from typing import NamedTuple

from . import engine
from . import env as environments
from .command import Command
from .errors import Exit


class Program(NamedTuple):
    """A module that runs in the engine's environment; `cpu` if only there on a CPU, `exact` if what
    it says is about the series, and not about a tree with other edits.

    `given` are its options unless the user gives them: {tree} and {build} are filled in.
    """

    module: str
    given: tuple[str, ...] = ("--tree", "{tree}")
    cpu: bool = True
    exact: bool = False


PROGRAMS = {
    "demo": Program("tiny.demo", ("--tree", "{tree}", "--folder", "{build}/demo"), cpu=False),
    "evaluate": Program("tiny.evaluate", exact=True),
    "lossless": Program("tiny.lossless", exact=True),
    "stress": Program("proof.stress", exact=True),
    "train": Program("tiny.train", ("--tree", "{tree}", "--out", "{build}/tiny"), cpu=False),
    "speed": Program("bench.mtp", ("--out", "{build}/speed"), cpu=False),
    "bench": Program("bench.sitting", ("--out", "{build}/bench"), cpu=False),
    "numerics": Program("bench.numerics", ("--out", "{build}/numerics.json"), cpu=False),
}


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """What follows `--` goes to the program."""
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="-- options of the program")


def run(command: Command) -> Exit:
    """Run the program; its exit status 0 is OK, any other FAILED."""
    name, paths = command.args.verb, command.paths
    arguments = [word for word in command.args.arguments if word != "--"]
    program = PROGRAMS.get(name)
    if program and program.exact:
        from proof import evidence

        evidence.require_tree(command.base, paths)
    environments.require_built(paths)
    if program is None and not arguments:
        raise Exit.USAGE("no command is named", "write series run -- COMMAND")
    python = str(environments.python(paths))
    argv = arguments
    if program:
        places = {"tree": paths.tree, "build": paths.build}
        given = [word.format_map(places) for word in program.given]
        argv = [python, "-m", program.module, *given, *arguments]
    done = subprocess.run(
        argv,
        env=engine.environment(paths, cpu=bool(program and (program.cpu or "--tiny" in arguments))),
        # With --json standard output is left to the report.
        stdout=sys.stderr if command.args.json else None,
        check=False,
    )
    command.report = {"status": done.returncode}
    return Exit.OK if done.returncode == 0 else Exit.FAILED
