# SPDX-License-Identifier: Apache-2.0
"""`upstream-branch`: branches without this repository's trailers, and texts filled from runs."""

import argparse
import os
from pathlib import Path

import pytest

from conftest import NAMES, Project, git
from conftest import program as write_program
from proof import pull_hooks, pull_text, pulls, stages, upstream_tests
from proof.pull_hooks import ELSEWHERE, NO_FILE, Hook
from proof.pull_text import NEW, OLD, OPEN, Facts, Item, Looked
from proof.pulls import Made
from series import index, tools
from series.cli import parse
from series.command import Command
from series.config import Base, Paths
from series.errors import Exit
from series.patches import Mail
from series.place import place
from toy import PASSING, Shared, Toy
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
TEMPLATE = """\
---
- [ ] The test plan
- [ ] AI assistance was used here.

**BEFORE SUBMITTING** read
"""


@pytest.fixture
def planned(project: Project) -> Project:
    """The project with sections and tests.toml."""
    (project.base / "series").write_text(SECTIONS)
    (project.base / "tests.toml").write_text(PLAN)
    return project


@pytest.fixture(autouse=True)
def no_index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program of a toy instead of uv, which would fetch ruff; it cannot get what is `lost`."""
    uv = tmp_path / "programs/uv"
    write_program(
        uv,
        """\
case "$*" in *lost*) echo 'No solution: lost' >&2; exit 1; esac
case "$*" in run*) while test "$1" != python; do shift; done; shift; exec python3 "$@"; esac
case "$*" in *bad.py*) echo 'error: bad.py'; exit 2; esac
echo "uv $*\"""",
    )
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
        # The author is that of the mail, whom vLLM's DCO check compares with the sign-off.
        mail = Mail.parse(planned.patch(name).read_bytes())
        author = git(store, "log", "-1", "--format=%an <%ae> %aD", name).strip()
        assert author == f"{mail.author} {mail.date}"
    assert "line_40 = 'forty'" not in git(store, "show", f"{FIRST}:toy/model.py")
    assert "line_40 = 'forty'" in git(store, "show", f"{SECOND}:toy/model.py")
    text = (out / f"{SECOND}.md").read_text()
    for part in ("## Purpose", "## Test Plan", "## Test Result", "The toy lacks something"):
        assert part in text
    assert f"pytest -q tests/test_{SECOND}.py" in text
    assert "a toy has no upstream" not in text
    assert text.count(OPEN) == 4  # a toy's message does not speak of AI
    assert "STOP: a toy has no upstream" in (out / f"{SECOND}.checklist.md").read_text()
    assert "git log --oneline v1.0..origin/main -- toy/" in text
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
    with pytest.raises(Exception, match=f"{SECOND} cannot stand on clone@HEAD"):
        call(planned, "--ref", f"{clone}@HEAD")
    (clone / "toy/dos.txt").write_bytes(b"one\r\ntwo and a half\r\nthree\r\n")
    git(clone, "commit", "-q", "-a", "-m", "has the third")
    with pytest.raises(Exception, match=f"{DOS} cannot stand on clone@HEAD"):
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
    whole = git(tree, "rev-parse", f"{after}^{{tree}}")
    pairs = {"before": before, "after": after}
    return Made(item, after, whole, [], before, [], []), pairs


CHOICE = """\
[tests]
"vllm/__init__.py" = ["tests/test_upstream.py"]
[left_out]
"tests/test_gpu.py" = "it wants a GPU"
"tests/test_upstream.py::test_hub" = "it loads weights"
"""


def test_the_tests_run_before_and_after(
    toy: Toy, tmp_path: Path, warm: Shared, monkeypatch: pytest.MonkeyPatch
) -> None:
    branch, pairs = made(toy, {"vllm/first.py": ""})
    args = parse(["upstream-branch", "--build-dir", str(toy.paths.build), "--jobs", "1"])
    command = Command(args)
    command.base = toy.base
    plan = stages.Plan.read(toy.plan)
    (toy.base.folder / "tests.toml").write_text(toy.plan.read_text())
    monkeypatch.setattr(upstream_tests, "start", warm.start)
    monkeypatch.setattr(upstream_tests, "make_stand_ins", lambda *_: None)
    (toy.base.folder / upstream_tests.FILE).write_text(CHOICE)
    files = ["tests/test_upstream.py", "tests/test_gpu.py", "tests/test_other.py"]
    pulls.run_pair(command, plan, branch, pairs, tmp_path, files)
    ran = pulls.results(tmp_path, branch)
    assert ran["not_run"] == {
        "tests/test_gpu.py": "it wants a GPU",
        "tests/test_other.py": "it was never tried here",
        "tests/test_upstream.py::test_hub": "it loads weights",
    }
    upstream = {"tests/test_upstream.py::test_it": "passed"}
    assert ran["after"]["tests"] == {"tests/test_first.py::test_it": "passed", **upstream}
    assert ran["before"]["tests"] == upstream
    (error,) = ran["before"]["errors"]
    assert "ImportError" in error
    # The toy's vllm lies in a folder of this machine.
    assert error.endswith("(vllm/__init__.py)")
    assert pulls.results(tmp_path, branch._replace(commit="0" * 40)) == {}
    said = pull_text.text(facts(ran=ran))
    assert "The first that cannot be collected before: `ImportError" in said
    assert "| `test_first.py::test_it` | 1 | not collected | passed |" in said
    assert "| `test_upstream.py` | 1 | passed | passed |" in said
    assert "without its code: 1 not collected, 1 passed. *After*: 2 passed." in said


