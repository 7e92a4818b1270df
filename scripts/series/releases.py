# SPDX-License-Identifier: Apache-2.0
"""Whether `Upstream:` and `Drop-When:` of each patch are true on the base and on later releases."""

import argparse
import dataclasses
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

from . import patches as files
from .command import Command
from .conditions import Tree
from .config import Base
from .errors import Exit
from .lint import Finding
from .patches import STATES, Mail
from .state import locked, unpack


class Verdict(NamedTuple):
    """What a patch says about one tree, and what is found there."""

    patch: str
    version: str
    claimed: str  # the state that `Upstream:` says; `base` on the base, empty where it says none
    drop: bool | None  # whether Drop-When holds; None if only a test could tell
    wrong: str  # what to correct; empty if nothing

    def cell(self) -> str:
        word = {True: "drop", False: "keep", None: "unknown"}[self.drop]
        return f"{self.claimed}{', ' if self.claimed else ''}{word}{' (false)' * bool(self.wrong)}"


def add_arguments(verb: str, parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--release", default="", help="only this one of releases.toml")
    parser.add_argument("--tree", default="", help="a folder with upstream's source instead")
    parser.add_argument("--version", default="", help="the version of --tree")


def judge(base: Base, tree: Tree) -> list[Verdict]:
    """What each patch says about a tree. Tests are left out unless the tree runs them."""
    return [_verdict(base, tree, name, data) for name, data in files.read(base).items()]


def _verdict(base: Base, tree: Tree, name: str, data: bytes) -> Verdict:
    mail = Mail.parse(data)
    try:
        conditions, (_, states, evidence) = mail.drop_when(), mail.upstream()
    except ValueError as error:
        raise Exit.FAILED(f"{name}.patch: {error}", "see check --lint") from None
    if tree.run_test is None:
        conditions = [condition for condition in conditions if condition.kind != "test"]
    drop = tree.all_hold(conditions) if conditions else None
    claimed = "base" if tree.version == base.version else states.get(tree.version, "")
    wrong = tree.missing(evidence.get(tree.version, ""))
    if claimed and drop is STATES.get(claimed, True):
        culprits = [c.said for c in conditions if tree.holds(c) is drop]
        wrong.append(
            f"on {tree.version}{', the base,' if claimed == 'base' else f', said to be {claimed},'}"
            f" Drop-When is {str(drop).lower()} ({'; '.join(culprits)})"
        )
    return Verdict(name, tree.version, claimed, drop, "; ".join(wrong))


def trees(command: Command, only: str = "") -> list[Tree]:
    """The base and the later releases, fetched, compared with their sha256 and unpacked."""
    base, later = command.base, files.releases(command.base)
    if only and only not in (base.version, *later):
        raise Exit.USAGE(
            f"no release {only} in {base.folder}/releases.toml",
            f"use {' or '.join([base.version, *later])}",
        )
    found = []
    for version, archive in {base.version: base.archive, **later}.items():
        if only and version != only:
            continue
        if version == base.version:
            file, pin = command.fetch(), command.origin().split()[1]
        else:
            release = dataclasses.replace(base, version=version)
            file, pin = command.fetch_file(release, archive), archive.sha256
        # Named by the pin too, so that other bytes are another folder.
        folder = command.paths.build / "releases" / f"{base.package}-{version}-{pin[:8]}"
        with locked(folder.parent / ".lock", command.args.wait):
            if not folder.is_dir():
                _unpack(file, folder)
        found.append(Tree(folder, version))
    return found


def _unpack(archive: Path, folder: Path) -> None:
    try:
        unpack(archive, folder, strip=1)
    except (tarfile.TarError, EOFError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise Exit.SOURCE(f"{archive.name} cannot be unpacked: {reason}") from error


def findings(verdicts: list[Verdict]) -> list[Finding]:
    """The false ones, for `make check`."""
    return [Finding("true-trailers", f"{v.patch}.patch", v.wrong) for v in verdicts if v.wrong]


def nowhere(base: Base, sources: list[Tree]) -> list[Finding]:
    """Conditions on a file that neither the base, a release nor a patch of the series has."""
    mails = {name: Mail.parse(data) for name, data in files.read(base).items()}
    ours = {change.path for mail in mails.values() for change in mail.changes}
    return [
        Finding(
            "true-trailers",
            f"{name}.patch",
            f"no release and no patch has the file of `{condition.said}`",
        )
        for name, mail in mails.items()
        for condition in mail.drop_when()
        if condition.path not in {"", *ours}
        and not any((tree.folder / condition.path).is_file() for tree in sources)
    ]


def cited(base: Base, sources: list[Tree]) -> list[Finding]:
    """What the tables of the documents name of a release, in a column with its version."""
    found = []
    for page in sorted(base.folder.parents[1].glob("docs/**/*.md")):
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), re.M):
            rows = [re.split(r"(?<!\\)\|", line) for line in table.splitlines()]
            for column, title in enumerate(rows[0]):
                for tree in sources if len({*map(len, rows)}) == 1 else ():
                    if title.strip() == tree.version:
                        wrong = tree.missing(" ".join(row[column] for row in rows))
                        found += [Finding("true-trailers", page.name, said) for said in wrong]
    return found


def run(command: Command) -> None:
    """Print what each patch says about each release and what is found there."""
    args = command.args
    if bool(args.tree) != bool(args.version) or (args.tree and args.release):
        raise Exit.USAGE("name --tree together with --version, without --release")
    if args.tree and not Path(args.tree).is_dir():
        raise Exit.USAGE(f"{args.tree} is no folder", "name upstream's source")
    found = [Tree(Path(args.tree), args.version)] if args.tree else trees(command, args.release)
    columns = [judge(command.base, tree) for tree in found]
    order = files.names(command.base)
    wide = max(map(len, order), default=0)
    command.say("  ".join([" " * wide, *(f"{tree.version:24}" for tree in found)]).rstrip())
    for name, row in zip(order, zip(*columns, strict=True), strict=True):
        cells = [f"{verdict.cell():24}" for verdict in row]
        command.say("  ".join([f"{name:{wide}}", *cells]).rstrip())
    verdicts = [verdict for column in columns for verdict in column]
    command.report = {"verdicts": [verdict._asdict() for verdict in verdicts]}
    wrong = findings(verdicts)
    if not args.tree and not args.release:
        wrong += nowhere(command.base, found)
    for finding in wrong:
        command.say(str(finding))
    if wrong:
        raise Exit.FAILED(
            f"{len(wrong)} trailers are false",
            "correct `Upstream:` or `Drop-When:` in the work tree, then make export",
        )
