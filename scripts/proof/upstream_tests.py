# SPDX-License-Identifier: Apache-2.0
"""`upstream-tests`: vLLM's own tests of what the series changes, without and with the series.

upstream_tests.toml of the base names the tests of every file of vLLM that the series changes. Each
file of tests runs in a process of its own, in the pinned source and in the work tree, with the same
stand-ins for what a test would fetch from the hub. Every test must have the same outcome in both;
one that does not pass has its reason in that file, and none lacks a file. In a file of tests that
the series itself changes, tests may be new, or begin to pass.

Outcomes of the pinned source are kept under the build folder, and committed, for as long as
everything stays as it was that they are a matter of; `--fresh` runs it again.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from series import engine
from series import env as environments
from series.command import Command, positive
from series.config import Base, Paths, parse_toml
from series.errors import Exit, SeriesError
from series.git import git
from series.state import locked

from . import evidence, outcomes, stand_ins
from .runner import Ended, Progress, Warm, Worktrees, start
from .stages import Plan

FILE = "upstream_tests.toml"
Folded = dict[str, dict[str, list[str]]]
KEPT = "upstream-tests.json"
COMMAND = "make upstream-tests"
# What a test says that did not get a file, of the hub or of the tree.
MISSING = re.compile(
    r"LocalEntryNotFoundError|OfflineModeIsEnabled|find (?:them|the requested files) in the|"
    r"Invalid repository ID|not a valid model identifier|failed to download|name resolution|"
    r"FileNotFoundError"
)
ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


@dataclass(frozen=True)
class Choice:
    """The contents of upstream_tests.toml, whose head explains them."""

    tests: dict[str, list[str] | str]
    left_out: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, list[str]] = field(default_factory=dict)
    mended: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    seconds: int = 300

    @classmethod
    def read(cls, file: Path) -> Choice:
        try:
            return cls(**parse_toml(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise wrong(
                f"{file} cannot be read: {error!r}", "its head says what it holds"
            ) from error

    @property
    def files(self) -> list[str]:
        """Every file of tests, once."""
        named = [name for names in self.tests.values() if isinstance(names, list) for name in names]
        return sorted(set(named))

    def deselected(self, file: str) -> list[str]:
        """Tests of a file that are left out, while the file is not."""
        return [name for name in self.left_out if name.startswith(f"{file}::")]

    @property
    def starts(self) -> list[str]:
        """The starts of the names of all tests that have a reason not to pass."""
        return [start for starts in self.reasons.values() for start in starts]

    @property
    def turned(self) -> dict[str, tuple[str, str, str]]:
        """The starts of names that stand in `mended` or `changed`: the table and both outcomes."""
        tables = ((self.mended, ("mended", "failed", "passed")),
                  (self.changed, ("changed", "passed", "missing")))  # fmt: skip
        return {s: row for table, row in tables for starts in table.values() for s in starts}

    def turn(self, node: str) -> tuple[str, str, str] | None:
        """The row of `turned` that a test has."""
        return next((row for start, row in self.turned.items() if node.startswith(start)), None)

    def reason(self, node: str) -> str:
        """The one of `starts` that a test has, or nothing."""
        return next((start for start in self.starts if node.startswith(start)), "")


@dataclass
class Run:
    """The outcome of every test in a tree, and what went wrong with a file of tests."""

    tests: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def file_of(node: str) -> str:
    return node.partition("::")[0]


def wrong(text: str, hint: str) -> SeriesError:
    return SeriesError(Exit.FAILED, text, hint=hint)


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `upstream-tests`."""
    parser.add_argument("--fresh", action="store_true", help="run the pinned source again, too")
    parser.add_argument("--check", action="store_true", help="compare with the data, do not write")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="FILE", help="these files of tests"
    )
    parser.add_argument("--jobs", type=positive, help="files at a time (one a processor)")