def with_run(before: str, after: str) -> Facts:
    ran = {
        when: {"tests": {"tests/test_a.py::test_it": outcome}, "errors": []}
        for when, outcome in (("before", before), ("after", after))
    }
    return facts(ran={"not_run": {}, **ran})


def test_what_a_run_does_not_show_is_said() -> None:
    good = with_run("failed", "passed")
    said = row(good, "2 validated")
    assert said.endswith(f"before: 1 failed; after: 1 passed; end to end: {OPEN} |")
    lacking = good._replace(ran={**good.ran, "not_run": {"tests/test_b.py": "it wants a GPU"}})
    assert "NOT RUN here: tests/test_b.py" in row(lacking, "2 validated")
    assert "Not run here: `tests/test_b.py`, it wants a GPU." in pull_text.text(lacking)
    assert "NOT ALL PASS" in row(with_run("failed", "failed"), "2 validated")
    assert "NO TEST SHOWS THE FAULT" in row(with_run("passed", "passed"), "2 validated")


# ---- what a patch stands on ----


def test_a_patch_stands_on_those_that_it_needs(project: Project) -> None:
    """By the lines around its own, or by what it imports; nothing else comes with it."""
    lines = (project.tree / "toy/model.py").read_text()
    one = lines.replace("line_20 = 20", "line_20 = 'one'")
    three = one.replace("line_50 = 50", "line_50 = 'three'")
    two = three.replace("line_21 = 21", "line_21 = 'two'")
    project.commit("Base one", {"toy/model.py": one.encode()})
    project.commit("Add helper", {"toy/helper.py": b"def f():\n    pass\n"})
    project.commit("Change three", {"toy/model.py": three.encode()})
    project.commit("Change two", {"toy/model.py": two.encode()})
    near = two.replace("line_24 = 24", "line_24 = 'near'")
    project.commit("Change near", {"toy/model.py": near.encode()})
    project.commit("Use helper", {"toy/use.py": b"from .helper import f\n"})
    project.ok("export")
    names = ["base-one", "add-helper", "change-three", "change-two", "change-near", "use-helper"]
    known = {name: project.patch(name).read_bytes() for name in names}
    base = git(project.tree, "rev-parse", "base^{tree}").strip()

    def needs(name: str) -> list[str] | None:
        return pulls.prerequisites(project.tree, known, base, [name])

    assert needs("base-one") == needs("change-three") == needs("add-helper") == []
    assert needs("change-two") == ["base-one"]
    assert needs("use-helper") == ["add-helper"]
    start = git(project.tree, "rev-parse", "base").strip()
    for name, merged in (("change-near", ["change-near"]), ("change-three", [])):
        alone = pulls.make_branch(project.tree, Item(name, name, [name]), known, base, start)
        assert alone is not None and alone.needs == []
        assert alone.merged == merged
    del known["base-one"]
    assert needs("change-two") is None
    item = Item("use-helper", "Use helper", ["use-helper"])
    branch = pulls.make_branch(project.tree, item, known, base, start)
    assert branch is not None
    log = git(project.tree, "log", "--format=%s", f"base..{branch.commit}")
    assert log.splitlines() == ["[Model] Use helper", "[Model] Add helper"]
    helper = Mail.parse(known["add-helper"])
    said = facts()._replace(needs=[helper], merged=["it"])
    assert "- [Model] Add helper" in pull_text.text(said)
    assert "FIRST: [Model] Add helper; by a three-way merge" in row(said, "stands on")
    assert row(facts(), "stands on").endswith("vLLM 1, alone |")


