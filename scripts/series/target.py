# SPDX-License-Identifier: Apache-2.0
"""Another state of upstream: a release, a folder, or a commit; as files and as a git tree."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from . import patches as files
from . import releases
from .command import Command
from .conditions import Tree
from .errors import Exit, hide
from .fetch import git_tag
from .git import attempt, first_line, git

VERSION = re.compile(r"v?(\d+(?:\.\d+)+\S*)")


class Target(NamedTuple):
    """Upstream's source to compare with; its objects can be read in the scratch repository."""

    label: str
    source: Tree  # the files, and the version
    tree: str  # id of the git tree
    commit: str  # id of the commit; empty without a history

    @property
    def file_name(self) -> str:
        return re.sub(r"[^\w.+-]+", "-", self.label).strip("-.") or "tree"


def resolve(command: Command, repo: Path, ref: str, version: str = "") -> Target:
    """What `ref` names: a release of releases.toml or the base, FOLDER, FOLDER@REV, or a ref of
    upstream's repository. `repo` is a scratch repository with the base."""
    base = command.base
    if not ref:
        raise Exit.USAGE(
            "nothing to compare with", "add REF=: a release, FOLDER, FOLDER@REV, a ref"
        )
    if ref in (base.version, *files.releases(base)):
        source = releases.trees(command, ref)[0]
        tree = snapshot(repo, source.folder)
        if ref == base.version:
            tree = git(repo, "rev-parse", "base^{tree}")
        return Target(ref, source, tree, "")
    folder, _, rev = (ref, "", "") if Path(ref).is_dir() else ref.rpartition("@")
    if not folder:
        folder, rev = str(_fetch(command, ref)), "FETCH_HEAD"
    elif not Path(folder).is_dir():
        raise Exit.USAGE(f"{folder} is no folder", "name a release, FOLDER, FOLDER@REV or a ref")
    where = Path(folder).resolve()
    label = ref if rev == "FETCH_HEAD" else f"{where.name}@{rev}" if rev else where.name
    bare = (where / "HEAD").is_file() and (where / "objects").is_dir()
    if not rev and not bare and not (where / ".git").exists():
        said = version or _written(where)
        return Target(label, Tree(where, _known(said, label)), snapshot(repo, where), "")
    borrow(repo, where)
    found = attempt(where, "rev-parse", "--verify", "--quiet", f"{rev or 'HEAD'}^{{commit}}")
    if found.returncode:
        raise Exit.USAGE(f"{where} has no commit {rev or 'HEAD'}", "name one, or fetch it there")
    commit = found.stdout.decode().strip()
    described = attempt(where, "describe", "--tags", "--match", "v[0-9]*", commit)
    tree = git(repo, "rev-parse", f"{commit}^{{tree}}")
    source = Tree(
        checkout(repo, tree, command.paths.state / ".canary-tree"),
        _known(version or described.stdout.decode().strip(), label),
    )
    return Target(label, source, tree, commit)


def _written(folder: Path) -> str:
    """The version that a source archive says of itself."""
    info = folder / "PKG-INFO"
    text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
    found = re.search(r"^Version: (\S+)$", text, re.M)
    return found[1] if found else ""


def _known(version: str, label: str) -> str:
    match = VERSION.fullmatch(version)
    if match is None:
        raise Exit.USAGE(f"{label} does not say its version", "add VERSION=, such as 0.34.0.dev1")
    return match[1]


def snapshot(repo: Path, folder: Path) -> str:
    """The id of the tree of all files of a folder, ignored ones too, but for byte code."""
    git(repo, "read-tree", "--empty")
    where = f"--work-tree={folder.resolve()}"
    git(repo, where, "add", "--all", "--force", "--", ".", ":(exclude)**/__pycache__/**")
    return git(repo, "write-tree")


def checkout(repo: Path, tree: str, folder: Path) -> Path:
    """Write the files of a tree to a fresh folder, without a git work tree."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    git(repo, "read-tree", tree)
    git(repo, "checkout-index", "--all", f"--prefix={folder.resolve()}/")
    return folder


def borrow(repo: Path, other: Path) -> None:
    """Let `repo` read the objects of another repository, without a copy."""
    objects = git(other, "rev-parse", "--git-path", "objects")
    file = repo / ".git/objects/info/alternates"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(f"{(other / objects).resolve()}\n")


def _fetch(command: Command, ref: str) -> Path:
    """A ref of upstream's repository with its history; the clone stays for the next time."""
    base = command.base
    repo = command.paths.build / "releases" / f"{base.package}.git"
    if not (repo / "HEAD").is_file():
        repo.mkdir(parents=True, exist_ok=True)
        git(repo, "init", "--quiet", "--bare", "--template=")
    # As in fetch_git, the user's own git settings apply (proxy, mirror, credentials).
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    # With the tags, by which git describes a version.
    for wanted in ("+refs/tags/v*:refs/tags/v*", ref):
        done = subprocess.run(
            ["git", "fetch", "--quiet", "--no-tags", git_tag(base).url, wanted],
            cwd=repo,
            env=env,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            reason = hide(first_line(done.stderr)).removeprefix("fatal: ")
            what = wanted.partition(":")[0].lstrip("+")
            raise Exit.SOURCE(
                f"cannot fetch {what} from {hide(git_tag(base).url)} ({reason})",
                "name a release of releases.toml, or FOLDER@REV of a clone",
            )
    return repo
