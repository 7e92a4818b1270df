# SPDX-License-Identifier: Apache-2.0
"""The text of a pull request and vLLM's checklist for it, from what a program knows."""

from __future__ import annotations

import collections
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from series import patches
from series.patches import Mail, section

from .pull_hooks import FAILED, NO_FILE, PASSED, Hook
from .stages import Plan

BANDS = ((50, "low"), (250, "medium"))  # of vLLM's checklist, in lines of code added
CORE = re.compile(r"vllm/v1/(core/|worker/(gpu/)?(gpu_)?model_runner|worker/gpu_model_runner)")
MOCKS = re.compile(r"mock|monkeypatch|\bpatch(\.\w+)?\(", re.I)
OPEN = "to be completed by the person who sends it"
GH = "--repo vllm-project/vllm --state all --search"
# The sections of the template that this fills in; other ones are left to the person.
OLD = ["Purpose", "Test Plan", "Test Result"]
NEW = ["Overview", "Claims", "Validation", "Details"]
# Words that find everything, in the issues of an engine.
COMMON = re.compile(
    "about|above|after|again|another|answers?|before|behind|below|between|cannot|could|does|each|every"
    "|first|from|given|gives|have|into|itself|less|more|most|never|nothing|once|only|others?|over"
    "|same|second|some|such|takes|than|that|their|them|then|there|these|they|this|those|through"
    "|under|until|what|when|where|which|while|whole|with|within|without|would"
)
MOST = 4  # searches of one kind


class Item(NamedTuple):
    """One pull request: a patch, or a section."""

    slug: str
    title: str
    names: list[str]


class Looked(NamedTuple):
    """What was found in upstream's files with a branch's patches."""

    hooks: list[Hook]
    headings: list[str]  # of the pull request's template
    template: str  # its part that stays
    pipelines: str  # whether its CI runs the tests
    touched: list[str]  # upstream's functions and classes that are changed


class Facts(NamedTuple):
    """All that is known of one pull request."""

    item: Item
    mails: list[Mail]
    plan: Plan
    looked: Looked
    ran: dict[str, Any]
    base: str
    needs: Sequence[Mail] = ()
    merged: Sequence[str] = ()
    tag: str = ""  # of the release that the branch stands on

    def lines(self, kind: str) -> int:
        return sum(len(c.added) for m in self.mails for c in m.changes if c.kind == kind)

    def paths(self, kind: str) -> list[str]:
        return list(dict.fromkeys(c.path for m in self.mails for c in m.changes if c.kind == kind))

    def tests(self) -> list[str]:
        """The tests that the patches bring, and upstream's files of tests that they change."""
        stages_of = [self.plan.patches.get(name) for name in self.item.names]
        own = [test for stage in stages_of if stage for test in stage.tests]
        edited = [path for mail in self.mails for path in changed_tests(mail)]
        return list(dict.fromkeys([*own, *edited]))

    def hooks(self, *outcomes: str) -> list[str]:
        return [hook.name for hook in self.looked.hooks if hook.outcome in outcomes]

    def not_run(self) -> list[str]:
        return [h.name for h in self.looked.hooks if not h.ran and h.outcome != NO_FILE]

    def with_ai(self) -> bool:
        return all("AI assistance was used" in mail.body for mail in self.mails)


def changed_tests(mail: Mail) -> list[str]:
    """Upstream's own files of tests that a patch changes."""
    return [
        change.path
        for change in mail.changes
        if change.kind == "tests" and not change.new and Path(change.path).match("test_*.py")
    ]


# ---- Markdown ----


def code(text: str) -> str:
    """A code span of any text, also of one with backticks."""
    text = " ".join(text.split())
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def cell(text: str) -> str:
    return text.replace("|", "\\|")


