# SPDX-License-Identifier: Apache-2.0
"""The tool's own environments, what it shows while it waits, and whose trees git accepts."""

import io
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import Project, failing, program
from series import cli, git, selftest, state, steps, tools
from series.config import Paths
from series.errors import Exit


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The environments that were built; nothing is installed."""
    found: list[str] = []

    def run(argv: list[str | Path], paths: Paths, what: str, hint: str) -> None:
        if "venv" in argv:
            (Path(argv[-1]) / "bin").mkdir(parents=True)
            (Path(argv[-1]) / "bin/python").touch()
            found.append(str(argv[0]))

    monkeypatch.setattr(tools, "_run", run)
    return found


def test_an_environment_is_made_again_for_another_python_or_lock(
    built: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    paths = Paths(tmp_path / "build", "v1")
    assert tools.make(paths, "tools") == paths.build / "tools"
    tools.make(paths, "tools")
    assert built == [os.path.realpath(sys.executable)]
    # An upgrade of the interpreter, which can have removed the old one.
    monkeypatch.setattr(platform, "python_version", lambda: "3.99.0")
    tools.make(paths, "tools")
    assert len(built) == 2
    other = tmp_path / "python-other"
    other.symlink_to("/bin/sh")
    monkeypatch.setattr(sys, "executable", str(other))
    tools.make(paths, "tools")
    assert built[-1] == os.path.realpath("/bin/sh")
    # A copy of the folder whose link leads nowhere.
    (paths.build / "tools/bin/python").unlink()
    (paths.build / "tools/bin/python").symlink_to(tmp_path / "gone")
    tools.make(paths, "tools")
    assert len(built) == 4
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks/tools.txt").write_text("other==1\n")
    monkeypatch.setattr(tools, "LOCKS", tmp_path / "locks")
    tools.make(paths, "tools")
    assert len(built) == 5
    assert (paths.build / "CACHEDIR.TAG").is_file()


def test_an_environment_that_is_a_link_is_replaced_not_emptied(
    built: list[str], tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "keep").write_text("")
    (tmp_path / "build").mkdir()
    (tmp_path / "build/tools").symlink_to(shared)
    tools.make(Paths(tmp_path / "build", "v1"), "tools")
    assert (shared / "keep").exists()
    assert not (tmp_path / "build/tools").is_symlink()


@pytest.mark.long
def test_an_environment_without_an_index_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://me:s3cret@127.0.0.1:9/simple")
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    # uv waits longer before each new try.
    for name in ("PIP_RETRIES", "UV_HTTP_RETRIES"):
        monkeypatch.setenv(name, "0")
    with failing(Exit.BUILD, r"cannot install tools\.txt") as caught:
        tools.make(Paths(tmp_path / "build", "v1"), "tools")
    assert "s3cret" not in str(caught.value)
    assert not (tmp_path / "build/tools/.built").exists()


def test_what_checks_the_tool_writes_under_the_build_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And starts by the environment's Python: the first line of its scripts is a path."""
    log = tmp_path / "log"
    python = program(tmp_path / "dev/bin/python", f'env >> {log}\necho "RAN $@" >> {log}')
    for name in selftest.NO_PYTHON:
        program(tmp_path / "dev/bin" / name, "")
    monkeypatch.setattr(tools, "make", lambda *_: python.parents[1])
    for name in ("RUFF_CACHE_DIR", "MYPY_CACHE_DIR", "PYTHONPYCACHEPREFIX"):
        monkeypatch.delenv(name, raising=False)
    build = tmp_path / "build"
    assert cli.main(["test-tool", "--build-dir", str(build)]) == Exit.OK
    said = log.read_text()
    ran = [line.split()[1:] for line in said.splitlines() if line.startswith("RAN ")]
    modules = [check[0] for check in selftest.CHECKS if check[0] not in selftest.NO_PYTHON]
    assert [words[:2] for words in ran] == [["-m", module] for module in modules]
    assert f"cache_dir={build}/cache/pytest" in ran[-1]
    for name in ("RUFF_CACHE_DIR", "MYPY_CACHE_DIR", "PYTHONPYCACHEPREFIX"):
        assert said.count(f"\n{name}={build}/cache/") == len(ran), name


def test_git_accepts_a_tree_of_another_owner(project: Project) -> None:
    """As in a container; without -c, which git before 2.38 ignores for safe.directory."""
    for home, code in (({}, 0), ({"HOME": "/nonexistent"}, 128)):
        env = {**git.environment(), **home, "GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}
        done = subprocess.run(
            ["git", "status", "--short"],
            cwd=project.tree,
            env=env,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code, done.stderr


def test_a_lock_whose_file_was_removed_is_no_lock(tmp_path: Path) -> None:
    """Or two commands would hold the same lock, one of them on a file that is gone."""
    lock = tmp_path / ".lock"
    for again in (False, True):
        with lock.open("a") as handle:
            lock.unlink()
            if again:
                lock.touch()
            assert not state._take(handle, lock)
    with lock.open("a") as handle:
        assert state._take(handle, lock)


def test_the_tag_is_only_for_a_folder_that_was_empty(tmp_path: Path) -> None:
    for name, expected in (("new", True), ("empty", True), ("full", False)):
        if name != "new":
            (tmp_path / name).mkdir()
        if name == "full":
            (tmp_path / name / "thesis.txt").write_text("")
        state.make_build_folder(tmp_path / name)
        assert (tmp_path / name / "CACHEDIR.TAG").exists() is expected


# ---- progress ----


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_rewrites_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    progress = steps.Progress()
    for number in range(3):
        progress.next = 0
        progress.show(f"{number} of 3")
    progress.show("at once after it, which is too soon")
    progress.done()
    assert terminal.getvalue() == "\r0 of 3\r1 of 3\r2 of 3\r      \r"


def test_progress_elsewhere_is_a_line_a_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    progress = steps.Progress()
    for number in range(1, 41):
        progress.show(f"{number} of 40", number / 40)
    progress.done()
    assert capsys.readouterr().err.splitlines() == [f"{n} of 40" for n in range(4, 41, 4)]


def test_a_step_shows_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = steps.Steps(tmp_path).run
    run("compile", ["printf", "[%s/2] Building\\nnoise\\n", "1", "2"])
    assert capsys.readouterr().err == "compile: [1/2] Building\ncompile: [2/2] Building\n"
    monkeypatch.setattr(steps, "EVERY", 0)
    run("packages", ["sleep", "0.8"], how_far=lambda: "7 of 9 installed")
    assert capsys.readouterr().err == "7 of 9 installed\n"
