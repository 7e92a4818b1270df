# SPDX-License-Identifier: Apache-2.0
"""Generated pages and tables: what is edited by hand, or has no run, does not pass."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import memory
from conftest import REPO, call, failing
from proof import (
    capabilities,
    clients,
    drafts,
    evidence,
    mutants,
    pages,
    plots,
    transformers_releases,
)
from series.config import Base, Paths
from series.errors import Exit, SeriesError

FIGURES = {
    "sitting": "2026-01-01",
    "card": "One Card",
    "how": "By hand.",
    "tables": {"speed": {"columns": ["engine", "tokens/s"], "rows": [["a", "1.5"], ["b", "2.5"]]}},
}
TABLE = """\
| engine | tokens/s |
| --- | --- |
| a | 1.5 |
| b | 2.5 |

One Card, 2026-01-01. By hand.
"""


class Documents:
    """A repository of documents and data: this one's pages, and a README of the test's own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "docs/evidence/data"
        self.readme = root / "README.md"

    def write(self, text: str, figures: Any = FIGURES) -> None:
        self.readme.write_text(text)
        (self.data / "run.json").write_text(json.dumps(figures))

    def run(self, *options: str) -> None:
        base = Base.load("v0.19.1", self.root)
        assert call("pages", base, Paths(self.root / "build", "v0.19.1"), *options) is Exit.OK

    def fails(self, *options: str) -> SeriesError:
        with failing(Exit.FAILED) as caught:
            self.run(*options)
        return caught.value


@pytest.fixture
def documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Documents:
    for folder in ("patches/v0.19.1", "ci"):
        shutil.copytree(
            REPO / folder, tmp_path / folder, ignore=shutil.ignore_patterns("tests", "*.patch")
        )
    one = Documents(tmp_path)
    one.data.mkdir(parents=True)
    load = Base.load
    monkeypatch.setattr(Base, "load", lambda name, root=tmp_path: load(name, root))
    monkeypatch.setattr(evidence, "DATA", one.data)
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    base = Base.load("v0.19.1")
    about = evidence.about(base, Paths(tmp_path / "build", base.name))
    listed = capabilities.read_list(capabilities.list_file(base))
    cases = {node: 2 for c in listed for node in c.tests}
    evidence.write(capabilities.data_file(base.name), {**about, "cases": cases})
    planted = [
        {"name": m.name, "by": "failure", "seconds": 2, "tree": about["tree"], "key": ""}
        for m in mutants.read_table(base.folder / "mutations.toml")
    ]
    evidence.write(mutants.data_file(base.name), {**about, "helpers": {}, "outcomes": planted})
    row: dict[str, Any] = {"requests": 5, "wrong": [], "distance": 0.0, "passed": 9, "skipped": []}
    found = [{"version": name, **row} for name in transformers_releases.releases(base)]
    given = {"reference": "5.17.0", "tokens": 48, "releases": found}
    evidence.write(transformers_releases.data_file(base.name), {**about, **given})
    names = [f"{k} {thinking}" for k in drafts.COLUMNS for thinking in drafts.THINKING]
    counts = {"same": 1, "refused": 0, "different": 0}
    asked = {"requests": 1, "accepted": {"1": [1, 2]}, "rows": {"n": dict.fromkeys(names, counts)}}
    for scheduling in drafts.SCHEDULING:
        evidence.write(drafts.data_file(base.name, scheduling), {**about, **asked})
    shutil.copy(REPO / "docs/evidence/data/v0.19.1/stress.json", one.data / "v0.19.1")
    served = {
        file: {test: [1, 1] for tests in rows.values() for test in tests}
        for file, rows in clients.CASES.items()
    }
    evidence.write(clients.data_file(base.name), {**about, "tests": served})
    one.write("")
    one.run()
    return one


@pytest.mark.parametrize("name", pages.PAGES)
def test_a_page_edited_by_hand(documents: Documents, name: str) -> None:
    documents.run("--check")
    page = documents.root / name
    page.write_text(page.read_text().replace("| works |", "| broken |") + "\n")
    assert f"{name}: not what the data gives" in documents.fails("--check").what
    documents.run()
    documents.run("--check")


def test_a_table_of_a_run(documents: Documents) -> None:
    text = "above\n<!-- generated: run/speed -->\n{}<!-- end -->\nbelow\n"
    documents.write(text.format("old\n"))
    assert "README.md: not what" in documents.fails("--check").what
    documents.run()
    assert documents.readme.read_text() == text.format(TABLE)
    documents.run("--check")
    # A figure changed by hand.
    documents.readme.write_text(text.format(TABLE.replace("2.5", "3.5")))
    assert "README.md: not what" in documents.fails("--check").what


