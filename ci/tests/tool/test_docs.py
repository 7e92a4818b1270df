# SPDX-License-Identifier: Apache-2.0
"""The documents: the commands and error messages that they name exist."""

import ast
import functools
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from series import cli, patches
from series.config import Base

REPO = Path(__file__).resolve().parents[3]
PAGES = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=True
).stdout.split()
GAP = "…"
CLIENTS = REPO / "docs/evidence/clients.md"
NODE = re.compile(r"`((?:ci/)?tests/[\w./-]+\.py)::(test_\w+)`")
TEST = re.compile(r"^([+-]) *(?:async )?def (test_\w+)", re.M)


@pytest.mark.parametrize("page", sorted({*PAGES} - {"CHANGELOG.md"}))
def test_commands_exist(page: str) -> None:
    """Targets of make, verbs of the command line and modules that are run, in code."""
    text = (REPO / page).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.M))
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    for line in [*"\n".join(blocks).splitlines(), *re.findall(r"`([^`\n]+)`", text)]:
        for words in re.findall(r"(?:^|&& |; )make((?: +[\w.=/-]+)+)", line.partition("#")[0]):
            assert {word for word in words.split() if "=" not in word} <= targets, line
        for verb in re.findall(r"(?:^|-m )series ([a-z][a-z-]+)", line):
            assert verb in cli.VERBS, line
        for module in re.findall(r"-m ((?:bench|proof|tiny)\.\w+)", line):
            program = REPO / "scripts" / f"{module.replace('.', '/')}.py"
            assert 'if __name__ == "__main__":' in program.read_text(), line


def test_the_variables_are_those_of_the_makefile() -> None:
    makefile = (REPO / "Makefile").read_text()
    used = set(re.findall(r"\$\(([A-Z_]{3,})\)", makefile)) | set(
        re.findall(r"\$\(call given,([A-Z_]+)", makefile)
    )
    used -= {"SERIES", "SERVE", "MAKE", "COMMON", "FETCH", "BUILD", "CURDIR", "BASES", "CHECKED"}
    page = (REPO / "docs/maintain/workflow.md").read_text().split("## Variables")[1]
    rows = re.findall(r"^\| (`.*?) \|", page.split("\n## ")[0], re.M)
    assert set(re.findall(r"`(\w+)`", " ".join(rows))) == used
    listed = re.search(r'"variables: ([\s\S]*?) \(see', makefile)
    assert listed and set(re.findall(r"[A-Z_]{3,}", listed[1])) == used
    kept = re.search(r"in `build/config.mk`: by (.*?), and by `make\s+configure`", page, re.S)
    assert kept and {*re.findall(r"`([\w-]+)`", kept[1]), "configure"} == {*cli.KEEP}


@functools.cache
def messages() -> list[str]:
    """Texts of the tool; what is filled in at run time is a gap."""
    found = []
    folders = ("series", "proof", "use")
    for file in [f for name in folders for f in (REPO / "scripts" / name).glob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else GAP for p in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_error_messages_exist() -> None:
    page = (REPO / "docs/use/troubleshooting.md").read_text().split("## Serve")[0]
    errors = re.findall(r"^\| `(.*?)` \| \d+ \|", page, re.M)
    assert len(errors) > 20
    for error in errors:
        # What to do next is a text of its own.
        for half in error.split("; "):
            parts = [re.escape(part.strip()) for part in half.split(GAP) if part.strip(" ,")]
            pattern = re.compile(".*".join(parts))
            assert any(map(pattern.search, messages())), error


def test_every_error_of_flags_is_on_the_page() -> None:
    page = (REPO / "docs/use/troubleshooting.md").read_text().split("## Serve")[0]
    rows = [row.split("; ")[0] for row in re.findall(r"^\| `(.*?)` \| \d+ \|", page, re.M)]
    listed = [".*".join(map(re.escape, row.split(GAP))) for row in rows if row.strip(f"{GAP} ")]
    texts = [text for text in messages() if text.startswith("FLAGS: ")]
    assert len(texts) >= 5
    for text in texts:
        assert any(re.match(one, text) for one in listed), text


def test_messages_of_the_series_are_in_its_patches() -> None:
    page = (REPO / "docs/use/troubleshooting.md").read_text()
    _, _, section = page.partition("What the series says of a request")
    errors = re.findall(r"^\| `(.*?)` \|", section.partition("What vLLM itself")[0], re.M)
    assert len(errors) > 10
    base = Base.load("v0.19.1", REPO)
    added = [
        line[1:]
        for content in patches.read(base).values()
        for line in content.decode().splitlines()
        if line.startswith("+")
    ]
    text = re.sub(r"\"\s*\n[\s+(]*f?\"", "", "\n".join(added))
    for error in errors:
        parts = [re.escape(part.strip()) for part in error.split(GAP) if part.strip(" .")]
        assert re.search(".*".join(parts), text), error


def patch_tests(contents: Iterable[str]) -> set[tuple[str, str]]:
    """File and name of each test that is there after these patches and which they added."""
    found: set[tuple[str, str]] = set()
    for content in contents:
        for diff in content.split("\ndiff --git ")[1:]:
            file = re.search(r"^\+\+\+ b/(\S+)$", diff, re.M)
            old = re.search(r"^--- a/(\S+)$", diff, re.M)
            named = {"+": set[str](), "-": set[str]()}
            for sign, test in TEST.findall(diff):
                named[sign].add(test)
            if old:
                found -= {(old[1], test) for test in named["-"]}
            if file:
                found |= {(file[1], test) for test in named["+"]}
    return found


def own_tests(file: str) -> set[str]:
    tree = ast.parse((REPO / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_tests_of_patches_are_those_of_the_last() -> None:
    def diff(old: str, new: str, *lines: str) -> str:
        return "\n".join(["", f"diff --git {old} {new}", f"--- {old}", f"+++ {new}", *lines])

    first = diff("/dev/null", "b/a.py", "+def test_kept():", "+    async def test_gone():")
    second = diff("a/a.py", "b/a.py", "-    async def test_gone():", " def test_before():")
    moved = diff("a/a.py", "b/a.py", "+def test_kept():", "-def test_kept():")
    removed = diff("a/a.py", "/dev/null", "-def test_kept():")
    assert patch_tests([first + second, moved]) == {("a.py", "test_kept")}
    assert patch_tests([first, second, removed]) == set()


def test_tests_of_the_page_of_faults_exist() -> None:
    page = CLIENTS.read_text()
    named = NODE.findall(page)
    assert len(named) == page.count("::") > 60
    base = Base.load("v0.19.1", REPO)
    there = patch_tests(content.decode() for content in patches.read(base).values())
    wrong = [
        f"{file}::{test}"
        for file, test in named
        if not (test in own_tests(file) if file.startswith("ci/") else (file, test) in there)
    ]
    assert not wrong, wrong
