# SPDX-License-Identifier: Apache-2.0
"""The files of a base: `series`, `series.lock`, the patches, and the index made from them."""

from __future__ import annotations

import dataclasses
import email
import email.policy
import re
from pathlib import Path

from .config import Base
from .errors import Exit, SeriesError

LOCK_HEAD = "# Made by `make export`. Patch, its `git patch-id --stable`, and the tree after it.\n"


def names(base: Base) -> list[str]:
    """The patches of the base in their order."""
    if not base.series_file.is_file():
        raise SeriesError(
            Exit.PATCH,
            f"{base.series_file} is missing",
            hint="restore it with git checkout, or create it empty",
        )
    lines = base.series_file.read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def read(base: Base) -> dict[str, bytes]:
    """The bytes of every listed patch, in order."""
    found: dict[str, bytes] = {}
    for name in names(base):
        if name in found:
            raise SeriesError(
                Exit.PATCH, f"{base.series_file} lists {name} twice", hint="remove one of the lines"
            )
        try:
            found[name] = base.patch(name).read_bytes()
        except FileNotFoundError:
            raise SeriesError(
                Exit.PATCH,
                f"{base.patch(name)} is missing",
                hint=f"restore it with git checkout, or remove {name} from {base.series_file}",
            ) from None
    return found


def with_names(text: str, wanted: list[str]) -> str:
    """The series file `text` with `wanted` as its list.

    A comment stays above the name that follows it, the first block of comments at the top.
    """
    blocks: list[tuple[list[str], str]] = []  # comments, the name below them
    above: list[str] = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            blocks.append((above, line.strip()))
            above = []
        elif line.lstrip("# ") not in wanted or not line.strip():  # not a name commented out
            above.append(line)
    first = blocks[0][0] if blocks else above
    size = first.index("") + 1 if "" in first else len(first)
    head, first[:size] = first[:size], []
    comments = {name: lines for lines, name in blocks}
    lines = head + [line for name in wanted for line in (*comments.get(name, []), name)]
    return "".join(f"{line}\n" for line in [*lines, *above])


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
        lines = base.lock_file.read_text(encoding="utf-8").splitlines()
        rows = [line.split() for line in lines if line and not line.startswith("#")]
        if not rows or any(len(row) != 3 for row in rows) or rows[0][:2] != ["base", "-"]:
            raise SeriesError(
                Exit.LOCK,
                f"{base.lock_file} cannot be read",
                hint="restore it with git checkout",
            )
        return cls(rows[0][2], {name: (patch, tree) for name, patch, tree in rows[1:]})


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


def index(root: Path) -> str:
    """The text of patches/README.md, made from every base's series and patches."""
    lines = [
        "# The patches",
        "",
        "Made by `make export`; do not edit. The format is described in"
        " [patch-format.md](../docs/maintain/patch-format.md).",
    ]
    for file in sorted(root.glob("patches/*/base.toml")):
        base = Base.load(file.parent.name, root)
        lines += ["", f"## {base.name}", ""]
        found = read(base)
        if not found:
            lines.append("No patches yet.")
            continue
        lines += [
            "| patch | subject | why | upstream | drop when |",
            "| --- | --- | --- | --- | --- |",
        ]
        for name, data in found.items():
            mail = Mail.parse(data)
            why = re.split(r"(?<=\.) ", section(mail, "Problem"))[0]
            cells = [
                f"[{name}]({base.name}/{name}.patch)",
                mail.subject,
                why,
                " ".join(mail.trailers.get("Upstream", [])),
                " ".join(mail.trailers.get("Drop-When", [])),
            ]
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"