def test_a_table_of_computed_memory(documents: Documents) -> None:
    documents.write("<!-- generated: memory/weights -->\n<!-- end -->\n")
    documents.run()
    assert memory.weight_table() in documents.readme.read_text()


def test_the_command_for_computed_memory_prints_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.memory"],
        env={**os.environ, "PYTHONPATH": str(REPO / "scripts")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{memory.weight_table()}\n\n{memory.kv_table()}\n"


@pytest.mark.parametrize(
    "text", ["| vLLM | 440.9 |\n", "| a | about 3.34 times |\n", "x\n\n| 1 | 59.1 tok/s | 2 |\n"]
)
def test_a_figure_without_its_run(documents: Documents, text: str) -> None:
    documents.write(text)
    assert "README.md has a figure without its run: |" in documents.fails("--check").what
    page = documents.root / "docs/evidence/new.md"
    documents.write("")
    page.write_text(text)
    assert "new.md has a figure without its run" in documents.fails().what


def test_what_is_no_figure(documents: Documents) -> None:
    documents.write("| vLLM 0.19.1 | `0.5` | v5.17.0 | 1e-5 | 99 |\n\nIt takes 3.5 minutes.\n")
    documents.run("--check")


@pytest.mark.parametrize("name", ["README.md", "docs/use/page.md", "docs/maintain/page.md"])
@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("It takes 5.0 ms a call.", "5.0 ms"),
        ("- fine\n- 20 % faster, see [why](faq.md#speed)\n", "20 %"),
        ("| a | 63 GiB |\n", "63 GiB"),
        ("Measured on 2026-11-25.\n\nIt writes 440\ntokens per second.", "440 tokens per second"),
        ("In `2026.py` it is 1,000 tokens/s.", "1,000 tokens/s"),
    ],
)
def test_prose_without_its_run(documents: Documents, name: str, text: str, figure: str) -> None:
    page = documents.root / name
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(f"# Title\n\n{text}\n")
    assert f"{name} says {figure!r} and not in which run" in documents.fails("--check").what
    page.write_text(f"# Title\n\nOn one card ([data](docs/evidence/data/run.json)):\n\n{text}\n")
    if "\n\n" not in text:
        documents.run("--check")


@pytest.mark.parametrize(
    "text",
    [
        "5.0 ms ([benchmarks](../evidence/benchmarks.md)).",
        "On 2026-11-25 it took 5.0 ms.",
        "`tests/v1/core/test_longest_prompt.py` allows 20 %.",
        "2.4 GiB (computed, `python3 -m bench.memory`).",
        "At least 99 % are right, at\nmost 1 % are not, as `--limit 5 ms` says.",
        "```\nran\n\ntook 5.0 ms\n```",
        "0.20.0 has 5 patches, 40 GB of disk and `5 s`.",
    ],
)
def test_prose_with_its_run_or_no_figure(documents: Documents, text: str) -> None:
    documents.write(f"{text}\n")
    documents.run("--check")


@pytest.mark.parametrize("other", [{"card": "Another Card"}, {"sitting": "2026-01-02"}])
def test_a_row_of_another_card_or_sitting(documents: Documents, other: dict[str, str]) -> None:
    figures = json.loads(json.dumps(FIGURES))
    figures["tables"]["speed"]["rows"][1].append(other)
    documents.write("<!-- generated: run/speed -->\n<!-- end -->\n", figures)
    error = documents.fails()
    assert "b was measured on" in error.what and "one sitting on one card" in error.hint
    figures["tables"]["speed"]["rows"][1][-1] = {"card": "One Card"}
    documents.write("<!-- generated: run/speed -->\n<!-- end -->\n", figures)
    documents.run()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- generated: run/other -->\n<!-- end -->\n", "has no table 'other'"),
        ("<!-- generated: absent/speed -->\n<!-- end -->\n", "absent.json does not exist"),
        ("<!-- generated: nosuch -->\n<!-- end -->\n", "nosuch.json does not exist"),
        ("<!-- generated: run/speed -->\n", "a block without its end"),
        ("<!-- end -->\n", "a block without its end"),
    ],
)
def test_a_block_that_cannot_be_filled(documents: Documents, text: str, message: str) -> None:
    documents.write(text)
    assert message in documents.fails().what


