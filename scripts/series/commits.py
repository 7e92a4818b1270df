# SPDX-License-Identifier: Apache-2.0
"""The series as commits of a scratch repository, and as the patch files written from them."""

import itertools
import shutil
import signal
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import IO

from .config import Base
from .errors import MAKE_ROOM, SAYS_FULL, Exit
from .git import ATTRIBUTES, FORMAT, WHO, attempt, environment, first_line, git
from .patches import Locked

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


# ---- the pinned source ----


def import_archive(base: Base, archive: Path, repo: Path) -> None:
    """Make the base commit on the branch `series` of `repo`.

    `git fast-import` takes the bytes as they are: no filter, .gitignore or umask can change them.
    """
    importer = subprocess.Popen(
        ["git", "-c", "core.compression=1", "fast-import", "--quiet", "--done", "--depth=0"],
        cwd=repo,
        env=environment(),
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert importer.stdin is not None and importer.stderr is not None
    reason = ""
    try:
        with importer.stdin as out, tarfile.open(archive) as stream:
            _write_commit(base, stream, out)
    except BrokenPipeError:
        pass  # it has ended, and says why
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error)
    finally:
        message = importer.stderr.read()
        code = importer.wait()
    if SAYS_FULL.search(f"{reason} {first_line(message)}") or code == -signal.SIGXFSZ:
        raise Exit.FAILED(f"the disk is full ({archive.name} cannot be imported)", MAKE_ROOM)
    if code or reason:
        raise Exit.SOURCE(
            f"{archive.name} cannot be imported ({reason or first_line(message)})",
            "check the disk, and run it again",
        )


def _write_commit(base: Base, stream: tarfile.TarFile, out: IO[bytes]) -> None:
    message = f"{base.package} {base.version}\n".encode()
    out.write(f"commit refs/heads/series\nauthor {WHO}\ncommitter {WHO}\n".encode())
    out.write(b"data %d\n%s\n" % (len(message), message))
    for member in stream:
        # An sdist and `git archive --prefix` both put everything into one folder.
        path = PurePosixPath(*PurePosixPath(member.name).parts[1:])
        if member.isdir() or _is_generated(base, str(path)):
            continue
        if member.name.startswith("/") or {"..", ".git"} & set(path.parts) or not path.parts:
            raise Exit.SOURCE(f"unsafe path in the source archive: {member.name}")
        if member.issym():
            mode, data = "120000", member.linkname.encode()
        elif member.isfile():
            handle = stream.extractfile(member)
            assert handle is not None
            mode, data = ("100755" if member.mode & 0o100 else "100644"), handle.read()
        else:
            raise Exit.SOURCE(f"not a file in the source archive: {member.name}")
        quoted = str(path).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        out.write(f'M {mode} inline "{quoted}"\n'.encode("utf-8", "surrogateescape"))
        out.write(b"data %d\n%s\n" % (len(data), data))
    out.write(b"done\n")


def _is_generated(base: Base, path: str) -> bool:
    return any(path == g or (g.endswith("/") and path.startswith(g)) for g in base.generated)


# ---- the patches ----


def exported(repo: Path) -> list[bytes]:
    """The commits after `base` as patch files, oldest first."""
    merges = git(repo, "rev-list", "--merges", "base..HEAD")
    if merges or attempt(repo, "merge-base", "--is-ancestor", "base", "HEAD").returncode:
        raise Exit.PATCH(
            f"the commits of {repo} are not a straight line from the tag base",
            "rebase them: git rebase --onto base <first commit>^",
        )
    with tempfile.TemporaryDirectory(dir=repo / ".git") as folder:
        git(repo, "format-patch", "--quiet", *FORMAT, "-o", folder, "base..HEAD")
        mails = [path.read_bytes() for path in sorted(Path(folder).iterdir())]
    if b"" in mails:
        commits = git(repo, "log", "--reverse", "--format=%h (%s)", "base..HEAD").split("\n")
        raise Exit.PATCH(
            f"the commit {commits[mails.index(b'')]} changes nothing, a patch cannot be empty",
            "git rebase -i base, and delete its line",
        )
    return mails


def apply_patches(repo: Path, patches: dict[str, bytes]) -> None:
    """Commit the patches on top of HEAD, each exactly: no fuzz, no offset, none dropped."""
    if not patches:
        return
    with tempfile.TemporaryDirectory(dir=repo / ".git") as folder:
        mails = {name: Path(folder) / f"{name}.patch" for name in patches}
        for name, mail in mails.items():
            mail.write_bytes(patches[name])
            if attempt(repo, "apply", "--numstat", mail).returncode:
                raise Exit.PATCH(
                    f"{name}.patch is corrupted: git cannot read it",
                    "restore it with git checkout, or export it again",
                )
        done = attempt(repo, "am", "--quiet", "--keep", "--keep-cr", "--no-3way", *mails.values())
        # Counted, because git am can succeed and yet leave out a patch.
        applied = int(git(repo, "rev-list", "--count", "base..HEAD"))
        if done.returncode or applied != len(patches):
            name = list(patches)[min(applied, len(patches) - 1)]
            if not attempt(repo, "apply", "--check", "--reverse", mails[name]).returncode:
                raise Exit.PATCH(
                    f"{name}.patch changes nothing: the source already has it",
                    "remove it from series",
                )
            reason = first_line(done.stderr).removeprefix("error: ")
            raise Exit.PATCH(f"{name}.patch does not apply ({reason})", DOES_NOT_APPLY)
    _refuse_offsets(patches, exported(repo))


def _refuse_offsets(patches: dict[str, bytes], again: list[bytes]) -> None:
    """Git accepts offsets without a word; only the exported bytes show them."""
    for (name, data), other in zip(patches.items(), again, strict=True):
        if data != other:
            pairs = itertools.zip_longest(data.split(b"\n"), other.split(b"\n"))
            line = next(n for n, (one, two) in enumerate(pairs, start=1) if one != two)
            raise Exit.PATCH(
                f"{name}.patch applies only with an offset, or is not what export writes"
                f" (line {line})",
                DOES_NOT_APPLY,
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
        raise Exit.LOCK(
            f"the source's tree is {built.base}, {base.lock_file} says {lock.base}",
            "is base.toml of another release? then remove series.lock and export again",
        )
    hint = "if the change is meant, remove series.lock, then make apply export"
    order = list(lock.patches)
    if (order if whole else order[: len(built.patches)]) != list(built.patches):
        raise Exit.LOCK(f"{base.lock_file} lists other patches than {base.series_file}", hint)
    for name, row in built.patches.items():
        if row != lock.patches[name]:
            raise Exit.LOCK(
                f"the tree after {name} is {row[1]}, {base.lock_file} says {lock.patches[name][1]}",
                hint,
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
