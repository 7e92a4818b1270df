# SPDX-License-Identifier: Apache-2.0
"""Sections of the series file, and the index that is built from them."""

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from conftest import NAMES, REPO, Project, git
from series import patches
from series.config import Base
from series.patches import Section, with_names

TEXT = """\
# The order.

## one: the first part.
a
# about b
b

## empty: nothing yet.

## two: the rest: all of it.
# stays below its section

# about c
c
d
# end
"""


def placed(wanted: str, text: str = TEXT) -> dict[str, str]:
    """Section -> its names after the list has become `wanted`."""
    found: dict[str, str] = {}
    title = ""
    for line in with_names(text, wanted.split()).splitlines():
        if line.startswith("## "):
            title = line[3:].partition(":")[0]
            found[title] = ""
        elif line and not line.startswith("#"):
            found[title] = f"{found.get(title, '')} {line}".strip()
    return found


def test_sections_are_read(tmp_path: Path, master: Project) -> None:
    base = dataclasses.replace(Base.load("v1", master.root), folder=tmp_path)
    (tmp_path / "series").write_text(TEXT)
    assert patches.sections(base) == [
        Section("one", "the first part.", ["a", "b"]),
        Section("empty", "nothing yet.", []),
        Section("two", "the rest: all of it.", ["c", "d"]),
    ]
    assert patches.names(base) == ["a", "b", "c", "d"]
    (tmp_path / "series").write_text("# x\na\n## one: b\nb\n")
    assert patches.sections(base) == [Section("", "", ["a"]), Section("one", "b", ["b"])]


def test_the_same_names_change_nothing() -> None:
    assert with_names(TEXT, ["a", "b", "c", "d"]) == TEXT


@pytest.mark.parametrize(
    ("wanted", "one", "two"),
    [
        ("a new b c d", "a new b", "c d"),
        ("new a b c d", "new a b", "c d"),
        ("a b new c d", "a b new", "c d"),
        ("a b c d new", "a b", "c d new"),
        ("a c d", "a", "c d"),
        ("c d", "", "c d"),
        ("a b", "a b", ""),
        ("a c b d", "a c b", "d"),  # c went up, with a
        ("a b d c", "a b", "d c"),
        ("b c d a", "b", "c d a"),  # a went down, with d
        ("a b other d", "a b", "other d"),  # in the place of c
        ("other b c d", "other b", "c d"),
        ("x y z", "x y", "z"),
    ],
)
def test_where_a_name_goes(wanted: str, one: str, two: str) -> None:
    assert placed(wanted) == {"one": one, "empty": "", "two": two}


def test_names_of_a_new_series_go_into_the_first_section() -> None:
    assert placed("a b", "# order\n## one: x\n## two: y\n") == {"one": "a b", "two": ""}
    text = "# order\n\n## one: x\n# why\n\n## two: y\n"
    assert with_names(text, ["a"]) == text.replace("# why\n", "# why\na\n")
    assert with_names("# order\n\n", ["a"]) == "# order\n\na\n"


def test_comments_and_empty_lines_stay_with_what_they_are_about() -> None:
    assert with_names(TEXT, ["b", "d", "c"]) == TEXT.replace("a\n# about b", "# about b").replace(
        "# about c\nc\nd\n", "d\n# about c\nc\n"
    )
    assert with_names(TEXT, ["a", "c", "b", "d"]) == TEXT.replace("# about c\nc\n", "").replace(
        "# about b", "# about c\nc\n# about b"
    )


def test_export_puts_a_new_patch_into_the_section_of_the_one_before(project: Project) -> None:
    series = project.base / "series"
    series.write_text("## one: first.\n{}\n{}\n\n## two: last.\n{}\n".format(*NAMES))
    dos, _ = git(project.tree, "log", "-2", "--format=%H").split()
    git(project.tree, "reset", "-q", "--hard", "HEAD^")
    project.commit("Add a third", {"toy/third.txt": b"3\n"})
    git(project.tree, "cherry-pick", dos)
    project.ok("export")
    assert series.read_text() == (
        "## one: first.\n{}\n{}\nadd-a-third\n\n## two: last.\n{}\n".format(*NAMES)
    )
    project.ok("check")


