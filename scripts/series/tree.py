# SPDX-License-Identifier: Apache-2.0
"""The work tree: apply, unapply, status and export."""

from __future__ import annotations

import itertools
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import patches as files
from .config import ROOT, Base, Paths
from .errors import Exit, SeriesError
from .git import ATTRIBUTES, FORMAT, attempt, first_line, git
from .patches import Locked, Mail
from .source import import_archive
from .state import Record, digest, sha256, write_atomic

RECORD = ".git/series-record.json"
SWITCH = ".git/series-switch.json"  # the record a switch is going to, while it runs
BUSY_FILES = ("rebase-apply", "rebase-merge", "MERGE_HEAD", "CHERRY_PICK_HEAD", "REVERT_HEAD")


# ---- building commits in a scratch repository ----


def init(repo: Path) -> None:
    """An empty repository whose settings keep bytes as they are, for the user's own git too."""
    repo.mkdir(parents=True)
    git(repo, "init", "--quiet", "--template=")
    git(repo, "symbolic-ref", "HEAD", "refs/heads/series")
    for key, value in (("core.autocrlf", "false"), ("am.keepcr", "true"), ("gc.auto", "0")):
        git(repo, "config", key, value)
    (repo / ".git/info").mkdir(exist_ok=True)
    (repo / ".git/info/attributes").write_text(ATTRIBUTES)


def export_commits(repo: Path) -> list[bytes]:
    """The commits after `base` as patch files, oldest first."""
    merges = git(repo, "rev-list", "--merges", "base..HEAD")
    if merges or attempt(repo, "merge-base", "--is-ancestor", "base", "HEAD").returncode:
        raise SeriesError(
            Exit.PATCH,
            f"the commits of {repo} are not a straight line from the tag base",
            hint="rebase them: git rebase --onto base <first commit>^",
        )
    with tempfile.TemporaryDirectory(dir=repo / ".git") as folder:
        git(repo, "format-patch", "--quiet", *FORMAT, "-o", folder, "base..HEAD")
        return [path.read_bytes() for path in sorted(Path(folder).iterdir())]


def apply_patches(repo: Path, patches: dict[str, bytes]) -> None:
    """Commit the patches on top of HEAD, each exactly: no fuzz, no offset, none dropped."""
    if not patches:
        return
    with tempfile.TemporaryDirectory(dir=repo / ".git") as folder:
        mails = {name: Path(folder) / f"{name}.patch" for name in patches}
        for name, mail in mails.items():
            mail.write_bytes(patches[name])
            if attempt(repo, "apply", "--numstat", mail).returncode:
                raise SeriesError(
                    Exit.PATCH,
                    f"{name}.patch is corrupted: git cannot read it",
                    hint="restore it with git checkout, or export it again",
                )
        done = attempt(repo, "am", "--quiet", "--keep", "--keep-cr", "--no-3way", *mails.values())
        # Counted, because git am can succeed and yet leave out a patch.
        applied = int(git(repo, "rev-list", "--count", "base..HEAD"))
        if done.returncode or applied != len(patches):
            name = list(patches)[min(applied, len(patches) - 1)]
            if not attempt(repo, "apply", "--check", "--reverse", mails[name]).returncode:
                raise SeriesError(
                    Exit.PATCH,
                    f"{name}.patch changes nothing: the source already has it",
                    hint="remove it from series",
                )
            reason = first_line(done.stderr).removeprefix("error: ")
            raise SeriesError(
                Exit.PATCH,
                f"{name}.patch does not apply ({reason})",
                hint="see docs/maintain/workflow.md#a-patch-does-not-apply",
            )
    # Git accepts offsets without a word; only the exported bytes show them.
    for (name, data), again in zip(patches.items(), export_commits(repo), strict=True):
        if data != again:
            pairs = itertools.zip_longest(data.split(b"\n"), again.split(b"\n"))
            line = next(n for n, (one, two) in enumerate(pairs, start=1) if one != two)
            raise SeriesError(
                Exit.PATCH,
                f"{name}.patch applies only with an offset, or is not what export writes"
                f" (line {line})",
                hint="see docs/maintain/workflow.md#a-patch-does-not-apply",
            )


def lock_of(repo: Path, order: list[str]) -> Locked:
    """What series.lock has to say about the commits of `repo`."""
    trees = git(repo, "log", "--reverse", "--format=%T", "base..HEAD").split()
    mails = export_commits(repo)
    ids = [git(repo, "patch-id", "--stable", stdin=mail).split() for mail in mails]
    rows = zip(order, ids, trees, strict=True)
    return Locked(
        git(repo, "rev-parse", "base^{tree}"),
        {name: (patch[0] if patch else "-", tree) for name, patch, tree in rows},
    )


