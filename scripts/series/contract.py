# SPDX-License-Identifier: Apache-2.0
"""What the code of a patch relies on in upstream, and whether another tree still has it.

A patch can apply without a conflict and yet call what is gone. Its contract is read from its
syntax tree: names that it imports or takes from the file that it edits, what it overrides or calls
on classes that it derives from, and what `ci/contract.toml` adds. Each is looked up in the base
(its own files have no say) and then in the other tree.
"""

import ast
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .conditions import FUNCTION, members
from .config import ROOT, Base, parse_toml, reading
from .errors import Exit

Read = Callable[[str], bytes | None]  # the bytes of a file of a tree
FILE = ROOT / "ci/contract.toml"


class Use(NamedTuple):
    """What a patch relies on."""

    path: str
    name: str  # `function`, `Class`, `Class.member`
    how: str = "uses"  # or `overrides`, `inherits`, `lists`
    elements: tuple[str, ...] = ()  # for `lists`


class Source:
    """The modules of a tree."""

    def __init__(self, read: Read) -> None:
        self.read = functools.cache(read)
        self.module = functools.cache(self._module)
        self.find = functools.cache(self._find)

    def _module(self, path: str) -> ast.Module | None:
        data = self.read(path)
        if data is None:
            return None
        try:
            return ast.parse(data)
        except (SyntaxError, ValueError):
            return None

    def file_of(self, module: str) -> str:
        """The file of a dotted module; empty if the tree has none."""
        stem = module.replace(".", "/")
        paths = (f"{stem}.py", f"{stem}/__init__.py")
        return next((path for path in paths if self.read(path) is not None), "")

    def _find(self, path: str, name: str, depth: int = 8) -> tuple[str, ast.AST] | None:
        """Where a name is defined, through imports and base classes, and by what."""
        module = self.module(path)
        first, _, member = name.partition(".")
        found = [node for bound, node in members(module) if bound == first] if module else []
        if not found or depth == 0:
            return None
        node: ast.AST = found[-1]
        if isinstance(node, ast.ImportFrom):
            where = self.imported(path, node, first)
            if where is None:
                return (path, node) if not member else None
            if not where[1]:
                return (where[0], node) if not member else self._find(where[0], member, depth - 1)
            original = f"{where[1]}.{member}" if member else where[1]
            return self._find(where[0], original, depth - 1)
        if not member:
            return path, node
        if not isinstance(node, ast.ClassDef):
            return None
        inner = [child for bound, child in members(node) if bound == member]
        if inner:
            return path, inner[-1]
        for base in parents(node):
            inherited = self._find(path, f"{base}.{member}", depth - 1)
            if inherited:
                return inherited
        return None

    def imported(self, path: str, node: ast.ImportFrom, bound: str) -> tuple[str, str] | None:
        """The file and the name behind `from … import name as bound`; no name for a module."""
        package = path.removesuffix("/__init__.py").removesuffix(".py").split("/")
        up = node.level - path.endswith("/__init__.py")
        prefix = package[: len(package) - up] if node.level else []
        module = ".".join([*prefix, *filter(None, [node.module])])
        alias = next(a for a in node.names if (a.asname or a.name) == bound)
        inside = self.file_of(f"{module}.{alias.name}")
        here = self.file_of(module)
        if here and any(found == alias.name for found, _ in self.names(here)):
            return here, alias.name
        return (inside, "") if inside else None

    def names(self, path: str) -> list[tuple[str, ast.AST]]:
        module = self.module(path)
        return list(members(module)) if module else []

    def lineage(self, path: str, name: str, depth: int = 8) -> set[str]:
        """The names of all classes that a class derives from."""
        found = self.find(path, name)
        if found is None or not isinstance(found[1], ast.ClassDef) or not depth:
            return set()
        direct = parents(found[1])
        return set(direct).union(*(self.lineage(found[0], one, depth - 1) for one in direct))


def parents(node: ast.ClassDef) -> list[str]:
    """The base classes that are plain names, without their `[parameters]`."""
    bare = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
    return [base.id for base in bare if isinstance(base, ast.Name)]


# ---- what a patch uses ----