def test_a_row_with_a_cell_too_few(documents: Documents) -> None:
    figures = json.loads(json.dumps(FIGURES))
    figures["tables"]["speed"]["rows"][0] = ["a"]
    documents.write("<!-- generated: run/speed -->\n<!-- end -->\n", figures)
    assert "a has not 2 cells" in documents.fails().what


def test_outcomes_are_those_of_the_mutations_in_order(documents: Documents) -> None:
    file = mutants.data_file("v0.19.1")
    data = json.loads(file.read_text())
    data["outcomes"][:2] = reversed(data["outcomes"][:2])
    file.write_text(json.dumps(data))
    assert "another order" in documents.fails("--check").what
    gone = data["outcomes"].pop()
    file.write_text(json.dumps(data))
    assert f"is not of mutations.toml: {gone['name']}" in documents.fails("--check").what


def test_an_error_that_was_not_planted_is_not_detected(documents: Documents) -> None:
    file = mutants.data_file("v0.19.1")
    data = json.loads(file.read_text())
    number = len(data["outcomes"])
    data["outcomes"][0] |= {"by": mutants.NOT_YET, "seconds": 0, "tree": "", "key": ""}
    file.write_text(json.dumps(data))
    documents.run()
    text = (documents.root / "docs/evidence/mutations.md").read_text()
    assert f"{number - 1} of {number - 1} were detected" in text
    assert "1 more have not been planted yet" in text
    assert text.count(f"| {mutants.NOT_YET} |") == 1


def test_releases_are_those_with_a_lock(documents: Documents) -> None:
    file = transformers_releases.data_file("v0.19.1")
    data = json.loads(file.read_text())
    del data["releases"][0]
    file.write_text(json.dumps(data))
    assert "has other releases than" in documents.fails("--check").what


def test_pages_say_which_tree_they_are_of(documents: Documents) -> None:
    base = Base.load("v0.19.1", documents.root)
    page = documents.root / "docs/evidence/mutations.md"
    lock = base.lock_file.read_text()
    tree = json.loads(mutants.data_file("v0.19.1").read_text())["tree"]
    assert f"v0.19.1, tree `{tree[:12]}`" in page.read_text()
    last = lock.split()[-1]
    base.lock_file.write_text(lock.replace(last, "0" * 40))
    assert "not what the data gives" in documents.fails("--check").what
    documents.run()
    assert f"tree `{tree[:12]}`, an earlier state of the series;" in page.read_text()


def test_a_plot_is_of_its_data(documents: Documents, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn anew when the data changes, refused when edited by hand, removed without its data."""
    drawings: list[Any] = []

    def drawn(command: Any, shown: Any) -> bytes:
        drawings.append(shown)
        return b"<svg/>\n"

    monkeypatch.setattr(plots, "drawn", drawn)
    columns = ["engine", "1 sequence", "8 sequences", "8 x 224"]
    table: dict[str, Any] = {"columns": columns}
    table["rows"] = [["a", "1.5 (3; 4%)", "-", "5"], ["b", "2", "9.5", "7"]]
    points = {"columns": ["engine", "prompt", "ms"], "rows": [["a", "8", "1.5"], ["a", "16", "3"]]}
    figures: dict[str, Any] = {**FIGURES, "tables": {"speed": table, "long": points}}
    ends = {"x": "sequences", "y": "tokens/s"}
    figures["plots"] = {
        "by-n": {"table": "speed", "columns": r"(\d+) sequences?", **ends},
        "by-prompt": {"table": "long", "points": ["prompt", "ms"], **ends},
    }
    documents.write("", figures)
    both = "plots/run-by-n.svg, docs/evidence/plots/run-by-prompt.svg"
    assert both in documents.fails("--check").what
    documents.run()
    documents.run("--check")
    assert [shown["lines"] for shown in drawings] == [
        {"a": [(1.0, 1.5)], "b": [(1.0, 2.0), (8.0, 9.5)]},
        {"a": [(8.0, 1.5), (16.0, 3.0)]},
    ]
    assert drawings[0]["title"] == "One Card, 2026-01-01"
    file = documents.root / "docs/evidence/plots/run-by-n.svg"
    file.write_text(file.read_text().replace("<svg/>", "<svg></svg>"))
    assert "run-by-n.svg: not what" in documents.fails("--check").what
    documents.run()
    table["rows"][1][2] = "9.6"
    documents.write("", figures)
    assert "run-by-n.svg: not what" in documents.fails("--check").what
    documents.run()
    assert len(drawings) == 4
    del figures["plots"]["by-n"]
    documents.write("", figures)
    documents.run()
    assert not file.exists()
    documents.run("--check")
