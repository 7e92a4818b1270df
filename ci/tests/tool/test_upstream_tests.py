# SPDX-License-Identifier: Apache-2.0
"""upstream-tests on a toy vLLM: what is compared, what is refused, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import call
from proof import evidence, upstream_tests
from proof.runner import HANG, Ended
from proof.upstream_tests import Choice, Run, judge, problem_of
from series.errors import Exit, SeriesError
from toy import Shared, Toy, git, toy, warm

__all__ = ["toy", "warm"]

FILE = "tests/test_upstream.py"
# COUNT is 0 in the pinned source and 2 with the series.
TESTS = """\
from pathlib import Path
import pytest, vllm
with Path({runs!r}).open("a") as file:
    file.write(f"{{vllm.COUNT}}\\n")
def test_same():
    pass
def test_gpu():
    pytest.skip("no GPU")
def test_other():
    assert {condition}
"""
CHOICE = """\
seconds = 60
[tests]
"vllm/__init__.py" = ["tests/test_upstream.py"]
[left_out]
[reasons]
"it needs a GPU" = ["tests/test_upstream.py::test_gpu"]
"""
Upstream = Callable[[str], None]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def upstream(
    toy: Toy, warm: Shared, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Upstream:
    """Give the toy's pinned source a test of this condition, below the same two patches."""
    monkeypatch.setattr(upstream_tests, "start", warm.start)
    monkeypatch.setattr(upstream_tests, "make_stand_ins", lambda *_: None)
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    (toy.base.folder / "tests.toml").write_text(toy.plan.read_text())
    write(toy, CHOICE)
    tree = toy.paths.tree

    def change(condition: str) -> None:
        old = git(tree, "rev-parse", "base").strip()
        git(tree, "checkout", "-q", "--detach", "base")
        text = TESTS.format(runs=str(runs), condition=condition)
        toy.commit({FILE: text})
        git(tree, "tag", "-f", "base")
        git(tree, "rebase", "-q", "--onto", "base", old, "series")
        # The toy's lock begins with the first commit.
        root = git(tree, "commit-tree", "-m", "base", "base^{tree}").strip()
        git(tree, "rebase", "-q", "--onto", root, "base", "series")
        git(tree, "tag", "-f", "base", root)
        toy.record()

    return change


def write(toy: Toy, choice: str) -> None:
    (toy.base.folder / upstream_tests.FILE).write_text(choice)


def run(toy: Toy, *options: str) -> None:
    assert call("upstream-tests", toy.base, toy.paths, "--jobs", "1", *options) is Exit.OK


def fails(toy: Toy, *options: str) -> SeriesError:
    with pytest.raises(SeriesError) as caught:
        run(toy, *options)
    return caught.value


