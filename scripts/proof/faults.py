# SPDX-License-Identifier: Apache-2.0
"""`faults`: the tool and the server on a machine that fails them, and the page of it.

Each part replaces its share of docs/evidence/data/faults.json:

- `toy`: `ci/tests/tool/test_machine.py`, with ten kills a verb on a generated upstream, and with
  what needs root: a small disk, a network of its own.
- `base`: kills of the verbs of BASES on the base itself, in a checkout and a build folder apart.
- `server`: `tiny.server_faults`, in the engine's environment.

A verb to be killed needs a row in VERBS: what is removed before it, and what it has to give again.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from bundle import install
from series import engine, tools
from series import env as environments
from series.command import Command
from series.config import ROOT, Base, Paths
from series.errors import Exit
from series.git import git
from series.state import digest, sha256

from . import evidence, outcomes


def data_file(base: Base) -> Path:
    return evidence.DATA / base.name / "faults.json"


PARTS = ("toy", "base", "server")
TOY_KILLS = 10
# Bytes of a wheel that is downloaded again for each kill of `bundle`.
SMALL = 1_000_000
SEED = 11
PYTEST = """
import pathlib, sys, pytest
from proof.outcomes import Recorder
sys.exit(pytest.main(sys.argv[2:], plugins=[Recorder(pathlib.Path(sys.argv[1]))]))
"""


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `faults`."""
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one")


# ---- kills on the base itself ----


