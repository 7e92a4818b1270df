# SPDX-License-Identifier: Apache-2.0
"""The text that two bases have in common."""

from proof import shared_text
from series.config import Base


def test_lines_are_shared_in_order_and_without_comments() -> None:
    assert shared_text.shared(["a", "b", "c"], ["x", "a", "c"]) == 2
    assert shared_text.shared(["a", "b"], ["b", "a"]) == 1
    text = ["# why", "import os", "", "    )", "x = 1  ", '    """What."""']
    assert shared_text.code(text) == ["x = 1"]


def test_a_patch_is_compared_with_that_of_its_name_whatever_its_files() -> None:
    old = {"p": {"a.py": ["x", "y"]}, "q": {"b.py": ["z"]}}
    new = {"p": {"moved.py": ["x", "n"]}, "r": {"b.py": ["z"]}}
    assert shared_text.of_patches(old, new) == [("p", 2, 1), ("r", 1, 0)]


def test_the_table_has_the_sums() -> None:
    old, new = (shared_text.added(Base.load(name)) for name in ("v0.19.1", "v0.33.0"))
    rows = [row for row in shared_text.of_patches(old, new) if row[0] in old]
    lines, same = (sum(column) for column in list(zip(*rows, strict=True))[1:])
    assert len(rows) >= 10 and 0 < same < lines
    said = f"| the {len(rows)} patches with one name on both bases | {same} of {lines} ("
    assert said in shared_text.table()