def test_the_plan_has_the_tests_that_are_changed_and_no_new_ones_twice() -> None:
    assert "\npytest -q tests/test_a.py\n" in pull_text.text(facts())
    new = MAIL + "diff --git a/tests/test_n.py b/tests/test_n.py\nnew file mode 100644\n"
    assert "test_n.py" not in pull_text.text(facts(mail=new))


def test_imports_are_found_as_files() -> None:
    source = b"import a.b\nfrom ..c import d\nfrom . import e\n"
    found = pulls.imported("tests/x/y/test_z.py", source)
    for path in ("a/b.py", "tests/x/c.py", "tests/x/c/d.py", "tests/x/y/e.py"):
        assert path in found


# ---- hooks and checklist ----

CONFIG = """\
repos:
- repo: https://example.com/ruff
  rev: v0.14.0
  hooks:
  - id: ruff-check
    args: [--fix]
  - id: ruff-format
- repo: https://example.com/md
  rev: v0.21.0
  hooks:
  - id: markdownlint-cli2
  - id: clang-format
    types_or: [c++, cuda]
- repo: local
  hooks:
  - id: check-spdx
    entry: python tools/pre_commit/spdx.py
    language: python
    types_or: [python, rust]
  - id: check-other
    entry: python tools/pre_commit/other.py
    types: [python]
  - id: check-with-needs
    entry: python tools/pre_commit/spdx.py
    types: [python]
    additional_dependencies: ["mypy==1.0", regex]
  - id: check-with-lost
    entry: python tools/pre_commit/spdx.py
    types: [python]
    additional_dependencies: [lost]
  - id: check-vllm
    entry: python tools/pre_commit/spdx.py
    files: ^vllm/
  - id: check-filenames
    entry: bash
    args:
      - -c
      - 'git ls-files | grep " " && echo "It''s a space" && exit 1 || exit 0'
    always_run: true
    pass_filenames: false
  - id: a-script
    entry: tools/a.sh
    language: script
  - id: signoff
    entry: bash
    stages: [commit-msg]
"""


def hooks_of(tmp_path: Path, files: list[str], config: str = CONFIG) -> dict[str, Hook]:
    folder, repo = tmp_path / "tree", tmp_path / "repo"
    (folder / "tools/pre_commit").mkdir(parents=True)
    repo.mkdir()
    (folder / ".pre-commit-config.yaml").write_text(config)
    (folder / "tools/pre_commit/spdx.py").write_text(
        "import sys\nassert sys.argv[1:]\n"
        "sys.exit(any('SPDX' not in open(f).read() for f in sys.argv[1:]))\n"
    )
    (folder / "tools/pre_commit/other.py").write_text("import not_installed\n")
    (folder / "good.py").write_text("# SPDX\n")
    (folder / "bad.py").write_text("")
    git(repo, "init", "-q")
    for name in files:
        (folder / name).touch()
        git(repo, f"--work-tree={folder}", "add", name)
    found = pull_hooks.run_hooks(Paths(tmp_path, "v1"), repo, folder, files)
    return {hook.name: hook for hook in found}


@pytest.mark.parametrize(
    ("files", "outcome"),
    [(["good.py", "x.md"], "passed"), (["good.py", "bad.py", "a b.md"], "failed")],
)
def test_upstream_s_own_hooks_run_on_the_changed_files(
    tmp_path: Path, files: list[str], outcome: str
) -> None:
    found = hooks_of(tmp_path, files)
    ran = ["ruff-check", "ruff-format", "check-spdx", "check-with-needs", "check-filenames"]
    assert {name: found[name].outcome for name in ran} == dict.fromkeys(ran, outcome)
    if outcome == "passed":
        said = "uv tool run --quiet --from ruff==0.14.0 ruff check --no-cache --quiet good.py"
        assert found["ruff-check"].said == said
    else:
        # A program that begins its findings with `error: ` has run.
        assert found["ruff-check"].said == "error: bad.py"
        assert found["check-filenames"].said == "a b.md\nIt's a space"
    assert found["markdownlint-cli2"].outcome == found["a-script"].outcome == ELSEWHERE
    assert found["clang-format"].outcome == found["check-vllm"].outcome == NO_FILE
    assert found["check-other"].outcome == (
        "not run: ModuleNotFoundError: No module named 'not_installed'"
    )
    assert found["check-with-lost"].outcome == "not run: uv could not get lost"
    assert found["check-with-lost"].said == "No solution: lost"
    assert "signoff" not in found


