# SPDX-License-Identifier: Apache-2.0
"""`upstream-branch`: patches as branches for vLLM, each with the text of its pull request.

Nothing is sent. A text holds what a program can know; what only the person who sends it can say
stands there as a box to tick. pull_text.py writes the texts, pull_hooks.py runs upstream's hooks.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import email.utils
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from series import canary, patches
from series import env as environments
from series.command import Command, positive
from series.config import ROOT, Paths
from series.errors import Exit
from series.git import WHO, attempt, git
from series.lint import FIXES
from series.patches import Mail
from series.place import THREE_WAY, place
from series.state import locked, write_atomic
from series.target import resolve

from . import pull_hooks, stages, upstream_tests
from .pull_text import Facts, Item, Looked, changed_tests, checklist, text
from .stages import Plan

OURS = ("Patch-Name", "Upstream", "Drop-When")  # trailers that mean something here alone


class Made(NamedTuple):
    """A branch: its commit, what it stands on, and for one patch its tests without its code."""

    item: Item
    commit: str
    tree: str
    spans: list[tuple[str, str]]  # of each patch of the item: the trees before and after it
    tests_only: str  # a commit; empty for a section, or without tests
    needs: list[str]  # patches that come first on the branch
    merged: list[str]  # patches that apply by a three-way merge only


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
        facts = Facts(
            item=branch.item,
            mails=[Mail.parse(made.patches[name]) for name in branch.item.names],
            plan=plan,
            looked=looked[branch.item.slug],
            ran=results(out, branch),
            base=target.label,
            needs=[Mail.parse(made.patches[name]) for name in branch.needs],
            merged=branch.merged,
            tag=f"v{base.version}" if target.label == base.version else "",
        )
        write_atomic(out / f"{branch.item.slug}.md", text(facts).encode())
        write_atomic(out / f"{branch.item.slug}.checklist.md", checklist(facts).encode())
        command.say(f"{out / branch.item.slug}.md")
        for hook in facts.looked.hooks:
            if hook.outcome.startswith("not run: "):
                command.say(f"  {hook.name}: {hook.outcome}: {hook.said.splitlines()[0]}")
    command.report = {"made": [b.item.slug for b in found], "failed": failed, "folder": str(out)}
    command.say(f"{len(found)} branches in {store}; nothing was sent")
    if failed:
        raise Exit.FAILED(
            f"{', '.join(failed)} cannot stand on {target.label}, nor with earlier patches",
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


def _commit(repo: Path, tree: str, parents: list[str], text: str, author: str = WHO) -> str:
    """A commit object; `git commit-tree` would take the author from the environment."""
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents)]
    lines += [f"author {author}", f"committer {WHO}", "", text]
    data = "\n".join(lines).encode()
    return git(repo, "hash-object", "-t", "commit", "-w", "--stdin", stdin=data)


def _of_mail(repo: Path, tree: str, parent: str, mail: Mail) -> str:
    """A commit by the author of the mail: upstream compares the author with the sign-off."""
    name, address = email.utils.parseaddr(mail.author)
    date = email.utils.parsedate_to_datetime(mail.date)
    author = f"{name} <{address}> {int(date.timestamp())} {date:%z}"
    return _commit(repo, tree, [parent], message(mail), author)


def make_branch(
    repo: Path, item: Item, known: Mapping[str, bytes], tree: str, start: str
) -> Made | None:
    """Commit the patches, and the earlier ones that they need, on `start`, exactly or merged.

    None if one does not apply, or is there already.
    """
    needs = prerequisites(repo, known, tree, item.names)
    if needs is None:
        return None
    made = Made(item, start, tree, [], "", needs, [])
    for name in (one for one in known if one in (*needs, *item.names)):
        if item.names == [name]:
            alone = place(repo, made.tree, known[name], "--include=tests/*").tree
            if alone not in ("", made.tree):
                text = f"the tests of {name} alone\n"
                made = made._replace(tests_only=_commit(repo, alone, [made.commit], text))
        placed = place(repo, made.tree, known[name])
        if placed.tree == made.tree and name in needs:
            continue
        if placed.tree in ("", made.tree):
            return None
        commit = _of_mail(repo, placed.tree, made.commit, Mail.parse(known[name]))
        if name in item.names:
            made.spans.append((made.tree, placed.tree))
        made.merged.extend([name] if placed.state == THREE_WAY else [])
        made = made._replace(commit=commit, tree=placed.tree)
    return made


def prerequisites(
    repo: Path, known: Mapping[str, bytes], tree: str, names: Sequence[str]
) -> list[str] | None:
    """The earlier patches without which these do not apply, or import what is not there.

    None if one does not apply with the earlier patches either.
    """
    needs: list[str] = []
    while True:
        stuck, missing = _stuck(repo, known, tree, [*needs, *names])
        if not stuck:
            break
        more = missing or _same_files(known, stuck, [*needs, *names])
        if not more:
            return None
        needs += more
    for name in list(needs):
        fewer = [other for other in needs if other != name]
        if not _stuck(repo, known, tree, [*fewer, *names])[0]:
            needs = fewer
    return [name for name in known if name in needs]


def _stuck(
    repo: Path, known: Mapping[str, bytes], tree: str, chosen: Sequence[str]
) -> tuple[str, list[str]]:
    """The first patch that cannot stand where it is, and the patches whose files it imports."""
    order = list(known)
    for name in (one for one in order if one in chosen):
        placed = place(repo, tree, known[name])
        if not placed.tree:
            return name, []
        tree = placed.tree
        brought = {
            change.path: other
            for other in order[: order.index(name)]
            if other not in chosen
            for change in Mail.parse(known[other]).changes
            if change.new
        }
        if missing := _imports(repo, tree, Mail.parse(known[name]), brought):
            return name, missing
    return "", []


def _same_files(known: Mapping[str, bytes], name: str, chosen: Sequence[str]) -> list[str]:
    """The earlier patches that touch files of a patch."""
    order = list(known)
    paths = {change.path for change in Mail.parse(known[name]).changes}
    return [
        other
        for other in order[: order.index(name)]
        if other not in chosen and paths & {c.path for c in Mail.parse(known[other]).changes}
    ]


def _imports(repo: Path, tree: str, mail: Mail, brought: Mapping[str, str]) -> list[str]:
    """The patches that bring files which a patch imports and the tree does not have."""
    found = []
    for change in mail.changes:
        blob = attempt(repo, "cat-file", "blob", f"{tree}:{change.path}")
        if not brought or not change.path.endswith(".py") or blob.returncode:
            continue
        for path in imported(change.path, blob.stdout):
            if path in brought and attempt(repo, "cat-file", "-e", f"{tree}:{path}").returncode:
                found.append(brought[path])
    return list(dict.fromkeys(found))


def imported(path: str, source: bytes) -> list[str]:
    """The files that a file may import, as paths from the root of the tree."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name.replace(".", "/") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.split("/")[: -node.level] if node.level else []
            module = [*above, *(node.module.split(".") if node.module else [])]
            found += ["/".join(module), *("/".join([*module, a.name]) for a in node.names)]
    return [f"{stem}{end}" for stem in found for end in (".py", "/__init__.py")]


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
                mail = Mail.parse(command.base.patch(one.item.names[0]).read_bytes())
                run_pair(command, plan, one, pairs, out, changed_tests(mail))