def prose(text: str) -> str:
    """Text in which a `<tag>` is shown, and not taken for HTML."""
    parts = re.split(r"((?<!`)(`+)(?!`).*?(?<!`)\2(?!`))", text)
    # Each span is followed by the group of its backticks.
    return "".join(
        part.replace("<", "\\<") if number % 3 == 0 else part if number % 3 == 1 else ""
        for number, part in enumerate(parts)
    )


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) (?=[A-Z`\"])", text) if text else []


# ---- the text ----


def text(facts: Facts) -> str:
    """The title, and the description in the sections of the template of the tree."""
    lines = [facts.item.title, ""]
    if facts.looked.headings == NEW:
        lines += _overview(facts)
    else:
        lines += _purpose(facts)
    lines += [
        f"- [ ] Answers for it, has read every changed line and has run the tests: {OPEN} (name)",
        f"- [ ] Signed off by that person too (`git rebase --signoff`): {OPEN}",
    ]
    if facts.looked.template:
        kept = facts.looked.template
        if facts.with_ai():
            kept = re.sub(r"^- \[ \] (AI assistance was used)", r"- [x] \1", kept, flags=re.M)
        lines += ["", "---", kept]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def _overview(facts: Facts) -> list[str]:
    """Overview, Claims, Validation, Details."""
    lines = ["## Overview", ""]
    for mail in facts.mails:
        problem = sentences(patches.capital(section(mail, "Problem")))
        lines += [f"{prose(_plain(mail.subject))}. {prose(' '.join(problem[:1]))}", ""]
    lines += [*_depends(facts), "## Claims", ""]
    for mail in facts.mails:
        lines += _titled(facts, mail)
        change = sentences(patches.capital(section(mail, "Change")))
        lines += [*(f"- {prose(one)}" for one in change), ""]
    lines += ["## Validation", "", *_plan(facts), *_outcomes(facts), "", *_proofs(facts)]
    lines += [*_hooks(facts), "", "## Details", ""]
    for mail in facts.mails:
        lines += _titled(facts, mail)
        lines += [f"Root cause: {prose(patches.capital(section(mail, 'Problem')))}", ""]
    return [*lines, *_searched(facts), *_ai(facts)]


def _purpose(facts: Facts) -> list[str]:
    """Purpose, Test Plan, Test Result."""
    lines = ["## Purpose", ""]
    for mail in facts.mails:
        lines += _titled(facts, mail)
        for part in ("Problem", "Change"):
            lines += [prose(patches.capital(section(mail, part))), ""]
    lines += [*_depends(facts), *_searched(facts), "## Test Plan", "", *_plan(facts)]
    lines += ["## Test Result", "", *_outcomes(facts), "", *_proofs(facts), *_hooks(facts), ""]
    return [*lines, *_ai(facts)]


def _plain(subject: str) -> str:
    return re.sub(r"^(\[[^]]*\])+ ", "", subject)


def _titled(facts: Facts, mail: Mail) -> list[str]:
    return [f"### {prose(mail.subject)}", ""] if len(facts.mails) > 1 else []


def _depends(facts: Facts) -> list[str]:
    if not facts.needs:
        return []
    lines = ["Depends on these changes, which stand before it on the branch and go in first:", ""]
    return [*lines, *(f"- {prose(mail.subject)}" for mail in facts.needs), ""]


def _plan(facts: Facts) -> list[str]:
    lines = [f"pytest -q {shlex.quote(test)}" for test in facts.tests()]
    return ["```bash", *(lines or ["# none of its own"]), "```", ""]


def _proofs(facts: Facts) -> list[str]:
    return [f"{prose(section(mail, 'Proof'))}\n" for mail in facts.mails]


def _ai(facts: Facts) -> list[str]:
    said = "AI assistance was used for this change, its tests and this text."
    return [said if facts.with_ai() else f"- [ ] AI assistance: {OPEN}", ""]


def _hooks(facts: Facts) -> list[str]:
    """A line for each outcome; hooks that have no file to look at are left out."""
    lines = ["vLLM's pre-commit hooks on the changed files:", ""]
    kinds = (
        ("passed", facts.hooks(PASSED)),
        ("**FAILED**", facts.hooks(FAILED)),
        ("not run here", facts.not_run()),
    )
    return [*lines, *(f"- {kind}: {', '.join(names)}" for kind, names in kinds if names)]


def _outcomes(facts: Facts) -> list[str]:
    """A table of the tests before and after, or what has to be run for it."""
    if not facts.ran:
        return [
            f"- [ ] not run on this branch: `make upstream-branch RUN=1 PATCH={facts.item.slug}`"
        ]
    before, after = facts.ran["before"], facts.ran["after"]
    also = " the changes that it depends on and" if facts.needs else ""
    lines = [
        f"On vLLM {facts.base}, CPU. *Before* is {facts.base} with{also} the tests of this change,"
        f" without its code: {_sum(facts.ran, 'before')}. *After*: {_sum(facts.ran, 'after')}.",
        "",
    ]
    for name, why in facts.ran["not_run"].items():
        lines += [f"Not run here: {code(name)}, {prose(why)}.", ""]
    if before["errors"]:
        lacking = set(after["tests"]) - set(before["tests"])
        what = "The first that cannot be collected" if lacking else "The first failure"
        lines += [f"{what} before: {code(before['errors'][0])}.", ""]
    lines += ["A row without a function is of all other tests of the file.", ""]
    lines += ["| test | cases | before | after |", "| --- | --: | --- | --- |"]
    for (name, *outcomes), count in _grouped(before["tests"], after["tests"]).items():
        lines.append(f"| {cell(code(name))} | {count} | {' | '.join(outcomes)} |")
    return lines


def _nodes(ran: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*ran["after"]["tests"], *ran["before"]["tests"]]))


