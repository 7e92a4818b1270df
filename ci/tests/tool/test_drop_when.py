# SPDX-License-Identifier: Apache-2.0
"""Trailers are compared with the base and with later releases, and a false one stops the gate."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import NAMES, UPSTREAM, Project, digest, make_sdist
from series import patches
from series.errors import Exit

SAID = "no (a toy has no upstream)"
FIRST, SECOND, DOS = NAMES


@pytest.fixture
def released(project: Project, tmp_path: Path) -> Project:
    """The project with toy 2.0, which has the first patch, and toy 3.0, which has two."""
    sources = tmp_path / "sources"
    shutil.copytree(project.sources, sources)
    rows = ""
    model = UPSTREAM["toy/model.py"]
    for version, more in (("2.0", b"first_a = 2\n"), ("3.0", b"first_a = second = 3\n")):
        archive = sources / f"toy-{version}.tar.gz"
        # 61 lines of the model.
        test = {"tests/x.py": b"def y(): pass\n"}
        make_sdist(archive, {**UPSTREAM, **test, "toy/model.py": model + more})
        rows += f'["{version}"]\narchive = "{archive.name}"\nsha256 = "{digest(archive)}"\n'
    (project.base / "releases.toml").write_text(rows)
    found = Project(project.root, sources)
    for name, second, third in (
        (FIRST, "fixed", "superseded"),
        (SECOND, "missing", "fixed"),
        (DOS, "broken", "differs"),
    ):
        found.edit(name, SAID, f"{SAID}; 2.0 {second} (model.py:61); 3.0 {third} (model.py:61)")
    found.edit(FIRST, "version >= 2.0", "symbol toy/model.py:first_a")
    found.edit(SECOND, "version >= 2.0", "version >= 2.0\nDrop-When: text toy/model.py: second")
    found.edit(DOS, "version >= 2.0", "text toy/dos.txt: half\nDrop-When: test tests/x.py::y")
    write_index(found)
    return found


def write_index(project: Project) -> None:
    (project.root / "patches/README.md").write_text(patches.index(project.root))


def plant(project: Project, name: str, old: str, new: str) -> None:
    project.edit(name, old, new)
    write_index(project)


def test_true_trailers_pass_the_check(released: Project) -> None:
    assert "check passed" in released.ok("check")


PLANTED = {
    "said to be fixed, still broken": (
        (DOS, "3.0 differs", "3.0 fixed"),
        "add-dos-lines.patch: on 3.0, said to be fixed, Drop-When is false"
        " (text toy/dos.txt: half)",
    ),
    "said to be missing, already there": (
        (SECOND, "3.0 fixed", "3.0 missing"),
        "add-the-second.patch: on 3.0, said to be missing, Drop-When is true"
        " (version >= 2.0; text toy/model.py: second)",
    ),
    "said to be broken, already fixed": (
        (FIRST, "2.0 fixed", "2.0 broken"),
        "add-the-first.patch: on 2.0, said to be broken, Drop-When is true"
        " (symbol toy/model.py:first_a)",
    ),
    "a condition that is false": (
        (FIRST, "py:first_a", "py:first_b"),
        "add-the-first.patch: on 2.0, said to be fixed, Drop-When is false"
        " (symbol toy/model.py:first_b)",
    ),
    "a line that is not there": (
        (FIRST, "2.0 fixed (model.py:61)", "2.0 fixed (toy/model.py:12-15, 62)"),
        "add-the-first.patch: toy/model.py of 2.0 has 61 lines, not 12-15, 62",
    ),
    "line 0": (
        (FIRST, "3.0 superseded (model.py:61)", "3.0 superseded (model.py:0)"),
        "add-the-first.patch: model.py of 3.0 has 61 lines, not 0",
    ),
    "a file that is not there": (
        (SECOND, "2.0 missing (model.py:61)", "2.0 missing (odel.py:61)"),
        "add-the-second.patch: 2.0 has no odel.py",
    ),
    "a file without a line": (
        (DOS, "3.0 differs (model.py:61)", "3.0 differs (other/model.py has no dos)"),
        "add-dos-lines.patch: 3.0 has no other/model.py",
    ),
    "a condition that the base meets": (
        (DOS, "dos.txt: half", "dos.txt: ^three"),
        "add-dos-lines.patch: on 1.0, the base, Drop-When is true (text toy/dos.txt: ^three)",
    ),
}


@pytest.mark.parametrize("error", PLANTED)
@pytest.mark.parametrize("verb", ["check", "drop-when"])
def test_a_planted_false_trailer_fails(verb: str, error: str, released: Project) -> None:
    planted, message = PLANTED[error]
    plant(released, *planted)
    done = released.run(verb)
    assert done.returncode == Exit.FAILED, done.stdout
    assert f"{message} (docs/maintain/patch-format.md#true-trailers)" in done.stdout.splitlines()


NOWHERE = {
    "text": (
        (
            DOS,
            "text toy/dos.txt: half",
            "text toy/dos.txt: half\nDrop-When: not text toy/os.txt: x",
        ),
        "not text toy/os.txt: x",
    ),
    "symbol": ((FIRST, "2.0", "2.0\nDrop-When: symbol toy/none.py:a"), "symbol toy/none.py:a"),
    "test": ((DOS, "test tests/x.py::y", "test tests/z.py::y"), "test tests/z.py::y"),
}


@pytest.mark.parametrize("kind", NOWHERE)
@pytest.mark.parametrize("verb", ["check", "drop-when"])
def test_a_condition_on_a_file_that_is_nowhere(verb: str, kind: str, released: Project) -> None:
    planted, said = NOWHERE[kind]
    if kind == "symbol":
        planted = (FIRST, "Drop-When: symbol", f"Drop-When: {said}\nDrop-When: symbol")
    plant(released, *planted)
    done = released.run(verb)
    assert done.returncode == Exit.FAILED, done.stdout
    assert f": no release and no patch has the file of `{said}` (docs/" in done.stdout


def test_a_condition_on_a_file_that_a_patch_brings(released: Project) -> None:
    plant(released, DOS, "text toy/dos.txt: half", "symbol toy/new.py:y")
    assert "check passed" in released.ok("check")


def test_a_table_of_the_documents_names_what_is_there(released: Project) -> None:
    page = released.root / "docs/use/faq.md"
    page.parent.mkdir(parents=True)
    page.write_text("| what | 2.0 | 3.0 |\n| --- | --- | --- |\n| a | `model.py:61` | `x.py:1` |\n")
    assert "check passed" in released.ok("check")
    page.write_text(page.read_text().replace("`model.py:61`", "gone, `model.py:62`"))
    done = released.run("check")
    assert done.returncode == Exit.FAILED
    assert "faq.md: model.py of 2.0 has 61 lines, not 62" in done.stdout


def test_the_table_of_patches_and_releases(released: Project) -> None:
    rows = [line.split("  ") for line in released.ok("drop-when").splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    assert cells == [
        ["1.0", "2.0", "3.0"],
        [FIRST, "base, keep", "fixed, drop", "superseded, drop"],
        [SECOND, "base, keep", "missing, keep", "fixed, drop"],
        [DOS, "base, keep", "broken, keep", "differs, keep"],
    ]


def test_one_release_and_the_report(released: Project) -> None:
    plant(released, FIRST, "2.0 fixed", "2.0 broken")
    report = json.loads(released.run("drop-when", "--release", "2.0", "--json").stdout)
    assert report["exit"] == Exit.FAILED
    found = [(v["patch"], v["version"], v["claimed"], v["drop"]) for v in report["verdicts"]]
    assert found == [
        (FIRST, "2.0", "broken", True),
        (SECOND, "2.0", "missing", False),
        (DOS, "2.0", "broken", False),
    ]
    assert [bool(v["wrong"]) for v in report["verdicts"]] == [True, False, False]
    assert "verdicts" not in json.loads(
        released.run("drop-when", "--release", "9", "--json").stdout
    )


def test_a_folder_of_another_version_has_no_claim(released: Project, tmp_path: Path) -> None:
    (tmp_path / "tree/toy").mkdir(parents=True)
    (tmp_path / "tree/toy/model.py").write_text("second = 1\n")
    out = released.ok("drop-when", "--tree", str(tmp_path / "tree"), "--version", "4.0.dev1")
    assert [line.split() for line in out.splitlines()] == [
        ["4.0.dev1"],
        [FIRST, "keep"],
        [SECOND, "drop"],
        [DOS, "keep"],
    ]


@pytest.mark.parametrize(
    "options",
    [
        ["--release", "9.0"],
        ["--tree", "."],
        ["--version", "2.0"],
        ["--tree", ".", "--version", "2.0", "--release", "2.0"],
        ["--tree", "not-there", "--version", "2.0"],
        ["--tree", ".", "--version", "main"],
    ],
)
def test_options_that_say_nothing(options: list[str], released: Project) -> None:
    done = released.run("drop-when", *options)
    assert done.returncode == Exit.USAGE
    assert done.stderr.count("\n") == 1


def test_a_second_run_needs_no_source_and_leaves_no_half_folder(released: Project) -> None:
    released.ok("drop-when")
    folder = released.root / "build/releases"
    unpacked = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
    assert [name[:8] for name in unpacked] == ["toy-1.0-", "toy-2.0-", "toy-3.0-"]
    assert (folder / unpacked[1] / "toy/model.py").read_bytes().endswith(b"first_a = 2\n")
    (released.root / "none").mkdir()
    done = released.run("drop-when", "--sources", str(released.root / "none"), sources=False)
    assert done.returncode == Exit.OK
    # A run that was killed while it unpacked.
    (folder / unpacked[1]).rename(folder / f".{unpacked[1]}.new")
    (folder / f".{unpacked[1]}.new/half").write_text("")
    released.ok("drop-when")
    assert not (folder / unpacked[1] / "half").exists()


@pytest.mark.parametrize("fault", ["missing", "other bytes", "no archive"])
def test_a_release_that_is_not_the_pinned_one(fault: str, released: Project) -> None:
    archive = released.sources / "toy-2.0.tar.gz"
    if fault == "missing":
        archive.unlink()
    else:
        old = digest(archive)
        archive.write_bytes(b"other")
    if fault == "no archive":
        file = released.base / "releases.toml"
        file.write_text(file.read_text().replace(old, digest(archive)))
    done = released.run("check")
    assert done.returncode == Exit.SOURCE
    assert "toy-2.0.tar.gz" in done.stderr
    assert done.stderr.count("\n") == 1


def test_trailers_that_cannot_be_read_are_the_lint_s(released: Project) -> None:
    released.edit(FIRST, "symbol toy", "symbols toy")
    done = released.run("drop-when")
    assert done.returncode == Exit.FAILED
    assert done.stderr.startswith(f"error: {FIRST}.patch: write `symbols toy")
