# SPDX-License-Identifier: Apache-2.0
"""Each lint rule has a fixture that breaks it, and nothing else, and one that keeps it narrowly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from conftest import REPO, Project
from series.config import Base
from series.errors import Exit
from series.lint import PATCH_RULES, SERIES_RULES, Patch, lint, no_machine_names, rule_id
from series.patches import Mail

FIXTURES = REPO / "ci/tests/fixtures/lint"
RULES = [*map(rule_id, SERIES_RULES), *map(rule_id, PATCH_RULES)]


def rules_broken_in(folder: Path, master: Project) -> set[str]:
    base = Base.load("v1", master.root)
    return {finding.rule for finding in lint(dataclasses.replace(base, folder=folder))}


@pytest.mark.parametrize("rule", RULES)
def test_fixture_passes(rule: str, master: Project) -> None:
    assert rules_broken_in(FIXTURES / rule / "pass", master) == set()


@pytest.mark.parametrize("rule", RULES)
def test_fixture_fails(rule: str, master: Project) -> None:
    assert rules_broken_in(FIXTURES / rule / "fail", master) == {rule}


def test_every_fixture_belongs_to_a_rule() -> None:
    assert sorted(p.name for p in FIXTURES.iterdir()) == sorted(RULES)


@pytest.mark.parametrize("rule", [*RULES, "index"])
def test_every_rule_has_its_place_in_the_manual(rule: str) -> None:
    assert f"### {rule}\n" in (REPO / "docs/maintain/patch-format.md").read_text()


@pytest.mark.parametrize("path", ["simple", "simple/vllm/", "packages/a8/x.whl", "whl/cpu"])
def test_addresses_of_package_indexes_are_found(path: str) -> None:
    address = f"https://index.example/{path}"
    text = (FIXTURES / "subject-tag/pass/add-a-thing.patch").read_text()
    for old, new in (("+x = 1", f"+x = '{address}'"), ("add it", f"add {address} to it")):
        data = text.replace(old, new).encode()
        assert "index.example" in no_machine_names(Patch("x", data, Mail.parse(data)))
    data = text.replace("+x = 1", "+x = 'https://docs.example/guide'").encode()
    assert not no_machine_names(Patch("x", data, Mail.parse(data)))


def test_check_prints_each_finding_with_its_link(project: Project) -> None:
    project.edit("add-the-first", "[Model] Add", "Add")
    project.edit("add-the-first", "Drop-When: toy >= 2.0\n", "")
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
