# SPDX-License-Identifier: Apache-2.0
"""The rules a patch and a series keep, each explained in docs/maintain/patch-format.md#<rule>."""

import dataclasses
import re
from collections.abc import Callable, Iterator

from . import patches as files
from .config import Base
from .patches import LONGEST, NAME, STATES, Mail, section

TAGS = (
    "Attention|Benchmark|Bugfix|Build|CI|CI/Build|Core|CPU|Doc|Docs|Feature|Frontend|Hardware|"
    "Kernel|LoRA|Misc|Model|Multimodal|MM|Perf|Performance|Quantization|Refactor|Spec Decode|"
    "SpecDecode|Test|Tests|V1|XPU"
)
FIXES = "fixes of vLLM"
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
    mail: Mail
    releases: tuple[str, ...]  # for which `Upstream:` has to say a state


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
    """`Upstream:` holds a URL, or `no` and the reason, then the state in each later release."""
    try:
        states = patch.mail.upstream().states
    except ValueError as error:
        return str(error)
    for release in (*patch.releases, *states):
        if release not in states:
            return f"say in `Upstream:` what {release} does: {'|'.join(STATES)} (evidence)"
        if release not in patch.releases:
            return f"name {release} of `Upstream:` in releases.toml, or remove it"
    return ""


def trailer_drop_when(patch: Patch) -> str:
    """Each `Drop-When:` is a condition, and one can be looked up without running a test."""
    try:
        found = patch.mail.drop_when()
    except ValueError as error:
        return str(error)
    if any(condition.kind != "test" for condition in found):
        return ""
    return "add a trailer `Drop-When:` with a version, symbol or text to look for"


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
    for path, new, added in patch.mail.changes:
        if path.endswith(".py") and new:
            lines = added[1:3] if added and added[0].startswith("#!") else added[:2]
            if added and lines != [
                "# SPDX-License-Identifier: Apache-2.0",
                "# SPDX-FileCopyrightText: Copyright contributors to the vLLM project",
            ]:
                return f"begin {path} with vLLM's two SPDX lines"
    return ""


def no_machine_names(patch: Patch) -> str:
    """Message and added lines name no home folder and no address of a package index."""
    added = [line for change in patch.mail.changes for line in change.added]
    found = MACHINE.search("\n".join([patch.mail.body, *added]))
    return f"remove {found[1] or found[2]}" if found else ""


def kernel_sources(patch: Patch) -> str:
    """A patch of kernel sources says that the release's binaries do not fit."""
    paths = [change.path for change in patch.mail.changes]
    sources = [path for path in paths if re.match(r"(csrc|cmake)/|CMakeLists\.txt$", path)]
    if sources and "KERNELS=source" not in patch.mail.body:
        return (
            f"say `KERNELS=source` in the message: {sources[0]} is compiled, and"
            " KERNELS=precompiled takes the release's binaries"
        )
    return ""


def patch_name(patch: Patch) -> str:
    """`Patch-Name:` says the file's name: kebab-case, at most 40 characters, no number first."""
    if not NAME.fullmatch(patch.name):
        return "rename it in kebab-case, beginning with a letter, without a number for the order"
    if len(patch.name) > LONGEST:
        return f"shorten the name from {len(patch.name)} to at most {LONGEST} characters"
    if patch.mail.name != patch.name:
        return f"add one trailer `Patch-Name: {patch.name}`"
    return ""


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
    kernel_sources,
    patch_name,
)


Patches = dict[str, Patch]  # those that exist, in the order of the series


def series_exists(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """Every listed patch exists."""
    for name in files.names(base):
        if name not in found:
            yield "series", f"{name}.patch is missing; restore it or remove the name"


def series_complete(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """Every patch file is listed."""
    for name in sorted(found.keys() - set(files.names(base))):
        yield f"{name}.patch", "list it in series, or remove the file"


def series_unique(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """No patch is listed twice."""
    listed = files.names(base)
    for name in sorted({name for name in listed if listed.count(name) > 1}):
        yield "series", f"{name} is listed twice; remove one of the lines"


def series_sections(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """Each section has its own title and one sentence; once there is one, every name is in one."""
    parts = files.sections(base)
    titles = [part.title for part in parts]
    for part in parts if any(titles) else ():
        if not part.title:
            yield "series", f"move {', '.join(part.names) or 'the names'} into a section"
        elif titles.count(part.title) > 1:
            yield "series", f"give each of the sections {part.title!r} a title of its own"
        elif part.title.startswith("#") or not part.purpose or ". " in part.purpose:
            yield "series", f"write the section {part.title!r} as `## title: one sentence`"


def fixes_alone(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """A patch of `fixes of vLLM` touches no file that another patch of the series adds."""
    makers = {c.path: name for name, p in found.items() for c in p.mail.changes if c.new}
    for part in files.sections(base):
        for name in part.names if part.title == FIXES else ():
            for change in found[name].mail.changes if name in found else ():
                maker = makers.get(change.path, name)
                if maker != name:
                    yield f"{name}.patch", f"leave {change.path} alone, which {maker} adds"


SERIES_RULES: tuple[Callable[[Base, Patches], Iterator[tuple[str, str]]], ...] = (
    series_exists,
    series_complete,
    series_unique,
    series_sections,
    fixes_alone,
)


def rule_id(rule: Callable[..., object]) -> str:
    return rule.__name__.replace("_", "-")


def lint(base: Base) -> list[Finding]:
    """All broken rules of a base: those of the series, then each patch's in their order."""
    order = files.names(base)
    releases = tuple(files.releases(base))
    present = {path.stem: path for path in sorted(base.folder.glob("*.patch"))}
    found: Patches = {}
    for name in dict.fromkeys([*order, *present]):
        if name in present:
            found[name] = Patch(name, Mail.parse(present[name].read_bytes()), releases)
    broken = [
        Finding(rule_id(rule), where, message)
        for rule in SERIES_RULES
        for where, message in rule(base, found)
    ]
    for name, patch in found.items():
        for check in PATCH_RULES:
            message = check(patch)
            if message:
                broken.append(Finding(rule_id(check), f"{name}.patch", message))
    return broken
