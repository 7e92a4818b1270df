# SPDX-License-Identifier: Apache-2.0
"""Plants errors in the patched model, one at a time, and asks a named test to notice each.

Runs in the built environment: `python ci/mutate.py --tree TREE`. The work tree is only read:
the errors go into a copy of it. `ci/mutations.toml` says what is planted, where and which test
has to fail; the outcome is written to `docs/mutations.md`. Every named test is run first without
an error, since a test that fails anyway notices nothing. `make mutate` runs it. Outcomes are kept
beside the work tree, each for as long as its entry, the file that it changes and the file with its
test stay as they were: a run that was cut off goes on, and `--fresh` begins again.

Exit status: 0 if every error was noticed, 1 if not, 2 if the table does not fit the tree.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

REPOSITORY = Path(__file__).resolve().parents[2]
TABLE = REPOSITORY / "patches" / "v0.19.1" / "mutations.toml"
REPORT = REPOSITORY / "docs" / "evidence" / "mutations.md"
# What the tests need of the work tree; the kernels lie in vllm/.
TREE_PARTS = ("vllm", "tests", "examples", "pyproject.toml")
SECONDS_PER_TEST = 600


class TableError(Exception):
    """The table and the files do not fit."""


@dataclass
class Mutation:
    """One planted error: `old`, which occurs exactly once in `file`, becomes `new`."""

    name: str
    error: str
    file: str
    old: str
    new: str
    test: str


@dataclass
class Outcome:
    """What became of one mutation: whether the test failed, and its seconds."""

    mutation: Mutation
    caught: bool
    seconds: float


def read_table(path: Path) -> list[Mutation]:
    entries = tomllib.loads(path.read_text())["mutation"]
    mutations = [Mutation(**entry) for entry in entries]
    names = [mutation.name for mutation in mutations]
    if len(set(names)) != len(names):
        raise TableError(f"a name occurs twice in {path.name}")
    return mutations


def mutate(text: str, mutation: Mutation) -> str:
    count = text.count(mutation.old)
    if count != 1:
        raise TableError(
            f"{mutation.name}: the text to replace occurs {count} times in {mutation.file}"
        )
    return text.replace(mutation.old, mutation.new)


def copy_parts(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    for part in parts:
        if (source / part).is_dir():
            ignore = shutil.ignore_patterns("__pycache__", ".*_cache")
            shutil.copytree(source / part, target / part, ignore=ignore)
        elif (source / part).exists():
            (target / part).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / part, target / part)


class Copy:
    """A copy of the work tree, to plant errors in."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.root = folder / "tree"
        copy_parts(tree, self.root, TREE_PARTS)
        self.environment = os.environ | {
            "PYTHONPATH": str(self.root),
            # Two versions of a file may have one size and one time stamp.
            "PYTHONDONTWRITEBYTECODE": "1",
            # vLLM's cache of inspected models stays with the copy.
            "VLLM_CACHE_ROOT": str(folder / "cache"),
            "TORCHDYNAMO_DISABLE": "1",
            "OMP_NUM_THREADS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRITON_INTERPRET": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "EXAONE4_5_TINY": str(REPOSITORY / "scripts" / "models" / "tiny"),
            # `make test-model` writes them.
            "EXAONE4_5_TINY_QUESTIONS": str(tree.resolve().parent / "questions"),
        }

    def run_test(self, tests: list[str]) -> tuple[int, str]:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, "--tb=line", *tests],
            cwd=self.root,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS_PER_TEST,
            check=False,
        )
        return done.returncode, done.stdout

    def try_mutation(self, mutation: Mutation) -> Outcome:
        path = self.root / mutation.file
        original = path.read_text()
        path.write_text(mutate(original, mutation))
        started = time.perf_counter()
        try:
            status, output = self.run_test([mutation.test])
        finally:
            path.write_text(original)
        seconds = time.perf_counter() - started
        if status not in (0, 1):
            # An error that keeps the test from being collected is not noticed by the test.
            print(f"{mutation.name}: pytest ended with {status}: {output[-300:]}", file=sys.stderr)
        return Outcome(mutation, status == 1, seconds)


def check_table(mutations: list[Mutation], tree: Path) -> None:
    for mutation in mutations:
        path = tree / mutation.file
        if not path.is_file():
            raise TableError(f"{mutation.name}: there is no {mutation.file}")
        mutate(path.read_text(), mutation)


def check_tests_pass(copy: Copy, mutations: list[Mutation]) -> None:
    status, output = copy.run_test(sorted({mutation.test for mutation in mutations}))
    if status != 0:
        raise TableError(f"the tests fail without any error planted:\n{output[-3000:]}")


