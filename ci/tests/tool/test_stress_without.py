# SPDX-License-Identifier: Apache-2.0
"""Fixes taken out of a toy, and a stress test that finds the files that are gone."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import call, git
from proof import evidence, stress_page, stress_without
from series.errors import Exit, SeriesError
from toy import PASSING, Toy, toy, warm

__all__ = ["toy", "warm"]

# In the tree it comes before the tool's own.
STRESS = """\
import json, sys
from pathlib import Path
import vllm

given = sys.argv[1:]
tree = Path(given[given.index("--tree") + 1])
assert Path(vllm.__file__).is_relative_to(tree.resolve())
assert (tree / "vllm/_C.abi3.so").read_text() == "kernel"
folder = Path({folder!r})
gone = [name for name in ("first", "second") if not (tree / f"vllm/{{name}}.py").exists()]
with (folder / "runs").open("a") as file:
    file.write(" ".join([*gone, *given[given.index("--brief") + 3:]]) + "\\n")
found = [name for name in gone if not (folder / f"unseen-{{name}}").exists()]
if (folder / "always").exists():
    found.append("always")
report = {{
    "wrong": len(found), "not answered": 0, "not started": "", "seconds": 1,
    "first": "request 1 (chat) of async: " + found[0] if found else "",
}}
Path(given[given.index("--out") + 1]).write_text(json.dumps(report))
sys.exit(3 if (folder / "ends").exists() and gone else 1 if found else 0)
"""
SECOND = """
[[row]]
patches = ["second"]
what = "the second fault"
servers = ["async"]
count = 7
"""
FIRST = """
[[row]]
patches = ["first"]
also = ["second"]
what = "the first fault"
"""
REQUESTS = "--mix all --count 300 --seed 2026"
FEW = "--servers async --mix all --count 7 --seed 2026"


@dataclasses.dataclass
class Project:
    """A toy tree, a table, and the arguments with which the stress test was run."""

    toy: Toy
    folder: Path

    def run(self, table: str, *options: str) -> None:
        (self.toy.base.folder / "stress.toml").write_text(table)
        assert call("stress-without", self.toy.base, self.toy.paths, *options) is Exit.OK

    def fails(self, table: str, *options: str) -> SeriesError:
        with pytest.raises(SeriesError) as caught:
            self.run(table, *options)
        return caught.value

    def runs(self) -> list[str]:
        """Since the last question."""
        file = self.folder / "runs"
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def flag(self, name: str, *, up: bool = True) -> None:
        (self.folder / name).touch() if up else (self.folder / name).unlink()

    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(stress_without.data_file("v0.19.1").read_text())
        return data

    def page(self) -> str:
        return stress_page.without(self.toy.base, self.data())

    def state(self) -> tuple[str, ...]:
        """Of the user's work tree; of copies there must be nothing."""
        tree = self.toy.paths.tree
        assert not list(self.toy.paths.state.glob("each/*"))
        asked = ("status --porcelain", "rev-parse HEAD", "worktree list", "stash list", "branch -a")
        return tuple(git(tree, *words.split()) for words in asked)


