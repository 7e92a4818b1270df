# SPDX-License-Identifier: Apache-2.0
"""`series diff`: what a change does to the series."""

import json

import pytest

from conftest import NAMES, Project, git, message


def changes(project: Project, rev: str) -> list[tuple[str, str]]:
    report = json.loads(project.ok("diff", rev, "--json"))
    return [(change["what"], change["name"].split(" (")[0]) for change in report["changes"]]


def amended(project: Project, title: str, name: str) -> None:
    git(project.tree, "commit", "-q", "--amend", "-m", message(title, name))


@pytest.mark.long
def test_diff_names_every_kind_of_change(project: Project) -> None:
    assert "the series is as it was at HEAD" in project.ok("diff", "HEAD")
    dos, second = git(project.tree, "log", "-2", "--format=%H").split()
    git(project.tree, "reset", "-q", "--hard", "HEAD~2")
    # The first is changed, the last comes before the second, the second is renamed, one is new.
    model = (project.tree / "toy/model.py").read_bytes()
    (project.tree / "toy/model.py").write_bytes(model.replace(b"first_b = 1\n", b"first_b = 2\n"))
    git(project.tree, "commit", "-q", "-a", "--amend", "--no-edit")
    git(project.tree, "cherry-pick", dos)
    git(project.tree, "cherry-pick", second)
    amended(project, "Add the second", "second")
    project.commit("More", {"more.txt": b"more\n"})
    project.ok("export")
    expected = [
        ("changed", "add-the-first"),
        ("moved", "add-dos-lines"),
        ("renamed", "add-the-second to second"),
        ("changed", "second"),
        ("added", "more"),
    ]
    assert changes(project, "HEAD") == expected
    text = project.ok("diff", "HEAD")
    assert "    ++first_b = 2" in text
    assert "added    more (+1 -0)" in text
    assert "first_b" not in project.ok("diff", "HEAD", "--stat")
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "-m", "change")
    assert changes(project, "HEAD") == []
    # Back from there, to what the work tree was.
    git(project.root, "checkout", "-q", "HEAD^", "--", "patches")
    git(project.root, "rm", "-q", "--cached", "patches/v1/more.patch", "patches/v1/second.patch")
    assert ("dropped", "more") in changes(project, "HEAD")
    assert ("renamed", "second to add-the-second") in changes(project, "HEAD")


def test_diff_leaves_the_work_tree_and_its_lock_alone(project: Project) -> None:
    import fcntl

    (project.tree / "mine.txt").write_text("mine\n")
    before = project.snapshot()
    with (project.root / "build/v1/.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        project.ok("diff", "HEAD")
    assert project.snapshot() == before


def test_diff_between_two_pins(project: Project) -> None:
    """Of another release there is another archive, and its own first commit."""
    toml = project.base / "base.toml"
    toml.write_text(toml.read_text().replace('"toy.egg-info/", ', ""))
    project.ok("diff", "HEAD")
    model = project.patch(NAMES[0]).read_bytes().replace(b"first_a = 1", b"first_a = 3")
    project.patch(NAMES[0]).write_bytes(model)
    assert project.run("diff", "HEAD").returncode