class Place:
    """A checkout and a build folder that may be destroyed."""

    def __init__(self, command: Command) -> None:
        self.folder = command.paths.build / "faults"
        self.checkout = self.folder / "checkout"
        self.paths = Paths(self.folder / "build", command.args.base)
        self.base = command.base
        archives = command.fetch().parent
        self.options = ["--base", self.base.name, "--build-dir", str(self.paths.build)]
        self.options += ["--sources", str(archives)]
        shutil.rmtree(self.checkout, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        git(self.folder, "clone", "--quiet", "--shared", ROOT, self.checkout)
        caches = {
            "UV_CACHE_DIR": tools.caches(command.paths)["UV_CACHE_DIR"],
            "KERNEL_CACHE": str(command.paths.kernels),
        }
        own = {"SERIES_ROOT": str(self.checkout), "PYTHONPATH": str(ROOT / "scripts")}
        self.env = {**os.environ, **caches, **own}

    def start(self, verb: str) -> subprocess.Popen[bytes]:
        more = ["--device", "cpu"] if verb in ("build", "bundle") else []
        return subprocess.Popen(
            [sys.executable, "-B", "-m", "series", verb, *self.options, *more],
            cwd=self.checkout,
            env=self.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, verb: str, seconds: float | None = None) -> tuple[int, str]:
        """Run a verb to its end, or kill its whole process group; its status and errors."""
        with self.start(verb) as process:
            try:
                said = process.communicate(timeout=seconds)[1]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                said = process.communicate()[1]
        return process.returncode, said.decode("utf-8", "replace")

    def folder_of_series(self) -> Path:
        return self.checkout / "patches" / self.base.name

    def generated(self) -> list[Path]:
        return [self.folder_of_series() / "series.lock", self.checkout / "patches/README.md"]

    def series(self) -> dict[str, str]:
        """The series as it lies in the checkout."""
        folder = self.folder_of_series()
        files = [*folder.glob("*.patch"), folder / "series", folder / "series.lock"]
        return {path.name: sha256(path) for path in sorted(files) if path.is_file()}

    def environment(self) -> dict[str, str]:
        """The marker of the environment, the kernels, and what is installed."""
        kernels = self.paths.tree.glob("vllm/*.so")
        found = {path.name: sha256(path) for path in sorted(kernels)}
        stamp = environments.stamp_file(self.paths)
        found["marker"] = stamp.read_text() if stamp.is_file() else ""
        installed = self.paths.env.glob("lib/python3*/site-packages/*.dist-info/RECORD")
        rows = "".join(f"{path.parent.name} {sha256(path)}\n" for path in sorted(installed))
        found["packages"] = digest(rows.encode())
        return found

    def bundle(self) -> dict[str, str]:
        """The sums of the bundle, which has to be what they say, and what else is left of it."""
        (folder,) = (self.paths.state / "bundle").iterdir()
        install.compare(folder)
        left = [*self.paths.state.iterdir(), *self.wheels()]
        return {folder.name: sha256(folder / install.SUMS), "left": " ".join(_names(left))}

    def wheels(self) -> list[Path]:
        return [*(self.paths.downloads / "wheels").glob("*")]

    def tree(self) -> dict[str, str]:
        words = ("HEAD", "HEAD^{tree}", "base^{tree}")
        return {
            "commits": git(self.paths.tree, "rev-parse", *words),
            "edits": git(self.paths.tree, "status", "--porcelain"),
            "names": " ".join(_names(self.paths.state.iterdir())),
        }


def _names(paths: Iterable[Path]) -> list[str]:
    names = sorted(path.name for path in paths)
    return [name for name in names if name not in ("env", "logs", "cache")]


class Kill(NamedTuple):
    """How often a verb is killed, what goes before it, and what it has to give again."""

    times: int
    remove: Callable[[Place], list[Path]]
    state: Callable[[Place], dict[str, str]]


VERBS = {
    "fetch": Kill(
        3,
        lambda place: [place.paths.downloads],
        lambda place: {path.name: sha256(path) for path in place.paths.downloads.glob("*.gz")},
    ),
    "apply": Kill(3, lambda place: [place.paths.tree], lambda place: place.tree()),
    "export": Kill(
        2,
        lambda place: [*place.folder_of_series().glob("*.patch"), *place.generated()],
        lambda place: place.series() | place.tree(),
    ),
    "build": Kill(2, lambda place: [place.paths.env], lambda place: place.environment()),
    "bundle": Kill(
        2,
        # What is large is fetched once.
        lambda place: [
            place.paths.state / "bundle",
            *(file for file in place.wheels() if file.stat().st_size < SMALL),
        ],
        lambda place: place.bundle(),
    ),
}


def kill_on_base(command: Command) -> list[dict[str, Any]]:
    """The kills of VERBS, one row each."""
    place = Place(command)
    rows = []
    for verb, kill in VERBS.items():
        status, said = place.run("apply")
        if status:
            raise Exit.FAILED(f"apply fails without a kill: {said.strip()}", "see there")

        def prepare(kill: Kill = kill) -> None:
            for path in kill.remove(place):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)

        prepare()
        started = time.monotonic()
        status, said = place.run(verb)
        if status:
            raise Exit.FAILED(f"{verb} fails without a kill: {said.strip()}", "see there")
        seconds = time.monotonic() - started
        want = kill.state(place)
        points = random.Random(f"{SEED} {verb}")
        killed = 0
        while killed < kill.times:
            at = points.uniform(0.05, 0.95) * seconds
            prepare()
            if place.run(verb, at)[0] != -signal.SIGKILL:
                # It was quicker than the first time.
                seconds *= 0.9
                continue
            killed += 1
            status, said = place.run(verb)
            outcome = "same" if not status and kill.state(place) == want else "other"
            row = {"base": place.base.name, "verb": verb, "at": round(at / seconds, 3)}
            rows.append({**row, "outcome": f"failed: {said.strip()}" if status else outcome})
            command.say(json.dumps(rows[-1]))
    if git(place.checkout, "status", "--porcelain"):
        raise Exit.FAILED(f"{place.checkout} is not as it was committed", "see git diff there")
    return rows


# ---- the other parts ----


def run_tests(command: Command) -> dict[str, Any]:
    """The kills and tests of `test_machine.py`, as root."""
    if os.geteuid():
        raise Exit.USAGE("a small disk and a network of its own need root", "run it as root")
    folder = command.paths.build / "faults"
    folder.mkdir(parents=True, exist_ok=True)
    kills, results = folder / "kills.jsonl", folder / "tests.jsonl"
    kills.unlink(missing_ok=True)
    python = tools.make(command.paths, "dev") / "bin/python"
    done = subprocess.run(
        [
            *(python, "-c", PYTEST, results),
            *("-q", "-p", "no:cacheprovider", "ci/tests/tool/test_machine.py"),
        ],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "scripts"),
            "FAULTS_KILLS": str(TOY_KILLS),
            "FAULTS_REPORT": str(kills),
        },
        check=False,
    )
    rows = [json.loads(line) for line in kills.read_text().splitlines()]
    tests: dict[str, str] = {}
    for one in outcomes.read(results):
        name = one.node.partition("::")[2].partition("[")[0]
        tests[name] = max(tests.get(name, "passed"), one.outcome, key=outcomes.ORDER.index)
    if done.returncode:
        command.say(f"pytest ended with status {done.returncode}")
    return {"toy": rows, "tests": tests}


