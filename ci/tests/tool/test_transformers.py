# SPDX-License-Identifier: Apache-2.0
"""`transformers` on a toy, with a worker that writes what the test wants."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from conftest import call
from proof import evidence, transformers_releases
from series.errors import Exit, SeriesError
from toy import PLAN, Toy, toy, warm

__all__ = ["toy", "warm"]

ANSWER: dict[str, Any] = {"prompt": [1, 2], "tokens": [3, 4], "logprobs": [-0.5, -1.5]}
TESTS = {"test_a": "passed", "test_of_the_reference": "passed"}


@dataclasses.dataclass
class Releases:
    """What each release is to give: its answer, its tests, the release that really ran."""

    toy: Toy
    answers: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    tests: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    others: dict[str, str] = dataclasses.field(default_factory=dict)
    made: int = 0

    def work(self, paths: Any, overlay: Path | None, log: Path, *words: str) -> int:
        if words[0] == "make":
            self.made += 1
            return 0
        out = Path(words[2])
        release = out.stem
        tests = self.tests.get(release, TESTS)
        answers = [{**ANSWER, **self.answers.get(release, {})}]
        version = self.others.get(release, release)
        out.write_text(json.dumps({"version": version, "answers": answers}))
        lines = [{"node": f"x.py::{n}", "outcome": o, "seconds": 0} for n, o in tests.items()]
        out.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return int("failed" in tests.values())

    def run(self, *options: str) -> None:
        assert call("transformers", self.toy.base, self.toy.paths, *options) is Exit.OK

    def fails(self) -> str:
        with pytest.raises(SeriesError) as caught:
            self.run()
        return caught.value.what

    def page(self) -> str:
        return transformers_releases.page([self.toy.base])


@pytest.fixture
def releases(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Releases:
    locks = toy.base.folder / "locks"
    locks.mkdir()
    (locks / "engine.txt").write_text("transformers==5.17.0\n")
    for release in ("4.57.6", "5.8.1", "5.17.0"):
        (locks / f"transformers-{release}.txt").write_text("")
    needs = '[transformers]\ntests = ["x.py"]\nneeds = { test_of_the_reference = "5.8" }\n'
    toy.base.tests_file.write_text(PLAN + needs)
    one = Releases(toy)
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    monkeypatch.setattr(transformers_releases, "call", one.work)
    return one


def test_page(releases: Releases) -> None:
    releases.answers["4.57.6"] = {"logprobs": [-0.5, -1.25]}
    releases.tests["4.57.6"] = TESTS | {"test_of_the_reference": "skipped"}
    releases.run()
    page = releases.page()
    assert f"tree `{evidence.tree_of(releases.toy.base)[:12]}`" in page
    assert page.splitlines()[-3:] == [
        "| 4.57.6 | the same | 2.5e-01 | 1; 1 skipped: needs transformers >= 5.8 |",
        "| 5.8.1 | the same | 0.0e+00 | 2 |",
        "| 5.17.0 | the same | 0.0e+00 | 2 |",
    ]


def test_other_tokens_and_failed_tests_are_wrong(releases: Releases) -> None:
    releases.answers["5.8.1"] = {"tokens": [3, 5]}
    releases.tests["4.57.6"] = TESTS | {"test_a": "failed"}
    what = releases.fails()
    assert "transformers 5.8.1: request 0: other tokens than with 5.17.0" in what
    assert "transformers 4.57.6: test_a failed" in what
    assert "| 5.8.1 | OTHER |" in releases.page() and "1, test_a failed" in releases.page()


def test_a_test_may_be_skipped_only_where_it_cannot_run(releases: Releases) -> None:
    releases.tests["5.8.1"] = TESTS | {"test_of_the_reference": "skipped"}
    assert "transformers 5.8.1: test_of_the_reference was skipped" in releases.fails()
    releases.tests["5.8.1"] = TESTS | {"test_a": "skipped"}
    assert "transformers 5.8.1: test_a was skipped" in releases.fails()


def test_another_release_than_the_one_that_was_meant(releases: Releases) -> None:
    releases.others["5.8.1"] = "5.17.0"
    assert "transformers 5.17.0 ran instead of 5.8.1" in releases.fails()


def test_a_selection_is_not_kept(releases: Releases) -> None:
    releases.run("--only", "5.8.1")
    assert not transformers_releases.data_file("v0.19.1").exists()


def test_the_checkpoint_is_of_the_tree(releases: Releases) -> None:
    releases.run()
    releases.run()
    assert releases.made == 1
    releases.toy.amend({"vllm/more.py": ""})
    releases.run()
    assert releases.made == 2
    (releases.toy.paths.tree / "vllm/more.py").write_text("edit\n")
    assert "holds 1 changed or new files" in releases.fails()