def check_choice(choice: Choice, file: Path, tree: Path) -> None:
    """Every changed file has its tests or a reason, and all files that are named exist."""
    changed = git(tree, "diff", "--name-only", "--diff-filter=M", "base", "HEAD", "--", "vllm")
    want, have = set(changed.splitlines()), set(choice.tests)
    if new := sorted(want - have):
        raise wrong(
            f"{file}: the series changes {', '.join(new)}, without a row in [tests]",
            'name what tests each: "vllm/x.py" = ["tests/test_x.py"], or = "why it has none"',
        )
    if old := sorted(have - want):
        raise wrong(f"{file}: the series does not change {', '.join(old)}", "drop from [tests]")
    known = [*choice.files, *choice.left_out, *choice.starts, *choice.turned]
    for name in known:
        if not (tree / file_of(name)).is_file():
            raise wrong(f"{FILE}: there is no {name}", "correct it")
    if both := sorted(set(choice.files) & set(choice.left_out)):
        raise wrong(f"{FILE}: {both[0]} is left out, and is not", "correct it")


def judge(choice: Choice, files: list[str], without: Run, with_series: Run,
          changed: set[str]) -> list[str]:  # fmt: skip
    """What is wrong; `changed` are the files of tests that the series itself changes."""
    found = [
        f"{name}, {where}: {text}"
        for where, run in (("pinned source", without), ("series", with_series))
        for name, text in run.problems.items()
    ]
    for node in sorted({*without.tests, *with_series.tests}):
        before, after = without.tests.get(node, "missing"), with_series.tests.get(node, "missing")
        # A file that the series changes has other tests in it, or ones that could not pass before:
        # the outcome of the file itself is of one that cannot be imported.
        own = file_of(node) in changed and (
            before == "missing"
            or (before == "failed" and (after == "passed" or node == file_of(node)))
        )
        if turned := choice.turn(node):
            if (before, after) != turned[1:]:
                found.append(
                    f"{node}: {before} and then {after}, and is in [{turned[0]}] of {FILE}"
                )
        elif before != after and not own:
            found.append(f"{node}: {before} without the series, {after} with it")
        elif after not in ("passed", "missing") and not choice.reason(node):
            found.append(f"{node}: {after}, and {FILE} says no reason")
    used = {choice.reason(n) for n, outcome in with_series.tests.items() if outcome != "passed"}
    for start_ in choice.starts:
        if start_ not in used and file_of(start_) in files:
            found.append(f"{start_}: has a reason in {FILE}, and passes")
    return found


class Trees:
    """Runs files of tests in a tree."""

    def __init__(self, command: Command, choice: Choice, environment: dict[str, str]) -> None:
        self.command, self.choice, self.environment = command, choice, environment
        self.logs = command.paths.state / "logs/upstream-tests"
        self.libraries = Plan.read(command.base.tests_file).warm["libraries"]
        self.stack = contextlib.ExitStack()

    def warm(self, name: str, tree: Path) -> Warm:
        """A process that has imported vLLM of this tree, and what the environment has not."""
        logs = self.logs / name
        logs.mkdir(parents=True, exist_ok=True)
        modules = [*self.libraries, "proof.absent", "vllm.entrypoints.llm"]
        warm = start(self.command.paths, modules, self.environment, logs, tree)
        self.stack.callback(warm.close)
        return warm

    def file(
        self, name: str, tree: Path, warm: Warm, run: Run, progress: Progress, file: str
    ) -> None:
        """Run one file of tests, and add its outcomes to `run`."""
        log = self.logs / name / f"{file.removeprefix('tests/').replace('/', '.')}.log"
        deselected = [f"--deselect={name}" for name in self.choice.deselected(file)]
        label = f"{file} ({name})"
        progress.start(label, log.with_suffix(".jsonl"))
        begin = time.monotonic()
        ended = warm.run(
            tree,
            log,
            self.choice.seconds,
            "--tb=short",
            "-p",
            "proof.absent",
            file,
            *deselected,
            imports=["vllm"],
            models=self.choice.models,
        )
        tests = {ADDRESS.sub("0x", o.node): o.outcome for o in outcomes.read(ended.outcomes)}
        if problem := problem_of(ended, tests, self.choice.seconds):
            run.problems[file] = problem
        run.tests |= tests
        verdict = problem or f"{len(tests)} tests"
        progress.end(label, f"{verdict}, {time.monotonic() - begin:.0f} s")