def test_hooks_that_fail_or_did_not_run_are_named() -> None:
    hooks = [
        Hook("typos", "failed", "error: a word"),
        Hook("ruff-check", "passed", ""),
        Hook("check-json", NO_FILE, ""),
        Hook("markdownlint-cli2", ELSEWHERE, ""),
        Hook("mypy", "not run: uv could not get mypy", ""),
    ]
    one = facts(hooks=hooks)
    said = "FAILED: typos; 1 hooks pass; NOT RUN here: markdownlint-cli2, mypy"
    assert said in row(one, "3.4")
    assert "typos:\n\n~~~~\nerror: a word\n~~~~" in pull_text.checklist(one)
    text = pull_text.text(one)
    assert "- **FAILED**: typos\n- not run here: markdownlint-cli2, mypy" in text
    assert "check-json" not in text


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
    looked = {
        "hooks": [Hook("ruff-check", "passed", "")],
        "headings": OLD,
        "template": "",
        "pipelines": "",
        "touched": [],
        **more,
    }
    ran = looked.pop("ran", {})
    item = Item("it", "[Bugfix] Do it", ["it"])
    return Facts(item, [Mail.parse((mail + diff).encode())], plan, Looked(**looked), ran, "1")  # type: ignore[arg-type]


def row(one: Facts, point: str) -> str:
    (line,) = [
        line for line in pull_text.checklist(one).splitlines() if line.startswith(f"| {point}")
    ]
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
    unsigned = facts(mail=MAIL.replace("by: A", "by: B"))
    assert "DCO: NOT SIGNED OFF by the author, A \\<a@example.com>" in row(unsigned, "4.5")
    signed = row(facts(), "4.5")
    assert "DCO: signed off by the author" in signed
    assert f"by the person who sends it: {OPEN}" in signed


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("manager = MagicMock()", 1),
        ("from unittest import mock", 1),
        ("monkeypatch.setattr(a, 'b', c)", 1),
        ("with patch('a.b'):", 1),
        ("with patch.object(a, 'b'):", 1),
        ("dispatch(a)", 0),
        ("patch = 3", 0),
    ],
)
def test_lines_that_mock(line: str, count: int) -> None:
    mail = MAIL + f"diff --git a/tests/test_b.py b/tests/test_b.py\n@@ -0,0 +1 @@\n+{line}\n"
    assert f"| {count} lines that mock" in row(facts(mail=mail), "2.1")


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


@pytest.mark.parametrize("headings", [OLD, NEW])
def test_the_sections_are_those_of_the_template(tmp_path: Path, headings: list[str]) -> None:
    (tmp_path / ".github").mkdir()
    above = "".join(f"## {heading}\n" for heading in headings)
    file = tmp_path / ".github/PULL_REQUEST_TEMPLATE.md"
    file.write_text(f"FILL IN\n{above}{TEMPLATE}")
    found, rest = pulls.template(tmp_path)
    assert found == headings
    said = pull_text.text(facts(headings=found, template=rest))
    positions = [said.index(f"\n## {heading}\n") for heading in headings]
    assert positions == sorted(positions)
    assert said.count("\n## ") == len(headings)
    for part in ("t is broken.", "epair it.", "a test."):
        assert part in said
    assert said.rstrip().endswith("---\n- [ ] The test plan\n- [ ] AI assistance was used here.")
    assert f"the template's sections: {headings[0]}" in row(facts(headings=found), "4.1")
    assert "OTHER SECTIONS" in row(facts(headings=["Why"]), "4.1")


def test_the_box_for_ai_is_ticked_if_the_message_says_so() -> None:
    template = "- [ ] I used the skill.\n- [ ] AI assistance was used here."
    mail = MAIL.replace("Upstream:", "AI assistance was used.\n\nUpstream:")
    said = pull_text.text(facts(mail=mail, template=template))
    assert said.endswith("- [ ] I used the skill.\n- [x] AI assistance was used here.\n")
    assert "\nAI assistance was used for this change" in said
    said = pull_text.text(facts(template=template))
    assert "- [ ] AI assistance was used here." in said
    assert f"- [ ] AI assistance: {OPEN}" in said


# ---- duplicates ----


def sent(reason: str) -> Facts:
    return facts(mail=MAIL.replace("no (to be sent)", reason))


def test_what_is_known_of_others_is_said() -> None:
    one = sent("no (to be sent alone; #12, #34 are open; #56 is other); 2.0 broken (a.py:3)")
    said = pull_text.text(one)
    assert "- [ ] Open, to be read first: #12, #34. Stop if" in said
    assert "- 2.0, read in its source: broken (a.py:3)" in said
    assert "to be sent alone" not in said
    assert "OPEN, to be read first, stop if it is the same: #12, #34" in row(one, "duplicate")
    assert "STOP: fixed there" in row(sent("no (fixed there)"), "duplicate")
    assert "STOP: sent: https://a.b/1" in row(sent("https://a.b/1"), "duplicate")
    assert row(facts(), "duplicate").startswith("| duplicate check | the searches in the text")