def _grouped(before: dict[str, str], after: dict[str, str]) -> dict[tuple[str, str, str], int]:
    """How many cases of a function have the same outcomes; those of a file if nothing changed."""
    changed: collections.Counter[tuple[str, str, str]] = collections.Counter()
    same: collections.Counter[tuple[str, str, str]] = collections.Counter()
    for node in dict.fromkeys([*after, *before]):
        file, _, function = node.removeprefix("tests/").partition("::")
        was, now = (run.get(node, "not collected") for run in (before, after))
        if was == now:
            same[file, was, now] += 1
        else:
            changed[f"{file}::{function.partition('[')[0]}", was, now] += 1
    return {**changed, **same}


def _sum(ran: dict[str, Any], when: str) -> str:
    tests = ran[when]["tests"]
    counts = collections.Counter(tests.get(node, "not collected") for node in _nodes(ran))
    return ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))


# ---- duplicates ----


def open_pulls(mails: Sequence[Mail]) -> list[str]:
    """The pull requests that `Upstream:` names as open."""
    said = " ".join(mail.trailers.get("Upstream", [""])[0] for mail in mails)
    runs = re.findall(r"((?:#\d+(?:, | and )?)+) (?:is|are) open", said)
    return list(dict.fromkeys(number for run in runs for number in re.findall(r"#\d+", run)))


def not_to_be_sent(mails: Sequence[Mail]) -> list[str]:
    """Why `Upstream:` says that a patch is not for sending, or where it was sent."""
    found: list[str] = []
    for mail in mails:
        said = mail.trailers.get("Upstream", [""])[0]
        sent = re.match(r"https://\S+", said)
        reason = re.match(r"no \((?!to be sent)([^;)]*)", said)
        found += [f"sent: {sent[0]}"] if sent else [reason[1]] if reason else []
    return found


def searches(facts: Facts) -> Iterator[str]:
    """Commands that find what others did about the same: by file, by name and by symptom."""
    code_files = [c for m in facts.mails for c in m.changes if c.kind == "code" and not c.new]
    paths = list(dict.fromkeys(c.path for c in code_files))
    if facts.tag and paths:
        yield f"git log --oneline {facts.tag}..origin/main -- {shlex.join(paths)}"
    by_size = sorted(code_files, key=lambda change: -len(change.added))
    files = ["/".join(change.path.split("/")[-2:]) for change in by_size]
    for words in list(dict.fromkeys([*files[:MOST], *_names(facts.looked.touched)])):
        yield f"gh pr list {GH} {shlex.quote(words)}"
    for words in symptoms(facts.mails):
        yield f"gh pr list {GH} {shlex.quote(words)}"
        yield f"gh issue list {GH} {shlex.quote(words)}"


