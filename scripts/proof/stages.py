# SPDX-License-Identifier: Apache-2.0
"""`test-model` and `test-each`: the tests that the patches bring, in vLLM's own tests tree."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from series import engine, kernels, patches
from series import env as environments
from series.command import Command
from series.config import ROOT, Paths, parse_toml
from series.errors import Exit, SeriesError
from series.git import attempt, git
from series.state import locked

# Each compares stock models without and with the series. The patch goes into both trees: vLLM
# 0.19.1 cannot draft on a CPU.
STOCK = {
    "stock models": (ROOT / "scripts/proof/unchanged/models.py", ""),
    "stock drafts": (
        ROOT / "scripts/proof/unchanged/drafts.py",
        "run-speculative-decoding-on-the-cpu",
    ),
}
NO_IMPORT = 97
# Each has an engine or two in its memory.
MOST_JOBS = 4
# One process for the imports and the tests: importing vLLM alone takes 10 s.
RUN = f"""
import importlib, pathlib, sys, traceback
tree, modules, *arguments = sys.argv[1:]
try:
    for name in modules.split(","):
        module = importlib.import_module(name)
        assert pathlib.Path(module.__file__).resolve().is_relative_to(tree), module.__file__
except Exception:
    traceback.print_exc()
    sys.exit({NO_IMPORT})
import pytest
sys.exit(pytest.main(arguments))
"""


@dataclasses.dataclass(frozen=True)
class Stage:
    """What is run on the tree after one patch (or, for stock, after the last)."""

    name: str
    imports: list[str]
    tests: list[str]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The contents of a base's tests.toml."""

    environment: dict[str, str]
    prepare: list[str]
    stock: Stage
    repository: Stage
    patches: dict[str, Stage]

    @classmethod
    def read(cls, file: Path, names: list[str]) -> Plan:
        """The plan for a series of patches; raise Exit.FAILED if it lacks one of them."""
        try:
            data: dict[str, Any] = parse_toml(file.read_text(encoding="utf-8"))
            environment = {str(k): str(v) for k, v in data.get("environment", {}).items()}
            prepare = [str(a) for a in data.get("prepare", {}).get("arguments", [])]
            stock = Stage("stock", **data.get("stock", {"imports": [], "tests": []}))
            own = Stage("repository", **data.get("repository", {"imports": [], "tests": []}))
            stages = {n: Stage(n, **table) for n, table in data.get("patch", {}).items()}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise SeriesError(
                Exit.FAILED, f"{file} cannot be read: {error}", hint="its head says what it holds"
            ) from error
        lacking = [n for n in names if n not in stages or not stages[n].tests]
        if lacking:
            raise SeriesError(
                Exit.FAILED,
                f"{file} has no tests for {', '.join(lacking)}",
                hint=f"add [patch.{lacking[0]}] with imports and tests",
            )
        return cls(environment, prepare, stock, own, {n: stages[n] for n in names})


