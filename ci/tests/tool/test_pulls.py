# SPDX-License-Identifier: Apache-2.0
"""`upstream-branch`: branches without this repository's trailers, and texts filled from runs."""

import argparse
import json
import os
from pathlib import Path

import pytest

from conftest import NAMES, Project, git
from conftest import program as write_program
from proof import pulls, stages
from proof.pulls import Facts, Hook, Item, Looked, Made
from series import index, tools
from series.cli import parse
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit
from series.patches import Mail
from series.place import place
from toy import PASSING, Toy
from toy import toy as toy
from toy import warm as warm

FIRST, SECOND, DOS = NAMES
SECTIONS = f"""\
## fixes of vLLM: each can be sent alone.
{FIRST}
{SECOND}
## model: the rest.
{DOS}
"""
PLAN = "".join(
    f'[patch.{name}]\ncount = 1\nimports = []\ntests = ["tests/test_{name}.py"]\n' for name in NAMES
)
TEMPLATE = "FILL IN\n## Purpose\n---\n- [ ] The test plan\n\n**BEFORE SUBMITTING** read\n"


@pytest.fixture
def planned(project: Project) -> Project:
    """The project with sections and tests.toml."""
    (project.base / "series").write_text(SECTIONS)
    (project.base / "tests.toml").write_text(PLAN)
    return project


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program of a toy instead of uv, which would fetch ruff."""
    uv = tmp_path / "programs/uv"
    write_program(uv, 'echo "uv $*"; case "$*" in *bad.py*) exit 1; esac')
    monkeypatch.setattr(tools, "uv", lambda paths: uv)
    monkeypatch.setattr(index, "environment", lambda paths: dict(os.environ))


def call(project: Project, *args: str) -> tuple[Exit, Path]:
    given = ["--base", "v1", "--build-dir", str(project.root / "build")]
    command = Command(parse(["upstream-branch", *given, "--sources", str(project.sources), *args]))
    command.args.source = "archive"
    command.base = Base.load("v1", project.root)
    return pulls.run(command), project.root / "build/v1/upstream"


def test_each_fix_is_a_branch_of_its_own_on_the_base(planned: Project) -> None:
    code, out = call(planned)
    assert code is Exit.OK
    store = out / "vllm.git"
    assert git(store, "branch", "--format=%(refname:short)").splitlines() == [
        FIRST,
        SECOND,
        f"tests/{FIRST}",
        f"tests/{SECOND}",
    ]
    for name in (FIRST, SECOND):
        said = git(store, "log", "-1", "--format=%B", name)
        assert said.startswith("[Model] Add the ")
        assert "Signed-off-by: Toy Maker <toy@example.com>" in said
        for ours in pulls.OURS:
            assert ours not in said
        assert git(store, "rev-list", "--count", name) == "2"
    assert "line_40 = 'forty'" not in git(store, "show", f"{FIRST}:toy/model.py")
    assert "line_40 = 'forty'" in git(store, "show", f"{SECOND}:toy/model.py")
    text = (out / f"{SECOND}.md").read_text()
    for part in ("## Purpose", "## Test Plan", "## Test Result", "The toy lacks something"):
        assert part in text
    assert f"pytest -q tests/test_{SECOND}.py" in text
    assert "no (a toy has no upstream)" in text
    assert text.count(pulls.OPEN) == 3
    assert f"not run on this branch: `make upstream-branch RUN=1 PATCH={SECOND}`" in text


def test_a_section_is_one_branch(planned: Project) -> None:
    _, out = call(planned, "--patch", f"fixes of vLLM; {DOS}")
    assert git(out / "vllm.git", "rev-list", "--count", "fixes-of-vllm") == "3"
    assert "### [Model] Add the second" in (out / "fixes-of-vllm.md").read_text()
    assert (out / f"{DOS}.md").is_file()


def test_on_another_state_of_upstream(planned: Project, upstream_git: Path) -> None:
    clone = planned.root.parent / "clone"
    git(planned.root.parent, "clone", "-q", str(upstream_git), str(clone))
    (clone / ".git/info/attributes").write_text("* -text -ident\n")
    model = (clone / "toy/model.py").read_text()
    (clone / "toy/model.py").write_text(model.replace("line_40 = 40", "line_40 = 44"))
    git(clone, "commit", "-q", "-a", "-m", "later")
    with pytest.raises(Exception, match=f"{SECOND} cannot stand alone on"):
        call(planned, "--ref", f"{clone}@HEAD")
    (clone / "toy/dos.txt").write_bytes(b"one\r\ntwo and a half\r\nthree\r\n")
    git(clone, "commit", "-q", "-a", "-m", "has the third")
    with pytest.raises(Exception, match=f"{DOS} cannot stand alone on"):
        call(planned, "--ref", f"{clone}@HEAD", "--patch", DOS)
    git(clone, "reset", "-q", "--hard", "HEAD~1")
    store = planned.root / "build/v1/upstream/vllm.git"
    # A real commit of upstream's is the parent.
    assert git(store, "rev-parse", f"{FIRST}^") == git(clone, "rev-parse", "HEAD")


def test_an_unknown_name(planned: Project) -> None:
    with pytest.raises(Exception, match="no patch and no section 'nobody'"):
        call(planned, "--patch", "nobody")


# ---- real runs ----


def made(one: Toy, code: dict[str, str]) -> tuple[Made, dict[str, str]]:
    """A base where the first patch's test is alone, and with its code."""
    tree = one.paths.tree
    git(tree, "checkout", "-q", "--detach", "base")
    one.commit({"tests/test_first.py": "from vllm import first\n" + PASSING})
    before = git(tree, "rev-parse", "HEAD")
    one.commit(code)
    after = git(tree, "rev-parse", "HEAD")
    git(tree, "checkout", "-q", "series")
    item = Item("first", "[Bugfix] First", ["first"])
    return Made(item, after, git(tree, "rev-parse", f"{after}^{{tree}}"), before), {
        "before": before,
        "after": after,
    }