def compare_lock(base: Base, built: Locked, *, whole: bool = True) -> None:
    """Raise Exit.LOCK at the first line in which the result and series.lock differ."""
    lock = Locked.read(base)
    if lock is None:
        return
    if lock.base != built.base:
        raise SeriesError(
            Exit.LOCK,
            f"the source's tree is {built.base}, {base.lock_file} says {lock.base}",
            hint="is base.toml of another release? then remove series.lock and export again",
        )
    order = list(lock.patches)
    if (order if whole else order[: len(built.patches)]) != list(built.patches):
        raise SeriesError(
            Exit.LOCK,
            f"{base.lock_file} lists other patches than {base.series_file}",
            hint="if the change is meant, remove series.lock, then make apply export",
        )
    for name, row in built.patches.items():
        if row != lock.patches[name]:
            raise SeriesError(
                Exit.LOCK,
                f"the tree after {name} is {row[1]}, {base.lock_file} says {lock.patches[name][1]}",
                hint="if the change is meant, remove series.lock, then make apply export",
            )


def build(base: Base, archive: Path, repo: Path, patches: dict[str, bytes]) -> Locked:
    """Make the whole history in a fresh `repo`, checked out, and compare it with series.lock."""
    if repo.exists():
        shutil.rmtree(repo)
    init(repo)
    import_archive(base, archive, repo)
    git(repo, "tag", "base", "series")
    git(repo, "reset", "--quiet", "--hard", "base")
    apply_patches(repo, patches)
    return lock_of(repo, list(patches))


# ---- the user's work tree ----


def edits(tree: Path, record: Record | None) -> str:
    """What the user has changed in the work tree since the last apply or export; '' if nothing."""
    if not (tree / ".git").exists():
        return "it is not a git work tree of this tool"
    under_way = [name for name in BUSY_FILES if (tree / ".git" / name).exists()]
    if under_way:
        return f"an unfinished git operation ({under_way[0]})"
    if record is None:
        return "no record of an apply"
    changed = git(tree, "status", "--porcelain", "-z", "--untracked-files=all", "--no-renames")
    if changed:
        paths = [entry[3:] for entry in changed.split("\0") if entry]
        return f"{len(paths)} changed or new files, the first {paths[0]}"
    head = git(tree, "rev-parse", "HEAD")
    if head != record.head:
        return f"commits that were not exported (HEAD is {head[:12]})"
    return ""


def refuse_edits(tree: Path, record: Record | None) -> None:
    found = edits(tree, record)
    if found:
        raise SeriesError(
            Exit.DIRTY,
            f"{tree} holds {found}",
            hint="commit and make export, or drop them: see docs/maintain/workflow.md#local-edits",
        )


def _settle(tree: Path) -> None:
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
    git(tree, "tag", "--force", "base", git(staging, "rev-parse", "base"))
    target.write(tree / SWITCH)
    _settle(tree)


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
    tree = paths.tree
    if tree.exists():
        _settle(tree)
    record = Record.read(tree / RECORD)
    if record and record.source == source and list(record.patches.items()) == list(want.items()):
        return {**_report(paths, changed=False), "edits": edits(tree, record)}
    if tree.exists():
        refuse_edits(tree, record)
    staging = paths.state / ".staging"
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
        "patches": list(record.patches),
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
    }
    if not paths.tree.exists():
        return {**report, "state": "absent"}
    if (paths.tree / SWITCH).exists():
        return {**report, "state": "interrupted"}
    record = Record.read(paths.tree / RECORD)
    report["edits"] = edits(paths.tree, record)
    if record:
        report["applied"] = list(record.patches)
        now = {name: sha256(base.patch(name)) for name in listed if base.patch(name).is_file()}
        report["current"] = list(now.items()) == list(record.patches.items())
    state = "edited" if report["edits"] else "current" if report["current"] else "outdated"
    return {**report, "state": state}


# ---- export ----


def _slug(subject: str) -> str:
    text = re.sub(r"^(\[[^]]*\]\s*)+", "", subject).lower()
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:60].strip("-") or "patch"


