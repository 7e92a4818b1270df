# SPDX-License-Identifier: Apache-2.0
"""The states of patches on another upstream, their contracts, the reports and bisect."""

import json
import os
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from conftest import NAMES, REPO, UPSTREAM, Project, digest, git, make_sdist
from series import canary, contract, patches
from series.config import Base
from series.contract import Source, Use
from series.errors import Exit
from series.place import STATES

FIRST, SECOND, DOS = NAMES
HEAD = (
    b"# SPDX-License-Identifier: Apache-2.0\n"
    b"# SPDX-FileCopyrightText: Copyright contributors to the vLLM project\n"
)
LIBRARY = b"""\
class Old:
    def run(self, one, two=2):
        pass

    def keep(self):
        pass


class Middle(Old):
    pass


def helper(first, second=None):
    pass


KNOWN = {"apples": 1, "pears": 2}
"""
USER = (
    HEAD
    + b"""\
from toy.library import Middle
from toy.library import helper as help_out


class Mine(Middle):
    def run(self, one, two=2):
        help_out(1, second=2)
        return self.keep()
"""
)


@pytest.fixture(scope="module")
def plain(master: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, and later releases of the toy: each is a plain folder of its own."""
    root = tmp_path_factory.mktemp("plain") / "project"
    shutil.copytree(master.root, root, symlinks=True)
    return Project(root, master.sources)


def tree(tmp_path: Path, **changes: bytes | None) -> Path:
    """The toy with the contents of some files changed (`model` for toy/model.py), or gone."""
    folder = tmp_path / "upstream"
    names = {"model": "toy/model.py", "dos": "toy/dos.txt", "new": "toy/new.py"}
    for name, data in {**UPSTREAM, **{names[key]: data for key, data in changes.items()}}.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
    return folder


def report(project: Project, *args: str, code: Exit = Exit.OK) -> dict[str, Any]:
    done = project.run("canary", *args, "--json")
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def states(found: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one["state"] for one in found["patches"]}


MODEL = UPSTREAM["toy/model.py"]
NEAR = MODEL.replace(b"line_4 = 4\n", b"line_4 = 'four'\n")
WITH_FIRST = MODEL.replace(b"line_2 = 2\n", b"line_2 = 2\nfirst_a = 1\nfirst_b = 1\n")
PLANTED: dict[str, tuple[dict[str, bytes | None], tuple[str, str, str]]] = {
    "nothing": ({}, ("clean", "clean", "clean")),
    "lines above": (
        {"model": MODEL.replace(b"line_20 = 20\n", b"line_20 = 20\n# one\n# two\n")},
        ("clean", "offset", "clean"),
    ),
    "a line of the context": ({"model": NEAR}, ("three-way", "clean", "clean")),
    "the same line": (
        {"model": MODEL.replace(b"line_40 = 40\n", b"line_40 = 44\n")},
        ("clean", "conflict", "clean"),
    ),
    "the file is gone": ({"dos": None}, ("clean", "clean", "conflict")),
    "the patch is there": ({"model": WITH_FIRST}, ("upstreamed", "clean", "clean")),
    "its file is there": ({"new": b"x = 1\n"}, ("clean", "conflict", "clean")),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_change_gives_the_state(case: str, plain: Project, tmp_path: Path) -> None:
    changes, expected = PLANTED[case]
    folder = tree(tmp_path, **changes)
    found = report(plain, str(folder), "--version", "1.5", "--policy", "report")
    assert tuple(states(found).values()) == expected


def test_what_needs_a_patch_that_is_left_out_is_blocked(project: Project, tmp_path: Path) -> None:
    again = b"line_40 = 'forty'\nmore = 1\n"
    model = (project.tree / "toy/model.py").read_bytes()
    project.commit("Add more", {"toy/model.py": model.replace(b"line_40 = 'forty'\n", again)})
    project.ok("export")
    other = MODEL.replace(b"line_40 = 40\n", b"line_40 = 44\n")
    found = report(project, str(tree(tmp_path, model=other)), "--version", "1.5", code=Exit.FAILED)
    assert states(found) == {
        FIRST: "clean",
        SECOND: "conflict",
        DOS: "clean",
        "add-more": "blocked",
    }
    assert found["patches"][3]["by"] == [SECOND]
    assert found["failed"] == [SECOND, "add-more"]
    # A conflict of its own is no block, though the file has one already.
    both = other.replace(b"line_20 = 20\n", b"line_20 = 22\n")
    own = model.replace(b"line_20 = 20\n", b"line_20 = 'twenty'\n")
    git(project.tree, "reset", "-q", "--hard", "HEAD~1")
    project.commit("Add other", {"toy/model.py": own})
    project.ok("export", "--drop", "add-more")
    found = report(project, str(tree(tmp_path, model=both)), "--version", "1.5", code=Exit.FAILED)
    assert states(found)["add-other"] == "conflict"


def test_code_that_upstream_took_without_its_tests(project: Project, tmp_path: Path) -> None:
    model = (project.tree / "toy/model.py").read_bytes().replace(b"= 20\n", b"= 'twenty'\n")
    project.commit("Add tested", {"toy/model.py": model, "tests/test_it.py": b"x = 1\n"})
    project.ok("export")
    for theirs, state in ((b"= 'twenty'\n", "upstreamed"), (b"= 22\n", "conflict")):
        folder = tree(tmp_path, model=MODEL.replace(b"= 20\n", theirs))
        found = report(project, str(folder), "--version", "1.5", "--policy", "report")
        assert states(found)["add-tested"] == state


def test_superseded_by_its_drop_when(plain: Project, tmp_path: Path) -> None:
    found = report(plain, str(tree(tmp_path)), "--version", "2.0")
    assert set(states(found).values()) == {"superseded"}
    assert set(STATES) >= set(found["counts"])


def test_the_conflicting_hunks_and_the_merge_are_written(plain: Project, tmp_path: Path) -> None:
    changed = NEAR.replace(b"line_40 = 40\n", b"line_40 = 44\n")
    out = tmp_path / "out"
    folder = tree(tmp_path, model=changed)
    found = report(plain, str(folder), "--version", "1.5", "--out", str(out), code=Exit.FAILED)
    (trouble,) = found["patches"][1]["troubles"]
    assert trouble["reason"] == "1 conflicting hunk"
    for line in ("<<<<<<< there", "line_40 = 44", "||||||| base", "line_40 = 'forty'"):
        assert line in trouble["hunks"][0]
        assert line in (out / f"{SECOND}.conflict").read_text()
    # The merged patch applies exactly where the old one did not.
    git(folder, "init", "-q")
    git(folder, "apply", "--check", str(out / f"{FIRST}.diff"))
    suite = ET.parse(out / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("3", "1")
    (failure,) = suite.iter("failure")
    assert failure.get("message") == "conflict"
    text = (out / "report.md").read_text()
    assert f"| {SECOND} | conflict | toy/model.py: 1 conflicting hunk |" in text
    assert "&lt;&lt;&lt;&lt;&lt;&lt;&lt; there" in text
    assert json.loads((out / "report.json").read_text())["counts"]["conflict"] == 1


@pytest.mark.parametrize(
    ("policy", "model", "code"),
    [
        ("exact", MODEL, Exit.OK),
        ("exact", NEAR, Exit.FAILED),
        ("usable", NEAR, Exit.OK),
        ("usable", MODEL[200:], Exit.FAILED),
        ("report", MODEL[200:], Exit.OK),
    ],
)
def test_the_policy_decides_the_status(
    policy: str, model: bytes, code: Exit, plain: Project, tmp_path: Path
) -> None:
    folder = tree(tmp_path, model=model)
    report(plain, str(folder), "--version", "1.5", "--policy", policy, code=code)


def test_a_release_and_its_false_trailer(project: Project, tmp_path: Path) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(project.sources, sources)
    archive = sources / "toy-2.0.tar.gz"
    make_sdist(archive, UPSTREAM)
    (project.base / "releases.toml").write_text(
        f'["2.0"]\narchive = "{archive.name}"\nsha256 = "{digest(archive)}"\n'
    )
    here = Project(project.root, sources)
    for name in NAMES:
        state = "missing" if name == FIRST else "fixed"
        here.edit(name, "no upstream)", f"no upstream); 2.0 {state} (model.py:1)")
    found = report(here, "2.0", code=Exit.FAILED)
    assert found["failed"] == [FIRST]
    assert "said to be missing, Drop-When is true" in found["patches"][0]["about"]
    assert states(report(here, "1.0", "--policy", "exact")) == dict.fromkeys(NAMES, "clean")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        ([""], Exit.USAGE, "add REF="),
        (["not-there@main"], Exit.USAGE, "is no folder"),
        (["no-such-ref"], Exit.SOURCE, "cannot fetch no-such-ref"),
        (["."], Exit.USAGE, "does not say its version"),
    ],
)
def test_a_ref_that_cannot_be_had(args: list[str], code: Exit, says: str, plain: Project) -> None:
    done = plain.run("canary", *args)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert done.stderr.count("\n") == 1


# ---- the contract ----


@pytest.fixture(scope="module")
def relying(master: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project on a toy with a library, and a patch with a class that uses it."""
    root = tmp_path_factory.mktemp("relying")
    sources = root / "sources"
    sources.mkdir()
    archive = sources / "toy-1.0.tar.gz"
    old = digest(master.sources / archive.name)
    make_sdist(archive, {**UPSTREAM, "toy/library.py": LIBRARY})
    found = Project(root / "project", sources)
    shutil.copytree(master.root, found.root, symlinks=True)
    toml = found.base / "base.toml"
    toml.write_text(toml.read_text().replace(old, digest(archive)))
    shutil.rmtree(found.root / "build")
    (found.base / "series.lock").unlink()
    found.ok("apply")
    found.commit("Add the user", {"toy/user.py": USER})
    found.ok("export")
    return found


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("def helper(first,", "def helper(", "toy/library.py:helper no longer takes first"),
        (
            "first, second=None",
            "first, third, second=None",
            "helper now wants third",
        ),
        ("first, second=None", "first, *, second=None", "takes second by keyword alone"),
        (
            "first, second=None",
            "second=None, first=None",
            "takes first (and 1 more) at another place",
        ),
        ("def helper", "def helping", "toy/library.py:helper is gone"),
        ("def keep", "def kept", "toy/library.py:Middle.keep is gone"),
        ("one, two=2", "one, two=2, three=3", "toy/library.py:Middle.run now takes three"),
        ("def run", "def go", "toy/library.py:Middle.run is gone"),
        ("class Middle(Old)", "class Middle", "toy/library.py:Middle no longer derives from Old"),
        ("class Middle(Old)", "class Other(Old)", "toy/library.py:Middle is gone"),
    ],
)
def test_a_change_that_leaves_the_text_applicable_breaks_the_contract(
    old: str, new: str, says: str, relying: Project, tmp_path: Path
) -> None:
    folder = tree(tmp_path)
    text = LIBRARY.decode()
    assert old in text
    for library, code in ((text, Exit.OK), (text.replace(old, new), Exit.FAILED)):
        (folder / "toy/library.py").write_text(library)
        found = report(relying, str(folder), "--version", "1.5", code=code)
        assert states(found)["add-the-user"] == "clean"
        assert any(says in one for one in found["patches"][3]["broken"]) == bool(code)
        assert not any(one["broken"] for one in found["patches"][:3])


