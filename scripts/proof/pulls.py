# SPDX-License-Identifier: Apache-2.0
"""`upstream-branch`: patches as branches for vLLM, each with the text of its pull request.

Nothing is sent. A text holds what a program can know; what only the person who sends it can say
stands there as a box to tick.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from series import canary, index, patches, tools
from series import env as environments
from series.command import Command, positive
from series.config import Paths
from series.errors import Exit
from series.git import git
from series.lint import FIXES
from series.patches import Mail, section
from series.place import place
from series.state import locked, write_atomic
from series.target import resolve

from . import stages
from .stages import Plan

OURS = ("Patch-Name", "Upstream", "Drop-When")  # trailers that mean something here alone
BANDS = ((50, "low"), (250, "medium"))  # of vLLM's checklist, in lines of code added
CORE = re.compile(r"vllm/v1/(core/|worker/(gpu/)?(gpu_)?model_runner|worker/gpu_model_runner)")
OPEN = "to be completed by the person who sends it"


class Item(NamedTuple):
    """One pull request: a patch, or a section."""

    slug: str
    title: str
    names: list[str]


class Made(NamedTuple):
    """A branch: its trees, its commit, and for one patch the tree with its tests alone."""

    item: Item
    commit: str
    tree: str
    tests_only: str  # a commit


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--patch", action="append", default=[], help="patches or titles of sections (the fixes)"
    )
    parser.add_argument("--ref", default="", help="put them on this instead of the base")
    parser.add_argument("--version", default="", help="the version of --ref, if it does not say")
    parser.add_argument("--run", action="store_true", help="run the tests, without and with it")
    parser.add_argument("--jobs", type=positive, help="stages at a time")


def run(command: Command) -> Exit:
    """Make the branches and the texts; Exit.FAILED names the patches that do not apply."""
    args, base, paths = command.args, command.base, command.paths
    out = paths.state / "upstream"
    plan = Plan.read(base.tests_file)
    wanted = items(command)
    with canary.scratch(command) as made:
        target = resolve(command, made.repo, args.ref or base.version, args.version)
        start = target.commit or _commit(made.repo, target.tree, [], f"vllm {target.label}")
        found, failed = [], []
        for item in wanted:
            branch = make_branch(made.repo, item, made.patches, target.tree, start)
            found += [branch] if branch else []
            failed += [] if branch else [item.slug]
        store = out / "vllm.git"
        _keep(made.repo, store, found)
        looked = look(made, found, paths)
    if args.run and found:
        _run_tests(command, plan, store, found, out)
    for branch in found:
        mails = [Mail.parse(made.patches[name]) for name in branch.item.names]
        ran = results(out, branch)
        facts = Facts(branch.item, mails, plan, looked[branch.item.slug], ran, target.label)
        write_atomic(out / f"{branch.item.slug}.md", text(facts).encode())
        write_atomic(out / f"{branch.item.slug}.checklist.md", checklist(facts).encode())
        command.say(f"{out / branch.item.slug}.md")
    command.report = {"made": [b.item.slug for b in found], "failed": failed, "folder": str(out)}
    command.say(f"{len(found)} branches in {store}; nothing was sent")
    if failed:
        raise Exit.FAILED(
            f"{', '.join(failed)} cannot stand alone on {target.label}",
            "see make canary, or send the section",
        )
    return Exit.OK


def items(command: Command) -> list[Item]:
    """What was asked for; without a name each patch of the sections of fixes."""
    parts = patches.sections(command.base)
    by_title = {part.title: part.names for part in parts}
    known = {name: Mail.parse(data) for name, data in patches.read(command.base).items()}
    asked = [word.strip() for given in command.args.patch for word in given.split(";")]
    asked = [name for name in asked if name]
    if not asked:
        asked = [n for part in parts if part.title.startswith(FIXES) for n in part.names]
    found = []
    for name in asked:
        if name in known:
            found.append(Item(name, known[name].subject, [name]))
        elif name in by_title:
            slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            found.append(Item(slug, name, by_title[name]))
        else:
            raise Exit.USAGE(f"no patch and no section {name!r}", "see make status")
    return found


# ---- branches ----


def message(mail: Mail) -> str:
    """The message as upstream wants it: without the trailers of this repository."""
    *body, last = mail.body.split("\n\n")
    kept, ours = [], False
    for line in last.splitlines():
        ours = line.split(":")[0] in OURS if not line.startswith(" ") else ours
        kept += [] if ours else [line]
    return "\n\n".join([mail.subject, *body, "\n".join(kept)]) + "\n"


def _commit(repo: Path, tree: str, parents: list[str], text: str) -> str:
    options = [word for parent in parents for word in ("-p", parent)]
    return git(repo, "commit-tree", tree, *options, stdin=text.encode())


def make_branch(
    repo: Path, item: Item, known: dict[str, bytes], tree: str, start: str
) -> Made | None:
    """Commit the patches on `start`, exactly or merged; None if one does not apply or is there."""
    commit, tests_only = start, ""
    for name in item.names:
        if len(item.names) == 1:
            alone = place(repo, tree, known[name], "--include=tests/*")
            if alone.tree not in ("", tree):
                tests_only = _commit(repo, alone.tree, [start], f"the tests of {name} alone\n")
        placed = place(repo, tree, known[name])
        if placed.tree in ("", tree):
            return None
        tree = placed.tree
        commit = _commit(repo, tree, [commit], message(Mail.parse(known[name])))
    return Made(item, commit, tree, tests_only)


def _keep(repo: Path, store: Path, found: list[Made]) -> None:
    """Put the branches into the repository that stays."""
    if not (store / "HEAD").is_file():
        store.mkdir(parents=True)
        git(store, "init", "--quiet", "--bare", "--template=")
    for one in found:
        git(repo, "update-ref", f"refs/heads/{one.item.slug}", one.commit)
        git(repo, "update-ref", f"refs/heads/tests/{one.item.slug}", one.tests_only or one.commit)
    if found:
        pairs = [
            f"+refs/heads/{s}{b.item.slug}:refs/heads/{s}{b.item.slug}"
            for b in found
            for s in ("", "tests/")
        ]
        git(store, "fetch", "--quiet", "--no-tags", repo, *pairs)


# ---- tests, without and with the patch ----


def _run_tests(command: Command, plan: Plan, store: Path, found: list[Made], out: Path) -> None:
    """Run the tests of each patch on the base with its tests alone, then with all of it."""
    args, paths = command.args, command.paths
    if args.ref not in ("", command.base.version):
        raise Exit.USAGE("--run needs the base, whose environment is built", "leave out REF=")
    if not environments.read_stamp(paths).get("checked"):
        raise Exit.BUILD("the environment is not built", "run make build")
    with locked(paths.state / ".lock", args.wait):
        for one in found:
            if len(one.item.names) == 1 and one.tests_only:
                pairs = {"before": one.tests_only, "after": one.commit}
                # By id, without a ref: the work tree stays as it was.
                git(paths.tree, "fetch", "--quiet", "--no-tags", store, *pairs.values())
                run_pair(command, plan, one, pairs, out)


def run_pair(command: Command, plan: Plan, one: Made, pairs: dict[str, str], out: Path) -> None:
    """Run a patch's stage on two commits; write what each test did."""
    stage = plan.patches[one.item.names[0]]
    runner = stages.Runner(command.base, command.paths, plan, "upstream-branch", command.args)
    chosen = [
        (dataclasses.replace(stage, name=f"{stage.name}-{when}", imports=[]), commit)
        for when, commit in pairs.items()
    ]
    ended = runner.each(chosen)
    report: dict[str, Any] = {"commit": one.commit, "tests": stage.tests}
    for when, result in zip(pairs, ended, strict=True):
        lines = (runner.logs / f"{stage.name}-{when}.jsonl").read_text().splitlines()
        log = (runner.logs / f"{stage.name}-{when}.log").read_text("utf-8", "replace")
        report[when] = {
            "tests": {
                row["node"]: row["outcome"]
                for row in map(json.loads, lines)
                if "::" in row.get("node", "")  # not a file that cannot be collected
            },
            "seconds": result.seconds,
            "errors": re.findall(r"^E +(\S.*)", log, re.M)[:1],
        }
    write_atomic(out / f"{one.item.slug}.json", (json.dumps(report, indent=1) + "\n").encode())


