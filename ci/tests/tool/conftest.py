# SPDX-License-Identifier: Apache-2.0
"""A toy upstream with a series of three patches, and the means to plant faults in it."""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
import re
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import forked
from series import settings
from series.cli import KEEP, function_of, parse
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit, SeriesError

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_kernel_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """CI moves the real kernels' cache; toy kernels must not end up in it."""
    monkeypatch.delenv("KERNEL_CACHE", raising=False)


UPSTREAM: dict[str, bytes] = {
    "toy/__init__.py": b"",
    "toy/model.py": b"".join(b"line_%d = %d\n" % (n, n) for n in range(1, 61)),
    "toy/dos.txt": b"one\r\ntwo\r\nthree\r\n",
    "toy/trailing.txt": b"space at the end \nand a tab\t\nno newline at the end",
    ".gitignore": b"hidden/\n*.so\n",
    "hidden/kept.txt": b"listed in .gitignore, yet part of the release\n",
    'odd "name" \\ \xc3\xa9.txt'.encode("latin-1").decode("utf-8"): b"quoted\n",
    ".gitattributes": b"*.txt text eol=lf\n*.py diff=python ident\n",
    "run.sh": b"#!/bin/sh\necho $Id$\n",
}
CLOCK = itertools.count()
SCRATCH = {".git", ".staging", ".check", ".diff", ".scratch", ".lock", ".check.lock"}
SCRATCH |= {"toy-1.0.git", "releases", "cache", "config.mk"}
GENERATED = ("PKG-INFO", "setup.cfg", "toy.egg-info/PKG-INFO", "toy/_version.py")

MESSAGE = """\
[Model] {title}

Problem: the toy lacks something. It shows here.

Change: add it.

Proof: the tests of the tool.

Upstream: no (a toy has no upstream)
Drop-When: version >= 2.0
Signed-off-by: Toy Maker <toy@example.com>
"""


def message(title: str, name: str = "") -> str:
    """A commit message; the patch is named after the title unless a name is given."""
    name = name or re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return MESSAGE.format(title=title).replace("Upstream:", f"Patch-Name: {name}\nUpstream:")


def make_sdist(path: Path, files: Mapping[str, bytes] = UPSTREAM) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name in (*files, *GENERATED):
            data = files.get(name, b"generated\n")
            info = tarfile.TarInfo(f"toy-1.0/{name}")
            info.size, info.mode = len(data), 0o775 if name.endswith(".sh") else 0o664
            out.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("toy-1.0/link.py")
        link.type, link.linkname = tarfile.SYMTYPE, "toy/model.py"
        out.addfile(link)


