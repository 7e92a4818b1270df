# SPDX-License-Identifier: Apache-2.0
"""`test-model` and `test-each`: the tests that the patches bring, in vLLM's own tests tree."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from series import engine, patches
from series import env as environments
from series.command import Command, positive
from series.config import ROOT, Base, Paths, parse_toml, reading
from series.errors import Exit
from series.git import git
from series.state import locked, write_atomic

from . import evidence, outcomes
from .runner import Ended, Progress, Warm, Worktrees, start

# Each has an engine or two in its memory.
MOST_JOBS = 4
SECONDS = 600
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Stage:
    """Tests that run in a process of their own; `count` is how many there have to be.

    One that takes minutes starts `early`, so that nothing has to wait for it at the end. Those of
    `long_tests` run with --long only, and on the tree after their patch; a node of a file of
    `tests` is left out otherwise.
    """

    name: str
    imports: list[str]
    tests: list[str] = dataclasses.field(default_factory=list)
    count: int = 0
    long_tests: list[str] = dataclasses.field(default_factory=list)
    long_count: int = 0
    seconds: int = SECONDS
    early: bool = False

    def long(self) -> Stage:
        return dataclasses.replace(self, tests=self.long_tests, count=self.long_count)

    def short(self) -> Stage:
        left_out = [f"--deselect={test}" for test in self.long_tests if "::" in test]
        return dataclasses.replace(self, tests=[*self.tests, *left_out] if self.tests else [])

    def all(self) -> Stage:
        tests, count = [*self.tests, *self.long_tests], self.count + self.long_count
        return dataclasses.replace(self, tests=tests, count=count)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A script that writes answers of models, run without and with the series.

    The tree without the series has the patch `needs` all the same.
    """

    name: str
    script: Path
    needs: str = ""
    count: int = 0
    seconds: int = SECONDS
    long: bool = False


@dataclasses.dataclass(frozen=True)
class Plan:
    """The contents of a base's tests.toml."""

    file: Path
    environment: dict[str, str]
    prepare: list[str]
    warm: dict[str, list[str]]
    patches: dict[str, Stage]
    whole: dict[str, Stage]
    compare: dict[str, Comparison]
    transformers: dict[str, Any]

    def stages(self) -> list[Stage]:
        return [*self.patches.values(), *self.whole.values()]

    @classmethod
    def read(cls, file: Path, names: list[str] | None = None) -> Plan:
        """The plan; raise Exit.FAILED if it is not one for just these patches."""
        with reading(file, "its head says what it holds", Exit.FAILED):
            data = parse_toml(file.read_text(encoding="utf-8"))
            tables = {
                kind: {n: Stage(n, **table) for n, table in data.get(kind, {}).items()}
                for kind in ("patch", "whole")
            }
            plan = cls(
                file=file,
                environment=data.get("environment", {}),
                prepare=data.get("prepare", {}).get("arguments", []),
                warm={"libraries": [], "tree": [], "models": [], **data.get("warm", {})},
                patches=tables["patch"],
                whole=tables["whole"],
                compare={
                    n: Comparison(n, ROOT / table.pop("script"), **table)
                    for n, table in data.get("compare", {}).items()
                },
                transformers={"tests": [], "needs": {}, **data.get("transformers", {})},
            )
        if names is None:
            return plan
        lacking = [n for n in names if n not in plan.patches or not plan.patches[n].all().tests]
        if lacking:
            raise Exit.FAILED(
                f"{file} has no tests for {', '.join(lacking)}",
                f"add [patch.{lacking[0]}] with imports and tests",
            )
        foreign = [n for n in plan.patches if n not in names]
        if foreign:
            raise Exit.FAILED(
                f"{file} has tests for {', '.join(foreign)}, which the series does not list",
                "remove the table, or correct its name",
            )
        tests = [test for stage in plan.stages() for test in stage.all().tests]
        twice = sorted({test for test in tests if tests.count(test) > 1})
        if twice:
            raise Exit.FAILED(
                f"{file} names {twice[0]} twice", "leave it with the first patch that brings it"
            )
        return dataclasses.replace(plan, patches={n: plan.patches[n] for n in names})


