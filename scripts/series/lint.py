# SPDX-License-Identifier: Apache-2.0
"""The rules a patch and a series keep, each explained in docs/maintain/patch-format.md#<rule>."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from . import patches as files
from .config import Base
from .patches import Mail, section

TAGS = (
    "Attention|Benchmark|Bugfix|Build|CI|CI/Build|Core|CPU|Doc|Docs|Feature|Frontend|Hardware|"
    "Kernel|LoRA|Misc|Model|Multimodal|MM|Perf|Performance|Quantization|Refactor|Spec Decode|"
    "SpecDecode|Test|Tests|V1|XPU"
)
MACHINE = re.compile(
    r"(?:^|[\s\"'=:(`])(/(?:home|Users|root|work)/[\w.-]+)"
    r"|(https?://[^\s/\"']+/(?:simple|packages|pypi|whl)(?:/|\b))",
    re.M,
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """One broken rule: where, and what to do."""

    rule: str
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message} (docs/maintain/patch-format.md#{self.rule})"


@dataclasses.dataclass(frozen=True)
class Patch:
    name: str
    data: bytes
    mail: Mail


def subject_tag(patch: Patch) -> str:
    """The subject begins with a tag of vLLM."""
    if re.match(rf"(\[({TAGS})\])+ \S", patch.mail.subject):
        return ""
    return "begin the subject with one of vLLM's tags, for example [Model] or [Bugfix]"


def subject_length(patch: Patch) -> str:
    """The subject, tag included, has at most 78 characters."""
    size = len(patch.mail.subject)
    return f"shorten the subject from {size} to at most 78 characters" if size > 78 else ""


def body_sections(patch: Patch) -> str:
    """The message says Problem, Change and Proof."""
    missing = [t for t in ("Problem", "Change", "Proof") if not section(patch.mail, t)]
    return f"add a paragraph that begins with `{missing[0]}:`" if missing else ""


def trailer_upstream(patch: Patch) -> str:
    """`Upstream:` holds a URL, or `no` and the reason."""
    said = patch.mail.trailers.get("Upstream", [])
    if len(said) == 1 and re.match(r"https://\S+|no\b\W+\w+\W+\w+", said[0]):
        return ""
    return "add one trailer `Upstream:` with a URL, or `no` and the reason"


def trailer_drop_when(patch: Patch) -> str:
    """`Drop-When:` names a condition that can be probed: a version, a path or a `name`."""
    said = patch.mail.trailers.get("Drop-When", [])
    if len(said) == 1 and re.search(r"\d\.\d|\w/\w|`[^`]+`", said[0]):
        return ""
    return "add one trailer `Drop-When:` that names a version, a path or a `name` to look for"


def trailer_sign_off(patch: Patch) -> str:
    """The author signed the patch off (DCO)."""
    if patch.mail.author and patch.mail.author in patch.mail.trailers.get("Signed-off-by", []):
        return ""
    return f"add the trailer `Signed-off-by: {patch.mail.author}`"


def full_index(patch: Patch) -> str:
    """Every `index` line has whole object ids."""
    lines = re.findall(r"^index (.*)$", patch.mail.diff, re.M)
    if all(re.match(r"[0-9a-f]{40}\.\.[0-9a-f]{40}", line) for line in lines):
        return ""
    return "write it with make export, which keeps whole object ids in `index` lines"


def no_signature(patch: Patch) -> str:
    """The patch does not end with the version of someone's git."""
    if re.search(r"\n-- \n[^\n]*\n*\Z", patch.mail.diff):
        return "remove the git version after `-- ` at the end (make export writes none)"
    return ""


def clean_header(patch: Patch) -> str:
    """Headers and message have no carriage return and no space at the end of a line."""
    for number, line in enumerate(patch.mail.head.split("\n"), start=1):
        if line != line.rstrip():
            return f"remove the space or carriage return at the end of line {number}"
    return ""


def text_only(patch: Patch) -> str:
    """The diff is text."""
    if re.search(r"^(GIT binary patch|Binary files .* differ)$", patch.mail.diff, re.M):
        return "leave binary files out; make them in a test or fetch them"
    return ""


def spdx_header(patch: Patch) -> str:
    """A new Python file that is not empty begins with vLLM's two SPDX lines."""
    for part in re.split(r"^diff --git ", patch.mail.diff, flags=re.M)[1:]:
        path = part.split("\n", 1)[0].rsplit(" b/", 1)[-1]
        if path.endswith(".py") and "\nnew file mode" in part:
            added = re.findall(r"^\+(?!\+\+ )(.*)$", part, re.M)
            lines = added[1:3] if added and added[0].startswith("#!") else added[:2]
            if added and lines != [
                "# SPDX-License-Identifier: Apache-2.0",
                "# SPDX-FileCopyrightText: Copyright contributors to the vLLM project",
            ]:
                return f"begin {path} with vLLM's two SPDX lines"
    return ""


def no_machine_names(patch: Patch) -> str:
    """Message and added lines name no home folder and no address of a package index."""
    added = "\n".join(re.findall(r"^\+(?!\+\+ )(.*)$", patch.mail.diff, re.M))
    found = MACHINE.search(f"{patch.mail.body}\n{added}")
    return f"remove {found[1] or found[2]}" if found else ""


def patch_name(patch: Patch) -> str:
    """The name is kebab-case and begins with a letter: the order is said in `series` only."""
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", patch.name):
        return ""
    return "rename it in kebab-case, beginning with a letter, without a number for the order"


PATCH_RULES: tuple[Callable[[Patch], str], ...] = (
    subject_tag,
    subject_length,
    body_sections,
    trailer_upstream,
    trailer_drop_when,
    trailer_sign_off,
    full_index,
    no_signature,
    clean_header,
    text_only,
    spdx_header,
    no_machine_names,
    patch_name,
)


def series_exists(base: Base) -> Iterator[tuple[str, str]]:
    """Every listed patch exists."""
    for name in files.names(base):
        if not base.patch(name).is_file():
            yield "series", f"{name}.patch is missing; restore it or remove the name"


def series_complete(base: Base) -> Iterator[tuple[str, str]]:
    """Every patch file is listed."""
    for path in sorted(base.folder.glob("*.patch")):
        if path.stem not in files.names(base):
            yield path.name, "list it in series, or remove the file"


def series_unique(base: Base) -> Iterator[tuple[str, str]]:
    """No patch is listed twice."""
    listed = files.names(base)
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield "series", f"{name} is listed twice; remove one of the lines"


SERIES_RULES: tuple[Callable[[Base], Iterator[tuple[str, str]]], ...] = (
    series_exists,
    series_complete,
    series_unique,
)


def rule_id(rule: Callable[..., object]) -> str:
    return rule.__name__.replace("_", "-")


def lint(base: Base) -> list[Finding]:
    """All broken rules of a base, in the order of the series."""
    found = [
        Finding(rule_id(rule), where, message)
        for rule in SERIES_RULES
        for where, message in rule(base)
    ]
    for path in sorted(base.folder.glob("*.patch")):
        data = path.read_bytes()
        patch = Patch(path.stem, data, Mail.parse(data))
        for check in PATCH_RULES:
            message = check(patch)
            if message:
                found.append(Finding(rule_id(check), path.name, message))
    return found
