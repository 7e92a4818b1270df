# SPDX-License-Identifier: Apache-2.0
"""Each lint rule has series that break it, and nothing else, and series that keep it narrowly."""

import dataclasses
from pathlib import Path

import pytest

from conftest import REPO, Project
from series.config import Base
from series.errors import Exit
from series.lint import PATCH_RULES, SERIES_RULES, lint
from series.patches import Mail

TEMPLATE = (REPO / "ci/tests/fixtures/lint/add-a-thing.patch").read_text()
RULES = [*SERIES_RULES, *PATCH_RULES]
Files = dict[str, str]


def one(*edits: tuple[str, str], name: str = "add-a-thing") -> Files:
    """A series of one patch: the template under `name`, edited."""
    text = TEMPLATE.replace("Patch-Name: add-a-thing", f"Patch-Name: {name}")
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return {f"{name}.patch": text, "series": name}


def some(series: str, *names: str) -> Files:
    """The series file, with patches that add a file each."""
    found: Files = {}
    for name in names:
        found |= one(("toy/new.py", f"toy/{name}.py"), name=name)
    return {**found, "series": series}


def upstream(said: str) -> Files:
    """A patch that says so of two later releases."""
    rows = (f'["{v}"]\narchive = "toy-{v}.tar.gz"\nsha256 = "00"\n' for v in ("2.0", "3.0"))
    return {**one(("no (a toy has no upstream)", said)), "releases.toml": "".join(rows)}


def counted(*edits: tuple[str, str], said: str) -> Files:
    """A patch whose proof says so, and a tests.toml."""
    table = "[patch.add-a-thing]\ncount = 7\nlong_count = 2\n"
    for old, new in edits:
        table = table.replace(old, new)
    return {**one(("the tests of the tool.", said)), "tests.toml": table}


def edits_the_first(title: str) -> Files:
    """A patch that adds toy/new.py, then one in the section `title` that edits it."""
    top, _, _ = TEMPLATE.partition("new file mode")
    hunk = "--- a/toy/new.py\n+++ b/toy/new.py\n@@ -3 +3 @@\n-x = 1\n+x = 2\n"
    fix = f"{top}index {'1' * 40}..{'2' * 40} 100644\n{hunk}".replace(": add-a-thing", ": fix")
    series = f"## model: first\nadd-a-thing\n## {title}: on it\nfix\n"
    return {**one(), "fix.patch": fix, "series": series}


SPDX = "+# SPDX-FileCopyrightText: Copyright contributors to the vLLM project"
BINARY = f"""\
+x = 1
diff --git a/x.bin b/x.bin
new file mode 100644
index {"0" * 40}..{"1" * 40}
GIT binary patch
literal 1
IcmZPo000310RR91

literal 0
HcmV?d00001

"""
DROP = "Drop-When: version >= 2.0"
UPSTREAM = "no (a toy has no upstream)"
INDEX_LINE = TEMPLATE[TEMPLATE.index("index ") : TEMPLATE.index("\n--- /dev/null")]

