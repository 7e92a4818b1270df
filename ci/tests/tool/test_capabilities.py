# SPDX-License-Identifier: Apache-2.0
"""ci/capabilities.py on a list and reports made here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts/proof/capabilities.py"
FILE = "tests/models/test_toy.py"
LIST = f"""\
[[capability]]
group = "Inputs"
name = "one image"
tests = ["{FILE}::test_image"]

[[capability]]
group = "Inputs"
name = "images | videos"
tests = ["{FILE}::test_mixed[a|b]", "{FILE}::TestMore::test_it"]

[[capability]]
group = "Features"
name = "a thing that cannot be"
refused = true
tests = ["{FILE}::test_refused"]
"""
CASES = [
    ("tests.models.test_toy", "test_image[small]", ""),
    ("tests.models.test_toy", "test_image[large]", ""),
    ("tests.models.test_toy", "test_image_of_another_kind", "<failure/>"),
    ("tests.models.test_toy", "test_mixed[a|b]", ""),
    ("tests.models.test_toy.TestMore", "test_it", ""),
    ("tests.models.test_toy", "test_refused", ""),
]
TABLE = """\
## Inputs

| capability | v1 | tests |
| --- | --- | --- |
| one image | works | `models/test_toy.py::test_image` (2 cases) |
| images \\| videos | works | `models/test_toy.py::test_mixed[a\\|b]`<br>\
`models/test_toy.py::TestMore::test_it` |

## Features

| capability | v1 | tests |
| --- | --- | --- |
| a thing that cannot be | refused | `models/test_toy.py::test_refused` |
"""


class Toy:
    """A folder with a list, and a report for each base."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / "docs/capabilities.md"
        self.write_list(LIST)
        self.write_report("v1", CASES)

    def write_list(self, text: str) -> None:
        (self.folder / "list.toml").write_text(text)

    def write_report(self, base: str, cases: list[tuple[str, str, str]]) -> None:
        logs = self.folder / "build" / base / "logs" / "test-model"
        logs.mkdir(parents=True, exist_ok=True)
        inner = "".join(
            f'<testcase classname="{module}" name="{name}">{outcome}</testcase>'
            for module, name, outcome in cases
        )
        text = f"<testsuites><testsuite>{inner}</testsuite></testsuites>"
        (logs / "series.xml").write_text(text)

    def run(self, *options: str, bases: tuple[str, ...] = ("v1",)) -> tuple[int, str]:
        paths = {"--list": "list.toml", "--build-dir": "build", "--out": "docs/capabilities.md"}
        arguments = [x for k, v in paths.items() for x in (k, str(self.folder / v))]
        done = subprocess.run(
            [sys.executable, str(SCRIPT), *arguments, "--base", *bases, *options],
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stderr


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path)


def test_table(toy: Toy) -> None:
    assert toy.run() == (0, "")
    assert toy.out.read_text().endswith(TABLE)
    assert toy.run("--check") == (0, "")


def test_check_notices_an_old_page(toy: Toy) -> None:
    status, error = toy.run("--check")
    assert status == 1 and "out of date" in error and not toy.out.exists()
    toy.run()
    toy.out.write_text(toy.out.read_text() + "edited\n")
    assert toy.run("--check")[0] == 1


@pytest.mark.parametrize("outcome", ["<failure/>", "<error/>", "<skipped/>"])
def test_one_case_that_did_not_pass(toy: Toy, outcome: str) -> None:
    toy.write_report("v1", [*CASES[1:], ("tests.models.test_toy", "test_image[small]", outcome)])
    status, error = toy.run()
    assert status == 1 and not toy.out.exists()
    assert error == (
        f"error: one image, v1: {FILE}::test_image[small] did not pass; mend it, or remove the "
        "capability\n"
    )


def test_a_test_that_did_not_run(toy: Toy) -> None:
    toy.write_report("v1", CASES[2:])
    status, error = toy.run()
    assert status == 1
    assert f"one image, v1: {FILE}::test_image did not run" in error


def test_a_case_that_failed_and_passed(toy: Toy) -> None:
    """A test that ran twice has passed if it passed both times."""
    toy.write_report("v1", [("tests.models.test_toy", "test_refused", "<failure/>"), *CASES])
    assert toy.run()[0] == 1


def test_other_tests_on_another_base(toy: Toy) -> None:
    toy.write_report("v2", CASES[:-1])
    assert toy.run(bases=("v1", "v2"))[0] == 1
    toy.write_list(LIST + "on = { v2 = [] }\n")
    assert toy.run(bases=("v1", "v2")) == (0, "")
    text = toy.out.read_text()
    assert "| capability | v1 | v2 | tests |\n| --- | --- | --- | --- |" in text
    assert "| a thing that cannot be | refused | not there |" in text
    assert "| one image | works | works |" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[capability]]\n", "cannot be read"),
        ("nothing = 1\n", "cannot be read"),
        ('[[capability]]\ngroup = "a"\nname = "b"\ntests = []\n', "'b' has no test"),
        (LIST + LIST, "'one image' twice in 'Inputs'"),
        (LIST + 'on = { v9 = ["a"] }\n', "names v9, which is no base here"),
    ],
)
def test_bad_lists(toy: Toy, text: str, message: str) -> None:
    toy.write_list(text)
    status, error = toy.run()
    assert status == 2 and message in error


def test_tests_outside_of_the_tree_are_no_capabilities(toy: Toy) -> None:
    assert toy.run() == (0, "")
    page = toy.out.read_text()
    toy.write_report("v1", [*CASES, ("", "test_engine_answers", "")])
    assert toy.run() == (0, "") and toy.out.read_text() == page


def test_no_report(toy: Toy) -> None:
    status, error = toy.run(bases=("v3",))
    assert status == 2 and "run make test-model" in error
