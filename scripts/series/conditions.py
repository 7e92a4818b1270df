# SPDX-License-Identifier: Apache-2.0
"""The conditions of `Drop-When:`, and whether they hold on a tree of upstream's source.

The grammar is in docs/maintain/patch-format.md#trailer-drop-when. An answer is True, False, or
None where only a test that was not run could tell.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .errors import Exit

_PATH = r"(?P<path>[\w.+-]+(?:/[\w.+-]+)*)"
_NAME = r"(?P<what>[^\W\d]\w*(?:\.[^\W\d]\w*)*(?:\([^\W\d]\w*\))?)"
_KINDS = {
    "version": re.compile(r">= (?P<what>\d+(?:\.\d+)*)"),
    "symbol": re.compile(rf"{_PATH}(?<=\.py):{_NAME}"),
    "text": re.compile(rf"{_PATH}: (?P<what>\S.*)"),
    "test": re.compile(r"(?P<path>tests/[\w./-]+\.py)(?P<what>(?:::\S+)?)"),
}
# A file, and lines of it, in a sentence; no part of an address.
_CITED = re.compile(
    r"(?<![\w./:-])(\w[\w./-]*\.(?:py|md|txt|toml|ya?ml|json|cuh?|cpp|h)(?![\w/]))"
    r"(?::(\d+(?:-\d+)?(?:, \d+(?:-\d+)?)*))?"
)


class Condition(NamedTuple):
    """One line of `Drop-When:`, taken apart."""

    said: str
    negated: bool
    kind: str
    path: str
    what: str  # the version, the name, the regular expression or the node in the file

    def short(self) -> str:
        """For a cell of a table: the last two parts of the path, and no long expression."""
        file = "/".join(self.path.split("/")[-2:])
        if self.kind == "version":
            return f"{'not ' * self.negated}version >= {self.what}"
        if self.kind == "test":
            return f"{file}{self.what} {'fails' if self.negated else 'passes'}"
        if len(self.what) > 45:
            return f"a text {'gone from' if self.negated else 'new in'} {file}"
        fence = "`` " if "`" in self.what else "`"
        return f"{'no ' * self.negated}{fence}{self.what}{fence[::-1]} in {file}"


def parse(line: str) -> Condition:
    """The condition that a line states; a ValueError that says what to write."""
    negated, rest = line.startswith("not "), line.removeprefix("not ")
    kind, _, value = rest.partition(" ")
    match = _KINDS[kind].fullmatch(value) if kind in _KINDS else None
    if match is None:
        raise ValueError(
            f"write `{line}` as `version >= X`, `symbol PATH.py:NAME`, `text PATH: REGEX` or"
            " `test tests/FILE.py::NODE`"
        )
    found = match.groupdict()
    if ".." in found.get("path", "").split("/"):
        raise ValueError(f"name a path inside the source in `{line}`")
    if kind == "text":
        try:
            re.compile(found["what"])
        except re.error as error:
            raise ValueError(f"correct the regular expression of `{line}`: {error}") from None
    return Condition(line, negated, kind, found.get("path", ""), found["what"])


def version_key(version: str) -> tuple[tuple[int, ...], bool]:
    """Sorts versions; one before its release (a, b, rc, dev) stands below it."""
    match = re.match(r"v?(\d+(?:\.\d+)*)(?:[.-]?(a|b|rc|dev))?", version)
    if match is None:
        raise Exit.USAGE(f"{version!r} is no version", "write it like 0.20.0")
    numbers = [int(number) for number in match[1].split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), match[2] is None


class Tree:
    """Upstream's source in a folder, and its version.

    `run_test` answers whether a test (`tests/x.py::node`) passes there; without it, no test is run.
    """

    def __init__(
        self, folder: Path, version: str, run_test: Callable[[str], bool] | None = None
    ) -> None:
        self.folder, self.version, self.run_test = folder, version, run_test
        self._modules: dict[str, ast.Module] = {}

    def missing(self, text: str) -> list[str]:
        """What a text names of this source that is not there: `FILE`, `FILE:LINE, FIRST-LAST`.

        A file may be named by the end of its path; one of several such files has to do.
        """
        wrong = []
        for name, said in _CITED.findall(text):
            sizes = [self._lines(path) for path in self.files if f"/{path}".endswith(f"/{name}")]
            lines = [int(number) for number in re.findall(r"\d+", said)]
            if not sizes:
                wrong.append(f"{self.version} has no {name}")
            elif lines and not any(min(lines) >= 1 and max(lines) <= size for size in sizes):
                wrong.append(f"{name} of {self.version} has {max(sizes)} lines, not {said}")
        return wrong

    @functools.cached_property
    def files(self) -> list[str]:
        """Every file's path in the folder."""
        every = (path for path in self.folder.rglob("*") if path.is_file())
        return [path.relative_to(self.folder).as_posix() for path in every]

    def _lines(self, path: str) -> int:
        return len((self.folder / path).read_bytes().splitlines())

    def all_hold(self, conditions: Iterable[Condition]) -> bool | None:
        """Whether all of them hold."""
        found = [self.holds(condition) for condition in conditions]
        if False in found:
            return False
        return None if None in found else True

    def holds(self, condition: Condition) -> bool | None:
        """Whether one condition holds; without its `not`, one on a missing file is false."""
        if condition.kind == "version":
            found: bool | None = version_key(self.version) >= version_key(condition.what)
        elif not (self.folder / condition.path).is_file():
            found = False
        elif condition.kind == "symbol":
            found = has_name(self._module(condition.path), condition.what)
        elif condition.kind == "text":
            text = (self.folder / condition.path).read_text(encoding="utf-8", errors="replace")
            found = re.search(condition.what, text, re.M) is not None
        else:
            node = condition.path + condition.what
            found = self.run_test(node) if self.run_test is not None else None
        return found if found is None else found != condition.negated

    def _module(self, path: str) -> ast.Module:
        if path not in self._modules:
            try:
                self._modules[path] = ast.parse((self.folder / path).read_bytes())
            except (SyntaxError, ValueError) as error:
                raise Exit.FAILED(
                    f"{path} of {self.version} cannot be read as Python: {error}",
                    "use a newer Python for PYTHON=, or a `text` condition",
                ) from error
        return self._modules[path]


