# SPDX-License-Identifier: Apache-2.0
"""Export: the work tree's commits become the patch files, series, series.lock and the index."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import patches as files
from .commits import apply_patches, copy_base, exported, lock_of, patch_id
from .config import ROOT, Base, Paths
from .errors import Exit
from .git import attempt, git
from .patches import LONGEST, NAME, Locked, Mail
from .state import Record, digest, write_atomic
from .tree import BRANCH, LOCAL_EDITS, RECORD, edits, operation, settle


def export(
    base: Base, paths: Paths, *, drop: Sequence[str] = (), root: Path = ROOT
) -> dict[str, Any]:
    """Write the work tree's commits to the patch files, series, series.lock and the index.

    Nothing is written unless every patch applies exactly to the base again and gives the same
    tree. A patch whose commit is gone is removed only if `drop` names it.
    """
    tree = paths.tree
    record = _exportable(tree)
    mails = exported(tree)
    fresh = _named(mails)
    known = {path.stem: path.read_bytes() for path in sorted(base.folder.glob("*.patch"))}
    _refuse_lost_patches(base, record, known, fresh)
    gone = [name for name in record.patches if name not in fresh]
    renamed = _renamed(gone, known, record, fresh)
    # Without its file it was dropped before, by an export that was cut off.
    _refuse_drops(gone, [name for name in gone if name in known and name not in renamed], drop)

    built, canonical = _prove(paths, fresh)
    if git(tree, "rev-parse", "HEAD") != canonical:
        # The same trees under the commit ids that every other machine gets.
        git(tree, "fetch", "--quiet", "--no-tags", paths.state / ".scratch", "HEAD")
        git(tree, "reset", "--quiet", "--soft", canonical)
    shutil.rmtree(paths.state / ".scratch")

    changed = [name for name, data in fresh.items() if write_atomic(base.patch(name), data)]
    named = list(fresh)
    if named != files.names(base):
        text = base.series_file.read_text(encoding="utf-8")
        write_atomic(base.series_file, files.with_names(text, named).encode())
    for name in gone:
        base.patch(name).unlink(missing_ok=True)
    write_atomic(base.lock_file, built.text().encode())
    write_atomic(root / "patches/README.md", files.index(root).encode())
    Record(record.source, canonical, {n: digest(d) for n, d in fresh.items()}).write(tree / RECORD)
    removed = [name for name in gone if name in known]
    return {"patches": named, "changed": changed, "removed": removed, "renamed": renamed}


def _exportable(tree: Path) -> Record:
    """The record of a work tree that holds nothing but commits on its branch."""
    if not tree.exists():
        raise Exit.DIRTY(f"there is no work tree {tree}", "run make apply first")
    if not (tree / ".git").exists():
        # git would take the repository around it.
        raise Exit.DIRTY(f"{tree} is no git work tree", "move it away, then make apply")
    settle(tree)
    if under_way := operation(tree):
        raise Exit.DIRTY(f"{tree} holds {under_way}", "finish or abort it, then export again")
    head = attempt(tree, "symbolic-ref", "--quiet", "HEAD").stdout.decode().strip()
    if head != BRANCH:
        raise Exit.DIRTY(
            f"{tree} is {f'on {head}' if head else 'on no branch'}, export takes {BRANCH}",
            "git checkout series there, and bring your commits to it",
        )
    record = Record.read(tree / RECORD)
    found = edits(tree, record)
    if record is None or (found and not found.startswith("commits")):
        raise Exit.DIRTY(f"{tree} holds {found}", "commit or stash them, then export again")
    if not attempt(tree, "rev-parse", "--verify", "--quiet", "base^").returncode:
        raise Exit.DIRTY(
            f"the tag base of {tree} is not its first commit, the pinned source",
            "move it back: git tag --force base <first commit>",
        )
    return record


def _named(mails: list[bytes]) -> dict[str, bytes]:
    """The exported commits by the name that each says in its trailer `Patch-Name:`."""
    found: dict[str, bytes] = {}
    for data in mails:
        mail = Mail.parse(data)
        said = mail.trailers.get("Patch-Name", [])
        if len(said) != 1:
            raise Exit.PATCH(
                f"the commit {mail.subject!r} has {len(said) or 'no'} Patch-Name: trailer"
                f"{'s' if said else ''}",
                "git commit --amend or git rebase -i base, and add one line"
                " `Patch-Name: short-name` to its last paragraph",
            )
        name = said[0]
        if not NAME.fullmatch(name) or len(name) > LONGEST:
            raise Exit.PATCH(
                f"the commit {mail.subject!r} has Patch-Name: {name}",
                f"write it in kebab-case, a letter first, at most {LONGEST} characters",
            )
        if name in found:
            raise Exit.PATCH(
                f"two commits have Patch-Name: {name}, the second is {mail.subject!r}",
                "change one of the trailers, or squash the commits",
            )
        found[name] = data
    return found


def _renamed(
    gone: list[str], known: dict[str, bytes], record: Record, fresh: dict[str, bytes]
) -> dict[str, str]:
    """The new name of each patch that is still there: the same diff under another Patch-Name."""
    new = {patch_id(data): name for name, data in fresh.items() if name not in record.patches}
    pairs = {name: new.get(patch_id(known[name])) for name in gone if name in known}
    return {name: other for name, other in pairs.items() if other}


def _refuse_drops(gone: list[str], dropped: list[str], drop: Sequence[str]) -> None:
    """A commit that is not there drops its patch only if the user said so."""
    if surplus := [name for name in drop if name not in gone]:
        raise Exit.USAGE(
            f"DROP names {', '.join(surplus)}, which export would not remove",
            "remove the commit first, or correct the name",
        )
    if any(name not in drop for name in dropped):
        raise Exit.DIRTY(
            f"the work tree lacks the commits of {', '.join(dropped)}",
            f'to drop them: make export DROP="{" ".join(dropped)}"; see {LOCAL_EDITS}',
        )


def _prove(paths: Paths, fresh: dict[str, bytes]) -> tuple[Locked, str]:
    """Apply the patches to the base in a scratch repository: the lock, and the last commit."""
    tree, scratch = paths.tree, paths.state / ".scratch"
    copy_base(tree, scratch)
    apply_patches(scratch, fresh)
    built = lock_of(scratch, list(fresh))
    if git(scratch, "rev-parse", "HEAD^{tree}") != git(tree, "rev-parse", "HEAD^{tree}"):
        raise Exit.PATCH(f"the patches do not give the tree of {tree} again")
    return built, git(scratch, "rev-parse", "HEAD")


def _refuse_lost_patches(
    base: Base, record: Record, known: dict[str, bytes], fresh: dict[str, bytes]
) -> None:
    """Stop before a patch file is overwritten or removed that the work tree does not contain."""
    if files.names(base) not in (list(record.patches), list(fresh)):
        raise Exit.DIRTY(
            f"{base.series_file} was changed since the last apply",
            f"restore it, or commit it and see {LOCAL_EDITS}",
        )
    for name, data in known.items():
        applied = record.patches.get(name)
        if applied is None and name not in fresh:
            continue
        if digest(data) == applied or data == fresh.get(name):
            continue
        if applied is None and _committed(base.patch(name)):
            continue
        # Committed as it is, git checkout has no other: it came with a commit or a checkout.
        restore = f"see {LOCAL_EDITS}" if _committed(base.patch(name)) else "with git checkout"
        raise Exit.DIRTY(
            f"{base.patch(name)} was edited since it was applied",
            f"make the edit in the work tree, or restore the file {restore}",
        )


def _committed(file: Path) -> bool:
    """Whether this repository has the file just as it is."""
    asked = (("ls-files", "--error-unmatch"), ("diff", "--quiet", "HEAD", "--"))
    return not any(attempt(file.parent, *words, file.name).returncode for words in asked)
