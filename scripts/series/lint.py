# SPDX-License-Identifier: Apache-2.0
"""The rules a patch and a series keep, each explained in docs/maintain/patch-format.md#<rule>."""

import dataclasses
import re
from collections.abc import Callable, Iterator

from . import patches as files
from .config import Base, parse_toml
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


def _text(part: str, pattern: str, todo: str, *, wanted: bool = False) -> Callable[[Patch], str]:
    """The rule that a part of the mail matches nowhere, or if `wanted` somewhere."""

    def rule(patch: Patch) -> str:
        text: str = getattr(patch.mail, part)
        match = re.search(pattern, text, re.M)
        line = text[: match.start()].count("\n") + 1 if match else 0
        return "" if bool(match) is wanted else todo.format(size=len(text), line=line)

    return rule


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


PATCH_RULES: dict[str, Callable[[Patch], str]] = {
    "subject-tag": _text(
        "subject",
        rf"^(\[({TAGS})\])+ \S",
        "begin the subject with one of vLLM's tags, for example [Model] or [Bugfix]",
        wanted=True,
    ),
    "subject-length": _text(
        "subject", ".{79}", "shorten the subject from {size} to at most 78 characters"
    ),
    "body-sections": body_sections,
    "trailer-upstream": trailer_upstream,
    "trailer-drop-when": trailer_drop_when,
    "trailer-sign-off": trailer_sign_off,
    "full-index": _text(
        "diff",
        r"^index (?![0-9a-f]{40}\.\.[0-9a-f]{40})",
        "write it with make export, which keeps whole object ids in `index` lines",
    ),
    "no-signature": _text(
        "diff",
        r"\n-- \n[^\n]*\n*\Z",
        "remove the git version after `-- ` at the end (make export writes none)",
    ),
    "clean-header": _text(
        "head", r"[ \t\r]$", "remove the space or carriage return at the end of line {line}"
    ),
    "text-only": _text(
        "diff",
        "^(GIT binary patch|Binary files .* differ)$",
        "leave binary files out; make them in a test or fetch them",
    ),
    "spdx-header": spdx_header,
    "no-machine-names": no_machine_names,
    "kernel-sources": kernel_sources,
    "patch-name": patch_name,
}


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
        for name in part.names if part.title.startswith(FIXES) else ():
            for change in found[name].mail.changes if name in found else ():
                maker = makers.get(change.path, name)
                if maker != name:
                    yield f"{name}.patch", f"leave {change.path} alone, which {maker} adds"


def proof_counts(base: Base, found: Patches) -> Iterator[tuple[str, str]]:
    """The proof of a patch says how many tests it has now, as tests.toml counts them."""
    if not base.tests_file.is_file():
        return
    stages = parse_toml(base.tests_file.read_text(encoding="utf-8")).get("patch", {})
    for name, patch in found.items():
        stage = stages.get(name, {})
        usual, long = stage.get("count"), stage.get("long_count", 0)
        proof = patch.mail.body.partition("Proof:")[2]
        said = {int(n) for n in re.findall(r"(\d+) passed", proof)}
        if usual is not None and not said & {usual, usual + long}:
            yield f"{name}.patch", f"say `{usual} passed` in Proof: tests.toml counts as many tests"


SERIES_RULES: dict[str, Callable[[Base, Patches], Iterator[tuple[str, str]]]] = {
    "series-exists": series_exists,
    "series-complete": series_complete,
    "series-unique": series_unique,
    "series-sections": series_sections,
    "fixes-alone": fixes_alone,
    "proof-counts": proof_counts,
}


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
        Finding(rule, where, message)
        for rule, check in SERIES_RULES.items()
        for where, message in check(base, found)
    ]
    for name, patch in found.items():
        checked = {rule: check(patch) for rule, check in PATCH_RULES.items()}
        broken += [Finding(rule, f"{name}.patch", said) for rule, said in checked.items() if said]
    return broken