def run_pair(
    command: Command,
    plan: Plan,
    one: Made,
    pairs: dict[str, str],
    out: Path,
    changed: Sequence[str] = (),
) -> None:
    """Run a patch's stage, and upstream's tests that it changes, on two commits.

    What each test did is written to NAME.json.
    """
    stage = plan.patches[one.item.names[0]]
    runner = stages.Runner(command.base, command.paths, plan, "upstream-branch", command.args)
    chosen = [
        (dataclasses.replace(stage, name=f"{stage.name}-{when}", imports=[]), commit)
        for when, commit in pairs.items()
    ]
    ended = runner.each(chosen)
    changed = [name for name in changed if name not in stage.tests]
    others, not_run = upstream_tests.run_at(command, changed, pairs)
    for run_ in others.values():
        not_run |= {file: shown(why, command.paths) for file, why in run_.problems.items()}
    report: dict[str, Any] = {"commit": one.commit, "not_run": not_run}
    for when, result in zip(pairs, ended, strict=True):
        lines = (runner.logs / f"{stage.name}-{when}.jsonl").read_text().splitlines()
        log = (runner.logs / f"{stage.name}-{when}.log").read_text("utf-8", "replace")
        other = others[when]
        tests = {row["node"]: row["outcome"] for row in map(json.loads, lines) if "node" in row}
        report[when] = {
            # Without `::` it is a file that cannot be collected.
            "tests": {n: o for n, o in (tests | other.tests).items() if "::" in n},
            "seconds": result.seconds,
            "errors": [shown(e, command.paths) for e in re.findall(r"^E +(\S.*)", log, re.M)[:1]],
        }
    write_atomic(out / f"{one.item.slug}.json", (json.dumps(report, indent=1) + "\n").encode())