def make_wheel(path: Path, files: Mapping[str, str | bytes], record: str = "") -> str:
    """A wheel of the package and version that its name says; its sha256."""
    name, version = path.name.split("-")[:2]
    info = f"{name}-{version}.dist-info"
    head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    kind = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    of_wheel = {f"{info}/METADATA": head, f"{info}/WHEEL": kind, f"{info}/RECORD": record}
    with zipfile.ZipFile(path, "w") as out:
        for file, data in {**files, **of_wheel}.items():
            out.writestr(file, data)
    return digest(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(folder: Path, *args: str) -> str:
    """Plain git, as a user calls it, with an identity of its own."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env.update(GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1")
    for role in ("AUTHOR", "COMMITTER"):
        env[f"GIT_{role}_NAME"], env[f"GIT_{role}_EMAIL"] = "Toy Maker", "toy@example.com"
    done = subprocess.run(
        ["git", *args], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@dataclasses.dataclass
class Project:
    """A checkout with `patches/v1` on the toy upstream."""

    root: Path
    sources: Path

    @property
    def base(self) -> Path:
        return self.root / "patches/v1"

    @property
    def tree(self) -> Path:
        return self.root / "build/v1/vllm"

    def start(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        sources: bool = True,
        tool: Sequence[str] = (sys.executable, "-m", "series"),
        **options: Any,
    ) -> subprocess.Popen[str]:
        """Start the command line on this project, its output in pipes unless said otherwise."""
        given = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
        command = [*tool, *self._arguments(args, sources)]
        return subprocess.Popen(command, cwd=self.root, env=self._environment(env), **given)

    def _arguments(self, args: Sequence[str], sources: bool) -> list[str]:
        base = ["--base", "v1"] if "--base" not in args else []
        source = ["--sources", str(self.sources)] if sources else []
        return [args[0], *base, *source, *args[1:]]

    def _environment(self, env: Mapping[str, str] | None) -> dict[str, str]:
        own = {"SERIES_ROOT": str(self.root), "PYTHONPATH": str(REPO / "scripts")}
        return {**os.environ, **own, **(env or {})}

    def run(
        self,
        *args: str,
        env: Mapping[str, str] | None = None,
        sources: bool = True,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end; in a forked process unless `start` has to do more."""
        given = self._arguments(args, sources)
        if not options and "PYTHONPATH" not in (env or {}):
            out = self.root.parent / f"{self.root.name}.run"
            done = forked.run(given, self._environment(env), self.root, out)
            return subprocess.CompletedProcess(given, *done)
        with self.start(*args, env=env, sources=sources, **options) as process:
            said, errors = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, said, errors)

    def ok(self, *args: str, env: Mapping[str, str] | None = None) -> str:
        done = self.run(*args, env=env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def patch(self, name: str) -> Path:
        return self.base / f"{name}.patch"

    def edit(self, name: str, old: str, new: str) -> None:
        text = self.patch(name).read_bytes()
        assert old.encode() in text
        self.patch(name).write_bytes(text.replace(old.encode(), new.encode(), 1))

    def series(self, *names: str) -> None:
        (self.base / "series").write_text("".join(f"{name}\n" for name in names))

    def commit(self, title: str, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
            (self.tree / name).write_bytes(data)
            git(self.tree, "add", "-f", name)
        # Two commits of one author do not have the same second.
        date = f"{1_700_000_000 + next(CLOCK)} +0000"
        git(self.tree, "commit", "-q", "--date", date, "-m", message(title))

    def tree_id(self) -> str:
        return git(self.tree, "rev-parse", "HEAD^{tree}")

    def patches(self) -> dict[str, bytes]:
        """All generated and hand-written files of patches/."""
        folder = self.root / "patches"
        return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}

    def snapshot(self) -> dict[str, object]:
        """Every file of the checkout and the work tree, and where its branch is."""
        found: dict[str, object] = {}
        for path in sorted(self.root.rglob("*")):
            name = path.relative_to(self.root)
            # Git's own folders, and scratch that the next run removes, are not the user's.
            if SCRATCH & set(name.parts):
                continue
            if path.is_symlink():
                found[str(name)] = path.readlink()
            elif path.is_file():
                found[str(name)] = (stat.S_IMODE(path.stat().st_mode), path.read_bytes())
        if (self.tree / ".git").exists():
            found["HEAD"] = git(self.tree, "rev-parse", "HEAD")
        return found


def call(verb: str, base: Base, paths: Paths, *given: str) -> Exit:
    """Run a verb in this process, on a base and folders of the test's own."""
    args = parse([verb, "--build-dir", str(paths.build), "--wait", "1", *given])
    command = Command(args)
    command.base = base
    settings.resolve(args, paths, keep=verb in KEEP)
    return function_of(verb)(command) or Exit.OK


NAMES = ("add-the-first", "add-the-second", "add-dos-lines")


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy's sdist and wheel."""
    folder = tmp_path_factory.mktemp("upstream")
    make_sdist(folder / "toy-1.0.tar.gz")
    make_wheel(folder / "toy-1.0-py3-none-any.whl", {})
    return folder


@pytest.fixture(scope="session")
def upstream_git(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the toy with the tag v1.0."""
    folder = tmp_path_factory.mktemp("git") / "toy"
    git_init(folder)
    for name, data in UPSTREAM.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / "run.sh").chmod(0o755)
    (folder / "link.py").symlink_to("toy/model.py")
    (folder / ".git/info/attributes").write_text("* -text -ident\n")
    git(folder, "add", "-f", "-A")
    git(folder, "commit", "-q", "-m", "toy")
    git(folder, "tag", "v1.0")
    return folder


@contextlib.contextmanager
def failing(code: Exit, match: str | None = None) -> Iterator[pytest.ExceptionInfo[SeriesError]]:
    """What runs inside ends with an error of this status, and says so."""
    with pytest.raises(SeriesError, match=match) as caught:
        yield caught
    assert caught.value.code is code


def program(path: Path, script: str, shell: str = "/bin/sh") -> Path:
    """Write a program that a test puts in the place of a real one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{shell}\n{script}\n")
    path.chmod(0o755)
    return path


def other_git(folder: Path, case: str) -> str:
    """A PATH with a git that does something else in a case of the shell."""
    real = shutil.which("git")
    program(folder / "git", f'case "$*" in {case};; esac\nexec {real} "$@"')
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def one_line(errors: str) -> str:
    """The one line that is all there is on standard error: what went wrong, and what to do."""
    (line,) = errors.splitlines()
    assert re.fullmatch(r"error: \S.*; \S.*", line), line
    return line


def git_init(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "-q")


@pytest.fixture(scope="session")
def master(tmp_path_factory: pytest.TempPathFactory, upstream: Path, upstream_git: Path) -> Project:
    """The finished project, applied; tests work on copies of it."""
    project = Project(tmp_path_factory.mktemp("master") / "project", upstream)
    project.base.mkdir(parents=True)
    archive, wheel = upstream / "toy-1.0.tar.gz", upstream / "toy-1.0-py3-none-any.whl"
    (project.base / "base.toml").write_text(
        f"""\
[upstream]
package = "toy"
version = "1.0"
[archive]
name = "{archive.name}"
sha256 = "{digest(archive)}"
generated = ["PKG-INFO", "setup.cfg", "toy.egg-info/", "toy/_version.py"]
[git]
url = "{upstream_git}"
tag = "v1.0"
commit = "{git(upstream_git, "rev-parse", "HEAD")}"
[wheel]
name = "{wheel.name}"
sha256 = "{digest(wheel)}"
[build]
torch = "1"
python = ">=3.10,<3.14"
"""
    )
    (project.base / "series").write_text("# the order\n")
    project.ok("apply")
    model = UPSTREAM["toy/model.py"]
    first = model.replace(b"line_2 = 2\n", b"line_2 = 2\nfirst_a = 1\nfirst_b = 1\n")
    second = first.replace(b"line_40 = 40\n", b"line_40 = 'forty'\n")
    new = (
        b"# SPDX-License-Identifier: Apache-2.0\n"
        b"# SPDX-FileCopyrightText: Copyright contributors to the vLLM project\n"
        b"x = 1\n"
    )
    project.commit("Add the first", {"toy/model.py": first})
    project.commit("Add the second", {"toy/model.py": second, "toy/new.py": new})
    project.commit("Add DOS lines", {"toy/dos.txt": b"one\r\ntwo and a half\r\nthree\r\n"})
    project.ok("export")
    (project.root / ".gitignore").write_text("build/\n")
    git(project.root, "init", "-q")
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "-m", "project")
    return project


@pytest.fixture
def project(master: Project, tmp_path: Path) -> Project:
    """A copy of the finished project with its series applied."""
    shutil.copytree(master.root, tmp_path / "project", symlinks=True)
    return Project(tmp_path / "project", master.sources)


@pytest.fixture
def fresh(project: Project) -> Project:
    """A copy of the finished project as just cloned."""
    shutil.rmtree(project.root / "build")
    return project