def added_lines(diff: str) -> dict[str, set[int] | None]:
    """The numbers of the lines that a diff adds to each file; None for a new file."""
    found: dict[str, set[int] | None] = {}
    for part in re.split(r"^diff --git ", diff, flags=re.M)[1:]:
        top, *hunks = re.split(r"^@@ ", part, flags=re.M)
        path = re.sub(r"^.* \"?b/(.*?)\"?$", r"\1", top.split("\n", 1)[0])
        lines: set[int] = set()
        for hunk in hunks:
            head, *body = hunk.split("\n")
            number = int(re.match(r"-\S+ \+(\d+)", head)[1])  # type: ignore[index]
            for line in body:
                if line.startswith("+"):
                    lines.add(number)
                number += not line.startswith(("-", "\\"))
        found[path] = None if "\nnew file mode" in top else lines
    return found


def uses(source: Source, path: str, text: bytes, lines: set[int] | None) -> Iterator[Use]:
    """What the given lines of a patched file use of the source; all lines if None."""
    module = ast.parse(text)
    names: dict[str, tuple[str, str]] = {}
    for bound, node in members(module):
        found = source.imported(path, node, bound) if isinstance(node, ast.ImportFrom) else None
        if found:
            names[bound] = found
        elif not isinstance(node, (ast.Import, ast.ImportFrom)) and source.find(path, bound):
            names[bound] = (path, bound)
    for node in ast.walk(module):
        mine = lines is None or getattr(node, "lineno", 0) in lines
        if isinstance(node, ast.ImportFrom) and mine:
            for alias in node.names:
                found = source.imported(path, node, alias.asname or alias.name)
                if found and found[1]:
                    yield Use(*found)
        elif isinstance(node, ast.Name) and mine and names.get(node.id, ("", ""))[1]:
            yield Use(*names[node.id])
        elif isinstance(node, ast.Attribute) and mine and isinstance(node.value, ast.Name):
            where, name = names.get(node.value.id, ("", ""))
            full = f"{name}.{node.attr}" if name else node.attr
            if where and source.find(where, full):
                yield Use(where, full)
        elif isinstance(node, ast.ClassDef):
            yield from _of_class(source, path, node, names, lines)


def _of_class(
    source: Source,
    path: str,
    node: ast.ClassDef,
    names: dict[str, tuple[str, str]],
    lines: set[int] | None,
) -> Iterator[Use]:
    """What a class overrides, and what its methods take from `self` and `super()`."""
    above = [names[base] for base in parents(node) if names.get(base, ("", ""))[1]]
    known = [*([(path, node.name)] if source.find(path, node.name) else []), *above]
    if lines is None or node.lineno in lines:
        yield from (Use(*base, "inherits") for base in above)
    for method in node.body:
        new = lines is None or getattr(method, "lineno", 0) in lines
        if isinstance(method, FUNCTION) and new and method.name != "__init__":
            for where, name in above:
                if source.find(where, f"{name}.{method.name}"):
                    yield Use(where, f"{name}.{method.name}", "overrides")
                    break
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and (lines is None or child.lineno in lines):
            match child.value:
                case ast.Name(id="self") | ast.Call(func=ast.Name(id="super")):
                    for where, name in known:
                        if source.find(where, f"{name}.{child.attr}"):
                            yield Use(where, f"{name}.{child.attr}")
                            break


def written(base: Base) -> dict[str, list[Use]]:
    """What `ci/contract.toml` adds for each patch of a base."""
    if not FILE.is_file():
        return {}
    with reading(FILE, "its head says what it holds"):
        tables = parse_toml(FILE.read_text(encoding="utf-8")).get(base.name, {})
        found = {}
        for patch, table in tables.items():
            found[patch] = [Use(*_place(one)) for one in table.get("symbols", [])]
            for one, elements in table.get("lists", {}).items():
                found[patch].append(Use(*_place(one), "lists", tuple(elements)))
    return found


def _place(text: str) -> tuple[str, str]:
    path, _, name = text.partition(":")
    return path, name


# ---- whether a tree keeps it ----


