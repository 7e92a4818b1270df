# SPDX-License-Identifier: Apache-2.0
"""`stress-without`: takes fixes out of the series; the stress test has to find each.

stress.toml of the base says which, and the requests that find it. In a copy of the work tree the
changes of the named patches to vllm/ are reversed, the last first; the copy shares the kernels. The
same requests to the series with every fix have to find nothing, or a row says nothing.

Outcomes go into stress.json of docs/evidence/data as they come, each with the tree that it is of,
and a digest of stress.py and stress_requests.py. A row that is known of these is not run again, so
a run that was cut off goes on; `--fresh` begins anew. `--only PATCH[,PATCH]` runs that row, or, if
stress.toml has none of these patches, asks all servers and keeps nothing.

Exit status: 0 if each fix was found, and nothing without.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import subprocess
from pathlib import Path
from typing import Any

from series import engine
from series import env as environments
from series.command import Command
from series.config import ROOT, Base, Paths, parse_toml, reading
from series.errors import Exit
from series.git import attempt, git
from series.state import digest, locked

from . import evidence
from .runner import Worktrees

FILE = "stress.toml"
HINT = "its head says what it holds"


@dataclasses.dataclass(frozen=True)
class Row:
    """What is taken out, and the requests; stress.toml explains the fields."""

    patches: tuple[str, ...]
    what: str = ""
    also: tuple[str, ...] = ()
    servers: tuple[str, ...] = ()
    mix: str = "all"
    count: int = 300
    seed: int = 2026
    hidden: bool = False

    @property
    def name(self) -> str:
        return ",".join(self.patches)

    @property
    def options(self) -> list[str]:
        """Of the stress test; rows with the same ask the same."""
        servers = ["--servers", *self.servers] if self.servers else []
        return [*servers, "--mix", self.mix, "--count", str(self.count), "--seed", str(self.seed)]


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def read_table(base: Base) -> list[Row]:
    """The rows of a base; none if it has no table.

    Raises Exit.USAGE if it cannot be read, or names a patch that the series does not have.
    """
    path = base.folder / FILE
    if not path.is_file():
        return []
    with reading(path, HINT):
        tables: list[dict[str, Any]] = parse_toml(path.read_text(encoding="utf-8"))["row"]
        rows = [Row(**{k: _frozen(v) for k, v in table.items()}) for table in tables]
    for row in rows:
        require_patches(base, row, path.name)
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise Exit.USAGE(f"the same patches twice in {path}", HINT)
    return rows


def require_patches(base: Base, row: Row, where: str) -> None:
    known = evidence.locked(base).patches
    absent = [name for name in (*row.patches, *row.also) if name not in known]
    if absent or not row.patches:
        raise Exit.USAGE(f"{where}: the series has no {', '.join(absent) or 'such patch'}", HINT)


def data_file(base: str) -> Path:
    return evidence.DATA / base / "stress.json"


def find(data: dict[str, Any], row: Row, kind: str = "without") -> dict[str, Any]:
    """What stress.json has of a row, of whatever tree, if these were its requests; else nothing.

    `kind` is "with" for the same requests to the series as it is.
    """
    wanted: dict[str, Any] = {"options": row.options}
    if kind == "without":
        wanted |= {"patches": [*row.patches], "also": [*row.also]}
    entries = data.get(kind, [])
    return next((e for e in entries if {key: e[key] for key in wanted} == wanted), {})


def keep(file: Path, table: list[Row], kind: str, entry: dict[str, Any]) -> None:
    """Add an outcome, in the order of the table; those that it no longer has are left out."""
    data = evidence.load(file)
    # The first that fits is the new one.
    data[kind] = [entry, *data.get(kind, [])]
    for each in ("with", "without"):
        found = [find(data, row, each) for row in table]
        data[each] = [entry for i, entry in enumerate(found) if entry and entry not in found[:i]]
    evidence.write(file, data)


def origin(base: Base) -> dict[str, str]:
    """What makes an outcome one of today: the tree, the servers, and what draws the requests."""
    files = (Path(__file__).with_name(name) for name in ("stress.py", "stress_requests.py"))
    drawn = b"".join(file.read_bytes() for file in files)
    return {"tree": evidence.tree_of(base), "drawn by": digest(drawn)}


def is_of_today(entry: dict[str, Any], base: Base) -> bool:
    return all(entry.get(key) == value for key, value in origin(base).items())


def is_found(report: dict[str, Any]) -> bool:
    return bool(report["wrong"] or report["not answered"] or report["not started"])


def take_out(tree: Path, commits: dict[str, str], row: Row) -> None:
    """Reverse what the row's patches change in vllm/, in a copy of the work tree."""
    out = {*row.patches, *row.also}
    for name in [name for name in reversed(commits) if name in out]:
        diff = git(tree, "show", "--format=", "--binary", commits[name], "--", "vllm") + "\n"
        if not diff.strip():
            raise Exit.FAILED(f"{name} changes nothing in vllm/", f"correct {FILE}")
        given = diff.encode("utf-8", "surrogateescape")
        done = attempt(tree, "apply", "--reverse", "--3way", stdin=given)
        if done.returncode:
            files = git(tree, "diff", "--name-only", "--diff-filter=U").split()
            raise Exit.FAILED(
                f"{name} does not come out: {' '.join(files) or 'git apply fails'} was changed "
                "behind it",
                f"name the later patches in `also` of its row in {FILE}",
            )


