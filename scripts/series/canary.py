# SPDX-License-Identifier: Apache-2.0
"""`canary` and `bisect`: what another state of upstream does to each patch."""

import argparse
import collections
import contextlib
import html
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from . import contract, releases
from . import patches as files
from .command import Command
from .commits import apply_patches, import_base
from .contract import Source, Use
from .errors import Exit
from .fetch import git_tag
from .git import attempt, git
from .patches import Mail
from .place import APPLIES, BLOCKED, CLEAN, CONFLICT, STATES, SUPERSEDED, UPSTREAMED, Row, walk
from .state import write_atomic
from .target import Target, borrow, resolve

POLICIES = {
    "exact": "every patch is clean, with its contract kept and its trailers true",
    "usable": "no patch is in conflict or blocked, contracts are kept and trailers true",
    "report": "nothing fails",
}
HEADS = {
    CLEAN: "applies as it is",
    "offset": "applies, its lines moved",
    "three-way": "applies by a three-way merge: read the result",
    CONFLICT: "upstream changed the same lines",
    UPSTREAMED: "upstream has its code",
    SUPERSEDED: "its Drop-When holds",
    BLOCKED: "needs a patch that is not in the tree",
}


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    """The options of `canary` and `bisect`."""
    parser.add_argument(
        "ref", metavar="REF", help="a release, a folder, FOLDER@REV, or a ref of upstream"
    )
    parser.add_argument("--version", default="", help="the version of REF, if it does not say")
    if verb == "canary":
        parser.add_argument("--policy", choices=POLICIES, default="usable", help="what must hold")
        parser.add_argument("--out", default="", help="folder of the reports")
    else:
        parser.add_argument("patch", metavar="PATCH", help="the patch that REF breaks")


class Scratch(NamedTuple):
    """A repository with the base, the series on it, and the objects of the target."""

    repo: Path
    base: str  # id of the pinned source's tree
    after: dict[str, str]  # patch -> id of the tree after it
    patches: dict[str, bytes]


@contextlib.contextmanager
def scratch(command: Command) -> Iterator[Scratch]:
    """The series of the base, applied in a repository that goes away again."""
    base, repo = command.base, command.paths.state / ".canary"
    with command.lock(".check.lock"):
        patches = files.read(base)
        import_base(base, command.fetch(), repo)
        apply_patches(repo, patches)
        trees = git(repo, "log", "--reverse", "--format=%T").split()
        try:
            yield Scratch(repo, trees[0], dict(zip(patches, trees[1:], strict=True)), patches)
        finally:
            shutil.rmtree(repo, ignore_errors=True)
            shutil.rmtree(repo.with_name(".canary-tree"), ignore_errors=True)


class Found(NamedTuple):
    """All that is known of one patch on the target."""

    row: Row
    broken: list[str]  # of its contract
    wrong: str  # of its trailers
    claimed: str  # the state that `Upstream:` says

    def ok(self, policy: str) -> bool:
        good = (CLEAN,) if policy == "exact" else (*APPLIES, UPSTREAMED, SUPERSEDED)
        return policy == "report" or not (self.row.state not in good or self.broken or self.wrong)

    def about(self) -> str:
        """One line for a table."""
        row = self.row
        more = len(row.by) - 3
        said = [f"by {', '.join(row.by[:3])}{f' and {more} more' * (more > 0)}"] if row.by else []
        said += [f"{one.path}: {one.reason}" for one in row.troubles]
        said += [f"contract: {one}" for one in self.broken] + ([self.wrong] if self.wrong else [])
        said += [f"{len(row.moved)} hunk{'s' * (len(row.moved) > 1)} moved"] if row.moved else []
        return f"{said[0]}{f' (+{len(said) - 1})' if len(said) > 1 else ''}" if said else ""


def run(command: Command) -> Exit:
    """Say what REF does to each patch, write the reports; the policy decides the exit status."""
    args = command.args
    with scratch(command) as made:
        target = resolve(command, made.repo, args.ref, args.version)
        found = examine(command, made, target)
        commits = _count(command, target)
        out = Path(args.out or command.paths.state / "logs/canary" / target.file_name).resolve()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for one in found:
            _write_merge(made.repo, one.row, out)
    counts = collections.Counter(one.row.state for one in found)
    bad = [one.row.name for one in found if not one.ok(args.policy)]
    command.report = {
        "base": command.base.name,
        "ref": target.label,
        "version": target.source.version,
        "commit": target.commit,
        "commits": commits,
        "policy": args.policy,
        "counts": {state: counts[state] for state in STATES},
        "patches": [_record(one) for one in found],
        "failed": bad,
    }
    text = json.dumps(command.report, indent=1, ensure_ascii=False) + "\n"
    write_atomic(out / "report.json", text.encode())
    write_atomic(out / "report.md", markdown(command.report).encode())
    write_atomic(out / "junit.xml", junit(command.report, args.policy))
    wide = max(map(len, made.patches), default=0)
    for one in found:
        about, state = one.about(), one.row.state
        command.say(f"{one.row.name:{wide}}  {state:10}  {about}".rstrip())
    command.say(summary(command.report))
    command.say(f"reports: {out}")
    if bad:
        raise Exit.FAILED(
            f"{len(bad)} patches do not pass on {target.label} (policy {args.policy})",
            "see docs/maintain/gate.md for each state",
        )
    return Exit.OK


