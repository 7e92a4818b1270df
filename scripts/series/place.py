# SPDX-License-Identifier: Apache-2.0
"""Where a patch lands on a tree of upstream: git decides, on an index, without a checkout."""

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from .git import attempt, git
from .patches import Mail

CLEAN, OFFSET, THREE_WAY = "clean", "offset", "three-way"
CONFLICT, UPSTREAMED, SUPERSEDED, BLOCKED = "conflict", "upstreamed", "superseded", "blocked"
STATES = (CLEAN, OFFSET, THREE_WAY, CONFLICT, UPSTREAMED, SUPERSEDED, BLOCKED)
APPLIES = (CLEAN, OFFSET, THREE_WAY)

_BLOCK = re.compile(r"^<{7} .*?^>{7} .*?$", re.M | re.S)


class Trouble(NamedTuple):
    """A file of a patch that does not merge."""

    path: str
    reason: str
    hunks: list[str]  # the blocks between conflict markers, `line: block`


class Placement(NamedTuple):
    """The state of a patch and the tree after it; that is empty if the patch is not in it."""

    state: str
    tree: str
    moved: list[str]  # what git says of hunks that apply somewhere else


class Row(NamedTuple):
    """What became of one patch of a series on another tree."""

    name: str
    state: str
    before: str  # the trees around it; `after` is empty if the patch is not in the tree
    after: str
    moved: list[str]
    troubles: list[Trouble]
    by: list[str]  # the patches that block this one


def place(repo: Path, tree: str, mail: bytes, *only: str) -> Placement:
    """Apply a patch (`only` restricts its files) to a tree: exactly, with an offset, or merged."""
    for options in (("--verbose",), ("--3way",)):
        git(repo, "read-tree", tree)
        done = attempt(repo, "apply", "--cached", *options, *only, "-", stdin=mail)
        if not done.returncode:
            after = git(repo, "write-tree")
            said = done.stderr.decode("utf-8", "replace").splitlines()
            moved = _moved(said)
            state = THREE_WAY if "--3way" in options else OFFSET if moved else CLEAN
            return Placement(UPSTREAMED if after == tree else state, after, moved)
    return Placement(CONFLICT, "", [])


def _moved(said: list[str]) -> list[str]:
    """`path: Hunk #1 succeeded at 10 (offset 2 lines)` of what `git apply --verbose` prints."""
    found, path = [], ""
    for line in said:
        if line.startswith("Checking patch "):
            path = line.removeprefix("Checking patch ").removesuffix("...")
        elif "(offset" in line:
            found.append(f"{path}: {line.rstrip('.')}")
    return list(dict.fromkeys(found))


def is_there(repo: Path, tree: str, mail: Mail, data: bytes) -> bool:
    """Whether the code of a patch is in the tree; tests and documents, if it has no code."""
    kinds = {change.kind for change in mail.changes}
    others = ("tests/*", "docs/*", "examples/*") if "code" in kinds else ()
    git(repo, "read-tree", tree)
    options = [f"--exclude={pattern}" for pattern in others]
    done = attempt(repo, "apply", "--cached", "--check", "--reverse", *options, "-", stdin=data)
    return not done.returncode


def walk(
    repo: Path, base: str, target: str, patches: Mapping[str, bytes], superseded: Iterable[str] = ()
) -> Iterator[Row]:
    """Apply the patches, in order, to `target`; `base` is the tree that they were made for.

    A patch that applies neither here nor to its own base without the patches that are left out is
    blocked by these.
    """
    left_out: dict[str, set[str]] = {}  # patch -> the files that it changes
    waiting: list[bytes] = []  # of those that are in, not yet in `base`
    for name, data in patches.items():
        mail, before = Mail.parse(data), target
        paths = {change.path for change in mail.changes}
        found = Placement(SUPERSEDED, "", [])
        if name not in superseded:
            found = place(repo, target, data)
        if found.state not in (CLEAN, OFFSET) and is_there(repo, target, mail, data):
            found = Placement(UPSTREAMED, target, [])
        troubles: list[Trouble] = []
        by: list[str] = []
        if found.state == CONFLICT:
            troubles = list(_troubles(repo, target, data, sorted(paths)))
            stuck = {trouble.path for trouble in troubles}
            by = [other for other, changed in left_out.items() if changed & stuck]
            while by and waiting:
                base = place(repo, base, waiting.pop(0)).tree or base
            if by and not place(repo, base, data).tree:
                found = found._replace(state=BLOCKED)
        if found.tree:
            target = found.tree
            waiting.append(data)
        else:
            left_out[name] = paths
        blockers = by if found.state == BLOCKED else []
        yield Row(name, found.state, before, found.tree, found.moved, troubles, blockers)


def _troubles(repo: Path, tree: str, data: bytes, paths: list[str]) -> Iterator[Trouble]:
    """The files that do not merge, each tried alone."""
    for path in paths:
        only = "--include=" + re.sub(r"([*?\[\\])", r"\\\1", path)
        git(repo, "read-tree", tree)
        done = attempt(repo, "apply", "--cached", "--3way", only, "-", stdin=data)
        if not done.returncode:
            continue
        stages = _stages(repo, path)
        if not stages:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            reasons = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
            reason = (reasons or said or ["it does not apply"])[-1].removeprefix(f"{path}: ")
            gone = reason == "does not exist in index"
            yield Trouble(path, "the file is not there" if gone else reason, [])
        elif "1" not in stages:
            yield Trouble(path, "both add this file", [])
        else:
            hunks = _hunks(repo, stages)
            yield Trouble(path, f"{len(hunks)} conflicting hunk{'s' * (len(hunks) != 1)}", hunks)


def _stages(repo: Path, path: str) -> dict[str, str]:
    """Stage -> blob of an unmerged file: 1 what the patch is for, 2 this tree's, 3 the patched."""
    listed = git(repo, "ls-files", "--unmerged", "-z", "--", f":(literal){path}").split("\0")
    return {row.split()[2]: row.split()[1] for row in listed if row}


def _hunks(repo: Path, stages: dict[str, str]) -> list[str]:
    with tempfile.TemporaryDirectory(dir=repo / ".git") as folder:
        sides = []
        for stage in "213":
            side = Path(folder) / stage
            blob = stages.get(stage)
            side.write_bytes(attempt(repo, "cat-file", "blob", blob).stdout if blob else b"")
            sides.append(side)
        labels = [word for side in ("there", "base", "patch") for word in ("-L", side)]
        merged = attempt(repo, "merge-file", "-p", "--diff3", *labels, *sides).stdout
    text = merged.decode("utf-8", "replace")
    return [f"{text[: m.start()].count(chr(10)) + 1}: {m[0]}" for m in _BLOCK.finditer(text)]
