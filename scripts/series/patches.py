# SPDX-License-Identifier: Apache-2.0
"""The files of a base: series, lock, releases, patches, and the index built from them."""

from __future__ import annotations

import dataclasses
import difflib
import email
import email.policy
import functools
import re
from pathlib import Path
from typing import NamedTuple

from . import conditions
from .conditions import Condition
from .config import Artifact, Base, parse_toml, reading
from .errors import Exit
from .state import read_text

LOCK_HEAD = "# Made by `make export`. Patch, its `git patch-id --stable`, and the tree after it.\n"
NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
LONGEST = 40  # characters of a name
STATES = {  # of a patch's subject in a later release: is the patch still needed there?
    "missing": True,
    "broken": True,
    "differs": True,
    "fixed": False,
    "superseded": False,
}


# ---- series ----


class Section(NamedTuple):
    """A part of the series; a series without sections is one without a title."""

    title: str
    purpose: str
    names: list[str]


@dataclasses.dataclass
class _Part:
    """What stands above the first section, or one section, line by line."""

    line: str  # the section's own; empty above the first one
    head: list[str]  # comments that stay at the top: up to an empty line if there is one
    blocks: list[tuple[list[str], str]]  # comments and empty lines, the name below them
    tail: list[str]


def _parts(text: str) -> list[_Part]:
    parts = [_Part("", [], [], [])]
    for line in text.splitlines():
        if line.startswith("## "):
            parts.append(_Part(line, [], [], []))
        elif line.strip() and not line.startswith("#"):
            parts[-1].blocks.append((parts[-1].tail, line.strip()))
            parts[-1].tail = []
        else:
            parts[-1].tail.append(line)
    for part in parts:
        above = part.blocks[0][0] if part.blocks else part.tail
        size = above.index("") + 1 if part.blocks and "" in above else len(above)
        while not part.blocks and part is not parts[-1] and size and not above[size - 1]:
            size -= 1  # the empty lines between two sections
        part.head, above[:size] = above[:size], []
    return parts


def _text(file: Path) -> str:
    if not file.is_file():
        raise Exit.PATCH(f"{file} is missing", "restore it with git checkout")
    return read_text(file, Exit.PATCH)


def sections(base: Base) -> list[Section]:
    """The sections of the series in their order, empty ones too; names above the first section
    are in one without a title."""
    found = []
    for part in _parts(_text(base.series_file)):
        title, _, purpose = part.line.removeprefix("## ").partition(":")
        if part.line or part.blocks:
            listed = [name for _, name in part.blocks]
            found.append(Section(title.strip() or part.line, purpose.strip(), listed))
    return found


def names(base: Base) -> list[str]:
    """The patches of the base in their order."""
    return [name for section in sections(base) for name in section.names]


def read(base: Base) -> dict[str, bytes]:
    """The bytes of every listed patch, in order."""
    found: dict[str, bytes] = {}
    for name in names(base):
        if name in found:
            raise Exit.PATCH(f"{base.series_file} lists {name} twice", "remove one of the lines")
        try:
            found[name] = base.patch(name).read_bytes()
        except FileNotFoundError:
            raise Exit.PATCH(
                f"{base.patch(name)} is missing",
                f"restore it with git checkout, or remove {name} from {base.series_file}",
            ) from None
    return found


def with_names(text: str, wanted: list[str]) -> str:
    """The series file `text` with `wanted` as its list.

    Sections stay, also those that become empty. A name keeps its section if its neighbours allow
    it; a new name in the place of another takes that one's, every other name goes with the one
    before it. Comments move with the name below them, except those at the top of a part.
    """
    parts = _parts(text)
    home = {name: number for number, part in enumerate(parts) for _, name in part.blocks}
    old = list(home)
    at = 0 if parts[0].blocks or len(parts) == 1 else 1
    placed: list[list[str]] = [[] for _ in parts]
    steps = difflib.SequenceMatcher(None, old, wanted, autojunk=False).get_opcodes()
    for step, first, last, begin, end in steps:
        highest = home[old[last]] if last < len(old) else len(parts) - 1
        for number, name in enumerate(wanted[begin:end]):
            place = old[min(first + number, last - 1)] if step == "replace" else name
            wish = home.get(name, home.get(place, at))
            at = wish if at <= wish <= highest else at
            placed[at].append(name)
    comments = {name: above for part in parts for above, name in part.blocks}
    lines = []
    for part, here in zip(parts, placed, strict=True):
        lines += [*filter(None, [part.line]), *part.head]
        for name in here:
            lines += [*comments.get(name, []), name]
        lines += part.tail
    # A name that was commented out and is in the list again.
    kept = [li for li in lines if not li.startswith("#") or li.lstrip("# ") not in wanted]
    return "".join(f"{line}\n" for line in kept)