# For each rule, series that keep it and series that break it.
CASES: dict[str, tuple[list[Files], list[Files]]] = {
    "subject-tag": (
        [one(("[Model] Add", "[Spec Decode][Bugfix] Add"))],
        [one(("[Model] Add", "[Models] Add")), one(("[Model] Add", "Add"))],
    ),
    "subject-length": (
        [one(("Add a thing", f"Add {'a' * 66}"))],
        [one(("Add a thing", f"Add {'a' * 67}"))],
    ),
    "body-sections": (
        [one(("Problem: the toy lacks", "Problem:\nthe toy\nlacks"))],
        [one(("Proof: the", "The proof is the"))],
    ),
    "trailer-upstream": (
        [
            upstream("no (to be sent); 2.0 broken (model.py:3); 3.0 fixed (f(x), not g)"),
            upstream("https://example.com/pull/1 ; 2.0 missing (none);\n 3.0 superseded (b)"),
            upstream("https://example.com/pull/1 (open); 2.0 differs (a; b); 3.0 fixed (c)"),
        ],
        [
            one(("Upstream: " + UPSTREAM + "\n", "")),
            one((UPSTREAM, UPSTREAM + "\nUpstream: " + UPSTREAM)),
            one((UPSTREAM, "no")),
            one((UPSTREAM, "no (unsent)")),
            one((UPSTREAM, "no, a toy has no upstream")),
            one((UPSTREAM, UPSTREAM + "; 2.0 fixed (b)")),
            upstream("no (to be sent); 2.0 broken (a)"),
            upstream("no (to be sent); 2.0 broken (a); 3.0 repaired (b)"),
            upstream("no (to be sent); 2.0 broken; 3.0 fixed (b)"),
            upstream("no (to be sent); 2.0 broken (a); 2.0 fixed (b); 3.0 fixed (b)"),
            upstream("no (to be sent); 2.0 broken (a); 3.0 fixed (b); 4.0 fixed (c)"),
        ],
    ),
    "trailer-drop-when": (
        [
            one((DROP, "Drop-When: text toy/new.py: ^class\n  Thing\nDrop-When: test tests/x.py")),
            one((DROP, "Drop-When: not symbol toy/new.py:Thing.part")),
        ],
        [
            one((DROP + "\n", "")),
            one((DROP, "Drop-When: the class `Thing` exists in toy/new.py")),
            one((DROP, "Drop-When: test tests/x.py::test_it")),
            one((DROP, DROP + "\nDrop-When: text toy/new.py: (")),
        ],
    ),
    "trailer-sign-off": (
        [one(("Signed-off", "Signed-off-by: Other <o@example.com>\nSigned-off"))],
        [one(("Signed-off-by: Toy Maker <toy", "Signed-off-by: Toy Maker <other"))],
    ),
    "full-index": (
        [one(("+x = 1", "+index = 0"))],
        [one((INDEX_LINE, "index 0000000..3f2d0c1"))],
    ),
    "no-signature": (
        [one(("+x = 1\n", "+x = 1\n \n"))],
        [one(("+x = 1\n", "+x = 1\n-- \n2.39.5\n\n"))],
    ),
    "clean-header": (
        [one(("+x = 1", "+x = 1  "))],
        [one(("Change: add it.", "Change: add it. ")), one(("add it.", "add it.\r"))],
    ),
    "text-only": (
        [one(("+x = 1", "+'Binary files a and b differ'"))],
        [one(("+x = 1\n", BINARY))],
    ),
    "spdx-header": (
        [one(("+# SPDX-L", "+#!/usr/bin/env python3\n+# SPDX-L"))],
        [one((SPDX, "+")), one((SPDX, "++ b/" + SPDX))],
    ),
    "no-machine-names": (
        [
            one(("+x = 1", "+x = 'src/home/x/y', '/usr/lib/x', '/homepage/x'")),
            one(("+x = 1", "+x = 'https://docs.example/guide'")),
        ],
        [
            one(("+x = 1", "+x = '/home/someone/x'")),
            one(("+x = 1", "++ x = '/home/someone/x'")),
            *(
                one((old, f"{old} https://index.example/{path} "))
                for path in ("simple", "simple/vllm/", "packages/a8/x.whl", "whl/cpu")
                for old in ("x =", "add it")
            ),
        ],
    ),
    "kernel-sources": (
        [
            one(("toy/new.py", "csrc/new.cu"), ("add it.", "add it, for KERNELS=source.")),
            one(("toy/new.py", "toy/csrc/new.py")),
        ],
        [one(("toy/new.py", f"{path}")) for path in ("csrc/a/b.cu", "cmake/x", "CMakeLists.txt")],
    ),
    "patch-name": (
        [one(name="qwen2-vl-fix"), one(name="a" * 40)],
        [
            one(name="0001-add-a-thing"),
            one(name="Add-a-thing"),
            one(name="add_a_thing"),
            one(name="a" * 41),
            one(("Patch-Name: add-a-thing\n", "")),
            one(("Patch-Name: add-a-thing", "Patch-Name: add-a-thing-2")),
            one(("Patch-Name:", "Patch-Name: add-a-thing\nPatch-Name:")),
        ],
    ),
    "series-exists": ([some("# not-there\n\na\n", "a")], [some("a\nnot-there\n", "a")]),
    "series-complete": (
        [{**some("a\n", "a"), "notes.txt": ""}],
        [some("a\n# b\n", "a", "b")],
    ),
    "series-unique": ([some("a\n# a\n", "a")], [some("a\na\n", "a")]),
    "series-sections": (
        [
            some("# order\n\n## one: a, for 0.19.1: b\na\n## none: x\n## two: c.\nb\n", "a", "b"),
            some("##not a section\na\n# comment: x. y\n", "a"),
        ],
        [
            some("a\n## one: x\nb\n", "a", "b"),
            some("## one\na\n", "a"),
            some("## one: x. And y.\na\n", "a"),
            some("## one: x\na\n## one: y\nb\n", "a", "b"),
            some("## : x\na\n", "a"),
        ],
    ),
    "fixes-alone": (
        [edits_the_first("fixes of upstream")],
        [edits_the_first("fixes of vLLM, drafts")],
    ),
    "proof-counts": (
        [
            counted(said="pytest a: 7 passed; without it 3 failed. pytest b: 31 passed."),
            counted(said="all of 9 passed."),
            counted(("count = 7", "seconds = 7"), said="it runs."),
        ],
        [
            counted(said="6 passed."),
            counted(said="17 passed."),
            counted(said="7 tests."),
        ],
    ),
}