def test_changes_that_no_caller_sees_keep_the_contract(relying: Project, tmp_path: Path) -> None:
    folder = tree(tmp_path)
    text = LIBRARY.decode().replace("second=None", "second=None, third=None")
    # Where it is defined has no say: the old place imports it.
    body, known = text.split("def helper")
    (folder / "toy/base.py").write_text("def helper" + known)
    (folder / "toy/library.py").write_text("from .base import KNOWN, helper\n" + body)
    report(relying, str(folder), "--version", "1.5")


def library(text: str) -> Source:
    files = {"toy/library.py": text.encode(), "toy/__init__.py": b""}
    return Source(files.get)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"pears"', '"plums"', ["toy/library.py:KNOWN no longer lists pears"]),
        ("KNOWN", "OTHER", ["toy/library.py:KNOWN is gone"]),
        ("apples", "cherries", []),
    ],
)
def test_what_the_contract_file_lists(old: str, new: str, says: list[str]) -> None:
    text = LIBRARY.decode()
    use = Use("toy/library.py", "KNOWN", "lists", ("pears",))
    assert contract.broken(library(text), library(text.replace(old, new)), [use]) == says


def test_the_contract_file_names_what_the_base_has(relying: Project, tmp_path: Path) -> None:
    here = Project(tmp_path / "project", relying.sources)
    shutil.copytree(relying.root, here.root, symlinks=True)
    (here.root / "ci").mkdir(exist_ok=True)
    file = here.root / "ci/contract.toml"
    folder = tree(tmp_path)
    (folder / "toy/library.py").write_bytes(LIBRARY.replace(b"def keep", b"def kept"))
    table = '["v1".{}]\nsymbols = ["toy/library.py:{}"]\n'
    for name, symbol, code, says in (
        (FIRST, "Old.keep", Exit.FAILED, ""),
        (FIRST, "Old.run", Exit.FAILED, ""),
        (FIRST, "Old.fly", Exit.FAILED, "the base has no toy/library.py:Old.fly"),
        ("nobody", "Old.run", Exit.FAILED, "which is no patch of v1"),
    ):
        file.write_text(table.format(name, symbol))
        found = report(here, str(folder), "--version", "1.5", code=code)
        assert says in found["error"]
        if not says:
            broken = ["toy/library.py:Old.keep is gone"] if symbol == "Old.keep" else []
            assert found["patches"][0]["broken"] == broken