def test_the_same_outcomes_pass(toy: Toy, upstream: Upstream) -> None:
    upstream("True")
    assert "is missing" in fails(toy, "--check").what
    run(toy)
    data = json.loads(upstream_tests.data_file(toy.base).read_text())
    assert data["files"] == {FILE: {"passed": 2, "failed": 0, "skipped": 1}}
    assert data["reasons"] == {f"{FILE}::test_gpu": 1}
    assert data["tree"] == evidence.tree_of(toy.base)
    page = upstream_tests.page([toy.base])
    assert "3 tests in 1 files: 2 pass, 0 fail and 1 are skipped" in page
    assert "| it needs a GPU | 1 | `test_upstream.py::test_gpu` |" in page
    run(toy, "--check")
    data["files"][FILE]["passed"] = 3
    evidence.write(upstream_tests.data_file(toy.base), data)
    assert "other numbers" in fails(toy, "--check").what
    assert git(toy.paths.tree, "status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("vllm.COUNT == 0", "passed without the series, failed with it"),
        ("vllm.COUNT == 2", "failed without the series, passed with it"),
        ("False", f"failed, and {upstream_tests.FILE} says no reason"),
    ],
)
def test_other_outcomes_fail(
    toy: Toy,
    upstream: Upstream,
    condition: str,
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    upstream(condition)
    assert fails(toy).what == "1 outcomes are not as they should be"
    assert f"{FILE}::test_other: {said}" in capsys.readouterr().out
    assert not upstream_tests.data_file(toy.base).exists()


def test_the_pinned_source_runs_again_only_where_it_must(
    toy: Toy, upstream: Upstream, runs: Path
) -> None:
    upstream("True")
    run(toy)
    run(toy)
    assert runs.read_text().split() in (["2", "0", "2"], ["0", "2", "2"])
    run(toy, "--fresh")
    assert runs.read_text().split().count("0") == 2
    write(toy, CHOICE.replace("it needs a GPU", "no GPU"))
    run(toy)
    assert runs.read_text().split().count("0") == 2
    write(toy, CHOICE.replace("[left_out]", f'[left_out]\n"{FILE}::test_same" = "slow"'))
    run(toy)
    assert runs.read_text().split().count("0") == 3


def test_outcomes_are_folded_without_loss() -> None:
    tests = {
        f"{FILE}::test_a": "passed",
        f"{FILE}::test_a[x[0]-tests/b.py::c]": "failed",
        f"{FILE}::Class::test_b[1]": "passed",
        f"{FILE}::Class::test_b[2]": "passed",
        FILE: "skipped",
    }
    folded = upstream_tests.fold(tests)
    assert folded["passed"] == {"::Class::test_b": ["[1]", "[2]"], "::test_a": [""]}
    assert upstream_tests.unfold(FILE, folded) == tests


def test_a_fresh_clone_has_the_outcomes_of_the_pinned_source(
    toy: Toy, upstream: Upstream, runs: Path
) -> None:
    upstream("vllm.COUNT != 1")
    run(toy)
    (toy.paths.state / upstream_tests.KEPT).unlink()
    run(toy, "--check")
    assert runs.read_text().split().count("0") == 1
    committed = upstream_tests.outcomes_file(toy.base)
    data = json.loads(committed.read_text())
    by_outcome = data["files"][FILE]
    by_outcome.setdefault("failed", {})["::test_same"] = by_outcome["passed"].pop("::test_same")
    evidence.write(committed, data)
    (toy.paths.state / upstream_tests.KEPT).unlink()
    assert "1 outcomes are not as they should be" in fails(toy, "--check").what
    assert "has other outcomes" in fails(toy, "--check", "--fresh").what
    evidence.write(committed, data | {"key": "0"})
    run(toy)
    assert runs.read_text().split().count("0") == 2


def test_a_pinned_source_that_had_a_problem_is_not_kept(
    toy: Toy, upstream: Upstream, runs: Path
) -> None:
    upstream("open('/no/such/file')")
    for _ in range(2):
        fails(toy)
    assert runs.read_text().split().count("0") == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"vllm/__init__.py" = ', '"vllm/other.py" = ', "changes vllm/__init__.py, without a row"),
        ("[left_out]", '"vllm/first.py" = "none"\n[left_out]', "does not change vllm/first.py"),
        ("::test_gpu", "/../test_no.py", "there is no tests/test_upstream.py/../test_no.py"),
        ("[left_out]", f'[left_out]\n"{FILE}" = "slow"', "is left out, and is not"),
    ],
)
def test_a_choice_that_is_not_of_the_tree_is_refused(
    toy: Toy, upstream: Upstream, old: str, new: str, said: str
) -> None:
    upstream("True")
    assert old in CHOICE
    write(toy, CHOICE.replace(old, new))
    assert said in fails(toy).what


def test_a_base_without_a_list(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy, "--check")
    assert "are not run on it" in capsys.readouterr().out
    assert "cannot be read" in fails(toy).what


def test_left_out_tests_do_not_run(toy: Toy, upstream: Upstream) -> None:
    upstream("False")
    write(toy, CHOICE.replace("[left_out]", f'[left_out]\n"{FILE}::test_other" = "slow"'))
    run(toy)
    assert json.loads(upstream_tests.data_file(toy.base).read_text())["files"][FILE]["passed"] == 1
    assert "| `test_upstream.py::test_other` | slow |" in upstream_tests.page([toy.base])


NODE = f"{FILE}::test_it"
PASSES, FAILS = Run({NODE: "passed"}), Run({NODE: "failed"})
REASON = {"by nature": [NODE]}


