# SPDX-License-Identifier: Apache-2.0
"""A toy vLLM with two patches applied, and this Python as its environment."""

import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import call
from conftest import git as git
from proof import runner, stages
from series import env as environments
from series import tree as trees
from series.config import ROOT, Base, Paths
from series.errors import SeriesError
from series.patches import Locked
from series.state import Record

NAMES = ("first", "second")
PLAN = """\
[environment]
TOY = "set"
[warm]
libraries = ["pytest"]
tree = ["vllm"]
[whole.upstream]
count = 1
imports = ["vllm"]
tests = ["tests/test_upstream.py"]
[patch.first]
count = 1
imports = ["vllm.first"]
tests = ["tests/test_first.py"]
[patch.second]
count = 1
tests = ["tests/test_second.py::test_it"]
imports = []
"""
COMPARE = """\
[compare.models]
count = 2
script = "SCRIPTS/models.py"
[compare.drafts]
count = 2
script = "SCRIPTS/drafts.py"
needs = "first"
"""
PASSING = "def test_it():\n    pass\n"
TEST = """\
import os
import vllm
from vllm import _version
def test_it():
    assert os.environ["TOY"] == "set"
    assert _version.version == "1"
    assert vllm.COUNT == {count}
"""
SCRIPT = """\
import json, pathlib, sys
import vllm
answers = {"Same": [1, 2], "Other": [1, 3 if "PLANTED" in dir(vllm) else 2]}
out = {"vllm": vllm.__file__, "answers": answers}
pathlib.Path(sys.argv[2]).write_text(json.dumps(out))
"""


@dataclasses.dataclass
class Toy:
    """A toy vLLM with two patches applied, and a plan for them."""

    base: Base
    paths: Paths
    plan: Path

    def run(self, command: str, patch: str = "", *options: str) -> None:
        given = ["--stages", str(self.plan), "--patch", patch, "--jobs", "2", *options]
        call(command, self.base, self.paths, *given)

    def fails(self, command: str, *options: str) -> SeriesError:
        with pytest.raises(SeriesError) as caught:
            self.run(command, "", *options)
        return caught.value

    def replace(self, old: str, new: str) -> None:
        text = self.plan.read_text()
        assert old in text
        self.plan.write_text(text.replace(old, new))

    def commit(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.paths.tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        git(self.paths.tree, "add", "-A")
        git(self.paths.tree, "commit", "-q", "-m", "patch")

    def record(self) -> None:
        """What apply and export leave: a record in the tree, and series.lock."""
        tree = self.paths.tree
        Record("toy", git(tree, "rev-parse", "HEAD").strip(), {}).write(tree / trees.RECORD)
        first, *others = git(tree, "log", "--reverse", "--format=%T").split()
        lock = Locked(first, {n: ("-", t) for n, t in zip(NAMES, others, strict=True)})
        self.base.lock_file.write_text(lock.text())

    def amend(self, files: dict[str, str]) -> None:
        self.commit(files)
        git(self.paths.tree, "reset", "-q", "--soft", "HEAD~2")
        git(self.paths.tree, "commit", "-q", "-m", "patch")
        self.record()

    def report(self, name: str = "test-model") -> dict[str, Any]:
        report: dict[str, Any] = json.loads(
            (self.paths.state / "logs" / name / "run.json").read_text()
        )
        return report


class Shared(runner.Warm):
    """A process to fork from that stays for the next test."""

    def start(self, paths: Any, modules: Any, environment: Any, *_: Any) -> "Shared":
        """In place of `runner.start`."""
        self.environment = environment
        return self

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("warm")
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    one = Shared(Path(sys.executable), ["pytest"], env, folder / "log")
    yield one
    super(Shared, one).close()


@pytest.fixture
def toy(tmp_path: Path, warm: Shared, monkeypatch: pytest.MonkeyPatch) -> Toy:
    monkeypatch.setattr(stages, "start", warm.start)
    folder = tmp_path / "patches/v0.19.1"
    folder.mkdir(parents=True)
    (folder / "series").write_text("".join(f"{name}\n" for name in NAMES))
    real = Base.load("v0.19.1", Path(__file__).resolve().parents[3])
    plan = tmp_path / "tests.toml"
    plan.write_text(PLAN)
    one = Toy(dataclasses.replace(real, folder=folder), Paths(tmp_path / "build", "v0.19.1"), plan)
    one.paths.tree.mkdir(parents=True)
    git(one.paths.tree, "init", "-q", "-b", "series")
    one.commit(
        {
            ".gitignore": "*.so\n/vllm/_version.py\n__pycache__/\n",
            "vllm/__init__.py": "COUNT = 0\n",
            "tests/test_upstream.py": PASSING,
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
    one.record()
    (one.paths.tree / "vllm/_version.py").write_text("version = '1'\n")
    kernel = one.paths.kernels / "key/_C_AVX2.abi3.so"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("kernel")
    (one.paths.tree / "vllm/_C.abi3.so").symlink_to(kernel)
    monkeypatch.setattr(environments, "python", lambda _: Path(sys.executable))
    monkeypatch.setattr(environments, "read_stamp", lambda _: {"checked": ["cpu"]})
    return one


@pytest.fixture
def passing(toy: Toy) -> Toy:
    """Also the first patch's test passes in the work tree."""
    toy.amend({"tests/test_first.py": PASSING, "tests/test_second.py": PASSING})
    return toy


@pytest.fixture
def comparing(passing: Toy) -> Toy:
    """Also two scripts give answers without and with the series."""
    folder = passing.plan.parent
    for script in ("models", "drafts"):
        (folder / f"{script}.py").write_text(SCRIPT)
    passing.plan.write_text(PLAN + COMPARE.replace("SCRIPTS", str(folder)))
    return passing