def examine(command: Command, made: Scratch, target: Target) -> list[Found]:
    """The state, the contract and the trailers of each patch."""
    verdicts = {v.patch: v for v in releases.judge(command.base, target.source)}
    drop = [name for name, verdict in verdicts.items() if verdict.drop]
    old, new = _source(made.repo, made.base), _source(made.repo, target.tree)
    wanted = _wanted(command, made, old)
    found = []
    for row in walk(made.repo, made.base, target.tree, made.patches, drop):
        kept = row.state in (UPSTREAMED, SUPERSEDED)
        broken = [] if kept else contract.broken(old, new, wanted[row.name])
        verdict = verdicts[row.name]
        found.append(Found(row, broken, verdict.wrong, verdict.claimed))
    return found


def _wanted(command: Command, made: Scratch, old: Source) -> dict[str, list[Use]]:
    """The contract of each patch."""
    more = contract.written(command.base)
    unknown = [name for name in more if name not in made.patches]
    if unknown:
        raise Exit.FAILED(
            f"ci/contract.toml names {unknown[0]}, which is no patch of {command.base.name}",
            "correct or remove its table",
        )
    found = {}
    for name, data in made.patches.items():
        contract.require_base(old, more.get(name, []))
        uses = [*more.get(name, [])]
        mail = Mail.parse(data)
        lines = contract.added_lines(mail.diff)
        for change in mail.changes:
            if change.kind == "code" and change.path.endswith(".py"):
                blob = attempt(made.repo, "cat-file", "blob", f"{made.after[name]}:{change.path}")
                if not blob.returncode:
                    uses += contract.uses(old, change.path, blob.stdout, lines[change.path])
        found[name] = list(dict.fromkeys(uses))
    return found


def _source(repo: Path, tree: str) -> Source:
    listed = set(git(repo, "ls-tree", "-r", "-z", "--name-only", tree).split("\0"))

    def read(path: str) -> bytes | None:
        if path not in listed:
            return None
        return attempt(repo, "cat-file", "blob", f"{tree}:{path}").stdout

    return Source(read)


def _count(command: Command, target: Target) -> int | None:
    """How many commits lie between the base and the target; None without a history."""
    if not target.commit or command.base.git is None:
        return None
    where = _history(command)
    if where is None:
        return None
    span = f"{command.base.git.commit}..{target.commit}"
    done = attempt(where, "rev-list", "--count", span)
    return None if done.returncode else int(done.stdout)


def _history(command: Command) -> Path | None:
    """The repository whose history REF names."""
    ref = command.args.ref
    folder = ref if Path(ref).is_dir() else ref.rpartition("@")[0]
    kept = command.paths.build / "releases" / f"{command.base.package}.git"
    return Path(folder) if folder else kept if kept.is_dir() else None


# ---- reports ----


def _record(one: Found) -> dict[str, Any]:
    row = one.row._asdict()
    return {
        **{key: row[key] for key in ("name", "state", "moved", "by")},
        "troubles": [trouble._asdict() for trouble in one.row.troubles],
        "broken": one.broken,
        "claimed": one.claimed,
        "wrong": one.wrong,
        "about": one.about(),
        "ok": {policy: one.ok(policy) for policy in POLICIES},
    }


def _write_merge(repo: Path, row: Row, out: Path) -> None:
    """The patch as it is on the target, or the hunks that conflict."""
    if row.state in ("offset", "three-way"):
        done = attempt(repo, "diff", "--binary", "--full-index", row.before, row.after)
        (out / f"{row.name}.diff").write_bytes(done.stdout)
    elif row.troubles:
        parts = [f"# {one.path}: {one.reason}\n" + "\n".join(one.hunks) for one in row.troubles]
        text = "\n\n".join(parts) + "\n"
        (out / f"{row.name}.conflict").write_text(text, encoding="utf-8")


def summary(report: Mapping[str, Any]) -> str:
    counts = ", ".join(f"{n} {state}" for state, n in report["counts"].items() if n)
    broken = sum(bool(one["broken"]) for one in report["patches"])
    history = f", {report['commits']} commits after the base" if report["commits"] else ""
    return (
        f"{len(report['patches'])} patches of {report['base']} on {report['ref']}"
        f" ({report['version']}{history}): {counts or 'none'}; {broken} contracts broken"
    )


