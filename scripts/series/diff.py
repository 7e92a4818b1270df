# SPDX-License-Identifier: Apache-2.0
"""`diff`: what a change does to the series, as a range-diff of its commits."""

import argparse
import difflib
import re
import tempfile
from pathlib import Path

from . import patches as files
from .command import Command
from .commits import apply_patches, copy_base, import_base
from .config import ROOT, Base
from .errors import Exit
from .git import attempt, first_line, git
from .patches import Mail
from .state import unpack

# What range-diff says of two commits: `1:  0a1b ! 2:  2c3d subject`, `-` where there is none.
_PAIR = re.compile(r" *(\d+|-): +\S+ ([=!<>]) +(\d+|-): ")


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `diff`."""
    parser.add_argument("rev", metavar="REV", help="a commit of this repository")
    parser.add_argument("--stat", action="store_true", help="the summary alone")


def run(command: Command) -> None:
    """Say which patches came, went, moved, or have other contents since REV, and how."""
    now, scratch = command.base, command.paths.state / ".diff"
    with tempfile.TemporaryDirectory() as temporary, command.lock(".check.lock"):
        old = _at(now, command.args.rev, Path(temporary))
        before, after = files.read(old), files.read(now)
        if (old.archive, list(before.items())) == (now.archive, list(after.items())):
            command.report = {"changes": []}
            command.say(f"the series is as it was at {command.args.rev}")
            return
        import_base(now, command.fetch(), scratch / "now")
        if old.archive == now.archive:
            copy_base(scratch / "now", scratch / "old")
        else:
            import_base(old, command.fetch(old), scratch / "old")
        apply_patches(scratch / "now", after)
        apply_patches(scratch / "old", before)
        refs = ("refs/tags/base:refs/tags/old-base", "refs/heads/series:refs/heads/old")
        git(scratch / "now", "fetch", "--quiet", "--no-tags", scratch / "old", *refs)
        text = git(scratch / "now", "range-diff", "--no-color", "old-base..old", "base..series")
    command.report = {"changes": [{"what": w, "name": n} for w, n in changes(before, after, text)]}
    for change in command.report["changes"]:
        command.say(f"{change['what']:8} {change['name']}")
    if not command.args.stat:
        command.say(f"\n{text}")


def _at(base: Base, rev: str, folder: Path) -> Base:
    """The base as it was at a commit of this repository, its files below `folder`."""
    archive = folder / "patches.tar"
    done = attempt(ROOT, "archive", "-o", archive, rev, f"patches/{base.name}")
    if done.returncode:
        raise Exit.USAGE(
            f"no patches/{base.name} at {rev!r} ({first_line(done.stderr)})",
            "name a commit, tag or branch of this repository",
        )
    unpack(archive, folder / "then")
    return Base.load(base.name, folder / "then")


def changes(before: dict[str, bytes], after: dict[str, bytes], text: str) -> list[tuple[str, str]]:
    """What happened to each patch, in the order of the series; `text` is git's range-diff."""
    olds, news = list(before), list(after)
    pairs: dict[str, tuple[str, str]] = {}  # new name -> old name, sign
    for match in filter(None, map(_PAIR.match, text.splitlines())):
        if "-" not in (match[1], match[3]):
            pairs[news[int(match[3]) - 1]] = (olds[int(match[1]) - 1], match[2])
    renamed = {
        new: old for new, (old, _) in pairs.items() if old not in after and new not in before
    }
    same = {old: new for new, old in renamed.items()}
    kept = [same.get(name, name) for name in olds if same.get(name, name) in after]
    order = [name for name in news if name in kept]
    blocks = difflib.SequenceMatcher(None, kept, order, autojunk=False).get_matching_blocks()
    in_place = {name for block in blocks for name in order[block.b : block.b + block.size]}
    found = [
        ("dropped", name) for name in olds if name not in after and name not in renamed.values()
    ]
    for name in news:
        old = renamed.get(name, name)
        if old not in before:
            found.append(("added", f"{name} ({_size(after[name])})"))
            continue
        if name in renamed:
            found.append(("renamed", f"{old} to {name}"))
        if name not in in_place:
            found.append(("moved", name))
        if pairs.get(name) != (old, "="):
            found.append(("changed", f"{name} ({_size(before[old])} to {_size(after[name])})"))
    return found


def _size(data: bytes) -> str:
    """The lines that a patch adds and removes."""
    lines = Mail.parse(data).diff.splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++ ") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("--- ") for line in lines)
    return f"+{added} -{removed}"
