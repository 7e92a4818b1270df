# SPDX-License-Identifier: Apache-2.0
"""test-model and test-each on a toy vLLM."""

import json
import os
import signal
import subprocess
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import call, failing, git
from proof import evidence, outcomes, runner, stages
from series import env as environments
from series import programs
from series import tree as trees
from series.errors import Exit, SeriesError
from series.state import Record
from toy import NAMES, PASSING, SCRIPT, Toy, comparing, passing, toy, warm

__all__ = ["comparing", "passing", "toy", "warm"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_each_runs_on_the_tree_after_its_patch(
    toy: Toy, capfd: pytest.CaptureFixture[str], jobs: str
) -> None:
    # In the work tree, COUNT is 2: the first patch's test passes only in its own tree. With one
    # job both are checked out in the same folder.
    toy.run("test-each", "", "--jobs", jobs)
    table = capfd.readouterr().out.splitlines()[-4:-1]
    trees = git(toy.paths.tree, "log", "--reverse", "--format=%T", "base..HEAD").split()
    assert [line.split()[:4] for line in table[1:]] == [
        [name, tree[:12], "ok", "1"] for name, tree in zip(NAMES, trees, strict=True)
    ]
    assert not list(toy.paths.state.glob("each/*"))
    assert len(git(toy.paths.tree, "worktree", "list").splitlines()) == 1
    assert git(toy.paths.tree, "status", "--porcelain") == ""


def test_worktrees_come_and_go_one_at_a_time(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    busy, calls = threading.Lock(), []

    def alone(run: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(repo: Path, *args: Any) -> Any:
            if args[0] != "worktree":
                return run(repo, *args)
            assert busy.acquire(blocking=False), "git worktree twice at a time"
            calls.append(args[1])
            try:
                time.sleep(0.1)
                return run(repo, *args)
            finally:
                busy.release()

        return wrapper

    for name in ("git", "attempt"):
        monkeypatch.setattr(runner, name, alone(getattr(runner, name)))
    toy.run("test-each")
    assert sorted(calls) == ["add"] * 2 + ["prune"] * 4


def test_no_two_versions_of_a_file_are_written_in_one_second(toy: Toy) -> None:
    """Python would take the byte code of one for the other's: they have one size."""
    worktrees, times = runner.Worktrees(toy.paths), []
    for commit in ("HEAD~1", "HEAD"):
        commit = git(toy.paths.tree, "rev-parse", commit).strip()
        with worktrees.at(commit) as tree:
            times.append(int((tree / "vllm/__init__.py").stat().st_mtime))
    worktrees.close()
    assert times[0] != times[1]


def test_each_links_the_kernels(toy: Toy) -> None:
    text = "from pathlib import Path\nimport vllm\n"
    text += "def test_it():\n    so = Path(vllm.__file__).with_name('_C.abi3.so')\n"
    toy.amend({"tests/test_second.py": text + "    assert so.read_text() == 'kernel'\n"})
    toy.run("test-each", "second")


def test_model_runs_each_stage_in_a_process(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    pid = "import os\ndef test_it():\n    print('PID', os.getpid())\n    assert 0\n"
    toy.amend({"tests/test_first.py": pid, "tests/test_second.py": pid})
    assert toy.fails("test-model").what == "failed: first, second"
    out = capfd.readouterr().out
    assert len({line for line in out.splitlines() if line.startswith("PID")}) == 2
    rows = [line.split() for line in out.splitlines()[-4:-1]]
    assert [row[0] for row in rows] == [*NAMES, "upstream"]
    assert [row[2:6] for row in rows] == [["ok", *"010"], ["ok", *"010"], ["ok", *"100"]]
    assert "3 tests in 3 stages, 2 stages failed" in out.splitlines()[-1]


def test_a_test_named_twice_is_refused(passing: Toy) -> None:
    passing.replace('["tests/test_first.py"]', '["tests/test_second.py::test_it"]')
    assert "names tests/test_second.py::test_it twice" in passing.fails("test-model").what


def test_reports_of_a_run_replace_those_before(passing: Toy) -> None:
    logs = passing.paths.state / "logs/test-model"
    passing.run("test-model")
    assert {path.stem for path in logs.glob("*.jsonl")} == {"first", "second", "upstream"}
    report = passing.report()
    assert report["whole"] and report["ok"] and report["base"] == "v0.19.1"
    assert report["tree"] == git(passing.paths.tree, "rev-parse", "HEAD^{tree}").strip()
    assert report["stages"]["first"]["passed"] == report["stages"]["first"]["count"] == 1
    passing.run("test-model", "second")
    assert {path.stem for path in logs.glob("*.jsonl")} == {"second"}
    assert not passing.report()["whole"]


# ---- the tree that is tested ----


def test_a_dirty_tree_is_refused(toy: Toy) -> None:
    """The committed test fails, the edit passes: it would be the edit that is reported."""
    toy.amend({"tests/test_first.py": "def test_it():\n    assert 0\n"})
    (toy.paths.tree / "tests/test_first.py").write_text(PASSING)
    for command in ("test-model", "test-each"):
        error = toy.fails(command)
        assert error.code is Exit.DIRTY and "tests/test_first.py" in error.what
    assert not (toy.paths.state / "logs").exists()


def test_a_dirty_tree_is_said_before_a_missing_environment(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environments, "read_stamp", lambda _: {})
    for command in ("test-model", "test-each"):
        error = toy.fails(command)
        assert error.code is Exit.BUILD and "is not built" in error.what
    (toy.paths.tree / "tests/test_first.py").write_text(PASSING)
    for command in ("test-model", "test-each"):
        assert toy.fails(command).code is Exit.DIRTY


@pytest.mark.parametrize("verb", ["stress", "lossless", "evaluate", "demo", "run"])
def test_a_program_that_proves_something_asks_for_the_tree(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    started: list[Any] = []

    def run(*arguments: Any, **_: Any) -> subprocess.CompletedProcess[str]:
        started.append(arguments)
        return subprocess.CompletedProcess([], 0)

    monkeypatch.setattr(programs, "subprocess", types.SimpleNamespace(run=run))
    (toy.paths.tree / "tests/test_first.py").write_text("edited\n")
    given = ["--", "true"] if verb == "run" else []
    if verb in ("demo", "run"):
        assert call(verb, toy.base, toy.paths, *given) is Exit.OK and started
        return
    with failing(Exit.DIRTY):
        call(verb, toy.base, toy.paths)
    assert not started


def test_a_tree_that_is_not_the_locks_is_refused(toy: Toy) -> None:
    lock = toy.base.lock_file.read_text()
    toy.amend({"tests/test_first.py": PASSING, "tests/test_second.py": PASSING})
    toy.base.lock_file.write_text(lock)
    for command in ("test-model", "test-each"):
        error = toy.fails(command)
        assert error.code is Exit.LOCK and "after second" in error.what
    toy.base.lock_file.unlink()
    assert toy.fails("test-model").code is Exit.LOCK


def test_a_tree_without_the_last_patch_is_refused(toy: Toy) -> None:
    git(toy.paths.tree, "reset", "-q", "--hard", "HEAD~1")
    head = git(toy.paths.tree, "rev-parse", "HEAD").strip()
    Record("toy", head, {}).write(toy.paths.tree / trees.RECORD)
    error = toy.fails("test-each")
    assert error.code is Exit.LOCK and "has nothing after second" in error.what


def test_an_edit_during_the_run_is_refused(passing: Toy) -> None:
    passing.amend({"tests/test_first.py": f"{PASSING}    open('new.txt', 'w').close()\n"})
    assert passing.fails("test-model").code is Exit.DIRTY
    assert not (passing.paths.state / "logs/test-model/run.json").exists()


def test_a_report_of_another_tree_is_refused(passing: Toy) -> None:
    passing.run("test-model")
    file = passing.paths.state / "logs/test-model/run.json"
    evidence.read(file, passing.base, command="make test-model")
    passing.amend({"vllm/more.py": ""})
    with failing(Exit.LOCK, "run make test-model"):
        evidence.read(file, passing.base, command="make test-model")


# ---- comparisons without and with the series ----


@pytest.mark.long
def test_model_compares_other_models(comparing: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    comparing.run("test-model")
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[-3:-1]]
    assert [(row[0], *row[2:6]) for row in rows] == [
        ("models", "ok", "2", "0", "0"),
        ("drafts", "ok", "2", "0", "0"),
    ]
    comparing.amend({"vllm/__init__.py": "PLANTED = True\n"})
    assert comparing.fails("test-model").what == "failed: models, drafts"
    assert capfd.readouterr().out.count("different: Other") == 2
    for script in ("models", "drafts"):
        comparing.plan.with_name(f"{script}.py").write_text("raise SystemExit(3)\n")
    assert comparing.fails("test-model").what == "failed: models, drafts"
    assert "without the series: ended with 3" in capfd.readouterr().out
    assert not list(comparing.paths.state.glob("each/*"))


@pytest.mark.long
def test_a_comparison_of_a_tree_with_itself_fails(
    comparing: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    """A script that imports from the patched tree in both runs."""
    both = f"import sys\nsys.path.insert(0, {str(comparing.paths.tree)!r})\n{SCRIPT}"
    comparing.plan.with_name("models.py").write_text(both)
    assert comparing.fails("test-model").what == "failed: models"
    assert f"without the series: vllm came from {comparing.paths.tree}" in capfd.readouterr().out
    pinned = comparing.paths.state / "each/0/vllm/__init__.py"
    comparing.plan.with_name("models.py").write_text(
        SCRIPT.replace("vllm.__file__", f"{str(pinned)!r}")
    )
    # One at a time: the first worktree is then that of whichever runs.
    assert comparing.fails("test-model", "--jobs", "1").what == "failed: models"
    assert f"with the series: vllm came from {pinned}" in capfd.readouterr().out


@pytest.mark.long
def test_a_comparison_needs_one_patch_of_the_series(
    comparing: Toy, capfd: pytest.CaptureFixture[str]
) -> None:
    script = comparing.plan.with_name("drafts.py")
    # Of the series the tree without it has the patch only.
    only = "import importlib.util as u\nassert u.find_spec('vllm.first')\n"
    only += "if 'without' in sys.argv[2]: assert not u.find_spec('vllm.second')\n"
    script.write_text(SCRIPT.replace("import vllm\n", f"import vllm\n{only}"))
    comparing.run("test-model")
    # A series that has dropped it.
    comparing.replace('needs = "first"', 'needs = "dropped"')
    assert comparing.fails("test-model").what == "failed: drafts"
    assert "without the series: ended with" in capfd.readouterr().out
    script.write_text(SCRIPT)
    comparing.run("test-model")


# ---- what stops a stage ----


@pytest.mark.parametrize("number", [1, 3])
def test_the_number_of_tests_is_pinned(
    passing: Toy, capfd: pytest.CaptureFixture[str], number: int
) -> None:
    two = f"{PASSING}def test_other():\n    pass\n"
    passing.amend({"tests/test_second.py": two})
    passing.replace("test_second.py::test_it", "test_second.py")
    passing.replace("[patch.second]\ncount = 1", f"[patch.second]\ncount = {number}")
    for command in ("test-model", "test-each"):
        assert "second" in passing.fails(command).what
        out = capfd.readouterr().out
        assert f"2 tests ran, tests.toml says {number}" in out and "write count = 2" in out
    assert passing.fails("test-model", "--write-counts").what == "failed: second"
    assert "[patch.second]\ncount = 2\n" in passing.plan.read_text()
    passing.run("test-model")


def test_new_counts_are_written_into_a_table_without_one(comparing: Toy) -> None:
    comparing.replace("[patch.second]\ncount = 1", "[patch.second]")
    comparing.replace("[compare.models]\ncount = 2", "[compare.models]")
    text = comparing.plan.read_text()
    comparing.fails("test-model", "--write-counts")
    assert sorted(comparing.plan.read_text().split()) == sorted(
        f"{text} count = 1 count = 2".split()
    )
    comparing.run("test-model")


@pytest.mark.long
def test_a_hang_is_a_failure(passing: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    """Its whole group goes, and the end of its log is shown."""
    hang = "import os, subprocess, sys, time\ndef test_it():\n    print('HERE', flush=True)\n"
    # Its own number: another run of these tests on this machine has one too.
    long = f"600.{os.getpid()}"
    hang += f"    child = subprocess.Popen(['sleep', '{long}'], start_new_session=True)\n"
    hang += "    os.write(2, f'CHILD={child.pid}'.encode())\n    time.sleep(600)\n"
    passing.amend({"tests/test_first.py": hang})
    passing.replace("[patch.first]", "[patch.first]\nseconds = 6")
    begin = time.monotonic()
    assert passing.fails("test-model").what == "failed: first"
    assert time.monotonic() - begin < 30
    out = capfd.readouterr().out
    assert "FAILED not done after 6 s" in out and "test_first.py" in out
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert f"sleep {long}" not in running.stdout


def test_ctrl_c_ends_what_runs(passing: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "start", runner.start)
    wait = (
        "import time\ndef test_it():\n    open('{state}/began', 'w').close()\n    time.sleep(601)\n"
    )
    began = passing.paths.state / "began"
    passing.amend({"tests/test_first.py": wait.replace("{state}", str(passing.paths.state))})

    def interrupt() -> None:
        while not began.exists():
            time.sleep(0.1)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # Shells have what they start in the background ignore it.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            passing.run("test-model")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - begin < 60


def test_a_log_may_hold_any_bytes(passing: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    odd = "import os\ndef test_it(capfd):\n    with capfd.disabled():\n"
    odd += "        os.write(1, b'\\xff\\xfe odd')\n    assert 0\n"
    passing.amend({"tests/test_first.py": odd})
    assert passing.fails("test-model").what == "failed: first"
    assert "odd" in capfd.readouterr().out


def test_the_processes_that_are_forked_from(
    comparing: Toy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """One for each kind of tree, and what is not there says so."""
    monkeypatch.setattr(stages, "start", runner.start)
    comparing.run("test-model")
    comparing.replace('["pytest"]', '["absent"]')
    error = comparing.fails("test-model")
    assert "stages are forked from has ended" in error.what and "absent" in error.hint


def test_a_long_test_of_a_file_with_others_runs_apart(passing: Toy) -> None:
    both = "def test_it():\n    pass\ndef test_long():\n    pass\n"
    passing.amend({"tests/test_first.py": both, "tests/test_second.py": PASSING})
    passing.replace(
        '["tests/test_first.py"]',
        '["tests/test_first.py"]\nlong_count = 1\nlong_tests = ["tests/test_first.py::test_long"]',
    )
    ran = []
    for patch, *options in (("",), ("", "--long"), ("first",)):
        passing.run("test-model", patch, *options)
        logs = passing.paths.state / "logs" / "-".join(["test-model", *options]).replace("---", "-")
        ran.append([outcome.node for outcome in outcomes.read(logs / "first.jsonl")])
    short, long = ("tests/test_first.py::test_it", "tests/test_first.py::test_long")
    assert ran == [[short], [long], [short, long]]


def test_long_stages_run_apart(comparing: Toy) -> None:
    comparing.replace(
        'count = 1\nimports = ["vllm.first"]\ntests', 'imports = ["vllm.first"]\nlong_tests'
    )
    comparing.replace("[compare.drafts]", "[compare.drafts]\nlong = true")
    comparing.run("test-model")
    assert set(comparing.report()["stages"]) == {"second", "upstream", "models"}
    assert comparing.fails("test-model", "--long", "--write-counts").what == "failed: first"
    assert "[patch.first]\nlong_count = 1\n" in comparing.plan.read_text()
    comparing.run("test-model", "", "--long")
    assert set(comparing.report("test-model-long")["stages"]) == {"first", "drafts"}
    # One that is asked for by name runs however long it is.
    comparing.run("test-model", "first")
    assert set(comparing.report()["stages"]) == {"first"}


@pytest.mark.parametrize(
    ("files", "cells"),
    [
        ({"tests/test_second.py": "def test_it():\n    assert 0\n"}, ["ok", "0", "1", "0"]),
        ({"tests/test_second.py": "import absent\n"}, ["ok", "0", "1", "0"]),
        ({"vllm/__init__.py": "import absent\n"}, ["FAILS", "0", "0", "0"]),
        (
            {"tests/test_second.py": "import pytest\npytest.skip('x', allow_module_level=True)\n"},
            ["ok", "0", "1", "1"],
        ),
        (
            {"tests/test_second.py": "import pytest\n@pytest.mark.skip\ndef test_it(): pass\n"},
            ["ok", "0", "0", "1"],
        ),
        (
            {
                "tests/test_second.py": "import pytest\n"
                "some = [0, pytest.param(1, marks=pytest.mark.skip)]\n"
                "@pytest.mark.parametrize('x', some)\ndef test_it(x): pass\n"
            },
            ["ok", "1", "0", "1"],
        ),
        (
            {"tests/test_second.py": "import os\ndef test_it(): os._exit(0)\n"},
            ["ok", "0", "0", "0"],
        ),
    ],
)
def test_a_failing_stage_is_named(
    toy: Toy, capfd: pytest.CaptureFixture[str], files: dict[str, str], cells: list[str]
) -> None:
    toy.amend(files)
    error = toy.fails("test-each")
    assert error.code is Exit.FAILED
    assert error.what == "failed: second"
    assert capfd.readouterr().out.splitlines()[-2].split()[2:6] == cells
    assert not list(toy.paths.state.glob("each/*"))


def test_a_stage_without_a_patch_fails(toy: Toy) -> None:
    toy.plan.write_text(f"{toy.plan.read_text()}[patch.third]\nimports = []\ntests = ['x']\n")
    assert "tests for third, which the series does not list" in toy.fails("test-model").what


def test_a_patch_without_a_stage_fails(toy: Toy) -> None:
    toy.replace("[patch.second]", "[patch.other]")
    for command in ("test-each", "test-model"):
        assert "no tests for second" in toy.fails(command).what
    toy.replace("[patch.other]", "[patch.second]")
    toy.replace('tests = ["tests/test_second.py::test_it"]', "tests = []")
    assert "no tests for second" in toy.fails("test-each").what
    toy.plan.write_text("[patch.first\n")
    assert "cannot be read" in toy.fails("test-each").what


def test_a_test_file_that_no_stage_runs(toy: Toy) -> None:
    toy.amend({"tests/more/test_third.py": PASSING, "tests/helper.py": ""})
    for command in ("test-each", "test-model"):
        assert "runs tests/more/test_third.py" in toy.fails(command).what
    toy.replace('["tests/test_upstream.py"]', '["tests/test_upstream.py", "tests/more"]')
    toy.run("test-each")


def test_planted_errors_that_do_not_fit_the_tree(toy: Toy) -> None:
    """Else nobody sees it before they are planted, at night."""
    table = toy.plan.with_name("mutations.toml")
    entry = {"name": "a", "error": "a", "file": "vllm/first.py", "old": "x", "new": "", "test": "a"}
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in entry.items()]
    table.write_text("[[mutation]]\n" + "".join(lines))
    assert "occurs 0 times in vllm/first.py" in toy.fails("test-each").what


def test_what_must_come_first(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "read_stamp", lambda _: {})
    assert toy.fails("test-each").code is Exit.BUILD
    with pytest.raises(SeriesError, match="no patch 'third'"):
        toy.run("test-each", "third")
