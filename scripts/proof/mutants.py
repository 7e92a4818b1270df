# SPDX-License-Identifier: Apache-2.0
"""`mutate`: plants errors in the patched model, one at a time; a named test has to detect each.

mutations.toml of the base says what is planted, where, and which test has to fail. The errors go
into worktrees of the work tree's commit. Every named test is run first without an error, since a
test that fails anyway detects nothing. A test that hangs has detected the error, too.

Outcomes are kept in docs/evidence/data, each for as long as its entry, the file that it changes,
its test and all that the test imports of tests/ stay as they were; `--fresh` begins again. A run
that was cut off goes on. `--not-yet` plants only what has never been planted, in minutes; what it
leaves out keeps an outcome without a key if its files have changed since.
"""

import argparse
import contextlib
import hashlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from series import engine
from series.command import Command, positive
from series.config import Base, parse_toml, reading
from series.errors import Exit, SeriesError
from series.state import locked

from . import evidence, outcomes
from .runner import Ended, Warm, Worktrees, start
from .stages import Plan, fill, prepare

SECONDS_PER_TEST = 600
TABLE_HINT = "correct mutations.toml or the tree"
# Instead of an outcome of an entry that is newer than the last run.
NOT_YET = "not yet"


@dataclass
class Mutation:
    """One planted error: `old`, which occurs exactly once in `file`, becomes `new`."""

    name: str
    error: str
    file: str
    old: str
    new: str
    test: str

    @property
    def test_file(self) -> str:
        return self.test.partition("::")[0]


def read_table(path: Path) -> list[Mutation]:
    with reading(path, TABLE_HINT):
        mutations = [Mutation(**entry) for entry in parse_toml(path.read_text())["mutation"]]
    names = [mutation.name for mutation in mutations]
    if len(set(names)) != len(names):
        raise Exit.USAGE(f"a name occurs twice in {path}", TABLE_HINT)
    return mutations


def mutate_text(text: str, mutation: Mutation) -> str:
    count = text.count(mutation.old)
    if count != 1:
        raise Exit.USAGE(
            f"{mutation.name}: the text to replace occurs {count} times in {mutation.file}",
            TABLE_HINT,
        )
    return text.replace(mutation.old, mutation.new)


def check_table(mutations: list[Mutation], tree: Path) -> None:
    for mutation in mutations:
        path = tree / mutation.file
        if not path.is_file():
            raise Exit.USAGE(f"{mutation.name}: there is no {mutation.file}", TABLE_HINT)
        mutate_text(path.read_text(), mutation)


class Known:
    """What each mutation gave, and the files of tests/ that each test file imports."""

    def __init__(self, tree: Path, *reports: dict[str, Any]) -> None:
        self.tree = tree
        self.helpers: dict[str, list[str]] = {}
        self.outcomes: dict[str, dict[str, Any]] = {}
        for report in reports:
            self.helpers |= report.get("helpers", {})
            self.outcomes |= {entry["name"]: entry for entry in report.get("outcomes", [])}

    def key(self, mutation: Mutation) -> str:
        """Changes with whatever the outcome of a mutation is a matter of."""
        helpers = self.helpers.get(mutation.test_file, [])
        files = dict.fromkeys([mutation.file, mutation.test_file, *helpers])
        contents = [
            (self.tree / file).read_bytes() if (self.tree / file).is_file() else b""
            for file in files
        ]
        return hashlib.sha256(repr((astuple(mutation), contents)).encode()).hexdigest()[:32]

    def get(self, mutation: Mutation) -> dict[str, Any] | None:
        entry = self.outcomes.get(mutation.name)
        return entry if entry and entry["key"] == self.key(mutation) else None

    def leave_out(self, mutations: list[Mutation]) -> list[Mutation]:
        """Those that were never planted; the outcomes of the others lose their keys."""
        nothing = {"by": NOT_YET}
        never = [m for m in mutations if self.outcomes.get(m.name, nothing)["by"] == NOT_YET]
        for mutation in mutations:
            if mutation not in never:
                self.outcomes[mutation.name] |= {"key": ""}
        return never