def test_the_tests_run_before_and_after(toy: Toy, tmp_path: Path) -> None:
    branch, pairs = made(toy, {"vllm/first.py": ""})
    args = parse(["upstream-branch", "--build-dir", str(toy.paths.build), "--jobs", "1"])
    command = Command(args)
    command.base = toy.base
    plan = stages.Plan.read(toy.plan)
    pulls.run_pair(command, plan, branch, pairs, tmp_path)
    ran = pulls.results(tmp_path, branch)
    assert ran["after"]["tests"] == {"tests/test_first.py::test_it": "passed"}
    assert ran["before"]["tests"] == {}
    assert "ImportError" in ran["before"]["errors"][0]
    assert pulls.results(tmp_path, branch._replace(commit="0" * 40)) == {}
    said = pulls.text(facts(ran=ran))
    assert "the tests cannot be collected: `ImportError" in said
    assert "| test_first.py::test_it | not collected | passed |" in said


# ---- hooks and checklist ----

CONFIG = """\
repos:
- repo: https://example.com/ruff
  rev: v0.14.0
  hooks:
  - id: ruff-check
  - id: ruff-format
- repo: https://example.com/md
  rev: v0.21.0
  hooks:
  - id: markdownlint
- repo: local
  hooks:
  - id: check-spdx
    entry: python tools/pre_commit/spdx.py
    language: python
    types: [python]
  - id: check-other
    entry: python tools/pre_commit/other.py
    types: [python]
  - id: check-test-tethering
    entry: python tools/pre_commit/tethering.py
    files: ^tests/
  - id: check-rest
    entry: python tools/pre_commit/spdx.py
"""