def has_name(module: ast.Module, name: str) -> bool:
    """Whether a module defines `name`, `Class.member`, or `function(argument)`."""
    dotted, _, argument = name.removesuffix(")").partition("(")
    nodes: list[ast.AST] = [module]
    for part in dotted.split("."):
        nodes = [child for node in nodes for found, child in members(node) if found == part]
    if argument:
        return any(argument in _arguments(node) for node in nodes)
    return bool(nodes)


def members(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names in a module or class, with what defines them; others have no members."""
    if not isinstance(node, (ast.Module, ast.ClassDef)):
        return
    for statement in node.body:
        yield from _bound(statement)
        # What a method sets on its first argument is an attribute of the class too.
        if isinstance(node, ast.ClassDef) and isinstance(statement, FUNCTION):
            own = _arguments(statement)[:1]
            for child in ast.walk(statement):
                match child:
                    case ast.Attribute(ctx=ast.Store(), value=ast.Name(id=name)) if name in own:
                        yield child.attr, child


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
_OWN_SCOPE = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _bound(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """The names that a statement binds where it stands, also below `if`, `try`, `with`."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        yield node.name, node
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        for alias in node.names:
            yield alias.asname or alias.name.partition(".")[0], node
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id, node
    elif not isinstance(node, _OWN_SCOPE):
        for child in ast.iter_child_nodes(node):
            yield from _bound(child)


def _arguments(node: ast.AST) -> list[str]:
    if not isinstance(node, FUNCTION):
        return []
    given = node.args
    rest = [one for one in (given.vararg, given.kwarg) if one is not None]
    return [one.arg for one in (*given.posonlyargs, *given.args, *given.kwonlyargs, *rest)]