def test_the_contract_file_of_this_repository_names_its_patches() -> None:
    for folder in (REPO / "patches").glob("*/base.toml"):
        base = Base.load(folder.parent.name, REPO)
        assert set(contract.written(base)) <= set(patches.names(base))
    assert contract.written(Base.load("v0.19.1", REPO))


# ---- histories ----


@pytest.fixture(scope="module")
def history(upstream_git: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 commits after the base: number 120 changes what a patch changes, 170 moves its lines."""
    folder = tmp_path_factory.mktemp("history") / "toy"
    git(folder.parent, "clone", "-q", str(upstream_git), str(folder))
    (folder / ".git/info/attributes").write_text("* -text -ident\n")
    text = (folder / "toy/model.py").read_text()
    branch = git(folder, "symbolic-ref", "HEAD")
    commits = []
    for number in range(1, 201):
        if number == 120:
            text = text.replace("line_40 = 40\n", "line_40 = 44\n")
        elif number % 10 == 0:
            text += f"later_{number} = 1\n"
        start = f"from {branch}^0\n" if number == 1 else ""
        commits.append(
            f"commit {branch}\ncommitter Toy <toy@example.com> {1_700_000_000 + number} +0000\n"
            f"data <<END\nchange {number}\nEND\n{start}"
            f"M 644 inline toy/model.py\ndata {len(text)}\n{text}\n"
            f"M 644 inline other-{number}.txt\ndata 6\nother\n\n"
        )
    # One process instead of 400.
    subprocess.run(
        ["git", "fast-import", "--quiet"], cwd=folder, input="".join(commits), text=True, check=True
    )
    git(folder, "reset", "-q", "--hard")
    return folder


def test_bisect_names_the_commit(plain: Project, history: Path) -> None:
    begin = os.times()
    out = plain.ok("bisect", f"{history}@HEAD", SECOND)
    end = os.times()
    # Of processors, not of the clock: other tests run beside this one.
    seconds = end.children_user - begin.children_user + end.children_system - begin.children_system
    assert "Toy: change 120" in out
    assert "toy/model.py: 1 conflicting hunk" in out
    assert "of 20 commits looked at, none checked out" in out
    assert seconds < 5
    assert "is not broken" in plain.ok("bisect", f"{history}@HEAD", FIRST)
    assert "is not broken" in plain.ok("bisect", f"{history}@HEAD~81", SECOND)


def test_a_history_is_counted_and_a_version_described(
    plain: Project, history: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "toy.git"
    git(tmp_path, "clone", "-q", "--bare", str(history), str(bare))
    for ref, commits in ((f"{history}@HEAD~5", 195), (str(bare), 200)):
        found = report(plain, ref, code=Exit.FAILED)
        assert found["commits"] == commits
        assert found["version"].startswith(f"1.0-{commits}-g")
        assert states(found)[SECOND] == "conflict"
    # A ref of upstream's own repository, which base.toml names.
    found = report(plain, "v1.0", "--policy", "exact")
    assert (found["commits"], found["version"]) == (0, "1.0")


def test_bisect_finds_a_broken_contract(relying: Project, history: Path, tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    git(tmp_path, "clone", "-q", str(history), str(folder))
    git(folder, "checkout", "-q", "-b", "with-library", "v1.0")
    commits = [LIBRARY, LIBRARY + b"\n# more\n", LIBRARY.replace(b"first,", b""), LIBRARY[:-1]]
    for number, data in enumerate(commits):
        (folder / "toy/library.py").write_bytes(data.replace(b"first,", b"") if number else data)
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", f"library {number}")
    out = relying.ok("bisect", f"{folder}@HEAD", "add-the-user")
    assert "library 1" in out
    assert "helper no longer takes first" in out


def test_bisect_needs_a_history_and_a_patch(plain: Project, history: Path) -> None:
    for args, says in (
        (["1.0", SECOND], "has no history"),
        ([f"{history}@HEAD", "nobody"], "no patch 'nobody'"),
    ):
        done = plain.run("bisect", *args)
        assert done.returncode == Exit.USAGE
        assert says in done.stderr


def test_find_first_looks_at_few() -> None:
    commits = [str(number) for number in range(1000)]
    for wanted in (0, 1, 499, 998, 999):
        seen: list[str] = []

        def breaks(commit: str, wanted: int = wanted, seen: list[str] = seen) -> str:
            seen.append(commit)
            return "broken" if int(commit) >= wanted else ""

        first, tried = canary.find_first(commits, breaks)
        assert first == str(wanted)
        assert tried == len(seen) <= 11
    assert canary.find_first(commits, lambda _: "") == ("", 1)
    assert canary.find_first([], lambda _: "x") == ("", 0)