def name_commits(repo: Path, mails: list[bytes], known: dict[str, bytes]) -> list[str]:
    """A name for each exported commit: the one it had, found by its subject, then by its patch id,
    then by its author and date; a new commit is named after its subject."""

    def keys(data: bytes) -> tuple[str, str, str]:
        mail = Mail.parse(data)
        ids = git(repo, "patch-id", "--stable", stdin=data).split()
        return mail.subject, ids[0] if ids else "", f"{mail.author} {mail.date}"

    old = {name: keys(data) for name, data in known.items()}
    new = [keys(data) for data in mails]
    found: dict[int, str] = {}
    for which in range(3):
        for number, key in enumerate(new):
            same = [n for n, k in old.items() if k[which] == key[which] and key[which]]
            twins = [k for k in new if k[which] == key[which]]
            if (
                number not in found
                and len(same) == 1 == len(twins)
                and same[0] not in found.values()
            ):
                found[number] = same[0]
    taken = set(found.values())
    for number, key in enumerate(new):
        if number not in found:
            slug = name = _slug(key[0])
            suffix = iter("bcdefghijklmnopqrstuvwxyz")
            while name in taken:
                name = f"{slug}-{next(suffix)}"
            found[number] = name
            taken.add(name)
    return [found[number] for number in range(len(new))]


def export(base: Base, paths: Paths, *, root: Path = ROOT) -> dict[str, Any]:
    """Write the work tree's commits to the patch files, series, series.lock and the index.

    Nothing is written unless every patch applies exactly to the base again and gives the same tree.
    """
    tree = paths.tree
    if not tree.exists():
        raise SeriesError(Exit.DIRTY, f"there is no work tree {tree}", hint="run make apply first")
    _settle(tree)
    record = Record.read(tree / RECORD)
    found = edits(tree, record)
    if record is None or (found and not found.startswith("commits")):
        raise SeriesError(
            Exit.DIRTY, f"{tree} holds {found}", hint="commit or stash them, then export again"
        )
    mails = export_commits(tree)
    known = {path.stem: path.read_bytes() for path in sorted(base.folder.glob("*.patch"))}
    named = name_commits(tree, mails, known)
    fresh = dict(zip(named, mails, strict=True))
    _refuse_lost_patches(base, record, known, fresh)

    scratch = paths.state / ".scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    init(scratch)
    git(scratch, "fetch", "--quiet", "--no-tags", tree, "refs/tags/base:refs/tags/base")
    git(scratch, "reset", "--quiet", "--hard", "base")
    apply_patches(scratch, fresh)
    built = lock_of(scratch, named)
    if git(scratch, "rev-parse", "HEAD^{tree}") != git(tree, "rev-parse", "HEAD^{tree}"):
        raise SeriesError(Exit.PATCH, f"the patches do not give the tree of {tree} again")
    canonical = git(scratch, "rev-parse", "HEAD")
    if git(tree, "rev-parse", "HEAD") != canonical:
        # The same trees under the commit ids that every other machine gets.
        git(tree, "fetch", "--quiet", "--no-tags", scratch, "HEAD")
        git(tree, "reset", "--quiet", "--soft", canonical)
    shutil.rmtree(scratch)

    changed = [name for name, data in fresh.items() if write_atomic(base.patch(name), data)]
    removed = [name for name in record.patches if name not in fresh and name in known]
    if named != files.names(base):
        text = base.series_file.read_text(encoding="utf-8")
        write_atomic(base.series_file, files.with_names(text, named).encode())
    for name in removed:
        base.patch(name).unlink()
    write_atomic(base.lock_file, built.text().encode())
    write_atomic(root / "patches/README.md", files.index(root).encode())
    Record(record.source, canonical, {n: digest(d) for n, d in fresh.items()}).write(tree / RECORD)
    return {"patches": named, "changed": changed, "removed": removed}


def _refuse_lost_patches(
    base: Base, record: Record, known: dict[str, bytes], fresh: dict[str, bytes]
) -> None:
    """Stop before a patch file is overwritten or removed that the work tree does not contain."""
    if files.names(base) not in (list(record.patches), list(fresh)):
        raise SeriesError(
            Exit.DIRTY,
            f"{base.series_file} was changed since the last apply",
            hint="restore it, or commit it and see docs/maintain/workflow.md#local-edits",
        )
    for name, data in known.items():
        if name not in record.patches and name not in fresh:
            continue
        same = digest(data) == record.patches.get(name) or data == fresh.get(name)
        tracked = (
            name not in record.patches
            and not attempt(
                base.folder, "ls-files", "--error-unmatch", base.patch(name).name
            ).returncode
        )
        clean = (
            tracked
            and not attempt(
                base.folder, "diff", "--quiet", "HEAD", "--", base.patch(name).name
            ).returncode
        )
        if not same and not clean:
            raise SeriesError(
                Exit.DIRTY,
                f"{base.patch(name)} was edited since it was applied",
                hint="make the edit in the work tree, or restore the file with git checkout",
            )


def clean(paths: Paths) -> None:
    """Remove the work tree, unless it holds edits."""
    if paths.tree.exists():
        _settle(paths.tree)
        refuse_edits(paths.tree, Record.read(paths.tree / RECORD))
        shutil.rmtree(paths.tree)