def test_searches_go_by_file_by_name_and_by_symptom() -> None:
    problem = 'with --enable-it a LoRA_map ends ("Attempted to assign 4 = 4 tokens to 36 places")'
    mail = MAIL.replace("it is broken", f"{problem}, streams of tokens").replace(
        "Do it", "Stream calls"
    )
    one = facts(
        mail=mail,
        path="vllm/lora/manager.py",
        touched=["Manager.pin", "Manager._create_inplace", "Manager.__init__"],
    )._replace(tag="v1.0")
    found = list(pull_text.searches(one))
    assert found[0] == "git log --oneline v1.0..origin/main -- vllm/lora/manager.py"
    words = [command.partition(" --search ")[2] for command in found[1:]]
    assert words == [
        "lora/manager.py",
        "Manager",
        "_create_inplace",
        "'Attempted assign tokens places'",
        "'Attempted assign tokens places'",
        "enable-it",
        "enable-it",
        "LoRA_map",
        "LoRA_map",
        "'stream tokens enable-it'",
        "'stream tokens enable-it'",
    ]
    assert sum("gh issue list" in command for command in found) == 4


def test_the_functions_that_a_patch_changes(project: Project) -> None:
    source = (
        "class A:\n    x = 1\n\n    def f(self):\n        y = 1\n        return y\n    w = 1\n"
        "\n\ndef g():\n    return 1\n\n\ndef h():\n    return 2\n"
    )
    trees = []
    for changed in (
        source,
        source.replace("y = 1", "y = 2").replace("def h", "def new():\n    pass\n\n\ndef h"),
        source.replace("x = 1", "x = 2").replace("return 1", "z = 3\n    return 1"),
        source.replace("    w = 1", "    v = 1\n    w = 1"),
    ):
        project.commit("Change", {"toy/code.py": changed.encode()})
        trees.append(git(project.tree, "rev-parse", "HEAD^{tree}").strip())
    assert pulls.touched(project.tree, trees[0], trees[1]) == ["A.f"]
    assert pulls.touched(project.tree, trees[0], trees[2]) == ["A", "g"]
    # After the last line of a method, and not in it.
    assert pulls.touched(project.tree, trees[0], trees[3]) == ["A"]


# ---- Markdown ----


def test_names_are_shown_as_they_are() -> None:
    assert pull_text.code("a`b") == "``a`b``"
    assert pull_text.code("`a`") == "`` `a` ``"
    assert pull_text.prose("a <b> `<c>` ``x`<y>`` <d>") == "a \\<b> `<c>` ``x`<y>`` \\<d>"
    tests = {f"tests/test_a.py::test_b[{n}]": "passed" for n in range(64)}
    ran = {"tests": tests, "errors": ["x `y` |"]}
    before = dict.fromkeys(tests, "failed")
    before["tests/test_a.py::test_b[3]"] = "skipped"
    text = pull_text.text(
        facts(ran={"before": {**ran, "tests": before}, "after": ran, "not_run": {}})
    )
    assert "| `test_a.py::test_b` | 63 | failed | passed |" in text
    assert "| `test_a.py::test_b` | 1 | skipped | passed |" in text
    assert "The first failure before: ``x `y` |``." in text
    assert "`a\\|b`" in pull_text.cell(pull_text.code("a|b"))


def test_no_folder_of_this_machine_is_shown(tmp_path: Path) -> None:
    paths = Paths(tmp_path, "v1")
    state = paths.state.resolve()
    said = f"a ({state}/each/0/vllm/a.py) {state}/env/lib/python3.11/site-packages/b.py"
    assert pulls.shown(said, paths) == "a (vllm/a.py) b.py"
    assert pulls.shown(f"lacks a file: x (log: {state}/logs/y.log)", paths) == "lacks a file: x"
    assert pulls.shown(f"{Path.home()}/x", paths) == "…/x"


def test_tests_alone_are_placed_without_the_code(project: Project, tmp_path: Path) -> None:
    project.commit("Add tested", {"toy/tested.py": b"x = 1\n", "tests/test_it.py": b"y = 1\n"})
    project.ok("export")
    data = project.patch("add-tested").read_bytes()
    base = git(project.tree, "rev-parse", "base^{tree}")
    alone = place(project.tree, base, data, "--include=tests/*").tree
    assert git(project.tree, "diff", "--name-only", base, alone) == "tests/test_it.py"