def results(out: Path, one: Made) -> dict[str, Any]:
    """The last run of just this branch; empty if there is none."""
    file = out / f"{one.item.slug}.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return report if report.get("commit") == one.commit else {}


# ---- what the files say: vLLM's own hooks, template and pipelines ----


class Looked(NamedTuple):
    """What was found in upstream's files with a branch's patches."""

    hooks: list[Hook]
    template: str  # the part of the pull request's template that stays
    pipelines: str  # whether its CI runs the tests


def look(made: canary.Scratch, found: list[Made], paths: Paths) -> dict[str, Looked]:
    """Write the files of one branch after the other, and look at each."""
    folder = paths.state / ".upstream-tree"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # From an empty index, so that git writes all files once and then only what differs.
    git(made.repo, "read-tree", "--empty")
    looked = {}
    for branch in found:
        git(made.repo, f"--work-tree={folder}", "read-tree", "--reset", "-u", branch.tree)
        mails = [Mail.parse(made.patches[name]) for name in branch.item.names]
        names = dict.fromkeys(change.path for mail in mails for change in mail.changes)
        files = [name for name in names if (folder / name).is_file()]
        looked[branch.item.slug] = Looked(
            run_hooks(paths, folder, files), template(folder), in_pipelines(folder, files)
        )
    shutil.rmtree(folder)
    return looked