def releases(base: Base) -> dict[str, Artifact]:
    """The later releases that the trailers speak of, with their source archives."""
    file = base.folder / "releases.toml"
    if not file.is_file():
        return {}
    with reading(file, "compare it with docs/maintain/patch-format.md#releasestoml"):
        return {
            version: Artifact(row["archive"], row["sha256"])
            for version, row in parse_toml(_text(file)).items()
        }


@dataclasses.dataclass(frozen=True)
class Locked:
    """What series.lock says: the base's tree id, and per patch its patch id and tree id."""

    base: str
    patches: dict[str, tuple[str, str]]

    def text(self) -> str:
        lines = [f"{name} {patch} {tree}\n" for name, (patch, tree) in self.patches.items()]
        return "".join([LOCK_HEAD, f"base - {self.base}\n", *lines])

    @classmethod
    def read(cls, base: Base) -> Locked | None:
        """The lock of the base, or None if there is none yet."""
        if not base.lock_file.is_file():
            return None
        lines = _text(base.lock_file).splitlines()
        rows = [line.split() for line in lines if line and not line.startswith("#")]
        if not rows or any(len(row) != 3 for row in rows) or rows[0][:2] != ["base", "-"]:
            raise Exit.LOCK(f"{base.lock_file} cannot be read", "restore it with git checkout")
        return cls(rows[0][2], {name: (patch, tree) for name, patch, tree in rows[1:]})


# ---- patches ----


class Change(NamedTuple):
    """What a patch does to one file."""

    path: str
    new: bool
    added: list[str]  # lines, without the `+`

    @property
    def kind(self) -> str:
        """`tests`, `docs` (with the examples) or `code`."""
        folder = self.path.partition("/")[0]
        return {"tests": "tests", "docs": "docs", "examples": "docs"}.get(folder, "code")


class Upstream(NamedTuple):
    """The trailer `Upstream:`: where the change was sent, and later releases."""

    url: str  # empty if it was not sent
    states: dict[str, str]  # release -> one of STATES
    evidence: dict[str, str]  # release -> what stands behind its state


@dataclasses.dataclass(frozen=True)
class Mail:
    """A patch file taken apart: headers, the message and the diff."""

    head: str  # everything above the `---` line, as it stands in the file
    subject: str
    author: str  # Name <mail>
    date: str
    body: str  # the message without its subject
    trailers: dict[str, list[str]]
    diff: str

    @property
    def name(self) -> str:
        """What `Patch-Name:` says; empty unless it stands there once."""
        said = self.trailers.get("Patch-Name", [])
        return said[0] if len(said) == 1 else ""

    @functools.cached_property
    def changes(self) -> list[Change]:
        """The files of the diff."""
        found = []
        for part in re.split(r"^diff --git ", self.diff, flags=re.M)[1:]:
            top, _, hunks = part.partition("\n@@ ")
            path = re.sub(r"^.* \"?b/(.*?)\"?$", r"\1", top.split("\n", 1)[0])
            added = re.findall(r"^\+(.*)$", hunks, re.M)
            found.append(Change(path, "\nnew file mode" in top, added))
        return found

    def upstream(self) -> Upstream:
        """The trailer `Upstream:`; a ValueError that says what to write."""
        said = self.trailers.get("Upstream", [])
        if len(said) != 1:
            raise ValueError("write one trailer `Upstream:`")
        sent, *rest = re.split(r" ?; (?=\d+\.)", said[0])
        match = re.fullmatch(r"no \(\S+ .*\)|(https://\S+)( \(.+\))?", sent)
        if match is None:
            raise ValueError("begin `Upstream:` with a URL or `no (the reason in a few words)`")
        states, evidence = {}, {}
        for part in rest:
            known = re.fullmatch(rf"(\S+) ({'|'.join(STATES)}) \((.+)\)", part)
            if known is None or known[1] in states:
                raise ValueError(f"write `{part}` as `RELEASE {'|'.join(STATES)} (evidence)`")
            states[known[1]], evidence[known[1]] = known[2], known[3]
        return Upstream(match[1] or "", states, evidence)

    def drop_when(self) -> list[Condition]:
        """The conditions of `Drop-When:`; a ValueError that says what to write."""
        return [conditions.parse(line) for line in self.trailers.get("Drop-When", [])]

    @classmethod
    def parse(cls, data: bytes) -> Mail:
        text = data.decode("utf-8", "replace")
        head, _, diff = text.partition("\n---\n")
        message = email.message_from_string(head.replace("\r\n", "\n"), policy=email.policy.default)
        # The text was decoded above, so the declared transfer encoding no longer matters.
        body = str(message.get_payload()).strip("\n")
        return cls(
            head=head,
            subject=" ".join(str(message["Subject"] or "").split()),
            author=str(message["From"] or ""),
            date=str(message["Date"] or ""),
            body=body,
            trailers=_trailers(body),
            diff=diff,
        )