class Trial:
    """Runs tests in worktrees, with and without an error."""

    def __init__(self, warm: Warm, logs: Path, tree_id: str) -> None:
        self.warm, self.logs, self.tree_id = warm, logs, tree_id
        self.seconds = itertools.count(1)
        self.free: queue.SimpleQueue[Path] = queue.SimpleQueue()

    @contextlib.contextmanager
    def tree(self) -> Iterator[Path]:
        tree = self.free.get()
        try:
            yield tree
        finally:
            self.free.put(tree)

    def pytest(self, tree: Path, name: str, tests: Iterable[str]) -> Ended:
        log = self.logs / f"{name}.log"
        return self.warm.run(tree, log, SECONDS_PER_TEST, "-x", *tests, imports=["vllm"])

    def without(self, mutations: list[Mutation]) -> list[str]:
        """Run the tests of one file without an error; the files of tests/ that they import."""
        with self.tree() as tree:
            name = Path(mutations[0].test_file).stem
            ended = self.pytest(tree, name, sorted({m.test for m in mutations}))
        if ended.hung:
            raise Exit.FAILED(
                f"{mutations[0].test_file}: not done after {SECONDS_PER_TEST} s without any error "
                f"planted (log: {ended.log})",
                "run it again on a machine with less other work",
            )
        if ended.status:
            raise Exit.FAILED(
                f"{mutations[0].test_file} fails without any error planted (log: {ended.log})",
                "correct the test, or name another in mutations.toml",
            )
        return outcomes.files(ended.outcomes)

    def with_error(self, mutation: Mutation) -> dict[str, Any]:
        begin = time.monotonic()
        with self.tree() as tree:
            path = tree / mutation.file
            original, times = path.read_text(), path.stat()
            path.write_text(mutate_text(original, mutation))
            # Two versions of a file may have one size, and Python knows byte code by size and
            # second: no two versions get the same one.
            other = times.st_mtime + next(self.seconds)
            os.utime(path, (other, other))
            try:
                ended = self.pytest(tree, mutation.name, [mutation.test])
            finally:
                path.write_text(original)
                os.utime(path, (times.st_atime, times.st_mtime))
        # An error that keeps the test from being collected is not detected by the test.
        how = "hang" if ended.hung else "failure" if ended.status == 1 else "nothing"
        seconds = round(time.monotonic() - begin)
        return {"name": mutation.name, "by": how, "seconds": seconds, "tree": self.tree_id}


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `mutate`."""
    parser.add_argument(
        "--only", nargs="*", metavar="NAME", help="these; their outcome is not kept"
    )
    parser.add_argument("--fresh", action="store_true", help="forget the outcomes that are kept")
    parser.add_argument("--not-yet", action="store_true", help="only what was never planted")
    parser.add_argument("--jobs", type=positive, help="tests at a time (one a processor)")


def data_file(base: str) -> Path:
    return evidence.DATA / base / "mutations.json"


def run(command: Command) -> Exit:
    """Plant every error; raise Exit.FAILED if one was not detected."""
    base, paths, args = command.base, command.paths, command.args
    mutations = read_table(base.folder / "mutations.toml")
    if args.only:
        unknown = set(args.only) - {mutation.name for mutation in mutations}
        if unknown:
            raise Exit.USAGE(f"mutations.toml has no {', '.join(sorted(unknown))}", TABLE_HINT)
        mutations = [mutation for mutation in mutations if mutation.name in args.only]
    with locked(paths.state / ".lock", args.wait):
        evidence.require_tree(base, paths)
        check_table(mutations, paths.tree)
        about = evidence.about(base, paths)
        kept = paths.state / "mutations.json"
        reports = [] if args.fresh else [evidence.load(data_file(base.name)), evidence.load(kept)]
        known = Known(paths.tree, *reports)

        def report() -> dict[str, Any]:
            found = [known.outcomes[m.name] for m in mutations if m.name in known.outcomes]
            tests = {m.test_file for m in mutations}
            helpers = {k: v for k, v in sorted(known.helpers.items()) if k in tests}
            return {**about, "helpers": helpers, "outcomes": found}

        def add(mutation: Mutation, outcome: dict[str, Any]) -> None:
            known.outcomes[mutation.name] = outcome | {"key": known.key(mutation)}
            if not args.only:
                evidence.write(kept, report())
            verdict = {"hang": "hang", "failure": "detected"}.get(outcome["by"], "NOT DETECTED")
            command.say(f"{verdict:14}{mutation.name:40}{outcome['seconds']:5} s")

        todo = mutations if args.only else [m for m in mutations if known.get(m) is None]
        if args.not_yet:
            todo = known.leave_out(todo)
        if len(todo) < len(mutations):
            command.say(f"{len(mutations) - len(todo)} of {len(mutations)} are known")
        plant(command, todo, known, add)
        evidence.require_tree(base, paths)
    missed = [m.name for m in mutations if known.outcomes[m.name]["by"] == "nothing"]
    command.report = report()
    if not args.only:
        evidence.write(data_file(base.name), report())
        command.say(f"{data_file(base.name)}: {len(mutations)} errors; run make pages")
    if missed:
        raise Exit.FAILED(
            f"not detected: {', '.join(missed)}",
            "write a test that fails, and name it in mutations.toml",
        )
    return Exit.OK


def plant(
    command: Command,
    todo: list[Mutation],
    known: Known,
    add: Callable[[Mutation, dict[str, Any]], None],
) -> None:
    """Try mutations side by side, each in a worktree that no other uses meanwhile."""
    if not todo:
        return
    base, paths = command.base, command.paths
    plan = Plan.read(base.tests_file)
    logs = paths.state / "logs/mutate"
    logs.mkdir(parents=True, exist_ok=True)
    environment = {
        **engine.environment(paths, cpu=True),
        **{name: fill(value, paths) for name, value in plan.environment.items()},
    }
    prepare(plan, paths, environment)
    files = sorted({mutation.test_file for mutation in todo})
    jobs = min(command.args.jobs or os.cpu_count() or 1, len(files))
    with contextlib.ExitStack() as stack:
        warm = start(paths, plan.warm["libraries"], environment, logs, None)
        stack.callback(warm.close)
        trial = Trial(warm, logs, evidence.tree_of(base))
        worktrees = Worktrees(paths)
        stack.callback(worktrees.close)
        for _ in range(jobs):
            trial.free.put(stack.enter_context(worktrees.at("HEAD")))

        keeping, stopping = threading.Lock(), threading.Event()

        def try_file(file: str) -> SeriesError | None:
            """All of one file, so that what is known is kept if the run is cut off."""
            mine = [m for m in todo if m.test_file == file]
            try:
                helpers = trial.without(mine)
            except SeriesError as error:
                return error
            for mutation in mine:
                if stopping.is_set():
                    break
                outcome = trial.with_error(mutation)
                with keeping:
                    known.helpers[file] = helpers
                    add(mutation, outcome)
            return None

        with ThreadPoolExecutor(jobs) as pool:
            try:
                # A process for each run: an engine and the encoder's tests set up the same globals.
                failed = [error for error in pool.map(try_file, files) if error]
            finally:
                stopping.set()
        if failed:
            raise failed[0]


# ---- the page ----


def page(bases: list[Base]) -> str:
    """The page, from the committed outcomes; they must be those of mutations.toml, in order."""
    lines = [
        "# Planted errors and the tests that detect them",
        "",
        "Each error is planted alone in a copy of the patched tree, and the named test is run.",
        "Without an error all of these tests pass.",
    ]
    for base in bases:
        file = data_file(base.name)
        data = evidence.read_any(file, base)
        mutations = read_table(base.folder / "mutations.toml")
        rows, names = data["outcomes"], [mutation.name for mutation in mutations]
        found = [entry["name"] for entry in rows]
        if found != names:
            odd = ", ".join(sorted(set(found) ^ set(names))) or "another order"
            raise Exit.FAILED(f"{file} is not of mutations.toml: {odd}", "run make mutate")
        caught = [entry for entry in rows if entry["by"] in ("failure", "hang")]
        planted = [entry for entry in rows if entry["by"] != NOT_YET]
        hangs = sum(entry["by"] == "hang" for entry in caught)
        known = [entry for entry in rows if entry["key"]]
        older = sum(entry["tree"] != data["tree"] for entry in known)
        said = f"{len(caught)} of {len(planted)} were detected"
        said += f", {hangs} of them by a test that then hung" if hangs else ""
        said += f", in {sum(entry['seconds'] for entry in rows)} s." if caught else "."
        lines += ["", f"## {base.name}", "", evidence.origin(data, base), said]
        if older:
            lines.append(
                f"{older} outcomes are of earlier trees; since then neither the changed file nor "
                "the test and what it imports of tests/ has changed."
            )
        if new := len(names) - len(planted):
            lines.append(f"{new} more have not been planted yet; `make mutate` does.")
        if unknown := len(planted) - len(known):
            lines.append(
                f"{unknown} outcomes are of an earlier tree, and whether their files have changed "
                "since was not recorded; `make mutate` plants these errors again."
            )
        lines += ["", "| error | planted in | detected by |", "| --- | --- | --- |"]
        for mutation, entry in zip(mutations, rows, strict=True):
            test = f"`{mutation.test.split('/')[-1]}`"
            by = {"failure": test, "hang": f"{test} (hangs)", NOT_YET: NOT_YET}.get(
                entry["by"], "**nothing**"
            )
            lines.append(f"| {mutation.error} | `{Path(mutation.file).name}` | {by} |")
    return "\n".join(lines) + "\n"
