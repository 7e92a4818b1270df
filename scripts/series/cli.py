# SPDX-License-Identifier: Apache-2.0
"""The command line behind the Makefile."""

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from . import settings
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
    "doctor": Verb("series.doctor", "name each missing prerequisite and how to get it"),
    "configure": Verb("series.verbs", "keep settings without building"),
    "fetch": Verb("series.verbs", "get the pinned source and compare its sha256"),
    "apply": Verb("series.verbs", "make or update the work tree: one commit a patch"),
    "unapply": Verb("series.verbs", "take the work tree back to the pinned source"),
    "status": Verb("series.verbs", "say what the work tree holds, and the settings"),
    "build": Verb("series.build", "make the environment and the kernels"),
    "demo": Verb("series.programs", "from nothing to an answer about a picture"),
    "check-model": Verb("use.check_model", "look at a checkpoint before its weights are loaded"),
    "serve": Verb("use.serve", "the model card's flags on a checkpoint, if the machine holds it"),
    "bundle": Verb("bundle.pack", "the build in one folder, for machines without a network"),
    "run": Verb("series.programs", "run a command with the engine's environment"),
    "clean": Verb("series.verbs", "remove the work tree, unless it holds work of yours"),
    "distclean": Verb("series.verbs", "remove the build folder, unless it holds work of yours"),
}
MAINTAIN = {
    "export": Verb("series.verbs", "write the commits of the work tree to patches/"),
    "check": Verb("series.verbs", "lint, exact apply, round trip, lock, true trailers"),
    "drop-when": Verb("series.releases", "what each patch says about later releases, and if true"),
    "diff": Verb(
        "series.diff", "what a change does to the series, since a commit of this repository"
    ),
    "canary": Verb("series.canary", "what a release, tree or ref of upstream does to each patch"),
    "bisect": Verb("series.canary", "the commit of upstream that broke a patch"),
    "upstream-branch": Verb("proof.pulls", "a branch and the text of a pull request a patch"),
    "test-tool": Verb("series.selftest", "tests, lint and types of the tool itself"),
    "test-model": Verb("proof.stages", "run the tests of the series in the work tree"),
    "test-each": Verb("proof.stages", "run each patch's own tests on the tree after that patch"),
    "without": Verb("proof.without", "the tests of the patches on the pinned source"),
    "upstream-tests": Verb("proof.upstream_tests", "vLLM's own tests, without and with the series"),
    "capabilities": Verb("proof.capabilities", "the page of what works, from the last test-model"),
    "pages": Verb("proof.pages", "write what is generated in the documents, from runs"),
    "mutate": Verb("proof.mutants", "plant errors in the model; a named test must detect each"),
    "transformers": Verb("proof.transformers_releases", "the same tokens under five releases"),
    "clients": Verb("proof.clients", "what clients and front ends get of a server"),
    "drafts": Verb("proof.drafts", "each option of a request with drafts, against without"),
    "evaluate": Verb("series.programs", "held-out accuracy and acceptance of the tiny model"),
    "lossless": Verb("series.programs", "check that drafts change no answer, option by option"),
    "stress": Verb("series.programs", "random requests to servers, each answer against its own"),
    "stress-without": Verb("proof.stress_without", "take fixes out; the requests must find each"),
    "soak": Verb("proof.soak", "many random requests to one server; what it holds must not grow"),
    "two-nodes": Verb(
        "proof.two_nodes", "the commands for two machines, in namespaces of this one"
    ),
    "faults": Verb("proof.faults", "kill the tool and servers, fill the disk; the same again"),
    "train": Verb("series.programs", "train the tiny model from nothing"),
    "speed": Verb("series.programs", "tokens per second without and with drafts"),
    "bench": Verb("series.programs", "the series beside a published release, on one GPU"),
    "numerics": Verb("series.programs", "the distance of bf16 on a GPU from float32"),
    "gpu-pack": Verb("gpu.pack", "the CUDA build in parts, for a GPU host without a network"),
    "bundle-check": Verb("bundle.proof", "pack twice and compare; answer without a network"),
    "locks": Verb("series.selftest", "renew the locks of the tool's packages"),
}
VERBS = USE | MAINTAIN
# The verbs that make something keep the settings they are given.
KEEP = (
    "configure",
    "fetch",
    "apply",
    "unapply",
    "build",
    "check",
    "drop-when",
    "diff",
    "canary",
    "bisect",
)


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, like for every other error."""

    def error(self, message: str) -> NoReturn:
        raise Exit.USAGE(message, "see --help, or make help")


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
    parser.add_argument(
        "--wait", type=float, default=600.0, help="seconds to wait for another command (600)"
    )
    settings.add_arguments(parser, settings.COMMON)
    module = importlib.import_module(VERBS[name].module)
    if hasattr(module, "add_arguments"):
        module.add_arguments(name, parser)
    return parser.parse_args(arguments[1:])


def function_of(name: str) -> Callable[[Command], Exit | None]:
    """What a verb does; it returns a status, or nothing if all is well."""
    module = importlib.import_module(VERBS[name].module)
    function: Any = getattr(module, name, None) or module.run
    return function  # type: ignore[no-any-return]


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; the exit status is one of `Exit`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        # A name of a file need not be text.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        code, report = _run(arguments)
        if "--json" in arguments[: arguments.index("--") if "--" in arguments else None]:
            print(json.dumps({"exit": int(code), **report}))
        sys.stdout.flush()
    except BrokenPipeError:
        # Or the interpreter tries to write the rest once more, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.PIPE
    return int(code)


def _run(arguments: list[str]) -> tuple[Exit, dict[str, Any]]:
    command: Command | None = None
    try:
        args = parse(arguments)
        command = Command(args)
        settings.resolve(args, command.paths, keep=args.verb in KEEP)
        return function_of(args.verb)(command) or Exit.OK, command.report
    except SeriesError as error:
        code, report = error.code, {"error": error.what, "hint": error.hint}
    except BrokenPipeError:
        raise
    except OSError as error:
        code = Exit.FAILED
        report = {"error": str(error), "hint": "check the file, its permissions and the disk"}
    except KeyboardInterrupt:
        code, report = (
            Exit.INTERRUPTED,
            {"error": "interrupted", "hint": "run it again to continue"},
        )
    except Exception as error:
        code = Exit.INTERNAL
        report = {"error": f"INTERNAL {error!r}", "hint": f"report it with {_log_of(command)}"}
    said = f"{report['error']}; {report['hint']}" if report["hint"] else report["error"]
    print("error:", " ".join(said.split("\n")), file=sys.stderr)
    return code, {**(command.report if command else {}), **report}


def _log_of(command: Command | None) -> Path:
    """Write the traceback of the exception to a file."""
    folders = [command.paths.build] if command and command.paths.build.is_dir() else []
    for folder in [*folders, Path(tempfile.gettempdir())]:
        log = folder / "series-error.log"
        with contextlib.suppress(OSError):
            log.write_text(traceback.format_exc(), encoding="utf-8", errors="backslashreplace")
            return log
    return Path("no log, which could not be written")