def template(folder: Path) -> str:
    """What stands below the line in upstream's template, without its last reminder."""
    file = folder / ".github/PULL_REQUEST_TEMPLATE.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    return text.partition("\n---\n")[2].partition("**BEFORE SUBMITTING")[0].strip()


def in_pipelines(folder: Path, files: list[str]) -> str:
    """Whether files of tests, or folders of them, are named in upstream's pipelines."""
    texts = [path.read_text("utf-8", "replace") for path in (folder / ".buildkite").rglob("*.y*ml")]
    said = "\n".join(texts)
    lacking = []
    for path in files:
        if path.startswith("tests/") and Path(path).name.startswith("test_"):
            inner = Path(path).relative_to("tests")
            ways = [str(inner), *(str(up) for up in inner.parents if str(up) != ".")]
            # A step that is commented out runs nothing.
            runs = r"^[^#\n]*\bpytest\b[^#\n]*\b{}(?![\w/])"
            if not any(re.search(runs.format(re.escape(w)), said, re.M) for w in ways):
                lacking.append(path)
    return f"no pipeline names {', '.join(lacking)}" if lacking else "named by a pipeline"


class Hook(NamedTuple):
    name: str
    outcome: str  # `passed`, `failed`, or why it was not run
    said: str


ELSEWHERE = "not run here"
# Hooks whose program is on the package index under the version that the config pins.
PROGRAMS = {
    "ruff-check": ("ruff", "check", "--no-cache", "--quiet"),
    "ruff-format": ("ruff", "format", "--no-cache", "--check"),
    "typos": ("typos", "--force-exclude"),
}