@dataclasses.dataclass
class Result:
    """What came of a stage; seconds are wall time."""

    stage: str
    tree: str
    imports: bool = False
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        # The locked environment has all that the tests need: a skipped one hides something.
        return self.imports and self.passed > 0 and not self.failed and not self.skipped


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `test-model` and `test-each`."""
    parser.add_argument("--stages", default="", help="the plan (tests.toml of the base)")
    parser.add_argument("--patch", default="", help="only the stage of this patch")
    parser.add_argument("--jobs", type=int, help="stages at a time (one a processor, 4 at most)")


def run(command: Command) -> Exit:
    """Run the stages and print a table; raise Exit.FAILED if one did not pass."""
    base, paths, args = command.base, command.paths, command.args
    names = patches.names(base)
    plan = Plan.read(Path(args.stages or base.tests_file), names)
    if args.patch and args.patch not in names:
        raise SeriesError(
            Exit.USAGE, f"no patch {args.patch!r} in {base.series_file}", hint="see make status"
        )
    if not environments.read_stamp(paths).get("checked"):
        raise SeriesError(Exit.BUILD, "the environment is not built", hint="run make build")
    commits = git(paths.tree, "rev-list", "--reverse", "base..HEAD").split()
    if len(commits) != len(names):
        raise SeriesError(
            Exit.DIRTY,
            f"the work tree has {len(commits)} commits, {base.series_file} lists {len(names)}",
            hint="run make apply, or make export if the commits are yours",
        )
    with locked(paths.state / ".lock", args.wait):
        jobs = args.jobs or min(MOST_JOBS, os.cpu_count() or 1)
        runner = Runner(paths, plan, args.verb, jobs, quiet=args.json)
        runner.prepare(plan.prepare)
        if args.verb == "test-model":
            chosen = [plan.patches[n] for n in names if args.patch in ("", n)]
            if not args.patch:
                chosen += [stage for stage in (plan.stock, plan.repository) if stage.tests]
            # A base that does without the patch needs nothing in its place.
            needed = dict(zip(names, commits, strict=True))
            stock = {n: (script, needed.get(patch)) for n, (script, patch) in STOCK.items()}
            results = runner.model(chosen, stock if not args.patch else {})
        else:
            after = [(n, c) for n, c in zip(names, commits, strict=True) if args.patch in ("", n)]
            results = runner.each([(plan.patches[n], commit) for n, commit in after])
    runner.table(results)
    failed = [result.stage for result in results if not result.ok]
    if failed:
        raise SeriesError(Exit.FAILED, f"failed: {', '.join(failed)}", hint="their output is above")
    return Exit.OK


class Runner:
    """Runs stages with the built environment."""

    def __init__(self, paths: Paths, plan: Plan, command: str, jobs: int, *, quiet: bool) -> None:
        self.paths = paths
        self.jobs = jobs
        # `git worktree prune` removes what an `add` beside it has only begun.
        self._worktrees = threading.Lock()
        self.logs = paths.state / "logs" / command
        self.out = sys.stderr if quiet else sys.stdout
        given = {name: self._fill(value) for name, value in plan.environment.items()}
        self.environment = {**engine.environment(paths), **given}

    def _fill(self, text: str) -> str:
        places = {"{repository}": str(ROOT), "{state}": str(self.paths.state.resolve())}
        for name, place in places.items():
            text = text.replace(name, place)
        return text

    def prepare(self, arguments: list[str]) -> None:
        """Make what the tests need besides the tree; raise Exit.FAILED if that fails."""
        if not arguments:
            return
        command = [str(environments.python(self.paths)), *map(self._fill, arguments)]
        done = subprocess.run(
            command, cwd=ROOT / "scripts", env=self.environment, stdout=self.out, check=False
        )
        if done.returncode:
            raise SeriesError(
                Exit.FAILED,
                f"{' '.join(command)} ended with {done.returncode}",
                hint="its output is above; [prepare] of tests.toml names it",
            )

    def model(
        self, stages: list[Stage], stock: Mapping[str, tuple[Path, str | None]]
    ) -> list[Result]:
        """Every stage in the work tree itself; a test that several name is run for the first."""
        known: set[str] = set()
        runs = []
        for stage in stages:
            tests = [test for test in stage.tests if test not in known]
            known.update(tests)
            if tests:
                runs.append(dataclasses.replace(stage, tests=tests))
        tree = self.paths.tree
        work = [functools.partial(self._stage, one, tree, "HEAD") for one in runs]
        compared = [functools.partial(self.stock, n, *arguments) for n, arguments in stock.items()]
        return self._all([*work, *compared])

    def each(self, stages: list[tuple[Stage, str]]) -> list[Result]:
        """Every stage on the tree after its patch, in a git worktree of its own."""

        def one(stage: Stage, commit: str) -> Result:
            with self._worktree(stage.name, commit) as tree:
                return self._stage(stage, tree, commit)

        return self._all([functools.partial(one, *each) for each in stages])

    def _all(self, runs: Sequence[Callable[[], Result]]) -> list[Result]:
        # Processes of their own, side by side: engines leave state and memory behind.
        shutil.rmtree(self.logs, ignore_errors=True)
        self.logs.mkdir(parents=True)
        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(lambda run: run(), runs))

    def stock(self, label: str, script: Path, needed: str | None) -> Result:
        """A script without and with the series; both must give the same answers.

        The tree without the series has the commit `needed` all the same.
        """
        start = time.monotonic()
        head = git(self.paths.tree, "rev-parse", "--short=12", "HEAD^{tree}")
        result, answers = Result(label, head), []
        folder = self.paths.state / label.replace(" ", "-")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with self._worktree(folder.name, "base") as plain:
            if needed:
                git(plain, "cherry-pick", "--no-commit", needed)
            for name, tree in (("without", plain), ("with", self.paths.tree)):
                answer, log = folder / f"{name}.json", folder / f"{name}.log"
                with log.open("w") as lines:
                    done = subprocess.run(
                        [
                            str(environments.python(self.paths)),
                            str(script),
                            str(folder),
                            str(answer),
                        ],
                        env={**self.environment, "PYTHONPATH": str(tree.resolve())},
                        stdout=lines,
                        stderr=subprocess.STDOUT,
                        check=False,
                    )
                if done.returncode:
                    print(f"{script.name} failed {name} the series: {log}", file=self.out)
                    result.failed += 1
                    break
                answers.append(json.loads(answer.read_text(encoding="utf-8")))
        result.imports = len(answers) == 2
        if result.imports:
            for model, expected in answers[0].items():
                same = answers[1].get(model) == expected
                print(f"{model}: {'same' if same else f'DIFFERENT, see {folder}'}", file=self.out)
                result.passed += same
                result.failed += not same
        result.seconds = time.monotonic() - start
        print(
            f"== {result.stage}, without and with the series: {result.seconds:.0f} s", file=self.out
        )
        return result

    @contextlib.contextmanager
    def _worktree(self, name: str, commit: str) -> Iterator[Path]:
        """The tree of a commit, with the version and the kernels of the built one."""
        tree, folder = self.paths.tree, self.paths.state / "each" / name
        with self._worktrees:
            self._remove(folder)
            git(tree, "worktree", "add", "--quiet", "--detach", "--force", folder, commit)
        try:
            shutil.copyfile(tree / "vllm/_version.py", folder / "vllm/_version.py")
            links = {
                name: (tree / name).resolve()
                for name in git(tree, "ls-files", "--others", "-z", "vllm").split("\0")
                if name and (name.endswith(".so") or (tree / name).is_symlink())
            }
            kernels.link(folder, links, self.paths.kernels)
            yield folder
        finally:
            with self._worktrees:
                self._remove(folder)

    def _remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        attempt(self.paths.tree, "worktree", "prune")

    def _stage(self, stage: Stage, tree: Path, commit: str) -> Result:
        start = time.monotonic()
        result = Result(stage.name, git(tree, "rev-parse", "--short=12", f"{commit}^{{tree}}"))
        # The worktree's vllm and tests come before the installed ones.
        env = {**self.environment, "PYTHONPATH": str(tree)}
        python = str(environments.python(self.paths))
        report, log = self.logs / f"{stage.name}.xml", self.logs / f"{stage.name}.log"
        with log.open("w") as lines:
            done = subprocess.run(
                [
                    *(python, "-c", RUN, str(tree.resolve()), ",".join(["vllm", *stage.imports])),
                    *("-q", "-rs", "-p", "no:cacheprovider", "--rootdir", str(tree)),
                    # The imports came first, so pytest meets its plugins' modules already loaded.
                    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
                    *(f"--junitxml={report}", *map(self._fill, stage.tests)),
                ],
                cwd=tree,
                env=env,
                stdout=lines,
                stderr=subprocess.STDOUT,
                check=False,
            )
        result.imports = done.returncode != NO_IMPORT
        if result.imports:
            _count(result, report)
            # A collection error or a crash leaves no failed test behind.
            if done.returncode and not result.failed:
                result.failed = 1
        result.seconds = time.monotonic() - start
        verdict = f"{result.seconds:.0f} s" if result.ok else f"FAILED\n{log.read_text()}"
        print(f"== {stage.name} (tree {result.tree}): {verdict}", file=self.out, flush=True)
        return result

    def table(self, results: list[Result]) -> None:
        """One line a stage."""
        width = max(len(result.stage) for result in results) if results else 5
        head = ("tree", "import", "passed", "failed", "skipped", "seconds")
        print(f"{'stage':{width}}  {head[0]:12}", *(f"{h:>7}" for h in head[1:]), file=self.out)
        for r in results:
            cells = (
                "ok" if r.imports else "FAILS",
                r.passed,
                r.failed,
                r.skipped,
                f"{r.seconds:.0f}",
            )
            print(
                f"{r.stage:{width}}  {r.tree:12}",
                *(f"{cell:>7}" for cell in cells),
                "" if r.ok else " FAILED",
                file=self.out,
                flush=True,
            )


def _count(result: Result, report: Path) -> None:
    """Add pytest's own counts; a run that crashed wrote none."""
    if not report.is_file():
        return
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total = int(suite.get("tests", 0))
        bad = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped = int(suite.get("skipped", 0))
        result.failed += bad
        result.skipped += skipped
        result.passed += total - bad - skipped
