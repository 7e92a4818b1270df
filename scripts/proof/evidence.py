# SPDX-License-Identifier: Apache-2.0
"""Which tree a result belongs to: asked before a run, written with it, compared by every reader."""

import itertools
import json
import os
from pathlib import Path
from typing import Any

from series import env as environments
from series import patches, tree
from series.config import ROOT, Base, Paths, reading
from series.errors import Exit
from series.git import git
from series.state import Record, write_atomic

DATA = ROOT / "docs/evidence/data"
PACKAGES = ("torch", "transformers")


def locked(base: Base) -> patches.Locked:
    """series.lock; without one nothing says which tree is meant."""
    lock = patches.Locked.read(base)
    if lock is None or not lock.patches:
        raise Exit.LOCK(f"{base.lock_file} is missing or empty", "run make export")
    return lock


def tree_of(base: Base) -> str:
    """The id of the tree after the last patch of series.lock."""
    return list(locked(base).patches.values())[-1][1]


def require_tree(base: Base, paths: Paths) -> list[str]:
    """The commits of the work tree, which must be clean and exactly those of series.lock; the
    environment has to be built."""
    if not paths.tree.exists():
        raise Exit.DIRTY(f"there is no work tree {paths.tree}", "run make apply")
    tree.refuse_edits(paths.tree, Record.read(paths.tree / tree.RECORD))
    lock = locked(base)
    want = {"base": lock.base} | {name: row[1] for name, row in lock.patches.items()}
    if patches.names(base) != list(lock.patches):
        raise Exit.LOCK(f"{base.lock_file} and {base.series_file} differ", "see make check")
    rows = git(paths.tree, "log", "--reverse", "--format=%H %T").splitlines()
    commits, trees = zip(*(row.split() for row in rows), strict=True)
    names = [*want, *[list(want)[-1]] * len(trees)]
    pairs = itertools.zip_longest(want.values(), trees, fillvalue="")
    for name, (expected, found) in zip(names, pairs, strict=False):
        if expected != found:
            raise Exit.LOCK(
                f"{paths.tree} has {found[:12] or 'nothing'} after {name}, {base.lock_file} says "
                f"{expected[:12] or 'nothing'}",
                "run make apply, or make export if the commits are yours",
            )
    environments.require_built(paths)
    return list(commits[1:])


def versions(paths: Paths) -> dict[str, str]:
    """The releases of what decides the figures of a run, from the environment's own records."""
    found = {"python": "", **dict.fromkeys(PACKAGES, "")}
    for folder in environments.python(paths).parents[1].glob("lib/python3*/site-packages"):
        found["python"] = folder.parent.name.removeprefix("python")
        for name in PACKAGES:
            for info in folder.glob(f"{name}-*.dist-info"):
                found[name] = info.name.removeprefix(f"{name}-").removesuffix(".dist-info")
    return found


def about(base: Base, paths: Paths) -> dict[str, Any]:
    """What every report says of itself."""
    return {
        "base": base.name,
        "tree": tree_of(base),
        "versions": versions(paths),
        "cores": len(os.sched_getaffinity(0)),
    }


def write(path: Path, report: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())


def read(path: Path, base: Base, *, command: str) -> dict[str, Any]:
    """A report of this very tree; `command` is what makes a new one."""
    with reading(path, f"run {command}", Exit.FAILED):
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = (report["base"], report["tree"])
    want = (base.name, tree_of(base))
    if found != want:
        raise Exit.LOCK(
            f"{path} is of {found[0]}, tree {found[1][:12]}; {base.lock_file} says {want[1][:12]}",
            f"run {command}",
        )
    return report


def load(path: Path) -> dict[str, Any]:
    """A report of any tree, empty if there is none yet."""
    if not path.is_file():
        return {}
    with reading(path, "restore it with git checkout", Exit.FAILED):
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return report


def read_any(path: Path, base: Base) -> dict[str, Any]:
    """Committed data of a base; its tree may be an earlier one, which the page then says."""
    report = load(path)
    if report.get("base") != base.name or "tree" not in report:
        raise Exit.FAILED(
            f"{path} is missing, or not of {base.name}", "see docs/maintain/testing.md#the-model"
        )
    return report


def origin(report: dict[str, Any], base: Base) -> str:
    """The line of a page that says which run it is of."""
    when = "" if report["tree"] == tree_of(base) else ", an earlier state of the series"
    given = ", ".join(f"{name} {number}" for name, number in report["versions"].items() if number)
    cores = f", {report['cores']} cores" if report.get("cores") else ""
    return f"{base.name}, tree `{report['tree'][:12]}`{when}; {given}{cores}."
