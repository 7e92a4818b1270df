# SPDX-License-Identifier: Apache-2.0
"""The work tree: apply, unapply, status and clean."""

import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from . import patches as files
from . import settings
from .commits import build, compare_lock
from .config import Base, Paths
from .errors import Exit
from .git import EMAIL, attempt, git
from .state import Record, digest, sha256, write_atomic

RECORD = ".git/series-record.json"
SWITCH = ".git/series-switch.json"  # the record a switch is going to, while it runs
BUILT = ".git/series-built.json"  # the ignored files that a build left in the tree
BRANCH = "refs/heads/series"
OPERATIONS = (
    *("rebase-apply", "rebase-merge", "sequencer"),
    *("MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD", "BISECT_LOG"),
)
# What tools of Python leave behind; nobody's work. Of __pycache__ only byte code is.
CACHES = {".pytest_cache", ".mypy_cache", ".ruff_cache"}
LOCAL_EDITS = "docs/maintain/workflow.md#local-edits"


# ---- what a command could lose ----


def operation(tree: Path) -> str:
    """The git operation that is under way in the work tree; '' if none is."""
    found = [name for name in OPERATIONS if (tree / ".git" / name).exists()]
    return f"an unfinished git operation ({found[0]})" if found else ""


def edits(tree: Path, record: Record | None) -> str:
    """What the user has changed in the work tree since the last apply or export; '' if nothing."""
    if not (tree / ".git").exists():
        return "something else than a git work tree of this tool"
    if under_way := operation(tree):
        return under_way
    if record is None:
        return "no record of an apply"
    # A tag that is small is assume-unchanged, S is skip-worktree: status is blind to both.
    listed = git(tree, "ls-files", "-v", "-z").split("\0")
    if blind := [entry[2:] for entry in listed if entry[:1].islower() or entry[:1] == "S"]:
        return f"{len(blind)} files that git was told to overlook, the first {blind[0]}"
    changed = git(tree, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    if changed:
        paths = [entry[3:] for entry in changed.split("\0") if entry]
        return f"{len(paths)} changed or new files, the first {paths[0]}"
    for ref in (BRANCH, "HEAD"):
        commit = attempt(tree, "rev-parse", "--verify", "--quiet", ref).stdout.decode().strip()
        if commit != record.head:
            order = ("merge-base", "--is-ancestor", commit, record.head)
            if ref == "HEAD" and commit and not attempt(tree, *order).returncode:
                return f"an earlier commit of the series (HEAD is {commit[:12]})"
            return f"commits that were not exported ({ref} is {commit[:12] or 'missing'})"
    return ""


def applied(tree: Path, record: Record) -> list[str]:
    """The patches that HEAD has: those of the record, unless it is at another commit."""
    head = attempt(tree, "rev-parse", "HEAD").stdout.decode().strip()
    if head == record.head:
        return list(record.patches)
    log = attempt(tree, "log", "--reverse", "--format=%B", "base..HEAD")
    return re.findall(r"^Patch-Name: *(\S+)$", log.stdout.decode("utf-8", "replace"), re.M)


def refuse_edits(tree: Path, record: Record | None) -> None:
    if tree.is_symlink():
        raise Exit.DIRTY(f"{tree} is a link", "put the folder in its place, or remove the link")
    found = edits(tree, record)
    if found:
        ours = (tree / ".git").exists() and record is not None
        how = "commit and make export, or drop them" if ours else "move it away, then make apply"
        if operation(tree):
            how = "finish or abort it (git rebase --abort, git bisect reset)"
        elif found.startswith("an earlier commit"):
            how = "git checkout series"
        elif "overlook" in found:
            how = "git update-index --no-assume-unchanged --no-skip-worktree FILE"
        raise Exit.DIRTY(f"{tree} holds {found}", f"{how}: see {LOCAL_EDITS}")


def ignored(tree: Path) -> set[str]:
    """The files of the work tree that git ignores and does not track."""
    listed = git(tree, "ls-files", "--others", "--ignored", "--exclude-standard", "-z")
    return {name for name in listed.split("\0") if name}


def remember_built(tree: Path, before: set[str]) -> None:
    """Note that a build has just written the ignored files that were not there `before`."""
    known = _built(tree) | (ignored(tree) - before)
    write_atomic(tree / BUILT, json.dumps(sorted(known), indent=1).encode())


def _built(tree: Path) -> set[str]:
    try:
        return set(json.loads((tree / BUILT).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return set()


def belongings(paths: Paths) -> Iterator[tuple[str, str]]:
    """What of the user's would go with the work tree, though it is no edit, and how to save it."""
    tree = paths.tree
    for ref in git(tree, "for-each-ref", "--format=%(refname)").splitlines():
        if ref == "refs/stash":
            yield "a stash", f"git -C {tree} stash show -p, or git stash branch NAME"
        elif ref not in (BRANCH, "refs/tags/base"):
            yield f"the ref {ref}", f"git -C {tree} format-patch -o FOLDER base..{ref}"
    for folder in _worktrees(tree):
        ours = folder.is_relative_to((paths.state / "each").resolve())
        committer = attempt(folder, "log", "-1", "--format=%ce").stdout.decode().strip()
        if not ours or committer != EMAIL:
            yield f"the git worktree {folder}", "save its commits, then git worktree remove it"
    built = _built(tree)
    for name in sorted(ignored(tree)):
        path = tree / name
        parts = set(path.relative_to(tree).parts)
        # A link holds no work; the kernels are links into the cache.
        ours = path.is_symlink() or name in built or name == "vllm/_version.py"
        # Byte code that was being written has a number behind its name.
        ours |= path.suffix == ".pyc" or ".pyc." in path.name
        if not ours and not parts & CACHES and ".egg-info/" not in name:
            yield f"{name}, which git ignores", "move it out of the work tree, or remove it"


def _worktrees(tree: Path) -> Iterator[Path]:
    """The git worktrees beside the tree that exist."""
    listed = git(tree, "worktree", "list", "--porcelain").splitlines()
    folders = [Path(line.removeprefix("worktree ")) for line in listed if line[:9] == "worktree "]
    yield from (folder for folder in folders[1:] if folder.is_dir())


def refuse_loss(paths: Paths) -> None:
    """Stop before the work tree is removed with anything of the user's in it."""
    refuse_edits(paths.tree, Record.read(paths.tree / RECORD))
    found = list(belongings(paths))
    if found:
        (what, how), more = found[0], len(found) - 1
        raise Exit.DIRTY(
            f"{paths.tree} holds {what}{f', and {more} more' if more else ''}",
            f"save it: {how}; see {LOCAL_EDITS}",
        )


# ---- from one state to another ----


def settle(tree: Path) -> None:
    """Finish a switch that was interrupted; the tree was clean when it began."""
    target = Record.read(tree / SWITCH)
    if target is not None:
        (tree / ".git/index.lock").unlink(missing_ok=True)
        # Without fresh file times in the index, --force would write unchanged files again.
        attempt(tree, "update-index", "-q", "--refresh")
        git(tree, "checkout", "--quiet", "--force", "-B", "series", target.head)
        target.write(tree / RECORD)
        (tree / SWITCH).unlink()


def _switch(tree: Path, staging: Path, target: Record) -> None:
    """Move the clean work tree to a commit of `staging`; unchanged files stay untouched."""
    git(tree, "fetch", "--quiet", "--no-tags", staging, "series")
    added = git(tree, "diff", "--name-only", "-z", "--diff-filter=A", "HEAD", target.head)
    _refuse_overwriting(tree, (name for name in added.split("\0") if name))
    git(tree, "tag", "--force", "base", git(staging, "rev-parse", "base"))
    target.write(tree / SWITCH)
    settle(tree)


def _refuse_overwriting(tree: Path, names: Iterable[str]) -> None:
    """Git overwrites a file that it ignores with one of the same name from a commit."""
    for name in names:
        path = tree / name
        if path.exists() and not path.is_symlink() and name not in _built(tree):
            raise Exit.DIRTY(
                f"a patch brings {name}, and {tree} holds an ignored file of that name",
                "move it out of the work tree",
            )


def apply(
    base: Base, paths: Paths, fetch: Callable[[], Path], source: str, *, upto: int | None = None
) -> dict[str, Any]:
    """Bring the work tree to base + series (or its first `upto` patches).

    `fetch` gives the verified source archive and is called only if there is something to do;
    `source` names that source. Returns a report: `changed`, `tree`, `patches`, `head`,
    `tree_id` and `edits`, what the user changed in a tree that needed nothing.
    """
    patches = dict(list(files.read(base).items())[:upto])
    want = {name: digest(data) for name, data in patches.items()}
    tree, staging = paths.tree, paths.state / ".staging"
    shutil.rmtree(staging, ignore_errors=True)
    if tree.exists():
        settle(tree)
    record = Record.read(tree / RECORD)
    if record and record.source == source and list(record.patches.items()) == list(want.items()):
        if upto is not None:
            refuse_edits(tree, record)
        return {**_report(paths, changed=False), "edits": edits(tree, record)}
    if tree.exists():
        refuse_edits(tree, record)
    built = build(base, fetch(), staging, patches)
    compare_lock(base, built, whole=upto is None)
    fresh = Record(source, git(staging, "rev-parse", "HEAD"), want)
    if tree.exists():
        _switch(tree, staging, fresh)
        shutil.rmtree(staging)
    else:
        fresh.write(staging / RECORD)
        staging.rename(tree)
    return {**_report(paths, changed=True), "edits": ""}


def _report(paths: Paths, *, changed: bool) -> dict[str, Any]:
    record = Record.read(paths.tree / RECORD)
    assert record is not None
    return {
        "changed": changed,
        "tree": str(paths.tree),
        "patches": applied(paths.tree, record),
        "head": record.head,
        "tree_id": git(paths.tree, "rev-parse", "HEAD^{tree}"),
    }


def status(base: Base, paths: Paths) -> dict[str, Any]:
    """What the work tree holds, compared with the series; changes nothing."""
    listed = files.names(base)
    report: dict[str, Any] = {
        "base": base.name,
        "tree": str(paths.tree),
        "series": listed,
        "source": (paths.downloads / base.archive.name).is_file(),
        "applied": [],
        "edits": "",
        "current": False,
        "settings": settings.read(paths),
    }
    if not paths.tree.exists():
        return {**report, "state": "absent"}
    if (paths.tree / SWITCH).exists():
        return {**report, "state": "interrupted"}
    record = Record.read(paths.tree / RECORD)
    report["edits"] = edits(paths.tree, record)
    if record:
        report["applied"] = applied(paths.tree, record)
        now = {name: sha256(base.patch(name)) for name in listed if base.patch(name).is_file()}
        report["current"] = list(now.items()) == list(record.patches.items())
    state = "edited" if report["edits"] else "current" if report["current"] else "outdated"
    return {**report, "state": state}


def clean(paths: Paths) -> None:
    """Remove the work tree, unless it holds work of the user's."""
    gone = paths.state / ".removed"
    if gone.is_symlink():
        gone.unlink()
    shutil.rmtree(gone, ignore_errors=True)
    if paths.tree.exists():
        settle(paths.tree)
        refuse_loss(paths)
        # Under its name it is there whole or not at all, also if this is cut off.
        paths.tree.rename(gone)
        shutil.rmtree(gone)
