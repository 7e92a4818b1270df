# SPDX-License-Identifier: Apache-2.0
"""The documents: the commands and error messages that they name exist."""

import ast
import functools
import re
import subprocess
from pathlib import Path

import pytest

from series import cli

REPO = Path(__file__).resolve().parents[3]
PAGES = subprocess.run(
    ["git", "ls-files", "*.md"], cwd=REPO, capture_output=True, text=True, check=True
).stdout.split()
GAP = "…"


@pytest.mark.parametrize("page", sorted({*PAGES} - {"CHANGELOG.md"}))
def test_commands_exist(page: str) -> None:
    """Targets of make and verbs of the command line, in blocks of code and between backquotes."""
    text = (REPO / page).read_text()
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), re.M))
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, re.M | re.S)
    for line in [*"\n".join(blocks).splitlines(), *re.findall(r"`([^`\n]+)`", text)]:
        for words in re.findall(r"(?:^|&& |; )make((?: +[\w.=/-]+)+)", line.partition("#")[0]):
            assert {word for word in words.split() if "=" not in word} <= targets, line
        for verb in re.findall(r"(?:^|-m )series ([a-z][a-z-]+)", line):
            assert verb in cli.VERBS, line


@functools.cache
def messages() -> list[str]:
    """Texts of the tool; what is filled in at run time is a gap."""
    found = []
    for file in [*(REPO / "scripts/series").glob("*.py"), *(REPO / "scripts/proof").glob("*.py")]:
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
        parts = [re.escape(part.strip()) for part in error.split(GAP) if part.strip(" ,")]
        pattern = re.compile(".*".join(parts))
        assert any(map(pattern.search, messages())), error