def broken(old: Source, new: Source, wanted: Iterable[Use]) -> list[str]:
    """What the new tree no longer has of what the patches use of the old one."""
    return list(dict.fromkeys(said for use in wanted for said in _broken(old, new, use)))


def require_base(old: Source, wanted: Iterable[Use]) -> None:
    """Raise unless the base itself has what `ci/contract.toml` names."""
    for use in wanted:
        wrong = _broken(old, old, use)
        if wrong or old.find(use.path, use.name) is None:
            raise Exit.FAILED(
                f"ci/contract.toml: the base has no {use.path}:{use.name} ({''.join(wrong)})",
                "correct or remove the entry",
            )


def _broken(old: Source, new: Source, use: Use) -> list[str]:
    where = f"{use.path}:{use.name}"
    before, after = old.find(use.path, use.name), new.find(use.path, use.name)
    if before is None:
        return []
    if after is None:
        return [f"{where} is gone" if new.module(use.path) else f"{use.path} is gone"]
    said = []
    if use.how == "lists":
        held = constants(new.module(after[0]), use.name.rpartition(".")[2])
        said = [f"{where} no longer lists {one}" for one in use.elements if one not in held]
    elif use.how == "inherits":
        gone = old.lineage(use.path, use.name) - new.lineage(use.path, use.name)
        said = [f"{where} no longer derives from {one}" for one in sorted(gone)]
    one, two = signature(old, use, before), signature(new, use, after)
    if one and two:
        said += [f"{where} {what}" for what in changed(one, two, override=use.how == "overrides")]
    elif one and not isinstance(after[1], (ast.Import, ast.ImportFrom, *FUNCTION, ast.ClassDef)):
        said.append(f"{where} is no function any more")
    return said


def constants(module: ast.Module | None, name: str) -> set[object]:
    """The literals in what is assigned to a name."""
    found: set[object] = set()
    for node in ast.walk(module) if module else ():
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(one, ast.Name) and one.id == name for one in targets):
                found |= {n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant)}
    return found


class Signature(NamedTuple):
    """The parameters of a function, `self` left out."""

    positional: list[str]
    keyword: list[str]
    needed: set[str]
    rest: set[str]  # `*args` and `**kwargs`, as "*" and "**"


def signature(source: Source, use: Use, found: tuple[str, ast.AST]) -> Signature | None:
    """The parameters of a function, or of the constructor of a class."""
    path, node = found
    method = "." in use.name
    if isinstance(node, ast.ClassDef):
        constructor = source.find(path, f"{node.name}.__init__")
        if constructor is None:
            return None
        node, method = constructor[1], True
    if not isinstance(node, FUNCTION):
        return None
    given = node.args
    positional = [one.arg for one in (*given.posonlyargs, *given.args)]
    static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    needed = set(positional[: len(positional) - len(given.defaults)])
    pairs = zip(given.kwonlyargs, given.kw_defaults, strict=True)
    needed |= {one.arg for one, default in pairs if default is None}
    if method and not static and positional:
        needed.discard(positional.pop(0))
    keyword = [one.arg for one in given.kwonlyargs]
    rest = {"*"} if given.vararg else set()
    return Signature(positional, keyword, needed, rest | ({"**"} if given.kwarg else set()))


def changed(old: Signature, new: Signature, *, override: bool) -> list[str]:
    """What a caller of the old one, or a class that overrides it, has to know."""
    had, has = [*old.positional, *old.keyword], [*new.positional, *new.keyword]
    said = [f"no longer takes {n}" for n in had if n not in has and "**" not in new.rest]
    more = [n for n in has if n not in had and (override or n in new.needed)]
    said += [f"now {'wants' if n in new.needed else 'takes'} {n}" for n in more]
    said += [
        f"takes {n} by keyword alone"
        for n in old.positional
        if n in new.keyword and "*" not in new.rest
    ]
    kept = [n for n in old.positional if n in new.positional]
    moved = [n for n in kept if old.positional.index(n) != new.positional.index(n)]
    if moved and not any("no longer takes" in one for one in said):
        others = f" (and {len(moved) - 1} more)" if len(moved) > 1 else ""
        said.append(f"takes {moved[0]}{others} at another place")
    return said