def problem_of(ended: Ended, tests: dict[str, str], seconds: int) -> str:
    """Why the outcomes of a file of tests cannot be believed, or lack a file."""
    if ended.hung:
        return f"not done after {seconds} s"
    # 0: all passed, 1: some failed, 5: none were collected, as a file that skips itself has none;
    # any other status is all right where a test says what it was, as in a file that cannot import.
    if ended.status not in (0, 1, 5) and "failed" not in tests.values():
        return f"ended with {ended.status} (log: {ended.log})"
    if not tests:
        return f"no tests (log: {ended.log})"
    if "failed" in tests.values():
        for line in ended.log.read_text("utf-8", "replace").splitlines():
            if MISSING.search(line):
                return f"lacks a file: {line.strip()[:200]} (log: {ended.log})"
    return ""


def make_stand_ins(paths: Paths, environment: dict[str, str]) -> None:
    words = [str(environments.python(paths)), str(Path(stand_ins.__file__)), environment["HF_HOME"]]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        raise wrong(f"{' '.join(words)} ended with {done.returncode}", "its output is above")


def make_environment(paths: Paths) -> dict[str, str]:
    """The environment of a run, with the stand-ins in place of the hub."""
    hub = paths.state.resolve() / "upstream-tests-hub"
    environment = {
        **engine.environment(paths, cpu=True),
        "HF_HOME": str(hub),
        "VLLM_ASSETS_CACHE": str(hub / "assets"),
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"):
        environment.pop(name, None)
    make_stand_ins(paths, environment)
    return environment


def run_at(
    command: Command, files: Sequence[str], commits: Mapping[str, str]
) -> tuple[dict[str, Run], dict[str, str]]:
    """The outcomes of files of tests on some commits, and why files or tests of them are not run.

    Only files that upstream_tests.toml knows are run: others may want a GPU or load for an hour.
    """
    paths, file = command.paths, command.base.folder / FILE
    choice = Choice.read(file) if file.is_file() else Choice({})
    known = [name for name in files if name in choice.files]
    unknown = [name for name in files if name not in known]
    not_run = {
        **{name: choice.left_out.get(name, "it was never tried here") for name in unknown},
        **{test: choice.left_out[test] for name in known for test in choice.deselected(name)},
    }
    runs = {when: Run() for when in commits}
    if not known:
        return runs, not_run
    environment = make_environment(paths)
    worktrees = Worktrees(paths)
    out = sys.stderr if command.args.json else sys.stdout
    progress = Progress(len(known) * len(commits), out)
    try:
        for when, commit in commits.items():
            trees = Trees(command, choice, environment)
            with trees.stack, worktrees.at(commit) as tree:
                warm = trees.warm(when, tree)
                for name in known:
                    trees.file(when, tree, warm, runs[when], progress, name)
    finally:
        worktrees.close()
        progress.close()
    return runs, not_run


def data_file(base: Base) -> Path:
    return evidence.DATA / base.name / "upstream-tests.json"


def outcomes_file(base: Base) -> Path:
    """The committed outcomes of the pinned source, so that CI runs the series alone."""
    return data_file(base).with_name("upstream-tests-base.json")


def fold(tests: Mapping[str, str]) -> Folded:
    """Outcomes of one file of tests in a third of the room: outcome, function, parameters."""
    folded: Folded = {}
    for node, outcome in sorted(tests.items()):
        function, bracket, parameters = node.removeprefix(file_of(node)).partition("[")
        folded.setdefault(outcome, {}).setdefault(function, []).append(bracket + parameters)
    return folded


def unfold(file: str, folded: Folded) -> dict[str, str]:
    """What `fold` was given: the outcome of each test."""
    return {
        file + function + parameters: outcome
        for outcome, functions in folded.items()
        for function, every in functions.items()
        for parameters in every
    }


def key_of(base: Base, about: dict[str, Any]) -> str:
    """Changes with whatever the outcomes of the pinned source are a matter of."""
    here, choice = Path(__file__), Choice.read(base.folder / FILE)
    contents = [here.with_name(name).read_bytes() for name in ("stand_ins.py", "absent.py")]
    # Not `seconds`: of a file that took longer nothing is kept.
    settings = (choice.models, sorted(choice.left_out))
    what = ("folded", evidence.locked(base).base, about["versions"], contents, settings)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def run_both(command: Command, choice: Choice, files: list[str], key: str) -> tuple[Run, Run]:
    """Run the files in the two trees; in the pinned source only what is not known of it."""
    paths, args = command.paths, command.args
    kept = paths.state / KEPT
    known = {} if args.fresh else evidence.load(kept)
    if not args.fresh and known.get("key") != key:
        known = evidence.load(outcomes_file(command.base))
    environment = make_environment(paths)
    trees = Trees(command, choice, environment)
    worktrees = Worktrees(paths)
    without, with_series = Run(), Run()
    old = known.get("files", {}) if known.get("key") == key else {}
    todo = [file for file in files if file not in old]
    progress = Progress(len(files) + len(todo), sys.stderr if args.json else sys.stdout)
    pool = ThreadPoolExecutor(args.jobs or len(os.sched_getaffinity(0)))
    try:
        with trees.stack, contextlib.ExitStack() as stack:
            sides = {"series": (paths.tree, trees.warm("series", paths.tree), with_series)}
            if todo:
                plain = stack.enter_context(worktrees.at("base"))
                sides["base"] = (plain, trees.warm("base", plain), without)
            ended = [
                pool.submit(trees.file, name, *side, progress, file)
                for file in files
                for name, side in sides.items()
                if name == "series" or file in todo
            ]
            try:
                for one in ended:
                    one.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        worktrees.close()
        progress.close()
        # What has ended is known, also if the rest was broken off.
        for file in set(todo) - set(without.problems):
            if tests := {n: o for n, o in without.tests.items() if file_of(n) == file}:
                old[file] = fold(tests)
        evidence.write(kept, {"key": key, "files": dict(sorted(old.items()))})
    for file in set(files) - set(todo):
        without.tests |= unfold(file, old[file])
    return without, with_series


def run(command: Command) -> Exit:
    """Compare the outcomes; raise Exit.FAILED if one is not as it should be."""
    base, paths, args = command.base, command.paths, command.args
    if args.check and not (base.folder / FILE).exists():
        command.say(f"{base.name} has no {FILE}: vLLM's own tests are not run on it")
        return Exit.OK
    choice = Choice.read(base.folder / FILE)
    if unknown := set(args.only) - set(choice.files):
        raise SeriesError(Exit.USAGE, f"{FILE} has no {min(unknown)}", hint="see [tests] there")
    files = args.only or choice.files
    begin = time.monotonic()
    with locked(paths.state / ".lock", args.wait):
        evidence.require_tree(base, paths)
        check_choice(choice, base.folder / FILE, paths.tree)
        about = evidence.about(base, paths)
        without, with_series = run_both(command, choice, files, key_of(base, about))
        changed = git(paths.tree, "diff", "--name-only", "base", "HEAD", "--", "tests")
        evidence.require_tree(base, paths)
    found = judge(choice, files, without, with_series, set(changed.splitlines()))
    counts = {file: count(with_series, file) for file in files}
    not_passed: dict[str, int] = {}
    for node, outcome in with_series.tests.items():
        if outcome != "passed" and not choice.turn(node):
            reason = choice.reason(node)
            not_passed[reason] = not_passed.get(reason, 0) + 1
    report = {**about, "files": counts, "reasons": dict(sorted(not_passed.items()))}
    command.report = report | {"wrong": found}
    for line in found:
        command.say(line)
    total = len(with_series.tests)
    command.say(
        f"{total} tests in {len(files)} files, {sum(not_passed.values())} of them do not pass, "
        f"{len(found)} wrong, {time.monotonic() - begin:.0f} s"
    )
    if found:
        raise wrong(f"{len(found)} outcomes are not as they should be", "they are above")
    if args.check and not args.only:
        data = evidence.read_any(data_file(base), base)
        if (data["files"], data["reasons"]) != (report["files"], report["reasons"]):
            raise wrong(f"{data_file(base)} has other numbers of tests", f"run {COMMAND} pages")
        if evidence.load(outcomes_file(base)) != evidence.load(paths.state / KEPT):
            raise wrong(f"{outcomes_file(base)} has other outcomes", f"run {COMMAND} FRESH=1 pages")
    elif not args.only:
        evidence.write(outcomes_file(base), evidence.load(paths.state / KEPT))
        evidence.write(data_file(base), report)
        command.say(f"wrote {data_file(base)}; run make pages")
    return Exit.OK


def count(run: Run, file: str) -> dict[str, int]:
    """How many tests of a file passed, failed and were skipped."""
    every = [outcome for node, outcome in run.tests.items() if file_of(node) == file]
    return {name: every.count(name) for name in ("passed", "failed", "skipped")}


def page(bases: list[Base]) -> str:
    """The page, from the data of the last run."""
    lines = [
        "# vLLM's own tests, without and with the series",
        "",
        "The tests of every file of vLLM that the series changes, as far as they run on a CPU",
        "without the network. `make upstream-tests` runs them in the pinned source and in the",
        "patched tree; every test must have the same outcome in both, but those that are named",
        "with what the series mends or changes. Configs, tokenizers and processors of the hub are",
        "replaced by stand-ins that are made here (`scripts/proof/stand_ins.py`).",
    ]
    for base in bases:
        lines += ["", f"## {base.name}", ""]
        data, choice = evidence.read_any(data_file(base), base), Choice.read(base.folder / FILE)
        if sorted(data["files"]) != choice.files or set(data["reasons"]) != set(choice.starts):
            raise wrong(f"{data_file(base)} is not of {FILE}", f"run {COMMAND}")
        sums = {
            k: sum(c[k] for c in data["files"].values()) for k in ("passed", "failed", "skipped")
        }
        lines.append(evidence.origin(data, base))
        lines += [
            f"{sum(sums.values())} tests in {len(choice.files)} files: {sums['passed']} pass, "
            f"{sums['failed']} fail and {sums['skipped']} are skipped with the series.",
        ]
        lines += ["", "| file that the series changes | tests that pass | do not pass |"]
        lines.append("| --- | --- | --- |")
        for name, tests in choice.tests.items():
            if isinstance(tests, str):
                lines.append(f"| `{name}` | none: {tests} | |")
                continue
            rows = [data["files"][test] for test in tests]
            passed = sum(row["passed"] for row in rows)
            others = sum(row["failed"] + row["skipped"] for row in rows)
            lines.append(f"| `{name}` | {passed} in {len(tests)} files | {others} |")
        for why, starts in choice.mended.items():
            names = ", ".join(f"`{start.removeprefix('tests/')}`" for start in starts)
            lines += ["", f"Failed without the series and passed with it, as {why}: {names}."]
        for why, starts in choice.changed.items():
            names = ", ".join(f"`{start.removeprefix('tests/')}`" for start in starts)
            lines += ["", f"Replaced by the series, in the same file, as {why}: {names}."]
        lines += ["", "What does not pass, in either tree:", "", "| why | how many | tests |"]
        lines.append("| --- | --- | --- |")
        for why, starts in choice.reasons.items():
            number = sum(data["reasons"][start] for start in starts)
            names = ", ".join(f"`{start.removeprefix('tests/')}`" for start in starts)
            lines.append(f"| {why} | {number} | {names} |")
        lines += [
            "",
            "Tests of these files that are not run:",
            "",
            "| tests | why |",
            "| --- | --- |",
        ]
        lines += [
            f"| `{name.removeprefix('tests/')}` | {why} |" for name, why in choice.left_out.items()
        ]
    return "\n".join(lines) + "\n"
