# SPDX-License-Identifier: Apache-2.0
"""The series as commits of a scratch repository, and as the patch files written from them."""

import itertools
import shutil
import tempfile
from pathlib import Path

from .config import Base
from .errors import Exit, SeriesError
from .git import ATTRIBUTES, FORMAT, attempt, first_line, git
from .patches import Locked
from .source import import_archive

DOES_NOT_APPLY = "see docs/maintain/workflow.md#a-patch-does-not-apply"


def init(repo: Path) -> None:
    """An empty repository whose settings keep bytes as they are, for the user's own git too."""
    shutil.rmtree(repo, ignore_errors=True)
    repo.mkdir(parents=True)
    git(repo, "init", "--quiet", "--template=")
    git(repo, "symbolic-ref", "HEAD", "refs/heads/series")
    for key, value in (("core.autocrlf", "false"), ("am.keepcr", "true"), ("gc.auto", "0")):
        git(repo, "config", key, value)
    (repo / ".git/info").mkdir(exist_ok=True)
    (repo / ".git/info/attributes").write_text(ATTRIBUTES)


def exported(repo: Path) -> list[bytes]:
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
                Exit.PATCH, f"{name}.patch does not apply ({reason})", hint=DOES_NOT_APPLY
            )
    _refuse_offsets(patches, exported(repo))


def _refuse_offsets(patches: dict[str, bytes], again: list[bytes]) -> None:
    """Git accepts offsets without a word; only the exported bytes show them."""
    for (name, data), other in zip(patches.items(), again, strict=True):
        if data != other:
            pairs = itertools.zip_longest(data.split(b"\n"), other.split(b"\n"))
            line = next(n for n, (one, two) in enumerate(pairs, start=1) if one != two)
            raise SeriesError(
                Exit.PATCH,
                f"{name}.patch applies only with an offset, or is not what export writes"
                f" (line {line})",
                hint=DOES_NOT_APPLY,
            )


def lock_of(repo: Path, order: list[str]) -> Locked:
    """What series.lock has to say about the commits of `repo`."""
    trees = git(repo, "log", "--reverse", "--format=%T", "base..HEAD").split()
    rows = zip(order, map(patch_id, exported(repo)), trees, strict=True)
    return Locked(
        git(repo, "rev-parse", "base^{tree}"), {name: (patch, tree) for name, patch, tree in rows}
    )


def patch_id(mail: bytes) -> str:
    """Git's id of a diff, the same wherever its lines stand; '-' if it has none."""
    found = git(Path.cwd(), "patch-id", "--stable", stdin=mail).split()
    return found[0] if found else "-"


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
    hint = "if the change is meant, remove series.lock, then make apply export"
    order = list(lock.patches)
    if (order if whole else order[: len(built.patches)]) != list(built.patches):
        raise SeriesError(
            Exit.LOCK, f"{base.lock_file} lists other patches than {base.series_file}", hint=hint
        )
    for name, row in built.patches.items():
        if row != lock.patches[name]:
            raise SeriesError(
                Exit.LOCK,
                f"the tree after {name} is {row[1]}, {base.lock_file} says {lock.patches[name][1]}",
                hint=hint,
            )


def import_base(base: Base, archive: Path, repo: Path) -> None:
    """A fresh `repo` with the pinned source, checked out and tagged `base`."""
    init(repo)
    import_archive(base, archive, repo)
    git(repo, "tag", "base", "series")
    git(repo, "reset", "--quiet", "--hard", "base")


def copy_base(origin: Path, repo: Path) -> None:
    """A fresh `repo` with the pinned source of another repository."""
    init(repo)
    git(repo, "fetch", "--quiet", "--no-tags", origin, "refs/tags/base:refs/tags/base")
    git(repo, "reset", "--quiet", "--hard", "base")


def build(base: Base, archive: Path, repo: Path, patches: dict[str, bytes]) -> Locked:
    """Make the whole history in a fresh `repo`, checked out."""
    import_base(base, archive, repo)
    apply_patches(repo, patches)
    return lock_of(repo, list(patches))