@dataclasses.dataclass
class Result:
    """What came of a stage; `seconds` are wall time, `cpu` that of all its processes."""

    name: str
    tree: str
    count: int
    imports: bool = False
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    problem: str = ""

    @property
    def ran(self) -> int:
        return self.passed + self.failed + self.skipped

    @property
    def ok(self) -> bool:
        # The locked environment has all that the tests need: a skipped one hides something.
        return self.imports and not self.problem and not self.failed and not self.skipped


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `test-model` and `test-each`."""
    parser.add_argument("--stages", default="", help="the plan (tests.toml of the base)")
    parser.add_argument("--patch", default="", help="only the stage of this patch")
    parser.add_argument(
        "--jobs", type=positive, help="stages at a time (one more than processors, 4 at most)"
    )
    if verb == "test-model":
        parser.add_argument("--long", action="store_true", help="only what is long")
        parser.add_argument(
            "--write-counts", action="store_true", help="pin the numbers of tests that ran"
        )


def run(command: Command) -> None:
    """Run the stages and print a table; raise Exit.FAILED if one did not pass."""
    base, paths, args = command.base, command.paths, command.args
    names = patches.names(base)
    plan = Plan.read(Path(args.stages or base.tests_file), names)
    if args.patch and args.patch not in names:
        raise Exit.USAGE(f"no patch {args.patch!r} in {base.series_file}", "see make status")
    model = args.verb == "test-model"
    long = model and args.long
    with locked(paths.state / ".lock", args.wait):
        commits = evidence.require_tree(base, paths)
        require_known_tests(plan, paths)
        begin = time.monotonic()
        runner = Runner(base, paths, plan, f"{args.verb}{'-long' if long else ''}", args)
        of_patch = dict(zip(names, commits, strict=True))
        if not model:
            chosen = [args.patch] if args.patch else names
            results = runner.each([(plan.patches[n].all(), of_patch[n]) for n in chosen])
        elif args.patch:
            results = runner.model([plan.patches[args.patch].all()], [], of_patch)
        else:
            stages = [stage.long() if long else stage.short() for stage in plan.stages()]
            compare = [one for one in plan.compare.values() if one.long == long]
            results = runner.model([s for s in stages if s.tests], compare, of_patch)
        # Still the same tree? A run lasts minutes, and the work tree is the user's.
        evidence.require_tree(base, paths)
        seconds = time.monotonic() - begin
        if model and args.write_counts and not args.patch:
            write_counts(plan, results, long=long)
        report = {
            **evidence.about(base, paths),
            "verb": args.verb,
            "whole": not args.patch,
            "ok": all(result.ok for result in results),
            "seconds": round(seconds),
            "stages": {r.name: dataclasses.asdict(r) for r in results},
        }
        evidence.write(runner.logs / "run.json", report)
    command.report = report
    table(results, command)
    failed = [result.name for result in results if not result.ok]
    command.say(
        f"{sum(r.ran for r in results)} tests in {len(results)} stages, {len(failed)} stages failed"
        f", tree {report['tree'][:12]}, {seconds:.0f} s"
    )
    if failed:
        raise Exit.FAILED(f"failed: {', '.join(failed)}", "their output is above")


def require_known_tests(plan: Plan, paths: Paths) -> None:
    """Every test file that the series adds belongs to a stage, and mutations.toml to this tree."""
    from . import mutants

    added = git(paths.tree, "diff", "--name-only", "--diff-filter=A", "base", "HEAD", "--", "tests")
    named = {test.partition("::")[0] for stage in plan.stages() for test in stage.all().tests}
    unnamed = [
        name
        for name in added.splitlines()
        if Path(name).match("test_*.py") and not {name, *map(str, Path(name).parents)} & named
    ]
    if unnamed:
        raise Exit.FAILED(
            f"no stage of {plan.file} runs {', '.join(unnamed)}",
            "add them to the patch that brings them",
        )
    table = plan.file.with_name("mutations.toml")
    if table.is_file():
        mutants.check_table(mutants.read_table(table), paths.tree)


def fill(text: str, paths: Paths) -> str:
    """Put in what {repository} and {state} stand for."""
    text = text.replace("{repository}", str(ROOT))
    return text.replace("{state}", str(paths.state.resolve()))


def prepare(plan: Plan, paths: Paths, environment: dict[str, str]) -> None:
    """Make what the tests need besides the tree; raise Exit.FAILED if that fails."""
    if plan.prepare:
        command = [str(environments.python(paths)), *(fill(word, paths) for word in plan.prepare)]
        done = subprocess.run(
            command, cwd=ROOT / "scripts", env=environment, stdout=sys.stderr, check=False
        )
        if done.returncode:
            raise Exit.FAILED(
                f"{' '.join(command)} ended with {done.returncode}",
                "its output is above; [prepare] of tests.toml names it",
            )


class Runner:
    """Runs stages with the built environment; its reports go to logs/NAME."""

    def __init__(
        self, base: Base, paths: Paths, plan: Plan, name: str, args: argparse.Namespace
    ) -> None:
        self.base, self.paths, self.plan = base, paths, plan
        # One more than processors: many a stage waits for a server or for processes that end.
        self.jobs = args.jobs or min(MOST_JOBS, len(os.sched_getaffinity(0)) + 1)
        self.out = sys.stderr if args.json else sys.stdout
        self.logs = paths.state / "logs" / name
        self.worktrees = Worktrees(paths)
        self.warm: list[Warm] = []
        given = {name: fill(value, paths) for name, value in plan.environment.items()}
        self.environment = {**engine.environment(paths, cpu=True), **given}
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)

    def model(
        self, stages: list[Stage], compare: list[Comparison], commits: dict[str, str]
    ) -> list[Result]:
        """Every stage in the work tree itself, and the comparisons with the pinned source."""
        tree, libraries = self.paths.tree, self.plan.warm["libraries"]
        with contextlib.ExitStack() as stack:
            if stages:
                modules = [*libraries, *self.plan.warm["tree"]]
                warm = self._warm(stack, modules, tree)
            if compare:
                other = self._warm(stack, libraries, None)
            runs: dict[str, Callable[[], Result]] = {
                s.name: functools.partial(self._stage, warm, s, tree) for s in stages
            }
            for one in compare:
                needed = commits.get(one.needs)
                runs[one.name] = functools.partial(self._compare, other, one, needed)
            return list(self._all(runs).values())

    def each(self, stages: list[tuple[Stage, str]]) -> list[Result]:
        """Every stage on the tree after its patch, in a git worktree of its own."""
        with contextlib.ExitStack() as stack:
            warm = self._warm(stack, self.plan.warm["libraries"], None)

            def one(stage: Stage, commit: str) -> Result:
                with self.worktrees.at(commit) as tree:
                    return self._stage(warm, stage, tree)

            runs = {s.name: functools.partial(one, s, c) for s, c in stages}
            return list(self._all(runs).values())

    def without(self, stages: list[Stage]) -> dict[str, Ended]:
        """Every stage on the pinned source, whose tests are those of the series."""
        with contextlib.ExitStack() as stack:
            warm = self._warm(stack, self.plan.warm["libraries"], None)
            source = stack.enter_context(self.worktrees.at("base"))
            head = git(self.paths.tree, "rev-parse", "HEAD")
            git(source, "checkout", "--quiet", head, "--", "tests")

            def one(stage: Stage) -> Ended:
                log = self.logs / f"{stage.name}.log"
                self.progress.start(stage.name, log.with_suffix(".jsonl"))
                ended = self._pytest(warm, stage, source, log, imports=["vllm"])
                counts = outcomes.count(ended.outcomes)
                words = [f"{number} {name}" for name, number in counts.items() if number]
                self.progress.end(stage.name, ", ".join(words) or "no test ran")
                return ended

            return self._all({s.name: functools.partial(one, s) for s in stages})

    def _warm(self, stack: contextlib.ExitStack, modules: list[str], tree: Path | None) -> Warm:
        warm = start(self.paths, modules, self.environment, self.logs, tree)
        stack.callback(warm.close)
        self.warm.append(warm)
        return warm

    def _all(self, runs: Mapping[str, Callable[[], T]]) -> dict[str, T]:
        prepare(self.plan, self.paths, self.environment)
        self.progress = Progress(len(runs), self.out)
        pool = ThreadPoolExecutor(self.jobs)
        early = {stage.name for stage in self.plan.stages() if stage.early}
        try:
            order = sorted(runs, key=lambda name: name not in early)
            ended = {name: pool.submit(runs[name]) for name in order}
            return {name: ended[name].result() for name in runs}
        except BaseException:
            # Ctrl-C, or the first error: what runs ends now, what waits never starts.
            pool.shutdown(wait=False, cancel_futures=True)
            for warm in self.warm:
                warm.close()
            raise
        finally:
            pool.shutdown()
            self.worktrees.close()
            self.progress.close()

    def _end(self, result: Result, begin: float, logs: Sequence[Ended]) -> Result:
        """Say how a stage ended, with the end of the log of one that failed."""
        if result.imports and not result.problem and result.ran != result.count:
            result.problem = (
                f"{result.ran} tests ran, tests.toml says {result.count}; if the change is meant, "
                f"write count = {result.ran} (or use --write-counts)"
            )
        result.seconds = round(time.monotonic() - begin, 1)
        if result.ok:
            verdict = f"{result.ran} tests, {result.seconds:.0f} s (tree {result.tree})"
        else:
            tails = [f"{ended.tail()}\n(log: {ended.log})" for ended in logs]
            verdict = "\n".join([f"FAILED {result.problem}".rstrip(), *tails])
        self.progress.end(result.name, verdict)
        return result

    def _stage(self, warm: Warm, stage: Stage, tree: Path) -> Result:
        begin = time.monotonic()
        result = Result(
            stage.name, git(tree, "rev-parse", "--short=12", "HEAD^{tree}"), stage.count
        )
        log = self.logs / f"{stage.name}.log"
        self.progress.start(stage.name, log.with_suffix(".jsonl"))
        ended = self._pytest(warm, stage, tree, log, imports=["vllm", *stage.imports])
        result.imports, result.cpu = ended.imported, ended.cpu
        for name, number in outcomes.count(ended.outcomes).items():
            setattr(result, name, number)
        if ended.hung:
            result.problem = f"not done after {stage.seconds} s (seconds in tests.toml)"
        elif ended.status and ended.imported and not result.failed:
            # A collection error or a crash leaves no failed test behind.
            result.failed = 1
        return self._end(result, begin, [ended])

    def _pytest(
        self, warm: Warm, stage: Stage, tree: Path, log: Path, *, imports: list[str]
    ) -> Ended:
        tests = [fill(test, self.paths) for test in stage.tests]
        models = self.plan.warm["models"]
        return warm.run(tree, log, stage.seconds, "-rs", *tests, imports=imports, models=models)

    def _compare(self, warm: Warm, one: Comparison, needed: str | None) -> Result:
        """A script without and with the series; both must give the same answers."""
        begin = time.monotonic()
        head = git(self.paths.tree, "rev-parse", "--short=12", "HEAD^{tree}")
        result = Result(one.name, head, one.count)
        folder = self.logs / one.name
        folder.mkdir()
        self.progress.start(one.name, folder)
        answers: list[dict[str, Any]] = []
        with self.worktrees.at("base") as plain:
            if needed:
                git(plain, "cherry-pick", "--no-commit", needed)
            for name, tree in (("without", plain), ("with", self.paths.tree)):
                out = folder / f"{name}.json"
                log, places = folder / f"{name}.log", (str(folder.resolve()), str(out.resolve()))
                ended = warm.run(tree, log, one.seconds, *places, script=one.script)
                if ended.hung:
                    result.problem = f"{name} the series: not done after {one.seconds} s"
                elif ended.status:
                    result.problem = f"{name} the series: ended with {ended.status}"
                else:
                    found = json.loads(out.read_text(encoding="utf-8"))
                    if not Path(found["vllm"]).resolve().is_relative_to(tree.resolve()):
                        result.problem = f"{name} the series: vllm came from {found['vllm']}"
                    answers.append(found["answers"])
                if result.problem:
                    return self._end(result, begin, [ended])
        result.imports = True
        different = [m for m, given in answers[0].items() if answers[1].get(m) != given]
        result.passed, result.failed = len(answers[0]) - len(different), len(different)
        if different:
            result.problem = f"different: {', '.join(different)}; see {folder}"
        return self._end(result, begin, [])


def table(results: list[Result], command: Command) -> None:
    """One line a stage."""
    width = max((len(result.name) for result in results), default=5)

    def line(name: str, tree: str, *cells: object) -> str:
        return " ".join([f"{name:{width}}  {tree:12}", *(f"{cell:>7}" for cell in cells)])

    command.say(line("stage", "tree", "import", "passed", "failed", "skipped", "seconds"))
    for r in results:
        imports, seconds = "ok" if r.imports else "FAILS", f"{r.seconds:.0f}"
        row = line(r.name, r.tree, imports, r.passed, r.failed, r.skipped, seconds)
        command.say(row + ("" if r.ok else "  FAILED"))


def write_counts(plan: Plan, results: list[Result], *, long: bool) -> None:
    """Pin the numbers of tests of the stages that passed but for their number."""
    text = plan.file.read_text(encoding="utf-8")
    for result in results:
        if result.failed or result.skipped or not result.imports or result.ran == result.count:
            continue
        key = "long_count" if long and result.name not in plan.compare else "count"
        name = re.escape(result.name)
        section = re.search(rf"^\[\w+\.{name}\]\n(?:(?!\[\w).*\n)*", text, re.MULTILINE)
        assert section is not None, result.name
        table = re.sub(rf"^{key} = .*\n", "", section[0], flags=re.MULTILINE)
        head, _, rest = table.partition("\n")
        text = text.replace(section[0], f"{head}\n{key} = {result.ran}\n{rest}")
    write_atomic(plan.file, text.encode())