def _trailers(body: str) -> dict[str, list[str]]:
    """`Key: value` lines of the last paragraph; a line that begins with a space continues one."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in body.split("\n\n")[-1].splitlines():
        match = re.match(r"([A-Z][A-Za-z-]*): *(.*)$", line)
        if match:
            key = match[1]
            found.setdefault(key, []).append(match[2].strip())
        elif line.startswith(" ") and key:
            found[key][-1] = f"{found[key][-1]} {line.strip()}".strip()
        else:
            key = ""
    return found


def section(mail: Mail, title: str) -> str:
    """The paragraph of the message that begins with `title:`, on one line; else empty."""
    match = re.search(rf"^{title}:[ \n](.+?)(?=\n\n|\Z)", mail.body, re.M | re.S)
    return " ".join(match[1].split()) if match else ""


# ---- the index ----

INDEX_HEAD = """\
# The patches

Built by `make export`; do not edit. How a patch is written and what each trailer means is in
[patch-format.md](../docs/maintain/patch-format.md).
"""
BASE_HEAD = """\
{count} patches on {package} {version}, in the order in which they apply. Each holds the tests that
prove it, and works on the tree that the ones above it give.

*Lines* are the lines added in code / tests / docs and examples, *edits* the files of {package} that
the patch changes. A column for a later release says what it does about the subject of the patch:
*missing*, *broken* or *differs* (the patch is still needed there), *fixed* or *superseded* (it is
not). The evidence is in the patch's `Upstream:`.
"""


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def capital(text: str) -> str:
    """The text with a capital, unless it begins with a name such as vLLM or get_config."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+[ ,]", text) else text


def _lines(mails: list[Mail]) -> str:
    """Lines added in code / tests / docs."""
    count = {"code": 0, "tests": 0, "docs": 0}
    for mail in mails:
        for change in mail.changes:
            count[change.kind] += len(change.added)
    return " / ".join(map(str, count.values()))


def _edited(mail: Mail, ours: set[str]) -> str:
    """The files of upstream that a patch edits: those of the code by name, the others counted."""
    edited = [c for c in mail.changes if not c.new and c.path not in ours]
    code = [change.path for change in edited if change.kind == "code"]
    short = ["/".join(path.split("/")[-2:]) for path in code]
    cells = short if len(short) <= 4 else [*short[:3], f"{len(short) - 3} more"]
    for kind in ("tests", "docs"):
        count = sum(change.kind == kind for change in edited)
        cells += [f"{count} of {kind}"] if count else []
    return ", ".join(cells) or "none"


def _upstream_cells(mail: Mail, versions: list[str]) -> tuple[str, list[str]]:
    """The link to what was sent, and a cell a release; empty where the trailer cannot be read."""
    try:
        url, states, _ = mail.upstream()
    except ValueError:
        return "", ["" for _ in versions]
    number = re.search(r"/(?:pull|issues)/(\d+)$", url)
    link = f" ([{f'#{number[1]}' if number else 'sent'}]({url}))" if url else ""
    return link, [states.get(version, "") for version in versions]


def _drop_cell(mail: Mail) -> str:
    try:
        return " and ".join(condition.short() for condition in mail.drop_when())
    except ValueError:
        return " ".join(mail.trailers.get("Drop-When", []))


def _index_of(base: Base) -> list[str]:
    mails = {name: Mail.parse(data) for name, data in read(base).items()}
    if not mails:
        return ["No patches yet."]
    versions = list(releases(base))
    head = BASE_HEAD.format(count=len(mails), package=base.package, version=base.version)
    lines = head.splitlines()
    parts = sections(base)
    if any(part.title for part in parts):
        lines += ["", "| section | patches | lines | for |", "| --- | --: | --: | --- |"]
        for part in parts:
            own = [mails[name] for name in part.names]
            lines.append(_row(part.title, str(len(own)), _lines(own), part.purpose))
        lines.append(_row("all", str(len(mails)), _lines(list(mails.values())), ""))
    number = 0
    ours: set[str] = set()  # files that the patches so far add
    for part in parts:
        if part.title:
            lines += ["", f"### {part.title}", "", part.purpose]
        columns = ["#", "patch", "what it is for", "lines", "edits", *versions, "drop when"]
        lines += ["", _row(*columns), "| --: | --- | --- | --: |" + " --- |" * (len(columns) - 4)]
        for name in part.names:
            number += 1
            mail = mails[name]
            sent, states = _upstream_cells(mail, versions)
            lines.append(
                _row(
                    str(number),
                    f"[{name}]({base.name}/{name}.patch)<br>{mail.subject}{sent}",
                    capital(re.split(r"(?<=\.) ", section(mail, "Problem"))[0]),
                    _lines([mail]),
                    _edited(mail, ours),
                    *states,
                    _drop_cell(mail),
                )
            )
            ours |= {change.path for change in mail.changes if change.new}
    return lines


def index(root: Path) -> str:
    """The text of patches/README.md, from every base's series and patches."""
    lines = INDEX_HEAD.splitlines()
    for file in sorted(root.glob("patches/*/base.toml")):
        base = Base.load(file.parent.name, root)
        lines += ["", f"## {base.name}", "", *_index_of(base)]
    return "\n".join(lines) + "\n"
