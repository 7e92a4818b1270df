# SPDX-License-Identifier: Apache-2.0
"""test-model and test-each on a toy vLLM, with this Python as its environment."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import call
from proof import stages
from series import env as environments
from series.config import Base, Paths
from series.errors import Exit, SeriesError

NAMES = ("first", "second")
PLAN = """\
[environment]
TOY = "set"
[stock]
imports = ["vllm"]
tests = ["tests/test_stock.py"]
[patch.first]
imports = ["vllm.first"]
tests = ["tests/test_first.py"]
[patch.second]
tests = ["tests/test_second.py::test_it"]
imports = []
"""
TEST = """\
import os
import vllm
from vllm import _version
def test_it():
    assert os.environ["TOY"] == "set"
    assert _version.version == "1"
    assert vllm.COUNT == {count}
"""
STOCK = """\
import json, pathlib, sys
import vllm
answers = {"Same": [1, 2], "Other": [1, 3 if "PLANTED" in dir(vllm) else 2]}
pathlib.Path(sys.argv[2]).write_text(json.dumps(answers))
"""


def git(folder: Path, *args: str) -> str:
    env = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        env[f"GIT_{role}_NAME"], env[f"GIT_{role}_EMAIL"] = "Toy", "toy@example.com"
    done = subprocess.run(
        ["git", *args], cwd=folder, env=env, check=True, capture_output=True, text=True
    )
    return done.stdout


@dataclasses.dataclass
class Toy:
    """A toy vLLM with two patches applied, and a plan for them."""

    base: Base
    paths: Paths
    plan: Path

    def run(self, command: str, patch: str = "") -> None:
        options = ["--stages", str(self.plan), "--patch", patch, "--jobs", "2"]
        call(command, self.base, self.paths, *options)

    def fails(self, command: str) -> SeriesError:
        with pytest.raises(SeriesError) as caught:
            self.run(command)
        return caught.value

    def commit(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.paths.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.paths.tree, "add", "-A")
        git(self.paths.tree, "commit", "-q", "-m", "patch")

    def amend(self, files: dict[str, str]) -> None:
        self.commit(files)
        git(self.paths.tree, "reset", "-q", "--soft", "HEAD~2")
        git(self.paths.tree, "commit", "-q", "-m", "patch")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    folder = tmp_path / "patches/v0.19.1"
    folder.mkdir(parents=True)
    (folder / "series").write_text("".join(f"{name}\n" for name in NAMES))
    real = Base.load("v0.19.1", Path(__file__).resolve().parents[3])
    plan = tmp_path / "stages.toml"
    plan.write_text(PLAN)
    one = Toy(dataclasses.replace(real, folder=folder), Paths(tmp_path / "build", "v0.19.1"), plan)
    one.paths.tree.mkdir(parents=True)
    git(one.paths.tree, "init", "-q")
    one.commit(
        {
            ".gitignore": "*.so\n/vllm/_version.py\n__pycache__/\n",
            "vllm/__init__.py": "COUNT = 0\n",
            "tests/test_stock.py": "def test_it():\n    pass\n",
        }
    )
    git(one.paths.tree, "tag", "base")
    for count, name in enumerate(NAMES, start=1):
        one.commit(
            {
                "vllm/__init__.py": f"COUNT = {count}\n",
                f"vllm/{name}.py": "",
                f"tests/test_{name}.py": TEST.format(count=count),
            }
        )
    (one.paths.tree / "vllm/_version.py").write_text("version = '1'\n")
    models, drafts = tmp_path / "stock.py", tmp_path / "stock_drafts.py"
    models.write_text(STOCK)
    drafts.write_text(f"import vllm.first\n{STOCK}")
    stock = {"stock models": (models, ""), "stock drafts": (drafts, "first")}
    monkeypatch.setattr(stages, "STOCK", stock)
    kernel = one.paths.kernels / "key/_C_AVX2.abi3.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("kernel")
    (one.paths.tree / "vllm/_C.abi3.so").symlink_to(kernel)
    monkeypatch.setattr(environments, "python", lambda _: Path(sys.executable))
    monkeypatch.setattr(environments, "read_stamp", lambda _: {"checked": ["cpu"]})
    return one


def test_each_runs_on_the_tree_after_its_patch(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    # In the work tree, COUNT is 2: the first patch's test passes only in its own tree.
    toy.run("test-each")
    table = capfd.readouterr().out.splitlines()[-3:]
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
        monkeypatch.setattr(stages, name, alone(getattr(stages, name)))
    toy.run("test-each")
    assert sorted(calls) == ["add"] * 2 + ["prune"] * 4


def test_each_links_the_kernels(toy: Toy) -> None:
    text = "from pathlib import Path\nimport vllm\n"
    text += "def test_it():\n    so = Path(vllm.__file__).with_name('_C.abi3.so')\n"
    toy.amend({"tests/test_second.py": text + "    assert so.read_text() == 'kernel'\n"})
    toy.run("test-each", "second")


def test_model_runs_each_stage_in_a_process(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    pid = "import os\ndef test_it():\n    print('PID', os.getpid())\n    assert 0\n"
    toy.amend({"tests/test_first.py": pid, "tests/test_second.py": pid})
    error = toy.fails("test-model")
    assert error.what == "failed: first, second"
    out = capfd.readouterr().out
    assert len({line for line in out.splitlines() if line.startswith("PID")}) == 2
    rows = [line.split() for line in out.splitlines()[-5:]]
    assert [(row[0], row[-6:-2]) for row in rows[:2]] == [
        (name, ["ok", "0", "1", "0"]) for name in NAMES
    ]
    assert rows[2][0] == "stock" and rows[2][3] == "1"


def test_model_runs_a_test_of_two_stages_once(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    first = "from pathlib import Path\ndef test_it():\n    Path('runs').open('a').write('x')\n"
    toy.amend({"tests/test_first.py": first, "tests/test_second.py": "def test_it(): pass\n"})
    both = '["tests/test_first.py", "tests/test_second.py::test_it"]'
    toy.plan.write_text(PLAN.replace('["tests/test_second.py::test_it"]', both))
    toy.run("test-model")
    assert (toy.paths.tree / "runs").read_text() == "x"


def test_reports_of_a_run_replace_those_before(toy: Toy) -> None:
    logs = toy.paths.state / "logs"
    passing = "def test_it():\n    pass\n"
    toy.amend({"tests/test_first.py": passing, "tests/test_second.py": passing})
    toy.run("test-model")
    assert {path.name for path in logs.glob("test-model/*.xml")} == {
        "first.xml",
        "second.xml",
        "stock.xml",
    }
    toy.run("test-model", "second")
    assert {path.name for path in logs.glob("test-model/*.xml")} == {"second.xml"}


def test_model_compares_stock_models(toy: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    passing = "def test_it():\n    pass\n"
    toy.amend({"tests/test_first.py": passing, "tests/test_second.py": passing})
    toy.run("test-model")
    rows = [line.split() for line in capfd.readouterr().out.splitlines()[-2:]]
    assert [(row[1], *row[3:7]) for row in rows] == [
        ("models", "ok", "2", "0", "0"),
        ("drafts", "ok", "2", "0", "0"),
    ]
    toy.amend({"vllm/__init__.py": "PLANTED = True\n"})
    assert toy.fails("test-model").what == "failed: stock models, stock drafts"
    out = capfd.readouterr().out
    assert out.count("Other: DIFFERENT") == out.count("Same: same") == 2
    for script, _ in stages.STOCK.values():
        script.write_text("raise SystemExit(1)\n")
    assert toy.fails("test-model").what == "failed: stock models, stock drafts"
    assert "stock_drafts.py failed without the series" in capfd.readouterr().out
    assert not list(toy.paths.state.glob("each/*"))


def test_stock_drafts_need_one_patch_of_the_series(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    passing = "def test_it():\n    pass\n"
    toy.amend({"tests/test_first.py": passing, "tests/test_second.py": passing})
    script = stages.STOCK["stock drafts"][0]
    # Of the series the tree without it has the patch only.
    only = "import importlib.util as u\nassert u.find_spec('vllm.first')\n"
    only += "if 'without' in sys.argv[2]: assert not u.find_spec('vllm.second')\n"
    script.write_text(STOCK.replace("import vllm\n", f"import vllm\n{only}"))
    toy.run("test-model")
    # A series that has dropped it.
    monkeypatch.setitem(stages.STOCK, "stock drafts", (script, "dropped"))
    assert toy.fails("test-model").what == "failed: stock drafts"
    assert "stock_drafts.py failed without the series" in capfd.readouterr().out
    script.write_text(STOCK)
    toy.run("test-model")


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
    assert capfd.readouterr().out.splitlines()[-1].split()[2:6] == cells
    assert not list(toy.paths.state.glob("each/*"))


def test_a_patch_without_a_stage_fails(toy: Toy) -> None:
    toy.plan.write_text(PLAN.replace("[patch.second]", "[patch.other]"))
    for command in ("test-each", "test-model"):
        assert "no tests for second" in toy.fails(command).what
    toy.plan.write_text(PLAN.replace('tests = ["tests/test_second.py::test_it"]', "tests = []"))
    assert "no tests for second" in toy.fails("test-each").what
    toy.plan.write_text("[patch.first\n")
    assert "cannot be read" in toy.fails("test-each").what


def test_what_must_come_first(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    git(toy.paths.tree, "reset", "-q", "--hard", "HEAD~1")
    assert toy.fails("test-each").code is Exit.DIRTY
    monkeypatch.setattr(environments, "read_stamp", lambda _: {})
    assert toy.fails("test-each").code is Exit.BUILD
    with pytest.raises(SeriesError, match="no patch 'third'"):
        toy.run("test-each", "third")