def run_servers(command: Command) -> dict[str, Any]:
    evidence.require_tree(command.base, command.paths)
    out = command.paths.build / "faults/server.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [environments.python(command.paths), "-m", "tiny.server_faults", "--out", out],
        env=engine.environment(command.paths, cpu=True),
        check=False,
    )
    if done.returncode:
        raise Exit.FAILED("a server could not be asked", "its output is above")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def wrongs(data: dict[str, Any]) -> list[str]:
    """What of the data is not as it should be."""
    kills = [*data.get("toy", []), *data.get("kills", [])]
    found = [f"{k['base']} {k['verb']} at {k['at']}" for k in kills if k["outcome"] != "same"]
    found += [name for name, outcome in data.get("tests", {}).items() if outcome != "passed"]
    for name, row in data.get("server", {}).items():
        if not _is_as_it_should(row, asked="SIGTERM" in name):
            found.append(name)
    return found


def _is_as_it_should(row: dict[str, Any], *, asked: bool) -> bool:
    """Whether a server ended as one that was `asked` to, or as one that failed."""
    if asked:
        # Health never says that it is well, but for a moment before the signal is heard.
        well = row["health"].index("503") <= 1 if "503" in row["health"] else False
        requests = (set(row["requests"]), row["late request"]) == ({"whole"}, "status 503")
        return row["status"] == 0 and well and requests
    soon = max(row["seconds"], row["all processes gone after"]) <= 10
    same = row.get("answers after a restart", "equal") == "equal"
    return row["status"] in (1, -9) and soon and same and "whole" not in row["requests"]


def run(command: Command) -> None:
    """Write the data of the parts; raise if anything did not end as it should."""
    parts = command.args.part or PARTS
    found: dict[str, Any] = {}
    if "toy" in parts:
        found |= run_tests(command)
    if "base" in parts:
        found["kills"] = kill_on_base(command)
    if "server" in parts:
        found["server"] = run_servers(command)
        found["server tree"] = evidence.tree_of(command.base)
    file = data_file(command.base)
    data = {**evidence.load(file), **found, **evidence.about(command.base, command.paths)}
    evidence.write(file, data)
    command.report = {"wrong": wrongs(data)}
    if wrong := wrongs(data):
        raise Exit.FAILED(f"not as it should be: {', '.join(wrong)}", f"see {file}")
    command.say(f"wrote {file}")


# ---- the page ----

HEAD = """\
# Faults of the machine, and what becomes of them

`make faults` (as root, half an hour) kills the tool and servers, fills disks and takes the network
away. `make test-tool` has the same tests with two kills a verb, without what needs root.
"""
ROWS = (
    (
        "full disk",
        "`fetch`, `apply` and `export` on a disk with 0 to 200 KB left, then with room",
        "one line, status 1, the disk is named and no patch; then the same tree and bytes",
        "test_full_disk",
    ),
    (
        "quota, limit of file sizes",
        "the same verbs when no file can grow",
        "the same",
        "test_files_that_cannot_grow",
    ),
    (
        "full disk in a download",
        "the file stops growing at half",
        "ends at once; it was tried five times as if the network had failed",
        "test_a_download_to_a_full_disk_is_not_tried_again",
    ),
    (
        "full disk in a build",
        "uv or the compiler has no room",
        "status 7, the disk is named",
        "test_a_build_on_a_full_disk",
    ),
    (
        "git killed (memory)",
        "signals 9 and 25 while it applies",
        "status 1, the signal is named and no patch",
        "test_a_git_that_was_killed_says_nothing_of_a_patch",
    ),
    (
        "no network",
        "a network namespace without one",
        "`fetch` without SOURCES= is status 3; every other verb works",
        "test_without_a_network",
    ),
    (
        "two at once",
        "two `fetch`",
        "one download; the other waits",
        "test_two_fetches_at_once_download_once",
    ),
    (
        "times of files",
        "all files of the year 2039, and of 1989",
        "nothing is done again, no edit is overlooked",
        "test_times_of_files_decide_nothing",
    ),
    (
        "clock set back",
        "the tool and its programs read a clock that is eleven years back, from the start and from "
        "within `apply`; files keep the real time",
        "the same commits and patches; nothing is done again, no edit is overlooked",
        "test_a_clock_set_back",
    ),
    (
        "killed while kernels are stored",
        "what a killed run leaves in the cache of kernels",
        "the next run removes it",
        "test_kernels_that_a_killed_run_was_storing",
    ),
)
ELSEWHERE = """
Corrupt archives and patches, wrong bytes of an index, downloads that break off and are continued,
and locks are in `ci/tests/tool/test_faults.py` and `test_fetch.py`; a kill before every single step
is in `test_tree.py`.
"""