def run_hooks(paths: Paths, folder: Path, files: list[str]) -> list[Hook]:
    """Upstream's pre-commit hooks on the changed files: ruff and typos, and scripts of its own."""
    config = folder / ".pre-commit-config.yaml"
    declared = config.read_text(encoding="utf-8") if config.is_file() else ""
    python = [name for name in files if name.endswith(".py")]
    engine = environments.python(paths)
    interpreter = str(engine if engine.exists() else sys.executable)
    found = []
    version = ""
    for block in re.split(r"^(?=- repo: |  - id: )", declared, flags=re.M):
        rev = re.search(r"^  rev: v?(\S+)", block, re.M)
        version = rev[1] if rev else version
        if not block.startswith("  - id: "):
            continue
        name = block.split()[2]
        script = re.search(r"^\s+entry: python (tools/pre_commit/\w+\.py)$", block, re.M)
        if name in PROGRAMS:
            program, *options = PROGRAMS[name]
            argv = [*pinned(paths, program, version), *options]
            chosen = files if name == "typos" else python
        elif script and ("types: [python]" in block or name == "check-test-tethering"):
            argv, chosen = [interpreter, script[1]], python
        else:
            found.append(Hook(name, ELSEWHERE, ""))
            continue
        done = subprocess.run(
            [*argv, *chosen],
            cwd=folder,
            env=index.environment(paths),
            capture_output=True,
            text=True,
            check=False,
        )
        said = (done.stdout + done.stderr).strip()
        unfound = name in PROGRAMS and "error: " in said.split("\n")[0]
        if "ModuleNotFoundError" in said or unfound:
            found.append(Hook(name, f"not run: {said.splitlines()[-1]}", said))
        else:
            found.append(Hook(name, "failed" if done.returncode else "passed", said[-2000:]))
    return found


def pinned(paths: Paths, program: str, version: str) -> list[str]:
    """How to call a program of the package index in one version."""
    uv = str(tools.uv(paths))
    return [uv, "tool", "run", "--quiet", "--from", f"{program}=={version}", program]


# ---- the text ----


class Facts(NamedTuple):
    """All that is known of one pull request."""

    item: Item
    mails: list[Mail]
    plan: Plan
    looked: Looked
    ran: dict[str, Any]
    base: str

    def lines(self, kind: str) -> int:
        return sum(len(c.added) for m in self.mails for c in m.changes if c.kind == kind)

    def paths(self, kind: str) -> list[str]:
        return list(dict.fromkeys(c.path for m in self.mails for c in m.changes if c.kind == kind))

    def tests(self) -> list[str]:
        stages_of = [self.plan.patches.get(name) for name in self.item.names]
        return [test for stage in stages_of if stage for test in stage.tests]


def text(facts: Facts) -> str:
    """The title, and the description in the sections of vLLM's template."""
    mails, many = facts.mails, len(facts.mails) > 1
    lines = [facts.item.title, "", "## Purpose", ""]
    for mail in mails:
        if many:
            lines += [f"### {mail.subject}", ""]
        said = [patches.capital(section(mail, part)) for part in ("Problem", "Change")]
        lines += [said[0], "", said[1], ""]
    lines += ["Not a duplicate:", ""]
    lines += _searched(facts)
    lines += ["", "## Test Plan", "", "```bash"]
    lines += [f"pytest -q {test}" for test in facts.tests()] or ["# none of its own"]
    lines += ["```", "", "## Test Result", "", *_outcomes(facts), ""]
    lines += [f"{section(mail, 'Proof')}\n" for mail in mails]
    ran = [hook for hook in facts.looked.hooks if hook.outcome != ELSEWHERE]
    others = [hook.name for hook in facts.looked.hooks if hook.outcome == ELSEWHERE]
    lines += ["vLLM's pre-commit hooks on the changed files:", "", "| hook | outcome |"]
    lines += ["| --- | --- |", *(f"| {hook.name} | {hook.outcome} |" for hook in ran)]
    if others:
        lines += ["", f"Not run here: {', '.join(others)}."]
    lines += [
        "",
        "AI assistance was used for this change, its tests and this text.",
        "",
        f"- [ ] Answers for it, has read every changed line and has run the tests: {OPEN} (name)",
        f"- [ ] Signed off by that person too (`git rebase --signoff`): {OPEN}",
    ]
    if facts.looked.template:
        lines += ["", "---", facts.looked.template]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _searched(facts: Facts) -> list[str]:
    """What the trailers know of upstream's state, and the searches that are still to do."""
    lines = []
    for mail in facts.mails:
        said = mail.trailers.get("Upstream", [""])[0]
        lines.append(f"- What releases have, read in their source: {said}")
        words = re.sub(r"^(\[[^]]*\])+ ", "", mail.subject)
        lines.append(
            "- [ ] `gh pr list --repo vllm-project/vllm --state all --search"
            f" {shlex.quote(words)}`: {OPEN} (date, what was found, why it is another matter)"
        )
    return lines