def _names(touched: Sequence[str]) -> list[str]:
    """Names that are found in texts: a method without its class if it has a name of its own."""
    found = []
    for name in touched:
        last = name.split(".")[-1]
        own = "_" in last.strip("_") and not last.startswith("__")
        found.append(last if own else name.split(".")[0])
    return list(dict.fromkeys(found))[:MOST]


def symptoms(mails: Sequence[Mail]) -> list[str]:
    """Words of the problem: what it quotes, the names in it, and what it is about."""
    found: list[str] = []
    for mail in mails:
        problem = section(mail, "Problem")
        for quoted in re.findall(r'"([^"]+)"', problem):
            words = re.findall(r"[A-Za-z]{3,}", quoted)
            found += [" ".join(words[:5])] if len(words) > 3 else []
        # An option without its dashes, which would turn the search round.
        options = re.findall(r"(?<=--)[a-z][\w-]+", problem)
        names = re.findall(r"\b[A-Za-z]\w*_\w+|\b[A-Z][a-z]+(?:[A-Z][a-z]+)+", problem)
        found += list(dict.fromkeys([*options, *names]))[:MOST]
        found.append(_subject_words(_plain(mail.subject), problem))
    return list(dict.fromkeys(filter(None, found)))


def _subject_words(subject: str, problem: str) -> str:
    """Three words: those that subject and problem share, then the most frequent of the problem."""

    def words(text: str) -> list[str]:
        found = re.findall(r"[a-z][a-z0-9-]{3,}", text.lower())
        return [word for word in found if not COMMON.fullmatch(word)]

    def stem(word: str) -> str:
        return re.sub(r"(ing|ed|s)$", "", word)

    those = [stem(word) for word in words(problem)]
    shared = [word for word in words(subject) if stem(word) in those]
    often = [word for word, _ in collections.Counter(words(problem)).most_common()]
    chosen: dict[str, str] = {}
    for word in [*shared, *often]:
        chosen.setdefault(stem(word), word)
    return " ".join(list(chosen.values())[:3])


def _searched(facts: Facts) -> list[str]:
    """What is known of upstream's state, and the searches that are still to do."""
    lines = ["Not a duplicate:", ""]
    if pulls := open_pulls(facts.mails):
        lines.append(
            f"- [ ] Open, to be read first: {', '.join(pulls)}. Stop if one is the same; else why"
            f" it is another matter: {OPEN}"
        )
    for mail in facts.mails:
        try:
            known = mail.upstream()
        except ValueError:
            continue
        for release, state in known.states.items():
            lines.append(
                f"- {release}, read in its source: {state} ({prose(known.evidence[release])})"
            )
    lines += [
        f"- [ ] Searched with the commands below: {OPEN} (date, what was found, why it is another"
        " matter)",
        "",
        "```bash",
        *searches(facts),
        "```",
        "",
    ]
    return lines


# ---- the checklist ----