def test_the_index_shows_what_each_patch_is_and_why_it_stands_there(project: Project) -> None:
    series = "## fixes of vLLM: alone.\n{}\n## rest: what | builds on them.\n{}\n{}\n"
    (project.base / "series").write_text(series.format(*NAMES))
    (project.base / "releases.toml").write_text(
        "".join(f'["{v}"]\narchive = "toy-{v}.tar.gz"\nsha256 = "00"\n' for v in ("2.0", "3.0"))
    )
    said = "no (a toy has no upstream)"
    project.edit(NAMES[0], said, "https://example.com/pull/12; 2.0 broken (a); 3.0 fixed (b)")
    project.edit(NAMES[1], "version >= 2.0", "not text toy/dir/new.py: a|`b`")
    project.edit(NAMES[2], "version >= 2.0", f"text toy/dir/new.py: {'a' * 46}")
    text = patches.index(project.root)
    assert "3 patches on toy 1.0" in text
    assert "| fixes of vLLM | 1 | 2 / 0 / 0 | alone. |" in text
    assert "| rest | 2 | 5 / 0 / 0 | what \\| builds on them. |" in text
    assert "| all | 3 | 7 / 0 / 0 |  |" in text
    first, second, third = (line for line in text.splitlines() if "](v1/" in line)
    assert text.index("\n### fixes of vLLM\n\nalone.\n") < text.index(first)
    assert text.index(first) < text.index("\n### rest\n") < text.index(second)
    assert first == (
        "| 1 | [add-the-first](v1/add-the-first.patch)<br>[Model] Add the first"
        " ([#12](https://example.com/pull/12)) | The toy lacks something. | 2 / 0 / 0"
        " | toy/model.py | broken | fixed | version >= 2.0 |"
    )
    assert second.endswith("| 4 / 0 / 0 | toy/model.py |  |  | no `` a\\|`b` `` in dir/new.py |")
    assert third.startswith("| 3 | ")
    assert third.endswith("| a text new in dir/new.py |")


def test_the_index_counts_lines_and_upstream_s_files_by_kind(project: Project) -> None:
    project.commit(
        "More",
        {
            "tests/test_x.py": b"# SPDX\n" * 5,
            "docs/x.md": b"x\n" * 3,
            "examples/x.py": b"",
            "toy/__init__.py": b"++ b/x\n",
            "toy/new.py": b"y = 1\n",
            "run.sh": b"#!/bin/sh\n",
        },
    )
    project.ok("export")
    row = next(line for line in patches.index(project.root).splitlines() if "[more]" in line)
    # toy/new.py is not upstream's: an earlier patch of the series adds it.
    assert "| 2 / 5 / 3 | run.sh, toy/__init__.py |" in row


@pytest.mark.long
def test_two_branches_are_merged_as_the_manual_says(project: Project) -> None:
    shutil.copy(REPO / ".gitattributes", project.root)
    project.ok("clean")  # each branch has a work tree of its own
    git(project.root, "add", "-A")
    git(project.root, "commit", "-q", "-m", "attributes")
    for name in ("left", "right"):
        git(project.root, "checkout", "-q", "-b", name, "master")
        project.ok("apply")
        project.commit(f"Add {name}", {f"toy/{name}.txt": b"x\n"})
        project.ok("export")
        git(project.root, "add", "-A")
        git(project.root, "commit", "-q", "-m", name)
    with pytest.raises(subprocess.CalledProcessError):
        git(project.root, "merge", "left")
    unmerged = git(project.root, "diff", "--name-only", "--diff-filter=U").split()
    assert unmerged == ["patches/README.md", "patches/v1/series.lock"]
    assert (project.base / "series").read_text().split()[-2:] == ["add-right", "add-left"]
    assert "<<<" not in (project.root / "patches/README.md").read_text()
    (project.base / "series.lock").unlink()
    project.ok("apply")
    project.ok("export")
    project.ok("check")
    assert (project.base / "series.lock").read_text().count("\n") == 7
