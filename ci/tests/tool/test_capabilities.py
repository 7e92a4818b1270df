# SPDX-License-Identifier: Apache-2.0
"""`capabilities` on a list and reports built here."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import REPO, call
from proof import capabilities, evidence
from series.config import Base, Paths
from series.errors import Exit, SeriesError
from series.patches import Locked

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
CASES = {
    f"{FILE}::test_image[small]": "passed",
    f"{FILE}::test_image[large]": "passed",
    f"{FILE}::test_image_of_another_kind": "failed",
    f"{FILE}::test_mixed[a|b]": "passed",
    f"{FILE}::TestMore::test_it": "passed",
    f"{FILE}::test_refused": "passed",
}
TABLE = """\
### Inputs

| capability | | tests |
| --- | --- | --- |
| one image | works | `models/test_toy.py::test_image` (2 cases) |
| images \\| videos | works | `models/test_toy.py::test_mixed[a\\|b]`<br>\
`models/test_toy.py::TestMore::test_it` |

### Features

| capability | | tests |
| --- | --- | --- |
| a thing that cannot be | refused | `models/test_toy.py::test_refused` |
"""
TREE = "1" * 40


class Toy:
    """A base with a lock and a plan, a list, and the report of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "base").mkdir()
        real = Base.load("v0.19.1", REPO)
        self.base = dataclasses.replace(real, folder=folder / "base")
        self.paths = Paths(folder / "build", "v0.19.1")
        self.lock(TREE)
        self.base.tests_file.write_text("[patch.first]\nimports = []\ntests = ['x']\n")
        self.write_list(LIST)
        self.write_run("test-model", CASES)

    def lock(self, tree: str) -> None:
        self.base.lock_file.write_text(Locked("0" * 40, {"first": ("-", tree)}).text())

    def write_list(self, text: str) -> None:
        capabilities.list_file(self.base).write_text(text)

    def write_run(self, name: str, cases: dict[str, str], **values: Any) -> None:
        logs = self.paths.state / "logs" / name
        about = evidence.about(self.base, self.paths)
        evidence.write(logs / "run.json", {**about, "whole": True, "ok": True, **values})
        lines = [{"node": n, "outcome": o, "seconds": 0} for n, o in cases.items()]
        (logs / "first.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def run(self, *options: str) -> None:
        assert call("capabilities", self.base, self.paths, *options) is Exit.OK

    def fails(self, *options: str) -> SeriesError:
        with pytest.raises(SeriesError) as caught:
            self.run(*options)
        return caught.value


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    return Toy(tmp_path)


def test_table(toy: Toy) -> None:
    toy.run()
    assert capabilities.page([toy.base]).endswith(f"\n{TABLE}")
    assert f"v0.19.1, tree `{TREE[:12]}`" in capabilities.page([toy.base])
    toy.run("--check")


def test_check_compares_with_the_run(toy: Toy) -> None:
    assert "cannot be read" in toy.fails("--check").what
    toy.run()
    toy.write_run("test-model", {**CASES, f"{FILE}::test_image[huge]": "passed"})
    assert "is not what the last run shows" in toy.fails("--check").what


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
def test_one_case_that_did_not_pass(toy: Toy, outcome: str) -> None:
    toy.write_run("test-model", CASES | {f"{FILE}::test_image[small]": outcome})
    assert f"one image: {FILE}::test_image[small] did not pass" in toy.fails().what
    assert not capabilities.data_file("v0.19.1").exists()


def test_a_class_stands_for_its_tests(toy: Toy) -> None:
    toy.write_list(LIST.replace("TestMore::test_it", "TestMore"))
    toy.run()
    toy.write_run("test-model", CASES | {f"{FILE}::TestMore::test_it": "failed"})
    assert "TestMore::test_it did not pass" in toy.fails().what


def test_a_test_that_did_not_run(toy: Toy) -> None:
    toy.write_run("test-model", dict(list(CASES.items())[2:]))
    assert f"one image: {FILE}::test_image did not run" in toy.fails().what


def test_a_run_of_another_tree(toy: Toy) -> None:
    toy.run()
    toy.lock("2" * 40)
    error = toy.fails("--check")
    assert error.code is Exit.LOCK and "run.json is of v0.19.1, tree 111111111111" in error.what
    # Nor counts what was written of that tree.
    toy.write_run("test-model", CASES)
    error = toy.fails("--check")
    assert error.code is Exit.LOCK and "capabilities.json is of v0.19.1" in error.what


@pytest.mark.parametrize("values", [{"whole": False}, {"ok": False}])
def test_a_run_that_failed_or_was_of_one_patch(toy: Toy, values: dict[str, bool]) -> None:
    toy.write_run("test-model", CASES, **values)
    assert "is of a run that failed, or of one patch" in toy.fails().what


def test_the_long_tests_count_if_there_are_some(toy: Toy) -> None:
    toy.base.tests_file.write_text("[patch.first]\nimports = []\nlong_tests = ['x']\n")
    assert "test-model-long" in toy.fails().what
    short, long = dict(list(CASES.items())[:3]), dict(list(CASES.items())[3:])
    toy.write_run("test-model", short)
    toy.write_run("test-model-long", long)
    toy.run()
    # One that ran twice has passed if it passed both times.
    toy.write_run("test-model-long", long | {f"{FILE}::test_image[small]": "failed"})
    assert "test_image[small] did not pass" in toy.fails().what


def test_many_that_did_not_run_are_counted(toy: Toy) -> None:
    more = "".join(
        LIST.replace('"Inputs"', f'"{n}"').replace('"Features"', f'"F{n}"') for n in "abc"
    )
    toy.write_list(LIST + more)
    toy.write_run("test-model", {})
    error = toy.fails()
    assert error.what.endswith(" and 11 more") and error.what.count("did not run") == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[capability]]\n", "cannot be read"),
        ("nothing = 1\n", "cannot be read"),
        ('[[capability]]\ngroup = "a"\nname = "b"\ntests = []\n', "'b' has no test"),
        (LIST + LIST, "'one image' twice in 'Inputs'"),
    ],
)
def test_bad_lists(toy: Toy, text: str, message: str) -> None:
    toy.write_list(text)
    error = toy.fails()
    assert error.code is Exit.USAGE and message in error.what


def test_no_report(toy: Toy) -> None:
    (toy.paths.state / "logs/test-model/run.json").unlink()
    assert "run make test-all" in toy.fails().hint