def checklist(facts: Facts) -> str:
    """vLLM's pr-checklist, point by point: what a program finds, and what is left to a person."""
    code_lines, tests, docs = (facts.lines(kind) for kind in ("code", "tests", "docs"))
    band = next(
        (name for limit, name in BANDS if code_lines < limit), "high: needs a justification"
    )
    core = [path for path in facts.paths("code") if CORE.match(path)]
    old = "vllm/v1/worker/gpu_model_runner.py" in core
    added = [line for m in facts.mails for c in m.changes if c.kind == "tests" for line in c.added]
    mocks = sum(bool(MOCKS.search(line)) for line in added)
    comments = sum(
        line.lstrip().startswith("#")
        for m in facts.mails
        for c in m.changes
        if c.kind == "code"
        for line in c.added
    )
    rows = {
        "stands on": _stands_on(facts),
        "1.1 core files": ", ".join(core) or "none touched",
        "1.2 replication": OPEN,
        "1.3 complexity": f"{code_lines} lines of code ({band}), {tests} of tests, {docs} of docs",
        "1.4 compatibility": OPEN,
        "1.5 tradeoffs": f"{OPEN}; synchronization: VLLM_GPU_SYNC_CHECK=error on a GPU",
        "1.6 model runner V1": "edited: say why, and what V2 does" if old else "not edited",
        "2 validated": _validated(facts),
        "2.1 tests": f"{mocks} lines that mock or patch; "
        + (
            "more than twice the code: is each needed?"
            if tests > 2 * code_lines
            else "in proportion"
        ),
        "2.2 reliability": OPEN,
        "2.3 in CI": facts.looked.pipelines,
        "3.1 comments": f"{comments} lines of comments in code",
        "3.2 documentation": ", ".join(facts.paths("docs")) or "none: is a user to notice it?",
        "3.3 helper functions": OPEN,
        "3.4 formatting": _formatting(facts),
        "4.1 description": _described(facts),
        "4.2 evidence": f"released weights were not at hand; evaluation: {OPEN}",
        "4.3 root cause": "from the message; is it the cause, and not the symptom?",
        "4.4 details": "from the message; trade-offs and limits: " + OPEN,
        "4.5 contributing guide": _signed(facts),
        "AI assistance": "said in the text and ticked" if facts.with_ai() else OPEN,
        "accountable person": OPEN,
        "duplicate check": _duplicates(facts),
    }
    lines = [f"# Checklist: {prose(facts.item.title)}", "", "| point | found |", "| --- | --- |"]
    lines += [f"| {point} | {cell(prose(found))} |" for point, found in rows.items()]
    said = [
        f"\n{hook.name}:\n\n~~~~\n{hook.said}\n~~~~"
        for hook in facts.looked.hooks
        if hook.outcome == FAILED
    ]
    return "\n".join([*lines, *said]) + "\n"


def _stands_on(facts: Facts) -> str:
    first = "; ".join(mail.subject for mail in facts.needs)
    said = f"vLLM {facts.base}" + (f"; FIRST: {first}" if first else ", alone")
    if facts.merged:
        said += f"; by a three-way merge, read the result: {', '.join(facts.merged)}"
    return said


def _validated(facts: Facts) -> str:
    if not facts.ran:
        return "NOT RUN"
    before, after = facts.ran["before"]["tests"], facts.ran["after"]["tests"]
    said = [f"before: {_sum(facts.ran, 'before')}; after: {_sum(facts.ran, 'after')}"]
    if set(after.values()) != {"passed"}:
        said.append("NOT ALL PASS with the change")
    if "failed" not in before.values():
        said.append("NO TEST SHOWS THE FAULT: none fails before by what it asserts")
    said += [f"NOT RUN here: {name}" for name in facts.ran["not_run"]]
    return "; ".join([*said, f"end to end: {OPEN}"])


def _formatting(facts: Facts) -> str:
    failed, others = facts.hooks(FAILED), facts.not_run()
    said = [f"FAILED: {', '.join(failed)}"] if failed else []
    said += [f"{len(facts.hooks(PASSED))} hooks pass"]
    said += [f"NOT RUN here: {', '.join(others)}"] if others else []
    return "; ".join(said)


def _described(facts: Facts) -> str:
    headings = facts.looked.headings
    if headings in (OLD, NEW):
        return f"the template's sections: {', '.join(headings)}"
    return f"the template has OTHER SECTIONS, move the text: {', '.join(headings) or 'none'}"


def _signed(facts: Facts) -> str:
    """The author of each commit is that of its mail."""
    authors = dict.fromkeys(mail.author for mail in facts.mails)
    unsigned = [m for m in facts.mails if m.author not in m.trailers.get("Signed-off-by", [])]
    said = "NOT SIGNED OFF by the author" if unsigned else "signed off by the author"
    return f"DCO: {said}, {', '.join(authors)}; sign-off by the person who sends it: {OPEN}"


def _duplicates(facts: Facts) -> str:
    said = [f"STOP: {why}" for why in not_to_be_sent(facts.mails)]
    if pulls := open_pulls(facts.mails):
        said.append(f"OPEN, to be read first, stop if it is the same: {', '.join(pulls)}")
    return "; ".join([*said, f"the searches in the text: {OPEN}"])