def markdown(report: Mapping[str, Any]) -> str:
    """The report for an issue or a page."""
    lines = [f"# {summary(report)}", ""]
    if report["commit"]:
        lines += [f"Commit `{report['commit']}`.", ""]
    lines += ["| patch | state | what |", "| --- | --- | --- |"]
    for one in report["patches"]:
        what = one["about"].replace("|", "\\|")
        lines.append(f"| {one['name']} | {one['state']} | {what} |")
    for one in report["patches"]:
        details = [*one["broken"], *filter(None, [one["wrong"]])]
        hunks = [h for trouble in one["troubles"] for h in trouble["hunks"]]
        if details or hunks or len(one["troubles"]) > 1:
            lines += ["", f"<details><summary>{one['name']}</summary>", ""]
            lines += [f"- {trouble['path']}: {trouble['reason']}" for trouble in one["troubles"]]
            lines += [f"- {said}" for said in details]
            for hunk in hunks[:3]:
                lines += ["", "<pre>", html.escape(hunk[:1500]), "</pre>"]
            more = len(hunks) - 3
            lines += ["", f"{more} more in `{one['name']}.conflict`"] if more > 0 else []
            lines += ["", "</details>"]
    return "\n".join(lines) + "\n"


def junit(report: Mapping[str, Any], policy: str) -> bytes:
    """One test a patch, failed where the policy is not kept."""
    rows = report["patches"]
    failed = [one for one in rows if not one["ok"][policy]]
    suite = ET.Element(
        "testsuite",
        name=f"canary {report['base']} on {report['ref']}",
        tests=str(len(rows)),
        failures=str(len(failed)),
        errors="0",
        skipped="0",
    )
    for one in rows:
        case = ET.SubElement(suite, "testcase", classname=report["base"], name=one["name"])
        if one in failed:
            said = "\n".join([one["about"], *one["broken"], one["wrong"]]).strip()
            ET.SubElement(case, "failure", message=one["state"]).text = said
        ET.SubElement(case, "system-out").text = f"{one['state']}: {HEADS[one['state']]}"
    text = ET.tostring(suite, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'.encode()


# ---- bisect ----


def bisect(command: Command) -> Exit:
    """Name the commit of upstream after which PATCH is in conflict or its contract broken."""
    args, base = command.args, command.base
    with scratch(command) as made:
        if args.patch not in made.patches:
            raise Exit.USAGE(f"no patch {args.patch!r} in {base.series_file}", "see make status")
        target = resolve(command, made.repo, args.ref, args.version)
        where = _history(command)
        if not target.commit or where is None:
            raise Exit.USAGE(f"{args.ref} has no history", "name FOLDER@REV of a clone")
        borrow(made.repo, where)
        old = _source(made.repo, made.base)
        wanted = _wanted(command, made, old)[args.patch]
        names = _needed(made.patches, args.patch)
        some = {name: made.patches[name] for name in names}

        def breaks(commit: str) -> str:
            tree = git(made.repo, "rev-parse", f"{commit}^{{tree}}")
            *_, row = walk(made.repo, made.base, tree, some)
            new = _source(made.repo, tree)
            said = [f"{one.path}: {one.reason}" for one in row.troubles]
            return "; ".join([*said, *contract.broken(old, new, wanted)])

        paths = {use.path for use in wanted}
        paths |= {c.path for data in some.values() for c in Mail.parse(data).changes}
        listed = attempt(
            made.repo,
            *(
                "rev-list",
                "--first-parent",
                "--reverse",
                f"{git_tag(base).commit}..{target.commit}",
            ),
            *("--", *sorted(f":(literal){path}" for path in paths)),
        )
        if listed.returncode:
            raise Exit.USAGE(
                f"{where} does not have the commit of {git_tag(base).tag}",
                f"fetch {git_tag(base).tag} there",
            )
        commits = listed.stdout.decode().split()
        first, tried = find_first(commits, breaks)
        if not first:
            command.say(f"{args.patch} is not broken on {target.label}")
            command.report = {"patch": args.patch, "commit": "", "tried": tried}
            return Exit.OK
        why = breaks(first)
        line = git(made.repo, "log", "-1", "--format=%h %as %an: %s", first)
    command.report = {"patch": args.patch, "commit": first, "why": why, "tried": tried}
    command.say(f"{args.patch}: broken by {line}")
    command.say(f"  {why}")
    command.say(f"  {tried} of {len(commits)} commits looked at, none checked out")
    return Exit.OK


def find_first(commits: list[str], breaks: Callable[[str], str]) -> tuple[str, int]:
    """The first commit that breaks, supposing that all after it do; how many were looked at."""
    if not commits or not breaks(commits[-1]):
        return "", len(commits[-1:])
    low, high, tried = 0, len(commits) - 1, 1
    while low < high:
        middle = (low + high) // 2
        tried += 1
        if breaks(commits[middle]):
            high = middle
        else:
            low = middle + 1
    return commits[low], tried


def _needed(patches: Mapping[str, bytes], name: str) -> list[str]:
    """A patch and the earlier ones that touch its files, or theirs."""
    order = list(patches)
    paths = {c.path for c in Mail.parse(patches[name]).changes}
    found = [name]
    for other in reversed(order[: order.index(name)]):
        changed = {c.path for c in Mail.parse(patches[other]).changes}
        if changed & paths:
            found.append(other)
            paths |= changed
    return found[::-1]