@pytest.fixture
def project(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    folder = tmp_path / "flags"
    folder.mkdir()
    fake = STRESS.format(folder=str(folder))
    toy.amend({"proof/__init__.py": "", "proof/stress.py": fake, "tests/test_first.py": PASSING})
    return Project(toy, folder)


def test_a_fix_that_is_found(project: Project) -> None:
    before = project.state()
    project.run(SECOND + FIRST)
    assert project.runs() == [FEW, f"second {FEW}", REQUESTS, f"first second {REQUESTS}"]
    assert project.state() == before
    rows = project.data()["without"]
    assert [row["patches"] for row in rows] == [["second"], ["first"]]
    assert {row["tree"] for row in rows} == {evidence.tree_of(project.toy.base)}
    page = project.page()
    row = "| second | the second fault | 7 to async | 1 | request 1 (chat) of async: second |"
    assert row in page and "with all fixes find nothing." in page
    assert "| first, (second) | the first fault | 300 to all | 2 |" in page


def test_a_fix_that_is_not_found(project: Project) -> None:
    project.flag("unseen-second")
    error = project.fails(SECOND + FIRST)
    assert error.code is Exit.FAILED and error.what == "second was not found"
    assert "| second | the second fault | 7 to async | 0 | **not found** |" in project.page()
    project.runs()
    # A row that is known to have found nothing is no success.
    assert project.fails(SECOND + FIRST).what == "second was not found"
    assert project.runs() == []


def test_a_fault_that_other_patches_hide(project: Project) -> None:
    hidden = SECOND + "hidden = true\n"
    assert project.fails(hidden).what == "second was found"
    project.flag("unseen-second")
    project.run(hidden, "--fresh")
    assert "| 0 | other patches hide it, see below |" in project.page()


def test_what_all_fixes_give_has_to_be_right(project: Project) -> None:
    project.flag("always")
    error = project.fails(SECOND)
    assert error.what == "with all fixes: request 1 (chat) of async: always"
    assert project.runs() == [FEW]
    assert "with all fixes find 1" in project.page()


@pytest.mark.long
def test_rerun_goes_on_where_it_was(project: Project) -> None:
    project.run(SECOND)
    project.runs()
    project.flag("ends")
    error = project.fails(SECOND + FIRST)
    assert "the stress test ended with 3" in error.what and "first.log" in error.hint
    assert project.runs() == [REQUESTS, f"first second {REQUESTS}"]
    project.state()
    project.flag("ends", up=False)
    project.run(SECOND + FIRST)
    assert project.runs() == [f"first second {REQUESTS}"]
    project.run(SECOND + FIRST)
    assert project.runs() == []
    project.run(SECOND + FIRST, "--fresh", "--only", "second")
    assert project.runs() == [FEW, f"second {FEW}"]


@pytest.mark.long
def test_rows_of_earlier_trees_are_said_and_run_again(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.run(SECOND)
    old = evidence.tree_of(project.toy.base)
    assert "another tree" not in project.page()
    project.toy.amend({"tests/test_first.py": PASSING + "\n"})
    page = project.page()
    earlier = f"of another tree or other requests (tree {old[:12]})"
    assert f"7 to async, {earlier} | 1 |" in page and f"find nothing, {earlier}." in page
    project.runs()
    project.run(SECOND)
    assert project.runs() == [FEW, f"second {FEW}"]
    assert "another tree" not in project.page() and len(project.data()["without"]) == 1
    # The same seed draws others.
    monkeypatch.setattr(stress_without, "digest", lambda _: "changed")
    assert "other requests" in project.page()
    project.run(SECOND)
    assert project.runs() == [FEW, f"second {FEW}"]
    # Other requests: what is known of the old ones says nothing of these.
    other = SECOND.replace("7", "8")
    (project.toy.base.folder / "stress.toml").write_text(other)
    assert "| 8 to async |  | not run |" in project.page()
    project.run(other)
    assert len(project.data()["with"]) == len(project.data()["without"]) == 1


def test_a_patch_that_later_ones_change(project: Project) -> None:
    before = project.state()
    error = project.fails(FIRST.replace('also = ["second"]', ""))
    assert error.code is Exit.FAILED
    assert error.what == "first does not come out: vllm/__init__.py was changed behind it"
    assert "`also`" in error.hint
    assert project.state() == before
    assert "without" not in project.data() or not project.data()["without"]


def test_patches_without_a_row(project: Project) -> None:
    project.run(SECOND, "--only", "second,first")
    assert project.runs() == [REQUESTS, f"first second {REQUESTS}"]
    assert project.data()["without"] == []
    (project.toy.base.folder / "stress.toml").unlink()
    with pytest.raises(SeriesError, match=r"has no stress\.toml"):
        call("stress-without", project.toy.base, project.toy.paths)


@pytest.mark.parametrize(
    ("table", "options", "message"),
    [
        (SECOND + SECOND, [], "the same patches twice"),
        (SECOND.replace('"second"', '"third"'), [], "the series has no third"),
        (SECOND.replace("servers", "server"), [], "cannot be read"),
        (SECOND, ["--only", "third"], "the series has no third"),
        (SECOND, ["--only", ","], "the series has no such patch"),
    ],
)
def test_bad_table_is_refused(
    project: Project, table: str, options: list[str], message: str
) -> None:
    error = project.fails(table, *options)
    assert error.code is Exit.USAGE and message in error.what
    assert project.runs() == []


def test_a_dirty_tree_is_refused(project: Project) -> None:
    (project.toy.paths.tree / "vllm/first.py").write_text("edited = 1\n")
    assert project.fails(SECOND).code is Exit.DIRTY
    assert project.runs() == []