def test_upstream_s_own_hooks_run_on_the_changed_files(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    (folder / "tools/pre_commit").mkdir(parents=True)
    (folder / ".pre-commit-config.yaml").write_text(CONFIG)
    (folder / "tools/pre_commit/spdx.py").write_text(
        "import sys\nsys.exit(any('SPDX' not in open(f).read() for f in sys.argv[1:]))\n"
    )
    (folder / "tools/pre_commit/other.py").write_text("import not_installed\n")
    (folder / "tools/pre_commit/tethering.py").write_text(
        "import sys\nif 'bad.py' in sys.argv:\n    sys.exit('error: bad.py is not run')\n"
    )
    (folder / "good.py").write_text("# SPDX\n")
    (folder / "bad.py").write_text("")
    for files, outcome in ((["good.py", "x.md"], "passed"), (["good.py", "bad.py"], "failed")):
        found = {hook.name: hook for hook in pulls.run_hooks(Paths(tmp_path, "v1"), folder, files)}
        assert list(found) == [
            "ruff-check",
            "ruff-format",
            "markdownlint",
            "check-spdx",
            "check-other",
            "check-test-tethering",
            "check-rest",
        ]
        for name in ("ruff-check", "check-spdx", "check-test-tethering"):
            assert found[name].outcome == outcome
        said = f"uv tool run --quiet --from ruff==0.14.0 ruff check --no-cache --quiet {files[0]}"
        assert found["ruff-check"].said.startswith(said)
        assert "x.md" not in found["ruff-check"].said
        assert found["markdownlint"].outcome == found["check-rest"].outcome == pulls.ELSEWHERE
        assert found["check-other"].outcome == (
            "not run: ModuleNotFoundError: No module named 'not_installed'"
        )


MAIL = """\
From: A <a@example.com>
Subject: [Bugfix] Do it

Problem: it is broken.

Change: repair it.

Proof: a test.

Upstream: no (to be sent)
Signed-off-by: A <a@example.com>
---
"""


def facts(
    *, code: int = 1, tests: int = 1, path: str = "vllm/a.py", mail: str = MAIL, **more: object
) -> Facts:
    diff = ""
    for name, lines in ((path, code), ("tests/test_a.py", tests)):
        diff += f"diff --git a/{name} b/{name}\n@@ -0,0 +1,{lines} @@\n"
        diff += "".join(f"+line {number}\n" for number in range(lines))
    plan = argparse.Namespace(patches={})
    looked = {"hooks": [Hook("ruff-check", "passed", "")], "template": "", "pipelines": "", **more}
    ran = looked.pop("ran", {})
    item = Item("it", "[Bugfix] Do it", ["it"])
    return Facts(item, [Mail.parse((mail + diff).encode())], plan, Looked(**looked), ran, "1")  # type: ignore[arg-type]


def row(one: Facts, point: str) -> str:
    (line,) = [line for line in pulls.checklist(one).splitlines() if line.startswith(f"| {point}")]
    return line


def test_the_checklist_says_what_a_program_finds() -> None:
    for code, band in ((49, "low"), (50, "medium"), (249, "medium"), (250, "high")):
        assert f"{code} lines of code ({band}" in row(facts(code=code), "1.3")
    assert "none touched" in row(facts(), "1.1")
    for path in ("vllm/v1/core/sched/scheduler.py", "vllm/v1/worker/gpu_model_runner.py"):
        assert path in row(facts(path=path), "1.1")
    assert "edited: say why" in row(facts(path="vllm/v1/worker/gpu_model_runner.py"), "1.6")
    assert "more than twice" in row(facts(code=1, tests=3), "2.1")
    assert "in proportion" in row(facts(code=2, tests=3), "2.1")
    assert "NOT RUN" in row(facts(), "2 validated")
    assert "NOT SIGNED OFF" in row(facts(mail=MAIL.replace("by: A", "by: B")), "4.5")
    assert "DCO: signed off" in row(facts(), "4.5")
    bad = facts(hooks=[Hook("ruff-check", "failed", "E501 here")])
    assert "FAILED: ruff-check" in row(bad, "3.4")
    assert "E501 here" in pulls.checklist(bad)


def test_tests_that_no_pipeline_runs_are_named(tmp_path: Path) -> None:
    folder = tmp_path / ".buildkite"
    folder.mkdir()
    for command, said in (
        ("pytest -v -s test_a.py", "named by a pipeline"),
        ("pytest -v -s other.py", "no pipeline names tests/test_a.py"),
        ("cat test_a.py", "no pipeline names tests/test_a.py"),
        ("# pytest -v -s test_a.py", "no pipeline names tests/test_a.py"),
        ("pytest -v -s other.py # not test_a.py", "no pipeline names tests/test_a.py"),
    ):
        (folder / "x.yaml").write_text(f"- {command}\n")
        found = pulls.in_pipelines(tmp_path, ["vllm/a.py", "tests/test_a.py", "tests/utils.py"])
        assert found == said
    assert said in row(facts(pipelines=said), "2.3")


def test_the_template_s_checklist_stays(tmp_path: Path) -> None:
    (tmp_path / ".github").mkdir()
    (tmp_path / ".github/PULL_REQUEST_TEMPLATE.md").write_text(TEMPLATE)
    said = pulls.text(facts(template=pulls.template(tmp_path)))
    assert said.rstrip().endswith("---\n- [ ] The test plan")
    assert "AI assistance was used" in said
    assert json.dumps(pulls.OPEN)[1:-1] in said


def test_tests_alone_are_placed_without_the_code(project: Project, tmp_path: Path) -> None:
    project.commit("Add tested", {"toy/tested.py": b"x = 1\n", "tests/test_it.py": b"y = 1\n"})
    project.ok("export")
    data = project.patch("add-tested").read_bytes()
    base = git(project.tree, "rev-parse", "base^{tree}")
    alone = place(project.tree, base, data, "--include=tests/*").tree
    assert git(project.tree, "diff", "--name-only", base, alone) == "tests/test_it.py"