def shown(text: str, paths: Paths) -> str:
    """A text without folders of this machine: files of a tree as they are named in it."""
    state = re.escape(str(paths.state.resolve()))
    trees = rf"{state}/(?:each/\d+|vllm|\.upstream-tree|env/lib/[^/]+/site-packages)/"
    text = re.sub(trees, "", text)
    text = re.sub(rf" ?\(log: {state}/[^)]*\)", "", text)
    for folder in (ROOT, Path.home()):
        text = text.replace(f"{folder}/", "…/")
    return text


def results(out: Path, one: Made) -> dict[str, Any]:
    """The last run of just this branch; empty if there is none."""
    file = out / f"{one.item.slug}.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return report if report.get("commit") == one.commit else {}


# ---- what the files say: vLLM's own hooks, template and pipelines ----


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
        hooks = [
            hook._replace(said=shown(hook.said, paths))
            for hook in pull_hooks.run_hooks(paths, made.repo, folder, files)
        ]
        headings, rest = template(folder)
        inside = [name for span in branch.spans for name in touched(made.repo, *span)]
        looked[branch.item.slug] = Looked(
            hooks, headings, rest, in_pipelines(folder, files), list(dict.fromkeys(inside))
        )
    shutil.rmtree(folder)
    return looked


def template(folder: Path) -> tuple[list[str], str]:
    """The sections of upstream's template, and what stands below its line but for the reminder."""
    file = folder / ".github/PULL_REQUEST_TEMPLATE.md"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    above, _, below = text.partition("\n---\n")
    headings = re.findall(r"^## (.+)$", above, re.M)
    return headings, below.partition("**BEFORE SUBMITTING")[0].strip()


def touched(repo: Path, before: str, after: str) -> list[str]:
    """The functions and classes of a tree, as `Class.method`, in whose code another one differs."""
    found: list[str] = []
    options = ("--unified=0", "--no-renames", "--no-ext-diff", "--diff-filter=MD")
    said = attempt(repo, "diff", *options, before, after, "--", "*.py", ":!tests").stdout.decode()
    for part in re.split(r"^diff --git ", said, flags=re.M)[1:]:
        path = re.search(r"^--- a/(.*)$", part, re.M)
        if path is None:
            continue
        tree = ast.parse(attempt(repo, "cat-file", "blob", f"{before}:{path[1]}").stdout)
        for first, count in re.findall(r"^@@ -(\d+)(?:,(\d+))? ", part, re.M):
            # Lines that are only added stand between two; both are of the function then.
            begin, size = int(first), int(count or 1)
            spans = [(n, n) for n in range(begin, begin + size)] or [(begin, begin + 1)]
            found += [name for span in spans if (name := _around(tree, *span))]
    return list(dict.fromkeys(found))


def _around(tree: ast.AST, first: int, last: int) -> str:
    """The function or class that both lines stand in, a method with its class."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.lineno <= first and last <= (node.end_lineno or 0):
            inner = _around(node, first, last) if isinstance(node, ast.ClassDef) else ""
            return f"{node.name}.{inner}" if inner else node.name
    return ""


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