@pytest.mark.parametrize(
    ("without", "with_series", "reasons", "changed", "wrong"),
    [
        (PASSES, PASSES, {}, set(), ""),
        (FAILS, FAILS, REASON, set(), ""),
        (PASSES, PASSES, REASON, set(), "has a reason"),
        (PASSES, Run(), {}, set(), "passed without the series, missing with it"),
        (PASSES, Run(), {}, {FILE}, "passed without the series, missing with it"),
        (Run(), PASSES, {}, set(), "missing without the series, passed with it"),
        (Run(), PASSES, {}, {FILE}, ""),
        (Run(), FAILS, {}, {FILE}, "says no reason"),
        (PASSES, FAILS, REASON, set(), "passed without the series, failed with it"),
        (PASSES, FAILS, REASON, {FILE}, "passed without the series, failed with it"),
        (FAILS, PASSES, {}, set(), "failed without the series, passed with it"),
        (FAILS, PASSES, {}, {FILE}, ""),
        (FAILS, Run(), {}, {FILE}, "failed without the series, missing with it"),
        (Run({FILE: "failed"}), Run(), {}, set(), "failed without the series, missing with it"),
        (Run({FILE: "failed"}), PASSES, {}, {FILE}, ""),
        (Run({NODE: "passed"}, {FILE: "hung"}), PASSES, {}, set(), "pinned source: hung"),
    ],
)
def test_judging(
    without: Run, with_series: Run, reasons: dict[str, list[str]], changed: set[str], wrong: str
) -> None:
    choice = Choice({"vllm/x.py": [FILE]}, reasons=reasons)
    found = judge(choice, [FILE], without, with_series, changed)
    assert len(found) == bool(wrong)
    assert not wrong or wrong in found[0]


@pytest.mark.parametrize("without", [PASSES, FAILS])
@pytest.mark.parametrize("with_series", [PASSES, FAILS, Run()])
@pytest.mark.parametrize(
    ("table", "right"), [("mended", (FAILS, PASSES)), ("changed", (PASSES, Run()))]
)
def test_what_the_series_mends_and_changes(
    without: Run, with_series: Run, table: str, right: tuple[Run, Run]
) -> None:
    turned: Any = {table: {"why": [NODE]}}
    choice = Choice({"vllm/x.py": [FILE]}, **turned)
    found = judge(choice, [FILE], without, with_series, {FILE})
    assert len(found) == ((without, with_series) != right)
    before, after = without.tests[NODE], with_series.tests.get(NODE, "missing")
    assert all(f"{before} and then {after}, and is in [{table}]" in line for line in found)


def test_a_test_that_the_series_replaces_is_on_the_page(toy: Toy, upstream: Upstream) -> None:
    upstream("vllm.COUNT == 0\nif vllm.COUNT:\n    del test_other")
    write(toy, f'{CHOICE}[changed]\n"it counts to two" = ["{FILE}::test_other"]\n')
    run(toy)
    data = json.loads(upstream_tests.data_file(toy.base).read_text())
    assert data["files"][FILE] == {"passed": 1, "failed": 0, "skipped": 1}
    assert data["reasons"] == {f"{FILE}::test_gpu": 1}
    page = upstream_tests.page([toy.base])
    assert "in the same file, as it counts to two: `test_upstream.py::test_other`." in page


@pytest.mark.parametrize(
    ("status", "tests", "log", "said"),
    [
        (1, {"a": "failed"}, "E   Value error, Invalid repository ID or local directory", "lacks"),
        (0, {"a": "passed"}, "FileNotFoundError was expected", ""),
        (1, {"a": "failed"}, "E   AssertionError", ""),
        (1, {"a": "failed"}, "OSError: cannot find the requested files in the disk cache", "lacks"),
        (1, {"a": "failed", "b": "passed"}, "E   FileNotFoundError: 'x'", "lacks a file"),
        (HANG, {"a": "passed"}, "", "not done after 9 s"),
        (-11, {"a": "passed"}, "", "ended with -11"),
        (2, {"a": "failed"}, "ImportError", ""),
        (97, {}, "ImportError", "ended with 97"),
        (5, {"a": "skipped"}, "", ""),
        (5, {}, "", "no tests"),
    ],
)
def test_outcomes_that_cannot_be_believed(
    tmp_path: Path, status: int, tests: dict[str, str], log: str, said: str
) -> None:
    (tmp_path / "log").write_text(log)
    problem = problem_of(Ended(status, tmp_path / "log"), tests, 9)
    assert problem.startswith(said) if said else not problem
