# SPDX-License-Identifier: Apache-2.0
"""`drafts` on a toy, with a program that writes what the test wants, and its page."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conftest import call
from proof import drafts, evidence
from series.errors import Exit, SeriesError
from toy import Toy, toy, warm

__all__ = ["toy", "warm"]

COLUMNS = [f"{kind}{k}" for kind in drafts.SCHEDULING.values() for k in drafts.COLUMNS]
NAMES = [f"{k} {thinking}" for k in COLUMNS for thinking in drafts.THINKING]


def make_row(**counts: int) -> dict[str, dict[str, int]]:
    """The same cell in all columns."""
    return {name: dict.fromkeys(drafts.VERDICTS, 0) | counts for name in NAMES}


@dataclasses.dataclass
class Program:
    """What tiny.drafts is to find, and its exit status."""

    toy: Toy
    rows: dict[str, Any]
    status: int = 0

    def work(self, argv: list[str], **options: Any) -> Any:
        assert argv[1:3] == ["-m", "tiny.drafts"]
        accepted = {k: [3, 4] for k in COLUMNS}
        accepted["async 2"] = [5, 9]
        outcome = {"requests": 7, "accepted": accepted, "rows": self.rows}
        Path(argv[argv.index("--out") + 1]).write_text(json.dumps(outcome))
        return SimpleNamespace(returncode=self.status)

    def run(self, *options: str) -> None:
        assert call("drafts", self.toy.base, self.toy.paths, *options) is Exit.OK

    def page(self) -> str:
        return drafts.page([self.toy.base])


@pytest.fixture
def program(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    rows = {"stop": make_row(same=2), "budget": make_row(refused=1)}
    one = Program(toy, {**rows, "streamed: stop": make_row(same=5)})
    monkeypatch.setattr(evidence, "DATA", tmp_path / "data")
    monkeypatch.setattr(drafts, "subprocess", SimpleNamespace(run=one.work))
    return one


def test_page(program: Program) -> None:
    program.run()
    page = program.page()
    assert f"tree `{evidence.tree_of(program.toy.base)[:12]}`" in page
    assert "Drafts accepted: 3 of 4 with 1 draft; 3 of 4 with 2 drafts; " in page
    assert "Drafts accepted: 3 of 4 with 1 draft; 5 of 9 with 2 drafts; " in page
    tables = [line for line in page.splitlines() if line.startswith("| ")]
    columns = len(drafts.COLUMNS)
    each = [
        f"| option | thinking | {' | '.join(drafts.COLUMNS.values())} |",
        f"| --- {'| --- ' * (columns + 1)}|",
        f"| stop | off {'| equal (2) ' * columns}|",
        f"| stop | on {'| equal (2) ' * columns}|",
        f"| budget | off {'| refused (1) ' * columns}|",
        f"| budget | on {'| refused (1) ' * columns}|",
        f"| option | thinking | {' | '.join(drafts.COLUMNS.values())} |",
        f"| --- {'| --- ' * (columns + 1)}|",
        f"| stop | off {'| equal (5) ' * columns}|",
        f"| stop | on {'| equal (5) ' * columns}|",
    ]
    assert tables == each * 2


def test_a_difference_is_wrong_and_not_kept(program: Program) -> None:
    program.status = 1
    with pytest.raises(SeriesError, match="drafts change an answer"):
        program.run()
    for scheduling in drafts.SCHEDULING:
        assert not drafts.data_file("v0.19.1", scheduling).exists()


def test_a_difference_is_seen() -> None:
    assert drafts.cell({"same": 3, "refused": 0, "different": 1}) == "**1 of 4 differ**"
    assert drafts.cell({"same": 3, "refused": 1, "different": 0}) == "equal (3), refused (1)"


@pytest.mark.parametrize("kind", drafts.SCHEDULING.values())
@pytest.mark.parametrize("name", ["stop", "streamed: stop"])
def test_no_cell_is_empty(program: Program, name: str, kind: str) -> None:
    program.run()
    program.rows[name][f"{kind}4 on"] = {"same": 0, "refused": 0, "different": 0}
    program.run()
    with pytest.raises(SeriesError, match="has an empty cell"):
        program.page()
    del program.rows[name][f"{kind}4 on"]
    program.run()
    with pytest.raises(SeriesError, match="has an empty cell"):
        program.page()


def test_a_selection_is_not_kept(program: Program) -> None:
    program.run("--", "--only", "stop")
    for scheduling in drafts.SCHEDULING:
        assert not drafts.data_file("v0.19.1", scheduling).exists()


def test_another_tree(program: Program) -> None:
    (program.toy.paths.tree / "vllm/more.py").write_text("edit\n")
    with pytest.raises(SeriesError, match="holds 1 changed or new files"):
        program.run()
