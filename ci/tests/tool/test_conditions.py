# SPDX-License-Identifier: Apache-2.0
"""The conditions of `Drop-When:`: their grammar, and what they say about a tree."""

from pathlib import Path

import pytest

from series.conditions import Tree, parse, version_key
from series.errors import Exit, SeriesError

SOURCE = '''
import os.path as where
from x import taken
import a.b
try:
    import fast
except ImportError:
    fast = None
if TYPE_CHECKING:
    Hint = int
else:
    from y import Other
one, (two, *three) = values
typed: int
squares = [inner for inner in values]
call(lambda: (hidden := 1))
for loop in values:
    pass
with open(one) as opened:
    pass


class Outer(Base):
    """Docstring of no_such."""

    field: int
    size = 3
    if size:
        def below_if(self): ...

    def method(me, plain, /, both, *args, only=1, **extra):
        local = 1
        me.put = local
        other.not_ours = 1
        def nested(deep): ...

    class Inner:
        async def wait(self, until): ...


def twice(old): ...
def twice(new): ...
'''


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/m.py").write_text(SOURCE)
    (tmp_path / "pkg/data.txt").write_bytes(b"first\n  second line\n\xff third\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text("")
    return Tree(tmp_path, "0.20.0")


def holds(tree: Tree, line: str) -> bool | None:
    return tree.holds(parse(line))


DEFINED = """
where taken a fast Hint Other one two three typed squares loop opened Outer twice Outer.field
Outer.size Outer.below_if Outer.method Outer.put Outer.Inner.wait Outer.method(plain)
Outer.method(both) Outer.method(args) Outer.method(only) Outer.method(extra)
Outer.Inner.wait(until) twice(old) twice(new)
"""
MENTIONED = """
inner hidden os b values Base no_such local nested Outer.local Outer.nested Outer.not_ours
Outer.method(local) Outer.method(deep) Outer.method(size) Outer(field) Inner taken.x
Outer.Inner.field twice(none)
"""


@pytest.mark.parametrize("name", DEFINED.split())
def test_names_that_a_file_defines(tree: Tree, name: str) -> None:
    assert holds(tree, f"symbol pkg/m.py:{name}") is True
    assert holds(tree, f"not symbol pkg/m.py:{name}") is False


@pytest.mark.parametrize("name", MENTIONED.split())
def test_names_that_a_file_only_mentions(tree: Tree, name: str) -> None:
    assert holds(tree, f"symbol pkg/m.py:{name}") is False
    assert holds(tree, f"not symbol pkg/m.py:{name}") is True


def test_text_is_searched_line_by_line_in_the_whole_file(tree: Tree) -> None:
    assert holds(tree, r"text pkg/data.txt: ^\s+second: ?") is False
    assert holds(tree, r"text pkg/data.txt: ^\s+second line$") is True
    assert holds(tree, r"text pkg/data.txt: first\n +second") is True
    assert holds(tree, r"text pkg/data.txt: third") is True
    assert holds(tree, r"not text pkg/data.txt: third") is False


@pytest.mark.parametrize("line", ["text no.txt: x", "symbol no.py:x", "test tests/no.py::x"])
def test_a_missing_file_makes_a_condition_false(tree: Tree, line: str) -> None:
    assert holds(tree, line) is False
    assert holds(tree, f"not {line}") is True


@pytest.mark.parametrize(
    ("version", "least", "expected"),
    [
        ("0.20.0", "0.20.0", True),
        ("0.20", "0.20.0", True),
        ("0.9.2", "0.20.0", False),
        ("0.20.1.dev3+gabc", "0.20.0", True),
        ("0.20.0rc1", "0.20.0", False),
        ("v0.20.0.dev1", "0.20.0", False),
        ("0.20.0.post1", "0.20.0", True),
        ("1.0", "0.20.0", True),
    ],
)
def test_versions(version: str, least: str, expected: bool, tmp_path: Path) -> None:
    tree = Tree(tmp_path, version)
    assert holds(tree, f"version >= {least}") is expected
    assert holds(tree, f"not version >= {least}") is not expected


def test_a_version_that_is_none() -> None:
    with pytest.raises(SeriesError) as caught:
        version_key("main")
    assert caught.value.code == Exit.USAGE


def test_a_test_is_known_only_if_it_is_run(tree: Tree) -> None:
    for line in ("test tests/test_x.py::one", "not test tests/test_x.py"):
        assert holds(tree, line) is None
    asked: list[str] = []

    def run(node: str) -> bool:
        asked.append(node)
        return node.endswith("one")

    runner = Tree(tree.folder, "1", run)
    assert holds(runner, "test tests/test_x.py::one") is True
    assert holds(runner, "not test tests/test_x.py") is True
    assert asked == ["tests/test_x.py::one", "tests/test_x.py"]


def test_conditions_together_have_three_values(tree: Tree) -> None:
    yes, no, unknown = (
        parse(line) for line in ("version >= 0.1", "version >= 9", "test tests/test_x.py")
    )
    assert tree.all_hold([yes, yes]) is True
    assert tree.all_hold([yes, unknown]) is None
    assert tree.all_hold([unknown, no]) is False


@pytest.mark.parametrize(
    "line",
    [
        "upstream has it",
        "vllm >= 0.20.0",
        "version > 0.20.0",
        "version >= 0.20.0rc1",
        "symbol pkg/m.py",
        "symbol pkg/m.txt:x",
        "symbol pkg/m.py:x.y(z",
        "symbol pkg/m.py:1x",
        "symbol /pkg/m.py:x",
        "text pkg/m.py:x",
        "text pkg/m.py: ",
        "text pkg/m.py: (",
        "text ../m.py: x",
        "test pkg/m.py::x",
        "not not version >= 1",
        "",
    ],
)
def test_what_is_no_condition(line: str) -> None:
    with pytest.raises(ValueError, match=r"^(write|name|correct) "):
        parse(line)


def test_source_that_this_python_cannot_read(tree: Tree) -> None:
    (tree.folder / "bad.py").write_text("def (:\n")
    with pytest.raises(SeriesError, match=r"bad\.py of 0\.20\.0 cannot be read as Python"):
        holds(tree, "symbol bad.py:x")
    assert holds(tree, "text bad.py: def") is True