class Without:
    """Runs the stress test on copies of the work tree."""

    def __init__(self, command: Command, commits: dict[str, str], worktrees: Worktrees) -> None:
        self.command, self.commits, self.worktrees = command, commits, worktrees
        self.paths: Paths = command.paths
        self.about = evidence.about(command.base, command.paths)
        self.logs = self.paths.state / "logs/stress-without"
        self.logs.mkdir(parents=True, exist_ok=True)

    def ask(self, row: Row, *, whole: bool = False) -> dict[str, Any]:
        """What the row's requests find; `whole`: with every fix in."""
        name = "all fixes" if whole else row.name
        with self.worktrees.at("HEAD") as tree:
            if not whole:
                take_out(tree, self.commits, row)
            report = self.stress(tree, row, self.logs / name.replace(" ", "-"))
        verdict = "found" if is_found(report) else "nothing"
        said = f"{verdict:9}{name}: {report['wrong'] + report['not answered']} of {row.count}"
        if first := told(report):
            said += f", {first}"
        self.command.say(f"{said} ({report['seconds']} s)")
        kept = ("wrong", "not answered", "not started", "first", "seconds")
        found = {name: report[name] for name in kept}
        machine = {name: self.about[name] for name in ("versions", "cores")}
        return {"options": row.options, **found, **machine, **origin(self.command.base)}

    def stress(self, tree: Path, row: Row, log: Path) -> dict[str, Any]:
        out, text = log.with_suffix(".json"), log.with_suffix(".log")
        out.unlink(missing_ok=True)
        environment = engine.environment(self.paths, cpu=True)
        environment |= {
            "PYTHONPATH": os.pathsep.join([str(tree.resolve()), str(ROOT / "scripts")]),
            # vLLM's records of models are of one tree.
            "VLLM_CACHE_ROOT": str(Path(environment["VLLM_CACHE_ROOT"]) / "stress-without"),
        }
        python = str(environments.python(self.paths))
        words = [python, "-m", "proof.stress", "--tree", str(tree), "--brief", "--out", str(out)]
        with text.open("wb") as stream:
            done = subprocess.run(
                [*words, *row.options],
                env=environment,
                cwd=ROOT,
                stdout=stream,
                stderr=stream,
                check=False,
            )
        if done.returncode not in (0, 1) or not out.is_file():
            raise Exit.FAILED(f"the stress test ended with {done.returncode}", f"see {text}")
        return evidence.load(out)


def told(report: dict[str, Any]) -> str:
    """The first that was wrong; empty if nothing was."""
    if report["not started"]:
        return f"the server {report['not started']} does not start"
    return str(report["first"])


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `stress-without`."""
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATCH[,PATCH]", help="this row; repeatable"
    )
    parser.add_argument("--fresh", action="store_true", help="run again what is known")


def chosen(base: Base, only: list[str]) -> list[Row]:
    """The rows that are asked for."""
    rows = read_table(base)
    if not only:
        if not rows:
            raise Exit.USAGE(f"{base.folder} has no {FILE}", "name patches with --only")
        return rows
    known = {frozenset(row.patches): row for row in rows}
    found = []
    for names in only:
        patches = tuple(name for name in names.split(",") if name)
        row = known.get(frozenset(patches), Row(patches))
        require_patches(base, row, "--only")
        found.append(row)
    return found


def run(command: Command) -> Exit:
    """Run the rows; raise Exit.FAILED if a fix was not found, or something was found with all."""
    base, paths, args = command.base, command.paths, command.args
    table, rows = read_table(base), chosen(base, args.only)
    file = data_file(base.name)
    wholes: dict[str, dict[str, Any]] = {}
    wrong = []
    with locked(paths.state / ".lock", args.wait), contextlib.ExitStack() as stack:
        hashes = evidence.require_tree(base, paths)
        commits = dict(zip(evidence.locked(base).patches, hashes, strict=True))
        worktrees = Worktrees(paths)
        stack.callback(worktrees.close)
        without = Without(command, commits, worktrees)

        def known(entry: dict[str, Any]) -> dict[str, Any]:
            return entry if is_of_today(entry, base) and not args.fresh else {}

        for row in rows:
            key = " ".join(row.options)
            whole = wholes.get(key) or known(find(evidence.load(file), row, "with"))
            if not whole:
                whole = without.ask(row, whole=True)
                keep(file, table, "with", whole)
            wholes[key] = whole
            if is_found(whole):
                wrong.append(f"with all fixes: {told(whole)}")
                continue
            if entry := known(find(evidence.load(file), row)):
                command.say(f"known    {row.name}: {told(entry) or 'nothing'}")
            else:
                entry = {"patches": [*row.patches], "also": [*row.also], **without.ask(row)}
                if row in table:
                    keep(file, table, "without", entry)
            command.report[row.name] = entry
            if is_found(entry) == row.hidden:
                wrong.append(f"{row.name} was {'' if row.hidden else 'not '}found")
        evidence.require_tree(base, paths)
    if wrong:
        raise Exit.FAILED("; ".join(dict.fromkeys(wrong)), f"the logs are in {without.logs}")
    return Exit.OK