def _outcomes(facts: Facts) -> list[str]:
    """A table of the tests before and after, or what has to be run for it."""
    if not facts.ran:
        return [
            f"- [ ] not run on this branch: `make upstream-branch RUN=1 PATCH={facts.item.slug}`"
        ]
    before, after = facts.ran["before"], facts.ran["after"]
    nodes = list(dict.fromkeys([*after["tests"], *before["tests"]]))
    lines = [f"On vLLM {facts.base}, CPU; *before* is the base with the new tests alone.", ""]
    why = f": `{before['errors'][0]}`" if before["errors"] else ""
    if not before["tests"]:
        lines += [f"Before, the tests cannot be collected{why}.", ""]
    elif why:
        lines += [f"The first failure before{why}.", ""]
    lines += ["| test | before | after |", "| --- | --- | --- |"]
    for node in nodes:
        cells = [run["tests"].get(node, "not collected") for run in (before, after)]
        name = node.removeprefix("tests/").replace("|", "\\|")
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return lines


def checklist(facts: Facts) -> str:
    """vLLM's pr-checklist, point by point: what a program finds, and what is left to a person."""
    code, tests, docs = (facts.lines(kind) for kind in ("code", "tests", "docs"))
    band = next((name for limit, name in BANDS if code < limit), "high: needs a justification")
    core = [path for path in facts.paths("code") if CORE.match(path)]
    old = "vllm/v1/worker/gpu_model_runner.py" in core
    added = [line for m in facts.mails for c in m.changes if c.kind == "tests" for line in c.added]
    mocks = sum(bool(re.search(r"\b(mock|Mock|monkeypatch)", line)) for line in added)
    comments = sum(
        line.lstrip().startswith("#")
        for m in facts.mails
        for c in m.changes
        if c.kind == "code"
        for line in c.added
    )
    failed = [hook.name for hook in facts.looked.hooks if hook.outcome == "failed"]
    signed = all(mail.author in mail.trailers.get("Signed-off-by", []) for mail in facts.mails)
    rows = {
        "1.1 core files": ", ".join(core) or "none touched",
        "1.2 replication": OPEN,
        "1.3 complexity": f"{code} lines of code ({band}), {tests} of tests, {docs} of docs",
        "1.4 compatibility": OPEN,
        "1.5 tradeoffs": f"{OPEN}; synchronization: VLLM_GPU_SYNC_CHECK=error on a GPU",
        "1.6 model runner V1": "edited: say why, and what V2 does" if old else "not edited",
        "2 validated": "tests before and after are in the text" if facts.ran else "NOT RUN",
        "2.1 tests": f"{mocks} lines that mock or patch; "
        + ("more than twice the code: is each needed?" if tests > 2 * code else "in proportion"),
        "2.2 reliability": OPEN,
        "2.3 in CI": facts.looked.pipelines,
        "3.1 comments": f"{comments} lines of comments in code",
        "3.2 documentation": ", ".join(facts.paths("docs")) or "none: is a user to notice it?",
        "3.3 helper functions": OPEN,
        "3.4 formatting": f"FAILED: {', '.join(failed)}" if failed else "the hooks that ran pass",
        "4.1 description": "sections of the template kept",
        "4.2 evidence": f"released weights were not at hand; evaluation: {OPEN}",
        "4.3 root cause": "in Purpose",
        "4.4 details": "in Purpose",
        "4.5 contributing guide": f"DCO: {'signed off' if signed else 'NOT SIGNED OFF'}",
        "accountable person": OPEN,
        "duplicate check": OPEN,
    }
    lines = [f"# Checklist: {facts.item.title}", "", "| point | found |", "| --- | --- |"]
    lines += [f"| {point} | {found} |" for point, found in rows.items()]
    said = [
        f"\n{hook.name}:\n\n```\n{hook.said}\n```"
        for hook in facts.looked.hooks
        if hook.outcome == "failed"
    ]
    return "\n".join([*lines, *said]) + "\n"
