# SPDX-License-Identifier: Apache-2.0
"""The text that two bases have in common."""

import pytest

from proof import pages, shared_text
from series.config import Base
from series.errors import Exit, SeriesError


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


def test_less_than_the_least_share_is_refused() -> None:
    rows = [("good", 10, 10), ("bad", 10, 5), ("small", 4, 3)]
    shared_text.check(rows, "all", least=75)
    with pytest.raises(SeriesError) as error:
        shared_text.check(rows, "all", least=76)
    assert error.value.code == Exit.FAILED
    assert "18 of 24 (75.0 %)" in error.value.what
    assert "missing in bad (5), small (1), good (0)" in error.value.what
    assert shared_text.DIFF in error.value.hint


@pytest.mark.parametrize("which", shared_text.LEAST)
def test_a_page_is_not_written_below_a_least_share(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(shared_text.LEAST, which, 100)
    with pytest.raises(SeriesError, match=rf"\({which}\) share .* less than 100 %"):
        pages.block("shared-text")


def test_the_models_patches_are_those_of_its_sections() -> None:
    rows = [("input-checks", 3, 2), ("eagle3-hidden-states", 2, 1), ("uuids-by-content", 1, 1)]
    assert shared_text.of_the_model(Base.load("v0.33.0"), rows) == rows[:2]


def test_differences_are_of_the_patches_on_both() -> None:
    old = {"p": {"a.py": ["x = 1", "y = 2"], "b.py": ["z"]}, "q": {"a.py": ["q"]}}
    new = {"p": {"moved.py": ["x = 1", "y = 3"]}, "r": {"a.py": ["r"]}}
    assert shared_text.differences(old, new) == [
        "--- p: a.py",
        "+++ p: moved.py",
        "@@ -1,2 +1,2 @@",
        " x = 1",
        "-y = 2",
        "+y = 3",
    ]
