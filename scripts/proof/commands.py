# SPDX-License-Identifier: Apache-2.0
"""The commands in the documents' code blocks: what the tests run, parse or look up.

A block without a language, or with one of SHELL, is for a shell; every other kind names its
language. `<what to put here>` is one word, and a line that begins with `…` is for the reader.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from series.config import ROOT

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "docs/**/*.md")
SHELL = ("", "sh", "bash", "console")
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")


@dataclass(frozen=True)
class Block:
    """A code block; `text` as bash takes it if it is for a shell."""

    page: str
    language: str
    text: str

    @property
    def for_shell(self) -> bool:
        return self.language in SHELL


@dataclass(frozen=True)
class Line:
    """One command: what is between the ends of lines, `&&`, `;` and pipes."""

    page: str
    words: tuple[str, ...]

    @property
    def text(self) -> str:
        return shlex.join(self.words)

    @property
    def bare(self) -> tuple[str, ...]:
        """Without the variables in front."""
        first = next((i for i, w in enumerate(self.words) if not ASSIGNMENT.match(w)), None)
        return () if first is None else self.words[first:]


def blocks() -> Iterator[Block]:
    """Every code block of the documents."""
    for pattern in DOCUMENTS:
        for file in sorted(ROOT.glob(pattern)):
            page = str(file.relative_to(ROOT))
            for _, language, text in BLOCK.findall(file.read_text(encoding="utf-8")):
                if language in SHELL:
                    text = re.sub(r"(?<![\"'])<[a-z][^<>\n]*>", "WORD", text)
                    text = re.sub(r"^…", ": ", text, flags=re.MULTILINE)
                yield Block(page, language, text)


def split(block: Block) -> list[Line]:
    """The commands of a block for a shell."""
    text = re.sub(r"(^|[ \t])#.*", r"\1", block.text, flags=re.MULTILINE).replace("\\\n", " ")
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    found: list[list[str]] = [[]]
    for word in lexer:
        if word.strip("&|;\n"):
            found[-1].append(word)
        else:
            found.append([])
    return [Line(block.page, tuple(words)) for words in found if words and words[0] != ":"]


def lines() -> list[Line]:
    """Every command of the documents, once a page."""
    found = [line for block in blocks() if block.for_shell for line in split(block)]
    return list(dict.fromkeys(found))


def of(*program: str) -> list[Line]:
    """The commands that begin with these words."""
    return [line for line in lines() if line.bare[: len(program)] == program]


def file_of(test: str) -> Path:
    """The file of a test, or of a recorded run."""
    return ROOT / test.partition("::")[0]