def write_report(outcomes: list[Outcome], path: Path) -> None:
    caught = sum(outcome.caught for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    lines = [
        "# Planted errors and the tests that notice them",
        "",
        "Written by `ci/mutate.py` from `ci/mutations.toml`; do not edit. Each error is planted",
        "alone, in a copy of the patched tree, and the named test is run; without an error all of",
        f"these tests pass. {caught} of {len(outcomes)} were noticed, in {seconds:.0f} s on "
        f"{os.cpu_count()} cores.",
        "",
        "| error | planted in | noticed by |",
        "| --- | --- | --- |",
    ]
    for outcome in outcomes:
        m = outcome.mutation
        verdict = f"`{m.test.split('/')[-1]}`" if outcome.caught else "**nothing**"
        lines.append(f"| {m.error} | `{Path(m.file).name}` | {verdict} |")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


class Record:
    """What each mutation gave, one JSON object a line.

    A mutation is known by its own content, that of the file it changes, and that of its test's.
    """

    def __init__(self, path: Path, tree: Path) -> None:
        self.path = path
        self.tree = tree
        lines = path.read_text().splitlines() if path.exists() else []
        self.entries: dict[str, dict[str, float | bool]] = {}
        for line in lines:
            entry = json.loads(line)
            self.entries[entry.pop("key")] = entry

    def key(self, mutation: Mutation) -> str:
        files = (mutation.file, mutation.test.partition("::")[0])
        contents = [(self.tree / file).read_text() for file in files]
        return hashlib.sha256(repr((astuple(mutation), contents)).encode()).hexdigest()

    def get(self, mutation: Mutation) -> Outcome | None:
        entry = self.entries.get(self.key(mutation))
        if entry is None:
            return None
        return Outcome(mutation, bool(entry["caught"]), float(entry["seconds"]))

    def add(self, outcome: Outcome) -> None:
        entry = {"key": self.key(outcome.mutation), "name": outcome.mutation.name}
        with self.path.open("a") as file:
            file.write(json.dumps(entry | {"caught": outcome.caught, "seconds": outcome.seconds}))
            file.write("\n")


def try_mutations(
    mutations: list[Mutation], tree: Path, jobs: int, record: Record
) -> list[Outcome]:
    """Outcomes in the order of `mutations`; those on record are not tried again."""
    outcomes = {m.name: known for m in mutations if (known := record.get(m))}
    todo = [mutation for mutation in mutations if mutation.name not in outcomes]
    if outcomes:
        print(f"{len(outcomes)} of {len(mutations)} are in {record.path}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        files = sorted({mutation.test.partition("::")[0] for mutation in todo})
        for job in range(min(jobs, len(files))):
            copies.put(Copy(tree, Path(folder) / str(job)))

        def check(file: str) -> None:
            copy = copies.get()
            try:
                check_tests_pass(copy, [m for m in todo if m.test.partition("::")[0] == file])
            finally:
                copies.put(copy)

        def attempt(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                return copy.try_mutation(mutation)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(jobs) as pool:
            # A process for each file: an engine and the encoder's tests set up the same globals.
            list(pool.map(check, files))
            for outcome in pool.map(attempt, todo):
                record.add(outcome)
                outcomes[outcome.mutation.name] = outcome
                verdict = "noticed" if outcome.caught else "NOT NOTICED"
                print(f"{verdict:12}{outcome.mutation.name:40}{outcome.seconds:5.0f} s", flush=True)
    return [outcomes[mutation.name] for mutation in mutations]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tree", type=Path, required=True, help="the patched work tree")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these; writes no report")
    parser.add_argument("--fresh", action="store_true", help="forget what is on record")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at a time")
    args = parser.parse_args()
    try:
        mutations = read_table(TABLE)
        if args.only:
            unknown = set(args.only) - {mutation.name for mutation in mutations}
            if unknown:
                raise TableError(f"{TABLE.name} has no {', '.join(sorted(unknown))}")
            mutations = [mutation for mutation in mutations if mutation.name in args.only]
        check_table(mutations, args.tree)
        kept = args.tree.resolve().parent / "mutations.jsonl"
        if args.fresh:
            kept.unlink(missing_ok=True)
        record = Record(kept, args.tree)
        outcomes = try_mutations(mutations, args.tree, args.jobs, record)
    except TableError as error:
        print(f"error: {error}; mend {TABLE.name} or the tree", file=sys.stderr)
        return 2
    if not args.only:
        write_report(outcomes, REPORT)
    return 0 if all(outcome.caught for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