def _kills(data: dict[str, Any]) -> str:
    rows = [*data["toy"], *data["kills"]]
    same = sum(row["outcome"] == "same" for row in rows)
    text = (
        f"\n## Killed and run again: {same} of {len(rows)}\n\n"
        "SIGKILL to the whole process group at a random moment (seeded), then the same command to "
        "its end. It has to give what it gives without a kill: the archive, the tree and its "
        "commits, `patches/*.patch`, `series.lock`, the marker of the environment, its packages "
        "and the kernels, every file of the bundle, and no other file. *toy* is the upstream that "
        "the tests generate, where `fetch` is a download and the programs of `build` and `bundle` "
        "are stand-ins.\n\n"
        "| verb | on | kills | moments, of the time it takes | the same again |\n"
        "| --- | --- | --: | --- | --: |\n"
    )
    for base in dict.fromkeys(row["base"] for row in rows):
        for verb in dict.fromkeys(row["verb"] for row in rows):
            mine = [row for row in rows if (row["base"], row["verb"]) == (base, verb)]
            if mine:
                when = f"{min(r['at'] for r in mine):.0%} to {max(r['at'] for r in mine):.0%}"
                good = sum(row["outcome"] == "same" for row in mine)
                text += f"| `{verb}` | {base} | {len(mine)} | {when} | {good} |\n"
    return text


def _servers(data: dict[str, Any]) -> str:
    rows = data["server"]
    text = (
        f"\n## A server\n\nTree `{data['server tree'][:12]}`. "
        "The tiny model on a CPU. Four requests of 1200 tokens run, two of them streams; one more "
        "comes half a second after the fault. *Gone* is when no process of the server was left.\n\n"
        "| fault | status | ended | gone | /health | running requests | late request |\n"
        "| --- | --: | --: | --: | --- | --- | --- |\n"
    )
    for name, row in rows.items():
        running = ", ".join(
            f"{row['requests'].count(what)} {what}" for what in dict.fromkeys(row["requests"])
        )
        text += (
            f"| {name} | {row['status']} | {row['seconds']} s | {row['all processes gone after']} s"
            f" | {', '.join(row['health'])} | {running} | {row['late request']} |\n"
        )
    equal = [row["answers after a restart"] for row in rows.values() if len(row) > 9]
    if said := next((row["last error"] for row in rows.values() if row["status"] == 1), ""):
        text += f"\nThe last error of a server whose engine or worker was killed: “{said}”"
    text += (
        f"\nAnswers before the kill and after the restart: {equal[0] if equal else 'unknown'}.\n"
    )
    return text


def page(bases: list[Base]) -> str:
    """The whole page."""
    return HEAD + "".join(map(_part, bases))


def _part(base: Base) -> str:
    data = evidence.read_any(data_file(base), base)
    text = f"\n{evidence.origin(data, base)}\n{_kills(data)}"
    text += (
        "\n## Other faults of the tool\n\n| fault | what was done | what becomes of it | test |\n"
    )
    text += "| --- | --- | --- | --- |\n"
    for fault, done, becomes, test in ROWS:
        outcome = data["tests"].get(test, "not run")
        becomes = becomes if outcome == "passed" else f"**{outcome}**"
        text += f"| {fault} | {done} | {becomes} | `test_machine.py::{test}` |\n"
    return text + ELSEWHERE + _servers(data)