def broken(files: Files, folder: Path, master: Project) -> set[str]:
    for name, text in files.items():
        (folder / name).write_bytes(text.encode())
    base = dataclasses.replace(Base.load("v1", master.root), folder=folder)
    return {finding.rule for finding in lint(base)}


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, n) for rule, (kept, _) in CASES.items() for n in range(len(kept))]
)
def test_a_series_that_keeps_the_rule(
    rule: str, number: int, tmp_path: Path, master: Project
) -> None:
    assert broken(CASES[rule][0][number], tmp_path, master) == set()


@pytest.mark.parametrize(
    ("rule", "number"), [(rule, n) for rule, (_, bad) in CASES.items() for n in range(len(bad))]
)
def test_a_series_that_breaks_the_rule(
    rule: str, number: int, tmp_path: Path, master: Project
) -> None:
    assert broken(CASES[rule][1][number], tmp_path, master) == {rule}


def test_every_rule_has_both() -> None:
    assert sorted(CASES) == sorted(RULES)
    assert all(kept and bad for kept, bad in CASES.values())


@pytest.mark.parametrize("rule", [*RULES, "index", "true-trailers"])
def test_every_rule_has_its_place_in_the_manual(rule: str) -> None:
    assert f"### {rule}\n" in (REPO / "docs/maintain/patch-format.md").read_text()


def test_findings_follow_the_series(tmp_path: Path, master: Project) -> None:
    files = {**some("b\na\n", "a", "b", "c"), "c.patch": "x"}
    for name in "ab":
        files[f"{name}.patch"] = files[f"{name}.patch"].replace("[Model] ", "")
    broken(files, tmp_path, master)
    base = dataclasses.replace(Base.load("v1", master.root), folder=tmp_path)
    wheres = list(dict.fromkeys(finding.where for finding in lint(base)[1:]))
    assert wheres == ["b.patch", "a.patch", "c.patch"]


@pytest.mark.parametrize("file", ["series", "series.lock", "releases.toml"])
def test_a_file_that_is_not_utf8_is_one_line(file: str, project: Project) -> None:
    (project.base / file).write_bytes(b"caf\xe9\n")
    done = project.run("check")
    assert done.returncode == Exit.PATCH
    assert done.stderr.count("\n") == 1
    assert f"{file} is not UTF-8 text (byte 3)" in done.stderr


def test_releases_that_cannot_be_read(project: Project) -> None:
    (project.base / "releases.toml").write_text('["2.0"]\narchive = "x"\n')
    done = project.run("check", "--lint")
    assert done.returncode == Exit.USAGE
    assert "releases.toml cannot be read: KeyError('sha256')" in done.stderr


def test_check_prints_each_finding_with_its_link(project: Project) -> None:
    project.edit("add-the-first", "[Model] Add", "Add")
    project.edit("add-the-first", "Drop-When: version >= 2.0\n", "")
    done = project.run("check", "--lint")
    assert done.returncode == Exit.FAILED
    assert [line.rsplit("(")[-1] for line in done.stdout.splitlines()] == [
        "docs/maintain/patch-format.md#subject-tag)",
        "docs/maintain/patch-format.md#trailer-drop-when)",
    ]
    assert done.stderr.startswith("error: 2 rules")


def test_check_finds_an_index_that_is_out_of_date(project: Project) -> None:
    index = project.root / "patches/README.md"
    index.write_text(index.read_text() + "\n")
    done = project.run("check", "--lint")
    assert done.returncode == Exit.FAILED
    assert "(docs/maintain/patch-format.md#index)" in done.stdout


def test_folded_and_encoded_headers_are_read() -> None:
    data = (
        b"From 0 Mon Sep 17 00:00:00 2001\n"
        b"From: =?UTF-8?q?J=C3=B6rg=20M?= <j@example.com>\n"
        b"Subject: [Model] A subject that is long enough to be folded by git onto a second\n"
        b" line\n"
        b"MIME-Version: 1.0\nContent-Type: text/plain; charset=UTF-8\n"
        b"Content-Transfer-Encoding: 8bit\n\n"
        b"Problem: caf\xc3\xa9\n\nUpstream: no,\n because of this\n---\n x | 1 +\n"
    )
    mail = Mail.parse(data)
    assert mail.subject.endswith("onto a second line")
    assert mail.author == "Jörg M <j@example.com>"
    assert mail.body.startswith("Problem: café")
    assert mail.trailers == {"Upstream": ["no, because of this"]}
