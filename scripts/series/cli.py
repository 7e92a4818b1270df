# SPDX-License-Identifier: Apache-2.0
"""The command line behind the Makefile."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from .command import Command
from .config import ROOT
from .errors import Exit, SeriesError


class Verb(NamedTuple):
    """One verb: `module` has `NAME(command)` or `run(command)`, and `add_arguments(parser)` if it
    takes options of its own. It is imported only when the verb is called."""

    module: str
    help: str


# The verbs in the order of --help and of `make help`.
USE = {
    "doctor": Verb("series.verbs", "name each missing prerequisite and how to get it"),
    "fetch": Verb("series.verbs", "get the pinned source and compare its sha256"),
    "apply": Verb("series.verbs", "make or update the work tree: one commit a patch"),
    "unapply": Verb("series.verbs", "take the work tree back to the pinned source"),
    "status": Verb("series.verbs", "say what the work tree holds"),
    "build": Verb("series.build", "make the environment and the kernels"),
    "demo": Verb("series.programs", "from nothing to an answer about a picture"),
    "run": Verb("series.programs", "run a command with the engine's environment"),
    "clean": Verb("series.verbs", "remove the work tree, unless it holds edits"),
    "distclean": Verb("series.verbs", "remove the build folder, unless it holds edits"),
}
MAINTAIN = {
    "export": Verb("series.verbs", "write the commits of the work tree to patches/"),
    "check": Verb("series.verbs", "lint, exact apply, round trip, lock, true trailers"),
    "drop-when": Verb("series.releases", "what each patch says about later releases, and if true"),
    "test-model": Verb("proof.stages", "run the tests of the series in the work tree"),
    "test-each": Verb("proof.stages", "run each patch's own tests on the tree after that patch"),
    "capabilities": Verb("proof.capabilities", "the page of what works, from the last test-model"),
    "mutate": Verb("proof.mutants", "plant errors in the model; a named test must detect each"),
    "transformers": Verb("proof.transformers_releases", "the same tokens under five releases"),
    "evaluate": Verb("series.programs", "held-out accuracy and acceptance of the tiny model"),
    "lossless": Verb("series.programs", "check that drafts change no answer, option by option"),
    "train": Verb("series.programs", "train the tiny model from nothing"),
    "speed": Verb("series.programs", "tokens per second without and with drafts"),
    "numerics": Verb("series.programs", "the distance of bf16 on a GPU from float32"),
}
VERBS = USE | MAINTAIN


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, like for every other error."""

    def error(self, message: str) -> NoReturn:
        raise SeriesError(Exit.USAGE, message, hint="see --help, or make help")


def overview() -> str:
    lines = []
    for title, verbs in (("use", USE), ("maintain", MAINTAIN)):
        lines += [f"{title}:", *(f"  {name:14} {verb.help}" for name, verb in verbs.items()), ""]
    return "\n".join(lines)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options of one verb; a SeriesError if there is no such verb or option."""
    top = Parser(
        prog="series",
        usage="series VERB [options]",
        description=__doc__,
        epilog=overview(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("verb", choices=VERBS, metavar="VERB", help="one of those below")
    if not arguments or arguments[0] not in VERBS:
        return top.parse_args(arguments[:1])
    name = arguments[0]
    parser = Parser(prog=f"series {name}", description=f"{VERBS[name].help}.")
    parser.set_defaults(verb=name)
    parser.add_argument("--base", default="v0.19.1", help="folder of patches/ (%(default)s)")
    parser.add_argument("--build-dir", default=str(ROOT / "build"), help="where all state lives")
    parser.add_argument("--json", action="store_true", help="print a report in JSON")
    parser.add_argument("--source", choices=("archive", "git"), default="archive")
    parser.add_argument("--sources", default="", help="folder with a copy of the pinned files")
    parser.add_argument(
        "--wait", type=float, default=600.0, help="seconds to wait for another command (600)"
    )
    module = importlib.import_module(VERBS[name].module)
    if hasattr(module, "add_arguments"):
        module.add_arguments(name, parser)
    return parser.parse_args(arguments[1:])


def function_of(name: str) -> Callable[[Command], Exit]:
    module = importlib.import_module(VERBS[name].module)
    function: Any = getattr(module, name, None) or module.run
    return function  # type: ignore[no-any-return]


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status is one of `Exit`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command: Command | None = None
    report: dict[str, Any] = {}
    try:
        command = Command(parse(arguments))
        code = function_of(command.args.verb)(command)
    except SeriesError as error:
        print(f"error: {error}", file=sys.stderr)
        code, report = error.code, {"error": error.what, "hint": error.hint}
    except OSError as error:
        print(f"error: {error}; check the file, its permissions and the disk", file=sys.stderr)
        code, report = Exit.FAILED, {"error": str(error)}
    except KeyboardInterrupt:
        print("error: interrupted; run it again to continue", file=sys.stderr)
        code, report = Exit.INTERRUPTED, {"error": "interrupted"}
    if "--json" in arguments:
        print(json.dumps({"exit": int(code), **(command.report if command else {}), **report}))
    return int(code)
